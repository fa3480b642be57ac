"""The views of a store: each operation asks for one listing, however many keys it looks at."""

from __future__ import annotations

import operator
import sys
from abc import abstractmethod
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Set, Sized, ValuesView
from typing import Any, Final, Generic, TypeVar

V = TypeVar("V")


def call_site(depth: int) -> tuple[int, int]:
    """Return which instruction of which frame, so many calls up, is being executed."""
    frame = sys._getframe(depth)  # noqa: SLF001 - nothing else tells who asks
    return id(frame), frame.f_lasti


class LengthHint:
    """
    The length of the snapshot that an iteration was just begun on.

    ``list(x)`` calls ``iter(x)`` and then ``len(x)``, only to guess how much memory it needs: over a network, a second
    listing for nothing. Both calls come from one instruction of one frame, as no ordinary ``len(x)`` does.
    """

    def __init__(self) -> None:
        self._noted: tuple[int, int, int] | None = None

    def note(self, length: int) -> None:
        """Keep the length for the instruction that called the caller."""
        self._noted = (*call_site(3), length)

    def take(self) -> int | None:
        """Return the length if the instruction that noted it asks for it now; it is given once."""
        noted, self._noted = self._noted, None
        return noted[2] if noted is not None and noted[:2] == call_site(3) else None

    def forget(self) -> None:
        """Drop what was kept, for the keys have changed."""
        self._noted = None


class _View(Sized, Generic[V]):
    """What the three views share; `listing` gives the keys, `read` the pairs of those keys that are still there."""

    def __init__(
        self,
        mapping: Mapping[str, V],
        listing: Callable[[], list[str]],
        read: Callable[[list[str]], Iterator[tuple[str, V]]],
    ) -> None:
        self.mapping = mapping
        self._mapping = mapping  # what collections.abc's views look into
        self._listing = listing
        self._read = read
        self._hint = LengthHint()

    def __len__(self) -> int:
        length = self._hint.take()
        return len(self._listing()) if length is None else length

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.mapping!r}>"  # without what it holds: that would be requests


_BUILT_IN: Final = (set, frozenset, KeysView, ItemsView)


def _on_snapshot(operation: Callable[[Any, Any], Any], *, swapped: bool = False) -> Any:
    def method(self: _SetView[Any], other: object) -> Any:
        if isinstance(other, _SetView):
            other = other.snapshot()
        elif isinstance(other, Iterable) and (swapped or (isinstance(other, Set) and not isinstance(other, _BUILT_IN))):
            other = set(other)  # `dict`'s views work with sets of the language only
        return operation(other, self.snapshot()) if swapped else operation(self.snapshot(), other)

    return method


class _SetView(_View[V]):
    """The set operations, each as `dict`'s own view does it, on a snapshot."""

    @abstractmethod
    def snapshot(self) -> Set[Any]:
        """Return what the view shows now, as the view of a `dict`."""

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
    __hash__ = None  # type: ignore[assignment]  # as dict's views: what it shows changes


class StoreKeys(_SetView[V], KeysView[str]):
    """The keys of a store, in the listing's order."""

    def snapshot(self) -> KeysView[str]:
        """Return the keys as they are now."""
        return dict.fromkeys(self._listing()).keys()

    def __iter__(self) -> Iterator[str]:
        keys = self._listing()
        self._hint.note(len(keys))
        return iter(keys)

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._listing())


class StoreItems(_SetView[V], ItemsView[str, V]):
    """The keys and values of a store; iteration goes over the keys there were when it began, less those gone since."""

    def snapshot(self) -> ItemsView[str, V]:
        """Return the pairs as they are now."""
        return dict(self._read(self._listing())).items()

    def __iter__(self) -> Iterator[tuple[str, V]]:
        keys = self._listing()
        self._hint.note(len(keys))
        return self._read(keys)

    def __reversed__(self) -> Iterator[tuple[str, V]]:
        return self._read(self._listing()[::-1])


class StoreValues(_View[V], ValuesView[V]):
    """The values of a store; iteration goes over the keys there were when it began, less those gone since."""

    def __iter__(self) -> Iterator[V]:
        keys = self._listing()
        self._hint.note(len(keys))
        return (value for _, value in self._read(keys))

    def __contains__(self, value: object) -> bool:
        return any(each is value or each == value for _, each in self._read(self._listing()))

    def __reversed__(self) -> Iterator[V]:
        return (value for _, value in self._read(self._listing()[::-1]))
