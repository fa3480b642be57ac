"""File access beside SQLite: a file is opened only after SQLite said that it belongs to no store.

POSIX advisory locks belong to a process, which loses all of its locks on a file when it closes any descriptor of it.
Another process then takes itself for the last one with the store, and deletes the write-ahead log at its end. SQLite
keeps account of its own descriptors, so a header is read by a connection.
"""

from __future__ import annotations

import os
import stat
from contextlib import closing
from pathlib import Path
from typing import IO, Final, Literal

from cloudstore_mapping.errors import UnsupportedError

#: "CLSD": `file(1)` and SQLite's own tools know our files by it.
APPLICATION_ID: Final = 0x434C5344
#: The ends of the names of the files that SQLite keeps beside a database.
SIDECARS: Final = ("-wal", "-journal", "-shm")

#: Bytes of the smallest database: one page. SQLite takes a few bytes of anything for an empty one.
SMALLEST: Final = 512


def application_id(path: Path) -> int | None:
    """
    Return the application id of an SQLite file, None for any other file, and for none.

    A damaged one, or one that is being written, counts as ours.
    """
    import sqlite3  # which a program on a network never needs

    try:
        facts = path.stat()
        # SQLite keeps no account of who opens its own -shm as a database.
        if not stat.S_ISREG(facts.st_mode) or facts.st_size < SMALLEST or database_of(path) is not None:
            return None
    except (OSError, ValueError):
        return None
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"  # which reads no log, and leaves none
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            return int(connection.execute("PRAGMA application_id").fetchone()[0])
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        # This process has no store open that it can't open: Python says the reason.
        return None if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN) else APPLICATION_ID


def database_of(path: Path) -> Path | None:
    """Return the SQLite file beside which SQLite keeps, or would keep, the file at `path`; None where there is none."""
    for place in (path, Path(os.path.realpath(path))):
        for end in SIDECARS:
            database = place.with_name(place.name[: -len(end)] or place.name)
            if place.name.lower().endswith(end) and database != place and application_id(database) is not None:
                return database
    return None


def is_store(path: Path) -> bool:
    """Return whether the file at `path`, by whatever name, is a store."""
    return application_id(path) == APPLICATION_ID


def is_sqlite(path: Path) -> bool:
    """Return whether only SQLite may open `path`: it is a database of any program, or lies beside one."""
    return application_id(path) is not None or database_of(path) is not None


def belongs_to_store(path: Path) -> bool:
    """Return whether `path` leads to a store, or to a file that SQLite keeps, or would keep, beside one."""
    try:
        return is_store(database_of(path) or path)
    except ValueError:  # no name of a file at all
        return False


def refuse_store(path: Path) -> None:
    """Raise `UnsupportedError` where `path` belongs to a store: it is never replaced or written to as a file."""
    if belongs_to_store(path):
        raise UnsupportedError(f"{path} belongs to a store and was left as it is; choose another name.")


def refuse_sidecar(path: Path) -> None:
    """Raise `UnsupportedError` for the name of a file that SQLite keeps beside another database."""
    database = database_of(path)
    if database is not None:
        raise UnsupportedError(f"{path} is the name of a log of {database}; choose another name.")


def open_file(
    path: str | os.PathLike[str], mode: Literal["rb", "wb", "ab", "w+b"] = "rb", *, pipe: bool = False
) -> IO[bytes]:
    """
    Open a file as Python does; `UnsupportedError` where it belongs to a store, or is to be read and has no end.

    `pipe` admits a pipe, such as a shell's `<(command)`.
    """
    path = Path(path)
    if mode == "rb" and not (pipe and path.is_fifo()):
        refuse_special(path)
    if belongs_to_store(path):
        if mode != "rb":
            refuse_store(path)
        raise UnsupportedError(
            f"{path} belongs to a store, whose files only SQLite may open; make a copy with `cloudstore backup`, and "
            "pack it (gzip) to use it as a file."
        )
    return path.open(mode)


def refuse_special(path: Path) -> None:
    """Raise `UnsupportedError` for a pipe, device or socket: reading one may wait, or bring bytes, without end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # opening it says the reason
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UnsupportedError(f"{path} is a pipe, device or socket and was not read; name a regular file.")


def read_file(path: str | os.PathLike[str], *, pipe: bool = False) -> bytes:
    """Return the bytes of a file, or of a pipe if `pipe`; `UnsupportedError` where it belongs to a store."""
    with open_file(path, pipe=pipe) as file:
        return file.read()


def sync_folder(folder: Path) -> None:
    """Put the names of the files in a folder on disk; does nothing on Windows, which opens no folders."""
    if os.name != "posix":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
