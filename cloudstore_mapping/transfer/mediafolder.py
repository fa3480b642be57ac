"""The media files of an export: a folder beside its file, with each of them and an index that says what they are."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, Protocol

import msgspec

from cloudstore_mapping.client.fetching import Fetched
from cloudstore_mapping.client.saving import harmless, sync_folder
from cloudstore_mapping.errors import BadValueError
from cloudstore_mapping.storefiles import open_file, read_file
from cloudstore_mapping.transfer.journal import END

#: What the folder's name has behind the export's.
FOLDER: Final = ".media"
INDEX: Final = "index.jsonl"
_PIECE: Final = 2**18

_encode: Final = msgspec.json.Encoder().encode


class MediaItem(msgspec.Struct, frozen=True):
    """A line of the index: the file in the folder, and what it is; `link` is where it was got."""

    file: str
    link: str
    name: str
    mimetype: str
    size: int
    sha256: str


_read_item: Final = msgspec.json.Decoder(MediaItem).decode


class Fetch(Protocol):
    """Writes the bytes of the media file at an address to an open file, and returns what was told of it."""

    def __call__(self, address: str, file: IO[bytes], /) -> Fetched:
        """Do so."""


def folder_of(export: Path) -> Path:
    """Return the folder of an export's media files."""
    return export.with_name(export.name + FOLDER)


class MediaDraft:
    """The folder while media files come into it, under another name; what it holds is whole, file by file."""

    def __init__(self, export: Path) -> None:
        self._place = folder_of(export)
        self._folder = self._place.with_name(self._place.name + END)
        self._items = {item.link: item for item in _items(self._folder)}
        if self._folder.is_dir():  # without a line that was cut off in the middle
            with open_file(self._folder / INDEX, "wb") as index:
                index.writelines(_encode(item) + b"\n" for item in self._items.values())

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, link: str) -> bool:
        return link in self._items

    def add(self, link: str, fetch: Fetch) -> None:
        """Get the media file at a link; raises what `fetch` raises, and then there is nothing of it."""
        self._folder.mkdir(exist_ok=True)
        draft = self._folder / f"{len(self._items):06}{END}"
        try:
            with open_file(draft, "w+b") as file:
                told = fetch(link, file)
                file.flush()
                os.fsync(file.fileno())
                digest, size = _digest(file)
            name = told.name or link.rpartition("/")[2]
            item = MediaItem(f"{len(self._items):06}-{harmless(name)}", link, name, told.mimetype, size, digest)
            draft.replace(self._folder / item.file)
        finally:
            draft.unlink(missing_ok=True)
        with open_file(self._folder / INDEX, "ab") as index:
            index.write(_encode(item) + b"\n")
            index.flush()
            os.fsync(index.fileno())
        self._items[link] = item

    def finish(self) -> None:
        """Put the folder in its place, and take away one that an export before this left there."""
        if self._folder.is_dir():
            known = {INDEX, *(item.file for item in self._items.values())}
            for left in self._folder.iterdir():  # by an export that ended between a file and its line
                if left.name not in known:
                    left.unlink()
            sync_folder(self._folder)
            shutil.rmtree(self._place, ignore_errors=True)
            self._folder.replace(self._place)
            sync_folder(self._place.parent)  # the export's file comes later, and is nothing without its media files
        elif (self._place / INDEX).is_file():
            shutil.rmtree(self._place)


@contextmanager
def opened(export: Path, item: MediaItem) -> Iterator[IO[bytes]]:
    """Open a media file of an export; `BadValueError` where it isn't what the index says, or not there."""
    path = folder_of(export) / harmless(item.file)
    try:
        file = open_file(path)
    except OSError as error:
        raise BadValueError(f"{path} can't be read: {error.strerror}; get it again.", key=item.name) from error
    with file:
        if _digest(file) != (item.sha256, item.size):
            raise BadValueError(f"{path} is not what the index beside it says; get it again.", key=item.name)
        file.seek(0)
        yield file


def items_of(export: Path) -> list[MediaItem]:
    """Return the media files of an export; `BadValueError` for an index that can't be read, or a folder without one."""
    folder = folder_of(export)
    if not folder.is_dir():
        return []
    if not (folder / INDEX).is_file():
        raise BadValueError(f"{folder} has no {INDEX}, so nobody knows what is in it; mend it, or move it away.")
    items = _items(folder)
    lines = sum(1 for line in read_file(folder / INDEX).splitlines() if line.strip())
    if len(items) != lines:
        raise BadValueError(f"Line {len(items) + 1} of {folder / INDEX} can't be read; mend it, and import again.")
    return items


def _items(folder: Path) -> list[MediaItem]:
    """Return what the index says, up to a line that is not whole."""
    items: list[MediaItem] = []
    try:
        text = read_file(folder / INDEX)
    except FileNotFoundError:
        return items
    for line in text.splitlines():
        try:
            items.append(_read_item(line))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            break
    return items


def _digest(file: IO[bytes]) -> tuple[str, int]:
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest(), file.tell()
