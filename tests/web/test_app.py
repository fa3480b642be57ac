"""The service's paths over HTTP: what is answered, under which status, with which headers."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cloudstore_mapping import wire
from cloudstore_mapping.errors import TooOftenError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web import server
from cloudstore_mapping.web.api import make_app
from cloudstore_mapping.web.http import headers_of
from cloudstore_mapping.web.protocol import BLIND_PIECE
from tests.raw_http import JSON, Connection, FakeService, body, chunk
from tests.storages import new_storage

LIMIT = 200_000
SAVE = "/store/save"
LOAD = "/store/load"
TYPE = {"Content-Type": "application/json"}
EXPOSED = "CloudStore-Extensions, Content-Disposition, Content-Range, ETag, Retry-After"


@pytest.fixture
def service() -> FakeService:
    """Return a service that takes only small bodies."""
    return FakeService(Settings(max_body_bytes=LIMIT))


@pytest.fixture
def address(service: FakeService) -> Iterator[str]:
    """Yield where the service answers."""
    with service.served() as served:
        yield served


@pytest.fixture
def connection(address: str) -> Iterator[Connection]:
    """Yield a connection to the service."""
    with Connection(address) as opened:
        yield opened


def post(address: str, path: str, data: bytes, **headers: str) -> requests.Response:
    """Post `data` as JSON, unless the headers say otherwise."""
    return requests.post(address + path, data=data, headers=TYPE | headers, timeout=20)


def test_what_is_saved_is_loaded(service: FakeService, address: str) -> None:
    """A value that was saved is what a load replies, in `message` and in `data`."""
    assert post(address, SAVE, body(value={"Apples": 8})).json() == {"error": None, "message": "Entry saved"}
    reply = post(address, LOAD, body())
    assert reply.status_code == 200
    assert reply.json() == {"error": None, "message": {"Apples": 8}, "data": {"Apples": 8}}
    assert service.addresses == {"127.0.0.1"}


def test_an_error_of_the_protocol_travels_in_a_200(address: str) -> None:
    """What a program must tell apart is `error` in a reply of status 200."""
    reply = post(address, LOAD, body("nobody"))
    assert (reply.status_code, reply.json()["error"]) == (200, "NoFile")


REFUSED: dict[str, tuple[str, str, dict[str, str], bytes, int, str]] = {
    "unknown path": ("POST", "/store/nothing", TYPE, body(), 404, "NoPath"),
    "path below a path": ("POST", LOAD + "/", TYPE, body(), 404, "NoPath"),
    "GET": ("GET", LOAD, {}, b"", 405, "BadMethod"),
    "PUT": ("PUT", SAVE, TYPE, body(value=1), 405, "BadMethod"),
    "POST to health": ("POST", "/health", TYPE, body(), 405, "BadMethod"),
    "no type": ("POST", LOAD, {}, body(), 415, "BadType"),
    "a form": ("POST", SAVE, {"Content-Type": "application/x-www-form-urlencoded"}, body(value=1), 415, "BadType"),
    "plain text": ("POST", SAVE, {"Content-Type": "text/plain"}, body(value=1), 415, "BadType"),
    "JSON of another kind": ("POST", LOAD, {"Content-Type": "application/jsonp"}, body(), 415, "BadType"),
    "UTF-16": ("POST", LOAD, {"Content-Type": "application/json; charset=utf-16"}, body(), 415, "BadType"),
    "gzip": ("POST", LOAD, TYPE | {"Content-Encoding": "gzip"}, gzip.compress(body()), 415, "BadType"),
    "too big": ("POST", SAVE, TYPE, body(value="x" * LIMIT), 413, "BodyTooBig"),
    "empty": ("POST", LOAD, TYPE, b"", 400, "BadRequest"),
    "cut JSON": ("POST", LOAD, TYPE, body()[:-1], 400, "BadRequest"),
    "text after it": ("POST", LOAD, TYPE, body() + b"1", 400, "BadRequest"),
    "no object": ("POST", LOAD, TYPE, b"[1]", 400, "BadRequest"),
    "NaN": ("POST", SAVE, TYPE, body(value=float("nan")), 400, "BadRequest"),
    "a number too large": ("POST", SAVE, TYPE, body(value=0).replace(b": 0", b": 1e400"), 400, "BadRequest"),
    "no UTF-8": ("POST", LOAD, TYPE, body().replace(b"list", b"\xff"), 400, "BadRequest"),
    "a value that is missing": ("POST", SAVE, TYPE, body(), 400, "BadRequest"),
    "a wrong type": ("POST", LOAD, TYPE, body(password=5), 400, "BadRequest"),
    "100,000 brackets": ("POST", SAVE, TYPE, body(value=0).replace(b": 0", b": " + b"[" * 100_000), 200, "BadValue"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_requests_are_refused(service: FakeService, address: str, case: str) -> None:
    """A wrong request gets the status and the error of its fault, as a CloudStore reply, and changes nothing."""
    method, path, headers, data, status, error = REFUSED[case]
    reply = requests.request(method, address + path, data=data, headers=headers, timeout=20)
    assert (reply.status_code, reply.json()["error"]) == (status, error)
    assert reply.json()["message"].endswith(".")
    assert not service.addresses


def test_a_repeated_header_is_a_list() -> None:
    """The values of a header that comes several times count together, in their order; none hides another."""
    fields = [(b"if-match", b'"a"'), (b"accept", b"*/*"), (b"if-match", b'"b", "c"')]
    assert headers_of({"headers": fields}) == {b"if-match": b'"a", "b", "c"', b"accept": b"*/*"}
    assert headers_of({"headers": fields[:2]}) == dict(fields[:2])


@pytest.mark.parametrize("codings", [("gzip", "identity"), ("identity", "gzip")])
def test_a_coding_is_not_hidden_by_another(connection: Connection, codings: tuple[str, str]) -> None:
    """A body with two Content-Encoding headers is refused as a compressed one, whichever comes last."""
    connection.post(SAVE, body(value=1), "".join(f"Content-Encoding: {each}\r\n" for each in codings))
    assert connection.answer().json["error"] == "BadType"


@pytest.mark.parametrize("case", ["unknown path", "GET", "too big", "NaN", "100,000 brackets", None])
def test_every_reply_is_for_browsers_too(address: str, case: str | None) -> None:
    """Every reply, an error's too, may be read by a page of any origin and is neither kept nor guessed at."""
    method, path, headers, data = REFUSED[case][:4] if case else ("POST", LOAD, TYPE, body())
    reply = requests.request(method, address + path, data=data, headers=headers, timeout=20)
    assert reply.headers["Access-Control-Allow-Origin"] == "*"
    assert reply.headers["Access-Control-Expose-Headers"] == EXPOSED
    assert reply.headers["CloudStore-Extensions"] == "version, stat, batch, page, once, brief, values"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["Content-Type"] == "application/json"
    assert int(reply.headers["Content-Length"]) == len(reply.content)
    assert "Server" not in reply.headers


@pytest.mark.parametrize("path", [SAVE, LOAD, wire.BATCH_PATH, "/health", "/store/nothing"])
def test_preflight(address: str, path: str) -> None:
    """A browser that asks first is told which headers it may send with JSON, and to remember it for a day."""
    reply = requests.options(address + path, headers={"Origin": "https://example.org"}, timeout=20)
    assert (reply.status_code, reply.content) == (204, b"")
    assert reply.headers["Access-Control-Allow-Origin"] == "*"
    assert "POST" in reply.headers["Access-Control-Allow-Methods"]
    assert reply.headers["Access-Control-Allow-Headers"] == ("content-type, idempotency-key, if-none-match, range")
    assert reply.headers["Access-Control-Max-Age"] == "86400"


@pytest.mark.parametrize(("path", "allowed"), [(SAVE, "POST, OPTIONS"), ("/health", "GET, HEAD, OPTIONS")])
def test_a_wrong_method_is_told_the_right_ones(address: str, path: str, allowed: str) -> None:
    """A reply that refuses the method names those that work."""
    assert requests.delete(address + path, timeout=20).headers["Allow"] == allowed


@pytest.mark.parametrize(
    "content_type", ["application/json", "APPLICATION/JSON;Charset=UTF-8", 'application/json; charset="utf-8"; a=b']
)
def test_types_that_are_json(address: str, content_type: str) -> None:
    """Parameters, capitals and quotes don't keep JSON in UTF-8 from being taken."""
    assert post(address, SAVE, body(value=None), **{"Content-Type": content_type}).json()["error"] is None


def test_retry_after_is_in_whole_seconds(service: FakeService, address: str) -> None:
    """The wait that a reply asks for is rounded up, for the header has no fractions."""
    service.reply = wire.failure(TooOftenError("Wait a little.", retry_after=2.1))
    reply = post(address, LOAD, body())
    assert (reply.status_code, reply.headers["Retry-After"]) == (429, "3")


def test_an_error_that_is_raised_is_replied(service: FakeService, address: str) -> None:
    """An error of ours becomes its reply wherever it was raised."""
    service.reply = TooOftenError("Wait a little.", retry_after=0.5)
    reply = post(address, LOAD, body())
    assert (reply.status_code, reply.json()["message"]) == (429, "Wait a little.")


def test_an_unforeseen_error_shows_nothing(
    service: FakeService, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug is status 500 and a sentence for the client, its reason in the log, and the request in neither."""
    service.reply = RuntimeError("a bug")
    reply = post(address, SAVE, body("private name", value="private value"))
    assert (reply.status_code, reply.json()["error"]) == (500, "ServerError")
    assert "bug" not in reply.text
    assert "Traceback" not in reply.text
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("cloudstore_mapping.web", logging.ERROR)
    assert "a bug" in caplog.text
    assert "private" not in caplog.text
    assert "k" * 32 not in caplog.text


def test_health(service: FakeService, address: str) -> None:
    """Health is 200 or 503, and HEAD says the same without a body."""
    assert requests.get(address + "/health", timeout=20).status_code == 200
    head = requests.head(address + "/health", timeout=20)
    assert (head.status_code, head.content) == (200, b"")
    service.is_healthy = False
    reply = requests.get(address + "/health", timeout=20)
    assert (reply.status_code, reply.json()["error"]) == (503, "Unavailable")


def test_one_connection_many_requests(connection: Connection) -> None:
    """A connection serves one request after the other, a refused one among them."""
    for _ in range(3):
        connection.post(LOAD, body())
        assert connection.answer().status == 200
        connection.post("/store/nothing", b"x" * LIMIT)
        assert connection.answer().status == 404


def test_pipelined_requests_are_answered_in_order(connection: Connection) -> None:
    """Requests that don't wait for the replies before them get theirs in the order they were sent."""
    connection.post(SAVE, body("0", value=0))
    connection.post(LOAD, body("0"))
    connection.post(SAVE, body("0", value=1))
    connection.post(LOAD, body("0"))
    assert [connection.answer().json["message"] for _ in range(4)] == ["Entry saved", 0, "Entry saved", 1]


def test_chunked_bodies(connection: Connection) -> None:
    """A body of unknown length is taken in whatever pieces it comes."""
    pieces = b"".join(chunk(bytes([byte])) for byte in body(value=[1, 2]))
    connection.start(SAVE, JSON + "Transfer-Encoding: chunked\r\n", pieces + chunk(b""))
    assert connection.answer().json["error"] is None
    connection.post(LOAD, body())
    assert connection.answer().json["data"] == [1, 2]


def test_chunks_of_a_byte(address: str, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are added to a body together, for each of a million would cost more than a request."""
    added: list[int] = []
    on_body = HttpToolsProtocol.on_body

    def add(protocol: HttpToolsProtocol, data: bytes) -> None:
        added.append(len(data))
        on_body(protocol, data)

    monkeypatch.setattr(HttpToolsProtocol, "on_body", add)
    text = "x" * 50_000
    data = body(value=text)
    chunks = b"".join(chunk(bytes([each])) for each in data)
    with Connection(address) as connection:
        connection.start(SAVE, f"{JSON}Transfer-Encoding: chunked\r\n", chunks + chunk(b""))
        assert connection.answer().status == 200
    assert bytes(service.values["list"]) == f'"{text}"'.encode()
    assert sum(added) == len(data)
    assert len(added) < len(chunks) // (BLIND_PIECE // 2)


def test_a_length_over_the_limit_is_refused_unread(connection: Connection) -> None:
    """A body that says it is too big is refused before its first byte, and the connection ends."""
    connection.start(SAVE, f"{JSON}Content-Length: {LIMIT + 1}\r\nExpect: 100-continue\r\n")
    answer = connection.answer()
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    connection.send(b"x" * (LIMIT + 1))
    assert connection.rest() == b""


def test_chunks_over_the_limit_are_refused_as_they_come(connection: Connection) -> None:
    """A body of unknown length is refused once it has become too big, whether or not it ever ends."""
    connection.start(SAVE, JSON + "Transfer-Encoding: chunked\r\n", chunk(b"x" * LIMIT) + chunk(b"x"))
    answer = connection.answer()
    assert (answer.status, answer.json["error"], answer.headers["connection"]) == (413, "BodyTooBig", "close")


def test_a_body_at_the_limit_is_taken(address: str) -> None:
    """The limit itself is allowed, also for a value that is too large to be read on the loop."""
    text = "x" * (LIMIT - len(body(value="")))
    assert len(body(value=text)) == LIMIT
    assert post(address, SAVE, body(value=text)).json()["error"] is None
    assert post(address, LOAD, body()).json()["data"] == text
    assert post(address, SAVE, body(value=text)[:-1]).status_code == 400


def test_two_lengths_are_no_request(service: FakeService, connection: Connection) -> None:
    """A body whose end two headers tell differently, the way requests are smuggled, is refused."""
    lengths = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"
    connection.start(SAVE, JSON + lengths, chunk(body(value=1)) + chunk(b""))
    assert connection.answer().status == 400
    assert not service.addresses


def test_a_batch_over_http() -> None:
    """A batch is posted to its own path, under the same rules for its body, and answered request by request."""
    with Service(new_storage(), Settings(max_body_bytes=LIMIT)) as service, server.background(service) as address:
        key = service.accounts.create("owner")
        requests_: list[dict[str, Any]] = [{"file": "a", "value": [1]}, {"file": "a", "brief": True}, {"file": "b"}]
        reply = post(address, wire.BATCH_PATH, json.dumps({"key": key, "requests": requests_}).encode())
        saved, loaded, absent = reply.json()["data"]
        assert loaded == {"error": None, "message": "", "data": [1], "version": saved["version"]}
        assert (reply.status_code, absent["error"]) == (200, "NoFile")
        requests_[2]["options"] = "delete"
        atomic = json.dumps({"key": key, "requests": requests_, "atomic": True}).encode()
        refused = post(address, wire.BATCH_PATH, atomic)
        assert (refused.status_code, refused.json()["error"]) == (200, "NoFile")
        assert refused.json()["message"].startswith("Request 3 of 3: ")
        for data, status in ((b" " * LIMIT + atomic, 413), (b"[]", 400), (b'{"key":"k","requests":[]}', 400)):
            assert post(address, wire.BATCH_PATH, data).status_code == status


@pytest.mark.parametrize("base_path", ["", "/", "/a/b", "/a/b/"])
def test_base_path(base_path: str) -> None:
    """The application answers below its base path, with or without a slash at its end, and nowhere else."""
    service = FakeService()
    app = make_app(service.as_service(), base_path=base_path)
    service.close()
    assert asyncio.run(status_of(app, base_path.rstrip("/") + "/health")) == 200
    assert asyncio.run(status_of(app, "/x/health")) == 404


async def status_of(app: Any, path: str) -> int:
    """Return the status that the application answers a GET with."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({"type": "http", "method": "GET", "path": path, "headers": [], "client": None}, receive, send)
    status: int = sent[0]["status"]
    return status


def test_only_http_is_spoken() -> None:
    """A server that brings another protocol is told so."""
    service = FakeService()
    service.close()
    app: Any = make_app(service.as_service())
    with pytest.raises(NotImplementedError, match="websocket"):
        asyncio.run(app({"type": "websocket"}, None, None))
