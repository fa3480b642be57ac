"""Deadline of a request, for all code below it on the same thread: transport, connection, in-process service."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

#: Seconds for a request with all its attempts, waits and slow replies.
DEFAULT_DEADLINE: Final = 60.0


class Deadline:
    """
    Time by which a request must end: `seconds` from now by `clock`; None: no limit.

    Attributes
    ----------
    began
        Time of the beginning.
    restarts_on_read
        True while each read restarts the deadline, as during a download.
    sent
        True if the current attempt may have left this machine; a transport that can't tell does not set it.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float]) -> None:
        self._seconds = math.inf if seconds is None else seconds
        self._clock = clock
        self.began = clock()
        self._until = self.began + self._seconds
        self.restarts_on_read = False
        self.sent = False

    def left(self) -> float:
        """Return the seconds left, 0 or less once the deadline has passed."""
        return self._until - self._clock()

    def within(self, timeout: float) -> float:
        """Return `timeout`, or the seconds left if fewer; `TimeoutError` once the deadline has passed."""
        left = self._until - self._clock()
        if left <= 0:
            raise TimeoutError("The deadline has passed.")
        return min(timeout, left)

    def restart(self) -> None:
        """Restart the deadline after progress of an upload or download."""
        self._until = self._clock() + self._seconds

    def extend(self, seconds: float) -> None:
        """Exclude a wait from the deadline, such as for the rate limit."""
        self._until += seconds


class Group(Protocol):
    """Bulk work in progress, a `bulk.CallGroup`."""

    has_ended: bool
    connections: dict[int, Any]

    def sleep(self, seconds: float) -> object:
        """Sleep, but not beyond the end of the bulk work."""

    def wake(self) -> None:
        """End all present and future sleeps."""


class _Scope(threading.local):
    """Request running on this thread, and the bulk work it belongs to."""

    deadline: Deadline | None = None
    group: Group | None = None


scope: Final = _Scope()
