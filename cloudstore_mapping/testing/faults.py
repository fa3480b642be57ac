"""A transport on which, when told to, goes wrong what can go wrong between a client and its service."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Final, TypeAlias

from cloudstore_mapping.client.transport import Sendable, Transport
from cloudstore_mapping.errors import (
    CloudStoreError,
    ProtocolError,
    TimedOutError,
    TransportError,
)
from cloudstore_mapping.testing.transports import PassingTransport
from cloudstore_mapping.wire import Reply, decode_reply, encode_reply, encode_value, failure

#: What a request gets in place of its answer; it may pass it on all the same.
Fault: TypeAlias = Callable[["FaultyTransport", Sendable], Reply]

#: Seconds after which what waits for another thread gives up; a test that passes never waits that long.
PATIENCE: Final = 30.0

SIGN_IN_PAGE: Final = b"<!doctype html><title>Welcome to our hotel</title><form>Sign in</form>"


class FaultyTransport(PassingTransport):
    """
    Passes requests on, but for the next ones, which get the `faults` in their order.

    Parameters
    ----------
    inner
        The way to the service.
    extensions
        What all of the service's replies name in the place of what they do; None: nothing else than they do.

    Attributes
    ----------
    faults
        What the next requests get: functions of this module, or any other of the transport and a request.
    requests
        What came, whatever became of it.
    """

    def __init__(self, inner: Transport, extensions: frozenset[str] | None = None) -> None:
        super().__init__(inner)
        self.extensions = extensions
        self.faults: deque[Fault] = deque()
        self.requests: list[Sendable] = []
        self._lasting: Fault | None = None

    @property
    def has_id_header(self) -> bool:
        """Whether a write has an id before the service has named `once`: not where the service is said to have none."""
        return super().has_id_header and (self.extensions is None or "once" in self.extensions)

    def send(self, request: Sendable) -> Reply:
        """Return the answer, or what the next fault makes of it."""
        self.requests.append(request)
        try:
            fault = self.faults.popleft()
        except IndexError:
            return self.pass_on(request) if self._lasting is None else self._lasting(self, request)
        return fault(self, request)

    def pass_on(self, request: Sendable) -> Reply:
        """Return the service's answer."""
        reply = super().send(request)
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

    @contextmanager
    def broken(self, fault: Fault | None = None) -> Iterator[None]:
        """Let every request within the block have this fault, by default `refused`."""
        self._lasting = refused if fault is None else fault
        try:
            yield
        finally:
            self._lasting = None


def refused(_transport: FaultyTransport, _request: Sendable) -> Reply:
    """Take no connection: the request never leaves."""
    raise TransportError("Nobody listens there.", sent=False)


def not_connected(_transport: FaultyTransport, _request: Sendable) -> Reply:
    """Take no connection in time: the request never leaves."""
    raise TimedOutError("The connection was not taken in time.", sent=False)


def dropped(_transport: FaultyTransport, _request: Sendable) -> Reply:
    """Break the connection before the service does anything, which nobody can tell from `lost`."""
    raise TransportError("The connection broke.", sent=True)


def lost(transport: FaultyTransport, request: Sendable) -> Reply:
    """Break the connection after the service has done what was asked, before its answer comes."""
    transport.pass_on(request)
    raise TransportError("The connection broke.", sent=True)


def stuck(_transport: FaultyTransport, _request: Sendable) -> Reply:
    """Give no answer in time, and do nothing, which nobody can tell from `slow`."""
    raise TimedOutError("No answer came in time.", sent=True)


def slow(transport: FaultyTransport, request: Sendable) -> Reply:
    """Give no answer in time, but do what was asked."""
    transport.pass_on(request)
    raise TimedOutError("No answer came in time.", sent=True)


def truncated(transport: FaultyTransport, request: Sendable) -> Reply:
    """Do what was asked, and cut the end off the answer."""
    return transport.reread(transport.pass_on(request), cut=-3)


def twice(transport: FaultyTransport, request: Sendable) -> Reply:
    """Send the request twice, as something on the way may, and give the second answer."""
    transport.pass_on(request)
    return transport.pass_on(request)


def answered(status: int, body: bytes = b"", retry_after: float | None = None) -> Fault:
    """Return the fault that something on the way answers in the service's place, which sees nothing of the request."""

    def answer(_transport: FaultyTransport, _request: Sendable) -> Reply:
        if status == HTTPStatus.OK:
            return decode_reply(body)
        with suppress(ProtocolError):
            return decode_reply(body, status=status, retry_after=retry_after)
        phrase = encode_value(HTTPStatus(status).phrase)
        return Reply(error="Http error", message=phrase, status=status, retry_after=retry_after)

    return answer


def turned_away(error: CloudStoreError) -> Fault:
    """Return the fault that the service itself answers with this error, without doing anything."""
    return lambda transport, _request: transport.reread(failure(error))


def lost_while(meanwhile: Callable[[], object]) -> Fault:
    """Return `lost` with something that happens before the client can try again."""

    def lose(transport: FaultyTransport, request: Sendable) -> Reply:
        transport.pass_on(request)
        meanwhile()
        raise TransportError("The connection broke.", sent=True)

    return lose


class Delayed:
    """A fault that holds back the answer to a request that was `done`, until `go`."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.go = threading.Event()

    def __call__(self, transport: FaultyTransport, request: Sendable) -> Reply:
        """Pass the request on at once, and its answer later."""
        reply = transport.pass_on(request)
        self.done.set()
        if not self.go.wait(PATIENCE):
            raise TimeoutError(f"Nobody let go of the answer for {PATIENCE:g} seconds; set `go`.")
        return reply
