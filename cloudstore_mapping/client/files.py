"""
Files of a service: load, save, merge, delete, list and batch encoded values, by file name (`Client`) or key (`Files`).

`Files` adds to each request the file name and password of a key, and keeps the cache correct.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, Literal, NamedTuple, TypeAlias, cast

import msgspec
from msgspec import UNSET, Raw, UnsetType

from cloudstore_mapping.client import codec, retry
from cloudstore_mapping.client.cache import Cache, Found, Mark, Write
from cloudstore_mapping.client.progress import Progress
from cloudstore_mapping.client.retry import (
    WRITES,
    RequestSender,
    closed_error,
    error_of,
    facts_of,
    is_write,
    raise_for,
    read_only,
    version_of,
)
from cloudstore_mapping.client.transport import Sendable
from cloudstore_mapping.errors import (
    CloudStoreError,
    LockedError,
    NoFileError,
    ProtocolError,
    TooBigError,
    UnsupportedError,
    shorten,
)
from cloudstore_mapping.keys import FileNames
from cloudstore_mapping.masking import hide, mask
from cloudstore_mapping.wire import MAX_BATCH, Batch, Operation, Reply, Request, Upload, decode_replies

Names: TypeAlias = list[str]  # in the body of `Client`, `list` is a method
Replies: TypeAlias = list[Reply]

_decode_page: Final = msgspec.json.Decoder(list[tuple[str, str, Raw]]).decode
_CAN_BE_BRIEF: Final = frozenset({Operation.LOAD, Operation.LIST})
#: Promised fields in the reply to an upload, and to a stat.
MEDIA_FIELDS: Final[Mapping[str, Any]] = {"name": str, "folder": str, "id": str, "mimetype": str, "size": int}
STAT_FIELDS: Final[Mapping[str, Any]] = {
    "size": int,
    "version": str,
    "created": int | float,
    "updated": int | float,
    "passwords": dict,
}
#: Key of the complete listing in the cache of listings.
ALL: Final = ""
# Filter that matches nothing, for a list sent only to learn the service's extensions.
_NO_NAME: Final = "cloudstore-mapping asks: 2d2f5c0e8f1b4a6e"


class Loaded(NamedTuple):
    """Value of a file and its version, None if the service has no versions."""

    value: Raw
    version: str | None


class Client(RequestSender):
    """
    Operations of a service, a request each; an error reply raises its class in `errors.REPLY_ERRORS`.

    Notes
    -----
    Thread safe. Methods take a file name; errors show `key` instead if given. Extensions are used if the last reply
    named them, so the first request uses none. `lists_exactly` is True if the last reply to a list had an array
    of names, False if it had them joined by commas, None before the first.
    """

    error_of = staticmethod(retry.error_of)
    raise_for = staticmethod(retry.raise_for)
    lists_exactly: bool | None = None

    def load(
        self, name: str, password: str | None = None, *, key: str | None = None, if_not_version: str | None = None
    ) -> Loaded | None:
        """Return the file's value, or None if its version still is `if_not_version`."""
        known = UNSET if if_not_version is None or "version" not in self.extensions else if_not_version
        request = Request(
            api_key=self._api_key, name=name, password=password, if_not_version=known, brief=self._brief()
        )
        reply = self._ask(request, key)
        return None if reply.unchanged is True else Loaded(reply.content, version_of(reply))

    def save(
        self,
        name: str,
        value: Raw,
        password: str | None = None,
        *,
        key: str | None = None,
        if_version: str | UnsetType | None = UNSET,
    ) -> str | None:
        """
        Store the JSON `value`, replacing the old value; return the version, None if the service has no versions.

        With `if_version` only if the file has this version (None: there is no file); otherwise `ChangedError`, and
        `UnsupportedError` if the service has no versions.
        """
        request = Request(api_key=self._api_key, name=name, value=value, password=password, if_version=if_version)
        return version_of(self._ask(request, key))

    def merge(self, name: str, value: Raw, password: str | None = None, *, key: str | None = None) -> str | None:
        """Merge the JSON `value` into the stored value, as `merge.merge` does; return the version like `save`."""
        request = Request(api_key=self._api_key, name=name, options="merge", value=value, password=password)
        return version_of(self._ask(request, key))

    def delete(
        self,
        name: str,
        password: str | None = None,
        *,
        key: str | None = None,
        if_version: str | UnsetType | None = UNSET,
    ) -> None:
        """Delete the file, under the same condition as `save`; `NoFileError` if there is none."""
        self._ask(
            Request(api_key=self._api_key, name=name, options="delete", password=password, if_version=if_version), key
        )

    def stat(self, name: str, *, key: str | None = None) -> dict[str, Any]:
        """Return a file's metadata; `UnsupportedError` if the service has none."""
        self._require("stat")
        reply = self._ask(Request(api_key=self._api_key, name=name, options="stat"), key)
        return described(reply, STAT_FIELDS)

    def upload(
        self,
        name: str,
        data: bytes | IO[bytes],
        content_type: str,
        password: str | None = None,
        *,
        only_new: bool = False,
    ) -> dict[str, Any]:
        """
        Store a media file; return its ``name``, ``folder``, ``id``, ``mimetype`` and ``size``.

        With `only_new` only if there is no file of this name; otherwise `ChangedError`, and `UnsupportedError` if the
        service has no versions.
        """
        if only_new:
            self._require("version")
        upload = Upload(
            api_key=self._api_key,
            name=name,
            content_type=content_type,
            data=data,
            password=password,
            only_new=only_new,
        )
        return described(self._ask(upload, None))

    def list(self, filter: str = "", *, prefix: bool = False) -> Names:  # noqa: A002 - the documentation's name
        """Return the names containing the text `filter`, or beginning with it if `prefix`; case-sensitive."""
        request = self._listing(filter, prefix=prefix)
        names = self._listed(self._ask(request, None))
        return [name for name in names if name.startswith(filter)] if prefix and request.match is UNSET else names

    def ask(self, filter: str | None = None) -> Names:  # noqa: A002 - the documentation's name
        """
        Learn `extensions` and `lists_exactly` from a list, and return the names that contain `filter`.

        Without a filter nothing is listed. A service known to have pages sends a single name at most.
        """
        request = self._listing(_NO_NAME if filter is None else filter, prefix=False)
        if "page" in self.extensions:
            request = msgspec.structs.replace(request, limit=1)
        try:
            return self._listed(self._ask(request, None))
        except NoFileError:  # the vendor does not document the reply to a list without matches
            self.lists_exactly = False
        except CloudStoreError as error:
            if error.error != "Forbidden":  # reply of an exact service if the API key must not list
                raise
            self.lists_exactly = True
        return []

    def _listed(self, reply: Reply) -> Names:
        names = listed(reply)
        self.lists_exactly = reply.data is not UNSET and bytes(reply.data).lstrip().startswith(b"[")
        return names

    def pages(
        self,
        filter: str = "",  # noqa: A002 - the documentation's name
        *,
        prefix: bool = False,
        limit: int = 10_000,
    ) -> Iterator[Names]:
        """Yield the result of `list` in pages of at most `limit` names, or at once if the service has no pages."""
        if "page" not in self.extensions:
            yield self.list(filter, prefix=prefix)
            return
        request = msgspec.structs.replace(self._listing(filter, prefix=prefix), limit=limit)
        while True:
            reply = self._ask(request, None)
            if request.after is not UNSET and reply.next in (request.after, UNSET):
                raise ProtocolError("The service lost its place in the listing; list again.", **facts_of(reply, None))
            yield self._listed(reply)
            if reply.next is UNSET or reply.next is None:
                return
            request = msgspec.structs.replace(request, after=reply.next)

    def values(
        self, names: Sequence[str], prefix: str = "", *, after: str | None = None
    ) -> Sequence[tuple[str, str, Raw]]:
        """
        Return a page of values: name, version and value of up to ``len(names)`` files.

        They are the first files with the `prefix`, or the first after the name `after`, except large and locked ones.
        Raises `UnsupportedError` if the service has no such pages.
        """
        self._require("values")
        request = Request(
            api_key=self._api_key,
            name=prefix,
            options="list",
            match="prefix",
            after=UNSET if after is None else after,
            limit=len(names),
            values=True,
        )
        reply = self._ask(request, None)
        try:
            return _decode_page(reply.content)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ProtocolError(
                "The answer to a list holds no values; is the address right?", **facts_of(reply, None)
            ) from error

    def batch(self, requests: Sequence[Request], *, atomic: bool = False) -> Replies:
        """
        Send up to `wire.MAX_BATCH` requests as a single message; return the reply to each, also if it is an error.

        The requests need no API key; with `atomic` all are applied or none. Raises `UnsupportedError` if the service
        has no batches, and an error about the whole message; `error_of` returns the error of a single reply.
        """
        if len(requests) > MAX_BATCH:
            raise ValueError(f"A batch holds at most {MAX_BATCH} requests, not {len(requests)}; send several.")
        self._require("batch")
        if not requests:
            return []
        brief = self._brief()
        items = [
            msgspec.structs.replace(request, brief=brief)
            if request.operation in _CAN_BE_BRIEF and brief is not UNSET
            else request
            for request in requests
        ]
        answer = self._ask(Batch(api_key=self._api_key, requests=items, atomic=atomic), None)
        replies = [] if answer.data is UNSET else decode_replies(answer.data)
        if len(replies) != len(items):
            raise ProtocolError(
                f"{len(items)} requests were answered with {len(replies)} replies; is the address right?",
                **facts_of(answer, None),
            )
        for item, reply in zip(items, replies, strict=True):
            # The two most frequent results, with all their fields, without a call: of a load, and of a save.
            if reply.error is None and reply.version and item.options is None:
                if item.value is UNSET and reply.data is not UNSET:
                    continue
                if item.value is not UNSET and bytes(reply.message).startswith(b'"'):
                    continue
            _check_fields(item, reply, answer)
            if item.options == "list" and reply.error is None:
                listed(reply)
            elif item.options == "stat" and reply.error is None:
                described(reply, STAT_FIELDS)
        return replies

    def _ask(self, request: Sendable, key: str | None) -> Reply:
        shown = getattr(request, "name", None) if key is None else key
        if isinstance(request, Batch):
            # A list: of a thousand requests, a generator would take a tenth of the client's time.
            is_conditional = [part for part in request.requests if part.if_version is not UNSET] != []
        else:
            is_conditional = isinstance(request, Request) and request.if_version is not UNSET
            if isinstance(request, Request) and request.options == "list":
                shown = None  # not about a single key
        if is_conditional:
            self._require("version")
        writes = is_write(request)
        if writes:
            WRITES.change()
        try:
            reply = self.exchange(request, key=shown)
        except CloudStoreError as error:
            error.key = shown
            raise
        finally:
            if writes:
                WRITES.change()
        _check_fields(request, reply, reply)
        if reply.error is not None:
            raise_for(reply, shown, request)
        return reply

    def _require(self, extension: str) -> None:
        if extension not in self.extensions:
            raise UnsupportedError(
                f"The service does not offer the extension {extension!r}, which this needs; do without it."
            )

    @property
    def has_replied(self) -> bool:
        """True once a reply has named the service's extensions."""
        return self._extensions is not None

    def _brief(self) -> bool | UnsetType:
        return True if "brief" in self.extensions else UNSET

    def _listing(self, text: str, *, prefix: bool) -> Request:
        match: Literal["prefix"] | UnsetType = "prefix" if prefix and "page" in self.extensions else UNSET
        return Request(api_key=self._api_key, name=text, options="list", match=match, brief=self._brief())


def listed(reply: Reply) -> Names:
    """Return the names in the reply to a list: an array in `data`, or comma-joined text in `message`."""
    names = codec.decode(reply.content)
    if reply.data is UNSET and isinstance(names, str):
        return names.split(",") if names else []
    if reply.data is UNSET or not isinstance(names, list) or not {*map(type, names)} <= {str}:
        raise ProtocolError("The answer to a list holds no names; is the address right?", **facts_of(reply, None))
    return names


def described(reply: Reply, fields: Mapping[str, Any] = MEDIA_FIELDS) -> dict[str, Any]:
    """Return the description of a file in the reply to an upload or stat, with all these fields."""
    facts = None if reply.data is UNSET else codec.decode(reply.data)
    if not isinstance(facts, dict) or not all(isinstance(facts.get(name), kind) for name, kind in fields.items()):
        raise ProtocolError("The answer doesn't describe a file; is the address right?", **facts_of(reply, None))
    return facts


def _check_fields(request: Sendable, reply: Reply, answer: Reply) -> None:
    """Refuse a reply without a promised field; `answer` carries the extensions: the reply itself, or a batch's."""
    missing = _missing_field(request, reply, answer.extensions)
    if missing is not None:
        raise ProtocolError(f"The answer lacks {missing}; is the address right?", **facts_of(answer, None))


def _missing_field(request: Sendable, reply: Reply, extensions: frozenset[str]) -> str | None:
    has_version = reply.version if "version" in extensions else True
    has_message = bytes(reply.message).startswith(b'"')
    if reply.error is not None:
        # The version is None if there is no file.
        return None if has_version is not UNSET or reply.error != "Changed" else "the file's version"
    if not isinstance(request, Request):
        return None if has_message else "its message"
    if reply.unchanged is True:
        return None if request.if_not_version is not UNSET and has_version else "the value"
    # A brief reply has an empty message, which would read as an empty text or list.
    has_data = reply.data is not UNSET or request.brief is not True or "brief" not in extensions
    match request.options:
        case None if request.value is UNSET:
            return "the value" if not has_data else None if has_version else "the file's version"
        case "list":
            is_page = request.limit is not UNSET and "page" in extensions
            return "the names" if not has_data else "the next page" if is_page and reply.next is UNSET else None
        case "stat":
            return None
        case "delete":
            return None if has_message else "its message"
        case _:
            return "its message" if not has_message else None if has_version else "the file's version"


@dataclass(frozen=True, repr=False)
class Password:
    """The two passwords of a file: a load needs `view`, a change `edit`; None: no password."""

    view: str | None = None
    edit: str | None = None

    def __post_init__(self) -> None:
        for name, text in vars(self).copy().items():
            if text is not None and not isinstance(text, str):
                raise TypeError(f"Password: {name} must be a text or None, not {type(text).__name__}.")
            object.__setattr__(self, name, hide(text))

    def __repr__(self) -> str:
        states = (f"{name}={'not set' if text is None else 'set'}" for name, text in vars(self).items())
        return f"Password({', '.join(states)})"


class Passwords:
    """
    File passwords of a store by key, looked up at each request.

    Parameters
    ----------
    passwords
        From key to password; a text serves as both passwords, None means no password. Only ``passwords[key]`` is
        used, so the mapping may change or be lazy; its `KeyError` means the default.
    default
        The password of every other key.

    Notes
    -----
    Thread safe if the mapping is.
    """

    def __init__(self, passwords: Mapping[str, str | Password | None] | None, default: str | None) -> None:
        self._passwords = mask(passwords)
        self._default = hide(default)

    def __repr__(self) -> str:
        return f"<Passwords, {'without' if self._default is None else 'with'} a default>"

    def for_view(self, key: str) -> str | None:
        """Return the password for reading `key`: the edit password if there is no view password."""
        password = self._find(key)
        if isinstance(password, Password):
            return password.edit if password.view is None else password.view
        return password

    def for_edit(self, key: str) -> str | None:
        """Return the password for changing `key`."""
        password = self._find(key)
        return password.edit if isinstance(password, Password) else password

    def _find(self, key: str) -> str | Password | None:
        if self._passwords is None:
            return self._default
        try:
            password: object = self._passwords[key]
        except KeyError:
            return self._default
        if isinstance(password, str | Password | None):
            return password
        raise TypeError(
            f"passwords has a {type(password).__name__} for {shorten(key)}; give a text, a Password or None."
        )


class Change(NamedTuple):
    """A write among others: its key and request."""

    key: str
    request: Request


@dataclass(eq=False, repr=False, kw_only=True)
class OpenStore:
    """
    State of an open store, shared by all its views.

    `cache` keeps values and `listing` listings; both are None without a cache. `identity` identifies the store without
    its API key, `file` is an embedded store's file, and `address` the beginning of its media URLs. `reopen` returns the
    pickled form for a class and `options`; None if the store can't be pickled. `clock` returns monotonic seconds.
    `edits` has the thread and key of each edit in progress.
    """

    client: Client
    passwords: Passwords
    cache: Cache[bytes] | None = None
    listing: Cache[dict[str, None]] | None = None
    media_password: str | None = None
    progress: Progress = None
    location: str = ""
    identity: tuple[str, ...] = ()
    address: str = ""
    file: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    reopen: Callable[[type[Any], dict[str, Any]], tuple[Any, ...]] | None = None
    is_closed: bool = False
    clock: Callable[[], float] = time.monotonic
    edits: set[tuple[int, str]] = field(default_factory=set)
    is_readonly: bool = False
    names: FileNames = field(init=False)

    def __post_init__(self) -> None:
        client = self.client
        self.names = FileNames(lambda: client.lists_exactly, client.ask, client.list)

    def check_open(self) -> None:
        """Raise `ValueError` if the store is closed."""
        if self.is_closed:
            raise closed_error()


class Files:
    """
    Encoded values of an open store by key, relative to the `prefix` of a view.

    Thread safe.
    """

    def __init__(self, store: OpenStore, prefix: str = "") -> None:
        self.store = store
        self.prefix = prefix
        self.client = store.client
        self._passwords = store.passwords
        self._cache = store.cache
        self._listing = store.listing
        self._file_names = store.names

    def under(self, prefix: str) -> Files:
        """Return the files with keys beginning with `prefix`, by the rest of the key."""
        return Files(self.store, self.prefix + prefix)

    def supports(self, extension: str) -> bool:
        """Return True if the service's last reply named this extension."""
        return extension in self.client.extensions

    # File names and listings

    def name(self, key: str) -> str:
        """Return the file name of `key`, after asking the service if need be; `BadNameError` for a lone surrogate."""
        try:
            return self._file_names.name(self.prefix + key)
        except CloudStoreError as error:
            error.key = key
            raise

    def settle(self, keys: Sequence[str]) -> None:
        """Ask the service, before work on many keys, for the spelling of their file names; two requests at most."""
        self._file_names.settle(self._full(keys))

    def _full(self, keys: Sequence[str]) -> Sequence[str]:
        return [self.prefix + key for key in keys] if self.prefix else keys

    def _names(self, keys: Sequence[str]) -> list[str]:
        """Return the file names of many keys."""
        return self._file_names.names(self._full(keys))

    def keys(self) -> list[str]:
        """Return all keys in the listing's order; a name that belongs to no key is listed as it is."""
        if self._listing is None:
            return self._keys_with(self.prefix)
        listing = self._listing.get(ALL) if self.prefix else self._listing.read(ALL, self._fetch_listing)
        if listing is None or listing.value is None:
            return self._keys_with(self.prefix)
        return [key[len(self.prefix) :] for key in listing.value if key.startswith(self.prefix)]

    def fresh_keys(self) -> list[str]:
        """Return all keys as `keys` does, but from the service."""
        if self._listing is not None:
            self._listing.invalidate(ALL)
        return self.keys()

    def first_keys(self, limit: int) -> list[str]:
        """Return up to `limit` keys by a single request at most, from the cache if possible."""
        listing = None if self._listing is None else self._listing.get(ALL)
        if listing is not None and listing.value is not None:
            keys: Iterable[str] = listing.value
        else:
            pages = self.client.pages(self._file_names.prefix(self.prefix), prefix=True, limit=limit)
            keys = self._file_names.keys(next(pages), is_complete=False)
        within = (key[len(self.prefix) :] for key in keys if key.startswith(self.prefix))
        return [*islice(within, limit)]

    def containing(self, text: str) -> list[str]:
        """Return the keys containing `text`, by the service's own search."""
        if self.prefix:
            return [key for key in self._keys_with(self.prefix) if text in key]
        # The service searches names, so search for a part with the same spelling in names.
        literal = self._file_names.filter(text)
        names = self.client.list(literal)
        return [key for key in self._file_names.keys(names, is_complete=not literal) if text in key]

    def _keys_with(self, prefix: str) -> list[str]:
        """Return the keys beginning with `prefix`, without it."""
        if not prefix:
            return list(self._all_keys())
        literal = self._file_names.prefix(prefix)
        if not literal:
            return [key[len(prefix) :] for key in self._all_keys() if key.startswith(prefix)]
        keys = self._file_names.keys(self.client.list(literal, prefix=True), is_complete=False)
        return [key[len(prefix) :] for key in keys if key.startswith(prefix)]

    def _fetch_listing(self, _: object) -> Found[dict[str, None]]:
        return Found(self._all_keys())

    def _all_keys(self) -> dict[str, None]:
        return self._file_names.keys(self.client.list(), is_complete=True)

    # Reads

    def load(self, key: str) -> Found[bytes]:
        """Return the key's value as JSON, from the cache if possible; `NoFileError` if absent."""
        if self._cache is None:
            return self.load_uncached(key)
        found = self._cache.read(self.prefix + key, lambda before: self._fetch(key, before))
        if found.value is None:
            raise absent(key)
        return found

    def load_uncached(self, key: str) -> Found[bytes]:
        """Return the key's value as JSON from the service; `NoFileError` if absent."""
        if self._cache is None:
            loaded = cast("Loaded", self._load(key, None))
            return Found(bytes(loaded.value), loaded.version)
        # Cached as well, so that no later read is older than this one.
        full = self.prefix + key
        mark = self._cache.mark(full)
        try:
            loaded = cast("Loaded", self._load(key, None))
        except NoFileError:
            self._cache.put(full, Found(None), mark)
            raise
        found = Found(bytes(loaded.value), loaded.version)
        self._cache.put(full, found, mark)
        return found

    def cached(self, key: str) -> Found[bytes] | None:
        """Return the key's value as JSON if it is in the cache."""
        found = None if self._cache is None else self._cache.get(self.prefix + key)
        return None if found is None or found.value is None else found

    def _fetch(self, key: str, before: Found[bytes] | None) -> Found[bytes]:
        """Return the value for the cache: `before` if the service says it is unchanged."""
        known = before.version if before is not None and before.value is not None else None
        try:
            loaded = self._load(key, known)
        except NoFileError:
            return Found(None)
        if loaded is None:
            return cast("Found[bytes]", before)
        return Found(bytes(loaded.value), loaded.version)

    def _load(self, key: str, known: str | None) -> Loaded | None:
        password = self._passwords.for_view(self.prefix + key)
        return self.client.load(self.name(key), password, key=key, if_not_version=known)

    def contains(self, key: str) -> bool:
        """Return True if the key has a value, with the cheapest request the service supports."""
        try:
            if not self.supports("stat"):
                self.load(key)
                return True
            if self._cache is None:
                self.client.stat(self.name(key), key=key)
                return True
            full = self.prefix + key
            cached = self._cache.get(full)
            if cached is not None:
                return cached.value is not None
            mark = self._cache.mark(full)
            try:
                self.client.stat(self.name(key), key=key)
            except NoFileError:
                self._cache.put(full, Found(None), mark)
                return False
        except NoFileError:
            return False
        except LockedError:
            return True
        return True

    def stat(self, key: str) -> dict[str, Any]:
        """Return the metadata of the key's file; `UnsupportedError` if the service has none."""
        name = self.name(key)
        if not self.client.has_replied:
            self.client.ask()
        return self.client.stat(name, key=key)

    def is_in_use(self) -> bool:
        """Return True in a signal handler, or `__del__`, in the middle of this thread's own use of the store."""
        caches = (self._cache, self._listing)
        return self.client.is_in_use() or any(cache is not None and cache.is_in_use() for cache in caches)

    def load_batch(self, keys: Sequence[str]) -> list[Found[bytes] | CloudStoreError]:
        """Return the value of each key or its error, with a single request for all uncached keys."""
        return self._load_batch(keys, *self._from_cache(keys))

    def _load_batch(
        self, keys: Sequence[str], results: dict[str, Found[bytes] | CloudStoreError], marks: Mapping[str, Mark]
    ) -> list[Found[bytes] | CloudStoreError]:
        """Return the results, completed by a request for the keys without one."""
        missing = [key for key in keys if key not in results]
        password = self._passwords.for_view
        requests = [
            Request(name=name, password=password(self.prefix + key))
            for key, name in zip(missing, self._names(missing), strict=True)
        ]
        loaded: dict[str, Found[bytes]] = {}
        for key, reply in zip(missing, self.client.batch(requests) if requests else (), strict=True):
            error = error_of(reply, key)
            if isinstance(error, TooBigError):  # too big for a reply shared with other values
                try:
                    results[key] = self.load(key)
                except CloudStoreError as own:
                    results[key] = own
            elif isinstance(error, NoFileError):
                results[key] = error
                if marks:
                    self._put_in_cache({key: Found(None)}, marks)
            elif error is not None:
                results[key] = error
            else:
                loaded[key] = Found(bytes(reply.content), reply.version or None)
        self._put_in_cache(loaded, marks)
        results |= loaded
        return [results[key] for key in keys]

    def load_listed(self, keys: Sequence[str], after: str | None) -> list[Found[bytes] | CloudStoreError]:
        """
        Return the results of `load_batch` for consecutive keys of a listing, following the key `after`.

        Uses a page of values if the service has them, and a batch for keys missing there.
        """
        results, marks = self._from_cache(keys)
        names = self._names(keys)
        before = None if after is None else self.name(after)
        in_order = names if before is None else [before, *names]
        # A page needs a prefix shared by the names of all these keys, and by no others.
        has_prefix = self._file_names.prefix(self.prefix) == self.prefix
        if results or not has_prefix or not self.supports("values") or in_order != sorted(in_order):
            return self._load_batch(keys, results, marks)
        page = self.client.values(names, self.prefix, after=before)
        found = {name: Found(bytes(value), version) for name, version, value in page}
        if [*found] == names:
            loaded = dict(zip(keys, found.values(), strict=True))
        else:
            loaded = {key: found[name] for key, name in zip(keys, names, strict=True) if name in found}
        self._put_in_cache(loaded, marks)
        if len(loaded) == len(keys):
            return [*loaded.values()]
        results |= loaded
        return self._load_batch(keys, results, marks)

    def _from_cache(self, keys: Sequence[str]) -> tuple[dict[str, Found[bytes] | CloudStoreError], dict[str, Mark]]:
        """Return the cached results of these keys, and marks to cache the others' later."""
        results: dict[str, Found[bytes] | CloudStoreError] = {}
        marks: dict[str, Mark] = {}
        cache = self._cache
        if cache is None:
            return results, marks
        for key in keys:
            found = cache.get(self.prefix + key)
            if found is None:
                marks[key] = cache.mark(self.prefix + key)
            else:
                results[key] = found if found.value is not None else absent(key)
        return results, marks

    def _put_in_cache(self, loaded: Mapping[str, Found[bytes]], marks: Mapping[str, Mark]) -> None:
        if self._cache is not None:
            for key, found in loaded.items():
                self._cache.put(self.prefix + key, found, marks[key])

    # Writes

    def save(self, key: str, value: Raw, if_version: str | UnsetType | None = UNSET) -> None:
        """Save the key's value; with `if_version` only if it has this version, or is absent for None."""
        with self._changing(key) as write:
            password = self._passwords.for_edit(self.prefix + key)
            version = self.client.save(self.name(key), value, password, key=key, if_version=if_version)
            if write is not None:
                write.commit(Found(bytes(value), version))

    def merge(self, key: str, value: Raw) -> None:
        """Merge the value into the key's."""
        with self._changing(key):
            self.client.merge(self.name(key), value, self._passwords.for_edit(self.prefix + key), key=key)

    def delete(self, key: str, if_version: str | UnsetType = UNSET) -> None:
        """Delete the key; `NoFileError` if absent."""
        with self._changing(key, deletes=True) as write:
            password = self._passwords.for_edit(self.prefix + key)
            self.client.delete(self.name(key), password, key=key, if_version=if_version)
            if write is not None:
                write.commit(Found(None))

    def save_if(self, key: str, value: Raw, if_version: str | UnsetType | None) -> None:
        """Save like `save` if the service has versions, otherwise unconditionally."""
        try:
            self.save(key, value, if_version)
        except UnsupportedError:
            if if_version is UNSET:
                raise
            self.save(key, value)

    def delete_if(self, key: str, if_version: str | UnsetType) -> None:
        """Delete like `delete` if the service has versions, otherwise unconditionally."""
        try:
            self.delete(key, if_version)
        except UnsupportedError:
            if if_version is UNSET:
                raise
            self.delete(key)

    def changes_to_save(self, pairs: Sequence[tuple[str, Raw]], if_version: UnsetType | None = UNSET) -> list[Change]:
        """Return changes to save these values; with an `if_version` of None only absent keys are written."""
        return self._changes(None, pairs, if_version)

    def changes_to_merge(self, pairs: Sequence[tuple[str, Raw]]) -> list[Change]:
        """Return changes to merge these values into the keys'."""
        return self._changes("merge", pairs)

    def changes_to_delete(self, keys: Iterable[str]) -> list[Change]:
        """Return changes to delete the keys."""
        return self._changes("delete", [(key, UNSET) for key in keys])

    def _changes(
        self,
        options: Literal["merge", "delete"] | None,
        pairs: Sequence[tuple[str, Raw | UnsetType]],
        if_version: UnsetType | None = UNSET,
    ) -> list[Change]:
        names = self._names([key for key, _ in pairs])
        password = self._passwords.for_edit
        return [
            Change(
                key,
                Request(
                    name=name, options=options, value=value, password=password(self.prefix + key), if_version=if_version
                ),
            )
            for (key, value), name in zip(pairs, names, strict=True)
        ]

    def change(self, change: Change) -> None:
        """Send a change as a request of its own."""
        key, request = change
        if request.operation is Operation.DELETE:
            self.delete(key)
        elif request.operation is Operation.MERGE:
            self.merge(key, cast("Raw", request.value))
        else:
            self.save(key, cast("Raw", request.value), request.if_version)

    def change_batch(self, changes: Sequence[Change]) -> list[CloudStoreError | None]:
        """Send all changes, in order, as a single request; return the error of each."""
        if self._cache is None or self._listing is None:
            return [error for _, error in self._send_batch(changes)]
        times = Counter(change.key for change in changes)
        with self._cache.write_many(self.prefix + key for key in times) as writes, self._listing.write(ALL):
            outcomes = self._send_batch(changes)
            for change, (reply, error) in zip(changes, outcomes, strict=True):
                # Only a single change of the key: of several, the last may have failed.
                if error is None and times[change.key] == 1 and change.request.operation is Operation.SAVE:
                    found = Found(bytes(change.request.value or b""), reply.version or None)
                    writes[self.prefix + change.key].commit(found)
        return [error for _, error in outcomes]

    def _send_batch(self, changes: Sequence[Change]) -> list[tuple[Reply, CloudStoreError | None]]:
        """Return the reply to each change, and its error."""
        replies = self.client.batch([change.request for change in changes])
        return [(reply, error_of(reply, change.key)) for change, reply in zip(changes, replies, strict=True)]

    @contextmanager
    def _changing(self, key: str, *, deletes: bool = False) -> Iterator[Write[bytes] | None]:
        """Drop key and listing from the cache before a write; the block commits the written value, if known."""
        if self.store.is_readonly:  # before the service is asked for the spelling of the name
            raise read_only(key)
        if self._cache is None or self._listing is None:
            yield None
            return
        full = self.prefix + key
        with self._cache.write(full) as write, self._listing.write(ALL) as listing:
            yield write
            names = None if listing.before is None else listing.before.value
            if names is not None and deletes:
                listing.patch(Found({name: None for name in names if name != full}))
            elif names is not None and full in names:
                listing.patch(Found(names))

    def invalidate(self, key: str | None = None) -> None:
        """Drop the key's cache entry and the listing, or the whole cache without a key; and all values read ahead."""
        WRITES.change()
        for cache in (self._cache, self._listing):
            if cache is not None and key is None:
                cache.clear()
        if key is not None and self._cache is not None and self._listing is not None:
            self._cache.invalidate(self.prefix + key)
            self._listing.invalidate(ALL)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


def absent(key: str) -> NoFileError:
    """Return the error for an absent key."""
    return NoFileError(f"There is nothing under {shorten(key)}.", key=key, status=200)
