"""JSON as bytes: made, read, and looked at before it is read."""

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
    """Return the JSON of a value that is known to have one (`client.codec` is for values that may not)."""
    return Raw(_encode(value))


#: Returns what the JSON of a value says, made anew: the one parser for every decision, last of equal names wins.
decode_value: Final[Callable[[Raw | bytes], Any]] = msgspec.json.Decoder().decode


# The first half of a character without the second, or the second without the first.
_LONE_SURROGATE: Final = re.compile(
    rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]", re.DOTALL
)


def fault_of(text: bytes | Raw, error: Exception) -> str:
    """
    Return why `text` can't be read as JSON, as a part of a sentence, where `error` is what the parser said.

    msgspec calls a lone surrogate by several names, one of them that the text is truncated, and Python's own sentences
    advise the programmer.
    """
    if _LONE_SURROGATE.search(bytes(text).replace(rb"\\", b" ")):
        return "it holds a lone surrogate, which no text in JSON can; take it out"
    if bytes(text).startswith(codecs.BOM_UTF8):
        return "it begins with a byte order mark (BOM); save it as UTF-8 without BOM"
    if isinstance(error, UnicodeDecodeError) or "Invalid UTF-8" in str(error):
        return "it is not UTF-8; write it anew as that"
    if isinstance(error, RecursionError):
        return "it is nested too deeply; flatten it"
    if "Integer value out of range" in str(error) or "integer string conversion" in str(error):
        return "it holds an integer of more than 4,300 digits; store it as text"
    return str(error).rstrip(".")


# Numbers that may be out of a float's range or over the digits limit: only these are worth a full decode.
_NUMBERS: Final = bytes(
    ord("0") if byte in b"0123456789" else ord("e") if byte in b"eE" else ord("+") if byte in b"+" else ord(" ")
    for byte in range(256)
)
_LONG: Final = b"0" * 200
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'"[]{}'))
# Brackets that are looked at before it is asked whether there were too many.
_AT_ONCE: Final = 1024
_STEPS: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def may_hold_long_number(body: bytes) -> bool:
    """Whether `body` has so many digits in a row, or an exponent of so many, that it may hold such a number."""
    shape = body.translate(_NUMBERS)  # and text searches: four times as fast as an expression that says the same
    return b"e000" in shape or b"e+000" in shape or _LONG in shape


def is_deeper(body: bytes, depth: int) -> bool:
    """Whether `body` nests brackets deeper than `depth`; never recursive, linear in its length."""
    structure = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_STRUCTURE)
    # Two quotes side by side are an empty string, or join two strings: without them no bracket changes sides.
    brackets = b"".join(structure.replace(b'""', b"").split(b'"')[::2])
    reached = 0
    for start in range(0, len(brackets), _AT_ONCE):  # a flood of brackets is known as one by its beginning
        levels = [*accumulate(map(_STEPS.__getitem__, brackets[start : start + _AT_ONCE]), initial=reached)]
        if max(levels) > depth:
            return True
        reached = levels[-1]
    return False
