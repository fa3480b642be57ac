"""Work on many keys: batches where the service takes them, else a few requests at a time; no failure hides another."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Final, TypeVar

from cloudstore_mapping.client.cache import Found
from cloudstore_mapping.client.changes import Change
from cloudstore_mapping.client.files import Files
from cloudstore_mapping.client.progress import Progress, reporting
from cloudstore_mapping.errors import (
    BadValueError,
    BulkError,
    CloudStoreError,
    NoFileError,
    TooBigError,
    TransportError,
)
from cloudstore_mapping.wire import MAX_BATCH

A = TypeVar("A")
B = TypeVar("B")
Outcome = CloudStoreError | None

#: Calls that are begun ahead of the one whose result is waited for, for each worker.
AHEAD: Final = 2
#: Bytes of values in one batch, as long as it holds more than one.
MAX_BATCH_BYTES: Final = 4 * 2**20


class Workers:
    """Calls a function on many arguments, at most `count` at a time; one means here and now, one after another."""

    def __init__(self, count: int) -> None:
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"max_workers is a whole number above 0, and not {count!r}.")
        self._count = count
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()
        self._lock = threading.Lock()

    def map(self, function: Callable[[A], B], arguments: Iterable[A]) -> Iterator[tuple[A, Future[B]]]:
        """Yield each argument with its finished call, in order; an iteration that ends early begins no more calls."""
        waiting: deque[tuple[A, Future[B]]] = deque()
        try:
            for argument in arguments:
                waiting.append((argument, self._begin(function, argument)))
                if len(waiting) >= self._count * AHEAD or self._count == 1:
                    yield _finished(waiting.popleft())
            while waiting:
                yield _finished(waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()

    def _begin(self, function: Callable[[A], B], argument: A) -> Future[B]:
        if self._count > 1:
            with self._lock:
                if self._pool is None or self._process != os.getpid():  # threads don't come along with a fork
                    self._process = os.getpid()
                    self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="cloudstore-bulk")
            return self._pool.submit(function, argument)
        future: Future[B] = Future()
        try:
            future.set_result(function(argument))
        except Exception as error:  # noqa: BLE001 - as a pool would, the future carries it
            future.set_exception(error)
        return future

    def close(self) -> None:
        """End the threads, once they have done what they began."""
        with self._lock:
            if self._pool is not None and self._process == os.getpid():
                self._pool.shutdown(cancel_futures=True)


def read_many(
    files: Files, workers: Workers, keys: Sequence[str], progress: Progress, *, listed: bool = False
) -> Iterator[tuple[str, Found[bytes] | CloudStoreError]]:
    """
    Yield each key with its value or what went wrong with it, in order, holding no more than a batch of them.

    `listed` says that they are all keys that a listing showed, in its order.
    """
    outcomes = _read(files, workers, keys, listed=listed)
    return outcomes if progress is None else _reported(outcomes, progress, len(keys))


def _reported(outcomes: Iterable[A], progress: Progress, total: int) -> Iterator[A]:
    with reporting(progress, total) as report:
        for done, each in enumerate(outcomes, 1):
            report(done)
            yield each


def _read(
    files: Files, workers: Workers, keys: Sequence[str], *, listed: bool
) -> Iterator[tuple[str, Found[bytes] | CloudStoreError]]:
    rest = iter(keys)
    last: str | None = None
    while files.supports("batch") and (chunk := list(islice(rest, MAX_BATCH))):
        yield from zip(chunk, files.load_listed(chunk, last) if listed else files.load_batch(chunk), strict=True)
        last = chunk[-1]
    for key, loaded in workers.map(files.load, rest):
        error = loaded.exception()
        if error is not None and not isinstance(error, CloudStoreError):
            raise error
        yield key, loaded.result() if error is None else error


def write_many(
    files: Files, workers: Workers, changes: Sequence[Change], progress: Progress, *, absent_is_done: bool = False
) -> None:
    """
    Make all changes, whatever fails; those of one key in their order.

    Raises `BulkError` with what was done and what was not; changes of one key alone raise their own error. Once the
    service isn't reached at all, what is left isn't tried any more.
    """
    failed: dict[str, CloudStoreError] = {}
    with reporting(progress, len(changes)) as report:
        for done, (key, error) in enumerate(attempts(files, workers, changes), 1):
            report(done)
            if error is not None and not (absent_is_done and isinstance(error, NoFileError)):
                failed.setdefault(key, error)
    if not failed:
        return
    keys = dict.fromkeys(change.key for change in changes)
    first = next(iter(failed.values()))
    if len(keys) == 1:
        raise first
    raise BulkError(
        f"{len(failed)} of {len(keys)} keys failed, the others are done; see `.failed`. The first: {first}",
        succeeded=[key for key in keys if key not in failed],
        failed=failed,
    ) from first


def attempts(files: Files, workers: Workers, changes: Sequence[Change]) -> Iterator[tuple[str, Outcome]]:
    """Yield each key with what went wrong with its change, None for nothing; those of one key in their order."""
    begun = 0
    if not files.supports("batch") and len(changes) > 1:
        # The first answer tells whether the service takes batches.
        begun = 1
        yield changes[0].key, _outcome(files.change, changes[0])
    if files.supports("batch"):
        yield from _write_batches(files, changes[begun:])
    else:
        yield from _write_singly(files, workers, changes[begun:])


def _write_batches(files: Files, changes: Sequence[Change]) -> Iterator[tuple[str, Outcome]]:
    lost: CloudStoreError | None = None
    for chunk in in_batches(changes, lambda change: len(change.request.value or b"")):
        errors: Sequence[Outcome] = [lost] * len(chunk) if lost is not None else _write_batch(files, chunk)
        lost = lost or _loss(errors[0])
        yield from ((change.key, error) for change, error in zip(chunk, errors, strict=True))


def _write_batch(files: Files, chunk: Sequence[Change]) -> Sequence[Outcome]:
    if len(chunk) == 1:
        return [_outcome(files.change, chunk[0])]
    try:
        return files.change_batch(chunk)
    except (BadValueError, TooBigError):
        # One of the values is why all of the batch was refused, unread; in halves it is soon by itself.
        middle = len(chunk) // 2
        return [*_write_batch(files, chunk[:middle]), *_write_batch(files, chunk[middle:])]
    except CloudStoreError as error:
        return [error] * len(chunk)


def in_batches(
    items: Iterable[A],
    size_of: Callable[[A], int],
    *,
    seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[list[A]]:
    """
    Yield the items in lists, each of them not too many, and not too many bytes, for one batch.

    Nor does an item wait longer than so many seconds for others to come; and those that came before an error come.
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


def _write_singly(files: Files, workers: Workers, changes: Sequence[Change]) -> Iterator[tuple[str, Outcome]]:
    by_key: dict[str, list[Change]] = {}
    for change in changes:
        by_key.setdefault(change.key, []).append(change)
    lost: list[CloudStoreError] = []

    def make(key: str) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for change in by_key[key]:
            outcome = lost[0] if lost else _outcome(files.change, change)
            if not lost and (loss := _loss(outcome)):
                lost.append(loss)
            outcomes.append(outcome)
        return outcomes

    for key, made in workers.map(make, by_key):
        yield from ((key, outcome) for outcome in made.result())


def _outcome(change: Callable[[Change], object], argument: Change) -> Outcome:
    try:
        change(argument)
    except CloudStoreError as error:
        return error
    return None


def _loss(outcome: Outcome) -> CloudStoreError | None:
    """Return the error that means that nothing gets through: what comes next would only wait as long again."""
    return outcome if isinstance(outcome, TransportError) and not outcome.sent else None


def _finished(call: tuple[A, Future[B]]) -> tuple[A, Future[B]]:
    call[1].exception()
    return call
