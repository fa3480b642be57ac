"""Requests that ask for another protocol (``Upgrade``) are answered as HTTP/1.1."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.raw_http import JSON, Connection, FakeService, body, chunk

SAVE = "/store/save"
LOAD = "/store/load"
#: What curl and Java's HttpClient send to a service that might speak HTTP/2, browsers for WebSockets, and others.
UPGRADES = {
    "curl": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
    "java": "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
    "Upgrade: h2c\r\n",
    "websocket": "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "several": "Upgrade: HTTP/3.0, TLS/1.0\r\nUpgrade: irc\r\nConnection: upgrade\r\n",
}

upgrades = pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES)


@pytest.fixture(scope="module")
def service() -> Iterator[FakeService]:
    """Return a service to be asked over HTTP."""
    fake = FakeService()
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def served(service: FakeService) -> Iterator[str]:
    """Yield where it answers."""
    with service.served() as address:
        yield address


@pytest.fixture
def address(service: FakeService, served: str, caplog: pytest.LogCaptureFixture) -> Iterator[str]:
    """Yield where an empty service answers, which logs nothing of what is asked of it."""
    service.values.clear()
    yield served
    assert not caplog.records


@upgrades
def test_a_body_that_comes_at_once(service: FakeService, address: str, upgrade: str) -> None:
    """A save and a load that ask for another protocol are done and answered, and the connection goes on."""
    with Connection(address) as connection:
        connection.post(SAVE, body(value={"a": 1}), upgrade)
        assert connection.answer().json["message"] == "Entry saved"
        connection.post(LOAD, body(), upgrade)
        assert connection.answer().json["data"] == {"a": 1}
        connection.post(LOAD, body())
        assert connection.answer().json["data"] == {"a": 1}


@upgrades
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_comes_later(service: FakeService, address: str, upgrade: str, is_chunked: bool) -> None:
    """A body that comes in packets of its own belongs to its request, and no request in it is run."""
    hidden = body("hidden", value=2)
    smuggled = f"POST /cloudstore{SAVE} HTTP/1.1\r\n{JSON}Content-Length: {len(hidden)}\r\n\r\n".encode() + hidden
    data = body(value=1, more=smuggled.decode())
    pieces = [data[:20], data[20:]]
    length = "Transfer-Encoding: chunked\r\n" if is_chunked else f"Content-Length: {len(data)}\r\n"
    head = f"POST /cloudstore{SAVE} HTTP/1.1\r\nHost: x\r\n{JSON}{upgrade}{length}\r\n".encode()
    with Connection(address) as connection, Connection(address) as other:
        packets = [head[:30], head[30:-1], head[-1:], *(map(chunk, [*pieces, b""]) if is_chunked else pieces)]
        for packet in packets:
            connection.send(packet)
            other.post(LOAD, body("absent"))
            assert other.answer().status == 200  # so the packet has been read before the next is sent
        assert connection.answer().json["message"] == "Entry saved"
        connection.post(LOAD, body())
        assert connection.answer().json["data"] == 1
    assert set(service.values) == {"list"}


@upgrades
def test_a_client_that_waits_to_be_asked_for_its_body(address: str, upgrade: str) -> None:
    """``Expect: 100-continue`` is answered as without an upgrade."""
    data = body(value=1)
    with Connection(address) as connection:
        connection.start(SAVE, f"{JSON}{upgrade}Expect: 100-continue\r\nContent-Length: {len(data)}\r\n")
        assert connection.answer().status == 100
        connection.send(data)
        assert connection.answer().json["message"] == "Entry saved"


@upgrades
def test_many_requests_at_once(address: str, upgrade: str) -> None:
    """Requests that come in one packet, some with an upgrade, are answered each and in their order."""
    requests = b""
    for number in range(6):
        data = body(value=number) if number % 2 == 0 else body()
        path = SAVE if number % 2 == 0 else LOAD
        headers = upgrade if number % 3 else ""
        head = f"POST /cloudstore{path} HTTP/1.1\r\nHost: x\r\n{JSON}{headers}Content-Length: {len(data)}\r\n\r\n"
        requests += head.encode() + data
    requests += f"GET /cloudstore/health HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n".encode() * 2
    with Connection(address) as connection:
        connection.send(requests)
        answers = [connection.answer().json for _ in range(8)]
    assert [answer.get("data") for answer in answers] == [None, 0, None, 2, None, 4, None, None]
    assert [answer["message"] for answer in answers[-2:]] == ["Healthy", "Healthy"]


@upgrades
def test_a_connection_that_is_to_end(address: str, upgrade: str) -> None:
    """HTTP/1.0 stays HTTP/1.0: the connection ends with the reply."""
    with Connection(address) as connection:
        connection.send(f"GET /cloudstore/health HTTP/1.0\r\n{upgrade}\r\n".encode())
        assert connection.answer().json["message"] == "Healthy"
        assert connection.rest() == b""


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs the program curl")
def test_curl(address: str) -> None:
    """``curl --http2`` saves and loads."""
    command = ["curl", "--http2", "--silent", "--show-error", "--max-time", "20", "--header", JSON.strip(), "--data"]
    long = "x" * 100_000
    for path, data in ((SAVE, body(value=long)), (LOAD, body())):
        said = subprocess.run([*command, "@-", address + path], input=data, capture_output=True, check=True).stdout
        assert json.loads(said)["error"] is None
    assert json.loads(said)["data"] == long


#: A program for Java's own client as it is when nothing is set; it prints the status and body of each reply.
JAVA = """
import java.net.URI;
import java.net.http.*;

public class Ask {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 0; i < args.length; i += 2) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(args[i])).header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(args[i + 1])).build();
            HttpResponse<String> reply = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(reply.statusCode() + " " + reply.body());
        }
    }
}
"""


@pytest.mark.skipif(shutil.which("java") is None or shutil.which("javac") is None, reason="needs a JDK")
@pytest.mark.slow
def test_java(address: str, tmp_path: Path) -> None:
    """Java's HttpClient, which asks for HTTP/2 unless it is told otherwise, saves and loads."""
    program = tmp_path / "Ask.java"
    program.write_text(JAVA)
    asked = [address + SAVE, body(value=[1]).decode(), address + LOAD, body().decode()]
    run = subprocess.run(["java", str(program), *asked], capture_output=True, text=True, check=False, timeout=120)
    if "class file" in run.stderr or "compiler" in run.stderr:
        pytest.skip("needs a JDK that runs a source file")
    statuses = [line.split(" ", 1) for line in run.stdout.splitlines()]
    assert [status for status, _ in statuses] == ["200", "200"], run.stderr
    assert json.loads(statuses[1][1])["data"] == [1]
