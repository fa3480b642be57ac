"""Clients that write and read a few keys all the time, and remember what each of them was told, and when."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count, pairwise
from typing import Any, Final, NamedTuple

import cloudstore_mapping as cm
from cloudstore_mapping.testing.linearizability import Call, History

CLIENTS: Final = 16
#: Seconds until something has to have come of what they do.
PATIENCE: Final = 60.0
COUNTERS: Final = tuple(f"counter {number}" for number in range(12))
DOCUMENTS: Final = tuple(f"document {number}" for number in range(12))

#: What of a client's calls is done how often.
_ON_COUNTERS: Final = {"increment": 2, "load": 1}
_ON_DOCUMENTS: Final = {"save": 1, "merge": 2, "load": 1}


class Told(NamedTuple):
    """What came of a call: when its client was told, and the error if there was one."""

    client: int
    operation: str
    at: float
    error: type[Exception] | None


class Clients:
    """
    Programs that have a store open at the same location, each with connections of its own.

    Parameters
    ----------
    location
        Where the store is.
    hasty
        How many of them don't repeat a request that failed.

    Attributes
    ----------
    histories
        What they did with each key.
    told
        What came of each call, in that order.
    goes_on
        Whoever is told that a call failed does nothing more until this is set, as it is at first.
    """

    def __init__(self, location: str, *, hasty: int = 0) -> None:
        self._location = location
        self._hasty = hasty
        self.histories = {key: History() for key in COUNTERS + DOCUMENTS}
        self.told: list[Told] = []
        self.goes_on = threading.Event()
        self.goes_on.set()
        self._changed = threading.Condition()
        self._ending = threading.Event()
        self._running: list[Future[None]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let them work while the block runs; what one of them raises that it may not is raised at the end."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            self._running = [pool.submit(self._work, client) for client in range(CLIENTS)]
            try:
                yield
            finally:
                self._ending.set()
                self.goes_on.set()
        for each in self._running:
            each.result()

    def wait_for_successes(self, count: int) -> None:
        """Wait until each of them was told so many more times that a call is done."""
        self._wait(lambda told: told.error is None, count, CLIENTS)

    def wait_for_errors(self, clients: int) -> None:
        """Wait until so many more of them were told that a call failed."""
        self._wait(lambda told: told.error is not None, 1, clients)

    def _wait(self, is_one: Callable[[Told], bool], count: int, clients: int) -> None:
        begun = len(self.told)
        end = time.monotonic() + PATIENCE
        while True:
            with self._changed:
                were_told = Counter(told.client for told in self.told[begun:] if is_one(told))
                if sum(times >= count for times in were_told.values()) >= clients:
                    return
                self._changed.wait(1.0)
            for each in self._running:
                if each.done():
                    each.result()
            if time.monotonic() > end:
                raise TimeoutError(f"Only these clients went on: {were_told}.")

    def _work(self, client: int) -> None:
        dice = random.Random(client)
        with cm.open(self._location, retries=0 if client < self._hasty else 3) as store:
            len(store)  # with the first answer it learns that the service does a repeated write once
            for number in count():
                if self._ending.is_set():
                    return
                key = dice.choice(COUNTERS + DOCUMENTS)
                ways = _ON_COUNTERS if key in COUNTERS else _ON_DOCUMENTS
                (operation,) = dice.choices(list(ways), list(ways.values()))
                self._call(store, client, operation, key, number)

    def _call(self, store: cm.CloudStoreMapping[Any], client: int, operation: str, key: str, number: int) -> None:
        does: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "increment": (1, lambda more: store.transform(key, lambda sum_: sum_ + more, default=0)),
            "load": (None, lambda _: store[key]),
            "merge": ({f"client {client}": number}, lambda value: store.merge(key, value)),
            "save": ({"saved": [client, number]}, lambda value: store.__setitem__(key, value)),
        }
        argument, do = does[operation]
        error: type[Exception] | None = None
        with self.histories[key].call(client, operation, argument) as call:
            try:
                call.result = do(argument)
            except (cm.TransportError, cm.TimedOutError) as raised:
                error = type(raised)
                raise
        self._tell(Told(client, operation, time.monotonic(), error))
        if error is not None:
            self.goes_on.wait()

    def _tell(self, told: Told) -> None:
        with self._changed:
            self.told.append(told)
            self._changed.notify_all()

    def errors(self) -> dict[str, int]:
        """Return how often they were told which error."""
        return dict(Counter(told.error.__name__ for told in self.told if told.error is not None))

    def longest_silence(self, after: float, before: float) -> dict[str, float]:
        """Return for each operation the longest time without a success, of those that overlap what is between two."""
        found = {}
        for operation in sorted({told.operation for told in self.told}):
            times = sorted(told.at for told in self.told if told.operation == operation and told.error is None)
            found[operation] = max(end - begin for begin, end in pairwise(times) if end > after and begin < before)
        return found


def slowest(histories: dict[str, History], after: float, before: float) -> dict[str, float]:
    """Return for each operation how long its longest call took, of those that overlap what is between two times."""
    found: dict[str, float] = {}
    for call in (call for history in histories.values() for call in history.calls):
        if call.returned is not None and call.returned > after and call.called < before:
            found[call.operation] = max(found.get(call.operation, 0.0), call.returned - call.called)
    return found


def read_at_last(store: cm.CloudStoreMapping[Any], histories: dict[str, History]) -> None:
    """Let one more client load every key, so that what was acknowledged has to be there."""
    for key, history in histories.items():
        with history.call(CLIENTS, "load") as call:
            call.result = store[key]


def acknowledged(calls: list[Call], operation: str) -> tuple[int, int]:
    """Return how many calls of an operation are known to be done, and of how many nobody knows."""
    known = [call.returned is not None for call in calls if call.operation == operation]
    return sum(known), len(known) - sum(known)
