"""The merge: lodash's own results, each cell of the table, and the laws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cloudstore_mapping.errors import BadMergeError
from cloudstore_mapping.merge import JSON, merge, path_text
from cloudstore_mapping.testing import assert_merge_laws, find_counterexample

# 260 cases [stored, value, result] that lodash 4.18 gave; null as stored is an absent file as well.
VECTORS: list[tuple[JSON, JSON, JSON]] = json.loads(Path(__file__).with_name("merge-vectors.json").read_text("utf-8"))

SCALARS: list[JSON] = [None, False, True, 0, 7, -0.5, "", "x"]
ARRAYS: list[JSON] = [[], [1], [[]], [None, {"a": 1}]]
OBJECTS: list[JSON] = [{}, {"a": 1}, {"0": []}, {"a": {"b": None}}]

# Few names, so that two values share some, and those that JavaScript or Python give a meaning.
names = st.sampled_from(["a", "b", "0", "1", "01", "length", "__proto__", "constructor"])
scalars: st.SearchStrategy[JSON] = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values: st.SearchStrategy[JSON] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)


def text(value: JSON) -> str:
    """Return what tells two values apart: types, order of names and all."""
    return json.dumps(value)


def merged(stored: JSON, value: JSON) -> JSON:
    """Return their merge, and leave out the pairs that have none."""
    try:
        return merge(stored, value)
    except BadMergeError:
        assume(False)
        raise


def by_the_table(stored: Any, value: Any) -> Any:
    """Return what the table says, read cell by cell."""
    if isinstance(value, dict) and isinstance(stored, dict):
        changed = {name: by_the_table(stored.get(name), part) for name, part in value.items()}
        return {**stored, **changed}
    if isinstance(value, list) and isinstance(stored, list):
        pairs = [by_the_table(*pair) for pair in zip(stored, value, strict=False)]
        return pairs + stored[len(pairs) :] + value[len(pairs) :]
    if isinstance(value, dict) and isinstance(stored, list):
        if not value.keys() <= {str(index) for index in range(len(stored))}:
            raise BadMergeError("not an index")
        return [by_the_table(part, value[str(i)]) if str(i) in value else part for i, part in enumerate(stored)]
    return value


def test_all_vectors_are_there() -> None:
    """The file of lodash's results is the whole one."""
    assert len(VECTORS) == 260


@pytest.mark.parametrize(("stored", "value", "result"), VECTORS)
def test_lodash_vector(stored: JSON, value: JSON, result: JSON) -> None:
    """The merge gives what lodash gave."""
    assert merge(stored, value) == result


@pytest.mark.parametrize("value", SCALARS)
@pytest.mark.parametrize("stored", SCALARS + ARRAYS + OBJECTS)
def test_scalar_takes_the_place_of_anything(stored: JSON, value: JSON) -> None:
    """Null, bool, number and string overwrite whatever is stored."""
    assert text(merge(stored, value)) == text(value)


@pytest.mark.parametrize("value", ARRAYS + OBJECTS)
@pytest.mark.parametrize("stored", SCALARS)
def test_container_takes_the_place_of_a_scalar(stored: JSON, value: JSON) -> None:
    """An array or an object overwrites what is no container, or absent."""
    assert text(merge(stored, value)) == text(value)


@pytest.mark.parametrize("value", ARRAYS)
@pytest.mark.parametrize("stored", OBJECTS)
def test_array_takes_the_place_of_an_object(stored: JSON, value: JSON) -> None:
    """An array overwrites a stored object."""
    assert text(merge(stored, value)) == text(value)


@pytest.mark.parametrize(
    ("stored", "value", "result"),
    [
        ([1, 2, 3], [9], [9, 2, 3]),
        ([1, 2, 3], [], [1, 2, 3]),
        ([1], [None, 5], [None, 5]),
        ([{"a": 1}, [1, 2]], [{"b": 2}, [7]], [{"a": 1, "b": 2}, [7, 2]]),
        ([{"a": 1}], [[1]], [[1]]),
    ],
)
def test_array_onto_array(stored: JSON, value: JSON, result: JSON) -> None:
    """Arrays merge position by position, and the stored tail stays."""
    assert text(merge(stored, value)) == text(result)


@pytest.mark.parametrize(
    ("stored", "value", "result"),
    [
        ([1, 2], {}, [1, 2]),
        ([1, 2], {"1": 5}, [1, 5]),
        ([{"a": 1}, [2, 3]], {"0": {"b": 2}, "1": [4]}, [{"a": 1, "b": 2}, [4, 3]]),
        ([*range(13)], {"12": None, "0": []}, [[], *range(1, 12), None]),
    ],
)
def test_object_onto_array(stored: JSON, value: JSON, result: JSON) -> None:
    """An object's names are indexes where it meets an array, and each part is merged into its element."""
    assert text(merge(stored, value)) == text(result)


@pytest.mark.parametrize(
    ("stored", "value", "result"),
    [
        ({"a": 1}, {}, {"a": 1}),
        ({"a": 1}, {"b": {}}, {"a": 1, "b": {}}),
        ({"a": {"x": 1}, "b": 2}, {"a": {"y": None}}, {"a": {"x": 1, "y": None}, "b": 2}),
        ({"a": [1]}, {"a": {"0": 2}}, {"a": [2]}),
    ],
)
def test_object_onto_object(stored: JSON, value: JSON, result: JSON) -> None:
    """Objects merge name by name, and names only stored stay."""
    assert text(merge(stored, value)) == text(result)


@pytest.mark.parametrize(
    ("stored", "value", "path"),
    [
        ({"items": [1, 2]}, {"items": {"01": 5}}, '$.items["01"]'),
        ([1], {"-1": 5}, '$["-1"]'),
        ([1], {"length": 0}, "$.length"),
        ([1], {"1": 0}, '$["1"]'),
        ([], {"0": 0}, '$["0"]'),
        ([1], {"": 0}, '$[""]'),
        ([1], {" 0": 0}, '$[" 0"]'),
        ([1], {"0\n": 0}, '$["0\\n"]'),
        ([1], {"0.0": 0}, '$["0.0"]'),
        ([1, 2], {"\u0661": 0}, '$["\\u0661"]'),
        ([1], {"\ud800": 0}, '$["\\ud800"]'),
        ([1], {"4294967295": 0}, '$["4294967295"]'),
        ({"a b": [0, {"c": [1]}]}, {"a b": [7, {"c": {"x": 1}}]}, '$["a b"][1].c.x'),
        ([[1]], {"0": {"x": 1}}, '$["0"].x'),
    ],
)
def test_no_index_of_an_element(stored: JSON, value: JSON, path: str) -> None:
    """A name that is no index of an existing element is an error that shows its path."""
    with pytest.raises(BadMergeError) as raised:
        merge(stored, value)
    assert str(raised.value).startswith(f"{path} is no element of the array there")


def test_index_of_five_thousand_digits() -> None:
    """An index longer than Python reads as an int is no element either."""
    with pytest.raises(BadMergeError):
        merge([1], {"9" * 5000: 0})


@pytest.mark.parametrize("name", ["__proto__", "constructor", "length", "__class__", "prototype", "toString"])
def test_names_without_a_meaning(name: str) -> None:
    """Names that mean something to JavaScript or Python are ordinary names."""
    assert merge({name: {"a": 1}}, {name: {"b": 2}}) == {name: {"a": 1, "b": 2}}
    assert merge(None, {name: 1}) == {name: 1}


def test_numeric_length() -> None:
    """An object with a numeric length is an object, not an array."""
    assert merge({"length": 2, "0": "a"}, ["x"]) == ["x"]
    assert merge({"length": 2}, {"5": 1}) == {"length": 2, "5": 1}


def test_order_of_names() -> None:
    """A stored name keeps its place, and new names follow in the value's order."""
    result = merge({"c": 1, "a": {"z": 1}}, {"d": 0, "a": {"y": 0, "z": 0}, "b": 0, "c": 0})
    assert text(result) == '{"c": 0, "a": {"z": 0, "y": 0}, "d": 0, "b": 0}'


def test_depth_needs_no_stack() -> None:
    """Values nested deeper than Python's stack merge all the same."""

    def nested(innermost: JSON) -> JSON:
        value = innermost
        for _ in range(5000):
            value = {"a": value}
        return value

    part = merge(nested([1, 2]), nested([3]))
    for _ in range(5000):
        assert isinstance(part, dict)
        part = part["a"]
    assert part == [3, 2]


@given(values, values)
def test_table(stored: JSON, value: JSON) -> None:
    """The merge is the table, read cell by cell."""
    try:
        expected = by_the_table(stored, value)
    except BadMergeError:
        with pytest.raises(BadMergeError):
            merge(stored, value)
    else:
        assert text(merge(stored, value)) == text(expected)


@pytest.mark.parametrize("examples", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_laws(examples: int) -> None:
    """Merging again changes nothing, and leaves both arguments alone; the other laws of the test kit hold as well."""
    assert_merge_laws(merge, values=values, refuses=(BadMergeError,), examples=examples)


@given(values, values)
def test_nothing_is_removed(stored: JSON, value: JSON) -> None:
    """No name of a stored object and no tail of a stored array goes away where both are of one kind."""
    result = merged(stored, value)
    if isinstance(stored, dict) and isinstance(value, dict):
        assert isinstance(result, dict)
        assert list(result)[: len(stored)] == list(stored)
    if isinstance(stored, list) and isinstance(value, list):
        assert isinstance(result, list)
        assert len(result) == max(len(stored), len(value))


def test_not_associative() -> None:
    """Two merges that are folded into one before they are sent give another result."""
    a: JSON = {"x": {"p": 1}}
    b: JSON = {"x": 5}
    c: JSON = {"x": {"q": 2}}
    assert merge(merge(a, b), c) == {"x": {"q": 2}}
    assert merge(a, merge(b, c)) == {"x": {"p": 1, "q": 2}}


@pytest.mark.slow
def test_not_associative_found() -> None:
    """A counterexample to associativity is not rare: a search finds one."""
    found = find_counterexample("associative", merge, refuses=(BadMergeError,))
    assert found is not None
    a, b, c = found
    assert merge(merge(a, b), c) != merge(a, merge(b, c))


@pytest.mark.parametrize(
    ("path", "written"),
    [((), "$"), (("items", 3, "when"), "$.items[3].when"), (("a b", 0), '$["a b"][0]'), (("0", ""), '$["0"][""]')],
)
def test_path_text(path: tuple[str | int, ...], written: str) -> None:
    """A path is written with dots for identifiers, brackets for indexes and JSON text for other names."""
    assert path_text(path) == written
