"""The callback client's errors: what can't be sent, what can't be understood, and what is wrong where it is written."""

from __future__ import annotations

import enum
import io
import math
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import BaseAdapter

from cloudstore_mapping.callback_client import BadValueError, CloudStore, OutcomeUnknownError, TransportError
from tests.vendor import Fault, Vendor

KEY = "ZFA5mAkxjVznvSsXOUxE"


@pytest.fixture
def cloud(vendor: Vendor) -> Iterator[CloudStore]:
    """Return a client of the service that sends once."""
    with CloudStore(KEY, vendor.address, retries=0) as opened:
        yield opened


SENDING = "Error sending data"
PARSING = "Error parsing data"


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (math.nan, BadValueError),
        (math.inf, BadValueError),
        ({1, 2}, TypeError),
        ({1: 2}, TypeError),
        (b"bytes", TypeError),
        (object(), TypeError),
        ("\ud800", BadValueError),
        (10**5000, BadValueError),
    ],
    ids=["nan", "inf", "set", "int keys", "bytes", "object", "surrogate", "long"],
)
def test_value_without_json_form(cloud: CloudStore, vendor: Vendor, value: Any, error: type[Exception]) -> None:
    """A value that JSON can't hold is an error of the reply, and nothing is sent."""
    for future in (cloud.save("a", value), cloud.merge("a", value)):
        reply = future.result()
        assert reply["error"] == SENDING
        assert type(reply["exception"]) is error
        assert reply["message"] == str(reply["exception"])
        assert reply["response"] is None
    assert vendor.requests == []


@pytest.mark.parametrize(
    "call",
    [
        lambda cloud: cloud.load("\ud800"),
        lambda cloud: cloud.save("a", 1, password="\ud800"),
        lambda cloud: cloud.upload(b"", "\ud800"),
        lambda cloud: cloud.upload("no base64!", "a.png"),
        lambda cloud: cloud.upload("\ud800", "a.txt"),
        lambda cloud: cloud.upload(b"", "a.png", "image/png\r\n"),
        lambda cloud: cloud.upload(1, "a.png"),
        lambda cloud: cloud.upload(_closed(), "a.png"),
    ],
)
def test_nothing_is_sent(cloud: CloudStore, vendor: Vendor, call: Callable[[CloudStore], Future[Any]]) -> None:
    """What can't be sent is an error of the reply, with the exception."""
    reply = call(cloud).result()
    assert reply["error"] == SENDING
    assert isinstance(reply["exception"], TypeError | ValueError)
    assert vendor.requests == []


def _closed() -> io.BytesIO:
    file = io.BytesIO()
    file.close()
    return file


@pytest.mark.parametrize(
    "call",
    [
        lambda cloud: cloud.load(1),
        lambda cloud: cloud.save(None, 1),
        lambda cloud: cloud.merge(b"a", 1),
        lambda cloud: cloud.delete(("a",)),
        lambda cloud: cloud.list(None),
        lambda cloud: cloud.upload(b"", Path("a")),
        lambda cloud: cloud.upload(b"", "a", 1),
        lambda cloud: cloud.load("a", password=1),
        lambda cloud: cloud.load("a", "no function"),
        lambda cloud: cloud.save("a", 1, {}),
        lambda cloud: type(cloud)(b"key"),
    ],
)
def test_wrong_kinds(cloud: CloudStore, vendor: Vendor, call: Callable[[Any], object]) -> None:
    """A key that is no text and a callback that can't be called are `TypeError` where they are written."""
    with pytest.raises(TypeError):
        call(cloud)
    assert vendor.requests == []


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ("ftp://host", "write it as https://host/path"),
        ("host/path", "write it as https://host/path"),
        ("https://host/?a", "write it as https://host/path"),
        ("https://[::1", "write it as https://host/path"),
        ("https://KEY@host/path", "give the API key as its own argument"),
        ("https://host/KEY@path", "give the API key as its own argument"),
    ],
)
def test_address_as_advised(server: str, message: str) -> None:
    """The message for a wrong address advises a form that is accepted."""
    with pytest.raises(ValueError, match=message):
        CloudStore(KEY, server)
    CloudStore(KEY, "https://host/path").close()


def test_enum_keys(cloud: CloudStore, vendor: Vendor) -> None:
    """A key of a kind of str is the text that it holds."""

    class Keys(str, enum.Enum):  # noqa: UP042 - its str() is another text, a StrEnum's isn't
        LIST = "Shopping_List"

    cloud.save(Keys.LIST, 1).result()
    assert vendor.files == {"Shopping_List": 1}


HTML = b"<html>Sign in</html>"


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (Fault(500, HTML), "Http error", "Internal Server Error"),
        (Fault(503, HTML), "Http error", "Service Unavailable"),
        (Fault(302, b"", {"Location": "/elsewhere"}), "Http error", "Found"),
        (Fault(401, b'{"error":"BadKey","message":"Unknown key."}'), "BadKey", "Unknown key."),
        (Fault(200, b'{"error":"Brandnew","message":{"a":1}}'), "Brandnew", '{"a":1}'),
        (Fault(200, HTML), PARSING, "not CloudStore's"),
        (Fault(200, b"{}"), PARSING, "not CloudStore's"),
        (Fault(drop="before"), SENDING, ""),
        (Fault(drop="after"), SENDING, ""),
        (Fault(200, b"{", {"Content-Length": "9"}), SENDING, ""),
    ],
)
def test_faults(cloud: CloudStore, vendor: Vendor, fault: Fault, error: str, message: str) -> None:
    """Every fault is a reply: what was said, with its response, or the exception."""
    vendor.files.update({"a": 1})
    calls: list[Callable[[], Future[dict[str, Any]]]] = [
        lambda: cloud.load("a"),
        lambda: cloud.save("a", 1),
        lambda: cloud.merge("a", 1),
        lambda: cloud.list(),
        lambda: cloud.delete("a"),
        lambda: cloud.upload(b"", "a.png"),
    ]
    for call in calls:
        vendor.faults.append(fault)
        reply = call().result()
        assert reply["error"] == error
        assert message in reply["message"]
        assert "data" not in reply
        assert (reply["response"] is not None) is (error != SENDING)
        assert ("exception" in reply) is (error in (SENDING, PARSING))
        if reply["response"] is not None:
            assert reply["response"].content == fault.body
        assert KEY not in f"{reply['message']} {reply.get('exception')!r}"


def test_answer_that_holds_no_names(cloud: CloudStore, vendor: Vendor) -> None:
    """An answer to a list without names can't be parsed."""
    vendor.faults.append(Fault(200, b'{"error":null,"message":5}'))
    reply = cloud.list().result()
    assert reply["error"] == PARSING
    assert reply["response"].status_code == 200


def test_exceptions_of_the_way(cloud: CloudStore, vendor: Vendor) -> None:
    """The exception tells a write that may have been done from one that never left."""
    vendor.faults.append(Fault(drop="after"))
    assert isinstance(cloud.save("a", 1).result()["exception"], OutcomeUnknownError)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}/cloudstore"
    with CloudStore(KEY, address, retries=0) as nowhere:
        exception = nowhere.save("a", 1).result()["exception"]
    assert type(exception) is TransportError
    assert exception.sent is False


class _Exits(BaseAdapter):
    """Ends the thread where a request would be sent."""

    def send(self, *_: Any, **__: Any) -> Any:
        raise SystemExit

    def close(self) -> None:
        pass


def test_thread_that_is_ended(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose thread is ended on the way leaves nobody waiting: the future has the exception."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with requests.Session() as session:
        session.mount("http://", _Exits())
        with CloudStore(KEY, vendor.address, session=session) as cloud, pytest.raises(SystemExit):
            cloud.load("a").result(30)
