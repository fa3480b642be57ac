"""Copying all that a store holds into another one, of whatever engine, and looking whether it came over."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.sql import Transaction

#: Is told how many rows are copied, or looked at again, and of how many.
Report = Callable[[int, int], object]

#: Rows between two reports, and media files whose numbers are read at a time.
REPORT_EVERY: Final = 100
PAGE: Final = 1000


_Row: TypeAlias = tuple[Any, ...]

_CHUNKS: Final = "chunks"


class _Table(NamedTuple):
    """A table: its columns, by which its rows are in order, which are booleans, and which rows are copied."""

    name: str
    columns: tuple[str, ...]
    order: str
    booleans: frozenset[str] = frozenset()
    condition: str = "TRUE"


def _table(name: str, columns: str, order: str, booleans: str = "", condition: str = "TRUE") -> _Table:
    return _Table(name, tuple(columns.split()), order, frozenset(booleans.split()), condition)


#: All tables in the order in which they refer to one another, but for two: who is signed in signs in again, and chunks
#: are copied blob by blob. Blobs that no media file has are on their way in, or out: they are left behind.
_TABLES: Final = (
    _table(
        "accounts",
        "id name disabled created_at plan max_files max_file_bytes max_daily_accesses min_interval max_media_bytes"
        " max_total_bytes next_request_at folder data_password media_password owner_password must_change_password",
        "id",
        "disabled must_change_password",
    ),
    _table("api_keys", "account_id hash created_at hint", "account_id, hash"),
    _table("events", "account_id id at action subject origin", "account_id, id"),
    _table(
        "files",
        "account_id name version edit_password view_password created_at updated_at value",
        "account_id, name",
    ),
    _table("answers", "account_id request reply fingerprint answered_at", "account_id, request"),
    _table("blobs", "account_id id touched_at kept", "account_id, id", "kept", "kept"),
    _table(
        "media",
        "account_id id name mimetype size digest blob_id edit_password created_at updated_at",
        "account_id, id",
    ),
    _table("accesses", "account_id kind name day count last_at", "account_id, kind, name"),
    _table("days", "account_id day count", "account_id, day"),
    _table("old_names", "account_id name clashes", "account_id, name", "clashes"),
    _table("name_scans", "at", "at"),
)


class Copied(NamedTuple):
    """How many rows of a table were copied, and the SHA-256 of all that is in them."""

    rows: int
    digest: str


def copy_store(source: Transaction, target: Storage, report: Report) -> dict[str, Copied]:
    """
    Copy what `source` sees into an empty `target` in one transaction, and return what was copied of each table.

    All is there, and was read again and compared, or nothing is. Raises `UnsupportedError` where the target isn't
    empty, or doesn't give back what it was given.
    """
    return target.submit(partial(_copy, source, report)).result()


def _copy(source: Transaction, report: Report, transaction: Transaction) -> dict[str, Copied]:
    if transaction.has_accounts():
        raise UnsupportedError("There are accounts in the store already; copy into an empty one.")
    total = sum(source.row(f"SELECT count(*) FROM {name}")[0] for name in ("chunks", *(t.name for t in _TABLES)))  # noqa: S608 - of constants
    progress = _Progress(2 * total, report)
    copied = {name: _digest(progress.of(_put(transaction, name, rows))) for name, rows in _contents(source)}
    transaction.end_filling()
    for name, rows in _contents(transaction):
        if _digest(progress.of(rows)) != copied[name]:
            raise UnsupportedError(f"The {name} that were copied don't come back as they were; nothing is kept.")
    report(2 * total, 2 * total)
    return copied


class _Progress:
    """Tells how many rows were seen."""

    def __init__(self, total: int, report: Report) -> None:
        self._total = total
        self._report = report
        self._seen = 0

    def of(self, rows: Iterator[_Row]) -> Iterator[_Row]:
        for row in rows:
            self._seen += 1
            if self._seen % REPORT_EVERY == 0:
                self._report(self._seen, self._total)
            yield row


def _contents(session: Transaction) -> Iterator[tuple[str, Iterator[_Row]]]:
    """Yield each table with its rows, which are the same for the same contents, whatever the engine."""
    for table in _TABLES:
        yield table.name, _rows(session, table)
    yield _CHUNKS, _chunks(session)


def _rows(session: Transaction, table: _Table) -> Iterator[_Row]:
    columns = ", ".join(session.value if column == "value" else column for column in table.columns)
    query = f"SELECT {columns} FROM {table.name} WHERE {table.condition} ORDER BY {table.order}"  # noqa: S608 - of constants
    booleans = [column in table.booleans for column in table.columns]
    for row in session.stream(query):
        yield tuple(bool(value) if boolean else value for value, boolean in zip(row, booleans, strict=True))


def _chunks(session: Transaction) -> Iterator[_Row]:
    query = (
        f"SELECT account_id, id, {session.blob} FROM blobs WHERE kept AND (account_id, id) > (?, ?)"  # noqa: S608 - of constants
        " ORDER BY blobs.account_id, blobs.id LIMIT ?"
    )
    last = (0, 0)
    while page := session.rows(query, *last, PAGE):
        for account_id, number, blob in page:
            for place, data in enumerate(session.chunks(blob)):
                yield account_id, number, place, data
        last = page[-1][:2]


def _put(session: Transaction, name: str, rows: Iterator[_Row]) -> Iterator[_Row]:
    """Insert the rows, each when it is asked for."""
    if name == _CHUNKS:
        columns = f"{session.chunk_key}, number, data"
        marks = ["?"] * (columns.count(",") + 1)
    else:
        names = next(table.columns for table in _TABLES if table.name == name)
        columns = ", ".join(names)
        marks = [session.value_given if column == "value" else "?" for column in names]
    query = f"INSERT INTO {name} ({columns}) VALUES ({', '.join(marks)})"  # noqa: S608 - of constants
    for row in rows:
        session.do(query, *row[-len(marks) :])
        yield row


def _digest(rows: Iterator[_Row]) -> Copied:
    count = 0
    digest = hashlib.sha256()
    for row in rows:
        count += 1
        digest.update(msgspec.msgpack.encode(row))
    return Copied(count, digest.hexdigest())
