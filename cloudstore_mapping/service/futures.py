"""Futures that an interrupt of a thread which waits can't leave half-way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

T = TypeVar("T")

_log: Final = logging.getLogger(__name__)


class PlainFuture(Future[T]):
    """
    A future made of a lock and queues of the interpreter, for `wait_for` in place of `concurrent.futures.wait`.

    Others are built on `threading.Condition`, which is written in Python: a signal handler that raises within it may
    leave its lock locked, and then every thread that needs the future waits for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._has_begun = self._is_done = self._is_cancelled = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Future[T]], object]] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} done={self._is_done}>"

    def set_running_or_notify_cancel(self) -> bool:
        """Begin, or return False if it was cancelled; twice is as good as once."""
        with self._lock:
            self._has_begun = not self._is_cancelled
            return self._has_begun

    def cancel(self) -> bool:
        """Cancel what hasn't begun; return False if it has, or is done."""
        with self._lock:
            if self._has_begun or (self._is_done and not self._is_cancelled):
                return False
            self._is_cancelled = self._is_done = True
        self._call_back()
        return True

    def cancelled(self) -> bool:
        """Return True if it was cancelled."""
        return self._is_cancelled

    def running(self) -> bool:
        """Return True if it has begun and isn't done."""
        return self._has_begun and not self._is_done

    def done(self) -> bool:
        """Return True if it has an outcome, or was cancelled."""
        return self._is_done

    def set_result(self, result: T) -> None:
        """Set the outcome of work that returned."""
        self._settle(result, None)

    def set_exception(self, exception: BaseException | None) -> None:
        """Set the outcome of work that raised."""
        self._settle(None, exception)

    def _settle(self, value: T | None, error: BaseException | None) -> None:
        with self._lock:
            if self._is_done:
                raise InvalidStateError(f"{self!r} has an outcome already.")
            self._value, self._error = value, error
            self._is_done = True
        self._call_back()

    def _call_back(self) -> None:
        for callback in self._callbacks:  # to which nothing is added any more
            try:
                callback(self)
            except Exception:  # noqa: BLE001 - the other callbacks are still called
                _log.exception("A callback of %r failed.", self)

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call a function with this future once it is done; if it is, here and now, and what that raises is raised."""
        with self._lock:
            if not self._is_done:
                self._callbacks.append(fn)
                return
        fn(self)

    def result(self, timeout: float | None = None) -> T:
        """Return the result, or raise what the work raised; `TimeoutError` if there is neither after some seconds."""
        error = self.exception(timeout)
        if error is None:
            value: T = self._value
            return value
        try:
            raise error
        finally:
            del error, self  # which would keep each other

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the work raised, None if it returned; `TimeoutError` if it did neither after some seconds."""
        if not self._is_done and not wait_for(self, timeout):
            raise TimeoutError
        if self._is_cancelled:
            raise CancelledError
        return self._error


def wait_for(future: Future[Any], timeout: float | None = None) -> bool:
    """Wait until a future is done, for some seconds at most; return whether it is."""
    if not future.done():
        arrived: SimpleQueue[Future[Any]] = SimpleQueue()
        future.add_done_callback(arrived.put)
        with suppress(Empty):
            arrived.get(timeout=None if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX))
    return future.done()
