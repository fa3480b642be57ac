"""The contract of the standard library's `shelve` over a store: any picklable value, written back on request."""

from __future__ import annotations

import io
import shelve
from collections.abc import ItemsView, Iterable, Iterator, ValuesView
from typing import TYPE_CHECKING, Any

from cloudstore_mapping.client import codec
from cloudstore_mapping.client.envelopes import Envelopes
from cloudstore_mapping.errors import BulkError

if TYPE_CHECKING:
    from cloudstore_mapping.client.mapping import CloudStoreMapping


class Shelf(shelve.Shelf[Any]):
    """
    A dictionary of any picklable values, kept in a store.

    Parameters
    ----------
    dict
        The store, which `close` closes.
    envelopes
        How values are written.
    writeback
        Whether values that were read are kept, and written by `sync` and `close` if they were changed.
    readonly
        Whether every change is refused.

    Notes
    -----
    Unlike the standard library's, a value that could not be written is never served as if it had been, a `sync` that
    fails keeps what it could not write and can be tried again, and a `close` whose `sync` fails leaves the shelf open.
    """

    _before: dict[str, bytes]  # of each kept value, what is stored of it

    def __init__(
        self,
        dict: CloudStoreMapping[Any],  # noqa: A002 - as the standard library calls it
        envelopes: Envelopes,
        *,
        writeback: bool = False,
        readonly: bool = False,
    ) -> None:
        self.dict: Any = dict
        self.writeback = writeback
        self.cache: Any = {}
        self._before = {}
        self._envelopes = envelopes
        self._readonly = readonly
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self.dict!r}>"

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, key: object) -> bool:
        return key in self.cache or key in self._open

    def __getitem__(self, key: str) -> Any:
        store = self._open
        if key in self.cache:
            return self.cache[key]
        return self._kept(key, store[key])

    def get(self, key: str, default: Any = None) -> Any:
        """Return the key's value, or `default` where there is none."""
        try:
            return self[key]
        except KeyError:
            return default

    def __setitem__(self, key: str, value: Any) -> None:
        store = self._writable
        stored = self._envelopes.dump(_text(key), value)
        self._forget(key)
        store[key] = stored
        self._keep(key, value, stored)

    def __delitem__(self, key: str) -> None:
        store = self._writable
        self._forget(key)
        del store[key]

    def items(self) -> ItemsView[str, Any]:
        """Return a view of keys and values, which reads many at once."""
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        """Return a view of the values, which reads many at once."""
        return _Values(self)

    def pairs(self) -> Iterator[tuple[str, Any]]:
        """Yield each key with its value, read in as few requests as the service lets one."""
        for key, stored in self._open.items():
            yield key, self.cache[key] if key in self.cache else self._kept(key, stored)

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Save many values, in as few requests as the service lets one."""
        store = self._writable
        values: dict[str, Any] = {}
        values.update(other, **more)
        stored = {key: self._envelopes.dump(_text(key), value) for key, value in values.items()}
        for key in stored:
            self._forget(key)
        done: Iterable[str] = ()
        try:
            store.update(stored)
            done = stored
        except BulkError as error:
            done = error.succeeded
            raise
        finally:
            for key in done:
                self._keep(key, values[key], stored[key])

    def clear(self) -> None:
        """Delete all keys."""
        store = self._writable
        self.cache.clear()
        self._before.clear()
        store.clear()

    def sync(self) -> None:
        """
        Write back all kept values that were changed, and keep them no longer.

        Where that fails they stay, to be tried again: `BulkError` or what failed.
        """
        store = self._open
        if not self._readonly:
            changed = {key: self._envelopes.dump(key, value) for key, value in self.cache.items()}
            written = {key: bytes(codec.dump(stored)) for key, stored in changed.items()}
            try:
                store.update({key: changed[key] for key in changed if written[key] != self._before[key]})
            except BulkError as error:
                self._before.update((key, written[key]) for key in error.succeeded)
                raise
        self.cache.clear()
        self._before.clear()

    def close(self) -> None:
        """Write back what was changed, and close the store; any further use is `ValueError`."""
        if self._closed:
            return
        self.sync()
        self._closed = True
        self.dict.close()

    def __del__(self) -> None:
        # One that is forgotten writes back as the standard library's does; one whose making failed has nothing to.
        if vars(self).get("_closed") is False:
            self.close()

    @property
    def _open(self) -> Any:
        if self._closed:
            raise ValueError("invalid operation on closed shelf")
        return self.dict

    @property
    def _writable(self) -> Any:
        store = self._open
        if self._readonly:
            raise io.UnsupportedOperation("The shelf is open for reading only; open it with the flag 'w' or 'c'.")
        return store

    def _kept(self, key: str, stored: Any) -> Any:
        value = self._envelopes.load(key, stored)
        self._keep(key, value, stored)
        return value

    def _keep(self, key: str, value: Any, stored: Any) -> None:
        if self.writeback:
            self.cache[key] = value
            self._before[key] = bytes(codec.dump(stored))

    def _forget(self, key: str) -> None:
        self.cache.pop(key, None)
        self._before.pop(key, None)


class _Items(ItemsView[str, Any]):
    def __iter__(self) -> Iterator[tuple[str, Any]]:
        shelf: Any = self._mapping  # type: ignore[attr-defined]  # as collections.abc has it
        return shelf.pairs()  # type: ignore[no-any-return]  # a shelf's


class _Values(ValuesView[Any]):
    def __iter__(self) -> Iterator[Any]:
        shelf: Any = self._mapping  # type: ignore[attr-defined]  # as collections.abc has it
        return (value for _, value in shelf.pairs())


def _text(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"Keys are str, not {type(key).__name__}; convert {key!r} first.")
    return key
