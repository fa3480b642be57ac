"""Media files in SQLite, and how often files of all kinds were used: `MediaTable` and `AccessesTable`."""

# ruff: noqa: D102 - what the methods do is said in `tables`
from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from cloudstore_mapping.service.storage.records import Accesses, Kind, Media, Used
from cloudstore_mapping.service.storage.tables import AccessesTable, MediaTable

_MEDIA: Final = (
    "SELECT id, name, mimetype, size, digest, blob_id, edit_password, created_at, updated_at FROM media"
    " WHERE account_id = ?"
)


class SQLiteMedia(MediaTable):
    """Media files, by account and id, and the bytes that they are."""

    _execute: Callable[..., sqlite3.Cursor]

    def media(self, account_id: int, media_id: str) -> Media | None:
        return self._media(f"{_MEDIA} AND id = ?", account_id, media_id)

    def media_named(self, account_id: int, name: str) -> Media | None:
        return self._media(f"{_MEDIA} AND name = ?", account_id, name)

    def _media(self, query: str, *parameters: int | str) -> Media | None:
        row = self._execute(query, parameters).fetchone()
        return None if row is None else Media._make(row)

    def describe_media(
        self, account_id: int, containing: str = "", *, after: str | None = None, limit: int
    ) -> list[Media]:
        start = "" if after is None else after + "\0"
        query = f"{_MEDIA} AND name >= ? AND (?3 = '' OR instr(name, ?3)) ORDER BY name LIMIT ?"
        return [Media._make(row) for row in self._execute(query, (account_id, start, containing, limit))]

    def largest_media(self, account_id: int, limit: int) -> list[tuple[str, int]]:
        query = "SELECT name, size FROM media WHERE account_id = ? ORDER BY size DESC, name LIMIT ?"
        return list(self._execute(query, (account_id, limit)))

    def media_bytes(self, account_id: int) -> int:
        query = "SELECT coalesce(sum(size), 0) FROM media WHERE account_id = ?"
        return int(self._execute(query, (account_id,)).fetchone()[0])

    def put_media(self, account_id: int, media: Media) -> bool:
        kept = self._execute("UPDATE blobs SET kept = 1 WHERE id = ? AND NOT kept AND touched_at > 0", (media.blob,))
        if not kept.rowcount:
            return False
        self._leave_blob(account_id, media.id)
        self._execute(
            "INSERT INTO media (account_id, id, name, mimetype, size, digest, blob_id, edit_password, created_at,"
            " updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (account_id, id) DO UPDATE SET"
            " name = excluded.name, mimetype = excluded.mimetype, size = excluded.size, digest = excluded.digest,"
            " blob_id = excluded.blob_id, edit_password = excluded.edit_password, updated_at = excluded.updated_at",
            (account_id, *media),
        )
        return True

    def delete_media(self, account_id: int, media_id: str) -> bool:
        self._leave_blob(account_id, media_id)
        deleted = self._execute("DELETE FROM media WHERE account_id = ? AND id = ?", (account_id, media_id))
        return deleted.rowcount > 0

    def _leave_blob(self, account_id: int, media_id: str) -> None:
        self._execute(
            "UPDATE blobs SET kept = 0, touched_at = 0"
            " WHERE id = (SELECT blob_id FROM media WHERE account_id = ? AND id = ?)",
            (account_id, media_id),
        )

    def set_media_password(self, account_id: int, media_id: str, edit: str | None) -> bool:
        updated = self._execute(
            "UPDATE media SET edit_password = ? WHERE account_id = ? AND id = ?", (edit, account_id, media_id)
        )
        return updated.rowcount > 0

    def add_blob(self, account_id: int, now: float) -> int:
        return int(
            self._execute(
                "INSERT INTO blobs (account_id, touched_at) VALUES (?, ?) RETURNING id", (account_id, now)
            ).fetchone()[0]
        )

    def add_chunk(self, blob: int, number: int, data: bytes, now: float) -> bool:
        touched = self._execute(
            "UPDATE blobs SET touched_at = ? WHERE id = ? AND NOT kept AND touched_at > 0", (now, blob)
        )
        if not touched.rowcount:
            return False
        self._execute("INSERT INTO chunks (blob_id, number, data) VALUES (?, ?, ?)", (blob, number, data))
        return True

    def chunk(self, blob: int, number: int) -> bytes | None:
        query = "SELECT data FROM chunks WHERE blob_id = ? AND number = ?"
        row = self._execute(query, (blob, number)).fetchone()
        return None if row is None else bytes(row[0])

    def drop_blob(self, blob: int) -> None:
        self._execute("UPDATE blobs SET touched_at = 0 WHERE id = ? AND NOT kept", (blob,))

    def sweep(self, before: float, chunks: int) -> bool:
        row = self._execute(
            "SELECT id FROM blobs WHERE NOT kept AND touched_at < ? ORDER BY touched_at LIMIT 1", (before,)
        ).fetchone()
        if row is None:
            return False
        # Whoever still writes to it is told so from now on: a file must not come out with a hole.
        self._execute("UPDATE blobs SET touched_at = 0 WHERE id = ?", row)
        taken = self._execute(
            "DELETE FROM chunks WHERE blob_id = ?1 AND number IN"
            " (SELECT number FROM chunks WHERE blob_id = ?1 ORDER BY number DESC LIMIT ?2)",
            (row[0], chunks),
        )
        if taken.rowcount < chunks:
            self._execute("DELETE FROM blobs WHERE id = ?", row)
        return True


class SQLiteAccesses(AccessesTable):
    """How often files were used."""

    connection: sqlite3.Connection
    _execute: Callable[..., sqlite3.Cursor]

    def accesses(self, account_id: int, kind: Kind, name: str) -> Accesses | None:
        query = "SELECT day, count, last_at FROM accesses WHERE account_id = ? AND kind = ? AND name = ?"
        row = self._execute(query, (account_id, kind, name)).fetchone()
        return None if row is None else Accesses._make(row)

    def add_accesses(self, used: Sequence[Used]) -> None:
        self.connection.executemany(
            "INSERT INTO accesses (account_id, kind, name, day, count, last_at) SELECT ?1, ?2, ?3, ?4, ?5, ?6"
            " WHERE EXISTS (SELECT 1 FROM accesses WHERE account_id = ?1 AND kind = ?2 AND name = ?3)"
            " OR EXISTS (SELECT 1 FROM files WHERE ?2 = 'data' AND account_id = ?1 AND name = ?3)"
            " OR EXISTS (SELECT 1 FROM media WHERE ?2 = 'media' AND account_id = ?1 AND id = ?3)"
            " ON CONFLICT (account_id, kind, name) DO UPDATE SET"
            " count = excluded.count + CASE WHEN excluded.day > day THEN 0 ELSE count END,"
            " day = max(day, excluded.day), last_at = max(last_at, excluded.last_at)",
            used,
        )
        days = Counter[tuple[int, int]]()
        for each in used:
            days[each.account_id, each.day] += each.times
        self.connection.executemany(
            "INSERT INTO days (account_id, day, count) SELECT ?1, ?2, ?3"
            " WHERE EXISTS (SELECT 1 FROM accounts WHERE id = ?1)"
            " ON CONFLICT (account_id, day) DO UPDATE SET count = count + excluded.count",
            [(account_id, day, times) for (account_id, day), times in days.items()],
        )

    def forget_accesses(self, account_id: int, kind: Kind, name: str) -> None:
        self._execute("DELETE FROM accesses WHERE account_id = ? AND kind = ? AND name = ?", (account_id, kind, name))

    def days(self, account_id: int, since: int) -> list[tuple[int, int]]:
        query = "SELECT day, count FROM days WHERE account_id = ? AND day >= ? ORDER BY day"
        return list(self._execute(query, (account_id, since)))
