"""The socket that a service listens on, and the address that this makes."""

from __future__ import annotations

import errno
import re
import socket
import sys
from contextlib import suppress
from typing import Final

from cloudstore_mapping.web.options import HOST, Options

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
