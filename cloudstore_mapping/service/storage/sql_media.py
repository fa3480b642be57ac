"""Media files in SQL, and how often all files were used: the statements of `MediaTable` and `AccessesTable`."""

# ruff: noqa: D102 - what the methods do is said in `media_tables`
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from cloudstore_mapping.service.storage.media_tables import AccessesTable, MediaTable
from cloudstore_mapping.service.storage.records import Accesses, Kind, Media, Used
from cloudstore_mapping.service.storage.statements import Statements

_INSERT: Final = (
    "INSERT INTO media (account_id, id, name, mimetype, size, digest, blob_id, edit_password, created_at, updated_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_UPDATE: Final = (
    "UPDATE media SET name = ?, mimetype = ?, size = ?, digest = ?, blob_id = ?, edit_password = ?, updated_at = ?"
    " WHERE account_id = ? AND id = ?"
)
# Only of a file that is there: an access may be counted after its file was deleted.
_ADD_ACCESSES: Final = (
    "INSERT INTO accesses (account_id, kind, name, day, count, last_at) SELECT ?, ?, ?, ?, ?, ? WHERE"
    " EXISTS (SELECT 1 FROM accesses WHERE account_id = ? AND kind = ? AND name = ?)"
    " OR EXISTS (SELECT 1 FROM files WHERE ? = 'data' AND account_id = ? AND name = ?)"
    " OR EXISTS (SELECT 1 FROM media WHERE ? = 'media' AND account_id = ? AND id = ?)"
    " ON CONFLICT (account_id, kind, name) DO UPDATE SET"
    " count = excluded.count + CASE WHEN excluded.day > accesses.day THEN 0 ELSE accesses.count END,"
    " day = CASE WHEN excluded.day > accesses.day THEN excluded.day ELSE accesses.day END,"
    " last_at = CASE WHEN excluded.last_at > accesses.last_at THEN excluded.last_at ELSE accesses.last_at END"
)
_ADD_DAY: Final = (
    "INSERT INTO days (account_id, day, count) SELECT ?, ?, ? WHERE EXISTS (SELECT 1 FROM accounts WHERE id = ?)"
    " ON CONFLICT (account_id, day) DO UPDATE SET count = days.count + excluded.count"
)


class SQLMedia(Statements, MediaTable):
    """Media files, by account and id, and the bytes that they are."""

    def media(self, account_id: int, media_id: str) -> Media | None:
        return self._media("id = ?", account_id, media_id)

    def media_named(self, account_id: int, name: str) -> Media | None:
        return self._media("name = ?", account_id, name)

    def _media(self, condition: str, account_id: int, value: str) -> Media | None:
        row = self.row(f"{self._selected()} AND {condition}{self.held}", account_id, value)
        return None if row is None else Media._make(row)

    def _selected(self) -> str:
        columns = f"id, name, mimetype, size, digest, {self.blob_of_media}, edit_password, created_at, updated_at"
        return f"SELECT {columns} FROM media WHERE account_id = ?"  # noqa: S608 - of constants

    def describe_media(
        self, account_id: int, containing: str = "", *, after: str | None = None, limit: int
    ) -> list[Media]:
        start = "" if after is None else after + "\0"
        contains, texts = self._containing(containing) if containing else ("TRUE", ())
        query = f"{self._selected()} AND name >= ? AND {contains} ORDER BY name LIMIT ?"
        return [Media._make(row) for row in self.rows(query, account_id, start, *texts, limit)]

    def largest_media(self, account_id: int, limit: int) -> list[tuple[str, int]]:
        return self.rows(
            "SELECT name, size FROM media WHERE account_id = ? ORDER BY size DESC, name LIMIT ?", account_id, limit
        )

    def media_bytes(self, account_id: int) -> int:
        self._hold_account(account_id)
        return int(self.row("SELECT coalesce(sum(size), 0) FROM media WHERE account_id = ?", account_id)[0])

    def put_media(self, account_id: int, media: Media) -> bool:
        if not self._keep_blob(media.blob):
            return False
        before = self.media(account_id, media.id)
        if before is None:
            self.do(_INSERT, account_id, *media)
        else:
            self._leave_blob(before.blob)
            facts = (media.name, media.mimetype, media.size, media.digest, media.blob, media.edit_password)
            self.do(_UPDATE, *facts, media.updated_at, account_id, media.id)
        return True

    def delete_media(self, account_id: int, media_id: str) -> bool:
        before = self.media(account_id, media_id)
        if before is None:
            return False
        self._leave_blob(before.blob)
        self.do("DELETE FROM media WHERE account_id = ? AND id = ?", account_id, media_id)
        return True

    def set_media_password(self, account_id: int, media_id: str, edit: str | None) -> bool:
        query = "UPDATE media SET edit_password = ? WHERE account_id = ? AND id = ?"
        return self.count(query, edit, account_id, media_id) > 0

    def add_blob(self, account_id: int, now: float) -> int:
        return int(self.row(self.new_blob, account_id, now)[0])

    def add_chunk(self, blob: int, number: int, data: bytes, now: float) -> bool:
        touching = f"UPDATE blobs SET touched_at = ? WHERE {self.is_blob} AND NOT kept AND touched_at > 0"  # noqa: S608 - of constants
        if not self.count(touching, now, *self._blob(blob)):
            return False
        values = (*self._chunk(blob), number, data)
        marks = ", ".join("?" * len(values))
        self.do(f"INSERT INTO chunks ({self.chunk_key}, number, data) VALUES ({marks})", *values)  # noqa: S608 - of constants
        return True

    def chunk(self, blob: int, number: int) -> bytes | None:
        query = f"SELECT data FROM chunks WHERE {self.is_chunk} AND number = ?"  # noqa: S608 - of constants
        row = self.row(query, *self._blob(blob), number)
        return None if row is None else bytes(row[0])

    def drop_blob(self, blob: int) -> None:
        self.do(f"UPDATE blobs SET touched_at = 0 WHERE {self.is_blob} AND NOT kept", *self._blob(blob))  # noqa: S608 - of constants

    def _keep_blob(self, blob: int) -> bool:
        keeping = f"UPDATE blobs SET kept = TRUE WHERE {self.is_blob} AND NOT kept AND touched_at > 0"  # noqa: S608 - of constants
        return self.count(keeping, *self._blob(blob)) > 0

    def _leave_blob(self, blob: int) -> None:
        self.do(f"UPDATE blobs SET kept = FALSE, touched_at = 0 WHERE {self.is_blob}", *self._blob(blob))  # noqa: S608 - of constants

    def sweep(self, before: float, chunks: int) -> bool:
        oldest = f"SELECT {self.blob} FROM blobs WHERE NOT kept AND touched_at < ? ORDER BY touched_at LIMIT 1"  # noqa: S608 - of constants
        row = self.row(oldest + self.free_held, before)
        if row is None:
            return False
        key = self._blob(row[0])
        # Whoever still writes to it is told so from now on: a file must not come out with a hole.
        self.do(f"UPDATE blobs SET touched_at = 0 WHERE {self.is_blob}", *key)  # noqa: S608 - of constants
        of_blob = f"FROM chunks WHERE {self.is_chunk}"
        last = f"SELECT number {of_blob} ORDER BY number DESC LIMIT ?"
        if self.count(f"DELETE {of_blob} AND number IN ({last})", *key, *key, chunks) < chunks:
            self.do(f"DELETE FROM blobs WHERE {self.is_blob}", *key)  # noqa: S608 - of constants
        return True

    def has_left_over(self, before: float) -> bool:
        return self.row("SELECT 1 FROM blobs WHERE NOT kept AND touched_at < ? LIMIT 1", before) is not None


class SQLAccesses(Statements, AccessesTable):
    """How often files were used."""

    def accesses(self, account_id: int, kind: Kind, name: str) -> Accesses | None:
        query = "SELECT day, count, last_at FROM accesses WHERE account_id = ? AND kind = ? AND name = ?"
        row = self.row(query, account_id, kind, name)
        return None if row is None else Accesses._make(row)

    def add_accesses(self, used: Sequence[Used]) -> None:
        days = Counter[tuple[int, int]]()
        for each in sorted(used):  # in one order, so that of two who add to the same files neither waits for the other
            account_id, kind, name = each[:3]
            file = (account_id, kind, name)
            self.do(_ADD_ACCESSES, *each, *file, kind, account_id, name, kind, account_id, name)
            days[account_id, each.day] += each.times
        for (account_id, day), times in sorted(days.items()):
            self.do(_ADD_DAY, account_id, day, times, account_id)

    def forget_accesses(self, account_id: int, kind: Kind, name: str) -> None:
        self.do("DELETE FROM accesses WHERE account_id = ? AND kind = ? AND name = ?", account_id, kind, name)

    def days(self, account_id: int, since: int) -> list[tuple[int, int]]:
        return self.rows(
            "SELECT day, count FROM days WHERE account_id = ? AND day >= ? ORDER BY day", account_id, since
        )
