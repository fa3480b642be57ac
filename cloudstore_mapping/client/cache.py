"""TTL cache with LRU eviction: an entry is dropped before a write of its key, and no older read fills it again."""

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
    """Result of a read: the value, None if absent, and its version if the service has versions."""

    value: T | None
    version: str | None = None


class _Entry(NamedTuple, Generic[T]):
    found: Found[T]
    until: float
    size: int


class Generation(NamedTuple):
    """State of a cache at a moment: number of changes so far, and time."""

    changes: int
    time: float


class Write(Generic[T]):
    """
    Write in progress; call `commit` with its result after the service confirmed it.

    `before` is the entry at its beginning, even if expired.
    """

    def __init__(self, began: float, before: _Entry[T] | None) -> None:
        self.began = began
        self.before = None if before is None else before.found
        self._until = -math.inf if before is None else before.until
        self.is_alone = True
        self.result: Found[T] | None = None
        self.latest = math.inf

    def commit(self, found: Found[T]) -> None:
        """Cache this result at the end of the write, unless something else happened to the key meanwhile."""
        self.result = found

    def patch(self, found: Found[T]) -> None:
        """Replace the entry by this result at the end of the write, with the entry's old expiry."""
        self.result = found
        self.latest = self._until


class Cache(Generic[T]):
    """
    Keep results of reads by key for `ttl` seconds, in at most `entries` entries and `max_bytes` bytes.

    An absence is kept for `absent_ttl` seconds, or not at all for None. Expired entries stay until evicted, as a fetch
    can ask the service to confirm them.

    Parameters
    ----------
    size
        Returns the size of a value in bytes.
    clock
        Monotonic seconds.

    Notes
    -----
    Thread safe; no lock is held during a fetch or write. A read begun before the end of a write never fills an entry,
    and no later reader waits for it.
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
        self._entries: _CountingLRU[str, _Entry[T]] = _CountingLRU(max_bytes, getsizeof=lambda entry: entry.size)
        self._reads: dict[str, Future[Found[T]]] = {}
        self._writes: dict[str, list[Write[T]]] = {}
        self._changes = 0
        self.hits = 0
        self.misses = 0

    @property
    def evictions(self) -> int:
        """Number of entries evicted for others."""
        return self._entries.evictions

    def read(self, key: str, fetch: Callable[[Found[T] | None], Found[T]]) -> Found[T]:
        """
        Return the entry, or the result of `fetch`; threads missing the same key at the same time share a fetch.

        `fetch` gets the expired entry, and returns it if it is still valid.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.until > self._clock():
                self.hits += 1
                return entry.found
            self.misses += 1
            shared = self._reads.get(key)
            if shared is None:
                own = self._reads[key] = Future()
        return self._fetch(key, own, fetch, entry) if shared is None else shared.result()

    def _fetch(
        self, key: str, own: Future[Found[T]], fetch: Callable[[Found[T] | None], Found[T]], entry: _Entry[T] | None
    ) -> Found[T]:
        began = self._clock()
        try:
            found = fetch(None if entry is None else entry.found)
        except BaseException as error:
            with self._lock:
                if self._reads.get(key) is own:
                    del self._reads[key]
                    self._entries.pop(key, None)
            own.set_exception(error)
            raise
        with self._lock:
            # If a write started or ended meanwhile, this read was removed and its result is stale.
            if self._reads.get(key) is own:
                del self._reads[key]
                if key not in self._writes:
                    self._put(key, found, began)
        own.set_result(found)
        return found

    @contextmanager
    def write(self, key: str) -> Iterator[Write[T]]:
        """Invalidate the key before and after the block; cache the block's result if no other write overlapped."""
        with self._lock:
            write: Write[T] = Write(self._clock(), self._entries.get(key))
            self._invalidate(key)
            self._writes.setdefault(key, []).append(write)
            write.is_alone = self._writes[key] == [write]
        succeeded = False
        try:
            yield write
            succeeded = True
        finally:
            with self._lock:
                self._invalidate(key, except_for=write)
                self._writes[key].remove(write)
                if not self._writes[key]:
                    del self._writes[key]
                if succeeded and write.is_alone and write.result is not None:
                    self._put(key, write.result, write.began, write.latest)

    def generation(self) -> Generation:
        """Return the present generation, for `put_if_unchanged`."""
        with self._lock:
            return Generation(self._changes, self._clock())

    def put_if_unchanged(self, key: str, found: Found[T], generation: Generation) -> None:
        """Cache the result of a read begun at `generation`, unless anything was written or invalidated since."""
        with self._lock:
            if generation.changes == self._changes and not self._writes:
                self._put(key, found, generation.time)

    def invalidate_pending(self, key: str) -> None:
        """Keep the key's entry, but ignore the results of reads and writes in progress."""
        with self._lock:
            self._changes += 1
            self._reads.pop(key, None)
            for write in self._writes.get(key, ()):
                write.is_alone = False

    def get(self, key: str) -> Found[T] | None:
        """Return the key's entry unless expired."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.until <= self._clock():
                return None
            self.hits += 1
            return entry.found

    def invalidate(self, key: str) -> None:
        """Drop the key's entry, and ignore the results of reads and writes in progress."""
        with self._lock:
            self._invalidate(key)

    def clear(self) -> None:
        """Drop all entries, and ignore the results of reads and writes in progress."""
        with self._lock:
            self._changes += 1
            for key in [*self._entries, *self._reads, *self._writes]:
                self._invalidate(key)

    def _invalidate(self, key: str, except_for: Write[T] | None = None) -> None:
        self._changes += 1
        self._entries.pop(key, None)
        self._reads.pop(key, None)
        for write in self._writes.get(key, ()):
            if write is not except_for:
                write.is_alone = False

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


class _CountingLRU(LRUCache[K, T]):
    """`LRUCache` with a count of its evictions."""

    evictions = 0

    def popitem(self) -> tuple[K, T]:
        self.evictions += 1
        return super().popitem()
