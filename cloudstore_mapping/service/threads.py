"""Threads: futures safe against interrupts, the fair queue, and the bounded thread pool with a queue per account."""

from __future__ import annotations

import _thread
import enum
import itertools
import logging
import os
import sys
import threading
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from functools import partial
from heapq import heappop, heappush, heapreplace, nlargest
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, ParamSpec, TypeVar

from cloudstore_mapping.errors import TooOftenError, UnavailableError

T = TypeVar("T")

_log: Final = logging.getLogger(__name__)


class PlainFuture(Future[T]):
    """
    Future built on the interpreter's own locks and queues; wait for it with `wait_for`, not `concurrent.futures.wait`.

    The standard future uses `threading.Condition`, written in Python: an exception of a signal handler inside it may
    leave its lock locked, and every thread using the future then waits for ever.
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
        """Mark the work as running, or return False if it was cancelled; may be called twice."""
        with self._lock:
            self._has_begun = not self._is_cancelled
            return self._has_begun

    def cancel(self) -> bool:
        """Cancel the work unless it has begun; return False if it has begun or is done."""
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
        for callback in self._callbacks:  # no lock needed: callbacks are only added before the outcome
            try:
                callback(self)
            except Exception:  # noqa: BLE001 - the other callbacks are still called
                _log.exception("A callback of %r failed.", self)

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call `fn` with this future once it is done; if it is done already, call at once and let exceptions pass."""
        with self._lock:
            if not self._is_done:
                self._callbacks.append(fn)
                return
        fn(self)

    def result(self, timeout: float | None = None) -> T:
        """Return the result, or raise the exception of the work; raise `TimeoutError` after `timeout` seconds."""
        error = self.exception(timeout)
        if error is None:
            value: T = self._value
            return value
        try:
            raise error
        finally:
            del error, self  # break their reference cycle

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception of the work, None if it returned; raise `TimeoutError` after `timeout` seconds."""
        if not self._is_done and not wait_for(self, timeout):
            raise TimeoutError
        if self._is_cancelled:
            raise CancelledError
        return self._error


def wait_for(future: Future[Any], timeout: float | None = None) -> bool:
    """Wait up to `timeout` seconds until a future is done; return True if it is done."""
    if not future.done():
        arrived: SimpleQueue[Future[Any]] = SimpleQueue()
        future.add_done_callback(arrived.put)
        with suppress(Empty):
            arrived.get(timeout=None if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX))
    return future.done()


#: Maximum seconds charged per item: after the machine was suspended, no account has to wait for ever.
MAX_CHARGE: Final = 2.0
#: Number of idle accounts with a recorded time before outdated times are dropped.
MAX_KEPT: Final = 1024


class FairQueue(Generic[T]):
    """
    Queues per account, served by start-time fair queueing. Not thread-safe.

    Each account has a virtual time: the seconds of work charged to it. `take` serves the account with the lowest time.
    So equal work is served round robin, and after long work an account pauses until the other waiting accounts have
    used as much. After idling, an account starts at the current virtual time: idleness earns no credit.
    """

    def __init__(self) -> None:
        self._queues: dict[Hashable, deque[T]] = {}
        self._order: list[tuple[float, int, Hashable]] = []  # heap; its times may lag behind `_used`
        self._ordered: set[Hashable] = set()  # accounts in the heap, each once
        self._used: dict[Hashable, float] = {}
        self._held: set[Hashable] = set()
        self._now = 0.0
        self._turns = itertools.count()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, account: Hashable, item: T) -> None:
        """Add an item to the end of an account's queue."""
        queue = self._queues.get(account)
        if queue is None:
            queue = self._queues[account] = deque()
            self._add_turn(account)
        queue.append(item)
        self._length += 1

    def peek(self) -> T | None:
        """Return the next item without removing it; None if the queue is empty or all its accounts are held."""
        account = self._next()
        return None if account is _NOBODY else self._queues[account][0]

    def take(self) -> T | None:
        """Remove and return the next item; None if the queue is empty or all its accounts are held."""
        account = self._next()
        if account is _NOBODY:
            return None
        self._now = max(self._now, self._drop_turn())
        queue = self._queues[account]
        item = queue.popleft()
        self._length -= 1
        self._used[account] = self._now
        if queue:
            self._add_turn(account)
        else:
            del self._queues[account]
            self._forget()
        return item

    def shed(self) -> T:
        """Remove and return the newest item of the account with the most; the queue must not be empty."""
        account, queue = max(self._queues.items(), key=lambda entry: len(entry[1]))
        item = queue.pop()
        self._length -= 1
        if not queue:
            del self._queues[account]
        return item

    def charge(self, account: Hashable, seconds: float) -> None:
        """Charge an account for its work, in seconds; at most `MAX_CHARGE` count."""
        self._used[account] = max(self._used.get(account, 0.0), self._now) + min(max(seconds, 0.0), MAX_CHARGE)

    def others_wait(self, account: Hashable) -> bool:
        """Return True if any other account has queued items."""
        return len(self._queues) > (account in self._queues)

    def hold(self, account: Hashable) -> None:
        """Stop serving this account until `release`."""
        self._held.add(account)

    def release(self, account: Hashable) -> None:
        """Serve the account again."""
        if account in self._held:
            self._held.discard(account)
            if account in self._queues:
                self._add_turn(account)

    def release_all(self) -> None:
        """Serve all accounts again."""
        for account in [*self._held]:
            self.release(account)

    def _add_turn(self, account: Hashable) -> None:
        if account not in self._ordered:
            self._ordered.add(account)
            heappush(self._order, (max(self._used.get(account, 0.0), self._now), next(self._turns), account))

    def _drop_turn(self) -> float:
        time, _, account = heappop(self._order)
        self._ordered.discard(account)
        return time

    def _next(self) -> Hashable:
        while self._order:
            time, _, account = self._order[0]
            used = self._used.get(account, 0.0)
            if account in self._held or account not in self._queues:
                self._drop_turn()  # `release` or `put` adds it again
            elif used > time:
                heapreplace(self._order, (used, next(self._turns), account))
            else:
                return account
        return _NOBODY

    def _forget(self) -> None:
        """Once there are many recorded times, drop all but the highest, to bound the memory."""
        if len(self._used) <= 2 * len(self._queues) + MAX_KEPT:
            return
        kept = nlargest(MAX_KEPT // 2, self._used.values())
        self._now = max(self._now, kept[-1])
        self._used = {account: used for account, used in self._used.items() if used > self._now}


class _Nobody:
    """Type of `_NOBODY`, the sentinel for no account: None is an account, used for the service's own work."""


_NOBODY: Final = _Nobody()


#: Nice value of low-priority threads. On a busy processor they still get about a tenth of it, so they make progress.
LOWER: Final = 10
#: Maximum seconds a caller's thread waits for the workers' lock. Workers hold it for microseconds.
LOCK_WAIT: Final = 1.0

P = ParamSpec("P")


class Paused(enum.Enum):
    """Type of `PAUSED`."""

    PAUSED = enum.auto()


#: Return value of unfinished work: the pool puts the work at the end of its account's queue and calls it again.
PAUSED: Final = Paused.PAUSED


class BoundedThreadPool:
    """
    Bounded thread pool: runs work on up to `threads` threads, queues up to `waiting` pieces and refuses the rest.

    Work submitted for an account waits in the account's own queue. The threads serve the queues in turn, the account
    with the fewest running pieces first. An account has up to `waiting_of_one` pieces in its queue, and never takes the
    last thread of several. With `steps_back`, the threads run at low priority. A signal may interrupt a submitting
    thread anywhere, so the thread takes no lock: it puts the work into a queue, and the workers sort it.
    """

    def __init__(
        self, threads: int, waiting: int, name: str, *, waiting_of_one: int | None = None, steps_back: bool = False
    ) -> None:
        line = _Line(max(1, threads - 1), waiting if waiting_of_one is None else waiting_of_one)
        self._workers = _Workers(threads, name, line, steps_back=steps_back)
        self._most = threads + waiting
        self._process = os.getpid()
        # Threads hold no reference to the pool, so dropping it without `close` ends them too.
        weakref.finalize(self, self._workers.wake.put, False).atexit = False

    def submit(self, work: Callable[P, T | Paused], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """
        Queue work and return its future; raise `UnavailableError` if the queue is full, and after `close`.

        Work returning `PAUSED` is called again after the other queued work. The work runs on the caller's thread at the
        interpreter's end, when no thread can start, and in a forked process, without the pool's threads.
        """
        return self._begin(None, partial(work, *args, **kwargs))

    def submit_for(
        self, account: Hashable, work: Callable[P, T | Paused], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Queue work as `submit` does, in an account's queue; the future raises `TooOftenError` if it is full."""
        return self._begin(account, partial(work, *args, **kwargs))

    def _begin(self, account: Hashable, work: Callable[[], Any]) -> Future[Any]:
        workers = self._workers
        if workers.closed:
            raise UnavailableError("The service is closed; try again once it is open.", retry_after=1.0)
        if workers.waiting + workers.busy >= self._most:
            workers.grow()  # an interrupt may have prevented an earlier submission's thread
            raise UnavailableError("The service is busy; try again.", retry_after=1.0)
        piece = _Piece(account, work)
        if self._process != os.getpid():
            piece.finish()
            return piece.future
        workers.put(piece)
        return piece.future

    def close(self) -> None:
        """Finish all submitted work, then end the threads; a thread of the pool waits only for the others."""
        if self._process == os.getpid():
            self._workers.close()


class _Piece:
    """Piece of work of an account (None for no account), and the future of its outcome."""

    def __init__(self, account: Hashable, work: Callable[[], Any]) -> None:
        self.account = account
        self._work = work
        self.future: Future[Any] = PlainFuture()

    def run(self) -> tuple[Any, BaseException | None] | None:
        """Call the work; return its result and its exception, or None if it was cancelled."""
        if not self.future.set_running_or_notify_cancel():
            return None
        try:
            return self._work(), None
        except BaseException as error:  # noqa: BLE001 - the future carries it
            return None, error

    def settle(self, outcome: tuple[Any, BaseException | None] | None) -> None:
        """Set the outcome of the future, unless it was cancelled."""
        if outcome is not None:
            result, error = outcome
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)

    def finish(self) -> None:
        """Do all of the work on this thread, called again after each `PAUSED`."""
        outcome = self.run()
        while outcome is not None and outcome[0] is PAUSED:
            outcome = self.run()
        self.settle(outcome)


class _Line:
    """
    Queues of the accounts, in order of service; the caller holds the workers' lock.

    An account has up to `most_running` pieces on the threads, and up to `most_waiting` in its queue. Work for no
    account has its own queue without these limits.
    """

    def __init__(self, most_running: int, most_waiting: int) -> None:
        self._most_running = most_running
        self._most_waiting = most_waiting
        self._queues: OrderedDict[Hashable, deque[_Piece]] = OrderedDict()
        self._running: Counter[Hashable] = Counter()
        self.length = 0

    def add(self, piece: _Piece, *, again: bool = False) -> bool:
        """Append a piece to its account's queue; return False if it is full. A paused piece may come `again`."""
        queue = self._queues.setdefault(piece.account, deque())
        if len(queue) >= self._most_waiting and not again and piece.account is not None:
            return False
        queue.append(piece)
        self.length += 1
        return True

    def take(self) -> _Piece | None:
        """Remove and return the next piece to run; None if all waiting accounts have their share of the threads."""
        chosen, fewest = None, sys.maxsize
        for queue in self._queues.values():
            account = queue[0].account
            running = self._running[account]
            if running < fewest and (running < self._most_running or account is None):
                chosen, fewest = queue, running
                if not running:
                    break
        if chosen is None:
            return None
        piece = chosen.popleft()
        self.length -= 1
        self._running[piece.account] += 1
        self._queues.move_to_end(piece.account)
        if not chosen:
            del self._queues[piece.account]
        return piece

    def ended(self, piece: _Piece) -> None:
        """Note the end of a piece returned by `take`."""
        self._running[piece.account] -= 1
        if not self._running[piece.account]:
            del self._running[piece.account]

    def all(self) -> list[_Piece]:
        """Empty all queues, and return their pieces."""
        found = [piece for queue in self._queues.values() for piece in queue]
        self._queues.clear()
        self.length = 0
        return found


class _Workers:
    """
    Threads of a pool, started one by one on demand, and their queued work.

    They are daemon threads, so a program can end without `close`. Each thread counts itself once it runs.
    """

    def __init__(self, most: int, name: str, line: _Line, *, steps_back: bool) -> None:
        self._arrived: SimpleQueue[_Piece] = SimpleQueue()
        #: Wakes an idle thread; False ends it. A thread checks for work before it sleeps, so a wake-up lost to an
        #: interrupt delays work but doesn't lose it.
        self.wake: SimpleQueue[bool] = SimpleQueue()
        self.busy = 0
        self.closed = False
        self._most = most
        self._name = name
        self._line = line
        self._steps_back = steps_back
        self._lock = threading.Lock()
        self._running: list[threading.Lock] = []  # each thread holds its own until it ends
        self._threads: list[threading.Thread] = []  # in the same order
        self._closing: set[threading.Thread] = set()

    @property
    def waiting(self) -> int:
        """Number of waiting pieces."""
        return self._arrived.qsize() + self._line.length

    def put(self, piece: _Piece) -> None:
        """Queue a piece of work, and wake or start a thread."""
        self._arrived.put(piece)
        self.wake.put(True)
        self.grow()
        if self.closed:  # checked after `put`: the threads may have ended before it
            self._work_off()

    def grow(self) -> None:
        """Start another thread if work waits and no thread is idle; do the work here if no thread can start."""
        if sys.is_finalizing():  # all other threads have stopped
            self._work_off()
            return
        if self.waiting <= len(self._running) - self.busy or len(self._running) >= self._most:
            return
        if sys.is_finalizing():  # on Python 3.11 the new thread would never begin
            self._work_off()
            return
        try:
            _thread.start_new_thread(self._start, ())  # an interrupt can't leave it half-started, unlike `Thread.start`
        except RuntimeError as error:
            if "new thread" not in str(error):  # raised by a signal handler of the program
                raise
            if not self._running:  # the interpreter ends
                self._work_off()

    def close(self) -> None:
        """Finish the waiting work, then end the threads."""
        with self._lock:
            self.closed = True
        self.wake.put(False)
        if sys.is_finalizing():  # the threads have stopped and would never end
            self._work_off()
            return
        # A thread that closes its own pool can't wait for itself, nor for another thread that waits for it.
        self._closing.add(threading.current_thread())
        others = [
            (each, lock) for each, lock in zip(self._threads, self._running, strict=True) if each not in self._closing
        ]
        for _, running in others:
            with running:
                pass
        self._work_off()
        for thread, _ in others:
            thread.join()  # after releasing its lock it still has a few steps

    def _start(self) -> None:
        if not self.closed:
            try:
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            except RuntimeError:  # the system's limit of threads is reached
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
            while True:
                piece = self._take()
                if piece is not None:
                    self._do(piece)
                    del piece  # else an idle thread keeps it alive
                elif not self.wake.get():
                    break
            self.wake.put(False)  # pass the end on to the next thread

    def _take(self) -> _Piece | None:
        """Sort new pieces into the accounts' queues, and return the next piece to run, if any."""
        refused: list[_Piece] = []
        with self._lock:
            with suppress(Empty):
                while True:
                    arrived = self._arrived.get_nowait()
                    if not self._line.add(arrived):
                        refused.append(arrived)
            piece = self._line.take()
            self.busy += piece is not None
        for each in refused:
            sentence = "Your account has too many requests waiting; wait for replies, then try again."
            each.settle((None, TooOftenError(sentence, retry_after=1.0)))
        return piece

    def _do(self, piece: _Piece) -> None:
        self.grow()  # a submitting thread may have counted this one as idle
        outcome = piece.run()
        is_paused = outcome is not None and outcome[0] is PAUSED
        with self._lock:
            self.busy -= 1
            self._line.ended(piece)
            if is_paused:
                self._line.add(piece, again=True)
        if not is_paused:
            piece.settle(outcome)

    def _work_off(self) -> None:
        """Do all waiting work on the caller's thread."""
        # Don't wait for ever: at the interpreter's end a stopped thread may hold the lock, and so may interrupted code.
        is_mine = self._lock.acquire(timeout=0 if sys.is_finalizing() else LOCK_WAIT)
        try:
            pieces = self._line.all()
        finally:
            if is_mine:
                self._lock.release()
        for piece in pieces:
            piece.finish()
        with suppress(Empty):
            while True:
                self._arrived.get_nowait().finish()


def _step_back() -> None:
    if sys.platform == "linux":  # other systems have no priority per thread
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, max(LOWER, os.getpriority(os.PRIO_PROCESS, thread)))
