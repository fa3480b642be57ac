"""Structural comparison of two objects: the same types, contents and sharing, without calling their `__eq__`."""

from __future__ import annotations

from types import MemberDescriptorType
from typing import Any, Final

#: Types compared by their value.
_ATOMS: Final = frozenset({type(None), bool, int, float, complex, str, bytes, range})
#: Types compared by their repr, which tells 0.0 from -0.0, and in which NaN is equal to itself.
_FLOATS: Final = frozenset({float, complex})
_SETS: Final = frozenset({set, frozenset})
#: Type flag of classes, as opposed to types built into Python or an extension.
_HEAP_TYPE: Final = 1 << 9
_WORD: Final = tuple.__itemsize__
_ABSENT: Final = object()


class _DifferentError(Exception):
    """Two objects differ, or may differ in parts that can't be seen."""


def are_same(one: object, other: object) -> bool:
    """
    Return True if two objects can't be told apart by their types, contents and sharing.

    Objects of types with state that is hidden from Python are the same only if they are a single object.
    """
    twins: dict[int, int] = {}  # from the id of an object in the first graph to its twin's in the second
    sources: dict[int, int] = {}
    todo: list[tuple[Any, Any]] = [(one, other)]
    while todo:
        a, b = todo.pop()
        kind = type(a)
        if a is b:
            continue
        if kind is not type(b):
            return False
        if kind in _ATOMS or kind in _SETS:
            if _atom(a) != _atom(b):
                return False
            continue
        if kind is not tuple:
            if twins.get(id(a)) == id(b):
                continue
            if id(a) in twins or id(b) in sources:
                return False
            twins[id(a)], sources[id(b)] = id(b), id(a)
        try:
            ours, theirs = _parts(a), _parts(b)
        except _DifferentError:
            return False
        if len(ours) != len(theirs):
            return False
        todo += zip(ours, theirs, strict=True)
    return True


def _atom(value: Any) -> object:
    """Return an object that is equal only for an equal value of the type."""
    kind = type(value)
    if kind in _SETS:
        return {_atom(each) if type(each) in _ATOMS else (None, id(each)) for each in value}
    return kind, repr(value) if kind in _FLOATS else value


def _parts(value: Any) -> list[Any]:
    """Return the parts of a value in order; `_DifferentError` if some can't be seen."""
    kind = type(value)
    if kind in (tuple, list, bytearray):
        return list(value)
    if kind is dict:
        return [part for item in value.items() for part in item]
    base = next(each for each in kind.__mro__ if each in (list, dict, object))
    members = [each for part in kind.__mro__ for each in vars(part).values() if type(each) is MemberDescriptorType]
    # Two words more may hold attributes and weak references; any others belong to a type written in C.
    unseen = kind.__basicsize__ - base.__basicsize__ - _WORD * (len(members) + 2)
    if unseen > 0 or not kind.__flags__ & _HEAP_TYPE:
        raise _DifferentError
    parts: list[Any] = []
    for member in members:
        try:
            parts.append(member.__get__(value, kind))
        except AttributeError:
            parts.append(_ABSENT)
    if base is list:
        parts += list.__iter__(value)
    elif base is dict:
        parts += [part for item in dict.items(value) for part in item]
    return [*parts, vars(value)] if hasattr(value, "__dict__") else parts
