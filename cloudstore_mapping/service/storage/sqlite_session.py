"""A connection to an SQLite database, its transactions and its errors."""

# ruff: noqa: D102 - what is without a docstring has it in `statements`
from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from threading import get_ident
from types import TracebackType
from typing import Any, Final, Literal, cast

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage.base import Transaction
from cloudstore_mapping.service.storage.sql import SQLTransaction
from cloudstore_mapping.service.storage.sqlite_identity import Identity
from cloudstore_mapping.service.storage.sqlite_lineage import change
from cloudstore_mapping.service.storage.sqlite_space import FULL, LOG, Space
from cloudstore_mapping.service.storage.writer import Session
from cloudstore_mapping.sqlite_forks import connected, forkers, inside_sqlite, let_fork, track_session

_log: Final = logging.getLogger(__name__)

#: Seconds that a writer waits for another process's transaction on the same file.
BUSY_TIMEOUT: Final = 30.0
#: Seconds that it still waits once its store is to be closed.
CLOSING_WAIT: Final = 0.5
#: Seconds between two tries, which double up to the longest.
FIRST_PAUSE: Final = 0.001
LONGEST_PAUSE: Final = 0.05


#: Bytes of a store all of whose pages are looked at when a service starts: a tenth of a second.
SOON: Final = 64 * 2**20

# Errors of a disk that pass, as when shared memory or a lock can't be had.
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


class Damage:
    """Damage of a file or disk, once SQLite has met it: until the store is opened anew nothing more is written."""

    def __init__(self) -> None:
        self.error: sqlite3.Error | None = None

    def note(self, error: sqlite3.Error, *, committing: bool = False) -> None:
        """Remember the first error that tells of damage; after a failed commit any error of the disk does."""
        if self.error is not None or (not committing and no_more_files() is not None):
            return
        if primary_code(error) == sqlite3.SQLITE_IOERR and (committing or error.sqlite_errorcode not in _PASSING):
            # After a failed sync nobody knows what is on disk, and the next sync would claim success.
            self.error = error
            _log.error("The store's disk failed and it takes no more writes: %s.", error)
        elif primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self.error = error
            _log.error("The store's file is damaged and takes no more writes: %s.", error)


class SQLiteSession(SQLTransaction, Session):
    """
    A connection to the database in the file at `path`, or to a new one in memory; for one thread at a time.

    `mode` is ``rwc`` where an absent file may be created, ``ro`` where nothing is written, else ``rw``. Raises
    `sqlite3.Error`, and `UnavailableError` where the path leads to another file than the one that `beside`, another
    connection to the store, has open. A transaction that writes keeps all others out, so nothing has to be held.
    """

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
        # In memory there is one connection only, which readers and the writer take in turn; both are quick.
        self._lock: Any = threading.RLock()
        self._turn: AbstractContextManager[Any] = self._lock if path is None else nullcontext()
        self._path = path
        #: The thread that is in a transaction, for which a fork waits; 0 for none.
        self.user = 0
        with inside_sqlite():
            self._open(mode, beside, busy_timeout)

    def _open(self, mode: str, beside: SQLiteSession | None, busy_timeout: float | None) -> None:
        path = self._path
        self.connection = sqlite3.connect(
            ":memory:" if path is None else f"{path.as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT if busy_timeout is None else busy_timeout,
            isolation_level=None,
            check_same_thread=False,
        )
        track_session(self)
        self._space = None if path is None else Space(path)
        self.outlives_program = path is not None
        #: What was met by any connection to the store.
        self.damage: Damage = Damage() if beside is None else beside.damage
        self._gives_up_at = float("inf")
        self._execute = self.connection.execute
        try:
            #: The file that it has open; None in memory.
            self.identity: Identity | None = None
            if path is not None:
                self.identity = Identity(path) if beside is None else beside.identity
            self._check_identity()  # before SQLite reads: it would replay our log over another file
            self._execute("PRAGMA foreign_keys = ON")
            self._execute("PRAGMA synchronous = FULL")
            self._execute(f"PRAGMA journal_size_limit = {LOG}")  # what a large write made of it is given back
        except BaseException:
            self.close_untouched()
            raise

    def is_in_use(self) -> bool:
        """Return True in a signal handler, or `__del__`, in the middle of this thread's own turn in memory."""
        owned: bool = self._lock._is_owned()  # noqa: SLF001 - as `threading.Condition` asks; no public way is complete
        return owned

    @contextmanager
    def snapshot(self) -> Iterator[Transaction]:
        """Read the database as it is at one moment; in memory, in turn with all others who use it."""
        with self._turn:
            before = 0 if self._path else self.user  # in memory its thread may be in a transaction already
            try:
                self.user = get_ident()
                if forkers and not before:
                    let_fork(self)
                self.check_not_overwritten()
                try:
                    begins = not self.connection.in_transaction  # in memory, what writes may read as well
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
        """Begin, then commit, or roll back and raise `UnavailableError` if SQLite fails."""
        with self._turn:
            before = 0 if self._path else self.user  # in memory its thread may be in a transaction already
            try:
                self.user = get_ident()
                if forkers and not before:
                    let_fork(self)
                self.check_usable()
                if self._space is not None:
                    self._space.begin()
                try:
                    if self.connection.in_transaction:  # an interrupt came before the last one was undone
                        self._execute("ROLLBACK")
                    if self._space is not None and self._space.log_is_in_the_way():
                        self._empty_log()
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
                except sqlite3.Error as error:
                    raise self.failed(error) from error
                finally:
                    if self.connection.in_transaction:  # an interrupt came before it was undone
                        self._execute("ROLLBACK")
            finally:
                self.user = before

    def _empty_log(self) -> None:
        """Carry the log over into the file and give its bytes back to the disk, unless others read or write now."""
        try:
            self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:  # the log stays as it is
            if primary_code(error) not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise

    def compact(self) -> None:
        """
        Give the file's unused pages back to the disk; raises `UnavailableError` if SQLite fails, or lacks room.

        Not within a transaction. SQLite writes the file anew as one transaction: a crash undoes it, readers go on, and
        writers wait. Readers of an older state put off that the file gets shorter until the next checkpoint.
        """
        if self._space is None or self.identity is None:
            return  # in memory
        try:
            self.user = get_ident()
            if forkers:
                let_fork(self)
            self.check_usable()
            if self.connection.in_transaction:  # an interrupt came before the last one was undone
                self._execute("ROLLBACK")
            (pages,), (unused,), (size,) = (
                self.row(f"PRAGMA {what}") for what in ("page_count", "freelist_count", "page_size")
            )
            if not unused:
                return
            self._space.begin()
            self._space.take((pages - unused) * size, lambda: 0)  # in the log, and a temporary file before it
            (checkpoint,) = self.row("PRAGMA wal_autocheckpoint")
            try:
                # The file gets its new pages only with a new token, so that no log of them seems to fit an older copy.
                self._execute("PRAGMA wal_autocheckpoint = 0")
                self._when_free("VACUUM")
                with self.transaction():
                    self._execute("UPDATE lineage SET token = token")
            finally:
                self.user = get_ident()
                self._execute(f"PRAGMA wal_autocheckpoint = {checkpoint}")
            with self.identity.committing():
                self._empty_log()
        except sqlite3.Error as error:
            raise self.failed(error) from error
        finally:
            self.user = 0

    def _when_free(self, statement: str) -> None:
        """
        Execute once no other process writes, for which it waits `BUSY_TIMEOUT` seconds, or until `until` if earlier.

        SQLite's own waiting ends neither for a signal nor for `hurry`, so the writer's connection does without it.
        """
        gives_up_at = min(time.monotonic() + BUSY_TIMEOUT, self.until)
        pause = FIRST_PAUSE
        while True:
            try:
                self._execute(statement)
            except sqlite3.OperationalError as error:
                left = min(gives_up_at, self._gives_up_at) - time.monotonic()
                if primary_code(error) != sqlite3.SQLITE_BUSY or left <= 0:
                    raise
                self.user = 0  # a fork doesn't wait for another process
                time.sleep(min(pause, left))
                self.user = get_ident()
                if forkers:
                    let_fork(self)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                return

    def do_not_wait(self) -> None:
        """Leave no waiting for other processes to SQLite from now on."""
        self._execute("PRAGMA busy_timeout = 0")

    def hurry(self) -> None:
        """Wait no longer than `CLOSING_WAIT` for other processes from now on."""
        self._gives_up_at = min(self._gives_up_at, time.monotonic() + CLOSING_WAIT)

    def check_usable(self) -> None:
        """Raise `UnavailableError` where nothing may be written: once damage was met, or without the file."""
        if self.damage.error is not None:
            raise unavailable(self.damage.error) from self.damage.error
        self._check_identity()

    def check_not_overwritten(self) -> None:
        """Raise `UnavailableError` where the file holds another store by now, of which reads would return parts."""
        if self.identity is not None and self.identity.is_overwritten():
            self.identity.check()

    def failed(self, error: sqlite3.Error) -> UnavailableError:
        """Return what an error of the connection is called outside, and remember damage."""
        self.damage.note(error)
        return unavailable(error)

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
        """Keep one piece of work apart from the others in the transaction: undo what it did if it raises."""
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

    def _undo_work(self) -> None:
        try:
            self._execute("ROLLBACK TO work")
            self._execute("RELEASE work")
        except sqlite3.Error:  # an interrupt came before the savepoint was there, or when it was there no longer
            self._execute("ROLLBACK")

    def row(self, query: str, *parameters: Any) -> Any:
        return self._execute(query, parameters).fetchone()

    def rows(self, query: str, *parameters: Any) -> list[Any]:
        return self._execute(query, parameters).fetchall()

    def stream(self, query: str, *parameters: Any) -> Iterator[Any]:
        for row in self._execute(query, parameters):  # noqa: UP028 - which would close the cursor of a closed database
            yield row

    def do(self, query: str, *parameters: Any) -> None:
        self._execute(query, parameters)

    def count(self, query: str, *parameters: Any) -> int:
        return self._execute(query, parameters).rowcount

    def _one_of(self, names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
        # Of few lengths, so that there are few statements, and each is prepared once.
        length = 1 << (len(names) - 1).bit_length()
        return f"name IN ({', '.join('?' * length)})", (*names, *[names[-1]] * (length - len(names)))

    def _containing(self, text: str) -> tuple[str, tuple[str, ...]]:
        return "instr(name, ?)", (text,)  # for LIKE is neither literal nor case-sensitive

    def _blob(self, blob: int) -> tuple[int, ...]:
        return (blob,)

    _chunk = _blob

    def _hold_account(self, account_id: int) -> None:
        pass

    def _make_sure_of_space(self, size: int) -> None:
        if self._space is not None:
            self._space.take(size, self._unused)

    def check_writable(self) -> None:
        """Raise `UnavailableError` where the file or its log is read-only, on which SQLite begins all the same."""
        self.do("DELETE FROM accounts WHERE FALSE")

    def check_room(self) -> None:
        """Raise `UnavailableError` where not even a small value could be written, for lack of leave or of room."""
        self.check_writable()
        self._make_sure_of_space(1)

    def look_for_damage(self, size: int) -> None:
        """Raise `sqlite3.DatabaseError` for a damaged page of a store of so many bytes, where that is soon found."""
        for part in ["1"] if size <= SOON else ["accounts", "api_keys", "lineage"]:
            (found,) = self.rows(f"PRAGMA quick_check({part})")[0]
            if found != "ok":
                error = sqlite3.DatabaseError(found)
                error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise error

    def _unused(self) -> int:
        (pages,), (size,) = self.row("PRAGMA freelist_count"), self.row("PRAGMA page_size")
        return int(pages * size)

    def add_chunk(self, blob: int, number: int, data: bytes, now: float) -> bool:
        self._make_sure_of_space(len(data))
        return super().add_chunk(blob, number, data, now)

    def _put(self, account_id: int, name: str, value: bytes, version: str, now: float) -> None:
        self._make_sure_of_space(len(value))
        self._execute(
            "INSERT INTO files (account_id, name, value, version, created_at, updated_at)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (account_id, name) DO UPDATE SET"
            " value = excluded.value, version = excluded.version, updated_at = excluded.updated_at",
            (account_id, name, value, version, now, now),
        )

    def intact(self) -> bool:
        """Whether the transaction still stands; SQLite undoes all of it when a disk is full, for one."""
        return self.connection.in_transaction

    def close(self) -> None:
        """Let go of the connection."""
        with self._turn, inside_sqlite():
            self.connection.close()

    def __del__(self) -> None:
        # An interrupt may drop a session anywhere, and a connection that is freed unclosed is a ResourceWarning.
        if "connection" in vars(self):
            self.connection.close()

    def has_begun(self) -> bool:
        """Return whether a transaction is open."""
        with suppress(sqlite3.ProgrammingError):  # it was closed
            return self.connection.in_transaction
        return False

    def leave_to_parent(self, *, is_quiet: bool) -> None:
        """
        Let go of the connection in a child; memory goes on as a copy, unless it was in use at the fork.

        A transaction that the parent is in is neither committed nor rolled back here, nor is its connection closed,
        even when the child ends: both would write the parent's log.
        """
        if not is_quiet:
            import ctypes  # which the parent has loaded

            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.connection))  # so that nothing ever frees it
            self.connection = cast("sqlite3.Connection", _Parents())
            self._execute = self.connection.execute
        elif self._path is None:
            self._turn = self._lock = threading.RLock()
        else:
            self.connection.close()

    def close_untouched(self) -> None:
        """Let go of the connection, and leave a log that holds data as it is: it isn't carried over into the file."""
        log = Path(f"{os.path.realpath(self._path or '')}-wal")
        if self._path is None or not log.exists() or not log.stat().st_size:
            self.close()
            return
        # While another connection has the file open SQLite leaves the log alone; this one can't write.
        with suppress(sqlite3.Error), connected(f"{self._path.as_uri()}?mode=ro", uri=True) as other:
            with suppress(sqlite3.Error):
                other.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # locks it, even where this fails
            self.close()
        self.close()


class _Parents:
    """What a child has in the place of a connection that its parent was using at the fork."""

    in_transaction: Final = False
    total_changes: Final = 0

    def execute(self, *_: Any) -> Any:
        raise sqlite3.OperationalError("the connection was in use when this process was forked")

    def close(self) -> None:
        pass


class Reading(AbstractContextManager[Transaction]):
    """
    Reads a file's database as it is at one moment, while the block runs; then `give_back` gets the session.

    What `snapshot` does, but no generator within another: they take as long as the statements of a small read.
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
            if session.connection.in_transaction:  # an interrupt came before it was ended
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
