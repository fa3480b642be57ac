"""
Key, value and item views of a store, with length hint and read-ahead.

Each operation on a view fetches a single listing, however many keys it looks at.
"""

from __future__ import annotations

import operator
import sys
from abc import abstractmethod
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, Set, Sized, ValuesView
from typing import Any, Final, Generic, TypeAlias, TypeVar

from cloudstore_mapping.client.cache import Found
from cloudstore_mapping.errors import CloudStoreError

V = TypeVar("V")

#: Value of a key, or the reason why it can't be read.
Result: TypeAlias = Found[bytes] | CloudStoreError

#: Fewer keys are loaded without read-ahead.
MIN_READ_AHEAD: Final = 2

_END: Final = object()


def call_site(depth: int) -> tuple[int, int]:
    """Return the frame `depth` calls up, and its current instruction."""
    frame = sys._getframe(depth)  # noqa: SLF001 - there is no public way to recognise the caller
    return id(frame), frame.f_lasti


class LengthHint:
    """
    Length of the listing used by an iteration just begun.

    ``list(x)`` calls ``iter(x)`` and then ``len(x)``, only to guess the memory it needs, and a second listing would be
    wasted. Both calls come from the same instruction of the same frame; an ordinary ``len(x)`` does not.
    """

    def __init__(self) -> None:
        self._noted: tuple[int, int, int] | None = None

    def note(self, length: int) -> None:
        """Keep the length for the instruction calling the caller."""
        self._noted = (*call_site(3), length)

    def take(self) -> int | None:
        """Return the length, once, if asked by the instruction that noted it."""
        noted, self._noted = self._noted, None
        return noted[2] if noted is not None and noted[:2] == call_site(3) else None

    def forget(self) -> None:
        """Drop the length after a change of keys."""
        self._noted = None


class ReadAhead:
    """
    Read-ahead for ``dict(store)`` and ``{**store}``, so that they need no more requests than ``dict(store.items())``.

    Both call ``keys()`` and then look up every key, from the same instruction of the same frame, in order and with the
    same `str` objects. No other code does, so only then values are loaded many at a time and handed out once.
    """

    def __init__(
        self, listing: Callable[[], list[str]], read: Callable[[Sequence[str]], Iterator[tuple[str, Result]]]
    ) -> None:
        self._frame, self._instruction = call_site(3)
        self._listing = listing
        self._read = read
        self._rest: Iterator[str] = iter(())
        self._next: object = _END
        self._results: Iterator[tuple[str, Result]] = iter(())

    def listing(self) -> list[str]:
        """Return the keys, and remember them."""
        keys = self._listing()
        self._results = self._read(keys)
        self._rest = iter(keys if len(keys) >= MIN_READ_AHEAD else ())
        self._next = next(self._rest, _END)
        return keys

    def take(self, key: object) -> Result | None:
        """Return the value read ahead for this key, None for any other lookup."""
        if key is not self._next:
            return None
        frame = sys._getframe(2)  # noqa: SLF001 - like `call_site`, but without a call per key
        if id(frame) != self._frame or frame.f_lasti != self._instruction:
            return None
        self._next = next(self._rest, _END)
        _, result = next(self._results)
        if self._next is _END:
            next(self._results, None)  # finishes the iteration
        return result


class _View(Sized, Generic[V]):
    """Base of the views; `listing` returns the keys, `read` yields the pairs of keys that still exist."""

    def __init__(
        self,
        mapping: Mapping[str, V],
        listing: Callable[[], list[str]],
        read: Callable[[list[str]], Iterator[tuple[str, V]]],
    ) -> None:
        self.mapping = mapping
        self._mapping = mapping  # used by the views of collections.abc
        self._listing = listing
        self._read = read
        self._hint = LengthHint()

    def __len__(self) -> int:
        length = self._hint.take()
        return len(self._listing()) if length is None else length

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.mapping!r}>"  # without the content, as that would send requests


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


class StoreKeys(_SetView[V], KeysView[str]):
    """Keys of a store, in the listing's order."""

    def snapshot(self) -> KeysView[str]:
        """Return the current keys."""
        return dict.fromkeys(self._listing()).keys()

    def __iter__(self) -> Iterator[str]:
        keys = self._listing()
        self._hint.note(len(keys))
        return iter(keys)

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._listing())


class StoreItems(_SetView[V], ItemsView[str, V]):
    """Keys and values of a store; iteration uses the keys at its beginning, except keys deleted since."""

    def snapshot(self) -> ItemsView[str, V]:
        """Return the current pairs."""
        return dict(self._read(self._listing())).items()

    def __iter__(self) -> Iterator[tuple[str, V]]:
        keys = self._listing()
        self._hint.note(len(keys))
        return self._read(keys)

    def __reversed__(self) -> Iterator[tuple[str, V]]:
        return self._read(self._listing()[::-1])


class StoreValues(_View[V], ValuesView[V]):
    """Values of a store; iteration uses the keys at its beginning, except keys deleted since."""

    def __iter__(self) -> Iterator[V]:
        keys = self._listing()
        self._hint.note(len(keys))
        return (value for _, value in self._read(keys))

    def __contains__(self, value: object) -> bool:
        return any(each is value or each == value for _, each in self._read(self._listing()))

    def __reversed__(self) -> Iterator[V]:
        return (value for _, value in self._read(self._listing()[::-1]))
