"""The engine for one machine: an SQLite file in WAL mode, or a database in memory."""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage import health, sqlite_session
from cloudstore_mapping.service.storage.base import Storage, Transaction, check_open
from cloudstore_mapping.service.storage.migrations import check_file, damaged, migrate, not_opened
from cloudstore_mapping.service.storage.sqlite_backup import back_up, copy_into_memory
from cloudstore_mapping.service.storage.sqlite_place import check_place
from cloudstore_mapping.service.storage.sqlite_session import (
    NO_MORE_FILES,
    Reading,
    SQLiteSession,
    no_more_files,
    primary_code,
    unavailable,
)
from cloudstore_mapping.service.storage.writer import GroupWriter
from cloudstore_mapping.sqlite_forks import inside_sqlite

T = TypeVar("T")

#: Connections for reading that are kept for the next reader.
MAX_IDLE: Final = 16
#: Seconds that SQLite waits at a time for other processes while a store is opened; no signal is heard meanwhile.
OPENING_WAIT: Final = 0.25


class SQLiteStorage(Storage):
    """
    Keeps all accounts and files in the SQLite file at `path`, created if it is absent; None keeps them in memory.

    With `copy_of` in place of a path, that file is copied into memory: it is read where nothing can be written. Several
    processes may use one file, but a forked one has to open it anew. Every commit is synced (``synchronous=FULL``)
    before it is answered, and readers see the last commit without waiting. Raises `UnsupportedError` for a file that
    isn't ours, is damaged or is of a newer version, and `OSError` for one that can't be opened. A `session` that holds
    data in memory is used as it is.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, session: SQLiteSession | None = None, *, copy_of: Path | None = None
    ) -> None:
        self._path = None if path is None else Path(path).absolute()
        self.reads_in_turn = path is None
        self._session = session or _open(self._path, copy_of)
        self._idle: list[SQLiteSession] = []
        self._closed = False
        self._process = os.getpid()
        self._writer = GroupWriter(self._session, partial(_let_go, self._session, self._idle))
        self._probe = health.HealthProbe(partial(self._writer.submit, SQLiteSession.check_room))

    def in_child(self) -> Storage | None:
        """Return what a forked process goes on with if that is a copy of memory; None where it opens its own."""
        if self._path is not None:
            return None
        with inside_sqlite():  # which refuses it where the copy was made in the middle of something
            return SQLiteStorage(None, self._session)

    def read(self) -> AbstractContextManager[Transaction]:
        """Return a transaction to read with, on the caller's thread: all it reads is of one moment."""
        check_open(self._process, closed=self._closed)
        if self._path is None:
            return self._session.snapshot()
        return Reading(self._reader(self._path), self._give_back)

    def _give_back(self, session: SQLiteSession) -> None:
        self._idle.append(session)
        # Looked at only now, so that none is left behind whenever `close` comes.
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

    def submit(self, work: Callable[[Transaction], T]) -> Future[T]:
        """Run `work` in a writing transaction; the future completes after the commit is on disk."""
        check_open(self._process, closed=self._closed)
        return self._writer.submit(work)

    def run(self, work: Callable[[Transaction], T], until: float = math.inf) -> Future[T]:
        """Do as `submit`, on the caller's thread where nobody else writes; see `Storage.run`."""
        check_open(self._process, closed=self._closed)
        return self._writer.run(work, until)

    def back_up(self, path: Path, report: Callable[[int, int], object]) -> None:
        """Copy all that it holds at this moment into a new file at `path`, which is there only once it is whole."""
        check_open(self._process, closed=self._closed)
        if self._path is None:
            with self._session.snapshot():
                back_up(self._session.connection, path, report)
            return
        try:
            session = SQLiteSession(self._path, "rw", self._session)
        except sqlite3.Error as error:
            raise self._session.failed(error) from error
        with closing(session), session.snapshot():
            session.has_accounts()  # from the first read on it is one moment
            back_up(session.connection, path, report)

    def compact(self) -> None:
        """Give the file's unused space back to the disk; see `SQLiteSession.compact`."""
        check_open(self._process, closed=self._closed)
        self._writer.run_outside(SQLiteSession.compact)

    def problem(self) -> str | None:
        """Return why reads or saves fail at present, None where they don't; see `HealthProbe` for a writer at work."""
        try:
            check_open(self._process, closed=self._closed)
            self._session.check_usable()
            if self._path is not None:  # in memory it would wait for the writer
                with self.read() as transaction:
                    transaction.has_accounts()
        except UnavailableError as error:
            return str(error)
        return self._probe.problem(health.PATIENCE)

    def check_writable(self) -> None:
        """Raise `PermissionError` where the file, its log or its file system is read-only."""
        try:
            self.submit(SQLiteSession.check_writable).result()  # type: ignore[arg-type]  # which its session is
        except UnavailableError as error:
            if isinstance(error.__cause__, sqlite3.Error) and primary_code(error.__cause__) == sqlite3.SQLITE_READONLY:
                raise PermissionError(
                    f"{self._path} can't be written to; look at the permissions of it, of its -wal and -shm file, and "
                    "of its folder."
                ) from error
            raise

    def look_for_damage(self) -> None:
        """Look at all pages of a small store, and at those of a large one that every request needs."""
        with suppress(UnavailableError), self.read() as transaction:
            assert isinstance(transaction, SQLiteSession)  # noqa: S101 - all are
            transaction.look_for_damage(self.size())

    def size(self) -> int:
        """Return how many bytes the file and its log take, 0 in memory."""
        size = 0
        for end in ("", "-wal") if self._path is not None else ():
            with suppress(FileNotFoundError):
                size += Path(f"{self._path}{end}").stat().st_size
        return size

    def check_can_wait(self) -> None:
        """Raise `RuntimeError` in a signal handler in the middle of its thread's own write to a store in memory."""
        if self._path is None and self._writer.is_mine():
            raise RuntimeError(
                "A signal handler can't list a store in memory in the middle of its thread's own write; set a flag in "
                "the handler, and list afterwards."
            )

    def withdraw(self) -> None:
        """After an interrupt of this thread, cancel the write that it waits for, or wait until it is done."""
        self._writer.withdraw()

    def hurry(self) -> None:
        """Wait no longer than a moment for other processes from now on."""
        self._session.hurry()

    def close(self) -> None:
        """Finish what was submitted, unless another process holds the store, then let go of all connections."""
        self._closed = True
        self.hurry()
        self._writer.close()


def _open(path: Path | None, copy_of: Path | None) -> SQLiteSession:
    gives_up_at = time.monotonic() + sqlite_session.BUSY_TIMEOUT
    while True:
        try:
            with inside_sqlite():
                return _try_to_open(path, copy_of)
        except UnavailableError as error:
            cause = error.__cause__
            is_busy = isinstance(cause, sqlite3.Error) and primary_code(cause) == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() >= gives_up_at:
                raise


def _try_to_open(path: Path | None, copy_of: Path | None) -> SQLiteSession:
    try:
        place = path or copy_of
        if place is not None:
            check_place(place)
            check_file(place)
        session = SQLiteSession(path, "rwc", busy_timeout=min(OPENING_WAIT, sqlite_session.BUSY_TIMEOUT))
        try:
            if copy_of is not None:
                copy_into_memory(copy_of, session.connection)
            migrate(session.connection, path)
            if session.identity is not None:
                with session.snapshot():
                    session.has_accounts()  # so that a new file has its log too
                session.identity.add_log()
            session.do_not_wait()
        except BaseException:
            session.close_untouched()
            raise
    except OSError as error:
        if error.errno in NO_MORE_FILES:
            raise UnavailableError(NO_MORE_FILES[error.errno], retry_after=1.0) from error
        raise
    except UnicodeDecodeError as error:
        raise damaged(place or Path()) from error
    except sqlite3.Error as error:
        code = primary_code(error)
        readonly = code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        if place is not None and readonly and no_more_files() is None:
            raise not_opened(place, error) from error
        if place is not None and code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise damaged(place) from error
        raise unavailable(error) from error
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
    with suppress(IndexError):  # a reader and the writer may both find the last one
        idle.pop().close()
