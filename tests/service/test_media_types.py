"""The type of a media file: the real one where an alias was sent, and a guess where none was."""

from __future__ import annotations

import pytest

from cloudstore_mapping.service import media
from cloudstore_mapping.service.media import link, real_type
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.downloads import may_display_inline
from tests.media_fakes import Uploader
from tests.media_samples import GIF, JPEG, MP3, MP4, PDF, PNG, WEBM, WEBP, wav

UNKNOWN = "application/octet-stream"


@pytest.fixture
def uploader(service: Service) -> Uploader:
    """Return somebody with an account who uploads."""
    return Uploader(service)


@pytest.mark.parametrize(
    ("sent", "name", "data", "real"),
    [
        # An alias is the real type, with its parameters; a word is taken for an ending.
        ("image/jpg", "a.jpg", JPEG, "image/jpeg"),
        ("IMAGE/JPG; x=y", "a", JPEG, "image/jpeg; x=y"),
        ("image/pjpeg", "a", JPEG, "image/jpeg"),
        ("image/x-png", "a", PNG, "image/png"),
        ("audio/mp3", "a", MP3, "audio/mpeg"),
        ("audio/x-wav", "a", wav(0.1), "audio/wav"),
        ("text", "a.png", b"h", "text/plain"),
        ("text; charset=utf-8", "a", b"h", "text/plain; charset=utf-8"),
        ("json", "a", b"{}", "application/json"),
        ("png", "a", PNG, "image/png"),
        ("JPG", "a", JPEG, "image/jpeg"),
        # A type that says something stays, whatever the bytes are.
        ("image/png", "a.jpg", JPEG, "image/png"),
        ("text/html", "a.png", PNG, "text/html"),
        ("text/html; charset=x", "a", b"h", "text/html; charset=x"),
        ("x/of-our-own", "a.png", PNG, "x/of-our-own"),
        # Where nothing is said, the name's ending tells, if the bytes don't deny it, and then the bytes.
        ("", "UP.PNG", PNG, "image/png"),
        (UNKNOWN, "UP.PNG", PNG, "image/png"),
        ("binary/octet-stream", "a.webp", WEBP, "image/webp"),
        ("something", "a", GIF, "image/gif"),
        ("", "no ending", JPEG, "image/jpeg"),
        ("", "photo.png", JPEG, "image/jpeg"),
        ("", "a.m4a", MP4, "audio/mp4"),
        ("", "a.b", MP4, "video/mp4"),
        ("", "voice.weba", WEBM, "audio/webm"),
        ("", "a", WEBM, "video/webm"),
        ("", "a", MP3, "audio/mpeg"),
        ("", "a", wav(0.1), "audio/wav"),
        ("", "a", PDF, "application/pdf"),
        ("", "a.TXT", b"h", "text/plain"),
        ("", "a.json", b"{}", "application/json"),
        ("", "page.html", PNG, "text/html"),
        # What nothing tells is bytes of any kind.
        ("", "photo.png", b"<html>", UNKNOWN),
        ("", "a", b"text", UNKNOWN),
        ("", "a", b"", UNKNOWN),
        ("", "", b"", UNKNOWN),
        ("", "a.tar.gz", b"\x1f\x8b", UNKNOWN),
        ("", "data:text/html,x.", b"x", UNKNOWN),
        ("", "utf-16", "text".encode("utf-16"), UNKNOWN),
    ],
)
def test_a_real_type(sent: str, name: str, data: bytes, real: str) -> None:
    """An alias is the real type; what says nothing is a guess from the name and the first bytes."""
    assert real_type(sent, name, data[:16]) == real


def test_a_reply_tells_the_real_type(uploader: Uploader) -> None:
    """An upload's reply, the file's link and the file itself have the same, real type."""
    for sent in ("image/x-png", "", UNKNOWN):
        facts = uploader.upload(PNG, "photo", sent)
        media = uploader.find(facts)
        assert media is not None
        assert (facts["mimetype"], media.mimetype) == ("image/png", "image/png")
        assert link(uploader.account, media).endswith(".png")


def test_a_type_comes_of_the_first_bytes_however_they_come(uploader: Uploader) -> None:
    """A file that is written byte by byte has the type that it has in one piece."""
    upload = uploader.begin("photo", "")
    for byte in PNG:
        upload.write(bytes([byte]))
    assert b'"mimetype":"image/png"' in bytes(upload.finish().data)  # type: ignore[arg-type]  # there always is some


@pytest.mark.parametrize(
    ("stored", "name", "data", "shown"),
    [
        ("image/jpg", "jazz3.jpg", JPEG, True),
        ("text", "note", b"h", False),
        (UNKNOWN, "UP.PNG", PNG, True),
        (UNKNOWN, "UP.PNG", b"<html>", False),
        ("something", "page.html", b"<html>", False),
    ],
)
def test_a_file_of_an_older_version(
    uploader: Uploader, monkeypatch: pytest.MonkeyPatch, stored: str, name: str, data: bytes, shown: bool
) -> None:
    """A file that is stored under another type than the real one is given and shown under the real one."""
    with monkeypatch.context() as patch:
        patch.setattr(media, "real_type", lambda content_type, name, beginning: content_type)
        found = uploader.find(uploader.upload(data, name, stored))
    assert found is not None
    assert found.mimetype == stored
    mimetype, beginning = uploader.service.media.typed(found)
    assert mimetype == real_type(stored, name, data[:16])
    assert may_display_inline(mimetype, beginning) is shown
