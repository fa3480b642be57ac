"""The statements of a PostgreSQL session that writes: what it reads it holds, and what it found absent it only adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cloudstore_mapping.service.storage.postgres_connection import write_text
from cloudstore_mapping.service.storage.postgres_session import BLOBS, PostgresSession
from cloudstore_mapping.service.storage.records import AccessDelta, File, FileInfo
from cloudstore_mapping.service.storage.sql import ADD_ACCESSES

_INSERT: Final = (
    "INSERT INTO files (account_id, name, value, version, created_at, updated_at)"
    " VALUES (?, ?, convert_from(?, 'UTF8'), ?, ?, ?)"
)
_REPLACING: Final = (
    " ON CONFLICT (account_id, name) DO UPDATE SET"
    " value = excluded.value, version = excluded.version, updated_at = excluded.updated_at"
)
_UPDATE: Final = (
    "UPDATE files SET value = convert_from(?, 'UTF8'), version = ?, updated_at = ? WHERE account_id = ? AND name = ?"
)
_ADD_MANY: Final = ADD_ACCESSES.format(
    "unnest(CAST(? AS bigint[]), CAST(? AS text[]), CAST(? AS text[]), CAST(? AS bigint[]), CAST(? AS bigint[]),"
    " CAST(? AS double precision[]))"
).replace(" AS u WHERE", " AS u (account_id, kind, name, day, count, last_at) WHERE")
_END_FILLING: Final = (
    *(
        f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT coalesce(max(id), 0) + 1 FROM {table}), FALSE)"  # noqa: S608 - of constants
        for table in ("accounts", "events")
    ),
    f"SELECT setval('blob_numbers', (SELECT coalesce(max(mod(id, {BLOBS})), 0) + 1 FROM blobs), FALSE)",  # noqa: S608 - of constants
    "UPDATE cloudstore SET unfinished = FALSE",
)


class PostgresChanges(PostgresSession):
    """Reads and writes beside other nodes; why it may is said in `postgres_writer`."""

    held, account_held, free_held = " FOR UPDATE", " FOR NO KEY UPDATE", " FOR UPDATE SKIP LOCKED"

    def __init__(self, *, has_trigrams: bool) -> None:
        super().__init__(has_trigrams=has_trigrams)
        #: Which files the present piece of work found, and which it didn't.
        self._found: dict[tuple[int, str], bool] = {}

    def begin_work(self) -> None:
        """Forget what the piece of work before found."""
        self._found.clear()
        self._uncounted.clear()

    def _hold_account(self, account_id: int) -> None:
        self.row(f"SELECT 1 FROM accounts WHERE id = ?{self.account_held}", account_id)  # noqa: S608 - of constants

    def end_filling(self) -> None:
        """Make what was copied in row by row a store: what is made later is numbered behind it."""
        for statement in _END_FILLING:
            self.do(statement)

    def get(self, account_id: int, name: str, max_bytes: int | None = None) -> File | None:
        """Return the file, and hold it."""
        file = super().get(account_id, name, max_bytes)
        self._found[account_id, name] = file is not None
        return file

    def stat(self, account_id: int, name: str) -> FileInfo | None:
        """Return what can be told of the file, and hold it."""
        info = super().stat(account_id, name)
        self._found[account_id, name] = info is not None
        return info

    def get_many(self, account_id: int, names: Sequence[str], max_bytes: int) -> dict[str, File | None]:
        """Return files, and hold them."""
        files = super().get_many(account_id, names, max_bytes)
        self._found |= {(account_id, name): file is not None for name, file in files.items()}
        return files

    def stat_many(self, account_id: int, names: Sequence[str]) -> dict[str, FileInfo | None]:
        """Return what can be told of files, and hold them."""
        infos = super().stat_many(account_id, names)
        self._found |= {(account_id, name): info is not None for name, info in infos.items()}
        return infos

    def delete(self, account_id: int, name: str) -> bool:
        """Remove the file."""
        deleted = super().delete(account_id, name)
        self._found[account_id, name] = False
        return deleted

    def _add_accesses(self, used: list[AccessDelta]) -> None:
        while used:
            # In one statement, which may have a file once: on a second day it comes in the next one.
            once = {each[:3]: each for each in reversed(used)}
            used = [each for each in used if once[each[:3]] is not each]
            columns = [*zip(*(once[file] for file in sorted(once)), strict=True)]
            columns[2] = tuple(map(write_text, columns[2]))
            self.do(_ADD_MANY, *map(list, columns))

    def _put(self, account_id: int, name: str, value: bytes, version: str, now: float) -> None:
        found = self._found.get((account_id, name))
        self._count_put(account_id, name, len(value))
        if found:
            self.do(_UPDATE, value, version, now, account_id, name)
        else:
            # What was looked for and not found is not replaced: somebody else's would be lost.
            query = _INSERT if found is False else _INSERT + _REPLACING
            self.do(query, account_id, name, value, version, now, now)
        self._found[account_id, name] = True
