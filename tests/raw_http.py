"""A service in memory for the web's tests, and connections that speak HTTP as badly as a test wants."""

from __future__ import annotations

import io
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import urlsplit

from msgspec import UNSET, Raw, UnsetType

from cloudstore_mapping.errors import NoFileError
from cloudstore_mapping.service.quotas import ReplyMemory, ReplyRoom
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web import server
from cloudstore_mapping.web.connections import listen
from cloudstore_mapping.web.options import Options
from cloudstore_mapping.wire import Operation, Reply, Request, failure, success

if TYPE_CHECKING:
    from cloudstore_mapping.service.service import Service

JSON = "Content-Type: application/json\r\n"


class FakeService:
    """Keeps values in a dict; like the real one it answers a load at once, and a write from another thread."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.values: dict[str, Raw] = {}
        self.addresses: set[str] = set()
        self.ids: list[str | UnsetType] = []
        self.reply: Reply | Exception | None = None
        self.is_healthy = True
        self.closed = False
        self.reply_memory = ReplyMemory(self.settings.max_reply_bytes)
        self.may_write = threading.Event()
        self.may_write.set()
        self._writer = ThreadPoolExecutor(1)

    @property
    def dispatcher(self) -> Self:
        """Return this fake, which answers requests itself."""
        return self

    def check_key(self, api_key: str, address: str) -> None:
        """Know every API key."""

    def submit(self, request: Request, address: str = "", room: ReplyRoom | None = None) -> Reply | Future[Reply]:
        """Answer a request, or begin to."""
        self.addresses.add(address)
        if isinstance(self.reply, Exception):
            raise self.reply
        if request.operation is Operation.SAVE:
            return self._writer.submit(self._save, request)
        return self.reply or self._load(request)

    @contextmanager
    def together(self) -> Iterator[Callable[[Request, str, ReplyRoom], Reply | Future[Reply]]]:
        """Yield what answers requests."""
        yield lambda request, address, room: self.submit(request, address, room)

    def end_within(self, seconds: float) -> None:
        """Take note of nothing."""

    def keep_tidy(self) -> None:
        """Begin background work, of which there is none."""

    def store_bytes(self) -> int:
        """Return how many bytes its storage takes."""
        return 0

    def _save(self, request: Request) -> Reply:
        self.may_write.wait()
        assert request.value is not UNSET
        self.ids.append(request.once)
        self.values[request.name] = Raw(bytes(request.value))
        return success("Entry saved")

    def _load(self, request: Request) -> Reply:
        value = self.values.get(request.name)
        if value is None:
            return failure(NoFileError(f"There is no file {request.name!r}.", key=request.name))
        return success(value, value)

    def healthy(self) -> bool:
        """Whether the test wants it so."""
        return self.is_healthy

    def close(self) -> None:
        """Finish the writes."""
        self.may_write.set()
        self._writer.shutdown()
        self.closed = True

    def as_service(self) -> Service:
        """Return it as what it stands for."""
        return cast("Service", self)

    @contextmanager
    def served(self, options: Options | None = None) -> Iterator[str]:
        """Serve it while the block runs, and close it."""
        try:
            with served_with(self.as_service(), options or Options()) as address:
                yield address
        finally:
            self.close()


@contextmanager
def served_with(service: Service, options: Options) -> Iterator[str]:
    """Serve with these options on a thread while the block runs, and yield the service's address."""
    ready: Future[str] = Future()
    with listen("127.0.0.1", 0) as listener:
        serving = server._Server(service, listener, options, ready.set_result)
        thread = threading.Thread(target=serving.run, args=([listener],))
        thread.start()
        try:
            yield ready.result(20)
        finally:
            serving.should_exit = True
            thread.join(20)


@dataclass
class Answer:
    """What came back over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """What the body says."""
        return json.loads(self.body)


class Connection:
    """A socket to the service at an address, closed at the end of its block; a reply that never comes is an error."""

    def __init__(self, address: str, source: str = "") -> None:
        where = urlsplit(address)
        assert where.hostname is not None
        self.base = where.path
        self.socket = socket.create_connection(
            (where.hostname, where.port or 80), timeout=20, source_address=(source, 0) if source else None
        )
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()
        self.socket.close()

    def reset(self) -> None:
        """Break the connection off."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def start(self, path: str, headers: str = JSON, body: bytes = b"") -> None:
        """Send the line and the headers of a request, and what there is of its body."""
        self.send(f"POST {self.base}{path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode() + body)

    def post(self, path: str, body: bytes, headers: str = "") -> None:
        """Send a whole request."""
        self.start(path, f"{JSON}{headers}Content-Length: {len(body)}\r\n", body)

    def end(self) -> None:
        """End the client's side of the connection."""
        self.socket.shutdown(socket.SHUT_WR)

    def answer(self) -> Answer:
        """Read one reply."""
        status = int(self._file.readline().split()[1])
        headers = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        return Answer(status, headers, self._file.read(int(headers.get("content-length", 0))))

    def rest(self) -> bytes:
        """Read until the service ends the connection."""
        try:
            return self._file.read()
        except ConnectionResetError:
            return b""


class TLSConnection(Connection):
    """A TLS connection that can end its own side alone; Python's `SSLSocket.unwrap` waits for the other side's end."""

    def __init__(self, address: str, version: ssl.TLSVersion, *, ends_tcp: bool = True) -> None:
        super().__init__(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or the close_notify waits for an ACK
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        self._ends_tcp = ends_tcp
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._incoming.write(self.socket.recv(2**16))
        self._flush()
        self._file = io.BufferedReader(_Decrypted(self))

    def _flush(self) -> None:
        self.socket.sendall(self._outgoing.read())

    def send(self, data: bytes) -> None:
        """Send bytes encrypted."""
        self._tls.write(data)
        self._flush()

    def end(self) -> None:
        """Send a close_notify, and with `ends_tcp` end this side of the TCP connection, too."""
        with suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self._flush()
        if self._ends_tcp:
            super().end()

    def receive(self) -> bytes:
        """Return bytes, or none after the service's close_notify; its absence is an error."""
        while True:
            try:
                return self._tls.read(2**16)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                received = self.socket.recv(2**16)
                assert received, "The connection ended without a close_notify."
                self._incoming.write(received)


class _Decrypted(io.RawIOBase):
    """The bytes that a TLS connection receives, as a file."""

    def __init__(self, connection: TLSConnection) -> None:
        self._connection = connection
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._rest or self._connection.receive()
        size = min(len(data), len(buffer))
        buffer[:size] = data[:size]
        self._rest = data[size:]
        return size


def chunk(data: bytes) -> bytes:
    """Return `data` as one chunk of a chunked body; without any it is the last."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def body(name: str = "list", **fields: Any) -> bytes:
    """Return the body of a request, a load unless it has a `value`."""
    return json.dumps({"key": "k" * 32, "file": name, "options": None, "id": "_data", **fields}).encode()
