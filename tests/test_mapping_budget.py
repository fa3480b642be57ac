"""What each expression costs, counted at the transport, on our own service and on one without extensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from cloudstore_mapping.client.mapping import CloudStoreMapping
from tests.counting import CountingTransport

Store = CloudStoreMapping[Any]
Counted = tuple[Store, CountingTransport]

N = 5
DATA = {f"key{number}": {"number": number} for number in range(N)}
OTHER = {f"key{number}": 0 for number in range(2, N + 2)}

LISTING: dict[str, Callable[[Store], object]] = {
    "len(store)": len,
    "bool(store)": bool,
    "list(store)": list,
    "tuple(store)": tuple,
    "sorted(store)": sorted,
    "set(store)": set,
    "[*store]": lambda store: [*store],
    "list(store.keys())": lambda store: list(store.keys()),
    "sorted(store.keys())": lambda store: sorted(store.keys()),
    "list(reversed(store))": lambda store: list(reversed(store)),
    "store.keys() == other": lambda store: store.keys() == OTHER.keys(),
    "other == store.keys()": lambda store: set(OTHER) == store.keys(),
    "store.keys() & other": lambda store: store.keys() & OTHER.keys(),
    "other & store.keys()": lambda store: OTHER.keys() & store.keys(),
    "store.keys() <= other": lambda store: store.keys() <= OTHER.keys(),
    "store.keys() - other": lambda store: store.keys() - set(OTHER),
    "store.keys().isdisjoint(other)": lambda store: store.keys().isdisjoint(OTHER),
    "len(store.keys())": lambda store: len(store.keys()),
    "len(store.items())": lambda store: len(store.items()),
    "store == other with other keys": lambda store: store == OTHER,
}

READING: dict[str, Callable[[Store], object]] = {
    "list(store.items())": lambda store: list(store.items()),
    "list(store.values())": lambda store: list(store.values()),
    "dict(store)": dict,
    "{**store}": lambda store: {**store},
    "store.copy()": lambda store: store.copy(),
    "store == other": lambda store: store == DATA,
    "other == store": lambda store: DATA == store,
    "store.items() == other": lambda store: store.items() == DATA.items(),
    "store | other": lambda store: store | OTHER,
    "other | store": lambda store: OTHER | store,
}

SINGLE: dict[str, tuple[Callable[[Store], object], dict[str, int]]] = {
    "store[k]": (lambda store: store["key1"], {"load": 1}),
    "store.get(k)": (lambda store: store.get("key1"), {"load": 1}),
    "store.get(absent)": (lambda store: store.get("absent"), {"load": 1}),
    "store[k] = v": (lambda store: store.__setitem__("key1", 1), {"save": 1}),
    "del store[k]": (lambda store: store.__delitem__("key1"), {"delete": 1}),
    "store.discard(k)": (lambda store: store.discard("key1"), {"delete": 1}),
    "store.merge(k, v)": (lambda store: store.merge("key1", {"x": 1}), {"merge": 1}),
    "k in store": (lambda store: "key1" in store, {"load": 1}),
    "absent in store": (lambda store: "absent" in store, {"load": 1}),
    "k in store.keys()": (lambda store: "key1" in store.keys(), {"load": 1}),  # noqa: SIM118
    "(k, v) in store.items()": (lambda store: ("key1", 1) in store.items(), {"load": 1}),
    "setdefault, hit": (lambda store: store.setdefault("key1", 1), {"load": 1}),
    "setdefault, miss": (lambda store: store.setdefault("absent", 1), {"load": 1, "save": 1}),
    "pop": (lambda store: store.pop("key1"), {"load": 1, "delete": 1}),
    "pop, miss": (lambda store: store.pop("absent", None), {"load": 1}),
    "popitem": (lambda store: store.popitem(), {"list": 1, "load": 1, "delete": 1}),
    "update": (lambda store: store.update(OTHER), {"save": N}),
    "update, pairs with one key": (lambda store: store.update([("a", 1), ("a", 2)]), {"save": 1}),
    "|=": (lambda store: store.__ior__(OTHER), {"merge": N}),
    "clear": (lambda store: store.clear(), {"list": 1, "delete": N}),
    "store == store": (lambda store: store == store, {}),
    "repr(store)": (repr, {}),
    "repr of views": (lambda store: (repr(store.keys()), repr(store.items()), repr(store.values())), {}),
    "store is other": (lambda store: store is None, {}),
    "5 in store": (lambda store: cast("Any", 5) in store, {}),
    "store.get(5)": (lambda store: store.get(5), {}),  # type: ignore[call-overload]
    "update of nothing": (lambda store: store.update({}), {}),
}


@pytest.fixture
def filled(counted: Counted) -> Counted:
    """Return a store with N keys, and its counter at zero."""
    store, transport = counted
    store.update(DATA)
    transport.take()
    return store, transport


@pytest.mark.parametrize("expression", LISTING)
def test_looking_at_keys_costs_one_listing(filled: Counted, expression: str) -> None:
    """However many keys there are, and whatever is asked of them."""
    store, transport = filled
    LISTING[expression](store)
    assert transport.take() == {"list": 1}


@pytest.mark.parametrize("expression", READING)
def test_reading_everything_costs_a_listing_and_a_load_a_key(filled: Counted, expression: str) -> None:
    """One listing, and one load for each of the N keys."""
    store, transport = filled
    READING[expression](store)
    assert transport.take() == {"list": 1, "load": N}


@pytest.mark.parametrize("expression", SINGLE)
def test_the_cost_of_one_operation(filled: Counted, expression: str) -> None:
    """Each operation sends these requests and no others."""
    store, transport = filled
    act, counts = SINGLE[expression]
    act(store)
    assert transport.take() == counts


def test_a_refused_value_costs_nothing(filled: Counted) -> None:
    """What can't be stored is refused before any request, also when it is one of many."""
    store, transport = filled
    with pytest.raises(TypeError):
        store.update({"a": 1, "b": object()})
    with pytest.raises(TypeError):
        store["a"] = {1}
    with pytest.raises(TypeError):
        store.setdefault("key1", {1})
    assert transport.take() == {}
