"""A store's values as the JSON that is stored, many at a time, for what carries them from one place to another."""

# ruff: noqa: SLF001 - a part of the store, which no user calls
from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from msgspec import UNSET, Raw

from cloudstore_mapping.client.bulk import attempts, read_many
from cloudstore_mapping.client.changes import Change
from cloudstore_mapping.client.downloads import Download, Target
from cloudstore_mapping.client.fetching import Fetched
from cloudstore_mapping.errors import CloudStoreError

if TYPE_CHECKING:
    from cloudstore_mapping.client.mapping import CloudStoreMapping
    from cloudstore_mapping.client.media import Media


class RawStore:
    """The inside of a store: values are JSON in UTF-8, and what goes wrong with one key hides nothing of another."""

    def __init__(self, store: CloudStoreMapping[Any]) -> None:
        self._store = store

    @property
    def identity(self) -> str:
        """What tells this store from any other, without telling its API key."""
        return hashlib.sha256("\0".join(self._store._identity()).encode("utf-8", "surrogatepass")).hexdigest()

    def is_same(self, other: RawStore) -> bool:
        """Return whether both are one store, or the same part of one, by whatever name."""
        if self.file is None or other.file is None:
            return self.identity == other.identity
        parts = self._store._identity()[1:] == other._store._identity()[1:]
        return parts and self.file.samefile(other.file)

    @property
    def file(self) -> Path | None:
        """The file that an embedded store is in."""
        return self._store._file()

    @property
    def address(self) -> str:
        """What the addresses of its media files begin with, empty for an embedded store."""
        return self._store._address

    @property
    def has_versions(self) -> bool:
        """Whether the service has said that it gives versions: all of ours do, and the vendor's doesn't."""
        return self._store._files.supports("version")

    @property
    def takes_batches(self) -> bool:
        """Whether the service has said that many keys can be asked for at once."""
        return self._store._files.supports("batch")

    def check_has_data(self) -> None:
        """Raise `UnsupportedError` if the store is empty only because its data are of a service's accounts."""
        self._store._client.check_has_data()

    def keys(self) -> list[str]:
        """Return all keys, in the listing's order."""
        return self._store._keys()

    def read(self, keys: Sequence[str]) -> Iterator[tuple[str, bytes | CloudStoreError]]:
        """Yield each key with its value, or with what went wrong, in order."""
        for key, outcome in read_many(self._store._files, self._store._workers, keys, None):
            if isinstance(outcome, CloudStoreError):
                yield key, outcome
            else:
                assert outcome.value is not None  # noqa: S101 - an absence is `NoFileError` by now
                yield key, outcome.value

    def write(self, values: Mapping[str, bytes], *, only_new: bool) -> Iterator[tuple[str, CloudStoreError | None]]:
        """
        Save all values, and yield what went wrong with each; one that is no key is an error as well.

        With `only_new` a key that is there already is `ChangedError`, where the service has versions; elsewhere its
        value is replaced.
        """
        files = self._store._files
        condition = None if only_new and files.supports("version") else UNSET
        changes: list[Change] = []
        for key, value in values.items():
            try:
                changes += files.changes.saving([(key, Raw(value))], condition)
            except CloudStoreError as error:
                yield key, error
        self._store._hint.forget()
        yield from attempts(files, self._store._workers, changes)

    def media_files(self) -> list[Media]:
        """Return all media files of an embedded store; `UnsupportedError` for a service."""
        return self._store.media_files()

    def upload(self, name: str, data: IO[bytes], mimetype: str, *, only_new: bool) -> str:
        """
        Store a media file, and return its address; with `only_new` only where there is none of this name.

        Raises `ChangedError` where there is one already, `UnsupportedError` where the service can't tell.
        """
        facts = self._store._client.upload(name, data, mimetype, self._store._media_password, only_new=only_new)
        return self._store._described(facts).url

    def is_still(self, address: str, digest: str, size: int) -> bool:
        """Return whether the media file at an address has this SHA-256, of which a service with versions is asked."""
        if not self.has_versions:
            return True
        tag = f'"{digest}"' if self.address else digest
        with closing(self._store._client.fetch(self._store._link(address), max(0, size - 1), tag)) as fetched:
            return fetched.tag == tag

    def fetch(self, address: str, file: IO[bytes]) -> Fetched:
        """Write a media file's bytes to an open one, and return what was told of it."""
        told: list[Fetched] = []
        Download(self._store._client, self._store._link(address), Target(file), None, told.append).run()
        return told[-1]
