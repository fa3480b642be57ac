"""``dict(store)`` and ``{**store}`` with the requests of ``dict(store.items())``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cloudstore_mapping.client.cache import Found
from cloudstore_mapping.client.views import call_site
from cloudstore_mapping.errors import CloudStoreError

Outcome = Found[bytes] | CloudStoreError
_Read = Callable[[Sequence[str]], Iterator[tuple[str, Outcome]]]

#: Fewer keys than this are loaded as they are asked for.
WORTH_A_BATCH: Final = 2

#: In the place of a key.
_NONE: Final = object()


class Copying:
    """
    One ``keys()`` after which the keys may be asked for one by one, as `dict` does with a mapping.

    ``dict(store)`` calls ``keys()`` and then reads each of them, all from one instruction of one frame, in their order
    and with the very texts that it was given. No other code does: then their values are loaded many at a time, and
    each is handed out at once.
    """

    def __init__(self, listing: Callable[[], list[str]], read: _Read) -> None:
        self._frame, self._instruction = call_site(3)
        self._listing = listing
        self._read = read
        self._rest: Iterator[str] = iter(())
        self._next: object = _NONE
        self._outcomes: Iterator[tuple[str, Outcome]] = iter(())

    def listing(self) -> list[str]:
        """Return the keys, and remember them."""
        keys = self._listing()
        self._outcomes = self._read(keys)
        self._rest = iter(keys if len(keys) >= WORTH_A_BATCH else ())
        self._next = next(self._rest, _NONE)
        return keys

    def take(self, key: object) -> Outcome | None:
        """Return what was loaded for this key, None where this isn't such a copy."""
        if key is not self._next:
            return None
        frame = sys._getframe(2)  # noqa: SLF001 - as `call_site`, without a call for each key
        if id(frame) != self._frame or frame.f_lasti != self._instruction:
            return None
        self._next = next(self._rest, _NONE)
        _, outcome = next(self._outcomes)
        if self._next is _NONE:
            next(self._outcomes, None)  # so that it comes to its end
        return outcome
