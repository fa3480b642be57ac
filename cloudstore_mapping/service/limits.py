"""How often something may be tried: pure functions of a clock, in bounded memory."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

from cachetools import LRUCache

from cloudstore_mapping.errors import TooOftenError

#: Who is watched at a time: past it, those not seen for the longest are forgotten.
MAX_WATCHED: Final = 10_000


@dataclass(frozen=True)
class Clock:
    """The times that a service goes by, in seconds: `wall` since 1970 for what is stored, `monotonic` for waits."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


class Tries:
    """Counts failed tries of each subject, and refuses the next one after `tries` of them within `window` seconds."""

    def __init__(self, tries: int, window: float, monotonic: Callable[[], float]) -> None:
        self._tries = tries
        self._window = window
        self._now = monotonic
        self._failures: LRUCache[Hashable, deque[float]] = LRUCache(MAX_WATCHED)
        self._lock = threading.Lock()

    def begin(self, subject: Hashable) -> float:
        """
        Count a try as failed until `take_back` is given what this returns; `TooOftenError` where there were too many.

        So as many as come at once can't all be tried before the first has failed.
        """
        now = self._now()
        with self._lock:
            times = self._failures.setdefault(subject, deque())
            while times and times[0] <= now - self._window:
                times.popleft()
            if len(times) >= self._tries:
                wait = times[0] + self._window - now
                raise TooOftenError(
                    f"Too many wrong passwords; try again in {math.ceil(wait)} seconds.", retry_after=wait
                )
            times.append(now)
        return now

    def take_back(self, subject: Hashable, begun: float) -> None:
        """Count this one try no longer; the subject's others stand, so a right password hides no guesses at another."""
        with self._lock:
            times = self._failures.get(subject)
            if times is not None and begun in times:
                times.remove(begun)
