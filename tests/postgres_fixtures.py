"""Two nodes on one PostgreSQL database, whose work is made to meet half-way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest

from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.postgres import PostgresStorage
from cloudstore_mapping.service.storage.sql import Transaction
from tests.postgres_proxy import Proxy
from tests.postgres_server import shared
from tests.service_fakes import PATIENCE

Work = Callable[[Transaction], Any]


@pytest.fixture
def address() -> str:
    """Return the address of an empty place for a store."""
    return shared.new_store()


@pytest.fixture
def here(address: str, no_threads_left: None) -> Iterator[PostgresStorage]:
    """Return one of two nodes."""
    with PostgresStorage(address) as storage:
        yield storage


@pytest.fixture
def there(address: str, here: PostgresStorage) -> Iterator[PostgresStorage]:
    """Return the other one."""
    with PostgresStorage(address) as storage:
        yield storage


@pytest.fixture
def proxy(no_threads_left: None) -> Iterator[Proxy]:
    """Return a way to the server that can be cut."""
    with Proxy(shared.socket) as proxy:
        yield proxy


class Halfway:
    """Work that stops at the call of `stop` within it until `go`; only the first time, where it is done again."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        self.times = 0

    def stop(self) -> None:
        """Let the test go on, and wait for it."""
        self.times += 1
        if self.times == 1:
            self.reached.set()
            assert self.go.wait(PATIENCE)

    def begin(self, storage: Storage, work: Work) -> Future[Any]:
        """Have the work done up to where it stops."""
        future = storage.submit(work)
        assert self.reached.wait(PATIENCE)
        return future


def wait_for_lock(address: str, sessions: int = 1) -> None:
    """Wait until so many sessions of this store wait for what others hold."""
    # Who waits for a row waits for the transaction of whoever has it, with a lock on the table that it was granted.
    query = (
        "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND pid IN (SELECT pid FROM pg_locks JOIN pg_class"
        " ON pg_class.oid = relation WHERE relnamespace = current_schema()::regnamespace)"
    )
    end = time.monotonic() + PATIENCE
    with psycopg.connect(address, autocommit=True) as connection:
        while connection.execute(query).fetchone() != (sessions,):
            assert time.monotonic() < end
            time.sleep(0.005)
