"""The server: its address, its beginning and its end."""

from __future__ import annotations

import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import pytest
import requests
from msgspec import Raw

from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web import protocol, server
from cloudstore_mapping.web.server import background
from tests.media_fakes import Uploader, comes_to
from tests.raw_http import JSON, Connection, FakeService, body
from tests.storages import new_storage

# A program that serves until it is told to end; a line on its standard input lets the writes go on.
PROGRAM = """
import sys, threading
from cloudstore_mapping.web.server import run
from tests.raw_http import FakeService

service = FakeService()
service.may_write.clear()
threading.Thread(target=lambda: sys.stdin.readline() and service.may_write.set(), daemon=True).start()
run(service, port=0, on_ready=lambda address: print(address, flush=True))
print("closed" if service.closed else "open", len(service.values))
"""


def is_closed(address: str) -> bool:
    """Whether nothing listens at the address."""
    where = urlsplit(address)
    try:
        socket.create_connection((where.hostname or "", where.port or 0), timeout=20).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: signal.Signals) -> None:
    """A signal stops new connections, lets a write that was accepted be done and answered, and exits with status 0."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        address = program.stdout.readline().strip()
        with Connection(address) as writing, Connection(address) as idle:
            idle.post("/store/load", body())
            assert idle.answer().status == 200
            writing.post("/store/save", body(value=1))
            idle.post("/store/load", body())
            assert idle.answer().status == 200
            program.send_signal(number)
            assert idle.rest() == b""
            assert is_closed(address)
            program.stdin.write("go on\n")
            program.stdin.flush()
            answer = writing.answer()
            assert (answer.json["message"], answer.headers["connection"]) == ("Entry saved", "close")
            assert writing.rest() == b""
        said, complained = program.communicate(timeout=20)
    assert (program.returncode, said, complained) == (0, "closed 1\n", "")


def test_handlers_are_put_back() -> None:
    """A program that goes on after serving has the signal handlers it had before."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    service = FakeService()
    server.run(service.as_service(), port=0, on_ready=lambda _: signal.raise_signal(signal.SIGTERM))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert service.closed


def test_a_body_that_never_ends_holds_no_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A client in the middle of a body is waited for a while when the server ends, then left."""
    monkeypatch.setattr(protocol, "GRACE", 0.05)
    service = FakeService(Settings(body_timeout=600))
    with service.served() as address:
        connection = Connection(address)
        connection.start("/store/save", f"{JSON}Content-Length: 1000\r\n", b"{")
    with connection:
        assert connection.rest() == b""
    assert not caplog.records


def test_a_body_that_is_arriving_is_still_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose body arrives whole after the server was told to end is answered, however long that takes."""
    monkeypatch.setattr(protocol, "GRACE", 1)
    service = FakeService()
    service.may_write.clear()
    data = body(value=1)

    def talk(address: str) -> str:
        with Connection(address) as arriving, Connection(address) as stopped, Connection(address) as idle:
            try:
                arriving.start("/store/save", f"{JSON}Content-Length: {len(data)}\r\n", data[:9])
                stopped.start("/store/save", f"{JSON}Content-Length: {len(data)}\r\n", data[:9])
                idle.post("/store/load", body())
                assert idle.answer().status == 200
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
            assert idle.rest() == b""
            arriving.send(data[9:])
            assert stopped.rest() == b""
            service.may_write.set()
            return str(arriving.answer().json["message"])

    with ThreadPoolExecutor(1) as pool:
        told: list[Future[str]] = []
        server.run(service.as_service(), port=0, on_ready=lambda address: told.append(pool.submit(talk, address)))
        assert told[0].result() == "Entry saved"


def test_a_body_that_goes_on_arriving(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the server ends, a body is waited for as long as some of it comes within each `GRACE`."""
    monkeypatch.setattr(protocol, "GRACE", 1)
    service = FakeService()
    data = body(value=1)

    def talk(address: str) -> str:
        with Connection(address) as arriving, Connection(address) as other:
            arriving.start("/store/save", f"{JSON}Content-Length: {len(data)}\r\n", data[:9])
            other.post("/store/load", body())
            assert other.answer().status == 200
            os.kill(os.getpid(), signal.SIGTERM)
            for number in range(9, 14):
                assert not select.select([arriving.socket], [], [], 0.3)[0]
                arriving.send(data[number : number + 1])
            arriving.send(data[14:])
            return str(arriving.answer().json["message"])

    with ThreadPoolExecutor(1) as pool:
        told: list[Future[str]] = []
        server.run(service.as_service(), port=0, on_ready=lambda address: told.append(pool.submit(talk, address)))
        assert told[0].result() == "Entry saved"


def test_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that could not be ended in time is cut off, and the server ends."""
    monkeypatch.setattr(server, "LAST_RESORT", 0)
    service = FakeService(Settings(body_timeout=600))
    service.values["large"] = Raw(b'"%b"' % (b"x" * 12 * 2**20))
    with ExitStack() as stack:
        with service.served() as address:
            reader = stack.enter_context(Connection(address))
            reader.post("/store/load", body("large"))
            assert select.select([reader.socket], [], [], 20)[0]
        assert len(reader.rest()) < 24 * 2**20


def test_background_ends_with_its_block() -> None:
    """The server's thread and port are gone after the block, also after an error in it, and the service is open."""
    service = FakeService()
    threads = set(threading.enumerate())
    addresses: list[str] = []

    def fail() -> NoReturn:
        with server.background(service.as_service()) as address:
            addresses.append(address)
            assert requests.get(address + "/health", timeout=20).status_code == 200
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert is_closed(addresses[0])
    for thread in set(threading.enumerate()) - threads:  # those for reading end by themselves
        thread.join(20)
    assert set(threading.enumerate()) <= threads
    assert not service.closed
    service.close()


def resolves_localhost() -> bool:
    """Return whether the name ``localhost`` has an address, as on any installed system but not in a bare root."""
    try:
        socket.getaddrinfo("localhost", None)
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "base_path", "shown"),
    [
        ("127.0.0.1", "/cloudstore", "http://127.0.0.1:{}/cloudstore"),
        ("localhost", "/a/", "http://localhost:{}/a"),
        ("127.0.0.1", "", "http://127.0.0.1:{}"),
        ("::1", "/cloudstore", "http://[::1]:{}/cloudstore"),
    ],
)
def test_the_address_is_one_to_connect_to(host: str, base_path: str, shown: str) -> None:
    """The address that is handed out works as it stands, an IPv6 one in its brackets."""
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    if host == "localhost" and not resolves_localhost():
        pytest.skip("this machine has no /etc/hosts, so the name localhost has no address")
    service = FakeService()
    with server.background(service.as_service(), host=host, base_path=base_path) as address:
        assert address == shown.format(urlsplit(address).port)
        assert requests.get(address + "/health", timeout=20).status_code == 200
    service.close()


def test_a_port_that_is_taken() -> None:
    """A port that another program has is an error that names it and says what to do, and the service stays open."""
    service = FakeService()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"127\.0\.0\.1, port {port} .*choose another"):
            server.run(service.as_service(), port=port)
    assert not service.closed
    service.close()


def test_a_port_is_free_again_at_once() -> None:
    """A server can be started anew on the port of one that has just ended with connections open."""
    service = FakeService()
    with server.background(service.as_service()) as address, Connection(address) as connection:
        connection.post("/store/load", body())
        assert connection.answer().status == 200
    with server.background(service.as_service(), port=urlsplit(address).port or 0) as again:
        assert again == address
    service.close()


def test_what_fails_at_the_start_is_raised() -> None:
    """An error of `on_ready` ends the server, closes the service and reaches the caller."""
    service = FakeService()

    def fail(address: str) -> None:
        raise ZeroDivisionError(address)

    with pytest.raises(ZeroDivisionError):
        server.run(service.as_service(), port=0, on_ready=fail)
    assert service.closed


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what the extra brings the error says what is missing, and which extra to install."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for name in ("cloudstore_mapping.web", "cloudstore_mapping.web.server"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UnsupportedError, match=r"needs jinja2; pip install 'cloudstore-mapping\[server\]'"):
        importlib.import_module("cloudstore_mapping.web.server")


def test_a_running_service_tidies_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process left is removed while the service runs, whether anybody asks it for something or not."""
    monkeypatch.setattr("cloudstore_mapping.service.media.LOOK_EVERY", 0.001)
    file = tmp_path / "store.db"
    with new_storage(file) as there, Service(new_storage(file)) as service, background(service):
        uploader = Uploader(service)
        uploader.upload(b"bytes")
        service.sweeper.wait()
        there.submit(lambda transaction: transaction.delete_account(1)).result()
        assert comes_to(there, 0, 0, 0)
