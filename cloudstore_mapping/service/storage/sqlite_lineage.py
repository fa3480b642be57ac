"""Lineage of an SQLite store: tell whether a write-ahead log was written for the file beside it.

SQLite replays any log that lies beside a file, also over a file that was put in the place of another. So each
transaction gives the store a new random token and keeps the one before. A log continues a file exactly where the file's
token is among those in the log: the file is as it was before the log's first transaction, or as one of them left it.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Final, NamedTuple

#: Run within each transaction that writes to a store.
CHANGE: Final = "UPDATE lineage SET previous = token, token = randomblob(16)"
#: The first schema that has the table.
WITH_LINEAGE: Final = 3

#: Looks at a file and its log that may be in use, until the log doesn't begin anew between two.
TRIES: Final = 10

_NOTHING: Final = bytes(16)

# SQLite's file format: a log has a header, then frames of a header and a page each.
_HEADER: Final = struct.Struct(">II I I 8s II")  # magic, version, page size, checkpoints, salts, checksums
_FRAME: Final = struct.Struct(">II 8s II")  # page number, pages in all after a commit, salts, checksums
_MAGIC: Final = 0x377F0682
_VERSION: Final = 3007000
# A page of a table with one row; its type, first free block, count of rows, and where the row begins.
_PAGE: Final = struct.Struct(">B 2x H 3x H")
_LEAF: Final = 0x0D
# The row: bytes that follow, row number, bytes of the header, two blobs of 16 bytes. No other table has such rows.
_ROW: Final = bytes((35, 1, 3, 44, 44))


class Lineage(NamedTuple):
    """The token of a store, and the one before; both are zeros in a file without the table."""

    token: bytes
    previous: bytes


def change(connection: sqlite3.Connection) -> None:
    """Give a store, or a copy of one, a token of its own; does nothing for a schema without the table."""
    if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'lineage'").fetchone() != (0,):
        connection.execute(CHANGE)


def lineage_of(path: Path) -> Lineage | None:
    """Return the lineage of the file proper, whatever its log holds; None where it can't be read without the log."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'lineage'").fetchone() == (0,):
                return Lineage(_NOTHING, _NOTHING)
            return Lineage(*connection.execute("SELECT token, previous FROM lineage").fetchone())
    except (sqlite3.Error, TypeError):  # half written, damaged, or no database
        return None


def is_of_another_file(log: Path, path: Path, in_use: Callable[[], bool]) -> bool:
    """
    Return whether the log was written for another file than the one at `path`; both may be in use.

    A log without tokens is another program's, or of an older version. It fits a file without a token, and otherwise
    only one that is `in_use` with it.
    """
    seen: bytes | None = None
    for _ in range(TRIES):
        lineage = lineage_of(path)
        tokens = set(_tokens(log))  # after the file, for what is carried over into it was in the log before
        beginning = _beginning(log)
        if lineage is None or lineage.token in tokens or (lineage.token == _NOTHING and not tokens):
            return False
        if beginning == seen:  # it had a commit, and didn't begin anew before both were looked at
            return bool(tokens) or not in_use()
        if not _has_commit(log):
            return False
        seen = beginning
    return False  # somebody is writing to both


def _beginning(log: Path) -> bytes:
    """Return the header of a log, which is another one whenever the log begins anew."""
    try:
        with log.open("rb") as file:
            return file.read(_HEADER.size)
    except FileNotFoundError:
        return b""


def _tokens(log: Path) -> Iterator[bytes]:
    """Yield the tokens in a log's frames, those of a transaction that a crash cut off among them."""
    for file, page, size, _ in _frames(log):
        facts = _at(file, page, _PAGE.size)
        if len(facts) == _PAGE.size:
            kind, rows, place = _PAGE.unpack(facts)
            if (kind, rows) == (_LEAF, 1) and place + len(_ROW) + 32 <= size:
                row = _at(file, page + place, len(_ROW) + 32)
                if row.startswith(_ROW):
                    yield row[-16:]
                    yield row[-32:-16]


def _has_commit(log: Path) -> bool:
    """Whether SQLite would replay anything: the checksums are right up to the end of a transaction."""
    checksums: tuple[int, int] | None = None
    for file, page, size, (header, beginning) in _frames(log):
        little = not _HEADER.unpack(beginning)[0] & 1
        if checksums is None:
            checksums = _summed(beginning[:24], (0, 0), little=little)
            if checksums != _HEADER.unpack(beginning)[-2:]:
                return False
        _, pages, _, *expected = _FRAME.unpack(header)
        checksums = _summed(header[:8] + _at(file, page, size), checksums, little=little)
        if checksums != tuple(expected):
            return False
        if pages:
            return True
    return False


def _frames(log: Path) -> Iterator[tuple[IO[bytes], int, int, tuple[bytes, bytes]]]:
    """Yield for each frame the log, where its page begins, the size of a page, and the headers of frame and log."""
    try:
        file = log.open("rb", buffering=0)
    except FileNotFoundError:
        return
    with file:
        beginning = file.read(_HEADER.size)
        if len(beginning) < _HEADER.size:
            return
        magic, version, size, _, salts, *_ = _HEADER.unpack(beginning)
        if magic & ~1 != _MAGIC or version != _VERSION or not 512 <= size <= 65536 or size & (size - 1):
            return
        place = _HEADER.size
        while len(header := _at(file, place, _FRAME.size)) == _FRAME.size:
            number, _, salts_here, *_ = _FRAME.unpack(header)
            if not number or salts_here != salts:
                return
            yield file, place + _FRAME.size, size, (header, beginning)
            place += _FRAME.size + size


def _at(file: IO[bytes], place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


def _summed(data: bytes, sums: tuple[int, int], *, little: bool) -> tuple[int, int]:
    """Return the checksums of SQLite over data, continued from those of what was before."""
    first, second = sums
    if len(data) % 8:
        return -1, -1  # the log ends within a page
    for one, other in struct.iter_unpack("<II" if little else ">II", data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second
