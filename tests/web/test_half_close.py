"""A client that ends its side of the connection after its requests gets its replies."""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from msgspec import Raw

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web.server import background
from tests.raw_http import JSON, Answer, Connection, FakeService, body, chunk
from tests.serving import serving, told
from tests.storages import new_storage

SAVE = "/store/save"
LOAD = "/store/load"


@pytest.fixture
def service() -> Iterator[FakeService]:
    """Return a service to be asked over HTTP."""
    fake = FakeService()
    yield fake
    fake.close()


@pytest.fixture
def address(service: FakeService, caplog: pytest.LogCaptureFixture) -> Iterator[str]:
    """Yield where it answers, without anything to log."""
    with service.served() as served:
        yield served
    assert not caplog.records


def end(connection: Connection) -> None:
    """End the client's side of a connection."""
    connection.socket.shutdown(socket.SHUT_WR)


def see_that_it_was_read(address: str) -> None:
    """Return when the service has read what was sent before, by another request that is answered after it."""
    with Connection(address) as other:
        for _ in range(2):
            other.post(LOAD, body("absent"))
            assert other.answer().status == 200


def last_answer(connection: Connection) -> Answer:
    """Read a reply, after which the service ends the connection."""
    answer = connection.answer()
    assert connection.rest() == b""
    return answer


@pytest.mark.parametrize("path", [SAVE, LOAD, "/health"])
def test_a_request_is_answered(address: str, path: str) -> None:
    """A reply that is ready at once arrives, and then the service ends its side too."""
    with Connection(address) as connection:
        if path == "/health":
            connection.send(f"GET {connection.base}{path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        else:
            connection.post(path, body(value=1) if path == SAVE else body())
        end(connection)
        assert last_answer(connection).status == 200


@pytest.mark.parametrize("expects", ["", "Connection: close\r\n", "Content-Encoding: identity\r\n"])
def test_a_write_that_takes_its_time(service: FakeService, address: str, expects: str) -> None:
    """A write that is done only after the client has ended its side is still answered."""
    service.may_write.clear()
    with Connection(address) as connection:
        connection.post(SAVE, body(value=1), expects)
        end(connection)
        see_that_it_was_read(address)
        service.may_write.set()
        assert last_answer(connection).json["message"] == "Entry saved"


def test_requests_sent_ahead(service: FakeService, address: str) -> None:
    """Requests that wait for each other are all answered, in their order."""
    service.may_write.clear()
    with Connection(address) as connection:
        for number in range(4):
            connection.post(SAVE, body(value=number))
        connection.post(LOAD, body())
        end(connection)
        see_that_it_was_read(address)
        service.may_write.set()
        assert [connection.answer().json["message"] for _ in range(4)] == ["Entry saved"] * 4
        assert last_answer(connection).json["data"] == 3


def test_a_large_reply(service: FakeService, address: str) -> None:
    """A reply that is larger than what the system buffers arrives whole."""
    service.values["large"] = Raw(b'"%b"' % (b"x" * 12 * 2**20))
    with Connection(address) as connection:
        connection.post(LOAD, body("large"))
        end(connection)
        see_that_it_was_read(address)
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
def test_a_body_that_is_cut_off(service: FakeService, address: str, length: str, cut: bytes) -> None:
    """A request without its whole body is not answered and not done; one that came whole before it is."""
    service.may_write.clear()
    with Connection(address) as alone, Connection(address) as behind:
        for connection in (alone, behind):
            if connection is behind:
                behind.post(SAVE, body("whole", value=1))
            connection.start(SAVE, JSON + length, cut)
            end(connection)
        see_that_it_was_read(address)
        service.may_write.set()
        assert alone.rest() == b""
        assert last_answer(behind).json["message"] == "Entry saved"
    assert set(service.values) == {"whole"}


def test_headers_that_are_cut_off(service: FakeService, address: str) -> None:
    """Half a request behind a whole one keeps the whole one from nothing."""
    service.may_write.clear()
    with Connection(address) as connection:
        connection.post(SAVE, body(value=1))
        connection.send(b"POST /cloudstore/store/sa")
        end(connection)
        see_that_it_was_read(address)
        service.may_write.set()
        assert last_answer(connection).json["message"] == "Entry saved"


@pytest.mark.parametrize("sent", [b"", b"POST /cloudstore/sto"])
def test_nothing_is_waited_for(address: str, sent: bytes) -> None:
    """A connection on which nothing is to be answered ends at once."""
    with Connection(address) as connection:
        connection.post(LOAD, body())
        assert connection.answer().status == 200
        connection.send(sent)
        end(connection)
        assert connection.rest() == b""


def test_a_reply_that_nobody_reads_ends(caplog: pytest.LogCaptureFixture) -> None:
    """A client that ended its side and reads nothing holds no connection longer than another one."""
    service = FakeService(Settings(body_timeout=0.1))
    service.values["large"] = Raw(b'"%b"' % (b"x" * 12 * 2**20))
    with ExitStack() as stack:
        with service.served() as address:
            reader = stack.enter_context(Connection(address))
            reader.post(LOAD, body("large"))
            end(reader)
            assert select.select([reader.socket], [], [], 20)[0]
        (record,) = caplog.records
        assert "more slowly than min_upload_rate" in record.getMessage()


def test_files(caplog: pytest.LogCaptureFixture) -> None:
    """A media file is uploaded and downloaded by a client that ends its side after each request."""
    data = bytes(range(256)) * 2**14
    with Service(new_storage()) as service, background(service) as address:
        key = service.accounts.create("owner")
        form = (
            f'--x\r\nContent-Disposition: form-data; name="key"\r\n\r\n{key}\r\n'
            '--x\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
        ).encode() + data
        form += b"\r\n--x--\r\n"
        with Connection(address) as connection:
            headers = f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(form)}\r\n"
            connection.start("/upload-2", headers, form)
            end(connection)
            stored = last_answer(connection).json["data"]
        with Connection(address) as connection:
            link = f"{connection.base}/files/{stored['folder']}/{stored['id']}.bin"
            connection.send(f"GET {link} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            end(connection)
            assert last_answer(connection).body == data
    assert not caplog.records


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by the program openssl")
@pytest.mark.parametrize("says_goodbye", [False, True])
def test_tls_has_no_half(tmp_path: Path, says_goodbye: bool) -> None:
    """Over TLS a client that ends its side has ended the connection: it closes, and the service goes on."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    files = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with serving("--json", "--store", str(tmp_path / "s.db"), *files) as process:
        first = told(process)
        where = urlsplit(first["address"])
        data = body(key=first["api_key"], value="x" * 100_000)
        head = f"POST /cloudstore/store/save HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: {len(data)}\r\n\r\n".encode()
        plain = socket.create_connection((where.hostname, where.port), 20)
        with context.wrap_socket(plain) as connection:
            connection.sendall(head + data)
            if says_goodbye:
                # The reply may be on its way already, which Python's `unwrap` reports as an error.
                with contextlib.suppress(ssl.SSLError):
                    connection.unwrap().close()
            else:
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(2**16):
                    pass
        plain = socket.create_connection((where.hostname, where.port), 20)
        with context.wrap_socket(plain) as connection:
            connection.sendall(b"GET /cloudstore/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert connection.recv(2**16).startswith(b"HTTP/1.1 200 ")
