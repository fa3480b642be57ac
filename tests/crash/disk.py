"""What is done to the files in a folder: each write, sync and removal, in order, and which of them fails."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True)
class Created:
    """A file that was not there is there; until the folder is synced its name may be lost."""

    file: str


@dataclass(frozen=True)
class Written:
    """Bytes of a file have other values; until it is synced any of its sectors may have the old ones."""

    file: str
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncated:
    """A file has another size."""

    file: str
    size: int


@dataclass(frozen=True)
class Synced:
    """All that was done to a file is on the disk."""

    file: str


@dataclass(frozen=True)
class Removed:
    """A file is there no longer; until the folder is synced it may come back."""

    file: str


@dataclass(frozen=True)
class Linked:
    """A file has one more name."""

    file: str
    to: str


@dataclass(frozen=True)
class Renamed:
    """A file, or a folder with all in it, has another name, in the place of what had it before."""

    file: str
    to: str


@dataclass(frozen=True)
class FolderSynced:
    """Which files there are in a folder is on the disk."""

    folder: str = ""


@dataclass(frozen=True)
class Told:
    """Somebody was told that so much is done; nothing of the disk's."""

    count: int


Event: TypeAlias = Created | Written | Truncated | Synced | Removed | Linked | Renamed | FolderSynced | Told

#: Is asked before an event, and returns SQLite's code of the error in its place; 0 lets it happen.
Fault: TypeAlias = Callable[[Event], int]


class Disk:
    """
    What was done to the files in a folder.

    Attributes
    ----------
    log
        What happened, in order.
    fault
        What is asked before each event; of a write that fails, a half was done.
    """

    def __init__(self, folder: Path) -> None:
        self.log: list[Event] = []
        self.fault: Fault = lambda _: 0
        self._folder = folder

    def tell(self, count: int) -> None:
        """Write down that somebody was told that so much is done."""
        self.log.append(Told(count))

    def name_of(self, path: str) -> str | None:
        """Return the name of a file in the folder, None for others and for what is lost at any crash."""
        found = Path(path)
        return found.name if found.parent == self._folder and not path.endswith("-shm") else None

    def happens(self, event: Event, do: Callable[[], int]) -> int:
        """Do what an event is, unless that fails, and return SQLite's code."""
        code = self.fault(event)
        if code != sqlite3.SQLITE_OK:
            return code
        if not isinstance(event, Synced):
            self.log.append(event)  # what is begun may be on the disk already, what is to be synced only once it is
            return do()
        code = do()
        if code == sqlite3.SQLITE_OK:
            self.log.append(event)
        return code
