"""Sending a request until its outcome is final: paced, repeated where that is safe, and counted."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple, Self

import msgspec

from cloudstore_mapping.client.fetching import Fetched
from cloudstore_mapping.client.outcomes import (
    Outcome,
    concluded,
    is_write,
    may_be_done,
    may_be_repeated,
    operation_of,
    raise_for,
    wait_asked,
)
from cloudstore_mapping.client.pacing import Pacer
from cloudstore_mapping.client.transport import Sendable, Transport
from cloudstore_mapping.errors import TimedOutError, TransportError, UnsupportedError
from cloudstore_mapping.wire import Reply, Upload

#: Seconds that one request may wait in all for its repetitions, its service's Retry-After included.
MAX_WAIT: Final = 30.0
#: Seconds after its first attempt until which a request may be sent again: services remember ids for 600 at least.
MAX_AGE: Final = 540.0

_FIRST_WAIT: Final = 0.5
_LONGEST_WAIT: Final = 8.0


class Stats(NamedTuple):
    """
    What was sent: attempts by operation, how many of all were repetitions, bytes of bodies each way.

    Bytes are counted by the transport, and 0 where it doesn't.
    """

    requests: dict[str, int]
    retries: int
    bytes_sent: int
    bytes_received: int


class Sender:
    """
    Sends requests over a transport, and remembers what the service said that it can.

    Parameters
    ----------
    transport
        The way to the service; closed with the sender.
    api_key
        The account's key.
    retries
        How often a request is sent again that got no connection, or an answer of `outcomes.BUSY`.
    min_interval
        Seconds between two requests of all senders that share the `pacer`.
    pacer, clock, sleep
        The pacer (`pacing.pacer_of`; None: one of its own, with this clock), and how to wait.

    Notes
    -----
    May be used by many threads. Where the service's last reply named the extension `once`, all attempts of a write
    have one id, and one that the service took but didn't answer in time is tried again as well. Before its first reply
    they have one if the transport has a place for it that no other service looks at (`HTTPTransport.has_id_header`).
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
        self._clock = clock
        self._sleep = sleep
        self._extensions: frozenset[str] | None = None  # before the first reply
        self._attempts: Counter[str] = Counter()
        self._repetitions = 0
        self._ending = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def hurry(self) -> None:
        """Repeat nothing from now on, and have a service in this process wait no longer for others: `close` comes."""
        self._ending = True
        if (hurry := getattr(self._transport, "hurry", None)) is not None:
            hurry()

    def close(self) -> None:
        """Close the transport."""
        self._transport.close()

    @property
    def extensions(self) -> frozenset[str]:
        """What the service said last that it can, of `wire.EXTENSIONS`; nothing before its first reply."""
        return self._extensions or frozenset()

    @property
    def stats(self) -> Stats:
        """What was sent so far."""
        sent = getattr(self._transport, "sent_bytes", 0)
        received = getattr(self._transport, "received_bytes", 0)
        with self._lock:
            return Stats(dict(self._attempts), self._repetitions, sent, received)

    def reserve(self) -> float:
        """Return the time on the pacer's clock at which the next request may start, for `exchange`."""
        return self._pacer.reserve(self._min_interval)

    def exchange(self, request: Sendable, *, start: float | None = None, key: str | None = None) -> Reply:
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
        request = self._identified(request)
        rewind = _rewinder(request)
        tries_left = self._retries if rewind is not None else 0
        wait_left = MAX_WAIT
        backoff = _FIRST_WAIT
        maybe_done = is_repetition = False
        self._pacer.wait(self.reserve() if start is None else start)
        latest = self._clock() + MAX_AGE
        while True:
            outcome = self._attempt(request, is_repetition)
            if tries_left == 0 or self._ending or not may_be_repeated(request, outcome, "once" in self.extensions):
                return concluded(request, outcome, maybe_done, key)
            wait = max(backoff * random.uniform(0.5, 1), wait_asked(outcome))  # noqa: S311 - not for a secret
            if wait > wait_left or self._clock() + wait > latest:
                return concluded(request, outcome, maybe_done, key)
            maybe_done = maybe_done or may_be_done(outcome)
            is_repetition = True
            tries_left -= 1
            wait_left -= wait
            backoff = min(2 * backoff, _LONGEST_WAIT)
            self._sleep(wait)
            if rewind is not None:
                rewind()
            self._pacer.wait(self.reserve())

    def fetch(self, link: str, start: int = 0, tag: str | None = None) -> Fetched:
        """
        Begin to get a media file, once; see `fetching.MediaTransport.fetch`.

        Raises what the service answers where there is no file, and `UnsupportedError` over a transport without `fetch`.
        """
        fetch = getattr(self._transport, "fetch", None)
        if fetch is None:
            raise UnsupportedError("This store's transport gets no media files; open the store by its address.")
        self._pacer.wait(self.reserve())
        with self._lock:
            self._attempts["download"] += 1
            self._repetitions += start > 0
        fetched: Fetched = fetch(link, start, tag)
        if fetched.refusal is not None:
            raise_for(fetched.refusal, None)
        return fetched

    def media_files(self) -> list[dict[str, Any]]:
        """Return what an upload's answer says, of all media files; `UnsupportedError` where they can't be listed."""
        listing = getattr(self._transport, "media_files", None)
        if listing is None:
            raise UnsupportedError("A service doesn't list media files; their links are what upload returned.")
        files: list[dict[str, Any]] = listing()
        return files

    def check_has_data(self) -> None:
        """Raise `UnsupportedError` if a store in this process is empty only because its data are of other accounts."""
        check = getattr(self._transport, "check_has_data", None)
        if check is not None:
            check()

    def waits(self) -> Iterator[float | None]:
        """Yield the seconds to wait after each attempt that failed, and None after the last one."""
        backoff = _FIRST_WAIT
        for _ in range(self._retries):
            yield backoff * random.uniform(0.5, 1)  # noqa: S311 - not for a secret
            backoff = min(2 * backoff, _LONGEST_WAIT)
        yield None

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self._sleep(seconds)

    def _identified(self, request: Sendable) -> Sendable:
        """Return the request, a write with the id under which the service does it once however often it comes."""
        if self._extensions is None:
            may_know = getattr(self._transport, "has_id_header", False)
        else:
            may_know = "once" in self._extensions
        if not may_know or isinstance(request, Upload) or not is_write(request):
            return request
        return msgspec.structs.replace(request, once=secrets.token_hex(16))

    def _attempt(self, request: Sendable, is_repetition: bool) -> Outcome:
        """Send the request once: every attempt of every operation passes here."""
        with self._lock:
            self._attempts[operation_of(request)] += 1
            self._repetitions += is_repetition
        try:
            reply = self._transport.send(request)
        except (TransportError, TimedOutError) as error:
            return error
        if reply.error != "Http error" or reply.extensions:  # else it is a proxy's
            self._extensions = reply.extensions
        return reply


def _rewinder(request: Sendable) -> Callable[[], object] | None:
    """Return what to call before the request is sent again; None where its stream can't be sent twice."""
    if not isinstance(request, Upload) or isinstance(request.data, bytes):
        return lambda: None
    try:
        return partial(request.data.seek, request.data.tell()) if request.data.seekable() else None
    except (OSError, AttributeError):
        return None
