"""
TTL cache with LRU eviction and a generation per key: an entry of another generation than its key's is never used.

A write gives its key a new generation before it is sent, so no read begun before it fills the cache afterwards.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, NamedTuple, TypeVar

from cloudstore_mapping.errors import CloudStoreError, OutcomeUnknownError, ProtocolError
from cloudstore_mapping.forks import renew_after_fork

T = TypeVar("T")

DEFAULT_ENTRIES: Final = 1024
DEFAULT_BYTES: Final = 64 * 2**20
#: Seconds after its end in which a write of unknown outcome may still be applied; until then its key is not cached.
LATEST_WRITE: Final = 60.0
#: Generations kept beyond the maximum number of entries; beyond that all of them, and so all entries, are dropped.
MORE_GENERATIONS: Final = 10_000


class Found(NamedTuple, Generic[T]):
    """Result of a read: the value, None if absent, and its version if the service has versions."""

    value: T | None
    version: str | None = None


class Mark(NamedTuple):
    """Beginning of a read: generation of its key, None during a write, and time."""

    generation: int | None
    time: float


class _Entry(NamedTuple, Generic[T]):
    found: Found[T]
    until: float
    size: int
    generation: int
    began: float


class Write(Generic[T]):
    """
    Write in progress; call `commit` with its result after the service confirmed it.

    `before` is the entry at its beginning, even if expired.
    """

    def __init__(self, lock: threading.Lock, time: float, *, is_alone: bool) -> None:
        self.lock = lock  # locked as long as the write is in progress
        self.is_uncertain = True  # until its outcome is known, also if an interrupt ends it
        self.applies_until: float | None = None  # set at the first look after its end
        self.began = Mark(None, time)
        self.is_alone = is_alone
        self.before: Found[T] | None = None
        self._until = -math.inf
        self.result: Found[T] | None = None
        self.latest = math.inf

    def begin(self, generation: int, before: _Entry[T] | None) -> None:
        """Begin the write in a new generation of its key, which replaces the entry `before`."""
        self.began = Mark(generation, self.began.time)
        if before is not None:
            self.before = before.found
            self._until = before.until

    def commit(self, found: Found[T]) -> None:
        """Cache this result at the end of the write, unless something else happened to the key meanwhile."""
        self.result = found

    def patch(self, found: Found[T]) -> None:
        """Replace the entry by this result at the end of the write, but keep the entry's expiry."""
        self.result = found
        self.latest = self._until


class _Fetch(Generic[T]):
    """
    Fetch shared by threads: the first thread to acquire `turn` performs it, the others wait for the lock.

    After an interrupt the next thread performs it. The turn is an RLock, as a signal handler may read the same key.
    """

    def __init__(self, generation: int, began: float) -> None:
        self.generation = generation
        self.began = began
        self.turn = threading.RLock()
        self.found: Found[T] | None = None
        self.error: CloudStoreError | None = None

    @property
    def is_over(self) -> bool:
        """True if there is a result for the waiting threads."""
        return self.found is not None or self.error is not None

    def result(self) -> Found[T]:
        """Return the result, or raise the service's error."""
        if self.found is not None:
            return self.found
        assert self.error is not None  # noqa: S101 - called only at the end
        raise self.error


class _Thread(threading.local):
    """State of a thread: `fetching` is locked during its fetches from any cache."""

    def __init__(self) -> None:
        self.fetching = threading.Lock()


_this_thread: Final = _Thread()


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

    Attributes
    ----------
    hits, misses
        Reads answered from the cache, and other reads.
    evictions
        Entries evicted for others.

    Notes
    -----
    Thread safe; no lock is held during a fetch or write. A read begun before the end of a write never fills an entry,
    and no later reader waits for it. A thread in a fetch never waits for another fetch. After a write whose
    outcome is unknown, which may be applied later, its key is not cached for `LATEST_WRITE` seconds.

    Consistent after an interrupt at any instruction: an entry counts only in its key's present generation, which is
    replaced in a single step. An interrupt leaves at most a fetch without a result, which the next reader performs, or
    the released lock of a write, which is ignored. `with` releases a lock whatever happens, unlike `finally`.
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
                raise ValueError(f"{name} must be a number of seconds above 0, or None, not {seconds!r}.")
        for name, count in (("cache_size", entries), ("cache_bytes", max_bytes)):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be a whole number above 0, not {count!r}.")
        self._ttl = ttl
        self._absent_ttl = absent_ttl
        self._max_entries = entries
        self._max_bytes = max_bytes
        self._size = size
        self._clock = clock
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self._numbers = itertools.count()
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Empty the cache in a child process, as another thread may have been changing it."""
        self._lock = threading.RLock()  # a signal handler may run while its thread holds the lock
        self._floor = next(self._numbers)  # generation of a key without one of its own
        self._generations: dict[str, int] = {}
        self._entries: OrderedDict[str, _Entry[T]] = OrderedDict()
        self._bytes = 0  # never less than the entries' size; more after an interrupt, until it is recounted
        self._fetches: dict[str, _Fetch[T]] = {}
        self._writes: dict[str, tuple[Write[T], ...]] = {}  # in progress, and the last of unknown outcome
        self._most_writes = MORE_GENERATIONS  # more are looked through for those that are over

    def read(self, key: str, fetch: Callable[[Found[T] | None], Found[T]]) -> Found[T]:
        """
        Return the entry, or the result of `fetch`; threads missing the same key at the same time share a fetch.

        Not one that began longer ago than `ttl`. They share a service's error, too; any other exception stays in its
        thread. `fetch` gets the expired entry, and returns it if it is still valid.
        """
        entry = self._valid(key)
        if entry is not None and entry.until > self._clock():
            return self._hit(key, entry)
        # A thread in a fetch could wait for a thread that waits for it, and at Python's end for one that never runs.
        shared = None if _this_thread.fetching.locked() or sys.is_finalizing() else self._shared_fetch(key)
        if shared is None:
            self.misses += 1
            return self._fetch(key, fetch)
        with shared.turn:
            if not shared.is_over:
                with _this_thread.fetching:
                    return self._perform(key, shared, fetch)
        return shared.result()

    def _shared_fetch(self, key: str) -> _Fetch[T] | None:
        """Return the key's fetch to take part in, None during a write."""
        with self._lock:
            generation = self._generation(key)
            if self._is_written(key):
                return None
            shared = self._fetches.get(key)
            now = self._clock()
            if shared is None or shared.is_over or shared.generation != generation or now >= shared.began + self._ttl:
                shared = self._fetches[key] = _Fetch(generation, now)
            self.misses += 1
            return shared

    def _perform(self, key: str, shared: _Fetch[T], fetch: Callable[[Found[T] | None], Found[T]]) -> Found[T]:
        try:
            shared.found = found = self._fetch(key, fetch)
        except CloudStoreError as error:
            shared.error = error
            raise
        finally:
            with self._lock:
                if self._fetches.get(key) is shared:
                    self._fetches.pop(key, None)
        return found

    def _fetch(self, key: str, fetch: Callable[[Found[T] | None], Found[T]]) -> Found[T]:
        mark = self.mark(key)
        entry = self._valid(key)
        try:
            found = fetch(None if entry is None else entry.found)
        except BaseException:
            self._drop(key)
            raise
        self.put(key, found, mark)
        return found

    @contextmanager
    def write(self, key: str) -> Iterator[Write[T]]:
        """Drop the entry, then run the block; cache the block's result if no other write overlapped."""
        with self.write_many((key,)) as writes:
            yield writes[key]

    @contextmanager
    def write_many(self, keys: Iterable[str]) -> Iterator[dict[str, Write[T]]]:
        """Apply `write` to several keys; yield their writes by key."""
        writes: dict[str, Write[T]] = {}
        lock = threading.Lock()
        try:
            with lock:
                for key in keys:
                    writes[key] = self._begin(key, lock)
                try:
                    yield writes
                except (OutcomeUnknownError, ProtocolError):
                    raise
                except CloudStoreError:
                    for write in writes.values():
                        write.is_uncertain = False
                    raise
                for write in writes.values():
                    write.is_uncertain = False
                for key, write in writes.items():
                    if write.result is not None and write.is_alone:
                        self.put(key, write.result, write.began, write.latest)
        finally:
            with self._lock:
                for key in writes:
                    self._active_writes(key)

    def _begin(self, key: str, lock: threading.Lock) -> Write[T]:
        with self._lock:
            if len(self._writes) > self._most_writes:
                for other in list(self._writes):
                    self._active_writes(other)
                self._most_writes = 2 * len(self._writes) + MORE_GENERATIONS
            others = self._active_writes(key)
            write: Write[T] = Write(lock, self._clock(), is_alone=not others)
            self._writes[key] = (*others, write)
            before, generation = self._begin_generation(key)
            write.begin(generation, before)
        return write

    def mark(self, key: str) -> Mark:
        """Return the beginning of a read of the key, for `put`."""
        generation = self._generation(key)
        return Mark(None if self._is_written(key) else generation, self._clock())

    def put(self, key: str, found: Found[T], mark: Mark, latest: float = math.inf) -> None:
        """Cache the result of a read begun at `mark`, until `latest`, unless the key was written or dropped since."""
        ttl = self._ttl if found.value is not None else self._absent_ttl
        size = len(key) + (0 if found.value is None else self._size(found.value))
        with self._lock:
            if mark.generation is None or mark.generation != self._generation(key):
                return
            entry = self._valid(key)
            if entry is not None and entry.began > mark.time:
                return  # a later read was faster
            self._drop(key)
            if ttl is None or size > self._max_bytes:
                return
            self._bytes += size
            self._entries[key] = _Entry(found, min(mark.time + ttl, latest), size, mark.generation, mark.time)
            self._evict()

    def get(self, key: str) -> Found[T] | None:
        """Return the key's entry unless expired."""
        entry = self._valid(key)
        if entry is not None and entry.until > self._clock():
            return self._hit(key, entry)
        self.misses += 1
        return None

    def is_in_use(self) -> bool:
        """Return True in a signal handler, or `__del__`, in the middle of this thread's own use of a cache."""
        owned: bool = self._lock._is_owned()  # type: ignore[attr-defined]  # noqa: SLF001 - as `threading.Condition` asks
        return owned or _this_thread.fetching.locked()

    def invalidate(self, key: str) -> None:
        """Drop the key's entry, and ignore the results of reads and writes in progress."""
        with self._lock:
            self._begin_generation(key)

    def clear(self) -> None:
        """Drop all entries, and ignore the results of reads and writes in progress."""
        with self._lock:
            # In this order: entries of keys without a generation of their own are invalid from here on, and the others
            # from the next step on.
            self._floor = next(self._numbers)
            self._generations.clear()
            self._entries.clear()
            self._bytes = 0

    def _generation(self, key: str) -> int:
        return self._generations.get(key, self._floor)

    def _begin_generation(self, key: str) -> tuple[_Entry[T] | None, int]:
        """Drop the key's entry; return it with the key's new generation, with the lock held."""
        if len(self._generations) > self._max_entries + MORE_GENERATIONS:
            self.clear()
        mine = next(self._numbers)
        before = self._valid(key)
        self._generations[key] = mine
        if next(self._numbers) != mine + 1:  # a signal handler ran in between, and may have written
            before = None
        self._drop(key)
        return before, mine

    def _valid(self, key: str) -> _Entry[T] | None:
        """Return the key's entry if it is of the present generation, even if expired."""
        entry = self._entries.get(key)
        return entry if entry is not None and entry.generation == self._generation(key) else None

    def _hit(self, key: str, entry: _Entry[T]) -> Found[T]:
        self.hits += 1
        try:  # noqa: SIM105 - `suppress` takes a tenth of a cached load
            self._entries.move_to_end(key)
        except KeyError:  # another thread evicted it
            pass
        return entry.found

    def _is_written(self, key: str) -> bool:
        writes = self._writes.get(key)
        return writes is not None and any([self._is_active(write) for write in writes])  # noqa: C419 - looks at each

    def _is_active(self, write: Write[T]) -> bool:
        """Return True for a write in progress, or one that may still be applied."""
        if write.lock.locked() or not write.is_uncertain:
            return write.lock.locked()
        if write.applies_until is None:
            write.applies_until = self._clock() + LATEST_WRITE
        return self._clock() < write.applies_until

    def _active_writes(self, key: str) -> tuple[Write[T], ...]:
        """Return the key's writes in progress or of unknown outcome, and forget the others; with the lock held."""
        found = [write for write in self._writes.get(key, ()) if self._is_active(write)]
        running = [write for write in found if write.lock.locked()]
        uncertain = [write for write in found if write not in running]
        active = (*uncertain[-1:], *running)
        if active:
            self._writes[key] = active
        else:
            self._writes.pop(key, None)
        return active

    def _drop(self, key: str) -> None:
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._bytes -= entry.size

    def _evict(self) -> None:
        if self._bytes > self._max_bytes:
            self._bytes = sum(entry.size for entry in list(self._entries.values()))
        while len(self._entries) > self._max_entries or (self._entries and self._bytes > self._max_bytes):
            _, entry = self._entries.popitem(last=False)
            self._bytes -= entry.size
            self.evictions += 1
