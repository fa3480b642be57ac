"""Rate limit and quotas of an account, and throttling of failed tries: functions of a clock, in bounded memory."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache

from cloudstore_mapping.errors import DailyLimitError, TooManyFilesError, TooOftenError

if TYPE_CHECKING:
    from cloudstore_mapping.service.storage.base import Transaction
    from cloudstore_mapping.service.storage.records import Account

DAY: Final = 86_400

#: Seconds by which the network may delay one request more than another. A client that keeps its account's interval at
#: its own end is never refused: its requests may come this much too early, so a few may come at once after a pause.
JITTER: Final = 15.0
#: The part by which a client's clock may be faster than the service's: NTP slews a clock by up to 0.0005.
DRIFT: Final = 0.001
#: Seconds by which the clocks of two nodes may differ before one takes the other's time for one of the future.
MAX_SKEW: Final = 1.0

#: Who is watched at a time: past it, those not seen for the longest are forgotten.
MAX_WATCHED: Final = 10_000


@dataclass(frozen=True)
class Clock:
    """The times that a service goes by, in seconds: `wall` since 1970 for what is stored, `monotonic` for waits."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


def day_of(wall: float) -> int:
    """Return the day, counted since 1970 in UTC, that a time in seconds since then falls on."""
    return int(wall // DAY)


def check_daily(times: int, limit: int, day: int, name: str) -> None:
    """Raise `DailyLimitError` where a file was used as often on this day as it may be."""
    if times >= limit:
        end = datetime.fromtimestamp((day + 1) * DAY, UTC)
        raise DailyLimitError(
            f"The file was used {times:,} times today, and its account allows {limit:,}; it can be used again from"
            f" {end:%Y-%m-%d %H:%M} UTC on.",
            key=name,
        )


def check_room(transaction: Transaction, account: Account, name: str) -> None:
    """Raise `TooManyFilesError` where the account holds as many files as it may, so that there is no room for this."""
    limit = account.limits.max_files
    if limit is not None and transaction.count_files(account.id, limit) >= limit:
        raise TooManyFilesError(
            f"The account holds {limit:,} files, as many as its plan {account.plan!r} allows; delete one first.",
            key=name,
        )


def take_turn(transaction: Transaction, account: Account, now: float) -> None:
    """
    Take the account's turn: the rate limit, a token bucket (GCRA); `TooOftenError` where it is used up.

    The bucket is one stored time per account, so it is the same for all processes and nodes.
    """
    interval = account.limits.min_interval or 0.0
    check_turn(transaction, account, now)
    due = max(now, _due(transaction, account, now))
    transaction.set_next_request_at(account.id, due + interval * (1 - DRIFT))


def check_turn(transaction: Transaction, account: Account, now: float) -> None:
    """Raise `TooOftenError` where the account's next request may not come yet."""
    interval = account.limits.min_interval
    if not interval:
        return
    wait = _due(transaction, account, now) - JITTER - now
    if wait > 0:
        raise TooOftenError(
            f"The account takes a request every {interval:g} seconds; send the next one in"
            f" {math.ceil(wait * 10) / 10:.1f} seconds.",
            retry_after=wait,
        )


def _due(transaction: Transaction, account: Account, now: float) -> float:
    """Return the time at which the next request would come if all had kept the interval."""
    due = transaction.next_request_at(account.id) or 0.0
    # Further ahead than requests can bring it: it is from before the clock was set back.
    return now if due > now + JITTER + (account.limits.min_interval or 0.0) + MAX_SKEW else due


class Tries:
    """Counts failed tries of each subject, and refuses the next one after `tries` of them within `window` seconds."""

    def __init__(self, tries: int, window: float, monotonic: Callable[[], float], of_what: str = "passwords") -> None:
        self._tries = tries
        self._of_what = of_what
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
            self._check(times, now)
            times.append(now)
        return now

    def check(self, subject: Hashable) -> None:
        """Raise `TooOftenError` where there were too many, and count nothing."""
        with self._lock:
            times = self._failures.get(subject)
            if times is not None:
                self._check(times, self._now())

    def _check(self, times: deque[float], now: float) -> None:
        while times and times[0] <= now - self._window:
            times.popleft()
        if len(times) >= self._tries:
            wait = times[0] + self._window - now
            raise TooOftenError(
                f"Too many wrong {self._of_what}; try again in {math.ceil(wait)} seconds.", retry_after=wait
            )

    def take_back(self, subject: Hashable, begun: float) -> None:
        """Count this one try no longer; the subject's others stand, so a right password hides no guesses at another."""
        with self._lock:
            times = self._failures.get(subject)
            if times is not None and begun in times:
                times.remove(begun)
