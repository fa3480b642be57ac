"""The engine for many nodes: a PostgreSQL database that all of them share."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from functools import partial
from typing import Final, TypeVar

import psycopg

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage import group_commit
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.group_commit import GroupWriter, check_open
from cloudstore_mapping.service.storage.postgres_connection import (
    connect,
    label_of,
    parameters_of,
    without_secrets,
)
from cloudstore_mapping.service.storage.postgres_errors import READ_ONLY_SENTENCE, unavailable
from cloudstore_mapping.service.storage.postgres_migrations import Older, has_trigrams, migrate, newest, schema_of
from cloudstore_mapping.service.storage.postgres_pool import ReaderPool
from cloudstore_mapping.service.storage.postgres_reader import PostgresReader
from cloudstore_mapping.service.storage.postgres_writer import PostgresWriter
from cloudstore_mapping.service.storage.sql import Transaction

__all__ = ["PostgresStorage", "label_of", "newest_schema", "schema_number", "without_secrets"]

T = TypeVar("T")

#: Connections that read at a time: as many as the threads of a service that may ask for one.
MAX_READERS: Final = 24
#: A key of an index takes 2,704 bytes, and a character that is written as two takes one in a name.
MAX_NAME_BYTES: Final = 1300
#: How long a load waits for a table that another program holds (VACUUM FULL, ALTER TABLE, a forgotten transaction).
READ_LOCK_WAIT: Final = "10s"
#: Seconds for which a lost database is waited for: enough for another server to take over, and less than clients wait.
PATIENCE: Final = 12.0

# A standby, or a server whose owner lets it only be read. The reader's own transaction is read-only anyway.
_TAKES_NO_WRITES: Final = "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean"


def schema_number(address: str) -> int:
    """Return the number of the schema that a database has, 0 for none; raises as `PostgresStorage` does."""
    try:
        with closing(connect(parameters_of(address))) as connection:
            return schema_of(connection).version
    except psycopg.Error as error:
        raise unavailable(error) from error


def newest_schema() -> int:
    """Return the number of today's schema."""
    return newest()


class PostgresStorage(Storage):
    """
    Keeps all accounts and files in the database at a PostgreSQL `address`, in tables that are made if there are none.

    Any number of processes may use one database, and threads may share the storage, but a forked process has to open
    it anew. Raises `ValueError` for an address that can't be understood, `UnavailableError` where the database isn't
    reached, and `UnsupportedError` where its tables aren't ours, or of a newer version. A database that is `to_fill` is
    a store only after `end_filling`. One of an older version is migrated, or refused where it must not be: see
    `migrate`. A database that is lost later is waited for `patience` seconds.
    """

    waits = True
    max_name_bytes = MAX_NAME_BYTES

    def __init__(
        self,
        address: str,
        *,
        to_fill: bool = False,
        patience: float = PATIENCE,
        older: Older = "migrate",
        renames: bool = False,
    ) -> None:
        parameters = parameters_of(address)
        self._patience = patience
        self._closed = False
        self._process = os.getpid()
        self._closing = threading.Event()
        try:
            with closing(connect(parameters)) as connection:
                migrate(connection, label_of(address), to_fill=to_fill, older=older, renames=renames)
                self._has_trigrams = has_trigrams(connection)
        except psycopg.Error as error:
            raise unavailable(error) from error
        opened = partial(connect, parameters)
        self._session = PostgresWriter(
            opened, has_trigrams=self._has_trigrams, patience=patience, closing=self._closing
        )
        self._pool = ReaderPool(partial(connect, parameters, lock_timeout=READ_LOCK_WAIT), MAX_READERS)
        self._writer = GroupWriter(self._session, self._session.close)
        self._probe = group_commit.HealthProbe(
            partial(self._writer.submit, PostgresWriter.check_room, group_commit.QUEUE)
        )

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Return a transaction to read with, on the caller's thread: all it reads is of one moment."""
        with self._reading() as reader:
            yield reader

    @contextmanager
    def _reading(
        self, patience: float | None = None, statement_timeout: float | None = None
    ) -> Iterator[PostgresReader]:
        check_open(self._process, closed=self._closed)
        reader = PostgresReader(
            self._pool,
            has_trigrams=self._has_trigrams,
            patience=self._patience if patience is None else patience,
            closing=self._closing,
            statement_timeout=statement_timeout,
        )
        with reader.open():
            yield reader

    def submit(self, work: Callable[[Transaction], T], account: Hashable = None, size: int = 0) -> Future[T]:
        """Run `work` in a writing transaction; the future completes after the commit is on disk."""
        check_open(self._process, closed=self._closed)
        return self._writer.submit(work, account, size)

    def others_wait(self, account: Hashable) -> bool:
        """Return True in the middle of an account's work if other work waits to be written."""
        return self._writer.others_wait(account)

    def hold(self, account: Hashable) -> None:
        """Begin no more work of an account until `release`; only in the middle of its work."""
        self._writer.hold(account)

    def release(self, account: Hashable) -> None:
        """Do the work of an account again that was held."""
        self._writer.release(account)

    def end_within(self, seconds: float) -> None:
        """Refuse all work that has not begun in so many seconds."""
        self._writer.end_within(seconds)

    def problem(self) -> str | None:
        """Return why reads or saves fail at present, None where they don't. Known in some seconds."""
        try:
            with self._reading(min(group_commit.PATIENCE, self._patience), group_commit.PATIENCE) as reader:
                reader.has_accounts()
                reader.account_of_key(b"")  # each request looks up its key
                if reader.row(_TAKES_NO_WRITES)[0]:
                    return READ_ONLY_SENTENCE
        except UnavailableError as error:
            return str(error)
        return self._probe.problem(group_commit.PATIENCE)

    def size(self) -> int:
        """Return how many bytes the tables and their indexes take."""
        with self._reading() as reader:
            return reader.size_of_tables()

    def hurry(self) -> None:
        """Wait no longer for a lost server."""
        self._closing.set()

    def close(self) -> None:
        """Finish what was submitted, then let go of all connections."""
        self._closed = True
        self.hurry()
        self._writer.close()
        self._pool.close()
