"""What stores are tried with is hostile, and often so."""

from __future__ import annotations

import functools
import json
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, given, settings

import cloudstore_mapping as cm
from cloudstore_mapping.merge import merge
from cloudstore_mapping.testing import same, strategies

T = TypeVar("T")


def drawn(strategy: st.SearchStrategy[T], count: int = 1000) -> list[T]:
    """Return what a strategy gives, the same each time; twenty at once, for hypothesis gives nothing twice."""
    values: list[T] = []

    @settings(
        max_examples=count // 20,
        database=None,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(strategy, min_size=20, max_size=20))
    def draw(some: list[T]) -> None:
        values.extend(some)

    draw()
    return values


@functools.cache
def drawn_keys() -> list[str]:
    """Return many keys, drawn once, and only where a test wants them."""
    return drawn(strategies.keys(), 4000)


HOSTILE: dict[str, Callable[[str], bool]] = {
    "comma": lambda key: "," in key,
    "slash": lambda key: "/" in key,
    "percent": lambda key: "%" in key,
    "NUL": lambda key: "\0" in key,
    "not in NFC": lambda key: key != unicodedata.normalize("NFC", key),
    "astral": lambda key: any(character > "\uffff" for character in key),
    "very long": lambda key: len(key) > 200,
    "empty": lambda key: key == "",
    "looks escaped": lambda key: "%2" in key or "&amp;" in key,
    "a number": str.isdigit,
    "space at an end": lambda key: key != key.strip(" "),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_keys_are_often(kind: str) -> None:
    """Each kind of hostile key comes at least once in some hundred times."""
    keys = drawn_keys()
    assert sum(map(HOSTILE[kind], keys)) >= len(keys) / 400


def test_twins_and_prefixes() -> None:
    """Keys that are equal in NFC, and keys that another begins with, come in one small store."""
    twins = prefixes = 0
    for some in drawn(st.sets(strategies.keys(), min_size=8, max_size=8), 400):
        twins += len({unicodedata.normalize("NFKC", key) for key in some}) < len(some)
        prefixes += any(one != other and other.startswith(one) for one in some - {""} for other in some)
    assert twins >= 3
    assert prefixes >= 40


def test_keys_are_valid() -> None:
    """No key holds a lone surrogate, and none is longer than was asked for."""
    for key in drawn(strategies.keys(longest=20)):
        key.encode()
        assert len(key) <= 20


@pytest.mark.parametrize("count", [1000, pytest.param(6000, marks=pytest.mark.slow)])
def test_values(count: int) -> None:
    """Values are JSON, come back from it the same, and are often false, or equal to one of another type."""
    values = drawn(strategies.json_values(), count)
    assert all(same(json.loads(json.dumps(value)), value) for value in values)
    assert sum(not value for value in values) >= count / 10
    kinds = Counter(repr(value) for value in values)
    twins = ("None", "False", "True", "0", "1", "0.0", "1.0", "''", "[]", "{}")
    assert sum(bool(kinds[text]) for text in twins) >= (len(twins) if count > 1000 else 5)
    assert {type(value) for value in values} == {type(None), bool, int, float, str, list, dict}


@pytest.mark.parametrize("count", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_documents(count: int) -> None:
    """Documents are objects, two of which often share names."""
    pairs = drawn(st.tuples(strategies.documents(), strategies.documents()), count)
    assert all(isinstance(one, dict) for one, _ in pairs)
    assert sum(bool(one.keys() & other.keys()) for one, other in pairs) >= count / 10


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_patches(count: int) -> None:
    """A patch can be merged into its document, and often changes a part that is there and leaves another."""
    changing = 0
    pairs = drawn(strategies.documents().flatmap(lambda one: st.tuples(st.just(one), strategies.patches(one))), count)
    for document, patch in pairs:
        merged: Any = merge(document, patch)
        if isinstance(patch, dict):
            changing += any(not same(merged[name], document[name]) for name in document.keys() & patch.keys())
    assert changing >= count / 25


nested = st.lists(st.lists(strategies.json_values(max_leaves=3)), min_size=1)


@pytest.mark.parametrize("examples", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_patches_are_never_refused(examples: int) -> None:
    """Of any value every patch can be merged into it."""
    values = strategies.json_values() | nested

    @settings(max_examples=examples)
    @given(values.flatmap(lambda value: st.tuples(st.just(value), strategies.patches(value))))
    def check(pair: tuple[Any, Any]) -> None:
        merge(*pair)

    check()


def test_operations() -> None:
    """All operations come, on keys that meet, and can be done to a store."""
    operations = drawn(strategies.operations(values=st.integers()), 300)
    assert {each.operation for each in operations} == strategies.PERFORMED.keys()
    assert {each.key for each in operations} == set("abc")
    with cm.open("memory:") as store:
        assert strategies.Operation("save", "a", 5).perform(store) is None
        assert strategies.Operation("increment", "a", 2).perform(store) == 7
        assert strategies.Operation("merge", "a", {"x": 1}).perform(store) is None
        assert strategies.Operation("load", "a").perform(store) == {"x": 1}
        assert strategies.Operation("contains", "a").perform(store) is True
        assert strategies.Operation("setdefault", "a", 3).perform(store) == {"x": 1}
        assert strategies.Operation("pop", "a").perform(store) == {"x": 1}
        with pytest.raises(KeyError):
            strategies.Operation("delete", "a").perform(store)
