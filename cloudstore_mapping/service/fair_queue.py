"""Fair queue: a queue per account, served in turn by the time each account has used."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Hashable
from heapq import heappop, heappush, heapreplace, nlargest
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: Maximum seconds charged per item: after the machine was suspended, no account has to wait for ever.
MAX_CHARGE: Final = 2.0
#: Number of idle accounts with a recorded time before outdated times are dropped.
MAX_KEPT: Final = 1024


class FairQueue(Generic[T]):
    """
    Queues per account, served by start-time fair queueing. Not thread-safe.

    Each account has a virtual time: the seconds of work charged to it. `take` serves the account with the lowest time.
    So equal work is served round robin, and after long work an account pauses until the other waiting accounts have
    used as much. After idling, an account starts at the current virtual time: idleness earns no credit.
    """

    def __init__(self) -> None:
        self._queues: dict[Hashable, deque[T]] = {}
        self._order: list[tuple[float, int, Hashable]] = []  # heap; its times may lag behind `_used`
        self._ordered: set[Hashable] = set()  # accounts in the heap, each once
        self._used: dict[Hashable, float] = {}
        self._held: set[Hashable] = set()
        self._now = 0.0
        self._turns = itertools.count()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, account: Hashable, item: T) -> None:
        """Add an item to the end of an account's queue."""
        queue = self._queues.get(account)
        if queue is None:
            queue = self._queues[account] = deque()
            self._add_turn(account)
        queue.append(item)
        self._length += 1

    def peek(self) -> T | None:
        """Return the next item without removing it; None if the queue is empty or all its accounts are held."""
        account = self._next()
        return None if account is _NOBODY else self._queues[account][0]

    def take(self) -> T | None:
        """Remove and return the next item; None if the queue is empty or all its accounts are held."""
        account = self._next()
        if account is _NOBODY:
            return None
        self._now = max(self._now, self._drop_turn())
        queue = self._queues[account]
        item = queue.popleft()
        self._length -= 1
        self._used[account] = self._now
        if queue:
            self._add_turn(account)
        else:
            del self._queues[account]
            self._forget()
        return item

    def charge(self, account: Hashable, seconds: float) -> None:
        """Charge an account for its work, in seconds; at most `MAX_CHARGE` count."""
        self._used[account] = max(self._used.get(account, 0.0), self._now) + min(max(seconds, 0.0), MAX_CHARGE)

    def others_wait(self, account: Hashable) -> bool:
        """Return True if any other account has queued items."""
        return len(self._queues) > (account in self._queues)

    def hold(self, account: Hashable) -> None:
        """Stop serving this account until `release`."""
        self._held.add(account)

    def release(self, account: Hashable) -> None:
        """Serve the account again."""
        if account in self._held:
            self._held.discard(account)
            if account in self._queues:
                self._add_turn(account)

    def release_all(self) -> None:
        """Serve all accounts again."""
        for account in [*self._held]:
            self.release(account)

    def _add_turn(self, account: Hashable) -> None:
        if account not in self._ordered:
            self._ordered.add(account)
            heappush(self._order, (max(self._used.get(account, 0.0), self._now), next(self._turns), account))

    def _drop_turn(self) -> float:
        time, _, account = heappop(self._order)
        self._ordered.discard(account)
        return time

    def _next(self) -> Hashable:
        while self._order:
            time, _, account = self._order[0]
            used = self._used.get(account, 0.0)
            if account in self._held or account not in self._queues:
                self._drop_turn()  # `release` or `put` adds it again
            elif used > time:
                heapreplace(self._order, (used, next(self._turns), account))
            else:
                return account
        return _NOBODY

    def _forget(self) -> None:
        """Once there are many recorded times, drop all but the highest, to bound the memory."""
        if len(self._used) <= 2 * len(self._queues) + MAX_KEPT:
            return
        kept = nlargest(MAX_KEPT // 2, self._used.values())
        self._now = max(self._now, kept[-1])
        self._used = {account: used for account, used in self._used.items() if used > self._now}


class _Nobody:
    """Type of `_NOBODY`, the sentinel for no account: None is an account, used for the service's own work."""


_NOBODY: Final = _Nobody()
