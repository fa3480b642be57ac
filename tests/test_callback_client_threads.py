"""The callback client's threads: calls side by side and from callbacks, their pace, and the end of the program."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloudstore_mapping.callback_client import CloudStore, Pacer, pacer_of
from tests.vendor import Fault, Vendor

KEY = "ZFA5mAkxjVznvSsXOUxE"
Dictionary = dict[str, Any]


@pytest.fixture
def vendor(vendor: Vendor) -> Vendor:
    """Return a running service that holds one file."""
    vendor.files["a"] = 1
    return vendor


def test_callback_waits_for_another_call(cloud: CloudStore) -> None:
    """A call's future has its reply before its callback runs, so that a callback may wait for other calls."""
    seen: list[Any] = []

    def callback(_: Dictionary) -> None:
        other = cloud.load("a", lambda reply: seen.append(("second", reply["data"])))
        seen.append(("first", other.result(30)["data"]))

    cloud.load("a", callback)
    cloud.close()
    assert seen == [("first", 1), ("second", 1)]


def test_call_returns_at_once(cloud: CloudStore, vendor: Vendor) -> None:
    """A call returns while its request is still on the way, and can't be cancelled any more."""
    with vendor.lock:
        future = cloud.load("a")
        assert not future.done()
        assert future.running()
        assert not future.cancel()
    assert future.result(30)["data"] == 1


def test_calls_run_in_parallel(cloud: CloudStore, vendor: Vendor) -> None:
    """Many calls are on the way at once."""
    everybody = threading.Barrier(8 + 1)
    answer = vendor.answer

    def answer_together(request: Any) -> dict[str, Any]:
        vendor.lock.release()
        everybody.wait(30)
        vendor.lock.acquire()
        return answer(request)

    vendor.answer = answer_together  # type: ignore[method-assign]  # the service waits until all are there
    futures = [cloud.load("a") for _ in range(8)]
    everybody.wait(30)
    assert [future.result(30)["data"] for future in futures] == [1] * 8


def test_close_waits(vendor: Vendor) -> None:
    """`close` returns when all is done, what callbacks began as well; afterwards a call is `ValueError`."""
    seen: list[int] = []

    def callback(depth: int) -> Callable[[Dictionary], None]:
        def again(_: Dictionary) -> None:
            seen.append(depth)
            if depth < 5:
                opened.load("a", callback(depth + 1))

        return again

    opened = CloudStore(KEY, vendor.address)
    with opened:
        opened.load("a", callback(1))
    assert seen == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="closed"):
        opened.load("a")
    opened.close()


def test_close_in_callbacks(vendor: Vendor, hooked: list[threading.ExceptHookArgs]) -> None:
    """A callback may close: it waits for nobody, calls on the way are answered, and none can be added."""
    seen: list[Dictionary] = []
    cloud = CloudStore(KEY, vendor.address)

    def close(reply: Dictionary) -> None:
        seen.append(reply)
        cloud.close()

    with vendor.lock:
        futures = [cloud.load("a", close) for _ in range(4)]
    for future in futures:
        assert future.result(30)["data"] == 1
    for thread in threading.enumerate():
        if type(thread).__name__ == "_Call":
            thread.join()
    assert len(seen) == 4
    assert hooked == []


class _Clock:
    """A clock that stands still but for those who sleep by it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class _Held:
    """A sender that answers nobody until it is let go, and notes who asked."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.gate = threading.Event()

    def exchange(self, message: Any, _: object) -> Any:
        self.gate.wait(30)
        self.names.append(message.name)
        return SimpleNamespace(error=None, sentence="", response=None)


def test_slots_in_the_order_of_calls(vendor: Vendor) -> None:
    """The first call gets the first slot and so on, whichever thread runs first; calls that send nothing get none."""
    transport = _Held()
    clock = _Clock()
    with CloudStore(KEY, vendor.address) as cloud:
        pacer = _Noting(clock)
        cloud._sender.exchange = transport.exchange  # type: ignore[method-assign, assignment]
        cloud._pacer = pacer
        cloud.maxRate = 3.0
        futures: list[Future[Dictionary]] = []
        for name in ("a", "b", "c"):
            futures.append(cloud.save(name, 1))
            cloud.save(name, {1, 2})
        transport.gate.set()
        for future in futures:
            future.result(30)
        assert pacer.reserved == [0.0, 3.0, 6.0]
        assert sorted(pacer.waited) == [0.0, 3.0, 6.0]


class _Noting(Pacer):
    """A pacer in whose time nobody waits."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock, lambda _: None)
        self.reserved: list[float] = []
        self.waited: list[float] = []

    def reserve(self, interval: float) -> float:
        self.reserved.append(super().reserve(interval))
        return self.reserved[-1]

    def wait(self, until: float) -> None:
        self.waited.append(until)


def test_calls_for_one_key_are_in_order(cloud: CloudStore, vendor: Vendor) -> None:
    """A thread's calls for one key are sent in their order, each after the replies to those before it."""
    futures: list[Future[Dictionary]] = []
    with vendor.lock:
        for number in range(20):
            futures += [cloud.save("a", number), cloud.load("a"), cloud.load("a")]
            cloud.save(f"other {number}", 1)
        for number in range(20):
            cloud.upload(str(number), "a.txt")
    loaded = [future.result(30).get("data") for future in futures]
    cloud.close()
    assert loaded == [value for number in range(20) for value in (None, number, number)]
    assert vendor.files["a"] == 19
    uploads = [request.body for request in vendor.requests if request.path.endswith("/upload-2")]
    assert [int(body.split(b"\r\n")[-3]) for body in uploads] == [*range(20)]
    assert not cloud._in_order


def test_lists_are_in_order(cloud: CloudStore, vendor: Vendor) -> None:
    """A list has all writes that its thread began before it, and none that it began after."""
    lists: list[Future[Dictionary]] = []
    with vendor.lock:
        for number in range(20):
            cloud.save(f"list {number}", number)
            lists.append(cloud.list("list "))
        for number in range(20):
            cloud.delete(f"list {number}")
        lists.append(cloud.list("list "))
    counts = [len(future.result(30)["data"]) for future in lists]
    cloud.close()
    assert counts == [*range(1, 21), 0]
    assert not cloud._in_order


def test_lists_do_not_wait_for_other_threads(cloud: CloudStore, vendor: Vendor) -> None:
    """A list waits for no write of another thread, and for no load."""
    with vendor.lock:
        thread = threading.Thread(target=lambda: cloud.save("b", 1))
        thread.start()
        thread.join()
        cloud.load("a")
        future = cloud.list()
        (call,) = (call for call in cloud._calls if call.future is future)
        assert not call.before
    assert future.result(30)["error"] is None


def test_order_after_an_error(cloud: CloudStore, vendor: Vendor, hooked: list[threading.ExceptHookArgs]) -> None:
    """A call that fails, or whose callback fails, holds up no call for the same key."""
    vendor.faults.append(Fault(500, b""))
    replies: list[Dictionary] = []
    cloud.save("a", 1, lambda _: 1 / 0)
    cloud.save("a", {2}, replies.append)
    cloud.save("a", 3, replies.append)
    cloud.close()
    assert sorted(str(reply["error"]) for reply in replies) == ["Error sending data", "None"]
    assert vendor.files["a"] == 3
    assert len(hooked) == 1


def test_threads_do_not_wait_for_each_other(cloud: CloudStore, vendor: Vendor) -> None:
    """Calls of different threads for one key are on the way at once."""
    both = threading.Barrier(2)
    answer = vendor.answer

    def answer_together(request: Any) -> Dictionary:
        vendor.lock.release()
        both.wait(30)
        vendor.lock.acquire()
        return answer(request)

    vendor.answer = answer_together  # type: ignore[method-assign]  # the service waits until both are there
    thread = threading.Thread(target=lambda: cloud.save("a", 1))
    thread.start()
    assert cloud.save("a", 2).result(30)["error"] is None
    thread.join()


def test_start_after_a_long_wait(vendor: Vendor) -> None:
    """A call whose start time passed while it waited for another call gets a new one, so that the pace is kept."""
    transport = _Held()
    clock = _Clock()
    with CloudStore(KEY, vendor.address, min_interval=3.0) as cloud:
        pacer = _Noting(clock)
        cloud._sender.exchange = transport.exchange  # type: ignore[method-assign, assignment]
        cloud._pacer = pacer
        first = cloud.save("a", 1)
        second = cloud.save("a", 2)
        clock.now = 10.0
        transport.gate.set()
        for future in (first, second):
            future.result(30)
    assert pacer.reserved == [0.0, 3.0, 10.0]
    assert transport.names == ["a", "a"]


def test_no_thread_to_start(cloud: CloudStore, vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started, the call raises; its file is closed, and its start time free for another call."""
    cloud._pacer = pacer = _Noting(_Clock())
    cloud.maxRate = 3.0
    opened: list[int] = []
    dup = os.dup

    def note(descriptor: int) -> int:
        opened.append(dup(descriptor))
        return opened[-1]

    monkeypatch.setattr(os, "dup", note)
    (tmp_path / "a.bin").write_bytes(b"data")

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = cloud.save("a.bin", 0)
    before.result(30)
    with (tmp_path / "a.bin").open("rb") as file, monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", fail)
        calls: list[Callable[[], object]] = [
            lambda: cloud.upload(file, "a.bin"),
            lambda: cloud.save("a", 1),
            lambda: cloud.save("a", {1}),
        ]
        for call in calls:
            with pytest.raises(RuntimeError, match="can't start new thread"):
                call()
    (descriptor,) = opened
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert cloud.save("a", 2).result(30)["error"] is None
    cloud.close()
    assert pacer.reserved == [0.0, 3.0, 3.0, 3.0]
    assert not cloud._in_order


def test_instances_share_their_servers_pace(vendor: Vendor) -> None:
    """Two instances for one server have one pacer."""
    with CloudStore(KEY, vendor.address) as one, CloudStore("other", vendor.address + "/") as two:
        assert one._pacer is two._pacer is pacer_of(vendor.address)
    assert CloudStore(KEY, "https://enjine.cloud/cloudstore")._interval() == 3.0
    assert CloudStore(KEY, "https://enjine.cloud/cloudstore", min_interval=0)._interval() == 0


def test_max_rate(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """`maxRate` is the vendor's 3 seconds, for its servers; a number of the user's is for all servers."""
    assert CloudStore.maxRate == 3
    clouds = [CloudStore(KEY), CloudStore(KEY, vendor.address), CloudStore(KEY, vendor.address, min_interval=0.5)]
    assert [cloud._interval() for cloud in clouds] == [3, 0, 0.5]
    assert [cloud.maxRate for cloud in clouds] == [3, 3, 0.5]
    monkeypatch.setattr(CloudStore, "maxRate", 1)
    assert [cloud._interval() for cloud in clouds] == [1, 1, 0.5]
    clouds[1].maxRate = 3
    assert [cloud._interval() for cloud in clouds] == [1, 3, 0.5]


@pytest.mark.parametrize("number", [3, 3.0, 0])
def test_max_rate_equal_to_the_default(vendor: Vendor, monkeypatch: pytest.MonkeyPatch, number: float) -> None:
    """A number assigned to the class, or to a class made of it, holds for all servers, also the default's 3."""
    made_of_it = type("Mine", (CloudStore,), {"maxRate": number})
    assert made_of_it(KEY, vendor.address)._interval() == number
    assert CloudStore(KEY, vendor.address)._interval() == 0
    monkeypatch.setattr(CloudStore, "maxRate", number)
    assert [CloudStore(KEY, server)._interval() for server in (None, vendor.address)] == [number, number]


PROGRAM = """
import sys
from CloudStore import CloudStore

cloud = CloudStore("key", sys.argv[1])

def on_load(reply):
    print(reply["data"])
    if reply["data"] < 4:
        cloud.save("a", reply["data"] + 1, on_save)
    else:
        raise SystemError("the last callback")

def on_save(reply):
    print(reply["message"])
    cloud.load("a", on_load)

cloud.load("a", on_load)
print("the program's last line")
"""


AT_THE_END = """
import atexit, sys
from CloudStore import CloudStore

cloud = CloudStore("key", sys.argv[1])

def on_save(reply):
    print(reply["message"])
    cloud.load("a", lambda reply: (print(reply["data"]), cloud.close(), 1 / 0))

@atexit.register
def last():
    cloud.save("b", 1)
    future = cloud.save("a", 5, on_save)
    print(future.done(), cloud.list().result(0)["data"])

atexit.register(cloud.save, "a", 4, lambda reply: cloud.load("a"))
"""


def test_call_at_the_end_of_the_interpreter(vendor: Vendor) -> None:
    """A call in a function of `atexit`, when no thread can be started or waited for, returns after its callback."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", AT_THE_END, vendor.address], capture_output=True, text=True, timeout=60
    )
    assert vendor.files == {"a": 5, "b": 1}
    assert ran.stdout.splitlines() == ["Entry saved", "5"]
    assert "ZeroDivisionError" in ran.stderr
    assert "ValueError: This CloudStore is closed" in ran.stderr
    assert ran.returncode == 0


DAEMONS = """
import atexit, logging, sys, threading
from logging.handlers import QueueHandler, QueueListener
from queue import Queue

from CloudStore import CloudStore

cloud = CloudStore("key", sys.argv[1])

class Saving(logging.Handler):
    def emit(self, record):
        has_ended.wait()
        with CloudStore.lock:
            cloud.save(record.getMessage(), 1, lambda reply: print(reply["message"]))

def save_alone():
    cloud.save("alone", 1, lambda reply: (is_done.set(), cloud.load("alone"), print("called back")))

has_ended, is_done = threading.Event(), threading.Event()
listener = QueueListener(queue := Queue(), Saving())
listener.start()
logging.getLogger().addHandler(QueueHandler(queue))
logging.warning("first")
logging.warning("last")
if sys.argv[2] == "close":
    atexit.register(cloud.close)

@atexit.register
def end():
    threading.Thread(target=save_alone, daemon=True).start() if sys.version_info < (3, 12) else save_alone()
    has_ended.set()
    is_done.wait()
    listener.stop()
"""


@pytest.mark.parametrize("end", ["close", "leave"])
def test_calls_of_daemon_threads_at_the_end(vendor: Vendor, end: str) -> None:
    """Calls of daemon threads that functions of `atexit` wait for, and calls they are in the midst of, are finished."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", DAEMONS, vendor.address, end], capture_output=True, text=True, timeout=60
    )
    assert vendor.files == {"a": 1, "first": 1, "last": 1, "alone": 1}
    assert sorted(ran.stdout.splitlines()) == ["Entry saved", "Entry saved", "called back"]
    assert (ran.stderr, ran.returncode) == ("", 0)


EARLY = """
import atexit, sys, threading

@atexit.register
def last():
    thread = threading.Thread(target=lambda: cloud.save("late", 1, lambda reply: print(reply["message"])))
    thread.start()
    thread.join()

from CloudStore import CloudStore
cloud = CloudStore("key", sys.argv[1])
"""


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python 3.12 starts no thread in a function of atexit")
def test_calls_of_a_thread_in_an_early_function_of_atexit(vendor: Vendor) -> None:
    """Calls of a thread are finished that a function starts and waits for which was registered before the import."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", EARLY, vendor.address], capture_output=True, text=True, timeout=60
    )
    assert vendor.files == {"a": 1, "late": 1}
    assert (ran.stdout, ran.stderr, ran.returncode) == ("Entry saved\n", "", 0)


@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 2), reason="these start no thread once the main one has ended: gh-113964"
)
def test_program_that_ends(vendor: Vendor) -> None:
    """A program that ends waits for its calls, for those that their callbacks make meanwhile, and for theirs."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, vendor.address], capture_output=True, text=True, timeout=60
    )
    said = ran.stdout.splitlines()
    said.remove("the program's last line")
    assert said == ["1", "Entry saved", "2", "Entry saved", "3", "Entry saved", "4"]
    assert ran.stderr.rstrip().endswith("SystemError: the last callback")
    assert ran.stderr.count("Traceback") == 1
    assert ran.returncode == 0
