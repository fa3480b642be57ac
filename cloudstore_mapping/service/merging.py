"""Pool of worker processes for large merges: they block neither the writer nor the interpreter (GIL)."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING, Final

from cloudstore_mapping.errors import BadMergeError, TooBigError, UnavailableError
from cloudstore_mapping.service.merge_worker import MERGED, REFUSED, REPLY, REQUEST
from cloudstore_mapping.service.threads import FairQueue, PlainFuture

if TYPE_CHECKING:
    from cloudstore_mapping.errors import CloudStoreError
    from cloudstore_mapping.wire import Request

#: Maximum number of processes: the service and its clients need the other cores.
MAX_PROCESSES: Final = 2
#: Maximum number of queued merges, in all and per account: each holds a value in memory.
MAX_WAITING: Final = 1024
MAX_WAITING_OF_ONE: Final = 128
#: Maximum seconds in the queue; an older merge is refused.
MAX_WAIT: Final = 30.0
#: Maximum seconds of a running merge, and the same per MiB of both values; the larger applies. Its process is then
#: killed. Two values of 15 MiB take 3 seconds on an idle machine. It is below `MAX_WAIT`, so that others then have
#: their turn.
MAX_RUN: Final = 10.0
MAX_RUN_PER_MIB: Final = 1.0
#: Seconds between two checks of both limits.
WATCH_INTERVAL: Final = 1.0
#: Idle timeout of a process in seconds.
MAX_IDLE: Final = 10.0
#: Maximum seconds for queued and running merges in `close`.
CLOSING: Final = 4.0
#: Maximum seconds for a killed process to end: a process that waits for a broken disk may never end.
KILLING: Final = 1.0

_log: Final = logging.getLogger(__name__)

#: Environment variables passed to a process: Python may need them to start. Others may hold secrets.
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT")
#: Program of the worker. It skips the package's `__init__`: this would load the client.
_PROGRAM: Final = """
import sys, types
sys.path[:] = sys.argv[3:]
package = sys.modules["cloudstore_mapping"] = types.ModuleType("cloudstore_mapping")
package.__path__ = [sys.argv[1]]
from cloudstore_mapping.service.merge_worker import main
main(int(sys.argv[2]))
"""


class MergeProcess:
    """
    Worker process: merges a pair of values at a time, and ends with its parent thread.

    It runs in its own session. With session scheduling (autogroup), Linux divides the processor between sessions, and
    in the service's session a busy worker would take processor time from the service's threads.
    """

    def __init__(self) -> None:
        if not sys.executable:
            raise OSError("Python doesn't know its own program")
        package = Path(__file__).parent.parent
        self._process = subprocess.Popen(  # noqa: S603 - runs our own program, without user input
            [sys.executable, "-c", _PROGRAM, str(package), str(os.getpid()), *map(os.path.abspath, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=package,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            start_new_session=True,
        )

    def merge(self, stored: bytes, value: bytes) -> bytes:
        """
        Return the JSON of `value` merged into `stored`.

        Raises `BadMergeError` if the values can't be merged, `TooBigError` if the merge exceeds the process's memory
        limit, and `UnavailableError` if the process ends first.
        """
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None  # noqa: S101 - both are pipes
        assert replies is not None  # noqa: S101
        try:
            for part in (REQUEST.pack(len(stored), len(value)), stored, value):
                requests.write(part)
            requests.flush()
            outcome, length = REPLY.unpack(_read(replies, REPLY.size))
            text = _read(replies, length)
        except (OSError, EOFError, ValueError) as error:  # ValueError: the pipe was closed
            raise UnavailableError("The merge was interrupted; try again.", sent=False, retry_after=1.0) from error
        if outcome == MERGED:
            return text
        if outcome == REFUSED:
            raise BadMergeError(text.decode())
        raise TooBigError("The merge takes too much memory; split the value.")

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def kill(self) -> None:
        """Kill the process at once; callable from any thread."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process, close its pipes and wait up to `KILLING` seconds for its end."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # unsent data is lost anyway
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILLING)


def _read(pipe: IO[bytes], length: int) -> bytes:
    read = pipe.read(length)
    if len(read) < length:
        raise EOFError
    return read


class _Merge:
    """Queued or running merge: `read` returns the stored value, or None for an absent file."""

    def __init__(self, account: Hashable, read: Callable[[], bytes | None], value: bytes, arrived: float) -> None:
        self.account = account
        self.read = read
        self.value = value
        self.arrived = arrived
        #: Time of the latest end, and the process to kill then.
        self.ends_at = math.inf
        self.process: MergeProcess | None = None
        self.future: Future[bytes | None] = PlainFuture()


def _daemon_timer(seconds: float, function: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    return timer


@dataclass(frozen=True)
class Merged:
    """Outcome of a merge into a version of a file, computed before the write transaction: JSON or an error."""

    request: Request
    version: str
    value: bytes = b""
    error: CloudStoreError | None = None


class MergePool:
    """
    Computes merges in up to `processes` processes, started on demand; a fair queue serves accounts in turn.

    Each process belongs to a thread. Both end after `MAX_IDLE` seconds without work. While there is work, a timer calls
    `check_times` every `WATCH_INTERVAL` seconds: a process may be stopped (SIGSTOP), or wait for a broken disk.
    """

    def __init__(
        self,
        processes: int | None = None,
        *,
        start: Callable[[], MergeProcess] = MergeProcess,
        clock: Callable[[], float] = time.monotonic,
        timer: Callable[[float, Callable[[], object]], threading.Timer] = _daemon_timer,
    ) -> None:
        self._most = max(1, min(MAX_PROCESSES, (os.cpu_count() or 1) - 1)) if processes is None else processes
        self._start = start
        self._clock = clock
        self._new_timer = timer
        self._lock = threading.Lock()
        self._queue: FairQueue[_Merge] = FairQueue()  # includes refused merges, until a thread takes them
        self._waiting: dict[_Merge, None] = {}  # without them, earliest first
        self._waiting_of: Counter[Hashable] = Counter()
        self._running: set[_Merge] = set()
        self._watch: threading.Timer | None = None
        self._tokens: SimpleQueue[bool] = SimpleQueue()  # True per merge; False ends a thread
        self._idle = 0
        self._threads: set[threading.Thread] = set()
        self._processes: set[MergeProcess] = set()
        self._timer: threading.Timer | None = None
        self._ends_at = math.inf
        self._stopped = False

    def submit(self, account: Hashable, read: Callable[[], bytes | None], value: bytes) -> Future[bytes | None]:
        """
        Queue a merge of `value` into the result of `read`; the future holds the JSON, or None if `read` returned None.

        Raises `UnavailableError` if too many merges are queued, and after the pool was stopped.
        """
        merge = _Merge(account, read, value, self._clock())
        with self._lock:
            if self._stopped:
                raise _ending()
            if len(self._waiting) >= MAX_WAITING or self._waiting_of[account] >= MAX_WAITING_OF_ONE:
                raise UnavailableError(
                    "Too many merges of large values wait; try again later.", sent=False, retry_after=5.0
                )
            self._queue.put(account, merge)
            self._waiting[merge] = None
            self._waiting_of[account] += 1
            if self._watch is None:
                self._start_watch()
            if self._idle < len(self._waiting) and len(self._threads) < self._most:
                self._add_thread()
            self._tokens.put(True)
        return merge.future

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._work, name="cloudstore-merge", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # the system allows no more threads; the next merge tries again
            self._threads.discard(thread)

    def _start_watch(self) -> None:
        timer = self._new_timer(WATCH_INTERVAL, self._watch_on)
        try:
            timer.start()
        except RuntimeError:  # the system allows no more threads; the next merge tries again
            self._watch = None
        else:
            self._watch = timer

    def _watch_on(self) -> None:
        self.check_times()
        with self._lock:
            self._watch = None
            if not self._stopped and (self._waiting or self._running):
                self._start_watch()

    def check_times(self) -> None:
        """Refuse merges queued for more than `MAX_WAIT` seconds; kill processes at their merge's latest end."""
        now = self._clock()
        with self._lock:
            refused = self._drop_late(now)
            overdue = [merge for merge in self._running if now >= merge.ends_at]
            self._running.difference_update(overdue)  # its thread then leaves the future to us
        for merge in overdue:
            seconds = now - merge.arrived
            _log.warning("A merge is not done after %.0f seconds; its process is killed and replaced.", seconds)
            if merge.process is not None:
                merge.process.kill()
            late = "The merge took too long and was interrupted; try again, or split the value."
            _fail(merge.future, UnavailableError(late, sent=False, retry_after=5.0))
        _refuse_late(refused)

    def _drop_late(self, now: float) -> list[_Merge]:
        """Return the merges queued for too long, and stop counting them; the caller holds the lock."""
        late = []
        for merge in self._waiting:
            if now - merge.arrived <= MAX_WAIT:
                break
            late.append(merge)
        for merge in late:
            self._leave_queue(merge)
            merge.value = b""  # free it: the fair queue still holds the merge
        return late

    def _leave_queue(self, merge: _Merge) -> None:
        del self._waiting[merge]
        self._waiting_of[merge.account] -= 1
        if not self._waiting_of[merge.account]:
            del self._waiting_of[merge.account]

    def end_within(self, seconds: float) -> None:
        """After `seconds`, refuse queued merges and interrupt running merges."""
        timer = _daemon_timer(seconds, self.stop)
        with self._lock:
            if self._stopped or self._ends_at <= self._clock() + seconds:
                return
            self._ends_at = self._clock() + seconds
            before, self._timer = self._timer, timer
        if before is not None:
            before.cancel()
        timer.start()

    def stop(self) -> None:
        """Refuse queued merges and interrupt running merges, at once."""
        with self._lock:
            self._stopped = True
            refused = [*self._waiting]
            self._waiting.clear()
            self._waiting_of.clear()
            while self._queue.take() is not None:
                pass
            processes = [*self._processes]
        for merge in refused:
            _fail(merge.future, _ending())
        for process in processes:
            process.kill()

    def close(self) -> None:
        """Finish queued merges within `CLOSING` seconds, then end all threads and processes."""
        with self._lock:
            threads = [*self._threads]
        if threads:  # if unused, start no timer: at interpreter shutdown Python 3.11 would wait for it for ever
            self.end_within(CLOSING)
            self._tokens.put(False)
            end = time.monotonic() + CLOSING + KILLING
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))
        self.stop()
        for timer in (self._timer, self._watch):
            if timer is not None:
                timer.cancel()
                timer.join()

    def _work(self) -> None:
        process: MergeProcess | None = None
        try:
            while self._goes_on():
                process = self._work_once(process)
        finally:
            if process is not None:
                self._end(process)

    def _goes_on(self) -> bool:
        """Wait for a merge; return True if the queue may have a merge, False to end the thread."""
        with self._lock:
            self._idle += 1
        try:
            token = self._tokens.get(timeout=MAX_IDLE)
            closing = not token
        except Empty:
            token = closing = False
        with self._lock:
            self._idle -= 1
            goes_on = token or bool(self._queue)
            if not goes_on:
                self._threads.discard(threading.current_thread())
        if closing:
            self._tokens.put(False)  # for the next thread, or the next time
        return goes_on

    def _work_once(self, process: MergeProcess | None) -> MergeProcess | None:
        """Compute the next merge, if any; return the process for later merges, or None if it ended."""
        merge = self._take()
        if merge is None:
            return process
        if process is None:
            process = self._new_process(merge)
        if process is not None and not self._do(merge, process):
            self._end(process)
            return None
        return process

    def _take(self) -> _Merge | None:
        """Return the next merge to run, if any; refuse those queued for too long."""
        with self._lock:
            refused = self._drop_late(self._clock())
            merge = self._queue.take()
            while merge is not None and merge not in self._waiting:  # refused
                merge = self._queue.take()
            if merge is not None:
                self._leave_queue(merge)
                self._running.add(merge)
                merge.ends_at = self._clock() + MAX_WAIT  # to start a process and read; `_begin` sets the merge's own
        _refuse_late(refused)
        return merge

    def _new_process(self, merge: _Merge) -> MergeProcess | None:
        try:
            process = self._start()
        except (OSError, subprocess.SubprocessError) as error:
            raised = UnavailableError(f"No process for the merge can be started: {error}.", sent=False, retry_after=1.0)
            raised.__cause__ = error
            if self._finish(merge):
                _fail(merge.future, raised)
            return None
        with self._lock:
            self._processes.add(process)
            stopped = self._stopped
        if stopped:  # `stop` ran before the process was added
            process.kill()
        return process

    def _do(self, merge: _Merge, process: MergeProcess) -> bool:
        """Compute a merge and set its future; return True if the process is usable for the next merge."""
        began = self._clock()
        result: bytes | None = None
        error: BaseException | None = None
        try:
            stored = merge.read()
            if stored is not None and self._begin(merge, process, len(stored)):
                result = process.merge(stored, merge.value)
        except BaseException as raised:  # noqa: BLE001 - the future carries it
            error = raised
        with self._lock:
            self._queue.charge(merge.account, self._clock() - began)
        if not self._finish(merge):
            return False
        if error is None:
            merge.future.set_result(result)
        else:
            merge.future.set_exception(error)
        return error is None or isinstance(error, BadMergeError)

    def _begin(self, merge: _Merge, process: MergeProcess, size: int) -> bool:
        """Set the process and the latest end of a merge into `size` bytes; return False if it was overdue already."""
        seconds = max(MAX_RUN, MAX_RUN_PER_MIB * (size + len(merge.value)) / 2**20)
        with self._lock:
            merge.process = process
            merge.ends_at = self._clock() + seconds
            return merge in self._running

    def _finish(self, merge: _Merge) -> bool:
        """Return True if the caller sets the future of a running merge, False if `check_times` did."""
        with self._lock:
            is_in_time = merge in self._running
            self._running.discard(merge)
        return is_in_time

    def _end(self, process: MergeProcess) -> None:
        with self._lock:
            self._processes.discard(process)
        process.close()


def _fail(future: Future[bytes | None], error: UnavailableError) -> None:
    future.set_exception(error)


def _refuse_late(merges: list[_Merge]) -> None:
    busy = f"The merges before this one took longer than {MAX_WAIT:g} seconds; try again later."
    for merge in merges:
        _fail(merge.future, UnavailableError(busy, sent=False, retry_after=5.0))


def _ending() -> UnavailableError:
    return UnavailableError("The service is ending; try again once it is back.", sent=False, retry_after=1.0)
