r"""
Escape keys as file names, and back: a bijection between all texts and the names safe in listings and paths.

Ordinary keys are their own names. Control characters, comma, slash and backslash, a space at either end and the first
dot of ``.`` and ``..`` are written as ``%XX``, the empty key as ``%``. A ``%`` is written ``%25`` only if it would
read as one of these escapes, so ``100%``, ``%zz`` and ``a%20b`` are their own names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from cloudstore_mapping.errors import BadNameError

# Characters in no name; a space at either end; the first dot of "." and "..".
_BREAKING: Final = r"[\x00-\x1f\x7f,/\\]|\A[ ]|[ ]\Z|\A\.(?=\.?\Z)"
# A "%" read as an escape: before a code of the above at its position, or before a code whose "%" is itself escaped, any
# number of times. No code begins with 25, so the repetition never backtracks.
_PERCENT: Final = (
    r"%(?=(?:25)*+(?:[01][0-9A-F]|7F|2C|2F|5C|20\Z))"  # anywhere; a space at the end
    r"|\A%(?=(?:25)*+(?:20|2E\.?\Z|\Z))"  # a space at the beginning; ".", ".." and the empty key, alone
)
# Most keys match no other pattern; this character class is three times as fast.
_ORDINARY: Final = re.compile(r"(?![ .])[^\x00-\x1f\x7f,/\\%\ud800-\udfff]++(?<![ ])")
_TO_ESCAPE: Final = re.compile(rf"{_BREAKING}|{_PERCENT}|[\ud800-\udfff]")
_ESCAPE: Final = re.compile(rf"(?:{_PERCENT})([0-9A-F]{{2}})?")
# Characters in no ordinary name, for many names joined by line feeds.
_EXTRAORDINARY: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f,/\\%\ud800-\udfff]|\n[ .\n]| \n")
_NOT_CLEAN: Final = re.compile(_BREAKING)


def escape_key(key: str) -> str:
    """Return the file name of `key`, by the text of a `str` subclass; `BadNameError` for a lone surrogate."""
    key = str.__str__(key)
    if _ORDINARY.fullmatch(key):
        return key
    return _TO_ESCAPE.sub(_escaped, key) or "%"


def unescape_name(name: str) -> str:
    """Return the key with the file name `name`; a name never returned by `escape_key` is its own key."""
    if "%" not in name or _NOT_CLEAN.search(name):
        return name
    return _ESCAPE.sub(_unescaped, name)


def need_no_escape(names: Sequence[str]) -> bool:
    """Return True if every name is its own key; twenty times as fast as checking each."""
    text = "\n".join(("", *names, ""))
    return text.count("\n") == len(names) + 1 and not (names and _EXTRAORDINARY.search(text))


def _escaped(match: re.Match[str]) -> str:
    if match[0] >= "\ud800":
        raise BadNameError(
            "A key can't hold a lone surrogate, for no text on the wire can; take it out.", key=match.string
        )
    return f"%{ord(match[0]):02X}"


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else ""
