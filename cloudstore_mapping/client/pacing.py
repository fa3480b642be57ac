"""When the next request may start, where a service wants time between two of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime


class Pacer:
    """
    Hands out the times at which requests may start, in the order in which it is asked.

    Notes
    -----
    May be used by many threads. Nobody waits while holding its lock.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._last = float("-inf")

    def reserve(self, interval: float) -> float:
        """Return the time on the clock at which a request may start: `interval` seconds after the one before it."""
        with self._lock:
            self._last = max(self._clock(), self._last + interval)
            return self._last

    def wait(self, until: float) -> None:
        """Return when the clock shows `until`."""
        delay = until - self._clock()
        if delay > 0:
            self._sleep(delay)


_pacers: dict[str, Pacer] = {}


def pacer_of(server: str) -> Pacer:
    """Return the pacer that all clients of `server` in this process share."""
    return _pacers.setdefault(server, Pacer())


def _now() -> datetime:
    return datetime.now(UTC)


def parse_retry_after(headers: Mapping[str, str], now: Callable[[], datetime] = _now) -> float | None:
    """Return the seconds that ``Retry-After`` asks for, a number or a date; a date is compared with the reply's own."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    moment = _parse_date(text)
    if moment is None:
        return None
    return max(0.0, (moment - (_parse_date(headers.get("Date", "")) or now())).total_seconds())


def _parse_date(text: str) -> datetime | None:
    from email.utils import parsedate_to_datetime  # takes a tenth of this package's import, and is hardly ever needed

    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
