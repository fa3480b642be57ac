"""JSON values out of arbitrary bytes: every sequence of bytes is some value, and a changed byte a changed value."""

from __future__ import annotations

import struct
from typing import Final

from cloudstore_mapping.merge import JSON

#: Containers within containers, so that reading one needs no more of Python's stack.
MAX_DEPTH: Final = 50

_NAMES: Final = ("0", "1", "01", "length", "__proto__", "a", "", "\N{SNOWMAN}")


class Values:
    """Reads one value after the other from `data`; what comes after its end is None."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """Return the next bytes, fewer where there are no more."""
        taken = self._data[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def number(self) -> int:
        """Return the next byte as a number, 0 where there is none."""
        return next(iter(self.take(1)), 0)

    def value(self, depth: int = 0) -> JSON:
        """Return the next value."""
        kind, size = divmod(self.number(), 16)
        if kind < 4:
            return (None, False, True, size)[kind]
        if kind < 6:
            return int.from_bytes(self.take(size), "big", signed=True)
        if kind < 7:
            number: float = struct.unpack(">d", self.take(8).ljust(8, b"\0"))[0]
            return number if abs(number) < float("inf") else size / 3
        if kind < 8 or depth == MAX_DEPTH:
            return self.take(size).decode("utf-8", "replace")
        if kind < 12:
            return [self.value(depth + 1) for _ in range(size)]
        return {_NAMES[self.number() % len(_NAMES)]: self.value(depth + 1) for _ in range(size)}
