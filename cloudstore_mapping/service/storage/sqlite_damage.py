"""Damaged write-ahead log: detect acknowledged commits behind a damaged frame of a log left by a crash.

SQLite recovers a log up to its first invalid frame and takes the rest for a torn transaction. Each commit is synced
before it is acknowledged, and the checksums of the next transaction continue those of the commit. So a crash tears only
the last transaction; an earlier one is torn by damage.
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

# The wal-index (``-shm``): its header twice (version, initialised, frames, pages, salts, checksums), then the number of
# frames in the file by checkpoints.
_INDEX: Final = struct.Struct("=I 8x B x 2x I I 8x 8s II")
_INDEX_SIZE: Final = 2 * _INDEX.size + 4

#: Descriptors of wal-indexes, by device and inode. Closing one would drop all locks of this process on its file, and
#: another thread may have opened the store meanwhile.
_kept: Final[dict[tuple[int, int], int]] = {}


class Log(NamedTuple):
    """Recovery of a log: its header, its frames up to the last commit SQLite finds, and damage in front of others."""

    beginning: bytes
    frames: int
    is_damaged: bool


class Index(NamedTuple):
    """Content of a wal-index: the salts of its log, the committed frames, and those in the file by a checkpoint."""

    salts: bytes
    frames: int
    checkpointed: int


def is_damaged(log: Path, path: Path) -> bool:
    """Return True if recovery of the log of the file at `path` would drop acknowledged saves; both may be in use."""
    seen: Log | None = None
    for _ in range(TRIES):
        found = look_at_log(log, path)
        if not found.is_damaged:
            return False
        if found == seen:  # no writer is just writing the invalid frame
            return True
        seen = found
    return False


def lacks_saves(log: Path, path: Path, index: Path) -> bool:
    """
    Return True if the log lacks committed frames of its wal-index; no process may have the store open.

    A wal-index is never synced, so one from before the last boot is ignored.
    """
    told = index_at(index)
    if told is None:
        return False
    found = look_at_log(log, path)
    if not any(found.beginning):
        return told.frames > told.checkpointed and told == index_at(index)
    return told.salts == found.beginning[16:24] and told.frames > found.frames


def look_at_log(log: Path, path: Path) -> Log:
    """Walk the log of the file at `path` as recovery does, and on behind the first invalid frame."""
    try:
        file = log.open("rb", buffering=0)
    except FileNotFoundError:
        return Log(b"", 0, is_damaged=False)
    with file:
        size = os.fstat(file.fileno()).st_size
        beginning = at(file, 0, HEADER.size)
        if not is_right(beginning):
            # SQLite writes and syncs the header before any frame.
            return Log(beginning, 0, is_damaged=any(beginning) or size > HEADER.size)
        lineage = lineage_of(path)  # read after the header, so it is no older than the log
        walk = _Walk(beginning, lineage)
        for frame in all_frames(file, beginning):
            walk.take(frame)
        return Log(beginning, walk.committed, walk.is_damaged)


class _Walk:
    """Walk over a log's frames: follow recovery, then look for commits behind its end."""

    def __init__(self, beginning: bytes, lineage: Lineage | None) -> None:
        #: Frames up to the last commit of recovery.
        self.committed = 0
        self._beginning = beginning
        self._little = is_little(beginning)
        self._frames = 0
        self._goes_on = True  # recovery has met no invalid frame
        self._sums: list[tuple[int, int]] = [struct.unpack(">II", beginning[24:])]  # candidates for the next frame
        self._after_commit = False  # the frame before is a valid commit frame behind the end of recovery
        self._is_continued = False  # a frame continues the checksums of such a commit
        self._known: set[bytes] = {NOTHING, *(lineage or ())}  # tokens of the file and of recovered transactions
        self._rows: list[Lineage] = []  # tokens of transactions not recovered

    @property
    def is_damaged(self) -> bool:
        """True if a later transaction continues a commit behind the end of recovery: it was acknowledged."""
        begun_from = {row.previous for row in self._rows} - self._known
        if self._known == {NOTHING}:  # the file is unreadable without the log
            begun_from &= {row.token for row in self._rows}
        return self._is_continued or bool(begun_from)

    def take(self, frame: Frame) -> None:
        """Check the next frame."""
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
        # The stored checksum of a damaged frame is valid if the page is damaged; otherwise the computed one is.
        self._sums = [written] if fits else [written, sums[0]]


def index_at(index: Path) -> Index | None:
    """Return the content of a valid wal-index written since the last boot; None for all others."""
    for key, kept in list(_kept.items()):
        if not os.fstat(kept).st_nlink:  # SQLite is done with it
            os.close(_kept.pop(key))
    try:
        found = index.stat()
        if found.st_size < _INDEX_SIZE or not started_at() <= found.st_ctime <= time.time():
            return None  # from before the last boot, or the clock isn't set yet
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
    """Return the time of the last boot, by the present clock."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
