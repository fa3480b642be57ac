"""The media files of an export: a folder beside its file, with each of them and an index that says what they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, Protocol

import msgspec

from cloudstore_mapping.client.media import safe_filename
from cloudstore_mapping.client.transport import Fetched
from cloudstore_mapping.errors import BadValueError, UnsupportedError
from cloudstore_mapping.storefiles import open_file, read_file, sync_folder
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


#: The beginning of every line of the index.
_ITEM_START: Final = b'{"file":"'


class Fetch(Protocol):
    """Writes the bytes of the media file at an address to an open file, and returns what was told of it."""

    def __call__(self, address: str, file: IO[bytes], /) -> Fetched:
        """Do so."""


def folder_of(export: Path) -> Path:
    """Return the folder of an export's media files."""
    return export.with_name(export.name + FOLDER)


def is_exported(folder: Path, *, unfinished: bool) -> bool:
    """
    Return whether a folder holds the media files of an export and nothing else.

    An `unfinished` one may also hold the file that comes next, and an index that is not whole.
    """
    if folder.is_symlink() or not folder.is_dir() or any(not file.is_file() for file in folder.iterdir()):
        return False
    items = _items(folder)
    others = {file.name for file in folder.iterdir()} - {INDEX, *(item.file for item in items)}
    if unfinished:
        number = _next_number(items)
        return all(name.startswith((f"{number}-", f"{number}{END}")) for name in others) and _is_cut_off(folder)
    return not others and len(items) == _lines(folder)


def _is_cut_off(folder: Path) -> bool:
    """Return whether the index has no more than the beginning of a line behind those that are whole."""
    *_, rest = _index(folder).rpartition(b"\n")
    return len(_items(folder)) == _lines(folder) - bool(rest) and rest.startswith(_ITEM_START[: len(rest)])


class MediaDraft:
    """The folder while media files come into it, under another name; what it holds is whole, file by file."""

    def __init__(self, export: Path) -> None:
        self._place = folder_of(export)
        self._folder = self._place.with_name(self._place.name + END)
        self._items = {item.link: item for item in _items(self._folder)}
        self._number = _next_number(self._items.values())
        whole, end, rest = _index(self._folder).rpartition(b"\n")
        if rest:  # a line was cut off
            os.truncate(self._folder / INDEX, len(whole + end))

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, link: str) -> bool:
        return link in self._items

    def add(self, link: str, fetch: Fetch) -> None:
        """Get the media file at a link; raises what `fetch` raises, and then there is nothing of it."""
        self._folder.mkdir(0o700, exist_ok=True)
        draft = self._folder / f"{self._number}{END}"
        try:
            with open_file(draft, "w+b") as file:
                told = fetch(link, file)
                file.flush()
                os.fsync(file.fileno())
                digest, size = _digest(file)
            name = told.name or link.rpartition("/")[2]
            item = MediaItem(f"{self._number}-{safe_filename(name)}", link, name, told.mimetype, size, digest)
            draft.replace(self._folder / item.file)
        finally:
            draft.unlink(missing_ok=True)
        with open_file(self._folder / INDEX, "ab") as index:
            index.write(_encode(item) + b"\n")
            index.flush()
            os.fsync(index.fileno())
        self._items[link] = item
        self._number = _next_number(self._items.values())

    def keep(self, is_right: Callable[[MediaItem], bool]) -> None:
        """Remove all media files that are not what the index says, and those that `is_right` says no to."""
        wrong = [item for item in self._items.values() if not (self._is_whole(item) and is_right(item))]
        if not wrong:
            return
        for item in wrong:
            del self._items[item.link]
        draft = self._folder / f"{self._number}{END}"
        with open_file(draft, "wb") as file:
            file.writelines(_encode(item) + b"\n" for item in self._items.values())
            file.flush()
            os.fsync(file.fileno())
        for item in wrong:  # before they leave the index: what no index names is a stranger's
            (self._folder / item.file).unlink(missing_ok=True)
        draft.replace(self._folder / INDEX)
        self._number = _next_number(self._items.values())

    def _is_whole(self, item: MediaItem) -> bool:
        try:
            with open_file(self._folder / item.file) as file:
                return _digest(file) == (item.sha256, item.size)
        except OSError:
            return False

    def finish(self) -> None:
        """Put the folder in its place, and take away one that an export before this left there."""
        if self._folder.is_dir():
            known = {INDEX, *(item.file for item in self._items.values())}
            for left in list(self._folder.iterdir()):  # by an export that ended between a file and its line
                if left.name not in known:
                    left.unlink()
            sync_folder(self._folder)
            self._take_away()
            self._folder.replace(self._place)
            sync_folder(self._place.parent)  # the export's file comes later, and is nothing without its media files
        else:
            self._take_away()

    def _take_away(self) -> None:
        """Remove the files that the index names, then the index: what an interruption leaves still shows what it is."""
        if self._place.is_dir():
            named = {item.file for item in _items(self._place)}
            for file in list(self._place.iterdir()):
                if file.name in named:
                    file.unlink()
            (self._place / INDEX).unlink(missing_ok=True)
            self._place.rmdir()


@contextmanager
def opened(export: Path, item: MediaItem) -> Iterator[IO[bytes]]:
    """Open a media file of an export; `BadValueError` where it isn't what the index says, or not there."""
    path = folder_of(export) / Path(item.file).name  # an index from elsewhere may name anything
    try:
        file = open_file(path)
    except (OSError, UnsupportedError) as error:
        why = getattr(error, "strerror", None) or "it is no regular file"
        raise BadValueError(f"{path} can't be read: {why}; get it again.", key=item.name) from error
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
    if len(items) != _lines(folder):
        raise BadValueError(f"Line {len(items) + 1} of {folder / INDEX} can't be read; mend it, and import again.")
    return items


def faults_of(export: Path, items: Sequence[MediaItem], exported: int | None) -> Iterator[BadValueError]:
    """Yield what doesn't fit: fewer media files than were `exported`, where that is known, and files of no index."""
    folder = folder_of(export)
    if exported is not None and len(items) < exported:
        yield BadValueError(
            f"{folder} has {len(items):,} of the {exported:,} media files that were exported; get it again, or remove "
            f"{export}.exported if you took the others away.",
            key=folder.name,
        )
    elif folder.is_dir() and not items:
        yield BadValueError(f"{folder / INDEX} names no media file; get it again.", key=folder.name)
    named = {INDEX, *(Path(item.file).name for item in items)}
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if file.name not in named:
            yield BadValueError(
                f"{file} is not in the {INDEX} beside it and was not imported; get that again, or move the file away.",
                key=file.name,
            )


def _next_number(items: Iterable[MediaItem]) -> str:
    """Return what the name of the next file begins with: six digits that count on."""
    numbers = [int(item.file[:6]) for item in items if item.file[:6].isdecimal()]
    return f"{max(numbers, default=-1) + 1:06}"


def _lines(folder: Path) -> int:
    return sum(1 for line in _index(folder).splitlines() if line.strip())


def _index(folder: Path) -> bytes:
    try:
        return read_file(folder / INDEX)
    except FileNotFoundError:
        return b""


def _items(folder: Path) -> list[MediaItem]:
    """Return what the index says, up to a line that is not whole."""
    items: list[MediaItem] = []
    for line in _index(folder).splitlines():
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
