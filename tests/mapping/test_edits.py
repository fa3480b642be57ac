"""Edits lose nobody's changes where the service has versions, and say where it has not."""

from __future__ import annotations

import copy
import gc
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import cloudstore_mapping as cm
from cloudstore_mapping.client.mapping import LONGEST_BACKOFF, MAX_ATTEMPTS, CloudStoreMapping, files_of
from cloudstore_mapping.client.transport import Sendable, Transport
from cloudstore_mapping.embedded import open_service
from cloudstore_mapping.errors import BadValueError, BulkError, ChangedError, NoFileError
from cloudstore_mapping.testing.clocks import FrozenClock
from cloudstore_mapping.testing.faults import FaultyTransport
from cloudstore_mapping.testing.transports import CountingTransport, PassingTransport
from cloudstore_mapping.wire import Reply, Request
from tests.support.interrupts import at_instruction, interrupt
from tests.support.mapping_fixtures import Connect, MakeStore

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


def test_transform_saves_an_unchanged_default(store: Store) -> None:
    """What `transform` returns is there afterwards, also if the key was absent and the function changed nothing."""
    assert store.transform("key", lambda value: value, default=0) == 0
    assert store["key"] == 0


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


# Attempts


@extended
def test_pop_has_bounded_attempts(make_store: MakeStore) -> None:
    """A pop whose key others change before each delete ends in a clear error, after random waits."""
    clock = FrozenClock()
    store, other = make_store(clock=clock), make_store()
    store["key"] = 0
    files = files_of(store)
    delete = files.delete

    def late(*arguments: Any) -> None:
        other["key"] += 1
        delete(*arguments)

    files.delete = late  # type: ignore[method-assign,assignment]
    with pytest.raises(ChangedError, match=rf"'key' was changed by others during each of {MAX_ATTEMPTS} attempts"):
        store.pop("key", None)
    assert store["key"] == MAX_ATTEMPTS
    assert len(clock.slept) == MAX_ATTEMPTS - 1
    assert len(set(clock.slept)) == len(clock.slept)
    assert all(slept <= LONGEST_BACKOFF for slept in clock.slept)


@extended
def test_transform_and_setdefault_have_bounded_attempts(make_store: MakeStore) -> None:
    """So do a transform, and a setdefault whose key appears and disappears."""
    store, other = make_store(clock=FrozenClock()), make_store()
    store["key"] = 0
    files = files_of(store)
    save = files.save

    def late(key: str, *arguments: Any) -> None:
        other[key] = other.get(key, 0) + 1
        try:
            save(key, *arguments)
        finally:
            if key == "absent":
                del other[key]

    files.save = late  # type: ignore[method-assign,assignment]
    with pytest.raises(ChangedError, match="attempts"):
        store.transform("key", lambda value: -value - 1)
    assert other["key"] == MAX_ATTEMPTS
    with pytest.raises(ChangedError, match="attempts"):
        store.setdefault("absent", 5)
    assert "absent" not in other


@extended
def test_a_change_of_another_key_in_a_transform(store: Store) -> None:
    """A `ChangedError` of the function's own is the caller's, and no reason to call it again."""
    store["key"] = 1
    calls: list[Any] = []

    def function(value: Any) -> Any:
        calls.append(value)
        raise ChangedError("Another key was changed.")

    with pytest.raises(ChangedError, match="Another key"):
        store.transform("key", function)
    assert calls == [1]


class Stripping(PassingTransport):
    """A proxy that strips the header with the service's extensions from `start` on."""

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.strips = False

    def send(self, request: Sendable) -> Reply:
        """Return the answer, without extensions if it strips."""
        reply = super().send(request)
        return replace(reply, extensions=frozenset()) if self.strips else reply


@extended
@pytest.mark.parametrize("late", [False, True], ids=["before", "at the load"])
def test_a_stripped_header(connect: Connect, late: bool) -> None:
    """If something strips our header in mid-session, edits work as on a service without extensions."""
    inner, api_key = connect()
    stripping = Stripping(inner)
    with CloudStoreMapping[Any](api_key, transport=stripping) as store:
        store.update({"a": 1, "b": 2, "c": 3, "d": {}})
        for act in (
            lambda: store.pop("a"),
            lambda: store.popitem(),
            lambda: store.transform("b", lambda value: value + 1),
            lambda: store.setdefault("new", 5),
            lambda: "b" in store,
        ):
            stripping.strips = False
            len(store)
            stripping.strips = True
            if not late:
                len(store)
            act()
        stripping.strips = False
        with store.edit("edited", {}) as value:
            stripping.strips = True
            store.get("b")
            value["x"] = 1
        assert "a" not in store
        assert (store["b"], store["new"], store["edited"]) == (3, 5, {"x": 1})


# Nothing is lost silently


@pytest.mark.parametrize("value", [[1], {"a": 1}, 5, "text", True])
def test_a_function_that_returns_nothing(store: Store, value: Any) -> None:
    """A transform whose function returns None for another value is an error with the line to write; nothing changes."""
    store["key"] = value
    with pytest.raises(TypeError, match=r"returned None.*return the new value.*with store\.edit\('key'\) as value"):
        store.transform("key", lambda value: value.append(2) if isinstance(value, list) else None)
    assert store["key"] == value
    with pytest.raises(TypeError, match="returned None"):
        store.transform("absent", lambda value: None, default=[])
    assert "absent" not in store


def test_none_may_stay_none(store: Store) -> None:
    """A transform of None may return None."""
    store["key"] = None
    assert store.transform("key", lambda value: value) is None
    assert store.transform("key", lambda value: value or 5) == 5


@pytest.mark.parametrize("value", [5, 1.5, "text", True, None])
def test_an_edit_of_an_immutable_value(store: Store, value: Any) -> None:
    """A value that no block can change in place is an error before the block, with the line to write."""
    store["key"] = value
    entered = False
    with (
        pytest.raises(
            TypeError, match=rf"{type(value).__name__}, which .* write store\.transform\('key', lambda value"
        ),
        store.edit("key"),
    ):
        entered = True
    assert not entered
    with pytest.raises(TypeError, match="transform"), store.edit("absent", value):
        entered = True
    assert not entered
    assert dict(store) == {"key": value}


@pytest.mark.parametrize("inner", ["edit", "transform", "view"])
def test_nested_edits_of_one_key(store: Store, inner: str) -> None:
    """An edit within an edit of the same key is an error, as a change would be lost; the outer one goes on."""
    store.update({"key": {}, "other": {}})
    acts: dict[str, Any] = {
        "edit": lambda: store.edit("key").__enter__(),
        "transform": lambda: store.transform("key", dict),
        "view": lambda: store.view("k").edit("ey").__enter__(),
    }
    with store.edit("key") as value:
        value["outer"] = 1
        with pytest.raises(RuntimeError, match="being edited already"):
            acts[inner]()
        with store.edit("other") as other:
            other["inner"] = 2
    assert dict(store) == {"key": {"outer": 1}, "other": {"inner": 2}}
    with pytest.raises(RuntimeError, match="being edited already"):
        store.transform("key", lambda value: store.transform("key", lambda value: [value]))
    with store.edit("key") as value:
        value["again"] = 3
    assert store["key"] == {"outer": 1, "again": 3}


@pytest.mark.parametrize("act", ["edit", "transform"])
def test_an_interrupt_of_an_edit(act: str) -> None:
    """After an interrupt at any instruction of an edit, its key can be edited again."""
    transport, api_key = open_service(None)
    files = {str(Path(cm.__file__).parent / "client" / "mapping.py")}
    with Store(api_key, transport=transport) as store:
        store["k"] = [0]

        def edit(number: int) -> None:
            if act == "edit":
                with store.edit("k") as value:
                    value.append(number)
            else:
                store.transform("k", lambda value: [*value, number])

        for place in range(1, 500):
            with at_instruction(place, files, interrupt) as seen, suppress(KeyboardInterrupt):
                edit(place)
            gc.collect()
            edit(-place)
            assert store["k"][-1] == -place
            if seen[0] < place:
                break
        assert 10 < place < 499


def test_an_edit_that_returns(store: Store) -> None:
    """A block that ends by `return` saves as well; one that ends by any exception saves nothing."""
    store["key"] = []

    def leave() -> None:
        with store.edit("key") as value:
            value.append(1)
            return

    leave()
    for error in (KeyboardInterrupt, GeneratorExit, StopIteration, KeyError):
        with pytest.raises(BaseException) as caught, store.edit("key") as value:  # noqa: PT011, PT012 - any
            value.append(2)
            raise error
        assert isinstance(caught.value, error)
    assert store["key"] == [1]


# Copies


@dataclass
class Holder:
    """An object of a user's with a store in it."""

    store: Any


@pytest.mark.parametrize(
    "act", [copy.copy, copy.deepcopy, lambda store: asdict(Holder(store)), lambda store: copy.copy(store.view("k"))]
)
def test_a_store_is_not_copied(store: Store, act: Any) -> None:
    """Copying a store is an error with the line to write, so that nobody clears the original for a copy."""
    store["key"] = 1
    with pytest.raises(TypeError, match=r"write store\.copy\(\) for its content as a dict, or open it again"):
        act(store)
    content = store.copy()
    content.clear()
    assert dict(store) == {"key": 1}


# Completion


def test_key_completions(counted: tuple[Store, CountingTransport]) -> None:
    """IPython completes keys by a single request for 1,000 of them at most, and never sees an error."""
    store, counting = counted
    store.update({f"users/{number}": number for number in range(3)})
    store["other"] = 1
    assert len(store) == 4
    counting.take()
    assert sorted(store._ipython_key_completions_()) == ["other", "users/0", "users/1", "users/2"]
    assert sorted(store.view("users/")._ipython_key_completions_()) == ["0", "1", "2"]
    assert counting.take() == {"list": 2}
    store.close()
    assert store._ipython_key_completions_() == []


def test_key_completions_are_bounded(connect: Connect) -> None:
    """More keys than that are cut, and the service isn't asked for them if it has pages."""
    transport, api_key = connect()
    faulty = FaultyTransport(transport)
    with CloudStoreMapping[Any](api_key, transport=faulty, retries=0) as store:
        store.update({f"key{number}": number for number in range(20)})
        files = files_of(store)
        assert len(files.first_keys(7)) == 7
        request = faulty.requests[-1]
        if files.supports("page"):
            assert isinstance(request, Request)
            assert request.limit == 7
        with faulty.broken():
            assert store._ipython_key_completions_() == []


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
    store["text"] = "five"
    optional: Any = int | None
    with pytest.raises(BadValueError, match=r"^'text' is no int \| None: "):
        store.get_as("text", optional)
    with pytest.raises(BadValueError, match=r"^'text' is no list\[int\]: "):
        store.get_as("text", list[int])
    assert store.get_as("point", dict[str, int | None]) == {"x": 1}


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


@extended
def test_setdefault_asks_the_service(make_store: MakeStore) -> None:
    """`setdefault` never answers from the cache: its value, or nothing, may be there by now."""
    cached, other = make_store(cache_ttl=1000.0, cache_absent_ttl=1000.0), make_store()
    assert cached.setdefault("lock", "mine") == "mine"
    del other["lock"]
    assert other.setdefault("lock", "theirs") == "theirs"
    assert cached.setdefault("lock", "mine") == "theirs"
    del other["lock"]
    assert cached.setdefault("lock", "mine") == "mine"
    assert other["lock"] == "mine"


@pytest.mark.parametrize("method", ["get_many", "delete_many"])
@pytest.mark.parametrize("keys", ["ab", b"ab"])
def test_a_text_is_no_list_of_keys(store: Store, method: str, keys: Any) -> None:
    """A text in the place of several keys is an error: each of its characters would be a key."""
    store.update(a=1, b=2)
    with pytest.raises(TypeError, match=r"Give a list of keys, such as \[b?'ab'\]"):
        getattr(store, method)(keys)
    assert dict(store) == {"a": 1, "b": 2}


def test_an_edit_with_a_default_that_no_block_can_change(store: Store) -> None:
    """The error names the default, for there is no value."""
    with (
        pytest.raises(TypeError, match=r"nothing under 'absent'.*default, of type NoneType"),
        store.edit("absent", None),
    ):
        pass
    assert "absent" not in store


def test_no_read_is_older_than_the_one_before(make_store: MakeStore) -> None:
    """What an operation was told by the service is what the cache has from then on."""
    cached, other = make_store(cache_ttl=1000.0, cache_absent_ttl=1000.0), make_store()
    assert cached.get("k") is None
    other["k"] = [1]
    assert cached.setdefault("k", []) == [1]
    assert cached["k"] == [1]
    other["k"] = [2]
    assert cached.transform("k", lambda value: value) == [2]
    assert cached["k"] == [2]
    other["k"] = [3]
    with cached.edit("k") as value:
        assert value == [3]
    assert cached["k"] == [3]
    del other["k"]
    with pytest.raises(NoFileError), cached.edit("k"):
        pass
    assert "k" not in cached


def test_popitem_and_clear_list_anew(make_store: MakeStore) -> None:
    """`popitem` and `clear` see keys of other clients, also with a cache; after `clear` nothing is read from it."""
    cached, other = make_store(cache_ttl=1000.0), make_store()
    assert len(cached) == 0
    other["k"] = 1
    assert cached.popitem() == ("k", 1)
    other["k"] = 2
    assert cached["k"] == 2
    del other["k"]
    other["l"] = 3
    cached.clear()
    assert len(other) == 0
    assert cached.get("k") is None
