"""``dict(store)`` and ``{**store}`` with the requests of ``dict(store.items())``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cloudstore_mapping.client.cache import Found
from cloudstore_mapping.client.views import call_site
from cloudstore_mapping.errors import CloudStoreError

Outcome = Found[bytes] | CloudStoreError
_Read = Callable[[Sequence[str]], Iterator[tuple[str, Outcome]]]

#: Fewer keys than this are loaded as they are asked for.
WORTH_A_BATCH: Final = 2


class Copying:
    """
    One ``keys()`` after which the keys may be asked for one by one, as `dict` does with a mapping.

    ``dict(store)`` calls ``keys()`` and then reads each of them, all from one instruction of one frame, in their order
    and with the very texts that it was given. No other code does: then their values are loaded many at a time, and
    each is handed out at once.
    """

    def __init__(self, listing: Callable[[], list[str]], read: _Read) -> None:
        self._site = call_site(3)
        self._listing = listing
        self._read = read
        self._keys: list[str] = []
        self._next = 0
        self._loaded: Iterator[tuple[str, Outcome]] = iter(())

    def listing(self) -> list[str]:
        """Return the keys, and remember them."""
        keys = self._listing()
        self._keys, self._next = keys, 0
        self._loaded = self._read(keys)
        return keys

    def take(self, key: object) -> Outcome | None:
        """Return what was loaded for this key, None where this isn't such a copy."""
        if len(self._keys) < WORTH_A_BATCH or self._next >= len(self._keys):
            return None
        if key is not self._keys[self._next] or call_site(3) != self._site:
            return None
        self._next += 1
        _, outcome = next(self._loaded)
        if self._next == len(self._keys):
            next(self._loaded, None)  # so that it comes to its end
        return outcome
