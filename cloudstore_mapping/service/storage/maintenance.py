"""Maintenance of a store on either engine: back up, check integrity, restore, copy to another store, rename files."""

from __future__ import annotations

import hashlib
import math
import sqlite3
import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from cloudstore_mapping.errors import UnavailableError, UnsupportedError
from cloudstore_mapping.service.storage.base import PAUSE, STEP, Report, Storage
from cloudstore_mapping.service.storage.migrations import DamagedFileError, newest, reading
from cloudstore_mapping.service.storage.places import StoreLocation
from cloudstore_mapping.service.storage.renaming import Renames, rename_files
from cloudstore_mapping.service.storage.sql import Transaction, checksum_matches
from cloudstore_mapping.service.storage.sqlite import SQLiteSession, SQLiteStorage
from cloudstore_mapping.service.storage.sqlite_backup import back_up as copy_file
from cloudstore_mapping.service.storage.sqlite_backup import (
    copy_database,
    copy_error,
    make_one_file,
    new_file,
    verify,
)
from cloudstore_mapping.service.storage.sqlite_files import check_place, reading_mode, refuse_leftovers
from cloudstore_mapping.sqlite_forks import connected
from cloudstore_mapping.wire import decode_value

#: Rows between two progress reports of a copy.
REPORT_EVERY: Final = 100
#: Number of media files or blobs read per query.
PAGE: Final = 1000
#: The first SQLite schema with media files, and the first with quota counters and deleted accounts.
WITH_MEDIA: Final = 2
WITH_COUNTERS: Final = 6

_Row: TypeAlias = tuple[Any, ...]


def _no_report(_done: int, _total: int) -> None:
    pass


# --- Back up and restore ---


def back_up(source: StoreLocation, path: Path, report: Report) -> Findings:
    """
    Back up a store: copy it into a new file at `path`, check the copy and return the findings.

    A copy of a damaged store is kept, as it contains everything else. Raises as `back_up_storage` does.
    """
    if source.file is not None and source.is_older():  # copied without a migration
        with _read(source.file) as session:
            session.touch()  # begins the snapshot
            copy_file(session.connection, path, report)
    else:
        with source.open(readonly=source.file is None) as storage:
            back_up_storage(storage, path, report)
    return check_file(path, report)


def back_up_storage(storage: Storage, path: Path, report: Report) -> None:
    """
    Copy a snapshot of an open storage into a new SQLite file, which appears at `path` once it is complete.

    Readers and writers continue meanwhile. Raises `FileExistsError` if the file exists.
    """
    if isinstance(storage, SQLiteStorage):
        storage.back_up(path, report)
        return
    with storage.read() as transaction:
        copy_to_file(transaction, path, report)


def restore(backup: Path, target: StoreLocation, report: Report) -> None:
    """
    Restore a backup into a new store at `target`, after checking every value and media file by its checksum.

    Raises `UnsupportedError` if the backup is foreign, damaged or of a newer version, or the database has a store;
    `FileExistsError` if the file exists; `FileNotFoundError` if there is no backup.
    """
    if target.file is not None:
        restore_file(backup, target.file, report)
        return
    _check_is_there(backup)
    findings = examine(backup, report)
    _check_restorable(backup, findings)
    if findings.schema < newest():
        raise UnsupportedError(
            f"{backup} is of an older version; restore it to a file, then copy that with `cloudstore migrate-store`."
        )
    with _read(backup) as session:
        _copy_to(session, target, report)


def restore_file(backup: Path, path: Path, report: Report) -> None:
    """
    Restore a backup into a new SQLite store at `path`; raises as `restore` does.

    The file appears once every page, value and media file of the copy was checked.
    """
    _check_is_there(backup)
    try:
        verify(backup)
    except DamagedFileError as error:  # its text says to restore a backup
        raise UnsupportedError(f"The backup {backup} is damaged and was not restored; restore another one.") from error
    with reading(backup), connected(f"{backup.as_uri()}?mode={reading_mode(backup)}", uri=True) as source:
        source.execute("BEGIN")
        source.execute("SELECT 1 FROM sqlite_schema").fetchone()
        with new_file(path) as draft:
            findings = copy_database(source, draft, report, lambda draft: examine(draft, report))
            _check_restorable(backup, findings)


def _check_is_there(backup: Path) -> None:
    refuse_leftovers(backup)
    if not backup.is_file():
        raise FileNotFoundError(f"There is no backup {backup}; check its name.")


def _check_restorable(backup: Path, findings: Findings) -> None:
    if findings.faults:
        raise UnsupportedError(
            f"{backup} is damaged and was not restored; `cloudstore check --store {backup}` names each fault."
        )


# --- Check integrity ---


@dataclass
class Findings:
    """
    Findings of an integrity check: totals, and `faults` as sentences.

    `orphan_blobs` counts unfinished uploads and deleted media, `deleted_accounts` accounts with rows left; the service
    deletes both by itself.
    """

    schema: int
    accounts: int = 0
    files: int = 0
    file_bytes: int = 0
    media: int = 0
    media_bytes: int = 0
    orphan_blobs: int = 0
    orphan_accesses: int = 0
    deleted_accounts: int = 0
    faults: list[str] = field(default_factory=list)


def schema_versions(place: StoreLocation) -> tuple[int, int]:
    """Return the schema number of an existing store, and the newest schema number of its engine."""
    if place.file is not None:
        check_place(place.file)
        return verify(place.file), newest()
    from cloudstore_mapping.service.storage.postgres_migrations import newest as newest_of_postgres  # loads a driver

    return place.schema(), newest_of_postgres()


def check(place: StoreLocation, report: Report) -> Findings:
    """Check the integrity of a snapshot of a store, possibly in use."""
    if place.file is not None:
        return check_file(place.file, report)
    from cloudstore_mapping.service.storage.postgres import PostgresStorage  # loads a driver
    from cloudstore_mapping.service.storage.postgres_migrations import WITH_COUNTERS as WITH_COUNTERS_IN_POSTGRES

    schema = place.schema()
    with PostgresStorage(str(place.address), older="keep") as storage, storage.read() as transaction:
        return check_integrity(transaction, schema, report, has_counters=schema >= WITH_COUNTERS_IN_POSTGRES)


def repair(place: StoreLocation) -> list[str]:
    """Recount the quotas of accounts with wrong counters, in short steps; return the names of these accounts."""
    with place.open() as storage:
        with storage.read() as transaction:
            wrong = [
                account
                for account in transaction.accounts()
                if account.is_counted and transaction.counters(account.id) != transaction.recounted(account.id)
            ]
        for account in wrong:
            storage.submit(partial(_start_counting, account.id)).result()
        while storage.submit(_tidy).result():
            time.sleep(PAUSE)
        return [account.name for account in wrong]


def _start_counting(account_id: int, transaction: Transaction) -> None:
    transaction.start_counting(account_id)


def _tidy(transaction: Transaction) -> bool:
    end = time.monotonic() + STEP
    return transaction.tidy(-math.inf, lambda: time.monotonic() >= end)


def check_file(path: Path, report: Report = _no_report) -> Findings:
    """
    Check the integrity of a snapshot of the SQLite store at `path`, possibly in use.

    Raises `UnsupportedError` for a foreign or unreadable file, `FileNotFoundError` if there is none.
    """
    check_place(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no store {path}; check its name.")
    return examine(path, report)


def examine(path: Path, report: Report) -> Findings:
    """Check every page, value and media file of the SQLite store or backup at `path`; raises as `verify` does."""
    schema = verify(path)
    with _read(path) as session:
        # A damaged name must be reported, not raise.
        session.connection.text_factory = lambda text: text.decode(errors="surrogateescape")
        return check_integrity(
            session, schema, report, has_media=schema >= WITH_MEDIA, has_counters=schema >= WITH_COUNTERS
        )


@contextmanager
def _read(path: Path) -> Iterator[SQLiteSession]:
    """Read a snapshot of the store or backup at `path`, of any schema."""
    with reading(path), closing(SQLiteSession(path, reading_mode(path))) as session, session.snapshot():
        yield session


def check_integrity(
    session: Transaction,
    schema: int,
    report: Report = _no_report,
    *,
    has_media: bool = True,
    has_counters: bool = True,
) -> Findings:
    """Compare every value and media file in a transaction's snapshot with its checksum, and count orphans."""
    findings = Findings(schema)
    live = "NOT deleted" if has_counters else "TRUE"  # accounts not being deleted
    _count(session, findings, has_media=has_media, has_counters=has_counters)
    if has_counters:
        findings.faults += _check_counters(session)
    total = findings.files + findings.media
    faults = chain(_check_values(session, live), _check_media(session, live) if has_media else ())
    for done, fault in enumerate(faults, 1):
        if fault is not None:
            findings.faults.append(fault)
        report(done, total)
    return findings


def _check_counters(session: Transaction) -> Iterator[str]:
    """Yield a sentence for each account with wrong quota counters."""
    for account in session.accounts():
        counted = session.counters(account.id)
        if account.is_counted and counted is None:
            yield f"The quotas of {account.name!r} are not counted; run `cloudstore check --repair`."
        if counted is not None and session.is_counted(account.id):
            found = session.recounted(account.id)
            if found != counted:
                yield (
                    f"The quotas of {account.name!r} are counted as {counted.files:,} files of {counted.bytes:,} bytes,"
                    f" not {found.files:,} of {found.bytes:,}; run `cloudstore check --repair`."
                )


def _count(session: Transaction, findings: Findings, *, has_media: bool, has_counters: bool) -> None:
    def number(query: str) -> int:
        return int(session.row(query)[0])

    live = ""
    findings.accounts = number("SELECT count(*) FROM accounts")
    if has_counters:
        findings.deleted_accounts = number("SELECT count(*) FROM accounts WHERE deleted")
        findings.accounts -= findings.deleted_accounts
        live = " WHERE account_id NOT IN (SELECT id FROM accounts WHERE deleted)" if findings.deleted_accounts else ""
    findings.files = number(f"SELECT count(*) FROM files{live}")  # noqa: S608 - of constants
    findings.file_bytes = number(f"SELECT coalesce(sum({session.size}), 0) FROM files{live}")  # noqa: S608 - of constants
    if has_media:
        findings.media = number(f"SELECT count(*) FROM media{live}")  # noqa: S608 - of constants
        findings.media_bytes = number(f"SELECT coalesce(sum(size), 0) FROM media{live}")  # noqa: S608 - of constants
        findings.orphan_blobs = number("SELECT count(*) FROM blobs WHERE NOT kept")
        findings.orphan_accesses = number(
            "SELECT count(*) FROM accesses a WHERE NOT EXISTS (SELECT 1 FROM files f"
            " WHERE kind = 'data' AND f.account_id = a.account_id AND f.name = a.name) AND NOT EXISTS"
            " (SELECT 1 FROM media m WHERE kind = 'media' AND m.account_id = a.account_id AND m.id = a.name)"
        )


def _check_values(session: Transaction, live: str) -> Iterator[str | None]:
    """Yield a sentence for each damaged value, None for each sound one."""
    files = f"files f JOIN accounts a ON a.id = account_id WHERE {live}"
    query = f"SELECT a.name, f.name, version, {session.value} FROM {files}"  # noqa: S608 - of constants
    for account, name, version, value in session.stream(query):
        if not _is_json(value):
            yield f"The file {name!r} of {account!r} is not valid JSON; save it again."
        elif not checksum_matches(version, name, value):
            yield f"The file {name!r} of {account!r} doesn't match its checksum; save it again."
        else:
            yield None


def _is_json(value: object) -> bool:
    if not isinstance(value, bytes):
        return False
    try:
        decode_value(value)
    except (ValueError, RecursionError):
        return False
    return True


def _check_media(session: Transaction, live: str) -> Iterator[str | None]:
    """Yield a sentence for each damaged media file, None for each sound one."""
    for account_id, account in session.rows(f"SELECT id, name FROM accounts WHERE {live} ORDER BY name"):  # noqa: S608 - of constants
        after = None
        while page := session.describe_media(account_id, after=after, limit=PAGE):
            for media in page:
                digest = hashlib.sha256()
                length = 0
                for chunk in session.chunks(media.blob):
                    digest.update(chunk)
                    length += len(chunk)
                is_sound = length == media.size and digest.hexdigest() == media.digest
                fault = f"The media file {media.name!r} of {account!r} doesn't match its checksum; upload it again."
                yield None if is_sound else fault
            after = page[-1].name


# --- Copy to another store ---


class _Table(NamedTuple):
    """A copied table: columns, sort order, boolean columns, and a condition on its rows."""

    name: str
    columns: tuple[str, ...]
    order: str
    booleans: frozenset[str]
    condition: str


#: Condition on rows of accounts not being deleted.
_LIVE: Final = "account_id IN (SELECT id FROM accounts WHERE NOT deleted)"


def _table(name: str, columns: str, order: str, booleans: str = "", condition: str = _LIVE) -> _Table:
    return _Table(name, tuple(columns.split()), order, frozenset(booleans.split()), condition)


#: Copied tables, in order of their foreign keys. Sessions are not copied: owners sign in again. Quotas are recounted.
#: Chunks are copied blob by blob. Blobs without a media file are unfinished uploads or deleted media, so they are not
#: copied.
_TABLES: Final = (
    _table(
        "accounts",
        "id name disabled created_at plan max_files max_file_bytes max_daily_accesses min_interval max_media_bytes"
        " max_total_bytes next_request_at folder data_password media_password owner_password must_change_password",
        "id",
        "disabled must_change_password",
        "NOT deleted",
    ),
    _table("api_keys", "account_id hash created_at hint", "account_id, hash"),
    _table("events", "account_id id at action subject origin", "account_id, id"),
    _table(
        "files",
        "account_id name version edit_password view_password created_at updated_at value",
        "account_id, name",
    ),
    _table("answers", "account_id request reply fingerprint answered_at", "account_id, request"),
    _table("blobs", "account_id id touched_at kept size", "account_id, id", "kept", f"kept AND {_LIVE}"),
    _table(
        "media",
        "account_id id name mimetype size digest blob_id edit_password created_at updated_at",
        "account_id, id",
    ),
    _table("accesses", "account_id kind name day count last_at", "account_id, kind, name"),
    _table("days", "account_id day count", "account_id, day"),
    _table("old_names", "account_id name clashes", "account_id, name", "clashes"),
    _table("name_scans", "at", "at", "", "TRUE"),
)
_CHUNKS: Final = "chunks"


class Copied(NamedTuple):
    """Number of rows copied of a table, and the SHA-256 of their contents."""

    rows: int
    digest: str


def migrate_store(source: StoreLocation, target: StoreLocation, report: Report) -> dict[str, Copied]:
    """
    Copy a snapshot of a store into a new store, possibly on another engine; return the copied rows by table.

    Sessions and unfinished uploads are not copied. Raises `UnsupportedError` if the source is damaged, and
    `UnsupportedError` or `FileExistsError` if there is a store at `target`.
    """
    with source.open(readonly=source.is_older()) as storage, storage.read() as read:
        transaction = read
        if check_integrity(transaction, schema=0).faults:
            raise UnsupportedError(
                f"{source} is damaged and was not copied; `cloudstore check --store {source}` names each fault."
            )
        return _copy_to(transaction, target, report)


def _copy_to(source: Transaction, target: StoreLocation, report: Report) -> dict[str, Copied]:
    if target.file is not None:
        return copy_to_file(source, target.file, report)
    with target.open(to_fill=True) as storage:
        return copy_store(source, storage, report)


def copy_to_file(source: Transaction, path: Path, report: Report) -> dict[str, Copied]:
    """
    Copy a transaction's snapshot into a new SQLite file, which appears at `path` once it is complete.

    Raises `FileExistsError` if the file exists; else see `copy_store`.
    """
    with new_file(path) as draft:
        try:
            with SQLiteStorage(draft) as storage:
                copied = copy_store(source, storage, report)
            with connected(draft) as connection:
                make_one_file(connection)
        except (sqlite3.Error, PermissionError, UnavailableError) as error:
            raise copy_error(error, draft) from error
        verify(draft)
    return copied


def copy_store(source: Transaction, target: Storage, report: Report) -> dict[str, Copied]:
    """
    Copy a transaction's snapshot into an empty storage in one transaction; return the copied rows by table.

    The rows are read back and compared before the commit. Raises `UnsupportedError` if the target isn't empty or
    returns other rows.
    """
    return target.submit(partial(_copy_tables, source, report)).result()


def _copy_tables(source: Transaction, report: Report, transaction: Transaction) -> dict[str, Copied]:
    if transaction.has_accounts():
        raise UnsupportedError("The store already has accounts; copy into an empty one.")
    total = sum(source.row(f"SELECT count(*) FROM {name}")[0] for name in (_CHUNKS, *(t.name for t in _TABLES)))  # noqa: S608 - of constants
    progress = _Progress(2 * total, report)
    copied = {name: _digest(progress.of(_insert(transaction, name, rows))) for name, rows in _contents(source)}
    for account in transaction.accounts():
        if account.is_counted:
            transaction.start_counting(account.id)
    while transaction.count_some():
        pass
    transaction.end_filling()
    for name, rows in _contents(transaction):
        if _digest(progress.of(rows)) != copied[name]:
            raise UnsupportedError(f"The copied {name} differ from the source, so nothing was kept; try again.")
    report(2 * total, 2 * total)
    return copied


class _Progress:
    """Counter of copied rows; reports every `REPORT_EVERY` rows."""

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
    """Yield each table with its rows; equal contents give equal rows on every engine."""
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
        f"SELECT account_id, id, {session.blob} FROM blobs WHERE kept AND {_LIVE}"  # noqa: S608 - of constants
        " AND (account_id, id) > (?, ?) ORDER BY blobs.account_id, blobs.id LIMIT ?"
    )
    last = (0, 0)
    while page := session.rows(query, *last, PAGE):
        for account_id, number, blob in page:
            for place, data in enumerate(session.chunks(blob)):
                yield account_id, number, place, data
        last = page[-1][:2]


def _insert(session: Transaction, name: str, rows: Iterator[_Row]) -> Iterator[_Row]:
    """Insert and yield each row."""
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


# --- Rename files of version 0.1.0 ---


def migrate_names(
    place: StoreLocation, report: Report, *, keep: Collection[str] = (), dry_run: bool = False
) -> Renames:
    """Rename the files of a store with names of version 0.1.0; see `rename_files`."""
    with place.open(renames=True, readonly=dry_run and place.is_older()) as storage:
        return rename_files(storage, time.time(), report, keep=keep, dry_run=dry_run)
