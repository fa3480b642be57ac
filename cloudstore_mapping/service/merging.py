"""Pool of worker processes for large merges: they block neither the writer nor the interpreter (GIL)."""

from __future__ import annotations

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
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Final

from cloudstore_mapping.errors import BadMergeError, TooBigError, UnavailableError
from cloudstore_mapping.service.fair_queue import FairQueue
from cloudstore_mapping.service.merge_worker import MERGED, REFUSED, REPLY, REQUEST
from cloudstore_mapping.service.threads import PlainFuture

#: Maximum number of processes: the service and its clients need the other cores.
MAX_PROCESSES: Final = 2
#: Maximum number of queued merges, in all and per account: each holds a value in memory.
MAX_WAITING: Final = 1024
MAX_WAITING_OF_ONE: Final = 128
#: Maximum seconds in the queue; an older merge is refused.
MAX_WAIT: Final = 30.0
#: Idle timeout of a process in seconds.
MAX_IDLE: Final = 10.0
#: Maximum seconds for queued and running merges in `close`.
CLOSING: Final = 4.0

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
        """Kill the process, close its pipes and wait for its end."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # unsent data is lost anyway
                    pipe.close()
        self._process.wait()


def _read(pipe: IO[bytes], length: int) -> bytes:
    read = pipe.read(length)
    if len(read) < length:
        raise EOFError
    return read


class _Merge:
    """Queued merge: `read` returns the stored value, or None for an absent file."""

    def __init__(self, account: Hashable, read: Callable[[], bytes | None], value: bytes, arrived: float) -> None:
        self.account = account
        self.read = read
        self.value = value
        self.arrived = arrived
        self.future: Future[bytes | None] = PlainFuture()


class MergePool:
    """
    Computes merges in up to `processes` processes, started on demand; a fair queue serves accounts in turn.

    Each process belongs to a thread. Both end after `MAX_IDLE` seconds without work.
    """

    def __init__(
        self,
        processes: int | None = None,
        *,
        start: Callable[[], MergeProcess] = MergeProcess,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = max(1, min(MAX_PROCESSES, (os.cpu_count() or 1) - 1)) if processes is None else processes
        self._start = start
        self._clock = clock
        self._lock = threading.Lock()
        self._queue: FairQueue[_Merge] = FairQueue()
        self._waiting: Counter[Hashable] = Counter()
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
            if len(self._queue) >= MAX_WAITING or self._waiting[account] >= MAX_WAITING_OF_ONE:
                raise UnavailableError(
                    "Too many merges of large values wait; try again later.", sent=False, retry_after=5.0
                )
            self._queue.put(account, merge)
            self._waiting[account] += 1
            if self._idle < len(self._queue) and len(self._threads) < self._most:
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

    def end_within(self, seconds: float) -> None:
        """After `seconds`, refuse queued merges and interrupt running merges."""
        timer = threading.Timer(seconds, self.stop)
        timer.daemon = True
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
            refused = []
            while (merge := self._queue.take()) is not None:
                refused.append(merge)
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
            for thread in threads:
                thread.join()
        self.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()

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
        with self._lock:
            merge = self._queue.take()
            if merge is not None:
                self._waiting[merge.account] -= 1
                if not self._waiting[merge.account]:
                    del self._waiting[merge.account]
        if merge is not None and self._clock() - merge.arrived > MAX_WAIT:
            busy = f"The merges before this one took longer than {MAX_WAIT:g} seconds; try again later."
            _fail(merge.future, UnavailableError(busy, sent=False, retry_after=5.0))
            return None
        return merge

    def _new_process(self, merge: _Merge) -> MergeProcess | None:
        try:
            process = self._start()
        except OSError as error:
            raised = UnavailableError(f"No process for the merge can be started: {error}.", sent=False, retry_after=1.0)
            raised.__cause__ = error
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
            if stored is not None:
                result = process.merge(stored, merge.value)
        except BaseException as raised:  # noqa: BLE001 - the future carries it
            error = raised
        with self._lock:
            self._queue.charge(merge.account, self._clock() - began)
        if error is None:
            merge.future.set_result(result)
        else:
            merge.future.set_exception(error)
        return error is None or isinstance(error, BadMergeError)

    def _end(self, process: MergeProcess) -> None:
        with self._lock:
            self._processes.discard(process)
        process.close()


def _fail(future: Future[bytes | None], error: UnavailableError) -> None:
    future.set_exception(error)


def _ending() -> UnavailableError:
    return UnavailableError("The service is ending; try again once it is back.", sent=False, retry_after=1.0)
