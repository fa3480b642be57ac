"""An upload over HTTP: what browsers, the vendor's clients and others send is stored, whichever way they send it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from cloudstore_mapping.errors import ChangedError
from cloudstore_mapping.service.media import CHUNK_BYTES
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web.server import background
from tests.media_fakes import UPLOAD, Posted, Uploader, comes_to, field, file_part, form, rows, write
from tests.raw_http import Connection, chunk
from tests.service_fakes import PATIENCE, FakeHasher
from tests.storages import new_storage

#: Bytes of a request with JSON at most, which are no limit for an upload.
MAX_BODY = 2**20


@pytest.fixture
def posted(hasher: FakeHasher) -> Iterator[Posted]:
    """Return somebody with an account who uploads over HTTP."""
    with Service(new_storage(), Settings(max_body_bytes=MAX_BODY), hasher=hasher) as service:
        uploader = Uploader(service)
        with background(service) as address:
            yield Posted(uploader, address)
            hasher.gate.set()


def test_the_reply_is_the_vendor_s(posted: Posted) -> None:
    """Status 200, no error, the sentence, and where the file is."""
    answer = requests.post(
        posted.address + UPLOAD,
        data={"key": posted.uploader.api_key, "password": ""},
        files={"file": ("photo.png", b"data", "image/png")},
        timeout=PATIENCE,
    )
    assert answer.status_code == 200
    facts = answer.json()["data"]
    folder = posted.uploader.account.folder
    assert answer.json() == {
        "error": None,
        "message": "File Uploaded",
        "data": {"name": "photo.png", "folder": folder, "id": facts["id"], "mimetype": "image/png", "size": 4},
    }
    assert posted.uploader.content(facts) == b"data"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, MAX_BODY - 1, MAX_BODY, 3 * MAX_BODY + 1])
def test_the_vendor_s_browser_client(posted: Posted, size: int) -> None:
    """It sends the file first, then the key, and for a password that it has not the text "undefined"."""
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    facts = posted.post(file_part(data), field("key", posted.uploader.api_key), field("password", "undefined"))["data"]
    assert facts["size"] == size
    assert posted.uploader.content(facts) == data


@pytest.mark.parametrize("password", [None, "", "null", "undefined"])
def test_no_password(posted: Posted, password: str | None) -> None:
    """Absent, empty, and what JavaScript makes of none, are all the same."""
    fields = [] if password is None else [field("password", password)]
    posted.uploader.service.set_default_passwords("owner", media=password)
    reply = posted.post(field("key", posted.uploader.api_key), *fields, file_part(b"data"))
    assert reply["error"] == (None if not password else "Locked")


@pytest.mark.parametrize("order", ["key password file", "key file password", "file key password", "password file key"])
@pytest.mark.parametrize("size", [0, 2 * MAX_BODY])
def test_a_locked_file_in_any_order(posted: Posted, order: str, size: int) -> None:
    """Wherever its password stands in the form: with it the file is replaced, without it or with another it isn't."""
    uploader = posted.uploader
    facts = uploader.upload(b"before")
    uploader.service.media.set_password(uploader.account, facts["id"], "secret")
    uploader.service.accounts.set_limits("owner", min_interval=3600)
    for password, error in (("wrong", "Locked"), ("", "Locked"), ("secret", None)):
        parts = {
            "key": field("key", uploader.api_key),
            "password": field("password", password),
            "file": file_part(password.encode() + bytes(size)),
        }
        assert posted.post(*[parts[name] for name in order.split()])["error"] == error
    assert uploader.content(facts) == b"secret" + bytes(size)
    assert comes_to(uploader.storage, 1, 1, 1 + size // CHUNK_BYTES)


ORDERS = [
    "key password mediaPass file",
    "mediaPass key file",
    "key file password mediaPass",
    "key file mediaPass password",
    "file key password mediaPass",
    "file mediaPass key",
    "password mediaPass file key",
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [0, 2 * MAX_BODY])
def test_the_default_password_in_any_order(posted: Posted, order: str, size: int) -> None:
    """A right `mediaPass` opens the upload wherever the passwords stand, whatever the other; a wrong one doesn't."""
    uploader = posted.uploader
    uploader.service.set_default_passwords("owner", media="bobbo")
    for media_password, error in (("undefined", "Locked"), ("wrong", "Locked"), ("bobbo", None)):
        parts = {
            "key": field("key", uploader.api_key),
            "password": field("password", "undefined"),
            "mediaPass": field("mediaPass", media_password),
            "file": file_part(bytes(size)),
        }
        assert posted.post(*[parts[name] for name in order.split()])["error"] == error
    assert rows(uploader.storage).media == 1


def test_a_wrong_password_in_front_is_refused_unread(posted: Posted) -> None:
    """Where a password stands before the file, a wrong one is refused before the file is sent."""
    uploader = posted.uploader
    uploader.service.set_default_passwords("owner", media="bobbo")
    for name in ("password", "mediaPass"):
        body, header = form(field("key", uploader.api_key), field(name, "wrong"), file_part(bytes(1000)))
        with Connection(posted.address) as connection:
            connection.start(UPLOAD, f"{header}Content-Length: {len(body) + 3 * MAX_BODY}\r\n", body[:-100])
            assert connection.answer().json["error"] == "Locked"


def test_only_a_new_file(posted: Posted) -> None:
    """With an empty `if_version` nothing is replaced: the reply is `Changed`, with the digest of what is there."""
    key, condition = field("key", posted.uploader.api_key), field("if_version", "")
    first = posted.post(key, condition, file_part(b"first"))
    second = posted.post(condition, key, file_part(b"second"))
    assert (first["error"], second["error"]) == (None, "Changed")
    assert second["version"] == hashlib.sha256(b"first").hexdigest()
    assert posted.uploader.content(first["data"]) == b"first"
    assert comes_to(posted.uploader.storage, 1, 1, 1)
    assert posted.post(key, file_part(b"third"))["error"] is None
    assert posted.uploader.content(first["data"]) == b"third"


def test_only_a_new_file_of_two_at_once(posted: Posted) -> None:
    """Of two uploads of one name that both found it free, the one that ends first is stored."""
    uploads = [posted.uploader.begin(only_new=True) for _ in range(2)]
    for number, upload in enumerate(uploads):
        write(upload, str(number).encode())
    assert uploads[1].finish().error is None
    with pytest.raises(ChangedError):
        uploads[0].finish()
    uploads[0].abort()
    assert comes_to(posted.uploader.storage, 1, 1, 1)


@pytest.mark.parametrize(("value", "comes_late"), [("", True), ("null", False), ("a version", False)])
def test_a_condition_that_can_t_be_held(posted: Posted, value: str, comes_late: bool) -> None:
    """One that names a version, or stands behind the file, is refused, and nothing is stored."""
    parts = [field("if_version", value), file_part(b"data")]
    reply = posted.post(field("key", posted.uploader.api_key), *(parts[::-1] if comes_late else parts))
    assert reply["error"] == "BadRequest"
    assert "'if_version' must be empty, and come before the file" in reply["message"]
    assert comes_to(posted.uploader.storage, 0, 0, 0)


def test_other_fields_are_let_be(posted: Posted) -> None:
    """A form may hold more than is asked for: other fields, an empty file beside, a field called "file"."""
    reply = posted.post(
        field("submit", "Upload"),
        field("file", "C:\\fakepath\\photo.png"),
        field("key", posted.uploader.api_key),
        file_part(b"", part="preview", name=""),
        file_part(b"data"),
        field("after", "x" * 4096),
    )
    assert reply["error"] is None
    assert reply["data"]["size"] == 4


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ('filename="a b.png"', "a b.png"),
        ('filename="a%22b%0D%0Ac.png"', 'a"b\r\nc.png'),
        ('filename="100%25 %20 %0a %2F.png"', "100%25 %20 %0a %2F.png"),
        ('filename="é \u202e😀.png"', "é \u202e😀.png"),
        ('filename="../../etc/passwd"', "../../etc/passwd"),
        ('filename="C:\\x\\photo.png"', "C:\\x\\photo.png"),
        ('filename="\\\\server\\\\share"', "\\\\server\\\\share"),
        ('filename="ends with \\"', "ends with \\"),
        ('filename="a; name=b; filename=c"', "a; name=b; filename=c"),
        # As older programs write it, which escape a quote, or leave the quotes away.
        ('filename="a\\"b.png"', 'a"b.png'),
        ("filename=photo.png", "photo.png"),
    ],
)
def test_a_name_comes_as_it_was_sent(posted: Posted, sent: str, name: str) -> None:
    """Of escapes those three of WHATWG's standard are undone, and nothing else; no path is cut off."""
    part = f'Content-Disposition: form-data; name="file"; {sent}\r\nContent-Type: image/png\r\n\r\ndata'.encode()
    assert posted.post(field("key", posted.uploader.api_key), part)["data"]["name"] == name


def test_a_type_that_is_not_told(posted: Posted) -> None:
    """A file without a content type is bytes of any kind; header names are in any case."""
    part = b'content-DISPOSITION: form-data; name="file"; filename="a"\r\n\r\ndata'
    reply = posted.post(field("key", posted.uploader.api_key), part)
    assert reply["data"]["mimetype"] == "application/octet-stream"


@pytest.mark.parametrize("piece", [1, 7, 64, 100_000])
def test_pieces_of_any_size(posted: Posted, piece: int) -> None:
    """A form that comes in chunks, of which none ends where a part does, is the same form."""
    data = b"\r\n--bound\r\n--boundary\r\n-" + b"\r\n--" * (200 if piece < 64 else 30_000)
    body, header = form(field("key", posted.uploader.api_key), file_part(data))
    with Connection(posted.address) as connection:
        connection.start(UPLOAD, f"{header}Transfer-Encoding: chunked\r\n")
        connection.send(b"".join(chunk(body[at : at + piece]) for at in range(0, len(body), piece)) + chunk(b""))
        answer = connection.answer()
    assert posted.uploader.content(answer.json["data"]) == data


def test_two_at_once(posted: Posted) -> None:
    """Two uploads of one name, piece by piece in turn, are one file in the end: all of one of them."""
    bodies = [form(field("key", posted.uploader.api_key), file_part(each * 3 * CHUNK_BYTES)) for each in (b"1", b"2")]
    with Connection(posted.address) as one, Connection(posted.address) as two:
        connections = (one, two)
        for connection, (body, header) in zip(connections, bodies, strict=True):
            connection.start(UPLOAD, f"{header}Content-Length: {len(body)}\r\n")
        for at in range(0, len(bodies[0][0]), 200_000):
            for connection, (body, _) in zip(connections, bodies, strict=True):
                connection.send(body[at : at + 200_000])
        facts, others = (connection.answer().json["data"] for connection in connections)
    assert facts == others
    assert posted.uploader.content(facts) in (b"1" * 3 * CHUNK_BYTES, b"2" * 3 * CHUNK_BYTES)
    assert comes_to(posted.uploader.storage, 1, 1, 3)


def test_hashing_keeps_nobody_waiting(posted: Posted, hasher: FakeHasher) -> None:
    """While an upload's password is hashed, others are answered."""
    uploader = posted.uploader
    facts = uploader.upload(b"before")
    uploader.service.media.set_password(uploader.account, facts["id"], "secret")
    hasher.gate.clear()
    replies: list[Any] = []
    parts = (field("key", uploader.api_key), field("password", "secret"), file_part(b"after"))
    thread = threading.Thread(target=lambda: replies.append(posted.post(*parts)))
    thread.start()
    assert hasher.begun.acquire(timeout=PATIENCE)
    load = requests.post(
        f"{posted.address}/store/load", json={"key": uploader.api_key, "file": "absent"}, timeout=PATIENCE
    )
    assert load.json()["error"] == "NoFile"
    assert posted.post(field("key", uploader.api_key), file_part(b"", name="other.png"))["error"] is None
    hasher.gate.set()
    thread.join(PATIENCE)
    assert replies[0]["error"] is None


def test_a_page_of_another_site_may_upload(posted: Posted) -> None:
    """As the vendor's apps do: a browser that asks first is told so."""
    answer = requests.options(posted.address + UPLOAD, timeout=PATIENCE)
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert rows(posted.uploader.storage) == (0, 0, 0)
