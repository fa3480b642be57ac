"""Damage that SQLite has met once: saves are refused and health says so, until the store is opened anew."""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import requests

import cloudstore_mapping as cm
from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage import sqlite
from cloudstore_mapping.service.storage.base import OperatorError
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.service.storage.sqlite_files import Damage
from cloudstore_mapping.web.server import background
from tests.service_fakes import PATIENCE
from tests.serving import serving, told

pytestmark = pytest.mark.sqlite("it is about a damaged file")

DAMAGED = "The store's file is damaged; restore a backup of it."
FAILED = "The store's disk failed; look at it, then start again."


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a store with an account, whose key is "k" 20 times, and the file "before"."""
    path = tmp_path / "store.db"
    with Service(SQLiteStorage(path)) as service:
        service.accounts.create("owner", "k" * 20)
    with SQLiteStorage(path) as storage:
        put(storage, "before")
    return path


def put(storage: SQLiteStorage, name: str) -> None:
    """Save a value under a name."""
    storage.submit(lambda transaction: transaction.put(1, name, b"1", 1.0)).result(PATIENCE)


def load(storage: SQLiteStorage) -> None:
    """Load a value by its name."""
    with storage.read() as transaction:
        transaction.get(1, "before")


def damage(path: Path, tree: str = "sqlite_autoindex_files_1") -> None:
    """Overwrite the first page of a table or index."""
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (tree,)).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("rb+") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


@pytest.mark.parametrize("meet", [load, lambda storage: put(storage, "late")], ids=["load", "save"])
def test_damage_that_was_met(path: Path, meet: Callable[[SQLiteStorage], None]) -> None:
    """After a load or save that met damage it isn't healthy, every save is refused, and other loads go on."""
    damage(path)
    with SQLiteStorage(path) as storage:
        assert storage.healthy()
        with pytest.raises(UnavailableError) as caught:
            meet(storage)
        assert str(caught.value) == DAMAGED
        assert storage.problem() == DAMAGED
        with pytest.raises(UnavailableError, match=DAMAGED):
            storage.submit(lambda transaction: transaction.set_disabled(1, disabled=True)).result(PATIENCE)
        with storage.read() as transaction:
            assert transaction.has_accounts()


def test_a_service_that_met_damage(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A service answers health and saves 503 from then on, and logs the reason."""
    damage(path, "media")
    caplog.set_level(logging.WARNING)
    with Service(SQLiteStorage(path)) as service, background(service) as address:
        location = address.replace("://", f"://{'k' * 20}@")
        with cm.open(location, retries=0) as store:
            assert requests.get(f"{address}/health", timeout=PATIENCE).status_code == 200
            store["fine"] = 1
            with pytest.raises(cm.UnavailableError, match=OperatorError.for_clients):
                store.upload(b"12345", "media.bin")
            for _ in range(2):
                assert requests.get(f"{address}/health", timeout=PATIENCE).status_code == 503
                with pytest.raises(cm.UnavailableError, match=OperatorError.for_clients):
                    store["late"] = 1
            assert store["fine"] == 1
    assert f"The service is not healthy: {DAMAGED}" in caplog.text


def failure(code: int) -> sqlite3.Error:
    """Return an error of SQLite's with an extended result code."""
    error = sqlite3.OperationalError("something")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "lasts"),
    [
        (sqlite3.SQLITE_CORRUPT, True),
        (sqlite3.SQLITE_CORRUPT_VTAB, True),
        (sqlite3.SQLITE_NOTADB, True),
        (sqlite3.SQLITE_IOERR, True),
        (sqlite3.SQLITE_IOERR_READ, True),
        (sqlite3.SQLITE_IOERR_WRITE, True),
        (sqlite3.SQLITE_IOERR_SHORT_READ, True),
        (sqlite3.SQLITE_IOERR_FSYNC, True),
        (sqlite3.SQLITE_IOERR_SHMSIZE, False),  # of a full disk
        (sqlite3.SQLITE_IOERR_NOMEM, False),
        (sqlite3.SQLITE_BUSY, False),
        (sqlite3.SQLITE_FULL, False),
        (sqlite3.SQLITE_CANTOPEN, False),
        (sqlite3.SQLITE_READONLY, False),
        (sqlite3.SQLITE_ERROR, False),
    ],
)
def test_which_errors_last(code: int, lasts: bool) -> None:
    """An error of the file or disk lasts; one that passes by itself, or once there is room, doesn't."""
    damage = Damage()
    damage.note(failure(code))
    assert (damage.error is not None) is lasts


def test_after_a_commit_every_error_of_the_disk_lasts() -> None:
    """A commit that the disk failed in any way is the last; the module's own errors have no code, and pass."""
    damage = Damage()
    damage.note(sqlite3.ProgrammingError("no code"), committing=True)
    assert damage.error is None
    first = failure(sqlite3.SQLITE_IOERR_LOCK)
    damage.note(first, committing=True)
    damage.note(failure(sqlite3.SQLITE_CORRUPT))
    assert damage.error is first


@pytest.mark.parametrize("meet", ["read", "write", "savepoint", "connection"])
def test_every_connection_tells_the_store(path: Path, meet: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk in a read, a write, a part of one or a new connection is met by the store."""

    def fail(*_: object, **__: object) -> None:
        raise failure(sqlite3.SQLITE_IOERR_READ)

    with SQLiteStorage(path) as storage:
        if meet == "connection":
            monkeypatch.setattr(sqlite.sqlite3, "connect", fail)  # type: ignore[attr-defined]  # it imports that
        with pytest.raises(UnavailableError, match=FAILED):  # noqa: PT012 - one of them
            if meet == "write":
                with storage._session.transaction():
                    fail()
            elif meet == "savepoint":
                with storage._session.transaction(), storage._session.savepoint():
                    fail()
            else:
                with storage.read():
                    fail()
        monkeypatch.undo()
        assert storage.problem() == FAILED
        with pytest.raises(UnavailableError, match=FAILED):
            put(storage, "late")


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_start_on_a_damaged_store(path: Path, workers: str) -> None:
    """A service that is started on a damaged store isn't healthy from the start, and takes no save."""
    damage(path)
    log: list[str] = []
    with serving("--json", "--workers", workers, "--store", str(path), log=log) as process:
        address = told(process)["address"]
        for _ in range(6):  # so that each process is asked
            assert requests.get(f"{address}/health", timeout=PATIENCE).status_code == 503
            with (
                cm.open(address.replace("://", f"://{'k' * 20}@"), retries=0) as store,
                pytest.raises(cm.UnavailableError, match=OperatorError.for_clients),
            ):
                store["late"] = 1
    assert any(DAMAGED in line for line in log)


@pytest.mark.parametrize("tree", ["accounts", "api_keys", "sqlite_autoindex_files_1"])
def test_what_of_a_large_store_is_looked_at(path: Path, tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large store only the tables are looked at that every request needs: else it would take long to start."""
    damage(path, tree)
    with SQLiteStorage(path) as storage:
        monkeypatch.setattr(sqlite, "SOON", 0)
        storage.look_for_damage()
        assert (storage._session.damage.error is not None) is (tree != "sqlite_autoindex_files_1")
        monkeypatch.undo()
        storage.look_for_damage()
        assert storage.problem() == DAMAGED


def test_a_store_that_is_whole(path: Path) -> None:
    """A look at a store that is whole finds nothing."""
    with SQLiteStorage(path) as storage:
        storage.look_for_damage()
        assert storage.healthy()
        put(storage, "late")


@pytest.mark.parametrize("count", [False, True], ids=["", "counted"])
def test_each_line_of_the_log_has_a_time(path: Path, count: bool) -> None:
    """A service that ends with its file replaced logs each line with time and level, and leaves no -shm beside it."""
    log: list[str] = []
    with serving("--json", "--store", str(path), log=log) as process:
        address = told(process)["address"]
        with cm.open(address.replace("://", f"://{'k' * 20}@"), retries=0) as store:
            store["last"] = 1
            other = path.with_name("other.db")
            cm.open(other).close()
            other.replace(path)
            if count:
                assert store["last"] == 1
    assert log
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z (WARNING|ERROR) \S", line) for line in log), log
    assert not Path(f"{path}-shm").exists()
    assert not Path(f"{path}-wal").exists()
    assert len(list(path.parent.glob("*.lost"))) == 1
