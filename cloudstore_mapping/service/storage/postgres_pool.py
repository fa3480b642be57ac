"""
Connections to PostgreSQL for readers, kept for whoever reads next.

psycopg's own pool connects on threads of its own: it can't tell a reader why there is no connection, and after a server
was lost it waits for 1, 2, 4 and more seconds between its tries. Here a reader connects by itself.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg.pq import TransactionStatus

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage.postgres_connection import Connection
from cloudstore_mapping.service.storage.postgres_errors import RETRY_AFTER, STALE, is_lost

#: Seconds after which a connection that nobody needed is closed.
IDLE_FOR: Final = 60.0


class ReaderPool:
    """At most so many connections that `connect` makes, handed out one by one; threads may share it."""

    def __init__(self, connect: Callable[[], Connection], most: int) -> None:
        self._connect = connect
        self._places = threading.BoundedSemaphore(most)
        #: Those that nobody has, and since when; the one that was used last is used next.
        self._idle: deque[tuple[Connection, float]] = deque()
        self._closed = False
        #: Since when the server isn't reached, and the last reason.
        self._lost: tuple[float, psycopg.Error] | None = None
        self._trying = threading.Lock()

    @contextmanager
    def attempt(self, patience: float) -> Iterator[None]:
        """
        Let the block try to reach the server, and take note of what comes of it.

        Once the server has been lost for longer than `patience` only one tries at a time, for that may take seconds;
        the others are told at once what the last one was.
        """
        lost = self._lost if self.is_given_up(patience) else None
        if lost is not None and not self._trying.acquire(blocking=False):
            raise psycopg.OperationalError(str(lost[1]))
        try:
            yield
        except psycopg.Error as error:
            if is_lost(error):
                self._lost = (time.monotonic() if self._lost is None else self._lost[0], error)
            if is_lost(error) or error.sqlstate in STALE:
                self.close_idle()  # where one was lost, or has statements of before, the others are too, as a rule
            raise
        else:
            self._lost = None
        finally:
            if lost is not None:
                self._trying.release()

    def is_given_up(self, patience: float) -> bool:
        """Whether the server has been lost for so many seconds."""
        lost = self._lost
        return lost is not None and time.monotonic() - lost[0] >= patience

    def take(self, seconds: float) -> Connection:
        """Return a connection, for which it is waited so long where others have all; raises `psycopg.Error`."""
        if not self._places.acquire(timeout=seconds):
            raise UnavailableError("The service waits for its database; try again.", retry_after=RETRY_AFTER)
        try:
            try:
                return self._idle.pop()[0]
            except IndexError:
                return self._connect()
        except BaseException:
            self._places.release()
            raise

    def give_back(self, connection: Connection) -> None:
        """Let others have a connection; one that is within a transaction, or lost, is closed instead."""
        if connection.info.transaction_status is TransactionStatus.IDLE:
            self._idle.append((connection, time.monotonic()))
        else:
            connection.close()
        self._places.release()
        # Looked at only now, so that none is left behind whenever `close` comes.
        self._close_idle(float("inf") if self._closed else time.monotonic() - IDLE_FOR)

    def close_idle(self) -> None:
        """Close the connections that nobody has."""
        self._close_idle(float("inf"))

    def close(self) -> None:
        """Close all connections; those that somebody has, once they are given back."""
        self._closed = True
        self.close_idle()

    def _close_idle(self, since: float) -> None:
        while True:
            try:
                connection, idle_since = self._idle.popleft()
            except IndexError:
                return
            if idle_since > since:
                self._idle.appendleft((connection, idle_since))
                return
            connection.close()
