"""Guesses at API keys: an address that tries many wrong ones has to wait before it may try another."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable
from typing import Final, NoReturn

from cachetools import LRUCache

from cloudstore_mapping.errors import BadKeyError
from cloudstore_mapping.service.limits import MAX_WATCHED, Tries

#: Keys that are remembered for having opened an account, each with the address that they came from.
MAX_KNOWN: Final = 65_536
# What one client of IPv6 has of it, for whom every address in it is as good as its own.
_IPV6_PREFIX: Final = 64


class Guesses:
    """
    Counts the different wrong keys that came from each address; threads may share it.

    One wrong key that is sent again and again is a mistake, and counts once. A key that opened an account from this
    address before goes on doing so, whatever else is guessed there; any other, right or wrong, waits with the guesses.
    """

    def __init__(self, tries: int, window: float, monotonic: Callable[[], float]) -> None:
        self._tries = Tries(tries, window, monotonic, "API keys")
        self._counted: LRUCache[tuple[str, bytes], float] = LRUCache(MAX_WATCHED)
        self._known: set[tuple[str, bytes]] = set()
        self._window = window
        self._now = monotonic
        self._lock = threading.Lock()

    def right(self, key_hash: bytes, address: str) -> None:
        """Take note that the key opened an account; `TooOftenError` where it has to wait with the guesses."""
        if not address or (address, key_hash) in self._known:
            return
        self._tries.check(network_of(address))
        with self._lock:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known.add((address, key_hash))

    def wrong(self, key_hash: bytes, address: str) -> NoReturn:
        """Count a key that opened nothing, and raise `BadKeyError`, or `TooOftenError` where there were too many."""
        if address:
            guess = network_of(address), key_hash
            with self._lock:
                self._known.discard((address, key_hash))
                now = self._now()
                if self._counted.get(guess, now - self._window) <= now - self._window:
                    self._tries.begin(guess[0])
                    self._counted[guess] = now
        raise BadKeyError("The service doesn't know this API key; check it, or make a new one in the dashboard.")


def network_of(address: str) -> str:
    """Return whom an address counts as: itself, of an IPv6 one the network that a single client has."""
    if ":" not in address:
        return address
    try:
        number = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address  # what a trusted proxy said
    if number.ipv4_mapped is not None:
        return str(number.ipv4_mapped)
    return str(ipaddress.IPv6Network((number, _IPV6_PREFIX), strict=False))
