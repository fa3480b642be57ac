"""One SQLite file between connections and processes: nobody waits in vain, nothing is lost."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage import sqlite
from cloudstore_mapping.service.storage.records import File
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.storage.sqlite import MAX_IDLE, SQLiteSession, SQLiteStorage
from cloudstore_mapping.service.storage.sqlite_files import INCREMENTAL
from tests.service_fakes import PATIENCE, Held, unversioned


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the file is."""
    return tmp_path / "store.db"


@pytest.fixture
def storage(path: Path, no_threads_left: None) -> Iterator[SQLiteStorage]:
    """Return a storage in that file alone."""
    with SQLiteStorage(path) as storage:
        yield storage


def names(storage: SQLiteStorage, account: int) -> list[str]:
    """Return the names of an account's files."""
    with storage.read() as transaction:
        return transaction.names(account)


def test_an_answered_write_is_seen_elsewhere(path: Path, storage: SQLiteStorage, account: int) -> None:
    """What is answered stands in the file for every other connection."""
    with SQLiteStorage(path) as other:
        storage.submit(lambda transaction: transaction.put(account, "name", b"1", 1.0)).result()
        with other.read() as transaction:
            assert unversioned(transaction.get(account, "name")) == File(b"1", None, None, "")


def test_nothing_is_answered_before_its_commit(path: Path, storage: SQLiteStorage, account: int) -> None:
    """While the transaction is open nobody else sees what was written in it, and its futures are not done."""
    written = storage.submit(lambda transaction: transaction.put(account, "before", b"1", 1.0))
    written.result()

    def write(transaction: Transaction) -> tuple[list[str], bool]:
        transaction.put(account, "within", b"1", 1.0)
        with SQLiteStorage(path) as other:
            return names(other, account), future.done()

    held = Held(storage)
    future = storage.submit(write)
    held.go.set()
    assert future.result(PATIENCE) == (["before"], False)
    assert names(storage, account) == ["before", "within"]


def test_twenty_that_wait_are_one_commit(storage: SQLiteStorage, account: int) -> None:
    """SQLite is told BEGIN and COMMIT once for all work that waits."""
    statements: list[str] = []

    def trace(transaction: Transaction) -> None:
        assert isinstance(transaction, SQLiteSession)
        transaction.connection.set_trace_callback(statements.append)

    storage.submit(trace).result()
    held = Held(storage)
    futures = [storage.submit(lambda transaction: transaction.put(account, "name", b"1", 1.0)) for _ in range(20)]
    statements.clear()
    held.go.set()
    for future in futures:
        future.result(PATIENCE)
    assert [text for text in statements if text in ("BEGIN IMMEDIATE", "COMMIT")] == [
        "COMMIT",  # of the one that was held
        "BEGIN IMMEDIATE",
        "COMMIT",
    ]


def test_reads_don_t_wait_for_the_writer(storage: SQLiteStorage, account: int) -> None:
    """While a write transaction stays open, reads are answered with what was committed before it."""
    storage.submit(lambda transaction: transaction.put(account, "name", b"1", 1.0)).result()
    held = Held(storage)
    assert names(storage, account) == ["name"]
    assert storage.healthy()
    assert not held.future.done()
    held.go.set()


def test_reads_don_t_wait_for_another_process(path: Path, storage: SQLiteStorage, account: int) -> None:
    """While somebody else's write transaction stays open, reads are answered."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM accounts")
        with storage.read() as transaction:
            assert transaction.account(account) is not None
        other.execute("ROLLBACK")


def test_a_read_is_of_one_moment(storage: SQLiteStorage, account: int) -> None:
    """What is committed while a read goes on is not seen by it, and is by the next."""
    with storage.read() as transaction:
        assert transaction.names(account) == []
        storage.submit(lambda transaction: transaction.put(account, "name", b"1", 1.0)).result(PATIENCE)
        assert transaction.names(account) == []
    assert names(storage, account) == ["name"]


def test_a_store_that_stays_locked_is_unavailable(
    path: Path, storage: SQLiteStorage, account: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another process doesn't let go of the file the answer is `UnavailableError`, and later all is well."""
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        locked = storage.submit(lambda transaction: transaction.put(account, "name", b"1", 1.0))
        with pytest.raises(UnavailableError, match=r"^Another process holds the store; try again\.$"):
            locked.result(PATIENCE)
        other.execute("ROLLBACK")
    storage.submit(lambda transaction: transaction.put(account, "later", b"1", 1.0)).result(PATIENCE)
    assert names(storage, account) == ["later"]


ADD_UP = """
import sys
from cloudstore_mapping.service.storage.records import File
from cloudstore_mapping.service.storage import sqlite
from cloudstore_mapping.service.storage import sqlite
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.service.storage.sqlite import SQLiteSession

account = int(sys.argv[2])


def add_one(transaction):
    file = transaction.get(account, "number") or File(b"0", None, None, "")
    transaction.put(account, "number", b"%d" % (int(file.value) + 1), 1.0)


with SQLiteStorage(sys.argv[1]) as storage:
    for _ in range(300):
        storage.submit(add_one).result()
"""


def test_two_processes_write_one_file(path: Path, storage: SQLiteStorage, account: int) -> None:
    """Two processes that each add one, 300 times, to the same number leave 600."""
    command = [sys.executable, "-c", ADD_UP, os.fspath(path), str(account)]
    with subprocess.Popen(command) as one, subprocess.Popen(command) as two:
        assert (one.wait(PATIENCE), two.wait(PATIENCE)) == (0, 0)
    with storage.read() as transaction:
        assert unversioned(transaction.get(account, "number")) == File(b"600", None, None, "")


LOOK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM files").fetchone()
connection.close()
"""


def test_opening_a_file_again_lets_go_of_no_lock(path: Path, storage: SQLiteStorage, account: int) -> None:
    """
    A second store on the same file in one process doesn't make other processes believe that nobody uses it.

    A POSIX lock goes with the first descriptor that is closed; then another process would take the log away.
    """
    storage.submit(lambda transaction: transaction.put(account, "name", b"1", 1.0)).result()
    SQLiteStorage(path).close()
    subprocess.run([sys.executable, "-c", LOOK, path], check=True, timeout=PATIENCE)
    assert path.with_name("store.db-wal").stat().st_size > 0


def test_few_connections_are_kept(storage: SQLiteStorage, account: int) -> None:
    """However many read at once, a few connections stay for the next readers, and are used again."""
    with ExitStack() as stack:
        first = {id(stack.enter_context(storage.read())) for _ in range(MAX_IDLE + 5)}
    assert len(first) == MAX_IDLE + 5
    assert len(storage._idle) == MAX_IDLE
    with ExitStack() as stack:
        assert {id(stack.enter_context(storage.read())) for _ in range(MAX_IDLE)} <= first


def test_a_read_that_outlives_the_close_ends_well(storage: SQLiteStorage, account: int) -> None:
    """Whoever reads while the store is closed reads to the end, and the connection is closed after that."""
    with storage.read() as transaction:
        storage.close()
        assert transaction.names(account) == []
        assert isinstance(transaction, SQLiteSession)
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        transaction.connection.execute("SELECT 1")


class FakeTime:
    """Stands still, and ends another connection's transaction at the first wait."""

    def __init__(self, other: sqlite3.Connection) -> None:
        self._other = other
        self.now = 100.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Note the pause, and end the transaction."""
        self.pauses.append(seconds)
        if self._other.in_transaction:
            self._other.rollback()


@pytest.mark.parametrize("kind", [0, INCREMENTAL])
def test_compacting_waits_for_another_process(path: Path, monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    """Each statement of `compact` waits while another process writes, also for a file of an older version."""
    monkeypatch.setattr("cloudstore_mapping.service.storage.migrations.INCREMENTAL", kind)
    with SQLiteStorage(path) as storage, closing(sqlite3.connect(path, check_same_thread=False)) as other:
        account = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result().id
        storage.submit(lambda transaction: transaction.put(account, "name", bytes(100_000), 1.0)).result()
        storage.submit(lambda transaction: transaction.delete(account, "name")).result()
        time = FakeTime(other)
        monkeypatch.setattr(sqlite, "time", time)
        session = storage._session.connection
        statements: list[str] = []

        def lock(statement: str) -> None:
            if not session.in_transaction and statement not in statements:
                statements.append(statement)
                other.execute("ROLLBACK" if other.in_transaction else "SELECT 1")
                other.execute("BEGIN IMMEDIATE")

        session.set_trace_callback(lock)  # called before each statement
        storage.compact()
        session.set_trace_callback(None)
        assert {"VACUUM", "BEGIN IMMEDIATE"} <= {*statements}
        assert len(time.pauses) >= 2
        with storage.read() as transaction:
            assert isinstance(transaction, SQLiteSession)
            assert transaction.row("PRAGMA freelist_count") == (0,)
            assert transaction.row("PRAGMA auto_vacuum") == (INCREMENTAL,)


def test_a_process_lets_others_write_first(
    path: Path, storage: SQLiteStorage, account: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that met another's transaction pauses before its own for a second; SQLite has no queue of who waits."""
    with closing(sqlite3.connect(path, check_same_thread=False)) as other:
        time = FakeTime(other)
        monkeypatch.setattr(sqlite, "time", time)

        def save() -> list[float]:
            time.pauses.clear()
            storage.submit(lambda transaction: transaction.put(account, "name", b"1", 1.0)).result()
            return [*time.pauses]

        assert save() == []
        other.execute("BEGIN IMMEDIATE")
        assert save() == [sqlite.FIRST_PAUSE]
        assert save() == [sqlite.YIELD]
        time.now += sqlite.POLITE_FOR
        assert save() == []
