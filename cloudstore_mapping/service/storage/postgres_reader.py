"""What reads a PostgreSQL database: a snapshot of it, over a connection of a pool."""

# ruff: noqa: D102 - what is without a docstring has it in `statements`
from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

import psycopg

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage.postgres_connection import Connection, Cursor, sql
from cloudstore_mapping.service.storage.postgres_errors import (
    LOCK_NOT_AVAILABLE,
    RETRY_AFTER,
    STALE,
    is_lost,
    unavailable,
)
from cloudstore_mapping.service.storage.postgres_pool import ReaderPool
from cloudstore_mapping.service.storage.postgres_session import PostgresSession

#: Seconds between two tries to reach a lost server, which double up to the longest.
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 0.8
#: Seconds that a connection is waited for which others have, however impatient one is.
LEAST_WAIT: Final = 1.0

_SIZE: Final = (
    "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class"
    " WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"
)
_HELD: Final = "Another process holds what is to be read; look which one holds the database's tables, or try again."
_BEGIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class PostgresReader(PostgresSession):
    """
    Reads what was committed before its first statement, and nothing of what comes after.

    It takes a connection with the first statement, and opens its transaction together with that, in one round trip.
    Until then nothing was read, so where the connection turns out to be lost another one is as good, for which it looks
    for `patience` seconds, and no longer once `closing` is set. A connection whose reader failed isn't used again.
    """

    def __init__(
        self,
        pool: ReaderPool,
        *,
        has_trigrams: bool,
        patience: float,
        closing: threading.Event,
        statement_timeout: float | None = None,
    ) -> None:
        super().__init__(has_trigrams=has_trigrams)
        self._pool = pool
        self._patience = patience
        self._closing = closing
        self._connection: Connection | None = None
        self._statement_timeout = statement_timeout

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let the block read."""
        try:
            try:
                yield
            except psycopg.Error as error:
                if self._connection is not None:
                    self._connection.close()
                if error.sqlstate in STALE:
                    self._pool.close_idle()
                raise
            finally:
                self._end()
        except psycopg.Error as error:
            if error.sqlstate == LOCK_NOT_AVAILABLE:
                raise UnavailableError(_HELD, retry_after=RETRY_AFTER) from error
            raise unavailable(error) from error

    def _run(self, query: str, parameters: tuple[Any, ...]) -> Cursor:
        if self._connection is None:
            return self._begin(query, parameters)
        return self._connection.execute(sql(query), parameters, binary=True)

    def _begin(self, query: str, parameters: tuple[Any, ...]) -> Cursor:
        pause = FIRST_PAUSE
        stale = 0
        while True:
            try:
                with self._pool.attempt(self._patience):
                    return self._try_to_begin(query, parameters)
            except psycopg.Error as error:
                stale += error.sqlstate in STALE
                if stale == 1 and error.sqlstate in STALE:
                    continue  # over a new connection
                if not is_lost(error) or self._closing.is_set() or self._pool.is_given_up(self._patience):
                    raise
            self._closing.wait(pause * random.uniform(0.5, 1))  # noqa: S311 - not for a secret
            pause = min(2 * pause, LONGEST_PAUSE)

    def _try_to_begin(self, query: str, parameters: tuple[Any, ...]) -> Cursor:
        connection = self._pool.take(max(self._patience, LEAST_WAIT))
        pipeline = ExitStack()
        try:
            pipeline.enter_context(connection.pipeline())
            connection.execute(_BEGIN)
            if self._statement_timeout is not None:
                connection.execute(f"SET LOCAL statement_timeout = {self._statement_timeout * 1000:.0f}")
            cursor = connection.execute(sql(query), parameters, binary=True)
            pipeline.close()
        except BaseException:
            connection.close()
            with suppress(psycopg.Error):
                pipeline.close()
            self._pool.give_back(connection)
            raise
        self._connection = connection
        return cursor

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.execute("COMMIT")
        except psycopg.Error:  # what was read was read; it is not used again
            connection.close()
        finally:
            self._pool.give_back(connection)

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
