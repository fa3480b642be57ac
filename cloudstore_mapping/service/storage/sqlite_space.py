"""Room on the disk of an SQLite file: the last of it is kept, for a delete takes some before it makes any."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from cloudstore_mapping.errors import UnavailableError

FULL: Final = "The store's disk is full; free some space, then try again."
READ_ONLY: Final = "The store's file system is read-only; mount it for writing, then start again."

#: Bytes that the log grows to as a rule before it is carried over into the file, and some more: 1,000 pages of 4 KiB.
LOG: Final = 5 * 2**20
#: The part of a small disk that is kept at most.
PART: Final = 4
#: Bytes of a log that is given back once the disk gets full, and the part of a small disk that it may be.
LARGE_LOG: Final = 2**20
LARGE_LOG_PART: Final = 16


class Disk(Protocol):
    """What `disk_of` tells of a disk, in bytes."""

    @property
    def total(self) -> int:
        """How large it is; 0 where that isn't told."""

    @property
    def free(self) -> int:
        """How much of it is free."""

    @property
    def read_only(self) -> bool:
        """Whether its file system takes no writes, which a failing disk may make of it while it is in use."""


class _Disk(NamedTuple):
    total: int
    free: int
    read_only: bool


def disk_of(folder: str) -> Disk:
    """Return the disk that a folder is on."""
    if not hasattr(os, "statvfs"):
        total, _, free = shutil.disk_usage(folder)
        return _Disk(total, free, read_only=False)
    found = os.statvfs(folder)
    return _Disk(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, bool(found.f_flag & os.ST_RDONLY))


class Space:
    """
    The disk that the SQLite file at `path` is on, for one transaction after another; `look` tells of a folder's disk.

    It is looked at once in a transaction, for that takes as long as a tenth of a small write.
    """

    def __init__(self, path: Path, look: Callable[[str], Disk] = disk_of) -> None:
        self._look = look
        self._folder = str(path.parent)
        self._log = Path(f"{path}-wal")
        self.begin()

    def begin(self) -> None:
        """Begin a transaction."""
        self._taken = 0
        self._disk: Disk | None = None

    def log_is_in_the_way(self) -> bool:
        """Return whether the disk gets full and the log is large; to empty it makes room for deletes."""
        self._disk = self._look(self._folder)
        log = self._log_size() if self._disk.free < 4 * LOG else 0
        if self._disk.total <= 0 or log <= min(LARGE_LOG, self._disk.total // LARGE_LOG_PART):
            return False
        self._disk = None  # what is free will be another number
        return True

    def take(self, size: int, unused: Callable[[], int]) -> None:
        """
        Take so many bytes; `UnavailableError` where the disk is read-only, or they would take what is kept of it.

        `unused` returns how many bytes of the file itself are free. All is written twice: to the log, then to the file.
        """
        if self._disk is None:
            self._disk = self._look(self._folder)
        disk = self._disk
        if disk.read_only:  # before a commit fails, after which nothing is written any more
            raise UnavailableError(READ_ONLY, retry_after=1.0)
        needed = 2 * (self._taken + size)
        if disk.free < needed + 2 * LOG and disk.total > 0:  # some file systems don't tell
            needed += self._kept(disk)
            if disk.free < needed and disk.free + unused() < needed:
                raise UnavailableError(FULL, retry_after=1.0)
        self._taken += size

    def _kept(self, disk: Disk) -> int:
        # What is in the log may have to be added to the file before the log is written from its beginning again.
        return max(self._log_size(), min(LOG, disk.total // PART))

    def _log_size(self) -> int:
        try:
            return self._log.stat().st_size
        except FileNotFoundError:
            return 0
