"""Storage: the interface of every storage engine: read, submit, close."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import ClassVar, Final, Self, TypeAlias, TypeVar

from cloudstore_mapping.service.storage.sql import Transaction

T = TypeVar("T")

#: Progress callback, called with the amount of finished work and the total.
Report: TypeAlias = Callable[[int, int], object]
#: Seconds of one step of background work, during which writers wait, and of the pause between two steps, in which other
#: processes can write.
STEP: Final = 0.005
PAUSE: Final = 0.01


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
        affect other work.
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

    def compact(self) -> None:  # noqa: B027 - some engines do so themselves
        """Return unused space to the disk; raise `UnavailableError`, with nothing changed, if that fails."""

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
