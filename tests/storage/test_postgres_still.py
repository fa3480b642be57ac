"""A PostgreSQL server that stands still, or has no room, is an error within the deadline, and never a hang."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from cloudstore_mapping.errors import OutcomeUnknownError, UnavailableError
from cloudstore_mapping.service.storage import postgres_session
from cloudstore_mapping.service.storage.postgres import PostgresStorage
from cloudstore_mapping.service.storage.sql import Transaction
from tests.postgres_fixtures import address, proxy
from tests.postgres_proxy import Cut, Proxy
from tests.postgres_server import shared
from tests.service_fakes import PATIENCE

__all__ = ["address", "proxy"]


@pytest.fixture
def storage(address: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresStorage]:
    """Return a storage that takes a server for lost soon, and has one connection."""
    with PostgresStorage(shared.by_port(address, proxy.port) + "&connect_timeout=1", patience=0.0) as storage:
        storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result(PATIENCE)
        monkeypatch.setattr(postgres_session, "ANSWER_WAIT", 0.1)
        yield storage
        proxy.still = False
        proxy.cut_all()


def load(storage: PostgresStorage) -> bool:
    """Read something."""
    with storage.read() as transaction:
        return transaction.has_accounts()


def put(transaction: Transaction) -> None:
    """Write something."""
    transaction.put(1, "name", b"1", 1.0)


def test_loads_saves_and_health_while_it_stands_still(storage: PostgresStorage, proxy: Proxy) -> None:
    """While the server doesn't answer, loads, saves and health say so; afterwards all go on."""
    proxy.still = True
    for _ in range(2):  # over the connection that there was, and over a new one
        with pytest.raises(UnavailableError, match="does not answer"):
            load(storage)
        refused = storage.submit(put).exception(PATIENCE)
        assert isinstance(refused, UnavailableError)
        assert "does not answer" in str(refused)
    assert storage.problem() is not None
    proxy.still = False
    assert load(storage)
    storage.submit(put).result(PATIENCE)
    assert storage.problem() is None


def test_a_commit_that_is_not_answered(storage: PostgresStorage, proxy: Proxy) -> None:
    """Where the server stands still at a commit, the outcome is unknown."""

    def work(transaction: Transaction) -> None:
        put(transaction)
        transaction.has_accounts()
        proxy.cut(b"COMMIT\0", Cut.BEFORE)
        proxy.closed = True

    assert isinstance(storage.submit(work).exception(PATIENCE), OutcomeUnknownError)


def test_closing_while_it_stands_still(storage: PostgresStorage, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that is closed waits for an answer no longer than a moment, whatever the deadline is."""
    monkeypatch.setattr(postgres_session, "ANSWER_WAIT", 1000.0)
    monkeypatch.setattr(postgres_session, "CLOSING_WAIT", 0.1)
    proxy.still = True
    futures = [storage.submit(put) for _ in range(3)]
    closing = threading.Thread(target=storage.close)
    closing.start()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert all(isinstance(future.exception(0), UnavailableError) for future in futures)
