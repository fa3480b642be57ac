"""Views: lazy listings, `len`, read-ahead for ``dict(store)``, and keys deleted by another client meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from cloudstore_mapping.client import mapping
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.transport import Sendable, Transport
from cloudstore_mapping.embedded import InProcessTransport
from cloudstore_mapping.errors import LockedError, TransportError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.testing.clocks import FrozenClock
from cloudstore_mapping.testing.concurrency import together
from cloudstore_mapping.testing.transports import CountingTransport, SlowTransport
from cloudstore_mapping.transfer.raw_store import RawStore
from cloudstore_mapping.wire import Reply, Request, encode_value
from tests.service_fakes import PATIENCE
from tests.storages import new_storage
from tests.support.mapping_fixtures import CONNECTIONS, Connect
from tests.support.matrix import spread

Store = CloudStoreMapping[Any]

DATA = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}


class Elsewhere:
    """Client in another process, as far as the store can tell: it writes without a handle of this process."""

    def __init__(self, transport: Transport, api_key: str) -> None:
        self._transport = transport
        self._api_key = api_key

    def __setitem__(self, name: str, value: Any) -> None:
        self._send(name, None, encode_value(value))

    def __delitem__(self, name: str) -> None:
        self._send(name, "delete")

    def _send(self, name: str, options: Any, value: Any = UNSET) -> None:
        reply = self._transport.send(Request(api_key=self._api_key, name=name, options=options, value=value))
        assert reply.error is None


class Shared:
    """Store, its clock and counter, and another client of the same account."""

    def __init__(self, connect: Connect, **options: Any) -> None:
        inner, self.api_key = connect()
        self.inner = inner
        self.transport = CountingTransport(inner)
        self.clock = FrozenClock()
        self.store = Store(self.api_key, transport=self.transport, clock=self.clock, **options)
        self.elsewhere = Elsewhere(inner, self.api_key)
        for key, value in DATA.items():  # one after another, for the order of the vendor's listing
            self.store[key] = value
        self.transport.take()

    def take(self) -> dict[str, int]:
        """Return the counts of requests since the last call."""
        return self.transport.take()


@pytest.fixture
def shared(connect: Connect) -> Iterator[Shared]:
    """Return a store with five keys."""
    made = Shared(connect)
    with made.store:
        yield made


on_ours = pytest.mark.parametrize("connect", ["memory"], indirect=True)
VIEWS: dict[str, Callable[[Store], Any]] = {
    "store": lambda store: store,
    "keys": lambda store: store.keys(),
    "items": lambda store: store.items(),
    "values": lambda store: store.values(),
    "view": lambda store: store.view(""),
}
each_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)


def test_nothing_asks_who_calls() -> None:
    """No code of the client inspects frames or callers."""
    for file in Path(mapping.__file__).parent.glob("*.py"):
        assert not re.search(r"_getframe|currentframe|f_lasti|f_back|inspect\.stack|tb_frame", file.read_text()), file


# Listings


@each_view
def test_an_iteration_begins_at_its_first_step(shared: Shared, view: Callable[[Store], Any]) -> None:
    """`iter` and `reversed` send nothing; the first step fetches the listing."""
    viewed = view(shared.store)
    forwards, backwards = iter(viewed), reversed(viewed)
    assert shared.take() == {}
    del shared.elsewhere["e"]
    shared.elsewhere["f"] = 6
    assert len([*forwards]) == len([*backwards]) == 5
    assert shared.take()["list"] >= 2


@each_view
def test_len_hands_its_listing_to_the_iteration_begun(shared: Shared, view: Callable[[Store], Any]) -> None:
    """A `len` between the beginning of an iteration and its first step fetches the listing for both."""
    viewed = view(shared.store)
    iterator = iter(viewed)
    assert len(viewed) == 5
    assert shared.take() == {"list": 1}
    is_of_keys = isinstance(next(iterator), str)
    assert shared.take().get("list", 0) <= (0 if is_of_keys else 1)  # a page of values
    assert len(viewed) == 5
    assert shared.take()["list"] == 1


@each_view
def test_len_is_always_fresh(shared: Shared, view: Callable[[Store], Any]) -> None:
    """Each `len` counts the keys at its time, whatever was begun before, in whatever function."""
    viewed = view(shared.store)

    def begin() -> Iterator[Any]:
        return iter(viewed)

    def count() -> int:
        return len(viewed)

    iterator = begin()
    assert count() == 5
    shared.elsewhere["f"] = 6
    assert count() == 6
    del shared.elsewhere["f"]
    assert [count(), count()] == [5, 5]
    assert len([*iterator]) == 5


@each_view
def test_a_listing_is_handed_over_at_once_or_not(shared: Shared, view: Callable[[Store], Any]) -> None:
    """An iteration whose first step comes later than its `len` fetches the listing anew."""
    looked_at = view(shared.store)
    iterator = iter(looked_at)
    assert len(looked_at) == 5
    shared.elsewhere["f"] = 6
    shared.clock.now += 1
    assert len(list(iterator)) == 6


@each_view
def test_own_writes_are_in_the_iteration(shared: Shared, view: Callable[[Store], Any]) -> None:
    """A listing handed over is not used after a write of this process, through any handle."""
    viewed = view(shared.store)
    iterator = iter(viewed)
    assert len(viewed) == 5
    with Store(shared.api_key, transport=shared.inner) as other:
        other["f"] = 6
        assert len([*iterator]) == 6


@on_ours
def test_a_listing_of_another_thread_is_not_used(shared: Shared) -> None:
    """A `len` hands its listing only to an iteration of its own thread, and only this thread uses it."""
    iterator = iter(shared.store)
    together(lambda: len(shared.store))
    assert len([*iterator]) == 5
    assert shared.take() == {"list": 2}
    iterator = iter(shared.store)
    assert len(shared.store) == 5
    together(lambda: [*iterator])
    assert shared.take() == {"list": 2}


@on_ours
@each_view
def test_a_closed_store_ends_iterations(shared: Shared, view: Callable[[Store], Any]) -> None:
    """After `close`, every step of an iteration is `ValueError`, also with a listing handed over."""
    viewed = view(shared.store)
    running, begun, handed = iter(viewed), iter(viewed), iter(viewed)
    assert len(viewed) == 5
    next(running)
    shared.store.close()
    for iterator in (running, begun, handed):
        with pytest.raises(ValueError, match="closed"):
            next(iterator)


# Read-ahead


@on_ours
def test_lookups_in_listed_order_are_read_ahead(shared: Shared) -> None:
    """A loop that looks up the keys in their order costs a listing and a page; each value is used once."""
    assert [shared.store[key] for key in shared.store.keys()] == [1, 2, 3, 4, 5]  # noqa: SIM118 - `keys()` reads ahead
    assert shared.take() == {"list": 2}
    keys = [*shared.store.keys()]
    shared.take()
    assert [shared.store[keys[0]], shared.store[keys[0]], shared.store[keys[1]]] == [1, 1, 2]
    assert shared.take() == {"list": 1, "load": 2}


@on_ours
def test_other_lookups_are_not_read_ahead(shared: Shared) -> None:
    """A lookup in another order, or by another thread, is a load."""
    keys = [*shared.store.keys()]
    shared.take()
    assert [shared.store[key] for key in keys[::-1]] == [5, 4, 3, 2, 1]
    assert shared.take() == {"load": 5}
    keys = [*shared.store.keys()]
    shared.take()
    together(lambda: [shared.store[key] for key in keys])
    assert shared.take() == {"load": 5}


@pytest.mark.parametrize("connect", ["memory", "vendor"], indirect=True)
def test_a_value_read_ahead_lasts_50_ms(shared: Shared) -> None:
    """A value read ahead is used within 50 ms of its page's arrival, and never later."""
    for late in (False, True):
        keys = iter(shared.store.keys())
        assert shared.store[next(keys)] == 1
        shared.elsewhere["b"] = shared.elsewhere["c"] = "new"
        shared.clock.advance(0.05)
        assert shared.store[next(keys)] == 2
        if late:
            shared.clock.advance(0.0001)
        assert shared.store[next(keys)] == ("new" if late else 3)
        shared.store["b"], shared.store["c"] = 2, 3


def _through_view(shared: Shared) -> None:
    shared.store.view("c")[""] = "new"


def _through_another_handle(shared: Shared) -> None:
    with Store(shared.api_key, transport=shared.inner) as other:
        other.update({"c": "new", "x": 1})


WRITES: dict[str, Callable[[Shared], object]] = {
    "save": lambda shared: shared.store.__setitem__("c", "new"),
    "merge": lambda shared: shared.store.merge("c", "new"),
    "update": lambda shared: shared.store.update({"c": "new", "x": 1}),
    "transform": lambda shared: shared.store.transform("c", lambda _: "new"),
    "view": _through_view,
    "another handle": _through_another_handle,
    "another thread": lambda shared: together(lambda: shared.store.__setitem__("c", "new")),
}


@pytest.mark.parametrize("connect", ["memory", "vendor"], indirect=True)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_no_value_read_ahead_is_used_after_a_write(shared: Shared, write: Callable[[Shared], object]) -> None:
    """Once this process begins a write, through any handle of the store, nothing read ahead before is used."""
    keys = iter(shared.store.keys())
    assert [shared.store[next(keys)], shared.store[next(keys)]] == [1, 2]
    write(shared)
    assert shared.store[next(keys)] == "new"


@on_ours
def test_a_write_under_way_while_a_page_is_read(shared: Shared) -> None:
    """A page read while a write is under way is not used after the write."""
    transport = Held(shared.transport)
    with Store(shared.api_key, transport=transport, clock=shared.clock) as store:
        assert len(store) == 5  # so it knows the service's extensions
        begun: list[Iterator[str]] = []

        def read() -> None:
            begun.append(iter(store.keys()))
            assert store[next(begun[0])] == 1

        transport.during_write = read
        transport.takes_effect_later = True
        store["b"] = "new"
        assert store[next(begun[0])] == "new"


class Held:
    """Way on which a write takes effect only after `during_write` was called."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.during_write: Callable[[], object] = lambda: None
        self.takes_effect_later = False

    def send(self, request: Sendable) -> Reply:
        """Send."""
        if self.takes_effect_later and isinstance(request, Request) and request.operation.writes:
            self.during_write()
        return self._inner.send(request)

    def close(self) -> None:
        """Leave the other store's way open."""


@on_ours
def test_no_value_read_ahead_is_used_after_close(shared: Shared) -> None:
    """After `close`, a lookup is `ValueError`, although its value was read ahead."""
    keys = iter(shared.store.keys())
    shared.store[next(keys)]
    second = next(keys)
    shared.store.close()
    with pytest.raises(ValueError, match="closed"):
        shared.store[second]


@on_ours
def test_no_value_read_ahead_is_used_after_cache_clear(shared: Shared) -> None:
    """After `cache_clear` and `cache_invalidate`, the next read comes from the service."""
    for clear in (shared.store.cache_clear, lambda: shared.store.cache_invalidate("b")):
        keys = iter(shared.store.keys())
        shared.store[next(keys)]
        value = object.__hash__(clear)
        shared.elsewhere["b"] = value
        clear()
        assert shared.store[next(keys)] == value


@on_ours
def test_a_slow_loop_loads_a_value_at_a_time(shared: Shared) -> None:
    """If the values of a page get too old, or the loop writes, later values are loaded singly."""
    shared.store.update({f"{number:02}": number for number in range(20)})
    shared.take()
    for key in shared.store.keys():  # noqa: SIM118 - `keys()` reads ahead
        shared.store[key]
        shared.clock.advance(1)
    assert shared.take() == {"list": 2, "load": 24}
    for key in shared.store.keys():  # noqa: SIM118
        shared.store[key] += 1
    assert shared.take() == {"list": 2, "load": 24, "save": 25}


@on_ours
def test_a_loop_that_was_slow_once(shared: Shared) -> None:
    """After a pause the pages grow again: 2,500 keys cost few more requests."""
    shared.store.update({f"{number:04}": number for number in range(2500)})
    shared.take()
    for done, key in enumerate(shared.store.keys()):
        shared.store[key]
        if done == 600:
            shared.clock.advance(1)
    assert shared.take() == {"list": 1 + 4}  # pages of 1,000 (601 used), 601, 1,000 and 303


@pytest.mark.parametrize("connect", ["memory", "http"], indirect=True)
@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.02, 1.0])
def test_a_slow_service_costs_as_many_requests(shared: Shared, seconds: float) -> None:
    """``dict(store)`` costs a listing, and a page for each 1,000 keys, however long each of them takes."""
    many = {f"{number:04}": number for number in range(4500)}
    shared.store.update(many)
    transport = CountingTransport(SlowTransport(shared.inner, seconds, sleep=shared.clock.sleep))
    with Store(shared.api_key, transport=transport, clock=shared.clock) as store:
        assert dict(store) == {**many, **DATA} == {**store}
        assert transport.take() == {"list": 2 * (1 + 5)}


@pytest.mark.parametrize("connect", ["vendor"], indirect=True)
def test_a_slow_service_without_batches(shared: Shared) -> None:
    """So it does at a service without batches, with a load for each key."""
    transport = CountingTransport(SlowTransport(shared.inner, 3.0, sleep=shared.clock.sleep))
    with Store(shared.api_key, transport=transport, clock=shared.clock, max_workers=1) as store:
        assert dict(store) == DATA
        assert transport.take() == {"list": 1, "load": 5}


@on_ours
def test_an_error_is_of_its_own_lookup(shared: Shared) -> None:
    """A value that can't be read ahead is an error of its own lookup, not of the iteration."""
    with Store(shared.api_key, transport=Failing(shared.inner), clock=shared.clock, retries=0) as store:
        assert [*iter(store.keys())] == [*DATA]
        with pytest.raises(TransportError):
            dict(store)


class Failing:
    """Way on which listings succeed, and nothing else."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner

    def send(self, request: Sendable) -> Reply:
        """Send listings of names."""
        if not isinstance(request, Request) or request.options != "list" or request.values is True:
            raise TransportError("Gone.")
        return self._inner.send(request)

    def close(self) -> None:
        """Leave the other store's way open."""


def test_a_locked_file_is_an_error_of_its_own_lookup() -> None:
    """A locked file among others is `LockedError`, with its key."""
    with Service(new_storage()) as service:
        api_key = service.accounts.create("owner")
        with Store(api_key, transport=InProcessTransport(service)) as store:
            store.update(DATA)
            service.set_passwords("owner", "c", view="secret")
            assert [*iter(store.keys())] == [*DATA]
            with pytest.raises(LockedError) as caught:
                dict(store)
            assert caught.value.key == "c"


# Loops that write


@pytest.mark.parametrize("prefix", ["", "view of "])
def test_a_loop_sees_its_own_writes(shared: Shared, prefix: str) -> None:
    """A loop over items or values sees what the program writes meanwhile, as a loop over a `dict` does."""
    loops: list[Callable[[Any], list[Any]]] = [_writing_items, _writing_values, _deleting_items]
    for loop in loops:
        plain = dict.fromkeys("abcde", 0)
        store = shared.store.view(prefix)
        store.clear()
        for key, value in plain.items():  # one after another, for the order of the vendor's listing
            store[key] = value
        assert loop(store) == loop(plain)
        assert dict(store) == plain


def _writing_items(mapping: Any) -> list[Any]:
    seen = []
    for key, value in mapping.items():
        seen.append((key, value))
        if key == "a":
            mapping["b"] = 10
        else:
            mapping[key] = value + 1
    return seen


def _writing_values(mapping: Any) -> list[Any]:
    seen = []
    for number, value in enumerate(mapping.values()):
        seen.append(value)
        if number in (0, 2):
            mapping.update(d=number, e=number)
    return seen


def _deleting_items(mapping: Any) -> list[Any]:
    seen = []
    for key, value in mapping.items() if not isinstance(mapping, dict) else list(mapping.items()):
        if key == "d" and isinstance(mapping, dict):
            continue  # a `dict` can't be changed in size during a loop
        seen.append((key, value))
        if key == "b":
            del mapping["d"]
    return seen


@pytest.mark.parametrize("connect", ["memory"], indirect=True)
def test_a_loop_that_writes_reads_a_value_at_a_time(shared: Shared) -> None:
    """A loop that writes at each step reads few values more than it uses; one that doesn't reads a page at a time."""
    many = {f"{number:04}": number for number in range(2500)}
    shared.store.update(many)
    shared.take()
    for _ in shared.store.items():
        pass
    assert shared.take() == {"list": 4}  # the keys, and three pages of values
    for key, value in shared.store.view("00").items():
        shared.store[f"00{key}"] = value + 1
    assert sum(shared.take().values()) < 3 * 100 + 10


def test_a_write_by_another_thread_before_a_step_is_seen(shared: Shared) -> None:
    """What another thread wrote before a step of the loop is in it."""
    items = iter(shared.store.items())
    next(items)
    with ThreadPoolExecutor() as pool:
        pool.submit(shared.store.__setitem__, "c", "new").result(PATIENCE)
    assert dict(items)["c"] == "new"


# Keys deleted by another client


class Deleting(CountingTransport):
    """Way on which another client deletes a key after so many requests."""

    def __init__(self, inner: Transport, elsewhere: Elsewhere, key: str, after: int) -> None:
        super().__init__(inner)
        self._elsewhere = elsewhere
        self._key = key
        self._left = after

    def send(self, request: Sendable) -> Reply:
        """Send, then delete."""
        reply = super().send(request)
        self._left -= 1
        if self._left == 0:
            del self._elsewhere[self._key]
        return reply

    def close(self) -> None:
        """Leave the other store's way open."""


READING: dict[str, Callable[[Store], Any]] = {
    "dict(store)": dict,
    "{**store}": lambda store: {**store},
    "update": lambda store: _updated(store),
    "copy": lambda store: store.copy(),
    "items": lambda store: dict(store.items()),
    "values": lambda store: _named([*store.values()]),
    "get_many": lambda store: store.get_many(DATA),
    "store | {}": lambda store: store | {},
    "{} | store": lambda store: {} | store,
}


def _named(values: list[Any]) -> dict[str, Any]:
    return {key: value for key, value in DATA.items() if value in values}


def _updated(store: Store) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    plain.update(store)
    return plain


@pytest.mark.parametrize(
    ("expression", "connect", "key", "after"),
    spread([READING, CONNECTIONS, "ace", [1, 2, 3, 4]], 8),
    indirect=["connect"],
)
def test_a_key_deleted_meanwhile_is_left_out(shared: Shared, expression: str, key: str, after: int) -> None:
    """A key that another client deletes while everything is read is there or left out, and never an error."""
    transport = Deleting(shared.inner, shared.elsewhere, key, after)
    with Store(shared.api_key, transport=transport, clock=shared.clock) as store:
        read = READING[expression](store)
    rest = {name: value for name, value in DATA.items() if name != key}
    assert read in (DATA, rest)
    if after == 1 and expression != "get_many":
        assert read == rest


@on_ours
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_key_deleted_between_pages_is_left_out(shared: Shared, after: int) -> None:
    """So it is in ``dict(store)`` of several pages."""
    many = {f"{number:04}": number for number in range(2500)}
    shared.store.update(many)
    transport = Deleting(shared.inner, shared.elsewhere, "2400", after)
    with Store(shared.api_key, transport=transport, clock=shared.clock) as store:
        read = dict(store)
    assert read == {key: value for key, value in (many | DATA).items() if key != "2400"}


def test_get_many_of_a_key_deleted_behind_a_large_value() -> None:
    """If a value too large for a shared reply is deleted before it is loaded alone, `get_many` leaves it out."""
    with Service(new_storage(), Settings(max_batch_reply_bytes=1000)) as service:
        api_key = service.accounts.create("owner")
        inner = InProcessTransport(service)
        Store(api_key, transport=inner).update({"a": 1, "large": "x" * 2000, "z": 2})
        elsewhere = Elsewhere(inner, api_key)
        transport = Deleting(inner, elsewhere, "large", 2)
        with Store(api_key, transport=transport) as store:
            assert store["a"] == 1
            assert store.get_many(["a", "large", "z"]) == {"a": 1, "z": 2}
            assert transport.counts["load"] > 1  # each large value is loaded alone


# Kept views


KEPT: dict[str, Callable[[Store], Any]] = {
    "keys": lambda store: store.keys(),
    "items": lambda store: store.items(),
    "values": lambda store: store.values(),
    "view": lambda store: store.view(""),
    "keys of a view": lambda store: store.view("").keys(),
    "items of a view": lambda store: store.view("").items(),
}


def _content(kept: Any) -> Any:
    return sorted(kept.items() if isinstance(kept, CloudStoreMapping) else kept)


WRITERS: dict[str, Callable[[Shared], Store]] = {
    "parent": lambda shared: shared.store,
    "view": lambda shared: shared.store.view(""),
    "another handle": lambda shared: Store(shared.api_key, transport=shared.inner),
}


@pytest.mark.parametrize(
    ("view", "connect", "by"),
    spread([KEPT, CONNECTIONS, [*((w, None) for w in WRITERS), ("parent", 60.0), ("view", 60.0)]], 6),
    indirect=["connect"],
)
def test_kept_views_are_current(connect: Connect, view: str, by: tuple[str, float | None]) -> None:
    """A kept view has the current length and content after writes through any handle of the store."""
    kept = KEPT[view]
    writer, cache_ttl = by
    shared = Shared(connect, cache_ttl=cache_ttl)
    with shared.store:
        viewed = kept(shared.store)
        write = WRITERS[writer](shared)
        changes: list[Callable[[], object]] = [
            lambda: write.update({"f": 6}),
            lambda: write.__setitem__("a", 10),
            lambda: write.discard("b"),
            lambda: write.pop("c"),
            lambda: write.merge("g", 7),
            lambda: write.delete_many(["d", "e"]),
            lambda: write.clear(),
        ]
        for change in changes:
            assert len(viewed) == len(_content(viewed))
            change()
            expected = Store(shared.api_key, transport=shared.inner).copy()
            assert len(viewed) == len(expected)
            assert _content(viewed) == _content(kept(Store(shared.api_key, transport=shared.inner)))
            if cache_ttl is None:
                for iterator in (iter(viewed), iter(viewed)):
                    assert len(viewed) == len([*iterator]) == len(expected)


# Closed stores


CLOSED: dict[str, Callable[[Store], object]] = {
    "keys()": lambda store: store.keys(),
    "values()": lambda store: store.values(),
    "items()": lambda store: store.items(),
    "iter": iter,
    "reversed": reversed,
    "cache_clear": lambda store: store.cache_clear(),
    "cache_invalidate": lambda store: store.cache_invalidate("a"),
    "stats": lambda store: store.stats,
    "update of nothing": lambda store: store.update({}),
    "|= nothing": lambda store: store.__ior__({}),
    "get_many of nothing": lambda store: store.get_many([]),
    "delete_many of nothing": lambda store: store.delete_many([]),
    "view": lambda store: store.view("a"),
    "stat": lambda store: store.stat("a"),
    "list": lambda store: store.list(),
    "get_as": lambda store: store.get_as("a", int),
    "raw read": lambda store: [*RawStore(store).read(["a"])],
    "raw write": lambda store: [*RawStore(store).write({"a": b"1"}, only_new=False)],
    "store == 5": lambda store: store == 5,
    "store | {}": lambda store: store | {},
    "{} | store": lambda store: {} | store,
}


@on_ours
@pytest.mark.parametrize("act", CLOSED.values(), ids=CLOSED)
def test_every_operation_on_a_closed_store(shared: Shared, act: Callable[[Store], object]) -> None:
    """After `close`, every operation is `ValueError`, also with nothing to do."""
    shared.store.close()
    with pytest.raises(ValueError, match="closed"):
        act(shared.store)
