"""Cache: interrupts and signal handlers at any line, in the thread that fetches and in those that wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.client import cache as cache_module
from cloudstore_mapping.client import files as files_module
from cloudstore_mapping.client.cache import LATEST_WRITE, Cache, Found
from cloudstore_mapping.embedded import InProcessTransport
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.testing.clocks import FrozenClock
from tests.storages import new_storage
from tests.support.cache_fakes import FOUND, Fetch, cache, clock, make, never
from tests.support.interrupts import at_line, in_time, interrupt

__all__ = ["cache", "clock"]  # fixtures

FILES = {cache_module.__file__, files_module.__file__}
#: More lines than any operation has.
MANY = 2000

Store = cm.CloudStoreMapping[Any]
Act = Callable[[Store], object]

ACTS: dict[str, Act] = {
    "hit": lambda store: store["kept"],
    "miss": lambda store: store["other"],
    "absent": lambda store: store.get("new"),
    "expired": lambda store: store["expired"],
    "in": lambda store: "other" in store,
    "list": list,
    "items": lambda store: dict(store.items()),
    "view": lambda store: list(store.view("k")),
    "save": lambda store: store.__setitem__("kept", 2),
    "save new": lambda store: store.__setitem__("new", 2),
    "merge": lambda store: store.merge("kept", {"x": 2}),
    "delete": lambda store: store.__delitem__("kept"),
    "pop": lambda store: store.pop("kept"),
    "setdefault": lambda store: store.setdefault("new", 2),
    "update": lambda store: store.update({"kept": 2, "new": 3}),
    "clear": lambda store: store.clear(),
    "invalidate": lambda store: store.cache_invalidate("kept"),
    "forget": lambda store: store.cache_clear(),
}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A service in memory, one for all tests of this file."""
    with Service(new_storage()) as service:
        yield service


class Stores:
    """Two stores on an account of the service: `store` with a cache, `truth` without."""

    def __init__(self, service: Service, clock: FrozenClock, name: str) -> None:
        self.clock = clock
        self.api_key = service.accounts.create(name)
        self.truth = Store(self.api_key, transport=InProcessTransport(service))
        self.store = Store(
            self.api_key, transport=InProcessTransport(service), cache_ttl=10.0, cache_absent_ttl=10.0, clock=clock
        )

    def start(self) -> None:
        """Make the same beginning: a value kept, another one expired, the listing kept, a third value never read."""
        self.truth.clear()
        self.truth.update({"expired": 1, "kept": {"x": 1}, "other": 1})
        self.store.cache_clear()
        assert self.store["expired"] == 1
        self.clock.now += 11
        assert self.store["kept"] == {"x": 1}
        assert len(self.store) == 3

    def check(self) -> None:
        """
        Check that reads are right, and once no interrupted write can be applied any more, also cached.

        Cached means read from the cache the second time; then the same after a write.
        """
        truth = self.truth.copy()
        for _ in range(2):  # that time begins when a write of unknown outcome is first met
            assert list(self.store) == list(truth)
            assert all(self.store.get(key) == truth.get(key) for key in ("kept", "expired", "other", "new"))
            self.clock.now += LATEST_WRITE
        for _ in range(2):
            truth = self.truth.copy()
            assert list(self.store) == list(truth)
            for key in ("kept", "expired", "other", "new"):
                assert self.store.get(key) == truth.get(key)
                hits = self.store.stats.hits
                assert self.store.get(key) == truth.get(key)
                assert self.store.stats.hits == hits + 1
            self.store["kept"] = {"x": 3}
            self.store["new"] = 4


#: How far from each other the lines are that are tried: all of them when slow; from another first line for each act.
each_step = pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 15])


def lines(what: str, step: int) -> range:
    """Return the lines that are tried."""
    return range(1 + list(ACTS).index(what) % step, MANY, step)


@each_step
@pytest.mark.parametrize("what", ACTS)
def test_an_interrupt_at_any_line(what: str, step: int, service: Service, clock: FrozenClock) -> None:
    """After an interrupt at any line of a cached operation, reads and writes of its keys are right, and cached."""
    stores = Stores(service, clock, f"interrupt {what} {step}")
    for line in lines(what, step):
        stores.start()
        with at_line(line, FILES, interrupt) as seen, suppress(KeyboardInterrupt):
            ACTS[what](stores.store)
        stores.check()
        if seen[0] < line:
            break
    assert 1 < line < MANY - step


@each_step
@pytest.mark.parametrize("what", ACTS)
def test_a_signal_handler_at_any_line(what: str, step: int, service: Service, clock: FrozenClock) -> None:
    """A handler that reads and writes the same keys at any line of an operation never waits for its own thread."""
    stores = Stores(service, clock, f"handler {what} {step}")

    def handler() -> None:
        for key in ("kept", "other"):
            assert stores.store.get(key) == stores.truth.get(key)
        stores.store["other"] = 5
        assert stores.store.get("other") == 5
        assert list(stores.store) == list(stores.truth)

    def run() -> None:
        for line in lines(what, step):
            stores.start()
            with at_line(line, FILES, handler) as seen, suppress(KeyError):
                ACTS[what](stores.store)
            stores.check()
            if seen[0] < line:
                return
        raise AssertionError("more lines than many")

    in_time(run)


def test_many_interrupts_leave_nothing(cache: Cache[bytes]) -> None:
    """Bounds hold after any number of interrupts: what they left uncounted is counted when the cache is full."""
    for line in range(1, MANY):
        with at_line(line, FILES, interrupt) as seen, suppress(KeyboardInterrupt):
            cache.read(f"key {line}", Fetch(Found(b"x" * 30)))
        if seen[0] < line:
            break
        cache.read(f"whole {line}", Fetch())
        assert len(cache._entries) <= 3
    for number in range(10):
        cache.read(f"k{number}", Fetch(Found(b"x" * 40)))
    assert [f"k{number}" for number in range(10) if cache.get(f"k{number}")] == ["k8", "k9"]
    assert cache._bytes == 84
    for number in range(1, line):
        cache.read(f"key {number}", Fetch())
    assert not cache._fetches
    assert not cache._writes


class MyTimeoutError(Exception):
    """What a program's own handler of a signal raises."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, MyTimeoutError])
def test_an_interrupt_stays_in_its_thread(cache: Cache[bytes], error: type[BaseException]) -> None:
    """An exception that is no answer of the service is raised in its own thread; those who wait fetch themselves."""
    begun: Future[None] = Future()
    go: Future[None] = Future()

    def interrupted(_: object) -> Found[bytes]:
        begun.set_result(None)
        go.result()
        raise error

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(cache.read, "k", interrupted)
        begun.result()
        fetch = Fetch()
        waiting = [pool.submit(cache.read, "k", fetch) for _ in range(3)]
        while cache.misses < 4:
            pass
        go.set_result(None)
        assert isinstance(first.exception(), error)
        assert [each.result() for each in waiting] == [FOUND] * 3
    assert len(fetch.given) == 1
    assert cache.read("k", never) == FOUND


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs the signal SIGUSR1, which this system lacks")
def test_a_handler_that_reads_the_key_being_fetched(cache: Cache[bytes]) -> None:
    """A signal handler in the fetching thread gets a value of its own."""
    read: list[Found[bytes]] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: read.append(cache.read("k", Fetch())))

    def fetch(_: object) -> Found[bytes]:
        signal.raise_signal(signal.SIGUSR1)
        return Found(b"outer")

    try:
        assert cache.read("k", fetch) == Found(b"outer")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert read == [FOUND]


def test_two_threads_whose_fetches_read_each_other_s_keys(cache: Cache[bytes]) -> None:
    """A thread in a fetch never waits for another one, so no two threads wait for each other."""
    both = threading.Barrier(2, timeout=60)

    def fetching(other: str) -> Callable[[object], Found[bytes]]:
        def fetch(_: object) -> Found[bytes]:
            both.wait()
            return cache.read(other, Fetch())

        return fetch

    def run() -> None:
        with ThreadPoolExecutor() as pool:
            readings = [pool.submit(cache.read, "a", fetching("b")), pool.submit(cache.read, "b", fetching("a"))]
            assert [reading.result() for reading in readings] == [FOUND, FOUND]

    in_time(run)


def test_passwords_that_read_the_store(service: Service, clock: FrozenClock) -> None:
    """A `passwords` mapping may read the store itself, the key asked for as well."""

    class Asking(Mapping[str, str | None]):
        store: Store
        depth = 0

        def __getitem__(self, key: str) -> str | None:
            if self.depth:
                raise KeyError(key)
            self.depth += 1
            try:
                self.store.get(key)
                self.store.get("password")
            finally:
                self.depth -= 1
            return None

        def __iter__(self) -> Iterator[str]:
            raise NotImplementedError

        def __len__(self) -> int:
            raise NotImplementedError

    passwords = Asking()
    store = Store(
        service.accounts.create("asking"),
        transport=InProcessTransport(service),
        cache_ttl=10.0,
        clock=clock,
        passwords=passwords,
    )
    passwords.store = store

    def run() -> None:
        store["key"] = 1
        store.cache_clear()
        assert store["key"] == 1
        assert dict(store) == {"key": 1}

    in_time(run)


def test_a_read_during_a_write_is_not_shared_after_it(clock: FrozenClock) -> None:
    """A fetch begun during a write may miss it, so no reader after the write takes part in it."""
    cache = make(clock)
    begun: Future[None] = Future()
    go: Future[None] = Future()

    def early(_: object) -> Found[bytes]:
        begun.set_result(None)
        go.result()
        return Found(b"old")

    with ThreadPoolExecutor() as pool:
        try:
            with cache.write("k"):
                reading = pool.submit(cache.read, "k", early)
                begun.result()
            assert cache.read("k", Fetch(Found(b"new"))) == Found(b"new")
        finally:
            go.set_result(None)
        assert reading.result() == Found(b"old")
    assert cache.read("k", never) == Found(b"new")
