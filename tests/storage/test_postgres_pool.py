"""Connections for readers: so many at a time, kept for the next one, and given up together where the server is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage.postgres_connection import Connection
from cloudstore_mapping.service.storage.postgres_pool import ReaderPool
from tests.service_fakes import PATIENCE

LOST = psycopg.OperationalError("The server is not there.")


class FakeConnection:
    """A connection to nothing."""

    def __init__(self) -> None:
        self.transaction_status = TransactionStatus.IDLE
        self.closed = False

    @property
    def info(self) -> FakeConnection:
        """What is known of it."""
        return self

    def close(self) -> None:
        """Close it."""
        self.closed = True
        self.transaction_status = TransactionStatus.UNKNOWN


class Server:
    """Makes connections, unless it is lost."""

    def __init__(self) -> None:
        self.made: list[FakeConnection] = []
        self.is_lost = False

    def connect(self) -> Connection:
        """Return a new connection."""
        if self.is_lost:
            raise LOST
        self.made.append(FakeConnection())
        return cast("Connection", self.made[-1])

    @property
    def open(self) -> int:
        """How many are open."""
        return sum(not each.closed for each in self.made)


@pytest.fixture
def server() -> Server:
    """Return a server."""
    return Server()


@pytest.fixture
def pool(server: Server) -> Iterator[ReaderPool]:
    """Return two connections to it, which are closed in the end."""
    pool = ReaderPool(server.connect, 2)
    yield pool
    pool.close()
    assert server.open == 0


def test_one_is_used_again(pool: ReaderPool, server: Server) -> None:
    """What was given back is what the next one gets."""
    first = pool.take(0)
    pool.give_back(first)
    assert pool.take(0) is first
    pool.give_back(first)
    assert len(server.made) == 1


def test_no_more_than_there_may_be(pool: ReaderPool, server: Server) -> None:
    """Where others have all it is waited, and then said so; one that is given back goes to who waits."""
    taken = [pool.take(0), pool.take(0)]
    with pytest.raises(UnavailableError, match="waits for its database"):
        pool.take(0)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.take, PATIENCE)
        pool.give_back(taken[0])
        assert waiting.result(PATIENCE) is taken[0]
    for each in taken:
        pool.give_back(each)
    assert len(server.made) == 2


@pytest.mark.parametrize("status", [TransactionStatus.INTRANS, TransactionStatus.INERROR, TransactionStatus.UNKNOWN])
def test_one_that_is_not_as_new(pool: ReaderPool, server: Server, status: TransactionStatus) -> None:
    """What is within a transaction, or lost, is closed, and leaves its place to another."""
    for _ in range(3):
        taken = pool.take(0)
        server.made[-1].transaction_status = status
        pool.give_back(taken)
    assert (len(server.made), server.open) == (3, 0)


def test_one_that_is_given_back_late(pool: ReaderPool, server: Server) -> None:
    """What somebody still has when all is closed is closed when it comes back."""
    taken = pool.take(0)
    pool.close()
    assert server.open == 1
    pool.give_back(taken)
    assert server.open == 0


def attempt(pool: ReaderPool, patience: float = 0.0) -> None:
    """Try to reach the server."""
    with pool.attempt(patience):
        pool.give_back(pool.take(0))


def test_a_lost_server(pool: ReaderPool, server: Server) -> None:
    """What is kept is closed with the one that was lost; who doesn't reach it is told so, until it is back."""
    attempt(pool)
    server.is_lost = True
    with pytest.raises(psycopg.OperationalError), pool.attempt(0.0):
        raise LOST
    assert server.open == 0
    assert (pool.is_given_up(0.0), pool.is_given_up(PATIENCE)) == (True, False)
    with pytest.raises(psycopg.OperationalError):
        attempt(pool)
    server.is_lost = False
    attempt(pool)
    assert not pool.is_given_up(0.0)


def test_one_looks_for_all(pool: ReaderPool) -> None:
    """While somebody looks for a server that is given up, which may take long, the others are told at once."""
    with pytest.raises(psycopg.OperationalError), pool.attempt(0.0):
        raise LOST
    looking, go = threading.Event(), threading.Event()

    def look() -> None:
        with pool.attempt(0.0):
            looking.set()
            assert go.wait(PATIENCE)

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(look)
        assert looking.wait(PATIENCE)
        with pytest.raises(psycopg.OperationalError, match="not there"):
            attempt(pool)
        attempt(pool, PATIENCE)  # who is more patient looks as well
        go.set()
        first.result(PATIENCE)
    attempt(pool)


def test_an_error_that_is_no_loss(pool: ReaderPool) -> None:
    """What a server refuses doesn't mean that it is lost."""
    with pytest.raises(psycopg.errors.UndefinedTable), pool.attempt(0.0):
        raise psycopg.errors.UndefinedTable("no such table")
    assert not pool.is_given_up(0.0)
