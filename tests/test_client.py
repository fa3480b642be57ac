"""The client's operations, on a service that speaks the vendor's documented wire and nothing more."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest
from msgspec import UNSET, Raw

from cloudstore_mapping.client.files import Client, described, listed
from cloudstore_mapping.client.transport import HTTPTransport, Sendable
from cloudstore_mapping.errors import (
    REPLY_ERRORS,
    CloudStoreError,
    LockedError,
    NoFileError,
    ProtocolError,
    TooOftenError,
    UnavailableError,
)
from cloudstore_mapping.wire import Reply, decode_value
from tests.vendor import Vendor

KEY = "ZFA5mAkxjVznvSsXOUxE"


@pytest.fixture
def client(vendor: Vendor) -> Iterator[Client]:
    """Return a client of the service."""
    with Client(HTTPTransport(vendor.address), KEY) as opened:
        yield opened


def load(client: Client, name: str, password: str | None = None) -> Raw:
    """Return the value that is loaded."""
    loaded = client.load(name, password)
    assert loaded is not None
    return loaded.value


def bytes_sent(vendor: Vendor) -> list[tuple[str, bytes]]:
    """Return what came at the service, each request's path and body."""
    return [(request.path, request.body) for request in vendor.requests]


def test_bytes_of_requests(client: Client, vendor: Vendor) -> None:
    """Each operation posts the fields of the vendor's clients, in their order."""
    vendor.files["a"] = 1
    client.save("a", Raw(b'{"x": 1.0}'))
    client.save("a", Raw(b"null"), "pass")
    client.merge("a", Raw(b'{"y":2}'), "pass")
    client.load("a")
    client.load("a", "view")
    client.list("a")
    client.delete("a", "pass")
    start = b'{"key":"' + KEY.encode() + b'","file":"a","options":'
    assert bytes_sent(vendor) == [
        ("/cloudstore/store/save", start + b'null,"id":"_data","value":{"x": 1.0},"password":null}'),
        ("/cloudstore/store/save", start + b'null,"id":"_data","value":null,"password":"pass"}'),
        ("/cloudstore/store/save", start + b'"merge","id":"_data","value":{"y":2},"password":"pass"}'),
        ("/cloudstore/store/load", start + b'null,"id":"_data","password":null}'),
        ("/cloudstore/store/load", start + b'null,"id":"_data","password":"view"}'),
        ("/cloudstore/store/load", start + b'"list","id":"_data","password":null}'),
        ("/cloudstore/store/save", start + b'"delete","id":"_data","password":"pass"}'),
    ]
    assert {request.method for request in vendor.requests} == {"POST"}
    assert {request.headers["Content-Type"] for request in vendor.requests} == {"application/json; charset=UTF-8"}


@pytest.mark.parametrize("text", [b"null", b"0", b"false", b'""', b"[]", b"{}", b'{"a":[1,2.5,"\\u0000"]}', b"1" * 400])
def test_values_pass_through(client: Client, text: bytes) -> None:
    """What was saved is loaded, also where the service sends it in `message` alone."""
    client.save("a", Raw(text))
    assert decode_value(load(client, "a")) == decode_value(text)


@pytest.mark.parametrize("name", ["", " ", ",", "a/b", "../x", "%2e", "é", "😀", "\0", '"', "x" * 10_000])
def test_any_name(client: Client, vendor: Vendor, name: str) -> None:
    """A name is any text."""
    client.save(name, Raw(b"1"))
    assert vendor.files == {name: 1}
    assert bytes(load(client, name)) == b"1"


def test_list(client: Client, vendor: Vendor) -> None:
    """A list is the names that hold the text, none for the empty answer."""
    assert client.list() == []
    vendor.files.update({"steve1": 1, "steve2": 2, "Steve3": 3})
    assert client.list("steve") == ["steve1", "steve2"]
    assert client.list() == ["steve1", "steve2", "Steve3"]
    assert client.list("none") == []


def reply(message: bytes = b'""', data: bytes | None = None) -> Reply:
    """Return an answer that says all went well."""
    return Reply(message=Raw(message), data=UNSET if data is None else Raw(data))


def test_list_prefers_the_array() -> None:
    """Names with a comma are whole where the service sends an array as well."""
    assert listed(reply(b'"a,b,c"', b'["a,b","c"]')) == ["a,b", "c"]
    assert listed(reply(b'""', b"[]")) == []


@pytest.mark.parametrize("answer", [reply(b"null"), reply(b"1"), reply(b'""', b"[1]"), reply(b'""', b"{}")])
def test_list_of_something_else(answer: Reply) -> None:
    """An answer to a list without names is `ProtocolError`."""
    with pytest.raises(ProtocolError):
        listed(answer)


@pytest.mark.parametrize("answer", [reply(), reply(b'""', b"null"), reply(b'""', b"[]")])
def test_upload_that_is_not_described(answer: Reply) -> None:
    """An answer to an upload without an object is `ProtocolError`."""
    with pytest.raises(ProtocolError):
        described(answer)


def test_upload(client: Client, vendor: Vendor) -> None:
    """An upload says where the file is now."""
    facts = client.upload("pixel.png", b"\x89PNG", "image/png", "media")
    assert facts["name"] == "pixel.png"
    assert facts["size"] == 4
    assert vendor.media["pixel.png"].data == b"\x89PNG"
    assert vendor.media["pixel.png"].fields == {"key": KEY, "password": "media"}


def test_absent(client: Client) -> None:
    """What isn't there is `NoFileError`, a `KeyError` of the key, with the facts of the reply."""
    for call in (client.load, client.delete):
        with pytest.raises(NoFileError) as caught:
            call("a%2Cb", key="a,b")
        error = caught.value
        assert isinstance(error, KeyError)
        assert error.args == ("a,b",)
        assert (error.key, error.error, error.status) == ("a,b", "NoFile", 200)
        assert "'a,b'" in str(error)
        assert error.response.json()["error"] == "NoFile"


def test_locked(client: Client, vendor: Vendor) -> None:
    """A missing or wrong password is `LockedError`, a `PermissionError`; the right one opens."""
    vendor.files["a"] = 1
    vendor.view_passwords["a"] = "view"
    vendor.edit_passwords["a"] = "edit"
    for password in (None, "", "wrong"):
        with pytest.raises(LockedError) as caught:
            client.load("a", password)
        assert caught.value.key == "a"
        with pytest.raises(LockedError):
            client.save("a", Raw(b"2"), password)
        with pytest.raises(LockedError):
            client.delete("a", password)
    assert bytes(load(client, "a", "view")) == b"1"
    client.merge("a", Raw(b"3"), "edit")
    assert vendor.files["a"] == 3


class _Answer:
    """A transport with one answer to all."""

    def __init__(self, answer: Reply) -> None:
        self._answer = answer
        self.requests: list[Sendable] = []

    def send(self, request: Sendable) -> Reply:
        self.requests.append(request)
        return self._answer

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("name", "row"), REPLY_ERRORS.items())
def test_each_error_name(name: str, row: tuple[int, type[CloudStoreError]]) -> None:
    """Each name that a service replies with is the error of the table, with key, name, status and a sentence."""
    status, kind = row
    response = object()
    answer = Reply(error=name, message=Raw(b'"The reason."'), status=status, retry_after=40.0, response=response)
    with pytest.raises(kind) as caught:
        Client(_Answer(answer), KEY).save("a", Raw(b"1"))
    error = caught.value
    assert type(error) is kind
    assert (error.key, error.error, error.status) == ("a", name, status)
    assert error.response is response
    assert "'a'" in str(error)
    assert str(error) == error.message
    if isinstance(error, TooOftenError | UnavailableError):
        assert error.retry_after == 40.0
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("status", "advice"), [(301, "redirects"), (307, "redirects"), (401, "API key"), (403, "API key"), (404, "address")]
)
def test_advice(status: int, advice: str) -> None:
    """A status that proxies and web servers answer with gets a sentence that says what to do."""
    answer = Reply(error="Http error", message=Raw(b'"Reason"'), status=status)
    with pytest.raises(ProtocolError, match=advice) as caught:
        Client(_Answer(answer), KEY).load("a")
    assert f"{status} Reason" in str(caught.value)


def test_unknown_error_name() -> None:
    """A name that isn't known is `ProtocolError`, and never taken for success."""
    with pytest.raises(ProtocolError, match="Brandnew") as caught:
        Client(_Answer(Reply(error="Brandnew", message=Raw(b'"why"'))), KEY).load("a")
    assert caught.value.error == "Brandnew"


def test_error_of_a_list_has_no_key() -> None:
    """A list is about no key, so its error has none."""
    with pytest.raises(ProtocolError) as caught:
        Client(_Answer(Reply(error="ServerError", message=Raw(b'"why"'), status=500)), KEY).list("filter")
    assert caught.value.key is None
    assert "filter" not in str(caught.value)
