"""Fair queue: a queue per account, served in turn by the time that each account has used."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Hashable
from heapq import heappop, heappush, heapreplace, nlargest
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: The most seconds that one piece of work counts, so that a suspended machine makes no account wait for ever.
MAX_CHARGE: Final = 2.0
#: Accounts whose used time is kept beyond those that wait, before the outdated entries are dropped.
MAX_KEPT: Final = 1024


class FairQueue(Generic[T]):
    """
    Queues of accounts, served by start-time fair queueing; for one thread at a time.

    Each account has a virtual time: the seconds of work that it was charged. `take` serves the account that is furthest
    behind, so equal work is served round robin, and an account that had long work rests until the others that wait
    had as much. An account that was idle starts at the present virtual time: idleness earns nothing.
    """

    def __init__(self) -> None:
        self._queues: dict[Hashable, deque[T]] = {}
        self._order: list[tuple[float, int, Hashable]] = []  # a heap; its times may be older than those in `_used`
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
        """Return the item that `take` returns next, None if there is none, or only held ones."""
        account = self._next()
        return None if account is _NOBODY else self._queues[account][0]

    def take(self) -> T | None:
        """Remove and return the next item, None if there is none, or only held ones."""
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
        """Count time that an account's work took."""
        self._used[account] = max(self._used.get(account, 0.0), self._now) + min(max(seconds, 0.0), MAX_CHARGE)

    def others_wait(self, account: Hashable) -> bool:
        """Return True if the queue of any other account holds something."""
        return len(self._queues) > (account in self._queues)

    def hold(self, account: Hashable) -> None:
        """Serve nothing more of this account until `release`."""
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
        """Drop the times of accounts that wait for nothing, once there are many: all but the longest debts."""
        if len(self._used) <= 2 * len(self._queues) + MAX_KEPT:
            return
        kept = nlargest(MAX_KEPT // 2, self._used.values())
        self._now = max(self._now, kept[-1])
        self._used = {account: used for account, used in self._used.items() if used > self._now}


class _Nobody:
    """The type of `_NOBODY`, which stands for no account: None is one, that of the service's own work."""


_NOBODY: Final = _Nobody()
