"""Recognize dbm files of every kind that the standard library makes, by their names and first bytes."""

from __future__ import annotations

import os
import shlex
import sqlite3
import struct
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.storefiles import application_id, database_of, open_file

#: The table in the files of `dbm.sqlite3`, which came with Python 3.13; every Python can read them.
TABLE: Final = "Dict"

#: How SQLite's files begin.
SQLITE: Final = b"SQLite format 3\0"
_HEADER: Final = 16


def _magics(*numbers: int) -> frozenset[bytes]:
    """Return how files begin that say their kind with one of these numbers, on machines of either byte order."""
    return frozenset(number.to_bytes(4, order) for number in numbers for order in ("little", "big"))


_GNU: Final = _magics(0x13579ACD, 0x13579ACE, 0x13579ACF)
#: Magic number of Berkeley DB's hash, and how many bytes of its header are read.
_HASH: Final = 0x00061561
_HASH_HEADER: Final = 92
#: Sizes of its pages.
_PAGES: Final = frozenset(2**power for power in range(9, 17))
#: Keys in a page, the fill factor, that its `ndbm` sets; it also begins to count the keys at 1.
_NDBM_FILL: Final = 40
_BERKELEY: Final = _magics(0x00053162, _HASH)
_QUOTES: Final = (b"'", b'"')


class DbmFile(NamedTuple):
    """A dbm file: the module that made it, the module that reads it and by which name, and its files on disk."""

    maker: str
    reader: str
    name: Path
    files: tuple[Path, ...]


def dbm_at(path: Path) -> DbmFile | None:
    """Return the dbm file that programs open by the name `path`, looked for in the order of `dbm.whichdb`."""
    return dbm_beside(path) or dbm_itself(path)


def dbm_beside(path: Path) -> DbmFile | None:
    """Return the dbm file by the name `path` whose files on disk have longer names."""
    pag, db, dat, directory, backup = (Path(f"{path}{end}") for end in (".pag", ".db", ".dat", ".dir", ".bak"))
    if _is_file(pag) and _is_file(directory) and (beginning := first_bytes(pag)) != SQLITE:
        is_gnu = beginning[:4] in _GNU  # GNU's library with the interface of ndbm
        return DbmFile("dbm.ndbm", "dbm.gnu" if is_gnu else "dbm.ndbm", pag if is_gnu else path, (pag, directory))
    if _is_berkeley(first_bytes(db)):
        return DbmFile("dbm.ndbm", "dbm.ndbm", path, (db,))
    if first_bytes(dat) != SQLITE and _is_file(dat) and any(_is_index(file) for file in (directory, backup)):
        files = tuple(file for file in (dat, directory, backup) if _is_file(file))
        return DbmFile("dbm.dumb", "dbm.dumb", path, files)
    return None


def dbm_itself(path: Path) -> DbmFile | None:
    """Return the dbm file that is the file `path`."""
    beginning = first_bytes(path)
    if beginning == SQLITE:
        return DbmFile("dbm.sqlite3", "dbm.sqlite3", path, (path,)) if _has_table(path) else None
    if beginning[:4] in _GNU:
        return DbmFile("dbm.gnu", "dbm.gnu", path, (path,))
    return DbmFile("dbhash", "dbm.ndbm", path, (path,)) if _is_berkeley(beginning) else None


def refusal(path: Path, *, is_shelf: bool = False, needs_secret: bool = False) -> UnsupportedError | None:
    """
    Return the error for a dbm file where a store is to be, with the command that moves its data into one; else None.

    A store that is there already is none; and what lies beside `path` is in the way of a shelf only.
    """
    is_taken = _is_file(path) and path.stat().st_size > 0
    found = dbm_itself(path) if is_taken or not is_shelf else dbm_beside(path)
    if found is None:
        return None
    command = ["cloudstore", "import", str(path), *["--format", "shelve", "--trust"] * is_shelf, "--at", str(path)]
    pasted = subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)
    kind, files = "shelf" if is_shelf else "dbm file", ", ".join(file.name for file in found.files)
    secret = "set CLOUDSTORE_SECRET to the shelf's secret and " if needs_secret else ""
    return UnsupportedError(
        f"{path} is a {kind} that the standard library made ({found.maker}: {files}); {secret}move its data with "
        f"`{pasted}`."
    )


def read_only(path: Path) -> sqlite3.Connection:
    """
    Open an SQLite file to read it, and leave nothing beside it.

    Without a log it is opened as a file that nobody changes: else SQLite would make a log, and leave it behind.
    """
    log = Path(f"{path}-wal")
    if _is_file(log) and log.stat().st_size:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    return _unchanging(path)


def first_bytes(path: Path) -> bytes:
    """
    Return the first bytes of a file, empty where it can't be read, and of SQLite's files always the same.

    Only a file that SQLite calls no database is opened, and none that SQLite keeps beside one.
    """
    if not _is_file(path) or database_of(path) is not None:
        return b""
    if application_id(path) is not None:
        return SQLITE
    try:
        with open_file(path) as file:
            return file.read(_HEADER)
    except OSError:
        return b""


def berkeley_count(path: Path) -> int | None:
    """
    Return how many keys a file of Berkeley DB's `ndbm` counts; None for a file that wasn't made by it.

    Raise `ValueError` for a wrong header of its hash: the library divides by its numbers, and counts up to them.
    """
    with open_file(path) as file:
        header = file.read(_HASH_HEADER).ljust(_HASH_HEADER, b"\0")
        size = file.seek(0, os.SEEK_END)
    for order in ("<", ">"):
        magic, page, last, bucket, high, low, fill, count = struct.unpack(f"{order}12xI4xI8xI36x5I", header)
        if magic != _HASH:
            continue
        if page not in _PAGES or high & (high + 1) or low != high >> 1 or not low <= bucket <= min(high, last):
            raise ValueError("its header is wrong")
        if size < (last + 1) * page:
            raise ValueError(f"it has {size:,} bytes instead of {(last + 1) * page:,}")
        # Other programs choose their own fill factor. They may begin to count anywhere, or not count at all.
        return int(count) - 1 if fill == _NDBM_FILL else None
    return None


def _unchanging(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


def _has_table(path: Path) -> bool:
    try:
        with closing(_unchanging(path)) as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application:  # a store of ours, for one, whose log is none of our business
            return False
        with closing(read_only(path)) as connection:
            rows = connection.execute("SELECT name FROM pragma_table_info(?)", (TABLE,)).fetchall()
    except sqlite3.Error:
        return False
    return {"key", "value"} == {name for (name,) in rows}


def _is_berkeley(beginning: bytes) -> bool:
    # At the very beginning until version 1.85, which macOS still has.
    return beginning[:4] in _BERKELEY or beginning[12:16] in _BERKELEY


def _is_index(file: Path) -> bool:
    """Whether this is the index of a `dbm.dumb` file, which has no bytes where there are no keys."""
    return _is_file(file) and (not file.stat().st_size or first_bytes(file).startswith(_QUOTES))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder that may not be looked at
        return False
