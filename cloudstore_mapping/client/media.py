"""Media files of a store: what a user uploads and downloads, streamed both ways."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, TypeAlias, TypeVar, overload

from cloudstore_mapping.client.downloads import Download, Target
from cloudstore_mapping.client.multipart import Media as MediaData
from cloudstore_mapping.client.multipart import open_media, size_of
from cloudstore_mapping.client.progress import Progress, reporting
from cloudstore_mapping.client.saving import Saving
from cloudstore_mapping.client.store import Store
from cloudstore_mapping.errors import ProtocolError
from cloudstore_mapping.links import FILES_PATH, media_link
from cloudstore_mapping.storefiles import open_file

V = TypeVar("V")

#: Where a download goes on the disk: a file, or the folder for it.
Place: TypeAlias = str | os.PathLike[str]

_LINK: Final = re.compile(re.escape(FILES_PATH) + r"[\w-]+/[\w-]+(?:\.\w+)?", re.ASCII)


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
        progress: Progress = None,
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
        progress
            Told how many bytes of how many are sent, in the place of the store's own `progress`; a stream whose size
            can't be known tells nothing.

        Raises
        ------
        ValueError
            There is no name, or the text is no base64.
        LockedError, LimitError
            A file of this name has another password; or it is larger than the account may store, or one too many.
        UnsupportedError
            The path is that of a store, which may be open.
        """
        self._check_open()
        called = _name_of(data) if name is None else name
        if not called:
            raise ValueError(
                "It has no name of its own; give one, upload(data, 'name'), or the file as a pathlib.Path."
            )
        with _opened(data) as source:
            content, content_type, own = open_media(source, called, type)
            try:
                with self._reported(content, progress) as sent:
                    facts = self._client.upload(
                        called, sent, content_type, self._media_password if password is None else password
                    )
            finally:
                if own is not None:
                    own.close()
        return self._described(facts)

    def media_files(self) -> list[Media]:
        """
        Return all media files of an embedded store, by name.

        `UnsupportedError` for a service: it tells nobody, for whoever knows a link has the file.
        """
        self._check_open()
        return [self._described(facts) for facts in self._client.media_files()]

    def _described(self, facts: dict[str, Any]) -> Media:
        try:
            name, folder, number, kind, size = (facts[field] for field in ("name", "folder", "id", "mimetype", "size"))
            return Media(name, folder, number, kind, size, self._address + media_link(folder, number, name, kind))
        except (KeyError, TypeError) as error:
            raise ProtocolError("The answer doesn't describe a file; is the address right?") from error

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
        Get a media file. What breaks off is gone on with where it broke, as often as the store retries.

        Parameters
        ----------
        media
            What `upload` returned, or the file's address.
        to
            None: its bytes are returned. A path: the file there is replaced once the download is whole, and the path
            returned; in a folder it gets its own name, or what of that does no harm. An open binary file: written to.
        overwrite
            Whether a file that is there already may be replaced; if not, `FileExistsError`.
        progress
            Told how many bytes of how many have come, in the place of the store's own `progress`.

        Raises
        ------
        NoFileError
            There is no file, or no longer.
        ValueError
            The address is not one of this store's service.
        OSError
            It can't be written to the path.
        UnsupportedError
            A store is at the path.
        """
        self._check_open()
        link = self._link(media.url if isinstance(media, Media) else media)
        shown = self._progress if progress is None else progress
        if to is None:
            buffer = BytesIO()
            Download(self._client, link, Target(buffer), shown).run()
            return buffer.getvalue()
        if not isinstance(to, str | os.PathLike):
            Download(self._client, link, Target(to), shown).run()
            return None
        saving = Saving(to, overwrite=overwrite)
        with saving as file:
            own_name = link.rpartition("/")[2]
            Download(self._client, link, Target(file), shown, lambda told: saving.name(told.name or own_name)).run()
        return saving.path

    def _link(self, url: str) -> str:
        link = url.removeprefix(self._address) if self._address else url
        if not _LINK.fullmatch(link):
            beginning = self._address + FILES_PATH
            raise ValueError(f"The address is not one of this store's media files; they begin with {beginning}.")
        return link

    @contextmanager
    def _reported(self, content: bytes | IO[bytes], progress: Progress) -> Iterator[bytes | IO[bytes]]:
        shown = self._progress if progress is None else progress
        total = size_of(content)
        if shown is None or total is None:
            yield content
            return
        file = BytesIO(content) if isinstance(content, bytes) else content
        start = file.tell()
        with reporting(shown, total) as report:
            yield _Reporting(file, lambda: report(file.tell() - start))  # type: ignore[misc]  # all that is used of a file


class _Reporting:
    """A binary file that tells how far it was read."""

    def __init__(self, file: IO[bytes], report: Callable[[], object]) -> None:
        self._file = file
        self._report = report

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

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
    with open_file(data) as file:
        yield file
