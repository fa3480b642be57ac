"""What the SQLite engine answers when its disk is full or fails: never success."""

from __future__ import annotations

import logging
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage.base import OperatorError
from cloudstore_mapping.service.storage.records import File
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.storage.sqlite import SQLiteSession, SQLiteStorage
from tests.service_fakes import PATIENCE, Held, unversioned

BIG = b"1" * 200_000


@pytest.fixture
def storage(tmp_path: Path, no_threads_left: None) -> Iterator[SQLiteStorage]:
    """Return a storage in a file."""
    with SQLiteStorage(tmp_path / "store.db") as storage:
        yield storage


def names(storage: SQLiteStorage, account: int) -> list[str]:
    """Return the names of an account's files."""
    with storage.read() as transaction:
        return transaction.names(account)


def put(storage: SQLiteStorage, account: int, name: str, value: bytes = b"1") -> None:
    """Put a value."""
    storage.submit(lambda transaction: transaction.put(account, name, value, 1.0)).result(PATIENCE)


def limit_pages(storage: SQLiteStorage, more: int) -> None:
    """Let the disk be full after so many more pages."""

    def work(transaction: Transaction) -> None:
        assert isinstance(transaction, SQLiteSession)
        (pages,) = transaction.connection.execute("PRAGMA page_count").fetchone()
        transaction.connection.execute(f"PRAGMA max_page_count = {pages + more}")

    storage.submit(work).result()


@contextmanager
def failing_disk() -> Iterator[None]:
    """Let every write to a file fail meanwhile, as a broken disk does; a reading one goes on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told(storage: SQLiteStorage, account: int) -> None:
    """On a full disk a write is `UnavailableError`, reads and deletes go on, and writes do once there is space."""
    put(storage, account, "before", BIG)
    limit_pages(storage, 2)
    with pytest.raises(UnavailableError, match=r"^The store's disk is full; free some space, then try again\.$"):
        put(storage, account, "too much", BIG)
    assert names(storage, account) == ["before"]
    assert storage.healthy()
    assert storage.submit(lambda transaction: transaction.delete(account, "before")).result()
    put(storage, account, "after", BIG)
    assert names(storage, account) == ["after"]


def test_nobody_is_told_success_when_the_disk_is_full(storage: SQLiteStorage, account: int) -> None:
    """Whoever was in one transaction with what filled the disk is told success only if it is in the file."""
    limit_pages(storage, 2)
    held = Held(storage)
    works = {
        name: storage.submit(lambda transaction, name=name, value=value: transaction.put(account, name, value, 1.0))  # type: ignore[misc]  # bound early
        for name, value in {"a": b"1", "b": BIG, "c": b"1"}.items()
    }
    held.go.set()
    told = {name for name, future in works.items() if future.exception(PATIENCE) is None}
    assert "b" not in told
    assert set(names(storage, account)) == told


def test_a_failed_commit_ends_all_writing(
    storage: SQLiteStorage, account: int, caplog: pytest.LogCaptureFixture
) -> None:
    """After a commit that the disk failed nobody is told success any more, it says so, and reads go on."""
    put(storage, account, "before")
    held = Held(storage)
    futures = [storage.submit(lambda transaction: transaction.put(account, "lost", b"1", 1.0)) for _ in range(3)]
    with failing_disk(), caplog.at_level(logging.ERROR):
        held.go.set()
        errors = [future.exception(PATIENCE) for future in futures]
    assert [type(error) for error in errors] == [OperatorError] * 3
    assert str(errors[0]) == "The store's disk failed; look at it, then start again."
    assert isinstance(errors[0].__cause__, sqlite3.Error)  # type: ignore[union-attr]  # it is an error
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert not storage.healthy()
    with pytest.raises(UnavailableError, match="disk failed"):
        put(storage, account, "later")
    assert names(storage, account) == ["before"]


def test_what_was_answered_outlives_a_failed_disk(tmp_path: Path) -> None:
    """A store that is opened again after its disk failed holds what was answered, and takes writes."""
    with SQLiteStorage(tmp_path / "store.db") as storage:
        account = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result().id
        put(storage, account, "before", BIG)
        with failing_disk(), pytest.raises(UnavailableError):
            put(storage, account, "lost", BIG)
    with SQLiteStorage(tmp_path / "store.db") as storage:
        put(storage, account, "after")
        assert names(storage, account) == ["after", "before"]
        with storage.read() as transaction:
            assert unversioned(transaction.get(account, "before")) == File(BIG, None, None, "")


FILES_RUN_OUT = """
import os, resource, sqlite3, sys
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage

with SQLiteStorage(sys.argv[1]) as storage:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    for use in (lambda: storage.read(), lambda: SQLiteStorage(sys.argv[1])):
        try:
            use()
        except ConnectionError as error:
            print(error)
    for each in held:
        os.close(each)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of open files to set.")
def test_no_more_files_may_be_open(tmp_path: Path) -> None:
    """At the limit of open files the error names that, and not the store's file."""
    run = subprocess.run(
        [sys.executable, "-c", FILES_RUN_OUT, tmp_path / "store.db"], capture_output=True, text=True, check=True
    )
    sentence = "This process has as many files open as it may; raise its limit of open files (ulimit -n).\n"
    assert run.stdout == 2 * sentence
