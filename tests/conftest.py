"""Fixtures that several test files share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from tests.mapping_fixtures import connect, counted, make_store, store
from tests.service_fakes import Asker, FakeHasher, ManualClock

__all__ = ["connect", "counted", "make_store", "store"]  # fixtures for all, defined beside

#: How a new, empty storage of each engine is made; a test of what all have in common runs on each of them.
ENGINES: dict[str, Callable[[Path], Storage]] = {
    "memory": lambda _: SQLiteStorage(None),
    "sqlite": lambda folder: SQLiteStorage(folder / "store.db"),
}


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    """Check that every thread which the test started has ended."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture(params=ENGINES)
def storage(request: pytest.FixtureRequest, tmp_path: Path, no_threads_left: None) -> Iterator[Storage]:
    """Return an empty storage, once for each engine."""
    with ENGINES[request.param](tmp_path) as storage:
        yield storage


@pytest.fixture
def account(storage: Storage) -> int:
    """Return the id of an account."""
    return storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result().id


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands still."""
    return ManualClock()


@pytest.fixture
def hasher() -> FakeHasher:
    """Return a hasher that is quick, and counts."""
    return FakeHasher()


@pytest.fixture
def service(clock: ManualClock, hasher: FakeHasher, no_threads_left: None) -> Iterator[Service]:
    """Return a service in memory, without accounts."""
    with Service(SQLiteStorage(None), clock=clock, hasher=hasher) as service:
        yield service
        hasher.gate.set()  # where a test failed before it came to that


@pytest.fixture
def ask(service: Service) -> Asker:
    """Return somebody with the account "owner" who asks `service`."""
    return Asker(service, service.accounts.create("owner"))
