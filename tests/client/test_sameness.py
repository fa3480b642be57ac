"""Two objects are the same if nothing in their types, contents and sharing differs."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, deque
from typing import Any

import pytest

from cloudstore_mapping.client.sameness import are_same


class Plain:
    """Object with attributes, equal to every other one."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]  # it changes


class Slotted:
    """Object with slots."""

    __slots__ = ("a", "b")

    def __init__(self, a: Any) -> None:
        self.a = a


class Stack(list[Any]):
    """List with attributes."""


class Table(dict[str, Any]):
    """Dictionary with attributes."""


def shared() -> list[Any]:
    """Return a list that holds a list twice."""
    part: list[Any] = []
    return [part, part]


def cycle() -> list[Any]:
    """Return a list that holds itself."""
    loop: list[Any] = []
    loop.append(loop)
    return loop


def with_attribute(thing: Any, value: Any) -> Any:
    """Return a thing with an attribute."""
    thing.extra = value
    return thing


SAME: list[Any] = [
    None,
    [1, (2.5, {"a": {"x", "y"}})],
    Plain(a=[1], b=Plain()),
    Slotted([1]),
    with_attribute(Stack([1]), 2),
    with_attribute(Table(a=1), 2),
    shared(),
    cycle(),
    bytearray(b"a"),
    10**5000,
    float("nan"),
]
DIFFERENT: list[tuple[Any, Any]] = [
    (1, True),
    (0.0, -0.0),
    ([1], [1, 2]),
    ([1], (1,)),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({1}, {True}),
    ({frozenset({1})}, {frozenset([1])}),
    (Plain(a=1), Plain(a=2)),
    (Plain(a=1), Plain(b=1)),
    (Slotted(1), Slotted(2)),
    (Stack([1]), Stack([2])),
    (with_attribute(Stack(), 1), with_attribute(Stack(), 2)),
    (Table(a=1), Table(a=2)),
    (shared(), [[], []]),
    ([[], []], shared()),
]


@pytest.mark.parametrize("value", SAME, ids=lambda value: type(value).__name__)
def test_copies_are_the_same(value: Any) -> None:
    """A deep copy is the same, with its sharing and cycles."""
    assert are_same(value, copy.deepcopy(value))


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_a_difference_is_seen(one: Any, other: Any) -> None:
    """Any difference of type, content, order or sharing is seen, also between objects that call themselves equal."""
    assert not are_same(one, other)


@pytest.mark.parametrize(
    "value", [random.Random(1), deque([1]), OrderedDict(a=1)], ids=lambda value: type(value).__name__
)
def test_hidden_state_is_a_difference(value: Any) -> None:
    """Objects of types written in C have state that can't be compared, so they are not the same."""
    assert not are_same(value, copy.deepcopy(value))
    assert are_same(value, value)
