"""Which keys and values a store takes, and what it says to others."""

from __future__ import annotations

import enum
from typing import Any, cast

import pytest

from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.errors import BadMergeError, BadNameError, BadValueError, BulkError

Store = CloudStoreMapping[Any]


class Colour(enum.StrEnum):
    """Keys of a subclass of `str`."""

    RED = "red"


class Shouting(str):
    """A text that prints as another."""

    __slots__ = ()

    def __str__(self) -> str:
        return "LOUD"


def test_subclasses_of_str_are_their_text(store: Store) -> None:
    """A key of a `str` subclass is the text that it holds."""
    store[Colour.RED] = 1
    store[Shouting("quiet")] = 2
    assert sorted(store) == ["quiet", "red"]
    assert store["red"] == store[Colour.RED] == 1
    assert all(type(key) is str for key in store)


@pytest.mark.parametrize("key", [5, None, b"bytes", ("a",), 1.5])
def test_keys_of_other_types(store: Store, key: Any) -> None:
    """A key that isn't text is never there, and can't be written."""
    assert key not in store
    assert store.get(key, "default") == "default"
    assert store.pop(key, "default") == "default"
    assert store.discard(key) is False
    for act in (store.__getitem__, store.__delitem__, store.pop):
        with pytest.raises(KeyError) as caught:
            act(key)
        assert caught.value.args == (key,)
    for write in (store.__setitem__, store.merge, store.setdefault, lambda key, value: store.update({key: value})):
        with pytest.raises(TypeError, match="Keys are str"):
            write(key, 1)
    with pytest.raises(TypeError, match="Keys are str"):
        store |= {key: 1}
    assert list(store) == []


def test_unhashable_keys(store: Store) -> None:
    """A key that can't be hashed is `TypeError`, as with a `dict`."""
    for act in (store.__getitem__, store.__delitem__, store.__contains__, store.get):
        with pytest.raises(TypeError, match="unhashable"):
            act(cast("Any", []))


@pytest.mark.parametrize(
    ("value", "error", "place"),
    [
        ({"items": [1, {"when": object()}]}, TypeError, r"\$\.items\[1\]\.when"),
        ({1: 2}, TypeError, r"\$"),
        ({"a b": [{2}]}, TypeError, r'\$\["a b"\]\[0\]'),
        ([float("nan")], BadValueError, r"\$\[0\]"),
        ({"x": float("-inf")}, ValueError, r"\$\.x"),
        (b"bytes", TypeError, r"\$"),
        ("\ud800", BadValueError, r"\$"),
    ],
)
def test_values_without_json_form(store: Store, value: Any, error: type[Exception], place: str) -> None:
    """What JSON can't say is refused with the path of the bad part, and nothing is written."""
    store["key"] = "before"
    for write in (
        store.__setitem__,
        store.merge,
        lambda key, value: store.setdefault("new", value),
        lambda key, value: store.update({"other": 1, key: value}),
        lambda key, value: store.__ior__({"other": 1, key: value}),
    ):
        with pytest.raises(error, match=place):
            write("key", value)
    assert dict(store) == {"key": "before"}


def test_bulk_work_that_fails_in_part(store: Store) -> None:
    """The rest is done, and the error tells what was and what wasn't."""
    store.update({"list": [1], "a": 1})
    with pytest.raises(BulkError) as caught:
        store |= {"a": 2, "list": {"x": 1}, "b": 3}
    assert sorted(caught.value.succeeded) == ["a", "b"]
    assert isinstance(caught.value.failed["list"], BadMergeError)
    assert "1 of 3" in str(caught.value)
    assert dict(store) == {"list": [1], "a": 2, "b": 3}


def test_a_lone_surrogate_is_no_key(store: Store) -> None:
    """A key that no text on the wire can say is `ValueError`."""
    for act in (store.__getitem__, store.__contains__, store.discard):
        with pytest.raises(ValueError, match="surrogate") as caught:
            act("\ud800")
        assert isinstance(caught.value, BadNameError)
    with pytest.raises(ValueError, match="surrogate"):
        store["\ud800"] = 1


HOSTILE = [
    "",
    " ",
    " a ",
    "a,b",
    "a/b",
    "../a",
    "..",
    ".",
    "\\",
    "%",
    "%2C",
    "100%",
    "%25",
    "\0",
    "a\nb",
    "é",
    "e\u0301",
    "😀",
    "x" * 900,
    "a%20b",
    "undefined",
    "null",
    "__proto__",
    '"',
    "'; DROP TABLE files; --",
]


def test_any_text_is_a_key(store: Store) -> None:
    """Keys that break listings, paths and escapes are kept apart and come back as they were."""
    expected = {key: number for number, key in enumerate(HOSTILE)}
    store.update(expected)
    assert sorted(store) == sorted(HOSTILE)
    assert dict(store) == expected
    for key, number in expected.items():
        assert key in store
        assert store.pop(key) == number
        assert key not in store
