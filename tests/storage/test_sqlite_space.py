"""The last room on a disk is kept for what makes room."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage import sqlite
from cloudstore_mapping.service.storage.base import NoSpaceError
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.service.storage.sqlite_files import LOG, DiskReserve
from cloudstore_mapping.wire import failure
from tests.service_fakes import PATIENCE, Held

GIB = 2**30


class Usage(NamedTuple):
    """How large a disk is, what of it is free, and whether it is read-only."""

    total: int
    free: int
    read_only: bool = False


@pytest.mark.parametrize(
    ("total", "free", "growth", "unused", "size", "fits"),
    [
        (GIB, GIB, 0, 0, 2**20, True),
        (GIB, LOG + 2, 0, 0, 1, True),
        (GIB, LOG + 1, 0, 0, 1, False),
        (GIB, LOG + 1, 0, 1, 1, True),
        (GIB, 0, 0, LOG + 2, 1, True),
        (GIB, 3 * LOG + 1, 2 * LOG, 0, 1, False),
        (GIB, 3 * LOG + 2, 2 * LOG, 0, 1, True),
        (GIB, GIB // 2 + 1, GIB // 2 - LOG, 0, 1, False),
        (GIB, GIB // 2 + 2, GIB // 2 - LOG, 0, 1, True),
        (4 * 2**20, 2**20 + 2, 0, 0, 1, True),
        (4 * 2**20, 2**20, 0, 0, 1, False),
        (0, 0, 0, 0, 2**20, True),
    ],
)
def test_what_fits(tmp_path: Path, total: int, free: int, growth: int, unused: int, size: int, fits: bool) -> None:
    """What is written fits twice beside the growth of the file and a full log, or a quarter of a small disk."""
    space = DiskReserve(tmp_path / "store.db", lambda _: Usage(total, free))
    if fits:
        space.take(size, lambda: unused, lambda: growth)
    else:
        with pytest.raises(UnavailableError, match=r"^The store's disk is full"):
            space.take(size, lambda: unused, lambda: growth)


@pytest.mark.parametrize(
    ("total", "free", "size", "kept", "missing"),
    [
        (GIB, LOG + 1, 1, " but for 5 MiB kept for deletes", 1),
        (GIB, LOG + 1, 10 * 2**20, " but for 5 MiB kept for deletes", 20),
        (GIB, LOG - 1, 1, "", 1),
        (GIB, 0, 2**20, "", 7),
        (2 * 2**20, 2**19, 1, " but for 0.5 MiB kept for deletes", 1),
    ],
)
def test_the_space_that_is_missing(tmp_path: Path, total: int, free: int, size: int, kept: str, missing: int) -> None:
    """The operator reads how much of a full disk is kept for deletes and how much to free, clients only who can."""
    space = DiskReserve(tmp_path / "store.db", lambda _: Usage(total, free))
    with pytest.raises(NoSpaceError) as caught:
        space.take(size, lambda: 0, lambda: 0)
    sentence = f"The store's disk is full{kept}; free at least {missing} MiB, then try again."
    assert str(caught.value) == sentence
    reply = failure(caught.value)
    assert (reply.problem, reply.sentence) == (sentence, "The service's disk is full; its operator has to free space.")


@pytest.mark.parametrize(
    ("total", "free", "log", "is_in_the_way"),
    [
        (GIB, 8 * LOG, 4 * LOG, False),
        (GIB, 8 * LOG - 1, 4 * LOG, True),
        (GIB, 4 * LOG - 1, 2**20, False),
        (GIB, 4 * LOG - 1, 2**20 + 1, True),
        (2**20, 0, 2**16, False),
        (2**20, 0, 2**16 + 1, True),
        (0, 0, 2**30, False),
    ],
)
def test_a_log_that_is_in_the_way(tmp_path: Path, total: int, free: int, log: int, is_in_the_way: bool) -> None:
    """On a disk that gets full the log is emptied at a megabyte, or at a sixteenth of a small disk."""
    with (tmp_path / "store.db-wal").open("wb") as file:
        file.truncate(log)
    space = DiskReserve(tmp_path / "store.db", lambda _: Usage(total, free))
    assert space.log_is_in_the_way() is is_in_the_way


def test_a_read_only_disk(tmp_path: Path) -> None:
    """Nothing is written to a file system that is read-only, and a sentence says so before a commit could fail."""
    space = DiskReserve(tmp_path / "store.db", lambda _: Usage(GIB, GIB, read_only=True))
    with pytest.raises(UnavailableError, match=r"^The store's file system is read-only; "):
        space.take(1, lambda: 0, lambda: 0)


def test_what_fits_together(tmp_path: Path) -> None:
    """All that one transaction takes fits, and the disk is looked at once in each."""
    disks = iter([Usage(GIB, LOG + 20), Usage(GIB, LOG + 2)])
    space = DiskReserve(tmp_path / "store.db", lambda _: next(disks))
    for _ in range(10):
        space.take(1, lambda: 0, lambda: 0)
    with pytest.raises(UnavailableError):
        space.take(1, lambda: 0, lambda: 0)
    space.begin()
    space.take(1, lambda: 0, lambda: 0)
    assert list(disks) == []


def test_the_log_gives_back_what_it_took(tmp_path: Path) -> None:
    """After a large write the write-ahead log is as small again as it is after many small ones."""
    log = tmp_path / "store.db-wal"
    with SQLiteStorage(tmp_path / "store.db") as storage:
        account = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result().id

        def put(name: str, value: bytes) -> None:
            storage.submit(lambda transaction: transaction.put(account, name, value, 1.0)).result()

        put("large", bytes(4 * LOG))
        assert log.stat().st_size > 4 * LOG
        put("small", b"1")
        assert log.stat().st_size <= LOG


PAGES = 400


def fill(storage: SQLiteStorage) -> int:
    """Fill some pages, delete most of what is in them, and return the account's id."""

    def work(transaction: Transaction) -> int:
        account = transaction.add_account("owner", 1.0).id
        for number in range(PAGES):
            transaction.put(account, f"name {number}", b'"%s"' % (b"x" * 4000), 1.0)
        return account

    account = storage.submit(work).result()
    for number in range(PAGES - 10):
        storage.submit(lambda transaction, name=f"name {number}": transaction.delete(account, name)).result()  # type: ignore[misc]
    return account


def steps(storage: SQLiteStorage) -> int:
    """Do background work page by page, and return how many steps that took."""
    number = 0
    while storage.submit(lambda transaction: transaction.tidy(0.0, lambda: True)).result():
        number += 1
    return number


def test_unused_space_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What deletes leave is given back to the disk a page at a time, and other writes pass in between."""
    monkeypatch.setattr(sqlite, "UNUSED_PAGES", 20)
    file = tmp_path / "store.db"
    with SQLiteStorage(file) as storage:
        account = fill(storage)
        with storage.read() as transaction:
            assert transaction.is_untidy(0.0)
        assert PAGES - 60 < steps(storage) < 2 * PAGES
        with storage.read() as transaction:
            assert not transaction.is_untidy(0.0)
            assert transaction.get(account, f"name {PAGES - 1}") is not None
    assert file.stat().st_size < 100 * 4096 < PAGES * 4096
    with SQLiteStorage(file) as storage, storage.read() as transaction:
        assert len(transaction.names(account)) == 10


def test_a_file_gets_shorter_without_further_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After unused space was given back the file is truncated soon, even if nobody writes any more."""
    monkeypatch.setattr(sqlite, "UNUSED_PAGES", 20)
    file = tmp_path / "store.db"
    with SQLiteStorage(file) as storage:
        fill(storage)
        with closing(sqlite3.connect(file)) as other:
            other.execute("PRAGMA wal_checkpoint").fetchall()
        before = file.stat().st_size
        assert before > PAGES * 4096
        storage.submit(lambda transaction: transaction.tidy(0.0, lambda: False)).result()
        assert file.stat().st_size == before
        storage.shorten()
        assert file.stat().st_size == before  # a writer may be about to do it
        storage.shorten()
        assert file.stat().st_size < 100 * 4096
        statements: list[str] = []
        (reader,) = storage._idle
        reader.connection.set_trace_callback(statements.append)
        storage.shorten()
        storage.shorten()
        assert not [each for each in statements if "checkpoint" in each]


def test_nobody_waits_while_a_file_gets_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader keeps its snapshot while a file is to be truncated, a writer goes on, and a later step truncates it."""
    monkeypatch.setattr(sqlite, "UNUSED_PAGES", 20)
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 10 * PATIENCE)
    file = tmp_path / "store.db"
    with SQLiteStorage(file) as storage:
        account = fill(storage)
        with storage.read() as reader:
            names = reader.names(account)
            storage.submit(lambda transaction: transaction.tidy(0.0, lambda: False)).result()
            before = file.stat().st_size
            with storage.read() as other:
                assert other.names(account) == names
            held = Held(storage)
            for _ in range(2):
                shortening = threading.Thread(target=storage.shorten, daemon=True)
                shortening.start()
                shortening.join(PATIENCE)
                assert not shortening.is_alive()
            held.go.set()
            held.future.result(PATIENCE)
            assert file.stat().st_size == before
            assert reader.names(account) == names
        for _ in range(2):
            storage.shorten()
        assert file.stat().st_size < 100 * 4096 < before
        storage.submit(lambda transaction: transaction.put(account, "name 0", b"1", 1.0)).result()
    with SQLiteStorage(file) as storage, storage.read() as transaction:
        assert len(transaction.names(account)) == 11


def test_the_log_is_never_written_into_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store whose file was overwritten isn't shortened."""
    monkeypatch.setattr(SQLiteStorage, "_is_too_long", lambda *_: True)
    file, other = tmp_path / "store.db", tmp_path / "other.db"
    SQLiteStorage(other).close()
    with SQLiteStorage(file) as storage:
        fill(storage)
        storage.shorten()
        with storage.read() as transaction:  # leaves an open connection
            transaction.has_accounts()
        file.write_bytes(other.read_bytes())
        with pytest.raises(UnavailableError, match="moved, deleted or replaced"):
            storage.shorten()
        assert file.read_bytes() == other.read_bytes()


def test_a_little_unused_space_is_kept(tmp_path: Path) -> None:
    """A file keeps some unused pages for the next saves, so that it is not made shorter and longer all the time."""
    with SQLiteStorage(tmp_path / "store.db") as storage:
        fill(storage)
        assert steps(storage) == 0


def test_a_file_of_an_older_version_is_compacted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that can't give back single pages is left alone, until `compact` has made it one that can."""
    monkeypatch.setattr(sqlite, "UNUSED_PAGES", 20)
    monkeypatch.setattr("cloudstore_mapping.service.storage.migrations.INCREMENTAL", 0)
    file = tmp_path / "store.db"
    with SQLiteStorage(file) as storage:
        account = fill(storage)
        assert steps(storage) == 0
        storage.compact()
        names = [f"again {number}" for number in range(100)]
        value = b'"%s"' % (b"x" * 4000)
        storage.submit(lambda transaction: [transaction.put(account, name, value, 1.0) for name in names]).result()
        storage.submit(lambda transaction: [transaction.delete(account, name) for name in names]).result()
        assert steps(storage) > 50
