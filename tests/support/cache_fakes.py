"""What stands around a cache in its tests: fetches, and a cache to start from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest

from cloudstore_mapping.client.cache import Cache, Found
from cloudstore_mapping.testing.clocks import FrozenClock

FOUND = Found(b"value", "v1")


@pytest.fixture
def clock() -> FrozenClock:
    """A clock that stands still."""
    return FrozenClock()


@pytest.fixture
def cache(clock: FrozenClock) -> Cache[bytes]:
    """A cache of 10 seconds, three slots and 100 bytes."""
    return make(clock)


def make(clock: FrozenClock, **options: Any) -> Cache[bytes]:
    """Return a cache with other options."""
    return Cache(**{"ttl": 10.0, "entries": 3, "max_bytes": 100, "size": len, "clock": clock, **options})


class Fetch:
    """A fetch that counts, remembers what it was given, and returns or raises what the test says."""

    def __init__(self, outcome: Found[bytes] | Exception = FOUND) -> None:
        self.outcome = outcome
        self.given: list[Found[bytes] | None] = []

    def __call__(self, before: Found[bytes] | None) -> Found[bytes]:
        """Answer."""
        self.given.append(before)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class SlowFetch:
    """A fetch that has begun when `begun` is set, and ends when the test sets its `reply`."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.reply: Future[Found[bytes]] = Future()
        self.count = 0

    def __call__(self, before: Found[bytes] | None) -> Found[bytes]:
        """Wait for the test."""
        self.count += 1
        self.begun.set()
        return self.reply.result()

    @contextmanager
    def ended_with(self, found: Found[bytes]) -> Iterator[None]:
        """Reply at the end of the block, also if it raised, as its thread would wait forever."""
        try:
            yield
        finally:
            self.reply.set_result(found)


def never(before: object) -> Found[bytes]:
    """Fail: the cache should have known."""
    raise AssertionError("fetched")
