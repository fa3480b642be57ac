"""The callback client's lock: held while a callback runs, and free afterwards whatever the callback did."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from cloudstore_mapping.callback_client import CloudStore
from tests.vendor import Vendor

KEY = "ZFA5mAkxjVznvSsXOUxE"
Dictionary = dict[str, Any]


@pytest.fixture
def vendor(vendor: Vendor) -> Vendor:
    """Return a running service that holds one file."""
    vendor.files["a"] = 1
    return vendor


def lock_is_free() -> bool:
    """Whether another thread could take the lock."""
    taken: list[bool] = []

    def take() -> None:
        taken.append(CloudStore.lock.acquire(blocking=False))
        if taken[0]:
            CloudStore.lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return taken[0]


def test_lock_is_held(cloud: CloudStore) -> None:
    """While a callback runs no other thread has the lock, of which there is one; afterwards it is free."""
    free: list[bool] = []
    cloud.load("a", lambda _: free.append(lock_is_free()))
    cloud.close()
    assert free == [False]
    assert lock_is_free()
    assert cloud.lock is CloudStore.lock


def test_locked(cloud: CloudStore) -> None:
    """`locked` tells any thread, also the lock's holder, whether the lock is held."""
    assert not CloudStore.lock.locked()
    seen: list[bool] = []
    called, go = threading.Event(), threading.Event()

    def callback(_: Dictionary) -> None:
        seen.append(CloudStore.lock.locked())
        called.set()
        go.wait(30)

    cloud.load("a", callback)
    called.wait(30)
    seen.append(CloudStore.lock.locked())
    go.set()
    cloud.close()
    assert seen == [True, True]
    assert not CloudStore.lock.locked()


def test_one_callback_at_a_time(vendor: Vendor) -> None:
    """Callbacks never run side by side, whichever instances made the calls."""
    running: list[int] = []
    most: list[int] = []

    def callback(_: Dictionary) -> None:
        running.append(1)
        most.append(len(running))
        running.pop()

    with CloudStore(KEY, vendor.address) as one, CloudStore(KEY, vendor.address) as two:
        for _ in range(20):
            one.load("a", callback)
            two.load("a", callback)
    assert most == [1] * 40


def _take(_: Dictionary) -> None:
    with CloudStore.lock:
        pass


def _keep(_: Dictionary) -> None:
    CloudStore.lock.acquire()
    CloudStore.lock.acquire()


def _give_back(_: Dictionary) -> None:
    CloudStore.lock.release()


@pytest.mark.parametrize("callback", [_take, _keep, _give_back])
def test_callback_uses_the_lock(cloud: CloudStore, callback: Callable[[Dictionary], None]) -> None:
    """A callback may take the lock itself, as documented; even one that keeps it leaves it free."""
    after: list[Dictionary] = []
    cloud.load("a", callback)
    cloud.load("a", after.append)
    cloud.close()
    assert lock_is_free()
    assert len(after) == 1


@pytest.mark.parametrize("keeps_the_lock", [False, True])
def test_callback_that_raises(cloud: CloudStore, hooked: list[threading.ExceptHookArgs], keeps_the_lock: bool) -> None:
    """An exception in a callback goes to the threads' hook; future, lock and other calls are as if nothing was."""

    def fail(_: Dictionary) -> None:
        if keeps_the_lock:
            CloudStore.lock.acquire()
        raise ZeroDivisionError

    after: list[Dictionary] = []
    futures = [cloud.load("a", fail), cloud.load("a", after.append), cloud.load("a", fail)]
    cloud.close()
    assert [future.result()["data"] for future in futures] == [1, 1, 1]
    assert [args.exc_type for args in hooked] == [ZeroDivisionError, ZeroDivisionError]
    assert len(after) == 1
    assert lock_is_free()


def test_callback_that_exits(cloud: CloudStore, hooked: list[threading.ExceptHookArgs]) -> None:
    """A callback that calls `sys.exit` ends its thread, and nothing else."""
    future = cloud.load("a", lambda _: sys.exit(3))
    cloud.close()
    assert future.result()["data"] == 1
    assert [args.exc_type for args in hooked] == [SystemExit]
    assert lock_is_free()
