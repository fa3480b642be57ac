"""JSON encoding and decoding, and cheap checks of nesting depth and number length before parsing."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from itertools import accumulate
from typing import Any, Final

import msgspec
from msgspec import Raw

_encode = msgspec.json.Encoder().encode


def encode_value(value: Any) -> Raw:
    """Return the JSON of a value known to have a JSON form; for any other value use `client.codec`."""
    return Raw(_encode(value))


#: Returns a new object for the JSON of a value. All decisions use this parser; of several equal names the last wins.
decode_value: Final[Callable[[Raw | bytes], Any]] = msgspec.json.Decoder().decode


# First half of a surrogate pair without the second, or the second without the first.
_LONE_SURROGATE: Final = re.compile(
    rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]", re.DOTALL
)


def fault_of(text: bytes | Raw, error: Exception) -> str:
    """
    Return the reason why `text` can't be read as JSON, as a part of a sentence; `error` is the parser's exception.

    Messages of the parsers are unsuitable: msgspec has several for a lone surrogate (one says that the text is
    truncated), and Python's are advice to programmers.
    """
    if _LONE_SURROGATE.search(bytes(text).replace(rb"\\", b" ")):
        return "it holds a lone surrogate, which JSON can't hold; remove it"
    if bytes(text).startswith(codecs.BOM_UTF8):
        return "it begins with a byte order mark (BOM); save it as UTF-8 without BOM"
    if isinstance(error, UnicodeDecodeError) or "Invalid UTF-8" in str(error):
        return "it is not UTF-8; convert it to UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deeply; flatten it"
    if "Integer value out of range" in str(error) or "integer string conversion" in str(error):
        return "it holds an integer of more than 4,300 digits; store it as text"
    return str(error).rstrip(".")


# Translation of bytes to find numbers possibly beyond a float's range or the limit of digits: only these need a full
# decode.
_NUMBERS: Final = bytes(
    ord("0") if byte in b"0123456789" else ord("e") if byte in b"eE" else ord("+") if byte in b"+" else ord(" ")
    for byte in range(256)
)
_LONG: Final = b"0" * 200
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'"[]{}'))
# Brackets counted between two comparisons with the limit.
_BLOCK_SIZE: Final = 1024
_STEPS: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def may_hold_long_number(body: bytes) -> bool:
    """Return True if `body` may hold such a number: it has many digits in a row, or an exponent of many digits."""
    shape = body.translate(_NUMBERS)  # with text searches four times as fast as a regular expression
    return b"e000" in shape or b"e+000" in shape or _LONG in shape


def is_deeper(body: bytes, depth: int) -> bool:
    """Return True if `body` nests brackets deeper than `depth`; not recursive, in linear time."""
    structure = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_STRUCTURE)
    # Adjacent quotes are an empty string, or join two strings in invalid JSON: without them, brackets inside of strings
    # stay inside, and the others outside.
    brackets = b"".join(structure.replace(b'""', b"").split(b'"')[::2])
    reached = 0
    for start in range(0, len(brackets), _BLOCK_SIZE):  # stops early in a flood of brackets
        levels = [*accumulate(map(_STEPS.__getitem__, brackets[start : start + _BLOCK_SIZE]), initial=reached)]
        if max(levels) > depth:
            return True
        reached = levels[-1]
    return False
