"""Identity of an open SQLite store: notice that its file or its log was moved, deleted, replaced or overwritten."""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeAlias

from cloudstore_mapping.errors import OutcomeUnknownError, UnavailableError
from cloudstore_mapping.service.storage.sqlite_lineage import is_of_another_file

_log: Final = logging.getLogger(__name__)

#: Device and inode of a file; None for a path that leads to none.
_Id: TypeAlias = tuple[int, int] | None

LOST: Final = "The store's {} was moved, deleted or replaced while the store was open; put it back, or start again."
_LOST_MEANWHILE: Final = (
    "The store's {} was moved, deleted or replaced while this was written, and it may be lost; put it back, then look."
)


class Identity:
    """
    Device and inode of the file at `path`, and of the log beside it, since they were opened.

    SQLite keeps using the files it opened, even if their paths lead elsewhere by now: a commit succeeds, and whoever
    opens the path later misses it. SQLite doesn't notice either that `cp` writes another store's bytes into the file.
    Only checkpoints change the file, so its content is checked whenever its modification time has changed.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        resolved = os.path.realpath(path)  # SQLite follows links before it adds an ending
        self._log_path, self._index_path = f"{resolved}-wal", f"{resolved}-shm"
        self._file = _identity(self._path)
        self._files = [("file", self._path, self._file)]
        self._changed = _changed(self._path)
        self._is_overwritten = False
        self._is_committing = False
        self._looking = threading.Lock()

    def add_log(self) -> None:
        """Include the log and its index from now on; the first transaction has made them."""
        for path in (self._log_path, self._index_path):
            self._files.append((f"{path[-4:]} file", path, _identity(path)))

    def check(self) -> None:
        """Raise `UnavailableError` where one of the files is gone from its path: nothing was written."""
        if (lost := self.lost()) is not None:
            raise UnavailableError(LOST.format(lost), retry_after=1.0)

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Attribute changes of the file within the block to a checkpoint of this commit."""
        self._is_committing = True
        try:
            yield
        finally:
            try:
                self._changed = _changed(self._path)
            finally:
                self._is_committing = False

    def check_committed(self) -> None:
        """Raise `OutcomeUnknownError` where one of the files is gone from its path, though a commit succeeded."""
        if (lost := self.lost()) is not None:
            raise OutcomeUnknownError(_LOST_MEANWHILE.format(lost), error="OutcomeUnknown")

    def lost(self) -> str | None:
        """Return the name of a file moved, replaced or overwritten since it was opened; None if all are there."""
        for name, path, opened in self._files:
            if opened is None or _identity(path) != opened:
                return name
        return "file" if self.is_overwritten() else None

    def is_overwritten(self) -> bool:
        """Return True if the file holds another store by now, as after ``cp other.db store.db``."""
        changed = _changed(self._path)
        if self._is_overwritten or changed == self._changed or self._is_committing:
            return self._is_overwritten
        if _identity(self._path) != self._file:
            return False  # the path leads to another file, and this one is unchanged
        if not self._looking.locked():  # one thread is enough: the log may be long
            with self._looking:  # which an interrupt can't leave behind, unlike one that is only tried for
                self._is_overwritten = is_of_another_file(Path(self._log_path), Path(self._path), lambda: True)
                self._changed = changed
        return self._is_overwritten

    def set_log_aside(self, what_happened: str) -> None:
        """Rename the log, so that it is never applied to the file at the path now."""
        Path(self._index_path).unlink(missing_ok=True)  # first: beside the log no other file is opened
        with suppress(FileNotFoundError):  # another process has set it aside
            kept = f"{self._log_path}.{secrets.token_hex(4)}.lost"
            os.rename(self._log_path, kept)  # noqa: PTH104 - a text
            _log.error("The store's file was %s while it was open; its last writes are in %s.", what_happened, kept)

    def part_from_log(self, connection: sqlite3.Connection) -> None:
        """
        Take the log away from the path that the store's file is gone from, before the last connection closes.

        SQLite leaves it there. A file that was moved would lack its last commits, and SQLite would replay them over
        another one that took its place. So they are carried over into the file that was moved. Of a deleted file the
        log is kept under another name, unless there is nothing at the path that it could harm.
        """
        if _identity(self._path) == self._file or any(_identity(path) != opened for _, path, opened in self._files[1:]):
            return
        if self._is_kept():
            # Where no other process has the file open this carries the log over and removes it. That the file is
            # no longer at its path is an error, but only of what SQLite does after that.
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA busy_timeout = 0")
                connection.execute("PRAGMA journal_mode = DELETE")
        # An empty log may be in use by now, with the file in the place of ours.
        elif os.path.exists(self._path) and os.path.getsize(self._log_path):  # noqa: PTH110, PTH202 - a text
            self.set_log_aside("replaced")

    def _is_kept(self) -> bool:
        """Whether the file still has a name somewhere, as far as the system tells."""
        with suppress(OSError):
            for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - a text
                with suppress(OSError):
                    found = os.stat(f"/proc/self/fd/{number}")  # noqa: PTH116 - a text
                    if (found.st_dev, found.st_ino) == self._file:
                        return found.st_nlink > 0
        return False


def _changed(path: str) -> int:
    """Return the modification time of a file in ns, 0 for no file."""
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116 - a text, looked at before each read and write
    except OSError:
        return 0


def _identity(path: str) -> _Id:
    try:
        found = os.stat(path)  # noqa: PTH116 - a text, looked at before and after each commit
    except OSError:
        return None
    return found.st_dev, found.st_ino
