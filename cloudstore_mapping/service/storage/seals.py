"""Versions of data files, which also tell whether a value is the one that was stored under its name."""

from __future__ import annotations

import secrets
import zlib
from typing import Any, Final

from cloudstore_mapping.service.storage.old_names import old_name

#: Random bytes of a version: two of one file are never the same.
RANDOM_BYTES: Final = 9
#: Versions whose random parts are drawn at once, for drawing one takes as long as the rest of a version.
DRAWN: Final = 64

#: Characters of the random part, and of the checksum behind it.
_RANDOM: Final = 12
_SUM: Final = 8


class Seals:
    """Makes versions of values that are stored; for one thread at a time, and not for a fork's child."""

    def __init__(self) -> None:
        self._drawn: list[str] = []

    def sealed(self, name: str, value: bytes) -> str:
        """Return a new version for a value that is to be stored under a name."""
        if not self._drawn:
            text = secrets.token_urlsafe(RANDOM_BYTES * DRAWN)
            self._drawn = [text[start : start + _RANDOM] for start in range(0, len(text), _RANDOM)]
        random = self._drawn.pop()
        return random + _checksum(random, name, value)


def is_whole(version: Any, name: str, value: Any) -> bool:
    """
    Whether a value, its name and its version are what was stored; older versions, which are shorter, don't tell.

    What SQLite finds in a damaged row may be of any type, and a name no text.
    """
    try:
        random, checksum = version[:_RANDOM], version[_RANDOM:]
        if checksum == _checksum(random, name, value) or len(checksum) != _SUM:
            return True
        # A file that was renamed since version 0.1.0 keeps its version.
        return bool(checksum == _checksum(random, old_name(name), value))
    except (TypeError, UnicodeError):
        return False


def _checksum(random: str, name: str, value: bytes) -> str:
    # Against disks, not against people: whoever can change a value in the store can change its version.
    return "%08x" % zlib.crc32(value, zlib.crc32((random + name).encode()))  # noqa: UP031 - faster, for every value
