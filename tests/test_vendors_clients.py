"""Clients made for the vendor's wire, which know nothing of ours, work against our service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.service_fakes import ManualClock
from tests.storages import new_storage


class VendorsPythonClient:
    """Posts with `requests`, reads the body of a 200 only, and takes a load's value from `message`."""

    def __init__(self, address: str, key: str) -> None:
        self.address = address
        self.key = key

    def post(self, path: str, **fields: Any) -> dict[str, Any]:
        """Return the reply as the documentation shows it."""
        body = {"key": self.key, "options": None, "id": "_data", **fields}
        answer = requests.post(self.address + path, json=body, timeout=30)
        if answer.status_code != 200:
            return {"error": "Http error", "message": answer.reason}
        reply: dict[str, Any] = answer.json()
        return reply

    def save(self, file: str, value: Any, password: str | None = None) -> dict[str, Any]:
        """Save."""
        return self.post("/store/save", file=file, value=value, password=password)

    def merge(self, file: str, value: Any, password: str | None = None) -> dict[str, Any]:
        """Merge."""
        return self.post("/store/save", file=file, value=value, password=password, options="merge")

    def load(self, file: str, password: str | None = None) -> dict[str, Any]:
        """Load."""
        return self.post("/store/load", file=file, password=password)

    def list(self, filter_: str) -> dict[str, Any]:
        """List, without a password at all."""
        return self.post("/store/load", file=filter_, options="list")

    def delete(self, file: str, password: str | None = None) -> dict[str, Any]:
        """Delete, with a value of null."""
        return self.post("/store/save", file=file, value=None, password=password, options="delete")


class VendorsBrowserClient:
    """Version 1.1 of the vendor's JavaScript client, as a browser sends its requests."""

    def __init__(self, address: str, key: str, data_password: str | None = None, media_password: str | None = None):
        self.address = address
        self.key = key
        self.data_password = data_password
        self.media_password = media_password

    def post(self, path: str, **fields: Any) -> dict[str, Any]:
        """Return the reply; a field that is undefined doesn't travel."""
        sent = {"key": self.key, "id": "_data", "dataPass": self.data_password, **fields}
        body = {name: value for name, value in sent.items() if value is not None} | {"options": fields["options"]}
        reply: dict[str, Any] = requests.post(self.address + path, json=body, timeout=30).json()
        return reply

    def upload(self, data: bytes, name: str, password: str = "undefined") -> dict[str, Any]:
        """Upload: the file comes first in the form, and what is undefined travels as that word."""
        parts: list[tuple[str, Any]] = [
            ("file", (name, data, "image/png")),
            ("key", (None, self.key)),
            ("password", (None, password)),
            ("mediaPass", (None, self.media_password or "undefined")),
        ]
        reply: dict[str, Any] = requests.post(f"{self.address}/upload-2", files=parts, timeout=30).json()
        return reply


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service in a file, which overrides the one in memory."""
    with Service(new_storage(tmp_path / "service.db")) as service:
        yield service


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    """The address that it is served at."""
    with background(service) as address:
        yield address


@pytest.fixture
def client(service: Service, address: str) -> VendorsPythonClient:
    """A client of the account "vendor", with an API key such as the vendor's are."""
    return VendorsPythonClient(address, service.accounts.create("vendor", "ZFA5mAkxjVznvSsXOUxE"))


def test_saving_loading_and_merging(client: VendorsPythonClient) -> None:
    """What one program saved another one merges into and loads, from `message`."""
    assert client.save("Shopping_List", {"Apples": 8, "Oranges": 6}) == {
        "error": None,
        "message": "Entry saved",
        "version": client.load("Shopping_List")["version"],
    }
    assert client.merge("Shopping_List", {"Oranges": 10, "Bananas": 8})["message"] == "Entry saved"
    reply = client.load("Shopping_List")
    assert (reply["error"], reply["message"]) == (None, {"Apples": 8, "Oranges": 10, "Bananas": 8})
    assert client.merge("new", [1])["error"] is None
    assert client.load("new")["message"] == [1]


def test_listing_and_deleting(client: VendorsPythonClient) -> None:
    """The names come joined by commas, and what isn't there is `NoFile`."""
    for name in ("steve2", "steve1", "Steve"):
        client.save(name, 1)
    assert client.list("steve")["message"] == "steve1,steve2"
    assert client.list("")["message"] == "Steve,steve1,steve2"
    assert client.list("nobody")["message"] == ""
    assert client.delete("steve1")["error"] is None
    assert client.delete("steve1")["error"] == client.load("steve1")["error"] == "NoFile"


@pytest.mark.parametrize("none", [None, ""])
def test_passwords(service: Service, client: VendorsPythonClient, none: str | None) -> None:
    """The edit password is asked by save, merge and delete, the view password by load; null and empty are none."""
    client.save("file", 1)
    service.set_passwords("vendor", "file", edit="e", view="v")
    for act in (client.save, client.merge):
        assert act("file", 2, none)["error"] == act("file", 2, "v")["error"] == "Locked"
        assert act("file", 2, "e")["message"] == "Entry saved"
    assert client.load("file", none)["error"] == "Locked"
    assert client.load("file", "v")["message"] == 2
    assert client.list("")["message"] == "file"
    assert client.delete("file", none)["error"] == "Locked"
    assert client.delete("file", "e")["error"] is None


def test_the_browser_clients_default_passwords(service: Service, client: VendorsPythonClient) -> None:
    """Version 1.1 opens with `dataPass` and `mediaPass` what the account's defaults open, and nothing without them."""
    service.set_default_passwords("vendor", data="bingo", media="bobbo")
    for given in ((None, None), ("bobbo", "bingo")):
        stranger = VendorsBrowserClient(client.address, client.key, *given)
        assert stranger.post("/store/save", file="file", options=None, value=[1])["error"] == "Locked"
        assert stranger.upload(b"data", "a.png")["error"] == "Locked"
    browser = VendorsBrowserClient(client.address, client.key, "bingo", "bobbo")
    for password in (None, "of another file"):
        for options in (None, "merge", "delete"):
            reply = browser.post("/store/save", file="file", options=options, value=[1], password=password)
            assert reply["error"] is None
        assert browser.upload(b"data", "a.png", password or "undefined")["error"] is None
    assert browser.post("/store/load", file="", options="list")["error"] is None
    browser.post("/store/save", file="file", options=None, value=[1])
    service.set_passwords("vendor", "file", view="own")
    assert browser.post("/store/load", file="file", options=None)["message"] == [1]
    service.set_passwords("vendor", "file", edit="own")
    assert browser.post("/store/load", file="file", options=None)["error"] == "Locked"


def test_what_is_wrong_is_told_as_an_http_error(client: VendorsPythonClient) -> None:
    """A key that opens nothing is a status of its own, which this client reports by its reason."""
    client.key = "another key of 16"
    assert client.load("file") == {"error": "Http error", "message": "Unauthorized"}


def test_what_the_newest_python_client_sends(client: VendorsPythonClient) -> None:
    """A delete without a value, a list with a password, and an upload of which nothing but the key is a field."""
    client.save("file", 1)
    assert client.post("/store/load", file="", options="list", password="any")["message"] == "file"
    assert client.post("/store/save", file="file", options="delete", password=None)["error"] is None
    for mimetype in ("image/png", None):
        answer = requests.post(
            f"{client.address}/upload-2",
            data={"key": client.key, "password": None},
            files=[("file", ("a b.png", b"data", mimetype))],  # type: ignore[list-item]  # the stubs know no None
            timeout=30,
        )
        assert (answer.status_code, answer.json()["message"]) == (200, "File Uploaded")


def test_what_the_first_browser_client_sends(client: VendorsPythonClient) -> None:
    """Version 1.0 sends no default password; of a picture drawn in the page the file's name is "blob"."""
    parts: list[tuple[str, Any]] = [
        ("file", ("blob", b"data", "image/png")),
        ("key", (None, client.key)),
        ("password", (None, "undefined")),
    ]
    answer = requests.post(f"{client.address}/upload-2", files=parts, timeout=30)
    assert (answer.status_code, answer.json()["data"]["name"]) == (200, "blob")
    del parts[0]
    answer = requests.post(f"{client.address}/upload-2", files=[("file", (None, "")), *parts], timeout=30)
    assert (answer.status_code, answer.json()["error"]) == (400, "BadRequest")  # of a text that was no base64


def test_the_pace_of_its_own(clock: ManualClock) -> None:
    """Eight saves sent 3,001 ms apart all pass on the plan of the vendor's, however the network delays each."""
    with Service(new_storage(), clock=clock) as service, background(service) as address:
        client = VendorsPythonClient(address, service.accounts.create("vendor", plan="basic"))
        start = clock.seconds
        for number, delay in enumerate([0.0, 0.02, 0.001, 9.1, 6.1, 3.1, 0.1, 0.0]):
            clock.seconds = max(clock.seconds, start + number * 3.001 + delay)
            assert client.save("file", number)["error"] is None


def test_a_browser(client: VendorsPythonClient, address: str) -> None:
    """A page of any origin may post JSON, after the preflight that a browser makes, and reads the reply."""
    origin = {"Origin": "https://app.example"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    allowed = requests.options(f"{address}/store/save", headers={**origin, **asked}, timeout=30)
    assert allowed.status_code == 204
    assert allowed.headers["Access-Control-Allow-Origin"] == "*"
    assert "POST" in allowed.headers["Access-Control-Allow-Methods"]
    assert "content-type" in allowed.headers["Access-Control-Allow-Headers"].lower().split(", ")
    body = {"key": client.key, "file": "file", "options": None, "id": "_data", "value": {"a": 1}}
    saved = requests.post(f"{address}/store/save", json=body, headers=origin, timeout=30)
    assert saved.headers["Access-Control-Allow-Origin"] == "*"
    assert saved.json()["message"] == "Entry saved"
    refused = requests.post(f"{address}/store/save", json={**body, "key": "unknown"}, headers=origin, timeout=30)
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, "*")
