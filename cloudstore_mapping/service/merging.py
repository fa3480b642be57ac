"""Large merges: computed by worker processes, so that neither the writer nor the interpreter is held meanwhile."""

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

#: Processes at a time: the service and its clients need the other cores.
MAX_PROCESSES: Final = 2
#: Merges that may wait, in all and of one account: each holds a value in memory.
MAX_WAITING: Final = 1024
MAX_WAITING_OF_ONE: Final = 128
#: Seconds that a merge waits for its turn.
MAX_WAIT: Final = 30.0
#: Seconds after which an idle process ends.
MAX_IDLE: Final = 10.0
#: Seconds that `close` gives to the merges that wait.
CLOSING: Final = 4.0

#: Environment variables that a Python may need to start; a process gets no others, for they may hold secrets.
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT")
#: Starts the worker without the package's own `__init__`, which loads the client.
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
    A process that merges one pair of values after another, and ends with the thread that started it.

    It has a session of its own: a kernel that schedules by sessions (autogroup) divides the processor between sessions,
    and a session at work on merges would take its share from the service's own threads.
    """

    def __init__(self) -> None:
        if not sys.executable:
            raise OSError("Python doesn't know its own program")
        package = Path(__file__).parent.parent
        self._process = subprocess.Popen(  # noqa: S603 - of this program's own parts
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
        Return the JSON of a merge; raises its error, and `UnavailableError` if the process ends meanwhile.

        `TooBigError` if the merge takes more memory than a process may have.
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
        """End it at once, from any thread."""
        self._process.kill()

    def close(self) -> None:
        """End it, and wait for its end."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what wasn't sent can't be
                    pipe.close()
        self._process.wait()


def _read(pipe: IO[bytes], length: int) -> bytes:
    read = pipe.read(length)
    if len(read) < length:
        raise EOFError
    return read


class _Merge:
    """A merge that waits: `read` returns the stored value, or None if there is none to merge into."""

    def __init__(self, account: Hashable, read: Callable[[], bytes | None], value: bytes, arrived: float) -> None:
        self.account = account
        self.read = read
        self.value = value
        self.arrived = arrived
        self.future: Future[bytes | None] = PlainFuture()


class MergePool:
    """
    Compute merges in up to `processes` processes, started on demand; accounts are served in turn.

    Each process belongs to a thread, which ends with it after `MAX_IDLE` seconds without work.
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
        self._tokens: SimpleQueue[bool] = SimpleQueue()  # one for each merge; False ends a thread
        self._idle = 0
        self._threads: set[threading.Thread] = set()
        self._processes: set[MergeProcess] = set()
        self._timer: threading.Timer | None = None
        self._ends_at = math.inf
        self._stopped = False

    def submit(self, account: Hashable, read: Callable[[], bytes | None], value: bytes) -> Future[bytes | None]:
        """
        Begin to merge `value` into what `read` returns; the future holds the JSON, or None if there is none.

        Raises `UnavailableError` if too many merges wait, and after the pool's end.
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
        except RuntimeError:  # there are as many threads as the system allows; the next merge tries again
            self._threads.discard(thread)

    def end_within(self, seconds: float) -> None:
        """In so many seconds refuse the merges that wait, and interrupt those that are being computed."""
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
        """Refuse the merges that wait, and interrupt those that are being computed."""
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
        """Finish the merges that wait, for `CLOSING` seconds at most, and end all threads and processes."""
        with self._lock:
            threads = [*self._threads]
        if threads:  # without a merge it starts no thread: Python 3.11 waits forever for one started at a program's end
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
        """Wait for a merge, and return whether there may be one; False ends the thread."""
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
        """Compute the next merge, if any, and return the process for the one after it."""
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
        if stopped:  # `stop` did not see it
            process.kill()
        return process

    def _do(self, merge: _Merge, process: MergeProcess) -> bool:
        """Compute a merge, and return whether the process can compute another one."""
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
