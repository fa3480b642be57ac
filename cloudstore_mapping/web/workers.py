"""Several processes on one socket: each answers requests, one that dies is replaced, and all end together."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any, Final

from cloudstore_mapping.errors import CloudStoreError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.places import Place
from cloudstore_mapping.web.listening import address_of
from cloudstore_mapping.web.logs import logging_as
from cloudstore_mapping.web.metrics import ROW, Metrics
from cloudstore_mapping.web.options import Options
from cloudstore_mapping.web.serve import LAST_RESORT, run_on

_log: Final = logging.getLogger(__name__)

#: Seconds after which a process that was told to end is killed.
PATIENCE: Final = LAST_RESORT + 1.5
#: Processes that may die one after another before they answer; more would not help.
MAX_STILLBORN: Final = 5

# A forked process would copy threads' locks and SQLite's state; a spawned one starts from nothing.
_context: Final = get_context("spawn")
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def run_workers(
    listener: socket.socket,
    place: Place,
    options: Options,
    settings: Settings,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """
    Serve the store at `place` by ``options.workers`` processes until SIGTERM or SIGINT; only on the main thread.

    `on_ready` is called with the service's address once all of them answer. What keeps a process from starting is
    raised, when the others have ended.
    """
    rows = _context.RawArray("d", ROW * options.workers)
    workers = _Workers([(number, listener, place, options, settings, rows) for number in range(options.workers)])
    handlers = {number: signal.signal(number, workers.end) for number in _SIGNALS}
    try:
        workers.run(lambda: on_ready and on_ready(address_of(listener, options)))
    finally:
        listener.close()  # or it would go on to accept what nobody answers
        workers.end_all()
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _Worker:
    """A process, and what it `says`: None once it answers, or the error that keeps it from that."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.says, theirs = _context.Pipe(duplex=False)
        self.process = _context.Process(target=_work, args=(*arguments, theirs), name="cloudstore-worker")
        self.process.start()
        theirs.close()
        self.answers = False
        self.error: Exception | None = None

    def listen(self) -> None:
        """Take in what it said."""
        if self.answers or self.error is not None or not self.says.poll():
            return
        with suppress(EOFError):  # it died before it said anything
            self.error = self.says.recv()
            self.answers = self.error is None

    def close(self) -> None:
        """Let go of a process that has ended."""
        self.process.close()
        self.says.close()


class _Workers:
    def __init__(self, arguments: list[tuple[Any, ...]]) -> None:
        self._arguments = arguments
        self._running: list[_Worker] = []
        self._stillborn = 0
        self._has_answered = False
        self._is_ending = False
        self._woken, self._wake = _context.Pipe(duplex=False)

    def end(self, *_: object) -> None:
        """Let `run` return: a signal's handler."""
        self._is_ending = True
        self._wake.send(None)

    def run(self, on_ready: Callable[[], object]) -> None:
        """Start all, and replace those that die."""
        self._running.extend(map(_Worker, self._arguments))
        while not self._is_ending:
            silent = [worker.says for worker in self._running if not worker.answers and worker.error is None]
            connection.wait([self._woken, *silent, *(worker.process.sentinel for worker in self._running)])
            for number, worker in enumerate(self._running):
                worker.listen()
                if worker.process.exitcode is not None and not self._is_ending:
                    self._running[number] = self._replacement(number, worker)
            if not self._has_answered and all(worker.answers for worker in self._running):
                self._has_answered = True
                on_ready()

    def _replacement(self, number: int, dead: _Worker) -> _Worker:
        self._stillborn = 0 if dead.answers else self._stillborn + 1
        if dead.error is not None and not self._has_answered:
            raise dead.error
        if self._stillborn > MAX_STILLBORN:
            raise dead.error or OSError("The service's processes die before they answer; start it with one worker.")
        _log.warning(
            "Process %d of the service ended (%s); another one takes its place.",
            dead.process.pid,
            dead.error or f"exit code {dead.process.exitcode}",
        )
        dead.close()
        return _Worker(self._arguments[number])

    def end_all(self) -> None:
        """Tell all to end, wait until they have answered what they accepted, and kill those that don't end."""
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
    place: Place,
    options: Options,
    settings: Settings,
    rows: Any,
    says: Connection[Any],
) -> None:
    """Answer requests in a process of one's own, until it or the one that started it is ended."""
    threading.Thread(target=_end_with_parent, name="cloudstore-parent", daemon=True).start()
    with logging_as(as_json=options.log_json, access=options.access_log):
        try:
            service = Service(place.open(), settings)
        except (CloudStoreError, OSError) as error:
            says.send(error)
            return
        metrics = Metrics(memoryview(rows).cast("B").cast("d"), number)
        run_on(listener, service, options, metrics=metrics, on_ready=lambda _: says.send(None))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
