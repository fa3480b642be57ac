"""Storage: the interface of every storage engine: read, submit, close."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import ClassVar, Final, NamedTuple, Self, TypeAlias, TypeVar

from cloudstore_mapping.errors import OutcomeUnknownError, UnavailableError
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.threads import wait_for

T = TypeVar("T")

#: Progress callback, called with the amount of finished work and the total.
Report: TypeAlias = Callable[[int, int], object]
#: Seconds of one step of background work, during which writers wait, and of the pause between two steps, in which other
#: processes can write.
STEP: Final = 0.005
PAUSE: Final = 0.01
#: Bytes of values in one commit. Larger work is alone in its transaction.
MAX_BYTES: Final = 4 * 2**20
#: Queue of the health probe beside those of the accounts: it waits for at most one group of other work.
PROBE_QUEUE: Final = "health"
#: Maximum seconds of the first health check: there is no earlier outcome to return.
PATIENCE: Final = 1.0
#: Maximum seconds of each later check.
LATER_PATIENCE: Final = 0.05
#: Seconds after which a waiting probe is a problem: a save begun now would wait as well.
OVERDUE: Final = 5.0
_OVERDUE: Final = "Saves wait for longer than {:g} seconds; look which process holds the store."


def closed_error() -> UnavailableError:
    """Return the error for the use of a closed store."""
    return UnavailableError("The store is closed; open it again.", sent=False, retry_after=1.0)


def ending_error() -> UnavailableError:
    """Return the error for work not started before the end of the service."""
    return UnavailableError("The service is ending; try again once it is back.", sent=False, retry_after=1.0)


def not_open(*, closed: bool) -> UnavailableError:
    """Return the error of a storage used after `close`, or in a forked process, which has to open its own."""
    if closed:
        return closed_error()
    return UnavailableError("The store was opened before a fork; open it in each process.", sent=False)


class OperatorError(UnavailableError):
    """A failure of the store, with a remedy for its operator; clients of a service get `for_clients` instead."""

    for_clients = "The service can't use its store at present; try again later. The reason is in its log."


class NoSpaceError(OperatorError):
    """The disk has no room for a write, or for opening the store."""

    for_clients = "The service's disk is full; its operator has to free space."


class DiskFullError(NoSpaceError):
    """The disk has no room for a transaction, which was rolled back; a smaller one may fit."""


class MovedMeanwhileError(OutcomeUnknownError):
    """The store's file was moved during a write, which may be lost."""

    for_clients = "This may be stored or not; load it to see, or try again. The reason is in the service's log."


class RolledBack:
    """Base of results of work in a writing transaction that ask for its writes to be rolled back."""


class Compaction(NamedTuple):
    """
    Result of `Storage.compact`: whether the file was written anew, or had no unused space.

    `pending` bytes go back to the disk later, after reads of an older snapshot end.
    """

    is_rewritten: bool
    pending: int = 0


class Storage(ABC):
    """
    Storage of accounts and files; thread-safe.

    Engine errors are raised as `UnavailableError` with a message for the service's operator, as is any use after
    `close`; and as `OutcomeUnknownError` if a commit may or may not have happened.
    """

    #: True if readers exclude each other and the writer, as in memory.
    reads_in_turn: bool = False
    #: True if `read` waits for a network; such calls must not run on the event loop.
    waits: ClassVar[bool] = False
    #: Maximum length of a file name in UTF-8 bytes.
    max_name_bytes: ClassVar[int] = 2**30

    @abstractmethod
    def read(self) -> AbstractContextManager[Transaction]:
        """
        Return a read transaction for the caller's thread: a snapshot of one moment.

        On disk or over a network it never waits for a writer; in memory it may wait for running work.
        """

    @abstractmethod
    def submit(self, work: Callable[[Transaction], T], account: Hashable = None, size: int = 0) -> Future[T]:
        """
        Run `work` in a writing transaction; the future completes after the commit is on disk.

        Accounts take turns in the queue; the service's own work (`account` None) has a turn as well. `size` is the
        approximate number of bytes written: large work gets a transaction of its own.

        Reads in `work`, except listings, still hold when it writes: writers run one after another, or after a conflict
        with another process `work` is rolled back and run again. So it must have no side effects besides its writes and
        its return value. An exception from `work` rolls back its writes, becomes the future's exception, and doesn't
        affect other work. A `RolledBack` as return value rolls back its writes, too.
        """

    def run(self, work: Callable[[Transaction], T], until: float = math.inf) -> Future[T]:  # noqa: ARG002
        """
        Do as `submit`, possibly on the caller's thread; for callers with nothing else to wait for.

        After the monotonic time `until` it stops waiting for other processes and may raise `UnavailableError`.
        """
        return self.submit(work)

    def others_wait(self, account: Hashable) -> bool:  # noqa: ARG002
        """Return True if other work is queued; call it within an account's work."""
        return False

    def hold(self, account: Hashable) -> None:  # noqa: B027 - for engines with a queue
        """Start no more work of an account until `release`; call it only within the account's work."""

    def release(self, account: Hashable) -> None:  # noqa: B027 - for engines with a queue
        """Resume the work of an account after `hold`."""

    def end_within(self, seconds: float) -> None:  # noqa: B027 - for engines with a queue
        """Refuse all work not started within `seconds`; `close` follows."""

    def in_child(self) -> Storage | None:
        """Return the storage of a forked process if it is a copy of memory; None if the process must open its own."""
        return None

    def compact(self) -> Compaction | None:
        """
        Give unused space back to the disk and return the result, or None if the engine reuses space by itself.

        Raises `UnavailableError`, with nothing changed, if that fails.
        """
        return None

    def shorten(self) -> None:  # noqa: B027 - some engines do so themselves
        """
        Take a step to truncate a file longer than its content; call it every few seconds, on a background thread.

        Readers and writers continue meanwhile, and none waits. Raises `UnavailableError` on failure.
        """

    @abstractmethod
    def problem(self) -> str | None:
        """Return the present reason for failing reads or saves, None if they succeed; answers quickly."""

    def healthy(self) -> bool:
        """Return True if reads and saves succeed at present; answers quickly."""
        return self.problem() is None

    def check_writable(self) -> None:  # noqa: B027 - some engines open writable stores only
        """Raise `PermissionError` if the store can't be written to until its permissions change."""

    def look_for_damage(self) -> None:  # noqa: B027 - some engines do so themselves
        """Run a quick integrity check; after damage is found, saves are refused and `healthy` returns False."""

    @abstractmethod
    def size(self) -> int:
        """Return the size on disk in bytes, 0 in memory."""

    def check_can_wait(self) -> None:  # noqa: B027 - needed in memory only: readers wait for the writer there
        """Raise `RuntimeError` in a signal handler if waiting for a reader would deadlock."""

    def withdraw(self) -> None:  # noqa: B027 - for engines with a writer thread
        """After an interrupt of this thread, cancel its pending write, or wait for its end."""

    @abstractmethod
    def hurry(self) -> None:
        """From now on wait only briefly for other processes or a lost server; `close` follows."""

    @abstractmethod
    def close(self) -> None:
        """Finish the submitted work, except if others block it (see `hurry`), then close all connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class HealthProbe:
    """
    Health probe: a small write, begun by `submit`. Thread-safe.

    One probe runs at a time, shared by all callers. A busy writer is healthy: the outcome of the earlier probe holds
    until the running one is `OVERDUE`. The first check waits up to `patience` seconds, each later one up to
    `LATER_PATIENCE`.
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
        """Return the present reason for failing saves, or None."""
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
