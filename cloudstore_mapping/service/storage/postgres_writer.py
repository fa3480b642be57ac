"""
The connection to PostgreSQL that writes, and why several nodes may do so at once.

**What work reads still stands when it writes**, though transactions run at READ COMMITTED, for what a writer reads it
holds: a file's row (`get`, `stat`, `media`), or the account's where the answer is about many rows (how many files there
are, how much media takes, when the next request may come) or about the account's own administration. A row that isn't
there can't be held. So what was found absent is inserted, never replaced: where another node made it meanwhile, its key
is taken, and the work is undone and done again, now seeing it. The answer of a request with an id is kept in the same
way, so a request that runs on two nodes at once is done once. Listings are not held: they are of the moment at which
they were read.

**Groups don't wait for each other.** All work of a group is one transaction, each piece behind a savepoint. The first
piece waits for what other nodes hold. The others, behind which all that was done before is held, wait a millisecond:
one that meets another node's lock is undone, which lets go of what it held, and begins the next group. Two nodes that
each hold what the other wants are so at most two first pieces, of which the server ends one as a deadlock, and that
piece is put off too.

**Few round trips.** Statements whose result decides nothing are sent without waiting, so a save costs a trip for each
row that it reads, and the group one for its commit. An error of such a statement may come to light only behind the end
of its piece of work. Then the whole group is undone and done again with care: each piece is waited for at its end, and
an error is that of the piece which it belongs to.

**A lost connection** is replaced, and the group done again; so is one whose prepared statements aren't the server's.
Only where it was lost during the commit nobody knows the outcome; so each transaction writes a random id into this
process's row of `writers`. If it is found there, all was done, and what the work returned stands; else it is done
again. The row excludes the two from each other: where the server is still at the first, looking waits for it. That
answer is committed too before it is believed, for the server may show what it has not replicated yet. After `patience`
seconds the outcome is an `OutcomeUnknownError`.
"""

# ruff: noqa: D102 - what is without a docstring has it in `statements`
from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn

import psycopg

from cloudstore_mapping.service.storage.group_commit import AgainError, DoneError, PutOffError, WriteSession
from cloudstore_mapping.service.storage.postgres_changes import PostgresChanges
from cloudstore_mapping.service.storage.postgres_connection import Connection, Cursor
from cloudstore_mapping.service.storage.postgres_errors import (
    NOT_SERIALIZABLE,
    OVERTAKEN,
    READ_ONLY,
    STALE,
    is_lost,
    outcome_unknown,
    unavailable,
)
from cloudstore_mapping.service.storage.postgres_line import Line

_log: Final = logging.getLogger(__name__)

#: Seconds between two tries, which double up to the longest.
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 0.8
#: How often a transaction is begun anew that others were in the way of.
MAX_TRIES: Final = 10

#: How long the first piece of work waits for a lock, and the others. The server looks for deadlocks after a second.
LOCK_WAIT: Final = "2s"
LATER_WAIT: Final = "1ms"

_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
_MARK: Final = (
    "INSERT INTO writers (id, last_commit) VALUES (?, ?)"
    " ON CONFLICT (id) DO UPDATE SET last_commit = excluded.last_commit, at = now()"
)
_CLAIM: Final = "INSERT INTO writers (id, last_commit) VALUES (?, '') ON CONFLICT (id) DO NOTHING"
_LAST: Final = "SELECT last_commit FROM writers WHERE id = ? FOR UPDATE"
_LEAVE: Final = "DELETE FROM writers WHERE id = ?"
_FORGET: Final = "DELETE FROM writers WHERE at < now() - INTERVAL '1 day'"


class PostgresWriter(PostgresChanges, WriteSession):
    """
    The session that `GroupWriter` writes with; `connect` gives it a connection whenever it has none.

    One that was lost is waited for `patience` seconds, and no longer once `closing` is set.
    """

    #: A server keeps so many savepoints of a transaction at hand (64); with more, all others' reads become slow.
    max_group = 60
    #: Longer than on a disk, where a piece of work waits for no network.
    max_seconds = 0.05

    def __init__(
        self, connect: Callable[[], Connection], *, has_trigrams: bool, patience: float, closing: threading.Event
    ) -> None:
        super().__init__(has_trigrams=has_trigrams)
        self._line = Line(connect)
        self._patience = patience
        self._closing = closing
        self._writer = secrets.token_hex(16)
        self._commit_id = ""
        #: Whether the server may have committed what isn't known to be committed.
        self._sent = False
        self._careful = False
        self._stands = False
        self._tries = 0
        self._lost_at: float | None = None
        self._savepoints = 0

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Begin, then commit, or roll back and say what becomes of it; see `WriteSession.transaction`."""
        try:
            self._begin()
            self._stands = True
            yield
            self._commit()
        except DoneError:
            self._succeeded()
            raise
        except (psycopg.Error, AgainError) as error:
            self._abandon()
            self._failed(error if isinstance(error, psycopg.Error) else error.cause)
        except BaseException:
            self._abandon()
            raise
        else:
            self._succeeded()

    def _begin(self) -> None:
        self._line.open()
        self._savepoints = 0
        self._line.send(_BEGIN)
        self._line.send(f"SET LOCAL lock_timeout = '{LOCK_WAIT}'")
        if self._sent:
            self._look()
        else:
            if self._lost_at is not None:
                self._writer = secrets.token_hex(16)  # the row may still be held by the one that was lost
            self._commit_id = secrets.token_hex(16)
            self.do(_MARK, self._writer, self._commit_id)

    def _look(self) -> None:
        """Raise `DoneError` where the transaction before was committed; else this one goes on in its place."""
        self.do(_CLAIM, self._writer)  # which waits for who is still about to make the row
        (found,) = self.row(_LAST, self._writer)
        self.do(_MARK, self._writer, self._commit_id)
        if found == self._commit_id:
            self._commit()
            raise DoneError
        self._sent = False

    def _commit(self) -> None:
        self._sent = True
        try:
            self._line.commit()
        except psycopg.Error as error:
            # Of other errors the server says that it did not; but one that is told to end may have, before it did.
            self._sent = self._line.is_gone or is_lost(error)
            raise
        self._sent = False

    def _abandon(self) -> None:
        self._stands = False
        self._line.reset()

    def _failed(self, error: psycopg.Error) -> NoReturn:
        """Pause, and raise `AgainError` where the transaction is worth another try; else what is told outside."""
        if error.sqlstate == READ_ONLY or error.sqlstate in STALE:
            self._line.drop()  # what was the primary is it no longer
        is_gone = self._line.is_gone and (error.sqlstate in (None, READ_ONLY) or is_lost(error))
        if is_gone or self._sent:
            again = self._wait_for_database(error)
        else:
            others = error.sqlstate == NOT_SERIALIZABLE or error.sqlstate in OVERTAKEN or error.sqlstate in STALE
            again = (not self._careful or others) and self._tries < MAX_TRIES
            self._careful = True
            self._tries += 1
            if again and self._tries > 1:
                self._pause(FIRST_PAUSE * self._tries)
        if again:
            raise AgainError(error) from error
        self._careful, self._tries = False, 0
        self._line.drop()  # whatever it was, the next transaction doesn't suffer from it
        if self._sent:
            self._sent = False
            raise outcome_unknown() from error
        raise unavailable(error) from error

    def _wait_for_database(self, error: psycopg.Error) -> bool:
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
            _log.warning("The connection to the database was lost, and writes wait for another: %s", unavailable(error))
        if now - self._lost_at >= self._patience:
            return False
        self._tries += 1
        self._pause(min(FIRST_PAUSE * 2 ** min(self._tries, 9), LONGEST_PAUSE))
        return not self._closing.is_set()

    def _pause(self, seconds: float) -> None:
        self._closing.wait(seconds * random.uniform(0.5, 1))  # noqa: S311 - not for a secret

    def _succeeded(self) -> None:
        if self._lost_at is not None:
            _log.warning("The database is reached again, after %.1f seconds.", time.monotonic() - self._lost_at)
        self._stands = self._careful = False
        self._tries, self._lost_at = 0, None

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Keep one piece of work apart from the others in the transaction; see `WriteSession.savepoint`."""
        self._savepoints += 1
        self.begin_work()
        name = f"work_{self._savepoints}"
        try:
            self._line.send(f"SAVEPOINT {name}")
            yield
            if self._careful:
                self._line.drain()
            self._line.send(f"RELEASE {name}")
            self._wait_briefly()
        except psycopg.Error as error:
            self._undo(name, error)
            self._wait_briefly()
            raise _refused(error) from error
        except BaseException:
            self._undo(name)
            self._wait_briefly()
            raise

    def _undo(self, name: str, error: psycopg.Error | None = None) -> None:
        """Undo what was done since a savepoint; `AgainError` where an error is not of that piece of work alone."""
        try:
            if error is not None or self._careful:
                with suppress(psycopg.Error):
                    self._line.drain()
            self._line.send(f"ROLLBACK TO {name}")  # which isn't there if it was an earlier piece that failed
            self._line.send(f"RELEASE {name}")
            if error is not None:
                self._line.drain()
        except psycopg.Error as second:
            self._stands = False
            raise AgainError(second if error is None else error) from second
        if error is not None and (error.sqlstate in (NOT_SERIALIZABLE, READ_ONLY) or error.sqlstate in STALE):
            self._stands = False
            raise AgainError(error) from error

    def _wait_briefly(self) -> None:
        if self._savepoints == 1:
            self._line.send(f"SET LOCAL lock_timeout = '{LATER_WAIT}'")

    def intact(self) -> bool:
        """Whether the transaction still stands."""
        return self._stands

    def check_room(self) -> None:
        """Raise `UnavailableError` where no file could be saved, for want of leave or of a lock on the table."""
        self.do("DELETE FROM files WHERE FALSE")

    def close(self) -> None:
        """Let go of the connection, and of the mark in the database."""
        if not self._line.is_gone:
            with suppress(psycopg.Error):
                self._line.open()
                self._line.send(
                    "SET synchronous_commit = off"
                )  # nobody waits for this, nor should the end of a service
                self.do(_LEAVE, self._writer)
                self.do(_FORGET)
                self._line.drain()
        self._line.drop()

    def _run(self, query: str, parameters: tuple[Any, ...]) -> Cursor:
        cursor = self._line.send(query, parameters)
        self._line.drain()
        return cursor

    def do(self, query: str, *parameters: Any) -> None:
        self._line.send(query, parameters)

    def count(self, query: str, *parameters: Any) -> int:
        return self._run(query, parameters).rowcount


def _refused(error: psycopg.Error) -> Exception:
    """Return what a piece of work raises that the server refused, and that was undone."""
    told = unavailable(error)
    told.__cause__ = error
    return PutOffError(told) if error.sqlstate in OVERTAKEN else told
