"""Small requests that come in one piece, which are answered without a task of their own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from msgspec import UNSET, Raw, UnsetType

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.web import api, http
from cloudstore_mapping.wire import Reply, failure
from tests.raw_http import JSON, Answer, Connection, FakeService, body
from tests.service_fakes import PATIENCE


@pytest.fixture
def service() -> Iterator[FakeService]:
    """Return a service to be asked over HTTP."""
    fake = FakeService()
    yield fake
    fake.close()


@pytest.fixture
def address(service: FakeService) -> Iterator[str]:
    """Yield where it answers."""
    with service.served() as served:
        yield served


Ask = Callable[..., Answer]


def at_once(connection: Connection, data: bytes, path: str = "/store/load", headers: str = "") -> Answer:
    """Send a request in one piece."""
    connection.post(path, data, headers)
    return connection.answer()


def bit_by_bit(connection: Connection, data: bytes, path: str = "/store/load", headers: str = "") -> Answer:
    """Send a request whose body follows when the service has asked for it."""
    connection.start(path, f"{JSON}{headers}Expect: 100-continue\r\nContent-Length: {len(data)}\r\n")
    assert connection.answer().status == 100
    connection.send(data)
    return connection.answer()


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (body(), None),
        (body("absent"), None),
        (b"no JSON", None),
        (body(), failure(UnavailableError("Busy.", retry_after=1.5))),
        (body(), RuntimeError("broken")),
    ],
    ids=["value", "refusal", "no request", "busy", "broken"],
)
def test_the_reply_is_the_same_however_the_request_comes(
    service: FakeService,
    address: str,
    data: bytes,
    reply: RuntimeError | Reply | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Status, headers and body are those of a request that came bit by bit."""
    with Connection(address) as connection:
        connection.post("/store/save", body(value={"a": 1}))
        connection.answer()
        service.reply = reply
        answers = [at_once(connection, data), bit_by_bit(connection, data)]
    for answer in answers:
        answer.headers["date"] = "a second may have passed"
    assert answers[0] == answers[1]
    number = 2 if isinstance(reply, RuntimeError) else reply is not None and reply.status == 503  # 503 once a minute
    assert len(caplog.records) == number


@pytest.mark.parametrize(
    ("version", "headers", "stays"),
    [
        ("1.1", "", True),
        ("1.1", "Connection: Keep-Alive\r\n", True),
        ("1.1", "Connection: close\r\n", False),
        ("1.0", "", False),
    ],
)
def test_a_connection_ends_where_the_client_says_so(address: str, version: str, headers: str, stays: bool) -> None:
    """The reply says that the connection ends, and ends it, exactly where the request wants that."""
    data = body(value=1)
    path = f"{urlsplit(address).path}/store/save"
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
    with socket.create_connection((urlsplit(address).hostname, urlsplit(address).port), 20) as connection:
        for _ in range(2 if stays else 1):
            connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            answer = b""
            while b"Entry saved" not in answer:
                answer += connection.recv(2**16)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert (b"connection: close\r\n" in answer) is not stays
        if not stays:
            assert connection.recv(2**16) == b""


@pytest.mark.parametrize(
    ("data", "header", "id_"),
    [
        (body(value=1), 'Idempotency-Key: "a-1_Z"\r\n', "a-1_Z"),
        (body(value=1), f"idempotency-key: {64 * '7'}\r\n", 64 * "7"),
        (body(value=1, request="mine"), "Idempotency-Key: theirs\r\n", "mine"),
        (body(value=1), "", UNSET),
    ],
)
@pytest.mark.parametrize("ask", [at_once, bit_by_bit])
def test_the_id_of_a_write(
    service: FakeService, address: str, ask: Ask, data: bytes, header: str, id_: str | UnsetType
) -> None:
    """A write's id is that of its body, else the one of its header."""
    with Connection(address) as connection:
        assert ask(connection, data, "/store/save", header).json["message"] == "Entry saved"
        assert service.ids == [id_]


@pytest.mark.parametrize("id_", ["", '""', 65 * "a", "two words", "a\u00e9", 'a"b', '"a', 'a"'])
@pytest.mark.parametrize("ask", [at_once, bit_by_bit])
def test_the_id_of_a_write_is_a_number(service: FakeService, address: str, ask: Ask, id_: str) -> None:
    """A header with anything else than an id is refused, with a sentence that says what one is, and nothing is done."""
    header = f"Idempotency-Key: {id_}\r\n"
    with Connection(address) as connection:
        answer = ask(connection, body(value=1), "/store/save", header)
        assert (answer.status, answer.json["error"]) == (400, "BadRequest")
        assert "1 to 64 letters, digits" in answer.json["message"]
        assert ask(connection, body(), "/store/load", header).json["error"] == "NoFile"
    assert service.ids == []


def test_requests_sent_ahead_are_answered_in_their_order(service: FakeService, address: str) -> None:
    """A load that comes in one piece with the save before it waits for that, and sees it."""
    service.may_write.clear()
    save, load = body(value=1), body()
    with Connection(address) as connection, Connection(address) as other:
        head = "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        connection.send(
            b"".join(
                head.format(path=f"{connection.base}/store/{path}", length=len(data)).encode() + data
                for path, data in (("save", save), ("load", load))
            )
        )
        assert at_once(other, load).json["error"] == "NoFile"
        service.may_write.set()
        assert connection.answer().json["message"] == "Entry saved"
        assert connection.answer().json["data"] == 1


def test_a_client_that_goes_has_its_write_done(service: FakeService, address: str) -> None:
    """What was accepted is done though nobody waits for the answer any more, and the service goes on."""
    service.may_write.clear()
    with Connection(address) as connection, Connection(address) as other:
        connection.post("/store/save", body(value=1))
        assert at_once(other, body()).json["error"] == "NoFile"
        connection.reset()
        service.may_write.set()
        other.post("/store/save", body("next", value=2))
        assert other.answer().json["message"] == "Entry saved"
        assert at_once(other, body()).json["data"] == 1


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_large_reply_ends_with_its_connection(
    service: FakeService, address: str, is_whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply that is sent in pieces is told that its client has left, however the request came."""
    told = threading.Event()
    clients: list[http.Client | None] = []
    send_reply = http.send_reply

    async def watched(send: Any, reply: Reply, *headers: Any, client: http.Client | None = None) -> None:
        clients.append(client)
        await send_reply(send, reply, *headers, client=client)
        if client is not None and client.is_gone:
            told.set()

    for module in (http, api):
        monkeypatch.setattr(module, "send_reply", watched)
    service.values["large"] = Raw(b'"%b"' % (b"x" * 12 * 2**20))
    data = body("large")
    with Connection(address) as connection:
        if is_whole:
            connection.post("/store/load", data)
        else:
            connection.start("/store/load", f"{JSON}Content-Length: {len(data)}\r\n", data[:1])
            connection.send(data[1:])
        assert connection.socket.recv(1000).startswith(b"HTTP/1.1 200")
        connection.reset()
    assert told.wait(PATIENCE)
    assert len(clients) == 1
