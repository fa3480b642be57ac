"""Data files in SQL: the statements of `FilesTable`."""

# ruff: noqa: D102 - what the methods do is said in `tables`
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from cloudstore_mapping.errors import UnavailableError, shorten
from cloudstore_mapping.service.storage.names import after_prefix
from cloudstore_mapping.service.storage.records import File, FileInfo, Listed
from cloudstore_mapping.service.storage.seals import is_whole
from cloudstore_mapping.service.storage.statements import ALL, Statements
from cloudstore_mapping.service.storage.tables import FilesTable

_INFO: Final = "version, created_at, updated_at, edit_password, view_password"
_ONE: Final = "FROM files WHERE account_id = ? AND name = ?"


class SQLFiles(Statements, FilesTable):
    """Data files, by account and name, and what requests on them were answered."""

    def get(self, account_id: int, name: str) -> File | None:
        columns = f"{self.value}, edit_password, view_password, version"
        row = self.row(f"SELECT {columns} {_ONE}{self.held}", account_id, name)
        if row is None:
            return None
        file = File._make(row)
        if not is_whole(file.version, name, file.value):
            raise UnavailableError(
                f"The value of {shorten(name)} is damaged; save it again, or restore a backup.", key=name
            )
        return file

    def stat(self, account_id: int, name: str) -> FileInfo | None:
        row = self.row(f"SELECT {self.size}, {_INFO} {_ONE}{self.held}", account_id, name)
        return None if row is None else FileInfo._make(row)

    def get_many(self, account_id: int, names: Sequence[str], max_bytes: int) -> dict[str, File | None]:
        found: dict[str, File | None] = dict.fromkeys(names)
        for name, *row in self._of(self._small_files, account_id, names, max_bytes):
            file = File._make(row)
            if is_whole(file.version, name, file.value):
                found[name] = file
            else:
                del found[name]
        return found

    @property
    def _small_files(self) -> str:
        return f"CASE WHEN {self.size} <= ? THEN {self.value} END, edit_password, view_password, version"

    def stat_many(self, account_id: int, names: Sequence[str]) -> dict[str, FileInfo | None]:
        found: dict[str, FileInfo | None] = dict.fromkeys(names)
        for name, *row in self._of(f"{self.size}, {_INFO}", account_id, names):
            found[name] = FileInfo._make(row)
        return found

    def _of(self, columns: str, account_id: int, names: Sequence[str], *parameters: int) -> list[Any]:
        condition, texts = self._one_of(names)
        # In one order, so that of two who hold rows neither has what the other waits for.
        query = f"SELECT name, {columns} FROM files WHERE account_id = ? AND {condition} ORDER BY name{self.held}"  # noqa: S608 - of constants
        return self.rows(query, *parameters, account_id, *texts)

    def delete(self, account_id: int, name: str) -> bool:
        return self.count(f"DELETE {_ONE}", account_id, name) > 0

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
        rows = self._select(f"name, {self.size}, {_INFO}", account_id, containing, "", after, limit)
        return [(name, FileInfo._make(info)) for name, *info in rows]

    def page(
        self,
        account_id: int,
        containing: str = "",
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int,
        max_bytes: int,
    ) -> list[Listed]:
        columns = f"name, {self._small_files}"
        rows = self._select(columns, account_id, containing, prefix, after, limit, max_bytes)
        return [row if is_whole(row[4], row[0], row[1]) else (row[0], None, None, None, "") for row in rows]

    def _select(
        self,
        columns: str,
        account_id: int,
        containing: str,
        prefix: str,
        after: str | None,
        limit: int | None,
        *first: int,
    ) -> list[Any]:
        # Of two lower bounds the index would be entered at one only, so both are made one: what comes right behind a
        # text is that text and NUL.
        start = prefix if after is None else max(prefix, after + "\0")
        end = after_prefix(prefix)
        conditions = ["account_id = ?", "name >= ?"]
        parameters: list[int | str] = [account_id, start]
        if end is not None:
            conditions.append("name < ?")
            parameters.append(end)
        if containing:
            contains, texts = self._containing(containing)
            conditions.append(contains)
            parameters += texts
        query = f"SELECT {columns} FROM files WHERE {' AND '.join(conditions)} ORDER BY name LIMIT ?"  # noqa: S608 - of constants
        return self.rows(query, *first, *parameters, ALL if limit is None else limit)

    def largest(self, account_id: int, limit: int) -> list[tuple[str, int]]:
        query = f"SELECT name, {self.size} FROM files WHERE account_id = ? ORDER BY 2 DESC, name LIMIT ?"  # noqa: S608 - of constants
        return self.rows(query, account_id, limit)

    def count_files(self, account_id: int, enough: int | None = None) -> int:
        if enough is not None:
            self._hold_account(account_id)
        most = ALL if enough is None else enough
        (count,) = self.row(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM files WHERE account_id = ? LIMIT ?) AS data)"
            " + (SELECT count(*) FROM (SELECT 1 FROM media WHERE account_id = ? LIMIT ?) AS uploads)",
            *(account_id, most) * 2,
        )
        return int(count) if enough is None else min(count, enough)

    def set_passwords(self, account_id: int, name: str, *, edit: str | None, view: str | None) -> bool:
        query = "UPDATE files SET edit_password = ?, view_password = ? WHERE account_id = ? AND name = ?"
        return self.count(query, edit, view, account_id, name) > 0

    def answer(self, account_id: int, request: str) -> bytes | None:
        row = self.row("SELECT reply FROM answers WHERE account_id = ? AND request = ?", account_id, request)
        return None if row is None else bytes(row[0])

    def keep_answer(self, account_id: int, request: str, reply: bytes, now: float) -> None:
        self.do(
            "INSERT INTO answers (account_id, request, reply, answered_at) VALUES (?, ?, ?, ?)",
            *(account_id, request, reply, now),
        )

    def forget_answers(self, before: float, limit: int) -> None:
        query = "SELECT account_id, request FROM answers WHERE answered_at < ? ORDER BY answered_at LIMIT ?"
        # One by one, for SQLite would look for a list of keys through all of an account's.
        for row in self.rows(query + self.free_held, before, limit):
            self.do("DELETE FROM answers WHERE account_id = ? AND request = ?", *row)
