"""Which keys and values a store takes, and what it says to others."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.errors import (
    BadMergeError,
    BadNameError,
    BadValueError,
    BulkError,
    ProtocolError,
    UnsupportedError,
)
from cloudstore_mapping.keys import escape_key
from cloudstore_mapping.testing.transports import CountingTransport
from cloudstore_mapping.wire import decode_value, encode_value
from tests.support.mapping_fixtures import Connect, MakeStore
from tests.vendor import Fault, Vendor

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


@pytest.fixture
def is_joined(request: pytest.FixtureRequest) -> bool:
    """Whether the service lists names joined by commas."""
    return "vendor" in request.node.callspec.id


PIECES = ["%", "25", "2C", "2E", "00", "2F", ",", "/", ".", "..", "\0", "\t", " ", "a", "é", "😀"]
texts = st.text(max_size=8) | st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=st.lists(texts, unique=True, max_size=6))
def test_every_program_finds_a_key_under_its_name(
    store: Store, connect: Connect, is_joined: bool, keys: list[str]
) -> None:
    """Any keys round-trip, each under its own name: the key itself, but for what the service can't keep."""
    store.clear()
    store.update({key: key for key in keys})
    names = {escape_key(key, joined=is_joined): key for key in keys}
    assert len(names) == len(keys)
    transport, api_key = connect()
    with Client(transport, api_key) as other:
        assert sorted(other.list()) == sorted(names)
        for name, key in names.items():
            loaded = other.load(name)
            assert loaded is not None
            assert decode_value(loaded.value) == key
            other.save(name, encode_value([key]))
    assert dict(store) == {key: [key] for key in keys}
    assert all(key in store for key in keys)


def test_another_program_needs_no_listing(connect: Connect, make_store: MakeStore) -> None:
    """A file is found under its plain name at once by every store, and a store's key by every other program."""
    transport, api_key = connect()
    names = ["users/bob", "a b", "100%", "naïve", "a%2Fb", "c:\\d", " x "]
    with Client(transport, api_key) as other:
        for name in names:
            other.save(name, encode_value(1))
            assert make_store()[name] == 1
            make_store()[name] = 2
            loaded = other.load(name)
            assert loaded is not None
            assert decode_value(loaded.value) == 2
        assert sorted(other.list()) == sorted(names)


#: What a key with two spellings costs at its first use, and at its second.
ASKING: dict[str, tuple[Any, dict[str, int]]] = {
    "save": (lambda store, key: store.__setitem__(key, 1), {"save": 1}),
    "load": (lambda store, key: store.get(key), {"load": 1}),
    "delete": (lambda store, key: store.discard(key), {"delete": 1}),
    "merge": (lambda store, key: store.merge(key, 1), {"merge": 1}),
}


@pytest.mark.parametrize("operation", ASKING)
@pytest.mark.parametrize("key", ["a,b", "a\tb", "..", ".", ",", "%2C", "x/../y"])
def test_a_key_with_two_spellings_is_asked_for_once(store: Store, connect: Connect, operation: str, key: str) -> None:
    """The first use of a key that has another name on the other kind of service costs one list more."""
    transport, api_key = connect()
    counting = CountingTransport(transport)
    act, cost = ASKING[operation]
    with CloudStoreMapping[Any](api_key, transport=counting) as fresh:
        act(fresh, key)
        assert counting.take() == {"list": 1, **cost}
        act(fresh, key)
        assert counting.take() == cost
        act(fresh, "users/ann")
        assert counting.take() == cost
        list(fresh)
        counting.take()
        act(fresh, "another,key")
        assert counting.take() == cost


def test_an_error_of_the_list_that_asks_is_the_key_s(vendor: Vendor) -> None:
    """A failure to learn a key's name is an error of the key, in a view without the prefix, and never a `KeyError`."""
    with CloudStoreMapping[Any](vendor.api_key, transport=HTTPTransport(vendor.address)) as store:
        view = store.view("a/")
        uses: list[Callable[[], object]] = [
            lambda: view["b,c"],
            lambda: view.update({"b,c": 1, "d": 2}),
            lambda: view.get("b,c"),
        ]
        for act in uses:
            vendor.faults.append(Fault(200, b'{"error": "ServerError", "message": "why"}'))
            with pytest.raises(ProtocolError) as caught:
                act()
            assert not isinstance(caught.value, KeyError)
        vendor.faults.append(Fault(200, b'{"error": "ServerError", "message": "why"}'))
        with pytest.raises(ProtocolError) as caught:
            view["b,c"] = 1
        assert caught.value.key == "b,c"
    assert vendor.files == {}


def test_many_keys_with_two_spellings(store: Store, connect: Connect, is_joined: bool) -> None:
    """Work on many keys costs one list more, on a service with joined lists two."""
    transport, api_key = connect()
    counting = CountingTransport(transport)
    with CloudStoreMapping[Any](api_key, transport=counting) as fresh:
        fresh.update({f"{number},x": number for number in range(5)})
        assert counting.take() == ({"list": 2, "save": 5} if is_joined else {"list": 1, "batch": 1})
        assert len(fresh.get_many([f"{number},x" for number in range(5)])) == 5
        assert counting.take() == ({"load": 5} if is_joined else {"batch": 1})


@pytest.mark.parametrize("key", ["a", "a,", ",", "."])
def test_asking_lists_next_to_nothing(vendor: Vendor, key: str) -> None:
    """Among 50,000 names, neither `stat` nor the list before a key's first use brings them all."""
    vendor.files.update(dict.fromkeys((f"a.{number}" for number in range(50_000)), 1))
    with CloudStoreMapping[Any](vendor.api_key, transport=HTTPTransport(vendor.address)) as store:
        with pytest.raises(UnsupportedError):
            store.stat(key)
        with pytest.raises(UnsupportedError):
            store.stat(key)
        assert store.get(key) is None
        assert store.stats.bytes_received < 2000
        assert store.stats.requests == {"list": 1, "load": 1}


def test_stat_knows_what_the_service_can(vendor: Vendor) -> None:
    """Once any reply has come, `stat` on a service without metadata sends nothing."""
    with CloudStoreMapping[Any](vendor.api_key, transport=HTTPTransport(vendor.address)) as store:
        store["a"] = 1
        with pytest.raises(UnsupportedError):
            store.stat("a")
        assert store.stats.requests == {"save": 1}
