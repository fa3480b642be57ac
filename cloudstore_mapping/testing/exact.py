"""Whether two values are the same, types and all: `True`, `1` and `1.0` are three values here."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Set
from typing import Any


def same(one: object, other: object) -> bool:
    """Whether two values are of the same types all the way down, and equal; names in any order."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        theirs = {frozen(name): value for name, value in other.items()}
        return len(one) == len(theirs) and all(
            (place := frozen(name)) in theirs and same(value, theirs[place]) for name, value in one.items()
        )
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return repr(one) == repr(other)  # NaN is itself, and -0.0 is not 0.0
    return bool(one == other)


def frozen(value: Any) -> Hashable:
    """Return what can be hashed in the place of `value`; two of these are equal if the values are the `same`."""
    if isinstance(value, Mapping):
        return type(value), frozenset((frozen(name), frozen(part)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(frozen, value))
    if isinstance(value, Set):
        return type(value), frozenset(map(frozen, value))
    return type(value), repr(value) if isinstance(value, float) else value
