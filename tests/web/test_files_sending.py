"""A media file is sent piece by piece, as fast as its client takes it, and no longer than it is there."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import requests

from cloudstore_mapping.service.media import CHUNK_BYTES
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.records import Media
from cloudstore_mapping.web import downloads, protocol
from cloudstore_mapping.web import http as web
from cloudstore_mapping.web.downloads import make_files
from cloudstore_mapping.web.server import background
from tests.media_fakes import Uploader, comes_to
from tests.raw_http import Connection
from tests.service_fakes import PATIENCE


class Client:
    """Somebody who fetches a file of so many chunks from the application itself, one message at a time."""

    def __init__(self, service: Service, chunks: int) -> None:
        self.uploader = Uploader(service)
        self.facts = self.uploader.upload(b"x" * chunks * CHUNK_BYTES)
        self.messages: list[Any] = []
        self.leaves = asyncio.Event()

    @property
    def chunks(self) -> float:
        """How many chunks came, in pieces."""
        return sum(len(message.get("body", b"")) for message in self.messages) / CHUNK_BYTES

    def fetch(self, then: Callable[[], Awaitable[object]]) -> None:
        """Fetch the file, and do something after each message that comes."""

        async def receive() -> Any:
            await self.leaves.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            self.messages.append(message)
            await then()

        async def fetch() -> None:
            path = f"/files/{self.facts['folder']}/{self.facts['id']}.png"
            await make_files(self.uploader.service, "/files/")(
                {"type": "http", "method": "GET", "path": path, "headers": []}, receive, send
            )

        asyncio.run(fetch())


def test_a_client_that_leaves_is_sent_no_more(service: Service) -> None:
    """The rest of a large file isn't even read for somebody who has gone."""
    client = Client(service, 100)

    async def leave() -> None:
        if client.chunks == 3:
            client.leaves.set()
            await asyncio.sleep(0)

    client.fetch(leave)
    assert 3 <= client.chunks <= 5


def test_a_client_that_leaves_with_requests_waiting(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """A client that sent more requests behind the one that it gets a file for, and goes, leaves no trace in the log."""
    facts = Uploader(service).upload(b"x" * 40 * CHUNK_BYTES)
    with background(service) as address, Connection(address) as leaving:
        path = f"{leaving.base}/files/{facts['folder']}/{facts['id']}.png"
        leaving.send(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode() * 3)
        assert leaving.socket.recv(1000)
        leaving.reset()
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_slow_client_is_waited_for(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk but the first is read when the one before was taken: a slow client costs neither a thread nor memory."""
    client = Client(service, 5)
    read: list[int] = []
    chunks = service.media.chunks

    def counted(*part: Any, **account: Any) -> Iterator[bytes]:
        for piece in chunks(*part, **account):
            read.append(len(piece))
            yield piece

    async def slowly() -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        assert sum(read) <= max(math.ceil(client.chunks), 1) * CHUNK_BYTES + 16  # and the beginning, to see what it is

    monkeypatch.setattr(service.media, "chunks", counted)
    client.fetch(slowly)
    assert client.chunks == 5
    assert not client.messages[-1].get("more_body")


@pytest.mark.parametrize("leave", [True, False])
def test_clients_that_do_not_read_hold_nobody_up(
    leave: bool, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few chunks of files are in memory, and a client that doesn't read, or leaves, keeps none from others."""
    monkeypatch.setattr(downloads, "MAX_CHUNKS", 2)
    data = os.urandom(40 * CHUNK_BYTES)
    facts = Uploader(service).upload(data)
    with background(service) as address, ExitStack() as connections:
        for _ in range(6):
            slow = connections.enter_context(Connection(address))
            path = f"{slow.base}/files/{facts['folder']}/{facts['id']}.png"
            slow.send(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            assert slow.socket.recv(1000)
            if leave:
                slow.reset()
        assert requests.get(f"{address}/files/{facts['folder']}/{facts['id']}.png", timeout=30).content == data


def test_what_waits_for_a_client_is_told_that_it_left(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is reset tells what is being sent on it."""
    has_left = threading.Event()

    class Told(web.Client):
        def leave(self) -> None:
            super().leave()
            has_left.set()

    monkeypatch.setattr(protocol, "Client", Told)
    with background(service) as address, Connection(address) as leaving:
        leaving.reset()
        assert has_left.wait(PATIENCE)


def test_chunks_in_memory_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many clients that read at once, two have a chunk of a file in memory, and the others wait for theirs."""
    monkeypatch.setattr(downloads, "MAX_CHUNKS", 2)
    facts = Uploader(service).upload(bytes(3 * CHUNK_BYTES))
    path = f"/files/{facts['folder']}/{facts['id']}.png"
    clients = [web.Client() for _ in range(8)]
    most = 0

    async def run() -> list[int]:
        application = make_files(service, "/files/")
        both = asyncio.Event()

        async def fetch(client: web.Client) -> int:
            size = 0

            async def send(message: Any) -> None:
                nonlocal most, size
                most = max(most, sum(each.chunk_bytes for each in clients))
                size += len(message.get("body", b""))
                if most == 2 * CHUNK_BYTES:
                    both.set()
                elif message.get("body"):
                    await asyncio.wait_for(both.wait(), PATIENCE)  # the first client waits for a second one's chunk

            scope = {"type": "http", "method": "GET", "path": path, "headers": [], web.CLIENT: client}
            await application(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]  # nobody leaves
            return size

        return await asyncio.gather(*map(fetch, clients))

    assert asyncio.run(run()) == [3 * CHUNK_BYTES] * 8
    assert most == 2 * CHUNK_BYTES


def test_a_file_that_is_replaced_before_its_first_byte(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks a file up just before it is replaced gets the new one, whole."""
    client = Client(service, 1)
    typed = service.media.typed
    replaced: list[bool] = []

    def replace(media: Media) -> tuple[str, bytes]:
        found = typed(media)
        if not replaced:
            replaced.append(True)
            client.uploader.upload(b"new")
            assert comes_to(client.uploader.storage, 1, 1, 1)
        return found

    monkeypatch.setattr(service.media, "typed", replace)
    client.fetch(lambda: asyncio.sleep(0))
    assert [message.get("status", message.get("body")) for message in client.messages] == [200, b"new", None]


def test_a_file_that_is_replaced_on_its_way(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """It ends before its length, so that no client takes it for whole; the owner's log has a line, no traceback."""
    client = Client(service, 10)

    async def replace() -> None:
        if client.chunks == 2:
            await asyncio.to_thread(client.uploader.upload, b"new")
            assert await asyncio.to_thread(comes_to, client.uploader.storage, 1, 1, 1)

    with caplog.at_level(logging.WARNING):
        client.fetch(replace)
    assert client.chunks == 2
    assert client.messages[-1]["more_body"]
    (record,) = caplog.records
    assert record.exc_info is None
    assert client.facts["id"] not in record.getMessage()


def test_the_log_of_a_download_cut_short(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """Over a real connection the file ends early, with the connection, and the log has one warning and no error."""
    uploader = Uploader(service)
    facts = uploader.upload(b"x" * 60 * CHUNK_BYTES)
    with caplog.at_level(logging.WARNING), background(service) as address, Connection(address) as slow:
        slow.send(f"GET {slow.base}/files/{facts['folder']}/{facts['id']}.png HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        begin = slow.socket.recv(1000)
        uploader.upload(b"new")
        assert comes_to(uploader.storage, 1, 1, 1)
        assert b"content-length: %d\r\n" % (60 * CHUNK_BYTES) in begin
        assert len(slow.rest()) < 60 * CHUNK_BYTES - 1000
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
