"""The store behaves as a dictionary, whatever it is kept in."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import pytest

from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.errors import BadMergeError, NoFileError
from tests.support.mapping_fixtures import MakeStore

Store = CloudStoreMapping[Any]

VALUES: list[Any] = [None, True, False, 0, -1, 2**70, 1.5, -0.0, "", "text", "\0", "😀"]
VALUES += [[], [[]], {}, {"": None}, [1, {"a": [2]}]]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_was_saved_is_read(store: Store, value: object) -> None:
    """Every JSON value comes back equal and of the same type, falsy ones too."""
    store["key"] = value
    assert store["key"] == value
    assert type(store["key"]) is type(value)
    assert "key" in store
    assert store.get("key", "default") == value


def test_it_is_a_mutable_mapping(store: Store) -> None:
    """It passes for what it is."""
    assert isinstance(store, MutableMapping)
    assert not issubclass(type(store), dict)


def test_an_absent_key_is_key_error(store: Store) -> None:
    """Reading or deleting what isn't there is `KeyError` with the key in its args, as with a `dict`."""
    for act in (store.__getitem__, store.__delitem__, store.pop):
        with pytest.raises(KeyError) as caught:
            act("absent")
        assert caught.value.args == ("absent",)
        assert isinstance(caught.value, NoFileError)
        assert "absent" in str(caught.value)
    assert store.get("absent") is None
    assert store.get("absent", 5) == 5
    assert store.pop("absent", 6) == 6
    assert store.discard("absent") is False
    assert "absent" not in store


def test_deleting(store: Store) -> None:
    """A deleted key is gone, and can be saved again."""
    store["key"] = 1
    del store["key"]
    assert list(store) == []
    store["key"] = 2
    assert store.pop("key") == 2
    store["key"] = 3
    assert store.discard("key") is True
    assert len(store) == 0


def test_iteration_and_length(store: Store) -> None:
    """Keys, values and items of one call agree in order, forwards and backwards."""
    expected = {f"key {number}": {"number": number} for number in (3, 1, 2)}
    store.update(expected)
    keys = list(store)
    assert sorted(keys) == sorted(expected)
    assert len(store) == 3
    assert list(store.keys()) == keys
    assert list(store.items()) == [(key, expected[key]) for key in keys]
    assert list(store.values()) == [expected[key] for key in keys]
    assert list(reversed(store)) == keys[::-1]
    assert list(reversed(store.keys())) == keys[::-1]
    assert list(reversed(store.items())) == [(key, expected[key]) for key in keys[::-1]]
    assert list(reversed(store.values())) == [expected[key] for key in keys[::-1]]
    assert dict(store) == {**store} == store.copy() == expected


def test_iteration_runs_on_a_snapshot(store: Store) -> None:
    """What is deleted during an iteration is skipped by items and values; what is added isn't seen."""
    store.update({"a": 1, "b": 2, "c": 3})
    seen = []
    for key in store:
        seen.append(key)
        store.discard("c")
        store["d"] = 4
    assert sorted(seen) == ["a", "b", "c"]
    assert sorted(store.items()) == [("a", 1), ("b", 2), ("d", 4)]


@pytest.mark.parametrize("connect", ["vendor"], indirect=True)
def test_items_skip_what_was_deleted_meanwhile(make_store: MakeStore) -> None:
    """A key deleted between the listing and its load is left out."""
    store = make_store(max_workers=1)
    store.update({"a": 1, "b": 2, "c": 3})
    items = iter(store.items())
    next(items)
    del store["c"]
    assert [key for key, _ in items] == ["b"]


@pytest.mark.parametrize("connect", ["memory", "http"], indirect=True)
def test_items_skip_what_was_deleted_before_its_batch(store: Store) -> None:
    """A key deleted between the listing and the load of its batch is left out."""
    store.update({f"{number:04}": number for number in range(1001)})
    items = iter(store.items())
    next(items)
    del store["1000"]
    assert sum(1 for _ in items) == 999


def test_items_are_pairs(store: Store) -> None:
    """As in a `dict`, nothing but a pair is among the items."""
    store["a"] = "b"
    items: list[Any] = ["ab", ["a", "b"], ("a",), ("a", "b", "c"), 5, None, ("a", "b"), ("a", "c"), ("c", "b")]
    for item in items:
        assert (item in store.items()) == (item in {"a": "b"}.items())


def test_the_length_is_never_a_remembered_one(store: Store) -> None:
    """`len` tells the number of keys there are, also right after an iteration was begun; that takes them at a step."""
    store.update({"a": 1, "b": 2})
    iterator = iter(store)
    del store["a"]
    assert len(store) == 1
    assert sorted(iterator) == ["b"]
    for ask in (iter, len):
        answer = ask(store)
    assert answer == 1


def test_what_is_read_is_fresh(store: Store) -> None:
    """Changing what was read, or what was saved, changes neither the store nor another read."""
    value = {"list": [1]}
    store["key"] = value
    value["list"].append(2)
    first = store["key"]
    first["list"].append(3)
    assert store["key"] == {"list": [1]}
    default: list[int] = []
    given = store.setdefault("new", default)
    given.append(1)
    assert store["new"] == default == []


def test_pop_popitem_setdefault(store: Store) -> None:
    """They do as `dict`'s do."""
    assert store.setdefault("key", {}) == {}
    assert store.setdefault("key", 5) == {}
    assert store.setdefault("none") is None
    assert "none" in store
    last = list(store)[-1]
    assert store.popitem() == (last, {} if last == "key" else None)
    store.popitem()
    with pytest.raises(KeyError):
        store.popitem()


def test_update_and_clear(store: Store) -> None:
    """`update` takes what `dict.update` takes, and replaces."""
    store.update({"a": {"x": 1}})
    store.update({"a": {"y": 2}}, b=2)
    store.update([("c", 3), ("c", 4)])
    store.update(d=5)
    store.update()
    assert store == {"a": {"y": 2}, "b": 2, "c": 4, "d": 5}
    with pytest.raises(ValueError, match="unpack"):
        store.update([("just one",)])
    with pytest.raises(TypeError):
        store.update(5)
    store.clear()
    assert not store
    store.clear()
    assert store == {}


def test_merging(store: Store) -> None:
    """`|=` and `merge` merge at the service; `|` gives what they would leave, and writes nothing."""
    store["Shopping_List"] = {"Apples": 8, "Oranges": 6}
    before = store
    store |= {"Shopping_List": {"Oranges": 10, "Bananas": 8}, "new": [1, 2]}
    assert store is before
    assert store["Shopping_List"] == {"Apples": 8, "Oranges": 10, "Bananas": 8}
    store.merge("new", [5])
    assert store["new"] == [5, 2]
    assert store | {"new": {"1": 6}, "other": (1,)} == {
        "Shopping_List": {"Apples": 8, "Oranges": 10, "Bananas": 8},
        "new": [5, 6],
        "other": [1],
    }
    assert {"new": [0, 0, 0]} | store == {
        "new": [5, 2, 0],
        "Shopping_List": {"Apples": 8, "Oranges": 10, "Bananas": 8},
    }
    assert store["new"] == [5, 2]
    with pytest.raises(TypeError):
        store | [("new", 1)]  # type: ignore[operator]


def test_merges_of_one_key_stay_apart(store: Store) -> None:
    """Pairs with the same key are merged one after another, never folded into one."""
    store["key"] = {"x": {"p": 1}}
    store |= [("key", {"x": 5}), ("key", {"x": {"q": 2}})]
    assert store["key"] == {"x": {"q": 2}}


def test_a_bad_merge_changes_nothing(store: Store) -> None:
    """An object merged onto an array under a name that is no index is `BadMergeError`, with its path."""
    store["key"] = {"list": [1]}
    with pytest.raises(BadMergeError, match=r"\$\.list\.length") as caught:
        store.merge("key", {"list": {"length": 0}})
    assert caught.value.key == "key"
    with pytest.raises(BadMergeError):
        store |= {"key": {"list": {"1": 0}}}
    assert store["key"] == {"list": [1]}


def test_equality(store: Store, make_store: MakeStore) -> None:
    """It equals any mapping with the same items, and nothing else."""
    store.update({"a": [1], "b": {}})
    assert store == store
    assert store == {"b": {}, "a": [1]}
    assert {"b": {}, "a": [1]} == store
    assert store != {"a": [1], "b": 0}
    assert store != {"a": [1]}
    assert store != {"a": [1], "c": {}}
    assert store != [("a", [1]), ("b", {})]
    assert store == make_store()
    with pytest.raises(TypeError):
        hash(store)


def test_view_operations(store: Store) -> None:
    """Views do set operations as `dict`'s do, in either place, and with each other."""
    plain = {"a": 1, "b": 2}
    store.update(plain)
    keys = store.keys()
    for other in ({"a", "z"}, {"a": 0, "z": 0}.keys(), frozenset({"a", "b"}), {"a", "b", "c"}):
        assert keys & other == plain.keys() & other
        assert other & keys == other & plain.keys()
        assert keys | other == plain.keys() | other
        assert other | keys == other | plain.keys()
        assert keys - other == plain.keys() - other
        assert other - keys == other - plain.keys()
        assert keys ^ other == plain.keys() ^ other
        assert (keys <= other, keys < other, keys >= other, keys > other, keys == other) == (
            plain.keys() <= other,
            plain.keys() < other,
            plain.keys() >= other,
            plain.keys() > other,
            plain.keys() == other,
        )
        assert keys.isdisjoint(other) == plain.keys().isdisjoint(other)
    assert keys & ["a"] == {"a"}
    assert ["a", "z"] - keys == {"z"}
    assert keys == store.keys()
    assert (keys == ["a", "b"]) is False
    assert store.items() == plain.items()
    assert plain.items() == store.items()
    assert store.items() & {("a", 1), ("a", 2)} == {("a", 1)}
    assert ("a", 1) in store.items()
    assert ("a", 2) not in store.items()
    assert 2 in store.values()
    assert 3 not in store.values()
    assert keys.mapping is store
    store["list"] = [1]
    assert store.items() == {**plain, "list": [1]}.items()
    with pytest.raises(TypeError):
        hash(keys)


def test_closing(make_store: MakeStore) -> None:
    """A closed store refuses everything with `ValueError`; closing again does nothing."""
    store = make_store()
    store["key"] = 1
    with store as same:
        assert same is store
    store.close()
    for act in (
        lambda: store["key"],
        lambda: "key" in store,
        lambda: len(store),
        lambda: list(store),
        lambda: store.update(a=1),
        lambda: store.clear(),
        lambda: store == store,
        lambda: store | {},
        lambda: store.__enter__(),
        lambda: store.discard("key"),
        lambda: store.get("key"),
    ):
        with pytest.raises(ValueError, match="closed"):
            act()
    assert "closed" in repr(store)


def test_repr_is_short_and_secret(make_store: MakeStore) -> None:
    """`repr` shows where the store is, neither keys, values, API key nor passwords."""
    store = make_store(password="swordfish", passwords={"key": "tuna"})
    store["key"] = "value"
    for shown in (repr(store), repr(store.keys()), repr(store.items()), repr(store.values())):
        assert "swordfish" not in shown
        assert "tuna" not in shown
        assert "value" not in shown.replace("StoreValues", "")
