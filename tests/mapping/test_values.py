"""Everything in a store, whose values come in pages: nothing is lost or double, whatever else is in the store."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.transport import HTTPTransport, Sendable
from cloudstore_mapping.embedded import open_service
from cloudstore_mapping.service.listings import MAX_LISTED
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.testing.transports import CountingTransport, PassingTransport
from cloudstore_mapping.wire import Operation, Reply, Request
from tests.support.mapping_fixtures import MakeStore

Store = CloudStoreMapping[Any]


def test_small_large_and_odd_ones(store: Store) -> None:
    """Values of all sizes, under keys of all kinds, come in the order of the listing."""
    data = {"a": 1, "b/c": 2, "large": "x" * MAX_LISTED, "%": 3, " ": 4, "é": 5, "z": "x" * (MAX_LISTED - 2)}
    store.update(data)
    assert dict(store) == dict(store.items()) == store.copy() == data
    assert list(store.items()) == [(key, data[key]) for key in store]
    assert list(reversed(store.items())) == list(store.items())[::-1]


@pytest.mark.parametrize("prefix", ["a", "a/", "a%2F", "b", "", " "])
def test_views(store: Store, prefix: str) -> None:
    """A view has the values of its own keys, whether or not their names begin alike."""
    data = {key: number for number, key in enumerate(["a", "a/b", "a%2Fb", "ab", "a/c", "b", " x", "c"])}
    store.update(data)
    wanted = {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}
    assert dict(store.view(prefix)) == dict(store.view(prefix).items()) == wanted


def test_locked_files(http_service: tuple[Service, str]) -> None:
    """A file that needs a password comes as well where there is one; without one it is the error that it is alone."""
    service, address = http_service
    api_key = service.accounts.create("locked")
    with Store(api_key, transport=HTTPTransport(address)) as store:
        store.update(a=1, b=2, c=3)
        service.set_passwords("locked", "b", view="view")
        with pytest.raises(PermissionError, match="password"):
            dict(store)
    with Store(api_key, transport=HTTPTransport(address), passwords={"b": "view"}) as store:
        assert dict(store) == {"a": 1, "b": 2, "c": 3}


class Between(PassingTransport):
    """Does something before each page of values is asked for."""

    act: Callable[[], object] = staticmethod(lambda: None)

    def send(self, request: Sendable) -> Reply:
        """Send, after that."""
        if isinstance(request, Request) and request.operation is Operation.LIST and request.values is True:
            self.act()
        return super().send(request)


@pytest.fixture
def stores() -> Iterator[tuple[Store, Between, Store]]:
    """Return a store, its transport, and another store on the same account."""
    transport, api_key = open_service("memory:")
    between = Between(transport)
    with Store(api_key, transport=between) as one, Store(api_key, transport=PassingTransport(transport)) as other:
        yield one, between, other


def test_keys_that_come_meanwhile(stores: tuple[Store, Between, Store]) -> None:
    """Keys that others add between listing and values push none of the listed ones out, and don't show."""
    store, between, other = stores
    data = {f"{number}": number for number in range(20)}
    store.update(data)
    numbers = itertools.count()
    between.act = lambda: other.update({f"{number} {next(numbers)}": 0 for number in range(5)})
    for read in (dict, Store.copy, lambda store: dict(store.items())):
        listed = {key: value for key, value in other.items()}  # noqa: C416 - dict() is what is tested
        assert read(store) == listed


def test_keys_that_go_meanwhile(stores: tuple[Store, Between, Store]) -> None:
    """Keys that others delete between listing and values are left out by `items`, and no others are."""
    store, between, other = stores
    store.update({f"{number}": number for number in range(20)})
    between.act = lambda: other.discard("7")
    assert dict(store.items()) == {f"{number}": number for number in range(20) if number != 7}


def test_what_came_in_a_page_is_kept(make_store: MakeStore) -> None:
    """A store with a cache asks for nothing that came in a page, while it is fresh."""
    writer, store = make_store(), make_store(cache_ttl=1000.0)
    writer.update(a=1, b=2)
    assert dict(store) == {"a": 1, "b": 2}
    before = store.stats.requests
    assert (store["a"], store["b"], dict(store)) == (1, 2, {"a": 1, "b": 2})
    assert store.stats.requests == before


def test_a_copy_that_stops_half_way(counted: tuple[Store, CountingTransport]) -> None:
    """Who reads like `dict` but stops, or goes on in another order, gets the values all the same."""
    store, _ = counted
    store.update({f"{number}": number for number in range(5)})
    keys = list(store.keys())
    assert [store[key] for key in keys[::-1]] == [int(key) for key in keys[::-1]]
    for key in store.keys():  # noqa: SIM118 - which is what `dict` asks for
        assert store[key] == int(key)
        break
    assert dict(store) == {**store} == {f"{number}": number for number in range(5)}
