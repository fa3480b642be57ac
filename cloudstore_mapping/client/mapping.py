"""
The store as a `MutableMapping`: each key is a file, each operation a request.

`files_of` and `bulk_of` are the interface for the rest of this package, such as `transfer`; users need neither.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Self, TypeAlias, TypeVar, cast, overload

import msgspec
from msgspec import UNSET, Raw, UnsetType

from cloudstore_mapping.callback_client import MediaData, pacer_of
from cloudstore_mapping.client import codec
from cloudstore_mapping.client.address import (
    DEFAULT_SERVER,
    check_api_key,
    check_server,
    default_interval,
    parse_address,
    resolve_server,
)
from cloudstore_mapping.client.bulk import Bulk, WorkerPool
from cloudstore_mapping.client.cache import DEFAULT_BYTES, DEFAULT_ENTRIES, Cache, Found
from cloudstore_mapping.client.files import Change, Client, Files, Names, OpenStore, Password, Passwords
from cloudstore_mapping.client.media import Media, Place, download_media, media_of, upload_media
from cloudstore_mapping.client.options import check_options, pickled
from cloudstore_mapping.client.progress import Progress
from cloudstore_mapping.client.retry import read_only
from cloudstore_mapping.client.transport import (
    DEFAULT_DEADLINE,
    DEFAULT_TIMEOUT,
    HTTPTransport,
    Sendable,
    Transport,
    scope,
)
from cloudstore_mapping.client.views import Listing, ReadAhead, StoreItems, StoreKeys, StoreValues
from cloudstore_mapping.errors import BadValueError, BulkError, ChangedError, CloudStoreError, NoFileError, shorten
from cloudstore_mapping.interrupts import block
from cloudstore_mapping.keys import escape_key
from cloudstore_mapping.masking import hide, mask
from cloudstore_mapping.merge import merge
from cloudstore_mapping.wire import Reply

if TYPE_CHECKING:
    from cloudstore_mapping.client.transport import Session

D = TypeVar("D")
T = TypeVar("T")
V = TypeVar("V")

# In the body of `CloudStoreMapping`, `list` is a method.
Pairs: TypeAlias = list[tuple[str, Any]]
MediaFiles: TypeAlias = list[Media]

MISSING: Final = object()
_NULL: Final = b"null"

#: Keys offered to complete an index in IPython.
MAX_COMPLETIONS: Final = 1000
#: Maximum attempts of a `pop`, `setdefault` or `transform` while other clients change the key.
MAX_ATTEMPTS: Final = 100
#: Maximum seconds between two attempts: after the first collision, and after many.
FIRST_BACKOFF: Final = 0.001
LONGEST_BACKOFF: Final = 0.5


class StoreStats(NamedTuple):
    """Counters of a store: attempts by operation, retries among them, body bytes in each direction, cache."""

    requests: Mapping[str, int]
    retries: int
    bytes_sent: int
    bytes_received: int
    hits: int
    misses: int
    evictions: int


class CloudStoreMapping(MutableMapping[str, V]):
    """
    A CloudStore account as a dictionary from `str` to JSON values.

    Each read returns a new object: changing it changes neither the store nor another read. An absent key raises
    `KeyError` (`NoFileError`). A service out of reach, a refusal or an unreadable reply is another error, never a
    `KeyError`, so `get`, `in`, `pop` with a default and `setdefault` let it through.

    Parameters
    ----------
    api_key
        The account's key.
    server
        The service's address. The environment's ``CLOUDSTORE_SERVER`` replaces the default address, and no other.
    passwords
        From key to the file's password, or to a `Password` with two; looked up at each request.
    password
        The password of every other file.
    media_password
        The edit password of media files, unless given to `upload`.
    cache_ttl
        Seconds to keep values and listings read or saved; None: no cache.
    cache_size, cache_bytes
        Maximum number of cached values, and of their bytes of JSON.
    cache_absent_ttl
        Seconds to remember an absent key; None: not at all.
    timeout
        Seconds to wait for a connection, and for each part of a reply, in each attempt; or a single number for both.
    deadline
        Seconds for a request with all its attempts, waits and slow replies; None: no limit. Waits for the rate limit
        are not counted. For an upload or download, seconds without progress.
    retries
        Number of further attempts of a request after a failure on the way.
    min_interval
        Seconds between two requests of this process to the server; None: 3.0 for the vendor's own service, as it
        demands, otherwise none. Forked processes are limited separately: give each of n processes n times the seconds.
    max_workers
        Concurrent requests of work on many keys; a service with a minimum interval gets a single request at a time.
    progress
        Function of the keys done and their total, called during work on many keys; True: a progress bar.
    session
        A `requests.Session` of your own, with its proxies, hooks and adapters; it stays open. Mocks, recorders and
        instrumentations of `requests` see the requests with and without it.
    insecure
        Allow plain http to another machine: anybody on the network can then read the API key and all data.
    readonly
        Refuse every write with `ForbiddenError`, before any request.
    pickle_secrets
        Include the API key and passwords in a pickle of the store; otherwise ``CLOUDSTORE_URL`` must be set to its
        address when it is unpickled.
    clock
        Monotonic seconds for cache and rate limit, for tests. A clock with a method `sleep` is also used to wait: see
        `testing.FrozenClock`.
    transport
        Another way to a service than HTTP, closed with the store.

    Notes
    -----
    Thread safe, and usable in forked processes; docs/errors.md has the limits. Work on many keys continues after a
    failure, and then raises `BulkError`; once a request finds the service out of reach, the rest are not tried. None of
    its requests is in flight when it ends.

    A store is a handle, like an open file. `copy` returns its content as a dictionary. `copy.copy`, `copy.deepcopy`
    and so `dataclasses.asdict` raise `TypeError`, as a second handle would look like a copy of the data. A pickle
    opens a second handle on the same data.
    """

    def __init__(
        self,
        api_key: str,
        server: str | None = DEFAULT_SERVER,
        *,
        passwords: Mapping[str, str | Password | None] | None = None,
        password: str | None = None,
        media_password: str | None = None,
        cache_ttl: float | None = None,
        cache_size: int = DEFAULT_ENTRIES,
        cache_bytes: int = DEFAULT_BYTES,
        cache_absent_ttl: float | None = None,
        timeout: float | tuple[float, float] = DEFAULT_TIMEOUT,
        deadline: float | None = DEFAULT_DEADLINE,
        retries: int = 3,
        min_interval: float | None = None,
        max_workers: int = 8,
        progress: Progress = None,
        session: Session | None = None,
        insecure: bool = False,
        readonly: bool = False,
        pickle_secrets: bool = False,
        clock: Callable[[], float] = time.monotonic,
        transport: Transport | None = None,
    ) -> None:
        # Masked first: a traceback with local variables would show the secrets.
        api_key, password, media_password, passwords = map(mask, (api_key, password, media_password, passwords))
        if type(server) is str:
            server = hide(server)  # it may hold the key by mistake
        options = {
            "passwords": passwords,
            "password": password,
            "media_password": media_password,
            "cache_ttl": cache_ttl,
            "cache_size": cache_size,
            "cache_bytes": cache_bytes,
            "cache_absent_ttl": cache_absent_ttl,
            "timeout": timeout,
            "deadline": deadline,
            "retries": retries,
            "min_interval": min_interval,
            "max_workers": max_workers,
            "progress": progress,
            "session": session,
            "insecure": insecure,
            "readonly": readonly,
            "pickle_secrets": pickle_secrets,
            "clock": clock,
            "transport": transport,
        }
        check_options(options)
        api_key = check_api_key(api_key)
        pacer = reopen = None
        if transport is not None:
            location = str.__str__(server or "")
        else:
            location = check_server(resolve_server(server), insecure=insecure)
            transport = HTTPTransport(location, timeout=timeout, session=session)
            pacer = pacer_of(location)
            reopen = partial(_reopening, api_key if pickle_secrets else None, location)
            if min_interval is None:
                min_interval = default_interval(location)
        client = Client(
            transport,
            api_key,
            retries=retries,
            min_interval=min_interval or 0.0,
            deadline=deadline,
            pacer=pacer,
            clock=clock,
            sleep=getattr(clock, "sleep", None),
            readonly=readonly,
        )
        cache: Cache[bytes] | None = None
        listing: Cache[dict[str, None]] | None = None
        if cache_ttl is not None:
            cache = Cache(
                cache_ttl,
                entries=cache_size,
                max_bytes=cache_bytes,
                size=len,
                clock=clock,
                absent_ttl=cache_absent_ttl,
            )
            listing = Cache(cache_ttl, entries=1, max_bytes=1, size=lambda _: 0, clock=clock)
        account = hashlib.sha256(api_key.encode("utf-8", "surrogatepass")).hexdigest()
        store = OpenStore(
            client=client,
            passwords=Passwords(passwords, password),
            cache=cache,
            listing=listing,
            media_password=media_password,
            progress=progress,
            location=location,
            identity=(location, account),
            address=getattr(transport, "server", ""),
            options=pickled(options),
            reopen=reopen,
            clock=clock,
            is_readonly=readonly,
        )
        self._start(Files(store), WorkerPool(1 if min_interval else max_workers), None)

    def _start(self, files: Files, pool: WorkerPool, parent: CloudStoreMapping[V] | None) -> None:
        self._files = files
        self._bulk = Bulk(files, pool)
        self._store = parent
        self._local = threading.local()
        self._listing = Listing(self._keys, files.store)

    def view(self, prefix: str) -> CloudStoreMapping[V]:
        """
        Return a mapping of the keys beginning with `prefix`, which is removed from each key.

        The view shares the store's connections and cache, so closing it does nothing.
        """
        view: CloudStoreMapping[V] = CloudStoreMapping.__new__(CloudStoreMapping)
        view._start(self._files.under(self._check_key(prefix)), self._bulk.pool, self)
        return view

    def __repr__(self) -> str:
        kind = type(self).__name__
        if "_files" not in vars(self):
            return f"<{kind}, not opened>"  # in a traceback of `__init__`
        if self._store is not None:
            return f"<{kind} {self._view_prefix!r} of {self._store!r}>"
        store = self._files.store
        return f"<{kind} {store.location}{' (closed)' if store.is_closed else ''}>"

    def __copy__(self) -> NoReturn:
        raise TypeError("A store is not copied; write store.copy() for its content as a dict, or open it again.")

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._store is not None:
            return _view_of, (self._store, self._view_prefix)
        store = self._files.store
        if store.reopen is None:
            raise TypeError("A store over a transport of its own can't be pickled; open it again in the other process.")
        return store.reopen(type(self), store.options)

    @property
    def _view_prefix(self) -> str:
        outer = "" if self._store is None else files_of(self._store).prefix
        return self._files.prefix[len(outer) :]

    def close(self) -> None:
        """
        Close the connections, once no request of other threads is in flight; closing again changes nothing.

        Any further use raises `ValueError`, also in threads that iterate, retry, or wait for the rate limit. Nothing is
        written after `close` has returned.
        """
        if self._store is None:
            self._files.store.is_closed = True
            self._files.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _check_open(self) -> None:
        self._files.store.check_open()

    def _check_writable(self, key: object = None) -> None:
        self._files.store.check_open()
        if self._files.store.is_readonly:
            raise read_only(key if isinstance(key, str) else None)

    def _attempts(self, key: str) -> Iterator[AbstractContextManager[None]]:
        """
        Yield a context manager for each attempt of a conditional write: it suppresses `ChangedError`; wait in between.

        The last of `MAX_ATTEMPTS` context managers raises a `ChangedError` about all attempts instead.
        """
        backoff = FIRST_BACKOFF
        for _ in range(MAX_ATTEMPTS - 1):
            yield suppress(ChangedError)
            # Random, so that clients do not collide again.
            self._files.client.sleep(random.uniform(0, backoff))  # noqa: S311 - jitter
            backoff = min(2 * backoff, LONGEST_BACKOFF)
            self._check_open()
        yield _last_attempt(key)

    def _require_key(self, key: object) -> str:
        """Return the text of a key to look up; `KeyError` for a key that is not a `str`."""
        text = self._key_or_none(key)
        if text is None:
            raise KeyError(key)
        return text

    def _key_or_none(self, key: object) -> str | None:
        self._files.store.check_open()
        hash(key)
        return str.__str__(key) if isinstance(key, str) else None

    def _check_key(self, key: object) -> str:
        """Return the text of a key to write; `TypeError` for a key that is not a `str`."""
        self._files.store.check_open()
        if not isinstance(key, str):
            raise TypeError(f"Keys are str, not {type(key).__name__}; convert {shorten(key)} first.")
        text = str.__str__(key)
        if not text.isascii():
            escape_key(text)  # refuses a lone surrogate
        return text

    # Reads

    def __getitem__(self, key: str) -> V:
        read_ahead: ReadAhead | None = getattr(self._local, "read_ahead", None)
        if read_ahead is not None:
            self._files.store.check_open()
            result = read_ahead.take(key)
            if isinstance(result, CloudStoreError):
                raise result
            if result is not None:
                return self._decode(result)
            self._local.read_ahead = None
        return self._decode(self._files.load(self._require_key(key)))

    @overload
    def get(self, key: str, /) -> V | None: ...
    @overload
    def get(self, key: str, /, default: V | D) -> V | D: ...
    def get(self, key: str, /, default: object = None) -> object:
        """Return the key's value, or `default` if absent; every other failure is raised."""
        try:
            return self[key]
        except KeyError:
            return default

    def get_as(self, key: str, type: type[T]) -> T:  # noqa: A002 - the value's type
        """
        Return the key's value as any `type` supported by msgspec: a dataclass, ``list[int]``, a date, ``int | None``.

        Raises `BadValueError` with the path of the first part of another type.
        """
        found = self._files.load(self._require_key(key))
        try:
            return msgspec.json.decode(found.value or b"", type=type)
        except msgspec.ValidationError as error:
            raise BadValueError(f"{shorten(key)} is no {_type_name(type)}: {error}.", key=key) from error
        except msgspec.DecodeError:
            self._decode(found)  # raises the error for a value that can't be read
            raise

    def get_many(self, keys: Iterable[str]) -> dict[str, V]:
        """Return the values of the keys that exist; `BulkError` if some can't be read."""
        self._check_open()
        _check_several(keys)
        wanted = dict.fromkeys(text for key in keys if (text := self._key_or_none(key)) is not None)
        self._files.settle([*wanted])
        values: dict[str, V] = {}
        failed: dict[str, CloudStoreError] = {}
        with closing(self._bulk.read([*wanted], self._files.store.progress)) as results:
            for key, result in results:
                if not isinstance(result, CloudStoreError):
                    values[key] = self._decode(result)
                elif not isinstance(result, NoFileError):
                    failed[key] = result
        if failed:
            first = next(iter(failed.values()))
            raise BulkError(
                f"{len(failed)} of {len(wanted)} keys can't be read; see `.failed`. The first: {first}",
                succeeded=list(values),
                failed=failed,
            ) from first
        return values

    def __contains__(self, key: object) -> bool:
        text = self._key_or_none(key)
        return text is not None and self._files.contains(text)

    def __iter__(self) -> Iterator[str]:
        self._check_open()
        return iter(self._listing)

    def __reversed__(self) -> Iterator[str]:
        self._check_open()
        return reversed(self._listing)

    def __len__(self) -> int:
        return self._listing.length()

    def keys(self) -> StoreKeys[V]:
        """
        Return a view of the keys.

        Values looked up in the order of an iteration over it, as ``dict(store)`` does, are read ahead in pages: such a
        value may be as old as its page's request plus 50 ms.
        """
        return StoreKeys(self, self._new_listing(), self._read, self._read_in_steps, self._read_ahead)

    def values(self) -> StoreValues[V]:
        """Return a view of the values; an iteration loads them as it goes."""
        return StoreValues(self, self._new_listing(), self._read, self._read_in_steps)

    def items(self) -> StoreItems[V]:
        """Return a view of the keys and values; an iteration loads the values as it goes."""
        return StoreItems(self, self._new_listing(), self._read, self._read_in_steps)

    def copy(self) -> dict[str, V]:
        """Return all keys and values as a plain dictionary."""
        return dict(self._read(self._keys()))

    def list(self, filter: str = "") -> list[str]:  # noqa: A002 - the service's own term
        """Return the keys containing the text `filter`; case-sensitive."""
        self._check_open()
        return self._files.containing(filter)

    def stat(self, key: str) -> dict[str, Any]:
        """
        Return the key's metadata, also if its value is locked.

        ``size`` in bytes, ``version``, the times ``created`` and ``updated`` in seconds since 1970, and ``passwords``
        with True or False for ``edit`` and ``view``. `UnsupportedError` if the service has no metadata.
        """
        return self._files.stat(self._require_key(key))

    def _ipython_key_completions_(self) -> Names:
        """Return up to 1,000 keys to complete ``store['…``, by a single request; none after any error."""
        try:
            self._check_open()
            return self._files.first_keys(MAX_COMPLETIONS)
        except Exception:  # noqa: BLE001 - an error here would be printed amid the line being typed
            return []

    def __eq__(self, other: object) -> bool:
        self._check_open()
        if self is other:
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

    __hash__ = None  # type: ignore[assignment]  # mutable, like `dict`

    def _keys(self) -> Names:
        self._check_open()
        return self._files.keys()

    def _fresh_keys(self) -> Names:
        self._check_open()
        return self._files.fresh_keys()

    def _new_listing(self) -> Listing:
        """Return the listing of a new view."""
        self._check_open()
        return Listing(self._keys, self._files.store)

    def _read_ahead(self, keys: Names) -> ReadAhead:
        """Read these keys' values ahead for lookups by this thread."""
        read_ahead = self._local.read_ahead = ReadAhead(keys, self._bulk, self._files.store.clock)
        return read_ahead

    def _read(self, keys: Sequence[str]) -> Iterator[tuple[str, V]]:
        """Yield the pairs of the keys that exist, for work that runs none of the program's own code in between."""
        return self._existing(self._bulk.read(keys, self._files.store.progress, is_listing=True))

    def _read_in_steps(self, keys: Sequence[str]) -> Iterator[tuple[str, V]]:
        """Yield the pairs of the keys that exist, for a loop of the program, which sees its own writes."""
        return self._existing(self._bulk.read_in_steps(keys, self._files.store.progress))

    def _existing(
        self, results: Generator[tuple[str, Found[bytes] | CloudStoreError], None, None]
    ) -> Iterator[tuple[str, V]]:
        with closing(results):
            store = self._files.store
            for key, result in results:
                if store.is_closed:
                    store.check_open()
                if not isinstance(result, CloudStoreError):
                    yield key, self._decode(result)
                elif not isinstance(result, NoFileError):
                    raise result

    def _decode(self, found: Found[bytes]) -> V:
        value: V = codec.decode(cast("bytes", found.value))  # an absence raised `NoFileError`
        return value

    # Writes

    def __setitem__(self, key: str, value: V) -> None:
        text = self._check_key(key)
        encoded = codec.encode(value)
        self._files.save(text, encoded)

    def __delitem__(self, key: str) -> None:
        text = self._require_key(key)
        self._files.delete(text)

    def discard(self, key: str) -> bool:
        """Delete the key if it exists; return True if it did."""
        try:
            del self[key]
        except KeyError:
            return False
        return True

    @overload
    def pop(self, key: str, /) -> V: ...
    @overload
    def pop(self, key: str, /, default: V | D) -> V | D: ...
    def pop(self, key: str, /, default: object = MISSING) -> object:
        """
        Remove the key and return its value.

        Two requests: a load, and a delete of exactly the loaded version. If another client changes the key between
        them, both are sent again after a random wait, `MAX_ATTEMPTS` times at most; then `ChangedError` is raised and
        nothing was removed. A service without versions can't notice the change, and the changed value is lost.
        """
        self._check_writable(key)
        try:
            return self._pop(self._require_key(key))
        except KeyError:
            if default is MISSING:
                raise
            return default

    def _pop(self, key: str) -> V:
        for attempt in self._attempts(key):
            is_atomic = self._files.supports("version")
            # A cached value may be old, but then the delete fails on its version; a cached absence has none.
            found = (self._files.cached(key) if is_atomic else None) or self._files.load_uncached(key)
            with attempt:
                self._files.delete_if(key, found.version if found.version is not None else UNSET)
                return self._decode(found)
        raise AssertionError  # the last attempt returned or raised

    def popitem(self) -> tuple[str, V]:
        """
        Remove the last listed key, and return it with its value; `KeyError` if the store is empty.

        Three requests: a listing, then those of `pop`; two more for each key that another client removed meanwhile.
        """
        self._check_writable()
        for key in reversed(self._fresh_keys()):
            try:
                return key, self._pop(key)
            except NoFileError:  # another client removed it: try the key listed before
                continue
        raise KeyError("popitem(): the store is empty")

    @overload
    def setdefault(self: CloudStoreMapping[V | None], key: str, default: None = None, /) -> V | None: ...
    @overload
    def setdefault(self, key: str, default: V, /) -> V: ...
    def setdefault(self, key: str, default: Any = None, /) -> Any:
        """
        Return the key's value; if absent, save `default` first.

        The save is a second request; atomic if the service has versions, otherwise the last write wins.
        """
        self._check_writable(key)
        text = self._check_key(key)
        new = codec.encode(default)
        for attempt in self._attempts(text):
            with suppress(NoFileError):
                return self._decode(self._files.load_uncached(text))  # a cached value may be gone
            with attempt:
                self._files.save_if(text, new, None)
                return codec.decode(new)
        raise AssertionError  # the last attempt returned or raised

    def update(self, other: Any = (), /, **values: V) -> None:
        """Save the pairs of a mapping or of an iterable of pairs, and the keywords; the last value of a key wins."""
        self._check_writable()
        encoded = dict(self._encode(key, value) for key, value in (*_pairs(other), *values.items()))
        self._change_many(self._files.changes_to_save([*encoded.items()]))

    def merge(self, key: str, value: V) -> None:
        """Merge `value` into the key's value, at the service; if absent, save it."""
        text = self._check_key(key)
        new = codec.encode(value)
        self._files.merge(text, new)

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc]  # merges, unlike MutableMapping's
        self._check_writable()
        # Several merges of a key stay separate and in order: a folded merge could have another result.
        merges = [self._encode(key, value) for key, value in _pairs(other)]
        if len(merges) == 1 and self._files.store.progress is None:
            self._files.merge(*merges[0])
        else:
            self._change_many(self._files.changes_to_merge(merges))
        return self

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        """Return the result of ``store |= other`` as a dictionary, without writing."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return _merged(self._read(self._keys()), self._normalized(other))

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        """Return the result of merging the store into `other` as a dictionary, without writing."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return _merged(self._normalized(other), self._read(self._keys()))

    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete the keys; `BulkError` if some can't be deleted, or do not exist."""
        self._check_writable()
        _check_several(keys)
        wanted = dict.fromkeys(self._require_key(key) for key in keys)
        self._change_many(self._files.changes_to_delete(wanted))

    def clear(self) -> None:
        """Delete all keys listed now."""
        self._check_writable()
        self._change_many(self._files.changes_to_delete(self._fresh_keys()), ignore_absent=True)
        self._files.invalidate()

    def _change_many(self, changes: Sequence[Change], *, ignore_absent: bool = False) -> None:
        self._check_open()
        self._bulk.write(changes, self._files.store.progress, ignore_absent=ignore_absent)

    def _normalized(self, other: Mapping[str, Any]) -> Pairs:
        return [(text, codec.decode(raw)) for text, raw in (self._encode(key, value) for key, value in _pairs(other))]

    def _encode(self, key: object, value: object) -> tuple[str, Raw]:
        """Return the text of one of several keys and its value as JSON; an error's note names the key."""
        text = self._check_key(key)
        try:
            return text, codec.encode(value)
        except (TypeError, ValueError, CloudStoreError) as error:
            _name_key(error, text)
            raise

    # Edits

    @block
    def edit(self, key: str, default: Any = MISSING) -> Iterator[Any]:
        """
        Load a list or dictionary to change in place, and save it at the end of the block if it changed.

        Assigning to the block's variable changes nothing. If the key is absent, the block gets a copy of `default`;
        without a default `KeyError` is raised. An exception in the block saves nothing. If the service has versions, a
        change by another client meanwhile raises `ChangedError` and nothing is saved; otherwise the last write wins.

        Raises
        ------
        TypeError
            The value is a text, a number, True, False or None, which can't be changed in place: use `transform`.
        RuntimeError
            This thread already edits or transforms the key: one of the two changes would be lost.
        """
        self._check_writable(key)
        text = self._check_key(key)
        edits, edit = self._files.store.edits, self._new_edit(text)
        try:
            edits.add(edit)
            value, before, version = self._load_to_edit(text, default)
            if not isinstance(value, dict | list):
                if version is None:
                    raise TypeError(
                        f"There is nothing under {shorten(text)}, and a block can't change the default, of type "
                        f"{type(value).__name__}, in place; give a list or dictionary, or use store.transform."
                    )
                raise TypeError(
                    f"{shorten(text)} holds a value of type {type(value).__name__}, which a block can't change in "
                    f"place; write store.transform({shorten(text)}, lambda value: …)."
                )
            yield value
            after = codec.encode(value)
            if bytes(after) != before:
                self._files.save_if(text, after, version)
        finally:
            edits.discard(edit)

    def transform(self, key: str, function: Callable[[Any], Any], default: Any = MISSING) -> Any:
        """
        Save the result of `function` on the key's value, and return it; retry if another client changed it meanwhile.

        `function` may be called more than once, each time with a new copy. If the key is absent, it gets a copy of
        `default`; without a default `KeyError` is raised. Atomic if the service has versions, otherwise the last write
        wins. It is retried after a random wait, `MAX_ATTEMPTS` times at most; then `ChangedError` is raised and nothing
        was saved.

        Raises
        ------
        TypeError
            The function returned None for another value, like functions that change their argument in place; nothing
            is saved. To save None write ``store[key] = None``.
        RuntimeError
            This thread already edits or transforms the key: one of the two changes would be lost.
        """
        self._check_writable(key)
        text = self._check_key(key)
        edits, edit = self._files.store.edits, self._new_edit(text)
        try:
            edits.add(edit)
            for attempt in self._attempts(text):
                value, before, version = self._load_to_edit(text, default)
                result = function(value)
                if result is None and before != _NULL:
                    raise TypeError(
                        f"The function returned None, so {shorten(text)} was left as it is; return the new value, or "
                        f"change it in place by `with store.edit({shorten(text)}) as value:`."
                    )
                after = codec.encode(result)
                if bytes(after) == before and version is not None:  # an absent key's default is saved
                    return codec.decode(after)
                with attempt:
                    self._files.save_if(text, after, version)
                    return codec.decode(after)
        finally:  # reached even if an interrupt comes right after the change of the set
            edits.discard(edit)
        raise AssertionError  # the last attempt returned or raised

    def _new_edit(self, key: str) -> tuple[int, str]:
        """Return this thread and the key; `RuntimeError` within an edit of the same key by the same thread."""
        edit = (threading.get_ident(), self._files.prefix + key)
        if edit in self._files.store.edits:
            raise RuntimeError(f"{shorten(key)} is being edited already; make this change in the outer edit.")
        return edit

    def _load_to_edit(self, key: str, default: Any) -> tuple[Any, bytes, str | UnsetType | None]:
        """Return a copy of the value, its JSON as written by `codec`, and the version to save it on."""
        version: str | UnsetType | None
        try:
            found = self._files.load_uncached(key)
        except NoFileError:
            if default is MISSING:
                raise
            raw = codec.encode(default)
            version = None
        else:
            raw = codec.encode(self._decode(found))
            version = UNSET if found.version is None else found.version
        return codec.decode(raw), bytes(raw), version

    # Media files

    def upload(
        self,
        data: MediaData | os.PathLike[str],
        name: str | None = None,
        *,
        type: str | None = None,  # noqa: A002 - the documentation's name
        password: str | None = None,
        progress: Progress = None,
    ) -> Media:
        """
        Upload a media file, replacing a file of the same name.

        Parameters
        ----------
        data
            A path; bytes; an open file of any size, of which all is stored that its next `read` would return; or text.
            Text is stored as UTF-8, unless it is a ``data:`` URL, or the base64 of an image, sound, video, font, PDF or
            archive under such a type (which takes no other text); see `CloudStore.upload`, also for text files.
        name
            Its name; by default the last part of a path's or file's own name.
        type
            Such as ``"image/jpeg"``; by default guessed from the name.
        password
            The file's edit password; by default the store's `media_password`.
        progress
            Called with the bytes sent and their total instead of the store's own `progress`; never called for a stream
            of unknown size.

        Raises
        ------
        ValueError
            There is no name, or the text is not base64 where it must be.
        LockedError, LimitError
            A file of this name has another password; or the account's limits on size or number are exceeded.
        UnsupportedError
            The path is a store, which may be open.
        """
        password = hide(password)
        self._check_writable(name)
        return upload_media(self._files, data, name, type, password, progress)

    def media_files(self) -> MediaFiles:
        """
        Return all media files of an embedded store, by name.

        `UnsupportedError` for a service, which does not list them: anybody with a link can download the file.
        """
        self._check_open()
        return [media_of(self._files, facts) for facts in self._files.client.media_files()]

    @overload
    def download(self, media: Media | str, to: None = None, *, progress: Progress = None) -> bytes: ...
    @overload
    def download(self, media: Media | str, to: Place, *, overwrite: bool = True, progress: Progress = None) -> Path: ...
    @overload
    def download(self, media: Media | str, to: IO[bytes], *, progress: Progress = None) -> None: ...

    def download(
        self,
        media: Media | str,
        to: Place | IO[bytes] | None = None,
        *,
        overwrite: bool = True,
        progress: Progress = None,
    ) -> bytes | Path | None:
        """
        Download a media file, resuming after broken connections; `retries` limits attempts without progress.

        Parameters
        ----------
        media
            A result of `upload`, or the file's URL.
        to
            None: return the bytes. A path: replace the file there after a complete download, and return the path; in a
            folder the file gets its own name, made safe. An open binary file: write to it.
        overwrite
            False raises `FileExistsError` instead of replacing a file.
        progress
            Called with the bytes received and their total instead of the store's own `progress`.

        Raises
        ------
        NoFileError
            There is no such file.
        ValueError
            The URL is not of this store's service.
        OSError
            The path can't be written.
        UnsupportedError
            The path is a store.
        """
        self._check_open()
        return download_media(self._files, media, to, progress, overwrite=overwrite)

    # Cache and counters

    @property
    def stats(self) -> StoreStats:
        """Counters so far."""
        self._check_open()
        client = self._files.client.stats
        cache = self._files.store.cache
        return StoreStats(
            requests=client.requests,
            retries=client.retries,
            bytes_sent=client.bytes_sent,
            bytes_received=client.bytes_received,
            hits=0 if cache is None else cache.hits,
            misses=0 if cache is None else cache.misses,
            evictions=0 if cache is None else cache.evictions,
        )

    def cache_clear(self) -> None:
        """Drop the whole cache: the next reads come from the service."""
        self._check_open()
        self._files.invalidate()

    def cache_invalidate(self, key: str) -> None:
        """Drop the key's cache entry."""
        self._files.invalidate(self._check_key(key))


def files_of(store: CloudStoreMapping[Any]) -> Files:
    """Return the files of a store or view; `Files.store` is the shared state of the store."""
    return store._files  # noqa: SLF001 - the package's interface to the mapping


def bulk_of(store: CloudStoreMapping[Any]) -> Bulk:
    """Return the bulk reads and writes of a store or view."""
    return store._bulk  # noqa: SLF001 - the package's interface to the mapping


def _reopening(
    api_key: str | None, server: str, kind: type[CloudStoreMapping[Any]], options: dict[str, Any]
) -> tuple[Any, ...]:
    """Return the pickled form of a store over HTTP."""
    return _reopen, (kind, api_key, server, options)


def _reopen(
    kind: type[CloudStoreMapping[Any]], api_key: str | None, server: str, options: dict[str, Any]
) -> CloudStoreMapping[Any]:
    """Open a pickled store; without an API key, the environment's key for the same server is used."""

    def reopen() -> CloudStoreMapping[Any]:
        key: str = api_key or ""
        if api_key is None:
            location = hide(os.environ.get("CLOUDSTORE_URL", ""))
            key, environment = parse_address(location, insecure=True) if location else ("", "")
            if environment != server:
                raise ValueError(
                    "The store was pickled without its API key; open it with pickle_secrets=True, or set "
                    f"CLOUDSTORE_URL to its address at {server}."
                )
        return kind(key, server, **options)

    return unpickled(reopen)


def unpickled(reopen: Callable[[], CloudStoreMapping[Any]]) -> CloudStoreMapping[Any]:
    """
    Return the store opened by `reopen`; in a process of `multiprocessing`, an error is raised at the store's first use.

    If arguments of a task can't be unpickled, a pool waits for the task forever, but an error in it reaches the caller.
    """
    try:
        return reopen()
    except Exception as error:
        process = sys.modules.get("multiprocessing.process")
        if process is None or process.parent_process() is None:
            raise
        return CloudStoreMapping("none", transport=_Failing(error))


class _Failing:
    """Transport of a store that can't be opened: each use raises the reason."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def send(self, _: Sendable) -> Reply:
        """Raise the reason."""
        if scope.deadline is not None:
            scope.deadline.sent = False
        raise self._error

    def close(self) -> None:
        """Do nothing."""


def _type_name(kind: object) -> str:
    # A union has no name, and `list[int]` has that of `list`.
    return kind.__name__ if type(kind) is type else str(kind)


@contextmanager
def _last_attempt(key: str) -> Iterator[None]:
    try:
        yield
    except ChangedError as error:
        sentence = f"{shorten(key)} was changed by others during each of {MAX_ATTEMPTS} attempts; try again later."
        raise ChangedError(sentence, key=key, version=error.version, status=error.status) from error


def _view_of(store: CloudStoreMapping[V], prefix: str) -> CloudStoreMapping[V]:
    return store.view(prefix)


def _check_several(keys: object) -> None:
    """Raise `TypeError` for a text in the place of several keys: each of its characters would be a key."""
    if isinstance(keys, str | bytes):
        raise TypeError(f"Give a list of keys, such as [{shorten(keys)}], not a single {type(keys).__name__}.")


def _pairs(other: Any) -> Iterable[tuple[Any, Any]]:
    """Return the same pairs as `dict.update` uses."""
    if isinstance(other, Mapping):
        return other.items()
    if hasattr(other, "keys"):
        return [(key, other[key]) for key in other.keys()]  # noqa: SIM118 - it may not be iterable
    return [(key, value) for key, value in other]


def _merged(onto: Iterable[tuple[str, Any]], pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(onto)
    for key, value in pairs:
        try:
            result[key] = merge(result.get(key), value)
        except CloudStoreError as error:
            _name_key(error, key)
            raise
    return result


def _name_key(error: Exception, key: str) -> None:
    """Add a note with the key to an error about one of several values."""
    error.add_note(f"This is about the value of {shorten(key)}; $ stands for the whole value.")
