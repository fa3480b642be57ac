"""The codec: what comes back equals what went in, or it never went."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import types
import uuid
from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple
from unittest.mock import Mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudstore_mapping.client.codec import MAX_DEPTH, decode, encode
from cloudstore_mapping.errors import BadValueError, ProtocolError

values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**100), 10**100)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=25,
)


class Colour(enum.StrEnum):
    """A text."""

    RED = "red"


class Size(enum.IntEnum):
    """A number."""

    BIG = 9


class Point(NamedTuple):
    """An array."""

    x: int
    y: int


class Text(str):
    """A text that prints as another."""

    __slots__ = ()

    def __str__(self) -> str:
        return "lie"


class Number(int):
    """An integer that prints and converts as another."""

    def __repr__(self) -> str:
        return "lie"

    def __int__(self) -> int:
        return 0


class Real(float):
    """A float that prints and converts as another."""

    def __repr__(self) -> str:
        return "lie"

    def __float__(self) -> float:
        return 0.0


class Items(list[Any]):
    """An array."""


@dataclasses.dataclass
class Record:
    """Nothing that JSON knows, though msgspec would write it."""

    a: int = 1


class Struct(msgspec.Struct):
    """Nothing that JSON knows, though msgspec would write it."""

    a: int = 1


class Plain(enum.Enum):
    """Nothing that JSON knows, though msgspec would write it."""

    A = 1


def nested(levels: int, container: type = list) -> Any:
    """Return that many containers within each other."""
    value: Any = container()
    for _ in range(levels - 1):
        value = {"a": value} if container is dict else container([value])
    return value


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "null"),
        (True, "true"),
        (0, "0"),
        (-(2**64), "-18446744073709551616"),
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (5e-324, "5e-324"),
        ("", '""'),
        ('é"\\\n\0😀', '"é\\"\\\\\\n\\u0000😀"'),
        ([], "[]"),
        ((1, (2,)), "[1,[2]]"),
        ({"": {}, "b": [None]}, '{"":{},"b":[null]}'),
        (Colour.RED, '"red"'),
        (Size.BIG, "9"),
        (Point(1, 2), "[1,2]"),
        (Text("truth"), '"truth"'),
        (Number(7), "7"),
        (Real(2.5), "2.5"),
        (Items([1, Items()]), "[1,[]]"),
        (OrderedDict(b=1, a=2), '{"b":1,"a":2}'),
        (defaultdict(list, a=[1]), '{"a":[1]}'),
        ({Colour.RED: Colour.RED, Text("k"): [Size.BIG]}, '{"red":"red","k":[9]}'),
    ],
)
def test_dump(value: object, written: str) -> None:
    """A value is written as its JSON, and a subclass of what JSON knows as its plain content."""
    raw = encode(value)
    assert isinstance(raw, msgspec.Raw)
    assert bytes(raw).decode() == written
    assert bytes(encode([value])).decode() == f"[{written}]"


@pytest.mark.parametrize(
    "value",
    [
        *(b"x", bytearray(), memoryview(b""), {1}, frozenset(), object(), 1j, range(3), iter([]), Ellipsis, int, len),
        *(dt.datetime(2024, 1, 1), dt.date(2024, 1, 1), dt.timedelta(1), uuid.UUID(int=1)),
        *(decimal.Decimal(1), Record(), Struct(), Plain.A, msgspec.Raw(b"1"), msgspec.UNSET),
        *(types.MappingProxyType({}), {}.keys(), Mock(spec=str), Mock(spec=dict)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_types(value: object) -> None:
    """What JSON has no form for is a TypeError with its path, wherever it stands."""
    message = f" is of type {type(value).__name__}, which JSON can't represent; convert it first."
    for whole, path in [
        (value, "$"),
        ([value], "$[0]"),
        ({"items": [1, "x", (), {"when": value}]}, "$.items[3].when"),
        ({"a b": [value]}, '$["a b"][0]'),
        ({"a": (Colour.RED, value)}, "$.a[1]"),
    ]:
        with pytest.raises(TypeError) as raised:
            encode(whole)
        assert str(raised.value) == path + message


class NumpyBool:
    """As much of `numpy.bool` as the message about it needs; numpy itself is no dependency."""

    dtype = "bool"

    def tolist(self) -> bool:
        """Return the plain value."""
        return True


def test_numpy() -> None:
    """A number or array of numpy is refused by the full name of its type, with the method to convert it."""
    NumpyBool.__module__, NumpyBool.__name__ = "numpy", "bool"
    with pytest.raises(
        TypeError, match=r"^\$\.x is of type numpy\.bool, which JSON can't represent; store its \.tolist\(\)\.$"
    ):
        encode({"x": NumpyBool()})
    assert bytes(encode({"x": NumpyBool().tolist()})) == b'{"x":true}'


@pytest.mark.parametrize("name", [1, None, True, 1.5, (), b"a", Size.BIG, Plain.A], ids=repr)
def test_names_are_text(name: object) -> None:
    """A dict key that is no str is a TypeError with the path of the dict, never turned into text."""
    kind = type(name).__name__
    for whole, path in [({name: 1}, "$"), ({"a": [{"b": 1, name: 1}]}, "$.a[0]"), (OrderedDict({name: 1}), "$")]:
        with pytest.raises(TypeError) as raised:
            encode(whole)
        assert str(raised.value) == f"{path} has a key of type {kind}; JSON has only str keys."


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, Real("nan"), Real("inf")])
def test_no_number(value: float) -> None:
    """NaN and the infinities are refused with their path, never turned into null."""
    for whole, path in [(value, "$"), ([1.0, value], "$[1]"), ({"a": {"b": (0, value)}}, "$.a.b[1]")]:
        with pytest.raises(BadValueError) as raised:
            encode(whole)
        assert str(raised.value).startswith(f"{path} is {float.__repr__(value)}, ")


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\ud83d\ude00", Text("\ud800")], ids=ascii)
def test_lone_surrogates(text: str) -> None:
    """A lone surrogate in a value or a dict key is refused with its path, in a sentence that can be shown."""
    for whole, path in [
        (text, "$"),
        (["", text], "$[1]"),
        ({"a": {"b": text}}, "$.a.b"),
        ({"a": {text: 1}}, f"$.a[{json.dumps(str.__str__(text))}]"),
    ]:
        with pytest.raises(BadValueError) as raised:
            encode(whole)
        assert str(raised.value).startswith(f"{path} holds a lone surrogate")
        assert str(raised.value).isascii()


@pytest.mark.parametrize(("longest", "step"), [(10**4300 - 1, 1), (1 - 10**4299, -1)], ids=["positive", "negative"])
def test_long_integers(longest: int, step: int) -> None:
    """An integer of 4,300 digits, its sign counted, is exact, and a longer one is refused with its path."""
    assert decode(encode([longest])) == [longest]
    for too_long in (longest + step, Number(longest + step), longest**2 * step):
        with pytest.raises(BadValueError, match=r"^\$\.n\[0\] is an integer of more than 4,300 digits"):
            encode({"n": [too_long]})


@pytest.mark.parametrize("container", [list, dict, tuple, Items])
def test_depth(container: type) -> None:
    """As many levels as the limit says are written and read, one more is refused with its path."""
    raw = encode(nested(MAX_DEPTH, container))
    assert bytes(raw).count(b"{" if container is dict else b"[") == MAX_DEPTH
    assert encode(decode(raw)) == raw
    path = "$" + (".a" if container is dict else "[0]") * MAX_DEPTH
    with pytest.raises(BadValueError) as raised:
        encode(nested(MAX_DEPTH + 1, container))
    assert str(raised.value) == f"{path} is nested deeper than {MAX_DEPTH} levels; flatten it."
    with pytest.raises(BadValueError, match="nested deeper"):
        encode(nested(100_000, container))


@pytest.mark.parametrize("length", [1, 2, 7, 300, 499])
def test_value_that_contains_itself(length: int) -> None:
    """A value that contains itself is refused with the path of its first repetition."""
    innermost: list[Any] = []
    value: Any = innermost
    for _ in range(length - 1):
        value = [value]
    innermost.append(value)
    with pytest.raises(BadValueError) as raised:
        encode({"a": value})
    assert str(raised.value) == f"$.a{'[0]' * length} contains itself; store a copy of the part that is meant."


def test_dict_that_contains_itself_twice() -> None:
    """A value that contains itself in many places is refused at once."""
    value: dict[str, Any] = {}
    value.update(a=value, b=[value, value])
    with pytest.raises(BadValueError, match="contains itself"):
        encode(value)


def test_shared_parts() -> None:
    """A part that stands in two places is written twice."""
    part = [1]
    assert bytes(encode([part, {"a": part}])) == b'[[1],{"a":[1]}]'


def test_little_stack_left() -> None:
    """A caller with hardly any stack left gets an error of ours, once there is stack enough to say it."""
    value = nested(MAX_DEPTH)
    errors: list[BadValueError] = []

    def deeper() -> None:
        try:
            deeper()
        except RecursionError:
            if not errors:
                try:
                    encode(value)
                except BadValueError as error:
                    errors.append(error)
            raise

    with pytest.raises(RecursionError):
        deeper()
    assert [str(error) for error in errors] == [
        "The value is nested deeper than the stack that is left here; flatten it."
    ]


@given(values)
def test_round_trip(value: Any) -> None:
    """What comes back is what went in, types, signs and order included."""
    back = decode(encode(value))
    assert json.dumps(back) == json.dumps(value)


@given(values)
def test_value_stays(value: Any) -> None:
    """Writing a value leaves it as it was."""
    before = json.dumps(value)
    encode(value)
    encode([Colour.RED, value])
    assert json.dumps(value) == before


@given(values)
def test_both_ways_agree(value: Any) -> None:
    """A value is written the same whether or not some other part of it is of a subclass."""
    assert bytes(encode([value, Colour.RED])) == bytes(encode([value, "red"]))


def test_load_is_fresh() -> None:
    """Two readings share nothing, so a change to one is no change to the other."""
    raw = encode({"a": [1]})
    first = decode(raw)
    first["a"].append(2)
    assert decode(raw) == {"a": [1]}


def test_load_takes_the_last_of_equal_names() -> None:
    """Of equal names in an object that another program stored the last wins."""
    assert decode(msgspec.Raw(b'{"a":1,"a":2}')) == {"a": 2}


@pytest.mark.parametrize("raw", [b"", b"NaN", b"1e400", b"[1] 2", b'"\xff"', b'"\\ud800"', b"9" * 4301, b"[" * 100_000])
def test_load_of_what_cannot_be_read(raw: bytes) -> None:
    """What is no JSON, or none that Python can hold, is an error of ours."""
    with pytest.raises(ProtocolError, match=r"^The stored value can't be read"):
        decode(raw)
