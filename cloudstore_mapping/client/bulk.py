"""Work on many keys: a few requests at a time, results in order, and no failure hides another."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from cloudstore_mapping.errors import BulkError, CloudStoreError

A = TypeVar("A")
B = TypeVar("B")

#: Calls that are begun ahead of the one whose result is waited for, for each worker.
AHEAD: Final = 2


class Workers:
    """Calls a function on many arguments, at most `count` at a time; one means here and now, one after another."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"max_workers must be at least 1, and is {count}.")
        self._count = count
        self._pool: ThreadPoolExecutor | None = None
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

    def write(self, work: Mapping[str, Callable[[], object]]) -> None:
        """
        Do each key's work, all of it, whatever fails.

        Raises `BulkError` with what was done and what was not; work on one key alone raises its own error.
        """
        succeeded: list[str] = []
        failed: dict[str, Exception] = {}
        for key, future in self.map(lambda key: work[key](), work):
            error = future.exception()
            if error is None:
                succeeded.append(key)
            elif isinstance(error, CloudStoreError) and len(work) > 1:
                failed[key] = error
            else:
                raise error
        if failed:
            first = next(iter(failed.values()))
            raise BulkError(
                f"{len(failed)} of {len(work)} keys failed, the others are done; see `.failed`. The first: {first}",
                succeeded=succeeded,
                failed=failed,
            ) from first

    def _begin(self, function: Callable[[A], B], argument: A) -> Future[B]:
        if self._count > 1:
            with self._lock:
                if self._pool is None:
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
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)


def _finished(call: tuple[A, Future[B]]) -> tuple[A, Future[B]]:
    call[1].exception()
    return call
