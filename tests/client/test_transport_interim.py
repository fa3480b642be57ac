"""Interim (1xx) responses and unread bytes: no request gets the response to another request."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from msgspec import Raw

from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.errors import OutcomeUnknownError, TransportError
from cloudstore_mapping.wire import Request, Upload
from tests.cluster.balancer import MISSING, haproxy
from tests.support.certificates import SELF_SIGNED
from tests.vendor import Vendor

HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nContent-Length: 5\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

#: From a complete response, the pieces that a server sends one by one.
PLACES: dict[str, Callable[[bytes], list[bytes]]] = {
    "in one piece": lambda final: [HINTS + final],
    "before it": lambda final: [HINTS, final],
    "twice": lambda final: [HINTS + PROCESSING, final],
    "a hundred": lambda final: [PROCESSING * 100, final],
    "after a 100": lambda final: [CONTINUE + HINTS + CONTINUE, final],
    "cut within the status": lambda final: [HINTS[:11], HINTS[11:] + final],
    "cut within the head": lambda final: [HINTS[:40], HINTS[40:-2], HINTS[-2:] + final],
    "with a part of it": lambda final: [HINTS + final[:20], final[20:]],
    "with its head": lambda final: [
        HINTS + final.partition(b"\r\n\r\n")[0] + b"\r\n\r\n",
        final.partition(b"\r\n\r\n")[2],
    ],
    "without a reason": lambda final: [b"HTTP/1.1 103\r\n\r\n" + final],
}
#: Bytes after the response.
LEFT_BEHIND: dict[str, Callable[[bytes], list[bytes]]] = {
    "another response": lambda final: [final + final.replace(b"value", b"wrong")],
    "another after a hint": lambda final: [HINTS + final + final.replace(b"value", b"wrong")],
    "an interim response": lambda final: [final + HINTS],
    "half of another": lambda final: [final + final[:30]],
    "much": lambda final: [final + final.replace(b"value", b"wrong") * 500],
    "a line": lambda final: [final + b"\r\n"],
}
REFUSED: dict[str, Callable[[bytes], list[bytes]]] = {
    "101": lambda final: [b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + final],
    "too many": lambda final: [HINTS * 500 + final],
    "endless head": lambda final: [b"HTTP/1.1 103 Early Hints\r\n" + b"X: y\r\n" * 5000 + b"\r\n" + final],
    "no final response": lambda _: [HINTS, b""],
}


class Echo:
    """
    Raw server: it answers each request with the asked name, in the pieces of `send`, and counts its connections.

    With the file of a certificate it speaks TLS.
    """

    def __init__(self, send: Callable[[bytes], list[bytes]], certificate: Path | None = None) -> None:
        self.send = send
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self.accepted = 0
        self.requests = 0
        self._server = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = f"http{'s' if self._tls else ''}://127.0.0.1:{self._server.getsockname()[1]}/cloudstore"
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """End everything."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self.accepted += 1
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        with connection, connection.makefile("rb") as file, suppress(OSError):
            while line := file.readline():
                length = 0
                while (header := file.readline()) not in (b"\r\n", b""):
                    name, _, text = header.partition(b":")
                    length = int(text) if name.lower() == b"content-length" else length
                body = file.read(length)
                self.requests += 1
                asked = json.loads(body)["file"] if body.startswith(b"{") else line.split()[1].decode()
                content = b'{"error":null,"message":"value of %b"}' % asked.encode()
                for piece in self.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content)):
                    if not piece:
                        return
                    connection.sendall(piece)


@contextmanager
def echoing(send: Callable[[bytes], list[bytes]], certificate: Path | None = None) -> Iterator[Echo]:
    """Run a raw server."""
    with closing(Echo(send, certificate)) as server:
        yield server


def load(name: str) -> Request:
    """Return a request whose response holds its name."""
    return Request(api_key="S3cretKey", name=name)


@pytest.mark.parametrize("place", PLACES)
def test_interim_responses_are_skipped(place: str) -> None:
    """Each request gets its own response, on a single connection, wherever interim responses come before it."""
    with echoing(PLACES[place]) as server, closing(HTTPTransport(server.address)) as transport:
        for name in ("a", "b", "c"):
            assert transport.send(load(name)).sentence == f"value of {name}"
        assert server.accepted == 1


@pytest.mark.parametrize("place", PLACES)
def test_uploads_and_downloads_skip_them_too(place: str) -> None:
    """An upload and a download get the final response, and the connection goes on with the next request."""
    with echoing(PLACES[place]) as server, closing(HTTPTransport(server.address)) as transport:
        for _ in range(2):
            upload = Upload(api_key="k", name="a", content_type="a/b", data=b"data")
            assert transport.send(upload).sentence == "value of /cloudstore/upload-2"
            fetched = transport.fetch("/files/x.txt")
            assert b"".join(fetched.pieces) == b'{"error":null,"message":"value of /cloudstore/files/x.txt"}'
        assert server.accepted == 1


@pytest.mark.parametrize("what", LEFT_BEHIND)
def test_a_connection_with_unread_bytes_is_not_reused(what: str) -> None:
    """Bytes after a response are no response to the next request: it has a connection of its own."""
    with echoing(LEFT_BEHIND[what]) as server, closing(HTTPTransport(server.address)) as transport:
        for number, name in enumerate(("a", "b", "c"), 1):
            assert transport.send(load(name)).sentence == f"value of {name}"
            assert server.accepted == number
        for number in (4, 5):
            assert b"".join(transport.fetch("/x").pieces) == b'{"error":null,"message":"value of /cloudstore/x"}'
            assert server.accepted == number


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of a certificate that clients trust."""
    file = tmp_path / "certificate.pem"
    file.write_text(SELF_SIGNED)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
    return file


@pytest.mark.parametrize("place", ["plain", *PLACES])
def test_over_tls(place: str, certificate: Path) -> None:
    """Over TLS, too, each request gets its own response on a single connection."""
    with echoing(PLACES.get(place, lambda final: [final]), certificate) as server:
        transport = HTTPTransport(server.address)
        for name in ("a", "b", "c"):
            assert transport.send(load(name)).sentence == f"value of {name}"
        for _ in range(2):
            assert b"".join(transport.fetch("/x").pieces) == b'{"error":null,"message":"value of /cloudstore/x"}'
        assert server.accepted == 1
        transport.close()


@pytest.mark.parametrize("what", LEFT_BEHIND)
def test_unread_bytes_over_tls(what: str, certificate: Path) -> None:
    """Bytes that TLS has decrypted, and that no poll of the socket shows, are no response to the next request."""
    with echoing(LEFT_BEHIND[what], certificate) as server, closing(HTTPTransport(server.address)) as transport:
        for number, name in enumerate(("a", "b", "c"), 1):
            assert transport.send(load(name)).sentence == f"value of {name}"
            assert server.accepted == number


@pytest.mark.parametrize("has_tls", [False, True])
def test_a_response_as_large_as_the_buffer_hides_nothing(has_tls: bool, certificate: Path) -> None:
    """A response that fills the buffer to its last byte may have more behind it."""

    def send(final: bytes) -> list[bytes]:
        content = final.partition(b"\r\n\r\n")[2]
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
        size = 8192 - len(head % 9999)
        return [head % size + content + b" " * (size - len(content)) + final.replace(b"value", b"wrong")]

    server_of = echoing(send, certificate if has_tls else None)
    with server_of as server, closing(HTTPTransport(server.address)) as transport:
        for name in ("a", "b", "c"):
            assert transport.send(load(name)).sentence == f"value of {name}"
        assert server.accepted == 3


@pytest.mark.parametrize("what", REFUSED)
def test_endless_interim_responses_are_an_error(what: str) -> None:
    """A switch to another protocol, and interim responses without an end, break the connection."""
    with echoing(REFUSED[what]) as server, closing(HTTPTransport(server.address)) as transport:
        for number in (1, 2):
            with pytest.raises(TransportError) as caught:
                transport.send(load("a"))
            assert caught.value.sent is True
            assert server.accepted == number


@pytest.mark.parametrize("place", sorted({*PLACES} - {"after a 100"}))
@pytest.mark.parametrize("has_hook", [False, True])
def test_on_a_users_session(place: str, has_hook: bool) -> None:
    """On a user's session an interim response ends its connection, and is shown to no hook, which might read it."""
    shown = []
    with echoing(PLACES[place]) as server, requests.Session() as session:
        if has_hook:
            session.hooks["response"].append(lambda response, **_: shown.append(response.content))
        transport = HTTPTransport(server.address, session=session)
        for number, name in enumerate(("a", "b", "c"), 1):
            with pytest.raises(TransportError, match=r"sent a status 10[23] .*without session=") as caught:
                transport.send(load(name))
            assert caught.value.sent is True
            assert server.accepted == number
        with pytest.raises(TransportError, match="sent a status"):
            transport.fetch("/x")
        assert server.accepted == 4
    assert shown == []


def test_a_read_is_retried_and_a_write_has_an_unknown_outcome() -> None:
    """On a user's session a read is retried on a new connection; a write without `once` may have been applied."""
    left = [HINTS]
    with echoing(lambda final: [left.pop() + final if left else final]) as server, requests.Session() as session:
        client = Client(HTTPTransport(server.address, session=session), "k", sleep=lambda _: None)
        loaded = client.load("a")
        assert loaded is not None
        assert bytes(loaded.value) == b'"value of a"'
        assert (server.requests, server.accepted) == (2, 2)
        left += [HINTS] * 4
        with pytest.raises(OutcomeUnknownError):
            client.save("b", Raw(b"1"))
        loaded = client.load("c")
        assert loaded is not None
        assert bytes(loaded.value) == b'"value of c"'


def test_a_session_that_read_ahead() -> None:
    """If a class between us and the connection has read the interim response, its connection is closed all the same."""

    class Eager(requests.adapters.HTTPAdapter):
        def send(self, *args: Any, **options: Any) -> requests.Response:
            response = super().send(*args, **options)
            assert response.content is not None
            return response

    left = [HINTS]
    with (
        echoing(lambda final: [left.pop(), final] if left else [final]) as server,
        requests.Session() as session,
    ):
        session.mount("http://", Eager())
        transport = HTTPTransport(server.address, session=session)
        with pytest.raises(TransportError, match="sent a status 103"):
            transport.send(load("a"))
        assert transport.send(load("b")).sentence == "value of b"
        assert server.accepted == 2


HAPROXY = """\
global
    maxconn 50
defaults
    mode http
    timeout connect 60s
    timeout client 60s
    timeout server 60s
frontend service
    bind {bind}
    http-request early-hint Link "</style.css>; rel=preload"
    default_backend nodes
backend nodes
    server node {node}
"""


@pytest.fixture
def hinting(tmp_path: Path, vendor: Vendor) -> Iterator[str]:
    """Return the address of HAProxy, with early hints, in front of a service."""
    program = haproxy()
    assert program is not None
    node = vendor.address.removeprefix("http://").removesuffix("/cloudstore")
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        file = tmp_path / "haproxy.cfg"
        file.write_text(HAPROXY.format(bind=f"fd@{listener.fileno()}", node=node))
        command = [program, "-db", "-f", str(file)]
        with (tmp_path / "haproxy.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=[listener.fileno()])
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/cloudstore"
        finally:
            process.kill()
            process.wait()


@pytest.mark.skipif(haproxy() is None, reason=MISSING)
def test_behind_haproxy(hinting: str, vendor: Vendor) -> None:
    """Behind HAProxy with early hints each operation gets its own response, and the connection stays open."""
    with Client(HTTPTransport(hinting), "k") as client:
        for number in range(10):
            client.save(f"k{number}", Raw(b"%d" % number))
        for number in range(10):
            loaded = client.load(f"k{number}")
            assert loaded is not None
            assert bytes(loaded.value) == b"%d" % number
        assert client.stats.retries == 0


@pytest.mark.skipif(haproxy() is None, reason=MISSING)
def test_behind_haproxy_with_a_session(hinting: str, vendor: Vendor) -> None:
    """Behind HAProxy with early hints, a user's session never takes a response for another request's."""
    vendor.files |= {"a": 1, "b": 2}
    with requests.Session() as session:
        client = Client(HTTPTransport(hinting, session=session), "k", sleep=lambda _: None)
        for name in ("a", "b"):
            with pytest.raises(TransportError, match="sent a status 103"):
                client.load(name)
        with pytest.raises(OutcomeUnknownError):
            client.save("a", Raw(b"3"))
