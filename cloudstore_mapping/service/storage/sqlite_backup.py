"""SQLite online backup: copy a database in use into a new file, and verify every page of it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from cloudstore_mapping.drafts import draft_of, remove_dead
from cloudstore_mapping.errors import UnavailableError, UnsupportedError
from cloudstore_mapping.oserrors import naming
from cloudstore_mapping.service.storage.base import NoSpaceError, Report
from cloudstore_mapping.service.storage.migrations import check_file, damaged, reading, schema_version
from cloudstore_mapping.service.storage.sqlite_files import (
    change_if_there,
    holds_data,
    primary_code,
    reading_mode,
    refuse_leftovers,
    unavailable,
)
from cloudstore_mapping.sqlite_forks import connected
from cloudstore_mapping.storefiles import creating, refuse_log_name, refuse_sidecar, sync_folder

#: Pages copied between two progress reports: 16 MiB.
PAGES_AT_ONCE: Final = 4096
#: Maximum attempts to read a file while other programs change it.
READ_ATTEMPTS: Final = 5

_NO_FILE: Final = "No file can be made in {}; check its permissions, or name another folder."

T = TypeVar("T")


def back_up(source: sqlite3.Connection, path: Path, report: Report) -> None:
    """
    Back up a database into a new file, which appears at `path` once it is complete.

    The connection must be in a read transaction, so that all pages belong to one snapshot despite other writers. Raises
    `FileExistsError` if the file exists, and `UnavailableError` if SQLite fails.
    """
    with new_file(path) as draft:
        copy_database(source, draft, report, verify)


def copy_database(source: sqlite3.Connection, draft: Path, report: Report, check: Callable[[Path], T]) -> T:
    """
    Copy a database into the file `draft`, and return the result of `check` on it.

    Dashboard sessions are left out: one that has ended since must not come to life again in a restored store.
    """
    try:
        with creating(draft) as uri, connected(uri, uri=True) as target:
            source.backup(
                target,
                pages=PAGES_AT_ONCE,
                progress=lambda _, remaining, total: report(total - remaining, total),
            )
            with target:
                change_if_there(target)  # a new token: no log of the source may seem to match the copy
                if target.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'sessions'").fetchone() != (0,):
                    target.execute("DELETE FROM sessions")
            make_one_file(target)
        return check(draft)
    except UnsupportedError as error:  # its text names the draft
        sentence = "The copy is damaged and was not kept; run `cloudstore check` on the store, then try again."
        raise UnsupportedError(sentence) from error
    except sqlite3.Error as error:
        raise copy_error(error, draft) from error


def copy_error(error: Exception, draft: Path) -> Exception:
    """
    Return the error to raise after a failed copy to the draft of a new file.

    The source was only read. A full disk or missing permission therefore concerns the new file's disk or folder.
    """
    cause = error if isinstance(error, sqlite3.Error) else error.__cause__
    code = primary_code(cause) if isinstance(cause, sqlite3.Error) else sqlite3.SQLITE_OK
    if code == sqlite3.SQLITE_FULL or isinstance(error, NoSpaceError):
        return UnavailableError(
            f"The disk of {draft.parent} is full; free some space there, or name a file on another disk."
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN) or isinstance(error, PermissionError):
        return PermissionError(_NO_FILE.format(draft.parent))
    if code == sqlite3.SQLITE_IOERR:
        return UnavailableError(f"The disk of the store or of {draft.parent} failed; check both, then try again.")
    return unavailable(error) if isinstance(error, sqlite3.Error) else error


def make_one_file(connection: sqlite3.Connection) -> None:
    """Leave WAL mode, so the database has no log file; raise `sqlite3.Error` if that fails."""
    # SQLite changes the mode when the statement ends; Python reports a failure only if all rows are fetched.
    if connection.execute("PRAGMA journal_mode = DELETE").fetchall() != [("delete",)]:
        raise sqlite3.OperationalError("the journal mode could not be changed")


def copy_into_memory(path: Path, memory: sqlite3.Connection) -> None:
    """
    Copy the store at `path` into an empty database in memory, without writing to its file or folder.

    A file without a log is opened as immutable. If another program changes it meanwhile, it is read again, up to
    `READ_ATTEMPTS` times; then `UnavailableError` is raised.
    """
    log = Path(f"{os.path.realpath(path)}-wal")
    for _ in range(READ_ATTEMPTS):
        before = path.stat()
        mode = "ro" if holds_data(log) else "ro&immutable=1"
        with closing(sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True)) as source:
            source.backup(memory)
        after = path.stat()
        is_same = (before.st_mtime_ns, before.st_size, before.st_ino) == (
            after.st_mtime_ns,
            after.st_size,
            after.st_ino,
        )
        if mode == "ro" or (is_same and not holds_data(log)):
            return
    raise UnavailableError(f"Another program keeps changing {path}, so it can't be read; try again.")


def verify(path: Path) -> int:
    """
    Return the schema number of the store or backup at `path`, after reading every page of it.

    Raises `UnsupportedError` if the file is foreign, damaged, or of a newer version.
    """
    if path.stat().st_size == 0:
        raise damaged(path)
    check_file(path)
    _roll_back(path)
    with reading(path), connected(f"{path.as_uri()}?mode={reading_mode(path)}", uri=True) as connection:
        version = schema_version(connection, path)
        (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        broken = connection.execute("PRAGMA foreign_key_check").fetchone()
    if found != "ok" or broken is not None:
        raise damaged(path)
    if version == 0:
        raise UnsupportedError(f"{path} is an empty store; there is nothing in it.")
    return version


def _roll_back(path: Path) -> None:
    """Roll back the transaction in a journal left by a crash; a read-only connection can't do it."""
    if Path(f"{path}-journal").exists():
        with suppress(sqlite3.Error), connected(f"{path.as_uri()}?mode=rw", uri=True) as connection:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the path of a draft; if the block succeeds, sync it and link it as `path`, else delete it."""
    refuse_sidecar(path)
    refuse_log_name(path, "a store or a backup")
    remove_dead(path)
    _refuse_existing(path)
    refuse_leftovers(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}; make it first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(_NO_FILE.format(path.parent))
    with draft_of(path) as draft:
        yield draft
        with naming(path), draft.open("rb+") as file:
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # never replaces a file made meanwhile
        except FileExistsError:
            _refuse_existing(path)
            raise
    sync_folder(path.parent)


def _refuse_existing(path: Path) -> None:
    for end in ("", "-wal", "-journal"):
        file = Path(f"{path}{end}")
        if holds_data(file) if end else os.path.lexists(file):
            raise FileExistsError(f"There is a file {path}{end} already; move it away, or choose another name.")
