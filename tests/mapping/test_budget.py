"""What each expression costs, counted at the transport, on our own service and on one without extensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from cloudstore_mapping.client.mapping import CloudStoreMapping, files_of
from cloudstore_mapping.testing.transports import CountingTransport
from tests.support.mapping_fixtures import Connect

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

Counts = dict[str, int]
BATCH: Counts = {"batch": 1}
POPITEM: Counts = {"list": 1, "load": 1, "delete": 1}

#: What it costs on a service without extensions, and on ours.
SINGLE: dict[str, tuple[Callable[[Store], object], Counts, Counts]] = {
    "store[k]": (lambda store: store["key1"], {"load": 1}, {"load": 1}),
    "store.get(k)": (lambda store: store.get("key1"), {"load": 1}, {"load": 1}),
    "store.get(absent)": (lambda store: store.get("absent"), {"load": 1}, {"load": 1}),
    "store.get_as(k, type)": (lambda store: store.get_as("key1", dict[str, int]), {"load": 1}, {"load": 1}),
    "store[k] = v": (lambda store: store.__setitem__("key1", 1), {"save": 1}, {"save": 1}),
    "del store[k]": (lambda store: store.__delitem__("key1"), {"delete": 1}, {"delete": 1}),
    "store.discard(k)": (lambda store: store.discard("key1"), {"delete": 1}, {"delete": 1}),
    "store.merge(k, v)": (lambda store: store.merge("key1", {"x": 1}), {"merge": 1}, {"merge": 1}),
    "k in store": (lambda store: "key1" in store, {"load": 1}, {"stat": 1}),
    "absent in store": (lambda store: "absent" in store, {"load": 1}, {"stat": 1}),
    "k in store.keys()": (lambda store: "key1" in store.keys(), {"load": 1}, {"stat": 1}),  # noqa: SIM118
    "(k, v) in store.items()": (lambda store: ("key1", 1) in store.items(), {"load": 1}, {"load": 1}),
    "setdefault, hit": (lambda store: store.setdefault("key1", 1), {"load": 1}, {"load": 1}),
    "setdefault, miss": (lambda store: store.setdefault("absent", 1), {"load": 1, "save": 1}, {"load": 1, "save": 1}),
    "pop": (lambda store: store.pop("key1"), {"load": 1, "delete": 1}, {"load": 1, "delete": 1}),
    "pop, miss": (lambda store: store.pop("absent", None), {"load": 1}, {"load": 1}),
    "popitem": (lambda store: store.popitem(), POPITEM, POPITEM),
    "update": (lambda store: store.update(OTHER), {"save": N}, BATCH),
    "update with one key": (lambda store: store.update(a=1), {"save": 1}, {"save": 1}),
    "update, pairs with one key": (lambda store: store.update([("a", 1), ("a", 2)]), {"save": 1}, {"save": 1}),
    "|=": (lambda store: store.__ior__(OTHER), {"merge": N}, BATCH),
    "get_many": (lambda store: store.get_many(DATA), {"load": N}, BATCH),
    "delete_many": (lambda store: store.delete_many(DATA), {"delete": N}, BATCH),
    "clear": (lambda store: store.clear(), {"list": 1, "delete": N}, {"list": 1, "batch": 1}),
    "edit that changes": (lambda store: _edit(store, "new"), {"load": 1, "save": 1}, {"load": 1, "save": 1}),
    "edit that changes nothing": (lambda store: _edit(store, None), {"load": 1}, {"load": 1}),
    "transform": (lambda store: store.transform("key1", str), {"load": 1, "save": 1}, {"load": 1, "save": 1}),
    "store.list(text)": (lambda store: store.list("key"), {"list": 1}, {"list": 1}),
    "list(store.view(prefix))": (lambda store: list(store.view("key")), {"list": 1}, {"list": 1}),
    "store == store": (lambda store: store == store, {}, {}),
    "repr(store)": (repr, {}, {}),
    "repr of views": (lambda store: (repr(store.keys()), repr(store.items()), repr(store.values())), {}, {}),
    "store is other": (lambda store: store is None, {}, {}),
    "5 in store": (lambda store: cast("Any", 5) in store, {}, {}),
    "store.get(5)": (lambda store: store.get(cast("Any", 5)), {}, {}),
    "update of nothing": (lambda store: store.update({}), {}, {}),
    "store.view(prefix), store.stats": (lambda store: (store.view("key"), store.stats), {}, {}),
}


def _edit(store: Store, new: object) -> None:
    with store.edit("key1") as value:
        if new is not None:
            value["new"] = new


#: A test on our own service and on the vendor's; how ours is reached makes no difference, and is tried when slow.
each_way = pytest.mark.parametrize(
    "connect",
    ["memory", "vendor", *(pytest.param(way, marks=pytest.mark.slow) for way in ("file", "http"))],
    indirect=True,
)


@pytest.fixture
def filled(counted: Counted) -> Counted:
    """Return a store with N keys, and its counter at zero."""
    store, transport = counted
    store.update(DATA)
    transport.take()
    return store, transport


@each_way
@pytest.mark.parametrize("expression", LISTING)
def test_looking_at_keys_costs_one_listing(filled: Counted, expression: str) -> None:
    """However many keys there are, and whatever is asked of them."""
    store, transport = filled
    LISTING[expression](store)
    assert transport.take() == {"list": 1}


@pytest.fixture
def extended(request: pytest.FixtureRequest) -> bool:
    """Whether the store's service has the extensions."""
    return "vendor" not in request.node.callspec.id


@each_way
@pytest.mark.parametrize("expression", READING)
def test_reading_everything(filled: Counted, extended: bool, expression: str) -> None:
    """It costs one listing, and a page of values for each 1,000 keys, or a load for each key."""
    store, transport = filled
    READING[expression](store)
    assert transport.take() == ({"list": 1 + 1} if extended else {"list": 1, "load": N})


@each_way
@pytest.mark.parametrize("expression", SINGLE)
def test_the_cost_of_one_operation(filled: Counted, extended: bool, expression: str) -> None:
    """Each operation sends these requests and no others."""
    store, transport = filled
    act, without, with_extensions = SINGLE[expression]
    act(store)
    assert transport.take() == (with_extensions if extended else without)


@pytest.mark.parametrize("connect", ["memory", "http"], indirect=True)
def test_a_batch_holds_1000(counted: Counted) -> None:
    """Many keys cost a batch for each 1,000; the first of all requests finds out whether there are batches."""
    store, transport = counted
    many = {f"key{number}": number for number in range(2500)}
    store.update(many)
    assert transport.take() == {"save": 1, "batch": 3}
    assert dict(store) == many
    assert transport.take() == {"list": 1 + 3}
    store.clear()
    assert transport.take() == {"list": 1, "batch": 3}


@each_way
@pytest.mark.parametrize("expression", [*LISTING, *READING])
def test_what_the_cache_answers_costs_nothing(connect: Connect, expression: str) -> None:
    """A second time within the cache's time costs nothing, where all values fit."""
    transport, api_key = connect()
    counting = CountingTransport(transport)
    with CloudStoreMapping[Any](api_key, transport=counting, cache_ttl=1000.0) as store:
        store.update(DATA)
        act = {**LISTING, **READING}[expression]
        first = act(store)
        counting.take()
        assert act(store) == first
        assert counting.take() == {}


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


def test_the_first_get_many(connect: Connect) -> None:
    """A fresh store learns from its first reply that the service has batches."""
    transport, api_key = connect()
    with CloudStoreMapping[Any](api_key, transport=transport) as store:
        store.update(DATA)
        counting = CountingTransport(transport)
        fresh = CloudStoreMapping[Any](api_key, transport=counting)
        assert fresh.get_many(DATA) == DATA
        has_batches = "batch" in files_of(fresh).client.extensions
        assert counting.counts == ({"load": 1, "batch": 1} if has_batches else {"load": N})
