"""The socket that a service listens on, and the address that this makes."""

from __future__ import annotations

import socket
from contextlib import suppress

from cloudstore_mapping.web.options import Options


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; `OSError` with a sentence where none can."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while")[0]  # where to is said anyway
        raise type(error)(
            f"The service can't listen on {host}, port {port} ({why}); "
            "end the program that has the port, or choose another one."
        ) from error


def address_of(listener: socket.socket, options: Options) -> str:
    """Return the address that a service on this socket answers at."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    scheme = "http" if options.tls_cert is None else "https"
    return f"{scheme}://{host}:{listener.getsockname()[1]}{options.base_path.rstrip('/')}"


def allow_many_connections() -> None:
    """Let this process have as many files open, of which a connection is one, as the system lets it."""
    with suppress(ImportError, ValueError, OSError):  # there is no such limit, or it can't be lifted
        import resource  # Unix has it

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
