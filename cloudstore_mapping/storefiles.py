"""
File access beside SQLite: open a file only if it belongs to no store.

A process that closes any descriptor of a file loses all its POSIX advisory locks on the file. Another process then
takes itself for the only user of the store, and deletes the write-ahead log when it ends. SQLite avoids this for its
own descriptors, so a header is read through a connection of SQLite.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final, Literal
from urllib.parse import quote

from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.sqlite_forks import connected

#: "CLSD": `file(1)` and SQLite's own tools know our files by it.
APPLICATION_ID: Final = 0x434C5344
#: Suffixes of the files that SQLite keeps beside a database.
SIDECARS: Final = ("-wal", "-journal", "-shm")

#: Mode of new stores, backups and exports.
PRIVATE: Final = 0o600
#: The open files of this process, on Linux.
OPEN_FILES: Final = Path("/proc/self/fd")

#: Bytes of the smallest database, a single page. SQLite takes any file of a few bytes for an empty database.
SMALLEST: Final = 512


def application_id(path: Path) -> int | None:
    """
    Return the application id of an SQLite file; None if the file is another or absent.

    A file that is damaged, or just being written, counts as ours.
    """
    import sqlite3  # not needed over a network

    try:
        facts = path.stat()
        # SQLite does not track descriptors of its own -shm file opened as a database.
        if not stat.S_ISREG(facts.st_mode) or facts.st_size < SMALLEST or database_of(path) is not None:
            return None
    except (OSError, ValueError):
        return None
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"  # neither reads nor leaves a log
        with connected(uri, uri=True) as connection:
            return int(connection.execute("PRAGMA application_id").fetchone()[0])
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        # A file that SQLite can't open is no open store of this process: Python may open it, and raises the reason.
        return None if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN) else APPLICATION_ID


def database_of(path: Path) -> Path | None:
    """Return the SQLite database beside which SQLite keeps, or would keep, the file at `path`; None without one."""
    for place in (path, Path(os.path.realpath(path))):
        for end in SIDECARS:
            database = place.with_name(place.name[: -len(end)] or place.name)
            if place.name.lower().endswith(end) and database != place and application_id(database) is not None:
                return database
    return None


def is_store(path: Path) -> bool:
    """Return True if the file at `path`, whatever its name, is a store."""
    return application_id(path) == APPLICATION_ID


def is_sqlite(path: Path) -> bool:
    """Return True if only SQLite may open `path`: it is a database of any program, or a file beside one."""
    return application_id(path) is not None or database_of(path) is not None


def belongs_to_store(path: Path) -> bool:
    """Return True if `path` leads to a store, or to a file that SQLite keeps, or would keep, beside one."""
    try:
        return is_store(database_of(path) or path)
    except ValueError:  # not a file name at all
        return False


def refuse_store(path: Path) -> None:
    """Raise `UnsupportedError` if `path` belongs to a store, which is never replaced or written to as a file."""
    if belongs_to_store(path):
        raise UnsupportedError(f"{path} belongs to a store and was left as it is; choose another name.")


def refuse_sidecar(path: Path) -> None:
    """Raise `UnsupportedError` for the name of a file that SQLite keeps beside another database."""
    database = database_of(path)
    if database is not None:
        raise UnsupportedError(f"{path} is the name of a log of {database}; choose another name.")


def refuse_log_name(path: Path, made: str) -> None:
    """Raise `UnsupportedError` if SQLite would take a new file at `path` for another's log; `made` tells what it is."""
    real = Path(os.path.realpath(path))
    if real.name.lower().endswith(SIDECARS) and not real.exists():
        raise UnsupportedError(
            f"{path} is no name for {made}: SQLite takes a file whose name ends so for another one's log; choose "
            "another name."
        )


@contextmanager
def creating(path: Path) -> Iterator[str]:
    """
    Give the block the URI by which SQLite opens the file at `path`, or creates it readable by its owner only.

    An existing file keeps its mode. SQLite gives the files that it keeps beside the database the same mode.
    """
    uri = f"{path.absolute().as_uri()}?mode=rwc"
    if os.name != "posix" or path.exists():
        yield uri
        return
    # SQLite copies the mode of another file: were the file created here, its close would drop locks on it.
    with ExitStack() as stack:
        model = _open_in_memory()
        name = str(OPEN_FILES / str(model))
        if model is not None:
            stack.callback(os.close, model)
        else:
            from tempfile import NamedTemporaryFile  # which only this needs

            try:
                file = stack.enter_context(NamedTemporaryFile())
            except OSError:  # the umask decides, and SQLite meets the same error
                yield uri
                return
            model, name = file.fileno(), file.name
        os.fchmod(model, PRIVATE)
        yield f"{uri}&modeof={quote(name)}"


def _open_in_memory() -> int | None:
    """Return the descriptor of a file in memory that `OPEN_FILES` names; None if the system has no such files."""
    if not OPEN_FILES.is_dir():
        return None
    try:
        return os.memfd_create("cloudstore-mode")
    except (AttributeError, OSError):  # Linux has it, but not in every sandbox
        return None


def open_file(
    path: str | os.PathLike[str], mode: Literal["rb", "wb", "ab", "w+b"] = "rb", *, pipe: bool = False
) -> IO[bytes]:
    """
    Open a file as Python does; `UnsupportedError` if it belongs to a store, or is a device or pipe to read.

    `pipe` allows to read a pipe, such as a shell's `<(command)`.
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
    """Raise `UnsupportedError` for a pipe, device or socket, as a read may wait forever or never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # opening it raises the reason
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UnsupportedError(f"{path} is a pipe, device or socket and was not read; name a regular file.")


def read_file(path: str | os.PathLike[str], *, pipe: bool = False) -> bytes:
    """Return the bytes of a file, or of a pipe if `pipe`; `UnsupportedError` if it belongs to a store."""
    with open_file(path, pipe=pipe) as file:
        return file.read()


def sync_folder(folder: Path) -> None:
    """Flush a folder's file names to disk; does nothing on Windows, which can't open folders."""
    if os.name != "posix":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
