"""Whatever can be pickled comes back from a shelf equal and of the same type."""

from __future__ import annotations

import enum
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudstore_mapping import shelve
from cloudstore_mapping.client.shelf import MARK, Envelopes, is_exact
from tests.support.shelves import store_of


class Colour(enum.Enum):
    """An enumeration."""

    RED = 1
    BLUE = "blue"


class Level(enum.IntEnum):
    """An enumeration whose members are equal to numbers."""

    LOW = 1


class Tags(list[Any]):
    """A list that is one of its own kind."""


class Record(dict[str, Any]):
    """A dictionary that is one of its own kind."""


class Name(str):
    """A text that is one of its own kind."""

    __slots__ = ()


class Point(NamedTuple):
    """A tuple with names."""

    x: Any
    y: Any


@dataclass(frozen=True)
class Box:
    """A dataclass."""

    content: Any


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=5), inside, max_size=4),
    max_leaves=10,
)
HASHABLE = (
    st.none()
    | st.integers()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.sampled_from([*Colour, Level.LOW, True, 1.0, math.inf, -0.0])
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.dates()
    | st.times()
    | st.datetimes(timezones=st.sampled_from([None, UTC]))
    | st.timedeltas()
    | st.uuids()
    | st.complex_numbers(allow_nan=False)
    | st.builds(Name, st.text(max_size=5))
    | st.builds(PurePosixPath, st.sampled_from(["a", "/b/c"]))
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    HASHABLE | JSON,
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.tuples(inside, inside)
        | st.sets(HASHABLE, max_size=3)
        | st.frozensets(HASHABLE, max_size=3)
        | st.dictionaries(HASHABLE, inside, max_size=3)
        | st.dictionaries(st.just(MARK), inside, max_size=1)
        | st.builds(Tags, st.lists(inside, max_size=3))
        | st.builds(Record, st.dictionaries(st.text(max_size=3), inside, max_size=3))
        | st.builds(Point, inside, inside)
        | st.builds(Box, inside)
        | st.builds(deque, st.lists(inside, max_size=3))
        | st.builds(OrderedDict, st.dictionaries(st.text(max_size=3), inside, max_size=3))
        | st.builds(Counter, st.lists(HASHABLE, max_size=3))
        | st.builds(lambda items: defaultdict(list, items), st.dictionaries(st.text(max_size=3), inside, max_size=3))
        | st.builds(bytearray, st.binary(max_size=5))
    ),
    max_leaves=12,
)


def types(value: Any) -> Any:
    """Return the types of a value and of all that is in it, in its order where it has one."""
    if isinstance(value, dict):
        return type(value), sorted(((repr(types(k)), repr(types(v))) for k, v in value.items()), key=str)
    if isinstance(value, set | frozenset):
        return type(value), sorted(repr(types(each)) for each in value)
    if isinstance(value, list | tuple | deque):
        return type(value), [types(each) for each in value]
    if isinstance(value, Box):
        return type(value), types(value.content)
    return type(value), math.copysign(1, value) if isinstance(value, float) else None


@pytest.fixture(scope="module")
def shelf() -> Iterator[shelve.Shelf]:
    """Return a shelf in memory."""
    with shelve.open("memory:") as db:
        yield db


@settings(max_examples=300)
@given(value=VALUES)
def test_any_value(shelf: shelve.Shelf, value: Any) -> None:
    """Equal, and of the same types all the way down."""
    shelf["key"] = value
    found = shelf["key"]
    assert found == value
    assert types(found) == types(value)


@settings(max_examples=200)
@given(value=JSON)
def test_json_is_stored_as_it_is(shelf: shelve.Shelf, value: Any) -> None:
    """What JSON says exactly is what the store holds."""
    assert is_exact(value)
    shelf["key"] = value
    assert store_of(shelf)["key"] == (
        {MARK: {"json": value}} if type(value) is dict and list(value) == [MARK] else value
    )


@given(value=VALUES)
def test_exactness_is_never_claimed_wrongly(value: Any) -> None:
    """Whatever is stored as JSON holds nothing but JSON's own types, with text as names."""
    allowed = {dict, list, str, int, float, bool, type(None)}

    def walk(part: Any) -> Iterator[Any]:
        yield part
        inside = (
            [*part, *part.values()] if isinstance(part, dict) else part if isinstance(part, list | tuple | set) else []
        )
        for each in inside:
            yield from walk(each)

    if is_exact(value):
        assert {type(part) for part in walk(value)} <= allowed


def test_what_holds_itself(shelf: shelve.Shelf) -> None:
    """Lists and dictionaries with cycles come back with them."""
    loop: list[Any] = [1]
    loop.append(loop)
    shelf["loop"] = loop
    found = shelf["loop"]
    assert found[0] == 1
    assert found[1] is found
    ring: dict[str, Any] = {"a": {}}
    ring["a"]["b"] = ring
    shelf["ring"] = ring
    assert shelf["ring"]["a"]["b"]["a"]["b"]["a"].keys() == {"b"}


@pytest.mark.parametrize(
    "value",
    [
        10**5000,
        math.inf,
        "lone \ud800",
        {"lone \ud800": 1},
        datetime(2024, 2, 29, tzinfo=UTC),
        (date.min, time.max, timedelta.max),
        Decimal("1.10"),
        Fraction(1, 3),
        UUID(int=1),
        Level.LOW,
        True,
        1.0,
    ],
    ids=lambda value: type(value).__name__,
)
def test_at_the_edge_of_json(shelf: shelve.Shelf, value: Any) -> None:
    """What JSON can't say, or would say as something else, comes back as it is."""
    shelf["key"] = value
    assert shelf["key"] == value
    assert type(shelf["key"]) is type(value)


def test_deep_nesting(shelf: shelve.Shelf) -> None:
    """What is nested deeper than services take as JSON is pickled."""
    value: list[Any] = []
    for _ in range(120):
        value = [value]
    shelf["deep"] = value
    assert shelf["deep"] == value


def test_nan_is_nan(shelf: shelve.Shelf) -> None:
    """A number that isn't equal to itself comes back as such a one."""
    shelf["nan"] = [math.nan]
    assert math.isnan(shelf["nan"][0])


def test_what_cannot_be_pickled(shelf: shelve.Shelf) -> None:
    """A value that pickle refuses raises what pickle raises, and what was there stays."""
    shelf["key"] = 1
    with pytest.raises((TypeError, AttributeError)):
        shelf["key"] = lambda: None
    assert shelf["key"] == 1


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_protocols(protocol: int) -> None:
    """Each protocol of pickle can be chosen, and all are read."""
    envelopes = Envelopes([b"a secret of the tests"], protocol)
    stored = envelopes.dump("key", {1: (2,)})
    assert Envelopes([b"a secret of the tests"]).load("key", stored) == {1: (2,)}
