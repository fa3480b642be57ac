"""Bulk work: one stop rule, and no request in flight afterwards."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from cloudstore_mapping.client.bulk import CallGroup, StopRule, WorkerPool
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.transport import HTTPTransport, Sendable, scope
from cloudstore_mapping.errors import (
    BulkError,
    OutcomeUnknownError,
    ProtocolError,
    TimedOutError,
    TooOftenError,
    TransportError,
    UnavailableError,
)
from cloudstore_mapping.testing.clocks import FrozenClock
from cloudstore_mapping.testing.faults import FaultyTransport, answered, not_connected, refused, stuck, turned_away
from cloudstore_mapping.wire import Reply, success
from tests.service_fakes import PATIENCE
from tests.vendor import Vendor

KEYS = [f"k{number:03}" for number in range(100)]
Store = CloudStoreMapping[Any]

ACTS: dict[str, Callable[[Store], object]] = {
    "update": lambda store: store.update(dict.fromkeys(KEYS, 1)),
    "|=": lambda store: store.__ior__({key: {} for key in KEYS}),
    "delete_many": lambda store: store.delete_many(KEYS),
    "get_many": lambda store: store.get_many(KEYS),
}
UNREACHABLE = {
    "refused": refused,
    "not connected": not_connected,
    "silent": stuck,
    "503": answered(503, retry_after=10.0),
    "503 of the service": turned_away(UnavailableError("Busy.", retry_after=10.0)),
    "429": answered(429, retry_after=10.0),
}


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("fault", UNREACHABLE)
@pytest.mark.parametrize("act", ACTS)
def test_one_stop_rule(vendor: Vendor, act: str, fault: str, workers: int) -> None:
    """Once a request found the service unreachable, the rest is not tried, and is in `.failed`."""
    clock = FrozenClock()
    way = FaultyTransport(HTTPTransport(vendor.address))
    store = Store(vendor.api_key, transport=way, clock=clock, max_workers=workers)
    with store, way.broken(UNREACHABLE[fault]), pytest.raises(BulkError) as caught:
        ACTS[act](store)
    assert caught.value.succeeded == []
    assert sorted(caught.value.failed) == KEYS
    assert len(way.requests) <= 4 * workers + 4
    assert sum(clock.slept) <= 30 * workers + 30
    untried = [error for error in caught.value.failed.values() if "was not tried" in str(error)]
    assert len(untried) >= 100 - workers - 2
    assert not any(isinstance(error, OutcomeUnknownError) for error in untried)
    assert all(isinstance(error, TransportError | TimedOutError | TooOftenError) for error in untried)
    assert not any(getattr(error, "sent", False) for error in untried)


@pytest.mark.parametrize("read", [lambda store: store.copy(), lambda store: list(store.items()), dict])
def test_reads_stop_too(vendor: Vendor, read: Callable[[Store], object]) -> None:
    """An iteration over values raises the error of the first key out of reach, and tries no others."""
    vendor.files.update(dict.fromkeys(KEYS, 1))
    way = FaultyTransport(HTTPTransport(vendor.address))
    with Store(vendor.api_key, transport=way, clock=FrozenClock(), max_workers=1, cache_ttl=60.0) as store:
        assert len(store) == 100
        with way.broken(refused), pytest.raises(TransportError):
            read(store)
    assert len(way.requests) <= 1 + 2 * 4


def test_one_slow_key_stops_nothing() -> None:
    """One answer that does not come in time, or a broken connection, is no reason to stop; a second in a row is."""
    stop = StopRule()
    for error in (TransportError("broke", sent=True), ProtocolError("?"), TimedOutError("slow"), None):
        stop.note(error)
        assert not stop.applies()
    stop.note(TimedOutError("slow"))
    assert not stop.applies()
    stop.note(TimedOutError("slow"))
    assert stop.applies()


def test_a_whole_deadline_is_enough() -> None:
    """A request without an answer for its whole deadline stops the rest."""
    stop = StopRule()
    error = TimedOutError("slow")
    error.at_deadline = True
    stop.note(error)
    assert stop.applies()


class Passwords(dict[str, str]):
    """Passwords of a user whose own code fails for a key."""

    def __getitem__(self, key: str) -> str:
        if key == "k050":
            raise ZeroDivisionError
        return ""


def test_a_failure_of_the_users_own(vendor: Vendor) -> None:
    """An exception of the user's `passwords` for a key fails that key alone, and hides nothing."""
    store = Store(vendor.api_key, vendor.address, passwords=Passwords())
    changes = store._files.changes_to_delete([key for key in KEYS if key != "k050"])
    changes.insert(5, changes[0]._replace(key="k050"))
    vendor.files.update(dict.fromkeys(KEYS, 1))
    with store, pytest.raises(BulkError) as caught:
        store._bulk.write(changes)
    assert set(caught.value.failed) == {"k050"}
    assert isinstance(caught.value.failed["k050"], ZeroDivisionError)
    assert list(vendor.files) == ["k050"]


class Held:
    """A service that takes requests at once, and applies and answers each when the test lets it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.taken = threading.Semaphore(0)
        self.go = threading.Event()
        self.in_flight = 0
        self.count = 0

    def send(self, request: Sendable) -> Reply:
        """Take a request."""
        with self.lock:
            self.in_flight += 1
            self.count += 1
        self.taken.release()
        assert self.go.wait(PATIENCE)
        with self.lock:
            self.in_flight -= 1
        return success("1")

    def close(self) -> None:
        """Do nothing."""


class StoppedError(Exception):
    """What a program raises in `progress`."""


def test_an_exception_in_progress() -> None:
    """When an exception in `progress` ends bulk work, none of its requests is in flight, and none follows."""
    service = Held()

    def progress(done: int, _: int) -> None:
        if done == 2:
            service.go.clear()
            # Others are in flight by now, and are answered only while this one waits for them.
            threading.Thread(target=service.go.set).start()
            raise StoppedError

    service.go.set()
    with Store("key", transport=service, max_workers=4, progress=progress) as store:
        with pytest.raises(StoppedError):
            store.update(dict.fromkeys(KEYS, 1))
        assert service.in_flight == 0
        count = service.count
        assert count < 30
        assert not [thread for thread in threading.enumerate() if thread.name == "cloudstore-bulk"]
        assert service.count == count


def test_an_iterator_closed_early(vendor: Vendor) -> None:
    """When an iteration is left, its requests are awaited."""
    vendor.files.update(dict.fromkeys(KEYS, 1))
    with Store(vendor.api_key, vendor.address, max_workers=4) as store:
        for _ in store.items():
            break
        assert not [thread for thread in threading.enumerate() if thread.name == "cloudstore-bulk"]
        before = len(vendor.requests)
        assert before < 20


@pytest.mark.parametrize("count", [1, 4])
def test_results_in_order(count: int) -> None:
    """Calls yield in the order of their arguments, with their errors."""
    calls = [*WorkerPool(count).map(lambda number: 10 // number, [5, 2, 0, 1])]
    assert [call.argument for call in calls] == [5, 2, 0, 1]
    assert [calls[0].result(), calls[1].result(), calls[3].result()] == [2, 5, 10]
    with pytest.raises(ZeroDivisionError):
        calls[2].result()


def test_a_sleeper_wakes_up() -> None:
    """A call that waits between two attempts wakes up when the bulk work ends, and sends nothing more."""
    asleep = threading.Event()
    calls: list[str] = []

    def call(number: int) -> None:
        if number:
            asleep.set()
            assert scope.group is not None
            calls.append("awake" if scope.group.sleep(PATIENCE) else "slept on")

    results = WorkerPool(2).map(call, range(4))
    next(results)
    assert asleep.wait(PATIENCE)
    results.close()
    assert calls
    assert set(calls) == {"awake"}


def test_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the interpreter starts no more threads, as at its end, the calls run on the caller's."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert [call.result() for call in WorkerPool(4).map(str, [1, 2, 3])] == ["1", "2", "3"]


def test_an_interrupt_of_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second interrupt closes the connections in use, and says that their requests may have been done."""
    here, there = socket.socketpair()

    class Connection:
        sock = here

    group = CallGroup(1)
    group.connections[0] = Connection()

    def interrupt() -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(group, "_has_threads", interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        group.end()
    assert there.recv(1) == b""
    assert "may have been done or not" in caught.value.__notes__[0]
    here.close()
    there.close()


#: Interrupts an update of many keys on a service that applies requests only afterwards: prints what is in flight then.
INTERRUPTED = """
import os, signal, sys, threading, time
import cloudstore_mapping as cm
from cloudstore_mapping.client.transport import scope
from cloudstore_mapping.wire import success

class Late:
    def __init__(self):
        self.running = self.count = 0
        self.lock = threading.Lock()
    def send(self, request):
        with self.lock:
            self.running += 1
            self.count += 1
            count = self.count
        if count == 6:
            os.kill(os.getpid(), signal.SIGINT)
        while count > 5 and not scope.group.has_ended:
            time.sleep(0)
        with self.lock:
            self.running -= 1
        return success("1")
    def close(self):
        pass

late = Late()
store = cm.CloudStoreMapping("key", transport=late, max_workers=int(sys.argv[1]))
try:
    store.update(dict.fromkeys(map(str, range(100)), 1))
except KeyboardInterrupt as error:
    print("interrupted", late.running, late.count < 30, error.__notes__)
"""


@pytest.mark.parametrize("workers", ["1", "4"])
def test_ctrl_c(workers: str) -> None:
    """After Ctrl-C in bulk work none of its requests is in flight, and none follows."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, workers],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.stdout.startswith("interrupted 0 True ['The work on 100 keys was interrupted: ")
    assert "may have been done or not" in done.stdout
    assert done.stderr == ""
