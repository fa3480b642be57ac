"""The callback client: what the original documentation promises, on a service that speaks only what it documents."""

from __future__ import annotations

import base64
import importlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import requests

import cloudstore_mapping as cm
from cloudstore_mapping import callback_client
from cloudstore_mapping.callback_client import CloudStore, pacer_of
from cloudstore_mapping.client.mapping import files_of
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.storages import new_storage
from tests.vendor import Vendor

KEY = "ZFA5mAkxjVznvSsXOUxE"


@pytest.fixture
def cloud(vendor: Vendor) -> Iterator[CloudStore]:
    """Return a client of the service that sends once."""
    with CloudStore(KEY, vendor.address, retries=0) as opened:
        yield opened


def answered(future: Future[dict[str, Any]]) -> dict[str, Any]:
    """Return the reply without the response."""
    reply = future.result(30)
    return {name: value for name, value in reply.items() if name != "response"}


def test_documented_import() -> None:
    """The documentation's import gives the class, and nothing else; the file is a copy of the package's."""
    documented = importlib.import_module("CloudStore")
    assert documented.__all__ == ["CloudStore"]
    assert Path(documented.__file__ or "").read_bytes() == Path(callback_client.__file__).read_bytes()
    assert cm.CloudStore is CloudStore


def test_copies_share_lock_and_pace(vendor: Vendor) -> None:
    """The package and a copy of the file, in one process, have one lock, and one pacer for each server."""
    documented = importlib.import_module("CloudStore")
    assert documented is not callback_client
    assert documented.CloudStore.lock is CloudStore.lock
    assert documented.pacer_of(vendor.address) is pacer_of(vendor.address)
    with (
        documented.CloudStore(KEY, vendor.address) as copy,
        CloudStore(KEY, vendor.address + "/") as own,
        cm.CloudStoreMapping[Any](KEY, vendor.address) as store,
    ):
        assert copy._pacer is own._pacer is files_of(store).client._pacer


def test_saving(cloud: CloudStore, vendor: Vendor) -> None:
    """A save hands its callback the service's words, without an error."""
    replies: list[dict[str, Any]] = []
    cloud.save("Shopping_List", {"Apples": 8, "Oranges": 6}, replies.append)
    cloud.close()
    (reply,) = replies
    assert isinstance(reply.pop("response"), requests.Response)
    assert reply == {"error": None, "message": "Entry saved"}
    assert vendor.files == {"Shopping_List": {"Apples": 8, "Oranges": 6}}


def test_names_are_sent_unchanged(cloud: CloudStore, vendor: Vendor) -> None:
    """A key is the file's name on the wire, whatever characters it has, and nothing is asked first."""
    keys = ["users/ann", "a,b", "a\tb", "..", "100%", "%2C", "%", "", "\0", "😀"]
    for key in keys:
        cloud.save(key, key).result()
        assert answered(cloud.load(key))["message"] == key
    assert [body["file"] for body in vendor.bodies] == [key for key in keys for _ in range(2)]
    assert [*vendor.files] == keys


def test_loading(cloud: CloudStore, vendor: Vendor) -> None:
    """A load hands its callback the value, as `message` and as `data`, and the response that it came with."""
    vendor.files["Shopping_List"] = {"Apples": 8}
    reply = cloud.load("Shopping_List").result()
    assert reply["message"] == reply["data"] == {"Apples": 8}
    assert reply["message"] is not reply["data"]
    assert reply["error"] is None
    assert reply["response"].status_code == 200
    assert reply["response"].json() == {"error": None, "message": {"Apples": 8}}
    assert sorted(reply) == ["data", "error", "message", "response"]


def test_merging_by_a_second_app(cloud: CloudStore, vendor: Vendor) -> None:
    """One app's merge, and the load that its callback makes, see and keep what another app has saved."""
    cloud.save("Shopping_List", {"Apples": 8, "Oranges": 6}).result()
    loads: list[Future[dict[str, Any]]] = []
    with CloudStore(KEY, vendor.address) as second:
        change = {"Apples": 8, "Oranges": 10, "Bananas": 8}
        second.merge("Shopping_List", change, lambda _: loads.append(second.load("Shopping_List")))
    assert loads[0].result()["data"] == {"Apples": 8, "Oranges": 10, "Bananas": 8}


def test_merging_into_nothing(cloud: CloudStore, vendor: Vendor) -> None:
    """A merge makes what isn't there."""
    assert answered(cloud.merge("new", {"a": [1]})) == {"error": None, "message": "Entry saved"}
    assert vendor.files == {"new": {"a": [1]}}


def test_listing(cloud: CloudStore, vendor: Vendor) -> None:
    """A list is the comma-joined names, and the names; the filter minds upper and lower case, and may be left out."""
    vendor.files.update({"steve1": 1, "steve2": 2, "Steve": 3})
    assert answered(cloud.list("steve")) == {"error": None, "message": "steve1,steve2", "data": ["steve1", "steve2"]}
    assert answered(cloud.list())["data"] == ["steve1", "steve2", "Steve"]
    assert answered(cloud.list("nobody")) == {"error": None, "message": "", "data": []}


def test_deleting(cloud: CloudStore, vendor: Vendor) -> None:
    """The second delete of a key says `NoFile`, with a sentence."""
    vendor.files["Shopping_List"] = 1
    assert answered(cloud.delete("Shopping_List")) == {"error": None, "message": "Entry deleted"}
    assert answered(cloud.delete("Shopping_List")) == {"error": "NoFile", "message": "File does not exist"}
    assert answered(cloud.load("Shopping_List")) == {"error": "NoFile", "message": "File does not exist"}


@pytest.mark.parametrize(
    "value", [None, True, False, 0, -1, 10**40, 1.5, "", "text", "\0é😀", [], {}, [1, [None]], (1, 2)]
)
def test_any_value(cloud: CloudStore, value: Any) -> None:
    """A value is any JSON, and comes back as it was."""
    cloud.save("key", value).result()
    loaded = cloud.load("key").result()
    assert loaded["data"] == loaded["message"] == (list(value) if isinstance(value, tuple) else value)


def test_passwords(vendor: Vendor) -> None:
    """A locked file wants its password, from the call or else the default one of data or of media."""
    vendor.files["a"] = 1
    vendor.view_passwords["a"] = "view"
    vendor.edit_passwords.update({"a": "edit", "a.png": "media"})
    with CloudStore(KEY, vendor.address) as bare:
        for future in (
            bare.load("a"),
            bare.save("a", 2),
            bare.merge("a", 2),
            bare.delete("a"),
            bare.upload(b"", "a.png"),
        ):
            assert answered(future) == {"error": "Locked", "message": "Wrong password"}
        assert answered(bare.load("a", password="view"))["data"] == 1
        assert answered(bare.save("a", 2, None, "edit"))["error"] is None
        assert answered(bare.upload(b"", "a.png", password="media"))["error"] is None
    with CloudStore(KEY, vendor.address, password="edit", media_password="media") as set_up:
        assert answered(set_up.load("a"))["error"] == "Locked"
        assert answered(set_up.load("a", password="view"))["data"] == 2
        assert answered(set_up.save("a", 3))["error"] is None
        assert answered(set_up.save("a", 3, password=""))["error"] == "Locked"
        assert answered(set_up.upload(b"", "a.png"))["error"] is None
        assert answered(set_up.upload(b"", "a.png", password="edit"))["error"] == "Locked"


def test_default_passwords_of_the_account(vendor: Vendor) -> None:
    """`options` has the account's default passwords, sent beside each call's own; None is none."""
    options = {"dataPass": "bingo", "mediaPass": "bobbo"}
    with CloudStore(KEY, vendor.address, options, password="own") as cloud:
        for future in (cloud.save("a", 1), cloud.load("a"), cloud.merge("a", 1), cloud.list(), cloud.delete("a")):
            assert future.result()["error"] is None
        cloud.upload(b"", "a.png").result()
    assert [request.headers["Content-Type"].startswith("multipart") for request in vendor.requests].count(True) == 1
    for request in vendor.requests:
        if request.body.startswith(b"{"):
            assert request.body.endswith(b',"password":"own","dataPass":"bingo"}')
    assert vendor.media["a.png"].fields == {"key": KEY, "password": "", "mediaPass": "bobbo"}
    count = len(vendor.requests)
    for none in (None, {}, {"dataPass": None, "mediaPass": None}):
        with CloudStore(KEY, vendor.address, none) as cloud:
            cloud.load("a").result()
            cloud.upload(b"", "a.png").result()
            assert vendor.media["a.png"].fields == {"key": KEY, "password": ""}
    assert b"dataPass" not in b"".join(request.body for request in vendor.requests[count:])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dataPassword": "p4ss"}, ValueError, "options has no 'dataPassword'; it may hold dataPass and mediaPass"),
        ({"dataPass": ["p4ss"]}, ValueError, "dataPass must be a text, or None, not of type list"),
        ("p4ss", TypeError, "options must be a mapping with dataPass and mediaPass, or None, not str"),
        (["p4ss"], TypeError, "options must be a mapping with dataPass and mediaPass, or None, not list"),
    ],
)
def test_wrong_options(options: Any, error: type[Exception], message: str) -> None:
    """Options other than a mapping with the two names and texts are refused, and no error shows a password."""
    with pytest.raises(error, match=message) as caught:
        CloudStore(KEY, None, options)
    assert "p4ss" not in str(caught.value)


def test_default_passwords_at_our_service() -> None:
    """The account's default passwords open at our service the files that have no password of their own."""
    with Service(new_storage()) as service, background(service) as address:
        key = service.accounts.create("owner")
        service.set_default_passwords("owner", data="bingo", media="bobbo")
        with CloudStore(key, address, {"dataPass": "bingo", "mediaPass": "bobbo"}) as cloud:
            assert answered(cloud.save("a", 1))["error"] is None
            assert answered(cloud.load("a"))["data"] == 1
            assert answered(cloud.upload(b"", "a.png"))["error"] is None
        with CloudStore(key, address) as cloud:
            assert answered(cloud.save("a", 1))["error"] == "Locked"
            assert answered(cloud.upload(b"", "a.png"))["error"] == "Locked"


PNG = b"\x89PNG\r\n\x1a\n\0\xff"


@pytest.mark.parametrize(
    "make",
    [
        lambda path: PNG,
        lambda path: base64.b64encode(PNG).decode(),
        lambda path: "data:image/png;base64," + base64.b64encode(PNG).decode(),
        lambda path: io.BytesIO(PNG),
        lambda path: path.open("rb"),
        lambda path: path.open("r+b"),
        lambda path: path.open(encoding="latin-1"),
        lambda path: io.StringIO(base64.b64encode(PNG).decode()),
    ],
    ids=["bytes", "base64", "data URL", "BytesIO", "file", "file to write", "text file", "StringIO"],
)
def test_uploading(cloud: CloudStore, vendor: Vendor, tmp_path: Path, make: Callable[[Path], Any]) -> None:
    """An image goes up as bytes, base64 or an open file, and the reply says where it is."""
    path = tmp_path / "jazz3.jpg"
    path.write_bytes(PNG)
    data = make(path)
    reply = answered(cloud.upload(data, "jazz3.jpg", "image/jpg"))
    if hasattr(data, "close"):
        data.close()
    facts = reply.pop("data")
    assert reply == {"error": None, "message": "File Uploaded"}
    assert facts == {"name": "jazz3.jpg", "folder": "0" * 32, "id": facts["id"], "mimetype": "image/jpg", "size": 10}
    assert vendor.media["jazz3.jpg"] == ("image/jpg", PNG, {"key": KEY, "password": ""})


def test_uploading_text(cloud: CloudStore, vendor: Vendor) -> None:
    """Text of the documented type `text` is stored as UTF-8."""
    assert answered(cloud.upload("h\u00e9", "a.png", "text"))["data"]["size"] == 3
    assert vendor.media["a.png"][:2] == ("text/plain", "hé".encode())


def test_file_closed_at_once(cloud: CloudStore, vendor: Vendor, tmp_path: Path) -> None:
    """A file that was opened for reading may be closed as soon as the call has returned."""
    path = tmp_path / "a.bin"
    path.write_bytes(PNG * 100_000)
    with path.open("rb") as file:
        future = cloud.upload(file, "a.bin")
    assert answered(future)["data"]["size"] == len(PNG) * 100_000


def test_bytes_of_requests(cloud: CloudStore, vendor: Vendor) -> None:
    """Every call posts what the vendor's own client posts."""
    cloud.save("a", {"x": 1}).result()
    cloud.merge("a", {"x": 1}, password="p").result()
    cloud.load("a").result()
    cloud.list("a").result()
    cloud.delete("a").result()
    start = b'{"key":"ZFA5mAkxjVznvSsXOUxE","file":"a","options":'
    assert [(request.path, request.body) for request in vendor.requests] == [
        ("/cloudstore/store/save", start + b'null,"id":"_data","value":{"x":1},"password":null}'),
        ("/cloudstore/store/save", start + b'"merge","id":"_data","value":{"x":1},"password":"p"}'),
        ("/cloudstore/store/load", start + b'null,"id":"_data","password":null}'),
        ("/cloudstore/store/load", start + b'"list","id":"_data","password":null}'),
        ("/cloudstore/store/save", start + b'"delete","id":"_data","password":null}'),
    ]


def test_value_is_taken_at_once(cloud: CloudStore, vendor: Vendor) -> None:
    """What is saved is the value as it was at the call, however it changes afterwards."""
    value = {"a": [1]}
    with vendor.lock:
        future = cloud.save("key", value)
        value["a"].append(2)
    future.result()
    assert vendor.files == {"key": {"a": [1]}}


def test_server_of_the_environment(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server the environment's is used, else the vendor's."""
    monkeypatch.delenv("CLOUDSTORE_SERVER", raising=False)
    assert repr(CloudStore(KEY)) == "<CloudStore at https://droidscript.cloud/cloudstore>"
    monkeypatch.setenv("CLOUDSTORE_SERVER", vendor.address)
    with CloudStore(KEY) as cloud:
        assert cloud.list().result()["error"] is None
        assert repr(cloud) == f"<CloudStore at {vendor.address}>"


def test_servers_that_are_refused() -> None:
    """Plain http to another machine wants `insecure`, and no server's address holds a key."""
    with pytest.raises(ValueError, match="insecure"):
        CloudStore(KEY, "http://example.org/cloudstore")
    assert repr(CloudStore(KEY, "http://example.org/x", insecure=True)) == "<CloudStore at http://example.org/x>"
    with pytest.raises(ValueError, match="its own argument"):
        CloudStore(KEY, f"https://{KEY}@example.org/cloudstore")


def test_users_session(vendor: Vendor) -> None:
    """A session that is passed in is used, and left open."""
    with requests.Session() as session:
        session.headers["X-Mine"] = "yes"
        with CloudStore(KEY, vendor.address, session=session) as cloud:
            cloud.list().result()
        with CloudStore(KEY, vendor.address, session=session) as cloud:
            cloud.list().result()
    assert [request.headers["X-Mine"] for request in vendor.requests] == ["yes", "yes"]
    assert vendor.accepted == 1
