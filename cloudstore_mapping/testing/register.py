"""One key of a store as its callers see it: absent, or a JSON value."""

from __future__ import annotations

import enum
from typing import Any, Final

from cloudstore_mapping.errors import BadMergeError
from cloudstore_mapping.merge import merge
from cloudstore_mapping.testing.exact import same
from cloudstore_mapping.testing.histories import Call
from cloudstore_mapping.testing.search import MISSING, Hints


class Absent(enum.Enum):
    """The type of `ABSENT`, for None is a value like any other."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT


def register_step(state: Any, operation: str, argument: Any, result: Any, is_known: bool) -> Any:
    """
    Return what a key holds after a call, or None where the call can't have had its result.

    The state is `ABSENT`, or a tuple of one JSON value. The operations, with their arguments and results:

    ============== ===================== =====================================================================
    ``save``       the value             anything
    ``merge``      what is merged in     anything, or `BadMergeError`
    ``load``                             the value, or `KeyError`
    ``contains``                         whether the key is there
    ``delete``                           anything, or `KeyError`
    ``pop``                              the value, or `KeyError`
    ``setdefault`` the value             the value that is there then
    ``increment``  what is added         the sum, where an absent key counts as 0; or `TypeError`
    ============== ===================== =====================================================================

    A result that is not known is never looked at.
    """
    after, gives = _done(state, operation, argument)
    if is_known and gives is not _ANYTHING and not same(gives, result):
        return None
    if is_known and gives is _ANYTHING and isinstance(result, type):
        return None  # an error, where there was none to raise
    return after


class _Anything:
    """The result of what returns nothing."""


_ANYTHING: Final = _Anything()


def _done(state: Any, operation: str, argument: Any) -> tuple[Any, Any]:
    """Return the state after an operation, and what it gives."""
    is_there = state is not ABSENT
    match operation:
        case "save":
            return (argument,), _ANYTHING
        case "merge":
            try:
                return (merge(state[0] if is_there else None, argument),), _ANYTHING
            except BadMergeError:
                return state, BadMergeError
        case "load":
            return state, state[0] if is_there else KeyError
        case "contains":
            return state, is_there
        case "delete":
            return ABSENT, _ANYTHING if is_there else KeyError
        case "pop":
            return ABSENT, state[0] if is_there else KeyError
        case "setdefault":
            return (state, state[0]) if is_there else ((argument,), argument)
        case "increment":
            number = state[0] if is_there else 0
            if not isinstance(number, int | float):
                return state, TypeError
            return (number + argument,), number + argument
    raise ValueError(f"{operation!r} is no operation on a key; see `register_step` for those that are.")


def _wants(call: Call) -> Any:
    """Return the only state in which a call can have had its result, None if there are several."""
    if call.result is KeyError or (call.operation == "contains" and call.result is False):
        return ABSENT
    if call.operation in ("load", "pop"):
        return (call.result,)
    if call.operation == "increment" and type(call.result) is type(call.argument) is int:
        before: int = call.result - call.argument
        return (before,) if before not in (0, 1) else None  # these are an absent key and True as well
    return None


def _parts(state: Any) -> dict[Any, Any]:
    """Return the names of a document with what they hold; of anything else the whole."""
    return state[0] if state is not ABSENT and isinstance(state[0], dict) else {_WHOLE: state}


def _leaves(call: Call, part: Any, value: Any) -> bool:
    """Whether a call can give a part a value that it did not have before; `MISSING` where it takes it away."""
    match call.operation:
        case "save" | "setdefault":
            return same(_parts((call.argument,)).get(part, MISSING), value)
        case "delete" | "pop":
            return same(_parts(ABSENT).get(part, MISSING), value)
        case "increment":
            return part is _WHOLE and value is not MISSING and (call.returned is None or same(value, (call.result,)))
    # Of merges, whether it leaves what is so already.
    if isinstance(call.argument, dict) and part is not _WHOLE:
        return value is not MISSING and part in call.argument and _keeps(value, call.argument[part])
    if value is MISSING:
        return isinstance(call.argument, dict) is (part is _WHOLE)
    return part is _WHOLE and value is not ABSENT and _keeps(value[0], call.argument)


def _keeps(stored: Any, value: Any) -> bool:
    try:
        return same(merge(stored, value), stored)
    except BadMergeError:
        return False


class _Whole:
    """The part that is the whole value, which no name of a document is."""


_WHOLE: Final = _Whole()

#: What can be told of a call on a key by itself.
REGISTER_HINTS: Final[Hints[Any]] = Hints(frozenset({"load", "contains"}), _wants, _parts, _leaves)
