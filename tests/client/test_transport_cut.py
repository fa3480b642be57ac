"""Connections that end within a response: wherever it is cut, it is no response, and a file is not replaced."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

import cloudstore_mapping as cm
from cloudstore_mapping.callback_client import CloudStore
from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.errors import ProtocolError, TransportError
from cloudstore_mapping.wire import Request

CONTENT = bytes(range(256)) * 4
REPLY = json.dumps({"error": None, "message": {"a": 1}}).encode()


def response(body: bytes) -> bytes:
    """Return a response with the headers of a usual server."""
    head = "HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


class Cut:
    """Raw server that answers each request with the first bytes of a response, and then closes the connection."""

    def __init__(self) -> None:
        self.answer = b""
        self._server = socket.create_server(("127.0.0.1", 0))
        self.origin = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """End the server."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                with connection, suppress(OSError):
                    received = b""
                    while b"\r\n\r\n" not in received or (
                        not received.startswith(b"GET") and not received.endswith(b"}")
                    ):
                        received += connection.recv(2**16)
                    connection.sendall(self.answer)


@pytest.fixture
def server() -> Iterator[Cut]:
    """Return a running server."""
    server = Cut()
    yield server
    server.close()


def ours(address: str) -> HTTPTransport:
    """Return a transport with connections of our own."""
    return HTTPTransport(address)


def of_requests(address: str) -> HTTPTransport:
    """Return a transport with the user's session."""
    return HTTPTransport(address, session=requests.Session())


@pytest.mark.parametrize("make", [ours, of_requests])
def test_a_reply(server: Cut, make: Callable[[str], HTTPTransport]) -> None:
    """A reply that is cut anywhere is a lost connection after the request was sent."""
    transport = make(f"{server.origin}/cloudstore")
    request = Request(api_key="key", name="a")
    for size in range(len(response(REPLY))):
        server.answer = response(REPLY)[:size]
        with pytest.raises(TransportError) as raised:
            transport.send(request)
        assert raised.value.sent, size
    server.answer = response(REPLY)
    assert json.loads(bytes(transport.send(request).message)) == {"a": 1}
    transport.close()


@pytest.mark.parametrize("make", [ours, of_requests])
def test_a_negative_length(server: Cut, make: Callable[[str], HTTPTransport]) -> None:
    """A reply with a chunk of negative length can't be read, and the callback client says so as well."""
    server.answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n-5\r\n" + REPLY
    transport = make(f"{server.origin}/cloudstore")
    with pytest.raises(ProtocolError, match="can't be read"):
        transport.send(Request(api_key="key", name="a"))
    transport.close()
    cloud = CloudStore("key", f"{server.origin}/cloudstore", retries=0)
    assert cloud.load("a").result()["error"] == "Error parsing data"
    saved = cloud.save("a", 1).result()
    assert isinstance(saved["exception"], ConnectionError)
    cloud.close()


def test_a_reply_to_the_callback_client(server: Cut) -> None:
    """The same for the callback client, whose reply says so."""
    cloud = CloudStore("key", f"{server.origin}/cloudstore", retries=0)
    for size in range(len(response(REPLY))):
        server.answer = response(REPLY)[:size]
        reply = cloud.load("a").result()
        assert reply["error"] == "Error sending data", (size, reply)
        assert "broke" in reply["message"], (size, reply)
    server.answer = response(REPLY)
    assert cloud.load("a").result()["message"] == {"a": 1}
    cloud.close()


@pytest.mark.parametrize("session", [None, requests.Session()], ids=["ours", "of requests"])
def test_a_download(server: Cut, session: Any, tmp_path: Path) -> None:
    """A download that is cut anywhere leaves the file that was there."""
    target = tmp_path / "photo.jpg"
    target.write_bytes(b"old")
    link = f"{server.origin}/cloudstore/files/{'a' * 22}/{'b' * 22}.jpg"
    whole = response(CONTENT)
    with cm.open(f"{server.origin.replace('://', '://key@')}/cloudstore", retries=0, session=session) as store:
        for size in [*range(len(whole) - len(CONTENT) + 2), len(whole) - 1]:
            server.answer = whole[:size]
            with pytest.raises(TransportError):
                store.download(link, target)
            assert [target.read_bytes(), *tmp_path.iterdir()] == [b"old", target], size
        server.answer = whole
        store.download(link, target)
    assert target.read_bytes() == CONTENT
