"""What is imported: the entries and media files of a file of any format, or of another store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

from cloudstore_mapping.client.envelopes import Envelopes
from cloudstore_mapping.client.raw import RawStore
from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.transfer.dbmfiles import length, read_dbm, read_shelf
from cloudstore_mapping.transfer.entries import Entry, entries_of
from cloudstore_mapping.transfer.formats import Format
from cloudstore_mapping.transfer.jsonfiles import read_lines, read_object
from cloudstore_mapping.transfer.links import Links
from cloudstore_mapping.transfer.mediafolder import MediaItem, items_of, opened


class Content(NamedTuple):
    """The bytes of a media file, open, and what it is."""

    file: IO[bytes]
    name: str
    mimetype: str


#: Opens a media file; `NoFileError` where it is gone.
Opens = Callable[[], AbstractContextManager[Content]]


class Source(ABC):
    """Where entries and media files come from."""

    @abstractmethod
    def count(self) -> int:
        """Return how many entries there are, after a look at what can be looked at beforehand."""

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Yield the entries."""

    @abstractmethod
    def media(self) -> list[tuple[str, Opens]]:
        """Return the media files, after the entries, each with what to call it until it is open."""


class FileSource(Source):
    """A file of any format, and the folder of media files beside it, if there is one."""

    def __init__(self, path: Path, kind: Format, envelopes: Callable[[], Envelopes]) -> None:
        self._path = path
        self._kind = kind
        self._envelopes = envelopes

    def count(self) -> int:
        """Return how many entries there are; what is JSON is read to its end, so that nothing is half imported."""
        if self._kind == "shelve":  # only once: its pickles run
            return length(self._path)
        return sum(1 for _ in self.entries())

    def entries(self) -> Iterator[Entry]:
        """Yield the entries."""
        if self._kind == "shelve":
            return read_shelf(self._path, self._envelopes())
        return {"json": read_object, "jsonl": read_lines, "dbm": read_dbm}[self._kind](self._path)

    def media(self) -> list[tuple[str, Opens]]:
        """Return the media files in the folder."""
        return [(item.name, partial(self._opened, item)) for item in items_of(self._path)]

    @contextmanager
    def _opened(self, item: MediaItem) -> Iterator[Content]:
        with opened(self._path, item) as file:
            yield Content(file, item.name, item.mimetype)


class StoreSource(Source):
    """Another store."""

    def __init__(self, store: RawStore) -> None:
        self._store = store
        self._keys: list[str] = []
        self._links = Links(store.address)

    def count(self) -> int:
        """Return how many keys there are."""
        self._keys = self._store.keys()
        return len(self._keys)

    def entries(self) -> Iterator[Entry]:
        """Yield the values of the keys that were counted, but for those that were deleted meanwhile."""
        for entry in entries_of(self._store, self._keys):
            if isinstance(entry.value, bytes):
                self._links.look(entry.value)
            yield entry

    def media(self) -> list[tuple[str, Opens]]:
        """Return the media files, of a service those whose addresses stand in the values that were read."""
        try:
            links = [media.url for media in self._store.media_files()]
        except UnsupportedError:
            links = list(self._links.found)
        return [(link, partial(self._opened, link)) for link in links]

    @contextmanager
    def _opened(self, link: str) -> Iterator[Content]:
        with TemporaryFile() as file:
            told = self._store.fetch(link, file)
            file.seek(0)
            yield Content(file, told.name or link.rpartition("/")[2], told.mimetype)
