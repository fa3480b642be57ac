"""Two objects are the same if nothing in their types, contents and sharing differs."""

from __future__ import annotations

import copy
import random
import time
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from cloudstore_mapping.client.sameness import are_same


class Plain:
    """Object with attributes, equal to every other one."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]  # it changes


class Key:
    """Object in sets, in an order that depends on its address."""

    def __init__(self, name: Any) -> None:
        self.name = name


class Slotted:
    """Object with slots."""

    __slots__ = ("a", "b")

    def __init__(self, a: Any) -> None:
        self.a = a


class Stack(list[Any]):
    """List with attributes."""


class Table(dict[str, Any]):
    """Dictionary with attributes."""


class Point(NamedTuple):
    """Tuple with names."""

    x: Any
    y: Any


class Whole(int):
    """Integer."""


class Real(float):
    """Number."""


class Imaginary(complex):
    """Complex number."""


class Text(str):
    """Text."""

    __slots__ = ()


class Data(bytes):
    """Bytes."""


class Buffer(bytearray):
    """Bytes that change."""


class Row(tuple[Any, ...]):
    """Tuple with attributes."""


class Tags(set[Any]):
    """Set."""


class Frozen(frozenset[Any]):
    """Set that does not change."""


class Queue(deque[Any]):
    """Queue with attributes."""


class StampedQueue(Queue):
    """Queue with a stamp in its pickles."""

    def __reduce__(self) -> Any:
        return (type(self), ([*self],), {"saved": time.monotonic_ns()})


class Elsewhere:
    """Object whose state is in no attribute."""

    values: dict[int, tuple[Any, bool]] = {}  # noqa: RUF012 - of the class

    def __init__(self, value: Any, is_stamped: bool = False) -> None:
        self.values[id(self)] = value, is_stamped

    def __getstate__(self) -> dict[str, Any]:
        value, is_stamped = self.values[id(self)]
        return {"value": [value], "saved": time.monotonic_ns() if is_stamped else 0, "is_stamped": is_stamped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.values[id(self)] = state["value"][0], state["is_stamped"]


class Stamps:
    """Object whose state is a text that differs each time."""

    def __getstate__(self) -> str:
        return f"a {time.monotonic_ns()}"

    def __setstate__(self, state: str) -> None:
        pass


class Sealed:
    """Object with its state elsewhere, and a pickled text that differs each time."""

    def __getstate__(self) -> dict[str, str]:
        return {"sealed": f"a {time.monotonic_ns()}"}

    def __setstate__(self, state: dict[str, str]) -> None:
        pass


class Unpicklable:
    """Object that can be copied, and has no pickle."""

    def __copy__(self) -> Unpicklable:
        return Unpicklable()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError


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
    {Key(n) for n in range(200)},
    [{Key(1), Key(1)}, {frozenset({Key(2)}), (Key(3), "a")}],
    (lambda keys: [{*keys}, keys])([Key(1), Key(1), Key(1)]),
]
DIFFERENT: list[tuple[Any, Any]] = [
    (1, True),
    (0.0, -0.0),
    ([1], [1, 2]),
    ([1], (1,)),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({1}, {True}),
    ({frozenset({1})}, {frozenset({True})}),
    (Plain(a=1), Plain(a=2)),
    (Plain(a=1), Plain(b=1)),
    (Slotted(1), Slotted(2)),
    (Stack([1]), Stack([2])),
    (with_attribute(Stack(), 1), with_attribute(Stack(), 2)),
    (Table(a=1), Table(a=2)),
    ({Key(1)}, {Key(2)}),
    ({Key([1])}, {Key([2])}),
    ({Key(1), Key(1)}, {Key(1)}),
    ((lambda key: [{key}, key])(Key(1)), [{Key(1)}, Key(1)]),
    ({Key([n]) for n in range(100)}, {Key([-n]) for n in range(100)}),
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


def test_sets_in_different_orders() -> None:
    """Sets are the same if their elements are, in whatever order: objects have theirs from their addresses."""
    one = {Key([number]) for number in range(8)}
    assert are_same(one, {Key([number]) for number in reversed(range(8))})
    assert not are_same(one, {Key([number]) for number in reversed(range(1, 9))})


SUBCLASSES: list[tuple[Any, Any]] = [
    (Point(0, 0), Point(5, 5)),
    (Point([0], 0), Point([5], 0)),
    (Whole(1), Whole(2)),
    (Real(0.0), Real(-0.0)),
    (Imaginary(1), Imaginary(2)),
    (Text("a"), Text("b")),
    (Data(b"a"), Data(b"b")),
    (Buffer(b"a"), Buffer(b"b")),
    (Row([1]), Row([2])),
    (Tags({1}), Tags({2})),
    (Frozen({1}), Frozen({2})),
    (with_attribute(Row([1]), 1), with_attribute(Row([1]), 2)),
]


@pytest.mark.parametrize(("one", "other"), SUBCLASSES, ids=lambda value: type(value).__name__)
def test_the_content_of_a_subclass(one: Any, other: Any) -> None:
    """The content of an object counts, of whatever built-in type its class is made."""
    assert are_same(one, copy.deepcopy(one))
    assert not are_same(one, other)
    assert not are_same(Plain(a=one), Plain(a=other))


STATES: list[tuple[Any, Any]] = [
    (random.Random(1), random.Random(2)),
    (deque([1]), deque([2])),
    (deque([1]), deque([1], 1)),
    (OrderedDict(a=1), OrderedDict(a=2)),
    (defaultdict(list, a=1), defaultdict(list, a=2)),
    (defaultdict(list, a=1), defaultdict(set, a=1)),
    (Counter("a"), Counter("b")),
    (array("i", [1]), array("i", [2])),
    (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
    (Decimal("1.0"), Decimal("1.00")),
    (partial(int, 1), partial(int, 2)),
    (ValueError("a"), ValueError("b")),
    (SimpleNamespace(a=1), SimpleNamespace(a=2)),
    (Queue([1]), Queue([2])),
    (Elsewhere(1), Elsewhere(2)),
    (Elsewhere(1, is_stamped=True), Elsewhere(2, is_stamped=True)),
]


@pytest.mark.parametrize(("one", "other"), STATES, ids=lambda value: type(value).__name__)
def test_the_state_in_a_pickle(one: Any, other: Any) -> None:
    """State that is no attribute counts as it would be pickled: of types written in C, and of one's own methods."""
    assert are_same(one, copy.deepcopy(one))
    assert not are_same(one, other)
    assert are_same(one, one)


@pytest.mark.parametrize(
    "value", [Stamps(), Sealed(), StampedQueue([1]), Unpicklable()], ids=lambda v: type(v).__name__
)
def test_what_cannot_be_compared(value: Any) -> None:
    """Objects whose whole state differs each time, or has none, are different: better written once too often."""
    assert not are_same(value, copy.copy(value))
    assert are_same(value, value)
