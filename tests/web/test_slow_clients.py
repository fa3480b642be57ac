"""Clients that stop, drip, flood or leave in the middle: each costs a socket for a while, and nobody else anything."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
import requests
from msgspec import Raw

from cloudstore_mapping.service.settings import Settings
from tests.raw_http import JSON, Connection, FakeService, body, chunk
from tests.support.matrix import spread

SAVE = "/store/save"
LOAD = "/store/load"


@pytest.fixture
def patient() -> Iterator[tuple[FakeService, str]]:
    """Yield a service that waits longer than any test, and its address."""
    service = FakeService(Settings(body_timeout=600))
    with service.served() as address:
        yield service, address


@pytest.fixture
def hasty() -> Iterator[tuple[FakeService, str]]:
    """Yield a service that waits for three tenths of a second, and its address."""
    service = FakeService(Settings(body_timeout=0.3, max_body_bytes=32 * 2**20))
    with service.served() as address:
        yield service, address


def begin_a_body(connection: Connection) -> None:
    """Send half a request and stop."""
    connection.start(SAVE, f"{JSON}Content-Length: 1000\r\n", body(value=1)[:20])


def test_half_bodies_slow_nobody(patient: tuple[FakeService, str]) -> None:
    """Fifty clients that stop in the middle of a body keep no other client from being answered."""
    service, address = patient
    with ExitStack() as stack, requests.Session() as session:
        for _ in range(50):
            begin_a_body(stack.enter_context(Connection(address)))
        for number in range(300):
            data = body(f"key {number % 10}", value=number)
            saved = session.post(address + SAVE, data=data, headers={"Content-Type": "application/json"}, timeout=20)
            assert saved.json()["message"] == "Entry saved"
    assert len(service.values) == 10


def test_half_headers_slow_nobody(patient: tuple[FakeService, str]) -> None:
    """Fifty clients that stop in the middle of a header keep no other client from being answered."""
    _, address = patient
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(Connection(address)).send(b"POST /cloudstore/store/save HTTP/1.1\r\nHost: te")
        connection = stack.enter_context(Connection(address))
        for _ in range(300):
            connection.post(LOAD, body())
            assert connection.answer().status == 200


def test_a_body_has_a_deadline(hasty: tuple[FakeService, str]) -> None:
    """A body that doesn't arrive in time is refused with a sentence, and its connection ends."""
    service, address = hasty
    with Connection(address) as connection:
        begin_a_body(connection)
        answer = connection.answer()
        assert (answer.status, answer.json["error"], answer.headers["connection"]) == (400, "BadRequest", "close")
        assert "0.3 seconds (the service's body_timeout)" in answer.json["message"]
        assert connection.rest() == b""
    assert not service.addresses


def test_each_of_many_bodies_has_its_deadline(hasty: tuple[FakeService, str]) -> None:
    """Deadlines hold for each body of a crowd, and again for bodies that begin after they have passed."""
    _, address = hasty
    for _ in range(3):
        with ExitStack() as stack:
            crowd = [stack.enter_context(Connection(address)) for _ in range(10)]
            for connection in crowd:
                begin_a_body(connection)
            assert [connection.answer().status for connection in crowd] == [400] * 10


def test_a_dripping_body_has_the_same_deadline(hasty: tuple[FakeService, str]) -> None:
    """A body that goes on arriving byte by byte is ended as one that stopped."""
    _, address = hasty
    with Connection(address) as dripping, Connection(address) as other:
        dripping.start(SAVE, JSON + "Transfer-Encoding: chunked\r\n")
        while not select.select([dripping.socket], [], [], 0)[0]:
            dripping.send(chunk(b" "))
            other.post(LOAD, body())
            assert other.answer().status == 200
        assert dripping.answer().status == 400


@pytest.mark.parametrize(
    "sent", spread([[b"", b"\r\n", b"POST /cloudstore/store/save HTT", b"GET / HTTP/1.1\r\nHost: te"]], 3)
)
def test_headers_have_a_deadline(hasty: tuple[FakeService, str], sent: bytes) -> None:
    """A new connection on which no headers arrive in time ends without a reply."""
    _, address = hasty
    with Connection(address) as connection:
        connection.send(sent)
        assert connection.rest() == b""


@pytest.mark.parametrize(
    "sent", spread([[b"GET / HTTP/1.1\r\nHost: te", b"\r\n", b"POST /cloudstore/store/save HTT"]], 3)
)
def test_later_headers_have_a_deadline(hasty: tuple[FakeService, str], sent: bytes) -> None:
    """A connection that was used before ends as well when the headers of its next request don't arrive in time."""
    _, address = hasty
    with Connection(address) as connection:
        connection.post(LOAD, body())
        assert connection.answer().status == 200
        connection.send(sent)
        assert connection.rest() == b""


def test_an_idle_connection_is_kept(hasty: tuple[FakeService, str]) -> None:
    """Between two requests a connection may stand idle for longer than a header may take."""
    _, address = hasty
    with Connection(address) as idle, Connection(address) as silent:
        idle.post(LOAD, body())
        assert idle.answer().status == 200
        assert silent.rest() == b""
        idle.post(LOAD, body())
        assert idle.answer().status == 200


def test_a_long_answer_has_no_deadline(hasty: tuple[FakeService, str]) -> None:
    """A request that has arrived is answered however long that takes."""
    service, address = hasty
    service.may_write.clear()
    with Connection(address) as waiting, Connection(address) as silent:
        waiting.post(SAVE, body(value=1))
        assert silent.rest() == b""
        service.may_write.set()
        assert waiting.answer().json["message"] == "Entry saved"


@pytest.mark.parametrize(
    ("first", "more"),
    [(b"GET / HTTP/1.1\r\nX: ", b"x" * 1000), (b"GET / HTTP/1.1\r\n", b"X: x\r\n" * 100), (b"", b"\r\n" * 100)],
    ids=["one long header", "many headers", "empty lines"],
)
def test_headers_without_end_are_refused(patient: tuple[FakeService, str], first: bytes, more: bytes) -> None:
    """Headers that go on and on are ended by their size, long before their deadline."""
    _, address = patient
    with Connection(address) as connection:
        connection.send(first)
        flood(connection, more)
        assert connection.rest()[:12] in {b"", b"HTTP/1.1 400"}


def test_trailers_without_end_are_refused() -> None:
    """What follows the last chunk of a body is limited as well."""
    service = FakeService(Settings(body_timeout=600, max_body_bytes=1000))
    with service.served() as address, Connection(address) as connection:
        connection.start(SAVE, JSON + "Transfer-Encoding: chunked\r\n", b"0\r\n")
        flood(connection, b"X-Trailer: x\r\n" * 100)
        assert connection.rest() == b""
    assert not service.addresses


def flood(connection: Connection, data: bytes) -> None:
    """Send `data` far more often than any limit allows, or until the other side has had enough."""
    with suppress(ConnectionError):
        for _ in range(2000):
            connection.send(data)


def test_a_client_that_leaves_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    """A client that goes away in the middle of a body, or before its reply, leaves no trace in the log."""
    service = FakeService()
    service.may_write.clear()
    with service.served() as address:
        for _ in range(20):
            with Connection(address) as connection:
                begin_a_body(connection)
            with Connection(address) as connection:
                connection.post(SAVE, body("written", value=1))
            with Connection(address) as connection:
                connection.post(LOAD, body())
        with Connection(address) as connection:
            connection.post(SAVE, body("last", value=1))
            service.may_write.set()
            assert connection.answer().status == 200
    assert set(service.values) == {"written", "last"}
    assert not caplog.records


def test_a_client_with_many_requests_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    """A client that breaks off while several of its requests wait leaves no trace in the log either."""
    service = FakeService()
    service.may_write.clear()
    with service.served() as address, Connection(address) as leaving, Connection(address) as other:
        for _ in range(3):
            leaving.post(SAVE, body(value=1))
        other.post(LOAD, body())
        assert other.answer().status == 200
        leaving.reset()
        service.may_write.set()
        for _ in range(3):
            other.post(SAVE, body("last", value=1))
            assert other.answer().status == 200
    assert not caplog.records


def test_a_client_that_reads_nothing_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    """A reply that nobody reads isn't kept: its connection ends, and holds up no server that is to end."""
    service = FakeService(Settings(body_timeout=0.1))
    service.values["large"] = Raw(b'"%b"' % (b"x" * 12 * 2**20))
    with ExitStack() as stack:
        with service.served() as address:
            reader = stack.enter_context(Connection(address))
            reader.post(LOAD, body("large"))
            assert select.select([reader.socket], [], [], 20)[0]
        (record,) = caplog.records
        assert "more slowly than min_upload_rate" in record.getMessage()


def test_a_slow_reader_gets_its_reply(hasty: tuple[FakeService, str]) -> None:
    """A client that takes its reply slowly gets all of it, for longer than a body may take."""
    service, address = hasty
    service.values["large"] = Raw(b'"%b"' % (b"x" * 12 * 2**20))
    size = 0
    with Connection(address) as other, Connection(address) as reader:
        other.post(LOAD, body())  # before its headers are overdue
        reader.post(LOAD, body("large"))
        assert other.answer().status == 200
        while size < 24 * 2**20:
            piece = reader.socket.recv(16 * 2**10)
            assert piece
            size += len(piece)
            other.post(LOAD, body())
            assert other.answer().status == 200
