"""HTTP transport: requests, replies, and the environment's proxies."""

from __future__ import annotations

import gzip
import os
import socket
import subprocess
import sys
import traceback
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from msgspec import Raw

from cloudstore_mapping.client.files import Client, Loaded
from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.errors import (
    CloudStoreError,
    NoFileError,
    OutcomeUnknownError,
    ProtocolError,
    TooOftenError,
    TransportError,
    UnavailableError,
)
from cloudstore_mapping.wire import Request
from tests.support.matrix import spread
from tests.vendor import Fault, Vendor, serve_vendor

KEY = "S3cretKey"
LOAD = Request(api_key=KEY, name="a")
#: States of a connection, as the kernel writes them in /proc/net/tcp.
CONNECTED, LISTENING = "01", "0A"


@pytest.fixture
def vendor(vendor: Vendor) -> Vendor:
    """Return a running service that holds one file."""
    vendor.files["a"] = 1
    return vendor


@pytest.fixture
def transport(vendor: Vendor, session: requests.Session | None) -> Iterator[HTTPTransport]:
    """Return a way to the service."""
    opened = HTTPTransport(vendor.address, session=session, max_reply=10_000)
    yield opened
    opened.close()


@pytest.fixture
def client(transport: HTTPTransport) -> Client:
    """Return a client that waits in no time."""
    return Client(transport, KEY, sleep=lambda _: None)


def test_close_ends_the_connections(vendor: Vendor) -> None:
    """Once it is closed no socket to the service is open any more; used again, it opens a new one."""
    transport = HTTPTransport(vendor.address)
    before = sockets()
    for _ in range(2):
        transport.send(LOAD)
        assert sockets() > before
        transport.close()
        assert sockets() == before


def sockets() -> int:
    """Return how many of this process's sockets are the client's end of a connection."""
    ends = {file.readlink().name for file in Path("/proc/self/fd").iterdir() if file.is_symlink()}
    with Path("/proc/net/tcp").open() as table:
        next(table)
        rows = [line.split() for line in table]
    servers = {row[1] for row in rows if row[3] == LISTENING}
    return sum(f"socket:[{row[9]}]" in ends for row in rows if row[3] == CONNECTED and row[2] in servers)


def test_reply_holds_the_response(transport: HTTPTransport, vendor: Vendor) -> None:
    """A reply's response is a `requests.Response` that was read, and has all that such a one has."""
    response = transport.send(LOAD).response
    assert isinstance(response, requests.Response)
    assert response.status_code == 200
    assert response.content == b'{"error": null, "message": 1}'
    assert response.json() == {"error": None, "message": 1}
    assert response.text == '{"error": null, "message": 1}'
    assert b"".join(response.iter_content(4)) == response.content
    assert response.ok
    assert bool(response)
    assert response.headers["content-type"] == "application/json"
    assert response.url == f"{vendor.address}/store/load"
    assert response.request.method == "POST"
    assert response.reason == "OK"
    assert repr(response) == "<Response [200]>"
    assert not hasattr(response, "nonsense")
    response.raise_for_status()
    response.close()


def test_connections_stay_open(transport: HTTPTransport, vendor: Vendor) -> None:
    """One connection serves one request after the other."""
    ports = {transport.send(LOAD).response.raw.connection for _ in range(3)}
    assert ports == {None}
    assert len(vendor.requests) == 3
    assert vendor.accepted == 1


def test_close_leaves_a_users_session_open(vendor: Vendor) -> None:
    """`close` ends connections of ours, and none of a session that was passed in; ours may be opened again."""
    with requests.Session() as session:
        transport = HTTPTransport(vendor.address, session=session)
        transport.send(LOAD)
        transport.close()
        session.post(f"{vendor.address}/store/load", json={"key": "k", "file": "a", "options": None})
    assert vendor.accepted == 1


def test_session_hooks_and_headers_hold(vendor: Vendor) -> None:
    """What a user has set on the session is in force."""
    seen: list[int] = []
    with requests.Session() as session:
        session.headers["X-Mine"] = "yes"
        session.hooks["response"].append(lambda response, **_: seen.append(len(response.content)))
        reply = HTTPTransport(vendor.address, session=session).send(LOAD)
    assert bytes(reply.message) == b"1"
    assert seen == [len(reply.response.content)]
    assert vendor.requests[0].headers["X-Mine"] == "yes"


WRITES = {
    "save": lambda client: client.save("a", Raw(b"2")),
    "merge": lambda client: client.merge("a", Raw(b"2")),
    "delete": lambda client: client.delete("a"),
    "upload": lambda client: client.upload("a.txt", b"2", "text/plain"),
}
OPERATIONS: dict[str, Any] = {"load": lambda client: client.load("a"), "list": lambda client: client.list(), **WRITES}

HTML = b"<html><form>Sign in</form></html>"
DROPPED = Fault(drop="before")
DROPPED_AFTER = Fault(drop="after")
TRUNCATED = Fault(200, b'{"error":null,', {"Content-Length": "100"})

#: What comes in place of the answer, the error of a read, the error of a write, and whether it is tried again.
FAULTS: dict[str, tuple[Fault, type[CloudStoreError], type[CloudStoreError], bool]] = {
    "dropped": (DROPPED, TransportError, OutcomeUnknownError, True),
    "dropped after": (DROPPED_AFTER, TransportError, OutcomeUnknownError, True),
    "truncated": (TRUNCATED, TransportError, OutcomeUnknownError, True),
    "429": (Fault(429, b"", {"Retry-After": "2"}), TooOftenError, TooOftenError, True),
    "429 own": (Fault(429, b'{"error":"TooOften"}', {"Retry-After": "2"}), TooOftenError, TooOftenError, True),
    "502": (Fault(502, HTML), UnavailableError, OutcomeUnknownError, True),
    "503": (Fault(503, HTML, {"Retry-After": "2"}), UnavailableError, OutcomeUnknownError, True),
    "503 own": (Fault(503, b'{"error":"Unavailable","message":""}'), UnavailableError, UnavailableError, True),
    "504": (Fault(504, HTML), UnavailableError, OutcomeUnknownError, True),
    "500": (Fault(500, HTML), ProtocolError, OutcomeUnknownError, False),
    "500 without error": (Fault(500, b'{"error":null,"message":1}'), ProtocolError, OutcomeUnknownError, False),
    "301": (Fault(301, b"", {"Location": "/cloudstore/elsewhere"}), ProtocolError, ProtocolError, False),
    "307": (Fault(307, b"", {"Location": "/cloudstore/store/load"}), ProtocolError, ProtocolError, False),
    "202": (Fault(202, HTML), ProtocolError, OutcomeUnknownError, False),
    "204": (Fault(204), ProtocolError, OutcomeUnknownError, False),
    "sign-in page": (Fault(200, HTML, {"Content-Type": "text/html"}), ProtocolError, ProtocolError, False),
    "nothing": (Fault(200), ProtocolError, ProtocolError, False),
    "array": (Fault(200, b"[]"), ProtocolError, ProtocolError, False),
    "no error": (Fault(200, b'{"message":1}'), ProtocolError, ProtocolError, False),
    "error of another kind": (Fault(200, b'{"error":false,"message":1}'), ProtocolError, ProtocolError, False),
    "no UTF-8": (Fault(200, b'{"error":null,"message":"\xff"}'), ProtocolError, ProtocolError, False),
    "no gzip": (Fault(200, b"{}", {"Content-Encoding": "gzip"}), ProtocolError, ProtocolError, False),
    "too large": (Fault(200, b'"' + b"x" * 10_000 + b'"'), ProtocolError, ProtocolError, False),
    "too large unpacked": (
        Fault(200, gzip.compress(b" " * 10_000 + b"0"), {"Content-Encoding": "gzip"}),
        ProtocolError,
        ProtocolError,
        False,
    ),
}


@pytest.mark.parametrize(("operation", "fault"), spread([OPERATIONS, FAULTS], 2))
def test_faults(client: Client, vendor: Vendor, operation: str, fault: str) -> None:
    """Every fault is its error, and never success; a passing one goes unseen; the next request finds a sound way."""
    given, of_a_read, of_a_write, is_repeated = FAULTS[fault]
    expected = of_a_write if operation in WRITES else of_a_read
    vendor.faults.extend([given] * 4)
    with pytest.raises(expected) as caught:
        OPERATIONS[operation](client)
    assert type(caught.value) is expected
    assert len(vendor.requests) == (4 if is_repeated else 1)
    shown = f"{caught.value} {caught.value!r} {caught.value.__cause__}"
    assert KEY not in shown
    if expected is ProtocolError and given.status == 200:
        assert ("outcome" in str(caught.value)) is (operation in WRITES)
    vendor.faults.clear()
    vendor.files["a"] = 1
    assert client.load("a") == Loaded(Raw(b"1"), None)
    if is_repeated:
        vendor.faults.extend([given] * 3)
        OPERATIONS[operation](client)
        assert len(vendor.requests) == 4 + 1 + 4


@pytest.mark.parametrize("status", [201, 202, 203])
def test_a_success_with_another_status(client: Client, vendor: Vendor, status: int) -> None:
    """The service's reply counts, also if a proxy passes it on with another 2xx."""
    vendor.faults.extend(
        [Fault(status, b'{"error":null,"message":"Entry saved"}'), Fault(status, b'{"error":null,"message":5}')]
    )
    client.save("a", Raw(b"1"))
    assert client.load("a") == Loaded(Raw(b"5"), None)
    vendor.faults.append(Fault(status, b'{"error":"NoFile","message":"No."}'))
    with pytest.raises(NoFileError):
        client.load("a")


def test_dropped_after_the_write(client: Client, vendor: Vendor) -> None:
    """A write whose answer was lost was done, and is done again to the same effect."""
    vendor.faults.append(DROPPED_AFTER)
    client.save("b", Raw(b'{"x":1}'))
    vendor.faults.append(DROPPED_AFTER)
    client.merge("b", Raw(b'{"y":[2]}'))
    assert vendor.files["b"] == {"x": 1, "y": [2]}
    vendor.faults.append(DROPPED_AFTER)
    client.delete("b")
    assert "b" not in vendor.files
    assert len(vendor.requests) == 6


def test_no_redirect_is_followed(transport: HTTPTransport, vendor: Vendor) -> None:
    """The key in the body goes nowhere but to the server that was named."""
    with serve_vendor() as other:
        for status in (301, 302, 303, 307, 308):
            vendor.faults.append(Fault(status, b"", {"Location": f"{other.address}/store/load"}))
            reply = transport.send(LOAD)
            assert (reply.error, reply.status) == ("Http error", status)
            assert reply.response.headers["Location"].startswith(other.address)
        assert other.requests == []


def test_error_replies_keep_their_status(transport: HTTPTransport, vendor: Vendor) -> None:
    """A reply that says its error is that reply under any status; another one is `Http error` and its reason."""
    vendor.faults.append(Fault(401, b'{"error":"BadKey","message":"Unknown key."}'))
    reply = transport.send(LOAD)
    assert (reply.error, reply.sentence, reply.status, reply.retry_after) == ("BadKey", "Unknown key.", 401, None)
    vendor.faults.append(Fault(503, HTML, {"Retry-After": "7"}))
    reply = transport.send(LOAD)
    assert (reply.error, reply.sentence, reply.status) == ("Http error", "Service Unavailable", 503)
    assert reply.retry_after == 7.0
    assert reply.response.content == HTML
    vendor.faults.append(Fault(599))
    assert transport.send(LOAD).sentence == "Status 599"


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_packed_replies(transport: HTTPTransport, vendor: Vendor, encoding: str, pack: Any) -> None:
    """A reply may be compressed."""
    vendor.faults.append(Fault(200, pack(b'{"error":null,"message":5}'), {"Content-Encoding": encoding}))
    assert bytes(transport.send(LOAD).message) == b"5"


def test_refused(session: requests.Session | None) -> None:
    """Where nobody listens, nothing was sent, and the error says so."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}/cloudstore"
    slept: list[float] = []
    client = Client(HTTPTransport(address, session=session), KEY, sleep=slept.append)
    for operation in OPERATIONS.values():
        with pytest.raises(TransportError, match=r"Connection refused.*check the address") as caught:
            operation(client)
        assert type(caught.value) is TransportError
        assert caught.value.sent is False
    assert len(slept) == 3 * len(OPERATIONS)


def test_no_tls(session: requests.Session | None, vendor: Vendor) -> None:
    """A server that doesn't speak TLS gets nothing of a request to an https address, and the error says so."""
    transport = HTTPTransport(vendor.address.replace("http:", "https:"), session=session)
    with pytest.raises(TransportError, match="TLS") as caught:
        transport.send(LOAD)
    assert caught.value.sent is False
    assert vendor.requests == []


def test_server_that_hung_up(client: Client, vendor: Vendor) -> None:
    """A connection that the server ended while it was idle is replaced without a word."""
    client.load("a")
    vendor.hang_up()
    assert client.load("a") == Loaded(Raw(b"1"), None)


@pytest.mark.parametrize("timeout", [0, -1, (5, 0), (None, 1), (5, None), None, "5"])
def test_timeouts_are_always_there(timeout: Any) -> None:
    """No request can wait without an end."""
    with pytest.raises(ValueError, match="timeout"):
        HTTPTransport("http://127.0.0.1:1/x", timeout=timeout)


def test_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch, vendor: Vendor) -> None:
    """The environment's proxies are used, but not on the way to this machine."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, vendor.address.removesuffix("/cloudstore"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    transport = HTTPTransport("http://service.invalid/cloudstore")
    transport.send(LOAD)
    transport.close()
    assert [request.path for request in vendor.requests] == ["http://service.invalid/cloudstore/store/load"]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    local = HTTPTransport(vendor.address)
    assert local.send(LOAD).error is None
    local.close()


@pytest.mark.parametrize("proxy", ["http://user:passw0rd@:1", "http://user:passw0rd@a:999999", "ftp://user:passw0rd@a"])
def test_bad_proxy(monkeypatch: pytest.MonkeyPatch, session: requests.Session | None, proxy: str) -> None:
    """A proxy's address that can't be one is an error about it, and nothing shows the password in it."""
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises((TransportError, ProtocolError), match="proxy") as caught:
        HTTPTransport("https://service.invalid/x", session=session).send(LOAD)
    if isinstance(caught.value, TransportError):
        assert caught.value.sent is False
    assert "passw0rd" not in "".join(traceback.format_exception(caught.value, chain=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork(vendor: Vendor) -> None:
    """A child opens its own connections, and leaves the parent's alone."""
    transport = HTTPTransport(vendor.address)
    transport.send(LOAD)
    child = os.fork()
    if child == 0:
        os._exit(0 if transport.send(LOAD).error is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert transport.send(LOAD).error is None
    transport.close()
    assert vendor.accepted == 2


def test_repr_and_import() -> None:
    """A transport's `repr` has the server alone; importing it doesn't load `requests`."""
    assert repr(HTTPTransport("https://example.org/x")) == "<HTTPTransport to https://example.org/x>"
    program = "import sys, cloudstore_mapping.callback_client, CloudStore; print('requests' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert ran.stdout == "False\n"


@pytest.mark.parametrize("status", [200, 404, 503])
def test_a_body_posted_as_it_is(transport: HTTPTransport, vendor: Vendor, status: int) -> None:
    """`post` sends the bytes and headers that it is given, and returns the response whatever it is."""
    vendor.faults.append(Fault(status, b"<h1>Hello</h1>", {"X-More": "yes"}))
    response = transport.post("/store/load", b'{"key": ', {"X-Own": "1"})
    assert (response.status_code, response.content, response.headers["X-More"]) == (status, b"<h1>Hello</h1>", "yes")
    (request,) = vendor.requests
    assert (request.path, request.body, request.headers["X-Own"]) == ("/cloudstore/store/load", b'{"key": ', "1")


def test_a_body_posted_to_nobody(session: requests.Session | None) -> None:
    """`post` raises the errors of `send`, and none shows the body."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/cloudstore"
    transport = HTTPTransport(address, session=session)
    with pytest.raises(TransportError) as raised:
        transport.post("/store/load", KEY.encode())
    assert raised.value.sent is False
    assert KEY not in "".join(traceback.format_exception(raised.value))
