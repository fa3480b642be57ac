"""Group commit: one writer thread runs waiting work in one transaction and replies after the commit."""

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from cloudstore_mapping.errors import CloudStoreError, UnavailableError
from cloudstore_mapping.interrupts import let_go
from cloudstore_mapping.service.threads import PlainFuture, wait_for

T = TypeVar("T")

#: Pieces of work in one commit: enough that a sync is shared by many, few enough that the first doesn't wait long.
MAX_GROUP: Final = 256

#: How often a piece of work is put off that begins its transaction, so that it had the first chance.
MAX_PUT_OFF: Final = 8


class PutOffError(Exception):
    """A piece of work is undone and has to begin another transaction; `error` says why, if that never helps."""

    def __init__(self, error: UnavailableError) -> None:
        super().__init__("The work is put off.")
        self.error = error


class AgainError(Exception):
    """A transaction is undone, because of `cause`, and is worth doing again."""

    def __init__(self, cause: Any) -> None:
        super().__init__("The transaction has to be done again.")
        self.cause = cause


class DoneError(Exception):
    """The transaction that was begun to be done again was committed the first time."""


class WriteSession(ABC):
    """
    A connection that `GroupWriter` writes with, and which it hands to each piece of work.

    On an engine that others write to as well it may have work done again, by `PutOffError` and `AgainError`.
    """

    #: Pieces of work in one transaction at most.
    max_group: int = MAX_GROUP
    #: Monotonic time until which `transaction` waits for other processes, if the engine has such a wait.
    until: float = math.inf
    #: True if a program that ends has to finish submitted work: not for a store in memory, which ends with it.
    outlives_program: bool = True

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """
        Begin, then commit, or roll back and raise `UnavailableError` if the engine fails.

        After it raised `AgainError` the same work is done in another one, whose beginning may raise `DoneError`.
        """

    @abstractmethod
    def savepoint(self) -> AbstractContextManager[None]:
        """Keep one piece of work apart from the others in the transaction: undo what it did if it raises."""

    def is_in_use(self) -> bool:
        """Return True in a signal handler, or `__del__`, in the middle of this thread's own turn to read or write."""
        return False

    @abstractmethod
    def intact(self) -> bool:
        """Whether the transaction still stands; an engine that fails in the middle may have undone all of it."""


class _Jobs:
    """
    The work that waits for a writer's thread, and whether that thread has `ended`.

    `Thread.is_alive` isn't asked: up to Python 3.12 an interrupt within it, or within `join`, makes it say False of a
    thread that runs (python/cpython#90882).
    """

    def __init__(self) -> None:
        self.queue: SimpleQueue[_Job | None] = SimpleQueue()
        self.ended = False
        self._working = threading.Lock()  # held until the thread has ended
        self._working.acquire()
        self._process = os.getpid()
        self.latest: dict[int, weakref.ref[_Job]] = {}  # submitted by a thread

    def put(self, job: _Job) -> None:
        """Have a job done, or refuse it where the thread has ended."""
        self.latest[threading.get_ident()] = weakref.ref(job)
        self.queue.put(job)
        if self.ended or self._process != os.getpid():
            self.refuse_all()  # asked behind `put`, for the thread refuses only jobs that it finds when it ends

    def refuse_all(self) -> None:
        """Refuse the jobs that no thread will do."""
        with suppress(Empty):
            while True:
                job = self.queue.get_nowait()
                if job is not None and job.future.set_running_or_notify_cancel():
                    job.future.set_exception(closed_error())

    def wait_for_end(self) -> None:
        """Wait until all is done and the thread has ended; in a forked process there is none."""
        if self._process == os.getpid():
            with self._working:
                pass

    def end(self) -> None:
        """Refuse what comes from now on, and let those go on who wait for the end."""
        self.ended = True
        self._working.release()
        self.refuse_all()


def closed_error() -> UnavailableError:
    """Return the error of a store that is used after it was closed."""
    return UnavailableError("The store is closed; open it again.", sent=False, retry_after=1.0)


class _Job:
    """
    A piece of work, whose `future` is told what came of it, and how often it was put off as the first.

    Whoever waits for it may cancel the future before the work begins.
    """

    def __init__(self, work: Callable[[Any], Any], future: Future[Any]) -> None:
        self.work = work
        self.future = future
        self.put_off = 0

    def begin(self) -> bool:
        """Begin the work, perhaps again, or return False if it was cancelled."""
        return self.future.set_running_or_notify_cancel()


class GroupWriter:
    """
    Runs work on its own thread, or on that of who waits for it; nobody else writes with `session` from now on.

    The thread calls `end` at last.

    One that is dropped without `close` finishes what was submitted all the same, and so does a program that ends.
    """

    def __init__(self, session: WriteSession, end: Callable[[], None]) -> None:
        self._session = session
        self._jobs = _Jobs()
        self._turn = threading.Lock()
        self._closed = False
        self._busy: dict[int, threading.Lock] = {}  # by thread, locked while it does work in its turn, or waits for it
        # A daemon, so that a program that forgets to close can end; it holds no reference to this object.
        self._thread = threading.Thread(
            target=_write, args=(session, self._jobs, self._turn, end), name="cloudstore-writer", daemon=True
        )
        # Set where the interpreter ends and begins no threads: the callers do the work. Python 3.11 doesn't refuse to
        # begin one then, but waits for it forever.
        self._end: Callable[[], None] | None = end if sys.is_finalizing() else None
        if self._end is None:
            try:
                self._thread.start()
            except RuntimeError as error:
                if "new thread" not in str(error):  # an interrupt within `start`, which may make this of it
                    raise (error.__context__ or error) from None
                self._end = end
        if session.outlives_program and self._end is None:
            _writing.add(self._jobs)
        # Without waiting: whoever drops this may hold a lock that the work still needs, or be the thread itself.
        weakref.finalize(self, self._jobs.queue.put, None).atexit = False

    def submit(self, work: Callable[[Any], T]) -> Future[T]:
        """Have `work(session)` done; the future completes after the commit."""
        if self._closed or self._jobs.ended:
            raise closed_error()
        future: Future[T] = PlainFuture()
        self._jobs.put(_Job(work, future))
        if self._end is not None or sys.is_finalizing():
            self._do_here()
        return future

    def _do_here(self) -> None:
        """Do the work that waits, on the caller's thread."""
        group: list[_Job] = []
        while not self._jobs.queue.empty() or group:
            with self._turn:
                if not self._jobs.queue.empty():
                    _gather(self._jobs.queue, group, self._session.max_group)
                group = _commit(self._session, group) if group else group

    def run(self, work: Callable[[Any], T], until: float = math.inf) -> Future[T]:
        """
        Have `work(session)` done as `submit` does, for a caller who only waits: here and now where no other work waits.

        Here it waits for other processes no longer than until the monotonic time `until`. Handing it to the thread and
        waiting for that takes longer than the work. Only for a session that never has work done again.
        """
        self._refuse_mine()
        if self._turn.locked():
            return self.submit(work)
        future: Future[T] | None = None
        # Locks of `with`, which an interrupt can't leave behind, unlike those that are only tried for.
        lock = threading.Lock()
        with lock:
            self._busy[threading.get_ident()] = lock
            with self._turn:
                if not self._closed and not self._jobs.ended and self._jobs.queue.empty():
                    future = self._run_alone(work, until)
        if future is None:
            return self.submit(work)
        if self._end is not None:
            self._do_here()
        return future

    def run_outside(self, work: Callable[[Any], None]) -> None:
        """Have `work(session)` done here and now, outside of a transaction, while no other work is done."""
        self._refuse_mine()
        lock = threading.Lock()
        with lock:
            self._busy[threading.get_ident()] = lock
            with self._turn:
                if self._closed or self._jobs.ended:
                    raise closed_error()
                self._session.until = math.inf
                work(self._session)

    def withdraw(self) -> None:
        """
        After an interrupt of this thread, cancel its last work, or wait until that is done if it has begun.

        So an interrupted write comes before the interrupt or never, and not over a later write of the thread.
        """
        reference = self._jobs.latest.pop(threading.get_ident(), None)
        job = None if reference is None else reference()
        if job is not None and not job.future.cancel():
            wait_for(job.future)

    def is_mine(self) -> bool:
        """Return True in a signal handler, or `__del__`, in the middle of this thread's own work."""
        me = threading.get_ident()
        lock = self._busy.get(me)
        return (lock is not None and lock.locked()) or me == self._thread.ident

    def _refuse_mine(self) -> None:
        if self.is_mine() or self._session.is_in_use():
            raise RuntimeError(
                "A signal handler or __del__ can't write to a store in the middle of its thread's own write, or read "
                "in memory; set a flag there, and write afterwards."
            )

    def _run_alone(self, work: Callable[[Any], T], until: float) -> Future[T]:
        """Do the work in a transaction of its own, all of which is undone if anything is raised."""
        future: Future[T] = PlainFuture()
        self._session.until = until
        try:
            with self._session.transaction(), self._session.savepoint():
                result = work(self._session)
        except CloudStoreError as error:
            future.set_exception(error)
        except BaseException as error:
            let_go(error)  # within the turn: it may hold the transaction
            if not isinstance(error, Exception):
                raise  # an interrupt is the caller's
            future.set_exception(error)
        else:
            future.set_result(result)
        return future

    def close(self) -> None:
        """
        Finish what was submitted, and wait for the thread to end, unless it is the caller's.

        A signal handler in the middle of its thread's work doesn't wait: the thread ends after that work.
        """
        self._closed = True
        if self._end is not None:
            if not self._jobs.ended:
                self._do_here()
                with self._turn:
                    self._end()
                self._jobs.end()
            return
        if sys.is_finalizing():  # the thread never ends any more; what outlives the program was finished before
            return
        self._jobs.queue.put(None)  # also the second time: an interrupt may have come before the first
        if threading.current_thread() is not self._thread and not (self.is_mine() or self._session.is_in_use()):
            self._jobs.wait_for_end()
            self._thread.join()  # its last steps


_writing: Final[weakref.WeakSet[_Jobs]] = weakref.WeakSet()


#: True once a program that ends finished all work, and the storages that outlive it were closed.
_has_finished: Final[list[bool]] = []


def has_finished() -> bool:
    """Return True at the end of a program, when storages opened before are closed."""
    return bool(_has_finished)


@atexit.register
def _finish_all() -> None:
    _has_finished.append(True)
    for jobs in list(_writing):
        jobs.queue.put(None)
        jobs.wait_for_end()


def _write(session: WriteSession, jobs: _Jobs, turn: threading.Lock, end: Callable[[], None]) -> None:
    group: list[_Job] = []
    goes_on = True
    try:
        while goes_on or group:
            if goes_on:
                goes_on = _gather(jobs.queue, group, session.max_group)
            if group:
                with turn:
                    group = _commit(session, group)
    finally:
        try:
            with turn:
                end()
        finally:
            jobs.end()


def _gather(jobs: SimpleQueue[_Job | None], group: list[_Job], most: int) -> bool:
    """Add the work that waits, for which an empty group waits itself; False after the last of all."""
    with suppress(Empty):
        while len(group) < most:
            if (job := jobs.get(block=not group)) is None:
                return False
            if not job.future.cancelled():
                group.append(job)
    return True


def _commit(session: WriteSession, group: list[_Job]) -> list[_Job]:
    """Do a group's work and tell what came of it; return what has to be done in another transaction."""
    session.until = math.inf
    outcomes = _outcomes(session, group)
    later: list[_Job] = []
    for number, (job, (result, raised)) in enumerate(zip(group, outcomes, strict=True)):
        if not job.begin():  # cancelled
            continue
        if isinstance(raised, PutOffError):
            job.put_off += number == 0
            if job.put_off < MAX_PUT_OFF:
                later.append(job)
            else:
                job.future.set_exception(raised.error)
        elif raised is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(raised)
    return later


def _outcomes(session: WriteSession, group: list[_Job]) -> list[tuple[Any, BaseException | None]]:
    outcomes: list[tuple[Any, BaseException | None]] = []
    while True:
        done = outcomes if len(outcomes) == len(group) else []
        outcomes = []
        try:
            with session.transaction():
                outcomes.extend(_outcome(session, job) for job in group)
        except AgainError:
            outcomes = outcomes or done
        except DoneError:
            return done
        except BaseException as error:  # noqa: BLE001 - whatever it was, nobody's work is on disk, and each is told
            return [(None, error)] * len(group)
        else:
            return outcomes


def _outcome(session: WriteSession, job: _Job) -> tuple[Any, BaseException | None]:
    if not job.begin():
        return None, None
    try:
        with session.savepoint():
            result = job.work(session)
    except BaseException as error:
        if not session.intact():
            raise
        return None, error
    return result, None


#: Seconds that a health check waits for the storage.
PATIENCE: Final = 1.0
#: Seconds after which a probe that still waits is a problem: a save that begins now would wait as well.
OVERDUE: Final = 5.0
_OVERDUE: Final = "Saves wait for longer than {:g} seconds; look which process holds the store."


class HealthProbe:
    """
    Probes with a write that `submit` begins; threads may share it.

    One probe runs at a time, however many threads ask. A writer that is busy for longer than they wait isn't ill: the
    outcome of the probe before stands until this one is `OVERDUE`.
    """

    def __init__(self, submit: Callable[[], Future[None]], clock: Callable[[], float] = time.monotonic) -> None:
        self._submit = submit
        self._clock = clock
        self._since = 0.0
        self._lock = threading.Lock()
        self._running: Future[None] | None = None
        self._problem: str | None = None

    def problem(self, patience: float) -> str | None:
        """Return the sentence that refuses a save, None where it would be done."""
        try:
            with self._lock:
                if self._running is None:
                    self._running, self._since = self._submit(), self._clock()
                running, since = self._running, self._since
        except UnavailableError as error:
            return str(error)
        wait_for(running, patience)
        with self._lock:
            if not running.done():
                is_overdue = self._clock() - since >= OVERDUE
                return _OVERDUE.format(OVERDUE) if is_overdue and self._problem is None else self._problem
            raised = running.exception()
            problem = None if raised is None else str(raised)
            if self._running is running:
                self._running, self._problem = None, problem
            return problem
