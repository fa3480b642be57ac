"""PostgreSQL connections whose state is in doubt, after locks and changes of tables, are replaced; health tells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import psycopg
import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage import base, postgres
from cloudstore_mapping.service.storage.postgres import PostgresStorage
from cloudstore_mapping.service.storage.sql import Transaction
from tests.postgres_fixtures import address, proxy
from tests.postgres_proxy import Proxy
from tests.postgres_server import shared
from tests.service_fakes import PATIENCE

__all__ = ["address", "proxy"]


@contextmanager
def locked(address: str, table: str = "files", mode: str = "EXCLUSIVE") -> Iterator[None]:
    """Hold a table against all who write, as VACUUM FULL and ALTER TABLE do, while the block runs."""
    with psycopg.connect(address) as connection:
        connection.execute(f"LOCK TABLE {table} IN {mode} MODE")
        yield
        connection.rollback()


def save(transaction: Transaction, account: int, name: str = "name") -> bool:
    """Look whether a file is there, and save it."""
    there = transaction.get(account, name) is not None
    transaction.put(account, name, b"1", 1.0)
    return there


@pytest.mark.parametrize("before", range(8))
def test_saves_go_on_after_a_lock(address: str, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    """However many saves a connection has done, one that waited in vain for a table is the only one refused."""
    monkeypatch.setattr(postgres, "LOCK_WAIT", "1ms")
    with PostgresStorage(address) as storage:
        account = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result(PATIENCE).id
        for _ in range(before):
            storage.submit(partial(save, account=account)).result(PATIENCE)
        with locked(address):
            refused = storage.submit(partial(save, account=account)).exception(PATIENCE)
        assert isinstance(refused, UnavailableError)
        assert str(refused) == "Another process has locked the data to be written; try again."
        for _ in range(8):
            storage.submit(partial(save, account=account)).result(PATIENCE)
        assert storage.problem() is None


def test_a_table_is_changed(address: str) -> None:
    """Loads and saves go on, without an error, after a table has changed that their prepared statements are for."""
    with PostgresStorage(address) as storage, psycopg.connect(address, autocommit=True) as other:
        account = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result(PATIENCE).id
        for kind in ("varchar", "text"):
            for _ in range(8):
                storage.submit(partial(save, account=account)).result(PATIENCE)
                with storage.read() as one, storage.read() as two:  # over a connection each
                    assert one.get(account, "name") is not None
                    assert two.get(account, "name") is not None
            other.execute(f"ALTER TABLE files ALTER COLUMN version TYPE {kind}")


def test_a_failed_transaction_ends_its_connection(address: str, proxy: Proxy) -> None:
    """A connection on which a transaction failed for good isn't used again, whatever the reason was."""
    with PostgresStorage(shared.by_port(address, proxy.port)) as storage:
        account = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result(PATIENCE).id
        with psycopg.connect(address, autocommit=True) as other:
            other.execute(
                "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'No.'; END $$;"
                " CREATE CONSTRAINT TRIGGER failing AFTER INSERT ON files DEFERRABLE INITIALLY DEFERRED"
                " FOR EACH ROW EXECUTE FUNCTION fail()"
            )
        before = proxy.connections
        refused = storage.submit(partial(save, account=account)).exception(PATIENCE)
        assert str(refused) == "The database failed: No.."
        storage.submit(lambda transaction: transaction.has_accounts()).result(PATIENCE)
        assert proxy.connections == before + 1


@pytest.mark.parametrize("table", ["files", "accounts", "api_keys"])
def test_health_while_a_table_is_held(address: str, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    """While saves or loads are kept waiting by a lock, health says so in the end, and is well again after it."""
    monkeypatch.setattr(base, "OVERDUE", 0.0)
    monkeypatch.setattr(base, "PATIENCE", 0.05)
    mode = "EXCLUSIVE" if table == "files" else "ACCESS EXCLUSIVE"
    with PostgresStorage(address) as storage:
        with locked(address, table, mode):
            problem = storage.problem()
        assert (
            problem
            == {
                "files": "Saves wait for longer than 0 seconds; look which process holds the store.",
                "accounts": "The database answers too slowly; look for locks on its tables.",
                "api_keys": "The database answers too slowly; look for locks on its tables.",
            }[table]
        )
        storage.submit(lambda transaction: transaction.has_accounts()).result(PATIENCE)  # the probe has ended, too
        assert storage.problem() is None


@pytest.mark.parametrize("table", ["files", "accounts", "api_keys"])
def test_a_load_of_a_table_that_is_held(address: str, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    """A load waits for a table that another program holds for a bounded time, is refused, and goes on after it."""
    monkeypatch.setattr(postgres, "LOCK_WAIT", "1ms")
    monkeypatch.setattr(postgres, "READ_PATIENCE", 0.0)

    def load(storage: PostgresStorage) -> None:
        with storage.read() as transaction:
            transaction.account_of_key(b"")
            transaction.get(1, "name")

    with PostgresStorage(address) as storage:
        with locked(address, table, "ACCESS EXCLUSIVE"), pytest.raises(UnavailableError) as refused:
            load(storage)
        assert str(refused.value) == (
            "Another process has locked the data to be read; look for locks on its tables, or try again."
        )
        load(storage)


def test_health_asks_the_writer(address: str) -> None:
    """What refuses each save, though reads of accounts go well, makes it unhealthy at once."""
    with PostgresStorage(address) as storage, psycopg.connect(address, autocommit=True) as other:
        assert storage.problem() is None
        other.execute("ALTER TABLE files RENAME TO elsewhere")
        assert storage.problem() == 'The database failed: relation "files" does not exist.'
        other.execute("ALTER TABLE elsewhere RENAME TO files")
        assert storage.problem() is None
