"""Worker processes on a shared socket: start them, replace dead workers, stop all together."""

from __future__ import annotations

import logging
import mmap
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import connection, get_context, parent_process, reduction, resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Final, Self

from cloudstore_mapping.errors import CloudStoreError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.places import StoreLocation
from cloudstore_mapping.web.connections import address_of
from cloudstore_mapping.web.logs import logging_as
from cloudstore_mapping.web.metrics import ROW, Metrics
from cloudstore_mapping.web.options import Options
from cloudstore_mapping.web.server import LAST_RESORT, ending_signals, run_on
from cloudstore_mapping.web.tls import check_certificate

_log: Final = logging.getLogger(__name__)

#: Seconds after SIGTERM until a process is killed.
PATIENCE: Final = LAST_RESORT + 1.5
#: Maximum processes in a row dying before they answer, while no other one answers.
MAX_STILLBORN: Final = 5
#: Seconds until the next attempt after such a death, doubled up to the longest.
FIRST_PAUSE = 0.25
LONGEST_PAUSE: Final = 10.0

# A forked process would copy held locks and SQLite's state; a spawned process starts clean.
_context: Final = get_context("spawn")
#: Signals sent by a terminal to all processes at once; blocked in a worker during its start.
_OF_TERMINALS: Final = {signal.SIGINT} | ({signal.SIGHUP} if sys.platform != "win32" else set())


def run_workers(
    listener: socket.socket,
    place: StoreLocation,
    options: Options,
    settings: Settings,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """
    Serve the store at `place` with ``options.workers`` processes until SIGTERM, SIGINT or SIGHUP.

    Call it on the main thread. `on_ready` is called with the service's URL once all processes answer. If a process
    can't start, its error is raised after the others have ended.
    """
    with SharedRows(options.workers) as rows:
        workers = _Workers([(number, listener, place, options, settings, rows) for number in range(options.workers)])
        handlers = {number: signal.signal(number, workers.end) for number in ending_signals()}
        try:
            workers.run(lambda: on_ready and on_ready(address_of(listener, options)))
        finally:
            listener.close()  # an open socket would accept connections nobody answers
            workers.end_all()
            for number, handler in handlers.items():
                signal.signal(number, handler)


class SharedRows:
    """
    Metrics of all worker processes in shared memory, passed to a spawned process by file descriptor.

    multiprocessing's own shared memory needs /dev/shm, which containers and jails may lack.
    """

    def __init__(self, processes: int) -> None:
        self._size = ROW * 8 * processes
        try:
            self._descriptor = os.memfd_create("cloudstore-metrics")
        except (AttributeError, OSError):  # Linux only, and not in every sandbox
            with tempfile.TemporaryFile() as file:
                self._descriptor = os.dup(file.fileno())
        os.ftruncate(self._descriptor, self._size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def __reduce__(self) -> tuple[Callable[..., memoryview[Any]], tuple[Any, int]]:
        return _mapped, (reduction.DupFd(self._descriptor), self._size)


def _mapped(descriptor: Any, size: int) -> memoryview[Any]:
    number = descriptor.detach()
    try:
        return memoryview(mmap.mmap(number, size)).cast("d")
    finally:
        os.close(number)


class _Worker:
    """Worker process; the pipe `says` delivers None once it answers, or the error of its failed start."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.says, theirs = _context.Pipe(duplex=False)
        self.process = _context.Process(target=_work, args=(*arguments, theirs), name="cloudstore-worker")
        resource_tracker.ensure_running()  # started later, it would unblock the signals
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINALS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        self.answers = False
        self.error: Exception | None = None

    def listen(self) -> None:
        """Receive the worker's message, if there is any."""
        if self.answers or self.error is not None or not self.says.poll():
            return
        with suppress(EOFError):  # it died before sending a message
            self.error = self.says.recv()
            self.answers = self.error is None

    def hurry(self) -> None:
        """Stop the worker by force: a second signal ends it without waiting for clients."""
        with suppress(ValueError, ProcessLookupError):  # already ended, maybe closed
            if self.process.exitcode is None and self.process.pid is not None:
                os.kill(self.process.pid, signal.SIGINT)

    def close(self) -> None:
        """Release the resources of an ended process."""
        self.process.close()
        self.says.close()


class _Workers:
    def __init__(self, arguments: list[tuple[Any, ...]]) -> None:
        self._arguments = arguments
        self._running: list[_Worker] = []
        self._stillborn = 0
        #: Times for the next attempts, by the numbers of the workers that are dead.
        self._due: dict[int, float] = {}
        self._has_answered = False
        self._is_ending = False
        self._woken, self._wake = _context.Pipe(duplex=False)

    def end(self, *_: object) -> None:
        """Signal handler: let `run` return; a second signal stops the workers by force."""
        if self._is_ending:
            for worker in self._running:  # a second signal: stop without waiting
                worker.hurry()
        self._is_ending = True
        with suppress(OSError):  # the pipe is no longer read
            self._wake.send(None)

    def run(self, on_ready: Callable[[], object]) -> None:
        """Start all workers, and replace dead workers until `end` is called."""
        self._running.extend(map(_Worker, self._arguments))
        while not self._is_ending:
            alive = [worker for number, worker in enumerate(self._running) if number not in self._due]
            silent = [worker.says for worker in alive if not worker.answers and worker.error is None]
            pause = max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None
            connection.wait([self._woken, *silent, *(worker.process.sentinel for worker in alive)], pause)
            for number, worker in enumerate(self._running):
                worker.listen()
                if self._is_ending or worker.process.exitcode is None:
                    continue
                if number not in self._due:
                    self._due[number] = time.monotonic() + self._pause_after(worker)
                if time.monotonic() >= self._due[number]:
                    del self._due[number]
                    worker.close()
                    self._running[number] = _Worker(self._arguments[number])
            if not self._has_answered and all(worker.answers for worker in self._running):
                self._has_answered = True
                on_ready()

    def _pause_after(self, dead: _Worker) -> float:
        """Return the seconds until a dead worker is replaced; raise its error if no worker can start."""
        self._stillborn = 0 if dead.answers else self._stillborn + 1
        if dead.error is not None and not self._has_answered:
            raise dead.error
        others_answer = any(worker.answers and worker.process.exitcode is None for worker in self._running)
        if self._stillborn > MAX_STILLBORN and not others_answer:
            raise dead.error or OSError("The service's processes die before they answer; start it with one worker.")
        _log.warning(
            "Process %d of the service ended (%s); another one takes its place.",
            dead.process.pid,
            dead.error or f"exit code {dead.process.exitcode}",
        )
        if not self._stillborn or not self._has_answered:
            return 0.0
        return float(min(FIRST_PAUSE * 2 ** min(self._stillborn - 1, 9), LONGEST_PAUSE))

    def end_all(self) -> None:
        """Terminate all workers, wait while they answer accepted requests, and kill the rest after `PATIENCE`."""
        for worker in self._running:
            if worker.process.exitcode is None:
                worker.process.terminate()
        end = time.monotonic() + PATIENCE
        for worker in self._running:
            worker.process.join(max(0.0, end - time.monotonic()))
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()
            worker.close()
        self._woken.close()
        self._wake.close()


def _work(
    number: int,
    listener: socket.socket,
    place: StoreLocation,
    options: Options,
    settings: Settings,
    rows: memoryview[Any],
    says: Connection[Any],
) -> None:
    """Answer requests in a worker process, until it or its parent process ends."""
    for each in _OF_TERMINALS.intersection(ending_signals()):
        signal.signal(each, lambda *_: sys.exit())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_TERMINALS)
    threading.Thread(target=_end_with_parent, name="cloudstore-parent", daemon=True).start()
    with logging_as(as_json=options.log_json, access=options.access_log):
        try:
            check_certificate(options)
            if not place.exists():  # an empty one in its place would refuse all API keys
                raise FileNotFoundError(f"There is no store at {place} any more; put it back.")
            storage = place.open()
            storage.look_for_damage()
            service = Service(storage, settings)
        except (CloudStoreError, OSError, ValueError) as error:
            says.send(error)
            return
        run_on(listener, service, options, metrics=Metrics(rows, number), on_ready=lambda _: says.send(None))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
