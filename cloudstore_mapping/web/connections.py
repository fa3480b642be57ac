"""Connections: the listening socket, and limits by client address and by open files."""

from __future__ import annotations

import errno
import ipaddress
import logging
import math
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Final

from cloudstore_mapping.errors import CloudStoreError, TooOftenError, UnavailableError
from cloudstore_mapping.service.security import network_of
from cloudstore_mapping.web.http import encode_response
from cloudstore_mapping.web.options import HOST, Options
from cloudstore_mapping.wire import failure

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
        if self._connections[subject] >= self._limit and not self._is_free(address):
            return False
        self._connections[subject] += 1
        return True

    def goes(self, address: str) -> None:
        """Count no longer one that had a place."""
        subject = network_of(address)
        self._connections[subject] -= 1
        if not self._connections[subject]:
            del self._connections[subject]

    def _is_free(self, address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        return any((mapped or ip) in network for network in self._free)


class OpenFiles:
    """
    Limits the connections of a process to those that its limit of open files has room for beside the store's own.

    That the limit is reached is logged once in `LOG_INTERVAL` seconds.
    """

    def __init__(self, max_connections: int, now: Callable[[], float] = time.monotonic) -> None:
        self._max_connections = max_connections
        self._now = now
        self._logged_at = -math.inf

    def has_room(self, connections: int) -> bool:
        """Whether so many connections may be open."""
        if connections <= self._max_connections:
            return True
        self._log(f"{self._max_connections:,} connections are open, and the limit of open files has room for no more")
        return False

    def check(self) -> None:
        """Log it where nothing can be opened: connections that can't be accepted are told to nobody else."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._log(f"Nothing more can be opened ({error.strerror})")

    def _log(self, problem: str) -> None:
        now = self._now()
        if now - self._logged_at >= LOG_INTERVAL:
            self._logged_at = now
            _log.warning("%s, so others are refused; %s.", problem, RAISE_FILE_LIMIT)


def too_many(limit: int) -> bytes:
    """Return the reply to a connection from an address that has too many."""
    sentence = f"There are {limit:,} connections from your address already; close one, or wait."
    return _refusal(TooOftenError(sentence, retry_after=float(WAIT)))


def no_room() -> bytes:
    """Return the reply to a connection for which the process has no room."""
    return _refusal(UnavailableError("The service has too many connections; try again.", retry_after=float(WAIT)))


def _refusal(error: CloudStoreError) -> bytes:
    reply = failure(error)
    status = HTTPStatus(reply.status)
    head, body = encode_response(reply)
    return b"HTTP/1.1 %d %b\r\n%bconnection: close\r\n\r\n%b" % (status, status.phrase.encode(), head, body)
