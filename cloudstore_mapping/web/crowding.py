"""How many connections one address may have at a time, so that nobody takes all that there are."""

from __future__ import annotations

import ipaddress
from collections import Counter
from contextlib import suppress
from typing import Final

from cloudstore_mapping.errors import TooOftenError
from cloudstore_mapping.service.guesses import network_of
from cloudstore_mapping.web.http import in_one_piece
from cloudstore_mapping.wire import failure

#: Who stands for many: the machine itself, on which a proxy may run that nobody named.
NOT_LIMITED: Final = ("127.0.0.0/8", "::1/128")
#: Seconds after which somebody who was refused may have a place.
WAIT: Final = 5


class Crowd:
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


def refusal(limit: int) -> bytes:
    """Return what somebody gets for whom there is no place, whatever was to be asked."""
    sentence = f"There are {limit:,} connections from your address already; close one, or wait."
    reply = failure(TooOftenError(sentence, retry_after=float(WAIT)))
    head, body = in_one_piece(reply)
    return b"HTTP/1.1 429 Too Many Requests\r\n%bconnection: close\r\n\r\n%b" % (head, body)
