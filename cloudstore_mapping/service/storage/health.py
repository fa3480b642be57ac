"""Health probe: a write that changes nothing, so that a service is healthy only while a save would be done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.futures import wait_for

#: Seconds that a health check waits for the storage.
PATIENCE: Final = 1.0
#: Seconds after which a probe that still waits is a problem: a save that begins now would wait as well.
OVERDUE: Final = 5.0
_OVERDUE: Final = "Saves wait for longer than {:g} seconds; look which process holds the store."


class HealthProbe:
    """
    Probes with a write that `submit` begins; threads may share it.

    One probe runs at a time, however many threads ask. A writer that is busy for longer than they wait isn't ill: the
    outcome of the probe before stands until this one is `OVERDUE`.
    """

    def __init__(self, submit: Callable[[], Future[None]], clock: Callable[[], float] = time.monotonic) -> None:
        self._submit = submit
        self._clock = clock
        self._since = 0.0
        self._lock = threading.Lock()
        self._running: Future[None] | None = None
        self._problem: str | None = None

    def problem(self, patience: float) -> str | None:
        """Return the sentence that refuses a save, None where it would be done."""
        try:
            with self._lock:
                if self._running is None:
                    self._running, self._since = self._submit(), self._clock()
                running, since = self._running, self._since
        except UnavailableError as error:
            return str(error)
        wait_for(running, patience)
        with self._lock:
            if not running.done():
                is_overdue = self._clock() - since >= OVERDUE
                return _OVERDUE.format(OVERDUE) if is_overdue and self._problem is None else self._problem
            raised = running.exception()
            problem = None if raised is None else str(raised)
            if self._running is running:
                self._running, self._problem = None, problem
            return problem
