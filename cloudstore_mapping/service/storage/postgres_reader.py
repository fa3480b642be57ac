"""What reads a PostgreSQL database: a snapshot of it, over a connection of a pool."""

# ruff: noqa: D102 - what is without a docstring has it in `statements`
from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
import psycopg_pool

from cloudstore_mapping.service.storage.postgres_connection import Connection, Cursor, sql
from cloudstore_mapping.service.storage.postgres_errors import is_lost, unavailable
from cloudstore_mapping.service.storage.postgres_session import PostgresSession

#: Seconds that a reader waits for a connection, and after which it looks whether a lost server is back.
PATIENCE: Final = 10.0
LOOK_EVERY: Final = 0.5

_SIZE: Final = (
    "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class"
    " WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"
)
_BEGIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class PostgresReader(PostgresSession):
    """
    Reads what was committed before its first statement, and nothing of what comes after.

    It takes a connection with the first statement, and opens its transaction together with that, in one round trip.
    Until then nothing was read, so where the connection turns out to be lost another one is as good.
    """

    def __init__(
        self, pool: psycopg_pool.ConnectionPool[Connection], *, has_trigrams: bool, patience: float = PATIENCE
    ) -> None:
        super().__init__(has_trigrams=has_trigrams)
        self._pool = pool
        self._patience = patience
        self._connection: Connection | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let the block read."""
        try:
            try:
                yield
            finally:
                self._end()
        except psycopg.Error as error:
            raise unavailable(error) from error

    def _run(self, query: str, parameters: tuple[Any, ...]) -> Cursor:
        if self._connection is None:
            return self._begin(query, parameters)
        return self._connection.execute(sql(query), parameters, binary=True)

    def _begin(self, query: str, parameters: tuple[Any, ...]) -> Cursor:
        end = time.monotonic() + self._patience
        while True:
            connection = self._take(end)
            try:
                with connection.pipeline():
                    connection.execute(_BEGIN)
                    cursor = connection.execute(sql(query), parameters, binary=True)
            except BaseException as error:
                connection.close()
                self._pool.putconn(connection)
                if not (isinstance(error, psycopg.Error) and is_lost(error)) or time.monotonic() > end:
                    raise
            else:
                self._connection = connection
                return cursor

    def _take(self, end: float) -> Connection:
        while True:
            try:
                return self._pool.getconn(LOOK_EVERY)
            except psycopg_pool.PoolTimeout:  # in each wait the pool tries to connect
                if time.monotonic() > end:
                    raise

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.execute("COMMIT")
        except psycopg.Error:  # what was read was read; it is not used again
            connection.close()
        finally:
            self._pool.putconn(connection)

    def size_of_tables(self) -> int:
        """Return how many bytes all tables and their indexes take."""
        return int(self.row(_SIZE)[0])

    def do(self, query: str, *parameters: Any) -> None:
        self._run(query, parameters)

    def count(self, query: str, *parameters: Any) -> int:
        return self._run(query, parameters).rowcount

    def _hold_account(self, account_id: int) -> None:
        pass  # who only reads decides nothing

    def _put(self, account_id: int, name: str, value: bytes, version: str, now: float) -> None:
        raise NotImplementedError("A transaction that reads can't write.")
