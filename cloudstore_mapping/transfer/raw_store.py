"""
Raw store: values of a store as JSON bytes, many at a time, and its media files, for import and export.

Uses the mapping's internal interface, `files_of` and `bulk_of`; a failed key does not hide another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from msgspec import UNSET, Raw

from cloudstore_mapping.client.bulk import StopRule
from cloudstore_mapping.client.files import Change
from cloudstore_mapping.client.mapping import CloudStoreMapping, bulk_of, files_of
from cloudstore_mapping.client.media import Download, DownloadTarget, Media, link_of, media_of
from cloudstore_mapping.client.transport import Fetched
from cloudstore_mapping.errors import CloudStoreError


class RawStore:
    """Read and write the JSON of a store's values, in UTF-8, and its media files."""

    def __init__(self, store: CloudStoreMapping[Any]) -> None:
        if not isinstance(store, CloudStoreMapping):
            raise TypeError(
                f"The store is a {type(store).__name__}; give a store that cloudstore_mapping.open returned, or its "
                "view. A shelf's is at the same location."
            )
        self._store = store
        self._files = files_of(store)
        self._bulk = bulk_of(store)
        self._stop = StopRule()  # one for all reads and writes of an export or import

    @property
    def identity(self) -> str:
        """Digest that identifies the store, or its view, without its API key."""
        parts = (*self._files.store.identity, *self._prefix)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def prefix(self) -> str:
        """The prefix of the keys in the store, if this is a view."""
        return self._files.prefix

    @property
    def _prefix(self) -> tuple[str, ...]:
        return (self._files.prefix,) if self._files.prefix else ()

    def is_same(self, other: RawStore) -> bool:
        """Return True if both are the same store, or the same part of it, under any name."""
        if self.file is None or other.file is None:
            return self.identity == other.identity
        return self._prefix == other._prefix and self.file.samefile(other.file)

    def is_in(self, file: Path | None) -> bool:
        """Return True if this is the whole store in a file."""
        if self._prefix or self.file is None or file is None:
            return False
        return file.exists() and self.file.samefile(file)

    @property
    def file(self) -> Path | None:
        """The file of an embedded store."""
        return self._files.store.file

    @property
    def address(self) -> str:
        """The beginning of its media files' URLs, empty for an embedded store."""
        return self._files.store.address

    @property
    def has_versions(self) -> bool:
        """True if the service's last reply said that it gives versions: ours does, the vendor's doesn't."""
        return self._files.supports("version")

    @property
    def takes_batches(self) -> bool:
        """True if the service's last reply said that it takes batches."""
        return self._files.supports("batch")

    def check_has_data(self) -> None:
        """Raise `UnsupportedError` for a store that only seems empty, as its data belong to a service's accounts."""
        self._files.client.check_has_data()

    def keys(self) -> list[str]:
        """Return all keys, in the listing's order."""
        return [*iter(self._store)]

    def read(self, keys: Sequence[str]) -> Iterator[tuple[str, bytes | CloudStoreError]]:
        """Yield each key with its value or error, in order."""
        self._files.store.check_open()
        with closing(self._bulk.read(keys, stop=self._stop)) as results:
            for key, result in results:
                if isinstance(result, CloudStoreError):
                    yield key, result
                else:
                    assert result.value is not None  # noqa: S101 - an absence is a `NoFileError`
                    yield key, result.value

    def write(self, values: Mapping[str, bytes], *, only_new: bool) -> Iterator[tuple[str, CloudStoreError | None]]:
        """
        Save all values, and yield the error of each; an invalid key is an error as well.

        With `only_new` an existing key is `ChangedError` if the service has versions; otherwise its value is replaced.
        """
        self._files.store.check_open()
        condition = None if only_new and self._files.supports("version") else UNSET
        changes: list[Change] = []
        for key, value in values.items():
            try:
                changes += self._files.changes_to_save([(key, Raw(value))], condition)
            except CloudStoreError as error:
                yield key, error
        with closing(self._bulk.attempt(changes, self._stop)) as attempts:
            for key, outcome in attempts:
                if isinstance(outcome, CloudStoreError | None):
                    yield key, outcome
                else:
                    raise outcome

    def media_files(self) -> list[Media]:
        """Return all media files of an embedded store; `UnsupportedError` for a service."""
        return self._store.media_files()

    def upload(self, name: str, data: IO[bytes], mimetype: str, *, only_new: bool) -> str:
        """
        Upload a media file and return its URL; with `only_new` only if there is no file of this name.

        Raises `ChangedError` if there is, `UnsupportedError` if the service has no versions.
        """
        password = self._files.store.media_password
        facts = self._files.client.upload(name, data, mimetype, password, only_new=only_new)
        return media_of(self._files, facts).url

    def is_still(self, url: str, digest: str, size: int) -> bool:
        """Return True if the media file at a URL has this SHA-256; only a service with versions is asked."""
        if not self.has_versions:
            return True
        tag = f'"{digest}"' if self.address else digest
        with closing(self._files.client.fetch(link_of(self._files, url), max(0, size - 1), tag)) as fetched:
            return fetched.tag == tag

    def fetch(self, url: str, file: IO[bytes]) -> Fetched:
        """Download a media file into an open file, and return its description."""
        started: list[Fetched] = []
        link = link_of(self._files, url)
        Download(self._files.client, link, DownloadTarget(file), None, started.append).run()
        return started[-1]
