r"""
Keys and file names: a key is its file's name, except for the few texts that a service can't keep; these are escaped.

An *exact* service (its list reply has an array of names) keeps every text except for NUL and the empty one: NUL is
written as ``%00``, the empty key as ``%``. A service with comma-joined lists can't keep commas, control characters and
the dots of the path segments ``.`` and ``..`` either, so there these are written as ``%XX`` too. A ``%`` is written as
``%25`` only if it would read as one of these escapes: ``100%``, ``%zz`` and ``a%20b`` are their own names.

Both are bijections: from all texts to the names that the service can keep.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from cloudstore_mapping.errors import BadNameError

# A "%" reads as an escape before a code, or before a code whose "%" is itself escaped, any number of times. No code
# begins with 25, so the repetition matches in one way only. The empty key is a "%" alone. (No possessive quantifier and
# no atomic group stands here: Python 3.11.0 to 3.11.4 match them wrongly, https://github.com/python/cpython/issues/106052.)
_EMPTY: Final = r"\A%(?=(?:25)*\Z)"
_EXACT_PERCENT: Final = rf"%(?=(?:25)*00)|{_EMPTY}"
_JOINED_PERCENT: Final = rf"%(?=(?:25)*(?:[01][0-9A-F]|7F|2C))|{_EMPTY}"
# The dots of the segments "." and "..", and their escapes, of which the first may be escaped itself.
_DOTS: Final = r"(?:(?<=/)|\A)\.(?=\.?(?:/|\Z))|(?:(?<=/\.)|(?<=\A\.))\.(?=/|\Z)"
_DOTS_PERCENT: Final = r"(?:(?<=/)|\A)%(?=(?:25)*2E(?:%2E)?(?:/|\Z))"
_SURROGATE: Final = "[\ud800-\udfff]"

_EXACT: Final = re.compile(rf"\x00|{_EXACT_PERCENT}|{_SURROGATE}")
_JOINED: Final = re.compile(rf"[\x00-\x1f\x7f,]|{_DOTS}|{_JOINED_PERCENT}|{_DOTS_PERCENT}|{_SURROGATE}")
_EXACT_ESCAPE: Final = re.compile(rf"(?:{_EXACT_PERCENT})([0-9A-F]{{2}})?")
_JOINED_ESCAPE: Final = re.compile(
    rf"(?:(?<=/)|\A)(?P<dots>%2E(?:%2E)?)(?=/|\Z)|(?:{_JOINED_PERCENT}|{_DOTS_PERCENT})(?P<code>[0-9A-F]{{2}})?"
)
# Most keys are their own name everywhere, and match this.
_PLAIN: Final = re.compile(
    r"(?!\Z|\.{1,2}(?:/|\Z))[^\x00-\x1f\x7f,%/\ud800-\udfff]*"  # the first segment of a key that is not empty
    r"(?:/(?!\.{1,2}(?:/|\Z))[^\x00-\x1f\x7f,%/\ud800-\udfff]*)*"
)
# Texts found in no plain key, to check many keys joined by line feeds.
_NOT_PLAIN: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f,%\ud800-\udfff]|[\n/]\.{1,2}[\n/]|\n\n")
# Parts of a text found in the name of every key that contains the text, on a service with comma-joined lists.
_LITERAL: Final = re.compile(
    r"(?:[^\x00-\x1f\x7f,%.\ud800-\udfff]|(?<=[^\x00-\x1f\x7f,%./])\.+|\.+(?=[^\x00-\x1f\x7f,%./\ud800-\udfff])|\.{3,})+"
)
# Separators of these parts on an exact service: NUL, and a "%" that may begin an escape.
_BREAK: Final = re.compile(r"\x00|%(?=(?:25)*0)")


def is_plain(key: str) -> bool:
    """Return True if the text is its own name on both kinds of services."""
    return _PLAIN.fullmatch(key) is not None


def escape_key(key: str, *, joined: bool = False) -> str:
    """
    Return the file name of `key` on an exact service, or on a service with comma-joined lists if `joined`.

    Of a `str` subclass only the text counts. Raises `BadNameError` for a lone surrogate.
    """
    key = str.__str__(key)
    if _PLAIN.fullmatch(key):
        return key
    return (_JOINED if joined else _EXACT).sub(_escaped, key) or "%"


def unescape_name(name: str, *, joined: bool = False) -> str:
    """Return the key with this file name; on a service with comma-joined lists some names belong to no key."""
    if "%" not in name:
        return name
    return _JOINED_ESCAPE.sub(_joined_unescaped, name) if joined else _EXACT_ESCAPE.sub(_unescaped, name)


def are_plain(keys: Sequence[str]) -> bool:
    """Return True if every text is its own name on both kinds of services; much faster than checking each."""
    text = "\n".join(("", *keys, ""))
    return text.count("\n") == len(keys) + 1 and not (keys and _NOT_PLAIN.search(text))


def literal_part(text: str, *, joined: bool = True) -> str:
    """
    Return the longest part of `text` that is in the name of every key containing `text`.

    If `joined` this holds on both kinds of services, otherwise on an exact one.
    """
    return max(_LITERAL.findall(text) if joined else _BREAK.split(text), key=len, default="")


def literal_prefix(prefix: str, *, joined: bool = True) -> str:
    """Return the longest text with which the name of every key beginning with `prefix` begins."""
    if not joined:
        return _BREAK.split(prefix)[0]
    found = _LITERAL.match(prefix)
    return found[0] if found else ""


def _escaped(match: re.Match[str]) -> str:
    if match[0] >= "\ud800":
        raise BadNameError("A key can't hold a lone surrogate, because it can't be sent; remove it.", key=match.string)
    return f"%{ord(match[0]):02X}"


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else ""


def _joined_unescaped(match: re.Match[str]) -> str:
    if match["dots"]:
        return "." * match["dots"].count("%")
    return chr(int(match["code"], 16)) if match["code"] else ""
