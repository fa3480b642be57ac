"""Merges of large values in processes of their own: bounded, in turn, and ended with the service."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudstore_mapping.errors import BadMergeError, TooBigError, UnavailableError
from cloudstore_mapping.merge import merge, merge_in_place
from cloudstore_mapping.service import merge_worker, merging
from cloudstore_mapping.service.merge_worker import NO_MEMORY, merge_values
from cloudstore_mapping.service.merging import (
    MAX_RUN,
    MAX_RUN_PER_MIB,
    MAX_WAIT,
    MAX_WAITING,
    MAX_WAITING_OF_ONE,
    MergePool,
    MergeProcess,
)
from cloudstore_mapping.wire import decode_value, encode_value
from tests.service_fakes import PATIENCE

#: A program that has a process merge, prints its id, and waits.
PARENT = """
import signal
from cloudstore_mapping.service.merging import MergeProcess
process = MergeProcess()
process.merge(b"[1]", b"[2]")
print(process.pid, flush=True)
signal.pause()
"""
#: Prints the signal that this program gets when its parent ends.
SIGNAL_OF_DEATH = """
import ctypes, os
from cloudstore_mapping.service import merge_worker
merge_worker._end_with(os.getppid())
found = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(found))
print(found.value)
"""


@pytest.fixture
def process() -> Iterator[MergeProcess]:
    """Return a process that merges."""
    process = MergeProcess()
    yield process
    process.close()


def json(value: Any) -> bytes:
    """Return the JSON of a value."""
    return bytes(encode_value(value))


def test_a_process_merges(process: MergeProcess) -> None:
    """A process returns what `merge` does, for one pair of values after another, and raises its errors."""
    stored, value = {"a": [1, {"b": 2}], "c": "x" * 100_000}, {"a": [5], "d": [[]], "e": 2**70}
    for _ in range(2):
        assert decode_value(process.merge(json(stored), json(value))) == merge(stored, value)  # type: ignore[arg-type]
    with pytest.raises(BadMergeError, match=r"\$\.x is no element of the array there"):
        process.merge(b"[1]", b'{"x": 1}')
    assert process.merge(b"1", b"2") == b"2"


def test_a_killed_process_is_unavailable(process: MergeProcess) -> None:
    """A merge whose process was killed is refused as unavailable."""
    process.kill()
    with pytest.raises(UnavailableError, match="interrupted") as caught:
        process.merge(b"[1]" + b" " * 2**20, b"[2]")
    assert not caught.value.sent


def test_memory_of_a_merge_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that takes more memory than allowed is refused."""
    monkeypatch.setattr(merge_worker, "_limit_memory", lambda _: None)
    monkeypatch.setattr(merge_worker, "decode_value", _no_memory)
    assert merge_values(b"[]", b"[]") == (NO_MEMORY, b"")
    process = FakeProcess()
    process.outcome = TooBigError("The merge takes too much memory; split the value.")
    pool = MergePool(1, start=lambda: process)
    with pytest.raises(TooBigError):
        pool.submit("a", lambda: b"[]", b"[]").result(PATIENCE)
    pool.close()
    assert process.closed


def _no_memory(_: bytes) -> None:
    raise MemoryError


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found as Linux shows them")
def test_a_process_stands_alone(process: MergeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a session of its own and a low priority, and inherits no secret and no open file."""
    monkeypatch.setenv("CLOUDSTORE_SECRET", "hunter2")
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    other = MergeProcess()
    try:
        assert other.merge(b"[1]", b"[2]") == b"[2]"  # it has started
        pid = other.pid
        assert os.getsid(pid) == pid
        assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
        assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert {entry.name for entry in Path(f"/proc/{pid}/fd").iterdir()} <= {"0", "1", "2"}
    finally:
        other.close()
        os.close(reading)
        os.close(writing)


def test_merging_in_place() -> None:
    """Merging in place has the result of a merge, also where the parts of both values end up in it."""
    for stored, value in [
        ({"a": [1, 2]}, {"a": [None, {"b": []}], "c": {}}),
        ([[], [1], {}], [[], [2, 3], {"0": 1}]),
        ([1, 2], {"1": [{}]}),
        ("text", [1]),
        ([], []),
    ]:
        expected = merge(stored, value)  # type: ignore[arg-type]
        assert merge_in_place(stored, value) == expected  # type: ignore[arg-type]


class FakeProcess(MergeProcess):
    """Returns an outcome once it may, and notes what is done to it."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()
        self.outcome: bytes | Exception = b"merged"
        self.values: list[bytes] = []
        self.killed = self.closed = False

    def merge(self, stored: bytes, value: bytes) -> bytes:
        """Return the outcome, or raise it."""
        self.values.append(value)
        self.begun.release()
        assert self.go.wait(PATIENCE)
        if self.killed:
            raise UnavailableError("The merge was interrupted; try again.")
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def kill(self) -> None:
        """Note it, and end what is being computed."""
        self.killed = True
        self.go.set()

    def close(self) -> None:
        """Note it."""
        self.closed = True


class FakeTimer(threading.Timer):
    """Timer that never runs by itself; a test calls its `function`."""

    def __init__(self, seconds: float, function: Callable[[], object]) -> None:
        super().__init__(seconds, function)
        self.started = self.cancelled = False

    def start(self) -> None:
        """Note it."""
        self.started = True

    def cancel(self) -> None:
        """Note it."""
        self.cancelled = True

    def join(self, timeout: float | None = None) -> None:
        """Do nothing: there is no thread."""


@pytest.fixture
def fake() -> FakeProcess:
    """Return a process that is none."""
    return FakeProcess()


@pytest.fixture
def pool(fake: FakeProcess, no_threads_left: None) -> Iterator[MergePool]:
    """Return a pool with one process, which is none, and a clock that stands still."""
    pool = MergePool(1, start=lambda: fake, clock=lambda: 0.0)
    yield pool
    fake.go.set()
    pool.close()


def keep_busy(pool: MergePool, fake: FakeProcess) -> None:
    """Let the pool compute something until the fake's `go`."""
    fake.go.clear()
    pool.submit("busy", lambda: b"", b"busy")
    assert fake.begun.acquire(timeout=PATIENCE)


def test_merges_are_computed_in_turn(pool: MergePool, fake: FakeProcess) -> None:
    """An account with many merges delays another account's by one at most."""
    keep_busy(pool, fake)
    futures = [pool.submit(account, lambda: b"", account.encode()) for account in ("a", "a", "a", "b", "b")]
    fake.go.set()
    assert [future.result(PATIENCE) for future in futures] == [b"merged"] * 5
    assert fake.values == [b"busy", b"a", b"b", b"a", b"b", b"a"]


def test_nothing_to_merge_into(pool: MergePool, fake: FakeProcess) -> None:
    """If there is no stored value any more, nothing is computed."""
    assert pool.submit("a", lambda: None, b"1").result(PATIENCE) is None
    assert fake.values == []


def test_a_failure_is_the_merge_s_own(pool: MergePool, fake: FakeProcess) -> None:
    """What reading or merging raises is the outcome, and the next merge is computed."""
    with pytest.raises(ZeroDivisionError):
        pool.submit("a", lambda: bytes(1 // 0), b"1").result(PATIENCE)
    fake.outcome = BadMergeError("No.")
    with pytest.raises(BadMergeError):
        pool.submit("a", lambda: b"", b"1").result(PATIENCE)
    fake.outcome = b"merged"
    assert pool.submit("a", lambda: b"", b"1").result(PATIENCE) == b"merged"


def test_waiting_merges_are_bounded(pool: MergePool, fake: FakeProcess) -> None:
    """So many merges of one account wait, and so many of all; the next one is refused as unavailable."""
    keep_busy(pool, fake)
    for _ in range(MAX_WAITING_OF_ONE):
        pool.submit("a", lambda: b"", b"1")
    with pytest.raises(UnavailableError, match="Too many") as caught:
        pool.submit("a", lambda: b"", b"1")
    assert caught.value.retry_after
    for number in range(MAX_WAITING - MAX_WAITING_OF_ONE):
        pool.submit(number, lambda: b"", b"1")
    with pytest.raises(UnavailableError, match="Too many"):
        pool.submit("b", lambda: b"", b"1")


def test_a_merge_waits_only_so_long(fake: FakeProcess, no_threads_left: None) -> None:
    """A merge whose turn comes too late is refused as unavailable."""
    now = [0.0]
    pool = MergePool(1, start=lambda: fake, clock=lambda: now[0])
    keep_busy(pool, fake)
    late = pool.submit("a", lambda: b"", b"late")
    now[0] = MAX_WAIT + 1
    fake.go.set()
    assert isinstance(late.exception(PATIENCE), UnavailableError)
    assert pool.submit("a", lambda: b"", b"in time").result(PATIENCE) == b"merged"
    pool.close()
    assert fake.values == [b"busy", b"in time"]


def test_a_queued_merge_is_refused_while_others_run(fake: FakeProcess, no_threads_left: None) -> None:
    """A merge that waits too long is refused before its turn comes, and makes room for another one."""
    now = [0.0]
    pool = MergePool(1, start=lambda: fake, clock=lambda: now[0], timer=FakeTimer)
    fake.go.clear()
    pool.submit("busy", lambda: bytes(100 * 2**20), b"busy")  # so large that it may take longer
    assert fake.begun.acquire(timeout=PATIENCE)
    now[0] = 1.0
    late = [pool.submit("a", lambda: b"", b"late") for _ in range(MAX_WAITING_OF_ONE)]
    now[0] = MAX_WAIT + 1.5
    assert not late[0].done()
    pool.check_times()
    assert {type(each.exception(0)) for each in late} == {UnavailableError}
    in_time = pool.submit("a", lambda: b"", b"in time")
    fake.go.set()
    assert in_time.result(PATIENCE) == b"merged"
    pool.close()
    assert fake.values == [b"busy", b"in time"]


def test_a_merge_that_never_ends_is_interrupted(no_threads_left: None) -> None:
    """A process that doesn't answer in time is killed and replaced; its merge is unavailable, and others go on."""
    now = [0.0]
    processes: list[FakeProcess] = []

    def start() -> FakeProcess:
        processes.append(FakeProcess())
        return processes[-1]

    timers: list[FakeTimer] = []

    def timer(seconds: float, function: Callable[[], object]) -> FakeTimer:
        timers.append(FakeTimer(seconds, function))
        return timers[-1]

    pool = MergePool(1, start=start, clock=lambda: now[0], timer=timer)
    assert pool.submit("a", lambda: b"", b"1").result(PATIENCE) == b"merged"
    (first,) = processes
    assert first.begun.acquire(timeout=PATIENCE)
    first.go.clear()
    stuck = pool.submit("a", lambda: b"", b"stuck")
    assert first.begun.acquire(timeout=PATIENCE)
    other = pool.submit("b", lambda: b"", b"other")
    (watch,) = timers
    assert watch.started
    assert watch.interval == merging.WATCH_INTERVAL
    now[0] = MAX_RUN - 1
    watch.function()
    assert not stuck.done()
    watch = timers[-1]
    assert watch.started  # there is still work
    now[0] = MAX_RUN
    watch.function()
    error = stuck.exception(0)
    assert isinstance(error, UnavailableError)
    assert error.retry_after
    assert not error.sent
    assert first.killed
    assert other.result(PATIENCE) == b"merged"
    assert first.closed
    assert processes[1].values == [b"other"]
    pool.close()


def test_large_values_have_more_time(fake: FakeProcess, no_threads_left: None) -> None:
    """The time for a merge grows with the size of both values."""
    now = [0.0]
    pool = MergePool(1, start=lambda: fake, clock=lambda: now[0], timer=FakeTimer)
    fake.go.clear()
    size = int(MAX_RUN / MAX_RUN_PER_MIB) * 2**20
    running = pool.submit("a", lambda: bytes(size), bytes(size))
    assert fake.begun.acquire(timeout=PATIENCE)
    now[0] = 2 * MAX_RUN - 1
    pool.check_times()
    assert not running.done()
    now[0] += 1
    pool.check_times()
    assert isinstance(running.exception(0), UnavailableError)
    pool.close()


def test_a_value_that_is_never_read(fake: FakeProcess, no_threads_left: None) -> None:
    """A merge whose stored value can't be read in time is unavailable, and not computed later."""
    now = [0.0]
    pool = MergePool(1, start=lambda: fake, clock=lambda: now[0], timer=FakeTimer)
    reading, go = threading.Event(), threading.Event()

    def read() -> bytes:
        reading.set()
        assert go.wait(PATIENCE)
        return b""

    running = pool.submit("a", read, b"1")
    assert reading.wait(PATIENCE)
    now[0] = MAX_WAIT
    pool.check_times()
    assert isinstance(running.exception(0), UnavailableError)
    go.set()
    pool.close()
    assert fake.values == []


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows stops no process")
def test_a_stopped_process_is_replaced(no_threads_left: None) -> None:
    """A process that was stopped by a signal is killed once its merge is overdue, and the next merge is computed."""
    now = [0.0]
    started: list[MergeProcess] = []
    begun = threading.Semaphore(0)

    class Observed(MergeProcess):
        def merge(self, stored: bytes, value: bytes) -> bytes:
            begun.release()
            return super().merge(stored, value)

    def start() -> MergeProcess:
        started.append(Observed())
        return started[-1]

    pool = MergePool(1, start=start, clock=lambda: now[0], timer=FakeTimer)
    assert pool.submit("a", lambda: b"[1]", b"[2]").result(PATIENCE) == b"[2]"
    assert begun.acquire(timeout=PATIENCE)
    os.kill(started[0].pid, signal.SIGSTOP)
    stuck = pool.submit("a", lambda: b"[1]", b"[2]")
    assert begun.acquire(timeout=PATIENCE)
    now[0] = MAX_RUN
    pool.check_times()
    assert isinstance(stuck.exception(0), UnavailableError)
    assert pool.submit("b", lambda: b"[1]", b"[3]").result(PATIENCE) == b"[3]"
    assert len(started) == 2
    pool.close()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows stops no process")
def test_closing_with_a_stopped_process(no_threads_left: None) -> None:
    """Stopping a pool doesn't wait for a process that was stopped by a signal."""
    process = MergeProcess()
    pool = MergePool(1, start=lambda: process, timer=FakeTimer)
    assert pool.submit("a", lambda: b"[1]", b"[2]").result(PATIENCE) == b"[2]"
    os.kill(process.pid, signal.SIGSTOP)
    stuck = pool.submit("a", lambda: b"[1]", b"[2]")
    pool.stop()
    assert isinstance(stuck.exception(PATIENCE), UnavailableError)
    pool.close()


def test_the_watch_ends_with_the_work(fake: FakeProcess, no_threads_left: None) -> None:
    """No timer runs while there is no merge, and none after the end."""
    timers: list[FakeTimer] = []

    def timer(seconds: float, function: Callable[[], object]) -> FakeTimer:
        timers.append(FakeTimer(seconds, function))
        return timers[-1]

    pool = MergePool(1, start=lambda: fake, clock=lambda: 0.0, timer=timer)
    pool.submit("a", lambda: b"", b"1").result(PATIENCE)
    timers[0].function()
    assert len(timers) == 1
    pool.submit("a", lambda: b"", b"1").result(PATIENCE)
    pool.close()
    assert [each.cancelled for each in timers] == [False, True]
    timers[1].function()
    assert len(timers) == 2


def test_the_end_refuses_what_has_not_begun(pool: MergePool, fake: FakeProcess) -> None:
    """Stopping interrupts the merge that is being computed, and refuses all others as unavailable."""
    fake.go.clear()
    running = pool.submit("a", lambda: b"", b"running")
    assert fake.begun.acquire(timeout=PATIENCE)
    waiting = [pool.submit("a", lambda: b"", b"waiting") for _ in range(100)]
    pool.stop()
    assert {type(future.exception(PATIENCE)) for future in (running, *waiting)} == {UnavailableError}
    assert fake.values == [b"running"]
    with pytest.raises(UnavailableError, match="is ending"):
        pool.submit("a", lambda: b"", b"late")


def test_closing_finishes_what_waits(fake: FakeProcess, no_threads_left: None) -> None:
    """Closing computes the merges that wait, as far as there is time, and ends the threads and processes."""
    pool = MergePool(1, start=lambda: fake)
    keep_busy(pool, fake)
    waiting = [pool.submit("a", lambda: b"", b"waiting") for _ in range(3)]
    closing = threading.Thread(target=pool.close)
    closing.start()
    fake.go.set()
    closing.join(PATIENCE)
    assert [future.result(0) for future in waiting] == [b"merged"] * 3
    assert fake.closed


def test_closing_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that merged nothing starts no thread at its end, which a program that ends could wait for forever."""
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail(f"{thread.name} was started"))
    MergePool().close()


def test_an_idle_process_ends(fake: FakeProcess, no_threads_left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without work ends with its thread, and the next merge starts another."""
    monkeypatch.setattr(merging, "MAX_IDLE", 0.0)
    started: list[FakeProcess] = []

    def start() -> FakeProcess:
        started.append(FakeProcess())
        return started[-1]

    pool = MergePool(1, start=start)
    for count in (1, 2):
        assert pool.submit("a", lambda: b"", b"1").result(PATIENCE) == b"merged"
        for thread in [*pool._threads]:
            thread.join(PATIENCE)
        assert [process.closed for process in started] == [True] * count
    pool.close()


def test_a_process_that_can_t_be_started(no_threads_left: None) -> None:
    """Without another process the merge is refused as unavailable."""

    def start() -> MergeProcess:
        raise OSError("no more processes")

    pool = MergePool(1, start=start)
    with pytest.raises(UnavailableError, match="no more processes"):
        pool.submit("a", lambda: b"", b"1").result(PATIENCE)
    pool.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux ends a process with its parent")
def test_the_kernel_ends_a_process_with_its_parent() -> None:
    """In the middle of a merge, too: the kernel is told to kill the process when its parent ends."""
    ran = subprocess.run([sys.executable, "-c", SIGNAL_OF_DEATH], check=True, capture_output=True, text=True)
    assert int(ran.stdout) == signal.SIGKILL


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux ends a process with its parent")
def test_processes_end_with_the_service() -> None:
    """A service that is killed takes its processes with it."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        handle = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    assert select.select([handle], [], [], PATIENCE)[0]
    os.close(handle)
