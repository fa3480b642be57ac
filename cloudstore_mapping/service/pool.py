"""Threads for what takes long: as much may wait for them as is answered soon, and the rest is refused."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Final, ParamSpec, TypeVar

from cloudstore_mapping.errors import UnavailableError

#: The priority of threads that step back: a tenth of the processor where all others want it, so that they go on too.
LOWER: Final = 10

P = ParamSpec("P")
T = TypeVar("T")


class Pool:
    """
    Runs work on as many as `threads` threads, while as many as `waiting` more pieces of it wait.

    Where it `steps_back`, other threads of the machine come before its own.
    """

    def __init__(self, threads: int, waiting: int, name: str, *, steps_back: bool = False) -> None:
        self._executor = ThreadPoolExecutor(
            threads, thread_name_prefix=name, initializer=_step_back if steps_back else None
        )
        self._places = threading.BoundedSemaphore(threads + waiting)
        self._closed = False

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """
        Begin some work; raises `UnavailableError` where too much of it waits already, and after `close`.

        Once the interpreter ends and lets no thread begin, the work is done on the caller's.
        """
        if not self._places.acquire(blocking=False):
            raise UnavailableError("The service is busy; try again.", retry_after=1.0)
        try:
            future = self._executor.submit(work, *args, **kwargs)
        except RuntimeError as error:  # what an executor says once it is shut down
            self._places.release()
            if not self._closed:
                return _done(work, *args, **kwargs)
            raise UnavailableError("The service is closed; try again once it is open.", retry_after=1.0) from error
        future.add_done_callback(lambda _: self._places.release())
        return future

    def close(self) -> None:
        """Finish what was submitted, and end the threads; not from one of them."""
        self._closed = True
        self._executor.shutdown()


def _done(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    future: Future[T] = Future()
    try:
        future.set_result(work(*args, **kwargs))
    except Exception as error:  # noqa: BLE001 - the future carries it, as in an executor
        future.set_exception(error)
    return future


def _step_back() -> None:
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, max(LOWER, os.getpriority(os.PRIO_PROCESS, thread)))
