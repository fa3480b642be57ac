"""Copies of an SQLite store: made while it is in use, looked at before they are trusted, and made stores again."""

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
from cloudstore_mapping.service.storage.checking import Findings, look
from cloudstore_mapping.service.storage.migrations import (
    DamagedFileError,
    check_file,
    damaged,
    not_opened,
    schema_version,
)
from cloudstore_mapping.service.storage.sqlite import SQLiteSession
from cloudstore_mapping.service.storage.sqlite_files import (
    FULL,
    change_if_there,
    holds_data,
    primary_code,
    reading_mode,
    refuse_leftovers,
    unavailable,
)
from cloudstore_mapping.sqlite_forks import connected
from cloudstore_mapping.storefiles import refuse_sidecar, sync_folder

#: Pages that are copied between two reports: 16 MiB.
PAGES_AT_ONCE: Final = 4096
#: Maximum number of reads of a file that other programs change meanwhile.
READ_ATTEMPTS: Final = 5

_NO_FILE: Final = "No file can be made in {}; look at its permissions, or name another folder."

T = TypeVar("T")

#: The first schema that has media files.
WITH_MEDIA: Final = 2

#: Is told how many pages are copied, and of how many.
Report = Callable[[int, int], object]


def back_up(source: sqlite3.Connection, path: Path, report: Report) -> None:
    """
    Copy what a database holds at this moment into a new file at `path`, which is there only once it is whole.

    The connection must be in a read transaction: so all pages are of one moment, whoever writes meanwhile. Raises
    `FileExistsError` where there is a file already, and `UnavailableError` where SQLite fails.
    """
    with drafted(path) as draft:
        _copy(source, draft, report, verify)


def _copy(source: sqlite3.Connection, draft: Path, report: Report, check: Callable[[Path], T]) -> T:
    try:
        with connected(draft) as target:
            source.backup(
                target,
                pages=PAGES_AT_ONCE,
                progress=lambda _, remaining, total: report(total - remaining, total),
            )
            with target:
                change_if_there(target)  # so that no log of the source seems to fit the copy
            make_one_file(target)
        return check(draft)
    except UnsupportedError as error:  # its sentence names the draft
        sentence = "The copy is damaged and was not kept; run `cloudstore check` on the store, then try again."
        raise UnsupportedError(sentence) from error
    except sqlite3.Error as error:
        raise failed_copy(error, draft) from error


def failed_copy(error: Exception, draft: Path) -> Exception:
    """
    Return what an error is called that ended a copy to the draft of a new file; the source was only read.

    So what is full or can't be written to is the new file's disk or folder, which may be another than the store's.
    """
    cause = error if isinstance(error, sqlite3.Error) else error.__cause__
    code = primary_code(cause) if isinstance(cause, sqlite3.Error) else sqlite3.SQLITE_OK
    if code == sqlite3.SQLITE_FULL or str(error) == FULL:
        return UnavailableError(
            f"The disk of {draft.parent} is full; free some space there, or name a file on another disk."
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN) or isinstance(error, PermissionError):
        return PermissionError(_NO_FILE.format(draft.parent))
    if code == sqlite3.SQLITE_IOERR:
        return UnavailableError(f"The disk of the store or of {draft.parent} failed; look at both, then try again.")
    return unavailable(error) if isinstance(error, sqlite3.Error) else error


def make_one_file(connection: sqlite3.Connection) -> None:
    """Leave no log beside a database's file, which could be left behind; raises `sqlite3.Error` where that fails."""
    # It commits with the end of the statement, and Python tells of that only who fetches all of it.
    if connection.execute("PRAGMA journal_mode = DELETE").fetchall() != [("delete",)]:
        raise sqlite3.OperationalError("the journal mode could not be changed")


def copy_into_memory(path: Path, memory: sqlite3.Connection) -> None:
    """
    Copy the store at `path` into an empty database in memory, writing neither to the file nor beside it.

    A file without a log is read as one that nobody changes; if somebody does, it is read again, and after
    `READ_ATTEMPTS` times `UnavailableError` is raised.
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
    raise UnavailableError(f"{path} is being changed by another program, and can't be written here; try again.")


def restore(path: Path, store: Path, report: Report) -> None:
    """
    Make the backup at `path` a new store at `store`, which is there only once it is whole.

    So each page of it, and each value and media file with its checksum, is looked at.

    Raises `UnsupportedError` where the backup isn't one of ours, is damaged or of a newer version; `FileExistsError`
    where there is a store already; `FileNotFoundError` where there is no backup.
    """
    refuse_leftovers(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no backup {path}; look at its name.")
    try:
        verify(path)
    except DamagedFileError as error:  # whose advice is to restore a backup
        raise UnsupportedError(f"The backup {path} is damaged and was not restored; restore another one.") from error
    with connected(f"{path.as_uri()}?mode={reading_mode(path)}", uri=True) as source:
        source.execute("BEGIN")
        source.execute("SELECT 1 FROM sqlite_schema").fetchone()
        with drafted(store) as draft:
            findings = _copy(source, draft, report, lambda draft: examine(draft, report))
            check_restorable(path, findings)


def check_restorable(backup: Path, findings: Findings) -> None:
    """Raise `UnsupportedError` where something was found wrong in a backup, or in a copy of it."""
    if findings.faults:
        raise UnsupportedError(
            f"{backup} is damaged and was not restored; `cloudstore check --store {backup}` names each fault."
        )


def examine(path: Path, report: Report) -> Findings:
    """Return what is found in the store or backup at `path`: every page, value and media file is read; see `verify`."""
    schema = verify(path)
    try:
        with closing(SQLiteSession(path, reading_mode(path))) as session, session.snapshot():
            # A damaged name is a fault like others.
            session.connection.text_factory = lambda text: text.decode(errors="surrogateescape")
            return look(session, schema, report, has_media=schema >= WITH_MEDIA)
    except sqlite3.Error as error:
        raise unavailable(error) from error


def _roll_back(path: Path) -> None:
    """Undo a transaction that a crash left half done in a journal, which a connection that only reads can't do."""
    if Path(f"{path}-journal").exists():
        with suppress(sqlite3.Error), connected(f"{path.as_uri()}?mode=rw", uri=True) as connection:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()


def verify(path: Path) -> int:
    """
    Return the number of the schema of the store or backup at `path`, every page of which was read.

    Raises `UnsupportedError` where it isn't one of ours, is damaged, or of a newer version.
    """
    if path.stat().st_size == 0:
        raise damaged(path)
    check_file(path)
    _roll_back(path)
    try:
        with connected(f"{path.as_uri()}?mode={reading_mode(path)}", uri=True) as connection:
            version = schema_version(connection, path)
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            broken = connection.execute("PRAGMA foreign_key_check").fetchone()
    except sqlite3.DatabaseError as error:
        if primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise damaged(path) from error
        if primary_code(error) in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise not_opened(path, error) from error
        raise unavailable(error) from error
    if found != "ok" or broken is not None:
        raise damaged(path)
    if version == 0:
        raise UnsupportedError(f"{path} is an empty store; there is nothing in it.")
    return version


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """Give the block the name of a file that becomes `path` if all goes well, on disk, and that is gone if not."""
    refuse_sidecar(path)
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
            os.link(draft, path)  # which never replaces a file that came meanwhile
        except FileExistsError:
            _refuse_existing(path)
            raise
    sync_folder(path.parent)


def _refuse_existing(path: Path) -> None:
    for end in ("", "-wal", "-journal"):
        file = Path(f"{path}{end}")
        if holds_data(file) if end else os.path.lexists(file):
            raise FileExistsError(f"There is a file {path}{end} already; move it away, or choose another name.")
