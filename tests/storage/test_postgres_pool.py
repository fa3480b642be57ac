"""Connection pool: as many connections as there are and may be, shared by threads, replaced when they are lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import psycopg
import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage import postgres
from cloudstore_mapping.service.storage.postgres import ConnectionPool
from cloudstore_mapping.service.storage.postgres_session import Link
from tests.service_fakes import PATIENCE

LOST = psycopg.OperationalError("The server is not there.")
FULL = psycopg.errors.TooManyConnections("too many clients already")


class FakeLink:
    """A connection to nothing."""

    writer = "writer"

    def __init__(self) -> None:
        self.is_free = True
        self.is_lost = False
        self.said_farewell = False

    def is_stale(self) -> bool:
        """Return whether it is of no use."""
        return self.is_lost or self.said_farewell

    def close(self) -> None:
        """Close it."""
        self.is_lost = True


class Server:
    """Makes connections, unless it is lost, or has no room for more."""

    def __init__(self) -> None:
        self.made: list[FakeLink] = []
        self.is_lost = False
        self.room = 100

    def connect(self) -> Link:
        """Return a new connection."""
        if self.is_lost:
            raise LOST
        if self.open >= self.room:
            raise FULL
        self.made.append(FakeLink())
        return cast("Link", self.made[-1])

    @property
    def open(self) -> int:
        """How many are open."""
        return sum(not each.is_lost for each in self.made)


@pytest.fixture
def server() -> Server:
    """Return what connections are made by."""
    return Server()


@pytest.fixture
def pool(server: Server) -> ConnectionPool:
    """Return a pool of three connections at most."""
    return ConnectionPool(server.connect, 3)


def test_connections_are_used_again(pool: ConnectionPool, server: Server) -> None:
    """A connection that was given back is used by the next one; of several the one that was used last."""
    taken = [pool.take(0) for _ in range(3)]
    for each in taken:
        pool.give_back(each)
    assert pool.take(0) is taken[-1]
    assert len(server.made) == 3


def test_who_waits_in_vain(pool: ConnectionPool) -> None:
    """A thread for which there is no connection in time is told so."""
    for _ in range(3):
        pool.take(0)
    with pytest.raises(UnavailableError, match="waits for its database"):
        pool.take(0)


def test_who_waits_gets_what_is_given_back(pool: ConnectionPool) -> None:
    """A thread that waits goes on with the connection of another one."""
    taken = [pool.take(0) for _ in range(3)]
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.take, PATIENCE)
        pool.give_back(taken[0])
        assert waiting.result(PATIENCE) is taken[0]


def test_a_server_without_room_for_more(pool: ConnectionPool, server: Server) -> None:
    """Where the server takes no more connections, the pool goes on with those that it has."""
    server.room = 1
    only = pool.take(0)
    with pytest.raises(UnavailableError, match="waits for its database"):
        pool.take(0)
    pool.give_back(only)
    assert pool.take(0) is only
    assert len(server.made) == 1


def test_a_server_without_room_for_any(pool: ConnectionPool, server: Server) -> None:
    """Where the server takes no connection at all, its reason is told."""
    server.room = 0
    with pytest.raises(psycopg.errors.TooManyConnections):
        pool.take(0)


def test_connections_that_are_of_no_use(pool: ConnectionPool, server: Server) -> None:
    """A connection within a transaction, or lost, or to which the server said farewell, leaves its place to another."""
    for change in ("is_free", "is_lost", "said_farewell"):
        taken = pool.take(0)
        setattr(server.made[-1], change, change != "is_free")
        pool.give_back(taken)
    assert pool.take(0) is cast("Link", server.made[-1])
    assert (len(server.made), server.open) == (4, 1)


def test_connections_that_nobody_needs(pool: ConnectionPool, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that nobody used for a while are closed."""
    taken = [pool.take(0) for _ in range(2)]
    pool.give_back(taken[0])
    monkeypatch.setattr(postgres, "IDLE_FOR", -1.0)
    pool.give_back(taken[1])
    assert server.open == 0


def test_one_that_is_given_back_late(pool: ConnectionPool, server: Server) -> None:
    """A connection that somebody still has when all are closed is closed when it comes back."""
    taken = pool.take(0)
    pool.close()
    assert server.open == 1
    pool.give_back(taken)
    assert server.open == 0


def attempt(pool: ConnectionPool, patience: float = 0.0) -> None:
    """Try to reach the server."""
    with pool.attempt(patience):
        pool.give_back(pool.take(0))


def test_a_lost_server(pool: ConnectionPool, server: Server) -> None:
    """With one connection that is lost all free ones are closed; the loss is known until the server is back."""
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


def test_one_looks_for_all(pool: ConnectionPool) -> None:
    """While a thread looks for a server that is given up, which may take long, the others are told at once."""
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


def test_an_error_that_is_no_loss(pool: ConnectionPool) -> None:
    """A statement that a server refuses doesn't mean that it is lost."""
    with pytest.raises(psycopg.errors.UndefinedTable), pool.attempt(0.0):
        raise psycopg.errors.UndefinedTable("no such table")
    assert not pool.is_given_up(0.0)
