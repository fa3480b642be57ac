"""Data files in SQLite: the statements of `FilesTable`."""

# ruff: noqa: D102 - what the methods do is said in `tables`
from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

from cloudstore_mapping.service.storage.names import after_prefix
from cloudstore_mapping.service.storage.records import File, FileInfo
from cloudstore_mapping.service.storage.tables import FilesTable

_INFO: Final = "length(value), version, created_at, updated_at, edit_password, view_password"


class SQLiteFiles(FilesTable):
    """Data files, by account and name, and what requests on them were answered."""

    connection: sqlite3.Connection
    _execute: Callable[..., sqlite3.Cursor]

    def get(self, account_id: int, name: str) -> File | None:
        row = self._execute(
            "SELECT value, edit_password, view_password, version FROM files WHERE account_id = ? AND name = ?",
            (account_id, name),
        ).fetchone()
        return None if row is None else File._make(row)

    def stat(self, account_id: int, name: str) -> FileInfo | None:
        query = f"SELECT {_INFO} FROM files WHERE account_id = ? AND name = ?"  # noqa: S608 - of constants
        row = self._execute(query, (account_id, name)).fetchone()
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
        return [name for (name,) in self._select("name", account_id, containing, prefix, after, limit)]

    def describe(
        self, account_id: int, containing: str = "", *, after: str | None = None, limit: int
    ) -> list[tuple[str, FileInfo]]:
        rows = self._select(f"name, {_INFO}", account_id, containing, "", after, limit)
        return [(name, FileInfo._make(info)) for name, *info in rows]

    def _select(
        self, columns: str, account_id: int, containing: str, prefix: str, after: str | None, limit: int | None
    ) -> sqlite3.Cursor:
        # Of two lower bounds the index would be entered at one only, so both are made one: what comes right behind a
        # text is that text and NUL. No text comes behind a blob. And instr, for LIKE is neither literal nor
        # case-sensitive.
        start = prefix if after is None else max(prefix, after + "\0")
        end = after_prefix(prefix)
        return self._execute(
            f"SELECT {columns} FROM files WHERE account_id = ? AND name >= ? AND name < ?"  # noqa: S608 - of constants
            " AND (?4 = '' OR instr(name, ?4)) ORDER BY name LIMIT ?",
            (account_id, start, b"" if end is None else end, containing, -1 if limit is None else limit),
        )

    def largest(self, account_id: int, limit: int) -> list[tuple[str, int]]:
        query = "SELECT name, length(value) FROM files WHERE account_id = ? ORDER BY 2 DESC, name LIMIT ?"
        return list(self._execute(query, (account_id, limit)))

    def count_files(self, account_id: int, enough: int | None = None) -> int:
        most = -1 if enough is None else enough
        (count,) = self._execute(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM files WHERE account_id = ?1 LIMIT ?2))"
            " + (SELECT count(*) FROM (SELECT 1 FROM media WHERE account_id = ?1 LIMIT ?2))",
            (account_id, most),
        ).fetchone()
        return int(count) if enough is None else min(count, enough)

    def set_passwords(self, account_id: int, name: str, *, edit: str | None, view: str | None) -> bool:
        updated = self._execute(
            "UPDATE files SET edit_password = ?, view_password = ? WHERE account_id = ? AND name = ?",
            (edit, view, account_id, name),
        )
        return updated.rowcount > 0

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
