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
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias, TypeVar

from cloudstore_mapping.errors import CloudStoreError, UnavailableError
from cloudstore_mapping.interrupts import let_go
from cloudstore_mapping.service.threads import FairQueue, PlainFuture, wait_for

T = TypeVar("T")

#: Pieces of work in one commit: enough that a sync is shared by many, few enough that the first doesn't wait long.
MAX_GROUP: Final = 256

#: Bytes of values in one commit. Larger work is alone in its transaction.
MAX_BYTES: Final = 4 * 2**20
#: Seconds of work in one commit, before others have their turn.
MAX_SECONDS: Final = 0.01
#: The same for the work of one account, while no other's waits.
LONE_SECONDS: Final = 0.1
#: Bytes that work counts at least, when the time of a commit is divided among its work.
LEAST_SIZE: Final = 1024


class WriteSession(ABC):
    """A connection that `GroupWriter` writes with, and which it hands to each piece of work."""

    #: Pieces of work in one transaction at most.
    max_group: int = MAX_GROUP
    #: Seconds of work in one transaction, after which it is committed.
    max_seconds: float = MAX_SECONDS
    #: Monotonic time at which the oldest work of the transaction arrived: waits for other processes count from it, or
    #: from the present where it is None.
    since: float | None = None
    #: Monotonic time until which `transaction` waits for other processes, if the engine has such a wait.
    until: float = math.inf
    #: True if a program that ends has to finish submitted work: not for a store in memory, which ends with it.
    outlives_program: bool = True

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """Begin, then commit, or roll back and raise `UnavailableError` if the engine fails."""

    @abstractmethod
    def savepoint(self) -> AbstractContextManager[None]:
        """Keep one piece of work apart from the others in the transaction: undo what it did if it raises."""

    def is_in_use(self) -> bool:
        """Return True in a signal handler, or `__del__`, in the middle of this thread's own turn to read or write."""
        return False

    @abstractmethod
    def intact(self) -> bool:
        """Whether the transaction still stands; an engine that fails in the middle may have undone all of it."""


class _Release:
    """Put into the queue of new work: an account that was held is served again."""

    def __init__(self, account: Hashable) -> None:
        self.account = account


class _Jobs:
    """
    The work that waits for a writer's thread, and whether that thread has `ended`.

    Other threads put new work into `queue`, which takes no lock: a signal may interrupt them anywhere. The thread whose
    turn it is to write sorts it into the `fair` queue. None in `queue` ends the thread after all work before it.

    `Thread.is_alive` isn't asked: up to Python 3.12 an interrupt within it, or within `join`, makes it say False of a
    thread that runs (python/cpython#90882).
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.queue: SimpleQueue[_Job | _Release | None] = SimpleQueue()
        self.fair: FairQueue[_Job] = FairQueue()
        self.clock = clock
        self.ends_at = math.inf
        self.ended = False
        self._goes_on = True
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

    def is_idle(self) -> bool:
        """Return True if no work waits."""
        return self.queue.empty() and not self.fair

    def wait(self) -> bool:
        """Wait until there is work to take, and return True, or False after the last of all."""
        self.sort()
        while self._goes_on and self.fair.peek() is None:
            self._sort(self.queue.get())
        if not self._goes_on:
            self.fair.release_all()
        return self.fair.peek() is not None

    def sort(self, *, past_end: bool = False) -> None:
        """Move new work into the queues of its accounts, and refuse all of it if the writer's time is over."""
        with suppress(Empty):
            while self._goes_on or past_end:
                self._sort(self.queue.get_nowait())
        if self.clock() >= self.ends_at:
            self._refuse_sorted()

    def _sort(self, job: _Job | _Release | None) -> None:
        if job is None:
            self._goes_on = False
        elif isinstance(job, _Release):
            self.fair.release(job.account)
        elif not job.future.cancelled():
            self.fair.put(job.account, job)

    def _refuse_sorted(self) -> None:
        """Refuse the work of accounts; the service's own is done also at its end, such as storing what was counted."""
        self.fair.release_all()
        own: list[_Job] = []
        while (job := self.fair.take()) is not None:
            if job.account is None:
                own.append(job)
            elif job.begin():
                job.future.set_exception(ending_error())
        for job in own:
            self.fair.put(None, job)

    def refuse_all(self) -> None:
        """Refuse the jobs that no thread will do."""
        with suppress(Empty):
            while True:
                job = self.queue.get_nowait()
                if isinstance(job, _Job) and job.future.set_running_or_notify_cancel():
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


def ending_error() -> UnavailableError:
    """Return what work is told that a service did not begin before its end."""
    return UnavailableError("The service is ending; try again once it is back.", sent=False, retry_after=1.0)


class _Job:
    """
    A piece of work, whose `future` is told its outcome.

    It is an `account`'s, None for the service's own, has about `size` bytes to write, and `arrived` at a monotonic
    time. Whoever waits for it may cancel the future before the work begins.
    """

    def __init__(
        self, work: Callable[[Any], Any], future: Future[Any], account: Hashable, size: int, arrived: float
    ) -> None:
        self.work = work
        self.future = future
        self.account = account
        self.size = size
        self.arrived = arrived

    def begin(self) -> bool:
        """Begin the work, or return False if it was cancelled."""
        return self.future.set_running_or_notify_cancel()


class GroupWriter:
    """
    Run work on its own thread, or on that of a caller who waits for it; nothing else writes with `session` from now on.

    All work that waits goes into one transaction, up to `MAX_GROUP` pieces, `MAX_BYTES` bytes or the session's
    `max_seconds` (`LONE_SECONDS` if all is one account's), and is answered after its commit. Accounts are served in
    turn, by the time that each has used, so an account with a thousand saves delays another's save by one group at
    most. The thread calls `end` at last.

    A writer that is dropped without `close` finishes what was submitted all the same, and so does a program that ends.
    """

    def __init__(
        self, session: WriteSession, end: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._session = session
        self._clock = clock
        self._jobs = _Jobs(clock)
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

    def submit(self, work: Callable[[Any], T], account: Hashable = None, size: int = 0) -> Future[T]:
        """Have `work(session)` done in an account's turn; the future completes after the commit."""
        if self._closed or self._jobs.ended:
            raise closed_error()
        future: Future[T] = PlainFuture()
        self._jobs.put(_Job(work, future, account, size, self._clock()))
        if self._end is not None or sys.is_finalizing():
            self._do_here()
        return future

    def others_wait(self, account: Hashable) -> bool:
        """Return True in the middle of an account's work if other work waits; new work counts, whosever it is."""
        return not self._jobs.queue.empty() or self._jobs.fair.others_wait(account)

    def hold(self, account: Hashable) -> None:
        """Begin no more work of an account until `release`; only in the middle of its work."""
        self._jobs.fair.hold(account)

    def release(self, account: Hashable) -> None:
        """Do the work of an account again that was held."""
        self._jobs.queue.put(_Release(account))

    def end_within(self, seconds: float) -> None:
        """Refuse all work of accounts that has not begun in so many seconds."""
        self._jobs.ends_at = min(self._jobs.ends_at, self._clock() + seconds)

    def _do_here(self) -> None:
        """Do the work that waits, on the caller's thread."""
        while not self._jobs.is_idle():
            with self._turn:
                self._jobs.sort(past_end=True)
                self._jobs.fair.release_all()
                _commit(self._session, self._jobs)

    def run(self, work: Callable[[Any], T], until: float = math.inf) -> Future[T]:
        """
        Have `work(session)` done as `submit` does, for a caller who only waits: here and now where no other work waits.

        Here it waits for other processes no longer than until the monotonic time `until`. Handing it to the thread and
        waiting for that takes longer than the work.
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
                if not self._closed and not self._jobs.ended and self._jobs.is_idle():
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
                self._session.until, self._session.since = math.inf, self._clock()
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
        self._session.until, self._session.since = until, self._clock()
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
    try:
        while jobs.wait():
            with turn:
                _commit(session, jobs)
    finally:
        try:
            with turn:
                end()
        finally:
            jobs.end()


def _commit(session: WriteSession, jobs: _Jobs) -> None:
    """Do work in one transaction, and tell its outcome."""
    first = jobs.fair.take()
    if first is None:
        return
    group = [first]
    session.until, session.since = math.inf, first.arrived
    began = jobs.clock()
    outcomes, worked = _outcomes(session, jobs, group)
    _charge_commit(jobs, group, jobs.clock() - began - worked)
    for job, (result, raised) in zip(group, outcomes, strict=True):
        if not job.begin():  # cancelled
            continue
        if raised is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(raised)


def _charge_commit(jobs: _Jobs, group: list[_Job], seconds: float) -> None:
    """Divide the time of a transaction's beginning and end among its work, by size."""
    total = sum(max(job.size, LEAST_SIZE) for job in group)
    for job in group:
        jobs.fair.charge(job.account, seconds * max(job.size, LEAST_SIZE) / total)


_Outcomes: TypeAlias = list[tuple[Any, BaseException | None]]


def _outcomes(session: WriteSession, jobs: _Jobs, group: list[_Job]) -> tuple[_Outcomes, float]:
    """Do a group's work, to which is added what waits; return the outcomes, and the seconds of work."""
    outcomes: _Outcomes = []
    worked = 0.0
    try:
        with session.transaction():
            for job in _growing(session, jobs, group):
                began = jobs.clock()
                outcomes.append(_outcome(session, job))
                seconds = jobs.clock() - began
                worked += seconds
                jobs.fair.charge(job.account, seconds)
    except BaseException as error:  # noqa: BLE001 - whatever it was, nobody's work is on disk, and each is told
        return [(None, error)] * len(group), worked
    return outcomes, worked


def _growing(session: WriteSession, jobs: _Jobs, group: list[_Job]) -> Iterator[_Job]:
    """Yield the work of a group, and add to it what waits, in turn, until the transaction has all that it may hold."""
    began = jobs.clock()
    size = 0
    account = group[0].account
    is_lone = all(job.account == account for job in group)
    for job in group:  # also what is added meanwhile
        size += job.size
        yield job
        if job is not group[-1] or len(group) >= session.max_group or size >= MAX_BYTES:
            continue
        jobs.sort()
        next_job = jobs.fair.peek()
        if next_job is None or size + next_job.size > MAX_BYTES:
            continue
        is_lone = is_lone and not jobs.fair.others_wait(account)
        if jobs.clock() - began < (LONE_SECONDS if is_lone else session.max_seconds):
            jobs.fair.take()
            group.append(next_job)


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


#: The probe's own queue among those of the accounts: it waits for one group of other work at most.
QUEUE: Final = "health"
#: Seconds that the first health check waits for the storage: there is no outcome before it that could be told.
PATIENCE: Final = 1.0
#: Seconds that each later check waits.
LATER_PATIENCE: Final = 0.05
#: Seconds after which a probe that still waits is a problem: a save that begins now would wait as well.
OVERDUE: Final = 5.0
_OVERDUE: Final = "Saves wait for longer than {:g} seconds; look which process holds the store."


class HealthProbe:
    """
    Probes with a write that `submit` begins; threads may share it.

    One probe runs at a time, however many threads ask. A writer that is busy for longer than they wait isn't ill: the
    outcome of the probe before stands until this one is `OVERDUE`. As long as no probe has ended, a check waits for
    `patience` seconds, afterwards for `LATER_PATIENCE` at most.
    """

    def __init__(self, submit: Callable[[], Future[None]], clock: Callable[[], float] = time.monotonic) -> None:
        self._submit = submit
        self._clock = clock
        self._since = 0.0
        self._lock = threading.Lock()
        self._running: Future[None] | None = None
        self._problem: str | None = None
        self._is_known = False

    def problem(self, patience: float) -> str | None:
        """Return the sentence that refuses a save, None where it would be done."""
        try:
            with self._lock:
                if self._running is None:
                    self._running, self._since = self._submit(), self._clock()
                running, since = self._running, self._since
        except UnavailableError as error:
            return str(error)
        wait_for(running, min(patience, LATER_PATIENCE) if self._is_known else patience)
        with self._lock:
            if not running.done():
                is_overdue = self._clock() - since >= OVERDUE
                return _OVERDUE.format(OVERDUE) if is_overdue and self._problem is None else self._problem
            raised = running.exception()
            problem = None if raised is None else str(raised)
            self._is_known = True
            if self._running is running:
                self._running, self._problem = None, problem
            return problem


def check_open(process: int, *, closed: bool) -> None:
    """Refuse the use of a storage that was `closed`, or opened in another process, which a fork left behind."""
    if closed:
        raise closed_error()
    if os.getpid() != process:  # neither the writer's thread nor connections and locks come along
        raise UnavailableError("The store was opened before a fork; open it in each process.", sent=False)
