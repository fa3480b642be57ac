"""PostgreSQL sessions: pipelined connection, read and write transactions, and SQL specific to PostgreSQL."""

# ruff: noqa: D102 - methods without a docstring are documented in `sql`
from __future__ import annotations

import itertools
import re
import secrets
import select
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import adapters, errors
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.pq.abc import PGresult

from cloudstore_mapping.service.storage.records import AccessDelta, Account, File, FileInfo, Kind
from cloudstore_mapping.service.storage.sql import (
    ACCOUNT_BY_ID,
    ACCOUNT_BY_KEY,
    ACCOUNT_COLUMNS,
    ALL,
    ANSWER,
    LookAhead,
    Transaction,
)

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
#: A statement with ``?`` as placeholder, and its parameters.
Statement: TypeAlias = tuple[str, tuple[Any, ...]]

#: Seconds without an answer until a server counts as lost; the same during `close`.
ANSWER_WAIT: Final = 8.0
CLOSING_WAIT: Final = 1.0
#: Seconds between two checks whether the storage is closing.
_CHECK_INTERVAL: Final = 0.25

#: Maximum bytes of queued statements before they are sent.
MAX_PENDING: Final = 2**20
#: Maximum names locked individually. For more, lock the whole account: the server's lock table is small.
MAX_LOCKS: Final = 64

#: The public id of a blob is the id of its account times this, plus the blob's number.
BLOBS: Final = 2**36
#: Minimum characters of a text for a search by the trigram index.
TRIGRAM: Final = 3
#: Rows of a stream in memory at a time: few, because rows may be large.
FETCHED: Final = 20

# PostgreSQL's text type can't hold NUL. So each character from U+0000 to U+0005 is escaped as a pair: U+0001 or U+0002,
# then one from U+0003 to U+0005. Stored texts hold these characters in pairs only, so their order and their substrings
# are those of the original texts.
_LAST_SPECIAL: Final = 5
_ESCAPES: Final = {code: chr(1 + code // 3) + chr(3 + code % 3) for code in range(_LAST_SPECIAL + 1)}
_UNESCAPES: Final = {text: chr(code) for code, text in _ESCAPES.items()}
_SPECIAL: Final = re.compile(r"[\x00-\x05]")
_ESCAPED: Final = re.compile(r"[\x01\x02][\x03-\x05]")


def write_text(text: str) -> str:
    """Return the text with the characters up to U+0005 escaped, for storage in PostgreSQL."""
    return text.translate(_ESCAPES) if _SPECIAL.search(text) else text


def read_text(text: str) -> str:
    """Reverse `write_text`."""
    return _ESCAPED.sub(lambda pair: _UNESCAPES[pair[0]], text) if _SPECIAL.search(text) else text


# Type OIDs of parameters; the server infers the types of texts and bytes from the statement.
_BOOL, _BYTEA, _INT8, _INT4, _TEXT, _FLOAT8 = 16, 17, 20, 23, 25, 701
_INFERRED: Final = 0
_ARRAYS: Final = {str: (1009, _TEXT), bytes: (1001, _BYTEA), int: (1016, _INT8), float: (1022, _FLOAT8)}
_double: Final = struct.Struct(">d")
_length: Final = struct.Struct(">i")


def _encode(value: Any) -> tuple[int, bytes | None]:
    """Return the type OID and the binary format of a parameter."""
    if isinstance(value, str):
        return _INFERRED, write_text(value).encode()
    if isinstance(value, bytes):
        return _INFERRED, value
    if value is None:
        return _INFERRED, None
    if isinstance(value, bool):
        return _BOOL, b"\1" if value else b"\0"
    if isinstance(value, int):
        return _INT8, value.to_bytes(8, "big", signed=True)
    if isinstance(value, float):
        return _FLOAT8, _double.pack(value)
    if isinstance(value, list):
        return _array(value)
    return _INFERRED, bytes(value)


def _array(values: list[Any]) -> tuple[int, bytes]:
    kind = (
        bytes if isinstance(values, _BytesArray) else next((type(value) for value in values if value is not None), str)
    )
    if float in map(type, values):
        kind = float
        values = [None if value is None else float(value) for value in values]
    array, element = _ARRAYS[kind]
    has_null = 0
    parts = []
    for value in values:
        data = _encode(value)[1]
        if data is None:
            has_null = 1
            parts.append(b"\xff\xff\xff\xff")
        else:
            parts.append(_length.pack(len(data)) + data)
    return array, struct.pack(">iiiii", 1, has_null, element, len(values), 1) + b"".join(parts)


def _int(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


_LOADERS: Final[dict[int, Callable[[bytes], Any]]] = {
    _BOOL: lambda data: data == b"\1",
    _BYTEA: lambda data: data,
    _INT8: _int,
    _INT4: _int,
    _TEXT: lambda data: read_text(data.decode()),
    1043: lambda data: read_text(data.decode()),
    _FLOAT8: lambda data: _double.unpack(data)[0],
}


def _loader(type_: int) -> Callable[[bytes], Any]:
    found = _LOADERS.get(type_)
    if found is None:
        loader = adapters.get_loader(type_, Format.BINARY)
        found = bytes if loader is None else loader(type_).load
        _LOADERS[type_] = found
    return found


def _rows(result: PGresult) -> list[tuple[Any, ...]]:
    columns = [(number, _loader(result.ftype(number))) for number in range(result.nfields)]
    get = result.get_value
    return [
        tuple([None if (data := get(row, number)) is None else load(data) for number, load in columns])
        for row in range(result.ntuples)
    ]


@lru_cache(maxsize=1024)
def _with_placeholders(query: str) -> bytes:
    """Return a statement with PostgreSQL's placeholders: ``$1``, ``$2`` and so on."""
    parts = query.split("?")
    return "".join(part if number == 0 else f"${number}{part}" for number, part in enumerate(parts)).encode()


def error_of(result: PGresult) -> psycopg.Error:
    """Return the psycopg error for a failed result."""
    state = (result.error_field(_SQLSTATE) or b"").decode()
    try:
        kind: type[psycopg.Error] = errors.lookup(state)
    except KeyError:
        kind = psycopg.DatabaseError if state else psycopg.OperationalError
    error = kind(result.error_message.decode("utf-8", "replace").strip(), info=result)
    error.sqlstate = state or None
    return error


_SQLSTATE: Final = ord("C")
_FAILED: Final = frozenset({ExecStatus.FATAL_ERROR, ExecStatus.NONFATAL_ERROR, ExecStatus.BAD_RESPONSE})


class SilentError(psycopg.OperationalError):
    """The server didn't answer in time; it may still execute the statements."""


class Link:
    """
    Connection in pipeline mode; for one thread at a time.

    It uses libpq through `psycopg.pq`, because psycopg's cursors take three times as long for such short statements. It
    uses no prepared statements: the server plans each statement for its parameters and the present table sizes, and a
    pooler may switch sessions between transactions.
    """

    def __init__(self, connection: Connection, closing: threading.Event) -> None:
        connection.add_notice_handler(self._on_notice)
        self._connection = connection
        self._closing = closing
        self._pq = connection.pgconn
        self._pq.enter_pipeline_mode()
        self._poll = select.poll()
        self._poll.register(self._pq.socket, select.POLLIN)
        self._socket = self._pq.socket
        #: The id of the connection's commit marker.
        self.writer = secrets.token_hex(16)
        #: Number of statement groups with unread results.
        self._unread_groups = 0
        self.was_warned = False
        #: False within a transaction, or in an unknown state.
        self.is_free = True
        #: Settings at the start of each transaction, if a pooler switches sessions.
        self.settings: tuple[Statement, ...] = ()

    @property
    def is_lost(self) -> bool:
        """True if the connection is lost or closed."""
        return self._connection.closed or self._pq.status != ConnStatus.OK

    def is_stale(self) -> bool:
        """Return True if the connection is lost, or the server sent a message unasked: it is closing the connection."""
        return self.is_lost or (not self._unread_groups and bool(self._poll.poll(0)))

    def send(self, statements: Iterable[Statement]) -> None:
        """Send statements as a group: after an error, the server skips the rest of the group."""
        for query, parameters in statements:
            if parameters:
                types, values = zip(*map(_encode, parameters), strict=True)
                formats = (Format.BINARY,) * len(values)
                self._pq.send_query_params(_with_placeholders(query), values, types, formats, Format.BINARY)
            else:
                self._pq.send_query_params(_with_placeholders(query), None, None, None, Format.BINARY)
        self._pq.pipeline_sync()
        self._unread_groups += 1

    def trip(self, statements: Iterable[Statement], wait: float | None = None) -> list[PGresult]:
        """
        Send statements and return their results, in one round trip; raise the first error.

        Raises `SilentError` after `wait` seconds without an answer; the default is `ANSWER_WAIT`.
        """
        self.send(statements)
        try:
            results = self._receive(ANSWER_WAIT if wait is None else wait)
        except psycopg.Error:
            self.close()
            raise
        for result in results:
            if result.status in _FAILED:
                raise error_of(result)
        return results

    def rows(self, query: str, *parameters: Any, before: Sequence[Statement] = ()) -> list[Any]:
        """Return the rows of a statement, executed after the statements `before` in the same round trip."""
        return _rows(self.trip([*before, (query, parameters)])[-1])

    def leave(self, statement: str) -> None:
        """Send the end of a transaction without waiting; its result is read before the next results."""
        self.send([(statement, ())])
        if self._pq.flush():
            self.close()  # the send buffer of a healthy connection isn't full here
        self.is_free = True

    def close(self) -> None:
        """Close the connection."""
        self.is_free = False
        self._connection.close()

    def _receive(self, wait: float) -> list[PGresult]:
        pq = self._pq
        results: list[PGresult] = []
        end = time.monotonic() + wait
        while pq.flush():
            self._wait(end, select.POLLIN | select.POLLOUT)
            pq.consume_input()
        while True:
            if pq.is_busy():
                end = self._wait(end, select.POLLIN, wait)
                pq.consume_input()
                continue
            result = pq.get_result()
            if result is None:
                if pq.status != ConnStatus.OK:
                    failed = next((each for each in results if each.status in _FAILED), None)
                    raise psycopg.OperationalError("The connection was lost.") if failed is None else error_of(failed)
            elif result.status == ExecStatus.PIPELINE_SYNC:
                self._unread_groups -= 1
                if not self._unread_groups:
                    return results
                results.clear()
            else:
                results.append(result)
                if result.status in _FAILED and pq.status != ConnStatus.OK:
                    raise error_of(result)

    def _wait(self, end: float, events: int, wait: float = 0.0) -> float:
        """Wait until the socket is ready, and return the new deadline, extended to `wait` seconds after an answer."""
        if events != select.POLLIN:
            self._poll.modify(self._socket, events)
        try:
            closes_at = None
            while True:
                now = time.monotonic()
                if self._closing.is_set():
                    closes_at = now + CLOSING_WAIT if closes_at is None else closes_at
                    end = min(end, closes_at)
                left = end - now
                if self._poll.poll(max(0, min(left, _CHECK_INTERVAL)) * 1000):
                    return max(end, time.monotonic() + wait) if wait and closes_at is None else end
                if left <= 0:
                    raise SilentError("The database does not answer.")
        finally:
            if events != select.POLLIN:
                self._poll.modify(self._socket, select.POLLIN)

    def _on_notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        self.was_warned = self.was_warned or diagnostic.severity_nonlocalized == "WARNING"


_cursors: Final = itertools.count(1)
_SIZE: Final = (
    "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class"
    " WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"
)
_NEW_BLOB: Final = f"""
    INSERT INTO blobs (account_id, touched_at, id) SELECT account, touched, account * {BLOBS} + nextval('blob_numbers')
    FROM (VALUES (?, ?)) AS new (account, touched) RETURNING id
"""  # noqa: S608 - of constants


class PostgresSession(Transaction):
    """Transaction, begun by its first statement; `has_trigrams` is True if file names have a trigram index."""

    value, value_given, size = "convert_to(value, 'UTF8')", "convert_from(?, 'UTF8')", "octet_length(value)"
    is_blob, is_chunk = "account_id = ? AND id IN (?, ?)", "account_id = ? AND blob_id IN (?, ?)"
    chunk_key = "account_id, blob_id"
    blob = f"CASE WHEN id < {BLOBS} THEN account_id * {BLOBS} + id ELSE id END"
    blob_of_media = f"CASE WHEN blob_id < {BLOBS} THEN account_id * {BLOBS} + blob_id ELSE blob_id END"
    new_blob = _NEW_BLOB

    def __init__(self, *, has_trigrams: bool) -> None:
        self._has_trigrams = has_trigrams
        #: Prefetched rows, by statement and parameters.
        self._prefetched: dict[Statement, Any] = {}

    def _execute(self, *statements: Statement) -> list[PGresult]:
        """Execute statements in one round trip and return their results."""
        raise NotImplementedError

    def row(self, query: str, *parameters: Any) -> Any:
        if self._prefetched and (query, parameters) in self._prefetched:
            return self._prefetched[query, parameters]
        rows = _rows(self._execute((query, parameters))[0])
        return rows[0] if rows else None

    def rows(self, query: str, *parameters: Any) -> list[Any]:
        return _rows(self._execute((query, parameters))[0])

    def stream(self, query: str, *parameters: Any) -> Iterator[Any]:
        """Yield the rows one by one, fetched from a cursor; run no other statement before the last row."""
        cursor = f"cursor_{next(_cursors)}"
        self._execute((f"DECLARE {cursor} NO SCROLL CURSOR FOR {query}", parameters))
        while rows := self.rows(f"FETCH {FETCHED} FROM {cursor}"):
            yield from rows
        self._execute((f"CLOSE {cursor}", ()))

    def do(self, query: str, *parameters: Any) -> None:
        self._execute((query, parameters))

    def count(self, query: str, *parameters: Any) -> int:
        return self._execute((query, parameters))[0].command_tuples or 0

    def _of(self, columns: str, account_id: int, names: Sequence[str], *parameters: int) -> list[Any]:
        query = (
            f"SELECT found.* FROM unnest(?) AS wanted (name) CROSS JOIN LATERAL (SELECT name, {columns} FROM files"  # noqa: S608 - of constants
            f" WHERE account_id = ? AND name = wanted.name LIMIT 1{self.held}) AS found"
        )
        return self.rows(query, sorted(names), *parameters, account_id)

    def _is_indexed(self, text: str) -> bool:
        return self._has_trigrams and len(text) >= TRIGRAM

    def _containing(self, text: str) -> tuple[str, tuple[str, ...]]:
        if self._is_indexed(text):
            # The index may return false matches; `strpos` removes them.
            pattern = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            return "(name LIKE ? AND strpos(name, ?) > 0)", (f"%{pattern}%", text)
        return "strpos(name, ?) > 0", (text,)

    def _blob(self, blob: int) -> tuple[int, ...]:
        account, number = divmod(blob, BLOBS)
        return account, number, blob

    def _chunk(self, blob: int) -> tuple[int, ...]:
        return blob // BLOBS, blob

    def size_of_tables(self) -> int:
        """Return the size of all tables and their indexes in bytes."""
        return int(self.row(_SIZE)[0])

    def _prefetch(self, hint: LookAhead, account: tuple[Any, ...], file: tuple[Any, ...] | None) -> None:
        """Store prefetched rows for later queries."""
        if hint.key_hash is not None:
            self._prefetched[ACCOUNT_BY_KEY, (hint.key_hash,)] = account
        else:
            self._prefetched[ACCOUNT_BY_ID, (account[0],)] = account
        if hint.values is not None:
            query = self.stat_query
            if hint.values:
                query = self.get_query if hint.max_bytes is None else self.small_query
            self._prefetched[query, (*_bound(hint), account[0], hint.names[0])] = file


def _account_of(hint: LookAhead) -> tuple[str, bytes | int | None]:
    """Return an SQL expression for the id of a hint's account, and its parameter."""
    if hint.key_hash is not None:
        return "(SELECT account_id FROM api_keys WHERE hash = ?)", hint.key_hash
    return "?", hint.account_id


_ACCOUNT: Final = ", ".join(f"a.{column}" for column in ACCOUNT_COLUMNS.split(", "))
_WIDTH: Final = _ACCOUNT.count(",") + 1
# Columns of a file for `get` and `stat`.
_VALUE: Final = "convert_to(value, 'UTF8'), edit_password, view_password, version"
_SMALL_VALUE: Final = (
    "CASE WHEN octet_length(value) <= ? THEN convert_to(value, 'UTF8') END, edit_password, view_password, version"
)
_INFO: Final = "octet_length(value), version, created_at, updated_at, edit_password, view_password"


def _columns(hint: LookAhead) -> str:
    if not hint.values:
        return _INFO
    return _VALUE if hint.max_bytes is None else _SMALL_VALUE


def _bound(hint: LookAhead) -> tuple[int, ...]:
    """Return the parameters of `_columns`: `max_bytes`, or none."""
    return () if not hint.values or hint.max_bytes is None else (hint.max_bytes,)


class PostgresReader(PostgresSession):
    """
    Read transaction: a snapshot taken by its first statement.

    `begin` executes the first statements and returns the connection for the following statements, with the results.
    """

    def __init__(
        self,
        begin: Callable[[Sequence[Statement]], tuple[Link, list[PGresult]]],
        wait: float | None = None,
        *,
        has_trigrams: bool,
    ) -> None:
        super().__init__(has_trigrams=has_trigrams)
        self._begin = begin
        self._wait = wait
        self.link: Link | None = None

    def _execute(self, *statements: Statement) -> list[PGresult]:
        if self.link is not None:
            return self.link.trip(statements, self._wait)
        self.link, results = self._begin(statements)
        return results

    def look_ahead(self, hint: LookAhead) -> None:
        if hint.values is None:
            return
        account, key = _account_of(hint)
        query = (
            f"SELECT {_ACCOUNT}, f.* FROM accounts AS a LEFT JOIN LATERAL (SELECT TRUE, {_columns(hint)} FROM files"  # noqa: S608 - of constants
            f" WHERE account_id = a.id AND name = ?) AS f ON TRUE WHERE a.id = {account} AND NOT a.deleted"
        )
        for row in self.rows(query, *_bound(hint), hint.names[0], key):
            self._prefetch(hint, row[:_WIDTH], row[_WIDTH + 1 :] if row[_WIDTH] else None)

    def _hold_account(self, account_id: int) -> None:
        pass  # no write depends on the row

    def _put(self, account_id: int, name: str, value: bytes, version: str, now: float) -> None:
        raise NotImplementedError("A read transaction can't write.")


_BEGIN: Final = ("BEGIN ISOLATION LEVEL READ COMMITTED", ())
_SET_MARKER: Final = (
    "INSERT INTO writers (id, last_commit) VALUES (?, ?)"
    " ON CONFLICT (id) DO UPDATE SET last_commit = excluded.last_commit, at = now()"
)
# Small work takes a shared lock on the account and exclusive locks on names; large work takes an exclusive lock on the
# account.
_LOCK_ACCOUNT: Final = "SELECT pg_advisory_xact_lock(hashtextextended('', ?))"
_SHARE_ACCOUNT: Final = "SELECT pg_advisory_xact_lock_shared(hashtextextended('', ?))"
_LOCK_NAME: Final = "SELECT pg_advisory_xact_lock(hashtextextended(?, ?))"
# In the order of the lock keys: a common order of all transactions prevents deadlocks.
_LOCK_NAMES: Final = (
    "SELECT pg_advisory_xact_lock(lock) FROM (SELECT DISTINCT hashtextextended(name, ?) AS lock FROM unnest(?) AS name"
    " ORDER BY lock) AS locks"
)

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
_INSERT_MANY: Final = (
    "INSERT INTO files (account_id, name, value, version, created_at, updated_at)"
    " SELECT ?, name, convert_from(value, 'UTF8'), version, at, at"
    " FROM unnest(?, ?, ?, ?) AS new (name, value, version, at)"
)
_INSERT_ANSWERS: Final = (
    "INSERT INTO answers (account_id, request, reply, fingerprint, answered_at) SELECT ?, request, reply, fingerprint,"
    " at FROM unnest(?, ?, ?, ?) AS new (request, reply, fingerprint, at)"
)
# A table that was just filled has no statistics. So rows are looked up one by one, by their primary key: without
# `LIMIT 1` and `OFFSET 0` the planner reads all rows of the account, or searches the trigram index for each name.
_SELECT_ANSWERS: Final = (
    "SELECT found.* FROM unnest(?) AS wanted (request) CROSS JOIN LATERAL (SELECT request, reply, fingerprint"
    " FROM answers WHERE account_id = {} AND request = wanted.request LIMIT 1) AS found"
)
# Skip locked counters instead of waiting for them: their transaction may wait for this transaction's locks.
_FORGET_ANSWERS: Final = """
    WITH old AS MATERIALIZED (
        SELECT account_id, request, octet_length(request) + octet_length(reply) AS size FROM answers
        WHERE answered_at < ? ORDER BY answered_at LIMIT ? FOR UPDATE SKIP LOCKED
    ), counted AS MATERIALIZED (
        SELECT account_id FROM counters WHERE account_id IN (SELECT account_id FROM old) FOR UPDATE SKIP LOCKED
    ), forgotten AS (
        DELETE FROM answers USING old WHERE answers.account_id = old.account_id AND answers.request = old.request
        AND (
            old.account_id IN (SELECT account_id FROM counted)
            OR NOT EXISTS (SELECT 1 FROM counters WHERE counters.account_id = old.account_id)
        ) RETURNING old.account_id, old.size
    ), sizes AS (SELECT account_id, CAST(sum(size) AS bigint) AS size FROM forgotten GROUP BY account_id)
    UPDATE counters SET bytes = bytes - sizes.size, replies = replies - sizes.size
    FROM sizes WHERE counters.account_id = sizes.account_id
"""
# Update counters before their files. Files after `counted_to` are counted later.
_COUNT_FILES: Final = """
    UPDATE counters AS c SET (files, bytes) = (
        SELECT
            c.files + count(*) - count(f.name),
            c.bytes + CAST(coalesce(sum(
                octet_length(new.name) + new.size - coalesce(octet_length(f.name) + octet_length(f.value), 0)
            ), 0) AS bigint)
        FROM unnest(?, ?) AS new (name, size)
        LEFT JOIN LATERAL (
            SELECT name, value FROM files WHERE account_id = c.account_id AND name = new.name LIMIT 1
        ) AS f ON TRUE
        WHERE c.counted_to IS NULL OR new.name COLLATE "C" <= c.counted_to
    ) WHERE c.account_id = ?
"""
_COUNT_REPLIES: Final = "UPDATE counters SET bytes = bytes + ?, replies = replies + ? WHERE account_id = ?"
_INSERT_ANSWER: Final = (
    "INSERT INTO answers (account_id, request, reply, fingerprint, answered_at) VALUES (?, ?, ?, ?, ?)"
)
# Only for existing files: an access may be counted after the deletion of its file.
_ADD_ACCESSES: Final = (
    "INSERT INTO accesses (account_id, kind, name, day, count, last_at)"
    " SELECT * FROM unnest(?, ?, ?, ?, ?, ?) AS new (account_id, kind, name, day, count, last_at) WHERE"
    " EXISTS (SELECT 1 FROM accesses AS a WHERE (a.account_id, a.kind, a.name) = (new.account_id, new.kind, new.name)"
    " OFFSET 0) OR new.kind = 'data' AND EXISTS"
    " (SELECT 1 FROM files AS f WHERE f.account_id = new.account_id AND f.name = new.name OFFSET 0)"
    " OR new.kind = 'media' AND EXISTS"
    " (SELECT 1 FROM media AS m WHERE m.account_id = new.account_id AND m.id = new.name OFFSET 0)"
    " ON CONFLICT (account_id, kind, name) DO UPDATE SET"
    " count = excluded.count + CASE WHEN accesses.day BETWEEN excluded.day AND ? THEN accesses.count ELSE 0 END,"
    " day = CASE WHEN accesses.day BETWEEN excluded.day AND ? THEN accesses.day ELSE excluded.day END,"
    " last_at = CASE WHEN accesses.day <= ? THEN greatest(excluded.last_at, accesses.last_at)"
    " ELSE excluded.last_at END"
)
_ADD_DAYS: Final = (
    "INSERT INTO days (account_id, day, count)"
    " SELECT new.* FROM unnest(?, ?, ?) AS new (account_id, day, count)"
    " WHERE EXISTS (SELECT 1 FROM accounts WHERE accounts.id = new.account_id AND NOT deleted)"
    " ON CONFLICT (account_id, day) DO UPDATE SET count = days.count + excluded.count"
)
_END_FILLING: Final = (
    *(
        f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT coalesce(max(id), 0) + 1 FROM {table}), FALSE)"  # noqa: S608 - of constants
        for table in ("accounts", "events")
    ),
    f"SELECT setval('blob_numbers', (SELECT coalesce(max(mod(id, {BLOBS})), 0) + 1 FROM blobs), FALSE)",  # noqa: S608 - of constants
    "UPDATE cloudstore SET unfinished = FALSE",
)


class PostgresWriter(PostgresSession):
    """
    Read and write transaction at READ COMMITTED, concurrent with other transactions and nodes.

    **Reads still hold at the write.** Before it reads a file, the transaction takes an advisory lock on the account and
    the name, which also covers missing files. Media and the administration of accounts use row locks. Listings take no
    locks: they show the moment of their query.

    **Counters stay exact.** Each change of a counter shares the account's advisory lock, and a recount takes it
    exclusively. `look_ahead` reads the account behind that lock, so the row shows whether counters exist.

    **Two round trips.** Statements are queued until the next round trip or the commit, unless the work needs their
    results. With `look_ahead`, the first round trip begins the transaction, takes the locks and reads the account, the
    file and the stored reply; the second writes and commits. Writes of the same kind become one statement.

    **Commit marker.** The first round trip writes a random id into the connection's row of `writers`. After the loss of
    a connection during a commit, this row shows whether the transaction was committed, and the row lock shows when the
    server has ended it.
    """

    held, account_held, free_held = " FOR UPDATE", " FOR NO KEY UPDATE", " FOR UPDATE SKIP LOCKED"

    def __init__(self, link: Link, writer: str, commit: str, *, has_trigrams: bool) -> None:
        super().__init__(has_trigrams=has_trigrams)
        self._link = link
        self._pending: list[Statement] = [_BEGIN, *link.settings, (_SET_MARKER, (writer, commit))]
        self._pending_bytes = 0
        self._is_open = False
        #: True while the outcome of the commit is unknown.
        self.in_doubt = False
        #: Names and accounts with an exclusive lock.
        self._locked: set[tuple[int, str]] = set()
        self._locked_accounts: set[int] = set()
        #: Accounts with a shared lock.
        self._shared: set[int] = set()
        #: Existence of the files read or written so far.
        self._found: dict[tuple[int, str], bool] = {}
        #: Queued files by account and name, and queued replies by account and request id.
        self._files: dict[tuple[int, str], tuple[bytes, str, float]] = {}
        self._answers: dict[tuple[int, str], tuple[bytes, bytes | None, float]] = {}

    def _execute(self, *statements: Statement) -> list[PGresult]:
        self._write_files()
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        self._link.is_free = False
        self._is_open = True
        results = self._link.trip([*pending, *statements])
        return results[len(pending) :]

    def do(self, query: str, *parameters: Any) -> None:
        self._write_files()
        if not query.startswith("UPDATE counters"):  # counters are never prefetched
            self._prefetched.clear()
        self._queue(query, *parameters)

    def _queue(self, query: str, *parameters: Any) -> None:
        self._pending.append((query, parameters))
        self._pending_bytes += 200 + sum(len(each) for each in parameters if isinstance(each, bytes | str))
        if self._pending_bytes > MAX_PENDING:
            self._execute()

    def count(self, query: str, *parameters: Any) -> int:
        self._prefetched.clear()
        return super().count(query, *parameters)

    def commit(self) -> None:
        """
        Commit; after an error, `in_doubt` is True if the transaction may be committed nevertheless.

        If a timeout or an administrator cancels the wait for standbys, the server commits with a warning.
        """
        if not self._is_open:
            if self._is_empty():
                return
            self._execute()  # write the marker before sending a commit
        self._write_files()
        self._link.was_warned = False
        self.in_doubt = True
        try:
            results = self._link.trip([*self._pending, ("COMMIT", ())])
        except psycopg.Error as error:
            # Other errors mean the commit failed, unless the backend was terminated: it may have committed.
            self.in_doubt = self._link.is_lost or is_lost(error)
            raise
        if self._link.was_warned or results[-1].command_status != b"COMMIT":
            self._link.close()
            raise psycopg.OperationalError("The commit ended with a warning.")
        self.in_doubt = False
        self._link.is_free = True

    def _is_empty(self) -> bool:
        opening = 2 + len(self._link.settings)
        return len(self._pending) == opening and not self._files and not self._answers

    def roll_back(self) -> None:
        """Roll back without waiting for the server."""
        if self._is_open and not self._link.is_lost:
            self._link.leave("ROLLBACK")

    def look_ahead(self, hint: LookAhead) -> None:
        if hint.account_id is not None and hint.account_id in self._shared | self._locked_accounts:
            self._look_ahead_again(hint.account_id, hint)
            return
        account, key = _account_of(hint)
        # Locks first, in their own statements: a statement's snapshot is older than its wait for a lock.
        statements: list[Statement]
        if len(hint.names) == 1:
            locking = (
                "SELECT pg_advisory_xact_lock_shared(hashtextextended('', id)),"  # noqa: S608 - of constants
                f" pg_advisory_xact_lock(hashtextextended(?, id)) FROM accounts WHERE id = {account}"
            )
            statements = [(locking, (hint.names[0], key))]
        elif len(hint.names) > MAX_LOCKS:
            statements = [(_LOCK_ACCOUNT.replace("?", account), (key,))]
        else:
            statements = [
                (_SHARE_ACCOUNT.replace("?", account), (key,)),
                (_LOCK_NAMES.replace("?", account, 1), (key, [*hint.names])),
            ]
        locks_sent = len(statements)
        statements.append((f"SELECT {_ACCOUNT} FROM accounts AS a WHERE a.id = {account} AND NOT a.deleted", (key,)))  # noqa: S608 - of constants
        if hint.values is not None:
            query = f"SELECT TRUE, {_columns(hint)} FROM files WHERE account_id = {account} AND name = ?"  # noqa: S608 - of constants
            statements.append((query + self.held, (*_bound(hint), key, hint.names[0])))
        if hint.requests:
            statements.append((_SELECT_ANSWERS.format(account), ([*hint.requests], key)))
        accounts, *rest = [_rows(result) for result in self._execute(*statements)[locks_sent:]]
        if not accounts:
            return
        (row,) = accounts
        account_id = row[0]
        (self._locked_accounts if len(hint.names) > MAX_LOCKS else self._shared).add(account_id)
        self._locked.update((account_id, name) for name in hint.names)
        file = rest.pop(0) if hint.values is not None else []
        self._prefetch(hint, row, file[0][1:] if file else None)
        if hint.requests:
            self._prefetched |= {(ANSWER, (account_id, request)): None for request in hint.requests}
            self._prefetched |= {(ANSWER, (account_id, request)): answer for request, *answer in rest[0]}

    def _look_ahead_again(self, account_id: int, hint: LookAhead) -> None:
        """Lock more names and prefetch more replies of an account read before."""
        self._lock(account_id, hint.names)
        new = [request for request in hint.requests if (ANSWER, (account_id, request)) not in self._prefetched]
        if new:
            self._prefetched |= {(ANSWER, (account_id, request)): None for request in new}
            rows = self.rows(_SELECT_ANSWERS.format("?"), new, account_id)
            self._prefetched |= {(ANSWER, (account_id, request)): answer for request, *answer in rows}

    def many_locked(self) -> frozenset[int]:
        """Return the accounts with locks on several files, including locks not yet acquired."""
        files = Counter(account_id for account_id, _ in self._locked)
        return frozenset(account_id for account_id, times in files.items() if times > 1)

    def lock_accounts(self, accounts: Iterable[int]) -> None:
        """Lock these accounts against all other writers."""
        for account_id in sorted(accounts):
            self._locked_accounts.add(account_id)
            self._queue(_LOCK_ACCOUNT, account_id)

    def _lock(self, account_id: int, names: Iterable[str]) -> None:
        """Lock files, existing or missing, against other writers until the transaction ends."""
        if account_id in self._locked_accounts:
            return
        new = [name for name in names if (account_id, name) not in self._locked]
        if not new:
            return
        self._locked.update((account_id, name) for name in new)
        if len(self._locked) > MAX_LOCKS:
            self.lock_accounts([account_id])
            return
        self._lock_shared(account_id)
        if len(new) == 1:
            self._queue(_LOCK_NAME, new[0], account_id)
        else:
            self._queue(_LOCK_NAMES, account_id, new)

    def _lock_shared(self, account_id: int) -> None:
        """Take a shared lock on the account until the transaction ends, against exclusive locks of it."""
        if account_id not in self._shared and account_id not in self._locked_accounts:
            self._shared.add(account_id)
            self._queue(_SHARE_ACCOUNT, account_id)

    def _hold_account(self, account_id: int) -> None:
        self._queue(f"SELECT 1 FROM accounts WHERE id = ?{self.account_held}", account_id)  # noqa: S608 - of constants

    def _account(self, query: str, parameter: int | bytes | str) -> Account | None:
        account = super()._account(query, parameter)
        if account is not None and account.id not in self._shared and account.id not in self._locked_accounts:
            self._uncounted.discard(account.id)  # without a lock, it may get a limit meanwhile
        return account

    def set_disabled(self, account_id: int, disabled: bool) -> None:
        self.lock_accounts([account_id])  # running writes end first
        super().set_disabled(account_id, disabled)

    def delete_account(self, account_id: int) -> None:
        self.lock_accounts([account_id])
        super().delete_account(account_id)

    def start_counting(self, account_id: int) -> None:
        self.lock_accounts([account_id])
        super().start_counting(account_id)

    def count_some(self) -> bool:
        row = self.row("SELECT account_id FROM counters WHERE counted_to IS NOT NULL ORDER BY account_id LIMIT 1")
        if row is None:
            return False
        self.lock_accounts(row)
        counted_to = self.row("SELECT counted_to FROM counters WHERE account_id = ? AND counted_to IS NOT NULL", *row)
        if counted_to is not None:
            self.count_files_behind(*row, *counted_to)
        return True

    def _count_row(self, account_id: int, name: str, sign: str) -> None:
        if account_id not in self._uncounted:
            self._lock_shared(account_id)
        super()._count_row(account_id, name, sign)

    def _count_reply(self, account_id: int, size: int, request: str = "") -> None:
        if account_id not in self._uncounted:
            self._lock_shared(account_id)
        super()._count_reply(account_id, size, request)

    def _count_media(self, account_id: int, number: int) -> None:
        self._lock_shared(account_id)
        super()._count_media(account_id, number)

    def _count_blob(self, blob: int, changes: str, *parameters: int) -> None:
        self._lock_shared(blob // BLOBS)
        super()._count_blob(blob, changes, *parameters)

    def add_blob(self, account_id: int, now: float) -> int:
        self._lock_shared(account_id)
        return super().add_blob(account_id, now)

    def get(self, account_id: int, name: str, max_bytes: int | None = None) -> File | None:
        self._lock(account_id, (name,))
        file = super().get(account_id, name, max_bytes)
        self._found[account_id, name] = file is not None
        return file

    def stat(self, account_id: int, name: str) -> FileInfo | None:
        self._lock(account_id, (name,))
        info = super().stat(account_id, name)
        self._found[account_id, name] = info is not None
        return info

    def get_many(self, account_id: int, names: Sequence[str], max_bytes: int) -> dict[str, File | None]:
        self._lock(account_id, names)
        files = super().get_many(account_id, names, max_bytes)
        self._found |= {(account_id, name): file is not None for name, file in files.items()}
        return files

    def stat_many(self, account_id: int, names: Sequence[str]) -> dict[str, FileInfo | None]:
        self._lock(account_id, names)
        infos = super().stat_many(account_id, names)
        self._found |= {(account_id, name): info is not None for name, info in infos.items()}
        return infos

    def delete(self, account_id: int, name: str) -> bool:
        self._lock(account_id, (name,))
        deleted = super().delete(account_id, name)
        self._found[account_id, name] = False
        return deleted

    def _put(self, account_id: int, name: str, value: bytes, version: str, now: float) -> None:
        self._lock(account_id, (name,))
        for query, parameters in [*self._prefetched]:
            if query is not ANSWER and parameters[-2:] == (account_id, name):
                del self._prefetched[query, parameters]
        self._files[account_id, name] = (value, version, now)
        self._pending_bytes += len(value)
        if self._pending_bytes > MAX_PENDING:
            self._execute()

    def keep_answer(
        self, account_id: int, request: str, reply: bytes, number: float, fingerprint: bytes | None = None
    ) -> None:
        if (account_id, request) in self._answers:
            self._write_files()  # the server will refuse the duplicate id
        if account_id not in self._uncounted:
            self._lock_shared(account_id)
        self._prefetched.pop((ANSWER, (account_id, request)), None)
        self._answers[account_id, request] = (reply, fingerprint, number)

    def forget_answers(self, before: float, limit: int) -> None:
        if any(account_id not in self._uncounted for account_id, _ in self._answers):
            self._write_files()  # lock the account's own counters before those of other accounts
        self._queue(_FORGET_ANSWERS, before, limit)

    def _write_files(self) -> None:
        """Turn the queued files and replies into statements."""
        files, self._files = self._files, {}
        answers, self._answers = self._answers, {}
        for account_id, rows in _by_account(files).items():
            self._count_files(account_id, rows)
            if len(rows) == 1:
                name, (value, version, now) = rows[0]
                found = self._found.get((account_id, name))
                if found:
                    self._pending.append((_UPDATE, (value, version, now, account_id, name)))
                else:
                    # Never replace a file found missing: this would lose another writer's file.
                    query = _INSERT if found is False else _INSERT + _REPLACING
                    self._pending.append((query, (account_id, name, value, version, now, now)))
            else:
                for replacing in (False, True):
                    chosen = [row for row in rows if (self._found.get((account_id, row[0])) is not False) == replacing]
                    if chosen:
                        names = [name for name, _ in chosen]
                        columns = [list(column) for column in zip(*(row[1] for row in chosen), strict=True)]
                        query = _INSERT_MANY + (_REPLACING if replacing else "")
                        self._pending.append((query, (account_id, names, *columns)))
        self._found.update(dict.fromkeys(files, True))
        for account_id, replies in _by_account(answers).items():
            if account_id not in self._uncounted:
                total = sum(len(write_text(request).encode()) + len(reply) for request, (reply, *_) in replies)
                self._pending.append((_COUNT_REPLIES, (total, total, account_id)))
            if len(replies) == 1:
                self._pending.append((_INSERT_ANSWER, (account_id, replies[0][0], *replies[0][1])))
            else:
                columns = [list(column) for column in zip(*(row[1] for row in replies), strict=True)]
                fingerprints = columns[1] if any(columns[1]) else [None] * len(columns[1])
                requests = [request for request, _ in replies]
                self._pending.append(
                    (_INSERT_ANSWERS, (account_id, requests, columns[0], _BytesArray(fingerprints), columns[2]))
                )

    def _count_files(self, account_id: int, files: list[tuple[str, tuple[bytes, str, float]]]) -> None:
        """Update the quota counters before a write of files."""
        if account_id not in self._uncounted:
            names = [name for name, _ in files]
            self._pending.append((_COUNT_FILES, (names, [len(row[0]) for _, row in files], account_id)))

    def add_accesses(self, used: Sequence[AccessDelta], latest: int = ALL) -> None:
        """Add to the access counts of existing files and to the daily counts of accounts; see `AccessStatements`."""
        daily = Counter[tuple[int, int]]()
        by_day: dict[int, dict[tuple[int, Kind, str], AccessDelta]] = {}
        for each in sorted(used):  # a common order of all transactions prevents deadlocks
            file = each.account_id, each.kind, each.name
            of_day = by_day.setdefault(each.day, {})
            earlier = of_day.get(file)  # merge: a statement may change a row only once
            if earlier is None:
                of_day[file] = each
            else:
                times, last_at = earlier.times + each.times, max(earlier.last_at, each.last_at)
                of_day[file] = each._replace(times=times, last_at=last_at)
            daily[each.account_id, each.day] += each.times
        for _, deltas in sorted(by_day.items()):
            columns = (list(column) for column in zip(*deltas.values(), strict=True))
            self.do(_ADD_ACCESSES, *columns, latest, latest, latest)
        if daily:
            rows = [(account_id, day, times) for (account_id, day), times in sorted(daily.items())]
            self.do(_ADD_DAYS, *(list(column) for column in zip(*rows, strict=True)))

    def end_filling(self) -> None:
        for statement in _END_FILLING:
            self.do(statement)


class _BytesArray(list[bytes | None]):
    """Array of bytes for PostgreSQL; all its items may be None."""


def _by_account(rows: dict[tuple[int, str], Any]) -> dict[int, list[tuple[str, Any]]]:
    found: dict[int, list[tuple[str, Any]]] = {}
    for (account_id, key), row in rows.items():
        found.setdefault(account_id, []).append((key, row))
    return found


def is_lost(error: psycopg.Error) -> bool:
    """Return True if the connection is lost or was never established, so a new connection may succeed."""
    code = error.sqlstate
    if code is None:
        return isinstance(error, psycopg.OperationalError)
    # Connection errors, operator intervention, idle transaction timeout, and too many connections.
    return code.startswith(("08", "57P")) or code in ("25P03", "53300")
