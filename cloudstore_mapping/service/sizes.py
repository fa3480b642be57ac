"""Sizes as people write them: a number, and the unit that it counts."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

_UNITS: Final = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_SIZE: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) *([A-Za-z]*)", re.ASCII)

#: What a sentence names as an example.
EXAMPLES: Final = "3072, 3KiB or '1.5 GiB'"


def parse_size(text: str) -> int:
    """
    Return the bytes that `text` says: a number alone or of B, kB, MB, GB, TB (thousands) or KiB, MiB, GiB, TiB (1024s).

    Raises `ValueError` for what is no size, or no whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = None if match is None else _UNITS.get(match[2].lower())
    if match is None or unit is None:
        raise ValueError(f"{text!r} is no size; write it as {EXAMPLES}.")
    size = Decimal(match[1]) * unit
    if size != int(size):
        raise ValueError(f"{text!r} is no whole number of bytes; write it as {EXAMPLES}.")
    return int(size)
