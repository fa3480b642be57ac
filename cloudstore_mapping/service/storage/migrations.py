"""SQLite schema migrations, and recognition of CloudStore files."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Final, TypeAlias

from cloudstore_mapping.errors import UnavailableError, UnsupportedError
from cloudstore_mapping.service.storage.base import NoSpaceError
from cloudstore_mapping.service.storage.renaming import OLD_NAME, must_be_renamed, old_names_among
from cloudstore_mapping.service.storage.sqlite_files import (
    FULL,
    INCREMENTAL,
    DiskReserve,
    change_if_there,
    disk_of,
    holds_data,
    is_of_new_file,
    journal_head,
    no_more_files,
    primary_code,
    unavailable,
)
from cloudstore_mapping.sqlite_forks import connected
from cloudstore_mapping.storefiles import APPLICATION_ID, SMALLEST, refuse_sidecar

_log: Final = logging.getLogger(__name__)


def announce(place: str, before: int, after: int) -> None:
    """Log that a store was migrated."""
    _log.warning(
        "%s was migrated from schema %d to %d; older versions of cloudstore-mapping can't open it any more.",
        *(place, before, after),
    )


@cache  # used for each opened store
def schema_steps(engine: str) -> tuple[str, ...]:
    """Return the SQL of all schema steps of an engine, from ``schema/{engine}-1.sql`` on."""
    folder = resources.files("cloudstore_mapping.service.storage") / "schema"
    numbered = {
        int(file.name.removeprefix(f"{engine}-").removesuffix(".sql")): file.read_text("utf-8")
        for file in folder.iterdir()
        if file.name.startswith(f"{engine}-")
    }
    return tuple(numbered[number] for number in range(1, len(numbered) + 1))


#: The first schema with a table of names from version 0.1.0.
WITH_OLD_NAMES: Final = 4

_WITH_PERCENT: Final = "SELECT account_id, name FROM files WHERE instr(name, '%')"

#: Whether a store of an older version has an account of this name; with None, any account.
HasAccount: TypeAlias = Callable[[str | None], bool]
#: Raises an error to refuse a store of an older version before it is migrated.
Admission: TypeAlias = Callable[[HasAccount], None]

#: Queries for `HasAccount`, on any schema. The name of an account in deletion begins with a control character.
ACCOUNT: Final = "SELECT 1 FROM accounts WHERE name = ?"
ANY_ACCOUNT: Final = "SELECT 1 FROM accounts WHERE name >= ' ' LIMIT 1"

#: Attempts to switch a file to WAL mode while other processes do the same.
SWITCHES: Final = 100


def check_file(path: Path) -> None:
    """
    Raise `UnsupportedError` if the file at `path` is foreign or truncated; an empty file is accepted.

    The file is opened as immutable, because otherwise SQLite would replay another program's log. It is read through
    SQLite, because closing a file in Python drops all locks of this process on it.
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
                return  # another process may be writing it, or a log may hold the rest
            raise
    if application != APPLICATION_ID:
        raise _foreign(path, "no CloudStore file" if size < SMALLEST else "another program's SQLite file")
    # SQLite would pad a partial page with zeros. A crash may leave one, with a log to repair it.
    if size % page_size and not any(Path(f"{path}{end}").exists() for end in ("-wal", "-journal")):
        raise damaged(path)


def _foreign(path: Path | None, kind: str) -> UnsupportedError:
    return UnsupportedError(f"{path} is {kind} and was left as it is; choose another name, or move it away.")


class DamagedFileError(UnsupportedError):
    """Damaged store file."""


def damaged(path: Path) -> DamagedFileError:
    """Return the error for an unreadable CloudStore file."""
    return DamagedFileError(f"{path} is damaged and was left as it is; restore a backup of it.")


def not_opened(path: Path, error: sqlite3.Error) -> PermissionError:
    """Return the error for a file SQLite can't open; even a read-only connection writes files beside it."""
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


def read_error(path: Path, error: sqlite3.Error) -> Exception:
    """Return the error to raise after SQLite failed to open or read the store or backup at `path`."""
    code = primary_code(error)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(path)
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) and no_more_files() is None:
        return not_opened(path, error)
    return unavailable(error)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise `read_error` for an SQLite error within the block, which only reads the store or backup at `path`."""
    try:
        yield
    except sqlite3.Error as error:
        raise read_error(path, error) from error


def migrate(
    connection: sqlite3.Connection, path: Path | None, *, renames: bool = False, admits: Admission | None = None
) -> None:
    """
    Migrate the database at `path` to the newest schema, or create the schema in an empty one; None stands for memory.

    Raises `UnsupportedError`, with the file untouched, if it is foreign, of a newer version, or has files to be renamed
    first, unless the caller `renames` them; and the error of `admits`, which is called only before a migration.
    """
    steps = schema_steps("sqlite")
    connection.execute("BEGIN")  # one snapshot: another process may be creating the file
    version = _version(connection, path, newest=len(steps))
    connection.execute("COMMIT")
    if version < len(steps):
        if version == 0 and path is not None:
            # EXPLAIN compiles the pragma, and that sets it. Executed, it would write a page before the transaction, and
            # the journal would no longer be that of a new file.
            connection.execute(f"EXPLAIN PRAGMA auto_vacuum = {INCREMENTAL}").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        change_if_there(connection)
        # Checked again: another process may have migrated while this one waited.
        before = _version(connection, path, newest=len(steps))
        if 0 < before < len(steps) and path is not None:
            try:
                if not renames:
                    _refuse_old_names(connection, path, before)
                if admits is not None:
                    admits(partial(_has_account, connection))
            except BaseException:
                connection.execute("ROLLBACK")
                raise
        for number in range(before, len(steps)):
            for statement in _statements(steps[number]):
                connection.execute(statement)
        if 0 < before < WITH_OLD_NAMES:
            _note_old_names(connection)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(steps)}")
        with nullcontext() if path is None else _room_for_checkpoint(connection, path):
            connection.execute("COMMIT")
        # While only the log holds the first token, the log seems to match any file without a token.
        connection.execute("PRAGMA wal_checkpoint").fetchall()
        if 0 < before < len(steps) and path is not None:
            announce(str(path), before, len(steps))
    if _journal_mode(connection) != "wal" and path is not None:
        raise UnsupportedError(f"The file system of {path} can't be shared between processes; use a local disk.")


@contextmanager
def _room_for_checkpoint(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Keep the room of the next checkpoint; without it, roll back and raise `NoSpaceError`."""
    (pages,), (size,) = (connection.execute(f"PRAGMA {what}").fetchone() for what in ("page_count", "page_size"))
    growth = pages * size - path.stat().st_size
    reserve = DiskReserve(path)
    if not reserve.has(growth):
        connection.execute("ROLLBACK")
        raise NoSpaceError(FULL, retry_after=1.0)
    with reserve.held(growth):
        yield


def _refuse_old_names(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Raise `UnsupportedError` if a store of an older version has files to be renamed first."""
    if version < WITH_OLD_NAMES:
        names = (name for _, name in old_names_among(connection.execute(_WITH_PERCENT)))
    else:
        names = (name for (name,) in connection.execute(OLD_NAME))
    if (name := next(names, None)) is not None:
        raise must_be_renamed(str(path), name)


def _has_account(connection: sqlite3.Connection, name: str | None) -> bool:
    query, values = (ANY_ACCOUNT, ()) if name is None else (ACCOUNT, (name,))
    return connection.execute(query, values).fetchone() is not None


def _note_old_names(connection: sqlite3.Connection) -> None:
    """Record the files with names of version 0.1.0, before this version adds its first file."""
    rows = connection.execute(_WITH_PERCENT).fetchall()
    connection.executemany("INSERT INTO old_names (account_id, name) VALUES (?, ?)", old_names_among(rows))
    connection.execute("INSERT INTO name_scans VALUES (?)", (time.time(),))


def schema_version(connection: sqlite3.Connection, path: Path) -> int:
    """Return the database's schema number, 0 for none; raises as `migrate` does."""
    return _version(connection, path, newest=newest())


def is_older(path: Path) -> bool:
    """
    Return True if the file at `path` is a store of an older version, leaving no file beside it.

    A file that is no store of ours, or damaged, is none; opening it reports the error.
    """
    mode = "ro" if holds_data(Path(f"{os.path.realpath(path)}-wal")) else "ro&immutable=1"
    try:
        check_file(path)
        with connected(f"{path.as_uri()}?mode={mode}", uri=True) as connection:
            return 0 < schema_version(connection, path) < newest()
    except (sqlite3.Error, UnsupportedError):
        return False


def newest() -> int:
    """Return the newest schema number."""
    return len(schema_steps("sqlite"))


def _journal_mode(connection: sqlite3.Connection) -> str:
    """Switch the database to WAL if possible, and return its journal mode."""
    for _ in range(SWITCHES):
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if primary_code(error) != sqlite3.SQLITE_BUSY:
                raise
        # SQLite doesn't wait if two processes switch at once, but it does wait for a transaction.
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
    # Connection.executescript would commit the enclosing transaction.
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
