"""Room on the disk of an SQLite file: the last of it is kept, for a delete takes some before it makes any."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from cloudstore_mapping.errors import UnavailableError

FULL: Final = "The store's disk is full; free some space, then try again."

#: Bytes that the log grows to as a rule before it is carried over into the file, and some more: 1,000 pages of 4 KiB.
LOG: Final = 5 * 2**20
#: The part of a small disk that is kept at most.
PART: Final = 4


class Disk(Protocol):
    """What `shutil.disk_usage` tells of a disk, in bytes."""

    @property
    def total(self) -> int:
        """How large it is; 0 where that isn't told."""

    @property
    def free(self) -> int:
        """How much of it is free."""


class Space:
    """
    The disk that the SQLite file at `path` is on, for one transaction after another; `look` tells of a folder's disk.

    It is looked at once in a transaction, for that takes as long as a tenth of a small write.
    """

    def __init__(self, path: Path, look: Callable[[str], Disk] = shutil.disk_usage) -> None:
        self._look = look
        self._folder = str(path.parent)
        self._log = Path(f"{path}-wal")
        self.begin()

    def begin(self) -> None:
        """Begin a transaction."""
        self._taken = 0
        self._disk: Disk | None = None

    def take(self, size: int, unused: Callable[[], int]) -> None:
        """
        Take so many bytes; `UnavailableError` if they and those before would take what is kept.

        `unused` returns how many bytes of the file itself are free. All is written twice: to the log, then to the file.
        """
        if self._disk is None:
            self._disk = self._look(self._folder)
        disk = self._disk
        needed = 2 * (self._taken + size)
        if disk.free < needed + 2 * LOG and disk.total > 0:  # some file systems don't tell
            needed += self._kept(disk)
            if disk.free < needed and disk.free + unused() < needed:
                raise UnavailableError(FULL, retry_after=1.0)
        self._taken += size

    def _kept(self, disk: Disk) -> int:
        # What is in the log may have to be added to the file before the log is written from its beginning again.
        try:
            log = self._log.stat().st_size
        except FileNotFoundError:
            log = 0
        return min(max(log, LOG), disk.total // PART)
