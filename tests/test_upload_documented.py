"""The upload of the original documentation, on a service of ours: text and pictures, of bytes, files and base64."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from cloudstore_mapping.callback_client import CloudStore
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.storages import new_storage

PICTURE = b"\xff\xd8\xff\xe0 jazz"


@pytest.fixture
def service(no_threads_left: None) -> Iterator[Service]:
    """Return a service in memory."""
    with Service(new_storage()) as service:
        yield service


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    """Return where it answers."""
    with background(service) as address:
        yield address


@pytest.fixture
def cloud(service: Service, address: str) -> Iterator[CloudStore]:
    """Return a client of it."""
    with CloudStore(service.accounts.create("owner"), address) as cloud:
        yield cloud


def _file(folder: Path) -> Any:
    (folder / "jazz3.jpg").write_bytes(PICTURE)
    return (folder / "jazz3.jpg").open("rb")


SOURCES: dict[str, Callable[[Path], Any]] = {
    "bytes": lambda _: PICTURE,
    "an open file": _file,
    "base64": lambda _: base64.b64encode(PICTURE).decode(),
    "a data URL": lambda _: f"data:image/jpg;base64,{base64.b64encode(PICTURE).decode()}",
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_picture(cloud: CloudStore, address: str, tmp_path: Path, source: str) -> None:
    """A picture's callback learns name, folder, id, type and size, of which its link is made that anybody can open."""
    replies: list[dict[str, Any]] = []
    data = SOURCES[source](tmp_path)
    cloud.upload(data, "jazz3.jpg", "image/jpg", replies.append)
    if not isinstance(data, str | bytes):
        data.close()  # as a `with` around the call does
    cloud.close()
    (reply,) = replies
    facts = reply["data"]
    assert (reply["error"], reply["message"], reply["response"].status_code) == (None, "File Uploaded", 200)
    assert (facts["name"], facts["mimetype"], facts["size"]) == ("jazz3.jpg", "image/jpeg", len(PICTURE))
    assert all(re.fullmatch("[0-9a-f]{32}", facts[part]) for part in ("folder", "id"))
    got = requests.get(f"{address}/files/{facts['folder']}/{facts['id']}.jpg", timeout=30)
    assert (got.content, got.headers["Content-Type"]) == (PICTURE, "image/jpeg")
    assert got.headers["Content-Disposition"].startswith("inline; ")


def test_text(cloud: CloudStore, address: str) -> None:
    """A text of the type "text" is stored as it is, in UTF-8."""
    facts = cloud.upload("h\u00e9llo", "note.txt", "text").result(30)["data"]
    assert (facts["mimetype"], facts["size"]) == ("text/plain", 6)
    got = requests.get(f"{address}/files/{facts['folder']}/{facts['id']}.txt", timeout=30)
    assert got.content.decode() == "h\u00e9llo"


def test_a_file_with_a_password(service: Service, cloud: CloudStore) -> None:
    """Once its owner has set a password, a file of the same name is refused without it, and replaces with it."""
    first = cloud.upload(b"1", "a b.txt").result(30)["data"]
    service.media.set_password(service.accounts.named("owner"), first["id"], "secret")
    for password in (None, "", "wrong"):
        assert cloud.upload(b"22", "a b.txt", password=password).result(30)["error"] == "Locked"
    reply = cloud.upload(b"333", "a b.txt", password="secret").result(30)
    assert (reply["data"]["id"], reply["data"]["size"]) == (first["id"], 3)


def test_a_file_that_is_too_large(service: Service, cloud: CloudStore) -> None:
    """A refused upload tells its callback why, as an error's name and a sentence, and has no data."""
    service.accounts.set_limits("owner", max_media_bytes=9_999)
    reply = cloud.upload(bytes(10_000), "a.bin").result(30)
    assert (reply["error"], "data" in reply) == ("TooBig", False)
    assert "bytes" in reply["message"]
