"""Edits lose nobody's changes where the service has versions, and say where it has not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from cloudstore_mapping.client.mapping import CloudStoreMapping, files_of
from cloudstore_mapping.errors import BadValueError, BulkError, ChangedError, NoFileError
from tests.support.mapping_fixtures import MakeStore

Store = CloudStoreMapping[Any]

#: For what only a service with extensions promises.
extended = pytest.mark.parametrize("connect", ["memory", "file", "http"], indirect=True)


@pytest.fixture
def versioned(request: pytest.FixtureRequest) -> bool:
    """Whether the store's service has versions."""
    return "vendor" not in request.node.callspec.id


def test_edit(store: Store) -> None:
    """The block changes the value in place, and it is saved at the end."""
    store["key"] = {"list": [1]}
    with store.edit("key") as value:
        value["list"].append(2)
        assert store["key"] == {"list": [1]}
    assert store["key"] == {"list": [1, 2]}


def test_edit_with_a_default(store: Store) -> None:
    """Where nothing is stored the block gets a copy of the default; it is saved if it was changed."""
    default: dict[str, int] = {}
    with store.edit("key", default) as value:
        pass
    assert "key" not in store
    with store.edit("key", default=default) as value:
        value["a"] = 1
    assert store["key"] == {"a": 1}
    assert default == {}
    with pytest.raises(NoFileError), store.edit("absent"):
        pass


def test_an_edit_that_fails_saves_nothing(store: Store) -> None:
    """An exception in the block, or a value that JSON can't say, leaves what was stored."""
    store["key"] = {"a": 1}
    with pytest.raises(RuntimeError), store.edit("key") as value:  # noqa: PT012 - the block is what is tested
        value["a"] = 2
        raise RuntimeError
    with pytest.raises(TypeError, match=r"\$\.b"), store.edit("key") as value:
        value["b"] = object()
    assert store["key"] == {"a": 1}


def test_a_change_by_somebody_else(store: Store, versioned: bool) -> None:
    """What somebody else saved meanwhile stays, and the edit is `ChangedError`; without versions the last one wins."""
    store["key"] = {"a": 1}

    def collide() -> None:
        with store.edit("key") as value:
            value["mine"] = True
            store["key"] = {"theirs": True}

    if versioned:
        with pytest.raises(ChangedError) as caught:
            collide()
        assert caught.value.version is not None
        assert store["key"] == {"theirs": True}
    else:
        collide()
        assert store["key"] == {"a": 1, "mine": True}


@extended
@pytest.mark.parametrize("meanwhile", ["save", "delete", "delete and save again"])
def test_every_kind_of_change_is_noticed(store: Store, meanwhile: str) -> None:
    """A value that was deleted, or deleted and saved anew as it was, has changed too."""
    store["key"] = {"a": 1}
    with pytest.raises(ChangedError), store.edit("key") as value:  # noqa: PT012 - the block is what is tested
        value["a"] = 2
        if meanwhile != "save":
            del store["key"]
        if meanwhile != "delete":
            store["key"] = {"a": 1}
    assert store.get("key") == (None if meanwhile == "delete" else {"a": 1})


def test_transform(store: Store) -> None:
    """It saves what the function makes of the value, and returns it."""
    store["count"] = 1
    assert store.transform("count", lambda value: value + 1) == store["count"] == 2
    assert store.transform("new", lambda value: [*value, 1], default=[]) == store["new"] == [1]
    with pytest.raises(KeyError):
        store.transform("absent", str)
    with pytest.raises(ZeroDivisionError):
        store.transform("count", lambda value: value / 0)
    assert store["count"] == 2


def test_transform_again(store: Store, versioned: bool) -> None:
    """What somebody else saved meanwhile is what the function is given the next time."""
    store["list"] = []
    seen: list[Any] = []

    def append(value: list[str]) -> list[str]:
        seen.append(list(value))
        if len(seen) == 1:
            store["list"] = ["theirs"]
        return [*value, "mine"]

    assert store.transform("list", append) == (["theirs", "mine"] if versioned else ["mine"])
    assert len(seen) == (2 if versioned else 1)


@extended
def test_setdefault_is_atomic(make_store: MakeStore) -> None:
    """What another client saves between the look and the save stays, and is returned."""
    store, other = make_store(), make_store()
    list(store)
    files = files_of(store)
    save = files.save

    def late(*arguments: Any) -> None:
        other.setdefault("key", "theirs")
        save(*arguments)

    files.save = late  # type: ignore[method-assign,assignment]
    assert store.setdefault("key", "mine") == "theirs"
    assert store["key"] == "theirs"


@extended
@pytest.mark.parametrize("options", [{}, {"cache_ttl": 1000.0}], ids=["without cache", "with cache"])
def test_pop_is_atomic(make_store: MakeStore, options: dict[str, Any]) -> None:
    """What pop returns is what it removed, also when another client changes it in between."""
    store, other = make_store(**options), make_store()
    store["key"] = "first"
    files = files_of(store)
    delete = files.delete
    values = iter(["second", "third"])

    def late(*arguments: Any) -> None:
        if (value := next(values, None)) is not None:
            other["key"] = value
        delete(*arguments)

    files.delete = late  # type: ignore[method-assign,assignment]
    assert store.pop("key") == "third"
    assert "key" not in other


@dataclass
class Point:
    """A type of the user's."""

    x: int
    y: int = 0


def test_get_as(store: Store) -> None:
    """The value is checked and converted, and what doesn't fit is named by its path."""
    store["point"] = {"x": 1}
    store["points"] = [{"x": 1}, {"x": "one"}]
    assert store.get_as("point", Point) == Point(1)
    assert store.get_as("point", dict[str, float]) == {"x": 1.0}
    with pytest.raises(BadValueError, match=r"\$\[1\]\.x"):
        store.get_as("points", list[Point])
    with pytest.raises(KeyError):
        store.get_as("absent", Point)


def test_many_at_once(store: Store) -> None:
    """`get_many` gives what is there; `delete_many` deletes, and tells which keys weren't there."""
    store.update({"a": 1, "b": None, "c": {}})
    assert store.get_many(["c", "a", "absent", "a"]) == {"c": {}, "a": 1}
    assert store.get_many([]) == {}
    store.delete_many(["a"])
    with pytest.raises(BulkError) as caught:
        store.delete_many(["b", "absent", "c"])
    assert caught.value.succeeded == ["b", "c"]
    assert list(caught.value.failed) == ["absent"]
    assert dict(store) == {}
    with pytest.raises(KeyError):
        store.delete_many(["absent"])
    store.delete_many([])


def test_search(store: Store) -> None:
    """`list` finds the keys that contain a text as it stands, whatever characters it has."""
    keys = ["steve1", "steve2", "Steve", "a,b", "a/b/c", "50%", "%2C", " x ", "x", ".", "..", "", "é", "e\u0301"]
    store.update(dict.fromkeys(keys))
    for text in ["", "steve", "Steve", ",", "a,", "/b/", "%", "%2C", "2C", " ", " x", "x ", ".", "é", "e", "zzz", "1"]:
        assert sorted(store.list(text)) == sorted(key for key in keys if text in key), text


def test_views_under_a_prefix(store: Store) -> None:
    """A view is a mapping of the keys under its prefix, without it; what is done to it is done to the store."""
    store.update({"users/ann": 1, "users/bob": 2, "users": 3, "other": 4})
    users = store.view("users/")
    assert dict(users) == {"ann": 1, "bob": 2}
    assert sorted(users) == sorted(users.keys()) == ["ann", "bob"]
    users["cid"] = {"a": 1}
    users |= {"cid": {"b": 2}}
    assert store["users/cid"] == {"a": 1, "b": 2}
    assert users.pop("ann") == 1
    assert "ann" not in users
    assert "users/ann" not in store
    with pytest.raises(KeyError) as caught:
        users["ann"]
    assert caught.value.args == ("ann",)
    assert sorted(users.list("b")) == ["bob"]
    assert dict(users.view("c")) == {"id": {"a": 1, "b": 2}}
    users.clear()
    assert dict(store) == {"users": 3, "other": 4}
    assert dict(store.view("")) == dict(store)
    for prefix in (",", " ", "%", ".", "a,", "é"):
        store[f"{prefix}x"] = prefix
        store[f"{prefix}{prefix}"] = prefix
        assert dict(store.view(prefix)) == {"x": prefix, prefix: prefix}
    users.close()
    assert store["other"] == 4
    assert "users/" in repr(users)
    store.close()
    with pytest.raises(ValueError, match="closed"):
        list(users)


def test_progress(make_store: MakeStore) -> None:
    """Work on many keys tells how far it has come, from none to all."""
    calls: list[tuple[int, int]] = []
    store = make_store(progress=lambda done, total: calls.append((done, total)))
    for work in (
        lambda: store.update({"a": 1, "b": 2, "c": 3}),
        lambda: list(store.items()),
        lambda: store.get_many(["a", "b", "c"]),
        lambda: store.clear(),
    ):
        calls.clear()
        work()
        assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_bar(make_store: MakeStore, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`progress=True` draws on stderr where that is a terminal, and leaves files and stdout alone."""
    store = make_store(progress=True)
    store.update({"a": 1, "b": 2})
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    store.update({"a": 1, "b": 2})
    out, err = capfd.readouterr()
    assert (out, "100%" in err) == ("", True)
