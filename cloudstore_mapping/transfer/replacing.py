"""Make a store under the name of the dbm file it is made from: whole or not at all, and the file is kept."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from cloudstore_mapping.client.shelf import place_of_secret
from cloudstore_mapping.drafts import Draft
from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.sqlite_forks import connected
from cloudstore_mapping.storefiles import sync_folder

#: What the kept file's name ends with.
KEPT: str = ".old"


class Replacement:
    """
    A context for making the store at `draft`; if the block raises nothing it takes its place at `path`.

    A file that is there is then at `kept`. Between these steps it has both names, so whatever ends the process leaves
    either the file at `path` or the store.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()  # of a link it is the file that is replaced
        self._folder = Draft(self._path)
        self.draft = self._folder.path / self._path.name
        self.kept: Path | None = None

    def __enter__(self) -> Self:
        self._folder.path.mkdir(0o700)
        self._before = self._stamp()
        secret = place_of_secret(self._path)
        if secret.exists():
            shutil.copy2(secret, place_of_secret(self.draft))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with closing(self._folder):
            if kind is None:
                self._put_in_place()

    def _put_in_place(self) -> None:
        if self._stamp() != self._before:
            raise UnsupportedError(
                f"{self._path} was changed meanwhile and was left as it is; end the program that uses it, and import "
                "again."
            )
        self._take_in_log()
        secret = place_of_secret(self.draft)
        if secret.exists() and not place_of_secret(self._path).exists():
            secret.replace(place_of_secret(self._path))
        if self._path.exists() and self._path.stat().st_size:
            shutil.copymode(self._path, self.draft)
            self.kept = self._free_name()
            try:
                os.link(self._path, self.kept)
            except OSError:  # the file system has no hard links
                self._path.rename(self.kept)
        _replace(self.draft, self._path)
        sync_folder(self._path.parent)

    def _stamp(self) -> list[tuple[int, int] | None]:
        """Return what changes whenever the file does, or the log of SQLite's beside it."""
        files = (self._path, Path(f"{self._path}-wal"))
        return [(facts.st_size, facts.st_mtime_ns) if (facts := _facts(file)) else None for file in files]

    def _take_in_log(self) -> None:
        """Have SQLite bring its log into the file, which it does if nobody else uses it: it would be the store's."""
        logs = [log for end in ("-wal", "-shm", "-journal") if (log := Path(f"{self._path}{end}")).exists()]
        if logs and self._path.exists():
            with (
                suppress(sqlite3.Error),
                connected(f"{self._path.as_uri()}?mode=rw", uri=True) as connection,
            ):
                connection.execute("PRAGMA busy_timeout = 1000")
                connection.execute("PRAGMA journal_mode = DELETE")
            logs = [log for log in logs if log.exists()]
        if logs:
            raise UnsupportedError(
                f"{logs[0]} may belong to {self._path}, which was left as it is; end the program that uses it, or move "
                "it away."
            )

    def _free_name(self) -> Path:
        number = 1
        while (kept := Path(f"{self._path}{KEPT}{number if number > 1 else ''}")).exists():
            number += 1
        return kept


def _facts(file: Path) -> os.stat_result | None:
    return file.stat() if file.exists() else None


def _replace(draft: Path, path: Path) -> None:
    draft.replace(path)
