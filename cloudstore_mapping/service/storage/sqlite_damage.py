"""Damage of a write-ahead log that a crash left: tell whether saves that were answered stand behind it.

SQLite replays a log up to its first frame that is not right, and takes what follows for a transaction that a crash cut
off. Each commit is synced before it is answered, and what is written next is chained to it. So the last transaction in
a log may be torn, and nothing but damage tears an earlier one.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

from cloudstore_mapping.service.storage.sqlite_lineage import NOTHING, TRIES, Lineage, lineage_in, lineage_of
from cloudstore_mapping.service.storage.sqlite_log import (
    FRAME,
    HEADER,
    VERSION,
    Frame,
    all_frames,
    at,
    is_little,
    is_right,
    summed,
)

# The header of the index (``-shm``), twice, then how many frames were carried over into the file.
_INDEX: Final = struct.Struct(
    "=I 8x B x 2x I I 8x 8s II"
)  # version, whether it is valid, frames, pages, salts, checksums
_INDEX_SIZE: Final = 2 * _INDEX.size + 4

#: Descriptors of indexes that were looked at, by device and inode. Closing one would end all locks of this process on
#: its file, which another thread may have opened meanwhile.
_kept: Final[dict[tuple[int, int], int]] = {}


class Log(NamedTuple):
    """What SQLite would replay: the log's header, its frames up to the last commit; and whether more was answered."""

    beginning: bytes
    frames: int
    is_damaged: bool


class Index(NamedTuple):
    """What an index tells: the salts of its log, the frames that were answered, and those that are in the file."""

    salts: bytes
    frames: int
    carried_over: int


def is_damaged(log: Path, path: Path) -> bool:
    """Return whether the log of the file at `path` proves that SQLite would drop saves; both may be in use."""
    seen: Log | None = None
    for _ in range(TRIES):
        found = look_at_log(log, path)
        if not found.is_damaged:
            return False
        if found == seen:  # the frame where it breaks off is not just being written
            return True
        seen = found
    return False


def lacks_saves(log: Path, path: Path, index: Path) -> bool:
    """
    Return whether frames that were answered are missing from a log, by its index, which no process has open.

    An index is never synced. It tells nothing once the machine was started anew.
    """
    told = index_at(index)
    if told is None:
        return False
    found = look_at_log(log, path)
    if not any(found.beginning):
        return told.frames > told.carried_over and told == index_at(index)
    return told.salts == found.beginning[16:24] and told.frames > found.frames


def look_at_log(log: Path, path: Path) -> Log:
    """Return what SQLite would replay of the log of the file at `path`."""
    try:
        file = log.open("rb", buffering=0)
    except FileNotFoundError:
        return Log(b"", 0, is_damaged=False)
    with file:
        size = os.fstat(file.fileno()).st_size
        beginning = at(file, 0, HEADER.size)
        if not is_right(beginning):
            # It is written and synced as one piece, before any frame.
            return Log(beginning, 0, is_damaged=any(beginning) or size > HEADER.size)
        lineage = lineage_of(path)  # after the header, so that it is no older than the log
        walk = _Walk(beginning, lineage)
        for frame in all_frames(file, beginning):
            walk.take(frame)
        return Log(beginning, walk.committed, walk.is_damaged)


class _Walk:
    """Goes through a log's frames as SQLite does, and on where SQLite ends."""

    def __init__(self, beginning: bytes, lineage: Lineage | None) -> None:
        #: Frames up to the last commit that SQLite would replay.
        self.committed = 0
        self._beginning = beginning
        self._little = is_little(beginning)
        self._frames = 0
        self._goes_on = True  # SQLite would read on
        self._sums: list[tuple[int, int]] = [struct.unpack(">II", beginning[24:])]  # that the next may continue
        self._after_commit = False  # the frame before is the end of a transaction, and right
        self._is_continued = False  # such an end, behind the place where SQLite ends, has been written on from
        self._known: set[bytes] = {NOTHING, *(lineage or ())}  # tokens of the states that SQLite would bring back
        self._rows: list[Lineage] = []  # of what isn't committed

    @property
    def is_damaged(self) -> bool:
        """Whether a transaction behind the last one that SQLite would replay was answered: another continues it."""
        begun_from = {row.previous for row in self._rows} - self._known
        if self._known == {NOTHING}:  # the file can't be read without the log
            begun_from &= {row.token for row in self._rows}
        return self._is_continued or bool(begun_from)

    def take(self, frame: Frame) -> None:
        """Look at the next frame."""
        number, pages, salts, *stored = FRAME.unpack(frame.header)
        written = (stored[0], stored[1])
        self._frames += 1
        if salts != self._beginning[16:24]:  # left of an older log, or the salts are damaged
            self._goes_on = self._after_commit = False
            self._sums = [written]
            return
        page = frame.header[:8] + frame.read(0, frame.size)
        sums = [summed(page, before, little=self._little) for before in self._sums]
        fits = number > 0 and written in sums
        self._goes_on = self._goes_on and fits
        if fits:
            self._is_continued = self._is_continued or (self._after_commit and not self._goes_on)
            if (row := lineage_in(frame)) is not None:
                self._rows.append(row)
        if self._goes_on and pages:
            self.committed = self._frames
            self._known.update(*self._rows)
            self._rows.clear()
        self._after_commit = fits and pages > 0 and not self._goes_on
        # Behind a damaged frame, its checksum is right if its page isn't, and the other way round.
        self._sums = [written] if fits else [written, sums[0]]


def index_at(index: Path) -> Index | None:
    """Return what a valid index tells that was written since the machine was started; None for all others."""
    for key, kept in list(_kept.items()):
        if not os.fstat(kept).st_nlink:  # SQLite is done with it
            os.close(_kept.pop(key))
    try:
        found = index.stat()
        if found.st_size < _INDEX_SIZE or not started_at() <= found.st_ctime <= time.time():
            return None  # of an earlier start, or the clock isn't set yet
        key = found.st_dev, found.st_ino
        if key not in _kept:
            _kept[key] = os.open(index, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    facts = os.pread(_kept[key], _INDEX_SIZE, 0)
    header = facts[: _INDEX.size]
    version, is_valid, frames, _, salts, *expected = _INDEX.unpack(header)
    is_little_here = sys.byteorder == "little"
    if header != facts[_INDEX.size : 2 * _INDEX.size] or version != VERSION or not is_valid:
        return None
    if summed(header[:40], (0, 0), little=is_little_here) != tuple(expected):
        return None
    return Index(salts, frames, int.from_bytes(facts[2 * _INDEX.size :], sys.byteorder))


def started_at() -> float:
    """Return when the machine was started, by today's clock."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
