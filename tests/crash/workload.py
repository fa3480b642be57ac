"""Clients that do all that can be done with a store at many keys, and whether what they saw fits together."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, count, islice
from typing import Any, Final, TypeAlias

import cloudstore_mapping as cm
from cloudstore_mapping.testing.linearizability import (
    ABSENT,
    REGISTER_HINTS,
    Call,
    History,
    check_linearizable,
    register_step,
)
from cloudstore_mapping.testing.strategies import PERFORMED

Store: TypeAlias = cm.CloudStoreMapping[Any]

#: Seconds until something has to have come of what they do.
PATIENCE: Final = 60.0
#: Keys in one batch.
BATCH: Final = 4
#: Calls until a client opens its store anew.
CALLS_PER_STORE: Final = 30

#: What is done with a key how often; every other key holds a number, for `increment`.
_ON_DOCUMENTS: Final = {
    "save": 3,
    "merge": 3,
    "load": 5,
    "delete": 1,
    "pop": 1,
    "setdefault": 1,
    "save many": 1,
    "merge many": 1,
    "load many": 1,
    "delete many": 1,
}
_ON_NUMBERS: Final = {"increment": 4, "load": 4, "contains": 1, "load many": 1, "delete": 1}


class Workload:
    """
    Clients, each with a store of its own, at keys that nobody else uses.

    Parameters
    ----------
    opens
        For each client, what opens its store.
    name
        What the keys begin with.
    keys
        How many there are.
    refusals
        Errors that calls may end with besides, in which case they did nothing.

    Attributes
    ----------
    histories
        What the clients did with each key.
    """

    def __init__(
        self,
        opens: Sequence[Callable[[], Store]],
        name: str,
        keys: int,
        refusals: tuple[type[cm.CloudStoreError], ...] = (),
    ) -> None:
        answers = (KeyError, TypeError, cm.BadMergeError, *refusals)
        self.histories = {f"{name} {number}": History(answers=answers) for number in range(keys)}
        self._refusals = refusals
        self._opens = opens
        self._name = name
        self._done = 0
        self._changed = threading.Condition()
        self._start = threading.Barrier(len(opens))
        self._ending = threading.Event()
        self._running: list[Future[None]] = []

    @property
    def calls(self) -> int:
        """How many calls were made; one on many keys counts as one on each."""
        return sum(len(history.calls) for history in self.histories.values())

    @property
    def unknown(self) -> int:
        """Of how many nobody knows what came of them."""
        return sum(call.returned is None for history in self.histories.values() for call in history.calls)

    def run(self, calls: int) -> None:
        """Let each client make so many calls."""
        with ThreadPoolExecutor(len(self._opens)) as pool:
            self._running = [pool.submit(self._work, client, iter(range(calls))) for client in range(len(self._opens))]
        for each in self._running:
            each.result()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let them work while the block runs; what one of them raises that it may not is raised at the end."""
        with ThreadPoolExecutor(len(self._opens)) as pool:
            self._running = [pool.submit(self._work, client, count()) for client in range(len(self._opens))]
            try:
                yield
            finally:
                self._ending.set()
        for each in self._running:
            each.result()

    def wait_for_calls(self, more: int) -> None:
        """Wait until so many more calls were answered."""
        end = time.monotonic() + PATIENCE
        with self._changed:
            enough = self._done + more
            while self._done < enough:
                self._changed.wait(1.0)
                for each in self._running:
                    if each.done():
                        each.result()
                if time.monotonic() > end:
                    raise TimeoutError(f"Only {self._done} calls were answered.")

    def check(self, store: Store) -> None:
        """Let one more client load every key, and check that some order of all calls explains every result."""
        for key, history in self.histories.items():
            with history.call(len(self._opens), "load") as call:
                call.result = store[key]
            assert history.calls[-1].returned is not None, key
            hints = None if self._refusals else REGISTER_HINTS  # the hints don't know of refusals
            check_linearizable(history.calls, self._step, ABSENT, hints=hints)

    def _step(self, state: Any, operation: str, argument: Any, result: Any, is_known: bool) -> Any:
        if is_known and isinstance(result, type) and issubclass(result, self._refusals):
            return state
        return register_step(state, operation, argument, result, is_known)

    def _work(self, client: int, numbers: Iterator[int]) -> None:
        dice = random.Random(f"{self._name} {client}")
        self._start.wait(PATIENCE)
        for first in numbers:
            # A store is opened anew now and then: what it calls first has to be as safe as what follows.
            with self._opens[client]() as store:
                for number in chain((first,), islice(numbers, CALLS_PER_STORE - 1)):
                    if self._ending.is_set():
                        return
                    self._call(store, client, dice, number)
                    with self._changed:
                        self._done += 1
                        self._changed.notify_all()

    def _call(self, store: Store, client: int, dice: random.Random, number: int) -> None:
        keys = list(self.histories)
        place = dice.randrange(len(keys))
        ways = _ON_NUMBERS if place % 2 else _ON_DOCUMENTS
        (way,) = dice.choices(list(ways), list(ways.values()))
        operation, _, many = way.partition(" ")
        # A value that no other call writes, so that who reads it knows whose it is.
        arguments = {"increment": 1, "merge": {str(client): number}}
        argument = arguments.get(operation, {"by": [client, number]} if operation in ("save", "setdefault") else None)
        if many:
            others = dice.sample(range(place % 2, len(keys), 2), BATCH)
            self._call_many(store, client, operation, dict.fromkeys((keys[other] for other in others), argument))
            return
        with self.histories[keys[place]].call(client, operation, argument) as call:
            call.result = PERFORMED[operation](store, keys[place], argument)

    def _call_many(self, store: Store, client: int, operation: str, arguments: Mapping[str, Any]) -> None:
        """Do something with many keys at once, and record it for each of them."""
        called = time.monotonic()
        found: dict[str, Any] = {}
        failed: Mapping[str, Exception] = {}
        try:
            match operation:
                case "save":
                    store.update(arguments)
                case "merge":
                    store |= arguments
                case "delete":
                    store.delete_many(arguments)
                case "load":
                    found = store.get_many(arguments)
        except cm.BulkError as raised:
            # What was read with those that failed is not told.
            failed = dict.fromkeys(arguments, raised) if operation == "load" else raised.failed
        except (cm.TransportError, cm.TimedOutError) as raised:
            failed = dict.fromkeys(arguments, raised)
        except self._refusals as raised:
            failed = dict.fromkeys(arguments, raised)
        returned = time.monotonic()
        for key, argument in arguments.items():
            if isinstance(failed.get(key), self._refusals):
                continue
            is_known = key not in failed or isinstance(failed[key], KeyError)
            is_absent = key in failed or (operation == "load" and key not in found)
            result = KeyError if is_absent else found.get(key)
            self.histories[key].calls.append(
                Call(client, operation, argument, called, returned if is_known else None, result)
            )
