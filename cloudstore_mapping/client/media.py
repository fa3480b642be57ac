"""Media files: upload bytes, text or a file; download with resume, and replace the target file atomically."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, NamedTuple, TypeAlias

from cloudstore_mapping import callback_client
from cloudstore_mapping.callback_client import MediaData, size_of
from cloudstore_mapping.client.files import Client, Files
from cloudstore_mapping.client.progress import Progress, reporting
from cloudstore_mapping.client.retry import MAX_WAIT
from cloudstore_mapping.client.transport import Deadline, Fetched
from cloudstore_mapping.drafts import Draft
from cloudstore_mapping.errors import BadValueError, ProtocolError, TimedOutError, TooOftenError, TransportError
from cloudstore_mapping.links import FILES_PATH, media_link
from cloudstore_mapping.storefiles import open_file, refuse_store, sync_folder

#: Target of a download on disk: a file, or a folder.
Place: TypeAlias = str | os.PathLike[str]

#: Maximum bytes of a file name and of its suffix: common file systems allow 255 in all.
LONGEST_NAME: Final = 200
LONGEST_SUFFIX: Final = 20
#: Name of a file without a safe name, or until its name is known.
UNNAMED: Final = "download"

_LINK: Final = re.compile(re.escape(FILES_PATH) + r"[\w-]+/[\w-]+(?:\.\w+)?", re.ASCII)
_DIGEST: Final = re.compile(r'"?([0-9a-f]{64})"?')
_SEPARATORS: Final = re.compile(r"[/\\]")
_HIDING: Final = re.compile(r"\A[\s.]+")
# Control and format characters (some reverse the order of letters), surrogates, line ends.
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class Media(NamedTuple):
    """
    Media file at the service, of `size` bytes.

    Anybody with its `url` can download it. The `url` of an embedded store, which has no address, begins with
    ``/files/`` and is valid for this store only.
    """

    name: str
    folder: str
    id: str
    mimetype: str
    size: int
    url: str


def media_of(files: Files, facts: dict[str, Any]) -> Media:
    """Return the media file described by the reply to an upload."""
    try:
        name, folder, number, kind, size = (facts[field] for field in ("name", "folder", "id", "mimetype", "size"))
        url = files.store.address + media_link(folder, number, name, kind)
        return Media(name, folder, number, kind, size, url)
    except (KeyError, TypeError) as error:
        raise ProtocolError("The answer doesn't describe a file; is the address right?") from error


def link_of(files: Files, url: str) -> str:
    """Return the link in a URL of this store's media files; `ValueError` for any other URL."""
    address = files.store.address
    link = url.removeprefix(address) if address else url
    if not _LINK.fullmatch(link):
        beginning = address + FILES_PATH
        raise ValueError(f"The address is not one of this store's media files; they begin with {beginning}.")
    return link


# Uploads


def upload_media(
    files: Files,
    data: MediaData | os.PathLike[str],
    name: str | None,
    content_type: str | None,
    password: str | None,
    progress: Progress,
) -> Media:
    """Upload a media file; see `CloudStoreMapping.upload`."""
    for what, text in {"name": name, "type": content_type, "password": password}.items():
        if text is not None and not isinstance(text, str):
            raise TypeError(f"The {what} of a media file is text, not {type(text).__name__}; see help(store.upload).")
    name = _name_of(data) if name is None else name
    if not name:
        raise ValueError("The data has no file name; give one, upload(data, 'name'), or the file as a pathlib.Path.")
    password = files.store.media_password if password is None else password
    with _opened(data) as source:
        content, full_type, own = open_media(source, name, content_type)
        try:
            with _reported(content, files.store.progress if progress is None else progress) as sent:
                facts = files.client.upload(name, sent, full_type, password)
        finally:
            if own is not None:
                own.close()
    return media_of(files, facts)


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


@contextmanager
def _reported(content: bytes | IO[bytes], progress: Progress) -> Iterator[bytes | IO[bytes]]:
    total = size_of(content)
    if progress is None or total is None:
        yield content
        return
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    start = file.tell()
    with reporting(progress, total) as report:
        yield _ReportingFile(file, lambda: report(file.tell() - start))  # type: ignore[misc]  # reading is enough


class _ReportingFile:
    """Binary file that calls `report` after each read."""

    def __init__(self, file: IO[bytes], report: Callable[[], object]) -> None:
        self._file = file
        self._report = report

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._report()
        return data


def open_media(
    data: MediaData, filename: str, content_type: str | None
) -> tuple[bytes | IO[bytes], str, IO[bytes] | None]:
    """Return content, type, and a file to be closed by the caller, as `callback_client.open_media` does."""
    try:
        return callback_client.open_media(data, filename, content_type)
    except callback_client.BadValueError as error:
        raise BadValueError(str(error)) from error


# Downloads


def download_media(
    files: Files, media: Media | str, to: Place | IO[bytes] | None, progress: Progress, *, overwrite: bool
) -> bytes | Path | None:
    """Download a media file; see `CloudStoreMapping.download`."""
    if not isinstance(media, Media | str):
        raise TypeError(f"Give a result of store.upload, or its URL, not {type(media).__name__}.")
    link = link_of(files, media.url if isinstance(media, Media) else media)
    progress = files.store.progress if progress is None else progress
    if to is None:
        buffer = io.BytesIO()
        Download(files.client, link, DownloadTarget(buffer), progress).run()
        return buffer.getvalue()
    if not isinstance(to, str | os.PathLike):
        Download(files.client, link, DownloadTarget(to), progress).run()
        return None
    saved = DownloadFile(to, overwrite=overwrite)
    with saved as file:
        default_name = link.rpartition("/")[2]
        Download(
            files.client,
            link,
            DownloadTarget(file),
            progress,
            lambda fetched: saved.set_name(fetched.name or default_name),
        ).run()
    return saved.path


class DownloadTarget:
    """Binary file written by a download from its current position."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._start: int | None = None
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, piece: bytes) -> None:
        """Write the next bytes."""
        if self.size == 0 and (is_seekable := getattr(self._file, "seekable", None)) is not None and is_seekable():
            self._start = self._file.tell()
        rest = memoryview(piece)
        while rest:
            written: object = self._file.write(piece if len(rest) == len(piece) else rest)
            if written == 0 or (written is None and isinstance(self._file, io.RawIOBase)):
                raise BlockingIOError(errno.EAGAIN, "The file takes no more without waiting; make it blocking.")
            if type(written) is not int:  # of an object that isn't a file, and has taken all
                break
            rest = rest[written:]  # an unbuffered file may take a part
        self._digest.update(piece)
        self.size += len(piece)

    def restart(self) -> None:
        """Remove all bytes written; `ProtocolError` if the file can't be rewound."""
        if self.size == 0:
            return
        if self._start is None:
            raise ProtocolError("The file changed while it was downloaded; download it again.")
        self._file.seek(self._start)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes written, in hexadecimal."""
        return self._digest.hexdigest()


class Download:
    """
    Download of the media file at `link`, resumed as often as the connection breaks.

    The client's number of retries limits consecutive attempts without progress; its deadline limits time without it.
    `on_start` is called before the first byte is written.
    """

    def __init__(
        self,
        client: Client,
        link: str,
        target: DownloadTarget,
        progress: Progress = None,
        on_start: Callable[[Fetched], object] = lambda _: None,
    ) -> None:
        self._client = client
        self._link = link
        self._target = target
        self._progress = progress
        self._on_start = on_start
        self._report: Callable[[int], object] | None = None
        self._tag: str | None = None

    def run(self) -> None:
        """Download the whole file; raises the error of the last attempt."""
        backoffs = self._client.backoffs()
        deadline = self._client.new_deadline()
        is_retry = False
        with ExitStack() as stack:
            while True:
                before = self._target.size
                try:
                    self._resume(stack, deadline, is_retry)
                except (TransportError, TimedOutError, TooOftenError) as error:
                    if self._target.size > before:
                        backoffs = self._client.backoffs()
                    backoff = next(backoffs)
                    retry_after = getattr(error, "retry_after", None) or 0.0
                    if backoff is None or retry_after > MAX_WAIT or max(backoff, retry_after) >= deadline.left():
                        raise
                    self._client.sleep(max(backoff, retry_after))
                    is_retry = True
                else:
                    return

    def _resume(self, stack: ExitStack, deadline: Deadline, is_retry: bool) -> None:
        target = self._target
        deadline.restarts_on_read = False  # until the content comes
        with closing(self._client.fetch(self._link, target.size, self._tag, deadline, is_retry=is_retry)) as fetched:
            is_known = self._tag is not None or "version" in self._client.extensions
            if fetched.tag is None and is_known:  # such as a sign-in page, or headers that were cut
                raise TransportError("The answer is not the file's; try again.", sent=True)
            if fetched.start != target.size or (target.size and fetched.tag != self._tag):
                target.restart()
            self._tag = fetched.tag
            if target.size != fetched.start:
                raise TransportError("The file changed while it was downloaded; try again.", sent=True)
            if target.size == 0:
                self._on_start(fetched)
            if self._report is None and fetched.size is not None:
                self._report = stack.enter_context(reporting(self._progress, fetched.size))
            for piece in fetched.pieces:
                target.write(piece)
                deadline.restart()  # the time for writing does not count
                if self._report is not None:
                    self._report(target.size)
            if fetched.size is not None and target.size != fetched.size:
                raise TransportError("The download broke off before its end; try again.", sent=True)
            if self._expected_digest(fetched) not in (None, target.digest):
                raise ProtocolError("The download differs from the uploaded file; upload the file again.")

    def _expected_digest(self, fetched: Fetched) -> str | None:
        """Return the file's SHA-256 if the service tells it: in a header, or as an older one of ours in the tag."""
        if fetched.digest is not None:
            return fetched.digest
        if fetched.tag is None or "version" not in self._client.extensions:
            return None
        found = _DIGEST.fullmatch(fetched.tag)
        return None if found is None else found[1]


class DownloadFile:
    """
    File saved atomically: the block writes a new file, which replaces `path` if the block succeeds.

    If `to` is a folder, call `set_name` before writing. Devices and pipes are written directly. Raises `OSError` for
    an unwritable path, including `FileExistsError` without `overwrite`, and `UnsupportedError` for a store, which is
    never replaced.

    The new file is a `drafts.Draft`: the next download to the same target removes a draft left by a killed process.
    """

    def __init__(self, to: str | os.PathLike[str], *, overwrite: bool) -> None:
        self.path = Path(to)
        self._folder = self.path if self.path.is_dir() else None
        self._overwrite = overwrite
        self._draft: Draft | None = None
        if self._folder is None:
            self._check()

    def set_name(self, name: str) -> None:
        """Set the file's name in its folder; `FileExistsError` before anything is written."""
        if self._folder is not None:
            self.path = self._folder / safe_filename(name)
        self._check()
        if self._folder is not None and self._draft is not None and os.name == "posix":  # Windows renames no open file
            unnamed, self._draft = self._draft, Draft(self.path)
            unnamed.path.rename(self._draft.path)
            unnamed.close()

    def __enter__(self) -> IO[bytes]:
        if self._folder is not None:
            self._file = self._new(self._folder / UNNAMED)
            return self._file
        # Replace the target of a link given by the user, but follow no link found in a folder under a download's name.
        self._real_path = Path(os.path.realpath(self.path))
        is_special = self._real_path.exists() and not self._real_path.is_file()
        self._file = open_file(self._real_path, "wb") if is_special else self._new(self._real_path)
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            if self._draft is None:
                return
            try:
                if kind is None:
                    self._replace(self._draft.path)
            finally:
                self._draft.close()

    def _new(self, target: Path) -> IO[bytes]:
        self._draft = Draft(target)
        try:
            return self._draft.path.open("xb")
        except BaseException:
            self._draft.close()
            raise

    def _replace(self, partial: Path) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = self.path if self._folder is not None else self._real_path
        self._check()
        if self._overwrite:
            if path.is_file():
                shutil.copymode(path, partial)
            partial.replace(path)
        else:
            _move_to_free_name(partial, path)
        sync_folder(path.parent)

    def _check(self) -> None:
        from cloudstore_mapping.client.shelf import refuse_secret  # imports pickle, rarely needed

        if self.path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self.path))
        if not self._overwrite and os.path.lexists(self.path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.path))
        refuse_store(self.path)
        refuse_secret(self.path)


def _move_to_free_name(partial: Path, path: Path) -> None:
    """Give a file the name `path`; `FileExistsError` if anything has it."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # the file system has no hard links, so an empty file takes the name first
        path.touch(exist_ok=False)
        partial.replace(path)


def safe_filename(name: str) -> str:
    """Return a safe file name for an untrusted name: visible, without folders, not hidden, not too long."""
    base = _SEPARATORS.split(name)[-1]
    visible = "".join(char for char in base if unicodedata.category(char) not in _INVISIBLE)
    path = Path(_HIDING.sub("", visible).rstrip())
    suffix = _cut(path.suffix, LONGEST_SUFFIX)
    return (_cut(path.stem, LONGEST_NAME - len(suffix.encode())) + suffix) or UNNAMED


def _cut(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")
