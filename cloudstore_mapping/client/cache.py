"""What was read lately: kept for a time, and never past a write of one's own."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final, Generic, NamedTuple, TypeVar

from cachetools import LRUCache

K = TypeVar("K")
T = TypeVar("T")

DEFAULT_ENTRIES: Final = 1024
DEFAULT_BYTES: Final = 64 * 2**20


class Found(NamedTuple, Generic[T]):
    """What a read gave: the value, None where the service has none, and its version where the service tells it."""

    value: T | None
    version: str | None = None


class Unchanged(Exception):  # noqa: N818 - it says that all is well
    """Raised by a fetch: what was found before still stands."""


class _Entry(NamedTuple, Generic[T]):
    found: Found[T]
    until: float
    size: int


class Mark(NamedTuple):
    """A moment in the life of a cache."""

    changes: int
    time: float


class Write(Generic[T]):
    """
    A write under way; `keep` tells what it left, once the service has said that it is done.

    `before` is what was kept when it began, be it old.
    """

    def __init__(self, began: float, before: _Entry[T] | None) -> None:
        self.began = began
        self.before = None if before is None else before.found
        self._until = -math.inf if before is None else before.until
        self.alone = True
        self.left: Found[T] | None = None
        self.latest = math.inf

    def keep(self, found: Found[T]) -> None:
        """Let readers have this, unless something else happens to the key before the write ends."""
        self.left = found

    def amend(self, found: Found[T]) -> None:
        """Let readers have this in place of what was kept, no longer than they would have had that."""
        self.left = found
        self.latest = self._until


class Cache(Generic[T]):
    """
    Keeps what was read of each key for `ttl` seconds, in at most `entries` slots and `max_bytes` together.

    A slot says present or absent; an absence is kept for `absent_ttl` seconds, None being not at all. What has run out
    stays until its place is needed, for a fetch that can ask whether it still stands.

    Parameters
    ----------
    size
        The bytes that a value takes.
    clock
        Monotonic seconds.

    Notes
    -----
    May be used by many threads. No lock is held during a fetch or a write. A read that began before a write ended
    never fills a slot, and nobody who asks after it waits for that read.
    """

    def __init__(
        self,
        ttl: float,
        *,
        entries: int,
        max_bytes: int,
        size: Callable[[T], int],
        clock: Callable[[], float],
        absent_ttl: float | None = None,
    ) -> None:
        for name, seconds in (("cache_ttl", ttl), ("cache_absent_ttl", absent_ttl)):
            if seconds is not None and not (isinstance(seconds, int | float) and 0 < seconds < math.inf):
                raise ValueError(f"{name} is a number of seconds above 0, or None for none, and not {seconds!r}.")
        for name, count in (("cache_size", entries), ("cache_bytes", max_bytes)):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} is a whole number above 0, and not {count!r}.")
        self._ttl = ttl
        self._absent_ttl = absent_ttl
        self._max_entries = entries
        self._size = size
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: _Counted[str, _Entry[T]] = _Counted(max_bytes, getsizeof=lambda entry: entry.size)
        self._reads: dict[str, Future[Found[T]]] = {}
        self._writes: dict[str, list[Write[T]]] = {}
        self._changes = 0
        self.hits = 0
        self.misses = 0

    @property
    def evictions(self) -> int:
        """How many slots were given up for others."""
        return self._entries.evictions

    def read(self, key: str, fetch: Callable[[Found[T] | None], Found[T]]) -> Found[T]:
        """
        Return what is kept, or what `fetch` gives; threads that miss one key together share one fetch.

        `fetch` gets what has run out, and may raise `Unchanged` for it.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.until > self._clock():
                self.hits += 1
                return entry.found
            self.misses += 1
            shared = self._reads.get(key)
            if shared is None:
                mine = self._reads[key] = Future()
        return self._lead(key, mine, fetch, entry) if shared is None else shared.result()

    def _lead(
        self, key: str, mine: Future[Found[T]], fetch: Callable[[Found[T] | None], Found[T]], entry: _Entry[T] | None
    ) -> Found[T]:
        before = None if entry is None else entry.found
        began = self._clock()
        try:
            try:
                found = fetch(before)
            except Unchanged:
                assert before is not None  # noqa: S101 - only what was found before can be unchanged
                found = before
        except BaseException as error:
            with self._lock:
                if self._reads.get(key) is mine:
                    del self._reads[key]
                    self._entries.pop(key, None)
            mine.set_exception(error)
            raise
        with self._lock:
            # Taken out of the reads: a write has begun or ended since, and this is of before.
            if self._reads.get(key) is mine:
                del self._reads[key]
                if key not in self._writes:
                    self._put(key, found, began)
        mine.set_result(found)
        return found

    @contextmanager
    def write(self, key: str) -> Iterator[Write[T]]:
        """Forget the key, and again when the block ends: what the block's write leaves is kept if it was alone."""
        with self._lock:
            write: Write[T] = Write(self._clock(), self._entries.get(key))
            self._forget(key)
            self._writes.setdefault(key, []).append(write)
            write.alone = self._writes[key] == [write]
        done = False
        try:
            yield write
            done = True
        finally:
            with self._lock:
                self._forget(key, but=write)
                self._writes[key].remove(write)
                if not self._writes[key]:
                    del self._writes[key]
                if done and write.alone and write.left is not None:
                    self._put(key, write.left, write.began, write.latest)

    def mark(self) -> Mark:
        """Return a sign of this moment, for an `offer` of what is read from now on."""
        with self._lock:
            return Mark(self._changes, self._clock())

    def offer(self, key: str, found: Found[T], mark: Mark) -> None:
        """Keep what was read beside `read`, unless anything at all was written or forgotten since the mark."""
        with self._lock:
            if mark.changes == self._changes and not self._writes:
                self._put(key, found, mark.time)

    def disturb(self, key: str) -> None:
        """Keep the key's slot, but let no read or write that is under way fill it."""
        with self._lock:
            self._changes += 1
            self._reads.pop(key, None)
            for write in self._writes.get(key, ()):
                write.alone = False

    def peek(self, key: str) -> Found[T] | None:
        """Return what is kept of the key and hasn't run out."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.until <= self._clock():
                return None
            self.hits += 1
            return entry.found

    def forget(self, key: str) -> None:
        """Drop what is kept of the key, and let nothing fill it that is under way."""
        with self._lock:
            self._forget(key)

    def clear(self) -> None:
        """Drop all that is kept, and let nothing fill it that is under way."""
        with self._lock:
            self._changes += 1
            for key in [*self._entries, *self._reads, *self._writes]:
                self._forget(key)

    def _forget(self, key: str, but: Write[T] | None = None) -> None:
        self._changes += 1
        self._entries.pop(key, None)
        self._reads.pop(key, None)
        for write in self._writes.get(key, ()):
            if write is not but:
                write.alone = False

    def _put(self, key: str, found: Found[T], now: float, latest: float = math.inf) -> None:
        ttl = self._ttl if found.value is not None else self._absent_ttl
        self._entries.pop(key, None)
        if ttl is None:
            return
        size = len(key) + (0 if found.value is None else self._size(found.value))
        if size > self._entries.maxsize:
            return
        self._entries[key] = _Entry(found, min(now + ttl, latest), size)
        while len(self._entries) > self._max_entries:
            self._entries.popitem()


class _Counted(LRUCache[K, T]):
    """An `LRUCache` that counts what it gave up."""

    evictions = 0

    def popitem(self) -> tuple[K, T]:
        self.evictions += 1
        return super().popitem()
