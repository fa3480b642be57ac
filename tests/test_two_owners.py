"""Two owners of one service never see or touch each other's files, by whatever path one of them tries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.storages import new_storage


class Owner:
    """An owner with a data file and a media file, whose names the other one has too."""

    def __init__(self, service: Service, address: str, name: str) -> None:
        self.name = name
        self.service = service
        self.address = address
        self.key = service.accounts.create(name)
        self.folder = service.accounts.named(name).folder
        self.session = requests.Session()
        assert self.error("/store/save", file="shared name", value=f"of {name}") is None
        assert self.error("/store/save", file=f"only {name}'s", value=f"of {name}") is None
        self.media = self.upload(f"media of {name}".encode())

    def post(self, path: str, **fields: Any) -> Any:
        """Return the reply to a request with this owner's key."""
        return self.session.post(self.address + path, json={"key": self.key, **fields}, timeout=30).json()

    def error(self, path: str, **fields: Any) -> Any:
        """Return the error of the reply."""
        return self.post(path, **fields)["error"]

    def upload(self, data: bytes) -> str:
        """Return the id of a media file that was uploaded."""
        answer = self.session.post(
            f"{self.address}/upload-2",
            data={"key": self.key},
            files={"file": ("picture.png", data, "image/png")},
            timeout=30,
        )
        return str(answer.json()["data"]["id"])

    def fetch(self, folder: str, media_id: str) -> requests.Response:
        """Return the answer to a GET of a media file."""
        return requests.get(f"{self.address}/files/{folder}/{media_id}.png", timeout=30)

    def has_all(self) -> bool:
        """Whether everything is as it was made."""
        values = [self.post("/store/load", file=name)["message"] for name in ("shared name", f"only {self.name}'s")]
        names = self.post("/store/load", file="", options="list")["data"]
        content = self.fetch(self.folder, self.media).content
        return (values, names, content) == (
            [f"of {self.name}"] * 2,
            sorted(["shared name", f"only {self.name}'s"]),
            f"media of {self.name}".encode(),
        )


@pytest.fixture
def owners() -> Iterator[tuple[Owner, Owner]]:
    """Return two owners, of whom the second tries to get at what the first one has."""
    with Service(new_storage()) as service, background(service) as address:
        one, two = Owner(service, address, "ann"), Owner(service, address, "bob")
        with one.session, two.session:
            yield one, two
            assert one.has_all()


def test_reading(owners: tuple[Owner, Owner]) -> None:
    """A load, a stat, a listing and a page show one's own files only."""
    _, two = owners
    assert two.has_all()
    for options in (None, "stat"):
        assert two.error("/store/load", file="only ann's", options=options) == "NoFile"
    for extra in ({}, {"limit": 10}, {"match": "prefix"}, {"after": "a"}):
        names = two.post("/store/load", file="only", options="list", **extra)["data"]
        assert names == ["only bob's"]


@pytest.mark.parametrize("options", [None, "merge", "delete"])
def test_writing(owners: tuple[Owner, Owner], options: str | None) -> None:
    """What is saved, merged or deleted under the other's names is one's own, or isn't there."""
    one, two = owners
    for name in ("shared name", "only ann's"):
        error = two.error("/store/save", file=name, options=options, value="changed")
        assert error == ("NoFile" if options == "delete" and name == "only ann's" else None)
        assert one.has_all()


def test_versions_and_ids_of_requests(owners: tuple[Owner, Owner]) -> None:
    """The other's versions are none of one's own files, and the id of the other's request is a new one here."""
    one, two = owners
    version = one.post("/store/load", file="only ann's")["version"]
    assert two.error("/store/save", file="only ann's", value=1, if_version=version) == "Changed"
    assert two.post("/store/load", file="shared name", if_not_version=version)["message"] == "of bob"
    saved = {"file": "once", "value": 1, "request": "the id of a request"}
    assert one.error("/store/save", **saved) is None
    assert two.error("/store/save", **saved) is None
    assert two.post("/store/load", file="once")["message"] == 1
    assert one.error("/store/save", file="once", options="delete") is None


def test_batches(owners: tuple[Owner, Owner]) -> None:
    """A batch can't mix keys, and asks for one's own files only."""
    one, two = owners
    load = {"file": "only ann's", "options": None}
    assert two.error("/store/batch", requests=[{**load, "key": one.key}]) == "BadRequest"
    (reply,) = two.post("/store/batch", requests=[load])["data"]
    assert reply["error"] == "NoFile"


def test_media(owners: tuple[Owner, Owner]) -> None:
    """The same name is another file, and no folder leads to what is in the other one."""
    one, two = owners
    assert two.media != one.media
    assert two.folder != one.folder
    assert one.fetch(two.folder, one.media).status_code == 404
    assert one.fetch(one.folder, two.media).status_code == 404
    two.upload(b"replaced")
    assert two.fetch(two.folder, two.media).content == b"replaced"


def test_a_key_of_nobody(owners: tuple[Owner, Owner]) -> None:
    """A key that is almost the other's opens nothing: not its beginning, not in other letters, not with a space."""
    one, two = owners
    for key in (one.key[:-1], one.key.swapcase(), f"{one.key} ", "", one.folder):
        two.key = key
        assert two.error("/store/load", file="shared name") in ("BadKey", "BadRequest")


def test_passwords_are_of_one_account(owners: tuple[Owner, Owner]) -> None:
    """The other's password of the same name opens nothing, and a lock of one's own locks nobody else out."""
    one, two = owners
    service = two.service
    service.set_passwords("bob", "shared name", edit="e", view="v")
    assert two.error("/store/load", file="shared name") == "Locked"
    assert one.error("/store/load", file="shared name") is None
    service.set_default_passwords("bob", data="d", media="m")
    assert one.error("/store/save", file="shared name", value="of ann") is None


def test_limits_are_of_one_account(owners: tuple[Owner, Owner]) -> None:
    """An account that has used up what it may, or is switched off, leaves the others as they are."""
    one, two = owners
    service = two.service
    service.accounts.set_limits("bob", max_files=1, max_daily_accesses=1, min_interval=1000)
    two.post("/store/load", file="shared name")
    assert two.error("/store/load", file="shared name") == "TooOften"
    service.accounts.set_disabled("bob", disabled=True)
    assert two.error("/store/load", file="shared name") == "Disabled"
    assert two.fetch(two.folder, two.media).status_code == 404
    service.accounts.delete("bob")
    assert two.error("/store/load", file="shared name") == "BadKey"
    assert one.has_all()
