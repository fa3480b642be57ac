"""Lineage of an SQLite store: check that a write-ahead log belongs to the file beside it.

SQLite replays any log beside a file, even if the file was replaced by another store. So each transaction gives the
store a new random token and keeps the previous one. A log belongs to a file only if the file's token is among those in
the log: the file is the state before the log's first transaction, or the state after one of them.

A token also holds the schema cookie, which SQLite's VACUUM increments: a copy by ``VACUUM INTO`` has the token of its
source, but other pages.
"""

from __future__ import annotations

import secrets
import sqlite3
import struct
from collections.abc import Callable, Iterator
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
from cloudstore_mapping.sqlite_forks import connected

#: The first schema that has the table.
WITH_LINEAGE: Final = 3

#: Attempts to read a file and its log in use, until no writer restarts the log between two of them.
TRIES: Final = 10

NOTHING: Final = bytes(16)

# A token: random bytes, a mark (tokens of the migration have none), and the schema cookie.
_TOKEN: Final = struct.Struct(">8s 4s I")
_MARK: Final = b"tokn"
_PLACE_OF_CHANGES: Final = 40  # of the schema cookie in page 1
# A page of a table with one row; its type, first free block, count of rows, and where the row begins.
_PAGE: Final = struct.Struct(">B 2x H 3x H")
_LEAF: Final = 0x0D
# The row: payload size, rowid, header size, two blobs of 16 bytes. No other table has such rows.
_ROW: Final = bytes((35, 1, 3, 44, 44))


class Lineage(NamedTuple):
    """The token of a store, and the one before; both are zeros in a file without the table."""

    token: bytes
    previous: bytes


def change(connection: sqlite3.Connection) -> None:
    """Give a store its next token; called in each writing transaction."""
    (changes,) = connection.execute("PRAGMA schema_version").fetchone()
    token = _TOKEN.pack(secrets.token_bytes(8), _MARK, changes & 0xFFFFFFFF)
    connection.execute("UPDATE lineage SET previous = token, token = ?", (token,))


def change_if_there(connection: sqlite3.Connection) -> None:
    """Give a store, or a copy of one, its own token; does nothing for a schema without the table."""
    if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'lineage'").fetchone() != (0,):
        change(connection)


def lineage_of(path: Path) -> Lineage | None:
    """Return the lineage in the file itself, without its log; None if the file is unreadable without it."""
    try:
        with connected(f"{path.as_uri()}?mode=ro&immutable=1", uri=True) as connection:
            if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'lineage'").fetchone() == (0,):
                return Lineage(NOTHING, NOTHING)
            return Lineage(*connection.execute("SELECT token, previous FROM lineage").fetchone())
    except (sqlite3.Error, TypeError):  # half written, damaged, or no database
        return None


def is_of_another_file(log: Path, path: Path, in_use: Callable[[], bool]) -> bool:
    """
    Return True if the log belongs to another file than the one at `path`; both may be in use.

    A log without tokens was written by another program or an older version. It belongs to a file without a token, and
    to any other file only while that is `in_use` with it.
    """
    seen: bytes | None = None
    for _ in range(TRIES):
        lineage = lineage_of(path)
        changes = _changes_of(path)
        # Read after the file: a checkpoint copies only what is in the log already.
        tokens, changes_in_log = _tokens(log)
        beginning = beginning_of(log)
        if lineage is None or (lineage.token == NOTHING and not tokens):
            return False
        known = _changes_in(lineage.token)
        if lineage.token in tokens and (None in (known, changes) or changes in {known, *changes_in_log}):
            return False
        if beginning == seen:  # it has a commit, and no writer restarted it between the two attempts
            return bool(tokens) or not in_use()
        if not _has_commit(log):
            return False
        seen = beginning
    return False  # a writer is at work


def _changes_of(path: Path) -> int | None:
    """Return the schema cookie of the file itself; None if the file is unreadable without its log."""
    try:
        with connected(f"{path.as_uri()}?mode=ro&immutable=1", uri=True) as connection:
            return int(connection.execute("PRAGMA schema_version").fetchone()[0]) & 0xFFFFFFFF
    except sqlite3.Error:
        return None


def _changes_in(token: bytes) -> int | None:
    """Return the schema cookie in a token; None for a token without the mark."""
    _, mark, changes = _TOKEN.unpack(token) if len(token) == _TOKEN.size else (b"", b"", 0)
    return int(changes) if mark == _MARK else None


def _tokens(log: Path) -> tuple[set[bytes], set[int | None]]:
    """Return the tokens and the schema cookies in a log's frames, including those of a torn transaction."""
    tokens: set[bytes] = set()
    changes: set[int | None] = set()
    for frame in _frames(log):
        if (lineage := lineage_in(frame)) is not None:
            tokens |= set(lineage)
        if frame.number == 1:
            changes.add(int.from_bytes(frame.read(_PLACE_OF_CHANGES, 4), "big"))
    return tokens, changes | {_changes_in(token) for token in tokens}


def lineage_in(frame: Frame) -> Lineage | None:
    """Return the lineage in a frame's page; None for pages of other tables."""
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
    """Return True if recovery would replay something: the checksums are valid up to a commit frame."""
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
