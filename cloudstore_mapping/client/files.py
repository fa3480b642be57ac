"""The files of an account by dict key: which name each has, which password goes with it, what is kept of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from msgspec import UNSET, Raw, UnsetType

from cloudstore_mapping.client.cache import Cache, Found, Mark, Unchanged
from cloudstore_mapping.client.changes import Change, Changes
from cloudstore_mapping.client.client import Client
from cloudstore_mapping.client.names import ALL, Names
from cloudstore_mapping.client.passwords import Passwords
from cloudstore_mapping.errors import CloudStoreError, LockedError, NoFileError, TooBigError
from cloudstore_mapping.wire import Operation, Request


class Files:
    """
    Loads, saves, merges, deletes and lists the encoded values of a store, by key without the `prefix` of a view.

    `cache` keeps values and `listing` listings, None meaning that nothing is kept. Threads may share it.
    """

    def __init__(
        self,
        client: Client,
        passwords: Passwords,
        cache: Cache[bytes] | None = None,
        listing: Cache[dict[str, None]] | None = None,
        prefix: str = "",
        foreign: dict[str, str] | None = None,
    ) -> None:
        self._client = client
        self._passwords = passwords
        self._cache = cache
        self._listing = listing
        self._prefix = prefix
        self._names = Names(client, listing, prefix, {} if foreign is None else foreign)
        #: Makes changes for `change_batch`.
        self.changes = Changes(self._names, passwords, prefix)

    def under(self, prefix: str) -> Files:
        """Return the files whose keys begin with `prefix`, known without it."""
        full = self._prefix + prefix
        return Files(self._client, self._passwords, self._cache, self._listing, full, self._names.foreign)

    def name(self, key: str) -> str:
        """Return the name of the key's file; `BadNameError` for a lone surrogate."""
        return self._names.of(key)

    def supports(self, extension: str) -> bool:
        """Whether the service has said that it has this extension."""
        return extension in self._client.extensions

    def keys(self) -> list[str]:
        """Return all keys, in the listing's order; a foreign name that is no key's name is listed as itself."""
        return self._names.keys()

    def containing(self, text: str) -> list[str]:
        """Return the keys that contain this text, as the service's own search finds them."""
        return self._names.containing(text)

    def load(self, key: str) -> Found[bytes]:
        """Return the key's value as JSON, from the cache where it is there; `NoFileError` where there is none."""
        if self._cache is None:
            return self.fresh(key)
        found = self._cache.read(self._prefix + key, lambda before: self._fetch(key, before))
        if found.value is None:
            raise absent(key)
        return found

    def kept(self, key: str) -> Found[bytes] | None:
        """Return the key's value as JSON if the cache has it."""
        found = None if self._cache is None else self._cache.peek(self._prefix + key)
        return None if found is None or found.value is None else found

    def fresh(self, key: str) -> Found[bytes]:
        """Return the key's value as JSON, from the service; `NoFileError` where there is none."""
        return self._fetch(key, None, missing=False)

    def _fetch(self, key: str, before: Found[bytes] | None, *, missing: bool = True) -> Found[bytes]:
        known = before.version if before is not None and before.value is not None else None
        try:
            loaded = self._client.load(
                self.name(key), self._passwords.for_view(self._prefix + key), key=key, if_not_version=known
            )
        except NoFileError:
            if missing:
                return Found(None)
            raise
        if loaded is None:
            raise Unchanged
        return Found(bytes(loaded.value), loaded.version)

    def has(self, key: str) -> bool:
        """Whether there is a value under the key, asking as little as the service lets one ask."""
        kept = None if self._cache is None else self._cache.peek(self._prefix + key)
        if kept is not None:
            return kept.value is not None
        try:
            if self.supports("stat"):
                self._client.stat(self.name(key), key=key)
            else:
                self.load(key)
        except NoFileError:
            return False
        except LockedError:
            return True
        return True

    def stat(self, key: str) -> dict[str, Any]:
        """Return what the service knows of the key's file; `UnsupportedError` where it tells nothing."""
        if not self.supports("stat"):
            self._client.list(self.name(key))  # any answer says what the service can do
        return self._client.stat(self.name(key), key=key)

    def load_batch(self, keys: Sequence[str]) -> list[Found[bytes] | CloudStoreError]:
        """Return the values, or for each what went wrong, with one request for all that isn't kept."""
        results, mark = self._kept(keys)
        asked = [key for key in keys if key not in results]
        password = self._passwords.for_view
        requests = [
            Request(name=name, password=password(self._prefix + key))
            for key, name in zip(asked, self._names.of_all(asked), strict=True)
        ]
        loaded: dict[str, Found[bytes]] = {}
        for key, reply in zip(asked, self._client.batch(requests) if requests else (), strict=True):
            error = self._client.error_of(reply, key)
            if isinstance(error, TooBigError):  # for one reply with all the others
                results[key] = self.load(key)
            elif error is not None:
                results[key] = error
            else:
                loaded[key] = Found(bytes(reply.content), reply.version or None)
        self._offer(loaded, mark)
        results |= loaded
        return [results[key] for key in keys]

    def load_listed(self, keys: Sequence[str], after: str | None) -> list[Found[bytes] | CloudStoreError]:
        """
        Return what `load_batch` does of keys that were listed one after the other, behind `after` or from the first on.

        They come as a page of values where the service has such, and only what isn't on it is asked for by name.
        """
        beginning = self._names.beginning
        results, mark = self._kept(keys)
        names = self._names.of_all(keys)
        before = None if after is None else self.name(after)
        in_order = names if before is None else [before, *names]
        if results or beginning is None or not self.supports("values") or in_order != sorted(in_order):
            return self.load_batch(keys)
        page = self._client.values(names, beginning, after=before)
        found = {name: Found(bytes(value), version) for name, version, value in page}
        if [*found] == names:
            loaded = dict(zip(keys, found.values(), strict=True))
        else:
            loaded = {key: found[name] for key, name in zip(keys, names, strict=True) if name in found}
        self._offer(loaded, mark)
        if len(loaded) == len(keys):
            return [*loaded.values()]
        results |= loaded
        rest = [key for key in keys if key not in results]
        results.update(zip(rest, self.load_batch(rest) if rest else (), strict=True))
        return [results[key] for key in keys]

    def _kept(self, keys: Sequence[str]) -> tuple[dict[str, Found[bytes] | CloudStoreError], Mark | None]:
        """Return what the cache has of these keys, and its mark of now."""
        if self._cache is None:
            return {}, None
        kept = {key: found for key in keys if (found := self._cache.peek(self._prefix + key)) is not None}
        results: dict[str, Found[bytes] | CloudStoreError] = {
            key: found if found.value is not None else absent(key) for key, found in kept.items()
        }
        return results, self._cache.mark()

    def _offer(self, loaded: Mapping[str, Found[bytes]], mark: Mark | None) -> None:
        """Let the cache keep what came for these keys, but for those that were changed since its mark."""
        if self._cache is not None and mark is not None:
            for key, found in loaded.items():
                self._cache.offer(self._prefix + key, found, mark)

    def save(self, key: str, value: Raw, if_version: str | UnsetType | None = UNSET) -> None:
        """Make this the key's value; with `if_version` only if that is its version, None meaning that it is absent."""
        with self._changing(key) as keep:
            version = self._client.save(
                self.name(key), value, self._passwords.for_edit(self._prefix + key), key=key, if_version=if_version
            )
            keep(Found(bytes(value), version))

    def merge(self, key: str, value: Raw) -> None:
        """Merge the value into the key's."""
        with self._changing(key):
            self._client.merge(self.name(key), value, self._passwords.for_edit(self._prefix + key), key=key)

    def delete(self, key: str, if_version: str | UnsetType = UNSET) -> None:
        """Remove the key; `NoFileError` where there is none."""
        with self._changing(key, removes=True) as keep:
            self._client.delete(
                self.name(key), self._passwords.for_edit(self._prefix + key), key=key, if_version=if_version
            )
            keep(Found(None))

    def change(self, change: Change) -> None:
        """Make one change with a request of its own."""
        key, request = change
        if request.operation is Operation.DELETE:
            self.delete(key)
        elif request.operation is Operation.MERGE:
            self.merge(key, cast("Raw", request.value))
        else:
            self.save(key, cast("Raw", request.value), request.if_version)

    def change_batch(self, changes: Sequence[Change]) -> list[CloudStoreError | None]:
        """Make all changes with one request, in their order; return what went wrong with each."""
        with ExitStack() as stack:
            keep: dict[str, Callable[[Found[bytes]], None]] = {}
            if self._cache is not None and self._listing is not None:
                times = Counter(change.key for change in changes)
                stack.enter_context(self._listing.write(ALL))
                for key, count in times.items():
                    write = stack.enter_context(self._cache.write(self._prefix + key))
                    if count == 1:  # of several changes of a key the last one may be the one that failed
                        keep[key] = write.keep
            replies = self._client.batch([change.request for change in changes])
            errors = [self._client.error_of(reply, change.key) for change, reply in zip(changes, replies, strict=True)]
            for change, reply, error in zip(changes, replies, errors, strict=True) if keep else ():
                if change.key in keep and error is None and change.request.operation is Operation.SAVE:
                    keep[change.key](Found(bytes(change.request.value or b""), reply.version or None))
        return errors

    @contextmanager
    def _changing(self, key: str, *, removes: bool = False) -> Iterator[Callable[[Found[bytes]], None]]:
        """Keep caches right around a write; the block tells what it left, if it knows."""
        if self._cache is None or self._listing is None:
            yield lambda _: None
            return
        full = self._prefix + key
        listed = self._listing.peek(ALL)
        names = None if listed is None else listed.value
        with ExitStack() as stack:
            write = stack.enter_context(self._cache.write(full))
            if names is not None and full in names and not removes:
                # The listing stays what it is, unless somebody takes the key out of it meanwhile, or the write fails.
                self._listing.disturb(ALL)
                try:
                    yield write.keep
                except BaseException:
                    self._listing.forget(ALL)
                    raise
                finally:
                    self._listing.disturb(ALL)
                    now = self._listing.peek(ALL)
                    if now is not None and full not in (now.value or ()):
                        self._listing.forget(ALL)
                return
            listing = stack.enter_context(self._listing.write(ALL))
            yield write.keep
            if removes and listing.before is not None:
                listing.amend(Found({name: None for name in listing.before.value or () if name != full}))

    def forget(self, key: str | None = None) -> None:
        """Drop what is kept of the key, without one all that is kept."""
        for cache in (self._cache, self._listing):
            if cache is not None and key is None:
                cache.clear()
        if key is not None and self._cache is not None and self._listing is not None:
            self._cache.forget(self._prefix + key)
            self._listing.forget(ALL)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()


def absent(key: str) -> NoFileError:
    """Return the error that says so."""
    return NoFileError(f"There is nothing under {key!r}.", key=key, status=200)
