"""Lineage of an SQLite store: tell whether a write-ahead log was written for the file beside it.

SQLite replays any log that lies beside a file, also over a file that was put in the place of another. So each
transaction gives the store a new random token and keeps the one before. A log continues a file exactly where the file's
token is among those in the log: the file is as it was before the log's first transaction, or as one of them left it.

A token tells the number of the schema's changes too, to which SQLite's VACUUM adds one. What ``VACUUM INTO`` made has
the token of its source, but other pages.
"""

from __future__ import annotations

import secrets
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from cloudstore_mapping.service.storage.sqlite_log import (
    FRAME,
    Frame,
    beginning_of,
    frames,
    is_little,
    is_right,
    summed,
)

#: The first schema that has the table.
WITH_LINEAGE: Final = 3

#: Looks at a file and its log that may be in use, until the log doesn't begin anew between two.
TRIES: Final = 10

NOTHING: Final = bytes(16)

# A token: random bytes, a mark that tells it from those of the first schema's step, and how often the schema changed.
_TOKEN: Final = struct.Struct(">8s 4s I")
_MARK: Final = b"tokn"
_PLACE_OF_CHANGES: Final = 40  # in the first page
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
    """Give a store the next token, within each transaction that writes to it."""
    (changes,) = connection.execute("PRAGMA schema_version").fetchone()
    token = _TOKEN.pack(secrets.token_bytes(8), _MARK, changes & 0xFFFFFFFF)
    connection.execute("UPDATE lineage SET previous = token, token = ?", (token,))


def change_if_there(connection: sqlite3.Connection) -> None:
    """Give a store, or a copy of one, a token of its own; does nothing for a schema without the table."""
    if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'lineage'").fetchone() != (0,):
        change(connection)


def lineage_of(path: Path) -> Lineage | None:
    """Return the lineage of the file proper, whatever its log holds; None where it can't be read without the log."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'lineage'").fetchone() == (0,):
                return Lineage(NOTHING, NOTHING)
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
        changes = _changes_of(path)
        # After the file, for what is carried over into it was in the log before.
        tokens, changes_in_log = _tokens(log)
        beginning = beginning_of(log)
        if lineage is None or (lineage.token == NOTHING and not tokens):
            return False
        known = _changes_in(lineage.token)
        if lineage.token in tokens and (None in (known, changes) or changes in {known, *changes_in_log}):
            return False
        if beginning == seen:  # it had a commit, and didn't begin anew before both were looked at
            return bool(tokens) or not in_use()
        if not _has_commit(log):
            return False
        seen = beginning
    return False  # somebody is writing to both


def _changes_of(path: Path) -> int | None:
    """Return how often the schema of the file proper changed; None where it can't be read without the log."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            return int(connection.execute("PRAGMA schema_version").fetchone()[0]) & 0xFFFFFFFF
    except sqlite3.Error:
        return None


def _changes_in(token: bytes) -> int | None:
    """Return how often the schema had changed by a token; None for one without the mark, which doesn't tell."""
    _, mark, changes = _TOKEN.unpack(token) if len(token) == _TOKEN.size else (b"", b"", 0)
    return int(changes) if mark == _MARK else None


def _tokens(log: Path) -> tuple[set[bytes], set[int | None]]:
    """Return the tokens in a log's frames, those of a transaction that a crash cut off among them, and its schemas."""
    tokens: set[bytes] = set()
    changes: set[int | None] = set()
    for frame in _frames(log):
        if (lineage := lineage_in(frame)) is not None:
            tokens |= set(lineage)
        if frame.number == 1:
            changes.add(int.from_bytes(frame.read(_PLACE_OF_CHANGES, 4), "big"))
    return tokens, changes | {_changes_in(token) for token in tokens}


def lineage_in(frame: Frame) -> Lineage | None:
    """Return the lineage that a frame's page holds; None for the pages of all other tables."""
    facts = frame.read(0, _PAGE.size)
    if len(facts) < _PAGE.size:
        return None
    kind, rows, place = _PAGE.unpack(facts)
    if (kind, rows) != (_LEAF, 1) or place + len(_ROW) + 32 > frame.size:
        return None
    row = frame.read(place, len(_ROW) + 32)
    if len(row) < len(_ROW) + 32 or not row.startswith(_ROW):
        return None
    return Lineage(*struct.unpack("16s16s", row[-32:]))


def _has_commit(log: Path) -> bool:
    """Whether SQLite would replay anything: the checksums are right up to the end of a transaction."""
    beginning = beginning_of(log)
    if not is_right(beginning):
        return False
    sums: tuple[int, int] = struct.unpack(">II", beginning[24:])
    for frame in _frames(log):
        _, pages, _, *expected = FRAME.unpack(frame.header)
        sums = summed(frame.header[:8] + frame.read(0, frame.size), sums, little=is_little(beginning))
        if sums != tuple(expected):
            return False
        if pages:
            return True
    return False


def _frames(log: Path) -> Iterator[Frame]:
    try:
        file = log.open("rb", buffering=0)
    except FileNotFoundError:
        return
    with file:
        yield from frames(file, file.read(32))
