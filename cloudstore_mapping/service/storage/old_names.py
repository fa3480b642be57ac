"""File names of version 0.1.0, which escaped more characters of a key than today: recognise and translate them."""

from __future__ import annotations

import re
from typing import Final

from cloudstore_mapping.keys import escape_key, unescape_name

# Characters in no old name; a space at either end; the first dot of "." and "..".
_BREAKING: Final = r"[\x00-\x1f\x7f,/\\]|\A[ ]|[ ]\Z|\A\.(?=\.?\Z)"
# A "%" that reads as an escape of these, or of another such "%".
_PERCENT: Final = (
    r"%(?=(?:25)*(?:[01][0-9A-F]|7F|2C|2F|5C|20\Z))"
    r"|\A%(?=(?:25)*(?:20|2E\.?\Z|\Z))"
)
_TO_ESCAPE: Final = re.compile(rf"{_BREAKING}|{_PERCENT}")
_ESCAPE: Final = re.compile(rf"(?:{_PERCENT})([0-9A-F]{{2}})?")


def old_name(name: str) -> str:
    """Return the name that version 0.1.0 gave to the key with this file name."""
    return _TO_ESCAPE.sub(lambda match: f"%{ord(match[0]):02X}", unescape_name(name)) or "%"


def new_name(name: str) -> str | None:
    """Return today's name of the key that had this one in version 0.1.0; None if it is the same, or no key had it."""
    if "%" not in name:
        return None
    key = _ESCAPE.sub(lambda match: chr(int(match[1], 16)) if match[1] else "", name)
    new = escape_key(key)
    return new if new != name and old_name(new) == name else None
