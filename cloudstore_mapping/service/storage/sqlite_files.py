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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final, Literal, NamedTuple, Protocol, TypeAlias

from cloudstore_mapping.errors import UnavailableError, UnsupportedError, shorten
from cloudstore_mapping.service.storage.base import DiskFullError, MovedMeanwhileError, NoSpaceError, OperatorError
from cloudstore_mapping.sqlite_forks import connected
from cloudstore_mapping.storefiles import SIDECARS, refuse_log_name, refuse_sidecar

FULL: Final = "The store's disk is full; free some space, then try again."
#: SQLite's smallest wal-index (``-shm``), which the first connection creates, has 32 KiB.
FULL_FOR_INDEX: Final = "The store's disk is full; free at least 32 KiB, then try again."
READ_ONLY: Final = "The store's file system is read-only; mount it for writing, then start again."

#: Typical maximum size of the log in bytes before a checkpoint (1,000 pages of 4 KiB), with a margin.
LOG: Final = 5 * 2**20
#: A disk with less free space is nearly full.
NEARLY_FULL: Final = 4 * LOG
#: At most one part in PART of a small disk is reserved.
PART: Final = 4
#: Logs above LARGE_LOG bytes, or above one part in LARGE_LOG_PART of a small disk, are truncated on a nearly full disk.
LARGE_LOG: Final = 2**20
LARGE_LOG_PART: Final = 16

#: SQLite's number of the vacuum mode `incremental`: unused pages can be returned to the disk one by one.
INCREMENTAL: Final = 2

# Transient disk errors, for example shared memory or a lock is unavailable.
_PASSING: Final = frozenset(
    {
        sqlite3.SQLITE_IOERR_NOMEM,
        sqlite3.SQLITE_IOERR_ACCESS,
        sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
        sqlite3.SQLITE_IOERR_LOCK,
        sqlite3.SQLITE_IOERR_UNLOCK,
        sqlite3.SQLITE_IOERR_RDLOCK,
        sqlite3.SQLITE_IOERR_SHMOPEN,
        sqlite3.SQLITE_IOERR_SHMSIZE,
        sqlite3.SQLITE_IOERR_SHMLOCK,
        sqlite3.SQLITE_IOERR_SHMMAP,
        sqlite3.SQLITE_IOERR_GETTEMPPATH,
        sqlite3.SQLITE_IOERR_CONVPATH,
    }
)


class Disk(Protocol):
    """Disk space in bytes, as returned by `disk_of`."""

    @property
    def total(self) -> int:
        """Total size; 0 if unknown."""

    @property
    def free(self) -> int:
        """Free space."""

    @property
    def read_only(self) -> bool:
        """True if the file system refuses writes; a failing disk may switch to that during use."""


class _Disk(NamedTuple):
    total: int
    free: int
    read_only: bool


def disk_of(folder: str) -> Disk:
    """Return the disk of a folder."""
    if not hasattr(os, "statvfs"):
        total, _, free = shutil.disk_usage(folder)
        return _Disk(total, free, read_only=False)
    found = os.statvfs(folder)
    return _Disk(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, bool(found.f_flag & os.ST_RDONLY))


class DiskReserve:
    """
    Reserve of disk space for the SQLite file at `path`, one transaction after another; `look` returns a folder's disk.

    The disk is queried once per transaction, because a query takes a tenth of the time of a small write.
    """

    def __init__(self, path: Path, look: Callable[[str], Disk] = disk_of) -> None:
        self._look = look
        self._folder = str(path.parent)
        self._log = Path(f"{path}-wal")
        self.begin()

    def begin(self) -> None:
        """Begin a transaction: forget the reserved space."""
        self._taken = 0
        self._disk: Disk | None = None

    def is_nearly_full(self) -> bool:
        """Return True if the disk is nearly full, or will be once a checkpoint has copied the log to the file."""
        if self._disk is None:
            self._disk = self._look(self._folder)
        disk = self._disk
        if disk.total <= 0:  # as on some file systems
            return False
        # The log is part of the used space: only if that exceeds the free space, the log's size matters.
        is_half_full = 2 * disk.free < NEARLY_FULL + disk.total
        return disk.free < NEARLY_FULL + (self._log_size() if is_half_full else 0)

    def log_is_in_the_way(self) -> bool:
        """Return True if the disk is nearly full and the log is large; truncating it makes room for deletes."""
        self._disk = disk = self._look(self._folder)
        log = self._log_size() if self.is_nearly_full() else 0
        if disk.total <= 0 or log <= min(LARGE_LOG, disk.total // LARGE_LOG_PART):
            return False
        self._disk = None  # the truncation will change the free space
        return True

    def has(self, size: int) -> bool:
        """Return True if the disk has `size` free bytes, or doesn't tell."""
        disk = self._look(self._folder)
        return disk.total <= 0 or disk.free >= size

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Keep `size` bytes of the disk free during the block: a file without a name takes them until its end."""
        with ExitStack() as stack:
            with suppress(OSError):  # less is free, or the file system is read-only
                if size > 0:
                    file = stack.enter_context(TemporaryFile(dir=self._folder, buffering=0))
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, size)
                    else:
                        file.write(bytes(size))
            yield

    def take(self, size: int, unused: Callable[[], int], growth: Callable[[], int]) -> None:
        """
        Reserve `size` bytes; raise `NoSpaceError` if they would take the disk's reserve, `OperatorError` if read-only.

        Raise `DiskFullError` if emptying the log would make room: then the transaction's end empties it, and a second
        try succeeds. `unused` returns the free bytes inside the file itself, and `growth` the bytes that a checkpoint
        adds to it. All data is written twice: to the log, then to the file.
        """
        if self._disk is None:
            self._disk = self._look(self._folder)
        disk = self._disk
        if disk.read_only:  # before a commit fails: after a failed commit all writes are refused
            raise OperatorError(READ_ONLY, retry_after=1.0)
        needed = 2 * (self._taken + size)
        # The log is part of the used space: on a disk that is emptier than this, there is room for a checkpoint.
        if (disk.free < needed + 2 * LOG or 2 * disk.free < needed + LOG + disk.total) and disk.total > 0:
            # Behind a reader, the log waits for its checkpoint. Without room for it, nothing could be written any more.
            needed += max(0, growth()) + self._reserve(disk)
            if disk.free < needed and (missing := needed - disk.free - unused()) > 0:
                kind = DiskFullError if self._log_size() >= missing else NoSpaceError
                raise kind(self._sentence(disk, missing), retry_after=1.0)
        self._taken += size

    def full(self) -> DiskFullError:
        """Return the error for a transaction that filled the disk."""
        disk = self._look(self._folder)
        missing = self._reserve(disk) + 1 - disk.free
        # Otherwise another limit was reached, for example the user's quota.
        return DiskFullError(self._sentence(disk, missing) if missing > 0 else FULL, retry_after=1.0)

    def needed(self, size: int) -> int:
        """Return the bytes to be free on the disk for a write of `size` bytes."""
        return 2 * size + self._reserve(self._look(self._folder))

    def _reserve(self, disk: Disk) -> int:
        """Return the bytes kept for the log of deletes."""
        return min(LOG, disk.total // PART)

    def _sentence(self, disk: Disk, missing: int) -> str:
        if disk.total <= 0:
            return FULL
        reserve = self._reserve(disk)
        # Rounded up to whole MiB, so that the log doesn't repeat it for each small change.
        kept = f" but for {mebibytes(reserve)} kept for deletes" if disk.free >= reserve else ""
        return f"The store's disk is full{kept}; free at least {-(-missing // 2**20):,} MiB, then try again."

    def _log_size(self) -> int:
        try:
            return self._log.stat().st_size
        except FileNotFoundError:
            return 0


def mebibytes(size: int) -> str:
    """Return a size for an error message."""
    return f"{size / 2**20:,.1f}".removesuffix(".0") + " MiB"


_SENTENCES: Final = {
    sqlite3.SQLITE_BUSY: "Another process holds the store; try again.",
    sqlite3.SQLITE_CANTOPEN: "The store's file can't be opened any more; look whether it was moved.",
    sqlite3.SQLITE_READONLY: "The store can't be written to; look at the permissions of its file and folder.",
    sqlite3.SQLITE_CORRUPT: "The store's file is damaged; restore a backup of it.",
    sqlite3.SQLITE_NOTADB: "The store's file is damaged; restore a backup of it.",
    sqlite3.SQLITE_IOERR: "The store's disk failed; look at it, then start again.",
}


#: Error messages for the limit of open files, of a process and of the system, by errno.
NO_MORE_FILES: Final = {
    errno.EMFILE: "This process has as many files open as it may; raise its limit of open files (ulimit -n).",
    errno.ENFILE: "The system has as many files open as it may; raise its limit of open files (fs.file-max).",
}


def unavailable(error: sqlite3.Error) -> UnavailableError:
    """Return the `UnavailableError` for an SQLite error; of all but a busy store, the operator gets the reason."""
    code = primary_code(error)
    sentence = no_more_files() if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR) else None
    if sentence is None and getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE:
        return NoSpaceError(FULL_FOR_INDEX, retry_after=1.0)
    if code == sqlite3.SQLITE_FULL:
        return DiskFullError(FULL, retry_after=1.0)
    if sentence is None:
        sentence = _SENTENCES.get(code, f"The store failed: {error}.")
    kind = UnavailableError if code == sqlite3.SQLITE_BUSY else OperatorError
    return kind(sentence, retry_after=1.0)


def no_more_files() -> str | None:
    """Return the error message for the limit of open files if it is reached, else None; SQLite doesn't report it."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return NO_MORE_FILES.get(error.errno or 0)
    return None


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; `SQLITE_ERROR` for errors of the sqlite3 module itself."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


HEADER: Final = struct.Struct(">II I I 8s II")  # magic, version, page size, checkpoint number, salts, checksums
FRAME: Final = struct.Struct(">II 8s II")  # page number, database size in pages (commit frames only), salts, checksums
VERSION: Final = 3007000
_MAGIC: Final = 0x377F0682


class Damage:
    """Damage of a file or disk met by SQLite; all further writes are refused until the store is reopened."""

    def __init__(self) -> None:
        self.error: sqlite3.Error | None = None

    def note(self, error: sqlite3.Error, *, committing: bool = False) -> None:
        """Record the first error caused by damage; after a failed commit, any disk error counts."""
        if self.error is not None or (not committing and no_more_files() is not None):
            return
        if primary_code(error) == sqlite3.SQLITE_IOERR and (committing or error.sqlite_errorcode not in _PASSING):
            # After a failed sync the content of the disk is unknown, and the next sync would report success.
            self.error = error
            _log.error("The store's disk failed and it takes no more writes: %s.", error)
        elif primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self.error = error
            _log.error("The store's file is damaged and takes no more writes: %s.", error)


class Frame(NamedTuple):
    """Header of a frame in an open log, and the offset of its page."""

    file: IO[bytes]
    header: bytes
    page: int
    size: int

    @property
    def number(self) -> int:
        """Page number in the database, from 1."""
        return int.from_bytes(self.header[:4], "big")

    def read(self, place: int, size: int) -> bytes:
        """Return `size` bytes of the page from offset `place`, fewer if the log ends within it."""
        return at(self.file, self.page + place, size)


def page_size(beginning: bytes) -> int | None:
    """Return the page size in bytes from a log's header; None for an invalid header."""
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
    """Return True for a valid log header with a matching checksum."""
    return page_size(beginning) is not None and HEADER.unpack(beginning)[-2:] == summed(
        beginning[:24], (0, 0), little=is_little(beginning)
    )


def frames(file: IO[bytes], beginning: bytes) -> Iterator[Frame]:
    """Yield the frames of a log with this header, up to its end or to frames older than its last restart."""
    for frame in all_frames(file, beginning):
        if not frame.number or FRAME.unpack(frame.header)[2] != beginning[16:24]:
            return
        yield frame


def all_frames(file: IO[bytes], beginning: bytes) -> Iterator[Frame]:
    """Yield the frames of a log with this header, including older ones left behind its last restart."""
    size = page_size(beginning)
    place = HEADER.size
    while size is not None and len(header := at(file, place, FRAME.size)) == FRAME.size:
        yield Frame(file, header, place + FRAME.size, size)
        place += FRAME.size + size


def beginning_of(log: Path) -> bytes:
    """Return the header of a log, changed by each restart of the log; empty if there is no log."""
    try:
        with log.open("rb") as file:
            return file.read(HEADER.size)
    except FileNotFoundError:
        return b""


def at(file: IO[bytes], place: int, size: int) -> bytes:
    """Return `size` bytes of a file from offset `place`."""
    file.seek(place)
    return file.read(size)


def summed(data: bytes, sums: tuple[int, int], *, little: bool) -> tuple[int, int]:
    """Return SQLite's checksums of `data`, continuing from `sums`."""
    first, second = sums
    if len(data) % 8:
        return -1, -1  # the log ends within a page
    for one, other in struct.iter_unpack("<II" if little else ">II", data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second


#: The first schema with the table `lineage`.
WITH_LINEAGE: Final = 3

#: Maximum attempts to read a file and its log without a restart of the log in between.
TRIES: Final = 10

NOTHING: Final = bytes(16)

# A token: random bytes, a mark (absent in tokens of the migration), and the schema cookie.
_TOKEN: Final = struct.Struct(">8s 4s I")
_MARK: Final = b"tokn"
_PLACE_OF_CHANGES: Final = 40  # offset of the schema cookie in page 1
# A table page with one row: type, first free block, number of rows, offset of the row.
_PAGE: Final = struct.Struct(">B 2x H 3x H")
_LEAF: Final = 0x0D
# The row: payload size, rowid, header size, two blobs of 16 bytes. No other table has such rows.
_ROW: Final = bytes((35, 1, 3, 44, 44))


class Lineage(NamedTuple):
    """Present and previous token of a store; both are zeros without the table `lineage`."""

    token: bytes
    previous: bytes


def change(connection: sqlite3.Connection) -> None:
    """Set the store's next token; called in each writing transaction."""
    (changes,) = connection.execute("PRAGMA schema_version").fetchone()
    token = _TOKEN.pack(secrets.token_bytes(8), _MARK, changes & 0xFFFFFFFF)
    connection.execute("UPDATE lineage SET previous = token, token = ?", (token,))


def change_if_there(connection: sqlite3.Connection) -> None:
    """Set a new token in a store or a copy; do nothing without the table `lineage`."""
    if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'lineage'").fetchone() != (0,):
        change(connection)


def lineage_of(path: Path) -> Lineage | None:
    """Return the lineage in the file without its log; None if the file is unreadable without the log."""
    try:
        with connected(f"{path.as_uri()}?mode=ro&immutable=1", uri=True) as connection:
            if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'lineage'").fetchone() == (0,):
                return Lineage(NOTHING, NOTHING)
            return Lineage(*connection.execute("SELECT token, previous FROM lineage").fetchone())
    except (sqlite3.Error, TypeError):  # partly written, damaged, or not a database
        return None


def is_of_another_file(log: Path, path: Path, in_use: Callable[[], bool]) -> bool:
    """
    Return True if the log belongs to another file than the one at `path`; both may be in use.

    A log without tokens comes from another program or an older version. It belongs to a file without a token, and to
    any other file only if it is `in_use` with that file.
    """
    seen: bytes | None = None
    for _ in range(TRIES):
        lineage = lineage_of(path)
        changes = _changes_of(path)
        # Read after the file: a checkpoint copies only frames already in the log.
        tokens, changes_in_log = _tokens(log)
        beginning = beginning_of(log)
        if lineage is None or (lineage.token == NOTHING and not tokens):
            return False
        known = _changes_in(lineage.token)
        if lineage.token in tokens and (None in (known, changes) or changes in {known, *changes_in_log}):
            return False
        if beginning == seen:  # the log has a commit and was not restarted between two attempts
            return bool(tokens) or not in_use()
        if not _has_commit(log):
            return False
        seen = beginning
    return False  # a writer is active


def _changes_of(path: Path) -> int | None:
    """Return the schema cookie in the file without its log; None if the file is unreadable without the log."""
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
    """Return True if recovery would replay a commit: the checksums are valid up to a commit frame."""
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
# checkpointed frames.
_INDEX: Final = struct.Struct("=I 8x B x 2x I I 8x 8s II")
_INDEX_SIZE: Final = 2 * _INDEX.size + 4

#: Descriptors of wal-indexes, by device and inode; kept open, because closing one would drop all locks of this process
#: on its file, and another thread may have opened the store meanwhile.
_kept: Final[dict[tuple[int, int], int]] = {}


class Log(NamedTuple):
    """Recovery of a log: header, frames up to the last commit found by SQLite, and damage in front of later commits."""

    beginning: bytes
    frames: int
    is_damaged: bool


class Index(NamedTuple):
    """Content of a wal-index: salts of its log, number of committed frames, number of checkpointed frames."""

    salts: bytes
    frames: int
    checkpointed: int


def is_damaged(log: Path, path: Path) -> bool:
    """
    Return True if recovery of the log of the file at `path` would drop acknowledged saves.

    Both may be in use; then a log seems damaged if its writer stands still within a frame, as on a busy machine.
    """
    seen: Log | None = None
    for _ in range(TRIES):
        found = look_at_log(log, path)
        if not found.is_damaged:
            return False
        if found == seen:  # stable: no writer is writing the invalid frame now
            return True
        seen = found
    return False


def lacks_saves(log: Path, path: Path, index: Path) -> bool:
    """
    Return True if the log lacks committed frames of its wal-index; no process may have the store open.

    A wal-index is never synced, so one older than the last boot is ignored.
    """
    told = index_at(index)
    if told is None:
        return False
    found = look_at_log(log, path)
    if not any(found.beginning):
        return told.frames > told.checkpointed and told == index_at(index)
    return told.salts == found.beginning[16:24] and told.frames > found.frames


def look_at_log(log: Path, path: Path) -> Log:
    """Walk the log of the file at `path` as recovery does, and continue behind the first invalid frame."""
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
    """Walk over a log's frames: follow recovery, then search for commits behind its end."""

    def __init__(self, beginning: bytes, lineage: Lineage | None) -> None:
        #: Frames up to the last commit of recovery.
        self.committed = 0
        self._beginning = beginning
        self._little = is_little(beginning)
        self._frames = 0
        self._goes_on = True  # recovery has met no invalid frame yet
        self._sums: list[tuple[int, int]] = [struct.unpack(">II", beginning[24:])]  # candidates for the next frame
        self._is_older = False  # the previous frame has the salts of an older log
        self._after_commit = False  # the previous frame is a valid commit frame behind the end of recovery
        self._is_continued = False  # a frame continues the checksums of such a commit
        self._known: set[bytes] = {NOTHING, *(lineage or ())}  # tokens of the file and of recovered transactions
        self._rows: list[Lineage] = []  # tokens of transactions not recovered

    @property
    def is_damaged(self) -> bool:
        """True if a later transaction continues a commit behind the end of recovery: that commit was acknowledged."""
        begun_from = {row.previous for row in self._rows} - self._known
        if self._known == {NOTHING}:  # the file is unreadable without the log
            begun_from &= {row.token for row in self._rows}
        return self._is_continued or bool(begun_from)

    def take(self, frame: Frame) -> None:
        """Check the next frame."""
        number, pages, salts, *stored = FRAME.unpack(frame.header)
        written = (stored[0], stored[1])
        self._frames += 1
        page = frame.header[:8] + frame.read(0, frame.size) if self._sums else b""
        sums = [summed(page, before, little=self._little) for before in self._sums]
        fits = number > 0 and written in sums
        if salts != self._beginning[16:24]:
            # A frame of an older log, unless only its salts are damaged: then it continues this log. Frames of the
            # older log continue each other, and a power cut may have given one of them the present salts and no more.
            self._sums = [written] if fits and not self._is_older else []
            self._goes_on = self._after_commit = False
            self._is_older = True
            return
        self._is_older = False
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
        # With a damaged page the stored checksum is valid, otherwise the computed one.
        self._sums = [written] if fits else [written, *sums[:1]]


def close_deleted_indexes() -> None:
    """Close the descriptors of wal-indexes that SQLite has deleted; they keep the disk in use."""
    for key, kept in list(_kept.items()):
        if not os.fstat(kept).st_nlink and _kept.pop(key, None) is not None:  # else another thread closes it
            os.close(kept)


def index_at(index: Path) -> Index | None:
    """Return the content of a valid wal-index written since the last boot, else None."""
    close_deleted_indexes()
    try:
        found = index.stat()
        if found.st_size < _INDEX_SIZE or not started_at() <= found.st_ctime <= time.time():
            return None  # older than the last boot, or the clock isn't set yet
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


def cut_log(log: Path, index: Path) -> bool:
    """
    Truncate a log behind its last commit, and return True if this frees space.

    A refused transaction leaves its frames there. Call it with SQLite's write lock: nobody reads or writes them then.
    """
    told = index_at(index) if LOCKS.exists() else None
    if told is None or not told.frames:
        return False
    try:
        with log.open("r+b", buffering=0) as file:
            beginning = at(file, 0, HEADER.size)
            size = page_size(beginning)
            if size is None or told.salts != beginning[16:24]:  # restarted, but not written since
                return False
            end = HEADER.size + told.frames * (FRAME.size + size)
            is_longer = os.fstat(file.fileno()).st_size > end
            if is_longer:
                file.truncate(end)
            return is_longer
    except OSError:
        return False


def started_at() -> float:
    """Return the time of the last boot in seconds since 1970, by the present clock."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


_log: Final = logging.getLogger(__name__)

#: Device and inode of a file; None for a missing file.
_Id: TypeAlias = tuple[int, int] | None

LOST: Final = "The store's {} was moved, deleted or replaced while the store was open; put it back, or start again."
_LOST_MEANWHILE: Final = (
    "The store's {} was moved, deleted or replaced while this was written, and it may be lost; put it back, then look."
)


class Identity:
    """
    Identity (device and inode) of the file at `path` and of its log at the time of opening.

    SQLite keeps using its open files even if their paths now lead elsewhere: a commit succeeds, but is missing for
    anyone opening the path later. SQLite doesn't notice either if `cp` overwrites the file with another store. Only
    checkpoints change the file, so its content is checked after each change of its modification time.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        resolved = os.path.realpath(path)  # SQLite resolves links before it appends a suffix
        self._log_path, self._index_path = f"{resolved}-wal", f"{resolved}-shm"
        self._file = _identity(self._path)
        self._files = [("file", self._path, self._file)]
        self._changed = _changed(self._path)
        self._is_overwritten = False
        self._is_committing = False
        self._looking = threading.Lock()

    def add_log(self) -> None:
        """Include the log and its index from now on; the first transaction has created them."""
        for path in (self._log_path, self._index_path):
            self._files.append((f"{path[-4:]} file", path, _identity(path)))

    def check(self) -> None:
        """Raise `OperatorError` if one of the files is gone from its path; nothing was written."""
        if (lost := self.lost()) is not None:
            raise OperatorError(LOST.format(lost), retry_after=1.0)

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
        """Raise `MovedMeanwhileError` if one of the files is gone from its path after a successful commit."""
        if (lost := self.lost()) is not None:
            raise MovedMeanwhileError(_LOST_MEANWHILE.format(lost), error="OutcomeUnknown")

    def lost(self) -> str | None:
        """Return the name of a file moved, replaced or overwritten since it was opened, or None."""
        for name, path, opened in self._files:
            if opened is None or _identity(path) != opened:
                return name
        return "file" if self.is_overwritten() else None

    def is_overwritten(self) -> bool:
        """Return True if the file was overwritten by another store, as by ``cp other.db store.db``."""
        changed = _changed(self._path)
        if self._is_overwritten or changed == self._changed or self._is_committing:
            return self._is_overwritten
        if _identity(self._path) != self._file:
            return False  # the path leads to another file; ours is unchanged
        if not self._looking.locked():  # one thread is enough: the log may be long
            with self._looking:  # `with` releases the lock even after an interrupt, unlike a non-blocking acquire
                self._is_overwritten = is_of_another_file(Path(self._log_path), Path(self._path), lambda: True)
                self._changed = changed
        return self._is_overwritten

    def set_log_aside(self, what_happened: str) -> None:
        """Rename the log, to prevent its replay over the file now at the path."""
        Path(self._index_path).unlink(missing_ok=True)  # first: the log still keeps others from opening the path
        with suppress(FileNotFoundError):  # another process has renamed it
            kept = f"{self._log_path}.{secrets.token_hex(4)}.lost"
            os.rename(self._log_path, kept)  # noqa: PTH104 - a string
            _log.error("The store's file was %s while it was open; its last writes are in %s.", what_happened, kept)

    def part_from_log(self, connection: sqlite3.Connection) -> None:
        """
        Remove the log from a path without its file (moved or deleted), before the last connection closes.

        SQLite leaves the log there. A moved file would lack its last commits, and SQLite would replay them over a file
        that replaced it. So a log is checkpointed into a moved file. The log of a deleted file is renamed, unless there
        is no file at the path to be harmed.
        """
        if _identity(self._path) == self._file or any(_identity(path) != opened for _, path, opened in self._files[1:]):
            return
        if self._is_kept():
            # If no other process has the file open, this checkpoints and removes the log. SQLite fails afterwards,
            # because the file is not at its path; that error is harmless.
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA busy_timeout = 0")
                connection.execute("PRAGMA journal_mode = DELETE")
        # An empty log may already be in use with the file in place of ours.
        elif os.path.exists(self._path) and os.path.getsize(self._log_path):  # noqa: PTH110, PTH202 - a string
            self.set_log_aside("replaced")

    def _is_kept(self) -> bool:
        """Return True if the file still has a name somewhere, as far as the system reports it."""
        with suppress(OSError):
            for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - a string
                with suppress(OSError):
                    found = os.stat(f"/proc/self/fd/{number}")  # noqa: PTH116 - a string
                    if (found.st_dev, found.st_ino) == self._file:
                        return found.st_nlink > 0
        return False


def _changed(path: str) -> int:
    """Return the modification time of a file in ns, 0 for a missing file."""
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116 - a string: called before each read and write
    except OSError:
        return 0


def _identity(path: str) -> _Id:
    try:
        found = os.stat(path)  # noqa: PTH116 - a string: called before and after each commit
    except OSError:
        return None
    return found.st_dev, found.st_ino


#: Maximum bytes of a store's file name: file systems allow 255, including the suffix of the log's name.
MAX_NAME: Final = 255 - len("-journal")
#: Magic bytes of an SQLite rollback journal.
JOURNAL: Final = bytes.fromhex("d9d505f920a163d7")

#: Network file systems: locks reach other machines, shared memory doesn't.
NETWORK: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3"}
    | {"virtiofs"}
)
#: Names of special file kinds; SQLite opens none of them as a log, and some would block it for ever.
KINDS: Final = {
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
#: Linux's tables of mounted file systems and of file locks.
MOUNTS: Final = Path("/proc/self/mountinfo")
LOCKS: Final = Path("/proc/locks")
#: Maximum seconds another process of this machine may take for the same check.
PATIENCE: Final = 1.0


def check_place(path: Path) -> None:
    """
    Raise `UnsupportedError` or `OSError` unless a store may be opened or created at `path`.

    Refuses everything that risks data loss: another file's log beside the file, a file with several names, a store open
    on another machine.
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
    refuse_log_name(path, "a store")
    refuse_leftovers(path)
    _refuse_hard_links(path, real)
    if is_open_elsewhere(real):
        raise UnsupportedError(
            f"{path} is open on another machine, which shares no memory with this one; close it there, or run "
            "`cloudstore serve` there and use its address."
        )


def _check_name(path: Path) -> None:
    """Raise `OSError` for a name too long for SQLite, which appends ``-journal`` to it."""
    length = len(os.fsencode(path.name))
    if length > MAX_NAME:
        raise OSError(
            f"{shorten(path.name)} has {length} bytes, and its log's name 8 more, but a file's name has at most 255; "
            f"choose a name of {MAX_NAME} bytes at most."
        )


def refuse_leftovers(path: Path) -> None:
    """
    Raise `UnsupportedError` for a log without its file; SQLite would delete it or replay it over another file.

    Also refuses a damaged log, because SQLite would drop everything behind the damage, and a log that is not a regular
    file. An empty file counts as missing. An empty log or a lone ``-shm`` holds no data, and SQLite recreates it,
    unless a process still uses it with a file formerly at `path`.
    """
    real = Path(os.path.realpath(path))
    _refuse_odd_kinds(path, real)
    # Listed before the check of the file: SQLite creates the file first, and another process may do so now.
    logs, shm = _logs(real), _existing(Path(f"{real}-shm"))
    file = _existing(real)
    is_gone = file is None or file.st_size == 0
    if is_gone and shm is not None and _is_locked_here(shm):
        raise UnsupportedError(f"A process still uses the store whose file was at {path} before; end it first.")
    left = logs if is_gone else []
    # SQLite uses the logs beside the link's target. Logs beside the link itself were left when the file was moved.
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
    """Raise `UnsupportedError` for a log that is not a regular file; beside a link to a store, a log may be a link."""
    beside = [(Path(f"{real}{end}"), os.lstat) for end in SIDECARS]
    if path.is_symlink():
        beside += [(Path(f"{path}{end}"), os.stat) for end in SIDECARS]
    for log, look in beside:
        try:
            mode = look(log).st_mode
        except OSError:  # missing or inaccessible
            continue
        if not stat.S_ISREG(mode):
            kind = KINDS.get(stat.S_IFMT(mode), "no ordinary file")
            raise UnsupportedError(f"{log} is {kind}, and SQLite keeps a file of that name; move it away.")


def _refuse_damage(path: Path) -> None:
    """Raise `UnsupportedError` if recovery at the first opening by SQLite would drop acknowledged saves."""
    log, index = Path(f"{path}-wal"), Path(f"{path}-shm")
    if not log.exists() or _is_in_use(path, index):
        return
    if is_damaged(log, path) and not _is_in_use(path, index):  # a writer may have begun, and paused within a frame
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
    """Return True if there is anything but an empty file at the path of a log."""
    try:
        facts = log.stat()
    except FileNotFoundError:  # a dangling link, or nothing: another process may just have removed it
        return log.is_symlink()
    return not (stat.S_ISREG(facts.st_mode) and not facts.st_size)


def reading_mode(path: Path) -> Literal["ro", "rw"]:
    """
    Return the mode of a read connection that leaves no new files beside the store.

    SQLite creates a log for a file without one, and only a writable connection removes it. A read-only connection
    leaves a log with data unchanged.
    """
    return "ro" if holds_data(Path(f"{os.path.realpath(path)}-wal")) else "rw"


def _log_of_another_file(path: Path) -> Path | None:
    """Return a log beside the file at `path` that was written for another file and would overwrite this one."""
    wal, journal = Path(f"{path}-wal"), Path(f"{path}-journal")
    if holds_data(wal) and is_of_another_file(wal, path, lambda: _is_locked_here(path.stat())):
        return wal
    # The journal of a new file empties it; the file it was written for holds nothing yet.
    if is_of_new_file(journal_head(journal)):
        lineage = lineage_of(path)
        is_new = lineage is None or (any(lineage.token) and not any(lineage.previous))
        if not is_new and is_of_new_file(journal_head(journal)):  # else another process has created it meanwhile
            return journal
    return None


def journal_head(path: Path) -> bytes:
    """Return the first bytes of a journal, empty if there is none; SQLite holds no locks on it."""
    try:
        with path.open("rb") as file:
            return file.read(20)
    except FileNotFoundError:
        return b""


def is_of_new_file(head: bytes) -> bool:
    """Return True if the journal rolls back the whole file: a crash came during its creation."""
    return head.startswith(JOURNAL) and head[16:] == bytes(4)  # number of pages before the transaction


def is_open_elsewhere(path: Path) -> bool:
    """
    Return True if another machine has the store at `path` open, on a file system with network-wide locks.

    Each machine would use its own ``-shm``, and both would write the same parts of the log. A process of this machine
    with the store open has passed this check, so another one may follow it.
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
    """Return the logs at `path`, without a journal that isn't on disk yet or rolls back a new file."""
    wal, journal = Path(f"{path}-wal"), Path(f"{path}-journal")
    head = journal_head(journal)
    has_pages = head[:1] not in (b"", b"\0") and not is_of_new_file(head)  # SQLite checks the first byte too
    return [log for log, is_log in ((wal, holds_data(wal)), (journal, has_pages)) if is_log]


def _refuse_hard_links(path: Path, real: Path) -> None:
    file = _existing(real)
    if file is None or file.st_nlink < 2:
        return
    # A copy gets its name by a hard link; a crash may leave its draft's name as well.
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
    """Return the lines of one of Linux's tables; none on other systems."""
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def _is_free(path: Path) -> bool:
    try:
        with connected(f"{path.as_uri()}?mode=rw", uri=True, timeout=PATIENCE) as connection:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # needs no shared memory
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error as error:
        return primary_code(error) != sqlite3.SQLITE_BUSY  # opening the store reports other errors
    return True
