"""What is imported: the entries and media files of a file of any format, or of another store."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile, gettempdir
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

from cloudstore_mapping.client.shelf import Envelopes
from cloudstore_mapping.errors import BadValueError, UnsupportedError
from cloudstore_mapping.oserrors import naming
from cloudstore_mapping.transfer.dbmfiles import length, read_dbm, read_shelf
from cloudstore_mapping.transfer.entries import Entry, entries_of
from cloudstore_mapping.transfer.export_target import RECORD, check_complete, record_of
from cloudstore_mapping.transfer.formats import Format, format_of_source, format_of_stream
from cloudstore_mapping.transfer.jsonfiles import read_lines, read_object
from cloudstore_mapping.transfer.links import Links
from cloudstore_mapping.transfer.mediafolder import MediaItem, faults_of, items_of, opened
from cloudstore_mapping.transfer.raw_store import RawStore

if TYPE_CHECKING:
    from cloudstore_mapping.client.mapping import CloudStoreMapping


class Content(NamedTuple):
    """The bytes of a media file, open, and what it is."""

    file: IO[bytes]
    name: str
    mimetype: str


#: Opens a media file; `NoFileError` where it is gone.
Opens = Callable[[], AbstractContextManager[Content]]


#: Makes the envelopes that a shelf's values come in.
MakeEnvelopes: TypeAlias = Callable[[], Envelopes]


class Source(ABC):
    """Where entries and media files come from."""

    #: The name that programs open it by, of a dbm file.
    dbm_name: Path | None = None

    @abstractmethod
    def count(self) -> int:
        """Return how many entries there are, after a look at what can be looked at beforehand."""

    @abstractmethod
    def entries(self, envelopes: MakeEnvelopes) -> Iterator[Entry]:
        """Yield the entries."""

    @abstractmethod
    def media(self) -> list[tuple[str, Opens]]:
        """Return the media files, after the entries, each with what to call it until it is open."""

    def faults(self) -> list[BadValueError]:
        """Return what is wrong with the whole of them, but for what opening one of them raises."""
        return []


@contextmanager
def source_at(place: str, given: Format | None, *, trust: bool, stream: IO[bytes] | None = None) -> Iterator[Source]:
    """
    Open the file, pipe or store at a place, and look at all that can be looked at before anything is written.

    What can be read only once, a `stream` that is given for one, is held in a temporary file.
    """
    with ExitStack() as stack:
        if stream is not None:
            source = _held(stack, "Standard input", place, stream, given)
        elif _is_pipe(place):
            source = _held(stack, place, place, stack.enter_context(Path(place).open("rb")), given)
        else:
            kind = format_of_source(place, given)
            if kind == "store":
                source = StoreSource(RawStore(stack.enter_context(_open_existing(place))))
            elif kind == "shelve" and not trust:
                raise BadValueError(
                    f"{place} is a shelf, and loading it runs what is in its pickles; if it is your own, say "
                    "trust=True."
                )
            else:
                source = FileSource(Path(place), kind, place)
        source.count()
        yield source


def _held(stack: ExitStack, called: str, name: str, stream: IO[bytes], given: Format | None) -> Source:
    path = Path(stack.enter_context(TemporaryDirectory())) / "held"
    with naming(path), path.open("xb") as file:
        shutil.copyfileobj(stream, file)
    return FileSource(path, format_of_stream(called, name, path, given), called, media_of=Path(name))


def _is_pipe(place: str) -> bool:
    try:
        mode = Path(place).stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode)


def _open_existing(location: str) -> CloudStoreMapping[Any]:
    from cloudstore_mapping.locations import open as open_store  # loads what only this needs
    from cloudstore_mapping.locations import place_at

    place = place_at(location)
    if place is not None and place.is_memory:
        raise ValueError("A store in memory begins empty, so nothing can come from one; name another.")
    if place is not None and not place.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), location)
    return open_store(location, readonly=place is not None and place.is_older())  # to read is no reason to migrate


class FileSource(Source):
    """A file of any format, and the folder of media files beside it, or beside `media_of`, if there is one."""

    def __init__(self, path: Path, kind: Format, called: str, media_of: Path | None = None) -> None:
        self._path = path
        self._kind = kind
        self._called = called
        self._media_of = media_of or path
        self._total: int | None = None
        if kind in ("dbm", "shelve"):
            self.dbm_name = path

    def count(self) -> int:
        """Return how many entries there are; what is JSON is read to its end, so that nothing is half imported."""
        if self._total is None:
            check_complete(self._path)
            self._record = record_of(self._media_of)
            self._items = items_of(self._media_of)
            if self._kind in ("dbm", "shelve"):  # only once: a shelf's pickles run
                self._total = length(self._path)
                if self._record.keys is not None and self._total < self._record.keys:
                    raise BadValueError(
                        f"{self._called} has {self._total:,} of the {self._record.keys:,} keys that were exported; get "
                        f"it again, or remove {self._path}{RECORD} if you took the others away."
                    )
            else:
                self._total = sum(1 for _ in self._read())
        return self._total

    def entries(self, envelopes: MakeEnvelopes) -> Iterator[Entry]:
        """Yield the entries."""
        if self._kind == "shelve":
            return read_shelf(self._path, envelopes())
        return read_dbm(self._path) if self._kind == "dbm" else self._read()

    def _read(self) -> Iterator[Entry]:
        return (read_object if self._kind == "json" else read_lines)(self._path, self._called)

    def media(self) -> list[tuple[str, Opens]]:
        """Return the media files in the folder."""
        self.count()
        return [(item.name, partial(self._opened, item)) for item in self._items]

    def faults(self) -> list[BadValueError]:
        """Return what is wrong with the folder of media files."""
        self.count()
        return list(faults_of(self._media_of, self._items, self._record.media))

    @contextmanager
    def _opened(self, item: MediaItem) -> Iterator[Content]:
        with opened(self._media_of, item) as file:
            yield Content(file, item.name, item.mimetype)


class StoreSource(Source):
    """Another store."""

    def __init__(self, store: RawStore) -> None:
        self._store = store
        self._keys: list[str] | None = None
        self._links = Links(store.address)

    def count(self) -> int:
        """Return how many keys there are."""
        return len(self._listed())

    def is_same(self, store: RawStore) -> bool:
        """Return whether it is this store, by whatever name."""
        return self._store.is_same(store)

    def is_in(self, file: Path | None) -> bool:
        """Return whether it is the whole store in this file."""
        return self._store.is_in(file)

    def _listed(self) -> list[str]:
        if self._keys is None:
            self._store.check_has_data()
            self._keys = self._store.keys()
        return self._keys

    def entries(self, envelopes: MakeEnvelopes) -> Iterator[Entry]:  # noqa: ARG002 - a file's need them
        """Yield the values of the keys that were counted, but for those that were deleted meanwhile."""
        for entry in entries_of(self._store, self._listed()):
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
        with naming(gettempdir()), TemporaryFile() as file:
            told = self._store.fetch(link, file)
            file.seek(0)
            yield Content(file, told.name or link.rpartition("/")[2], told.mimetype)
