"""Media files: what a user may hand over, and the form that goes out."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudstore_mapping import callback_client
from cloudstore_mapping.callback_client import MediaData
from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.media import open_media
from cloudstore_mapping.client.transport import HTTPTransport, MultipartForm
from cloudstore_mapping.errors import BadNameError, BadValueError
from cloudstore_mapping.wire import Upload
from tests.vendor import Vendor

PNG = b"\x89PNG\r\n\x1a\n\0\xff"


def encoded(data: bytes) -> str:
    """Return bytes in base64."""
    return base64.b64encode(data).decode()


PNG64 = encoded(PNG)


@pytest.fixture
def client(vendor: Vendor) -> Iterator[Client]:
    """Return a client of the service that sends once."""
    with Client(HTTPTransport(vendor.address), "key", retries=0) as opened:
        yield opened


def upload(data: bytes | IO[bytes], name: str = "a.png", content_type: str = "image/png") -> Upload:
    """Return an upload."""
    return Upload(api_key="key", name=name, content_type=content_type, data=data, password=None)


def test_bytes_of_the_form() -> None:
    """The form is the API key, the password, an empty text if there is none, and the file with name and type."""
    form = MultipartForm(upload(PNG))
    boundary = form.content_type.removeprefix("multipart/form-data; boundary=").encode()
    body = b"".join(form)
    assert body == (
        b"--%b\r\n"
        b'Content-Disposition: form-data; name="key"\r\n'
        b"\r\n"
        b"key\r\n"
        b"--%b\r\n"
        b'Content-Disposition: form-data; name="password"\r\n'
        b"\r\n"
        b"\r\n"
        b"--%b\r\n"
        b'Content-Disposition: form-data; name="file"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n"
        b"\r\n"
        b"%b\r\n"
        b"--%b--\r\n"
    ) % (boundary, boundary, boundary, PNG, boundary)
    assert form.len == len(body)


def test_each_form_has_its_boundary() -> None:
    """No file can hold the boundary that it is sent with."""
    assert MultipartForm(upload(b"")).content_type != MultipartForm(upload(b"")).content_type


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ('a"b.png', "a%22b.png"),
        ("a\r\nX-Evil: 1\r\n\r\n.png", "a%0D%0AX-Evil: 1%0D%0A%0D%0A.png"),
        ("é😀.png", "é😀.png"),
        ("a;b=c.png", "a;b=c.png"),
        ("100%.png", "100%.png"),
        ("=?utf-8?q?x?=", "=?utf-8?q?x?="),
    ],
)
def test_names_arrive(client: Client, vendor: Vendor, name: str, sent: str) -> None:
    """A filename is UTF-8 with quote, CR and LF as %XX, as browsers send it, so that it can't end its header."""
    client.upload(name, b"x", "image/png")
    assert list(vendor.media) == [sent]


@given(name=st.text(st.characters(exclude_categories=["Cs"])))
def test_no_name_makes_a_header(name: str) -> None:
    """Whatever the name, the form has the same lines."""
    head = next(iter(MultipartForm(upload(b"", name))))
    assert head.count(b"\r\n") == 12
    assert head.count(b"\n") == 12
    assert head.count(b'"') == 8


@pytest.mark.parametrize("content_type", ["", "image/png\r\nX-Evil: 1", "image/é", "a\0b"])
def test_bad_types(content_type: str) -> None:
    """A content type is printable ASCII, so that it can't end its header."""
    with pytest.raises(BadValueError):
        MultipartForm(upload(b"", content_type=content_type))


def test_lone_surrogate() -> None:
    """A name that isn't Unicode is refused before anything is sent."""
    with pytest.raises(BadNameError):
        MultipartForm(upload(b"", "\ud800"))


@pytest.mark.parametrize("size", [0, 1, 2**16 - 1, 2**16, 2**16 + 1, 300_000])
def test_files_are_streamed(client: Client, vendor: Vendor, size: int) -> None:
    """A file goes out in pieces with its size announced, from where it stands."""
    data = os.urandom(size)
    file = _Pieces(b"head" + data)
    file.seek(4)
    client.upload("a", file, "application/octet-stream")
    assert vendor.media["a"].data == data
    assert int(vendor.requests[0].headers["Content-Length"]) == len(vendor.requests[0].body)
    assert file.largest <= 2**16


def test_a_stream_without_a_size(client: Client, vendor: Vendor) -> None:
    """A stream whose size can't be known is sent in chunks."""
    stream: Any = _Stream(PNG * 10_000)
    client.upload("a", stream, "application/octet-stream")
    assert vendor.media["a"].data == PNG * 10_000
    assert vendor.requests[0].headers["Transfer-Encoding"] == "chunked"
    assert "Content-Length" not in vendor.requests[0].headers


def test_a_file_that_grows(client: Client, vendor: Vendor) -> None:
    """Of a file that grows meanwhile just what was announced is sent."""
    client.upload("a", _Grows(PNG), "image/png")
    assert vendor.media["a"].data == PNG


@pytest.mark.parametrize(
    ("file", "error"),
    [("shrinks", BadValueError), ("fails", BadValueError), ("text", TypeError)],
)
def test_a_file_that_can_not_be_read(client: Client, vendor: Vendor, file: str, error: type[Exception]) -> None:
    """A file that ends early or fails is its own error, not one of the connection, and nothing is stored."""
    broken: Any = {"shrinks": _Shrinks(PNG), "fails": _Fails(PNG), "text": _Text()}[file]
    with pytest.raises(error):
        client.upload("a", broken, "image/png")
    assert vendor.media == {}


class _Pieces(io.BytesIO):
    """A file that notes how much is asked for at once."""

    largest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.largest = max(self.largest, 2**62 if size is None or size < 0 else size)
        return super().read(size)


class _Stream:
    """A stream that can only be read."""

    def __init__(self, data: bytes) -> None:
        self.read = io.BytesIO(data).read


class _Grows(io.BytesIO):
    """A file that is longer than it said."""

    def read(self, size: int | None = -1, /) -> bytes:
        return (super().read(size) + b"more" * 100)[:size]


class _Shrinks(io.BytesIO):
    """A file that is shorter than it said."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size)[:3] if self.tell() == 0 else b""


class _Fails(io.BytesIO):
    """A file on a bad disk."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError(5, f"Input/output error in {size} bytes")


class _Text:
    """A file in text mode that doesn't look like one."""

    def read(self, size: int) -> str:
        return "text"[:size]


@pytest.mark.parametrize(
    ("data", "filename", "given_type", "content", "content_type"),
    [
        (PNG, "a.png", None, PNG, "image/png"),
        (bytearray(PNG), "a.png", None, PNG, "image/png"),
        (memoryview(PNG), "a.png", "image/jpg", PNG, "image/jpg"),
        (b"", "unknown", None, b"", "application/octet-stream"),
        (b"", "a.txt.gz", None, b"", "application/octet-stream"),
        (b"x", "a.png", "text", b"x", "text/plain"),
        ("h\u00e9", "a.txt", None, "hé".encode(), "text/plain"),
        ("", "a.txt", None, b"", "text/plain"),
        ("hi", "a.png", "text", b"hi", "text/plain"),
        ("hi", "a.png", "TEXT", b"hi", "text/plain"),
        ("hi", "a.png", "text/html; charset=utf-8", b"hi", "text/html; charset=utf-8"),
        (PNG64, "a.png", None, PNG, "image/png"),
        (PNG64, "jazz3.jpg", "image/jpg", PNG, "image/jpg"),
        (PNG64[:8] + "\r\n" + PNG64[8:] + "\n", "a.png", None, PNG, "image/png"),
        ("", "a.png", None, b"", "image/png"),
        (f"data:image/gif;base64,{PNG64}", "a.png", None, PNG, "image/gif"),
        (f"DATA:image/gif;BASE64,{PNG64}", "a.png", None, PNG, "image/gif"),
        (f"data:image/gif;base64,{PNG64}", "a.png", "image/jpg", PNG, "image/jpg"),
        (f"data:;base64,{PNG64.replace('=', '%3D')}", "a.png", None, PNG, "image/png"),
        ("data:text/plain;charset=utf-8,h%C3%A9", "a", None, "hé".encode(), "text/plain;charset=utf-8"),
        ("data:image/gif;base64,AA==", "a.txt", "text", b"data:image/gif;base64,AA==", "text/plain"),
        ("data: my notes, first", "a.txt", None, b"data: my notes, first", "text/plain"),
        (io.StringIO("h\u00e9"), "a.txt", None, "hé".encode(), "text/plain"),
        (io.StringIO(PNG64), "a.png", None, PNG, "image/png"),
        (encoded(b"%PDF-1.7"), "a.pdf", None, b"%PDF-1.7", "application/pdf"),
        (encoded(b"PK\3\4"), "a", "application/epub+zip", b"PK\3\4", "application/epub+zip"),
        (encoded(b"<svg/>"), "a.svg", "image/svg+xml", b"<svg/>", "image/svg+xml"),
        (encoded(b"ID3 jazz"), "a.mp3", "audio/mpeg", b"ID3 jazz", "audio/mpeg"),
    ],
)
def test_what_is_stored(
    data: MediaData, filename: str, given_type: str | None, content: bytes, content_type: str
) -> None:
    """A text that is declared as base64 is decoded; bytes are stored as they are; the filename says the type."""
    assert open_media(data, filename, given_type) == (content, content_type, None)


#: Texts that are valid base64, padded, of whole groups.
LIKE_BASE64 = ["line", "12345678", "abcd\nefgh", "true", "null", "////", "AAA=", encoded(PNG), encoded(b"{}")]


@pytest.mark.parametrize("text", LIKE_BASE64)
@pytest.mark.parametrize(
    ("filename", "given_type", "content_type"),
    [
        ("p.log", None, None),
        ("unknown", None, "application/octet-stream"),
        ("n.json", None, "application/json"),
        ("n.json", "application/json", "application/json"),
        ("n.bin", "application/octet-stream", "application/octet-stream"),
        ("n.js", "application/javascript", "application/javascript"),
        ("n.csv", "text/csv", "text/csv"),
        ("n.png", "text", "text/plain"),
        ("n", "application/problem+json", "application/problem+json"),
        ("n", "model/obj", "model/obj"),
        ("n", "no type", "no type"),
    ],
)
def test_text_is_stored_as_text(text: str, filename: str, given_type: str | None, content_type: str | None) -> None:
    """Text that happens to be base64 is stored as it is, unless its type says that it can't be the text itself."""
    content, stored_type, opened = open_media(text, filename, given_type)
    assert (content, opened) == (text.encode(), None)
    assert content_type in (None, stored_type)


@pytest.mark.parametrize(
    ("text", "filename", "given_type"),
    [
        ("<svg xmlns='http://www.w3.org/2000/svg'/>", "a.svg", "image/svg+xml"),
        ("line", "a.svg", "image/svg+xml"),
        ("Ryan", "app.ts", "video/mp2t"),
        ("#EXTM3U", "a.m3u", "audio/x-mpegurl"),
        ("data:,1,2", "a.csv", None),
        ("data:", "a.txt", None),
        ("data: image/png;base64,AAAA", "a.txt", None),
    ],
)
def test_types_of_text(text: str, filename: str, given_type: str | None) -> None:
    """Text of a type that has text is stored as it is, and so is one that only begins as a data URL does."""
    assert open_media(text, filename, given_type)[0] == text.encode()


@pytest.mark.parametrize(
    ("text", "filename"),
    [
        ("line", "a.png"),
        ("12345678", "a.jpg"),
        ("////", "a.mp3"),
        (encoded(PNG), "a.pdf"),
        (encoded(PNG)[:-1], "a.png"),
        (encoded(PNG) + "=", "a.png"),
        ("data:image/png;base64,AAA", "a.png"),
        ("data:;base64,line!", "a.log"),
    ],
)
def test_text_that_is_no_such_file(text: str, filename: str) -> None:
    """Text of a type that can't be text is refused, unless it is base64 of such a file; so is a broken data URL."""
    with pytest.raises(BadValueError, match=r"^The text is .*; pass bytes, or the type 'text'\.$"):
        open_media(text, filename, None)


@pytest.mark.parametrize(
    ("data", "filename"), [("no base64!", "a.png"), ("AAA", "a.png"), ("é", "a.png"), ("\ud800", "a.txt")]
)
def test_text_that_can_not_be_stored(data: str, filename: str) -> None:
    """Text that is no base64, or no Unicode, is `BadValueError`."""
    with pytest.raises(BadValueError):
        open_media(data, filename, None)


@pytest.mark.parametrize("data", [None, 1, ["a"], {"a": 1}])
def test_no_media(data: Any) -> None:
    """Anything but bytes, text and files is `TypeError`."""
    with pytest.raises(TypeError):
        open_media(data, "a.png", None)


def test_open_files(tmp_path: Path) -> None:
    """A file is read from where it stands by a handle of our own, so that closing theirs does no harm."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"headbody")
    with path.open("rb") as file:
        file.read(4)
        data, _, opened = open_media(file, "a.bin", None)
    assert opened is not None
    with opened:
        assert data is opened
        assert opened.read() == b"body"


def test_open_text_files(tmp_path: Path) -> None:
    """Of a file in text mode the bytes are stored, from where the reading stood."""
    path = tmp_path / "a.txt"
    path.write_bytes("é1\r\né2\r\n".encode("latin-1"))
    with path.open(encoding="latin-1", newline="") as file:
        file.readline()
        data, content_type, opened = open_media(file, "a.txt", None)
    assert content_type == "text/plain"
    assert opened is not None
    with opened:
        assert data is opened
        assert opened.read() == "é2\r\n".encode("latin-1")


@pytest.mark.parametrize("buffering", [0, -1])
def test_files_that_may_be_written(tmp_path: Path, buffering: int) -> None:
    """A file that may be written is read by the user's handle."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"body")
    with path.open("r+b", buffering=buffering) as file:
        assert open_media(file, "a.bin", None) == (file, "application/octet-stream", None)


@pytest.mark.skipif(not hasattr(os, "pread"), reason="a duplicate of a file shares its position here")
@pytest.mark.parametrize("mode", ["r", "rb", "rb unbuffered", "memory"])
def test_a_file_in_use(tmp_path: Path, mode: str) -> None:
    """A file opened for reading is sent from its position at the call, whatever its user does with it, also twice."""
    data = b"".join(b"%015d\n" % number for number in range(20_000))
    (tmp_path / "a.bin").write_bytes(data)
    path = tmp_path / "a.bin"
    buffering = 0 if mode == "rb unbuffered" else -1
    file: IO[Any] = io.BytesIO(data) if mode == "memory" else path.open(mode.partition(" ")[0], buffering=buffering)
    with file:
        file.seek(16)
        forms = []
        for _ in range(2):
            content, content_type, own = callback_client.open_media(file, "a.bin", None)
            assert own is not None
            forms.append((callback_client.MultipartForm({}, "a.bin", content_type, content), own))
        assert file.tell() == 16
        bodies = []
        for pieces in zip(*(form for form, _ in forms), strict=True):
            bodies.append(pieces)
            file.seek(5)
            file.read(100)
        for (form, own), body in zip(forms, zip(*bodies, strict=True), strict=True):
            assert b"".join(body).split(b"\r\n\r\n")[1].startswith(data[16:] + b"\r\n--")
            assert form.rewind()
            assert b"".join(form) == b"".join(body)
            own.close()
            assert own.closed
