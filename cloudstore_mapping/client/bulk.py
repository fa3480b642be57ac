"""
Bulk work on many keys: batches if the service supports them, otherwise concurrent requests.

If some keys fail, the rest are still processed; then `BulkError` is raised. Once a request finds the service
unreachable, the rest are not tried. However bulk work ends, none of its requests is still in flight afterwards.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, TypeVar, cast

from cloudstore_mapping.client.cache import Found
from cloudstore_mapping.client.files import Change, Files
from cloudstore_mapping.client.progress import Progress, reporting
from cloudstore_mapping.client.retry import WRITES
from cloudstore_mapping.client.transport import scope
from cloudstore_mapping.errors import (
    BadValueError,
    BulkError,
    CloudStoreError,
    NoFileError,
    OutcomeUnknownError,
    TimedOutError,
    TooBigError,
    TooOftenError,
    TransportError,
    UnavailableError,
    shorten,
)
from cloudstore_mapping.forks import renew_after_fork
from cloudstore_mapping.wire import MAX_BATCH

A = TypeVar("A")
B = TypeVar("B")

#: Calls started ahead of the awaited result, per worker.
AHEAD: Final = 2
#: Maximum seconds of a single wait, then repeated: a signal just before a wait does not interrupt it.
POLL_INTERVAL: Final = 0.5
#: Maximum bytes of values in a batch of several requests.
MAX_BATCH_BYTES: Final = 4 * 2**20


class _Call(Generic[A, B]):
    """Call of a function: its argument, and its result or error once `is_done`."""

    def __init__(self, function: Callable[[A], B], argument: A) -> None:
        self.argument = argument
        self._function = function
        self.is_done = False
        self.error: BaseException | None = None
        self._result: B | None = None

    def run(self) -> None:
        """Call the function."""
        try:
            self._result = self._function(self.argument)
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self.error = error
        self.is_done = True

    def run_here(self) -> None:
        """Call the function on the caller's thread, where an interrupt ends the work at once."""
        try:
            self._result = self._function(self.argument)
        except Exception as error:  # noqa: BLE001 - raised where the result is asked for
            self.error = error
        self.is_done = True

    def result(self) -> B:
        """Return the result, or raise the error, once: a kept error would keep all frames of its traceback."""
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
            return cast("B", self._result)
        finally:
            del error


class CallGroup:
    """
    Calls of one piece of bulk work on threads of its own, at most `count` at a time.

    Signals may interrupt the caller's thread anywhere, so it shares only locks and queues of the interpreter with the
    other threads: an interrupt inside a `threading.Condition` can leave its lock locked for ever.

    Attributes
    ----------
    has_ended
        True once results are no longer awaited: no further call begins, and running calls send no further attempt.
    connections
        Connection in use by thread, for `leave`.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._submitted = self._started = 0
        self.has_ended = False
        self.after_fork()
        self._is_forked = False
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Forget the threads in a child process, where the caller's thread runs all calls."""
        self._is_forked = True
        self._waiting: SimpleQueue[_Call[Any, Any] | None] = SimpleQueue()
        self._finished: SimpleQueue[None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[int] = set()  # those that may run a call
        self._all_threads: list[threading.Thread] = []
        self._asleep = threading.Lock()  # held until the end
        self._asleep.acquire()
        self.connections: dict[int, Any] = {}

    def submit(self, call: _Call[Any, Any]) -> None:
        """Begin a call, or queue it until a thread is free."""
        self._waiting.put(call)
        self._submitted += 1
        if self._started < min(self._count, self._submitted) and not self._is_forked:
            try:
                thread = threading.Thread(target=self._work, name="cloudstore-bulk", daemon=True)
                thread.start()
            except RuntimeError:  # the interpreter starts no more threads
                if self._started == 0:
                    self._waiting.get()
                    call.run()
            else:
                self._started += 1
                self._all_threads.append(thread)

    def wait_for(self, call: _Call[Any, Any]) -> None:
        """Wait until a call is done."""
        while not call.is_done:
            if self._is_forked:
                call.run()
            else:
                self._wait()

    def sleep(self, seconds: float) -> bool:
        """Sleep, but not beyond the end of the bulk work; return True if the work ended first."""
        has_ended = self._asleep.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))
        if has_ended:
            self.wake()
        return has_ended

    def wake(self) -> None:
        """End all present and future sleeps."""
        with suppress(RuntimeError):  # another thread has released it
            self._asleep.release()

    def end(self) -> None:
        """Begin no more calls, and wait for the running ones until their deadline; if interrupted, `leave`."""
        try:
            self._stop()
            if sys.is_finalizing():  # the threads never end any more
                return
            while self._has_threads():
                self._wait()
            for thread in self._all_threads:
                if thread is not threading.current_thread():
                    thread.join()  # its last steps
        except BaseException as interrupt:
            self.leave()
            interrupt.add_note("Requests of the bulk work were broken off: each may have been done or not.")
            raise

    def leave(self) -> None:
        """Close the connections in use, so that no request in flight arrives later."""
        self._stop()
        for connection in [*self.connections.values()]:
            with suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _stop(self) -> None:
        with self._lock:
            self.has_ended = True
        self.wake()
        for _ in range(self._count):
            self._waiting.put(None)

    def _wait(self) -> None:
        """Wait until a call or thread may have finished."""
        with suppress(Empty):
            self._finished.get(timeout=POLL_INTERVAL)

    def _has_threads(self) -> bool:
        with self._lock:
            # Without this thread: the garbage collector may close the iterator on a thread of the group.
            return bool(self._threads - {threading.get_ident()})

    def _work(self) -> None:
        with self._lock:
            if self.has_ended:
                return
            self._threads.add(threading.get_ident())
        scope.group = self
        try:
            while (call := self._waiting.get()) is not None and not self.has_ended:
                call.run()
                self._finished.put(None)
        finally:
            scope.group = None
            with self._lock:
                self._threads.discard(threading.get_ident())
            self._finished.put(None)


class WorkerPool:
    """Call a function with many arguments, at most `count` calls at a time."""

    def __init__(self, count: int) -> None:
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"max_workers must be a whole number above 0, not {count!r}.")
        self.count = count

    def map(
        self, function: Callable[[A], B], arguments: Sequence[A], *, on_threads: bool = True
    ) -> Generator[_Call[A, B], None, None]:
        """
        Yield each finished call, in order.

        However the iterator ends, no call begins afterwards and none is still running. The calls run on threads, so
        that an interrupt does not break off a request already sent; with `on_threads` False on the caller's, and so at
        the very end of a program, when Python runs no other threads.
        """
        if not on_threads or sys.is_finalizing():
            for argument in arguments:
                call = _Call(function, argument)
                call.run_here()
                yield call
            return
        group = CallGroup(self.count)
        waiting: deque[_Call[A, B]] = deque()
        ahead = self.count * AHEAD if self.count > 1 else 1
        try:
            for argument in arguments:
                waiting.append(_Call(function, argument))
                group.submit(waiting[-1])
                if len(waiting) >= ahead:
                    group.wait_for(waiting[0])
                    yield waiting.popleft()
            while waiting:
                group.wait_for(waiting[0])
                yield waiting.popleft()
        finally:
            group.end()


class Bulk:
    """Read and write many of the `files`, using the `pool` if the service takes no batches."""

    def __init__(self, files: Files, pool: WorkerPool) -> None:
        self.files = files
        self.pool = pool

    def read(
        self,
        keys: Sequence[str],
        progress: Progress = None,
        *,
        is_listing: bool = False,
        after: str | None = None,
        stop: StopRule | None = None,
    ) -> Generator[tuple[str, Found[bytes] | CloudStoreError], None, None]:
        """
        Yield each key with its value or error, in order, holding at most a batch in memory.

        `is_listing` means consecutive keys of a listing, following the key `after`, or from its beginning for None.
        `stop` is shared by parts of one work.
        """
        results = self._read(keys, StopRule() if stop is None else stop, after, is_listing=is_listing)
        return reported(results, progress, len(keys))

    def _read(
        self, keys: Sequence[str], stop: StopRule, last: str | None, *, is_listing: bool
    ) -> Generator[tuple[str, Found[bytes] | CloudStoreError], None, None]:
        files = self.files
        rest = iter(keys)
        if stop.applies():
            yield from ((key, stop.untried(key)) for key in rest)
            return

        def load(key: str) -> Found[bytes] | CloudStoreError:
            if stop.applies():
                return stop.untried(key)
            try:
                found = files.load(key)
            except CloudStoreError as error:
                stop.note(error)
                return error
            stop.note(None)
            return found

        # The first reply tells if the service takes batches.
        while not files.client.has_replied and (key := next(rest, None)) is not None:
            yield key, load(key)
            last = key
        while files.supports("batch") and (chunk := list(islice(rest, MAX_BATCH))):
            try:
                results: Sequence[Found[bytes] | CloudStoreError] = (
                    files.load_listed(chunk, last) if is_listing else files.load_batch(chunk)
                )
            except CloudStoreError as error:
                stop.note(error)
                if not stop.applies():
                    raise
                results = [error, *(stop.untried(key) for key in chunk[1:])]
            else:
                stop.note(None)
            yield from zip(chunk, results, strict=True)
            if stop.applies():
                yield from ((key, stop.untried(key)) for key in rest)
                return
            last = chunk[-1]
        singly = [*rest]
        with closing(self.pool.map(load, singly, on_threads=self._can_use_threads(len(singly)))) as calls:
            yield from ((call.argument, call.result()) for call in calls)

    def read_in_steps(
        self, keys: Sequence[str], progress: Progress = None
    ) -> Generator[tuple[str, Found[bytes] | CloudStoreError], None, None]:
        """
        Yield as `read` does for all keys of a listing; after a write of this process the rest is read anew.

        The next page has as many keys as were used of the page lost that way, and twice as many after a page used up:
        a loop that writes loads a value at a time.
        """
        return reported(self._read_in_steps(keys), progress, len(keys))

    def _read_in_steps(self, keys: Sequence[str]) -> Generator[tuple[str, Found[bytes] | CloudStoreError], None, None]:
        stop = StopRule()
        place, size = 0, len(keys)
        while place < len(keys):
            mark, begin = WRITES.latest, place
            page = keys[begin : begin + size]
            after = keys[begin - 1] if begin else None
            with closing(self.read(page, is_listing=True, after=after, stop=stop)) as results:
                # Looked at before the next result is read. The first one was read in this very step.
                while (place == begin or WRITES.latest == mark) and (pair := next(results, None)) is not None:
                    place += 1
                    yield pair
            used = place - begin
            size = 2 * size if used == len(page) else used

    @property
    def page_size(self) -> int:
        """Maximum number of values read at once, by a single request or by concurrent ones."""
        return MAX_BATCH if self.files.supports("batch") else self.pool.count

    def read_page(self, keys: Sequence[str], after: str | None) -> list[Found[bytes] | CloudStoreError]:
        """
        Return the results of at most `page_size` consecutive keys of a listing, following the key `after`.

        A failure of the request is the result of each key.
        """
        try:
            if len(keys) == 1:
                return [self.files.load(keys[0])]
            if self.files.supports("batch"):
                return self.files.load_listed(keys, after)
            with closing(self.read(keys)) as results:
                return [result for _, result in results]
        except CloudStoreError as error:
            return [error] * len(keys)

    def write(self, changes: Sequence[Change], progress: Progress = None, *, ignore_absent: bool = False) -> None:
        """
        Apply all changes, those of a key in their order.

        Raises `BulkError` with the keys done and failed, or the error itself if all changes are of a single key.
        """
        failed: dict[str, Exception] = {}
        done = 0
        try:
            with reporting(progress, len(changes)) as report, closing(self.attempt(changes)) as attempts:
                for done, (key, error) in enumerate(attempts, 1):
                    report(done)
                    if error is not None and not (ignore_absent and isinstance(error, NoFileError)):
                        failed.setdefault(key, error)
        except BaseException as interrupt:
            if not isinstance(interrupt, CloudStoreError) and done < len(changes) > 1:
                interrupt.add_note(
                    f"The work on {len(changes)} keys was interrupted: {done} were processed, and each of the others "
                    "may have been done or not; load them to see, or do it again."
                )
            raise
        if not failed:
            return
        keys = dict.fromkeys(change.key for change in changes)
        first = next(iter(failed.values()))
        if len(keys) == 1:
            raise first
        others = "" if len(failed) == len(keys) else ", the others are done"
        raise BulkError(
            f"{len(failed)} of {len(keys)} keys failed{others}; see `.failed`. The first: {first}",
            succeeded=[key for key in keys if key not in failed],
            failed=failed,
        ) from first

    def attempt(
        self, changes: Sequence[Change], stop: StopRule | None = None
    ) -> Generator[tuple[str, Exception | None], None, None]:
        """
        Apply all changes; yield the key and error of each, those of a key in their order.

        `stop` is shared by parts of one work.
        """
        started = 0
        stop = StopRule() if stop is None else stop
        if not self.files.supports("batch") and len(changes) > 1:
            # The first reply shows if the service supports batches.
            started = 1
            yield changes[0].key, self._run(lambda changes: self._change(changes[0], stop), changes)
        if self.files.supports("batch"):
            yield from self._attempt_batches(changes[started:], stop)
        else:
            yield from self._attempt_singly(changes[started:], stop)

    def _can_use_threads(self, count: int) -> bool:
        """Return False in a signal handler whose own thread holds a lock, for which other threads would wait."""
        return self.files.client.is_remote and count > 1 and not self.files.is_in_use()

    def _run(self, function: Callable[[Sequence[Change]], B], changes: Sequence[Change]) -> B:
        """Return the result of a request, which an interrupt does not break off if it is one of several changes."""
        on_threads = threading.current_thread() is threading.main_thread()  # others get no signals
        on_threads = on_threads and self._can_use_threads(len(changes))
        with closing(self.pool.map(function, [changes], on_threads=on_threads)) as calls:
            return next(calls).result()

    def _attempt_batches(self, changes: Sequence[Change], stop: StopRule) -> Iterator[tuple[str, Exception | None]]:
        for chunk in in_batches(changes, lambda change: len(change.request.value or b"")):
            errors = self._run(lambda chunk: self._change_batch(chunk, stop), chunk)
            yield from ((change.key, error) for change, error in zip(chunk, errors, strict=True))

    def _change_batch(self, chunk: Sequence[Change], stop: StopRule) -> Sequence[Exception | None]:
        if stop.applies():
            return [stop.untried(change.key) for change in chunk]
        if len(chunk) == 1:
            return [self._change(chunk[0], stop)]
        try:
            errors = self.files.change_batch(chunk)
        except (BadValueError, TooBigError):
            # A single value made the service refuse the whole batch unread; halving isolates it.
            middle = len(chunk) // 2
            return [*self._change_batch(chunk[:middle], stop), *self._change_batch(chunk[middle:], stop)]
        except CloudStoreError as error:
            stop.note(error)
            return [error] * len(chunk)
        stop.note(None)
        return errors

    def _attempt_singly(self, changes: Sequence[Change], stop: StopRule) -> Iterator[tuple[str, Exception | None]]:
        by_key: dict[str, list[Change]] = {}
        for change in changes:
            by_key.setdefault(change.key, []).append(change)

        def attempt(key: str) -> list[Exception | None]:
            return [self._change(change, stop) for change in by_key[key]]

        on_threads = self._can_use_threads(len(changes))
        with closing(self.pool.map(attempt, [*by_key], on_threads=on_threads)) as calls:
            yield from ((call.argument, error) for call in calls for error in call.result())

    def _change(self, change: Change, stop: StopRule) -> Exception | None:
        if stop.applies():
            return stop.untried(change.key)
        try:
            self.files.change(change)
        except Exception as error:  # including errors of the user's `passwords` for this key
            if self.files.store.is_closed and not isinstance(error, CloudStoreError):
                raise
            stop.note(error)
            return error
        stop.note(None)
        return None


class StopRule:
    """
    Stop bulk work after a request that found the service unreachable; `reason` is its error.

    Unreachable means no connection, or an answer that it is too busy (429, 502, 503, 504), in all attempts; no answer
    until the deadline, or to two requests in a row. A broken connection may be caused by the value of a key, so the
    other keys are still tried.
    """

    def __init__(self) -> None:
        self.reason: CloudStoreError | None = None
        self._timeouts = 0

    def applies(self) -> bool:
        """Return True once a request found the service unreachable."""
        return self.reason is not None

    def note(self, error: Exception | None) -> None:
        """Record the result of a request."""
        cause = error.__cause__ if isinstance(error, OutcomeUnknownError) else error
        if isinstance(cause, TimedOutError) and cause.sent:
            self._timeouts += 1
            is_unreachable = cause.at_deadline or self._timeouts > 1
        else:
            self._timeouts = 0
            is_unreachable = isinstance(cause, UnavailableError | TooOftenError | TimedOutError) or (
                isinstance(cause, TransportError) and not cause.sent
            )
        if is_unreachable and self.reason is None and isinstance(error, CloudStoreError):
            self.reason = error

    def untried(self, key: str) -> CloudStoreError:
        """Return the error of a key not tried."""
        error = self.reason
        cause = error.__cause__ if isinstance(error, OutcomeUnknownError) else error
        kind = next(
            (kind for kind in (UnavailableError, TooOftenError, TimedOutError) if isinstance(cause, kind)),
            TransportError,
        )
        facts = {} if kind is TooOftenError else {"sent": False}
        return kind(
            f"{shorten(key)} was not tried, because the service was not reached before; try it again later.",
            key=key,
            **facts,
        )


def in_batches(
    items: Iterable[A],
    size_of: Callable[[A], int],
    *,
    seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[list[A]]:
    """
    Yield the items in lists within the limits of a batch, in number and bytes.

    No item waits longer than `seconds` for others, and the items before an error are yielded before it is raised.
    """
    batch: list[A] = []
    size = 0
    began = clock()
    try:
        for item in items:
            length = size_of(item)
            is_late = seconds is not None and clock() - began > seconds
            if batch and (len(batch) == MAX_BATCH or size + length > MAX_BATCH_BYTES or is_late):
                yield batch
                batch, size, began = [], 0, clock()
            batch.append(item)
            size += length
    except CloudStoreError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def reported(results: Generator[A, None, None], progress: Progress, total: int) -> Generator[A, None, None]:
    """Return an iterator of the results that reports their number."""
    return results if progress is None else _report(results, progress, total)


def _report(results: Generator[A, None, None], progress: Progress, total: int) -> Generator[A, None, None]:
    with reporting(progress, total) as report, closing(results):
        for done, result in enumerate(results, 1):
            report(done)
            yield result
