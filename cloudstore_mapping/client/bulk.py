"""
Bulk work on many keys: batches if the service takes them, otherwise a bounded thread pool.

If some keys fail, the rest are still processed; then `BulkError` is raised.
"""

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
from cloudstore_mapping.client.files import Change, Files
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

#: Calls started ahead of the awaited result, per worker.
AHEAD: Final = 2
#: Bytes of values in a batch of more than one.
MAX_BATCH_BYTES: Final = 4 * 2**20


class WorkerPool:
    """Call a function with many arguments, at most `count` calls at a time; a count of 1 uses the calling thread."""

    def __init__(self, count: int) -> None:
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"max_workers is a whole number above 0, and not {count!r}.")
        self.count = count
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()
        self._lock = threading.Lock()

    def map(self, function: Callable[[A], B], arguments: Iterable[A]) -> Iterator[tuple[A, Future[B]]]:
        """Yield each argument with its finished call, in order; closing the iterator starts no more calls."""
        waiting: deque[tuple[A, Future[B]]] = deque()
        try:
            for argument in arguments:
                waiting.append((argument, self._start(function, argument)))
                if len(waiting) >= self.count * AHEAD or self.count == 1:
                    yield _finished(waiting.popleft())
            while waiting:
                yield _finished(waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()

    def _start(self, function: Callable[[A], B], argument: A) -> Future[B]:
        if self.count > 1:
            with self._lock:
                if self._pool is None or self._process != os.getpid():  # threads do not survive a fork
                    self._process = os.getpid()
                    self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="cloudstore-bulk")
            return self._pool.submit(function, argument)
        future: Future[B] = Future()
        try:
            future.set_result(function(argument))
        except Exception as error:  # noqa: BLE001 - the future carries it, as in a pool
            future.set_exception(error)
        return future

    def close(self) -> None:
        """End the threads after their current calls."""
        with self._lock:
            if self._pool is not None and self._process == os.getpid():
                self._pool.shutdown(cancel_futures=True)


class Bulk:
    """Read and write many of the `files`, using the `pool` if the service takes no batches."""

    def __init__(self, files: Files, pool: WorkerPool) -> None:
        self.files = files
        self.pool = pool

    def read(
        self, keys: Sequence[str], progress: Progress = None, *, is_listing: bool = False
    ) -> Iterator[tuple[str, Found[bytes] | CloudStoreError]]:
        """
        Yield each key with its value or error, in order, holding at most a batch in memory.

        `is_listing` means consecutive keys of a listing from its beginning.
        """
        return reported(self._read(keys, is_listing=is_listing), progress, len(keys))

    def _read(self, keys: Sequence[str], *, is_listing: bool) -> Iterator[tuple[str, Found[bytes] | CloudStoreError]]:
        files = self.files
        rest = iter(keys)
        last: str | None = None
        while files.supports("batch") and (chunk := list(islice(rest, MAX_BATCH))):
            yield from zip(
                chunk, files.load_listed(chunk, last) if is_listing else files.load_batch(chunk), strict=True
            )
            last = chunk[-1]
        for key, loaded in self.pool.map(files.load, rest):
            error = loaded.exception()
            if error is not None and not isinstance(error, CloudStoreError):
                raise error
            yield key, loaded.result() if error is None else error

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
            return [result for _, result in self.read(keys)]
        except CloudStoreError as error:
            return [error] * len(keys)

    def write(self, changes: Sequence[Change], progress: Progress = None, *, ignore_absent: bool = False) -> None:
        """
        Apply all changes, those of a key in their order.

        Raises `BulkError` with the keys done and failed, or the error itself if all changes are of a single key. After
        a request that did not reach the service no more are sent.
        """
        failed: dict[str, CloudStoreError] = {}
        with reporting(progress, len(changes)) as report:
            for done, (key, error) in enumerate(self.attempt(changes), 1):
                report(done)
                if error is not None and not (ignore_absent and isinstance(error, NoFileError)):
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

    def attempt(self, changes: Sequence[Change]) -> Iterator[tuple[str, CloudStoreError | None]]:
        """Apply all changes; yield the key and error of each, those of a key in their order."""
        started = 0
        if not self.files.supports("batch") and len(changes) > 1:
            # The first reply tells if the service takes batches.
            started = 1
            yield changes[0].key, self._change(changes[0])
        if self.files.supports("batch"):
            yield from self._attempt_batches(changes[started:])
        else:
            yield from self._attempt_singly(changes[started:])

    def _attempt_batches(self, changes: Sequence[Change]) -> Iterator[tuple[str, CloudStoreError | None]]:
        unreachable: CloudStoreError | None = None
        for chunk in in_batches(changes, lambda change: len(change.request.value or b"")):
            errors: Sequence[CloudStoreError | None] = (
                self._change_batch(chunk) if unreachable is None else [unreachable] * len(chunk)
            )
            unreachable = unreachable or _unreachable(errors[0])
            yield from ((change.key, error) for change, error in zip(chunk, errors, strict=True))

    def _change_batch(self, chunk: Sequence[Change]) -> Sequence[CloudStoreError | None]:
        if len(chunk) == 1:
            return [self._change(chunk[0])]
        try:
            return self.files.change_batch(chunk)
        except (BadValueError, TooBigError):
            # A single value made the service refuse the whole batch unread; halving isolates it.
            middle = len(chunk) // 2
            return [*self._change_batch(chunk[:middle]), *self._change_batch(chunk[middle:])]
        except CloudStoreError as error:
            return [error] * len(chunk)

    def _attempt_singly(self, changes: Sequence[Change]) -> Iterator[tuple[str, CloudStoreError | None]]:
        by_key: dict[str, list[Change]] = {}
        for change in changes:
            by_key.setdefault(change.key, []).append(change)
        unreachable: list[CloudStoreError] = []

        def attempt(key: str) -> list[CloudStoreError | None]:
            errors: list[CloudStoreError | None] = []
            for change in by_key[key]:
                error = unreachable[0] if unreachable else self._change(change)
                if not unreachable and (first := _unreachable(error)):
                    unreachable.append(first)
                errors.append(error)
            return errors

        for key, attempted in self.pool.map(attempt, by_key):
            yield from ((key, error) for error in attempted.result())

    def _change(self, change: Change) -> CloudStoreError | None:
        try:
            self.files.change(change)
        except CloudStoreError as error:
            return error
        return None


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


def reported(results: Iterator[A], progress: Progress, total: int) -> Iterator[A]:
    """Return an iterator of the results that reports their number."""
    return results if progress is None else _report(results, progress, total)


def _report(results: Iterator[A], progress: Progress, total: int) -> Iterator[A]:
    with reporting(progress, total) as report:
        for done, result in enumerate(results, 1):
            report(done)
            yield result


def _unreachable(error: CloudStoreError | None) -> CloudStoreError | None:
    """Return the error if the request did not reach the service, so that others would only wait as long again."""
    return error if isinstance(error, TransportError) and not error.sent else None


def _finished(call: tuple[A, Future[B]]) -> tuple[A, Future[B]]:
    call[1].exception()
    return call
