"""PostgreSQL engine, for many nodes: storage, connection pool, retry, commit marker and health."""

from __future__ import annotations

import atexit
import logging
import math
import os
import random
import re
import secrets
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq.abc import PGresult

from cloudstore_mapping.errors import OutcomeUnknownError, UnavailableError
from cloudstore_mapping.service.storage import base
from cloudstore_mapping.service.storage.base import (
    PROBE_QUEUE,
    HealthProbe,
    NoSpaceError,
    RolledBack,
    Storage,
    ending_error,
    not_open,
)
from cloudstore_mapping.service.storage.migrations import Admission
from cloudstore_mapping.service.storage.postgres_migrations import Older, has_trigrams, migrate, newest, schema_of
from cloudstore_mapping.service.storage.postgres_session import (
    ANSWER_WAIT,
    CLOSING_WAIT,
    Connection,
    Link,
    PostgresReader,
    PostgresWriter,
    SilentError,
    Statement,
    is_lost,
)
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.threads import BoundedThreadPool, FairQueue, PlainFuture

T = TypeVar("T")

_log: Final = logging.getLogger(__name__)

#: Connections of a process, and how many of them may write at a time, so that loads never wait for saves alone.
MAX_CONNECTIONS: Final = 16
MAX_WRITERS: Final = 12
#: Writes of one account at a time, so that one whose writes wait for each other leaves room for others.
MAX_WRITERS_OF_ONE: Final = 8
#: Seconds after which a connection that nobody needed is closed.
IDLE_FOR: Final = 60.0
#: Seconds after which it is tried again to open more connections than the server had room for.
LIMITED_FOR: Final = 30.0

#: The key of an index takes 2,704 bytes, and a character that is written as two takes one in a name.
MAX_NAME_BYTES: Final = 1300
#: Seconds for which a lost database is waited for: long enough for a standby to be promoted, shorter than clients wait.
PATIENCE: Final = 12.0
#: Seconds that a health check waits for the network, beyond the time that the server has for it.
SLACK: Final = 0.5
#: Seconds that work waits for a connection at least, however little patience there is.
LEAST_WAIT: Final = 1.0
#: Seconds between two tries, which double up to the longest, and how often a transaction is tried that others disturb.
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 0.8
MAX_TRIES: Final = 10

#: How long a lock is waited for at a time, and by a reader on the whole (VACUUM FULL, a forgotten transaction).
LOCK_WAIT: Final = "4s"
READ_PATIENCE: Final = 8.0
#: The server ends a transaction that stands still: its node is gone without a word, and nobody else can end it.
IDLE_IN_TRANSACTION: Final = "10s"

#: Defaults of an address. Of several servers the one that can be written to is taken; a server that is gone without a
#: word is given up before clients give up.
DEFAULTS: Final = {
    "target_session_attrs": "read-write",
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "application_name": "cloudstore",
}
_SECRETS: Final = frozenset({"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"})

#: Seconds after which a client may try again.
RETRY_AFTER: Final = 1.0

_LOCK_NOT_AVAILABLE: Final = "55P03"
# Others disturbed the transaction: unique and foreign keys, a lock that wasn't had in time, a deadlock, a conflict.
_DISTURBED: Final = frozenset({"23505", "23503", _LOCK_NOT_AVAILABLE, "40P01", "40001"})
# A server that only reads: it was the primary, or its owner made it so.
_READ_ONLY: Final = "25006"
_DISK_FULL: Final = "53100"
_READ_ONLY_SENTENCE: Final = (
    "The database can't be written to; name all its servers in the store's address, or wait for a new one."
)
_SENTENCES: Final = {
    "42501": "The store's user may not do this in the database; make it the owner of the tables.",
    _DISK_FULL: "The database's disk is full; free some space, then try again.",
    _LOCK_NOT_AVAILABLE: "Another process holds what is to be written; try again.",
    "40P01": "Others write the same all the time; try again.",
    "57014": "The database answers too slowly; look what holds its tables.",
    "40001": "Others write the same all the time; try again.",
    _READ_ONLY: _READ_ONLY_SENTENCE,
}
# Reasons that a server gives for taking no connection. The rest of the driver's message may quote the address.
_REFUSAL: Final = re.compile(r"FATAL: +(.+)")
_CAUSES: Final = (
    ("no password supplied", "The database asks for a password; set PGPASSWORD, or put it into the store's address."),
    (
        "resolve host",
        "The database's host is unknown; look at the host's name in the store's address.",
    ),
    (
        "server does not support SSL",
        "The database takes no TLS, but the store's address asks for it; switch TLS on there, or change sslmode.",
    ),
    ("certificate", "The database's TLS certificate isn't accepted; look at sslmode and sslrootcert in the address."),
    ("SSL error", "The TLS connection to the database failed; look at sslmode in the store's address."),
    ("timeout expired", "The database does not answer; look whether it stands still, or a firewall drops connections."),
    ("Connection refused", "No database listens there; look whether it runs, and at the port in the store's address."),
)
_NOT_REACHED: Final = "The database is not reached; look whether it runs, and at the store's address."
_SILENT: Final = "The database does not answer; look whether it stands still."
_WAITS: Final = "The service waits for its database; try again."
_HELD: Final = "Another process holds what is to be read; look which one holds the database's tables, or try again."
_UNKNOWN: Final = (
    "The database was lost while it stored this, and is not reached again: it may be stored or not; look, or try again."
)

_SETTINGS: Final = (
    "SELECT current_setting('synchronous_commit'), current_setting('idle_in_transaction_session_timeout'),"
    " current_setting('lock_timeout'), current_setting('tcp_keepalives_idle'), pg_backend_pid()"
)
_TAKES_NO_WRITES: Final = "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean"
_READ: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

_CLAIM: Final = "INSERT INTO writers (id, last_commit) VALUES (?, '') ON CONFLICT (id) DO NOTHING"
_LAST: Final = "SELECT last_commit FROM writers WHERE id = ? FOR UPDATE"
_CONFIRM: Final = "UPDATE writers SET at = now() WHERE id = ?"
_LEAVE: Final = "DELETE FROM writers WHERE id = ANY(?)"
_FORGET: Final = "DELETE FROM writers WHERE at < now() - INTERVAL '1 day'"


def parameters_of(address: str) -> dict[str, Any]:
    """Return how to connect to the database at an address; `ValueError` for one that can't be understood."""
    # The faulty part is not quoted, for it may be the password.
    unclear = "The address can't be understood; write postgresql://user@host/database, and special characters as %XX."
    try:
        given = conninfo_to_dict(address)
    except psycopg.Error as error:
        raise ValueError(unclear) from error
    if not all(port.isdecimal() for port in str(given.get("port", "")).split(",") if port):
        raise ValueError(unclear)  # of an address without a host the password is taken for a port
    return {**DEFAULTS, **given}


def label_of(address: str) -> str:
    """Return the part of an address that may be shown; `ValueError` for one that can't be understood."""
    given = parameters_of(address)
    hosts, ports = str(given.get("host", "")).split(","), str(given.get("port", "")).split(",")
    if len(ports) < len(hosts):
        ports = ports * len(hosts)
    servers = ",".join(host + (f":{port}" if port else "") for host, port in zip(hosts, ports, strict=False))
    user = f"{given['user']}@" if "user" in given else ""
    return f"postgresql://{user}{servers}/{given.get('dbname', '')}"


def without_secrets(address: str) -> str:
    """Return the address without its password, which the environment may hold on the other side."""
    given = {name: value for name, value in conninfo_to_dict(address).items() if name not in _SECRETS}
    return f"postgresql:///?{urlencode(given, quote_via=quote)}"


def unavailable(error: psycopg.Error) -> UnavailableError:
    """Return the error that is shown for one of psycopg: of the driver's words only those that a server said."""
    sentence = _READ_ONLY_SENTENCE if _refuses_writes(error) else _SENTENCES.get(error.sqlstate or "")
    if sentence is None and isinstance(error, SilentError):
        sentence = _SILENT
    if sentence is None and is_lost(error):
        text = str(error)
        refusal = _REFUSAL.search(text)
        sentence = next((cause for words, cause in _CAUSES if words in text), _NOT_REACHED)
        if refusal is not None:
            sentence = f"The database takes no connection ({refusal[1]}); look at the store's address, or try again."
    if sentence is None:
        sentence = f"The database failed: {error.diag.message_primary or type(error).__name__}."
    kind = NoSpaceError if error.sqlstate == _DISK_FULL else UnavailableError
    return kind(sentence, retry_after=RETRY_AFTER)


def _refuses_writes(error: psycopg.Error) -> bool:
    """Return True if no connection was had because the server only reads, which the driver finds out itself."""
    return error.sqlstate is None and "session is read-only" in str(error)


def connect(parameters: dict[str, Any]) -> Connection:
    """Return a new connection; raises `psycopg.OperationalError`."""
    try:
        return psycopg.connect(make_conninfo(**parameters), autocommit=True, prepare_threshold=None)
    except psycopg.OperationalError as error:
        # A lone primary that only reads for now can be read. Of several servers another one may take writes by now.
        has_others = any("," in str(parameters.get(name, "")) for name in ("host", "hostaddr", "port"))
        if has_others or not _refuses_writes(error):
            raise
        try:
            lone = {**parameters, "target_session_attrs": "primary"}
            return psycopg.connect(make_conninfo(**lone), autocommit=True, prepare_threshold=None)
        except psycopg.OperationalError:
            raise error from None


def _link(parameters: dict[str, Any], closes: threading.Event) -> Link:
    """Return a new connection with safe settings; a session behind a pooler gets them in each transaction."""
    connection = connect(parameters)
    try:
        link = Link(connection, closes)
        (row,) = link.rows(_SETTINGS)
        commit, idle, lock, keepalives, process = row
        settings: list[Statement] = []
        if commit == "off":
            settings.append(("SET {} synchronous_commit = on", ()))
        if lock == "0":
            settings.append((f"SET {{}} lock_timeout = '{LOCK_WAIT}'", ()))
        if idle == "0":
            settings.append((f"SET {{}} idle_in_transaction_session_timeout = '{IDLE_IN_TRANSACTION}'", ()))
        if process != connection.info.backend_pid:  # a pooler, whose sessions may be others' the next time
            link.settings = tuple((query.format("LOCAL"), ()) for query, _ in settings)
            return link
        if keepalives == "7200":
            settings += [("SET {} tcp_keepalives_idle = 10", ()), ("SET {} tcp_keepalives_interval = 5", ())]
            settings += [("SET {} tcp_keepalives_count = 3", ())]
        if settings:
            link.trip([(query.format("SESSION"), ()) for query, _ in settings])
    except BaseException:
        connection.close()
        raise
    return link


class ConnectionPool:
    """
    At most `most` connections, made by `connect` when they are needed; threads may share it.

    psycopg's pool connects on threads of its own: it can't tell why there is no connection, and after a loss it waits
    for 1, 2, 4 and more seconds between its tries. Here each thread connects by itself and learns the reason. A pool
    whose server, or pooler, has no room for more goes on with the connections that it has.
    """

    def __init__(self, connect: Callable[[], Link], most: int) -> None:
        self._connect = connect
        self._most = most
        self._changed = threading.Condition()
        #: Connections that there are or that are being made, and those that there are.
        self._open = self._made = 0
        #: Free ones, and since when; the one that was used last is used next.
        self._idle: deque[tuple[Link, float]] = deque()
        #: Ids of the commit markers of all connections that there ever were.
        self.writers: list[str] = []
        self._limit = (most, 0.0)  # and until when
        self._closed = False
        self._process = os.getpid()
        #: Since when the server isn't reached, and the last reason.
        self._lost: tuple[float, psycopg.Error] | None = None
        self._trying = threading.Lock()

    @contextmanager
    def attempt(self, patience: float) -> Iterator[None]:
        """
        Let the block try to reach the server, and note the outcome.

        Once the server has been lost for longer than `patience` only one thread tries at a time, for that may take
        seconds; the others fail at once with the last reason.
        """
        lost = self._lost if self.is_given_up(patience) else None
        if lost is not None and not self._trying.acquire(blocking=False):
            raise type(lost[1])(str(lost[1]))
        try:
            yield
        except psycopg.Error as error:
            if is_lost(error):
                self._lost = (time.monotonic() if self._lost is None else self._lost[0], error)
                self.close_idle()  # one loss is rarely alone
            raise
        else:
            self._lost = None
        finally:
            if lost is not None:
                self._trying.release()

    def is_given_up(self, patience: float) -> bool:
        """Return True if the server has been lost for so many seconds."""
        lost = self._lost
        return lost is not None and time.monotonic() - lost[0] >= patience

    def take(self, seconds: float) -> Link:
        """Return a connection; `UnavailableError` if others have all for so many seconds, `psycopg.Error` if lost."""
        end = time.monotonic() + seconds
        while True:
            link = self._free(end)
            if link is None:
                try:
                    link = self._connect()
                except BaseException as error:
                    with self._changed:
                        self._open -= 1
                        is_full = isinstance(error, psycopg.Error) and self._made > 0 and _has_no_room(error)
                        if is_full:
                            self._limit = (self._made, time.monotonic() + LIMITED_FOR)
                        self._changed.notify()
                    if not is_full:
                        raise
                else:
                    with self._changed:
                        self._made += 1
                        self.writers.append(link.writer)
                    return link
            elif link.is_stale():
                link.close()
                self._forget()
            else:
                return link

    def _free(self, end: float) -> Link | None:
        """Return a free connection, or None where one more may be opened."""
        with self._changed:
            while not self._idle:
                most, until = self._limit
                if self._open < (most if time.monotonic() < until else self._most):
                    self._open += 1
                    return None
                left = end - time.monotonic()
                if left <= 0:
                    raise UnavailableError(_WAITS, retry_after=RETRY_AFTER)
                self._changed.wait(left)
            return self._idle.pop()[0]

    def take_idle(self) -> Link | None:
        """Return a connection that nobody has, None if there is none."""
        with self._changed:
            return self._idle.pop()[0] if self._idle else None

    def give_back(self, link: Link) -> None:
        """Let others have a connection; one within a transaction, or lost, is closed."""
        with self._changed:
            if link.is_free and not link.is_lost and not self._closed:
                self._idle.append((link, time.monotonic()))
                self._changed.notify()
                old = []
            else:
                old = [link]
            while self._idle and self._idle[0][1] < time.monotonic() - IDLE_FOR:
                old.append(self._idle.popleft()[0])
        for each in old:
            each.close()
            self._forget()

    def close_idle(self) -> None:
        """Close the connections that nobody has."""
        with self._changed:
            idle, self._idle = self._idle, deque()
        for link, _ in idle:
            link.close()
            self._forget()

    def close(self) -> None:
        """Close all connections; those that somebody has, once they are given back; in a forked process none."""
        self._closed = True
        if self._process == os.getpid():
            self.close_idle()

    def _forget(self) -> None:
        with self._changed:
            self._open -= 1
            self._made -= 1
            self._changed.notify()


def _has_no_room(error: psycopg.Error) -> bool:
    """Return True if a server, or a pooler, takes no more connections, or doesn't say so and lets them wait."""
    if error.sqlstate == "53300" or isinstance(error, (SilentError, psycopg.errors.ConnectionTimeout)):
        return True
    return any(
        words in str(error)
        for words in ("too many", "no more connections", "query_wait_timeout", "remaining connection slots")
    )


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


class _Write:
    """A piece of work of an account, None for the service's own, and when it arrived."""

    def __init__(self, work: Callable[[Transaction], Any], account: Hashable) -> None:
        self.work = work
        self.account = account
        self.arrived = time.monotonic()
        self.future: Future[Any] = PlainFuture()

    def settle(self, result: Any, error: BaseException | None) -> None:
        """Give the future its outcome."""
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class _Release:
    """Put among new work: an account that was held is served again."""

    def __init__(self, account: Hashable) -> None:
        self.account = account


class WriterPool:
    """
    Threads that `write` side by side, and serve the accounts in turn by the time that each has used.

    An account has `MAX_WRITERS_OF_ONE` pieces of work on them at most, but for the service's own. A signal may
    interrupt a submitting thread anywhere, so that one takes no lock: it puts work into a queue, and the threads sort
    it.
    """

    def __init__(
        self, write: Callable[[Callable[[Transaction], Any], float], Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._pool = BoundedThreadPool(MAX_WRITERS, sys.maxsize - MAX_WRITERS, "cloudstore-writer")
        self._arrived: SimpleQueue[_Write | _Release] = SimpleQueue()
        self._lock = threading.Lock()
        self._fair: FairQueue[_Write] = FairQueue()
        self._running: Counter[Hashable] = Counter()
        self._held: set[Hashable] = set()
        #: Outcomes of work whose account is held, until all that was under way then has ended.
        self._ended: dict[Hashable, list[tuple[_Write, Any, BaseException | None]]] = {}
        self._ends_at = math.inf

    def submit(self, work: Callable[[Transaction], T], account: Hashable) -> Future[T]:
        """Have work done in an account's turn."""
        write = _Write(work, account)
        self._arrived.put(write)
        try:
            self._wake()
        except BaseException:
            write.future.cancel()
            raise
        return write.future

    def others_wait(self, account: Hashable) -> bool:
        """Return True if other work waits for a thread."""
        return not self._arrived.empty() or self._fair.others_wait(account)

    def hold(self, account: Hashable) -> None:
        """
        Begin no more work of an account until `release`; only in the middle of its work.

        The outcome of that work is told once the account's other work under way has ended as well.
        """
        with self._lock:
            self._held.add(account)
            self._fair.hold(account)

    def release(self, account: Hashable) -> None:
        """Do the work of an account again that was held."""
        self._arrived.put(_Release(account))
        with suppress(UnavailableError):  # after `close`, which released all
            self._wake()

    def end_within(self, seconds: float) -> None:
        """Refuse all work of accounts that has not begun in so many seconds."""
        self._ends_at = min(self._ends_at, self._clock() + seconds)

    def close(self) -> None:
        """Finish what was submitted, and end the threads."""
        with self._lock:
            self._held.clear()
            self._fair.release_all()
        with suppress(UnavailableError):  # the second time
            self._wake()
        self._pool.close()

    def _wake(self) -> None:
        # One call for each piece of work, of which each does all that it finds: none is left behind.
        self._pool.submit(self._work_off)

    def _work_off(self) -> None:
        while True:
            refused: list[_Write] = []
            with self._lock:
                write = self._take(refused)
            for each in refused:
                if each.future.set_running_or_notify_cancel():
                    each.settle(None, ending_error())
            if write is None:
                return
            self._do(write)
            del write  # else an idle thread keeps it

    def _take(self, refused: list[_Write]) -> _Write | None:
        """Sort new work into the queues, and return the next piece; add to `refused` what came too late."""
        with suppress(Empty):
            while True:
                arrived = self._arrived.get_nowait()
                if isinstance(arrived, _Write):
                    self._fair.put(arrived.account, arrived)
                else:
                    self._held.discard(arrived.account)
                    self._let_go(arrived.account)
        if self._clock() >= self._ends_at:
            self._refuse(refused)
        while (write := self._fair.take()) is not None:
            if write.future.set_running_or_notify_cancel():
                self._running[write.account] += 1
                if not self._has_room(write.account):
                    self._fair.hold(write.account)
                return write
        return None

    def _let_go(self, account: Hashable) -> None:
        if account not in self._held and self._has_room(account):
            self._fair.release(account)

    def _has_room(self, account: Hashable) -> bool:
        return account is None or self._running[account] < MAX_WRITERS_OF_ONE

    def _refuse(self, refused: list[_Write]) -> None:
        """Take the work of accounts; the service's own is done also at its end, such as storing access counts."""
        self._fair.release_all()
        own: list[_Write] = []
        while (write := self._fair.take()) is not None:
            (own if write.account is None else refused).append(write)
        for write in own:
            self._fair.put(None, write)

    def _do(self, write: _Write) -> None:
        began = self._clock()
        result, error = None, None
        try:
            result = self._write(write.work, write.arrived)
        except BaseException as raised:  # noqa: BLE001 - the future carries it
            error = raised
        account = write.account
        with self._lock:
            self._fair.charge(account, self._clock() - began)
            self._running[account] -= 1
            self._let_go(account)
            ended = [*self._ended.pop(account, ()), (write, result, error)]
            if not self._running[account]:
                del self._running[account]
            elif account in self._held:
                self._ended[account] = ended
                ended = []
        for each, its_result, its_error in ended:
            each.settle(its_result, its_error)


class PostgresStorage(Storage):
    """
    Keeps all accounts and files in the database at a PostgreSQL `address`, in tables that are made if there are none.

    Any number of processes may use one database, and threads may share the storage, but a forked process has to open
    it anew. Raises `ValueError` for an address that can't be understood, `UnavailableError` where the database isn't
    reached, and `UnsupportedError` where its tables aren't ours, or of a newer version. A database that is `to_fill` is
    a store only after `end_filling`. One of an older version is migrated, or refused where it must not be: see
    `migrate`. A database that is lost later is waited for `patience` seconds.

    Each piece of work has a transaction and a connection of its own; many are done side by side, and the server groups
    their commits. `postgres_session` says why they may.
    """

    waits = True
    max_name_bytes = MAX_NAME_BYTES
    #: Pieces of work that are done side by side.
    writers: ClassVar[int] = MAX_WRITERS

    def __init__(
        self,
        address: str,
        *,
        to_fill: bool = False,
        patience: float = PATIENCE,
        older: Older = "migrate",
        renames: bool = False,
        admits: Admission | None = None,
    ) -> None:
        parameters = parameters_of(address)
        self._patience = patience
        self._closed = False
        self._process = os.getpid()
        self._closing = threading.Event()
        try:
            with closing(connect(parameters)) as connection:
                place = label_of(address)
                migrate(connection, place, to_fill=to_fill, older=older, renames=renames, admits=admits)
                self._has_trigrams = has_trigrams(connection)
        except psycopg.Error as error:
            raise unavailable(error) from error
        self._pool = _pool(parameters, self._closing)
        weakref.finalize(self, self._pool.close).atexit = False
        self._writers = WriterPool(self._write)
        self._log = _LossLog()
        self._probe = HealthProbe(lambda: self.submit(_check_room, PROBE_QUEUE))
        _open.add(self)

    def _check_open(self) -> None:
        """Raise `UnavailableError` after `close`, and in a forked process: it has none of the writers' threads."""
        if self._closed or os.getpid() != self._process:
            raise not_open(closed=self._closed)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Return a transaction to read with, on the caller's thread: all it reads is of one moment."""
        with self._reading() as reader:
            yield reader

    @contextmanager
    def _reading(self, patience: float | None = None, answers_in: float | None = None) -> Iterator[PostgresReader]:
        self._check_open()
        patience = self._patience if patience is None else patience
        reader = PostgresReader(
            lambda statements: self._begin_reading(statements, patience, answers_in),
            None if answers_in is None else answers_in + SLACK,
            has_trigrams=self._has_trigrams,
        )
        try:
            yield reader
        except psycopg.Error as error:
            if reader.link is not None:
                reader.link.close()
            if error.sqlstate == _LOCK_NOT_AVAILABLE:
                raise UnavailableError(_HELD, retry_after=RETRY_AFTER) from error
            raise unavailable(error) from error
        finally:
            link = reader.link
            if link is not None:
                with suppress(psycopg.Error):
                    if not link.is_lost:
                        link.leave("COMMIT")
                self._pool.give_back(link)

    def _begin_reading(
        self, statements: Sequence[Statement], patience: float, answers_in: float | None
    ) -> tuple[Link, list[PGresult]]:
        """Run the first statements of a reader; until then nothing was read, so any connection will do."""
        pause = FIRST_PAUSE
        begun = time.monotonic()
        while True:
            try:
                with self._pool.attempt(patience):
                    link = self._pool.take(max(begun + patience - time.monotonic(), LEAST_WAIT))
                    try:
                        opening: list[Statement] = [(_READ, ()), *link.settings]
                        wait = None
                        if answers_in is not None:
                            wait = answers_in + SLACK
                            opening.append((f"SET LOCAL statement_timeout = {answers_in * 1000:.0f}", ()))
                        link.is_free = False
                        return link, link.trip([*opening, *statements], wait)[len(opening) :]
                    except BaseException:
                        link.close()
                        self._pool.give_back(link)
                        raise
            except psycopg.Error as error:
                waited = time.monotonic() - begun
                if self._closing.is_set():
                    raise
                if error.sqlstate == _LOCK_NOT_AVAILABLE:
                    if waited >= READ_PATIENCE:
                        raise
                else:
                    is_over = waited >= patience or self._pool.is_given_up(patience)
                    if is_over or not is_lost(error) or isinstance(error, SilentError):
                        raise
            self._closing.wait(pause * random.uniform(0.5, 1))  # noqa: S311 - not for a secret
            pause = min(2 * pause, LONGEST_PAUSE)

    def submit(self, work: Callable[[Transaction], T], account: Hashable = None, size: int = 0) -> Future[T]:  # noqa: ARG002
        """
        Run `work` in a writing transaction; the future completes after the commit is on disk.

        It has a transaction of its own, whatever its size.
        """
        self._check_open()
        return self._writers.submit(work, account)

    def others_wait(self, account: Hashable) -> bool:
        """Return True in the middle of an account's work if other work waits to be written."""
        return self._writers.others_wait(account)

    def hold(self, account: Hashable) -> None:
        """Begin no more work of an account until `release`; only in the middle of its work."""
        self._writers.hold(account)

    def release(self, account: Hashable) -> None:
        """Do the work of an account again that was held."""
        self._writers.release(account)

    def end_within(self, seconds: float) -> None:
        """Refuse all work that has not begun in so many seconds."""
        self._writers.end_within(seconds)

    def _write(self, work: Callable[[Transaction], T], since: float) -> T:
        if time.monotonic() - since > max(self._patience - LEAST_WAIT, ANSWER_WAIT):
            raise UnavailableError(_WAITS, retry_after=RETRY_AFTER, sent=False)
        attempts = _Attempts(since, self._patience, self._closing)
        while True:
            try:
                with self._pool.attempt(self._patience):
                    return self._try(work, attempts)
            except psycopg.Error as error:
                self._log.lost(error)
                attempts.check(error)
                attempts.pause()

    def _try(self, work: Callable[[Transaction], T], attempts: _Attempts) -> T:
        """Do the work in a transaction, unless it turns out that the last one was committed."""
        link = self._pool.take(max(attempts.left, LEAST_WAIT))
        try:
            if attempts.doubt is not None:
                writer, commit, result = attempts.doubt
                if _was_committed(link, writer, commit):
                    self._log.found()
                    return result  # type: ignore[no-any-return]  # what the work returned
                attempts.doubt = None
            commit = secrets.token_hex(16)
            transaction = PostgresWriter(link, link.writer, commit, has_trigrams=self._has_trigrams)
            try:
                transaction.lock_accounts(attempts.locked)
                result = work(transaction)
                if isinstance(result, RolledBack):
                    with suppress(psycopg.Error):
                        transaction.roll_back()
                else:
                    try:
                        transaction.commit()
                    except psycopg.Error:
                        if transaction.in_doubt:
                            attempts.doubt = (link.writer, commit, result)
                        raise
            except BaseException as error:
                if isinstance(error, psycopg.Error):
                    attempts.locked |= transaction.many_locked()
                    if error.sqlstate not in _DISTURBED:
                        link.close()
                with suppress(psycopg.Error):
                    transaction.roll_back()
                raise
        finally:
            self._pool.give_back(link)
        self._log.found()
        return result

    def problem(self) -> str | None:
        """Return why reads or saves fail at present, None where they don't. Known in some seconds."""
        try:
            patience = min(base.PATIENCE, self._patience)
            with self._reading(patience, base.PATIENCE) as reader:
                reader.has_accounts()
                reader.account_of_key(b"")  # each request looks up its key
                if reader.row(_TAKES_NO_WRITES)[0]:
                    return _READ_ONLY_SENTENCE
        except UnavailableError as error:
            return str(error)
        return self._probe.problem(base.PATIENCE)

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
        self._writers.close()
        if self._process == os.getpid():
            self._remove_markers()
        self._pool.close()

    def _remove_markers(self) -> None:
        link = self._pool.take_idle()
        if link is None:
            return
        # Nobody waits for this, nor should the end of a service.
        begin: list[Statement] = [("BEGIN", ()), ("SET LOCAL synchronous_commit = off", ())]
        with suppress(psycopg.Error):
            link.trip([*begin, (_LEAVE, (self._pool.writers,)), (_FORGET, ()), ("COMMIT", ())], CLOSING_WAIT)
        link.close()
        self._pool.give_back(link)


def _pool(parameters: dict[str, Any], closes: threading.Event) -> ConnectionPool:
    return ConnectionPool(lambda: _link(parameters, closes), MAX_CONNECTIONS)


def _check_room(transaction: Transaction) -> None:
    """Raise `UnavailableError` if no file could be saved, for want of leave or of a lock on the table."""
    transaction.count("DELETE FROM files WHERE FALSE")


def _was_committed(link: Link, writer: str, commit: str) -> bool:
    """
    Return whether the transaction with this marker was committed.

    It waits until the server is done with that transaction. The answer is committed too before it is believed, for the
    server may show what it has not replicated yet.
    """
    link.is_free = link.was_warned = False
    opening: list[Statement] = [("BEGIN ISOLATION LEVEL READ COMMITTED", ()), *link.settings]
    (last,) = link.rows(_LAST, writer, before=[*opening, (_CLAIM, (writer,))])[0]
    results = link.trip([(_CONFIRM, (writer,)), ("COMMIT", ())])
    if link.was_warned or results[-1].command_status != b"COMMIT":
        link.close()
        raise psycopg.OperationalError("The commit ended with a warning.")
    link.is_free = True
    return bool(last == commit)


class _Attempts:
    """Tries of one piece of work: how often, for how long, and whether the last one may have been committed."""

    def __init__(self, since: float, patience: float, closes: threading.Event) -> None:
        self._since = since
        self._begun = time.monotonic()
        self._patience = patience
        self._closing = closes
        self._tries = 0
        self._pause = 0.0
        #: Accounts of which the tries before locked several files. A further try locks the account, so it succeeds.
        self.locked: frozenset[int] = frozenset()
        #: Whose commit has an unknown outcome: the connection's marker, the transaction's, and the work's result.
        self.doubt: tuple[str, str, Any] | None = None

    @property
    def left(self) -> float:
        """Seconds until the work is given up, if the database stays lost."""
        return self._since + self._patience - time.monotonic()

    def check(self, error: psycopg.Error) -> None:
        """Raise the error that is shown, unless the work is worth another try after this one."""
        now = time.monotonic()
        if self.doubt is not None or is_lost(error) or error.sqlstate == _READ_ONLY:
            again = now - self._since < self._patience and not self._closing.is_set()
            self._pause = min(FIRST_PAUSE * 2 ** min(self._tries, 9), LONGEST_PAUSE)
        else:
            again = error.sqlstate in _DISTURBED and self._tries < MAX_TRIES and now - self._begun < PATIENCE
            self._pause = FIRST_PAUSE * self._tries
        self._tries += 1
        if not again and self.doubt is not None:
            raise OutcomeUnknownError(_UNKNOWN, error="OutcomeUnknown") from error
        if not again:
            raise unavailable(error) from error

    def pause(self) -> None:
        """Wait until the next try."""
        self._closing.wait(self._pause * random.uniform(0.5, 1))  # noqa: S311 - not for a secret


class _LossLog:
    """Logs once that the database was lost, and once that it is back."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._lock = threading.Lock()

    def lost(self, error: psycopg.Error) -> None:
        """Note a failed try."""
        if is_lost(error):
            with self._lock:
                is_first = self._since is None
                self._since = time.monotonic() if is_first else self._since
            if is_first:
                sentence = "The connection to the database was lost, and writes wait for another: %s"
                _log.warning(sentence, unavailable(error))

    def found(self) -> None:
        """Note a try that succeeded."""
        if self._since is not None:
            with self._lock:
                since, self._since = self._since, None
            if since is not None:
                _log.warning("The database is reached again, after %.1f seconds.", time.monotonic() - since)


_open: Final[weakref.WeakSet[PostgresStorage]] = weakref.WeakSet()


@atexit.register
def _finish_all() -> None:
    for storage in list(_open):
        storage._writers.close()  # noqa: SLF001 - of this module
