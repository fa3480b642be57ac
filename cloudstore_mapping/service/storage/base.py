"""The storage contract: transactions and the records they return."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import ClassVar, Final, Self, TypeAlias, TypeVar

from cloudstore_mapping.service.storage.sql import Transaction

T = TypeVar("T")

#: Progress callback: called with the amount of finished work, and the total.
Report: TypeAlias = Callable[[int, int], object]
#: Seconds of a step of background work, which is as long as writers wait for it; and between two steps, in which other
#: processes can write as well.
STEP: Final = 0.005
PAUSE: Final = 0.01


class Storage(ABC):
    """
    A store of accounts and files; threads may share it.

    An engine's own errors leave it as `UnavailableError`, with a sentence for the service's owner, so does any use
    after `close`; and as `OutcomeUnknownError` where it can't tell whether a commit was done.
    """

    #: Whether readers take turns with each other and with the writer, as in memory.
    reads_in_turn: bool = False
    #: Whether `read` waits for a network, so that it is nothing for a thread on which everybody is answered.
    waits: ClassVar[bool] = False
    #: The longest name of a file that it can keep, in UTF-8.
    max_name_bytes: ClassVar[int] = 2**30

    @abstractmethod
    def read(self) -> AbstractContextManager[Transaction]:
        """
        Return a transaction to read with, on the caller's thread: all it reads is of one moment.

        On a disk or beyond a network it never waits for a writer; in memory it may wait for work that is being done.
        """

    @abstractmethod
    def submit(self, work: Callable[[Transaction], T], account: Hashable = None, size: int = 0) -> Future[T]:
        """
        Run `work` in a writing transaction; the future completes after the commit is on disk.

        Accounts are served in turn; the service's own work, of no account, has a turn as well. `size` is about how many
        bytes it writes: large work is alone in its transaction.

        What `work` reads still stands when it writes, but for listings: writers come one after another, or else where
        another process was in the way, `work` is undone and done again. So it leaves nothing behind but what it writes
        and returns. What `work` raises undoes what it wrote, is the future's exception, and touches nobody else's work.
        """

    def run(self, work: Callable[[Transaction], T], until: float = math.inf) -> Future[T]:  # noqa: ARG002
        """
        Do as `submit` for a caller who waits for nothing else, so that it may be done on the caller's thread.

        From the monotonic time `until` on it may wait no longer for other processes, and raise `UnavailableError`.
        """
        return self.submit(work)

    def others_wait(self, account: Hashable) -> bool:  # noqa: ARG002
        """Return True in the middle of an account's work if other work waits to be written."""
        return False

    def hold(self, account: Hashable) -> None:  # noqa: B027 - for engines with a queue
        """Begin no more work of an account until `release`; only in the middle of its work."""

    def release(self, account: Hashable) -> None:  # noqa: B027 - for engines with a queue
        """Do the work of an account again that was held."""

    def end_within(self, seconds: float) -> None:  # noqa: B027 - for engines with a queue
        """Refuse all work that has not begun in so many seconds: `close` comes then."""

    def in_child(self) -> Storage | None:
        """Return what a forked process goes on with if that is a copy of memory; None where it opens its own."""
        return None

    def compact(self) -> None:  # noqa: B027 - some engines do so themselves
        """Give unused space back to the disk; `UnavailableError` where that fails, and nothing is changed."""

    @abstractmethod
    def problem(self) -> str | None:
        """Return why reads or saves fail at present, None where they don't; it is soon known."""

    def healthy(self) -> bool:
        """Whether reads and saves succeed at present; it is soon known."""
        return self.problem() is None

    def check_writable(self) -> None:  # noqa: B027 - some engines open nothing that they can't write to
        """Raise `PermissionError` where nothing can be written until its owner changes that."""

    def look_for_damage(self) -> None:  # noqa: B027 - some engines do so themselves
        """Find damage that is soon found: saves are refused then, and it is not healthy."""

    @abstractmethod
    def size(self) -> int:
        """Return how many bytes it takes on its disks, 0 in memory."""

    def check_can_wait(self) -> None:  # noqa: B027 - for a store in memory, whose readers wait for the writer
        """Raise `RuntimeError` in a signal handler whose wait for a reader would never end."""

    def withdraw(self) -> None:  # noqa: B027 - for engines whose writes are done by another thread
        """After an interrupt of this thread, cancel the write that it waits for, or wait until it is done."""

    @abstractmethod
    def hurry(self) -> None:
        """Wait no longer than a moment for other processes or a lost server from now on: `close` comes soon."""

    @abstractmethod
    def close(self) -> None:
        """Finish what was submitted, but for what others don't let it (see `hurry`), then let go of all connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
