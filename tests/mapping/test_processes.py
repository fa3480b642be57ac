"""Stores in child processes: forks while other threads are at work, and the pools of `multiprocessing`."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

import cloudstore_mapping as cm
from cloudstore_mapping.callback_client import Pacer
from cloudstore_mapping.client import cache as cache_module
from cloudstore_mapping.client import retry as retry_module
from cloudstore_mapping.client.bulk import CallGroup
from cloudstore_mapping.client.mapping import CloudStoreMapping, files_of
from cloudstore_mapping.client.retry import Gate
from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.storages import new_storage
from tests.support.forking import FOREVER, Stopped, in_child
from tests.support.mapping_fixtures import Connect, connect, http_service

__all__ = ["connect", "http_service"]  # fixtures

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which this system lacks"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]

Store = CloudStoreMapping[Any]


class Holding:
    """A lock that its `name` in `thing` is replaced by, to stop a thread inside it."""

    def __init__(self, lock: Any, stop: Callable[[], None]) -> None:
        self._lock = lock
        self._stop = stop

    def __enter__(self) -> None:
        self._lock.__enter__()
        self._stop()

    def __exit__(self, *error: object) -> None:
        self._lock.__exit__(*error)


def holding(thing: object, act: Callable[[], object]) -> Stopped:
    """Return a thread to stop inside the lock of a thing, which it takes in `act`."""

    def run(stop: Callable[[], None]) -> None:
        name = "lock" if isinstance(thing, Pacer) else "_lock"
        setattr(thing, name, Holding(getattr(thing, name), stop))
        act()

    return Stopped(run)


def use(store: Store) -> None:
    """Use a store in many ways, with a result known in advance."""
    store["child"] = 1
    assert store["child"] == 1
    assert store["kept"] == "kept"
    assert store["other"] == "other"
    assert sorted(store) == ["child", "kept", "other"]
    store.update({"many": 1, "more": 2})
    assert dict(store.items()) == {"child": 1, "kept": "kept", "many": 1, "more": 2, "other": "other"}
    store.delete_many(["many", "more"])
    del store["child"]


@pytest.mark.parametrize("connect", ["file", "http", "vendor"], indirect=True)
@pytest.mark.parametrize("where", ["cache", "sender", "pacer", "transport", "fetch", "gate"])
def test_a_fork_while_a_lock_is_held(connect: Connect, where: str) -> None:
    """A child of a fork works, whatever lock or request another thread was in the middle of."""
    transport, api_key = connect()
    interval = 1e-9 if where == "pacer" else None  # without an interval nothing is paced
    with (
        ExitStack() as ended,
        Store(api_key, transport=transport, cache_ttl=1000.0, min_interval=interval) as store,
    ):
        store.update({"kept": "kept", "other": "other"})
        assert store["kept"] == "kept"
        store.cache_invalidate("other")
        client = files_of(store).client
        things = {
            "cache": files_of(store).store.cache,
            "sender": client,
            "pacer": client._pacer,
            "transport": transport,
        }
        if where in ("fetch", "gate"):

            def fetch(stop: Callable[[], None]) -> None:
                send = transport.send

                def stopping(request: Any) -> Any:
                    stop()
                    return send(request)

                transport.send = stopping  # type: ignore[method-assign]
                store["other"]

            stopped = Stopped(fetch)
        else:
            if where == "transport" and not isinstance(transport, HTTPTransport):
                ended.callback(transport._service.close)  # type: ignore[attr-defined]
                transport._process = -1  # type: ignore[attr-defined]  # it opens the store anew under its lock
            thing = things[where]
            assert thing is not None
            stopped = holding(thing, lambda: store["other"])
        with stopped:
            assert in_child(lambda: use(store)) == ""
            if where == "gate":
                assert in_child(store.close) == ""
        assert store["other"] == "other"


def test_a_fork_with_a_users_session(http_service: tuple[Service, str]) -> None:
    """A child of a fork never uses the connections of the parent's session, or each would get the other's replies."""
    service, server = http_service
    with (
        requests.Session() as session,
        Store(service.accounts.create("session"), server, session=session) as store,
    ):
        store.update({"kept": "kept", "other": "other"})
        adapter = session.get_adapter(server)
        assert isinstance(adapter, HTTPAdapter)
        pools = adapter.poolmanager

        def act() -> None:
            assert adapter.poolmanager is not pools
            use(store)

        assert in_child(act) == ""
        assert adapter.poolmanager is pools
        assert store["kept"] == "kept"


@pytest.mark.parametrize("connect", ["vendor"], indirect=True)
def test_a_fork_within_bulk_work(connect: Connect) -> None:
    """A child of a fork goes on with an iteration, or ends it, without the threads that its parent has for it."""
    transport, api_key = connect()
    with Store(api_key, transport=transport, max_workers=2) as store:
        store.update({f"key {number}": number for number in range(20)})
        items = iter(store.items())
        next(items)

        def go_on() -> None:
            assert len([*items]) == 19

        assert in_child(go_on) == ""
        assert in_child(lambda: items.close()) == ""  # type: ignore[attr-defined]  # a generator
        go_on()


def test_every_lock_is_renewed() -> None:
    """Everything with a lock in the client renews it in a child."""
    for kind in (cache_module.Cache, retry_module.RequestSender, Pacer, HTTPTransport, Gate, CallGroup):
        assert hasattr(kind, "after_fork"), kind


FIRST_REQUEST = """
import os, sys, threading
import cloudstore_mapping as cm

begun, go = threading.Event(), threading.Event()

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "requests.adapters" and threading.current_thread() is thread:
            begun.set()
            go.wait(0.3)

sys.meta_path.insert(0, Slow())
store = cm.open(sys.argv[1])
thread = threading.Thread(target=lambda: store.get("key"))
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    store["child"] = 1
    os._exit(0)
go.set()
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
thread.join()
assert status == 0 and store["child"] == 1
"""


def test_a_fork_during_the_first_request(tmp_path: Path) -> None:
    """A child of a fork works though another thread was importing what the first request needs."""
    with Service(new_storage(tmp_path / "s.db")) as service, background(service) as address:
        location = address.replace("://", f"://{service.accounts.create('tests')}@")
        run = [sys.executable, "-W", "ignore", "-c", FIRST_REQUEST, location]
        done = subprocess.run(run, timeout=FOREVER, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def read_key(store: Store, key: str) -> object:
    """Read, in a process of a pool."""
    return store[key]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_pool_of_processes(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Pool.map` with a store works if the pickle has its API key, or the environment; else it says what to do."""
    monkeypatch.delenv("CLOUDSTORE_URL", raising=False)
    with Service(new_storage(tmp_path / "s.db")) as service, background(service) as address:
        location = address.replace("://", f"://{service.accounts.create('tests')}@")

        def values(**options: Any) -> Any:
            with cm.open(location, **options) as store, context.Pool(1) as pool:
                return pool.map_async(partial(read_key, store), ["a", "b"]).get(FOREVER)

        context = multiprocessing.get_context(method)
        with cm.open(location) as store:
            store.update({"a": 1, "b": 2})
        with pytest.raises(ValueError, match=r"pickle_secrets=True.*CLOUDSTORE_URL"):
            values()
        assert values(pickle_secrets=True) == [1, 2]
        monkeypatch.setenv("CLOUDSTORE_URL", location)
        assert values() == [1, 2]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_of_processes_on_a_file(tmp_path: Path, method: str) -> None:
    """`Pool.map` with a store in a file works; if the file can't be opened any more, the reason is raised."""
    path = tmp_path / "store.db"
    with cm.open(path) as store, multiprocessing.get_context(method).Pool(1) as pool:
        store["a"] = 1
        assert pool.map_async(partial(read_key, store), ["a"]).get(FOREVER) == [1]
        store.close()
        for file in tmp_path.iterdir():
            file.unlink()
        path.write_text("no store")
        with pytest.raises(cm.UnsupportedError):
            pool.map_async(partial(read_key, store), ["a"]).get(FOREVER)


def test_a_store_in_memory_in_a_pool() -> None:
    """A store in memory is refused when it is sent to another process."""
    with cm.open("memory:") as store, closing(multiprocessing.get_context("spawn").Pool(1)) as pool:
        with pytest.raises(TypeError, match="memory"):
            pool.map_async(partial(read_key, store), ["a"]).get(FOREVER)
        pool.terminate()
