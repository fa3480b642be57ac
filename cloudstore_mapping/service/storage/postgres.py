"""PostgreSQL storage engine for many nodes: connection pool, retries, commit markers and health check."""

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
    OperatorError,
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

#: Maximum connections of a process, and maximum writers among them; the rest serve loads, so saves never block loads.
MAX_CONNECTIONS: Final = 16
MAX_WRITERS: Final = 12
#: Maximum concurrent writes of an account: even if they wait for each other's locks, other accounts have writers left.
MAX_WRITERS_OF_ONE: Final = 8
#: Seconds until an unused connection is closed.
IDLE_FOR: Final = 60.0
#: Seconds during which the pool respects a connection limit reported by the server, before it tries again.
LIMITED_FOR: Final = 30.0

#: An index key has at most 2,704 bytes, and escapes (see `write_text`) at most double the length of a name.
MAX_NAME_BYTES: Final = 1300
#: Seconds to wait for a lost database: enough for a failover to a standby, and less than clients wait.
PATIENCE: Final = 12.0
#: Additional seconds of a health check for the network, beyond the server's statement timeout.
SLACK: Final = 0.5
#: Minimum seconds to wait for a connection, even if less patience is left.
LEAST_WAIT: Final = 1.0
#: Backoff in seconds, doubled up to the longest, and maximum retries of a transaction after conflicts with others.
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 0.8
MAX_TRIES: Final = 10

#: Lock timeout of a statement, and total seconds of a reader's retries (behind VACUUM FULL or a forgotten transaction).
LOCK_WAIT: Final = "4s"
READ_PATIENCE: Final = 8.0
#: The server ends a transaction idle for this long: its node is gone, and nothing else can end it.
IDLE_IN_TRANSACTION: Final = "10s"
#: The server's own probes of a connection. A server that has got half of a group of statements isn't idle and waits for
#: the rest, with its locks: after 4 + 3 * 2 seconds the node is gone. Other nodes' writes wait longer than that.
KEEPALIVES: Final = {"idle": 4, "interval": 2, "count": 3}

#: Default connection parameters. Of several servers the writable one is chosen; an unresponsive server is given up
#: before clients give up.
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

#: Seconds until a client may retry.
RETRY_AFTER: Final = 1.0

_LOCK_NOT_AVAILABLE: Final = "55P03"
# Conflicts with other transactions: unique and foreign keys, lock timeout, deadlock, serialization failure.
_CONFLICTS: Final = frozenset({"23505", "23503", _LOCK_NOT_AVAILABLE, "40P01", "40001"})
# A read-only server: demoted from primary, or configured as read-only.
_READ_ONLY: Final = "25006"
_DISK_FULL: Final = "53100"
_READ_ONLY_MESSAGE: Final = (
    "The database can't be written to; name all its servers in the store's address, or wait for a new primary."
)
_MESSAGES_BY_CODE: Final = {
    "42501": "The store's user lacks a permission in the database; make it the owner of the tables.",
    _DISK_FULL: "The database's disk is full; free some space, then try again.",
    _LOCK_NOT_AVAILABLE: "Another process has locked the data to be written; try again.",
    "40P01": "Other writers keep changing the same data; try again.",
    "57014": "The database answers too slowly; look for locks on its tables.",
    "40001": "Other writers keep changing the same data; try again.",
    _READ_ONLY: _READ_ONLY_MESSAGE,
}
# A server's reason for refusing a connection. The rest of the driver's message may quote the address.
_REFUSAL: Final = re.compile(r"FATAL: +(.+)")
_MESSAGES_BY_TEXT: Final = (
    ("no password supplied", "The database asks for a password; set PGPASSWORD, or put it into the store's address."),
    (
        "resolve host",
        "The database's host is unknown; check the host name in the store's address.",
    ),
    (
        "server does not support SSL",
        "The database takes no TLS, but the store's address requires it; enable TLS on the server, or change sslmode.",
    ),
    ("certificate", "The database's TLS certificate isn't accepted; check sslmode and sslrootcert in the address."),
    ("SSL error", "The TLS connection to the database failed; check sslmode in the store's address."),
    ("timeout expired", "The database does not answer; check whether it hangs, or a firewall drops connections."),
    ("Connection refused", "No database listens there; check that it runs and that the store's address has its port."),
)
_UNREACHABLE: Final = "The database is not reached; check that it runs and that the store's address is right."
_SILENT: Final = "The database does not answer; check whether it hangs."
_WAITS: Final = "The service waits for its database; try again."
_LOCKED: Final = "Another process has locked the data to be read; look for locks on its tables, or try again."
_UNKNOWN: Final = (
    "The connection to the database was lost during a commit, so the data may be stored or not; check, or try again."
)

_SETTINGS: Final = (
    "SELECT current_setting('synchronous_commit'), current_setting('idle_in_transaction_session_timeout'),"
    " current_setting('lock_timeout'), current_setting('tcp_keepalives_idle'), pg_backend_pid()"
)
_IS_READ_ONLY: Final = "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean"
_BEGIN_READ_ONLY: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

_CREATE_MARKER: Final = "INSERT INTO writers (id, last_commit) VALUES (?, '') ON CONFLICT (id) DO NOTHING"
_LAST_COMMIT: Final = "SELECT last_commit FROM writers WHERE id = ? FOR UPDATE"
_TOUCH_MARKER: Final = "UPDATE writers SET at = now() WHERE id = ?"
_DELETE_MARKERS: Final = "DELETE FROM writers WHERE id = ANY(?)"
_DELETE_OLD_MARKERS: Final = "DELETE FROM writers WHERE at < now() - INTERVAL '1 day'"


def parameters_of(address: str) -> dict[str, Any]:
    """Return the connection parameters of an address; raise `ValueError` if it is invalid."""
    # Don't quote the invalid part: it may be the password.
    message = "The address can't be understood; write postgresql://user@host/database, and special characters as %XX."
    try:
        given = conninfo_to_dict(address)
    except psycopg.Error as error:
        raise ValueError(message) from error
    if not all(port.isdecimal() for port in str(given.get("port", "")).split(",") if port):
        raise ValueError(message)  # without a host, libpq takes the password for a port
    return {**DEFAULTS, **given}


def label_of(address: str) -> str:
    """Return the address without secrets and options, for display; raise `ValueError` if it is invalid."""
    given = parameters_of(address)
    hosts, ports = str(given.get("host", "")).split(","), str(given.get("port", "")).split(",")
    if len(ports) < len(hosts):
        ports = ports * len(hosts)
    servers = ",".join(host + (f":{port}" if port else "") for host, port in zip(hosts, ports, strict=False))
    user = f"{given['user']}@" if "user" in given else ""
    return f"postgresql://{user}{servers}/{given.get('dbname', '')}"


def without_secrets(address: str) -> str:
    """Return the address without its secrets, for pickling; the environment may supply the password later."""
    given = {name: value for name, value in conninfo_to_dict(address).items() if name not in _SECRETS}
    return f"postgresql:///?{urlencode(given, quote_via=quote)}"


def unavailable(error: psycopg.Error) -> UnavailableError:
    """Return the `UnavailableError` for a psycopg error; of the driver's text, quote only the server's message."""
    message = _READ_ONLY_MESSAGE if _refuses_writes(error) else _MESSAGES_BY_CODE.get(error.sqlstate or "")
    if message is None and isinstance(error, SilentError):
        message = _SILENT
    if message is None and is_lost(error):
        text = str(error)
        refusal = _REFUSAL.search(text)
        message = next((cause for words, cause in _MESSAGES_BY_TEXT if words in text), _UNREACHABLE)
        if refusal is not None:
            message = f"The database takes no connection ({refusal[1]}); check the store's address, or try again."
    if message is None:
        message = f"The database failed: {error.diag.message_primary or type(error).__name__}."
    if error.sqlstate in _CONFLICTS and error.sqlstate in _MESSAGES_BY_CODE:  # clients may be told of other writers
        return UnavailableError(message, retry_after=RETRY_AFTER)
    kind = NoSpaceError if error.sqlstate == _DISK_FULL else OperatorError
    return kind(message, retry_after=RETRY_AFTER)


def _refuses_writes(error: psycopg.Error) -> bool:
    """Return True if the driver refused the connection because the server is read-only."""
    return error.sqlstate is None and "session is read-only" in str(error)


def connect(parameters: dict[str, Any]) -> Connection:
    """Return a new connection; raise `psycopg.OperationalError` on failure."""
    try:
        return psycopg.connect(make_conninfo(**parameters), autocommit=True, prepare_threshold=None)
    except psycopg.OperationalError as error:
        # A lone read-only primary can serve reads. Of several servers, another may be writable by now.
        has_others = any("," in str(parameters.get(name, "")) for name in ("host", "hostaddr", "port"))
        if has_others or not _refuses_writes(error):
            raise
        try:
            lone = {**parameters, "target_session_attrs": "primary"}
            return psycopg.connect(make_conninfo(**lone), autocommit=True, prepare_threshold=None)
        except psycopg.OperationalError:
            raise error from None


def _open_link(parameters: dict[str, Any], closes: threading.Event) -> Link:
    """Return a new connection with safe settings; behind a pooler, each transaction sets them."""
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
        if process != connection.info.backend_pid:  # a pooler: other clients may use the session, too
            link.settings = tuple((query.format("LOCAL"), ()) for query, _ in settings)
            return link
        if keepalives == "7200":
            settings += [(f"SET {{}} tcp_keepalives_{name} = {value}", ()) for name, value in KEEPALIVES.items()]
        if settings:
            link.trip([(query.format("SESSION"), ()) for query, _ in settings])
    except BaseException:
        connection.close()
        raise
    return link


class ConnectionPool:
    """
    Connection pool: up to `most` connections, opened on demand by `connect`. Thread-safe.

    psycopg's pool connects on background threads: it can't report why a connection failed, and its backoff after a loss
    is 1, 2, 4 and more seconds. Here each thread connects by itself and gets the error. If the server or its pooler
    refuses more connections, the pool continues with the present ones.
    """

    def __init__(self, connect: Callable[[], Link], most: int) -> None:
        self._connect = connect
        self._most = most
        self._changed = threading.Condition()
        #: Number of connections, with and without those being opened.
        self._open = self._made = 0
        #: Free connections, each with the time of its return; the last returned is taken first.
        self._idle: deque[tuple[Link, float]] = deque()
        #: Commit marker ids of all connections, closed connections included.
        self.writers: list[str] = []
        self._limit = (most, 0.0)  # the server's connection limit, and its expiry
        self._closed = False
        self._process = os.getpid()
        #: Time of the loss and last error while the server is unreachable.
        self._lost: tuple[float, psycopg.Error] | None = None
        self._retrying = threading.Lock()

    @contextmanager
    def attempt(self, patience: float) -> Iterator[None]:
        """
        Try to reach the server in the block, and record the outcome.

        After `patience` seconds without the server, only one thread tries at a time, because a try may take seconds;
        the others fail at once with the last error.
        """
        lost = self._lost if self.is_given_up(patience) else None
        if lost is not None and not self._retrying.acquire(blocking=False):
            raise type(lost[1])(str(lost[1]))
        try:
            yield
        except psycopg.Error as error:
            if is_lost(error):
                self._lost = (time.monotonic() if self._lost is None else self._lost[0], error)
                self.close_idle()  # the other connections are probably lost, too
            raise
        else:
            self._lost = None
        finally:
            if lost is not None:
                self._retrying.release()

    def is_given_up(self, patience: float) -> bool:
        """Return True if the server has been unreachable for `patience` seconds."""
        lost = self._lost
        return lost is not None and time.monotonic() - lost[0] >= patience

    def take(self, seconds: float) -> Link:
        """
        Return a connection, free or new; raise `psycopg.Error` if connecting fails.

        Raises `UnavailableError` if all connections are in use for `seconds`.
        """
        end = time.monotonic() + seconds
        while True:
            link = self._take_or_reserve(end)
            if link is None:
                try:
                    link = self._connect()
                except BaseException as error:
                    with self._changed:
                        self._open -= 1
                        is_full = isinstance(error, psycopg.Error) and self._made > 0 and _is_out_of_connections(error)
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

    def _take_or_reserve(self, end: float) -> Link | None:
        """Return a free connection, or reserve a place for a new connection and return None."""
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
        """Return a free connection, or None."""
        with self._changed:
            return self._idle.pop()[0] if self._idle else None

    def give_back(self, link: Link) -> None:
        """Release a connection to the pool; close it if it is lost or inside a transaction."""
        with self._changed:
            if link.is_free and not link.is_lost and not self._closed:
                self._idle.append((link, time.monotonic()))
                self._changed.notify()
                to_close = []
            else:
                to_close = [link]
            while self._idle and self._idle[0][1] < time.monotonic() - IDLE_FOR:
                to_close.append(self._idle.popleft()[0])
        for unused in to_close:
            unused.close()
            self._forget()

    def close_idle(self) -> None:
        """Close all free connections."""
        with self._changed:
            idle, self._idle = self._idle, deque()
        for link, _ in idle:
            link.close()
            self._forget()

    def close(self) -> None:
        """Close the free connections now and the others on their release; a forked process closes none."""
        self._closed = True
        if self._process == os.getpid():
            self.close_idle()

    def _forget(self) -> None:
        with self._changed:
            self._open -= 1
            self._made -= 1
            self._changed.notify()


def _is_out_of_connections(error: psycopg.Error) -> bool:
    """Return True if the server or its pooler has no more connections; a pooler may just let the client wait."""
    if error.sqlstate == "53300" or isinstance(error, (SilentError, psycopg.errors.ConnectionTimeout)):
        return True
    return any(
        words in str(error)
        for words in ("too many", "no more connections", "query_wait_timeout", "remaining connection slots")
    )


def schema_number(address: str) -> int:
    """Return the database's schema number, 0 for none; raise the same errors as `PostgresStorage`."""
    try:
        with closing(connect(parameters_of(address))) as connection:
            return schema_of(connection).version
    except psycopg.Error as error:
        raise unavailable(error) from error


def newest_schema() -> int:
    """Return the number of the newest schema."""
    return newest()


class _Write:
    """Queued work of an account, with its arrival time; the account is None for the service's own work."""

    def __init__(self, work: Callable[[Transaction], Any], account: Hashable) -> None:
        self.work = work
        self.account = account
        self.arrived = time.monotonic()
        self.future: Future[Any] = PlainFuture()

    def settle(self, result: Any, error: BaseException | None) -> None:
        """Complete the future with the result or the error."""
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class _Release:
    """Item in the queue of new work: serve a held account again."""

    def __init__(self, account: Hashable) -> None:
        self.account = account


class WriterPool:
    """
    Threads that run `write` concurrently; fair queueing divides their time between the accounts.

    At most `MAX_WRITERS_OF_ONE` writes of an account run at a time; the service's own work has no such limit. A signal
    handler may interrupt a submitting thread anywhere, so `submit` takes no lock: it puts the work into a queue, sorted
    by the writer threads.
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
        #: Outcomes of held accounts' work, kept until their running work has ended.
        self._outcomes: dict[Hashable, list[tuple[_Write, Any, BaseException | None]]] = {}
        self._ends_at = math.inf

    def submit(self, work: Callable[[Transaction], T], account: Hashable) -> Future[T]:
        """Queue work of an account and return its future."""
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
        Start no more work of an account until `release`; call it only within the account's work.

        The future of that work completes after the account's other running work.
        """
        with self._lock:
            self._held.add(account)
            self._fair.hold(account)

    def release(self, account: Hashable) -> None:
        """Resume the work of an account after `hold`."""
        self._arrived.put(_Release(account))
        with suppress(UnavailableError):  # closed already, and `close` releases all accounts
            self._wake()

    def end_within(self, seconds: float) -> None:
        """Refuse all accounts' work not started within `seconds`."""
        self._ends_at = min(self._ends_at, self._clock() + seconds)

    def close(self) -> None:
        """Finish the submitted work, then end the threads."""
        with self._lock:
            self._held.clear()
            self._fair.release_all()
        with suppress(UnavailableError):  # closed already
            self._wake()
        self._pool.close()

    def _wake(self) -> None:
        # One call per piece of work, and each call empties the queue: no work is left behind.
        self._pool.submit(self._run_queue)

    def _run_queue(self) -> None:
        while True:
            refused: list[_Write] = []
            with self._lock:
                write = self._next_write(refused)
            for each in refused:
                if each.future.set_running_or_notify_cancel():
                    each.settle(None, ending_error())
            if write is None:
                return
            self._run(write)
            del write  # otherwise an idle thread keeps it in memory

    def _next_write(self, refused: list[_Write]) -> _Write | None:
        """Sort new work into the queues and return the next write; move work to `refused` if it comes too late."""
        with suppress(Empty):
            while True:
                arrived = self._arrived.get_nowait()
                if isinstance(arrived, _Write):
                    self._fair.put(arrived.account, arrived)
                else:
                    self._held.discard(arrived.account)
                    self._resume(arrived.account)
        if self._clock() >= self._ends_at:
            self._refuse(refused)
        while (write := self._fair.take()) is not None:
            if write.future.set_running_or_notify_cancel():
                self._running[write.account] += 1
                if not self._has_room(write.account):
                    self._fair.hold(write.account)
                return write
        return None

    def _resume(self, account: Hashable) -> None:
        if account not in self._held and self._has_room(account):
            self._fair.release(account)

    def _has_room(self, account: Hashable) -> bool:
        return account is None or self._running[account] < MAX_WRITERS_OF_ONE

    def _refuse(self, refused: list[_Write]) -> None:
        """Move all accounts' work to `refused`; the service's own work, such as storing access counts, still runs."""
        self._fair.release_all()
        own: list[_Write] = []
        while (write := self._fair.take()) is not None:
            (own if write.account is None else refused).append(write)
        for write in own:
            self._fair.put(None, write)

    def _run(self, write: _Write) -> None:
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
            self._resume(account)
            ended = [*self._outcomes.pop(account, ()), (write, result, error)]
            if not self._running[account]:
                del self._running[account]
            elif account in self._held:
                self._outcomes[account] = ended
                ended = []
        for each, its_result, its_error in ended:
            each.settle(its_result, its_error)


class PostgresStorage(Storage):
    """
    PostgreSQL storage in the database at `address`; missing tables are created.

    Any number of processes may share a database. The storage is thread-safe; a forked process must open its own. Raises
    `ValueError` for an invalid address, `UnavailableError` if the database is unreachable, and `UnsupportedError` if
    its tables are foreign or of a newer version. A database opened with `to_fill` is a store only after `end_filling`.
    An older schema is migrated or refused: see `migrate`. After a loss, operations wait up to `patience` seconds for
    the database.

    Each write has its own transaction and connection. Many run concurrently, and the server groups their commits; for
    their locks see `PostgresWriter`.
    """

    waits = True
    max_name_bytes = MAX_NAME_BYTES
    #: Number of concurrent writers.
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
        self._loss_log = _LossLog()
        self._probe = HealthProbe(lambda: self.submit(_check_room, PROBE_QUEUE))
        _open.add(self)

    def _check_open(self) -> None:
        """Raise `UnavailableError` after `close`, or in a forked process: it lacks the writer threads."""
        if self._closed or os.getpid() != self._process:
            raise not_open(closed=self._closed)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Return a read transaction for the caller's thread: a snapshot of one moment."""
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
                raise OperatorError(_LOCKED, retry_after=RETRY_AFTER) from error
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
        """Run a reader's first statements, with retries over other connections: nothing has been read before."""
        pause = FIRST_PAUSE
        begun = time.monotonic()
        while True:
            try:
                with self._pool.attempt(patience):
                    link = self._pool.take(max(begun + patience - time.monotonic(), LEAST_WAIT))
                    try:
                        opening: list[Statement] = [(_BEGIN_READ_ONLY, ()), *link.settings]
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

        Each piece of work has its own transaction, whatever its size.
        """
        self._check_open()
        return self._writers.submit(work, account)

    def others_wait(self, account: Hashable) -> bool:
        """Return True if other work is queued; call it within an account's work."""
        return self._writers.others_wait(account)

    def hold(self, account: Hashable) -> None:
        """Start no more work of an account until `release`; call it only within the account's work."""
        self._writers.hold(account)

    def release(self, account: Hashable) -> None:
        """Resume the work of an account after `hold`."""
        self._writers.release(account)

    def end_within(self, seconds: float) -> None:
        """Refuse all work not started within `seconds`."""
        self._writers.end_within(seconds)

    def _write(self, work: Callable[[Transaction], T], since: float) -> T:
        if time.monotonic() - since > max(self._patience - LEAST_WAIT, ANSWER_WAIT):
            raise UnavailableError(_WAITS, retry_after=RETRY_AFTER, sent=False)
        retries = _Retries(since, self._patience, self._closing)
        while True:
            try:
                with self._pool.attempt(self._patience):
                    return self._try(work, retries)
            except psycopg.Error as error:
                self._loss_log.lost(error)
                retries.check(error)
                retries.pause()

    def _try(self, work: Callable[[Transaction], T], retries: _Retries) -> T:
        """Run the work in a transaction, unless the previous try turns out to be committed."""
        link = self._pool.take(max(retries.left, LEAST_WAIT))
        try:
            if retries.doubt is not None:
                writer, commit, result = retries.doubt
                if _was_committed(link, writer, commit):
                    self._loss_log.recovered()
                    return result  # type: ignore[no-any-return]  # the result of the work
                retries.doubt = None
            commit = secrets.token_hex(16)
            transaction = PostgresWriter(link, link.writer, commit, has_trigrams=self._has_trigrams)
            try:
                transaction.lock_accounts(retries.locked)
                result = work(transaction)
                if isinstance(result, RolledBack):
                    with suppress(psycopg.Error):
                        transaction.roll_back()
                else:
                    try:
                        transaction.commit()
                    except psycopg.Error:
                        if transaction.in_doubt:
                            retries.doubt = (link.writer, commit, result)
                        raise
            except BaseException as error:
                if isinstance(error, psycopg.Error):
                    retries.locked |= transaction.many_locked()
                    if error.sqlstate not in _CONFLICTS:
                        link.close()
                with suppress(psycopg.Error):
                    transaction.roll_back()
                raise
        finally:
            self._pool.give_back(link)
        self._loss_log.recovered()
        return result

    def problem(self) -> str | None:
        """Return the present reason for failing reads or saves, None if they succeed; answers within seconds."""
        try:
            patience = min(base.PATIENCE, self._patience)
            with self._reading(patience, base.PATIENCE) as reader:
                reader.has_accounts()
                reader.account_of_key(b"")  # each request looks up its key
                if reader.row(_IS_READ_ONLY)[0]:
                    return _READ_ONLY_MESSAGE
        except UnavailableError as error:
            return str(error)
        return self._probe.problem(base.PATIENCE)

    def size(self) -> int:
        """Return the size of the tables and their indexes in bytes."""
        with self._reading() as reader:
            return reader.size_of_tables()

    def hurry(self) -> None:
        """Stop waiting for a lost server; `close` follows."""
        self._closing.set()

    def close(self) -> None:
        """Finish the submitted work, then close all connections."""
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
        # Asynchronous commit: nothing depends on it, and the end of the service needn't wait for the disk.
        begin: list[Statement] = [("BEGIN", ()), ("SET LOCAL synchronous_commit = off", ())]
        with suppress(psycopg.Error):
            link.trip(
                [*begin, (_DELETE_MARKERS, (self._pool.writers,)), (_DELETE_OLD_MARKERS, ()), ("COMMIT", ())],
                CLOSING_WAIT,
            )
        link.close()
        self._pool.give_back(link)


def _pool(parameters: dict[str, Any], closes: threading.Event) -> ConnectionPool:
    return ConnectionPool(lambda: _open_link(parameters, closes), MAX_CONNECTIONS)


def _check_room(transaction: Transaction) -> None:
    """Raise `UnavailableError` if saves fail, for lack of permissions or behind a lock on the table."""
    transaction.count("DELETE FROM files WHERE FALSE")


def _was_committed(link: Link, writer: str, commit: str) -> bool:
    """
    Return True if the transaction with this marker was committed.

    The query for the row lock waits until the server has ended that transaction. Then this check commits, too, before
    it returns: the server may show a commit that isn't replicated yet.
    """
    link.is_free = link.was_warned = False
    opening: list[Statement] = [("BEGIN ISOLATION LEVEL READ COMMITTED", ()), *link.settings]
    (last,) = link.rows(_LAST_COMMIT, writer, before=[*opening, (_CREATE_MARKER, (writer,))])[0]
    results = link.trip([(_TOUCH_MARKER, (writer,)), ("COMMIT", ())])
    if link.was_warned or results[-1].command_status != b"COMMIT":
        link.close()
        raise psycopg.OperationalError("The commit ended with a warning.")
    link.is_free = True
    return bool(last == commit)


class _Retries:
    """Retries of a piece of work: their number, deadline and backoff, and a commit with an unknown outcome."""

    def __init__(self, since: float, patience: float, closes: threading.Event) -> None:
        self._since = since
        self._begun = time.monotonic()
        self._patience = patience
        self._closing = closes
        self._tries = 0
        self._pause = 0.0
        #: Accounts with several files locked by earlier tries. The next try locks the whole account, so it succeeds.
        self.locked: frozenset[int] = frozenset()
        #: Commit with an unknown outcome: the connection's marker, the transaction's marker, and the work's result.
        self.doubt: tuple[str, str, Any] | None = None

    @property
    def left(self) -> float:
        """Remaining seconds to wait for a lost database."""
        return self._since + self._patience - time.monotonic()

    def check(self, error: psycopg.Error) -> None:
        """Raise the error for the caller, unless a retry may succeed; then set the backoff for `pause`."""
        now = time.monotonic()
        if self.doubt is not None or is_lost(error) or error.sqlstate == _READ_ONLY:
            again = now - self._since < self._patience and not self._closing.is_set()
            self._pause = min(FIRST_PAUSE * 2 ** min(self._tries, 9), LONGEST_PAUSE)
        else:
            again = error.sqlstate in _CONFLICTS and self._tries < MAX_TRIES and now - self._begun < PATIENCE
            self._pause = FIRST_PAUSE * self._tries
        self._tries += 1
        if not again and self.doubt is not None:
            raise OutcomeUnknownError(_UNKNOWN, error="OutcomeUnknown") from error
        if not again:
            raise unavailable(error) from error

    def pause(self) -> None:
        """Wait before the next try: the backoff, with jitter."""
        self._closing.wait(self._pause * random.uniform(0.5, 1))  # noqa: S311 - not for a secret


class _LossLog:
    """Log once when the database is lost, and once when it is back."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._lock = threading.Lock()

    def lost(self, error: psycopg.Error) -> None:
        """Record a failed try."""
        if is_lost(error):
            with self._lock:
                is_first = self._since is None
                self._since = time.monotonic() if is_first else self._since
            if is_first:
                message = "The connection to the database was lost, and writes wait for another: %s"
                _log.warning(message, unavailable(error))

    def recovered(self) -> None:
        """Record a successful try."""
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
