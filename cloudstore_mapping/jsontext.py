"""JSON as bytes: made, read, and looked at before it is read."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any, Final

import msgspec
from msgspec import Raw

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def encode_value(value: Any) -> Raw:
    """Return the JSON of a value that is known to have one (`client.codec` is for values that may not)."""
    return Raw(_encode(value))


def decode_value(value: Raw | bytes) -> Any:
    """Return what the JSON `value` says, made anew: the one parser for every decision, last of equal names wins."""
    return _decode(value)


# Numbers that may be out of a float's range or over the digits limit: only these are worth a full decode.
LONG_NUMBER: Final = re.compile(rb"[0-9]{200}|[eE]\+?[0-9]{3}")
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'"[]{}'))
_STEPS: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def is_deeper(body: bytes, depth: int) -> bool:
    """Whether `body` nests brackets deeper than `depth`; never recursive, linear in its length."""
    structure = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_STRUCTURE)
    # Two quotes side by side are an empty string, or join two strings: without them no bracket changes sides.
    brackets = b"".join(structure.replace(b'""', b"").split(b'"')[::2])
    return any(level > depth for level in accumulate(map(_STEPS.__getitem__, brackets)))
