"""A connection to PostgreSQL over which statements are sent without waiting for one another."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from cloudstore_mapping.service.storage.postgres_connection import Connection, Cursor, sql


class Line:
    """
    The connection that `connect` makes, and makes anew once it is lost; for one thread at a time.

    An error may come to light at any statement behind the one that it is of. From there on the server takes no
    statement before `drain`.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._connection: Connection | None = None
        self._around = ExitStack()
        self._pipeline: psycopg.Pipeline | None = None
        self._was_warned = False

    @property
    def is_gone(self) -> bool:
        """Whether there is no connection, or not any longer."""
        return self._connection is None or self._connection.closed

    def open(self) -> None:
        """Begin to send, over a new connection if there is none; raises `psycopg.Error`."""
        if self._connection is None:
            self._connection = self._connect()
            self._connection.add_notice_handler(self._noticed)
        self._pipeline = self._around.enter_context(self._connection.pipeline())

    def send(self, query: str, parameters: tuple[Any, ...] | None = None) -> Cursor:
        """Send a statement; its result is there after `drain`. One without parameters is not worth preparing."""
        if self._connection is None:
            raise psycopg.OperationalError("There is no connection.")
        if parameters is None:
            return self._connection.execute(sql(query), prepare=False)
        return self._connection.execute(sql(query), parameters, binary=True)

    def drain(self) -> None:
        """Wait until all is done that was sent; the server then knows that it is its client's turn."""
        if self._pipeline is not None:
            self._pipeline.sync()

    def commit(self) -> None:
        """
        Commit, and end to send; raises `psycopg.OperationalError` where the server has doubts.

        One that is told to wait for standbys no longer, by a timeout or by whoever runs it, warns, and commits.
        """
        self._was_warned = False
        cursor = self.send("COMMIT")
        self._leave()
        if self._was_warned or cursor.statusmessage != "COMMIT":
            raise psycopg.OperationalError("The commit ended with a warning, or with none.")

    def reset(self) -> None:
        """Undo what isn't committed, and leave a connection that is as new, or none."""
        if self._connection is None:
            return
        with suppress(psycopg.Error):
            self.drain()
        with suppress(psycopg.Error):
            self._leave()
        with suppress(psycopg.Error):
            if self._connection.info.transaction_status is not TransactionStatus.IDLE:
                self._connection.execute("ROLLBACK")
        if self._connection.info.transaction_status is not TransactionStatus.IDLE:
            self.drop()

    def drop(self) -> None:
        """Let go of the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            with suppress(psycopg.Error):
                self._leave()

    def _leave(self) -> None:
        self._pipeline = None
        self._around.close()

    def _noticed(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        self._was_warned = self._was_warned or diagnostic.severity_nonlocalized == "WARNING"
