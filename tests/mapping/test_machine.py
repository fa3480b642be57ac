"""Whatever is done to a store, it holds what a `dict` would: the test kit's machine on each way to have one."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from cloudstore_mapping import shelve
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.embedded import open_service
from cloudstore_mapping.merge import merge
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.testing import FaultyTransport, FrozenClock, mapping_machine, strategies
from tests.support.mapping_fixtures import Connect
from tests.vendor import serve_vendor

Store = CloudStoreMapping[Any]

SMALL = settings(max_examples=8, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(SMALL, max_examples=40, stateful_step_count=50)


class _Opened(NamedTuple):
    store: Store
    connect: Connect
    transport: FaultyTransport


class Stores:
    """Stores at places of one kind, over ways on which faults may be put; `place` makes a new place."""

    def __init__(self, place: Callable[[], Connect], **options: Any) -> None:
        self._place = place
        self._options = options
        self._opened: dict[int, _Opened] = {}

    def new(self) -> Store:
        """Return an empty store."""
        return self._open(self._place())

    def another(self, store: Store) -> Store:
        """Return one more store at the place of the one."""
        return self._open(self._opened[id(store)].connect)

    def reopened(self, store: Store) -> Store:
        """Close a store, and return a new one at its place."""
        store.close()
        return self.another(store)

    def failing(self, store: Store) -> AbstractContextManager[None]:
        """Let nothing reach the service within the block."""
        return self._opened[id(store)].transport.broken()

    def _open(self, connect: Connect) -> Store:
        inner, api_key = connect()
        transport = FaultyTransport(inner)
        store = Store(api_key, transport=transport, clock=FrozenClock(), **self._options)
        self._opened[id(store)] = _Opened(store, connect, transport)
        return store


def in_memory() -> Connect:
    """Return a way to a new store in memory."""
    return lambda: open_service(None)


def files(folder: Path) -> Callable[[], Connect]:
    """Return what gives ways to new stores in files."""
    numbers = itertools.count()

    def place() -> Connect:
        path = folder / f"{next(numbers)}.db"
        return lambda: open_service(path)

    return place


@pytest.fixture
def over_http(http_service: tuple[Service, str]) -> Callable[[], Connect]:
    """Return what gives ways to new accounts of a service."""
    service, address = http_service

    def place() -> Connect:
        api_key = service.accounts.create(secrets.token_hex(8))
        return lambda: (HTTPTransport(address), api_key)

    return place


@pytest.fixture
def at_the_vendor() -> Iterator[Callable[[], Connect]]:
    """Return what gives ways to a service without extensions, emptied each time."""
    with serve_vendor() as vendor:

        def place() -> Connect:
            vendor.files.clear()
            return lambda: (HTTPTransport(vendor.address), vendor.api_key)

        yield place


@pytest.fixture(params=[SMALL, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def tries(request: pytest.FixtureRequest, at_length: bool) -> settings:
    """Return how often to try: few times, and many times where there is time."""
    chosen: settings = request.param
    return settings(chosen, max_examples=150) if at_length and chosen is MANY else chosen


def run(stores: Stores, tries: settings, **parameters: Any) -> None:
    """Try stores with the machine."""
    machine = mapping_machine(stores.new, merge=merge, failing=stores.failing, **parameters)
    run_state_machine_as_test(machine, settings=tries)


def test_in_memory(tries: settings) -> None:
    """A store in memory holds what a `dict` would."""
    run(Stores(in_memory), tries)


def test_with_a_cache(tries: settings) -> None:
    """So does one with a cache, which keeps what is read, saved, listed and found absent."""
    run(Stores(in_memory, cache_ttl=60, cache_absent_ttl=60), tries)


def test_with_a_small_cache(tries: settings) -> None:
    """So does one whose cache has to let go of values all the time."""
    run(Stores(in_memory, cache_ttl=60, cache_absent_ttl=60, cache_size=2), tries)


def test_in_a_file(tmp_path: Path, tries: settings) -> None:
    """So does one in a file, also when it is opened again."""
    stores = Stores(files(tmp_path))
    run(stores, tries, reopen=stores.reopened)


def test_two_on_one_file(tmp_path: Path, tries: settings) -> None:
    """So do two stores on one file, each of which sees what the other does."""
    stores = Stores(files(tmp_path))
    run(stores, tries, handles=stores.another, reopen=stores.reopened)


def test_over_http(over_http: Callable[[], Connect], tries: settings) -> None:
    """So do two over HTTP, of one account."""
    stores = Stores(over_http)
    run(stores, tries, handles=stores.another, reopen=stores.reopened)


def test_over_http_with_a_cache(over_http: Callable[[], Connect], tries: settings) -> None:
    """So does one over HTTP with a cache."""
    stores = Stores(over_http, cache_ttl=60, cache_absent_ttl=60)
    run(stores, tries, reopen=stores.reopened)


def test_at_the_vendor(at_the_vendor: Callable[[], Connect], tries: settings) -> None:
    """So do two at a service that has no extensions."""
    stores = Stores(at_the_vendor)
    run(stores, tries, handles=stores.another, reopen=stores.reopened)


def test_a_part_of_a_store(tries: settings) -> None:
    """So does the part of a store that begins with a prefix, beside what is not of it."""
    numbers = itertools.count()
    with Stores(in_memory).new() as store:
        store.update({"": 0, "/": 0, "0": 0, "a/": 0})
        machine = mapping_machine(lambda: store.view(f"{next(numbers)}/,"), merge=merge)
        run_state_machine_as_test(machine, settings=tries)


def test_shelves(tmp_path: Path, tries: settings) -> None:
    """So does a shelf in a file, with whatever can be pickled."""
    numbers = itertools.count()
    paths: dict[int, Path] = {}

    def opened(path: Path) -> Any:
        shelf = shelve.open(path)
        paths[id(shelf)] = path
        return shelf

    def reopened(shelf: Any) -> Any:
        shelf.close()
        return opened(paths[id(shelf)])

    values = strategies.json_values() | st.sets(st.integers()) | st.binary() | st.tuples(st.integers(), st.booleans())
    machine = mapping_machine(lambda: opened(tmp_path / str(next(numbers))), values=values, reopen=reopened)
    run_state_machine_as_test(machine, settings=tries)
