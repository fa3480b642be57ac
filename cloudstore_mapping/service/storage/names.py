"""The order of names: which text comes first behind all that begin alike."""

from __future__ import annotations

import sys


def after_prefix(prefix: str) -> str | None:
    """Return the first text behind all that begin with `prefix`, by code points; None where there is none."""
    for index in range(len(prefix) - 1, -1, -1):
        following = ord(prefix[index]) + 1
        if following == 0xD800:
            following = 0xE000  # no text holds a surrogate
        if following <= sys.maxunicode:
            return prefix[:index] + chr(following)
    return None
