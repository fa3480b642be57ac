"""Structural comparison of two objects: the same types, contents and sharing, without calling their `__eq__`."""

from __future__ import annotations

import copyreg
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from types import MemberDescriptorType
from typing import Any, Final
from uuid import UUID

#: Types compared by their value.
_ATOMS: Final = frozenset({type(None), bool, int, float, complex, str, bytes, range})
#: Types compared by their repr, which tells 0.0 from -0.0, and in which NaN is equal to itself.
_FLOATS: Final = frozenset({float, complex})
_SETS: Final = frozenset({set, frozenset})
#: Types that Python sees whole: each with the function for the parts in an object of the type, or of a subclass.
_CONTENTS: Final[dict[type, Callable[[Any], Iterable[Any]]]] = {
    object: lambda _: (),
    list: list.__iter__,
    tuple: tuple.__iter__,
    bytearray: bytearray.__iter__,
    dict: lambda value: (part for item in dict.items(value) for part in item),
    set: lambda value: [set(set.__iter__(value))],
    frozenset: lambda value: [frozenset(frozenset.__iter__(value))],
    int: lambda value: [int.__index__(value)],
    float: lambda value: [float.__float__(value)],
    complex: lambda value: [complex.__complex__(value)],
    str: lambda value: [str.__str__(value)],
    bytes: lambda value: [bytes.__bytes__(value)],
}
#: Methods of a class that decide what its pickles hold.
_PICKLING: Final = ("__reduce_ex__", "__reduce__", "__getstate__", "__getnewargs__", "__getnewargs_ex__")
#: Methods of a class that decide what a load does with them.
_LOADING: Final = ("__setstate__", *(name for name in _PICKLING if name != "__getstate__"))
_PROTOCOL: Final = 4
#: Levels of a pickled state that must stay the same from one pickle to the next: all of it, and its arguments, state
#: and items, each of which may change within.
_LASTING_LEVELS: Final = 2
#: Types of states that may differ from one pickle to the next and hold nothing else: numbers, and times.
_STAMPS: Final = frozenset({int, float, date, datetime, time, timedelta, UUID})
#: Elements of sets compared in vain before the sets count as different.
_MAX_FAILURES: Final = 1000
#: Flag of classes, as opposed to types built into Python or an extension.
_HEAP_TYPE: Final = 1 << 9
#: Flags of types whose `__dict__`, or weak references, are not in their basic size.
_MANAGED_DICT: Final = 1 << 4
_MANAGED_WEAKREF: Final = 1 << 3
_WORD: Final = tuple.__itemsize__
_ABSENT: Final = object()


class _DifferentError(Exception):
    """Two objects differ, or may differ in parts that can't be seen."""


def are_same(one: object, other: object) -> bool:
    """
    Return True if two objects can't be told apart by their types, contents, sharing and pickled states.

    A part of a pickled state that differs from one pickle to the next is left out if all attributes can be seen, and
    the part is a number or time, or a load puts it into an attribute. Objects that can't be compared are different.
    """
    try:
        return _Comparison().are_same(one, other)
    except _DifferentError:
        return False
    except Exception:  # noqa: BLE001 - whatever makes a state raises whatever it likes
        return False


class _Comparison:
    def __init__(self) -> None:
        self._twins: dict[int, int] = {}  # from the id of an object in the first graph to its twin's in the second
        self._sources: dict[int, int] = {}
        self._found: list[tuple[int, int]] = []  # both ids of each pair of twins, in the order of their discovery
        self._failures = 0  # elements of sets compared in vain
        self._states: list[Any] = []  # kept, so that no other object gets their ids

    def are_same(self, one: object, other: object) -> bool:
        todo: list[tuple[Any, Any]] = [(one, other)]
        sets: list[tuple[Any, Any]] = []
        while todo or sets:
            # Sets last, when most of their elements have their twins.
            if not todo:
                self._match(*sets.pop())
                continue
            a, b = todo.pop()
            kind = type(a)
            if a is b:
                continue
            if kind is not type(b):
                return False
            if kind in _ATOMS:
                if _atom(a) != _atom(b):
                    return False
                continue
            if kind in _SETS:
                sets.append((a, b))
                continue
            if kind is not tuple:
                if self._twins.get(id(a)) == id(b):
                    continue
                if id(a) in self._twins or id(b) in self._sources:
                    return False
                self._twins[id(a)], self._sources[id(b)] = id(b), id(a)
                self._found.append((id(a), id(b)))
            ours, theirs = _parts(a), _parts(b)
            if len(ours) != len(theirs):
                return False
            todo += zip(ours, theirs, strict=True)
            is_seen = _is_seen(kind)
            if not is_seen or _makes_own_state(kind):
                todo += self._parts_of_states(a, b, _LASTING_LEVELS if is_seen else math.inf)
        return True

    def _match(self, one: Any, other: Any) -> None:
        """Raise `_DifferentError` unless each element of a set is the same as an element of the other."""
        left: dict[object, list[Any]] = {}
        for each in other:
            left.setdefault(_shape(each), []).append(each)
        if len(one) != len(other):
            raise _DifferentError
        for each in one:
            alike = left.get(_shape(each), [])
            number = next((n for n, candidate in enumerate(alike) if self._is_match(each, candidate)), None)
            if number is None:
                raise _DifferentError
            alike.pop(number)

    def _is_match(self, a: Any, b: Any) -> bool:
        """Return True if two elements are the same; their parts are no twins otherwise."""
        if type(a) in _ATOMS:
            return True  # their shapes are equal
        before = len(self._found)
        with suppress(_DifferentError):
            if self.are_same(a, b):
                return True
        for ours, theirs in self._found[before:]:
            del self._twins[ours], self._sources[theirs]
        del self._found[before:]
        self._failures += 1
        if self._failures > _MAX_FAILURES:
            raise _DifferentError
        return False

    def _parts_of_states(self, a: Any, b: Any, levels: float) -> list[tuple[Any, Any]]:
        states = _state(a), _state(a), _state(b)
        self._states += states
        return list(_lasting_parts(*states, levels, loads_itself=_loads_itself(type(a))))


def _lasting_parts(
    state: Any, again: Any, other: Any, levels: float, *, loads_itself: bool
) -> Iterator[tuple[Any, Any]]:
    """
    Yield the pairs of parts of two objects' states, without the parts in which the first object's next state differs.

    `_DifferentError` if the states have other parts, or the first object's next state differs in its first `levels`, or
    in a part that may hold more than a number or time: a class with code that `loads_itself` may keep it anywhere.
    """
    kind = type(state)
    if state is again:
        yield state, other
    elif kind in (tuple, list, dict) and kind is type(again) and len(state) == len(again):
        if kind is not type(other) or len(state) != len(other):
            raise _DifferentError
        if kind is dict:
            if not are_same([*state], [*again]) or not are_same([*state], [*other]):
                raise _DifferentError
            state, again, other = state.values(), again.values(), other.values()
        for parts in zip(state, again, other, strict=True):
            yield from _lasting_parts(*parts, levels - 1, loads_itself=loads_itself)
    elif are_same(state, again):
        yield state, other
    elif levels > 0 or (loads_itself and kind not in _STAMPS):
        raise _DifferentError


def _state(value: Any) -> Any:
    """Return what a pickle of an object holds, with lists for the iterators of its items."""
    reduce = copyreg.dispatch_table.get(type(value))
    state = value.__reduce_ex__(_PROTOCOL) if reduce is None else reduce(value)
    if not isinstance(state, tuple):
        return state
    return tuple([*part] if number in (3, 4) and part is not None else part for number, part in enumerate(state))


def _shape(value: Any) -> object:
    """Return an object that is equal for the same elements of sets, and different for most others."""
    kind = type(value)
    if kind in _ATOMS:
        return _atom(value)
    if kind in _SETS:
        return kind, len(value)
    parts = _parts(value)
    if kind is not tuple and hasattr(value, "__dict__"):
        parts += [part for item in vars(value).items() for part in item]
    return kind, *(_atom(part) if type(part) in _ATOMS else type(part) for part in parts)


def _atom(value: Any) -> object:
    """Return an object that is equal only for an equal value of the type."""
    kind = type(value)
    return kind, repr(value) if kind in _FLOATS else value


def _parts(value: Any) -> list[Any]:
    """Return the parts of a value that Python sees, in order."""
    kind = type(value)
    base = next(each for each in kind.__mro__ if each in _CONTENTS)
    parts = [*_CONTENTS[base](value)]
    if kind is base:
        return parts
    for member in _members(kind):
        try:
            parts.append(member.__get__(value, kind))
        except AttributeError:
            parts.append(_ABSENT)
    return [*parts, vars(value)] if hasattr(value, "__dict__") else parts


def _members(kind: type) -> list[MemberDescriptorType]:
    return [each for part in kind.__mro__ for each in vars(part).values() if type(each) is MemberDescriptorType]


def _is_seen(kind: type) -> bool:
    """Return False for a type with parts that only a pickle tells, as types written in C have."""
    base = _base(kind)
    if base not in _CONTENTS:
        return False
    if kind is base:
        return True
    words = len(_members(kind))
    words += kind.__dictoffset__ != 0 and not kind.__flags__ & _MANAGED_DICT
    words += kind.__weakrefoffset__ != 0 and not kind.__flags__ & _MANAGED_WEAKREF
    return kind.__basicsize__ <= base.__basicsize__ + words * _WORD


def _makes_own_state(kind: type) -> bool:
    base = _base(kind)
    return kind in copyreg.dispatch_table or any(
        getattr(kind, name, None) is not getattr(base, name, None) for name in _PICKLING
    )


def _loads_itself(kind: type) -> bool:
    """Return True for a class whose own code gets the pickled state when it is loaded."""
    base = _base(kind)
    return kind in copyreg.dispatch_table or any(
        getattr(kind, name, None) is not getattr(base, name, None) for name in _LOADING
    )


def _base(kind: type) -> type:
    """Return the first type in a class that is no class."""
    return next(each for each in kind.__mro__ if not each.__flags__ & _HEAP_TYPE)
