"""Connections: listening socket; limits per client address, of open files, request memory and unread replies."""

from __future__ import annotations

import asyncio
import ctypes
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

#: Open files of a process besides its connections: the store, a database, temporary files.
OTHER_FILES: Final = 200
#: Minimum limit of open files for a service to start.
MIN_FILES: Final = 64
RAISE_FILE_LIMIT: Final = "raise the limit of open files (ulimit -n, or LimitNOFILE= in a unit of systemd)"


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; `ValueError` for an invalid host, `OSError` with a remedy if it can't listen."""
    if re.fullmatch(HOST, host) is None:  # an empty host would mean all addresses
        raise ValueError(f"{host!r} is no host to listen on; write an IP address, or a name without scheme and port.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
        return socket.create_server(address, family=family)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while")[0]  # our message names the address
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
    """Return the URL of a service on this socket."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    scheme = "http" if options.tls_cert is None else "https"
    return f"{scheme}://{host}:{listener.getsockname()[1]}{options.base_path.rstrip('/')}"


def raise_file_limit() -> int:
    """
    Raise this process's limit of open files as far as allowed, and return the number available for connections.

    Raise `OSError` with a remedy if the limit is too low for a service.
    """
    try:
        import resource  # Unix only
    except ImportError:
        return sys.maxsize
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # the limit can't be raised
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

#: Networks exempt from limits per address: this machine, because an unnamed proxy on it may stand for many clients.
NOT_LIMITED: Final = ("127.0.0.0/8", "::1/128")
#: Minimum seconds between two log lines about the same limit.
LOG_INTERVAL: Final = 60.0
#: Seconds until a refused client should retry (Retry-After).
WAIT: Final = 5
#: Share of each limit open to strangers; the rest is reserved for clients with a known API key or address.
STRANGERS_SHARE: Final = 0.75
#: Bytes of a request held by each connection without counting towards its request memory.
FREE_BYTES: Final = 8 * 2**10
#: Socket receive buffer in bytes for a client ahead of our reads; the system's default is megabytes. With less than two
#: segments of the loopback device, of 64 KiB each, its TCP waits 0.2 s for each of them.
SMALL_WINDOW: Final = 128 * 2**10
#: Socket receive buffer in bytes of a TLS connection whose client has shown no valid API key.
TLS_WINDOW: Final = 32 * 2**10
#: Memory of a TLS connection in bytes, before anything large is sent.
TLS_CONNECTION_BYTES: Final = 56 * 2**10
#: Seconds between two rounds of reading the rest of refused requests, and the pieces read per round.
DRAIN_INTERVAL: Final = 0.01
DRAIN_PIECES: Final = 8
#: Number of closed TLS connections after which freed memory is returned to the system.
MANY_CLOSED: Final = 50
#: Maximum remembered pairs of a valid API key and its client's address, and counted addresses of refused clients.
MAX_KNOWN: Final = 4096


class ConnectionLimiter:
    """Connection limit per client address, except for `trusted` proxies; only for the loop's thread."""

    def __init__(self, limit: int, trusted: str = "") -> None:
        self._limit = limit
        self._connections: Counter[str] = Counter()
        #: Number of connections closed so far.
        self.closed = 0
        self._free: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for each in (*NOT_LIMITED, *trusted.split(",")):
            with suppress(ValueError):  # not a network, so no proxy for uvicorn either
                self._free.append(ipaddress.ip_network(each.strip(), strict=False))

    def comes(self, address: str) -> bool:
        """Count a new connection; return False, without counting it, if its address is at the limit."""
        subject = network_of(address)
        if self._connections[subject] >= self._limit and not self.is_exempt(address):
            return False
        self._connections[subject] += 1
        return True

    def goes(self, address: str) -> None:
        """Stop counting a closed connection."""
        self.closed += 1
        subject = network_of(address)
        self._connections[subject] -= 1
        if not self._connections[subject]:
            del self._connections[subject]

    def is_exempt(self, address: str) -> bool:
        """Return True if limits per address don't apply, because the address may stand for many clients."""
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        return any((mapped or ip) in network for network in self._free)


class MemoryReturn:
    """
    Return of freed memory to the system, once enough connections of a `limiter` have been closed.

    The buffers of TLS leave a fragmented heap, and the C library gives back its end only: after 1,200 connections with
    large replies the process kept 320 MiB, and 75 MiB with this. It takes 1 to 40 ms.
    """

    def __init__(self, limiter: ConnectionLimiter) -> None:
        self._limiter = limiter
        self._closed = 0
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None  # of glibc

    def check(self) -> None:
        """Return the memory if many connections have been closed since the last time."""
        if self._trim is not None and self._limiter.closed - self._closed >= MANY_CLOSED:
            self._closed = self._limiter.closed
            self._trim(0)


class SparseLog:
    """Log of refusals for one reason: at most one line per `LOG_INTERVAL` seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._logged_at = -math.inf

    def warn(self, problem: str, remedy: str) -> None:
        """Log a reached limit and its remedy, unless a line was logged recently."""
        self.write(f"{problem}, so others are refused; {remedy}.")

    def write(self, message: str) -> None:
        """Log a message, unless a line was logged recently."""
        now = self._now()
        if now - self._logged_at >= LOG_INTERVAL:
            self._logged_at = now
            _log.warning("%s", message)


class RefusalLog:
    """
    Log of connections refused before their request reaches the application; only for the loop's thread.

    The first refusal is logged at once. Further ones are counted, and logged together `LOG_INTERVAL` seconds later.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._logged_at = -math.inf
        self._by_address: Counter[str] = Counter()
        self._further = 0
        self._last_reason = ""

    def add(self, address: str, reason: str) -> None:
        """Log or count a refusal of this client."""
        if not self._further and self._now() - self._logged_at >= LOG_INTERVAL:
            self._logged_at = self._now()
            _log.warning("A connection from %s was refused: %s", address or "an unknown address", reason)
            return
        self._further += 1
        self._last_reason = reason
        if address in self._by_address or len(self._by_address) < MAX_KNOWN:
            self._by_address[address] += 1

    def flush(self, *, at_once: bool = False) -> None:
        """Log the counted refusals if they are due, or `at_once`."""
        if not self._further or (not at_once and self._now() - self._logged_at < LOG_INTERVAL):
            return
        self._logged_at = self._now()
        (address, most), *_ = self._by_address.most_common(1)
        _log.warning(
            "Further connections refused: %d (addresses: %d; most often, %d times, %s); the last one: %s",
            self._further,
            len(self._by_address),
            most,
            address or "an unknown address",
            self._last_reason,
        )
        self._by_address.clear()
        self._further = 0


class OpenFiles:
    """
    Connection limit of a process: its limit of open files, less the store's own files, and a setting.

    A reached limit is logged at most once per `LOG_INTERVAL` seconds.
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
        self._sparse_log = SparseLog(now)

    def has_room(self, connections: int) -> bool:
        """Return True if this number of connections may be open; otherwise log the reached limit."""
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
        """Log a warning if no more files can be opened: nothing else reports connections it fails to accept."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._sparse_log.warn(f"Nothing more can be opened ({error.strerror})", RAISE_FILE_LIMIT)


class KnownClients:
    """
    Recently valid API keys, and their clients' addresses; only for the loop's thread.

    They only give access to memory and disk space closed to strangers, so forgetting them does no harm.
    """

    def __init__(self) -> None:
        #: Pairs of API key and client address.
        self.pairs: set[tuple[str, str]] = set()
        self._keys: set[str] = set()
        self._networks: set[str] = set()

    def add(self, api_key: str, address: str) -> None:
        """Remember a valid API key and its client's address; at `MAX_KNOWN` pairs, forget all others first."""
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
        """Return True if the API key was valid recently."""
        return api_key in self._keys

    def has_network(self, network: str) -> bool:
        """Return True if a valid API key came from this network recently."""
        return network in self._networks


@dataclass(frozen=True)
class Payer:
    """Payer of memory: a known API key, an address, or None for an address of many clients."""

    subject: str | None
    is_known: bool = False


class RequestMemory:
    """
    Memory limit for arriving and queued requests, per process and per payer; only for the loop's thread.

    All strangers together may use `STRANGERS_SHARE` of the process's limit.
    """

    def __init__(self, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        self._most = settings.request_memory
        self._most_of_strangers = max(settings.max_body_bytes + FREE_BYTES, int(STRANGERS_SHARE * self._most))
        self._most_per_payer = settings.address_request_memory
        self._by_subject: Counter[str] = Counter()
        self._of_strangers = 0
        self._sparse_log = SparseLog(now)
        self.taken = 0

    def take(self, payer: Payer, size: int) -> CloudStoreError | None:
        """Count `size` more bytes and return None, or return the error for a request over a limit."""
        if payer.subject is not None and self._by_subject[payer.subject] + size > self._most_per_payer:
            if not self._by_subject[payer.subject]:
                del self._by_subject[payer.subject]
            return TooOftenError(
                f"Your requests hold more than {self._most_per_payer:,} bytes at a time (the service's"
                " max_address_request_memory); send fewer at once.",
                retry_after=float(WAIT),
            )
        others = 0 if payer.is_known else self._of_strangers + size - self._most_of_strangers
        if self.taken + size > self._most or others > 0:
            self._sparse_log.warn(
                f"Requests hold {self.taken:,} bytes of memory, near the bound",
                "raise max_request_memory if the machine has the memory",
            )
            sentence = "The service has no memory for more requests (its max_request_memory); try again."
            return UnavailableError(sentence, retry_after=float(WAIT))
        self.add(payer, size)
        return None

    def add(self, payer: Payer, size: int) -> None:
        """Count `size` more bytes which are in use already, also over a limit."""
        self.taken += size
        if not payer.is_known:
            self._of_strangers += size
        if payer.subject is not None:
            self._by_subject[payer.subject] += size

    def give_back(self, payer: Payer, size: int) -> None:
        """Release `size` bytes of the payer."""
        self.taken -= size
        if not payer.is_known:
            self._of_strangers -= size
        if payer.subject is not None:
            self._by_subject[payer.subject] -= size
            if not self._by_subject[payer.subject]:
                del self._by_subject[payer.subject]


class Drain:
    """
    Drain of refused requests: reads their rest a few pieces at a time; only for the loop's thread.

    A client still sending may then see its reply, and slows no other client.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()

    def wait(self, read_on: Callable[[], object]) -> None:
        """Queue `read_on`, and call it in one of the next rounds."""
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
    Memory limit for replies unread by their clients; only for the loop's thread.

    Over the limit, end the connection with the longest wait, of the address with the most unread bytes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[Hashable, tuple[str, int, Callable[[], object]]] = {}  # longest wait first
        self._by_subject: Counter[str] = Counter()
        self.taken = 0

    def add(self, connection: Hashable, subject: str, size: int, end: Callable[[], object]) -> None:
        """Count a connection's unread bytes; `end` closes the connection, and may call `remove`."""
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
        """Stop counting a connection."""
        held = self._held.pop(connection, None)
        if held is not None:
            subject, size, _ = held
            self.taken -= size
            self._by_subject[subject] -= size
            if not self._by_subject[subject]:
                del self._by_subject[subject]


def too_many(limit: int) -> TooOftenError:
    """Return the error of a connection over the limit of its address."""
    sentence = (
        f"There are {limit:,} connections from your address already (the service's max_connections_per_address); close"
        " one, or wait."
    )
    return TooOftenError(sentence, retry_after=float(WAIT))


def no_room() -> UnavailableError:
    """Return the error of a connection over the limit of the process."""
    sentence = "The service has too many connections (its max_connections or limit of open files); try again."
    return UnavailableError(sentence, retry_after=float(WAIT))


def refusal(error: CloudStoreError, status: int | None = None) -> bytes:
    """Return a complete HTTP response for the last reply on a connection; `status` replaces the error's own."""
    reply = failure(error)
    status = HTTPStatus(reply.status if status is None else status)
    head, body = encode_response(reply)
    return b"HTTP/1.1 %d %b\r\n%bconnection: close\r\n\r\n%b" % (status, status.phrase.encode(), head, body)
