"""Requests that are whole when they are looked at, and replies that are one message: an extension of ASGI."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from cloudstore_mapping.web.app import make_app
from cloudstore_mapping.web.http import WHOLE
from tests.raw_http import FakeService, body


def asked(data: bytes, extensions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages that the application sends for a load, posted to it with these extensions in its scope."""
    service = FakeService()
    service.values["name"] = b"1"  # type: ignore[assignment]  # as good as a Raw
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/cloudstore/store/load",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "extensions": extensions,
    }

    async def ask() -> None:
        await make_app(service.as_service())(scope, receive, send)

    asyncio.run(ask())
    service.close()
    return sent


def test_a_reply_is_the_same_in_one_message_and_in_two() -> None:
    """A server with the extension gets the head and the body at once that any other gets one after the other."""
    start, end = asked(body(), {})
    (whole,) = asked(b"", {WHOLE: {"body": bytearray(body())}})
    lines = b"".join(b"%b: %b\r\n" % header for header in start["headers"])
    assert whole["type"] == WHOLE
    assert (whole["status"], whole["head"] + b"\r\n", whole["body"]) == (start["status"], lines, end["body"])


def test_a_whole_body_has_its_limit() -> None:
    """A body that came at once is refused where it is too large, in the two messages of a refusal."""
    start, _, *_ = asked(b"", {WHOLE: {"body": bytearray(2**25)}})
    assert start["status"] == 413


@pytest.fixture
def address() -> Iterator[str]:
    """Yield where a service answers."""
    with FakeService().served() as served:
        yield served


@pytest.mark.parametrize(
    ("version", "headers", "stays"),
    [("1.1", "", True), ("1.1", "Connection: close\r\n", False), ("1.0", "", False)],
)
def test_a_connection_ends_where_the_client_says_so(address: str, version: str, headers: str, stays: bool) -> None:
    """The reply in one piece says that the connection ends, and ends it, exactly where the request wants that."""
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
