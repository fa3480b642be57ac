"""Media files of a store: what a user uploads and downloads, streamed both ways."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, TypeAlias, TypeVar, overload

from cloudstore_mapping.client.downloads import Download, Target
from cloudstore_mapping.client.multipart import Media as MediaData
from cloudstore_mapping.client.multipart import open_media
from cloudstore_mapping.client.progress import reporting
from cloudstore_mapping.client.store import Store
from cloudstore_mapping.errors import ProtocolError
from cloudstore_mapping.links import FILES_PATH, media_link

V = TypeVar("V")

#: Where a download goes: a path, or a binary file that can be written.
Destination: TypeAlias = str | os.PathLike[str] | IO[bytes]

_PARTIAL: Final = ".part"


class Media(NamedTuple):
    """
    A media file at the service, of `size` bytes.

    `url` is where anybody who has it gets the file; of an embedded store, which has no address, it begins with
    ``/files/`` and means something to that store only.
    """

    name: str
    folder: str
    id: str
    mimetype: str
    size: int
    url: str


class MediaStore(Store[V]):
    """The part of `CloudStoreMapping` that is about media files."""

    def upload(
        self,
        data: MediaData | os.PathLike[str],
        name: str | None = None,
        *,
        type: str | None = None,  # noqa: A002 - as the callback client calls it
        password: str | None = None,
    ) -> Media:
        """
        Store a media file, in the place of one of the same name, and return where it is.

        Parameters
        ----------
        data
            A path; bytes; an open binary file, sent from where it stands and of any size; or text: stored as UTF-8
            where the type is ``"text"`` or ``"text/…"``, else taken as base64, bare or in a ``data:`` URL.
        name
            What it is called; without it a path's or file's own last part.
        type
            Such as ``"image/jpeg"``; without it the name says it.
        password
            The file's edit password, where it has one; without it the store's `media_password`.

        Raises
        ------
        ValueError
            There is no name, or the text is no base64.
        LockedError, LimitError
            A file of this name has another password; or it is larger than the account may store, or one too many.
        """
        self._check_open()
        called = _name_of(data) if name is None else name
        if not called:
            raise ValueError("The file has no name of its own; give it one: upload(data, 'name').")
        with _opened(data) as source:
            content, content_type, own = open_media(source, called, type)
            try:
                with self._reported(content) as sent:
                    facts = self._client.upload(
                        called, sent, content_type, self._media_password if password is None else password
                    )
            finally:
                if own is not None:
                    own.close()
        try:
            name, folder, number, kind, size = (facts[field] for field in ("name", "folder", "id", "mimetype", "size"))
            return Media(name, folder, number, kind, size, self._address + media_link(folder, number, name, kind))
        except (KeyError, TypeError) as error:
            raise ProtocolError("The answer doesn't describe a file; is the address right?") from error

    @overload
    def download(self, media: Media | str, to: None = None) -> bytes: ...
    @overload
    def download(self, media: Media | str, to: Destination) -> None: ...

    def download(self, media: Media | str, to: Destination | None = None) -> bytes | None:
        """
        Get a media file by what `upload` returned, or by its address, and return its bytes.

        With `to` they are written there, piece by piece: to a path, which is replaced once the file is whole, or to a
        binary file. What breaks off is gone on with where it broke, as often as the store retries.

        Raises
        ------
        NoFileError
            There is no file, or no longer.
        ValueError
            The address is not one of this store's service.
        """
        self._check_open()
        link = self._link(media.url if isinstance(media, Media) else media)
        if to is None:
            buffer = BytesIO()
            self._fetch(link, buffer)
            return buffer.getvalue()
        if not isinstance(to, str | os.PathLike):
            self._fetch(link, to)
            return None
        with _replacing(Path(to)) as file:
            self._fetch(link, file)
        return None

    def _fetch(self, link: str, file: IO[bytes]) -> None:
        Download(self._client, link, Target(file), self._progress).run()

    def _link(self, url: str) -> str:
        link = url.removeprefix(self._address) if self._address else url
        if not link.startswith(FILES_PATH) or any(char in link for char in "?# \r\n") or "/../" in link:
            beginning = self._address + FILES_PATH
            raise ValueError(f"The address is not one of this store's media files; they begin with {beginning}.")
        return link

    @contextmanager
    def _reported(self, content: bytes | IO[bytes]) -> Iterator[bytes | IO[bytes]]:
        if self._progress is None:
            yield content
            return
        file = BytesIO(content) if isinstance(content, bytes) else content
        start = file.tell()
        total = file.seek(0, os.SEEK_END) - start
        file.seek(start)
        with reporting(self._progress, total) as report:
            yield _Reporting(file, lambda: report(file.tell() - start))  # type: ignore[misc]  # all that is used of a file


class _Reporting:
    """A binary file that tells how far it was read."""

    def __init__(self, file: IO[bytes], report: Callable[[], object]) -> None:
        self._file = file
        self._report = report
        self.tell = file.tell
        self.seek = file.seek
        self.seekable = file.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._report()
        return data


def _name_of(data: Any) -> str:
    if isinstance(data, os.PathLike):
        return Path(data).name
    name = getattr(data, "name", "")
    return Path(name).name if isinstance(name, str) else ""


@contextmanager
def _opened(data: Any) -> Iterator[Any]:
    if not isinstance(data, os.PathLike):
        yield data
        return
    with Path(data).open("rb") as file:
        yield file


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Give the block a new file beside `path`, which takes its place if all went well, and leaves nothing if not."""
    prefix = f".{path.name[:100]}."
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=prefix, suffix=_PARTIAL, delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            file.close()
            with suppress(FileNotFoundError):
                Path(file.name).unlink()
            raise
    umask = os.umask(0)
    os.umask(umask)
    Path(file.name).chmod(0o666 & ~umask)
    Path(file.name).replace(path)
