"""The one thread that writes: all work that waits goes into one transaction, and is answered after its commit."""

from __future__ import annotations

import atexit
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from cloudstore_mapping.errors import UnavailableError

T = TypeVar("T")

#: Pieces of work in one commit: enough that a sync is shared by many, few enough that the first doesn't wait long.
MAX_GROUP: Final = 256

_Job = tuple[Callable[[Any], Any], "Future[Any]"]


class Session(ABC):
    """A connection that `GroupWriter` writes with, and which it hands to each piece of work."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """Begin, then commit, or roll back and raise `UnavailableError` if the engine fails."""

    @abstractmethod
    def savepoint(self) -> AbstractContextManager[None]:
        """Keep one piece of work apart from the others in the transaction: undo what it did if it raises."""

    @abstractmethod
    def intact(self) -> bool:
        """Whether the transaction still stands; an engine that fails in the middle may have undone all of it."""


class GroupWriter:
    """
    Runs work on its own thread, which alone writes with `session` from now on and calls `end` at last.

    One that is dropped without `close` finishes what was submitted all the same, and so does a program that ends.
    """

    def __init__(self, session: Session, end: Callable[[], None]) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        # A daemon, so that a program that forgets to close can end; it holds no reference to this object.
        self._thread = threading.Thread(
            target=_write, args=(session, self._jobs, end), name="cloudstore-writer", daemon=True
        )
        self._thread.start()
        _writing[self._thread] = self._jobs
        # Without waiting: whoever drops this may hold a lock that the work still needs, or be the thread itself.
        weakref.finalize(self, self._jobs.put, None).atexit = False

    def submit(self, work: Callable[[Any], T]) -> Future[T]:
        """Have `work(session)` done; the future completes after the commit."""
        future: Future[T] = Future()
        with self._closing:
            if self._closed or not self._thread.is_alive():  # ended with the program, or left behind by a fork
                raise UnavailableError("The store is closed; open it again.", sent=False, retry_after=1.0)
            self._jobs.put((work, future))
        return future

    def close(self) -> None:
        """Finish what was submitted, and wait for the thread to end, unless it is the caller's."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()


_writing: Final[weakref.WeakKeyDictionary[threading.Thread, SimpleQueue[_Job | None]]] = weakref.WeakKeyDictionary()


@atexit.register
def _finish_all() -> None:
    for thread, jobs in list(_writing.items()):
        jobs.put(None)
        thread.join()


def _write(session: Session, jobs: SimpleQueue[_Job | None], end: Callable[[], None]) -> None:
    try:
        while (job := jobs.get()) is not None:
            group = [job]
            last = False
            try:
                while len(group) < MAX_GROUP and not last:
                    if (job := jobs.get_nowait()) is None:
                        last = True
                    else:
                        group.append(job)
            except Empty:
                pass
            _commit(session, [job for job in group if job[1].set_running_or_notify_cancel()])
            del job, group  # a thread that waits must not keep the last values alive
            if last:
                return
    finally:
        end()


def _commit(session: Session, group: list[_Job]) -> None:
    outcomes: list[tuple[Any, BaseException | None]] = []
    try:
        with session.transaction():
            for work, _ in group:
                try:
                    with session.savepoint():
                        result = work(session)
                except BaseException as error:
                    if not session.intact():
                        raise
                    outcomes.append((None, error))
                else:
                    outcomes.append((result, None))
    except BaseException as error:  # noqa: BLE001 - whatever it was, nobody's work is on disk, and each is told
        outcomes = [(None, error)] * len(group)
    for (_, future), (result, raised) in zip(group, outcomes, strict=True):
        if raised is None:
            future.set_result(result)
        else:
            future.set_exception(raised)
