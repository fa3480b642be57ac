"""SQLite storage engine: connections, snapshot reads, and a writer with group commit."""

# ruff: noqa: D102 - methods without a docstring are documented in `sql`
from __future__ import annotations

import atexit
import math
import os
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import get_ident
from types import TracebackType
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast

import msgspec

from cloudstore_mapping.errors import CloudStoreError, UnavailableError
from cloudstore_mapping.interrupts import let_go
from cloudstore_mapping.service.storage import base
from cloudstore_mapping.service.storage.base import (
    MAX_BYTES,
    PROBE_QUEUE,
    Compaction,
    DiskFullError,
    HealthProbe,
    NoSpaceError,
    OperatorError,
    RolledBack,
    Storage,
    closed_error,
    ending_error,
    not_open,
)
from cloudstore_mapping.service.storage.migrations import Admission, check_file, damaged, migrate, read_error
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.storage.sqlite_backup import back_up, copy_into_memory
from cloudstore_mapping.service.storage.sqlite_files import (
    INCREMENTAL,
    LOG,
    NO_MORE_FILES,
    Damage,
    DiskReserve,
    Identity,
    change,
    check_place,
    close_deleted_indexes,
    cut_log,
    mebibytes,
    primary_code,
    unavailable,
)
from cloudstore_mapping.service.threads import FairQueue, PlainFuture, wait_for
from cloudstore_mapping.sqlite_forks import connected, forkers, inside_sqlite, let_fork, track_session
from cloudstore_mapping.storefiles import creating

T = TypeVar("T")


#: Maximum seconds a writer waits for another process's transaction on the same file.
BUSY_TIMEOUT: Final = 30.0
#: Maximum seconds it waits during `close`.
CLOSING_WAIT: Final = 0.5
#: Seconds between two attempts, doubled up to the longest.
FIRST_PAUSE: Final = 0.001
LONGEST_PAUSE: Final = 0.005
#: SQLite has no lock queue, so a process writing without pauses starves occasional writers. For POLITE_FOR seconds
#: after meeting another process's transaction, a process sleeps YIELD seconds before each transaction.
POLITE_FOR: Final = 1.0
YIELD: Final = 0.002


_decode_names: Final = msgspec.json.Decoder(list[str]).decode
#: Maximum unused pages of a file, as a number and as a fraction (1/20) of its pages; the larger applies.
UNUSED_PAGES: Final = 512
UNUSED_PART: Final = 20

#: Pieces of work in one commit: enough that a sync is shared by many, few enough that the first doesn't wait long.
MAX_GROUP: Final = 256

#: Seconds of work in one commit, before others have their turn.
MAX_SECONDS: Final = 0.01
#: The same for the work of one account, while no other's waits.
LONE_SECONDS: Final = 0.1
#: Bytes that work counts at least, when the time of a commit is divided among its work.
LEAST_SIZE: Final = 1024

#: Maximum size in bytes of a store fully checked when a service starts; this takes a tenth of a second.
SOON: Final = 64 * 2**20


class SQLiteSession(Transaction):
    """
    SQLite connection to the file at `path`, or to a new database in memory; for one thread at a time.

    `mode` is ``rwc`` to create a missing file, ``ro`` to write nothing, else ``rw``. Raises `sqlite3.Error`, and
    `UnavailableError` if the path leads to another file than `beside`, another connection to the store, has open. A
    writing transaction excludes all other writers, so row locks are unnecessary.
    """

    #: Pieces of work in one transaction at most.
    max_group: int = MAX_GROUP
    #: Seconds of work in one transaction, after which it is committed.
    max_seconds: float = MAX_SECONDS
    #: Monotonic time at which the oldest work of the transaction arrived: waits for other processes count from it, or
    #: from the present where it is None.
    since: float | None = None
    #: Monotonic time until which `transaction` waits for other processes.
    until: float = math.inf

    size = "length(value)"
    is_blob, is_chunk, chunk_key = "id = ?", "blob_id = ?", "blob_id"
    blob, blob_of_media = "id", "blob_id"
    new_blob = "INSERT INTO blobs (account_id, touched_at) VALUES (?, ?) RETURNING id"

    def __init__(
        self,
        path: Path | None,
        mode: Literal["ro", "rw", "rwc"],
        beside: SQLiteSession | None = None,
        *,
        busy_timeout: float | None = None,
    ) -> None:
        # Readers and the writer share the only connection in memory and take turns; both are quick.
        self._lock: Any = threading.RLock()
        self._turn: AbstractContextManager[Any] = self._lock if path is None else nullcontext()
        self._path = path
        #: Id of the thread in a transaction, 0 for none; a fork waits for it.
        self.user = 0
        #: True while unused pages are being returned to the disk.
        self._gives_back = False
        #: True after a transaction found the disk full.
        self._was_full = False
        #: True while deleted content isn't overwritten.
        self._leaves_content = False
        with inside_sqlite():
            self._open(mode, beside, busy_timeout)

    def _open(self, mode: str, beside: SQLiteSession | None, busy_timeout: float | None) -> None:
        path = self._path
        with ExitStack() as stack:
            if path is None:
                location = ":memory:"
            else:
                location = stack.enter_context(creating(path)) if mode == "rwc" else f"{path.as_uri()}?mode={mode}"
            self.connection = sqlite3.connect(
                location,
                uri=True,
                timeout=BUSY_TIMEOUT if busy_timeout is None else busy_timeout,
                isolation_level=None,
                check_same_thread=False,
            )
        track_session(self)
        self._space = None if path is None else DiskReserve(path)
        #: True if a program that ends has to finish submitted work: not for a store in memory, which ends with it.
        self.outlives_program = path is not None
        #: Damage met by any connection to the store.
        self.damage: Damage = Damage() if beside is None else beside.damage
        self._gives_up_at = float("inf")
        self._polite_until = 0.0
        self._execute = self.connection.execute
        try:
            #: Identity of the open file; None in memory.
            self.identity: Identity | None = None
            if path is not None:
                self.identity = Identity(path) if beside is None else beside.identity
            self._check_identity()  # before SQLite reads: it would replay our log over another file
            self._execute("PRAGMA foreign_keys = ON")
            self._execute("PRAGMA synchronous = FULL")
            (self._secure_delete,) = self.row("PRAGMA secure_delete")
            self._execute(f"PRAGMA journal_size_limit = {LOG}")  # truncates the log after a large write
        except BaseException:
            self.close_untouched()
            raise

    def is_in_use(self) -> bool:
        """Return True if a signal handler or `__del__` interrupts this thread's own use of a store in memory."""
        owned: bool = self._lock._is_owned()  # noqa: SLF001 - as in `threading.Condition`; no public method suffices
        return owned

    @contextmanager
    def snapshot(self) -> Iterator[Transaction]:
        """Read a snapshot of the database; in memory, users take turns."""
        with self._turn:
            before = 0 if self._path else self.user  # in memory this thread may already be in a transaction
            try:
                self.user = get_ident()
                if forkers and not before:
                    let_fork(self)
                self.check_not_overwritten()
                try:
                    begins = not self.connection.in_transaction  # in memory, a writing transaction may read as well
                    if begins:
                        self._execute("BEGIN")
                    try:
                        yield self
                    finally:
                        if begins and self.connection.in_transaction:
                            self._execute("ROLLBACK")
                except sqlite3.Error as error:
                    raise self.failed(error) from error
            finally:
                self.user = before

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Begin a transaction, then commit, or roll back and raise `UnavailableError` if SQLite fails."""
        with self._turn:
            before = 0 if self._path else self.user  # in memory this thread may already be in a transaction
            try:
                self.user = get_ident()
                if forkers and not before:
                    let_fork(self)
                self.check_usable()
                try:
                    if self.connection.in_transaction:  # an interrupt came before the last rollback
                        self._execute("ROLLBACK")
                    with self._disk_room():
                        try:
                            self._when_free("BEGIN IMMEDIATE")
                            changes = self.connection.total_changes
                            yield
                            if self.identity is None:
                                self._commit()
                            else:
                                if self.connection.total_changes != changes:
                                    change(self.connection)
                                with self.identity.committing():
                                    self._commit()
                                self.identity.check_committed()
                        except BaseException:
                            if self.connection.in_transaction:
                                self._execute("ROLLBACK")
                            raise
                except (sqlite3.Error, DiskFullError) as raised:
                    error = self.failed(raised) if isinstance(raised, sqlite3.Error) else raised
                    if isinstance(error, DiskFullError) and self._path is not None:
                        self._was_full = True
                        self._empty_log()  # its pages took the last free space
                    if error is raised:
                        raise
                    raise error from raised
                finally:
                    if self.connection.in_transaction:  # an interrupt came before the rollback
                        self._execute("ROLLBACK")
            finally:
                self.user = before

    def _disk_room(self) -> AbstractContextManager[None]:
        """
        Prepare a nearly full disk for a transaction, and return the context manager for its duration.

        Empties a large log. A transaction may fill the rest of the disk with its log, whether it commits or not; the
        next checkpoint empties the log again, but first it has to add pages to the file. So their space is held.
        """
        if self._space is None:
            return nullcontext()
        self._space.begin()
        if self._space.log_is_in_the_way():
            self._empty_log()
        is_scarce = self._space.is_nearly_full() or self._was_full
        self._was_full = False
        if is_scarce != self._leaves_content:
            # SQLite may be built to write zeros over all deleted content: a delete needs as much log as a save then.
            self._execute(f"PRAGMA secure_delete = {'FAST' if is_scarce else self._secure_delete}").fetchall()
            self._leaves_content = is_scarce
        return self._space.held(self._growth()) if is_scarce else nullcontext()

    def _growth(self) -> int:
        """Return the bytes that a checkpoint of the whole log adds to the file."""
        (pages,), (size,) = self.row("PRAGMA page_count"), self.row("PRAGMA page_size")
        assert self._path is not None  # noqa: S101 - the caller has a file
        return int(pages * size) - self._path.stat().st_size

    def _empty_log(self) -> None:
        """Checkpoint the write-ahead log and truncate it; if others read or the disk is full, only behind its end."""
        for _ in range(2):
            is_full = False
            try:
                ((is_busy, *_),) = self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except sqlite3.Error as error:  # the log stays unchanged
                is_full = primary_code(error) == sqlite3.SQLITE_FULL
                is_busy = primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
                if not is_full and not is_busy:
                    raise
            if not (is_full or is_busy) or not self._cut_log() or not is_full:
                return

    def _cut_log(self) -> bool:
        """Truncate the log behind its last commit, unless others write; return True if this frees space."""
        real = os.path.realpath(self._path or "")
        try:
            self._execute("BEGIN IMMEDIATE")
        except sqlite3.Error:
            return False
        try:
            return cut_log(Path(f"{real}-wal"), Path(f"{real}-shm"))
        finally:
            self._execute("ROLLBACK")

    def compact(self) -> bool:
        """
        Give the file's unused pages back to the disk; return False if there are none.

        Raises `UnavailableError` if SQLite fails or the disk is too full.

        Call it outside a transaction. SQLite rewrites the file in one transaction: a crash rolls it back, readers
        continue, and writers wait. Readers of an older snapshot delay the truncation of the file to the next
        checkpoint.
        """
        if self._space is None or self.identity is None:
            return False  # in memory
        try:
            self.user = get_ident()
            if forkers:
                let_fork(self)
            self.check_usable()
            if self.connection.in_transaction:  # an interrupt came before the last rollback
                self._execute("ROLLBACK")
            (pages,), (unused,), (size,), (kind,) = (
                self.row(f"PRAGMA {what}") for what in ("page_count", "freelist_count", "page_size", "auto_vacuum")
            )
            if not unused and kind == INCREMENTAL:
                return False
            self._space.begin()
            if self._space.is_nearly_full():
                self._empty_log()
                self._space.begin()
            # For the log, and before it a temporary file.
            content = (pages - unused) * size
            try:
                self._space.take(content, lambda: 0, self._growth)
            except NoSpaceError as error:
                needed = mebibytes(self._space.needed(content) + max(0, self._growth()))
                sentence = f"To compact the store, its disk needs {needed} of free space; free more, then try again."
                raise NoSpaceError(sentence, retry_after=1.0) from error
            (checkpoint,) = self.row("PRAGMA wal_autocheckpoint")
            try:
                # No checkpoint before the new token: a log of the new pages must not seem to match an older copy.
                self._execute("PRAGMA wal_autocheckpoint = 0")
                if kind == 0:  # a file of an older version; for others this would be a write without a token
                    self._execute(f"PRAGMA auto_vacuum = {INCREMENTAL}")
                self._when_free("VACUUM")
                with self.transaction():
                    self._execute("UPDATE lineage SET token = token")
            finally:
                self.user = get_ident()
                self._execute(f"PRAGMA wal_autocheckpoint = {checkpoint}")
            with self.identity.committing():
                self._empty_log()
        except sqlite3.Error as error:
            if primary_code(error) == sqlite3.SQLITE_FULL:
                self._empty_log()
            raise self.failed(error) from error
        finally:
            self.user = 0
        return True

    def checkpoint(self) -> None:
        """
        Write the log into the file and truncate the file, as far as readers of older snapshots permit.

        Call it outside a transaction. A passive checkpoint: nobody waits, neither for it nor it for others.
        """
        try:
            self.user = get_ident()
            if forkers:
                let_fork(self)
            self.check_usable()  # never write our log into another file
            if self.connection.in_transaction:  # an interrupt came before the last rollback
                self._execute("ROLLBACK")
            self._execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            raise self.failed(error) from error
        finally:
            self.user = 0

    def _when_free(self, statement: str) -> None:
        """
        Execute a statement once no other process writes; wait until `until`, at most `BUSY_TIMEOUT` s from `since`.

        The writer's connection doesn't use SQLite's busy timeout: neither a signal nor `hurry` can interrupt it.
        """
        now = time.monotonic()
        since = now if self.since is None else self.since
        gives_up_at = min(since + BUSY_TIMEOUT, self.until)
        pause = FIRST_PAUSE
        if now < self._polite_until:
            time.sleep(YIELD)
        while True:
            try:
                self._execute(statement)
            except sqlite3.OperationalError as error:
                left = min(gives_up_at, self._gives_up_at) - time.monotonic()
                if primary_code(error) != sqlite3.SQLITE_BUSY or left <= 0:
                    raise
                self._polite_until = time.monotonic() + POLITE_FOR
                self.user = 0  # a fork doesn't wait for another process
                time.sleep(min(pause, left))
                self.user = get_ident()
                if forkers:
                    let_fork(self)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                return

    def do_not_wait(self) -> None:
        """Disable SQLite's busy timeout."""
        self._execute("PRAGMA busy_timeout = 0")

    def hurry(self, seconds: float | None = None) -> None:
        """From now on wait at most this many seconds for other processes; `CLOSING_WAIT` by default."""
        self._gives_up_at = min(self._gives_up_at, time.monotonic() + (CLOSING_WAIT if seconds is None else seconds))

    def check_usable(self) -> None:
        """Raise `UnavailableError` if writes are refused: after damage, or if the file is gone."""
        if self.damage.error is not None:
            raise unavailable(self.damage.error) from self.damage.error
        self._check_identity()

    def check_not_overwritten(self) -> None:
        """Raise `UnavailableError` if the file was overwritten by another store; reads would return a mixture."""
        if self.identity is not None and self.identity.is_overwritten():
            self.identity.check()

    def failed(self, error: sqlite3.Error) -> UnavailableError:
        """Record damage and return the `UnavailableError` for an error of the connection."""
        self.damage.note(error)
        found = unavailable(error)
        return self._space.full() if isinstance(found, DiskFullError) and self._space is not None else found

    def _check_identity(self) -> None:
        if self.identity is not None:
            self.identity.check()

    def _commit(self) -> None:
        try:
            self._execute("COMMIT")
        except sqlite3.Error as error:
            self.damage.note(error, committing=True)
            raise

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Run work in a savepoint: roll back its own writes if it raises."""
        self._uncounted.clear()
        try:
            self._execute("SAVEPOINT work")
            try:
                yield
                self._execute("RELEASE work")
            except BaseException:
                if self.connection.in_transaction:
                    self._undo_work()
                raise
        except sqlite3.Error as error:
            raise self.failed(error) from error

    def undo(self) -> None:
        """Roll back the writes of the running work."""
        self._execute("ROLLBACK TO work")

    def _undo_work(self) -> None:
        try:
            self._execute("ROLLBACK TO work")
            self._execute("RELEASE work")
        except sqlite3.Error:  # an interrupt came before the savepoint began or after it ended
            self._execute("ROLLBACK")

    def row(self, query: str, *parameters: Any) -> Any:
        return self._execute(query, parameters).fetchone()

    def rows(self, query: str, *parameters: Any) -> list[Any]:
        return self._execute(query, parameters).fetchall()

    def stream(self, query: str, *parameters: Any) -> Iterator[Any]:
        for row in self._execute(query, parameters):  # noqa: UP028 - `yield from` would close a closed database's cursor
            yield row

    def do(self, query: str, *parameters: Any) -> None:
        self._execute(query, parameters)

    def count(self, query: str, *parameters: Any) -> int:
        return self._execute(query, parameters).rowcount

    def _of(self, columns: str, account_id: int, names: Sequence[str], *parameters: int) -> list[Any]:
        # Few distinct lengths give few distinct statements, each prepared once.
        length = 1 << (len(names) - 1).bit_length()
        query = f"SELECT name, {columns} FROM files WHERE account_id = ? AND name IN ({', '.join('?' * length)})"  # noqa: S608 - of constants
        return self.rows(query, *parameters, account_id, *names, *[names[-1]] * (length - len(names)))

    def _containing(self, text: str) -> tuple[str, tuple[str, ...]]:
        return "instr(name, ?)", (text,)  # LIKE is neither literal nor case-sensitive

    def scan(
        self, account_id: int, containing: str = "", *, prefix: str = "", after: str | None = None, rows: int
    ) -> tuple[list[str], str | None]:
        # All names in one row: for each row SQLite releases the GIL and competes with other scanning threads to get it
        # back.
        bounds, parameters = self._range(account_id, prefix, after)
        contains, texts = self._containing(containing) if containing else ("TRUE", ())
        query = (
            f"SELECT json_group_array(name) FILTER (WHERE {contains}), max(name), count(*)"  # noqa: S608 - of constants
            f" FROM (SELECT name FROM files WHERE {bounds} ORDER BY name LIMIT ?)"
        )
        found, last, count = self.row(query, *texts, *parameters, rows)
        return _decode_names(found), last if count == rows else None

    def _blob(self, blob: int) -> tuple[int, ...]:
        return (blob,)

    _chunk = _blob

    def _hold_account(self, account_id: int) -> None:
        pass

    @staticmethod
    def bytes_of(column: str) -> str:
        return f"length(CAST({column} AS BLOB))"  # the oldest supported SQLite lacks `octet_length`

    @staticmethod
    def blob_bytes_of(column: str) -> str:
        return f"length({column})"

    def _make_sure_of_space(self, size: int) -> None:
        if self._space is not None:
            self._space.take(size, self._unused, self._growth)

    def touch(self) -> None:
        """Begin the snapshot with a cheap read."""
        self.row("SELECT 1 FROM accounts LIMIT 1")

    def check_writable(self) -> None:
        """Raise `UnavailableError` if the file or its log is read-only; SQLite begins a transaction even then."""
        self.do("DELETE FROM accounts WHERE FALSE")

    def check_room(self) -> None:
        """Raise `UnavailableError` if even a small write fails, for lack of permissions or disk space."""
        self.check_writable()
        self._make_sure_of_space(1)

    def look_for_damage(self, size: int) -> None:
        """Raise `sqlite3.DatabaseError` for a damaged page; above `SOON` bytes, check three tables only."""
        for part in ["1"] if size <= SOON else ["accounts", "api_keys", "lineage"]:
            (found,) = self.rows(f"PRAGMA quick_check({part})")[0]
            if found != "ok":
                error = sqlite3.DatabaseError(found)
                error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise error

    def _can_give_back(self) -> bool:
        if self._path is None or self.row("PRAGMA auto_vacuum")[0] != INCREMENTAL:
            return False
        (unused,), (pages,) = self.row("PRAGMA freelist_count"), self.row("PRAGMA page_count")
        # Hysteresis: once begun, continue down to half of the limit, so that the next saves don't start it again.
        part = 2 if self._gives_back else 1
        self._gives_back = bool(unused > max(UNUSED_PAGES, pages // UNUSED_PART) // part)
        return self._gives_back

    def _give_back_some(self) -> bool:
        if not self._can_give_back():
            return False
        # One page at a time: for each, SQLite searches its list of unused pages, which may be long.
        self.rows("PRAGMA incremental_vacuum(1)")
        # A counted change makes the transaction set a new token, so no earlier log matches the shorter file.
        self.do("UPDATE lineage SET token = token")
        return True

    def _unused(self) -> int:
        (pages,), (size,) = self.row("PRAGMA freelist_count"), self.row("PRAGMA page_size")
        return int(pages * size)

    def add_chunk(self, blob: int, number: int, data: bytes, now: float) -> bool:
        self._make_sure_of_space(len(data))
        return super().add_chunk(blob, number, data, now)

    def _put(self, account_id: int, name: str, value: bytes, version: str, now: float) -> None:
        self._make_sure_of_space(len(value))
        self._count_put(account_id, name, len(value))
        self._execute(
            "INSERT INTO files (account_id, name, value, version, created_at, updated_at)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (account_id, name) DO UPDATE SET"
            " value = excluded.value, version = excluded.version, updated_at = excluded.updated_at",
            (account_id, name, value, version, now, now),
        )

    def intact(self) -> bool:
        """Return True if the transaction is still open; SQLite rolls it back itself on a full disk, for example."""
        return self.connection.in_transaction

    def close(self) -> None:
        """Close the connection."""
        with self._turn, inside_sqlite():
            self.connection.close()
        close_deleted_indexes()

    def __del__(self) -> None:
        # An interrupt may drop a session anywhere, and an unclosed connection raises a ResourceWarning.
        if "connection" in vars(self):
            self.connection.close()

    def has_begun(self) -> bool:
        """Return True if a transaction is open."""
        with suppress(sqlite3.ProgrammingError):  # closed already
            return self.connection.in_transaction
        return False

    def leave_to_parent(self, *, is_quiet: bool) -> None:
        """
        Release the connection in a forked child; memory goes on as a copy, unless it was in use at the fork.

        A parent's open transaction is neither committed nor rolled back here, and its connection is never closed, even
        at the child's exit: both would write to the parent's log.
        """
        if not is_quiet:
            import ctypes  # loaded by the parent already

            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.connection))  # never freed
            self.connection = cast("sqlite3.Connection", _Parents())
            self._execute = self.connection.execute
        elif self._path is None:
            self._turn = self._lock = threading.RLock()
        else:
            self.connection.close()

    def close_untouched(self) -> None:
        """Close the connection without a checkpoint: a log with data stays unchanged."""
        log = Path(f"{os.path.realpath(self._path or '')}-wal")
        if self._path is None or not log.exists() or not log.stat().st_size:
            self.close()
            return
        # SQLite keeps the log while another connection has the file open; this one is read-only.
        with suppress(sqlite3.Error), connected(f"{self._path.as_uri()}?mode=ro", uri=True) as other:
            with suppress(sqlite3.Error):
                other.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # locks the file, even if it fails
            self.close()
        self.close()


class _Parents:
    """Placeholder in a forked child for a connection in use at the fork."""

    in_transaction: Final = False
    total_changes: Final = 0

    def execute(self, *_: Any) -> Any:
        raise sqlite3.OperationalError("the connection was in use when this process was forked")

    def close(self) -> None:
        pass


class ReadTransaction(AbstractContextManager[Transaction]):
    """
    Context manager for a snapshot read of a file's database; at the end `give_back` gets the session.

    Equivalent to `snapshot`, but without nested generators: they take as long as the statements of a small read.
    """

    def __init__(self, session: SQLiteSession, give_back: Callable[[SQLiteSession], object]) -> None:
        self._session = session
        self._give_back = give_back

    def __enter__(self) -> Transaction:
        session = self._session
        try:
            session.user = get_ident()
            if forkers:
                let_fork(session)
            session.check_not_overwritten()
            if session.connection.in_transaction:  # an interrupt came before the rollback
                session.connection.execute("ROLLBACK")
            session.connection.execute("BEGIN")
        except UnavailableError:
            self._end()
            raise
        except sqlite3.Error as error:
            self._end()
            raise session.failed(error) from error
        return session

    def _end(self) -> None:
        self._session.user = 0
        self._give_back(self._session)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if self._session.connection.in_transaction:
                self._session.connection.execute("ROLLBACK")
        except sqlite3.Error as failure:
            error = failure
        finally:
            self._session.user = 0
            self._give_back(self._session)
        if isinstance(error, sqlite3.Error):
            raise self._session.failed(error) from error


class _Release:
    """Item in the queue of new work: serve a held account again."""

    def __init__(self, account: Hashable) -> None:
        self.account = account


class _Jobs:
    """
    Queued work of the writer's thread; `ended` is True once the thread has ended.

    Other threads put new work into `queue` without a lock: a signal may interrupt them anywhere. The thread with the
    turn sorts it into the `fair` queue. None in `queue` ends the thread after all earlier work.

    `Thread.is_alive` isn't asked: up to Python 3.12 an interrupt within it, or within `join`, makes it say False of a
    thread that runs (python/cpython#90882).
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.queue: SimpleQueue[_Job | _Release | None] = SimpleQueue()
        self.fair: FairQueue[_Job] = FairQueue()
        self.clock = clock
        self.ends_at = math.inf
        self.ended = False
        self._goes_on = True
        self._working = threading.Lock()  # held until the thread has ended
        self._working.acquire()
        self._process = os.getpid()
        self.latest: dict[int, weakref.ref[_Job]] = {}  # submitted by a thread

    def put(self, job: _Job) -> None:
        """Queue a job; refuse it if the thread has ended."""
        self.latest[threading.get_ident()] = weakref.ref(job)
        self.queue.put(job)
        if self.ended or self._process != os.getpid():
            self.refuse_all()  # checked after `put`: the thread refuses only jobs queued before its end

    def is_idle(self) -> bool:
        """Return True if no work waits."""
        return self.queue.empty() and not self.fair

    def wait(self) -> bool:
        """Wait for work and return True; return False after the last work."""
        self.sort()
        while self._goes_on and self.fair.peek() is None:
            self._sort(self.queue.get())
        if not self._goes_on:
            self.fair.release_all()
        return self.fair.peek() is not None

    def sort(self, *, past_end: bool = False) -> None:
        """Move new work into the queues of its accounts, and refuse all of it if the writer's time is over."""
        with suppress(Empty):
            while self._goes_on or past_end:
                self._sort(self.queue.get_nowait())
        if self.clock() >= self.ends_at:
            self._refuse_sorted()

    def _sort(self, job: _Job | _Release | None) -> None:
        if job is None:
            self._goes_on = False
        elif isinstance(job, _Release):
            self.fair.release(job.account)
        elif not job.future.cancelled():
            self.fair.put(job.account, job)

    def _refuse_sorted(self) -> None:
        """Refuse the work of accounts; the service's own work, such as storing access counts, is still done."""
        self.fair.release_all()
        own: list[_Job] = []
        while (job := self.fair.take()) is not None:
            if job.account is None:
                own.append(job)
            elif job.begin():
                job.future.set_exception(ending_error())
        for job in own:
            self.fair.put(None, job)

    def refuse_all(self) -> None:
        """Refuse the queued jobs: the thread has ended."""
        with suppress(Empty):
            while True:
                job = self.queue.get_nowait()
                if isinstance(job, _Job) and job.future.set_running_or_notify_cancel():
                    job.future.set_exception(closed_error())

    def wait_for_end(self) -> None:
        """Wait for the end of the thread; a forked process has none."""
        if self._process == os.getpid():
            with self._working:
                pass

    def end(self) -> None:
        """Refuse all further jobs, and wake the threads in `wait_for_end`."""
        self.ended = True
        self._working.release()
        self.refuse_all()


class _Job:
    """
    Piece of work of an account (None: the service's own work), and the future of its outcome.

    It writes about `size` bytes, and `arrived` at a monotonic time. The future can be cancelled until the work begins.
    """

    def __init__(
        self, work: Callable[[Any], Any], future: Future[Any], account: Hashable, size: int, arrived: float
    ) -> None:
        self.work = work
        self.future = future
        self.account = account
        self.size = size
        self.arrived = arrived

    def begin(self) -> bool:
        """Begin the work, or return False if it was cancelled."""
        return self.future.set_running_or_notify_cancel()


class GroupWriter:
    """
    Group commit: run queued work together in one transaction, on its own thread or on a waiting caller's.

    Nothing else writes with `session` from now on. A transaction takes up to `MAX_GROUP` pieces of work, `MAX_BYTES`
    bytes, and the session's `max_seconds` (`LONE_SECONDS` if all work is of one account); futures complete after its
    commit. Accounts are served in turn by the time each has used, so an account with a thousand saves delays another
    account's save by at most one group. At its end the thread calls `end`.

    Submitted work is finished even if the writer is dropped without `close`, or the program ends.
    """

    def __init__(
        self, session: SQLiteSession, end: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._session = session
        self._clock = clock
        self._jobs = _Jobs(clock)
        self._turn = threading.Lock()
        self._closed = False
        self._busy: dict[int, threading.Lock] = {}  # by thread, locked while it does work in its turn, or waits for it
        # A daemon, so that a program that forgets to close can end; it holds no reference to this object.
        self._thread = threading.Thread(
            target=_write, args=(session, self._jobs, self._turn, end), name="cloudstore-writer", daemon=True
        )
        # Set where the interpreter ends and begins no threads: the callers do the work. Python 3.11 doesn't refuse to
        # begin one then, but waits for it forever.
        self._end: Callable[[], None] | None = end if sys.is_finalizing() else None
        if self._end is None:
            try:
                self._thread.start()
            except RuntimeError as error:
                if "new thread" not in str(error):  # an interrupt within `start`, which may make this of it
                    raise (error.__context__ or error) from None
                self._end = end
        if session.outlives_program and self._end is None:
            _writing.add(self._jobs)
        # Without waiting: whoever drops this may hold a lock that the work still needs, or be the thread itself.
        weakref.finalize(self, self._jobs.queue.put, None).atexit = False

    def submit(self, work: Callable[[Any], T], account: Hashable = None, size: int = 0) -> Future[T]:
        """Queue `work(session)` for an account; the future completes after the commit."""
        if self._closed or self._jobs.ended:
            raise closed_error()
        future: Future[T] = PlainFuture()
        self._jobs.put(_Job(work, future, account, size, self._clock()))
        if self._end is not None or sys.is_finalizing():
            self._do_here()
        return future

    def others_wait(self, account: Hashable) -> bool:
        """Return True if other work is queued, or any new work; call it within an account's work."""
        return not self._jobs.queue.empty() or self._jobs.fair.others_wait(account)

    def hold(self, account: Hashable) -> None:
        """Start no more work of an account until `release`; call it only within the account's work."""
        self._jobs.fair.hold(account)

    def release(self, account: Hashable) -> None:
        """Resume the work of an account after `hold`."""
        self._jobs.queue.put(_Release(account))

    def end_within(self, seconds: float) -> None:
        """Refuse all work of accounts not started within `seconds`."""
        self._jobs.ends_at = min(self._jobs.ends_at, self._clock() + seconds)

    def _do_here(self) -> None:
        """Do the queued work on the caller's thread."""
        while not self._jobs.is_idle():
            with self._turn:
                self._jobs.sort(past_end=True)
                self._jobs.fair.release_all()
                _commit(self._session, self._jobs)

    def run(self, work: Callable[[Any], T], until: float = math.inf) -> Future[T]:
        """
        Do as `submit`, but on the caller's thread if no other work is queued: changing threads costs more than a save.

        On the caller's thread, wait for other processes only until the monotonic time `until`.
        """
        self._refuse_mine()
        if self._turn.locked():
            return self.submit(work)
        future: Future[T] | None = None
        # Locks of `with`, which an interrupt can't leave behind, unlike those that are only tried for.
        lock = threading.Lock()
        with lock:
            self._busy[threading.get_ident()] = lock
            with self._turn:
                if not self._closed and not self._jobs.ended and self._jobs.is_idle():
                    future = self._run_alone(work, until)
        if future is None:
            return self.submit(work)
        if self._end is not None:
            self._do_here()
        return future

    def run_outside(self, work: Callable[[Any], T]) -> T:
        """Run `work(session)` on the caller's thread, outside of a transaction and alone; return its result."""
        self._refuse_mine()
        lock = threading.Lock()
        with lock:
            self._busy[threading.get_ident()] = lock
            with self._turn:
                if self._closed or self._jobs.ended:
                    raise closed_error()
                self._session.until, self._session.since = math.inf, self._clock()
                return work(self._session)

    def withdraw(self) -> None:
        """
        After an interrupt of this thread, cancel its last work; if it has begun, wait for its end.

        So an interrupted write never happens after the interrupt, over a later write of the thread.
        """
        reference = self._jobs.latest.pop(threading.get_ident(), None)
        job = None if reference is None else reference()
        if job is not None and not job.future.cancel():
            wait_for(job.future)

    def is_mine(self) -> bool:
        """Return True if a signal handler or `__del__` interrupts this thread's own work."""
        me = threading.get_ident()
        lock = self._busy.get(me)
        return (lock is not None and lock.locked()) or me == self._thread.ident

    def _refuse_mine(self) -> None:
        if self.is_mine() or self._session.is_in_use():
            raise RuntimeError(
                "A signal handler or __del__ can't write to a store in the middle of its thread's own write, or read "
                "in memory; set a flag there, and write afterwards."
            )

    def _run_alone(self, work: Callable[[Any], T], until: float) -> Future[T]:
        """Do the work in its own transaction, rolled back by any exception."""
        future: Future[T] = PlainFuture()
        self._session.until, self._session.since = until, self._clock()
        try:
            try:
                result = self._in_transaction(work)
            except DiskFullError:  # the second try leaves deleted content as it is, which takes less of the disk
                result = self._in_transaction(work)
        except CloudStoreError as error:
            future.set_exception(error)
        except BaseException as error:
            let_go(error)  # within the turn: it may hold the transaction
            if not isinstance(error, Exception):
                raise  # an interrupt is the caller's
            future.set_exception(error)
        else:
            future.set_result(result)
        return future

    def _in_transaction(self, work: Callable[[Any], T]) -> T:
        with self._session.transaction(), self._session.savepoint():
            result = work(self._session)
            if isinstance(result, RolledBack):
                self._session.undo()
            return result

    def close(self) -> None:
        """
        Finish the submitted work, and wait for the end of the thread, unless it is the caller's.

        A signal handler within its thread's own work doesn't wait: the thread ends after that work.
        """
        self._closed = True
        if self._end is not None:
            if not self._jobs.ended:
                self._do_here()
                with self._turn:
                    self._end()
                self._jobs.end()
            return
        if sys.is_finalizing():  # the thread never ends any more; what outlives the program was finished before
            return
        self._jobs.queue.put(None)  # also the second time: an interrupt may have come before the first
        if threading.current_thread() is not self._thread and not (self.is_mine() or self._session.is_in_use()):
            self._jobs.wait_for_end()
            self._thread.join()  # its last steps


_writing: Final[weakref.WeakSet[_Jobs]] = weakref.WeakSet()


#: Holds True once the ending program has finished all work and closed its storages in files.
_has_finished: Final[list[bool]] = []


def has_finished() -> bool:
    """Return True at the end of a program, once earlier opened storages are closed."""
    return bool(_has_finished)


@atexit.register
def _finish_all() -> None:
    _has_finished.append(True)
    for jobs in list(_writing):
        jobs.queue.put(None)
        jobs.wait_for_end()


def _write(session: SQLiteSession, jobs: _Jobs, turn: threading.Lock, end: Callable[[], None]) -> None:
    try:
        while jobs.wait():
            with turn:
                _commit(session, jobs)
    finally:
        try:
            with turn:
                end()
        finally:
            jobs.end()


def _commit(session: SQLiteSession, jobs: _Jobs) -> None:
    """Do a group of work in one transaction, then complete its futures."""
    first = jobs.fair.take()
    if first is None:
        return
    group = [first]
    session.until, session.since = math.inf, first.arrived
    began = jobs.clock()
    outcomes, worked = _outcomes(session, jobs, group)
    _charge_commit(jobs, group, jobs.clock() - began - worked)
    for job, (result, raised) in zip(group, outcomes, strict=True):
        if not job.begin():  # cancelled
            continue
        if raised is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(raised)


def _charge_commit(jobs: _Jobs, group: list[_Job], seconds: float) -> None:
    """Charge the accounts for the begin and commit of a transaction, by the size of their work."""
    total = sum(max(job.size, LEAST_SIZE) for job in group)
    for job in group:
        jobs.fair.charge(job.account, seconds * max(job.size, LEAST_SIZE) / total)


_Outcomes: TypeAlias = list[tuple[Any, BaseException | None]]


def _outcomes(session: SQLiteSession, jobs: _Jobs, group: list[_Job]) -> tuple[_Outcomes, float]:
    """Do the work of a group, and add queued work to it; return the outcomes, and the seconds of work."""
    outcomes: _Outcomes = []
    worked = 0.0
    try:
        with session.transaction():
            for job in _growing(session, jobs, group):
                began = jobs.clock()
                outcomes.append(_outcome(session, job))
                seconds = jobs.clock() - began
                worked += seconds
                jobs.fair.charge(job.account, seconds)
    except DiskFullError:  # one piece of work may need too much of the disk, or all together
        return [_outcome_alone(session, job) for job in group], worked
    except BaseException as error:  # noqa: BLE001 - nothing is on disk; each future gets the error
        return [(None, error)] * len(group), worked
    return outcomes, worked


def _outcome_alone(session: SQLiteSession, job: _Job) -> tuple[Any, BaseException | None]:
    """Do a job in a transaction of its own, and return its outcome."""
    try:
        with session.transaction():
            outcome = _outcome(session, job)
    except BaseException as error:  # noqa: BLE001 - nothing is on disk; the future gets the error
        return None, error
    return outcome


def _growing(session: SQLiteSession, jobs: _Jobs, group: list[_Job]) -> Iterator[_Job]:
    """Yield the work of a group, and add queued work in turn until the transaction is full."""
    began = jobs.clock()
    size = 0
    account = group[0].account
    is_lone = all(job.account == account for job in group)
    for job in group:  # also what is added meanwhile
        size += job.size
        yield job
        if job is not group[-1] or len(group) >= session.max_group or size >= MAX_BYTES:
            continue
        jobs.sort()
        next_job = jobs.fair.peek()
        if next_job is None or size + next_job.size > MAX_BYTES:
            continue
        is_lone = is_lone and not jobs.fair.others_wait(account)
        if jobs.clock() - began < (LONE_SECONDS if is_lone else session.max_seconds):
            jobs.fair.take()
            group.append(next_job)


def _outcome(session: SQLiteSession, job: _Job) -> tuple[Any, BaseException | None]:
    if not job.begin():
        return None, None
    try:
        with session.savepoint():
            result = job.work(session)
            if isinstance(result, RolledBack):
                session.undo()
    except BaseException as error:
        if isinstance(error, DiskFullError) or not session.intact():
            raise
        return None, error
    return result, None


#: Maximum number of idle reader connections kept for reuse.
MAX_IDLE: Final = 16
#: SQLite's busy timeout in seconds while a store is opened; signals are delayed as long.
OPENING_WAIT: Final = 0.25


class SQLiteStorage(Storage):
    """
    Storage in the SQLite file at `path`, created if missing, or in memory if `path` is None.

    With `copy_of` instead of a path, this file is copied into memory, to read it without write permission. Several
    processes may share a file, but a forked process must open it again. Every commit is synced (``synchronous=FULL``)
    before its reply, and readers see the last commit without waiting. Raises `UnsupportedError` if the file is foreign,
    damaged or of a newer version, and `OSError` if it can't be opened. A `session` with data in memory is used as it
    is. A file of an older version is migrated; if its files must be renamed first, it is refused unchanged, unless the
    caller `renames` them, and so it is if `admits` raises an error (see `migrate`).
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        session: SQLiteSession | None = None,
        *,
        copy_of: Path | None = None,
        renames: bool = False,
        admits: Admission | None = None,
    ) -> None:
        self._path = None if path is None else Path(path).absolute()
        self.reads_in_turn = path is None
        self._session = session or _open(self._path, copy_of, renames=renames, admits=admits)
        self._idle: list[SQLiteSession] = []
        self._closed = False
        self._was_too_long = False
        self._process = os.getpid()
        self._writer = GroupWriter(self._session, partial(_let_go, self._session, self._idle))
        self._probe = HealthProbe(partial(self._writer.submit, SQLiteSession.check_room, PROBE_QUEUE))

    def _check_open(self) -> None:
        """Raise `UnavailableError` after `close`, and in a forked process: it lacks the writer and the locks."""
        if self._closed or os.getpid() != self._process:
            raise not_open(closed=self._closed)

    def in_child(self) -> Storage | None:
        """Return the storage of a forked process if it is a copy of memory; None if the process must open its own."""
        if self._path is not None:
            return None
        with inside_sqlite():  # refuses a copy made in the middle of an SQLite call
            return SQLiteStorage(None, self._session)

    def read(self) -> AbstractContextManager[Transaction]:
        """Return a read transaction for the caller's thread: a snapshot of one moment."""
        self._check_open()
        if self._path is None:
            return self._session.snapshot()
        return ReadTransaction(self._reader(self._path), self._give_back)

    def _give_back(self, session: SQLiteSession) -> None:
        self._idle.append(session)
        # Checked after the append, so that a concurrent `close` leaves no connection open.
        if self._closed or len(self._idle) > MAX_IDLE:
            _close_one(self._idle)

    def _reader(self, path: Path) -> SQLiteSession:
        try:
            return self._idle.pop()
        except IndexError:
            pass
        try:
            return SQLiteSession(path, "rw", self._session)
        except sqlite3.Error as error:
            raise self._session.failed(error) from error

    def submit(self, work: Callable[[Transaction], T], account: Hashable = None, size: int = 0) -> Future[T]:
        """Run `work` in a writing transaction; the future completes after the commit is on disk."""
        self._check_open()
        return self._writer.submit(work, account, size)

    def others_wait(self, account: Hashable) -> bool:
        """Return True if other work is queued; call it within an account's work."""
        return self._writer.others_wait(account)

    def hold(self, account: Hashable) -> None:
        """Start no more work of an account until `release`; call it only within the account's work."""
        self._writer.hold(account)

    def release(self, account: Hashable) -> None:
        """Resume the work of an account after `hold`."""
        self._writer.release(account)

    def end_within(self, seconds: float) -> None:
        """Refuse all work not started within `seconds`."""
        self._session.hurry(seconds)
        self._writer.end_within(seconds)

    def run(self, work: Callable[[Transaction], T], until: float = math.inf) -> Future[T]:
        """Do as `submit`, on the caller's thread if nobody else is writing; see `Storage.run`."""
        self._check_open()
        return self._writer.run(work, until)

    def back_up(self, path: Path, report: Callable[[int, int], object]) -> None:
        """Copy a snapshot into a new file, which appears at `path` once it is complete."""
        self._check_open()
        if self._path is None:
            with self._session.snapshot():
                back_up(self._session.connection, path, report)
            return
        try:
            session = SQLiteSession(self._path, "rw", self._session)
        except sqlite3.Error as error:
            raise self._session.failed(error) from error
        with closing(session), session.snapshot():
            session.touch()  # the first read begins the snapshot
            back_up(session.connection, path, report)

    def compact(self) -> Compaction:
        """Give the file's unused space back to the disk; see `SQLiteSession.compact`."""
        self._check_open()
        is_rewritten = self._writer.run_outside(SQLiteSession.compact)
        return Compaction(is_rewritten, 0 if self._path is None else self._excess(self._path))

    def shorten(self) -> None:
        """
        Checkpoint the log if the file was longer than its content at the last call, too: only this truncates it.

        While others write, their commits do so; and `compact` must not be disturbed between its two commits.
        """
        self._check_open()
        if self._path is None:
            return
        was_too_long, self._was_too_long = self._was_too_long, self._is_too_long(self._path)
        if was_too_long and self._was_too_long:
            session = self._reader(self._path)
            try:
                session.checkpoint()
            finally:
                self._give_back(session)

    def _is_too_long(self, path: Path) -> bool:
        return self._excess(path) > 0

    def _excess(self, path: Path) -> int:
        """Return by how many bytes the file is longer than its content."""
        with self.read() as transaction:
            (pages,), (size,) = transaction.row("PRAGMA page_count"), transaction.row("PRAGMA page_size")
        try:
            return max(0, path.stat().st_size - int(pages * size))
        except OSError:  # moved or deleted
            return 0

    def problem(self) -> str | None:
        """Return the present reason for failing reads or saves, or None; see `HealthProbe` for a busy writer."""
        try:
            self._check_open()
            self._session.check_usable()
            if self._path is not None:  # in memory it would wait for the writer
                with self.read() as transaction:
                    transaction.has_accounts()
        except UnavailableError as error:
            return str(error)
        return self._probe.problem(base.PATIENCE)

    def check_writable(self) -> None:
        """Raise `PermissionError` if the file, its log or its file system is read-only."""
        try:
            self.submit(SQLiteSession.check_writable).result()  # type: ignore[arg-type]  # a SQLiteSession
        except UnavailableError as error:
            if isinstance(error.__cause__, sqlite3.Error) and primary_code(error.__cause__) == sqlite3.SQLITE_READONLY:
                raise PermissionError(
                    f"{self._path} can't be written to; look at the permissions of it, of its -wal and -shm file, and "
                    "of its folder."
                ) from error
            raise

    def look_for_damage(self) -> None:
        """Check all pages of a small store; of a large store, the pages needed by every request."""
        with suppress(UnavailableError), self.read() as transaction:
            assert isinstance(transaction, SQLiteSession)  # noqa: S101 - always true
            transaction.look_for_damage(self.size())

    def size(self) -> int:
        """Return the size of the file and its log in bytes, 0 in memory."""
        size = 0
        for end in ("", "-wal") if self._path is not None else ():
            with suppress(FileNotFoundError):
                size += Path(f"{self._path}{end}").stat().st_size
        return size

    def check_can_wait(self) -> None:
        """Raise `RuntimeError` in a signal handler that interrupts its thread's own write to a store in memory."""
        if self._path is None and self._writer.is_mine():
            raise RuntimeError(
                "A signal handler can't list a store in memory in the middle of its thread's own write; set a flag in "
                "the handler, and list afterwards."
            )

    def withdraw(self) -> None:
        """After an interrupt of this thread, cancel its pending write, or wait for its end."""
        self._writer.withdraw()

    def hurry(self) -> None:
        """From now on wait only briefly for other processes."""
        self._session.hurry()

    def close(self) -> None:
        """Finish the submitted work, unless another process locks the store, then close all connections."""
        self._closed = True
        self.hurry()
        self._writer.close()


def _open(path: Path | None, copy_of: Path | None, *, renames: bool, admits: Admission | None) -> SQLiteSession:
    gives_up_at = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            with inside_sqlite():
                return _try_to_open(path, copy_of, renames=renames, admits=admits)
        except UnavailableError as error:
            cause = error.__cause__
            is_busy = isinstance(cause, sqlite3.Error) and primary_code(cause) == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() >= gives_up_at:
                raise


def _try_to_open(path: Path | None, copy_of: Path | None, *, renames: bool, admits: Admission | None) -> SQLiteSession:
    try:
        place = path or copy_of
        if place is not None:
            check_place(place)
            check_file(place)
        session = SQLiteSession(path, "rwc", busy_timeout=min(OPENING_WAIT, BUSY_TIMEOUT))
        try:
            if copy_of is not None:
                copy_into_memory(copy_of, session.connection)
            migrate(session.connection, path, renames=renames, admits=admits)
            if session.identity is not None:
                with session.snapshot():
                    session.touch()  # creates the log of a new file
                session.identity.add_log()
            session.do_not_wait()
        except BaseException:
            session.close_untouched()
            raise
    except OSError as error:
        if error.errno in NO_MORE_FILES:
            raise OperatorError(NO_MORE_FILES[error.errno], retry_after=1.0) from error
        raise
    except UnicodeDecodeError as error:
        raise damaged(place or Path()) from error
    except sqlite3.Error as error:
        raise (unavailable(error) if place is None else read_error(place, error)) from error
    return session


def _let_go(session: SQLiteSession, idle: list[SQLiteSession]) -> None:
    with inside_sqlite():
        while idle:
            _close_one(idle)
        try:
            if session.identity is not None and session.identity.is_overwritten():
                session.close_untouched()
                session.identity.set_log_aside("overwritten")
            elif session.identity is not None and session.damage.error is None:
                session.identity.part_from_log(session.connection)
        finally:
            session.close()


def _close_one(idle: list[SQLiteSession]) -> None:
    with suppress(IndexError):  # a reader and the writer may compete for the last one
        idle.pop().close()
