"""The operations of a service, a request each over any `Transport`: paced, and repeated where that is safe."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import IO, Any, Final, NoReturn, Self, TypeAlias

import msgspec
from msgspec import UNSET, Raw

from cloudstore_mapping.client import codec
from cloudstore_mapping.client.pacing import Pacer
from cloudstore_mapping.client.transport import Transport
from cloudstore_mapping.errors import (
    REPLY_ERRORS,
    CloudStoreError,
    OutcomeUnknownError,
    ProtocolError,
    TimedOutError,
    TooOftenError,
    TransportError,
    UnavailableError,
)
from cloudstore_mapping.wire import Operation, Reply, Request, Upload, encode_value

Names: TypeAlias = list[str]  # within `Client`, `list` is its method

#: Seconds that one request may wait in all for its repetitions, its service's Retry-After included.
MAX_WAIT: Final = 30.0
#: The statuses of an answer after which the same request may go well.
BUSY: Final = frozenset({429, 502, 503, 504})

_FIRST_WAIT: Final = 0.5
_LONGEST_WAIT: Final = 8.0


class Client:
    """
    Asks a service for one thing at a time, and raises the error of `errors.REPLY_ERRORS` that it answers with.

    Parameters
    ----------
    transport
        The way to the service; closed with the client.
    api_key
        The account's key.
    retries
        How often a request is sent again that got no connection, or an answer of `BUSY`.
    min_interval
        Seconds between two requests of all clients that share the `pacer`.
    pacer, clock, sleep
        The pacer (`pacing.pacer_of`; None: one of its own, with this clock), and how to wait.

    Notes
    -----
    May be used by many threads. Methods take the file's name; where that isn't the dict key, `key` is the one to show.
    """

    def __init__(
        self,
        transport: Transport,
        api_key: str,
        *,
        retries: int = 3,
        min_interval: float = 0.0,
        pacer: Pacer | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._transport = transport
        self._api_key = api_key
        self._retries = retries
        self._min_interval = min_interval
        self._pacer = Pacer(clock, sleep) if pacer is None else pacer
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the transport."""
        self._transport.close()

    def load(self, name: str, password: str | None = None, *, key: str | None = None) -> Raw:
        """Return the JSON of what is stored."""
        return self._ask(Request(api_key=self._api_key, name=name, password=password), key).content

    def save(self, name: str, value: Raw, password: str | None = None, *, key: str | None = None) -> None:
        """Store the JSON `value` in place of what is stored."""
        self._ask(Request(api_key=self._api_key, name=name, value=value, password=password), key)

    def merge(self, name: str, value: Raw, password: str | None = None, *, key: str | None = None) -> None:
        """Merge the JSON `value` into what is stored, at the service and as `merge.merge` does it."""
        self._ask(Request(api_key=self._api_key, name=name, options="merge", value=value, password=password), key)

    def delete(self, name: str, password: str | None = None, *, key: str | None = None) -> None:
        """Remove what is stored; `NoFileError` if nothing is."""
        self._ask(Request(api_key=self._api_key, name=name, options="delete", password=password), key)

    def upload(
        self, name: str, data: bytes | IO[bytes], content_type: str, password: str | None = None
    ) -> dict[str, Any]:
        """Store a media file; return its ``name``, ``folder``, ``id``, ``mimetype`` and ``size``."""
        upload = Upload(api_key=self._api_key, name=name, content_type=content_type, data=data, password=password)
        return described(self._ask(upload, None))

    def list(self, filter: str = "") -> Names:  # noqa: A002 - the documentation's name
        """Return the names that hold the text `filter`, of upper and lower case as it stands; all for the empty one."""
        return listed(self._ask(Request(api_key=self._api_key, name=filter, options="list"), None))

    def reserve(self) -> float:
        """Return the time on the pacer's clock at which the next request may start, for `exchange`."""
        return self._pacer.reserve(self._min_interval)

    def exchange(self, request: Request | Upload, *, start: float | None = None, key: str | None = None) -> Reply:
        """
        Return the service's answer, be it an error; `start` is what `reserve` gave.

        Raises
        ------
        TransportError, TimedOutError
            No answer came, and nothing was changed: the request never left, or was a read.
        OutcomeUnknownError
            No answer came to a write, one attempt of which may have reached the service.
        ProtocolError
            An answer came that can't be read.
        """
        rewind = _rewinder(request)
        tries_left = self._retries if rewind is not None else 0
        wait_left = MAX_WAIT
        backoff = _FIRST_WAIT
        maybe_done = False
        while True:
            self._pacer.wait(self.reserve() if start is None else start)
            start = None
            outcome = self._attempt(request)
            wait = max(backoff * random.uniform(0.5, 1), _retry_after(outcome))  # noqa: S311 - not for a secret
            if not _may_be_repeated(outcome) or tries_left == 0 or wait > wait_left:
                return _concluded(request, outcome, maybe_done, key)
            maybe_done = maybe_done or _may_be_done(outcome)
            tries_left -= 1
            wait_left -= wait
            backoff = min(2 * backoff, _LONGEST_WAIT)
            self._sleep(wait)
            if rewind is not None:
                rewind()

    def _attempt(self, request: Request | Upload) -> Reply | TransportError | TimedOutError:
        """Send the request once: every attempt of every operation passes here."""
        try:
            return self._transport.send(request)
        except (TransportError, TimedOutError) as error:
            return error

    def _ask(self, request: Request | Upload, key: str | None) -> Reply:
        shown = None if _is_listing(request) else request.name if key is None else key
        try:
            reply = self.exchange(request, key=shown)
        except CloudStoreError as error:
            error.key = shown
            raise
        if reply.error is not None:
            _refuse(reply, shown)
        return reply


def listed(reply: Reply) -> Names:
    """Return the names that the answer to a list says: its array where there is one, else its comma-joined text."""
    names = codec.load(reply.content)
    if isinstance(names, str):
        return names.split(",") if names else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ProtocolError("The answer to a list holds no names; is the address right?", **_facts(reply, None))
    return names


def described(reply: Reply) -> dict[str, Any]:
    """Return what the answer to an upload says of the stored file."""
    facts = None if reply.data is UNSET else codec.load(reply.data)
    if not isinstance(facts, dict):
        raise ProtocolError(
            "The answer to an upload doesn't describe a file; is the address right?", **_facts(reply, None)
        )
    return facts


def _is_listing(request: Request | Upload) -> bool:
    return isinstance(request, Request) and request.operation is Operation.LIST


def _rewinder(request: Request | Upload) -> Callable[[], object] | None:
    """Return what to call before the request is sent again; None where its stream can't be sent twice."""
    if isinstance(request, Request) or isinstance(request.data, bytes):
        return lambda: None
    try:
        return partial(request.data.seek, request.data.tell()) if request.data.seekable() else None
    except (OSError, AttributeError):
        return None


def _may_be_repeated(outcome: Reply | TransportError | TimedOutError) -> bool:
    if isinstance(outcome, TimedOutError):
        return not outcome.sent
    return isinstance(outcome, TransportError) or outcome.status in BUSY


def _may_be_done(outcome: Reply | TransportError | TimedOutError) -> bool:
    """Whether the service may have done what was asked, so far as the outcome says."""
    if isinstance(outcome, Reply):
        # A gateway's word for a service that didn't answer it; but too many requests are turned away unread.
        return outcome.error == "Http error" and outcome.status != HTTPStatus.TOO_MANY_REQUESTS
    return outcome.sent


def _retry_after(outcome: Reply | TransportError | TimedOutError) -> float:
    return outcome.retry_after or 0.0 if isinstance(outcome, Reply) else 0.0


def _concluded(
    request: Request | Upload, outcome: Reply | TransportError | TimedOutError, maybe_done: bool, key: str | None
) -> Reply:
    operation = request.operation if isinstance(request, Request) else None
    if isinstance(outcome, Reply):
        if operation is Operation.DELETE and outcome.error == "NoFile" and maybe_done:
            done = encode_value("Entry deleted")
            return msgspec.structs.replace(outcome, error=None, message=done, data=UNSET)
        return outcome
    if (operation is None or operation.writes) and (maybe_done or outcome.sent):
        what = "upload" if operation is None else operation.value
        raise OutcomeUnknownError(
            f"No answer came to the {what} of {request.name if key is None else key!r}: "
            "it may have been done or not; load it to see, or do it again."
        ) from outcome
    raise outcome


# Sentences that name the key, which the service may know under another name.
_SENTENCES: Final = {
    "NoFile": "There is nothing under {key!r}.",
    "Locked": "{key!r} is locked, and the password is missing or wrong; give the right one.",
}
# What to do about a status that comes from a proxy or a web server, not from the service.
_ADVICE: Final = {
    401: "check the API key, and whether a proxy asks for a sign-in",
    403: "check the API key, and whether a proxy or firewall is in between",
    404: "check the address, which usually ends in /cloudstore",
}
_REDIRECTED: Final = "redirects are never followed with an API key; give the address that this one points to"


def _refuse(reply: Reply, key: str | None) -> NoReturn:
    error = reply.error or ""
    facts = _facts(reply, key)
    about = "" if key is None else f"{key!r}: "
    kind: type[CloudStoreError]
    if error == "Http error":
        advice = _ADVICE.get(reply.status, _REDIRECTED if 300 <= reply.status < 400 else "try again later")
        sentence = f"{about}The answer was {reply.status} {reply.sentence}; {advice}."
        kind = UnavailableError if reply.status in BUSY else ProtocolError
        kind = TooOftenError if reply.status == HTTPStatus.TOO_MANY_REQUESTS else kind
    elif error in REPLY_ERRORS:
        kind = REPLY_ERRORS[error][1]
        sentence = about + (reply.sentence or f"The service says {error}.")
    else:
        kind = ProtocolError
        sentence = f"{about}The service says {error!r}, which this version doesn't know: {reply.sentence}"
    if key is not None and error in _SENTENCES:
        sentence = _SENTENCES[error].format(key=key)
    if issubclass(kind, TooOftenError | UnavailableError):
        raise kind(sentence, retry_after=reply.retry_after, **facts)
    raise kind(sentence, **facts)


def _facts(reply: Reply, key: str | None) -> dict[str, Any]:
    return {"key": key, "error": reply.error, "status": reply.status, "response": reply.response}
