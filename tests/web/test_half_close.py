"""A client that ends its side of the connection after its requests gets its replies."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from msgspec import Raw

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web.options import Options
from tests.raw_http import JSON, Answer, Connection, FakeService, TLSConnection, body, chunk, served_with
from tests.storages import new_storage
from tests.support.certificates import SELF_SIGNED

SAVE = "/store/save"
LOAD = "/store/load"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Return the options of a service with a certificate."""
    file = tmp_path_factory.mktemp("certificate") / "both.pem"
    file.write_text(SELF_SIGNED)
    return Options(tls_cert=str(file), tls_key=str(file))


@dataclass
class Kind:
    """A kind of connection: plain, or a version of TLS, with or without an end of the TCP connection below."""

    options: Options
    version: ssl.TLSVersion | None
    ends_tcp: bool

    def connect(self, address: str) -> Connection:
        """Return a connection of this kind."""
        if self.version is None:
            return Connection(address)
        return TLSConnection(address, self.version, ends_tcp=self.ends_tcp)


@pytest.fixture(
    params=[
        (None, True),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_2, False),
        (ssl.TLSVersion.TLSv1_3, True),
        (ssl.TLSVersion.TLSv1_3, False),
    ],
    ids=["http", "TLS 1.2", "TLS 1.2 without FIN", "TLS 1.3", "TLS 1.3 without FIN"],
)
def kind(request: pytest.FixtureRequest, certificate: Options) -> Kind:
    """Return each kind of connection."""
    version, ends_tcp = request.param
    return Kind(Options() if version is None else certificate, version, ends_tcp)


@pytest.fixture
def service() -> Iterator[FakeService]:
    """Return a service to be asked over HTTP."""
    fake = FakeService()
    yield fake
    fake.close()


@pytest.fixture
def connect(service: FakeService, kind: Kind, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], Connection]]:
    """Yield a function that connects to the service, which has nothing to log."""
    with service.served(kind.options) as address:
        yield lambda: kind.connect(address)
    assert not caplog.records


def see_that_it_was_read(connect: Callable[[], Connection]) -> None:
    """Return when the service has read what was sent before, by another request that is answered after it."""
    with connect() as other:
        for _ in range(2):
            other.post(LOAD, body("absent"))
            assert other.answer().status == 200


def last_answer(connection: Connection) -> Answer:
    """Read a reply, after which the service ends the connection."""
    answer = connection.answer()
    assert connection.rest() == b""
    return answer


@pytest.mark.parametrize("path", [SAVE, LOAD, "/health"])
def test_a_request_is_answered(connect: Callable[[], Connection], path: str) -> None:
    """A reply that is ready at once arrives, and then the service ends its side too."""
    with connect() as connection:
        if path == "/health":
            connection.send(f"GET {connection.base}{path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        else:
            connection.post(path, body(value=1) if path == SAVE else body())
        connection.end()
        assert last_answer(connection).status == 200


@pytest.mark.parametrize("expects", ["", "Connection: close\r\n", "Content-Encoding: identity\r\n"])
def test_a_write_that_takes_its_time(service: FakeService, connect: Callable[[], Connection], expects: str) -> None:
    """A write that is done only after the client has ended its side is still answered."""
    service.may_write.clear()
    with connect() as connection:
        connection.post(SAVE, body(value=1), expects)
        connection.end()
        see_that_it_was_read(connect)
        service.may_write.set()
        assert last_answer(connection).json["message"] == "Entry saved"


def test_requests_sent_ahead(service: FakeService, connect: Callable[[], Connection]) -> None:
    """Requests that wait for each other are all answered, in their order."""
    service.may_write.clear()
    with connect() as connection:
        for number in range(4):
            connection.post(SAVE, body(value=number))
        connection.post(LOAD, body())
        connection.end()
        see_that_it_was_read(connect)
        service.may_write.set()
        assert [connection.answer().json["message"] for _ in range(4)] == ["Entry saved"] * 4
        assert last_answer(connection).json["data"] == 3


def test_an_end_while_requests_wait(service: FakeService, connect: Callable[[], Connection]) -> None:
    """Requests that wait unread for the reply to an earlier one are answered, also if the client ends after that."""
    service.may_write.clear()
    with connect() as connection:
        for number in range(2):
            connection.post(SAVE, body(value=number))
        see_that_it_was_read(connect)
        connection.end()
        see_that_it_was_read(connect)
        service.may_write.set()
        assert connection.answer().json["message"] == "Entry saved"
        assert last_answer(connection).json["message"] == "Entry saved"


def test_a_large_reply(service: FakeService, connect: Callable[[], Connection]) -> None:
    """A reply that is larger than what the system buffers arrives whole."""
    service.values["large"] = Raw(b'"%b"' % (b"x" * 12 * 2**20))
    with connect() as connection:
        connection.post(LOAD, body("large"))
        connection.end()
        see_that_it_was_read(connect)
        assert len(last_answer(connection).json["data"]) == 12 * 2**20


@pytest.mark.parametrize(
    ("length", "cut"),
    [
        ("Content-Length: 1000\r\n", b""),
        ("Content-Length: 1000\r\n", body("cut", value=2)),
        ("Transfer-Encoding: chunked\r\n", b""),
        ("Transfer-Encoding: chunked\r\n", chunk(body("cut", value=2))),
    ],
)
def test_a_body_that_is_cut_off(
    service: FakeService, connect: Callable[[], Connection], length: str, cut: bytes
) -> None:
    """A request without its whole body is not answered and not done; one that came whole before it is."""
    service.may_write.clear()
    with connect() as alone, connect() as behind:
        for connection in (alone, behind):
            if connection is behind:
                behind.post(SAVE, body("whole", value=1))
            connection.start(SAVE, JSON + length, cut)
            connection.end()
        see_that_it_was_read(connect)
        service.may_write.set()
        assert alone.rest() == b""
        assert last_answer(behind).json["message"] == "Entry saved"
    assert set(service.values) == {"whole"}


def test_headers_that_are_cut_off(service: FakeService, connect: Callable[[], Connection]) -> None:
    """Half a request behind a whole one keeps the whole one from nothing."""
    service.may_write.clear()
    with connect() as connection:
        connection.post(SAVE, body(value=1))
        connection.send(b"POST /cloudstore/store/sa")
        connection.end()
        see_that_it_was_read(connect)
        service.may_write.set()
        assert last_answer(connection).json["message"] == "Entry saved"


@pytest.mark.parametrize("sent", [b"", b"POST /cloudstore/sto"])
def test_nothing_is_waited_for(connect: Callable[[], Connection], sent: bytes) -> None:
    """A connection on which nothing is to be answered ends at once."""
    with connect() as connection:
        connection.post(LOAD, body())
        assert connection.answer().status == 200
        connection.send(sent)
        connection.end()
        assert connection.rest() == b""


def test_a_reply_that_nobody_reads_ends(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """A client that ended its side and reads nothing holds no connection longer than another one."""
    service = FakeService(Settings(body_timeout=0.1))
    service.values["large"] = Raw(b'"%b"' % (b"x" * 12 * 2**20))
    with ExitStack() as stack:
        with service.served(kind.options) as address:
            reader = stack.enter_context(kind.connect(address))
            reader.post(LOAD, body("large"))
            reader.end()
            assert select.select([reader.socket], [], [], 20)[0]
        (record,) = caplog.records
        assert "more slowly than min_upload_rate" in record.getMessage()


def test_files(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """A media file is uploaded and downloaded by a client that ends its side after each request."""
    data = bytes(range(256)) * 2**14
    with Service(new_storage()) as service, served_with(service, kind.options) as address:
        key = service.accounts.create("owner")
        form = (
            f'--x\r\nContent-Disposition: form-data; name="key"\r\n\r\n{key}\r\n'
            '--x\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
        ).encode() + data
        form += b"\r\n--x--\r\n"
        with kind.connect(address) as connection:
            headers = f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(form)}\r\n"
            connection.start("/upload-2", headers, form)
            connection.end()
            stored = last_answer(connection).json["data"]
        with kind.connect(address) as connection:
            link = f"{connection.base}/files/{stored['folder']}/{stored['id']}.bin"
            connection.send(f"GET {link} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            connection.end()
            assert last_answer(connection).body == data
    assert not caplog.records


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_cut_tls_connection(certificate: Options, service: FakeService, version: ssl.TLSVersion) -> None:
    """A TLS connection that ends without a close_notify was cut off: it closes, and the service goes on."""
    service.may_write.clear()
    with service.served(certificate) as address:
        with TLSConnection(address, version) as cut:
            cut.post(SAVE, body(value=1))
            cut.socket.shutdown(socket.SHUT_WR)
            while cut.socket.recv(2**16):
                pass
        service.may_write.set()
        with TLSConnection(address, version) as whole:
            whole.post(LOAD, body("absent"))
            assert whole.answer().status == 200
