"""Ports for servers that are ended and started again, and found at the same place."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from typing import Final

#: Where a server may listen: no system takes one of these for a connection that goes out, while the server is down.
PORTS: Final = range(10_000, 32_000)


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nobody listens."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
