"""Where a commit has to reach a standby too, none is answered before it did, whatever ends the waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial

import psycopg
import pytest
from psycopg import sql

from cloudstore_mapping.errors import OutcomeUnknownError
from cloudstore_mapping.service.storage.postgres import PostgresStorage
from cloudstore_mapping.service.storage.sql import Transaction
from tests.postgres_server import QUICK, PostgresServer, programs
from tests.service_fakes import PATIENCE

WAITING = "SELECT pid, query_start FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Return a server of its own, for whether commits wait is a setting of all of it."""
    server = PostgresServer(programs(), **QUICK)
    try:
        server.make()
        server.start()
        PostgresStorage(server.database()).close()
        yield server
    finally:
        server.remove()


class Standbys:
    """Tells a server to wait for a standby that isn't there, or for none."""

    def __init__(self, server: PostgresServer) -> None:
        self.address = server.database()

    def wait_for(self, name: str) -> None:
        """Let commits wait for this standby; an empty name is none."""
        with psycopg.connect(self.address, autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
            connection.execute("SELECT pg_reload_conf()")
            end = time.monotonic() + PATIENCE
            while connection.execute("SHOW synchronous_standby_names").fetchone() != (name,):
                assert time.monotonic() < end
                time.sleep(0.01)

    def who_waits(self, since: datetime | None = None) -> tuple[int, datetime]:
        """Return the process that waits for the standby, and since when; once one does, later than another did."""
        end = time.monotonic() + PATIENCE
        with psycopg.connect(self.address, autocommit=True) as connection:
            while True:
                row = connection.execute(WAITING).fetchone()
                if row is not None and (since is None or row[1] > since):
                    return row[0], row[1]
                assert time.monotonic() < end
                time.sleep(0.01)

    def end(self, process: int, how: str) -> None:
        """End what a server's process does, as whoever runs it would."""
        with psycopg.connect(self.address, autocommit=True) as connection:
            connection.execute(sql.SQL("SELECT {}(%s)").format(sql.Identifier(how)), (process,))


@pytest.fixture
def standbys(server: PostgresServer) -> Iterator[Standbys]:
    """Return what tells the server whether to wait; in the end it waits for none."""
    standbys = Standbys(server)
    yield standbys
    standbys.wait_for("")


def add(transaction: Transaction, name: str) -> bool:
    """Add an account, and tell whether there was none of that name."""
    if transaction.account_named(name) is not None:
        return False
    transaction.add_account(name, 1.0)
    return True


@pytest.mark.parametrize("ended", ["pg_terminate_backend", "pg_cancel_backend"])
def test_one_that_is_ended_while_it_waits(server: PostgresServer, standbys: Standbys, ended: str) -> None:
    """
    A commit that the server did, but did not see through, is not answered before the standby has it, and done once.

    One that is told to wait no longer calls that a success, and only warns.
    """
    standbys.wait_for("nobody")
    with PostgresStorage(server.database()) as storage:
        future = storage.submit(partial(add, name=ended))
        process, since = standbys.who_waits()
        standbys.end(process, ended)
        standbys.who_waits(since)
        assert not future.done()
        standbys.wait_for("")
        assert future.result(PATIENCE) is True


def test_one_that_is_never_seen_through(server: PostgresServer, standbys: Standbys) -> None:
    """Where it stays so for as long as is waited, the outcome is unknown."""
    standbys.wait_for("nobody")
    with PostgresStorage(server.database(), patience=0.0) as storage:
        future = storage.submit(partial(add, name="unknown"))
        standbys.end(standbys.who_waits()[0], "pg_cancel_backend")
        assert isinstance(future.exception(PATIENCE), OutcomeUnknownError)
        standbys.wait_for("")
        assert storage.submit(partial(add, name="unknown")).result(PATIENCE) is False
