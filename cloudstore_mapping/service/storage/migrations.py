"""Schema migrations of SQLite stores."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

from cloudstore_mapping.errors import UnavailableError, UnsupportedError
from cloudstore_mapping.service.storage.renaming import old_names_among
from cloudstore_mapping.service.storage.sqlite_files import (
    change_if_there,
    disk_of,
    is_of_new_file,
    journal_head,
    primary_code,
)
from cloudstore_mapping.sqlite_forks import connected
from cloudstore_mapping.storefiles import APPLICATION_ID, SMALLEST, refuse_sidecar


@cache  # read for each opened store
def schema_steps(engine: str) -> tuple[str, ...]:
    """Return the SQL of all schema_steps, from ``schema/{engine}-1.sql`` on."""
    folder = resources.files("cloudstore_mapping.service.storage") / "schema"
    numbered = {
        int(file.name.removeprefix(f"{engine}-").removesuffix(".sql")): file.read_text("utf-8")
        for file in folder.iterdir()
        if file.name.startswith(f"{engine}-")
    }
    return tuple(numbered[number] for number in range(1, len(numbered) + 1))


#: The first schema that knows which names are of version 0.1.0.
WITH_OLD_NAMES: Final = 4

#: How often it is tried to switch a file to WAL while others switch it as well.
SWITCHES: Final = 100


def check_file(path: Path) -> None:
    """
    Raise `UnsupportedError` if there is a file at `path` that isn't ours, or not whole; an empty one may become ours.

    It is looked at as a file that nobody changes, for else SQLite would finish what another program's log holds. And
    by SQLite, for a file that Python closes takes along all locks of this process on it.
    """
    refuse_sidecar(path)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return
    if not size:
        return
    with connected(f"{path.as_uri()}?mode=ro&immutable=1", uri=True) as connection:
        try:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        except sqlite3.DatabaseError as error:
            if primary_code(error) == sqlite3.SQLITE_NOTADB:
                if is_of_new_file(journal_head(Path(f"{path}-journal"))):
                    return
                raise _foreign(path, "no CloudStore file") from error
            if primary_code(error) == sqlite3.SQLITE_CORRUPT:
                return  # another process may be writing it, or a log hold the rest
            raise
    if application != APPLICATION_ID:
        raise _foreign(path, "no CloudStore file" if size < SMALLEST else "another program's SQLite file")
    # SQLite would fill a half page up with zeros. After a crash there may be one, and a log to mend it with.
    if size % page_size and not any(Path(f"{path}{end}").exists() for end in ("-wal", "-journal")):
        raise damaged(path)


def _foreign(path: Path | None, kind: str) -> UnsupportedError:
    return UnsupportedError(f"{path} is {kind} and was left as it is; choose another name, or move it away.")


class DamagedFileError(UnsupportedError):
    """A store's file is damaged."""


def damaged(path: Path) -> DamagedFileError:
    """Return the error for a file of ours that can't be read."""
    return DamagedFileError(f"{path} is damaged and was left as it is; restore a backup of it.")


def not_opened(path: Path, error: sqlite3.Error) -> PermissionError:
    """Return the error for a file that SQLite can't open: it writes beside one that is only read too."""
    is_read_only = disk_of(str(path.parent)).read_only
    if is_read_only and not path.exists():
        return PermissionError(f"{path} can't be made on a read-only file system; choose another folder.")
    if not path.exists() or os.access(path.parent, os.W_OK | os.X_OK):
        return PermissionError(f"{path} can't be opened ({error}); look at its permissions.")
    if is_read_only:
        return PermissionError(
            f"{path} can't be opened on a read-only file system, for SQLite writes beside it even to read. Copy it, "
            "with its -wal file if there is one, to a folder that can be written to, and use the copy."
        )
    return PermissionError(
        f"{path} can't be opened in a read-only folder, for SQLite writes beside it even to read. Look at the folder's "
        "permissions."
    )


def migrate(connection: sqlite3.Connection, path: Path | None) -> None:
    """
    Bring the database at `path` to the newest schema, making an empty one ours; None stands for memory.

    Raises `UnsupportedError`, with the file untouched, where it isn't ours or is of a newer version.
    """
    steps = schema_steps("sqlite")
    connection.execute("BEGIN")  # so that all facts are of one moment: another process may be making the file
    version = _version(connection, path, newest=len(steps))
    connection.execute("COMMIT")
    if version < len(steps):
        connection.execute("BEGIN IMMEDIATE")
        change_if_there(connection)
        # Asked again: another process may have done it while this one waited.
        before = _version(connection, path, newest=len(steps))
        for number in range(before, len(steps)):
            for statement in _statements(steps[number]):
                connection.execute(statement)
        if 0 < before < WITH_OLD_NAMES:
            _note_old_names(connection)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(steps)}")
        connection.execute("COMMIT")
        # While the first token is in the log alone, the log seems to fit any file without one.
        connection.execute("PRAGMA wal_checkpoint").fetchall()
    if _journal_mode(connection) != "wal" and path is not None:
        raise UnsupportedError(f"The file system of {path} can't be shared between processes; use a local disk.")


def _note_old_names(connection: sqlite3.Connection) -> None:
    """Note which files have names of version 0.1.0, before the first file is added by this one."""
    rows = connection.execute("SELECT account_id, name FROM files WHERE instr(name, '%')").fetchall()
    connection.executemany("INSERT INTO old_names (account_id, name) VALUES (?, ?)", old_names_among(rows))
    connection.execute("INSERT INTO name_scans VALUES (?)", (time.time(),))


def schema_version(connection: sqlite3.Connection, path: Path) -> int:
    """Return the number of the schema that the database has, 0 for none; raises as `migrate` does."""
    return _version(connection, path, newest=newest())


def newest() -> int:
    """Return the number of today's schema."""
    return len(schema_steps("sqlite"))


def _journal_mode(connection: sqlite3.Connection) -> str:
    """Return the mode that the database is in after it was switched to WAL, if it can be."""
    for _ in range(SWITCHES):
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if primary_code(error) != sqlite3.SQLITE_BUSY:
                raise
        # SQLite doesn't wait where two switch at once, but it does for a transaction.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    raise UnavailableError("Other processes hold the store; try again.", retry_after=1.0)


def _version(connection: sqlite3.Connection, path: Path | None, *, newest: int) -> int:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and (application or version or tables):
        raise _foreign(path, "another program's SQLite file")
    if version > newest:
        raise UnsupportedError(
            f"{path} was written by a newer version of cloudstore-mapping and was left as it is; upgrade, then open it."
        )
    return int(version)


def _statements(script: str) -> Iterator[str]:
    # Connection.executescript would commit the transaction that all of them belong to.
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
