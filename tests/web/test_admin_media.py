"""The panel of media files: list, upload, preview, link, password and deleting."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.records import Media
from cloudstore_mapping.web.server import background
from tests.service_fakes import FakeHasher, ManualClock
from tests.storages import new_storage
from tests.visitor import SAME_SITE, Visitor, owner, shown

PNG = b"\x89PNG\r\n\x1a\n and more"


class Keeper(Visitor):
    """An owner with media files."""

    def __init__(self, address: str, service: Service, api_key: str) -> None:
        super().__init__(address)
        self.service = service
        self.api_key = api_key

    def upload(
        self, name: str = "a.png", data: bytes = PNG, kind: str = "image/png", headers: Any = None, **fields: str
    ) -> requests.Response:
        """Upload a file by the page's form."""
        return self.session.post(
            f"{self.address}/admin/media/upload",
            data={"token": self.form_token, **fields},
            files={"file": (name, data, kind)},
            headers=SAME_SITE if headers is None else headers,
            timeout=30,
        )

    def all(self) -> list[Media]:
        """Return the account's media files."""
        return self.service.panels.media(self.service.accounts.named("owner")).rows


@pytest.fixture
def keeper(clock: ManualClock, hasher: FakeHasher, no_threads_left: None) -> Iterator[Keeper]:
    """Return an owner who is signed in."""
    with (
        Service(new_storage(), clock=clock, hasher=hasher) as service,
        background(service) as address,
        Keeper(address, service, owner(service)) as keeper,
    ):
        keeper.sign_in()
        yield keeper


def test_upload_and_list(keeper: Keeper) -> None:
    """An uploaded file is listed with its id, name, icon by kind and size."""
    reply = keeper.upload().json()
    assert (reply["error"], reply["message"], reply["data"]["name"]) == (None, "File Uploaded", "a.png")
    keeper.upload("song.mp3", b"ID3", "audio/mpeg")
    page = keeper.get("?panel=media")
    assert f"a.png {reply['data']['id']}" in shown(page)
    assert f"{len(PNG)} B" in shown(page)
    icons = re.findall(r'class="row".*?<path d="([^"]*)"', page.text, re.DOTALL)
    assert len(icons) == len(set(icons)) == 2
    assert "song.mp3" not in shown(keeper.get("?panel=media&search=.png"))


def test_an_owner_is_asked_no_password(keeper: Keeper) -> None:
    """The owner replaces a file that has a password, whose id and password stay."""
    first = keeper.upload().json()["data"]["id"]
    keeper.post("media/lock", name=first, password="pw")
    assert keeper.upload(data=PNG + b"!").json()["data"]["id"] == first
    (media,) = keeper.all()
    assert media.size == len(PNG) + 1
    assert media.edit_password is not None


def test_uploads_from_elsewhere(keeper: Keeper) -> None:
    """An upload without the session, the origin or the token stores nothing."""
    assert keeper.upload(headers={"Sec-Fetch-Site": "cross-site"}).status_code == 400
    assert keeper.upload(headers={}).status_code == 400
    assert keeper.upload(token="0" * 64).status_code == 400
    cookies = keeper.session.cookies.copy()
    keeper.session.cookies.clear()
    assert keeper.upload().status_code == 401
    keeper.session.cookies = cookies
    assert keeper.all() == []
    assert keeper.upload().status_code == 200


def test_an_upload_without_scripts(keeper: Keeper) -> None:
    """A browser that sends the form by itself is led back to the page."""
    page = keeper.upload(headers={**SAME_SITE, "Accept": "text/html"})
    assert page.url == f"{keeper.home}?panel=media"
    assert "a.png" in shown(page)


@pytest.mark.parametrize(
    ("name", "sent"), [("UP.PNG", ""), ("photo", "application/octet-stream"), ("a", "image/x-png")]
)
def test_a_preview_of_any_picture(keeper: Keeper, name: str, sent: str) -> None:
    """A picture whose type was not sent, or under an alias, has its preview and its real type."""
    media_id = keeper.upload(name, kind=sent).json()["data"]["id"]
    page = keeper.get(f"?panel=media&file={media_id}")
    assert "Type image/png" in shown(page)
    source = re.search(r'<img[^>]*src="([^"]*)"', page.text)
    assert source is not None
    preview = keeper.session.get(keeper.address.removesuffix("/cloudstore") + html.unescape(source[1]), timeout=30)
    assert (preview.content, preview.headers["Content-Type"]) == (PNG, "image/png")


def test_limits_of_uploads(keeper: Keeper) -> None:
    """The account's limits hold for the owner's uploads, and the reply says which."""
    keeper.service.accounts.set_limits("owner", max_media_bytes=10)
    reply = keeper.upload().json()
    assert reply["error"] == "TooBig"
    assert "10 bytes" in reply["message"]


def test_a_files_own_panel(keeper: Keeper) -> None:
    """A file's panel has its preview, link and the same facts as a data file's; the link opens it, and counts."""
    media_id = keeper.upload().json()["data"]["id"]
    page = keeper.get(f"?panel=media&file={media_id}")
    text = shown(page)
    assert f"Id {media_id} Type image/png Last reset 2023-11-14, midnight UTC Accesses today 0" in text
    assert "Last accessed never" in text
    assert "Edit password not set" in text
    source = re.search(r'<img[^>]*src="([^"]*)"', page.text)
    assert source is not None
    root = keeper.address.removesuffix("/cloudstore")
    preview = keeper.session.get(root + html.unescape(source[1]), timeout=30)
    assert (preview.content, preview.headers["Content-Type"]) == (PNG, "image/png")
    assert "Accesses today 0" in shown(keeper.get(f"?panel=media&file={media_id}"))
    link = re.search(r'<input id="file-link" value="([^"]*)"', page.text)
    assert link is not None
    assert requests.get(root + link[1], timeout=30).content == PNG
    assert "Accesses today 1" in shown(keeper.get(f"?panel=media&file={media_id}"))


@pytest.mark.parametrize(
    ("data", "kind"), [(b"<svg/>", "image/svg+xml"), (b"<script>", "image/png"), (b"<script>", "text/html")]
)
def test_no_preview_of_what_could_run(keeper: Keeper, data: bytes, kind: str) -> None:
    """What is no picture by its bytes has no preview, whatever its type says."""
    media_id = keeper.upload("a.png", data, kind).json()["data"]["id"]
    assert "<img" not in keeper.get(f"?panel=media&file={media_id}").text
    assert keeper.session.get(f"{keeper.address}/admin/media/preview?id={media_id}", timeout=30).status_code == 404


def test_password_and_delete(keeper: Keeper) -> None:
    """The padlock sets the edit password of ticked files, which uploads are asked for then; delete ends their links."""
    one, two = (keeper.upload(name).json()["data"]["id"] for name in ("a.png", "b.png"))
    dialog = shown(keeper.post("media/ask", view="panel=media", do="lock", name=[one, two]))
    assert "Password of 2 files" in dialog
    assert "Asked for" not in dialog
    assert "Password set: 2." in shown(keeper.post("media/lock", view="panel=media", name=[one, two], password="pw"))
    answer = requests.post(
        f"{keeper.address}/upload-2", data={"key": keeper.api_key}, files={"file": ("a.png", PNG)}, timeout=30
    )
    assert answer.json()["error"] == "Locked"
    assert "Deleted: 2." in shown(keeper.post("media/delete", view="panel=media", name=[one, two]))
    assert keeper.all() == []
    assert "There is no such file" in shown(keeper.get(f"?panel=media&file={one}"))


def test_names_that_are_no_names(keeper: Keeper) -> None:
    """The name of an upload is data: it never becomes markup, a path or a header."""
    for name in ("../../etc/passwd", "<b>x</b>.png", 'a"b.png'):
        media_id = keeper.upload(name).json()["data"]["id"]
        page = keeper.get(f"?panel=media&file={media_id}")
        assert html.escape(name) in page.text.replace("&#34;", "&quot;")
        assert "<b>x" not in page.text
