"""A download goes on where it broke off, is whole or not there, and writes nowhere else."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import stat
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

import cloudstore_mapping as cm
from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.media import LONGEST_NAME, Download, DownloadFile, DownloadTarget, safe_filename
from cloudstore_mapping.client.transport import HTTPTransport
from tests.vendor import Fault, Media, Vendor

LINK = "/files/a/b.bin"
DATA = b"0123456789"


def part(start: int, stop: int, tag: str = '"one"', data: bytes = DATA, **headers: str) -> Fault:
    """Return an answer that has a part of the data from a byte on, and breaks off before another."""
    status = 206 if start else 200
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    return Fault(status, data[start:stop], {"Content-Length": str(len(data) - start), "ETag": tag, **headers})


@pytest.fixture
def slept() -> list[float]:
    """Return how long was waited."""
    return []


@pytest.fixture
def get(vendor: Vendor, session: requests.Session | None, slept: list[float]) -> Callable[..., bytes]:
    """Return a function that downloads what the faults of `vendor` are, on connections of either kind."""

    def get(*faults: Fault, file: Any = None, retries: int = 3, progress: Any = None) -> bytes:
        vendor.faults = deque(faults)
        file = io.BytesIO() if file is None else file
        transport = HTTPTransport(vendor.address, session=session)
        with Client(transport, "secret", retries=retries, sleep=slept.append) as client:
            Download(client, LINK, DownloadTarget(file), progress).run()
        assert not vendor.faults
        return bytes(file.getvalue())

    return get


def ranges(vendor: Vendor) -> list[tuple[str | None, str | None]]:
    """Return which parts were asked for, and of which content."""
    return [(request.headers.get("Range"), request.headers.get("If-Range")) for request in vendor.requests]


def test_it_goes_on_where_it_broke_off(get: Callable[..., bytes], vendor: Vendor, slept: list[float]) -> None:
    """A connection that breaks costs a request for the rest, under the condition that the file is the same."""
    assert get(part(0, 4), part(4, 7), part(7, 10)) == DATA
    assert ranges(vendor) == [(None, None), ("bytes=4-", '"one"'), ("bytes=7-", '"one"')]
    assert len(slept) == 2


def test_every_further_attempt_is_a_retry(vendor: Vendor, slept: list[float]) -> None:
    """`stats.retries` counts each further attempt, also one from the beginning."""
    vendor.faults = deque([part(0, 0), part(0, 4), part(4, 10)])
    with Client(HTTPTransport(vendor.address), "secret", sleep=slept.append) as client:
        Download(client, LINK, DownloadTarget(io.BytesIO())).run()
        assert client.stats.retries == 2


def test_a_file_that_changed_meanwhile(get: Callable[..., bytes], vendor: Vendor) -> None:
    """Where the file is another one by now, it is got from its beginning, and nothing of the old one stays."""
    assert get(part(0, 7), part(0, 3, '"two"', b"new"), file=io.BytesIO()) == b"new"
    assert get(part(0, 7), part(7, 10, '"two"'), part(0, 10, '"two"')) == DATA
    assert ranges(vendor)[-1] == (None, None)


def test_what_stood_in_the_file_before_stays(get: Callable[..., bytes]) -> None:
    """A file is written from where it stands, also when the download has to begin again."""
    file = io.BytesIO(b"before")
    file.seek(0, os.SEEK_END)
    assert get(part(0, 7), part(0, 3, '"two"', b"new"), file=file) == b"beforenew"


@pytest.mark.parametrize("tag", ['W/"weak"', ""])
def test_without_a_tag_that_says_enough(get: Callable[..., bytes], vendor: Vendor, tag: str) -> None:
    """A service that doesn't say whether the bytes are the same is asked for all of them again."""
    headers = {"Content-Length": "10", **({"ETag": tag} if tag else {})}
    assert get(Fault(200, DATA[:4], headers), Fault(200, DATA, headers)) == DATA
    assert ranges(vendor) == [(None, None), (None, None)]


def test_a_stream_can_not_begin_again(get: Callable[..., bytes]) -> None:
    """Into what can't go back, a file that changed meanwhile is an error, and never two files' mixture."""
    stream = _Stream()
    with pytest.raises(cm.ProtocolError, match="changed"):
        get(part(0, 7), part(0, 3, '"two"', b"new"), file=stream)
    assert stream.getvalue() == DATA[:7]


class _Stream(io.BytesIO):
    """A file like a pipe."""

    def seekable(self) -> bool:
        return False


def test_retries_come_to_an_end(get: Callable[..., bytes], slept: list[float]) -> None:
    """A download that breaks off without a byte more as often as the client retries is `TransportError`."""
    with pytest.raises(cm.TransportError):
        get(part(0, 4), part(4, 4), retries=1)
    assert len(slept) == 1


def test_a_download_that_goes_on_is_not_given_up(get: Callable[..., bytes], slept: list[float]) -> None:
    """However often it breaks off, it is gone on with as long as each try brings something."""
    assert get(*(part(start, start + 1) for start in range(9)), part(9, 10), retries=1) == DATA
    assert len(slept) == 9


@pytest.mark.parametrize(("status", "error"), [(429, "TooOften"), (503, "Unavailable")])
def test_the_wait_that_the_service_asks_for(
    get: Callable[..., bytes], slept: list[float], status: int, error: str
) -> None:
    """`Retry-After` is honoured; a longer one than a client ever waits is raised at once."""
    body = b'{"error": "%s", "message": "Later."}' % error.encode()
    assert get(Fault(status, body, {"Retry-After": "7"}), part(0, 10)) == DATA
    assert slept == [7.0]
    with pytest.raises((cm.TooOftenError, cm.UnavailableError)):
        get(Fault(status, body, {"Retry-After": "100"}))
    assert len(slept) == 1


def test_an_answer_of_another_part(get: Callable[..., bytes]) -> None:
    """A part that nobody asked for is not written where it doesn't belong."""
    assert get(part(5, 10), part(0, 10)) == DATA


def test_a_size_of_many_digits(vendor: Vendor, session: requests.Session | None) -> None:
    """A size that Python refuses to convert is an unknown one."""
    vendor.faults.append(Fault(200, DATA, {"Content-Length": "9" * 5000}))
    fetched = HTTPTransport(vendor.address, session=session).fetch(LINK)
    assert fetched.size is None
    fetched.close()


@pytest.mark.parametrize("place", ["", "bytes 5-9/" + "9" * 5000, "bytes */10", "items 1-2/3"])
def test_a_part_without_its_place(get: Callable[..., bytes], place: str) -> None:
    """A part whose place isn't told, such as the parts of a multipart reply, is asked for again."""
    odd = Fault(206, b"--boundary", {"Content-Range": place} if place else {})
    assert get(part(0, 4), odd, part(4, 10)) == DATA
    with pytest.raises(cm.TransportError, match="without its place"):
        get(odd, retries=0)


def test_an_answer_that_is_not_the_file_s(get: Callable[..., bytes]) -> None:
    """A reply without a tag, such as a sign-in page, is no file that had one, so it is asked for again."""
    assert get(part(0, 4), Fault(200, b"<html>"), part(4, 10)) == DATA
    with pytest.raises(cm.TransportError, match="not the file's"):
        get(part(0, 4), Fault(200, b"<html>"), retries=1)


def test_a_digest(get: Callable[..., bytes]) -> None:
    """Bytes that differ from the SHA-256 in a header are refused, from any service; other headers tell nothing."""
    digest = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
    for header in (f"sha-256=:{digest}:", f"md5=:AAAA:, sha-256=:{digest}:", f"sha-512=:{digest}:", "sha-256=:!:", "?"):
        right: Any = {"Repr-Digest": header}
        assert get(part(0, 4, **right), part(4, 10, **right)) == DATA
    told: Any = {"Repr-Digest": f"sha-256=:{digest}:"}
    for wrong in (b"012345678x", b"x123456789"):
        with pytest.raises(cm.ProtocolError, match="differs from the uploaded file"):
            get(part(0, 10, data=wrong, **told))
        with pytest.raises(cm.ProtocolError, match="differs from the uploaded file"):
            get(part(0, 4, data=wrong, **told), part(4, 10, data=wrong, **told))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Fault(404, b"<h1>Not Found</h1>"), cm.NoFileError),
        (Fault(410), cm.NoFileError),
        (Fault(404, b'{"error": "NoPath", "message": "There is no file here."}'), cm.NoFileError),
        (Fault(429, b'{"error": "DailyLimit", "message": "Enough for today."}'), cm.DailyLimitError),
        (Fault(429, b'{"error": "TooOften", "message": "Slower."}', {"Retry-After": "70"}), cm.TooOftenError),
        (Fault(200, b'{"error": "Disabled", "message": "Off."}', {"X": "a file that says so"}), None),
        (Fault(401, b""), cm.ProtocolError),
        (Fault(302, b"", {"Location": "http://127.0.0.1:1/"}), cm.ProtocolError),
        (Fault(500, b"{"), cm.ProtocolError),
    ],
)
def test_refusals(get: Callable[..., bytes], answer: Fault, error: type[Exception] | None) -> None:
    """What is refused is the error that the answer names, else that of its status; no redirect is followed."""
    if error is None:
        assert get(answer) == answer.body
        return
    with pytest.raises(error):
        get(answer)


def test_a_service_that_is_busy_is_asked_again(get: Callable[..., bytes], slept: list[float]) -> None:
    """After `Unavailable` it is tried again, a little later."""
    assert get(Fault(503, b""), part(0, 10)) == DATA
    assert len(slept) == 1


def test_no_key_is_sent(get: Callable[..., bytes], vendor: Vendor) -> None:
    """A download carries no API key: its link is all that it needs."""
    get(part(0, 10))
    assert "secret" not in repr(vendor.requests)
    assert vendor.requests[0].method == "GET"


def test_progress(get: Callable[..., bytes]) -> None:
    """Progress is told of the whole file, and goes on where it broke off."""
    told: list[tuple[int, int]] = []
    get(part(0, 4), part(4, 10), progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 10), (4, 10), (10, 10)]


@pytest.fixture
def store(vendor: Vendor) -> cm.CloudStoreMapping[Any]:
    """Return a store that tries once."""
    return cm.CloudStoreMapping(Vendor.api_key, vendor.address, retries=0)


def named(name: str, data: bytes = DATA) -> Fault:
    """Return an answer with a whole file that is called so."""
    return Fault(200, data, {"Content-Disposition": f"attachment; filename*=UTF-8''{name}"})


def test_a_path_is_replaced_when_it_is_whole(store: cm.CloudStoreMapping[Any], vendor: Vendor, tmp_path: Path) -> None:
    """What is there stays until the download is whole, and nothing else is left beside it."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    path.chmod(0o600)
    vendor.faults.append(part(0, 4))
    with pytest.raises(cm.TransportError):
        store.download(LINK, path)
    assert path.read_bytes() == b"before"
    vendor.faults.append(part(0, 10))
    assert store.download(LINK, str(path)) == path
    assert path.read_bytes() == DATA
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_is_like_any_other(store: cm.CloudStoreMapping[Any], vendor: Vendor, tmp_path: Path) -> None:
    """A new file has the rights of any that the user makes, and a link goes on leading where it led."""
    (tmp_path / "like").touch()
    (tmp_path / "link").symlink_to("target")
    for name in ("new", "link"):
        vendor.faults.append(part(0, 10))
        store.download(LINK, tmp_path / name)
    assert (tmp_path / "link").is_symlink()
    for name in ("new", "target"):
        assert (tmp_path / name).read_bytes() == DATA
        assert (tmp_path / name).stat().st_mode == (tmp_path / "like").stat().st_mode


def test_a_file_may_be_kept(store: cm.CloudStoreMapping[Any], vendor: Vendor, tmp_path: Path) -> None:
    """Without `overwrite` what is there, a link to nowhere too, is `FileExistsError` before anything is sent."""
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        with pytest.raises(FileExistsError):
            store.download(LINK, tmp_path / name, overwrite=False)
    assert vendor.requests == []
    vendor.faults.append(named("file"))
    with pytest.raises(FileExistsError):
        store.download(LINK, tmp_path, overwrite=False)
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_gets_it_under_its_own_name(store: cm.CloudStoreMapping[Any], vendor: Vendor, tmp_path: Path) -> None:
    """In a folder the file has its own name, without its folders; where nobody says one, that of its link."""
    vendor.faults += [named("..%2F..%2Fa%20b.png"), part(0, 10)]
    assert store.download(LINK, tmp_path) == tmp_path / "a b.png"
    assert store.download(LINK, tmp_path) == tmp_path / "b.bin"
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {DATA}


def test_a_link_in_a_folder_is_not_followed(store: cm.CloudStoreMapping[Any], vendor: Vendor, tmp_path: Path) -> None:
    """A file whose name the service chose never writes through a link of that name."""
    (tmp_path / "mine").write_bytes(b"mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").symlink_to("../mine")
    vendor.faults.append(named("a"))
    store.download(LINK, folder)
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert (folder / "a").read_bytes() == DATA


def test_a_device_is_written_to(store: cm.CloudStoreMapping[Any], vendor: Vendor) -> None:
    """A device stays one: it is written to, and not replaced."""
    vendor.faults.append(part(0, 10))
    store.download(LINK, os.devnull, overwrite=True)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


def test_no_place_for_it(store: cm.CloudStoreMapping[Any], vendor: Vendor, tmp_path: Path) -> None:
    """A folder that isn't there, or one of the file's own name, is the system's error."""
    with pytest.raises(FileNotFoundError):
        store.download(LINK, tmp_path / "absent" / "a")
    (tmp_path / "a").mkdir()
    vendor.faults.append(named("a"))
    with pytest.raises(IsADirectoryError):
        store.download(LINK, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", "a.png"),
        ("é 😀.png", "é 😀.png"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\a.exe", "a.exe"),
        ("..", "download"),
        ("a/", "download"),
        ("", "download"),
        (" . .bashrc", "bashrc"),
        (".\u202e.hidden", "hidden"),
        ("a\x00b\x1b[31m\n.png", "ab[31m.png"),
        ("a\u202egnp.exe", "agnp.exe"),
        ("\ud800a", "a"),
        ("-rf", "-rf"),
        ("name.", "name."),
    ],
)
def test_harmless_names(name: str, expected: str) -> None:
    """Of a name from elsewhere stays what is visible, in this folder and not hidden."""
    assert safe_filename(name) == expected


@pytest.mark.parametrize("name", ["é" * 600 + ".png", "a." + "é" * 600, "😀" * 300])
def test_long_names(name: str) -> None:
    """A name that no file system takes is cut, before its ending if that is short."""
    cut = safe_filename(name)
    assert len(cut.encode()) <= LONGEST_NAME
    assert re.fullmatch(r"é+\.png|a\.é+|😀+", cut)


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_made_at_the_last_moment_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool) -> None:
    """Without `overwrite`, a file that appears after the last look is left as it is, also without hard links."""
    path = tmp_path / "notes.txt"
    look = DownloadFile._check

    def look_and_lose(saving: DownloadFile) -> None:
        look(saving)
        if saving._draft is not None:
            path.write_bytes(b"theirs")

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    with DownloadFile(path, overwrite=False) as file:
        file.write(b"ours")
    assert path.read_bytes() == b"ours"
    path.unlink()
    monkeypatch.setattr(DownloadFile, "_check", look_and_lose)
    with pytest.raises(FileExistsError), DownloadFile(path, overwrite=False) as file:
        file.write(b"ours")
    assert path.read_bytes() == b"theirs"
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_a_download_ends_with_its_response(vendor: Vendor) -> None:
    """On a user's session, `close` of a download is the one of the session's response: a wrapper of it is told."""
    closed = []

    class Noting(requests.Session):
        def send(self, *args: Any, **options: Any) -> requests.Response:
            response = super().send(*args, **options)
            close = response.close

            def noting() -> None:
                closed.append(response.url)
                close()

            response.close = noting  # type: ignore[method-assign]
            return response

    vendor.links["/cloudstore/files/a.txt"] = Media("text/plain", b"data" * 100_000, {})
    with Noting() as session:
        fetched = HTTPTransport(vendor.address, session=session).fetch("/files/a.txt")
        next(fetched.pieces)
        fetched.close()
        assert closed == [f"{vendor.address}/files/a.txt"]
        refused = HTTPTransport(vendor.address, session=session).fetch("/files/absent.txt")
        assert refused.refusal is not None
        assert closed[1:] == [f"{vendor.address}/files/absent.txt"]


class Taking(io.RawIOBase):
    """An unbuffered file that takes at most three bytes at once, as one on a nearly full disk or a pipe does."""

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, piece: Any) -> int:
        """Take a part."""
        self.taken += bytes(piece[:3])
        return min(3, len(piece))

    def getvalue(self) -> bytes:
        """Return all that it took."""
        return self.taken


def test_a_file_that_takes_a_part_at_once(get: Callable[..., bytes]) -> None:
    """An unbuffered file gets all of it, however little it takes at once."""
    assert get(part(0, 4), part(4, 10), file=Taking()) == DATA


def test_a_file_that_would_wait() -> None:
    """A pipe that doesn't wait and is full is an error, as what it didn't take would be missing."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(reader, "rb"), os.fdopen(writer, "wb", buffering=0) as file:
        target = DownloadTarget(file)
        with pytest.raises(BlockingIOError, match="make it blocking"):
            target.write(bytes(10 * 2**20))


def test_an_object_that_only_writes(get: Callable[..., bytes]) -> None:
    """An object with nothing but `write`, which returns nothing, gets all of it."""
    pieces: list[bytes] = []
    target = SimpleNamespace(write=pieces.append, getvalue=lambda: b"".join(pieces))
    assert get(part(0, 4), part(4, 10), file=target) == DATA
