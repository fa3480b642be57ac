"""A request that is answered before its body was read spoils no other one, and its client sees the reply."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web import protocol
from cloudstore_mapping.web.connections import SMALL_WINDOW
from cloudstore_mapping.web.server import background
from tests.raw_http import JSON, Connection, FakeService, body, chunk
from tests.serving import serving, told
from tests.storages import new_storage

BIG = 3 * 2**20
HEAD = f"POST /cloudstore/store/save HTTP/1.1\r\nHost: x\r\n{JSON}"
#: Requests with a body that are answered without it: method, path, type, and the reply's status.
EARLY = {
    "no path": ("POST", "/nothing", "application/json", 404),
    "no path of media": ("POST", "/files/x", "application/json", 405),
    "no media": ("GET", "/files/x", "application/json", 404),
    "a healthy service": ("GET", "/health", "application/json", 200),
    "no method": ("PUT", "/store/save", "application/json", 405),
    "a method of browsers": ("OPTIONS", "/store/save", "application/json", 204),
    "no type": ("POST", "/store/save", "text/plain", 415),
    "too much": ("POST", "/store/save", "application/json", 413),
    "numbers": ("GET", "/metrics", "application/json", 200),
    "no numbers": ("POST", "/metrics", "application/json", 405),
    "the description": ("GET", "/openapi.json", "application/json", 200),
    "the dashboard": ("GET", "/admin.html", "application/json", 200),
    "nobody's upload": ("POST", "/admin/media/upload", "multipart/form-data; boundary=x", 400),
    "no form": ("POST", "/upload-2", "application/json", 415),
}

early = pytest.mark.parametrize(("method", "path", "kind", "status"), EARLY.values(), ids=EARLY)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Yield the address of a service that takes bodies of a megabyte."""
    settings = Settings(max_body_bytes=2**20, max_value_bytes=2**19)
    with Service(new_storage(), settings) as service, background(service) as address:
        yield address


def ends(answer: http.client.HTTPResponse | requests.Response) -> bool:
    """Whether a reply says that its connection ends."""
    return (answer.headers.get("connection") or "").lower() == "close"


@early
def test_clients_that_keep_connections(address: str, method: str, path: str, kind: str, status: int) -> None:
    """Such a request, sent whole, is answered, and so is the next one of the same client."""
    with requests.Session() as session:
        for _ in range(2):
            for data in (b"x" * BIG, iter([b"x" * 2**16] * (BIG // 2**16))):
                answer = session.request(method, address + path, data=data, headers={"Content-Type": kind}, timeout=20)
                assert answer.status_code == status
            assert session.get(f"{address}/health", timeout=20).json()["message"] == "Healthy"


@early
def test_the_next_request_on_the_connection(address: str, method: str, path: str, kind: str, status: int) -> None:
    """The rest of the body is discarded, and the connection goes on, or ends where the reply says so."""
    where = urlsplit(address)
    with Connection(address) as connection, Connection(address) as other:
        head = (
            f"{method} {where.path}{path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {BIG}\r\n\r\n"
        )
        connection.send(head.encode())
        reply = http.client.HTTPResponse(connection.socket, method=method)
        reply.begin()
        assert reply.status == status
        reply.read()
        for _ in range(BIG // 2**16):
            connection.send(b"x" * 2**16)
            other.send(f"GET {where.path}/health HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert other.answer().status == 200
        if ends(reply):
            assert connection.rest() == b""
        else:
            connection.send(f"GET {where.path}/health HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert connection.answer().json["message"] == "Healthy"


@early
def test_a_client_that_was_not_asked_for_its_body(address: str, method: str, path: str, kind: str, status: int) -> None:
    """An early reply to a client that waits for 100 Continue ends the connection: it may or may not send the body."""
    where = urlsplit(address)
    with Connection(address) as connection:
        connection.send(
            f"{method} {where.path}{path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {BIG}\r\n"
            "Expect: 100-continue\r\n\r\n".encode()
        )
        reply = http.client.HTTPResponse(connection.socket, method=method)
        reply.begin()
        assert reply.status == status
        assert ends(reply)
        reply.read()
        connection.socket.shutdown(socket.SHUT_WR)
        assert connection.rest() == b""


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs the program curl")
@early
def test_curl(address: str, tmp_path: Path, method: str, path: str, kind: str, status: int) -> None:
    """The program curl sends a large body and gets the reply, also for a second request on the connection."""
    file = tmp_path / "body"
    file.write_bytes(b"x" * BIG)
    one = ["--request", method, "--header", f"Content-Type: {kind}", "--data-binary", f"@{file}", address + path]
    said = ["--silent", "--show-error", "--max-time", "20", "--output", "/dev/null", "--write-out", "%{http_code}\n"]
    command = ["curl", *said, *one, "--next", *said, f"{address}/health"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout.split() == [str(status), "200"], run.stderr


def test_a_body_that_goes_on_has_a_deadline() -> None:
    """A body that was answered early and doesn't end in time ends the connection."""
    service = FakeService(Settings(body_timeout=0.3))
    with service.served() as address, Connection(address) as connection:
        connection.start("/nothing", f"{JSON}Content-Length: 1000\r\n", b"{")
        assert connection.answer().status == 404
        assert connection.rest() == b""


def test_a_body_that_goes_on_holds_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is to end waits for such a body no longer than for another."""
    monkeypatch.setattr(protocol, "GRACE", 0.05)
    service = FakeService(Settings(body_timeout=600))
    with service.served() as address:
        connection = Connection(address)
        connection.start("/nothing", f"{JSON}Content-Length: 1000\r\n", b"{")
        assert connection.answer().status == 404
    with connection:
        assert connection.rest() == b""


def test_a_body_that_turns_out_to_be_none() -> None:
    """A broken body behind an early reply ends the connection, without a second reply."""
    service = FakeService()
    with service.served() as address, Connection(address) as connection:
        connection.start("/nothing", f"{JSON}Transfer-Encoding: chunked\r\n")
        assert connection.answer().status == 404
        connection.send(b"no chunk\r\n" * 10)
        assert connection.rest() == b""


def test_a_refusal_is_seen_by_a_client_that_goes_on_sending(caplog: pytest.LogCaptureFixture) -> None:
    """What is no HTTP is answered 400, and the connection isn't reset on a client that sends more before it reads."""
    service = FakeService()
    with service.served() as address, Connection(address) as connection, Connection(address) as other:
        connection.start("/store/save", f"{JSON}Transfer-Encoding: chunked\r\n", b"no chunk\r\n")
        for _ in range(20):
            connection.send(b"x" * 2**16)
            other.post("/store/load", body())
            assert other.answer().status == 200
        answer = connection.answer()
        assert (answer.status, answer.headers["connection"], answer.json["error"]) == (400, "close", "BadRequest")
        assert connection.rest() == b""


@pytest.mark.parametrize("broken", ["garbage\r\n\r\n", f"{HEAD}Transfer-Encoding: chunked\r\n\r\nno chunk\r\n"])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_refusal_has_its_turn(broken: str, at_once: bool, chunked: bool, caplog: pytest.LogCaptureFixture) -> None:
    """What came before something that is no HTTP gets its own reply, that gets 400, and then the connection ends."""
    service = FakeService()
    service.may_write.clear()
    data = body(value=1)
    saves = f"{HEAD}Content-Length: {len(data)}\r\n\r\n".encode() + data
    if chunked:  # where such a request ends is known only once more of it was parsed
        saves = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk(data) + chunk(b"")
    with service.served() as address, Connection(address) as connection, Connection(address) as other:
        for packet in [saves * 3 + broken.encode()] if at_once else [saves, saves, saves, broken.encode()]:
            connection.send(packet)
            other.post("/store/load", body())
            assert other.answer().status == 200
        service.may_write.set()
        assert [connection.answer().json["message"] for _ in range(3)] == ["Entry saved"] * 3
        refused = connection.answer()
        assert (refused.status, refused.json["error"], refused.headers["connection"]) == (400, "BadRequest", "close")
        assert connection.rest() == b""


def test_wrong_keys(address: str) -> None:
    """A large save and a large upload with a wrong key are refused, and so is each one after them."""
    with requests.Session() as session:
        for _ in range(3):
            refused = session.post(f"{address}/store/save", json={"key": "k" * 32, "file": "a", "value": "x" * 300_000})
            assert (refused.status_code, refused.json()["error"]) == (401, "BadKey")
            refused = session.post(f"{address}/upload-2", data={"key": "k" * 32}, files={"file": ("a", b"x" * BIG)})
            assert (refused.status_code, refused.json()["error"]) == (401, "BadKey")
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    data = json.dumps({"key": "k" * 32, "file": "a", "value": "x" * BIG})
    for _ in range(3):
        connection.request("POST", f"{urlsplit(address).path}/store/save", data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]) == (413, "BodyTooBig")
    connection.close()


def test_a_client_that_resets_its_refused_upload(tmp_path: Path) -> None:
    """A client that is refused and resets the connection within its body leaves nothing in the service's log."""
    part = '--x\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'
    form = part.format("key", "wrong" * 7) + part.format('file"; filename="name', "x" * 1000)
    head = "POST /cloudstore/upload-2 HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with serving("--json", "--store", str(tmp_path / "store.db")) as process:
        where = urlsplit(told(process)["address"])
        for _ in range(20):
            with socket.create_connection((where.hostname, where.port), 20) as connection:
                connection.sendall(f"{head}Content-Length: 100000\r\n\r\n{form}".encode())
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_a_refused_body_is_read_without_pauses() -> None:
    """The receive buffer of a refused client holds two of loopback's segments: with less, each takes TCP 0.2 s."""
    loopback = Path("/sys/class/net/lo/mtu")
    segment = int(loopback.read_text()) if loopback.exists() else 2**16
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_WINDOW)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2 >= 2 * (segment - 40)
