"""Uploads of streams: sent again from where they stood, or once."""

from __future__ import annotations

import io
from typing import Any

import pytest
from msgspec import Raw

from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.transport import Sendable
from cloudstore_mapping.errors import TransportError
from cloudstore_mapping.wire import Reply, Upload, success

DONE = success("", Raw(b"{}"))
BUSY = Reply(error="Http error", message=Raw(b'"Reason"'), status=503)


class _Readers:
    """A transport that reads what it is sent before each of its prepared outcomes."""

    def __init__(self, *outcomes: Reply | TransportError) -> None:
        self._outcomes = list(outcomes)
        self.read: list[bytes] = []

    def send(self, request: Sendable) -> Reply:
        assert isinstance(request, Upload)
        assert not isinstance(request.data, bytes)
        self.read.append(request.data.read())
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, TransportError):
            raise outcome
        return outcome

    def close(self) -> None:
        pass


class _Pipe(io.BytesIO):
    """A stream that can't be rewound."""

    def seekable(self) -> bool:
        return False


class _Bare:
    """A stream with no more than it takes."""

    def read(self) -> bytes:
        return b"data"


@pytest.mark.parametrize("first", [TransportError("lost", sent=True), BUSY])
def test_stream_is_rewound(first: Reply | TransportError) -> None:
    """A file is sent again from where it stood."""
    file = io.BytesIO(b"headbody")
    file.seek(4)
    transport = _Readers(first, DONE)
    Client(transport, "key", sleep=lambda _: None).upload("a", file, "text/plain")
    assert transport.read == [b"body", b"body"]


@pytest.mark.parametrize("stream", [_Pipe(b"data"), _Bare()])
@pytest.mark.parametrize("first", [TransportError("lost", sent=True), BUSY])
def test_stream_that_cannot_be_rewound(stream: Any, first: Reply | TransportError) -> None:
    """What can't be sent twice is sent once."""
    transport = _Readers(first)
    with pytest.raises(TransportError):
        Client(transport, "key", sleep=lambda _: None).upload("a", stream, "text/plain")
    assert len(transport.read) == 1
