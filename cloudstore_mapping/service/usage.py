"""How often files are used: counted in memory, written down once a second, and held against an account's limit."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from cloudstore_mapping.errors import OutcomeUnknownError, TransportError
from cloudstore_mapping.service.limits import check_daily, day_of
from cloudstore_mapping.service.storage.records import Accesses, Used

if TYPE_CHECKING:
    from cloudstore_mapping.service.limits import Clock
    from cloudstore_mapping.service.storage.base import Storage, Transaction
    from cloudstore_mapping.service.storage.records import Account, Kind

_log: Final = logging.getLogger(__name__)

#: Seconds between the first access and the write that stores it, with all that came meanwhile.
INTERVAL: Final = 1.0

_File: TypeAlias = "tuple[int, Kind, str]"
_FileAndDay: TypeAlias = "tuple[int, Kind, str, int]"


@dataclass
class _Count:
    """How often a file was used on a day."""

    day: int
    times: int
    last_at: float

    def add(self, times: int, at: float) -> None:
        """Count more of them."""
        self.times += times
        if at > self.last_at:
            self.last_at = at


class Usage:
    """
    Counts accesses, in any number of processes on one storage: what each has counted is added to what is stored.

    A file of an account with a daily limit is looked up when it is first used in a second, so that the limit holds
    exactly for one process, and for several but for what the others counted in that second. Threads may share it.
    """

    def __init__(self, storage: Storage, clock: Clock, *, enabled: bool = True) -> None:
        self._storage = storage
        self._now = clock.wall
        self._enabled = enabled
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._waiting: dict[_FileAndDay, _Count] = {}
        #: Of files with a limit: what is stored and what isn't yet, together.
        self._totals: dict[_File, _Count] = {}
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def admit(self, transaction: Transaction, account: Account, kind: Kind, name: str, uncounted: int = 0) -> None:
        """Raise `DailyLimitError` where the file was used as often today as it may be, `uncounted` times included."""
        limit = account.limits.max_daily_accesses
        if limit is None or not self._enabled:
            return
        today = day_of(self._now())
        file: _File = (account.id, kind, name)
        with self._lock:
            total = self._totals.get(file)
        if total is None or total.day < today:
            stored = transaction.accesses(*file)
            found = _Count(today, 0, 0.0) if stored is None or stored.day < today else _Count(*stored)
            with self._lock:
                if (now := self._totals.get(file)) is None or now.day < found.day:
                    self._totals[file] = found
                total = self._totals[file]
        check_daily(total.times + uncounted, limit, total.day, name)

    def count(self, account_id: int, kind: Kind, *names: str, times: int = 1) -> None:
        """Count accesses of now to each of these files; a negative number takes back such as came to nothing."""
        if not self._enabled or not names:
            return
        now = self._now()
        today = day_of(now)
        with self._lock:
            waiting, totals = self._waiting, self._totals
            for name in names:
                day = today
                total = totals.get((account_id, kind, name)) if totals else None
                if total is not None:
                    day = max(total.day, today)
                    if total.day == day:
                        total.times += times
                key = (account_id, kind, name, day)
                if (count := waiting.get(key)) is None:
                    waiting[key] = _Count(day, times, now)
                else:
                    count.add(times, now)
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="cloudstore-usage", daemon=True)
                self._thread.start()
        if not self._wake.is_set():  # waking costs more than looking
            self._wake.set()

    def used(self, transaction: Transaction, account_id: int, kind: Kind, name: str) -> Accesses | None:
        """Return how often a file was used on the last day that it was, with what isn't stored yet."""
        file: _File = (account_id, kind, name)
        stored = transaction.accesses(*file)
        with self._lock:
            counts = [count for key, count in self._waiting.items() if key[:3] == file]
        for count in sorted(counts, key=lambda count: count.day):
            if stored is None or count.day > stored.day:
                stored = Accesses(count.day, count.times, count.last_at)
            else:
                stored = Accesses(stored.day, stored.times + count.times, max(stored.last_at, count.last_at))
        return stored

    def flush(self) -> None:
        """
        Store what was counted so far; `UnavailableError` where that fails, and it is kept for the next time.

        Where the outcome is unknown it is not counted again: a limit must not be reached by what was used once.
        """
        with self._flushing:
            with self._lock:
                self._wake.clear()
                counts, self._waiting = self._waiting, {}
                # Who is not used any more may be counted by other processes meanwhile: it is looked up again.
                used = {key[:3] for key in counts}
                self._totals = {file: total for file, total in self._totals.items() if file in used}
                limited = list(self._totals)
            if not counts:
                return
            rows = [Used(*key[:3], *vars(count).values()) for key, count in counts.items()]

            def work(transaction: Transaction) -> dict[_File, Accesses | None]:
                transaction.add_accesses(rows)
                return {file: transaction.accesses(*file) for file in limited}

            try:
                totals = self._storage.submit(work).result()
            except OutcomeUnknownError:
                raise
            except BaseException:
                with self._lock:
                    for key, count in counts.items():
                        _add(self._waiting, key, count)
                raise
            with self._lock:
                for file, total in totals.items():
                    if total is not None:
                        since = self._waiting.get((*file, total.day))
                        self._totals[file] = _Count(*total)
                        self._totals[file].times += 0 if since is None else since.times

    def _run(self) -> None:
        told = ""
        while True:
            self._wake.wait()
            if self._closed.wait(INTERVAL):
                return
            try:
                self.flush()
                told = ""
            except TransportError as error:
                self._wake.set()  # tried again in a second
                if str(error) != told:
                    told = str(error)
                    _log.warning("How often files were used could not be stored: %s", error)

    def close(self) -> None:
        """Store what was counted, and count no more."""
        self._closed.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.flush()
        except TransportError as error:
            _log.warning("How often files were used could not be stored: %s", error)
            with self._lock:
                self._waiting = {}  # a service may be closed twice, and says it once


def _add(counts: dict[_FileAndDay, _Count], key: _FileAndDay, more: _Count) -> None:
    count = counts.get(key)
    if count is None:
        counts[key] = more
    else:
        count.add(more.times, more.last_at)
