"""Every operation of the mapping through every fault at each of its requests, with extensions and without."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.retry import is_write
from cloudstore_mapping.errors import BulkError, CloudStoreError
from cloudstore_mapping.testing.clocks import FrozenClock
from cloudstore_mapping.testing.faults import Delayed, FaultyTransport
from tests.support.faults import DONE, TABLE, Error, Row, Ways, ways
from tests.support.matrix import spread

__all__ = ["ways"]  # a fixture

Store = CloudStoreMapping[Any]

KINDS = ["extended", "plain"]
BEFORE: dict[str, Any] = {"a": {"x": 1}, "b": [2]}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Return the kind of service: with all extensions, and with none."""
    kind: str = request.param
    return kind


def opened(kind: str, ways: Ways, **options: Any) -> tuple[Store, FaultyTransport]:
    """Return a store that holds `BEFORE` and knows what its service can, and the way that faults lie on."""
    transport, api_key = ways.to(kind)
    store = Store(api_key, transport=transport, max_workers=1, clock=FrozenClock(), **options)
    store["a"] = BEFORE["a"]
    store["b"] = BEFORE["b"]
    transport.break_with([])
    return store, transport


def change(store: Store, key: str) -> None:
    """Change a value in place."""
    with store.edit(key) as value:
        value["y"] = 2


#: What each read returns.
READS: dict[str, tuple[Callable[[Store], object], object]] = {
    "store[k]": (lambda store: store["a"], {"x": 1}),
    "get": (lambda store: store.get("a", 5), {"x": 1}),
    "in": (lambda store: "a" in store, True),
    "setdefault of what is there": (lambda store: store.setdefault("a", 5), {"x": 1}),
    "iter": (lambda store: list(iter(store)), ["a", "b"]),
    "len": (lambda store: len(store), 2),
    "bool": (lambda store: bool(store), True),
    "list": (lambda store: store.list("b"), ["b"]),
    "items": (lambda store: list(store.items()), [("a", {"x": 1}), ("b", [2])]),
    "values": (lambda store: list(store.values()), [{"x": 1}, [2]]),
    "dict": (lambda store: dict(store), BEFORE),
    "copy": (lambda store: store.copy(), BEFORE),
    "get_many": (lambda store: store.get_many(["a", "b", "c"]), BEFORE),
    "==": (lambda store: store == BEFORE, True),
    "|": (lambda store: store | {"b": 3}, {"a": {"x": 1}, "b": 3}),
}
#: What each write returns, and what is stored after it.
WRITES: dict[str, tuple[Callable[[Store], object], object, dict[str, Any]]] = {
    "store[k] = v": (lambda store: store.__setitem__("a", None), None, {"a": None, "b": [2]}),
    "del": (lambda store: store.__delitem__("a"), None, {"b": [2]}),
    "discard": (lambda store: store.discard("a"), True, {"b": [2]}),
    "pop": (lambda store: store.pop("a"), {"x": 1}, {"b": [2]}),
    "pop with a default": (lambda store: store.pop("a", 5), {"x": 1}, {"b": [2]}),
    "popitem": (lambda store: store.popitem(), ("b", [2]), {"a": {"x": 1}}),
    "setdefault": (lambda store: store.setdefault("c", 5), 5, {**BEFORE, "c": 5}),
    "update": (lambda store: store.update({"a": 5, "c": None}), None, {"a": 5, "b": [2], "c": None}),
    "|=": (
        lambda store: store.__ior__({"a": {"y": 2}, "c": {}}) is store,
        True,
        {"a": {"x": 1, "y": 2}, "b": [2], "c": {}},
    ),
    "merge": (lambda store: store.merge("a", {"y": 2}), None, {"a": {"x": 1, "y": 2}, "b": [2]}),
    "edit": (lambda store: change(store, "a"), None, {"a": {"x": 1, "y": 2}, "b": [2]}),
    "transform": (lambda store: store.transform("a", lambda _: 5), 5, {"a": 5, "b": [2]}),
    "clear": (lambda store: store.clear(), None, {}),
    "delete_many": (lambda store: store.delete_many(["a", "b"]), None, {}),
}
OPERATIONS = {
    **{name: (act, result, BEFORE) for name, (act, result) in READS.items()},
    **WRITES,
}

#: A test of each operation with each fault, on both kinds of service; a fifth of them by default.
each_operation = pytest.mark.parametrize(
    ("operation", "fault", "kind"), spread([OPERATIONS, TABLE, KINDS], 5), indirect=["kind"]
)


def expected(row: Row, transport: FaultyTransport, position: int) -> Error:
    """Return what a fault means that came to one of the requests once, by whether that one writes."""
    request = transport.requests[position]
    read, write, write_with_id = row.once
    if not is_write(request):
        return read
    return write_with_id if "once" in (transport.extensions or ()) else write


def errors_of(error: CloudStoreError) -> set[type[Exception]]:
    """Return what went wrong, be it with one key or with many."""
    return {type(each) for each in error.failed.values()} if isinstance(error, BulkError) else {type(error)}


@each_operation
def test_once(kind: str, ways: Ways, operation: str, fault: str) -> None:
    """A fault at any one request goes unseen or is its error; each key holds its value from before, or the new one."""
    act, meant, after = OPERATIONS[operation]
    for position in itertools.count():
        store, transport = opened(kind, ways)
        with store:
            transport.break_with([FaultyTransport.pass_on] * position + [TABLE[fault].fault])
            error: CloudStoreError | None = None
            try:
                result = act(store)
            except CloudStoreError as caught:
                error = caught
            if transport.faults:  # there are no more requests that a fault could come to
                break
            should = expected(TABLE[fault], transport, position)
            if error is None:
                assert should is None
                assert result == meant
                assert store == after
            else:
                assert not isinstance(error, KeyError)
                assert errors_of(error) == {should}
                is_between(dict(store), after)
    assert position > 0


@each_operation
def test_for_ever(kind: str, ways: Ways, operation: str, fault: str) -> None:
    """A fault that stays is its error for each key; nothing is changed but by requests that were done."""
    act, _, after = OPERATIONS[operation]
    store, transport = opened(kind, ways)
    with store:
        transport.break_with([TABLE[fault].fault] * 99)
        with pytest.raises(CloudStoreError) as caught:
            act(store)
        read, write, write_with_id = TABLE[fault].for_ever
        first = transport.requests[0]
        of_a_write = write_with_id if kind == "extended" else write
        assert not isinstance(caught.value, KeyError)
        error = of_a_write if is_write(first) else read
        # Bulk work stops at a service out of reach, and the keys not tried say so.
        untried = read if isinstance(caught.value, BulkError) and kind == "plain" else error
        assert error in errors_of(caught.value) <= {error, untried}
        transport.break_with([])
        if fault in DONE:
            is_between(dict(store), after)
        else:
            assert store == BEFORE


def is_between(stored: dict[str, Any], after: dict[str, Any]) -> None:
    """Check that each key is as it was before, or as it was to be."""
    for key in {*stored, *BEFORE, *after}:
        assert stored.get(key, "absent") in (BEFORE.get(key, "absent"), after.get(key, "absent"))


#: What these say of a key that isn't there.
ABSENT: dict[str, tuple[Callable[[Store], object], object]] = {
    "store[k]": (lambda store: store["c"], KeyError),
    "get": (lambda store: store.get("c", 5), 5),
    "in": (lambda store: "c" in store, False),
    "pop": (lambda store: store.pop("c"), KeyError),
    "pop with a default": (lambda store: store.pop("c", 5), 5),
    "get_many": (lambda store: store.get_many(["c"]), {}),
    "edit": (lambda store: change(store, "c"), KeyError),
}


@pytest.mark.parametrize(("operation", "fault", "kind"), spread([ABSENT, TABLE, KINDS], 5), indirect=["kind"])
def test_absence_is_never_guessed(kind: str, ways: Ways, operation: str, fault: str) -> None:
    """A key is absent when the service says so, and no fault is taken for that."""
    act, meant = ABSENT[operation]
    store, transport = opened(kind, ways)
    with store:
        transport.break_with([TABLE[fault].fault])
        outcome: object
        try:
            outcome = act(store)
        except KeyError:
            outcome = KeyError
        except CloudStoreError as error:
            outcome = errors_of(error)
        should = TABLE[fault].once[0]
        assert outcome == (meant if should is None else {should})


@pytest.mark.parametrize("fault", ["dropped", "lost", "502", "504"])
def test_deleting_nothing(kind: str, ways: Ways, fault: str) -> None:
    """With ids a repeated delete tells that nothing was there; without, it can't know and says that it deleted."""
    store, transport = opened(kind, ways)
    with store:
        transport.break_with([TABLE[fault].fault])
        assert store.discard("c") is (kind == "plain")
        transport.break_with([TABLE[fault].fault])
        if kind == "plain":
            del store["c"]
        else:
            with pytest.raises(KeyError):
                del store["c"]


@pytest.mark.parametrize("fault", TABLE)
def test_a_failed_write_is_not_cached(kind: str, ways: Ways, fault: str) -> None:
    """Whatever became of a write, the cache tells the next read nothing that the service doesn't."""
    store, transport = opened(kind, ways, cache_ttl=60.0)
    with store:
        assert store["a"] == {"x": 1}
        transport.break_with([TABLE[fault].fault] * 4)
        with pytest.raises(CloudStoreError):
            store["a"] = "new"
        transport.break_with([])
        assert store["a"] == ("new" if fault in DONE else {"x": 1})
        assert list(store) == ["a", "b"]


def test_a_late_answer(kind: str, ways: Ways) -> None:
    """The answer to a read that began before a write comes after it, and is not kept as the value."""
    store, transport = opened(kind, ways, cache_ttl=60.0)
    with store:
        store.cache_clear()
        late = Delayed()
        transport.break_with([late])
        read: list[object] = []
        thread = threading.Thread(target=lambda: read.append(store["a"]))
        thread.start()
        assert late.done.wait(30)
        store["a"] = "new"
        late.go.set()
        thread.join()
        assert read in ([{"x": 1}], ["new"])
        assert store["a"] == "new"
