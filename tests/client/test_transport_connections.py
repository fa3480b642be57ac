"""Our connections: a request is one piece, and an answer the same however it comes."""

from __future__ import annotations

import gc
import http.server
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import Any

import pytest
import requests
from urllib3.connection import HTTPConnection, HTTPSConnection

import cloudstore_mapping as cm
from cloudstore_mapping.client.transport import (
    CHUNK_SIZE,
    MAX_COPIED_BODY,
    Deadline,
    HTTPTransport,
    bounded_class,
    fast_connections,
    is_requests_patched,
    parse_plain_response,
    scope,
)
from cloudstore_mapping.errors import CloudStoreError, ProtocolError, TransportError
from cloudstore_mapping.testing.clocks import FrozenClock
from cloudstore_mapping.wire import Request
from tests.service_fakes import PATIENCE
from tests.vendor import Vendor

BODY = b'{"error":null,"message":"ok","data":[1,2]}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(BODY)
PLAIN = HEAD + b"CloudStore-Extensions: brief\r\nSet-Cookie: a=b\r\n\r\n" + BODY
LOAD = Request(api_key="S3cretKey", name="name")


class FakeSocket:
    """Notes what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def settimeout(self, _: float | None) -> None:
        """Do nothing."""

    def sendall(self, data: bytes) -> None:
        """Note a piece."""
        self.sent.append(data)


def test_a_request_is_one_piece() -> None:
    """Head and body of a small request leave together; a large body is not copied for that."""
    connection = fast_connections()[HTTPConnection]("127.0.0.1", 1)
    for body in (b"{}", b"x" * (MAX_COPIED_BODY + 1)):
        connection.sock = sent = FakeSocket()
        connection.request("POST", "/path", body, {"Host": "h", "Content-Length": str(len(body))})
        head = b"POST /path HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
        assert b"".join(sent.sent) == head + body
        assert len(sent.sent) == (1 if len(body) <= MAX_COPIED_BODY else 3)
    connection.sock = None


@pytest.mark.parametrize("kind", [fast_connections()[HTTPConnection], bounded_class(HTTPConnection)])
def test_a_large_body_is_sent_in_parts(kind: type[HTTPConnection]) -> None:
    """The timeout bounds each part of a large body, and the deadline all of them: a slow line is no failure."""
    clock = FrozenClock()
    body = b"x" * (10 * CHUNK_SIZE)
    timeouts: list[float | None] = []

    class SlowSocket(FakeSocket):
        """Takes 4 s for each part."""

        def settimeout(self, seconds: float | None) -> None:
            timeouts.append(seconds)

        def sendall(self, data: bytes) -> None:
            super().sendall(data)
            clock.now += 4.0 if len(data) == CHUNK_SIZE else 0.0

    for seconds in (60.0, 30.0):
        connection = kind("127.0.0.1", 1, timeout=5.0)
        connection.sock = sent = SlowSocket()
        timeouts.clear()
        scope.deadline = Deadline(seconds, clock)
        try:
            if seconds == 60.0:
                connection.request("POST", "/path", body, {"Content-Length": str(len(body))})
                assert b"".join(sent.sent).endswith(b"\r\n\r\n" + body)
                assert set(timeouts) == {5.0}
            else:
                with pytest.raises(TimeoutError, match="deadline"):
                    connection.request("POST", "/path", body, {"Content-Length": str(len(body))})
                assert len(b"".join(sent.sent)) < len(body)
        finally:
            scope.deadline = None
            connection.sock = None


def test_every_kind_has_a_quick_one() -> None:
    """There is a quick kind of connection for plain HTTP and for TLS, which still is of that kind."""
    assert all(issubclass(quick, kind) for kind, quick in fast_connections().items())
    assert set(fast_connections()) == {HTTPConnection, HTTPSConnection}


def test_requests_is_not_patched_by_itself() -> None:
    """An unpatched `requests`, of any version allowed, is recognized: requests take the short way."""
    assert not is_requests_patched()


def test_a_plain_answer_is_taken_apart() -> None:
    """Status, headers and content of a plain answer are there, and all that `urllib3` knows of it on demand."""
    answer = parse_plain_response(PLAIN)
    assert answer is not None
    assert (answer.status, answer.content) == (200, BODY)
    assert answer.headers[b"cloudstore-extensions"] == b"brief"
    full = answer.full()
    assert (full.status, full.reason, full.headers["set-cookie"], full.read()) == (200, "OK", "a=b", BODY)


NOT_PLAIN = {
    "nothing": b"",
    "no end of the head": HEAD,
    "cut": PLAIN[:-1],
    "more than it says": PLAIN + b" ",
    "HTTP/1.0": PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "another protocol": b"SSH-2.0-OpenSSH\r\n\r\n",
    "no length": PLAIN.replace(b"Content-Length", b"Content-Width"),
    "two lengths": PLAIN.replace(b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % len(BODY)),
    "a length that is none": PLAIN.replace(b"Content-Length: ", b"Content-Length: +"),
    "chunks": PLAIN.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "packed": PLAIN.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"),
    "a header of two lines": PLAIN.replace(b"\r\n\r\n", b"\r\nX: y\r\n z\r\n\r\n"),
    "closing": PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    "on its way": b"HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\n",
    "without a body": b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
    "no status": PLAIN.replace(b" 200 ", b" OK "),
}


@pytest.mark.parametrize("what", NOT_PLAIN)
def test_what_is_not_plain_is_left_alone(what: str) -> None:
    """Whatever is more, or less, than a whole answer of a given length is for `http.client` to read."""
    assert parse_plain_response(NOT_PLAIN[what]) is None


@contextmanager
def answering(*pieces: bytes, closes: bool = False) -> Iterator[tuple[str, threading.Semaphore]]:
    """
    Answer each request with these pieces, sent one by one, and then perhaps hang up.

    Gives the address, and what is released each time that it has hung up.
    """
    hung_up = threading.Semaphore(0)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 0

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            for piece in pieces:
                self.wfile.write(piece)
            self.close_connection = closes

        def setup(self) -> None:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            super().setup()

    class Server(http.server.ThreadingHTTPServer):
        def shutdown_request(self, request: Any) -> None:
            super().shutdown_request(request)
            hung_up.release()

    with Server(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/cloudstore", hung_up
        finally:
            server.shutdown()
            thread.join()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
LARGE = b'{"error":null,"message":"%b"}' % (b"x" * 300_000)
WAYS: dict[str, tuple[tuple[bytes, ...], bool]] = {
    "plain": ((PLAIN,), False),
    "head, then body": (tuple(PLAIN.partition(b"\r\n\r\n")), False),
    "byte by byte": (tuple(PLAIN[place : place + 1] for place in range(len(PLAIN))), False),
    "in chunks": ((CHUNKED,), False),
    "after a 100": ((b"HTTP/1.1 100 Continue\r\n\r\n", PLAIN), False),
    "until the end": ((b"HTTP/1.1 200 OK\r\n\r\n", BODY), True),
    "of HTTP/1.0": ((PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),), True),
    "closing": ((NOT_PLAIN["closing"],), True),
    "hanging up after a plain one": ((PLAIN,), True),
    "large": ((b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE) + LARGE,), False),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_answer_is_the_same_however_it_comes(way: str) -> None:
    """One request after the other is answered with all that was sent, in whatever form and pieces it came."""
    pieces, closes = WAYS[way]
    with answering(*pieces, closes=closes) as (address, hung_up), closing(HTTPTransport(address)) as transport:
        for _ in range(3):
            reply = transport.send(LOAD)
            assert reply.response.content == (LARGE if way == "large" else BODY)
            assert reply.error is None
            if closes:  # whoever asks at the same moment finds nobody there
                assert hung_up.acquire(timeout=PATIENCE)


BROKEN: dict[str, tuple[tuple[bytes, ...], type[CloudStoreError]]] = {
    "nothing": ((), TransportError),
    "half a head": ((HEAD,), TransportError),
    "half a body": ((PLAIN[:-5],), TransportError),
    "no HTTP": ((b"SSH-2.0-OpenSSH\r\n",), TransportError),
    "a page": ((b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",), ProtocolError),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_breaks_off_is_an_error(what: str) -> None:
    """An answer that isn't whole, or is none, is its error, and leaves no connection behind."""
    pieces, error = BROKEN[what]
    with (
        answering(*pieces, closes=True) as (address, _),
        closing(HTTPTransport(address)) as transport,
        pytest.raises(error),
    ):
        transport.send(LOAD)


UNREADABLE: dict[str, bytes] = {
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n{}     ",
    "a length of many digits": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
    "a redirect to no address": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://[::1\r\n\r\n",
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a connection that urllib3 drops
@pytest.mark.parametrize("has_session", [False, True])
@pytest.mark.parametrize("answer", UNREADABLE)
def test_an_answer_that_cannot_be_read(answer: str, has_session: bool) -> None:
    """An answer that can't be read is an error of the package, and none says that the request can't be sent."""
    with (
        answering(UNREADABLE[answer], closes=True) as (address, _),
        requests.Session() as session,
        cm.open(address.replace("://", "://key@"), session=session if has_session else None, retries=0) as store,
    ):
        with pytest.raises((ProtocolError, cm.OutcomeUnknownError)) as raised:
            store["a"] = 1
        assert "can't be sent" not in str(raised.value)
        with (
            requests.Session() as other,
            closing(HTTPTransport(address, session=other if has_session else None)) as transport,
        ):
            scope.deadline = Deadline(PATIENCE, time.perf_counter)
            try:
                if answer == "two lengths":
                    with pytest.raises(ProtocolError, match="can't be read"):
                        transport.post("/store/load", b"{}")
                else:
                    assert transport.post("/store/load", b"{}").status_code in (200, 302)
            finally:
                scope.deadline = None
    del raised
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the connection that was dropped
def test_an_interrupt_leaves_no_lock_behind(vendor: Vendor) -> None:
    """Idle connections are kept without a lock: an interrupt in the middle can't make later requests wait."""
    transport = HTTPTransport(vendor.address)
    for line in range(1, 200):
        transport.send(LOAD)
        seen = [0, line]

        def trace(frame: FrameType, event: str, _: Any, seen: list[int] = seen) -> Any:
            if not frame.f_code.co_filename.endswith(("queue.py", "threading.py", "client/transport.py")):
                return trace if frame.f_code.co_filename.endswith("connectionpool.py") else None
            if event == "line" and frame.f_code.co_name in ("get", "put", "__enter__", "_put", "_get"):
                seen[0] += 1
                if seen[0] == seen[1]:
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            transport.send(LOAD)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        if seen[0] < line:
            break
        thread = threading.Thread(target=transport.send, args=(LOAD,), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert line > 2
    transport.close()
