"""Retry: one request until its final outcome, under one deadline: pacing, ids, backoff, close."""

from __future__ import annotations

import itertools
import random
import secrets
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple, Self, TypeAlias

import msgspec
from msgspec import UNSET

from cloudstore_mapping.callback_client import Pacer
from cloudstore_mapping.client.transport import DEFAULT_DEADLINE, Deadline, Fetched, Group, Sendable, Transport, scope
from cloudstore_mapping.errors import (
    REPLY_ERRORS,
    ChangedError,
    CloudStoreError,
    ForbiddenError,
    OutcomeUnknownError,
    ProtocolError,
    TimedOutError,
    TooOftenError,
    TransportError,
    UnavailableError,
    UnsupportedError,
    shorten,
)
from cloudstore_mapping.forks import renew_after_fork
from cloudstore_mapping.masking import hide
from cloudstore_mapping.wire import Batch, Operation, Reply, Request, Upload, encode_value


def closed_error() -> ValueError:
    """Return the error of every operation on a closed store."""
    return ValueError("The store is closed; open it again.")


class _Thread(threading.local):
    """State of a thread: it holds `turn` during a request; an RLock, as a signal handler may send another request."""

    def __init__(self, turns: weakref.WeakValueDictionary[int, Any]) -> None:
        self.turn = threading.RLock()
        turns[threading.get_ident()] = self.turn


class Gate:
    """
    Let requests pass until `shut`; `wait` then returns once none is in flight.

    Send a request in ``with gate.turn:`` after `check`. Thread safe; `wait` ignores requests of its own thread.
    """

    def __init__(self) -> None:
        self.is_closed = False
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Forget the requests of other threads in a child process."""
        self._turns: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._sleepers: dict[int, Group] = {}  # by thread
        self._thread = _Thread(self._turns)
        # Held until the gate closes. Not an `Event`: an interrupt inside an `Event` can leave its lock held.
        self._asleep = threading.Lock()
        if not self.is_closed:
            self._asleep.acquire()

    @property
    def turn(self) -> Any:
        """Lock to hold during a request."""
        return self._thread.turn

    def check(self) -> None:
        """Raise `ValueError` if the gate is closed."""
        if self.is_closed:
            raise closed_error()

    def sleep(self, seconds: float) -> None:
        """Sleep, but not beyond the end of this thread's bulk work; `ValueError` as soon as the gate closes."""
        if scope.group is None:
            until = time.monotonic() + seconds
            while not self.is_closed and (left := until - time.monotonic()) > 0:
                if self._asleep.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
                    self._asleep.release()
        else:
            self._sleep_in(scope.group, seconds)
        self.check()

    def _sleep_in(self, group: Group, seconds: float) -> None:
        thread = threading.get_ident()
        self._sleepers[thread] = group
        try:
            if not self.is_closed:
                group.sleep(seconds)
        finally:
            self._sleepers.pop(thread, None)

    def shut(self) -> None:
        """Let no further request pass, and end all sleeps."""
        was_closed, self.is_closed = self.is_closed, True
        if not was_closed:
            self._asleep.release()
            for group in list(self._sleepers.values()):
                group.wake()

    def is_in_use(self) -> bool:
        """Return True in a signal handler, or `__del__`, in the middle of a request of this thread."""
        owned: bool = self.turn._is_owned()  # noqa: SLF001 - as `threading.Condition` asks
        return owned

    def wait(self) -> None:
        """Wait for the requests in flight, except those of this thread; at Python's end no other thread runs."""
        if sys.is_finalizing():
            return
        for reference in self._turns.valuerefs():  # a copy, as other threads add turns
            turn = reference()
            if turn is not None:
                with turn:
                    pass


#: Result of a single attempt: a reply, or the reason why there is none.
Outcome: TypeAlias = Reply | CloudStoreError

#: Seconds a request may wait in total between its attempts, including ``Retry-After``.
MAX_WAIT: Final = 30.0
#: Seconds after the first attempt until which a request may be sent again: services keep ids for at least 600.
MAX_AGE: Final = 480.0

_FIRST_BACKOFF: Final = 0.5
_LONGEST_BACKOFF: Final = 8.0

#: Statuses after which the same request may succeed.
BUSY: Final = frozenset({429, 502, 503, 504})


class WriteMark:
    """
    Mark that changes before a write of this process is sent, and after it ends, through any store.

    If it is unchanged, a value read since is not older than any write of this process.

    Notes
    -----
    Thread safe: no mark comes twice.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.latest = 0

    def change(self) -> None:
        """Change the mark."""
        self.latest = next(self._numbers)


WRITES: Final = WriteMark()


class RequestStats(NamedTuple):
    """
    Attempts by operation, retries among them, and body bytes in each direction.

    The transport counts the bytes; they are 0 over a transport without counters.
    """

    requests: dict[str, int]
    retries: int
    bytes_sent: int
    bytes_received: int


class RequestSender:
    """
    Send requests over a transport with rate limit and retries, and remember the service's extensions.

    Parameters
    ----------
    transport
        Transport to the service, closed with the sender.
    api_key
        The account's key.
    retries
        Number of further attempts after a failed connection or a status in `BUSY`.
    min_interval
        Seconds between two requests of all senders with the same `pacer`; 0: no rate limit.
    readonly
        Raise `ForbiddenError` for every write.
    deadline
        Seconds for a request with all its attempts, waits and slow replies, except waits for the rate limit; for an
        upload or download, seconds without progress. None: no limit.
    pacer, clock, sleep
        The pacer (`callback_client.pacer_of`; None: a new pacer with this clock), and functions to read time and to
        wait.

    Notes
    -----
    Thread safe. If the last reply named the extension `once`, all attempts of a write carry the same id, and a write
    without a timely reply is retried, too. Before the first reply they carry it only over a transport able to send it
    without disturbing other services (`HTTPTransport.has_id_header`).
    """

    def __init__(
        self,
        transport: Transport,
        api_key: str,
        *,
        retries: int = 3,
        min_interval: float = 0.0,
        deadline: float | None = DEFAULT_DEADLINE,
        pacer: Pacer | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        readonly: bool = False,
    ) -> None:
        self._gate = Gate()
        self._transport = transport
        self._is_readonly = readonly
        self._api_key = hide(api_key)
        self._retries = retries
        self._min_interval = min_interval
        self._deadline = deadline
        self._clock = clock
        self._sleep = self._gate.sleep if sleep is None else sleep
        self._pacer = Pacer(clock, time.sleep if sleep is None else sleep) if pacer is None else pacer
        self._is_unpaced = min_interval <= 0
        self._extensions: frozenset[str] | None = None  # before the first reply
        self._attempts: Counter[str] = Counter()
        self._repetitions = 0
        self._has_closed = False
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Renew the locks in a child process."""
        self._lock = threading.RLock()
        self._closing = threading.RLock()  # a signal handler may close in the middle of `close`

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def hurry(self) -> None:
        """Prepare for `close`: send nothing more, and let a service in this process wait no longer for others."""
        self._gate.shut()
        if (hurry := getattr(self._transport, "hurry", None)) is not None:
            hurry()

    def close(self) -> None:
        """
        Close the transport once no request is in flight; afterwards every request raises `ValueError`.

        A second call waits for those requests, too, and completes a call that was interrupted. A signal handler in the
        middle of a request to a service in this process doesn't wait: other threads may wait for that request.
        """
        if self._has_closed:
            return
        self.hurry()
        if self.is_remote or not self._gate.is_in_use():
            self._gate.wait()
        with self._closing:
            if not self._has_closed:
                self._transport.close()
                self._has_closed = True

    def is_in_use(self) -> bool:
        """Return True in a signal handler, or `__del__`, whose own thread holds a lock of the sender."""
        locks: list[Any] = [self._lock, self._closing, self._pacer.lock]
        if any(lock._is_owned() for lock in locks):  # noqa: SLF001 - as `threading.Condition` asks
            return True
        transport_is_in_use = getattr(self._transport, "is_in_use", None)  # it may be of the program
        return self._gate.is_in_use() or (transport_is_in_use is not None and transport_is_in_use())

    @property
    def is_remote(self) -> bool:
        """True if a request may arrive after its sender stopped waiting for it, as over a network."""
        return not getattr(self._transport, "is_in_process", False)

    @property
    def extensions(self) -> frozenset[str]:
        """Extensions of `wire.EXTENSIONS` in the service's last reply; none before the first."""
        return self._extensions or frozenset()

    @property
    def stats(self) -> RequestStats:
        """Counters so far."""
        sent = getattr(self._transport, "sent_bytes", 0)
        received = getattr(self._transport, "received_bytes", 0)
        with self._lock:
            return RequestStats(dict(self._attempts), self._repetitions, sent, received)

    def reserve(self) -> float:
        """Return the start time of the next request on the pacer's clock, for `exchange`."""
        return self._pacer.reserve(self._min_interval)

    def _wait_for_pace(self, start: float | None = None) -> None:
        """Wait until `start`, by default a new time of the pacer; `ValueError` as soon as the sender is closed."""
        if start is None:
            if self._is_unpaced:
                return
            start = self._pacer.reserve(self._min_interval)
        if self._pacer.is_real:
            delay = self._pacer.delay(start)
            if delay > 0:
                self._gate.sleep(delay)
        else:
            self._pacer.wait(start)

    def exchange(self, request: Sendable, *, start: float | None = None, key: str | None = None) -> Reply:
        """
        Return the service's reply, also if it is an error; `start` is a result of `reserve`.

        Raises
        ------
        ForbiddenError
            The sender is read-only, and the request is a write.
        TransportError, TimedOutError
            No reply came and nothing was changed: the request never left, or was a read.
        OutcomeUnknownError
            No reply came to a write, and an attempt of it may have reached the service.
        ValueError
            The sender was closed before the first attempt, or between attempts without effect.
        ProtocolError
            The reply can't be read.
        """
        writes = is_write(request)
        if writes:
            if self._is_readonly:
                raise read_only(key)
            request = self._with_id(request)
        rewind = _rewinder(request) if isinstance(request, Upload) else _no_rewind
        backoffs: Iterator[float | None] | None = None
        wait_left = MAX_WAIT
        maybe_applied = is_retry = False
        self._gate.check()
        self._wait_for_pace(start)
        if _is_abandoned():
            raise TransportError("The request was not sent, because the bulk work ended; do it again.", sent=False)
        deadline = self.new_deadline()
        latest = deadline.began + MAX_AGE
        outcome: Outcome
        try:
            while True:
                outcome = self._send_once(request, deadline, is_retry)
                if isinstance(outcome, Reply) and outcome.status not in BUSY:
                    if not writes:
                        return outcome
                    return final_reply(request, outcome, maybe_applied, key)
                if isinstance(outcome, TimedOutError) and deadline.left() <= 0:
                    outcome.at_deadline = True
                    outcome.message = outcome.message.replace("longer timeout", "longer deadline")
                if rewind is None or not is_retryable(request, outcome, "once" in self.extensions):
                    return final_reply(request, outcome, maybe_applied, key)
                if backoffs is None:
                    backoffs = self.backoffs()
                backoff = next(backoffs)
                if backoff is None or _is_abandoned():
                    return final_reply(request, outcome, maybe_applied, key)
                wait = max(backoff, _retry_after(outcome))
                if wait > wait_left or wait >= deadline.left() or self._clock() + wait > latest:
                    return final_reply(request, outcome, maybe_applied, key)
                maybe_applied = maybe_applied or may_have_applied(outcome)
                is_retry = True
                wait_left -= wait
                self.sleep(wait)
                if not self._wait_for_turn(deadline, latest):
                    return final_reply(request, outcome, maybe_applied, key)
                rewind()
        except CloudStoreError:
            raise
        except BaseException as interrupt:
            if self._gate.is_closed and isinstance(interrupt, ValueError) and maybe_applied and writes:
                return final_reply(request, outcome, maybe_applied, key)
            if (maybe_applied or deadline.sent) and writes:
                interrupt.add_note(_unknown(f"The {_description(request, key)} was interrupted"))
            raise

    def _wait_for_turn(self, deadline: Deadline, latest: float) -> bool:
        """Wait for the rate limit before another attempt; return False if it must not be sent any more."""
        start = self.reserve()
        before = self._clock()
        if before + self._pacer.delay(start) <= latest:
            self._wait_for_pace(start)
        now = self._clock()
        deadline.extend(now - before)
        return now + self._pacer.delay(start) <= latest and not _is_abandoned()

    def new_deadline(self) -> Deadline:
        """Return the deadline of a request beginning now."""
        return Deadline(self._deadline, self._clock)

    def fetch(
        self,
        link: str,
        start: int = 0,
        tag: str | None = None,
        deadline: Deadline | None = None,
        *,
        is_retry: bool = False,
    ) -> Fetched:
        """
        Begin to download a media file, in a single attempt; see `HTTPTransport.fetch`.

        `deadline` is for the whole download, by default a new deadline.

        Raises the service's error if there is no such file, and `UnsupportedError` over a transport without `fetch`.
        """
        fetch = getattr(self._transport, "fetch", None)
        if fetch is None:
            raise UnsupportedError("This store's transport can't download media files; open the store by its address.")
        deadline = self.new_deadline() if deadline is None else deadline
        self._gate.check()
        before = self._clock()
        self._wait_for_pace()
        deadline.extend(self._clock() - before)
        with self._lock:
            self._attempts["download"] += 1
            self._repetitions += is_retry
        scope.deadline, outer = deadline, scope.deadline
        try:
            with self._gate.turn:
                self._gate.check()
                fetched: Fetched = fetch(link, start, tag)
        finally:
            scope.deadline = outer
        deadline.restarts_on_read = True
        fetched.pieces = self._checked(fetched.pieces)
        if fetched.refusal is not None:
            raise_for(fetched.refusal, None)
        return fetched

    def _checked(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the pieces of a download until the sender is closed."""
        for piece in pieces:
            self._gate.check()
            yield piece

    def media_files(self) -> list[dict[str, Any]]:
        """Return the descriptions of all media files; `UnsupportedError` over a transport unable to list them."""
        listing = getattr(self._transport, "media_files", None)
        if listing is None:
            raise UnsupportedError("A service doesn't list media files; keep the links returned by upload.")
        with self._gate.turn:
            self._gate.check()
            files: list[dict[str, Any]] = listing()
        return files

    def check_has_data(self) -> None:
        """Raise `UnsupportedError` if all data in an embedded store belong to a service's accounts."""
        check = getattr(self._transport, "check_has_data", None)
        if check is not None:
            with self._gate.turn:
                self._gate.check()
                check()

    def compact(self) -> None:
        """Give unused space back to the disk, if the store is in a file."""
        compact = getattr(self._transport, "compact", None)
        if compact is not None:
            with self._gate.turn:
                self._gate.check()
                compact()

    def backoffs(self) -> Iterator[float | None]:
        """Yield the seconds to wait after each failed attempt, then None."""
        longest = _FIRST_BACKOFF
        for _ in range(self._retries):
            yield longest * random.uniform(0.5, 1)  # noqa: S311 - jitter
            longest = min(2 * longest, _LONGEST_BACKOFF)
        while True:
            yield None

    def sleep(self, seconds: float) -> None:
        """Wait between two attempts, but not beyond the end of bulk work."""
        self._sleep(seconds)

    def _with_id(self, request: Sendable) -> Sendable:
        """Return the write with an idempotency key if the service may know them."""
        if self._extensions is None:
            may_know = getattr(self._transport, "has_id_header", False)
        else:
            may_know = "once" in self._extensions
        if not may_know or isinstance(request, Upload):
            return request
        return msgspec.structs.replace(request, once=secrets.token_hex(16))

    def _send_once(self, request: Sendable, deadline: Deadline, is_retry: bool) -> Outcome:
        """Send the request: all attempts of all operations pass here."""
        operation = "upload" if isinstance(request, Upload) else request.operation.value
        gate = self._gate
        with self._lock:
            self._attempts[operation] += 1
            self._repetitions += is_retry
        outer = scope.deadline
        scope.deadline = deadline
        try:
            with gate.turn:
                if gate.is_closed:
                    gate.check()
                deadline.sent = True
                reply = self._transport.send(request)
        except CloudStoreError as error:
            deadline.sent = False  # an interrupt from here on is not in the middle of an attempt
            return error
        finally:
            scope.deadline = outer
        deadline.sent = False
        if reply.error != "Http error" or reply.extensions:  # otherwise the reply is a proxy's
            self._extensions = reply.extensions
        return reply


def _rewinder(request: Upload) -> Callable[[], object] | None:
    """Return a function to call before a retry, None for a stream impossible to send twice."""
    if isinstance(request.data, bytes):
        return _no_rewind
    try:
        return partial(request.data.seek, request.data.tell()) if request.data.seekable() else None
    except (OSError, AttributeError):
        return None


def _no_rewind() -> None:
    pass


def operation_of(request: Sendable) -> str:
    """Return the name of a request's operation."""
    return "upload" if isinstance(request, Upload) else request.operation.value


def is_write(request: Sendable) -> bool:
    """Return True if the request changes stored data."""
    return isinstance(request, Upload) or request.writes


def is_retryable(request: Sendable, outcome: Outcome, knows_ids: bool) -> bool:
    """
    Return True if another attempt may succeed, and does no harm if this attempt was applied.

    `knows_ids` is True for a service known to apply requests with the same id only once.
    """
    has_id = knows_ids and not isinstance(request, Upload) and request.once is not UNSET
    if isinstance(outcome, Reply):
        if outcome.status not in BUSY:
            return False
    elif isinstance(outcome, TransportError):
        if outcome.is_permanent:
            return False
    elif not isinstance(outcome, TimedOutError) or (outcome.sent and not has_id):
        return False
    return not may_have_applied(outcome) or has_id or _is_idempotent(request)


# Outcomes. The table in docs/errors.md shows the result for each pair of an earlier and the last attempt.


def may_have_applied(outcome: Outcome) -> bool:
    """Return True if the service may have applied the request, judging by the outcome of one attempt."""
    if isinstance(outcome, Reply):
        # A gateway's 5xx may hide an applied write, and so may a 2xx without the service's reply. But its 3xx and 4xx
        # mean a request that it did not pass on.
        # `OutcomeUnknown` is the reply of a service that lost its database.
        is_gateway = outcome.error == "Http error" and (
            outcome.status >= HTTPStatus.INTERNAL_SERVER_ERROR or outcome.status < HTTPStatus.MULTIPLE_CHOICES
        )
        return is_gateway or outcome.error == "OutcomeUnknown"
    # An answer that can't be read may come from a service that applied the request.
    return getattr(outcome, "sent", outcome.status is not None)


#: Refusals valid for every attempt of the same request, whenever it came.
_ABOUT_REQUEST: Final = frozenset({"BadName", "BadValue"})
#: Refusals that prove, under an id known to the service, that no attempt was applied: it looks up the id before it
#: looks at the file. All other refusals may come before that.
_AFTER_ID: Final = frozenset({"NoFile", "Changed", "BadMerge", "TooBig", "TooManyFiles", "IdMismatch"})


def tells_all(request: Sendable, reply: Reply) -> bool:
    """Return True if the reply to the last attempt also tells the outcome of the earlier attempts."""
    if reply.error is None or reply.error in _ABOUT_REQUEST:
        return True
    has_id = not isinstance(request, Upload) and request.once is not UNSET and "once" in reply.extensions
    return has_id and reply.error in _AFTER_ID


def final_reply(request: Sendable, outcome: Outcome, maybe_applied: bool, key: str | None) -> Reply:
    """
    Return the final reply of an exchange, or raise the error for its absence.

    `maybe_applied` is True if an earlier attempt may have been applied.
    """
    if not is_write(request):
        if isinstance(outcome, Reply):
            return outcome
        raise outcome
    if isinstance(outcome, Reply):
        if maybe_applied and _is_own_delete(request, outcome):
            deleted = encode_value("Entry deleted")
            return msgspec.structs.replace(outcome, error=None, message=deleted, data=UNSET)
        if not maybe_applied or tells_all(request, outcome) or may_have_applied(outcome):
            return outcome
        # A refusal says nothing about the attempts before it.
        raise _outcome_unknown(_unanswered(request, key)) from error_of(outcome, key)
    if maybe_applied or (isinstance(outcome, TransportError | TimedOutError) and outcome.sent):
        raise _outcome_unknown(_unanswered(request, key)) from outcome
    if may_have_applied(outcome):  # an answer that can't be read
        outcome.message += f" The outcome of the {_description(request, key)} is unknown."
    raise outcome


def _retry_after(outcome: Outcome) -> float:
    return outcome.retry_after or 0.0 if isinstance(outcome, Reply) else 0.0


def _is_idempotent(request: Sendable) -> bool:
    """Return True if a repetition has the same result; not with a condition, which may fail after the first time."""
    if isinstance(request, Upload):
        return not request.only_new
    return not is_write(request) or (isinstance(request, Request) and request.if_version is UNSET)


def read_only(key: str | None) -> ForbiddenError:
    """Return the error for a write to a read-only store."""
    what = "this write" if key is None else f"a write of {shorten(key)}"
    return ForbiddenError(f"The store is read-only, so {what} was refused; open it without readonly=True.", key=key)


def _unknown(problem: str) -> str:
    return f"{problem}: it may have been done or not; load it to see, or do it again."


def _outcome_unknown(problem: str, **facts: Any) -> OutcomeUnknownError:
    return OutcomeUnknownError(_unknown(problem), **facts)


def _unanswered(request: Sendable, key: str | None) -> str:
    return f"No answer came to the {_description(request, key)}"


def _is_abandoned() -> bool:
    """Return True if the bulk work of this thread has ended, so that no caller waits for another attempt."""
    return scope.group is not None and scope.group.has_ended


def _is_own_delete(request: Sendable, reply: Reply) -> bool:
    """Return True for a `NoFile` reply probably caused by an earlier attempt of the same delete."""
    if not isinstance(request, Request) or request.operation is not Operation.DELETE or reply.error != "NoFile":
        return False
    # A service with `once` replays its first reply to a known id, so its `NoFile` is the true reply.
    return request.once is UNSET or "once" not in reply.extensions


def _description(request: Sendable, key: str | None) -> str:
    if isinstance(request, Batch):
        return f"batch of {len(request.requests)} requests"
    return f"{operation_of(request)} of {shorten(request.name if key is None else key)}"


# Messages with the key, because the service's own message may show another file name.
_SENTENCES: Final = {
    "NoFile": "There is nothing under {key}.",
    "Locked": "{key} is locked, and the password is missing or wrong; give the right one.",
    "Changed": "{key} was changed meanwhile; load it again before writing it.",
}
# Remedies for a status of a proxy or web server, not of the service.
_ADVICE: Final = {
    401: "check the API key, and whether a proxy asks for a sign-in",
    403: "check the API key, and whether a proxy or firewall is in between",
    407: "the proxy asks for a sign-in, so put user and password into its address (HTTP_PROXY, HTTPS_PROXY)",
    404: "check the address, which usually ends in /cloudstore",
}
_REDIRECTED: Final = "redirects are never followed with an API key; give the address that this one points to"


def error_of(reply: Reply, key: str | None) -> CloudStoreError | None:
    """Return the error in a reply, None for a success; the error shows `key`."""
    error = reply.error
    if error is None:
        return None
    facts = facts_of(reply, key)
    prefix = "" if key is None else f"{shorten(key)}: "
    kind: type[CloudStoreError]
    if error == "Http error":
        advice = _ADVICE.get(reply.status, _REDIRECTED if 300 <= reply.status < 400 else "try again later")
        sentence = f"{prefix}The answer was {reply.status} {reply.sentence}; {advice}."
        kind = UnavailableError if reply.status in BUSY else ProtocolError
        kind = TooOftenError if reply.status == HTTPStatus.TOO_MANY_REQUESTS else kind
    elif error in REPLY_ERRORS:
        kind = REPLY_ERRORS[error][1]
        sentence = prefix + (reply.sentence or f"The service says {error}.")
    else:
        kind = ProtocolError
        sentence = f"{prefix}The service says {error!r}, which this version doesn't know: {reply.sentence}"
    if key is not None and error in _SENTENCES:
        sentence = _SENTENCES[error].format(key=shorten(key))
    if issubclass(kind, TooOftenError | UnavailableError):
        return kind(sentence, retry_after=reply.retry_after, **facts)
    if issubclass(kind, ChangedError):
        return kind(sentence, version=version_of(reply), **facts)
    return kind(sentence, **facts)


def raise_for(reply: Reply, key: str | None, request: Sendable | None = None) -> None:
    """Raise the error in a reply to this request, if there is one."""
    error = error_of(reply, key)
    if error is None:
        return
    is_unknown = may_have_applied(reply) and request is not None and is_write(request)
    if is_unknown and request is not None and not isinstance(error, OutcomeUnknownError):
        problem = f"The answer to the {_description(request, key)} was {reply.status} {reply.sentence}"
        raise _outcome_unknown(problem, **facts_of(reply, key)) from error
    raise error


def facts_of(reply: Reply, key: str | None) -> dict[str, Any]:
    """Return the attributes common to all errors about a reply."""
    return {"key": key, "error": reply.error, "status": reply.status, "response": reply.response}


def version_of(reply: Reply) -> str | None:
    """Return the file's version in a reply, None without one."""
    return None if reply.version is UNSET else reply.version
