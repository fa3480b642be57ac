"""Quotas: limits of accounts, rate limit, attempts and memory of large replies; usage: daily accesses per file."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeAlias

from cachetools import LRUCache

from cloudstore_mapping.errors import (
    DailyLimitError,
    OutcomeUnknownError,
    TooBigError,
    TooManyFilesError,
    TooOftenError,
    TransportError,
    UnavailableError,
)
from cloudstore_mapping.service.storage.base import PAUSE
from cloudstore_mapping.service.storage.records import AccessCount, AccessDelta

if TYPE_CHECKING:
    from cloudstore_mapping.service.storage.base import Storage
    from cloudstore_mapping.service.storage.records import Account, Counters, Kind
    from cloudstore_mapping.service.storage.sql import Transaction

MINUTE: Final = 60.0
DAY: Final = 86_400

#: Name shown for accounts with individual limits.
OWN_PLAN: Final = "custom"

#: Tolerance of the rate limit for network jitter, in seconds: requests may arrive this much too early. A client that
#: keeps the interval on its side is never refused; the price is a short burst after a pause.
JITTER: Final = 15.0
#: Maximum relative drift between a client's clock and the service's: NTP slews a clock by up to 0.0005.
DRIFT: Final = 0.001
#: Maximum difference between the clocks of two nodes, in seconds. The rate limit ignores stored times further ahead.
MAX_SKEW: Final = 1.0

#: Maximum seconds of a stored time ahead of the clock: the clocks of nodes may differ. A later time was stored while a
#: clock was wrong.
MAX_AHEAD: Final = 300.0

#: Quota of stored idempotency replies of an account with a quota of files or bytes, in bytes. Replies expire after 15
#: minutes, or up to 15 minutes later after a start of the service: room for twice as many as come in 15 minutes.
MAX_REPLIES: Final = 32 * 2**20
#: Deleted media files of an account still to be removed, in bytes; beyond it further uploads are refused for a while.
MAX_LEAVING: Final = 64 * 2**20

#: An account may take 1 / `PART_OF_ONE` of the memory.
PART_OF_ONE: Final = 2

#: Maximum number of subjects (such as client addresses) tracked at a time; the least recently used are evicted.
MAX_WATCHED: Final = 10_000


@dataclass(frozen=True)
class Clock:
    """Source of time, in seconds: `wall` since 1970 for stored times, `monotonic` for waits; tests replace it."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


class SteadyClock:
    """
    Wall clock that is late by the steps forward of the last `window` seconds. Thread-safe.

    It knows the steps between two readings only.
    """

    def __init__(self, clock: Clock, window: float) -> None:
        self._clock = clock
        self._window = window
        #: Starts of the last minutes with a reading, each with the wall clock's least lead over the monotonic clock.
        #: Replaced as a whole instead of locked: an interrupt may leave a caller's lock behind. Of two readings at the
        #: same moment one may be lost.
        self._minutes: tuple[tuple[float, float], ...] = ()

    def read(self) -> float:
        """Return the wall time without the steps forward of the last `window` seconds."""
        monotonic = self._clock.monotonic()
        lead = self._clock.wall() - monotonic
        minutes = self._minutes
        if minutes and monotonic < minutes[-1][0] + MINUTE:
            start, least = minutes[-1]
            minutes = (*minutes[:-1], (start, min(least, lead)))
        else:
            # Keep the last reading before the window: the process may have stood still since.
            oldest = monotonic - self._window - MINUTE
            first = max((number for number, (start, _) in enumerate(minutes) if start <= oldest), default=0)
            minutes = (*minutes[first:], (monotonic, lead))
        self._minutes = minutes
        return monotonic + min(least for _, least in minutes)


def day_of(wall: float) -> int:
    """Return the number of days since 1970 (UTC) for a time in seconds since 1970."""
    return int(wall // DAY)


def latest_day(wall: float) -> int:
    """Return the latest day that another node's right clock may show; accesses of a later one don't count."""
    return day_of(wall + MAX_AHEAD)


def check_daily(times: int, limit: int, day: int, name: str) -> None:
    """Raise `DailyLimitError` if the accesses of a file on this day have reached the daily limit."""
    if times >= limit:
        end = datetime.fromtimestamp((day + 1) * DAY, UTC)
        raise DailyLimitError(
            f"The file was used {times:,} times today, and its account allows {limit:,} (daily-accesses); it can be"
            f" used again from {end:%Y-%m-%d %H:%M} UTC on.",
            key=name,
        )


def check_file_quota(transaction: Transaction, account: Account, name: str, *, is_upload: bool = False) -> None:
    """Raise `TooManyFilesError` if the quota of files is used up; for an upload, unfinished uploads count as well."""
    limit = account.limits.max_files
    if limit is None:
        return
    counted = transaction.counters(account.id)
    if counted is None:  # no counters: another version of the program set the limit
        files = transaction.count_files(account.id, limit)
    else:
        files = counted.files + (counted.uploads if is_upload else 0)
    if files >= limit:
        unfinished = " with its unfinished uploads" if is_upload else ""
        origin = "set for it" if account.plan == OWN_PLAN else f"of its plan {account.plan!r}"
        kept = files if counted is None else counted.files
        surplus = kept - limit + 1
        if surplus > 0:
            remedy = f"delete {'one' if surplus == 1 else f'{surplus:,}'} first"
        else:
            remedy = "wait until an upload ends; one that a crash cut off counts for an hour"
        raise TooManyFilesError(
            f"The account holds {files:,} file{'' if files == 1 else 's'}{unfinished} and may hold {limit:,} (files,"
            f" {origin}); {remedy}.",
            key=name,
        )


def check_bytes(transaction: Transaction, account: Account, name: str, growth: int, spare: int = 0) -> None:
    """
    Raise `TooBigError` if `growth` more bytes would exceed the account's quota of bytes.

    `spare` is the number of bytes freed in exchange a moment later.
    """
    limit = account.limits.max_total_bytes
    if limit is None or growth <= 0:
        return
    counted = transaction.counters(account.id)
    if counted is not None and counted.bytes + growth > limit + spare:
        raise full_error(counted, limit, name, counted.bytes + growth - limit - spare)


def full_error(counted: Counters, limit: int, name: str, surplus: int) -> TooBigError:
    """Return the error of a request that would exceed its account's quota of bytes, `limit`, by `surplus` bytes."""
    if surplus > counted.bytes:
        remedy = "an empty account has no room for it either, so send a smaller value"
    elif surplus <= counted.bytes - counted.replies:
        remedy = f"delete {surplus:,} bytes"
    elif surplus <= counted.replies:
        remedy = "wait until the replies expire"
    else:
        remedy = f"delete {surplus - counted.replies:,} bytes and wait until the replies expire"
    return TooBigError(
        f"The account holds {counted.bytes:,} bytes and may hold {limit:,} (total-bytes), with unfinished uploads and"
        f" {counted.replies:,} bytes of replies stored for 15 minutes; {remedy}, or ask for a higher limit.",
        key=name,
    )


def check_replies(transaction: Transaction, account: Account) -> Counters | None:
    """
    Check the quotas before an idempotency reply is stored; return the counters of an account at its quota of bytes.

    Such an account may only store replies to deletes, and to requests that free more bytes. Raises `TooOftenError` if
    the stored replies have reached `MAX_REPLIES`.
    """
    if not account.is_counted:
        return None
    counted = transaction.counters(account.id)
    if counted is None:
        return None
    if counted.replies >= MAX_REPLIES:
        raise TooOftenError(
            f"The stored replies to the account's requests with ids take {counted.replies:,} bytes, and may take"
            f" {MAX_REPLIES:,}; try again in a minute.",
            retry_after=60.0,
        )
    limit = account.limits.max_total_bytes
    return counted if limit is not None and counted.bytes >= limit else None


def check_freed(transaction: Transaction, account: Account, before: Counters, size: int) -> None:
    """Raise `TooBigError` if a full account freed fewer bytes since `before` than its reply of `size` bytes takes."""
    after, limit = transaction.counters(account.id), account.limits.max_total_bytes
    if after is not None and limit is not None and after.bytes + size > before.bytes:
        raise full_error(before, limit, "", after.bytes + size - limit)


def check_uploads(transaction: Transaction, account: Account, name: str) -> None:
    """Raise `TooOftenError` while too many unfinished uploads or deleted media files of the account await removal."""
    counted = transaction.counters(account.id) if account.is_counted else None
    if counted is None:
        return
    most = account.limits.max_files
    if most is not None and counted.uploads > most:
        sentence = (
            f"The account has {counted.uploads:,} unfinished uploads and may hold {most:,} files (files); try again in"
            " a moment."
        )
        raise TooOftenError(sentence, retry_after=1.0, key=name)
    if counted.leaving > MAX_LEAVING:
        sentence = (
            f"{counted.leaving:,} bytes of the account's deleted media are yet to be removed; upload again in a moment."
        )
        raise TooOftenError(sentence, retry_after=1.0, key=name)


def take_slot(transaction: Transaction, account: Account, now: float) -> None:
    """
    Take a slot of the account's rate limit, a token bucket (GCRA); raise `TooOftenError` if none is free.

    The bucket is a stored time per account, shared by all processes and nodes.
    """
    interval = account.limits.min_interval or 0.0
    check_rate_limit(transaction, account, now)
    due = max(now, _due(transaction, account, now))
    transaction.set_next_request_at(account.id, due + interval * (1 - DRIFT))


def check_rate_limit(transaction: Transaction, account: Account, now: float) -> None:
    """Raise `TooOftenError` if the rate limit refuses the account's next request now; take no slot."""
    interval = account.limits.min_interval
    if not interval:
        return
    wait = _due(transaction, account, now) - JITTER - now
    if wait > 0:
        raise TooOftenError(
            f"The account takes a request every {interval:g} seconds (interval); send the next one in"
            f" {math.ceil(wait * 10) / 10:.1f} seconds.",
            retry_after=wait,
        )


def _due(transaction: Transaction, account: Account, now: float) -> float:
    """Return the time of the next free slot, with all requests exactly one interval apart."""
    due = transaction.next_request_at(account.id) or 0.0
    # Requests can't move the time further ahead than this: the clock was set back since.
    return now if due > now + JITTER + (account.limits.min_interval or 0.0) + MAX_SKEW else due


class ReplyMemory:
    """Counts the bytes of large replies, from before reading until after sending; limit `most` bytes. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._by_account: Counter[int] = Counter()
        self.taken = 0

    def room(self) -> ReplyRoom:
        """Return a new, empty `ReplyRoom` for a reply."""
        return ReplyRoom(self)

    def grow(self, room: ReplyRoom, account_id: int, size: int, *, forced: bool) -> None:
        """Grow a room to `size` bytes in all; see `ReplyRoom.grow_to`."""
        with self._lock:
            more = size - room.size
            if more <= 0:
                return
            of_one = self._by_account[account_id] + more
            is_full = self.taken + more > self._most or of_one > self._most // PART_OF_ONE
            if room.is_released or (is_full and not forced):
                sentence = (
                    "Too many large replies are under way (the service's max_reply_bytes, half of it for an account);"
                    " read those that were asked for, then try again."
                )
                raise UnavailableError(sentence, retry_after=1.0)
            room.account_id, room.size = account_id, size
            self.taken += more
            self._by_account[account_id] = of_one

    def release(self, room: ReplyRoom) -> None:
        """Free the bytes of a room; from now on it refuses to grow."""
        with self._lock:
            room.is_released = True
            self.taken -= room.size
            self._by_account[room.account_id] -= room.size
            room.size = 0
            if not self._by_account[room.account_id]:
                del self._by_account[room.account_id]


class ReplyRoom:
    """Memory of a reply; the sender must release it, even if sending fails."""

    __slots__ = ("_memory", "account_id", "is_released", "size")

    def __init__(self, memory: ReplyMemory) -> None:
        self._memory = memory
        self.account_id = 0
        self.size = 0
        self.is_released = False

    def grow_to(self, account_id: int, size: int, *, forced: bool = False) -> None:
        """
        Take memory up to a total of `size` bytes.

        Raises `UnavailableError` if the limit is reached, unless `forced`; and, even if `forced`, after `release`.
        """
        self._memory.grow(self, account_id, size, forced=forced)

    def release(self) -> None:
        """Free the memory; a read still running for this reply gets no more."""
        if self.size or not self.is_released:
            self._memory.release(self)


class AttemptLimiter:
    """Attempt limiter: throttles a subject after `tries` failed attempts within `window` seconds. Thread-safe."""

    def __init__(self, tries: int, window: float, monotonic: Callable[[], float], of_what: str = "passwords") -> None:
        self._tries = tries
        self._of_what = of_what
        self._window = window
        self._now = monotonic
        self._failures: LRUCache[Hashable, deque[float]] = LRUCache(MAX_WATCHED)
        self._lock = threading.Lock()

    def begin(self, subject: Hashable) -> float:
        """
        Count an attempt as failed, and return its time; `take_back` removes it again after a success.

        Attempts count from their start, so that parallel guesses can't evade the limit. Raises `TooOftenError` if the
        subject had too many failed attempts.
        """
        now = self._now()
        with self._lock:
            times = self._failures.setdefault(subject, deque())
            self._check(times, now)
            times.append(now)
        return now

    def check(self, subject: Hashable) -> None:
        """Raise `TooOftenError` if the subject had too many failed attempts; count nothing."""
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
        """Remove this attempt only; others of the subject stay, so a right password hides no guesses at another."""
        with self._lock:
            times = self._failures.get(subject)
            if times is not None and begun in times:
                times.remove(begun)


_log: Final = logging.getLogger(__name__)

#: Seconds between two flushes of accesses to files with a daily limit. Other processes see them after the flush.
INTERVAL: Final = 1.0
#: Seconds between two flushes of all accesses. A crash loses up to as much.
LONG_INTERVAL: Final = 30.0
#: Numbers of files with unstored accesses: the first triggers an early flush; at the second, counting of further files
#: stops, for writes to the store must be failing.
MAX_WAITING: Final = 100_000
MAX_COUNTED: Final = 500_000
#: Files per flush transaction: a few milliseconds of work. Other writes run between two of them.
PIECE: Final = 250
#: Maximum seconds of the final flush when a service closes; accesses not stored by then are lost.
CLOSING: Final = 1.0

_File: TypeAlias = "tuple[int, Kind, str]"
_FileAndDay: TypeAlias = "tuple[int, Kind, str, int]"


@dataclass
class _Count:
    """Number of accesses to a file on a day, and the time of the last."""

    day: int
    times: int
    last_at: float

    def add(self, times: int, at: float) -> None:
        """Add accesses, the last of them at the time `at`."""
        self.times += times
        if at > self.last_at:
            self.last_at = at


class AccessCounter:
    """
    Counts file accesses in memory and flushes them to the storage; several processes may share a storage.

    For an account with a daily limit, the stored count of a file is read again about once a second. So the limit is
    exact with one process; with several it misses the other processes' accesses of the last two seconds. Thread-safe.
    """

    def __init__(self, storage: Storage, clock: Clock, *, enabled: bool = True) -> None:
        self._storage = storage
        self._now = clock.wall
        self._monotonic = clock.monotonic
        self._enabled = enabled
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        #: Unstored accesses: to files with a daily limit, to other files, and those in the current flush.
        self._soon: dict[_FileAndDay, _Count] = {}
        self._later: dict[_FileAndDay, _Count] = {}
        self._storing: dict[_FileAndDay, _Count] = {}
        self._lost = 0
        #: Total accesses to files with a daily limit, stored and unstored.
        self._totals: dict[_File, _Count] = {}
        #: Monotonic times at which the stored parts of these totals were read.
        self._read_at: dict[_File, float] = {}
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def admit(self, transaction: Transaction, account: Account, kind: Kind, name: str, uncounted: int = 0) -> None:
        """Raise `DailyLimitError` if today's accesses to the file, `uncounted` ones included, reach the daily limit."""
        limit = account.limits.max_daily_accesses
        if limit is None or not self._enabled:
            return
        now = self._now()
        today, latest = day_of(now), latest_day(now)
        file: _File = (account.id, kind, name)
        with self._lock:
            total = self._totals.get(file)
            if total is not None and (total.day > latest or self._is_outdated((*file, total.day))):
                del self._totals[file]
                total = None
        if total is None or total.day < today:
            stored = transaction.accesses(*file)
            found = _Count(*stored) if stored is not None and today <= stored.day <= latest else _Count(today, 0, 0.0)
            with self._lock:
                if (known := self._totals.get(file)) is None or known.day < found.day:
                    if (unstored := self._soon.get((*file, found.day))) is not None:  # from before the clock was wrong
                        found.times += unstored.times
                    # Accesses from before the account got its limit are now stored soon as well.
                    if (earlier := self._later.pop((*file, found.day), None)) is not None:
                        found.times += earlier.times
                        _add(self._soon, (*file, found.day), earlier)
                    self._totals[file] = found
                    self._read_at[file] = self._monotonic()
                total = self._totals[file]
        check_daily(total.times + uncounted, limit, total.day, name)

    def _is_outdated(self, key: _FileAndDay) -> bool:
        """Return True if a total is to be read again; a flush does so if any accesses are unstored. Needs the lock."""
        if key in self._soon or key in self._storing:
            return False
        return self._monotonic() >= self._read_at[key[:3]] + INTERVAL

    def count(self, account_id: int, kind: Kind, *names: str, times: int = 1) -> None:
        """Count `times` accesses to each of these files now; a negative number undoes accesses of a failed request."""
        if not self._enabled or not names:
            return
        now = self._now()
        today, latest = day_of(now), latest_day(now)
        with self._lock:
            totals = self._totals
            for name in names:
                day = today
                waiting = self._later
                total = totals.get((account_id, kind, name)) if totals else None
                if total is not None:
                    waiting = self._soon
                    day = total.day if today <= total.day <= latest else today
                    if total.day == day:
                        total.times += times
                key = (account_id, kind, name, day)
                if (count := waiting.get(key)) is not None:
                    count.add(times, now)
                elif len(waiting) < MAX_COUNTED:
                    waiting[key] = _Count(day, times, now)
                else:
                    self._lost += 1
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="cloudstore-usage", daemon=True)
                self._thread.start()
        if not self._wake.is_set():  # `set` costs more than `is_set`
            self._wake.set()

    def used(self, transaction: Transaction, account_id: int, kind: Kind, name: str) -> AccessCount | None:
        """
        Return the accesses to a file on the last day with any, stored and unstored; None if there were none.

        Those of days to come, counted while the clock was wrong, are left out.
        """
        file: _File = (account_id, kind, name)
        latest = latest_day(self._now())
        stored = transaction.accesses(*file)
        if stored is not None and stored.day > latest:
            stored = None
        with self._lock:
            counts = [
                count
                for waiting in (self._storing, self._soon, self._later)
                for key, count in waiting.items()
                if key[:3] == file and count.day <= latest
            ]
        for count in sorted(counts, key=lambda count: count.day):
            if stored is None or count.day > stored.day:
                stored = AccessCount(count.day, count.times, count.last_at)
            else:
                stored = AccessCount(stored.day, stored.times + count.times, max(stored.last_at, count.last_at))
        return stored

    def flush(self, *, everything: bool = True, until: float = math.inf) -> None:
        """
        Store all accesses counted so far, or without `everything` only those to files with a daily limit.

        On `UnavailableError` the counts are kept for the next flush. If a commit's outcome is unknown they are dropped,
        for an access counted twice could use up a limit. After the monotonic time `until` the rest is dropped.
        """
        with self._flushing:
            with self._lock:
                if everything:
                    self._wake.clear()
                    self._storing, self._later = self._later, {}
                # Forget the totals of unused files: other processes may count accesses to them meanwhile. The next
                # access reads them again.
                used = {key[:3] for key in self._soon}
                self._totals = {file: total for file, total in self._totals.items() if file in used}
                self._read_at = {file: at for file, at in self._read_at.items() if file in used}
                soon, self._soon = self._soon, {}
                for key, count in soon.items():
                    _add(self._storing, key, count)
                keys = sorted(self._storing)  # the same order in all processes prevents deadlocks
                lost, self._lost = self._lost, 0
            if lost:
                _log.warning("%d accesses were not counted, for too many wait to be stored.", lost)
            try:
                for start in range(0, len(keys), PIECE):
                    if start and until == math.inf:
                        self._closed.wait(PAUSE)
                    if self._monotonic() > until:
                        _log.warning("The counts of %d files were lost at the end.", len(keys) - start)
                        break
                    self._store(keys[start : start + PIECE])
            finally:
                with self._lock:
                    for key, count in self._storing.items():
                        if until == math.inf:
                            _add(self._soon if key[:3] in self._totals else self._later, key, count)
                    self._storing = {}

    def _store(self, keys: list[_FileAndDay]) -> None:
        latest = latest_day(self._now())
        rows = [AccessDelta(*key[:3], *vars(self._storing[key]).values()) for key in keys if key[3] <= latest]
        limited = [file for file in {key[:3]: None for key in keys} if file in self._totals]

        def work(transaction: Transaction) -> dict[_File, AccessCount | None]:
            transaction.add_accesses(rows, latest)
            return {file: transaction.accesses(*file) for file in limited}

        try:
            totals = self._storage.submit(work).result()
        except OutcomeUnknownError:
            self._stored(keys)
            raise
        with self._lock:
            self._stored(keys)
            for file, total in totals.items():
                if total is not None:
                    since = self._soon.get((*file, total.day))
                    self._totals[file] = _Count(*total)
                    self._read_at[file] = self._monotonic()
                    self._totals[file].times += 0 if since is None else since.times

    def _stored(self, keys: list[_FileAndDay]) -> None:
        for key in keys:
            del self._storing[key]

    def _run(self) -> None:
        told = ""
        waited = 0.0
        while True:
            self._wake.wait()
            if self._closed.wait(INTERVAL):
                return
            waited += INTERVAL
            everything = waited >= LONG_INTERVAL or len(self._later) >= MAX_WAITING
            if not (everything or self._soon):
                continue
            waited = 0.0 if everything else waited
            try:
                self.flush(everything=everything)
                told = ""
            except TransportError as error:
                self._wake.set()  # retry in a second
                waited = LONG_INTERVAL if everything else waited
                cause = str(error).partition(";")[0]  # the remedy may change with the disk's use
                if cause != told:
                    told = cause
                    _log.warning("How often files were used could not be stored: %s", error)

    def close(self) -> None:
        """Stop counting, and flush the remaining accesses for at most `CLOSING` seconds."""
        self._closed.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.flush(until=self._monotonic() + CLOSING)
        except TransportError as error:
            _log.warning("How often files were used could not be stored: %s", error)
            # The counts are dropped now, so a second `close` logs nothing.


def _add(counts: dict[_FileAndDay, _Count], key: _FileAndDay, more: _Count) -> None:
    count = counts.get(key)
    if count is None:
        counts[key] = more
    else:
        count.add(more.times, more.last_at)
