"""The log says what happened, as lines or as JSON, and never a key, a password, a value or a whole link."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import requests

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web import protocol
from cloudstore_mapping.web.connections import LOG_INTERVAL, MAX_KNOWN, RefusalLog, UnreadReplies
from cloudstore_mapping.web.http import Client
from cloudstore_mapping.web.logs import logging_as
from cloudstore_mapping.wire import failure
from tests.raw_http import JSON, Connection, FakeService, body, chunk
from tests.service_fakes import ManualClock
from tests.serving import serving, told

KEY = "API-key-of-32-characters-or-more"
SECRETS = [KEY, "the-password", "the-value", "the-query", "ab" * 16, "cd" * 16]


@pytest.fixture(params=[True, False], ids=["json", "lines"])
def log(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What is logged during the test."""
    stream = io.StringIO()
    with logging_as(as_json=request.param, access=True, stream=stream):
        yield stream


@pytest.mark.parametrize("as_json", [True, False])
def test_no_secret_is_logged(tmp_path: Path, as_json: bool) -> None:
    """Whatever requests hold, the access log holds method, path, status, time and address only."""
    log: list[str] = []
    arguments = ["--access-log", *(["--log-json"] if as_json else []), "--json", "--store", str(tmp_path / "s.db")]
    with serving(*arguments, log=log) as process:
        first = told(process)
        secrets = [*SECRETS, first["api_key"], first["password"]]
        for key in (KEY, first["api_key"]):
            for path in ("/store/save", "/store/load", "/store/batch", "/upload-2", "/nowhere", "/admin/sign-in"):
                data = body("file", key=key, value="the-value", password="the-password")
                headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", "Cookie": f"s={key}"}
                requests.post(f"{first['address']}{path}?q=the-query", data, headers=headers, timeout=20)
        requests.get(f"{first['address']}/files/{'ab' * 16}/{'cd' * 16}.png?q=the-query", timeout=20)
    assert len(log) == 13
    assert not [secret for secret in secrets for line in log if secret in line]
    if as_json:
        save = json.loads(log[0])
        assert save.keys() == {"time", "level", "message", "method", "path", "status", "milliseconds", "address"}
        assert (save["method"], save["path"], save["status"]) == ("POST", "/cloudstore/store/save", 401)
        assert (save["address"], save["milliseconds"] > 0) == ("127.0.0.1", True)
        assert json.loads(log[-1])["path"] == "/cloudstore/files/abab…/cdcd….png"
    else:
        line = r"20\S+Z INFO 127\.0\.0\.1 POST /cloudstore/store/save 401 [0-9.]+ ms"
        assert re.fullmatch(line, log[0])
        assert "/cloudstore/files/abab…/cdcd….png 4" in log[-1]


def test_requests_are_logged_only_where_that_is_wanted(tmp_path: Path) -> None:
    """Without --access-log a request leaves no trace in the log."""
    log: list[str] = []
    with serving("--log-json", "--json", "--store", str(tmp_path / "s.db"), log=log) as process:
        assert requests.get(f"{told(process)['address']}/health", timeout=20).ok
    assert log == []


def test_a_failure_has_its_places_and_no_values(log: io.StringIO) -> None:
    """An error that nobody expected is logged with where it came from, its cause too, but not with its sentence."""
    service = FakeService()
    service.reply = ValueError("the-value")
    service.reply.__cause__ = KeyError("the-value")
    with service.served() as address:
        data = body(key=KEY, password="the-password")
        headers = {"Content-Type": "application/json"}
        assert requests.post(f"{address}/store/load", data, headers=headers, timeout=20).status_code == 500
    text = log.getvalue()
    assert not [secret for secret in SECRETS if secret in text]
    for told_ in ("A request to /cloudstore/store/load failed.", "raw_http.py", "ValueError", "KeyError", "which led"):
        assert told_ in text


@pytest.mark.parametrize("error", [UnavailableError("The disk is full."), OSError(28, "No space left")])
def test_errors_of_the_machine_are_told(log: io.StringIO, error: Exception) -> None:
    """What a disk or a database says holds no values, and the owner needs it."""
    logging.getLogger("test").error("It failed.", exc_info=error)
    assert str(error) in log.getvalue()


@pytest.mark.parametrize("inline", [True, False])
def test_unavailable_requests_are_logged(inline: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Why requests are answered 503 is in the log, once a minute however many they are; other errors aren't."""
    service = FakeService()
    service.reply = UnavailableError("The disk is full.") if inline else failure(UnavailableError("The disk is full."))
    with service.served() as address, requests.Session() as session:
        for key in (KEY, KEY, "no key"):
            data = body(key=key, password="the-password")
            session.post(f"{address}/store/load", data, headers={"Content-Type": "application/json"}, timeout=20)
        assert session.get(f"{address}/health", timeout=20).ok
    assert [record.getMessage() for record in caplog.records] == ["Requests are answered 503: The disk is full."]


def test_one_line_each(log: io.StringIO) -> None:
    """Whatever a path holds, a record can't look like two, nor steer a terminal."""
    facts = {"method": "GET", "path": "/\n\x1b[31m\u2028", "status": 404, "milliseconds": 1.0, "address": ""}
    logging.getLogger("cloudstore_mapping.access").info("request", extra={"request": facts})
    text = log.getvalue()
    assert (text.count("\n"), "\x1b" in text, "\u2028" in text) == (1, False, False)


def test_what_was_before_is_put_back() -> None:
    """Logging is as it was before, once the service has ended."""
    before = list(logging.getLogger().handlers)
    with logging_as(as_json=True, access=True):
        assert logging.getLogger().handlers != before
    assert logging.getLogger().handlers == before


def _flood(connection: Connection, data: bytes) -> None:
    with suppress(ConnectionError):
        for _ in range(2000):
            connection.send(data)


def _send_ahead(connection: Connection) -> None:
    head = f"POST {connection.base}/store/load HTTP/1.1\r\nHost: x\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n".encode()
    connection.send(head + chunk(body()) + chunk(b"") + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 30)


def _send_trailers(connection: Connection) -> None:
    connection.start("/store/save", JSON + "Transfer-Encoding: chunked\r\n", b"0\r\n")
    _flood(connection, b"X-Trailer: x\r\n" * 100)


#: Connections that are refused, and what the log says of each.
REFUSED: dict[str, tuple[Callable[[Connection], object], str]] = {
    "no HTTP": (lambda to: to.send(b"\x16\x03\x01 hello\r\n\r\n"), "not valid HTTP/1.1"),
    "two hosts": (lambda to: to.send(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), "2 Host headers"),
    "long headers": (lambda to: _flood(to, b"GET / HTTP/1.1\r\nX: " + b"x" * 1000), "headers are too long"),
    "slow headers": (lambda to: to.send(b"GET / HT"), "longer than body_timeout"),
    "trailers": (_send_trailers, "trailers are too long"),
    "ahead": (_send_ahead, "too many requests ahead"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_connection_is_logged(
    kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection refused before its request reaches the application has a line with its address and the reason."""
    monkeypatch.setattr(protocol, "MAX_PARSED_AHEAD", 3)
    settings = {"body_timeout": 0.3} if "slow" in kind else {"max_body_bytes": 1000}
    send, reason = REFUSED[kind]
    with FakeService(Settings(**settings)).served() as address, Connection(address) as connection:
        with suppress(ConnectionError):
            send(connection)
        connection.rest()
    messages = [record.getMessage() for record in caplog.records]
    assert [message for message in messages if message.startswith("A connection from 127.0.0.1 was refused: ")]
    assert reason in messages[-1]


def test_a_connection_ended_for_its_unread_replies_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose replies stay unread is named when its connection is ended because others need the memory."""
    values = {"unread": UnreadReplies(1500), "refusals": RefusalLog(), "_expect_reader": lambda _: None}
    for name, value in values.items():
        monkeypatch.setattr(protocol.HTTPProtocol, name, value, raising=False)
    ended: list[int] = []
    for number in (1, 2):
        slow = protocol.HTTPProtocol.__new__(protocol.HTTPProtocol)
        end = partial(ended.append, number)
        transport = SimpleNamespace(get_write_buffer_size=lambda: 1000, abort=end)
        slow.transport = cast("Any", transport)
        slow.flow = cast("Any", SimpleNamespace(pause_writing=lambda: None))
        slow.reader = Client()
        slow.scheme = "http"
        slow.client = (f"192.0.2.{number}", 1)
        slow.pause_writing()
    assert ended == [1]
    (record,) = caplog.records
    assert record.getMessage().startswith("A connection from 192.0.2.1 was refused: Its unread replies ")


def test_a_connection_without_anything_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A client that connects ahead of its first request, as browsers do, and never sends one is no news."""
    with FakeService(Settings(body_timeout=0.3)).served() as address, Connection(address) as connection:
        assert connection.rest() == b""
    assert not caplog.records


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by the program openssl")
def test_a_failed_handshake_is_logged(tmp_path: Path) -> None:
    """Plain HTTP on a port of TLS gets no reply, so the log is where its reason can be found."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    log: list[str] = []
    files = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    with serving("--json", *files, "--store", str(tmp_path / "s.db"), log=log) as process:
        address = told(process)["address"]
        for _ in range(3):
            with Connection(address) as connection:
                connection.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                connection.rest()
    assert "A connection from 127.0.0.1 was refused: It sent plain HTTP, and here is TLS." in log[0]
    assert "Further connections refused: 2 (addresses: 1; most often, 2 times, 127.0.0.1);" in log[1]


def test_refused_connections_do_not_fill_the_log(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """However many connections are refused, there is a line a minute, and it has their number."""
    refusals = RefusalLog(clock.monotonic)
    for number in range(10_000):
        refusals.add(f"192.0.2.{number % 100 if number % 2 else 1}", f"Reason {number}.")
        refusals.flush()
    assert [record.getMessage() for record in caplog.records] == ["A connection from 192.0.2.1 was refused: Reason 0."]
    clock.advance(LOG_INTERVAL)
    refusals.flush()
    refusals.flush()
    assert [record.getMessage() for record in caplog.records[1:]] == [
        "Further connections refused: 9999 (addresses: 50; most often, 5099 times, 192.0.2.1);"
        " the last one: Reason 9999."
    ]
    refusals.add("192.0.2.9", "Reason.")
    clock.advance(LOG_INTERVAL)
    refusals.add("192.0.2.9", "Another reason.")
    refusals.flush(at_once=True)
    assert len(caplog.records) == 3


def test_refused_addresses_take_no_memory(clock: ManualClock) -> None:
    """Of ever new addresses, so many are told apart."""
    refusals = RefusalLog(clock.monotonic)
    for number in range(10_000):
        refusals.add(f"2001:db8::{number:x}", "Reason.")
    assert len(refusals._by_address) == MAX_KNOWN
