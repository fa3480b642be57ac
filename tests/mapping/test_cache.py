"""The cache as a user of the mapping sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cloudstore_mapping.client.mapping import CloudStoreMapping, files_of
from cloudstore_mapping.client.transport import Transport
from cloudstore_mapping.testing.clocks import FrozenClock
from cloudstore_mapping.testing.transports import CountingTransport
from cloudstore_mapping.wire import Batch, Reply, Request, Upload
from tests.support.mapping_fixtures import Connect, MakeStore

Store = CloudStoreMapping[Any]


class Recording(CountingTransport):
    """Counts, and keeps the replies."""

    def __init__(self, inner: Transport, api_key: str) -> None:
        super().__init__(inner)
        self.api_key = api_key
        self.replies: list[Reply] = []

    def send(self, request: Request | Batch | Upload) -> Reply:
        """Send, and keep the reply."""
        self.replies.append(super().send(request))
        return self.replies[-1]


@pytest.fixture
def clock() -> FrozenClock:
    """A clock that stands still."""
    return FrozenClock()


@pytest.fixture
def network(connect: Connect) -> Iterator[Recording]:
    """The way to the store of these tests."""
    network = Recording(*connect())
    yield network
    network.close()


@pytest.fixture
def other(make_store: MakeStore) -> Store:
    """Somebody else's store on the same account."""
    return make_store()


def cached(network: Recording, clock: FrozenClock, **options: Any) -> Store:
    """Return a store that keeps what it reads for 10 seconds."""
    return CloudStoreMapping(network.api_key, transport=network, cache_ttl=10.0, clock=clock, **options)


def test_reads_within_the_time(network: Recording, clock: FrozenClock, other: Store) -> None:
    """What was read or saved is read again without asking, until its time is over; others' changes are seen then."""
    store = cached(network, clock)
    store["key"] = {"a": 1}
    network.take()
    assert store["key"] == store["key"] == store.get("key") == {"a": 1}
    assert "key" in store
    assert network.take() == {}
    other["key"] = "theirs"
    clock.now += 9
    assert store["key"] == {"a": 1}
    clock.now += 2
    assert store["key"] == "theirs"
    assert network.take() == {"load": 1}


def test_own_writes_are_seen_at_once(network: Recording, clock: FrozenClock) -> None:
    """A save, a merge and a delete are seen by the next read, in the listing as well."""
    store = cached(network, clock)
    assert list(store) == []
    store["key"] = {"a": 1}
    assert list(store) == ["key"]
    assert store["key"] == {"a": 1}
    store.merge("key", {"b": 2})
    assert store["key"] == {"a": 1, "b": 2}
    store.update({"key": 5, "other": 6})
    assert dict(store) == {"key": 5, "other": 6}
    del store["key"]
    assert list(store) == ["other"]
    assert "key" not in store


def test_the_listing_is_kept(network: Recording, clock: FrozenClock, other: Store) -> None:
    """It is asked for once; saving a listed key and deleting one leave it known, saving a new one does not."""
    store = cached(network, clock)
    store.update({"a": 1, "b": 2, "c": 3})
    assert len(store) == 3
    network.take()
    store["a"] = 4
    assert len(store) == len(list(store)) == 3
    del store["b"]
    assert sorted(store) == ["a", "c"]
    assert network.take() == {"save": 1, "delete": 1}
    store["d"] = 5
    assert sorted(store) == ["a", "c", "d"]
    assert network.take() == {"save": 1, "list": 1}
    other["e"] = 6
    clock.now += 9
    del store["d"]
    assert sorted(store) == ["a", "c"]
    clock.now += 2
    assert sorted(store) == ["a", "c", "e"]


@pytest.mark.parametrize("connect", ["memory", "http"], indirect=True)
def test_what_still_stands_is_not_sent_again(network: Recording, clock: FrozenClock) -> None:
    """Where the service has versions, what ran out is asked about, and its value comes only if it changed."""
    store = cached(network, clock)
    store["key"] = "value"
    clock.now += 11
    network.replies.clear()
    assert store["key"] == "value"
    (reply,) = network.replies
    assert reply.unchanged is True
    assert b"value" not in bytes(reply.content)
    assert store["key"] == "value"
    assert len(network.replies) == 1


def test_what_is_read_from_the_cache_is_fresh(network: Recording, clock: FrozenClock) -> None:
    """Changing what was read doesn't change what is kept."""
    store = cached(network, clock)
    store["key"] = [1]
    store["key"].append(2)
    assert store["key"] == [1]
    assert store.stats.hits == 2


def test_a_save_while_another_thread_deletes(network: Recording, clock: FrozenClock) -> None:
    """A key that is deleted while it is saved is listed afterwards if the save came last."""
    store = cached(network, clock)
    store["key"] = 1
    assert list(store) == ["key"]
    client = files_of(store).client
    save = client.save

    def late(*arguments: Any, **options: Any) -> str | None:
        del store["key"]
        return save(*arguments, **options)

    client.save = late  # type: ignore[method-assign]
    store["key"] = 2
    assert list(store) == ["key"]
    assert store["key"] == 2


def test_forgetting(network: Recording, clock: FrozenClock, other: Store) -> None:
    """`cache_invalidate` forgets one key, `cache_clear` everything."""
    store = cached(network, clock)
    store.update({"a": 1, "b": 2})
    assert dict(store) == {"a": 1, "b": 2}
    other.update({"a": 10, "b": 20})
    store.cache_invalidate("a")
    assert (store["a"], store["b"]) == (10, 2)
    store.cache_clear()
    assert dict(store) == {"a": 10, "b": 20}


def test_absent_keys(network: Recording, clock: FrozenClock, other: Store) -> None:
    """That a key is absent is kept only if a time was set for it."""
    for options, seen in (({}, 1), ({"cache_absent_ttl": 10.0}, None)):
        other.clear()
        store = cached(network, clock, **options)
        assert store.get("key") is None
        other["key"] = 1
        assert store.get("key") == seen
        assert ("key" in store) == (seen is not None)
    clock.now += 11
    assert store["key"] == 1


def test_keys_found_absent(network: Recording, clock: FrozenClock) -> None:
    """That a key is absent is kept however it was found: by a load, by `in`, or among many."""
    store = cached(network, clock, cache_absent_ttl=10.0)
    assert store.get_many(["first", "second"]) == {}
    assert store.get("third") is None
    assert "fourth" not in store
    network.take()
    assert store.get_many(["first", "third", "fourth"]) == {}
    assert "second" not in store
    assert store.get("fourth") is None
    assert not network.take()
    clock.now += 11
    assert "second" not in store
    assert network.take()


def test_views_share_the_cache(network: Recording, clock: FrozenClock) -> None:
    """What a view writes its store sees, and the other way round."""
    store = cached(network, clock)
    view = store.view("a/")
    store["a/key"] = 1
    assert view["key"] == 1
    view["key"] = 2
    assert store["a/key"] == 2
    assert list(view) == ["key"]
    del view["key"]
    assert "a/key" not in store
    assert list(store) == list(view) == []


def test_bounds(network: Recording, clock: FrozenClock) -> None:
    """No more values are kept than was said, and `stats` counts those that were given up."""
    store = cached(network, clock, cache_size=2)
    for key in "abc":
        store[key] = key
    network.take()
    assert [store[key] for key in "cba"] == ["c", "b", "a"]
    assert network.take() == {"load": 1}
    assert store.stats.evictions == 2


@pytest.mark.parametrize("options", [{"cache_ttl": 0}, {"cache_ttl": -1.0}, {"cache_ttl": 1, "cache_size": 0}])
def test_bad_options(network: Recording, options: dict[str, Any]) -> None:
    """A cache that keeps nothing is refused; None is the way to have none."""
    with pytest.raises(ValueError, match="above 0"):
        CloudStoreMapping(network.api_key, transport=network, **options)
