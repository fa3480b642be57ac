"""A transport on which, when told to, goes wrong what can go wrong between a client and its service."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from http import HTTPStatus
from typing import NamedTuple, TypeAlias

from cloudstore_mapping.client.transport import HTTPTransport, Sendable, Transport
from cloudstore_mapping.embedded import open_service
from cloudstore_mapping.errors import (
    CloudStoreError,
    OutcomeUnknownError,
    ProtocolError,
    TimedOutError,
    TooOftenError,
    TransportError,
    UnavailableError,
)
from cloudstore_mapping.wire import EXTENSIONS, Reply, decode_reply, encode_reply, encode_value, failure
from tests.service_fakes import PATIENCE
from tests.vendor import Vendor

#: What a request gets in place of its answer; it may pass it on all the same.
Fault: TypeAlias = Callable[["FaultyTransport", Sendable], Reply]

SIGN_IN_PAGE = b"<!doctype html><title>Welcome to our hotel</title><form>Sign in</form>"


class FaultyTransport:
    """
    Passes requests on, but for the next ones, which get the `faults` in their order; an empty list heals it.

    `requests` is what came. `extensions`: what all of the service's replies name in place of what they do; None:
    nothing else than they do.
    """

    def __init__(self, inner: Transport, extensions: frozenset[str] | None = None) -> None:
        self._inner = inner
        self.extensions = extensions
        self.faults: deque[Fault] = deque()
        self.requests: list[Sendable] = []

    def send(self, request: Sendable) -> Reply:
        """Return the answer, or what the next fault makes of it."""
        self.requests.append(request)
        try:
            fault = self.faults.popleft()
        except IndexError:
            return self.pass_on(request)
        return fault(self, request)

    def pass_on(self, request: Sendable) -> Reply:
        """Return the service's answer."""
        reply = self._inner.send(request)
        return reply if self.extensions is None else self.reread(reply)

    def reread(self, reply: Reply, cut: int | None = None) -> Reply:
        """Return a reply of the service's as its bytes say it, `cut` like a slice's end."""
        return decode_reply(
            encode_reply(reply)[:cut],
            status=reply.status,
            retry_after=reply.retry_after,
            extensions=reply.extensions if self.extensions is None else self.extensions,
            response=reply.response,
        )

    def break_with(self, faults: Iterable[Fault]) -> None:
        """Let the next requests have these faults, and forget what came so far."""
        self.faults = deque(faults)
        self.requests.clear()

    def close(self) -> None:
        """Close the transport behind."""
        self._inner.close()


def refused(transport: FaultyTransport, request: Sendable) -> Reply:
    """No connection: the request never left."""
    raise TransportError("Nobody listens there.", sent=False)


def not_connected(transport: FaultyTransport, request: Sendable) -> Reply:
    """No connection in time: the request never left."""
    raise TimedOutError("The connection was not taken in time.", sent=False)


def dropped(transport: FaultyTransport, request: Sendable) -> Reply:
    """The connection broke before the service did anything, which nobody can tell from `lost`."""
    raise TransportError("The connection broke.", sent=True)


def lost(transport: FaultyTransport, request: Sendable) -> Reply:
    """The connection broke after the service did what was asked, before its answer came."""
    transport.pass_on(request)
    raise TransportError("The connection broke.", sent=True)


def stuck(transport: FaultyTransport, request: Sendable) -> Reply:
    """No answer came in time, and nothing was done, which nobody can tell from `slow`."""
    raise TimedOutError("No answer came in time.", sent=True)


def slow(transport: FaultyTransport, request: Sendable) -> Reply:
    """No answer came in time, but what was asked was done."""
    transport.pass_on(request)
    raise TimedOutError("No answer came in time.", sent=True)


def truncated(transport: FaultyTransport, request: Sendable) -> Reply:
    """The request was done, and the end of the answer is missing."""
    return transport.reread(transport.pass_on(request), cut=-3)


def twice(transport: FaultyTransport, request: Sendable) -> Reply:
    """Something on the way sent the request twice, and the second answer came."""
    transport.pass_on(request)
    return transport.pass_on(request)


def answered(status: int, body: bytes = b"", retry_after: float | None = None) -> Fault:
    """Return the fault that something on the way answers in the service's place, which sees nothing of the request."""

    def answer(transport: FaultyTransport, request: Sendable) -> Reply:
        if status == HTTPStatus.OK:
            return decode_reply(body)
        with suppress(ProtocolError):
            return decode_reply(body, status=status, retry_after=retry_after)
        phrase = encode_value(HTTPStatus(status).phrase)
        return Reply(error="Http error", message=phrase, status=status, retry_after=retry_after)

    return answer


def turned_away(error: CloudStoreError) -> Fault:
    """Return the fault that the service itself answers with this error, without doing anything."""
    return lambda transport, request: transport.reread(failure(error))


def lost_while(meanwhile: Callable[[], object]) -> Fault:
    """Return `lost` with something that happens before the client can try again."""

    def lose(transport: FaultyTransport, request: Sendable) -> Reply:
        transport.pass_on(request)
        meanwhile()
        raise TransportError("The connection broke.", sent=True)

    return lose


def way(kind: str, vendor: Vendor) -> tuple[FaultyTransport, str]:
    """Return a way to an empty account and its API key: ``extended`` with all extensions, ``plain`` at the vendor's."""
    if kind == "plain":
        vendor.files.clear()
        return FaultyTransport(HTTPTransport(vendor.address)), vendor.api_key
    inner, api_key = open_service(None)
    return FaultyTransport(inner, frozenset(EXTENSIONS)), api_key


class Delayed:
    """A fault that holds back the answer to a request that was `done`, until `go`."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.go = threading.Event()

    def __call__(self, transport: FaultyTransport, request: Sendable) -> Reply:
        """Pass the request on at once, and its answer later."""
        reply = transport.pass_on(request)
        self.done.set()
        assert self.go.wait(PATIENCE)
        return reply


Error: TypeAlias = type[CloudStoreError] | None


class Row(NamedTuple):
    """What a read, a write and a write with an id become of a fault: None if it goes unseen, else their error."""

    fault: Fault
    once: tuple[Error, Error, Error]
    for_ever: tuple[Error, Error, Error]


UNSEEN = (None, None, None)
PROTOCOL = (ProtocolError, ProtocolError, ProtocolError)
TOO_OFTEN = (TooOftenError, TooOftenError, TooOftenError)
UNAVAILABLE = (UnavailableError, UnavailableError, UnavailableError)
UNKNOWN = (TransportError, OutcomeUnknownError, OutcomeUnknownError)

#: Each fault as it comes once, and as it comes to every attempt.
TABLE = {
    "refused": Row(refused, UNSEEN, (TransportError, TransportError, TransportError)),
    "not connected": Row(not_connected, UNSEEN, (TimedOutError, TimedOutError, TimedOutError)),
    "dropped": Row(dropped, UNSEEN, UNKNOWN),
    "lost": Row(lost, UNSEEN, UNKNOWN),
    "stuck": Row(
        stuck, (TimedOutError, OutcomeUnknownError, None), (TimedOutError, OutcomeUnknownError, OutcomeUnknownError)
    ),
    "slow": Row(
        slow, (TimedOutError, OutcomeUnknownError, None), (TimedOutError, OutcomeUnknownError, OutcomeUnknownError)
    ),
    "429": Row(answered(429, retry_after=2.0), UNSEEN, TOO_OFTEN),
    "429 of the service": Row(turned_away(TooOftenError("Wait.", retry_after=2.0)), UNSEEN, TOO_OFTEN),
    "502": Row(answered(502, SIGN_IN_PAGE), UNSEEN, UNAVAILABLE),
    "503": Row(answered(503, retry_after=2.0), UNSEEN, UNAVAILABLE),
    "503 of the service": Row(turned_away(UnavailableError("Wait.", retry_after=2.0)), UNSEEN, UNAVAILABLE),
    "504": Row(answered(504, SIGN_IN_PAGE), UNSEEN, UNAVAILABLE),
    "500": Row(answered(500, SIGN_IN_PAGE), PROTOCOL, PROTOCOL),
    "500 of the service": Row(turned_away(ProtocolError("It failed.", error="ServerError")), PROTOCOL, PROTOCOL),
    "truncated": Row(truncated, PROTOCOL, PROTOCOL),
    "sign-in page": Row(answered(200, SIGN_IN_PAGE), PROTOCOL, PROTOCOL),
    "nothing": Row(answered(200), PROTOCOL, PROTOCOL),
    "array": Row(answered(200, b"[]"), PROTOCOL, PROTOCOL),
    "no error": Row(answered(200, b'{"message":"","data":{}}'), PROTOCOL, PROTOCOL),
    "error of another type": Row(answered(200, b'{"error":false,"data":{}}'), PROTOCOL, PROTOCOL),
    "version of another type": Row(answered(200, b'{"error":null,"data":{},"version":1}'), PROTOCOL, PROTOCOL),
}
#: The faults in spite of which the request was done.
DONE = {"lost", "slow", "truncated"}
