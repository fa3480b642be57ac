"""A connection to an SQLite database, and the statements that it takes."""

# ruff: noqa: D102 - what the methods of a transaction do is said in `base`
from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, Literal

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage.base import Account, File, FileInfo, Transaction, after_prefix
from cloudstore_mapping.service.storage.writer import Session

_log: Final = logging.getLogger(__name__)

#: Seconds that a writer waits for another process's transaction on the same file.
BUSY_TIMEOUT: Final = 30.0


class SQLiteSession(Transaction, Session):
    """
    A connection to the database in the file at `path`, or to a new one in memory; for one thread at a time.

    `mode` is ``rwc`` where an absent file may be created, else ``rw``. Raises `sqlite3.Error`.
    """

    def __init__(self, path: Path | None, mode: Literal["rw", "rwc"]) -> None:
        # In memory there is one connection only, which readers and the writer take in turn; both are quick.
        self._turn: AbstractContextManager[Any] = threading.RLock() if path is None else nullcontext()
        self.connection = sqlite3.connect(
            ":memory:" if path is None else f"{path.as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,
        )
        #: What made a commit fail for good.
        self.failure: sqlite3.Error | None = None
        self._execute = self.connection.execute
        try:
            self._execute("PRAGMA foreign_keys = ON")
            self._execute("PRAGMA synchronous = FULL")
        except BaseException:
            self.close()
            raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read the database as it is at one moment."""
        with self._turn:
            try:
                begins = not self.connection.in_transaction  # in memory, what writes may read as well
                if begins:
                    self._execute("BEGIN")
                try:
                    yield
                finally:
                    if begins and self.connection.in_transaction:
                        self._execute("ROLLBACK")
            except sqlite3.Error as error:
                raise unavailable(error) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Begin, then commit, or roll back and raise `UnavailableError` if SQLite fails."""
        with self._turn:
            if self.failure is not None:
                raise unavailable(self.failure) from self.failure
            try:
                self._execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._commit()
                except BaseException:
                    if self.connection.in_transaction:
                        self._execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise unavailable(error) from error

    def _commit(self) -> None:
        try:
            self._execute("COMMIT")
        except sqlite3.Error as error:
            if primary_code(error) == sqlite3.SQLITE_IOERR:
                # After a failed sync nobody knows what is on disk, and the next sync would claim success.
                self.failure = error
                _log.error("The store can't commit and takes no more writes: %s.", error)
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
                    self._execute("ROLLBACK TO work")
                    self._execute("RELEASE work")
                raise
        except sqlite3.Error as error:
            raise unavailable(error) from error

    def intact(self) -> bool:
        """Whether the transaction still stands; SQLite undoes all of it when a disk is full, for one."""
        return self.connection.in_transaction

    def close(self) -> None:
        """Let go of the connection."""
        with self._turn:
            self.connection.close()

    def account(self, account_id: int) -> Account | None:
        return self._account("SELECT id, name, disabled FROM accounts WHERE id = ?", account_id)

    def account_of_key(self, key_hash: bytes) -> Account | None:
        return self._account(
            "SELECT id, name, disabled FROM accounts WHERE id = (SELECT account_id FROM api_keys WHERE hash = ?)",
            key_hash,
        )

    def account_named(self, name: str) -> Account | None:
        return self._account("SELECT id, name, disabled FROM accounts WHERE name = ?", name)

    def _account(self, query: str, parameter: int | bytes | str) -> Account | None:
        row = self._execute(query, (parameter,)).fetchone()
        return None if row is None else Account(row[0], row[1], bool(row[2]))

    def has_accounts(self) -> bool:
        return self._execute("SELECT 1 FROM accounts LIMIT 1").fetchone() is not None

    def add_account(self, name: str, now: float) -> Account:
        row = self._execute(
            "INSERT INTO accounts (name, created_at) VALUES (?, ?) RETURNING id", (name, now)
        ).fetchone()
        return Account(row[0], name, disabled=False)

    def add_key(self, account_id: int, key_hash: bytes, now: float) -> None:
        self._execute(
            "INSERT INTO api_keys (hash, account_id, created_at) VALUES (?, ?, ?)", (key_hash, account_id, now)
        )

    def set_disabled(self, account_id: int, disabled: bool) -> None:
        self._execute("UPDATE accounts SET disabled = ? WHERE id = ?", (disabled, account_id))

    def get(self, account_id: int, name: str) -> File | None:
        row = self._execute(
            "SELECT value, edit_password, view_password, version FROM files WHERE account_id = ? AND name = ?",
            (account_id, name),
        ).fetchone()
        return None if row is None else File._make(row)

    def stat(self, account_id: int, name: str) -> FileInfo | None:
        row = self._execute(
            "SELECT length(value), version, created_at, updated_at, edit_password, view_password"
            " FROM files WHERE account_id = ? AND name = ?",
            (account_id, name),
        ).fetchone()
        return None if row is None else FileInfo._make(row)

    def _put(self, account_id: int, name: str, value: bytes, version: str, now: float) -> None:
        self._execute(
            "INSERT INTO files (account_id, name, value, version, created_at, updated_at)"
            " VALUES (?1, ?2, ?3, ?4, ?5, ?5) ON CONFLICT (account_id, name) DO UPDATE SET"
            " value = excluded.value, version = excluded.version, updated_at = excluded.updated_at",
            (account_id, name, value, version, now),
        )

    def delete(self, account_id: int, name: str) -> bool:
        deleted = self._execute("DELETE FROM files WHERE account_id = ? AND name = ?", (account_id, name))
        return deleted.rowcount > 0

    def names(
        self,
        account_id: int,
        containing: str = "",
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int | None = None,
    ) -> list[str]:
        # Of two lower bounds the index would be entered at one only, so both are made one: what comes right behind a
        # text is that text and NUL. No text comes behind a blob. And instr, for LIKE is neither literal nor
        # case-sensitive.
        start = prefix if after is None else max(prefix, after + "\0")
        end = after_prefix(prefix)
        rows = self._execute(
            "SELECT name FROM files WHERE account_id = ? AND name >= ? AND name < ?"
            " AND (?4 = '' OR instr(name, ?4)) ORDER BY name LIMIT ?",
            (account_id, start, b"" if end is None else end, containing, -1 if limit is None else limit),
        )
        return [name for (name,) in rows]

    def answer(self, account_id: int, request: str) -> bytes | None:
        row = self._execute(
            "SELECT reply FROM answers WHERE account_id = ? AND request = ?", (account_id, request)
        ).fetchone()
        return None if row is None else bytes(row[0])

    def keep_answer(self, account_id: int, request: str, reply: bytes, now: float) -> None:
        self._execute(
            "INSERT INTO answers (account_id, request, reply, answered_at) VALUES (?, ?, ?, ?)",
            (account_id, request, reply, now),
        )

    def forget_answers(self, before: float, limit: int) -> None:
        # One by one, for SQLite would look for a list of keys through all of an account's.
        old = self._execute(
            "SELECT account_id, request FROM answers WHERE answered_at < ? ORDER BY answered_at LIMIT ?",
            (before, limit),
        ).fetchall()
        self.connection.executemany("DELETE FROM answers WHERE account_id = ? AND request = ?", old)

    def set_passwords(self, account_id: int, name: str, *, edit: str | None, view: str | None) -> bool:
        updated = self._execute(
            "UPDATE files SET edit_password = ?, view_password = ? WHERE account_id = ? AND name = ?",
            (edit, view, account_id, name),
        )
        return updated.rowcount > 0


_SENTENCES: Final = {
    sqlite3.SQLITE_BUSY: "Another process holds the store; try again.",
    sqlite3.SQLITE_CANTOPEN: "The store's file can't be opened any more; look whether it was moved.",
    sqlite3.SQLITE_FULL: "The store's disk is full; free some space, then try again.",
    sqlite3.SQLITE_READONLY: "The store can't be written to; look at the permissions of its file and folder.",
    sqlite3.SQLITE_CORRUPT: "The store's file is damaged; restore a backup of it.",
    sqlite3.SQLITE_NOTADB: "The store's file is damaged; restore a backup of it.",
    sqlite3.SQLITE_IOERR: "The store's disk failed; look at it, then start again.",
}


def unavailable(error: sqlite3.Error) -> UnavailableError:
    """Return what an error of SQLite is called outside."""
    sentence = _SENTENCES.get(primary_code(error), f"The store failed: {error}.")
    return UnavailableError(sentence, retry_after=1.0)


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code, `SQLITE_ERROR` for an error of the module's own."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
