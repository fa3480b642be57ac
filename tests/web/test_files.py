"""A media file over HTTP: whole or in part, for browsers that know it already, and such that must not run it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import requests

from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.service.media import CHUNK_BYTES, link
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.media_fakes import Uploader
from tests.raw_http import Connection
from tests.service_fakes import PATIENCE, ManualClock
from tests.storages import new_storage

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4


class Files:
    """The media files of an account, to be fetched."""

    def __init__(self, uploader: Uploader, address: str) -> None:
        self.uploader = uploader
        self.address = address

    def put(self, data: bytes, *what: str) -> str:
        """Upload a file, and return its whole link."""
        media = self.uploader.find(self.uploader.upload(data, *what))
        assert media is not None
        return self.address + link(self.uploader.account, media)


@pytest.fixture
def files(clock: ManualClock, no_threads_left: None) -> Iterator[Files]:
    """Return the media files of an account that has none."""
    with Service(new_storage(), clock=clock) as service:
        uploader = Uploader(service)
        with background(service) as address:
            yield Files(uploader, address)


def get(url: str, method: str = "GET", **headers: str) -> requests.Response:
    """Return the answer to a request, whose headers are named with underscores."""
    named = {"Accept-Encoding": "identity", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return requests.request(method, url, headers=named, timeout=PATIENCE)


def test_a_whole_file(files: Files, clock: ManualClock) -> None:
    """All its bytes under its type, with what a browser needs to keep it, and to be kept from running it."""
    url = files.put(PNG * 2000, "photo.png", "image/png")
    assert "Last-Modified" not in get(url).headers  # it could be replaced within the same second
    clock.advance(1)
    answer = get(url)
    assert (answer.status_code, answer.content) == (200, PNG * 2000)
    digest = files.uploader.service.media.named(files.uploader.account, "photo.png").digest
    assert {name.lower(): value for name, value in answer.headers.items() if name.lower() != "date"} == {
        "accept-ranges": "bytes",
        "access-control-allow-origin": "*",
        "access-control-expose-headers": (
            "CloudStore-Extensions, Content-Disposition, Content-Range, ETag, Retry-After"
        ),
        "cache-control": "no-cache",
        "content-disposition": "inline; filename=\"photo.png\"; filename*=UTF-8''photo.png",
        "content-length": str(len(PNG) * 2000),
        "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
        "content-type": "image/png",
        "cross-origin-resource-policy": "cross-origin",
        "etag": f'"{digest}"',
        "repr-digest": f"sha-256=:{b64encode(bytes.fromhex(digest)).decode()}:",
        "last-modified": "Tue, 14 Nov 2023 22:13:20 GMT",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-robots-tag": "none",
    }


@pytest.mark.parametrize(
    ("data", "name", "mimetype"),
    [
        (b"<script>alert(1)</script>", "page.html", "text/html"),
        (b"<svg onload='alert(1)'/>", "drawing.svg", "image/svg+xml"),
        (b"<?xml version='1.0'?>", "a.xml", "application/xml"),
        (b"<html><script>alert(1)</script>", "photo.png", "image/png"),
        (b"", "photo.png", "image/png"),
        (b"text", "a.txt", "text/plain"),
        (PNG, "page.html", "no type"),
    ],
)
def test_what_could_run_is_downloaded(files: Files, data: bytes, name: str, mimetype: str) -> None:
    """Whatever it calls itself, a browser saves it, guesses nothing, and lets it do nothing."""
    url = files.put(data, name, mimetype)
    for method in ("GET", "HEAD"):
        answer = get(url, method)
        assert answer.headers["Content-Disposition"].startswith("attachment; ")
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert get(url).content == data


def test_the_type_of_what_is_downloaded(files: Files) -> None:
    """A file that is served as `application/octet-stream` has its type in another header, which our client reads."""
    answer = get(files.put(b"a { }", "a.css", "text/css; charset=utf-8"))
    assert answer.headers["CloudStore-Media-Type"] == "text/css; charset=utf-8"
    assert "CloudStore-Media-Type" not in get(files.put(PNG)).headers
    transport = HTTPTransport(files.address)
    for data, name, mimetype in ((b"a { }", "a.css", "text/css; charset=utf-8"), (PNG, "photo.png", "image/png")):
        fetched = transport.fetch(files.put(data, name, mimetype).removeprefix(files.address))
        assert (b"".join(fetched.pieces), fetched.mimetype) == (data, mimetype)
        fetched.close()
    transport.close()


@pytest.mark.parametrize("name", ['a"; filename="b.html', "a\r\nSet-Cookie: x=y\r\n\r\n<html>", "\u202egnp.exe", "😀"])
def test_a_name_stays_in_its_header(files: Files, name: str) -> None:
    """Nothing that a name holds is another header, or the page itself."""
    answer = get(files.put(PNG, name))
    assert answer.content == PNG
    assert "Set-Cookie" not in answer.headers
    assert answer.headers["Content-Disposition"].count(";") == 2 + name.count(";")


def test_a_head_tells_all_but_the_bytes(files: Files) -> None:
    """Its headers are those of a GET; a range means nothing to it."""
    url = files.put(PNG)
    head, whole = get(url, "HEAD", Range="bytes=1-2"), get(url)
    assert (head.status_code, head.content) == (200, b"")
    assert {**head.headers, "Date": ""} == {**whole.headers, "Date": ""}


def test_a_part_of_a_file(files: Files) -> None:
    """206 and the bytes that were asked for, over the ends of chunks too; 416 for what is behind the end."""
    data = bytes(number % 251 for number in range(2 * CHUNK_BYTES))
    url = files.put(data, "a.bin", "application/octet-stream")
    for start, stop in ((0, 1), (CHUNK_BYTES - 5, CHUNK_BYTES + 5), (10, len(data))):
        part = get(url, Range=f"bytes={start}-{stop - 1}")
        assert (part.status_code, part.content) == (206, data[start:stop])
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(data)}"
        assert part.headers["Content-Length"] == str(stop - start)
    behind = get(url, Range=f"bytes={len(data)}-")
    assert (behind.status_code, behind.content) == (416, b"")
    assert behind.headers["Content-Range"] == f"bytes */{len(data)}"
    assert "Content-Disposition" not in behind.headers
    several = get(url, Range=f"bytes={','.join(['0-'] * 1000)}")
    assert (several.status_code, several.content) == (200, data)


def test_what_a_browser_knows_already(files: Files) -> None:
    """304 without the bytes while the file is the same; all of it once it was replaced."""
    url = files.put(PNG)
    tag = get(url).headers["ETag"]
    same = get(url, If_None_Match=tag)
    assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", tag)
    assert get(url, If_Match='"other"').status_code == 412
    assert files.put(PNG + b"more") == url
    assert get(url, If_None_Match=tag).content == PNG + b"more"
    assert get(url, If_Range=tag, Range="bytes=5-").content == PNG + b"more"
    assert get(url, If_Match=tag).status_code == 412


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ('If-None-Match: {tag}\r\nIf-None-Match: "other"\r\n', 304),
        ('If-None-Match: "other"\r\nIf-None-Match: {tag}\r\n', 304),
        ('If-Match: {tag}\r\nIf-Match: "other"\r\n', 200),
        ('If-Match: "other"\r\nIf-Match: "another"\r\n', 412),
        ("Range: bytes=0-1\r\nRange: bytes=2-3\r\n", 200),
        ("Range: bytes=0-1\r\n", 206),
    ],
)
def test_tags_in_two_headers(files: Files, headers: str, status: int) -> None:
    """Tags may come in several headers of one name; several ranges get the whole file."""
    url = files.put(PNG)
    lines = headers.format(tag=get(url).headers["ETag"])
    with Connection(files.address) as connection:
        connection.send(f"GET {urlsplit(url).path} HTTP/1.1\r\nHost: test\r\n{lines}\r\n".encode())
        assert connection.answer().status == status


def test_a_link_outlives_a_change_of_the_type(files: Files) -> None:
    """The same name replaced as another type is where it was, though its link would be made otherwise now."""
    before = files.put(PNG, "photo", "image/png")
    after = files.put(b"GIF89a", "photo", "image/gif")
    assert before != after
    assert get(before).content == get(after).content == b"GIF89a"
    assert get(before).headers["Content-Type"] == "image/gif"


@pytest.mark.parametrize(
    "ending", ["", ".", ".PNG", ".jpg", ".tar.gz", ".a-long-ending-of-its-own", ".%C3%A9", ".p%20g"]
)
def test_any_ending_leads_to_the_file(files: Files, ending: str) -> None:
    """The numbers of a link say which file it is; another ending, or none, changes nothing."""
    url = files.put(PNG)
    answer = get(url.removesuffix(".png") + ending)
    assert (answer.status_code, answer.content, answer.headers["Content-Type"]) == (200, PNG, "image/png")


def test_other_paths_lead_nowhere(files: Files) -> None:
    """Neither near a file's link nor in another account's folder is anything, and nothing more is told."""
    url = files.put(PNG)
    base, folder, name = url.rsplit("/", 2)
    media_id = name.removesuffix(".png")
    files.uploader.service.accounts.create("other")
    other = files.uploader.service.accounts.named("other").folder
    for path in (
        f"{folder}/{media_id}png",
        f"{folder}/{media_id}.png/",
        f"{folder}/{media_id}.png%0a",
        f"{folder}/{media_id}.p%2fng",
        f"{folder}/{media_id[:-1]}.png",
        f"{folder.upper()}/{media_id.upper()}.png",
        f"{folder}/{'0' * 32}.png",
        f"{folder}/",
        "",
        f"{other}/{media_id}.png",
        f"x/files/{folder}/{media_id}.png",
    ):
        answer = get(f"{base}/{path}")
        assert (answer.status_code, answer.json()["error"]) == (404, "NoPath")
        assert folder not in answer.text
    files.uploader.service.accounts.set_disabled("owner", disabled=True)
    assert get(url).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_a_file_is_only_read_here(files: Files, method: str) -> None:
    """Any other method is refused, and changes nothing."""
    url = files.put(PNG)
    answer = get(url, method)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    assert get(url).content == PNG


def test_a_file_that_was_used_too_often(files: Files, clock: ManualClock) -> None:
    """429 with the seconds until midnight UTC; what sends no bytes isn't counted."""
    files.uploader.service.accounts.set_limits("owner", max_daily_accesses=2)
    url = files.put(PNG)
    tag = get(url).headers["ETag"]
    for _ in range(3):
        assert get(url, "HEAD").status_code == 200
        assert get(url, If_None_Match=tag).status_code == 304
    assert get(url, Range="bytes=0-1").status_code == 206
    refused = get(url)
    assert (refused.status_code, refused.json()["error"]) == (429, "DailyLimit")
    seconds = int(refused.headers["Retry-After"])
    clock.advance(seconds - 1)
    assert get(url).status_code == 429
    clock.advance(1)
    assert get(url).content == PNG


def test_a_store_that_fails(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with a sentence, and a time to try again."""
    url = files.put(PNG)
    monkeypatch.setattr(files.uploader.storage, "_closed", True)
    answer = get(url)
    assert (answer.status_code, answer.json()["error"]) == (503, "Unavailable")
    assert answer.headers["Retry-After"]
    monkeypatch.undo()
    assert get(url).content == PNG
