"""HTTP and the extensions: the header that names them, the path of batches, and bytes that are counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from msgspec import Raw

from cloudstore_mapping.client.files import Client, Loaded
from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.errors import ChangedError, NoFileError, TransportError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from cloudstore_mapping.wire import EXTENSIONS, Batch, Request, Upload, decode_replies
from tests.storages import new_storage
from tests.vendor import Fault, Vendor

KEY = "S3cretKey"
LOAD = Request(api_key=KEY, name="a")


@pytest.fixture
def vendor(vendor: Vendor) -> Vendor:
    """Return a running service that holds one file."""
    vendor.files["a"] = 1
    return vendor


@pytest.fixture(params=["own", "session"])
def transport(request: pytest.FixtureRequest, vendor: Vendor) -> Iterator[HTTPTransport]:
    """Return a way to the service on connections of our own, and on a user's session."""
    with requests.Session() as session:
        opened = HTTPTransport(vendor.address, session=None if request.param == "own" else session)
        yield opened
        opened.close()


@pytest.mark.parametrize(
    ("header", "extensions"),
    [
        (None, set()),
        ("", set()),
        ("version,once", {"version", "once"}),
        (" version , once,,", {"version", "once"}),
        ("teleport,brief,VERSION", {"brief"}),
    ],
)
@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b'{"error":null,"message":""}'), (429, b'{"error":"TooOften","message":""}'), (500, b"<html>")],
)
def test_extensions(
    transport: HTTPTransport, vendor: Vendor, header: str | None, extensions: set[str], status: int, body: bytes
) -> None:
    """A reply says which extensions its header names, of those that there are; none without the header."""
    headers = {} if header is None else {"cloudstore-extensions": header}
    vendor.faults.append(Fault(status, body, headers))
    assert transport.send(LOAD).extensions == extensions


def test_extensions_do_not_build_the_response(vendor: Vendor) -> None:
    """What makes a reply's response complete takes time, and waits until somebody looks at it."""
    transport = HTTPTransport(vendor.address)
    assert "headers" not in vars(transport.send(LOAD).response)
    transport.close()


def test_bytes_are_counted(transport: HTTPTransport, vendor: Vendor) -> None:
    """The transport counts the bodies of answered requests and of their answers, those of a failed one not."""
    assert (transport.sent_bytes, transport.received_bytes) == (0, 0)
    replies = [transport.send(LOAD)]
    replies.append(transport.send(Upload(api_key=KEY, name="a", content_type="a/b", data=b"data")))
    vendor.faults.append(Fault(500, b"<html>"))
    replies.append(transport.send(LOAD))
    vendor.faults.append(Fault(drop="after"))
    with pytest.raises(TransportError):
        transport.send(LOAD)
    assert transport.sent_bytes == sum(len(request.body) for request in vendor.requests[:3])
    assert transport.received_bytes == sum(len(reply.response.content) for reply in replies)


def test_a_batch_over_http(transport: HTTPTransport, vendor: Vendor) -> None:
    """A batch is posted to a path of its own, as JSON."""
    vendor.faults.append(Fault(200, b'{"error":null,"message":"","data":[{"error":"NoFile","message":""}]}'))
    reply = transport.send(Batch(api_key=KEY, requests=[Request(name="a")]))
    assert [each.error for each in decode_replies(reply.content)] == ["NoFile"]
    assert vendor.requests[-1].path == "/cloudstore/store/batch"
    assert vendor.requests[-1].headers["Content-Type"] == "application/json; charset=UTF-8"


def test_our_service_has_all(tmp_path: Path) -> None:
    """Our own service names all extensions, in errors as well, and a client that has seen them uses them."""
    with Service(new_storage(tmp_path / "service.db")) as service, background(service) as address:
        api_key = service.accounts.create("tests")
        with Client(HTTPTransport(address), api_key) as client:
            with pytest.raises(NoFileError):
                client.load("a")
            assert client.extensions == frozenset(EXTENSIONS)
            version = client.save("a", Raw(b"1"), if_version=None)
            assert client.load("a", if_not_version=version) is None
            assert client.load("a") == Loaded(Raw(b"1"), version)
            with pytest.raises(ChangedError) as caught:
                client.delete("a", if_version="another")
            assert caught.value.version == version
            assert client.stat("a")
            replies = client.batch([Request(name="a"), Request(name="b"), Request(name="b", value=Raw(b"2"))])
            assert [reply.error for reply in replies] == [None, "NoFile", None]
            assert list(client.pages(limit=1)) == [["a"], ["b"]]
            assert client.list("b", prefix=True) == ["b"]
            stats = client.stats
    assert stats.requests == {"load": 3, "save": 1, "delete": 1, "stat": 1, "batch": 1, "list": 3}
    assert stats.retries == 0
    assert min(stats.bytes_sent, stats.bytes_received) > 100
