"""What a store uploads it downloads again, equal, on every way to a service."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.embedded import InProcessTransport
from cloudstore_mapping.service.media import CHUNK_BYTES
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.storages import new_storage
from tests.support.mapping_fixtures import MakeStore

PNG = b"\x89PNG\r\n\x1a\n\0\xff"
Store = cm.CloudStoreMapping[Any]


def _path(folder: Path) -> Path:
    path = folder / "jazz3.png"
    path.write_bytes(PNG)
    return path


SOURCES: dict[str, Callable[[Path], Any]] = {
    "path": _path,
    "bytes": lambda _: PNG,
    "memoryview": lambda _: memoryview(PNG),
    "base64": lambda _: base64.b64encode(PNG).decode(),
    "data URL": lambda _: f"data:image/png;base64,{base64.b64encode(PNG).decode()}",
    "file in memory": lambda _: io.BytesIO(PNG),
    "stream without a size": lambda _: _Stream(PNG),
}


class _Stream:
    """A stream that can only be read."""

    def __init__(self, data: bytes) -> None:
        self.read = io.BytesIO(data).read


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_uploaded_is_downloaded(store: Store, tmp_path: Path, source: str) -> None:
    """Whatever the bytes come from, they come back, by what `upload` returned and by its address."""
    media = store.upload(SOURCES[source](tmp_path), "jazz3.png")
    assert (media.name, media.mimetype, media.size) == ("jazz3.png", "image/png", len(PNG))
    assert media.url.endswith(f"/files/{media.folder}/{media.id}.png")
    assert store.download(media) == PNG
    assert store.download(media.url) == PNG


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_every_size(store: Store, size: int) -> None:
    """A file of no bytes, and of some more or less than the service stores at a time, comes back equal."""
    data = os.urandom(size)
    assert store.download(store.upload(io.BytesIO(data), "a.bin")) == data


def test_an_open_file_is_sent_from_where_it_stands(store: Store, tmp_path: Path) -> None:
    """Of an open file the rest is uploaded, under its own name, and it stays open."""
    with _path(tmp_path).open("rb") as file:
        file.seek(4)
        media = store.upload(file)
        assert not file.closed
    assert (media.name, store.download(media)) == ("jazz3.png", PNG[4:])


def test_a_path_s_name_is_its_last_part(store: Store, tmp_path: Path) -> None:
    """Without a name it is the path's own, without its folders."""
    assert store.upload(_path(tmp_path)).name == "jazz3.png"


@pytest.mark.parametrize("data", [b"bytes", "text", io.BytesIO(b"file"), Path("/")])
def test_what_has_no_name(store: Store, data: Any) -> None:
    """What has no name of its own, and gets none, is `ValueError`."""
    with pytest.raises(ValueError, match="give one"):
        store.upload(data)


def test_a_path_that_is_not_there(store: Store, tmp_path: Path) -> None:
    """A file of the user's that can't be opened is the system's error."""
    with pytest.raises(FileNotFoundError):
        store.upload(tmp_path / "absent.png")


def test_text(store: Store) -> None:
    """Text is stored as UTF-8 under a text type, and refused where it is no base64 of another."""
    media = store.upload("h\u00e9", "note.txt", type="text")
    assert (media.mimetype, store.download(media)) == ("text/plain", "hé".encode())
    with pytest.raises(cm.BadValueError):
        store.upload("no base64!", "a.png")


@pytest.mark.parametrize("kind", ["", "a\r\nb: c", "é"])
def test_a_bad_type(store: Store, kind: str) -> None:
    """A type that could not stand in a header is `BadValueError` everywhere."""
    with pytest.raises(cm.BadValueError):
        store.upload(b"", "a.png", type=kind)


@pytest.fixture(params=["http", "embedded"])
def ours(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Service, Callable[..., Store]]]:
    """A service of ours, and a function that opens stores on an account of it."""
    with Service(new_storage(tmp_path / "service.db")) as service, background(service) as address:
        key = service.accounts.create("owner")
        over_http = request.param == "http"

        def make(**options: Any) -> Store:
            transport = HTTPTransport(address) if over_http else _Borrowed(service)
            return cm.CloudStoreMapping(key, transport=transport, **options)

        yield service, make


class _Borrowed(InProcessTransport):
    """A way to a service that goes on without it."""

    def close(self) -> None:
        """Leave it open."""


@pytest.mark.parametrize("name", ["a%22b.png", "100%0A", "%0D%0a", "=?utf-8?q?x?=", 'a"b', "a\nb", "100%"])
def test_names_are_kept(ours: tuple[Service, Callable[..., Store]], name: str) -> None:
    """A media file has the name it was given, also if the name holds an escape of forms or headers."""
    with ours[1]() as store:
        assert store.upload(b"x", name).name == name


Ours = tuple[Service, Callable[..., Store]]


def test_a_name_without_an_ending(ours: Ours) -> None:
    """A link ends as the name does, or as its type is usually written, or in ``bin``."""
    store = ours[1]()
    for name, kind, ending in (("note", "text", "txt"), ("A.PNG", None, "png"), ("a.b c", None, "bin")):
        media = store.upload(b"1", name, type=kind)
        assert (media.url.rpartition(".")[2], store.download(media)) == (ending, b"1")


def test_the_same_name_replaces(ours: Ours) -> None:
    """An upload of the same name keeps its link, which then leads to the new bytes."""
    store = ours[1]()
    before = store.upload(b"before", "a.txt")
    after = store.upload(b"after!!", "a.txt")
    assert (after.url, store.download(before.url)) == (before.url, b"after!!")


def test_passwords(ours: Ours) -> None:
    """A file with an edit password is replaced by who gives it: with the upload, or as the store's `media_password`."""
    service, make = ours
    media = make(password="data's").upload(b"1", "a.txt")
    service.media.set_password(service.accounts.named("owner"), media.id, "édit")
    for store, password in ((make(password="édit"), None), (make(media_password="édit"), "wrong")):
        with pytest.raises(cm.LockedError) as caught:
            store.upload(b"2", "a.txt", password=password)
        assert "édit" not in str(caught.value)
    assert make(media_password="édit").upload(b"22", "a.txt").size == 2
    assert make().upload(b"333", "a.txt", password="édit").size == 3
    assert make().download(media) == b"333"


def test_limits(ours: Ours) -> None:
    """Too large a file, one too many, and one used too often today are each an error of its own."""
    service, make = ours
    store = make()
    service.accounts.set_limits("owner", max_media_bytes=5, max_files=1, max_daily_accesses=2)
    media = store.upload(b"12345", "a.txt")
    for data, name, error in ((b"123456", "a.txt", cm.TooBigError), (b"1", "b.txt", cm.TooManyFilesError)):
        with pytest.raises(error):
            store.upload(data, name)
    assert [store.download(media), store.download(media)] == [b"12345"] * 2
    with pytest.raises(cm.DailyLimitError):
        store.download(media)


def test_what_was_deleted(ours: Ours) -> None:
    """A link leads to its file, with any ending, until its owner deletes that: then it is `NoFileError`."""
    service, make = ours
    store = make()
    media = store.upload(b"1", "a.txt")
    assert store.download(media.url.removesuffix("txt") + "html") == b"1"
    service.media.delete(service.accounts.named("owner"), media.id)
    with pytest.raises(cm.NoFileError):
        store.download(media)


def test_no_link_of_a_file_s_store(make_store: MakeStore) -> None:
    """What is no address of this store's media files is `ValueError`, without a request."""
    store = make_store()
    media = store.upload(b"1", "a.txt")
    before = store.stats.requests
    link = f"/files/{media.folder}/{media.id}.txt"
    for url in (
        "",
        "a.txt",
        f"https://example.org/cloudstore{link}",
        f"//example.org{link}",
        media.url + "?key=1",
        media.url + "\r\nX-Evil: 1",
        media.url.replace("/files/", "/files/../"),
        "/store/load",
    ):
        with pytest.raises(ValueError, match="begin with"):
            store.download(url)
    assert store.stats.requests == before
    assert store.download(link) == b"1"


def test_progress_of_a_call(make_store: MakeStore) -> None:
    """A call tells its own function, or else the store's, how many bytes of how many are through."""
    calls: list[tuple[int, int]] = []
    own: list[tuple[int, int]] = []
    store = make_store(progress=lambda done, total: calls.append((done, total)))
    size = 3 * CHUNK_BYTES
    media = store.upload(bytes(size), "a.bin")
    store.download(media, progress=lambda done, total: own.append((done, total)))
    for told in (calls, own):
        assert (told[0], told[-1]) == ((0, size), (size, size))
        assert told == sorted(told)
        assert len(told) > 2
    assert store.upload(SOURCES["stream without a size"](Path()), "b.bin").size == len(PNG)


def test_a_closed_store(make_store: MakeStore) -> None:
    """After `close` nothing is sent any more."""
    store = make_store()
    store.close()
    for use in (lambda: store.upload(b"", "a"), lambda: store.download("/files/a/b.c")):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_an_upload_that_fails_on_the_way_leaves_nothing(ours: Ours) -> None:
    """A file that can't be read to its end is `BadValueError`, and the file of before stays."""
    _, make = ours
    store = make()
    media = store.upload(b"before", "a.txt")
    broken: IO[bytes] = _Broken(bytes(2 * CHUNK_BYTES))
    with pytest.raises(cm.BadValueError):
        store.upload(broken, "a.txt")
    assert store.download(media) == b"before"


class _Broken(io.BytesIO):
    """A file on a disk that breaks."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > CHUNK_BYTES:
            raise OSError(5, "Input/output error")
        return super().read(size)


def test_a_download_of_something_else(store: Store) -> None:
    """A download of something that is neither a result of `upload` nor an address says so."""
    with pytest.raises(TypeError, match=r"Give a result of store.upload, or its URL, not list\."):
        store.download(["a.png", "link"])  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("options", "what"), [({"name": io.BytesIO()}, "name"), ({"type": 5}, "type"), ({"password": 5}, "password")]
)
def test_an_upload_with_something_else_than_text(store: Store, options: dict[str, Any], what: str) -> None:
    """A name, type or password that is no text is a `TypeError` that says so, and nothing is stored."""
    with pytest.raises(TypeError, match=rf"^The {what} of a media file is text, not \w+; "):
        store.upload(PNG, **{"name": "a.png", **options})
