"""Files of an SQLite store: the database, its write-ahead log, their identity, and disk space."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import sqlite3
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final, Literal, NamedTuple, Protocol, TypeAlias

from cloudstore_mapping.errors import OutcomeUnknownError, UnavailableError, UnsupportedError, shorten
from cloudstore_mapping.sqlite_forks import connected
from cloudstore_mapping.storefiles import SIDECARS, refuse_sidecar

FULL: Final = "The store's disk is full; free some space, then try again."
READ_ONLY: Final = "The store's file system is read-only; mount it for writing, then start again."

#: Bytes that the log grows to as a rule before it is carried over into the file, and some more: 1,000 pages of 4 KiB.
LOG: Final = 5 * 2**20
#: The part of a small disk that is kept at most.
PART: Final = 4
#: Bytes of a log that is given back once the disk gets full, and the part of a small disk that it may be.
LARGE_LOG: Final = 2**20
LARGE_LOG_PART: Final = 16

#: SQLite's number for a file whose unused pages can be given back to the disk one by one.
INCREMENTAL: Final = 2


class Disk(Protocol):
    """What `disk_of` tells of a disk, in bytes."""

    @property
    def total(self) -> int:
        """How large it is; 0 where that isn't told."""

    @property
    def free(self) -> int:
        """How much of it is free."""

    @property
    def read_only(self) -> bool:
        """Whether its file system takes no writes, which a failing disk may make of it while it is in use."""


class _Disk(NamedTuple):
    total: int
    free: int
    read_only: bool


def disk_of(folder: str) -> Disk:
    """Return the disk that a folder is on."""
    if not hasattr(os, "statvfs"):
        total, _, free = shutil.disk_usage(folder)
        return _Disk(total, free, read_only=False)
    found = os.statvfs(folder)
    return _Disk(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, bool(found.f_flag & os.ST_RDONLY))


class DiskReserve:
    """
    The disk that the SQLite file at `path` is on, for one transaction after another; `look` tells of a folder's disk.

    It is looked at once in a transaction, for that takes as long as a tenth of a small write.
    """

    def __init__(self, path: Path, look: Callable[[str], Disk] = disk_of) -> None:
        self._look = look
        self._folder = str(path.parent)
        self._log = Path(f"{path}-wal")
        self.begin()

    def begin(self) -> None:
        """Begin a transaction."""
        self._taken = 0
        self._disk: Disk | None = None

    def log_is_in_the_way(self) -> bool:
        """Return whether the disk gets full and the log is large; to empty it makes room for deletes."""
        self._disk = self._look(self._folder)
        log = self._log_size() if self._disk.free < 4 * LOG else 0
        if self._disk.total <= 0 or log <= min(LARGE_LOG, self._disk.total // LARGE_LOG_PART):
            return False
        self._disk = None  # what is free will be another number
        return True

    def take(self, size: int, unused: Callable[[], int]) -> None:
        """
        Take so many bytes; `UnavailableError` where the disk is read-only, or they would take what is kept of it.

        `unused` returns how many bytes of the file itself are free. All is written twice: to the log, then to the file.
        """
        if self._disk is None:
            self._disk = self._look(self._folder)
        disk = self._disk
        if disk.read_only:  # before a commit fails, after which nothing is written any more
            raise UnavailableError(READ_ONLY, retry_after=1.0)
        needed = 2 * (self._taken + size)
        if disk.free < needed + 2 * LOG and disk.total > 0:  # some file systems don't tell
            needed += self._kept(disk)
            if disk.free < needed and disk.free + unused() < needed:
                raise UnavailableError(FULL, retry_after=1.0)
        self._taken += size

    def _kept(self, disk: Disk) -> int:
        # What is in the log may have to be added to the file before the log is written from its beginning again.
        return max(self._log_size(), min(LOG, disk.total // PART))

    def _log_size(self) -> int:
        try:
            return self._log.stat().st_size
        except FileNotFoundError:
            return 0


_SENTENCES: Final = {
    sqlite3.SQLITE_BUSY: "Another process holds the store; try again.",
    sqlite3.SQLITE_CANTOPEN: "The store's file can't be opened any more; look whether it was moved.",
    sqlite3.SQLITE_FULL: FULL,
    sqlite3.SQLITE_READONLY: "The store can't be written to; look at the permissions of its file and folder.",
    sqlite3.SQLITE_CORRUPT: "The store's file is damaged; restore a backup of it.",
    sqlite3.SQLITE_NOTADB: "The store's file is damaged; restore a backup of it.",
    sqlite3.SQLITE_IOERR: "The store's disk failed; look at it, then start again.",
}


#: The sentences for a process, and for a system, at the limit of open files, by errno.
NO_MORE_FILES: Final = {
    errno.EMFILE: "This process has as many files open as it may; raise its limit of open files (ulimit -n).",
    errno.ENFILE: "The system has as many files open as it may; raise its limit of open files (fs.file-max).",
}


def unavailable(error: sqlite3.Error) -> UnavailableError:
    """Return what an error of SQLite is called outside."""
    code = primary_code(error)
    sentence = no_more_files() if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR) else None
    if sentence is None and getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE:
        sentence = FULL  # no room for the index of the log, which the first that opens the file makes
    if sentence is None:
        sentence = _SENTENCES.get(code, f"The store failed: {error}.")
    return UnavailableError(sentence, retry_after=1.0)


def no_more_files() -> str | None:
    """Return the sentence for a process or system at its limit of open files, None elsewhere; SQLite doesn't tell."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return NO_MORE_FILES.get(error.errno or 0)
    return None


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code, `SQLITE_ERROR` for an error of the module's own."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


HEADER: Final = struct.Struct(">II I I 8s II")  # magic, version, page size, checkpoints, salts, checksums
FRAME: Final = struct.Struct(">II 8s II")  # page number, pages in all after a commit, salts, checksums
VERSION: Final = 3007000
_MAGIC: Final = 0x377F0682


class Frame(NamedTuple):
    """Header of a frame in an open log, and the place of its page."""

    file: IO[bytes]
    header: bytes
    page: int
    size: int

    @property
    def number(self) -> int:
        """Page number in the database, from 1."""
        return int.from_bytes(self.header[:4], "big")

    def read(self, place: int, size: int) -> bytes:
        """Return bytes of the page, fewer if the log ends within it."""
        return at(self.file, self.page + place, size)


def page_size(beginning: bytes) -> int | None:
    """Return the page size in a log's header, in bytes; None for anything else than a header."""
    if len(beginning) < HEADER.size:
        return None
    magic, version, size, *_ = HEADER.unpack(beginning)
    if magic & ~1 != _MAGIC or version != VERSION or not 512 <= size <= 65536 or size & (size - 1):
        return None
    return int(size)


def is_little(beginning: bytes) -> bool:
    """Return True if the checksums of a log with this header use little-endian numbers."""
    return not beginning[3] & 1


def is_right(beginning: bytes) -> bool:
    """Return True for a valid header of a log, with its checksum."""
    return page_size(beginning) is not None and HEADER.unpack(beginning)[-2:] == summed(
        beginning[:24], (0, 0), little=is_little(beginning)
    )


def frames(file: IO[bytes], beginning: bytes) -> Iterator[Frame]:
    """Yield the frames of a log with this header, up to its end or to frames from before its last restart."""
    for frame in all_frames(file, beginning):
        if not frame.number or FRAME.unpack(frame.header)[2] != beginning[16:24]:
            return
        yield frame


def all_frames(file: IO[bytes], beginning: bytes) -> Iterator[Frame]:
    """Yield the frames of a log with this header, and those from before its last restart behind them."""
    size = page_size(beginning)
    place = HEADER.size
    while size is not None and len(header := at(file, place, FRAME.size)) == FRAME.size:
        yield Frame(file, header, place + FRAME.size, size)
        place += FRAME.size + size


def beginning_of(log: Path) -> bytes:
    """Return the header of a log, different after each restart of the log; empty if there is no log."""
    try:
        with log.open("rb") as file:
            return file.read(HEADER.size)
    except FileNotFoundError:
        return b""


def at(file: IO[bytes], place: int, size: int) -> bytes:
    """Return bytes of a file."""
    file.seek(place)
    return file.read(size)


def summed(data: bytes, sums: tuple[int, int], *, little: bool) -> tuple[int, int]:
    """Return SQLite's checksums of `data`, continued from `sums`."""
    first, second = sums
    if len(data) % 8:
        return -1, -1  # the log ends within a page
    for one, other in struct.iter_unpack("<II" if little else ">II", data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second


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


_log: Final = logging.getLogger(__name__)

#: Device and inode of a file; None for a path that leads to none.
_Id: TypeAlias = tuple[int, int] | None

LOST: Final = "The store's {} was moved, deleted or replaced while the store was open; put it back, or start again."
_LOST_MEANWHILE: Final = (
    "The store's {} was moved, deleted or replaced while this was written, and it may be lost; put it back, then look."
)


class Identity:
    """
    Device and inode of the file at `path`, and of the log beside it, since they were opened.

    SQLite keeps using the files it opened, even if their paths lead elsewhere by now: a commit succeeds, and whoever
    opens the path later misses it. SQLite doesn't notice either that `cp` writes another store's bytes into the file.
    Only checkpoints change the file, so its content is checked whenever its modification time has changed.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        resolved = os.path.realpath(path)  # SQLite follows links before it adds an ending
        self._log_path, self._index_path = f"{resolved}-wal", f"{resolved}-shm"
        self._file = _identity(self._path)
        self._files = [("file", self._path, self._file)]
        self._changed = _changed(self._path)
        self._is_overwritten = False
        self._is_committing = False
        self._looking = threading.Lock()

    def add_log(self) -> None:
        """Include the log and its index from now on; the first transaction has made them."""
        for path in (self._log_path, self._index_path):
            self._files.append((f"{path[-4:]} file", path, _identity(path)))

    def check(self) -> None:
        """Raise `UnavailableError` where one of the files is gone from its path: nothing was written."""
        if (lost := self.lost()) is not None:
            raise UnavailableError(LOST.format(lost), retry_after=1.0)

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Attribute changes of the file within the block to a checkpoint of this commit."""
        self._is_committing = True
        try:
            yield
        finally:
            try:
                self._changed = _changed(self._path)
            finally:
                self._is_committing = False

    def check_committed(self) -> None:
        """Raise `OutcomeUnknownError` where one of the files is gone from its path, though a commit succeeded."""
        if (lost := self.lost()) is not None:
            raise OutcomeUnknownError(_LOST_MEANWHILE.format(lost), error="OutcomeUnknown")

    def lost(self) -> str | None:
        """Return the name of a file moved, replaced or overwritten since it was opened; None if all are there."""
        for name, path, opened in self._files:
            if opened is None or _identity(path) != opened:
                return name
        return "file" if self.is_overwritten() else None

    def is_overwritten(self) -> bool:
        """Return True if the file holds another store by now, as after ``cp other.db store.db``."""
        changed = _changed(self._path)
        if self._is_overwritten or changed == self._changed or self._is_committing:
            return self._is_overwritten
        if _identity(self._path) != self._file:
            return False  # the path leads to another file, and this one is unchanged
        if not self._looking.locked():  # one thread is enough: the log may be long
            with self._looking:  # which an interrupt can't leave behind, unlike one that is only tried for
                self._is_overwritten = is_of_another_file(Path(self._log_path), Path(self._path), lambda: True)
                self._changed = changed
        return self._is_overwritten

    def set_log_aside(self, what_happened: str) -> None:
        """Rename the log, so that it is never applied to the file at the path now."""
        Path(self._index_path).unlink(missing_ok=True)  # first: beside the log no other file is opened
        with suppress(FileNotFoundError):  # another process has set it aside
            kept = f"{self._log_path}.{secrets.token_hex(4)}.lost"
            os.rename(self._log_path, kept)  # noqa: PTH104 - a text
            _log.error("The store's file was %s while it was open; its last writes are in %s.", what_happened, kept)

    def part_from_log(self, connection: sqlite3.Connection) -> None:
        """
        Take the log away from the path that the store's file is gone from, before the last connection closes.

        SQLite leaves it there. A file that was moved would lack its last commits, and SQLite would replay them over
        another one that took its place. So they are carried over into the file that was moved. Of a deleted file the
        log is kept under another name, unless there is nothing at the path that it could harm.
        """
        if _identity(self._path) == self._file or any(_identity(path) != opened for _, path, opened in self._files[1:]):
            return
        if self._is_kept():
            # Where no other process has the file open this carries the log over and removes it. That the file is
            # no longer at its path is an error, but only of what SQLite does after that.
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA busy_timeout = 0")
                connection.execute("PRAGMA journal_mode = DELETE")
        # An empty log may be in use by now, with the file in the place of ours.
        elif os.path.exists(self._path) and os.path.getsize(self._log_path):  # noqa: PTH110, PTH202 - a text
            self.set_log_aside("replaced")

    def _is_kept(self) -> bool:
        """Whether the file still has a name somewhere, as far as the system tells."""
        with suppress(OSError):
            for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - a text
                with suppress(OSError):
                    found = os.stat(f"/proc/self/fd/{number}")  # noqa: PTH116 - a text
                    if (found.st_dev, found.st_ino) == self._file:
                        return found.st_nlink > 0
        return False


def _changed(path: str) -> int:
    """Return the modification time of a file in ns, 0 for no file."""
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116 - a text, looked at before each read and write
    except OSError:
        return 0


def _identity(path: str) -> _Id:
    try:
        found = os.stat(path)  # noqa: PTH116 - a text, looked at before and after each commit
    except OSError:
        return None
    return found.st_dev, found.st_ino


#: Bytes in the name of a store's file: file systems take 255, and a log's name is longer.
MAX_NAME: Final = 255 - len("-journal")
#: A journal of SQLite begins with this.
JOURNAL: Final = bytes.fromhex("d9d505f920a163d7")

#: File systems on which locks reach other machines, and shared memory doesn't.
NETWORK: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3"}
    | {"virtiofs"}
)
#: The kinds of what is no ordinary file; SQLite opens none of them as a log, and some would keep it waiting for ever.
KINDS: Final = {
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
#: Linux's tables of mounted file systems and of the locks of this machine's processes.
MOUNTS: Final = Path("/proc/self/mountinfo")
LOCKS: Final = Path("/proc/locks")
#: Seconds that another process of this machine may take to look as well.
PATIENCE: Final = 1.0


def check_place(path: Path) -> None:
    """
    Raise `UnsupportedError` or `OSError` unless a store may be opened, or made, at `path`.

    Nothing is opened where that would lose data: beside a log of another file, by one of several names of a file, or
    while another machine has it open.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it.")
    if path.exists() and not path.is_file():
        raise UnsupportedError(f"{path} is no ordinary file; choose another name.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}; make it first.")
    _check_name(path)
    real = Path(os.path.realpath(path))
    refuse_sidecar(path)
    if real.name.lower().endswith(SIDECARS) and not real.exists():
        raise UnsupportedError(
            f"{path} is no name for a store: SQLite takes a file whose name ends so for another one's log; choose "
            "another name."
        )
    refuse_leftovers(path)
    _refuse_hard_links(path, real)
    if is_open_elsewhere(real):
        raise UnsupportedError(
            f"{path} is open on another machine, which shares no memory with this one; close it there, or run "
            "`cloudstore serve` there and use its address."
        )


def _check_name(path: Path) -> None:
    """Raise `OSError` for a name too long for SQLite, which adds ``-journal`` to it."""
    length = len(os.fsencode(path.name))
    if length > MAX_NAME:
        raise OSError(
            f"{shorten(path.name)} has {length} bytes, and its log's name 8 more, but a file's name has at most 255; "
            f"choose a name of {MAX_NAME} bytes at most."
        )


def refuse_leftovers(path: Path) -> None:
    """
    Raise `UnsupportedError` for a log at `path` without its file: SQLite would delete it, or replay it over another.

    The same for a log that is damaged, of which SQLite would drop what follows the damage, or that is no ordinary file.
    An empty file is as good as none. An empty log holds no data, nor does a ``-shm`` alone, and SQLite makes it anew,
    unless a process still uses it with the file that was there before.
    """
    real = Path(os.path.realpath(path))
    _refuse_odd_kinds(path, real)
    # Found before the file is looked at: SQLite makes the file first, and another process may do so now.
    logs, shm = _logs(real), _existing(Path(f"{real}-shm"))
    file = _existing(real)
    is_gone = file is None or file.st_size == 0
    if is_gone and shm is not None and _is_locked_here(shm):
        raise UnsupportedError(f"A process still uses the store whose file was at {path} before; end it first.")
    left = logs if is_gone else []
    # SQLite looks beside the file itself. What lies beside a link to it was left when the file was moved.
    if path.is_symlink():
        left += [log for log in _logs(path) if os.path.realpath(log) != f"{real}{log.name[len(path.name) :]}"]
    if left:
        raise UnsupportedError(
            f"{left[0]} was left by a store whose file is not at {path} any more; move that file back beside it, or "
            "move what was left away."
        )
    if is_gone:
        return
    _refuse_damage(real)
    if (log := _log_of_another_file(real)) is not None:
        raise UnsupportedError(
            f"{log} was written for another file than the one at {path}; move that file back beside it, or move the "
            "log away."
        )


def _refuse_odd_kinds(path: Path, real: Path) -> None:
    """Raise `UnsupportedError` for a log that is no ordinary file; beside a link to a store it may be a link itself."""
    beside = [(Path(f"{real}{end}"), os.lstat) for end in SIDECARS]
    if path.is_symlink():
        beside += [(Path(f"{path}{end}"), os.stat) for end in SIDECARS]
    for log, look in beside:
        try:
            mode = look(log).st_mode
        except OSError:  # there is none, or nothing that can be looked at
            continue
        if not stat.S_ISREG(mode):
            kind = KINDS.get(stat.S_IFMT(mode), "no ordinary file")
            raise UnsupportedError(f"{log} is {kind}, and SQLite keeps a file of that name; move it away.")


def _refuse_damage(path: Path) -> None:
    """Raise `UnsupportedError` for a log of which SQLite, as the first to open it, would drop what was answered."""
    log, index = Path(f"{path}-wal"), Path(f"{path}-shm")
    if not log.exists() or _is_in_use(path, index):
        return
    if is_damaged(log, path):
        raise UnsupportedError(
            f"{log} is damaged, and saves behind the damage would be lost; restore a backup, or move the log away to "
            "go on without its saves."
        )
    if LOCKS.exists() and lacks_saves(log, path, index) and not _is_in_use(path, index):
        raise UnsupportedError(
            f"{log} is damaged, for it lacks saves that {index} tells of; restore a backup, or move {index} away to go "
            "on without them."
        )


def _is_in_use(*files: Path) -> bool:
    return any((found := _existing(file)) is not None and _is_locked_here(found) for file in files)


def holds_data(log: Path) -> bool:
    """Return whether there is a log, or anything else, that isn't an empty file."""
    try:
        facts = log.stat()
    except FileNotFoundError:  # a link that leads nowhere, or nothing: another process may just have removed it
        return log.is_symlink()
    return not (stat.S_ISREG(facts.st_mode) and not facts.st_size)


def reading_mode(path: Path) -> Literal["ro", "rw"]:
    """
    Return the mode of a connection that reads a store, and leaves nothing beside it that wasn't there.

    SQLite makes a log for a file that has none, and only a connection that may write removes it. A log that holds data
    is left as it is by one that may not.
    """
    return "ro" if holds_data(Path(f"{os.path.realpath(path)}-wal")) else "rw"


def _log_of_another_file(path: Path) -> Path | None:
    """Return the log that would overwrite the file at `path`, which isn't the one that the log was written for."""
    wal, journal = Path(f"{path}-wal"), Path(f"{path}-journal")
    if holds_data(wal) and is_of_another_file(wal, path, lambda: _is_locked_here(path.stat())):
        return wal
    # A journal of a new file empties it. The file that it was written for holds nothing yet.
    if is_of_new_file(journal_head(journal)):
        lineage = lineage_of(path)
        is_new = lineage is None or (any(lineage.token) and not any(lineage.previous))
        if not is_new and is_of_new_file(journal_head(journal)):  # else another process has made it meanwhile
            return journal
    return None


def journal_head(path: Path) -> bytes:
    """Return the beginning of a journal; empty where there is none. SQLite holds no locks on it."""
    try:
        with path.open("rb") as file:
            return file.read(20)
    except FileNotFoundError:
        return b""


def is_of_new_file(head: bytes) -> bool:
    """Return whether a journal undoes all that is in its file: a crash came while the file was made."""
    return head.startswith(JOURNAL) and head[16:] == bytes(4)  # the pages that there were before


def is_open_elsewhere(path: Path) -> bool:
    """
    Return whether another machine has the store at `path` open, on a file system where locks tell so.

    Both machines would go by a ``-shm`` of their own, and write the same parts of the log. A process of this machine
    that has the store open was let in by this test, so another one may follow it.
    """
    file = _existing(path)
    if file is None or not Path(f"{path}-shm").exists() or not _is_on_network(file) or not LOCKS.exists():
        return False
    return not (_is_locked_here(file) or _is_free(path) or _is_locked_here(file))


def _existing(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _logs(path: Path) -> list[Path]:
    """Return the logs at `path`, but for a journal that isn't on disk yet, or undoes the making of a file."""
    wal, journal = Path(f"{path}-wal"), Path(f"{path}-journal")
    head = journal_head(journal)
    has_pages = head[:1] not in (b"", b"\0") and not is_of_new_file(head)  # SQLite goes by the first byte too
    return [log for log, is_log in ((wal, holds_data(wal)), (journal, has_pages)) if is_log]


def _refuse_hard_links(path: Path, real: Path) -> None:
    file = _existing(real)
    if file is None or file.st_nlink < 2:
        return
    # A copy gets its name by a link, and a crash may come before its draft's name is gone.
    drafts = [
        entry
        for entry in os.scandir(real.parent)
        if entry.name.startswith(f".{real.name}.") and entry.name.endswith(".part") and entry.inode() == file.st_ino
    ]
    if file.st_nlink > 1 + len(drafts):
        raise UnsupportedError(
            f"{path} is one of {file.st_nlink} names of a file (hard links), and a log is found by the name that made "
            "it; keep one name, and remove the others."
        )


def _is_on_network(file: os.stat_result) -> bool:
    for mount in map(str.split, _table(MOUNTS)):
        if mount[2] == f"{os.major(file.st_dev)}:{os.minor(file.st_dev)}":
            return mount[mount.index("-") + 1] in NETWORK
    return False


def _is_locked_here(file: os.stat_result) -> bool:
    return any(
        f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}" in line.split()
        for line in _table(LOCKS)
    )


def _table(path: Path) -> list[str]:
    """Return the lines of a table of Linux; without Linux, none."""
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def _is_free(path: Path) -> bool:
    try:
        with connected(f"{path.as_uri()}?mode=rw", uri=True, timeout=PATIENCE) as connection:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # which needs no shared memory
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error as error:
        return primary_code(error) != sqlite3.SQLITE_BUSY  # opening the store says anything else
    return True
