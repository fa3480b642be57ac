"""The store as a `MutableMapping`: every key a file, every operation a request."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Self, TypeVar, overload

from msgspec import UNSET

from cloudstore_mapping.client import codec
from cloudstore_mapping.client.beyond import NOT_GIVEN, BeyondDict
from cloudstore_mapping.client.copying import Copying
from cloudstore_mapping.client.views import LengthHint, StoreItems, StoreKeys, StoreValues
from cloudstore_mapping.errors import ChangedError, CloudStoreError, NoFileError
from cloudstore_mapping.merge import merge

V = TypeVar("V")
D = TypeVar("D")


class CloudStoreMapping(BeyondDict[V], MutableMapping[str, V]):
    """
    A CloudStore account as a dictionary from `str` to JSON values.

    What is read is made anew at each read: changing it changes neither the store nor another read. A key that isn't
    there is `KeyError` (`NoFileError`); a service that isn't reached, refuses or can't be understood is another error,
    never a `KeyError`, and so goes through `get`, `in`, `pop` with a default and `setdefault`.

    Parameters
    ----------
    api_key
        The account's key.
    server
        The service's address; the environment's ``CLOUDSTORE_SERVER`` replaces the default one.
    passwords
        From key to the file's password, or to a `Password` with two; asked at each request.
    password
        The password of every other file.
    media_password
        The edit password of media files, where `upload` isn't given another one.
    cache_ttl
        Seconds for which what was read, saved or listed may be answered again without asking; None: not at all.
    cache_size, cache_bytes
        How many values are kept, and how many bytes of JSON they may take together.
    cache_absent_ttl
        Seconds for which it may be answered without asking that a key isn't there; None: not at all.
    timeout
        Seconds to wait for a connection, and for each part of a reply; or one number for both.
    retries
        How often a request that failed on the way is sent again.
    min_interval
        Seconds between two requests; None: 3.0 for the vendor's own service, which asks for it, else none.
    max_workers
        Requests under way at once when many keys are read or written; a service that sets a pace gets one at a time.
    progress
        A function of how many keys are done and how many there are, called during work on many keys; True: a bar.
    session
        A `requests.Session` of your own, with its proxies, hooks and adapters; it stays open at the end.
    insecure
        Allow plain http to another machine: the API key and all data can then be read on the way.
    pickle_secrets
        Let API key and passwords come along when the store is pickled; else the one who unpickles it has to have
        ``CLOUDSTORE_URL`` set to its address.
    clock
        Monotonic seconds, by which the cache and the pace go; for tests. One that has a method `sleep` is also waited
        on: see `testing.FrozenClock`.
    transport
        Another way to a service than HTTP; the store closes it at the end.

    Notes
    -----
    Threads may share a store. Work on many keys goes on when a part of it fails, and then raises `BulkError`.
    """

    def __getitem__(self, key: str) -> V:
        copying: Copying | None = getattr(self._local, "copying", None)
        if copying is not None:
            outcome = copying.take(key)
            if isinstance(outcome, CloudStoreError):
                raise outcome
            if outcome is not None:
                return self._decoded(outcome)
            self._local.copying = None
        return self._decoded(self._files.load(self._text(key)))

    def __setitem__(self, key: str, value: V) -> None:
        text = self._writable(key)
        self._save(text, codec.dump(value))

    def __delitem__(self, key: str) -> None:
        self._delete(self._text(key))

    def __contains__(self, key: object) -> bool:
        text = self._readable(key)
        return text is not None and self._files.has(text)

    def __iter__(self) -> Iterator[str]:
        keys = self._keys()
        self._hint.note(len(keys))
        return iter(keys)

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._keys())

    def __len__(self) -> int:
        length = self._hint.take()
        return len(self._keys()) if length is None else length

    def keys(self) -> StoreKeys[V]:
        """Return a view of the keys."""
        copying = self._local.copying = Copying(self._keys, self._outcomes)
        return StoreKeys(self, copying.listing, self._read)

    def values(self) -> StoreValues[V]:
        """Return a view of the values; an iteration over it loads them as it goes."""
        return StoreValues(self, self._keys, self._read)

    def items(self) -> StoreItems[V]:
        """Return a view of the keys and values; an iteration over it loads the values as it goes."""
        return StoreItems(self, self._keys, self._read)

    @overload
    def get(self, key: str, /) -> V | None: ...
    @overload
    def get(self, key: str, /, default: V | D) -> V | D: ...
    def get(self, key: str, /, default: object = None) -> object:
        """Return the key's value, or `default` where it isn't there; no other failure is taken for that."""
        try:
            return self[key]
        except KeyError:
            return default

    @overload
    def pop(self, key: str, /) -> V: ...
    @overload
    def pop(self, key: str, /, default: V | D) -> V | D: ...
    def pop(self, key: str, /, default: object = NOT_GIVEN) -> object:
        """
        Remove the key and return its value.

        Two requests; atomic where the service has versions, elsewhere another client may do something in between.
        """
        try:
            return self._pop(self._text(key))
        except KeyError:
            if default is NOT_GIVEN:
                raise
            return default

    def _pop(self, key: str) -> V:
        while True:
            atomic = self._files.supports("version")
            # What is kept may be old, but then its version doesn't stand; an absence has none.
            found = (self._files.kept(key) if atomic else None) or self._files.fresh(key)
            try:
                self._delete(key, found.version if found.version is not None else UNSET)
            except ChangedError:
                continue
            return self._decoded(found)

    def popitem(self) -> tuple[str, V]:
        """Remove the last listed key, and return it with its value; `KeyError` where there is none."""
        for key in reversed(self._keys()):
            try:
                return key, self._pop(key)
            except NoFileError:  # another client was faster; the one before it then
                continue
        raise KeyError("popitem(): the store is empty")

    @overload
    def setdefault(self: CloudStoreMapping[V | None], key: str, default: None = None, /) -> V | None: ...
    @overload
    def setdefault(self, key: str, default: V, /) -> V: ...
    def setdefault(self, key: str, default: Any = None, /) -> Any:
        """
        Return the key's value; where it isn't there, save `default` first.

        A second request then; atomic where the service has versions, elsewhere the last one wins.
        """
        text = self._writable(key)
        new = codec.dump(default)
        while True:
            try:
                return self._decoded(self._files.load(text))
            except NoFileError:
                try:
                    self._save(text, new, None if self._files.supports("version") else UNSET)
                except ChangedError:
                    self._files.forget(text)
                else:
                    return codec.load(new)

    def update(self, other: Any = (), /, **values: V) -> None:
        """Save all pairs of a mapping, or of an iterable of pairs, and of the keywords; a later one of a key wins."""
        encoded = {self._writable(key): codec.dump(value) for key, value in (*_pairs(other), *values.items())}
        self._change_many(self._files.changes.saving([*encoded.items()]))

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc]  # merges, where MutableMapping replaces
        # A key's merges stay apart and in order: folded into one they could leave something else.
        merges = [(self._writable(key), codec.dump(value)) for key, value in _pairs(other)]
        self._change_many(self._files.changes.merging(merges))
        return self

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        """Return the dictionary that ``store |= other`` would leave, and write nothing."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return _merged(self.items(), self._jsonable(other))

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        """Return the dictionary that merging the store into `other` would leave, and write nothing."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return _merged(self._jsonable(other), self.items())

    def __eq__(self, other: object) -> bool:
        if self is other:
            self._check_open()
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        theirs = other.copy() if isinstance(other, CloudStoreMapping) else other
        keys = self._keys()
        if len(keys) != len(theirs) or any(key not in theirs for key in keys):
            return False
        read = 0
        for key, value in self._read(keys):
            if value != theirs[key]:
                return False
            read += 1
        return read == len(keys)

    __hash__ = None  # type: ignore[assignment]  # like dict's: it changes

    def clear(self) -> None:
        """Delete every key that is listed now."""
        self._change_many(self._files.changes.deleting(self._keys()), absent_is_done=True)

    def view(self, prefix: str) -> StoreView[V]:
        """Return the keys that begin with `prefix` as a mapping of their own, in which they stand without it."""
        return StoreView(self, self._writable(prefix))

    def copy(self) -> dict[str, V]:
        """Return all keys and values as a plain dictionary."""
        return dict(self.items())

    def _jsonable(self, other: Mapping[str, Any]) -> list[tuple[str, Any]]:
        return [(self._writable(key), codec.load(codec.dump(value))) for key, value in _pairs(other)]


class StoreView(CloudStoreMapping[V]):
    """
    The keys of a store that begin with a prefix, without it; made by `CloudStoreMapping.view`.

    It lives as long as its store, whose connections and cache it uses: closing it does nothing.
    """

    def __init__(self, store: CloudStoreMapping[V], prefix: str) -> None:
        vars(self).update(vars(store))
        self._store = store
        self._prefix = prefix
        self._files = store._files.under(prefix)  # noqa: SLF001 - a store as well
        self._local = threading.local()
        self._hint = LengthHint()

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreView, (self._store, self._prefix)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._prefix!r} of {self._store!r}>"

    def close(self) -> None:
        """Do nothing: the connections are the store's."""

    def _check_open(self) -> None:
        self._store._check_open()  # noqa: SLF001 - a store as well

    def _identity(self) -> tuple[str, ...]:
        return (*self._store._identity(), self._prefix)  # noqa: SLF001 - a store as well

    def _file(self) -> Path | None:
        return self._store._file()  # noqa: SLF001 - a store as well


def _pairs(other: Any) -> Iterable[tuple[Any, Any]]:
    """Return the pairs that `dict.update` would see."""
    if isinstance(other, Mapping):
        return other.items()
    if hasattr(other, "keys"):
        return [(key, other[key]) for key in other.keys()]  # noqa: SIM118 - it may have nothing else
    return [(key, value) for key, value in other]


def _merged(onto: Iterable[tuple[str, Any]], pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(onto)
    for key, value in pairs:
        result[key] = merge(result.get(key), value)
    return result
