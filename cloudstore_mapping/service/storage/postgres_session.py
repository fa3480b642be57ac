"""What is PostgreSQL's own in the statements that all engines share."""

# ruff: noqa: D102 - what is without a docstring has it in `statements`
from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Final

from cloudstore_mapping.service.storage.postgres_connection import Cursor, write_text
from cloudstore_mapping.service.storage.sql import Transaction

#: Seconds that a reader waits for a connection, and after which it looks whether a lost server is back.
PATIENCE: Final = 10.0
LOOK_EVERY: Final = 0.5

#: What an account has of numbers of blobs: a blob is known outside by its account's number and its own in one.
BLOBS: Final = 2**36

#: The fewest characters that a trigram index can look for.
TRIGRAM: Final = 3

#: Rows of a stream that are held in memory: few, for some may be large.
FETCHED: Final = 20

_cursors: Final = itertools.count(1)
_SIZE: Final = (
    "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class"
    " WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"
)
_BEGIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


_NEW_BLOB: Final = f"""
    INSERT INTO blobs (account_id, touched_at, id) SELECT account, touched, account * {BLOBS} + nextval('blob_numbers')
    FROM (VALUES (?, ?)) AS new (account, touched) RETURNING id
"""  # noqa: S608 - of constants


class PostgresSession(Transaction):
    """A connection to PostgreSQL, for one thread at a time; `has_trigrams` says that names are indexed by them."""

    value, value_given, size = "convert_to(value, 'UTF8')", "convert_from(?, 'UTF8')", "octet_length(value)"
    is_blob, is_chunk = "account_id = ? AND id IN (?, ?)", "account_id = ? AND blob_id IN (?, ?)"
    chunk_key = "account_id, blob_id"
    blob = f"CASE WHEN id < {BLOBS} THEN account_id * {BLOBS} + id ELSE id END"
    blob_of_media = f"CASE WHEN blob_id < {BLOBS} THEN account_id * {BLOBS} + blob_id ELSE blob_id END"
    new_blob = _NEW_BLOB

    def __init__(self, *, has_trigrams: bool) -> None:
        self._has_trigrams = has_trigrams

    @abstractmethod
    def _run(self, query: str, parameters: tuple[Any, ...]) -> Cursor:
        """Return a cursor that has the statement's result."""

    def row(self, query: str, *parameters: Any) -> Any:
        return self._run(query, parameters).fetchone()

    def rows(self, query: str, *parameters: Any) -> list[Any]:
        return self._run(query, parameters).fetchall()

    def stream(self, query: str, *parameters: Any) -> Iterator[Any]:
        """Yield all rows one by one; no other statement may be run before the last of them."""
        cursor = f"cursor_{next(_cursors)}"
        self.do(f"DECLARE {cursor} NO SCROLL CURSOR FOR {query}", *parameters)
        while rows := self.rows(f"FETCH {FETCHED} FROM {cursor}"):
            yield from rows
        self.do(f"CLOSE {cursor}")

    def _one_of(self, names: Sequence[str]) -> tuple[str, tuple[list[str]]]:
        return "name = ANY(?)", ([write_text(name) for name in names],)  # of texts in an array nobody else does it

    def _is_indexed(self, text: str) -> bool:
        return self._has_trigrams and len(text) >= TRIGRAM

    def _containing(self, text: str) -> tuple[str, tuple[str, ...]]:
        if self._is_indexed(text):
            # What the index finds is looked at once more, for case and all that means something in a pattern.
            pattern = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            return "(name LIKE ? AND strpos(name, ?) > 0)", (f"%{pattern}%", text)
        return "strpos(name, ?) > 0", (text,)

    def _blob(self, blob: int) -> tuple[int, ...]:
        account, number = divmod(blob, BLOBS)
        return account, number, blob

    def _chunk(self, blob: int) -> tuple[int, ...]:
        return blob // BLOBS, blob
