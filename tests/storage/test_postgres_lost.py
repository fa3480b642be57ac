"""Whenever a connection to PostgreSQL is lost, work is done once, or its outcome is said to be unknown."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial

import psycopg
import pytest

from cloudstore_mapping.errors import OutcomeUnknownError, TransportError, UnavailableError
from cloudstore_mapping.service.storage.base import OperatorError, Storage
from cloudstore_mapping.service.storage.postgres import PostgresStorage
from cloudstore_mapping.service.storage.sql import Transaction
from tests.postgres_fixtures import address, proxy, wait_for_lock
from tests.postgres_proxy import Cut, Proxy
from tests.postgres_server import shared
from tests.service_fakes import PATIENCE

__all__ = ["address", "proxy"]

#: The statement, and not the name of an isolation level.
COMMIT = b"COMMIT\0"


@pytest.fixture
def storage(address: str, proxy: Proxy) -> Iterator[PostgresStorage]:
    """Return a storage that reaches its database by `proxy`; a server soon gives up a session that says no more."""
    brief = "%20-cidle_in_transaction_session_timeout%3D300"
    with PostgresStorage(shared.by_port(address, proxy.port) + brief) as storage:
        yield storage


@pytest.fixture
def account(storage: PostgresStorage) -> int:
    """Return the id of an account."""
    return storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result(PATIENCE).id


def append(transaction: Transaction, account: int, more: bytes = b"+") -> bytes:
    """Add to a file's value, and return all of it."""
    file = transaction.get(account, "name")
    value = more if file is None else file.value + more
    transaction.put(account, "name", value, 1.0)
    return value


def value(storage: Storage, account: int) -> bytes | None:
    """Return the file's value."""
    with storage.read() as transaction:
        file = transaction.get(account, "name")
    return None if file is None else file.value


@pytest.mark.parametrize("when", list(Cut))
@pytest.mark.parametrize("text", [b"BEGIN", b"INTO writers", b"FROM files", COMMIT])
def test_work_is_done_once(storage: PostgresStorage, account: int, proxy: Proxy, text: bytes, when: Cut) -> None:
    """Wherever the connection is cut, before or after the server got the statement, the work is done, and once."""
    storage.submit(partial(append, account=account)).result(PATIENCE)
    proxy.cut(text, when)
    assert storage.submit(partial(append, account=account)).result(PATIENCE) == b"++"
    assert proxy.cuts == 1
    assert value(storage, account) == b"++"


def test_it_is_in_the_log(
    storage: PostgresStorage, account: int, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever runs a service reads once that the database was lost, and once that it is back."""
    with caplog.at_level(logging.WARNING):
        proxy.cut(COMMIT, Cut.AFTER, times=3)
        storage.submit(partial(append, account=account)).result(PATIENCE)
    lost, back = (record.getMessage() for record in caplog.records)
    assert lost.startswith("The connection to the database was lost, and writes wait for another: ")
    assert back.startswith("The database is reached again, after ")


def test_what_work_returned_stands(storage: PostgresStorage, account: int, proxy: Proxy) -> None:
    """Where a commit turns out to be done, the work is answered with what it returned then, and not done again."""
    done: list[bytes] = []

    def work(transaction: Transaction) -> bytes:
        done.append(append(transaction, account))
        return done[-1]

    proxy.cut(COMMIT, Cut.AFTER, times=2)
    assert storage.submit(work).result(PATIENCE) == b"+"
    assert proxy.cuts == 2
    assert done == [b"+"]
    assert value(storage, account) == b"+"


@pytest.fixture
def slow_commit(address: str, account: int) -> Iterator[psycopg.Connection]:
    """Return who makes commits wait as long as the transaction of this connection lasts."""
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION wait_for_test() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$ BEGIN"
            " LOCK TABLE gate IN ACCESS SHARE MODE; RETURN NULL; END $$; CREATE TABLE gate ();"
            " CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON files DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION wait_for_test()"
        )
        connection.execute("BEGIN; LOCK TABLE gate IN ACCESS EXCLUSIVE MODE")
        yield connection


def test_a_commit_that_is_still_under_way(
    storage: PostgresStorage, account: int, proxy: Proxy, slow_commit: psycopg.Connection, address: str
) -> None:
    """What may still be committed by a server that lost its client is not done beside that: whoever looks waits."""
    proxy.cut(COMMIT, Cut.AT)
    before = proxy.connections
    future = storage.submit(partial(append, account=account))
    wait_for_lock(address, sessions=2)  # for the gate, and for who waits for that
    assert proxy.connections > before
    assert not future.done()
    slow_commit.execute("ROLLBACK")
    assert future.result(PATIENCE) == b"+"
    assert value(storage, account) == b"+"


def test_the_first_commit_of_all_that_is_still_under_way(
    address: str, account: int, proxy: Proxy, slow_commit: psycopg.Connection
) -> None:
    """Whoever looks waits also where the mark that is looked for was never committed before."""
    with PostgresStorage(shared.by_port(address, proxy.port)) as storage:
        proxy.cut(COMMIT, Cut.AT)
        future = storage.submit(partial(append, account=account))
        wait_for_lock(address, sessions=2)
        slow_commit.execute("ROLLBACK")
        assert future.result(PATIENCE) == b"+"
        assert value(storage, account) == b"+"


def test_a_commit_that_the_server_gave_up(
    storage: PostgresStorage, account: int, proxy: Proxy, slow_commit: psycopg.Connection, address: str
) -> None:
    """What turns out not to be committed is done again."""
    proxy.cut(COMMIT, Cut.AT)
    future = storage.submit(partial(append, account=account))
    wait_for_lock(address, sessions=2)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 'gate'::regclass AND NOT granted"
        )
        slow_commit.execute("ROLLBACK")
    assert future.result(PATIENCE) == b"+"
    assert value(storage, account) == b"+"


@pytest.mark.parametrize(("text", "told"), [(b"INTO writers", OperatorError), (COMMIT, OutcomeUnknownError)])
def test_a_database_that_stays_away(address: str, proxy: Proxy, text: bytes, told: type[TransportError]) -> None:
    """What is not reached in time is unavailable; only where a commit was sent the outcome is unknown."""
    with PostgresStorage(shared.by_port(address, proxy.port), patience=0.0) as storage:
        account = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result(PATIENCE).id
        proxy.cut(text, Cut.BEFORE)
        proxy.closed = True
        error = storage.submit(partial(append, account=account)).exception(PATIENCE)
        assert type(error) is told
        proxy.cut_all()
        with pytest.raises(UnavailableError, match="not reached"):
            value(storage, account)
        assert not storage.healthy()
        proxy.closed = False
        assert storage.submit(partial(append, account=account)).result(PATIENCE) == b"+"
        assert storage.healthy()
        assert value(storage, account) == b"+"


def test_readers_begin_again(storage: PostgresStorage, account: int, proxy: Proxy) -> None:
    """A reader whose connection was lost before it read anything reads over another one."""
    storage.submit(partial(append, account=account)).result(PATIENCE)
    for _ in range(3):
        assert value(storage, account) == b"+"
        proxy.cut_all()


def test_a_reader_that_has_read_is_told(storage: PostgresStorage, account: int, proxy: Proxy) -> None:
    """What was read before the connection was lost can't be read on: it was of one moment that is gone."""

    def read_on() -> None:
        with storage.read() as transaction:
            transaction.names(account)
            proxy.cut_all()
            transaction.names(account)

    with pytest.raises(UnavailableError):
        read_on()
    assert value(storage, account) is None


def test_closing_doesn_t_wait_for_a_lost_database(storage: PostgresStorage, account: int, proxy: Proxy) -> None:
    """A storage that is closed while its database is away gives up what waits, at once."""
    proxy.closed = True
    proxy.cut_all()
    futures: list[Future[bytes]] = [storage.submit(partial(append, account=account)) for _ in range(3)]
    closing = threading.Thread(target=storage.close)
    closing.start()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert all(isinstance(future.exception(0), UnavailableError) for future in futures)
