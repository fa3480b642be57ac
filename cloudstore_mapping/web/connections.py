"""Connections: the listening socket, and limits by client address and by open files."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import math
import os
import re
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from cloudstore_mapping.errors import CloudStoreError, TooOftenError, UnavailableError
from cloudstore_mapping.service.security import network_of
from cloudstore_mapping.web.http import encode_response
from cloudstore_mapping.web.options import HOST, Options
from cloudstore_mapping.wire import failure

if TYPE_CHECKING:
    from cloudstore_mapping.service.settings import Settings

#: Open files that a process needs besides its connections: the store's, a database's, temporary ones.
OTHER_FILES: Final = 200
#: Open files below which a service doesn't start.
MIN_FILES: Final = 64
RAISE_FILE_LIMIT: Final = "raise the limit of open files (ulimit -n, or LimitNOFILE= in a unit of systemd)"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; `ValueError` for no host, `OSError` with a sentence where none can."""
    if re.fullmatch(HOST, host) is None:  # an empty one would be all addresses
        raise ValueError(f"{host!r} is no host to listen on; write an IP address, or a name without scheme and port.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
        return socket.create_server(address, family=family)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while")[0]  # where to is said anyway
        raise type(error)(f"The service can't listen on {host}, port {port} ({why}); {_advice(error)}.") from error


def _advice(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "write an IP address, or a name that this machine can look up"
    if error.errno == errno.EADDRNOTAVAIL:
        return "write an address that this machine has; 127.0.0.1 is itself, 0.0.0.0 all of its addresses"
    if error.errno == errno.EAFNOSUPPORT:
        return "this machine has no IPv6, so write an IPv4 address such as 127.0.0.1"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "ports below 1024 are the system's, so choose another one"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return RAISE_FILE_LIMIT
    return "end the program that has the port, or choose another one"


def address_of(listener: socket.socket, options: Options) -> str:
    """Return the address that a service on this socket answers at."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    scheme = "http" if options.tls_cert is None else "https"
    return f"{scheme}://{host}:{listener.getsockname()[1]}{options.base_path.rstrip('/')}"


def raise_file_limit() -> int:
    """
    Let this process have as many files open as the system lets it; return how many of them may be connections.

    `OSError` with a sentence where that is too few for a service.
    """
    try:
        import resource  # Unix has it
    except ImportError:
        return sys.maxsize
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # it can't be lifted
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        limit = most
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    if limit < MIN_FILES:
        raise OSError(
            f"The system lets this process open {limit} files, and a service needs {MIN_FILES}; {RAISE_FILE_LIMIT}."
        )
    return max(limit // 2, limit - OTHER_FILES)


_log: Final = logging.getLogger(__name__)

#: Who stands for many: the machine itself, on which a proxy may run that nobody named.
NOT_LIMITED: Final = ("127.0.0.0/8", "::1/128")
#: Seconds between two lines of the log about the same limit.
LOG_INTERVAL: Final = 60.0
#: Seconds after which somebody who was refused may have a place.
WAIT: Final = 5
#: The part of each bound that strangers share; the rest is for clients whose API key or address is known.
STRANGERS_SHARE: Final = 0.75
#: Bytes of a request that every connection may hold without asking for memory.
FREE_BYTES: Final = 8 * 2**10
#: Bytes that the system may hold of a client that sends more than is read of it; by default it holds megabytes.
SMALL_WINDOW: Final = 32 * 2**10
#: Memory that TLS takes for a connection on which nothing large was sent.
TLS_CONNECTION_BYTES: Final = 56 * 2**10
#: Seconds between two rounds in which the rest of refused requests is read, and how many pieces are read in one.
DRAIN_INTERVAL: Final = 0.01
DRAIN_PIECES: Final = 8
#: Pairs of an API key and an address that are remembered for having been right.
MAX_KNOWN: Final = 4096


class ConnectionLimiter:
    """Counts the open connections of each address but those of `trusted` proxies; only for the loop's thread."""

    def __init__(self, limit: int, trusted: str = "") -> None:
        self._limit = limit
        self._connections: Counter[str] = Counter()
        self._free: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for each in (*NOT_LIMITED, *trusted.split(",")):
            with suppress(ValueError):  # what is no network is no proxy of uvicorn's either
                self._free.append(ipaddress.ip_network(each.strip(), strict=False))

    def comes(self, address: str) -> bool:
        """Count a connection that was made; whether there is a place for it."""
        subject = network_of(address)
        if self._connections[subject] >= self._limit and not self.is_exempt(address):
            return False
        self._connections[subject] += 1
        return True

    def goes(self, address: str) -> None:
        """Count no longer one that had a place."""
        subject = network_of(address)
        self._connections[subject] -= 1
        if not self._connections[subject]:
            del self._connections[subject]

    def is_exempt(self, address: str) -> bool:
        """Whether the address may stand for many clients, so that no limit per address applies to it."""
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        return any((mapped or ip) in network for network in self._free)


class _SparseLog:
    """Logs that a limit is reached, once in `LOG_INTERVAL` seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._logged_at = -math.inf

    def warn(self, problem: str, remedy: str) -> None:
        """Log the problem and its remedy, unless that was done lately."""
        now = self._now()
        if now - self._logged_at >= LOG_INTERVAL:
            self._logged_at = now
            _log.warning("%s, so others are refused; %s.", problem, remedy)


class OpenFiles:
    """
    Limits the connections of a process: by its limit of open files, less the store's own, and by a setting.

    It logs once in `LOG_INTERVAL` seconds that the limit is reached.
    """

    def __init__(
        self,
        max_connections: int,
        now: Callable[[], float] = time.monotonic,
        *,
        max_by_setting: int = sys.maxsize,
    ) -> None:
        self._max_connections = min(max_connections, max_by_setting)
        self._is_by_setting = max_by_setting < max_connections
        self._sparse_log = _SparseLog(now)

    def has_room(self, connections: int) -> bool:
        """Whether so many connections may be open."""
        if connections <= self._max_connections:
            return True
        if self._is_by_setting:
            problem = f"{self._max_connections:,} connections are open, as many as max_connections allows"
            self._sparse_log.warn(problem, "raise it if the machine has the memory")
        else:
            self._sparse_log.warn(
                f"{self._max_connections:,} connections are open, and the limit of open files has room for no more",
                RAISE_FILE_LIMIT,
            )
        return False

    def check(self) -> None:
        """Log it where nothing can be opened: connections that can't be accepted are told to nobody else."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._sparse_log.warn(f"Nothing more can be opened ({error.strerror})", RAISE_FILE_LIMIT)


class KnownClients:
    """
    Remembers API keys that were right, and the addresses that they came from; only for the loop's thread.

    They decide only who may use memory and disk that strangers may not, so nothing is lost when they are forgotten.
    """

    def __init__(self) -> None:
        #: Pairs of key and address.
        self.pairs: set[tuple[str, str]] = set()
        self._keys: set[str] = set()
        self._networks: set[str] = set()

    def add(self, api_key: str, address: str) -> None:
        """Remember a key that was right."""
        if (api_key, address) in self.pairs:
            return
        if len(self.pairs) >= MAX_KNOWN:
            self.pairs.clear()
            self._keys.clear()
            self._networks.clear()
        self.pairs.add((api_key, address))
        self._keys.add(api_key)
        self._networks.add(network_of(address))

    def has_key(self, api_key: str) -> bool:
        """Whether the key was right lately."""
        return api_key in self._keys

    def has_network(self, network: str) -> bool:
        """Whether a right key came from this network lately."""
        return network in self._networks


@dataclass(frozen=True)
class Payer:
    """Whom memory is counted for: a known API key, an address, or None for one that stands for many clients."""

    subject: str | None
    is_known: bool = False


class RequestMemory:
    """
    Bounds the bytes of requests that arrive or wait, per process and per payer; only for the loop's thread.

    Strangers together may use `STRANGERS_SHARE` of the whole.
    """

    def __init__(self, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        self._most = settings.request_memory
        self._most_of_strangers = max(settings.max_body_bytes + FREE_BYTES, int(STRANGERS_SHARE * self._most))
        self._most_per_payer = settings.address_request_memory
        self._by_subject: Counter[str] = Counter()
        self._of_strangers = 0
        self._sparse_log = _SparseLog(now)
        self.taken = 0

    def take(self, payer: Payer, size: int) -> CloudStoreError | None:
        """Count more bytes, or return the error for a request that may have no more."""
        if payer.subject is not None and self._by_subject[payer.subject] + size > self._most_per_payer:
            if not self._by_subject[payer.subject]:
                del self._by_subject[payer.subject]
            return TooOftenError(
                f"Your requests hold more than {self._most_per_payer:,} bytes at a time; send fewer at once.",
                retry_after=float(WAIT),
            )
        others = 0 if payer.is_known else self._of_strangers + size - self._most_of_strangers
        if self.taken + size > self._most or others > 0:
            self._sparse_log.warn(
                f"Requests hold {self.taken:,} bytes of memory, near the bound",
                "raise max_request_memory if the machine has the memory",
            )
            return UnavailableError("The service has no memory for more requests; try again.", retry_after=float(WAIT))
        self.taken += size
        if not payer.is_known:
            self._of_strangers += size
        if payer.subject is not None:
            self._by_subject[payer.subject] += size
        return None

    def give_back(self, payer: Payer, size: int) -> None:
        """Count them no longer."""
        self.taken -= size
        if not payer.is_known:
            self._of_strangers -= size
        if payer.subject is not None:
            self._by_subject[payer.subject] -= size
            if not self._by_subject[payer.subject]:
                del self._by_subject[payer.subject]


class Drain:
    """
    Reads on what refused clients still send, a few pieces at a time: they may see their reply, and slow nobody else.

    Only for the loop's thread.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()

    def wait(self, read_on: Callable[[], object]) -> None:
        """Call `read_on` when it is this piece's turn."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(DRAIN_INTERVAL, self._serve)
        self._waiting.append(read_on)

    def _serve(self) -> None:
        for _ in range(min(DRAIN_PIECES, len(self._waiting))):
            self._waiting.popleft()()
        if self._waiting:
            asyncio.get_running_loop().call_later(DRAIN_INTERVAL, self._serve)


class UnreadReplies:
    """
    Bounds the bytes of replies that clients don't read; only for the loop's thread.

    Past the bound it ends the connection that has waited longest for its client, of the address that holds the most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[Hashable, tuple[str, int, Callable[[], object]]] = {}  # the longest wait first
        self._by_subject: Counter[str] = Counter()
        self.taken = 0

    def add(self, connection: Hashable, subject: str, size: int, end: Callable[[], object]) -> None:
        """Count a connection's unread bytes; `end` ends it, and may call `remove`."""
        self.remove(connection)
        self._held[connection] = (subject, size, end)
        self._by_subject[subject] += size
        self.taken += size
        while self.taken > self._most and len(self._held) > 1:
            greediest = max(self._by_subject, key=self._by_subject.__getitem__)
            victims = (each for each, held in self._held.items() if held[0] == greediest and each is not connection)
            victim = next(victims, None) or next(iter(self._held))
            ends = self._held[victim][2]
            self.remove(victim)
            ends()

    def remove(self, connection: Hashable) -> None:
        """Count a connection no longer."""
        held = self._held.pop(connection, None)
        if held is not None:
            subject, size, _ = held
            self.taken -= size
            self._by_subject[subject] -= size
            if not self._by_subject[subject]:
                del self._by_subject[subject]


def too_many(limit: int) -> bytes:
    """Return the reply to a connection from an address that has too many."""
    sentence = f"There are {limit:,} connections from your address already; close one, or wait."
    return refusal(TooOftenError(sentence, retry_after=float(WAIT)))


def no_room() -> bytes:
    """Return the reply to a connection for which the process has no room."""
    return refusal(UnavailableError("The service has too many connections; try again.", retry_after=float(WAIT)))


def refusal(error: CloudStoreError, status: int | None = None) -> bytes:
    """Return the whole reply that ends a connection, with the error's own status unless another is given."""
    reply = failure(error)
    status = HTTPStatus(reply.status if status is None else status)
    head, body = encode_response(reply)
    return b"HTTP/1.1 %d %b\r\n%bconnection: close\r\n\r\n%b" % (status, status.phrase.encode(), head, body)
