"""Bounded thread pools and lightweight futures."""

from __future__ import annotations

import _thread
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar

from cloudstore_mapping.errors import UnavailableError

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


#: The priority of threads that step back: a tenth of the processor where all others want it, so that they go on too.
LOWER: Final = 10

P = ParamSpec("P")


class BoundedThreadPool:
    """
    Runs work on as many as `threads` threads, while as many as `waiting` more pieces of it wait.

    Where it `steps_back`, other threads of the machine come before its own. A signal may interrupt who submits work
    anywhere, so that thread counts nothing: all that it does to the pool is to put the work into a queue.
    """

    def __init__(self, threads: int, waiting: int, name: str, *, steps_back: bool = False) -> None:
        self._workers = _Workers(threads, name, steps_back=steps_back)
        self._most = threads + waiting
        self._process = os.getpid()
        # It is dropped without `close`: the threads hold no reference to it.
        weakref.finalize(self, self._workers.waiting.put, None).atexit = False

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """
        Begin some work; raises `UnavailableError` where too much of it waits already, and after `close`.

        Once the interpreter ends and lets no thread begin, the work is done on the caller's; so it is in a forked
        process, which has none of the threads.
        """
        workers = self._workers
        if workers.closed:
            raise UnavailableError("The service is closed; try again once it is open.", retry_after=1.0)
        if workers.waiting.qsize() + workers.busy >= self._most:
            workers.grow()  # an interrupt may have come between a submission and its thread
            raise UnavailableError("The service is busy; try again.", retry_after=1.0)
        piece = _Piece(partial(work, *args, **kwargs))
        if self._process != os.getpid():
            piece.settle(piece.run())
            return piece.future
        workers.put(piece)
        return piece.future

    def close(self) -> None:
        """Finish what was submitted, and end the threads; not from one of them."""
        if self._process == os.getpid():
            self._workers.close()


class _Piece:
    """A piece of work, and the future of its outcome."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self.future: Future[Any] = PlainFuture()

    def run(self) -> tuple[Any, BaseException | None] | None:
        """Return what the work returned and what it raised, or None if it was cancelled."""
        if not self.future.set_running_or_notify_cancel():
            return None
        try:
            return self._work(), None
        except BaseException as error:  # noqa: BLE001 - the future carries it
            return None, error

    def settle(self, outcome: tuple[Any, BaseException | None] | None) -> None:
        """Tell the future what came of it."""
        if outcome is not None:
            result, error = outcome
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)


class _Workers:
    """
    The threads of a pool, begun one by one as they are needed, and the work that waits for them.

    Daemons, so that a program that forgets to close can end. Each counts itself once it runs.
    """

    def __init__(self, most: int, name: str, *, steps_back: bool) -> None:
        self.waiting: SimpleQueue[_Piece | None] = SimpleQueue()
        self.busy = 0
        self.closed = False
        self._most = most
        self._name = name
        self._steps_back = steps_back
        self._lock = threading.Lock()
        self._running: list[threading.Lock] = []  # each is held by a thread for as long as it works
        self._threads: list[threading.Thread] = []

    def put(self, piece: _Piece) -> None:
        """Have a piece of work done."""
        self.waiting.put(piece)
        self.grow()
        if self.closed:  # asked behind `put`: the threads may have ended before it
            self._work_off()

    def grow(self) -> None:
        """Begin another thread if work waits and no thread does; where none can begin, do the work here."""
        if sys.is_finalizing():  # no thread runs any more, but for this one
            self._work_off()
            return
        if self.waiting.qsize() <= len(self._running) - self.busy or len(self._running) >= self._most:
            return
        if sys.is_finalizing():  # on Python 3.11 it would never begin
            self._work_off()
            return
        try:
            _thread.start_new_thread(self._start, ())  # unlike `Thread.start` no interrupt leaves it half-way
        except RuntimeError as error:
            if "new thread" not in str(error):  # what a handler of the program's signals raised
                raise
            if not self._running:  # the interpreter ends
                self._work_off()

    def close(self) -> None:
        """Finish the work that waits, and end the threads."""
        with self._lock:
            self.closed = True
        self.waiting.put(None)
        if sys.is_finalizing():  # the threads never end any more
            self._work_off()
            return
        for running in self._running:
            with running:
                pass
        self._work_off()
        for thread in self._threads:
            thread.join()  # its last steps

    def _start(self) -> None:
        if not self.closed:
            try:
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            except RuntimeError:  # there are as many threads as the system allows
                self._work_off()

    def _run(self) -> None:
        running = threading.Lock()
        with running:
            with self._lock:
                if self.closed or len(self._running) >= self._most:
                    return
                self._running.append(running)
                self._threads.append(threading.current_thread())
            if self._steps_back:
                _step_back()
            while (piece := self.waiting.get()) is not None:
                with self._lock:
                    self.busy += 1
                self.grow()  # who submitted more may have taken this one for idle
                outcome = piece.run()
                with self._lock:
                    self.busy -= 1
                piece.settle(outcome)
                del piece, outcome  # else an idle thread keeps them
            self.waiting.put(None)  # for the next one

    def _work_off(self) -> None:
        """Do the work that waits on the caller's thread."""
        with suppress(Empty):
            while True:
                piece = self.waiting.get_nowait()
                if piece is not None:
                    piece.settle(piece.run())


def _step_back() -> None:
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, max(LOWER, os.getpriority(os.PRIO_PROCESS, thread)))
