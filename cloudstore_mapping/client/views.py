"""
Key, value and item views of a store: lazy listings, and read-ahead for ``dict(store)``.

Each operation on a view fetches a single listing, however many keys it looks at.
"""

from __future__ import annotations

import operator
import threading
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import (
    Callable,
    Generator,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    Set,
    Sized,
    ValuesView,
)
from typing import Any, Final, Generic, TypeAlias, TypeVar

from cloudstore_mapping.client.bulk import Bulk, reported
from cloudstore_mapping.client.cache import Found
from cloudstore_mapping.client.files import OpenStore
from cloudstore_mapping.client.retry import WRITES
from cloudstore_mapping.errors import CloudStoreError, NoFileError

V = TypeVar("V")

#: Value of a key, or the reason why it can't be read.
Result: TypeAlias = Found[bytes] | CloudStoreError

#: Seconds during which a value read ahead may be used, from the arrival of its page.
LIFETIME: Final = 0.05
#: Seconds during which further pages are read before the first value is used, from the arrival of the first page.
READING_TIME: Final = LIFETIME / 2


class _PendingIteration:
    """
    Iteration before its first step.

    `keys` is a listing from `len`, to be used until the clock shows `until`, and `mark` the mark of writes before it.
    """

    def __init__(self) -> None:
        self.keys: list[str] | None = None
        self.mark = 0
        self.until = 0.0
        self.thread = threading.get_ident()


class Listing:
    """
    Keys of a store or view, fetched by each `length`, and by an iteration at its first step.

    ``list(x)`` calls ``iter(x)``, then ``len(x)`` to reserve memory, then takes the first step. So `length` hands its
    listing to the latest iteration of the same thread, for `LIFETIME`, unless that took a step or this process began a
    write.

    Notes
    -----
    Thread safe; an iteration belongs to a single thread.
    """

    def __init__(self, fetch: Callable[[], list[str]], store: OpenStore) -> None:
        self.fetch = fetch
        self._store = store
        self._local = threading.local()

    def length(self) -> int:
        """Return the number of keys now."""
        mark = WRITES.latest
        keys = self.fetch()
        reference: weakref.ref[_PendingIteration] | None = getattr(self._local, "pending", None)
        pending = None if reference is None else reference()
        if pending is not None:
            pending.keys, pending.mark, pending.until = keys, mark, self._store.clock() + LIFETIME
        return len(keys)

    def begin(self) -> Callable[[], list[str]]:
        """Begin an iteration; return the function to call at its first step, which returns the keys."""
        pending = _PendingIteration()
        self._local.pending = weakref.ref(pending)

        def keys() -> list[str]:
            if pending.keys is None or pending.mark != WRITES.latest or pending.thread != threading.get_ident():
                return self.fetch()
            return pending.keys if self._store.clock() <= pending.until else self.fetch()

        return keys

    def steps(self, keys: Iterable[str]) -> Iterator[str]:
        """Yield the keys; `ValueError` once the store is closed."""
        store = self._store
        for key in keys:
            if store.is_closed:
                store.check_open()
            yield key

    def __iter__(self) -> Iterator[str]:
        return self._steps(self.begin())

    def _steps(self, first: Callable[[], list[str]]) -> Iterator[str]:
        keys = first()
        del first  # a later `len` hands over nothing
        yield from self.steps(keys)

    def __reversed__(self) -> Iterator[str]:
        return self._steps(lambda: self.fetch()[::-1])


class _Page:
    """Results read at once, to be used in their order until the clock shows `until` or the mark of writes changes."""

    def __init__(self, results: Sequence[Result], mark: int, until: float) -> None:
        self.results = results
        self.mark = mark
        self.until = until
        self.used = 0


class ReadAhead:
    """
    Values of listed keys, read a page at a time, for lookups in the listed order.

    A value is used once, within `LIFETIME` of its page's arrival, and never after this process began a write. After a
    page lost that way the next page has as many values as were used of it; after a page used up in time, twice as many.
    So a slow loop, or a loop that writes, soon loads a single value at a time.
    """

    def __init__(self, keys: list[str], bulk: Bulk, clock: Callable[[], float]) -> None:
        self._keys = keys
        self._bulk = bulk
        self._clock = clock
        self._next = 0
        self._size = bulk.page_size
        self._page = self._new_page(())  # lost if the first lookup does not follow soon
        self._pages: deque[_Page] = deque()
        self._reported: Iterator[Result] | None = None

    def existing(self) -> Iterator[str]:
        """
        Yield the keys, reading their values first to leave out keys deleted since the listing.

        Stops reading before the first value would get too old; the rest of the keys are yielded as listed.
        """
        listed, self._keys = self._keys, []
        done = 0
        duration = 0.0
        latest = self._clock()
        while done < len(listed) and self._clock() + duration <= latest:
            began = self._clock()
            chunk = listed[done : done + self._size]
            page = self._read(chunk, listed[done - 1] if done else None)
            duration = self._clock() - began
            if not done:
                latest = self._clock() + READING_TIME
            done += len(chunk)
            found = [pair for pair in zip(chunk, page.results, strict=True) if not isinstance(pair[1], NoFileError)]
            page.results = [result for _, result in found]
            self._pages.append(page)
            for key, _ in found:
                self._keys.append(key)
                yield key
        for key in listed[done:]:
            self._keys.append(key)
            yield key
        self._page = self._new_page(())
        progress = self._bulk.files.store.progress
        if progress is not None:
            self._reported = reported(self._in_order(), progress, len(self._keys))

    def take(self, key: object) -> Result | None:
        """Return the result of the next key, None for any other."""
        if self._next == len(self._keys) or key is not self._keys[self._next]:
            return None
        result = self._next_result() if self._reported is None else next(self._reported, None)
        self._next += 1
        if self._reported is not None and self._next == len(self._keys):
            next(self._reported, None)  # finishes the report
        return result

    def _in_order(self) -> Generator[Result, None, None]:
        while self._next < len(self._keys):
            yield self._next_result()

    def _next_result(self) -> Result:
        page = self._page
        if page.used == len(page.results) or page.mark != WRITES.latest or self._clock() > page.until:
            page = self._page_of_next()
        page.used += 1
        return page.results[page.used - 1]

    def _page_of_next(self) -> _Page:
        """Return the page with the next result, a new page if the old is used up or lost."""
        page = self._page
        while page.mark == WRITES.latest and self._clock() <= page.until:
            if page.used < len(page.results):
                return page
            if not self._pages:
                self._size = min(2 * self._size, self._bulk.page_size)
                break
            page = self._page = self._pages.popleft()
        else:
            self._pages.clear()
            if page.used or not page.results:
                self._size = max(1, page.used)
        start = self._next
        keys = self._keys[start : start + self._size]
        self._page = self._read(keys, self._keys[start - 1] if start else None)
        return self._page

    def _read(self, keys: Sequence[str], after: str | None) -> _Page:
        mark = WRITES.latest
        results = self._bulk.read_page(keys, after)
        return self._new_page(results, mark)

    def _new_page(self, results: Sequence[Result], mark: int | None = None) -> _Page:
        return _Page(results, WRITES.latest if mark is None else mark, self._clock() + LIFETIME)


class _View(Sized, Generic[V]):
    """
    Base of the views; `listing` has the keys, `read` yields the pairs of keys that still exist.

    `read_in_steps` does so for a loop of the program, which sees its own writes.
    """

    def __init__(
        self,
        mapping: Mapping[str, V],
        listing: Listing,
        read: Callable[[list[str]], Iterator[tuple[str, V]]],
        read_in_steps: Callable[[list[str]], Iterator[tuple[str, V]]],
    ) -> None:
        self.mapping = mapping
        self._mapping = mapping  # used by the views of collections.abc
        self._listing = listing
        self._read = read
        self._read_in_steps = read_in_steps

    def __len__(self) -> int:
        return self._listing.length()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.mapping!r}>"  # without the content, as that would send requests

    def _pairs(self, first: Callable[[], list[str]]) -> Iterator[tuple[str, V]]:
        """Yield the pairs of the keys returned by `first`, called at the first step."""
        keys = first()
        del first  # a later `len` hands over nothing
        yield from self._read_in_steps(keys)

    def _reversed_pairs(self) -> Iterator[tuple[str, V]]:
        return self._pairs(lambda: self._listing.fetch()[::-1])


_BUILT_IN: Final = (set, frozenset, KeysView, ItemsView)


def _on_snapshot(operation: Callable[[Any, Any], Any], *, swapped: bool = False) -> Any:
    def method(self: _SetView[Any], other: object) -> Any:
        if isinstance(other, _SetView):
            other = other.snapshot()
        elif isinstance(other, Iterable) and (swapped or (isinstance(other, Set) and not isinstance(other, _BUILT_IN))):
            other = set(other)  # the views of `dict` only accept built-in sets
        return operation(other, self.snapshot()) if swapped else operation(self.snapshot(), other)

    return method


class _SetView(_View[V]):
    """Set operations, with the results of `dict`'s own views, on a snapshot."""

    @abstractmethod
    def snapshot(self) -> Set[Any]:
        """Return the current content as a view of a `dict`."""

    __eq__ = _on_snapshot(operator.eq)
    __ne__ = _on_snapshot(operator.ne)
    __lt__ = _on_snapshot(operator.lt)
    __le__ = _on_snapshot(operator.le)
    __gt__ = _on_snapshot(operator.gt)
    __ge__ = _on_snapshot(operator.ge)
    __and__ = __rand__ = _on_snapshot(operator.and_)
    __or__ = __ror__ = _on_snapshot(operator.or_)
    __xor__ = __rxor__ = _on_snapshot(operator.xor)
    __sub__ = _on_snapshot(operator.sub)
    __rsub__ = _on_snapshot(operator.sub, swapped=True)
    isdisjoint = _on_snapshot(lambda snapshot, other: snapshot.isdisjoint(other))
    __hash__ = None  # type: ignore[assignment]  # mutable content, as for `dict`'s views


class _KeyIterator(Iterator[str]):
    """
    Iterator of `StoreKeys`; after its first step, values looked up in its order are read ahead.

    ``dict(store)`` makes a list of the iterator, which asks for its length first, and then looks up all keys of the
    list. In this case values are read before the keys are yielded, and keys deleted meanwhile are left out.
    """

    def __init__(self, listing: Listing, read_ahead: Callable[[list[str]], ReadAhead]) -> None:
        self._is_listed = False
        self._steps = self._start(listing, listing.begin(), read_ahead)

    def _start(
        self, listing: Listing, first: Callable[[], list[str]], read_ahead: Callable[[list[str]], ReadAhead]
    ) -> Iterator[str]:
        keys = first()
        del first  # a later `len` hands over nothing
        ahead = read_ahead(keys)
        yield from listing.steps(ahead.existing() if self._is_listed else keys)

    def __next__(self) -> str:
        return next(self._steps)

    def __length_hint__(self) -> int:
        self._is_listed = True
        return NotImplemented  # type: ignore[no-any-return]  # as the protocol says


class StoreKeys(_SetView[V], KeysView[str]):
    """Keys of a store, in the listing's order; an iteration uses the keys at its first step."""

    def __init__(
        self,
        mapping: Mapping[str, V],
        listing: Listing,
        read: Callable[[list[str]], Iterator[tuple[str, V]]],
        read_in_steps: Callable[[list[str]], Iterator[tuple[str, V]]],
        read_ahead: Callable[[list[str]], ReadAhead],
    ) -> None:
        super().__init__(mapping, listing, read, read_in_steps)
        self._read_ahead = read_ahead

    def snapshot(self) -> KeysView[str]:
        """Return the current keys."""
        return dict.fromkeys(self._listing.fetch()).keys()

    def __iter__(self) -> Iterator[str]:
        return _KeyIterator(self._listing, self._read_ahead)

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._listing)


class StoreItems(_SetView[V], ItemsView[str, V]):
    """Keys and values of a store; an iteration uses the keys at its first step, except keys deleted since."""

    def __contains__(self, item: object) -> bool:
        # As in `dict`, and unlike `collections.abc`: nothing but a pair is an item.
        return isinstance(item, tuple) and len(item) == 2 and super().__contains__(item)

    def snapshot(self) -> ItemsView[str, V]:
        """Return the current pairs."""
        return dict(self._read(self._listing.fetch())).items()

    def __iter__(self) -> Iterator[tuple[str, V]]:
        return self._pairs(self._listing.begin())

    def __reversed__(self) -> Iterator[tuple[str, V]]:
        return self._reversed_pairs()


class StoreValues(_View[V], ValuesView[V]):
    """Values of a store; an iteration uses the keys at its first step, except keys deleted since."""

    def __iter__(self) -> Iterator[V]:
        return (value for _, value in self._pairs(self._listing.begin()))

    def __contains__(self, value: object) -> bool:
        return any(each is value or each == value for _, each in self._read(self._listing.fetch()))

    def __reversed__(self) -> Iterator[V]:
        return (value for _, value in self._reversed_pairs())
