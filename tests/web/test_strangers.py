"""Strangers have bounds: requests sent ahead, memory of requests, replies that they don't read, TLS handshakes."""

from __future__ import annotations

import asyncio
import gc
import platform
import shutil
import socket
import ssl
import subprocess
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from msgspec import Raw

from cloudstore_mapping.errors import BadKeyError, TooOftenError, UnavailableError
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web import connections, protocol, server
from cloudstore_mapping.web.connections import (
    DRAIN_PIECES,
    MANY_CLOSED,
    ConnectionLimiter,
    Drain,
    KnownClients,
    MemoryReturn,
    OpenFiles,
    Payer,
    RefusalLog,
    RequestMemory,
    UnreadReplies,
)
from cloudstore_mapping.web.http import Client, Turns
from cloudstore_mapping.web.options import Options
from cloudstore_mapping.web.protocol import HTTPProtocol
from cloudstore_mapping.web.tls import Handshakes
from cloudstore_mapping.wire import failure
from tests import raw_http
from tests.raw_http import JSON, Answer, Connection, FakeService, body, chunk
from tests.service_fakes import PATIENCE
from tests.serving import serving, told

SAVE = "/store/save"
LOAD = "/store/load"
MEBIBYTE = 2**20
#: A service whose strangers may hold two bodies of 1 MiB, and all together three.
SMALL = Settings(max_value_bytes=2**19, max_body_bytes=MEBIBYTE, max_request_memory=3_500_000)
WRONG = "w" * 32


@pytest.fixture
def service() -> Iterator[FakeService]:
    """Return a service with little memory for requests."""
    fake = FakeService(SMALL)
    yield fake
    fake.close()


def see_that_it_was_read(address: str) -> None:
    """Return when the service has read what was sent before, by a request that is answered after it."""
    with Connection(address) as other:
        for _ in range(3):
            other.post(LOAD, body("absent"))
            assert other.answer().status == 200


def large(key: str = WRONG, path: str = SAVE) -> tuple[str, bytes]:
    """Return the path and the body of a request of nearly a mebibyte."""
    return path, body(key=key, value="x" * (2**20 - 1000))


def hold(address: str, stack: ExitStack, key: str = WRONG, source: str = "") -> Connection:
    """Send a large request but for its last byte."""
    connection = stack.enter_context(Connection(address, source))
    path, data = large(key)
    connection.start(path, f"{JSON}Content-Length: {len(data)}\r\n", data[:-1])
    see_that_it_was_read(address)
    return connection


def ask(address: str, key: str, source: str = "") -> Answer:
    """Return the answer to a large request, and see that the connection ends if it says so."""
    with Connection(address, source) as connection:
        path, data = large(key)
        with suppress(ConnectionError):
            connection.post(path, data)
        answer = connection.answer()
        if answer.headers.get("connection") == "close":
            assert connection.rest() == b""
        return answer


def test_requests_wait_while_replies_are_unread() -> None:
    """A client that sends requests ahead and reads no reply is soon not read from any more, and others are served."""
    service = FakeService(Settings(body_timeout=600))
    with service.served() as address, Connection(address) as silent, Connection(address) as other:
        data = body()
        request = f"POST {silent.base}{LOAD} HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: {len(data)}\r\n\r\n".encode()
        many = memoryview((request + data) * 1000)
        silent.socket.setblocking(False)
        sent = looks = 0
        while looks < 50:
            try:
                sent += silent.socket.send(many[sent % len(many) :])
                looks = 0
            except BlockingIOError:
                looks += 1
                other.post(LOAD, body("absent"))
                assert other.answer().status == 200
            assert sent < 32 * MEBIBYTE


@pytest.mark.parametrize("end", [b"", b"\r", b"\r\n", b"\r\n\r"])
def test_one_request_is_parsed_at_a_time(end: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of requests sent ahead none is parsed before the reply to the one before it, wherever their packets end."""
    monkeypatch.setattr(protocol, "MAX_PARSED_AHEAD", 0)  # more would be refused
    with FakeService().served() as address, Connection(address) as connection:
        data = body()
        head = f"POST {connection.base}{LOAD} HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: {len(data)}".encode()
        many = (head + b"\r\n\r\n" + data) * 100
        connection.send(head + end)
        see_that_it_was_read(address)
        connection.send((b"\r\n\r\n" + data)[len(end) :] + many)
        assert [connection.answer().status for _ in range(101)] == [200] * 101


def test_chunked_requests_sent_ahead() -> None:
    """Requests whose ends can't be foreseen are answered in their order too."""
    service = FakeService()
    with service.served() as address, Connection(address) as connection:
        for number in range(50):
            connection.start(
                SAVE, f"{JSON}Transfer-Encoding: chunked\r\n", chunk(body(str(number), value=number)) + chunk(b"")
            )
        assert [connection.answer().json["message"] for _ in range(50)] == ["Entry saved"] * 50
    assert len(service.values) == 50


def test_too_many_requests_parsed_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has more parsed ahead than any client needs is refused, after the replies to what came first."""
    monkeypatch.setattr(protocol, "MAX_PARSED_AHEAD", 3)
    with FakeService().served() as address, Connection(address) as connection:
        first = chunk(body()) + chunk(b"")
        head = f"POST {connection.base}{LOAD} HTTP/1.1\r\nHost: x\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n".encode()
        tiny = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.send(head + first + tiny * 30)
        assert connection.answer().status == 200
        rest = connection.rest()
        assert rest.count(b"HTTP/1.1 400 ") == 1
        assert b"too many requests ahead" in rest


def test_strangers_share_memory(service: FakeService) -> None:
    """Past their share strangers are refused with 503 and Retry-After; small requests and known keys go on."""
    with service.served() as address, ExitStack() as stack:
        assert ask(address, "k" * 32).status == 200
        held = [hold(address, stack) for _ in range(2)]
        refused = ask(address, WRONG)
        assert "(its max_request_memory)" in refused.json["message"]
        assert (refused.status, refused.json["error"], refused.headers["retry-after"]) == (503, "Unavailable", "5")
        assert ask(address, "k" * 32).status == 200
        see_that_it_was_read(address)
        for each in held:
            each.reset()
        while ask(address, "v" * 32).status != 200:
            pass  # until the service has seen that they have gone


def test_a_wrong_key_is_never_known(service: FakeService) -> None:
    """A key becomes known by a right answer alone, and no known one takes the share of all others."""
    with service.served() as address, ExitStack() as stack:
        service.reply = failure(BadKeyError("The service doesn't know this API key."))
        with Connection(address) as connection:
            _, data = large()
            for path in ("/health", LOAD):
                connection.start(path, f"{JSON}Content-Length: {len(data)}\r\n", data)
                assert connection.answer().status in (401, 405)
        service.reply = None
        for _ in range(2):
            hold(address, stack)
        assert ask(address, WRONG).status == 503


def test_an_address_has_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that holds its share is refused with 429; others, and a known key there, are served."""
    monkeypatch.setattr(connections, "NOT_LIMITED", ())
    limits = Settings(
        max_value_bytes=2**19, max_body_bytes=MEBIBYTE, max_address_request_memory=1, max_request_memory=2**23
    )
    service = FakeService(limits)
    with service.served() as address, ExitStack() as stack:
        assert ask(address, "k" * 32).status == 200
        hold(address, stack)
        refused = ask(address, WRONG)
        assert (refused.status, refused.json["error"], refused.headers["retry-after"]) == (429, "TooOften", "5")
        assert "(the service's max_address_request_memory)" in refused.json["message"]
        assert ask(address, WRONG, "127.0.0.2").status == 200
        assert ask(address, "k" * 32).status == 200
        hold(address, stack, "k" * 32)
        assert ask(address, "k" * 32).status == 429


def test_memory_is_given_back(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a request ends, its bytes count no longer."""
    memories: list[RequestMemory] = []
    monkeypatch.setattr(RequestMemory, "__init__", spied(RequestMemory.__init__, memories))
    with service.served() as address, ExitStack() as stack:
        ask(address, "k" * 32)
        ask(address, "no key")
        for _ in range(4):
            hold(address, stack, WRONG).reset()
        broken = stack.enter_context(Connection(address))
        broken.start(SAVE, f"{JSON}Transfer-Encoding: chunked\r\n", chunk(b"x" * 50_000) + b"no chunk\r\n")
        assert broken.answer().status == 400
        early = stack.enter_context(Connection(address))
        early.start("/nothing", f"{JSON}Content-Length: 100000\r\n", b"x" * 100_000)
        assert early.answer().status == 404
        see_that_it_was_read(address)
        (memory,) = memories
        while memory.taken:
            see_that_it_was_read(address)
    assert not memory._by_subject
    assert not memory._of_strangers


def spied(original: Callable[..., None], made: list[RequestMemory]) -> Callable[..., None]:
    """Return a constructor that notes what it made."""

    def init(self: RequestMemory, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        made.append(self)

    return init


def test_shares() -> None:
    """Each payer has its bound, strangers three quarters of all, and known ones the rest."""
    memory = RequestMemory(
        Settings(
            max_value_bytes=1,
            max_name_bytes=1,
            max_password_bytes=1,
            max_body_bytes=2000,
            max_request_memory=4 * 10**6,
            max_address_request_memory=2 * 10**6,
        )
    )
    first, second, many = Payer("192.0.2.1"), Payer("192.0.2.2"), Payer(None)
    known = Payer("key k", is_known=True)
    assert memory.take(first, 2 * 10**6) is None
    assert isinstance(memory.take(first, 1), TooOftenError)
    assert memory.take(second, 5 * 10**5) is None
    assert memory.take(many, 5 * 10**5) is None
    assert isinstance(memory.take(many, 1), UnavailableError)
    assert memory.take(known, 10**6) is None
    assert isinstance(memory.take(known, 1), UnavailableError)
    for payer, size in ((first, 2 * 10**6), (second, 5 * 10**5), (many, 5 * 10**5), (known, 10**6)):
        memory.give_back(payer, size)
    assert memory.taken == 0
    assert not memory._by_subject


@pytest.mark.parametrize(("size", "address_size"), [(1, 1), (2**40, 2**39)])
def test_bodies_always_fit(size: int, address_size: int) -> None:
    """The memory for requests is never less than two bodies, and an address's never less than one."""
    settings = Settings(max_request_memory=size, max_address_request_memory=address_size)
    assert settings.request_memory >= max(size, 2 * settings.max_body_bytes)
    assert settings.address_request_memory >= max(address_size, settings.max_body_bytes)


def test_known_clients_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many keys and addresses are remembered, an IPv6 client's network as one."""
    monkeypatch.setattr(connections, "MAX_KNOWN", 3)
    known = KnownClients()
    known.add("a" * 32, "2001:db8::1")
    assert known.has_key("a" * 32)
    assert known.has_network("2001:db8::/64")
    assert not known.has_network("192.0.2.1")
    for number in range(4):
        known.add(f"{number:032}", "192.0.2.1")
    assert len(known.pairs) <= 3
    assert not known.has_key("a" * 32)


def test_unread_replies_are_bounded() -> None:
    """Past the bound the longest wait of the address that holds the most ends; a single reply may be larger."""
    ended: list[str] = []
    unread = UnreadReplies(100)

    def add(connection: str, address: str, size: int) -> None:
        unread.add(connection, address, size, lambda: ended.append(connection))

    add("large", "192.0.2.1", 500)
    assert ended == []
    unread.remove("large")
    add("other", "192.0.2.2", 30)
    add("first", "192.0.2.1", 30)
    add("second", "192.0.2.1", 30)
    add("third", "192.0.2.1", 30)
    assert ended == ["first"]
    assert unread.taken == 90
    for each in ("other", "second", "third", "third"):
        unread.remove(each)
    assert unread.taken == 0
    assert not unread._by_subject


def test_a_reply_is_read_at_the_lowest_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reads a few bytes now and then is ended as one that reads none."""
    buffered = [100_000]
    done: list[str] = []

    class Transport:
        def get_write_buffer_size(self) -> int:
            return buffered[0]

        def abort(self) -> None:
            done.append("ended")

    reading = HTTPProtocol.__new__(HTTPProtocol)
    reading.transport = cast("Any", Transport())
    reading.client = None
    monkeypatch.setattr(HTTPProtocol, "settings", Settings(body_timeout=30, min_upload_rate=1000), raising=False)
    monkeypatch.setattr(HTTPProtocol, "refusals", RefusalLog(), raising=False)
    monkeypatch.setattr(HTTPProtocol, "_expect_reader", lambda _: done.append("waits"))
    buffered[0] = 70_000
    reading._check_reader(100_000)
    buffered[0] = 40_001
    reading._check_reader(70_000)
    assert done == ["waits", "ended"]


def test_refused_clients_are_drained_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What refused clients still send is read a few pieces at a time, in the order in which they wait."""
    monkeypatch.setattr(connections, "DRAIN_INTERVAL", 0)
    read: list[int] = []

    async def drain() -> list[int]:
        drain = Drain()
        for number in range(3 * DRAIN_PIECES):
            drain.wait(lambda number=number: read.append(number))  # type: ignore[misc]
        rounds = []
        while len(read) < 3 * DRAIN_PIECES:
            before = len(read)
            await asyncio.sleep(0)
            rounds.append(len(read) - before)
        return rounds

    assert max(asyncio.run(drain())) == DRAIN_PIECES
    assert read == sorted(read)


def test_connections_by_setting(caplog: pytest.LogCaptureFixture) -> None:
    """A process has no more connections than max_connections, and the log says which setting it was."""
    files = OpenFiles(100, max_by_setting=2)
    assert [files.has_room(count) for count in (1, 2, 3)] == [True, True, False]
    assert "max_connections allows" in caplog.text


def test_handshakes_are_counted() -> None:
    """A TLS handshake takes a place of its address, and memory, before it is done."""

    class Protocol(HTTPProtocol):
        crowd = ConnectionLimiter(2)
        memory = RequestMemory(Settings(max_request_memory=1))
        files = OpenFiles(10_000)
        known = KnownClients()
        refusals = RefusalLog()
        settings = Settings()

    handshakes = Handshakes(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), Protocol, lambda: 0, 30.0)
    assert [handshakes.admit("192.0.2.1") is None for _ in range(3)] == [False, False, True]
    admitted = 2
    while handshakes.admit(f"198.51.100.{admitted}") is not None:
        admitted += 1
    assert 300 < admitted < 700
    Protocol.known.add("k" * 32, "203.0.113.1")
    assert handshakes.admit("203.0.113.1") is not None


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by the program openssl")
def test_a_handshake_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that doesn't end its TLS handshake in time is hung up on, and others are served."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setenv("CLOUDSTORE_SERVICE_BODY_TIMEOUT", "0.5")
    files = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with serving("--json", "--store", str(tmp_path / "s.db"), *files) as process:
        where = urlsplit(told(process)["address"])
        coming, hello = ssl.MemoryBIO(), ssl.MemoryBIO()
        with suppress(ssl.SSLWantReadError):
            context.wrap_bio(coming, hello).do_handshake()
        for sent in (b"", hello.read()):
            with socket.create_connection((where.hostname, where.port), 20) as silent:
                silent.sendall(sent)
                with suppress(ConnectionResetError):
                    while silent.recv(2**16):
                        pass
        plain = socket.create_connection((where.hostname, where.port), 20)
        with context.wrap_socket(plain) as connection:
            connection.sendall(b"GET /cloudstore/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert connection.recv(2**16).startswith(b"HTTP/1.1 200 ")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Return options with a certificate for any name."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made by the program openssl")
    folder = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return Options(tls_cert=str(folder / "cert.pem"), tls_key=str(folder / "key.pem"))


@contextmanager
def served_with(service: FakeService, options: Options) -> Iterator[tuple[str, int]]:
    """Serve with these options on a thread; yield where."""
    with raw_http.served_with(service.as_service(), options) as address:
        where = urlsplit(address)
        yield str(where.hostname), int(where.port or 0)


def client(where: tuple[str, int], *, is_tls: bool) -> socket.socket:
    """Return a connection; over TLS one that trusts anybody."""
    plain = socket.create_connection(where, PATIENCE)
    if not is_tls:
        return plain
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(plain)


_GET = b"GET /cloudstore/health HTTP/1.1\r\nHost: x\r\n"
_LOAD_HEAD = (
    b"POST /cloudstore/store/load HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


@pytest.mark.parametrize("is_tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize(
    ("sent", "is_answered"),
    [
        (b"", False),
        (_GET, False),
        (_GET + b"\r\n", True),
        (_GET + b"\r\n" + _GET, True),
        (b"nonsense\r\n\r\n", True),
        (b"POST /cloudstore/store/save HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", True),
        (b"POST /cloudstore/store/save HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 9000, False),
        (_LOAD_HEAD % len(body("large")) + body("large"), True),
        (_LOAD_HEAD % len(body("small")) + body("small"), True),
        ((_LOAD_HEAD % len(body("large")) + body("large")) * 3, True),
    ],
    ids=[
        "nothing", "half a head", "a request", "a request and a half", "nonsense", "a refused body", "half a body",
        "a reply unread", "a load", "requests ahead",
    ],
)  # fmt: skip
def test_a_closed_connection_is_freed_at_once(
    sent: bytes, is_answered: bool, is_tls: bool, certificate: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of a closed connection is free at once: it waits neither for a garbage collection nor for a timer."""
    made: list[weakref.ref[HTTPProtocol]] = []
    begun, freed = threading.Event(), threading.Event()
    connection_made = HTTPProtocol.connection_made

    def watched(self: HTTPProtocol, transport: Any) -> None:
        connection_made(self, transport)
        made.append(weakref.ref(self, lambda _: freed.set()))
        begun.set()

    monkeypatch.setattr(HTTPProtocol, "connection_made", watched)
    monkeypatch.setattr(server, "KEEP_ALIVE", 1000)
    service = FakeService(Settings(body_timeout=1000.0))
    service.values["large"] = Raw(b'"%b"' % (b"x" * 12 * MEBIBYTE))
    options = certificate if is_tls else Options()
    gc.collect()
    gc.disable()
    try:
        with served_with(service, options) as where:
            with client(where, is_tls=is_tls) as connection:
                connection.sendall(sent)
                assert begun.wait(PATIENCE)
                if is_answered:
                    assert connection.recv(1000).startswith(b"HTTP/1.1 ")
            assert freed.wait(PATIENCE)
            assert len(made) == 1
    finally:
        gc.enable()
        service.close()


def test_a_handshake_begins_in_turn_with_its_clients_first_bytes(
    certificate: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TLS connection costs no cryptography before its client sends something, and then waits for its turn."""
    events: list[str] = []
    wait = Turns.wait
    wrap = ssl.SSLContext.wrap_bio

    async def turned(self: Turns) -> None:
        events.append("turn")
        await wait(self)

    def wrapped(self: ssl.SSLContext, *args: Any, **options: Any) -> ssl.SSLObject:
        events.append("handshake")
        return wrap(self, *args, **options)

    service = FakeService(SMALL)
    with served_with(service, certificate) as where:
        with client(where, is_tls=True):  # it was accepted, so the silent one after it is, too, when the third is
            pass
        monkeypatch.setattr(Turns, "wait", turned)
        monkeypatch.setattr(ssl.SSLContext, "wrap_bio", wrapped)
        with socket.create_connection(where, PATIENCE), client(where, is_tls=True) as talks:
            talks.sendall(_GET + b"\r\n")
            assert talks.recv(2**16).startswith(b"HTTP/1.1 ")
            assert events == ["turn", "handshake"]
    service.close()


def test_tls_memory_counts_to_the_connections_end() -> None:
    """The TLS buffers of a stranger count until its connection ends, also once its request was refused."""
    memory = RequestMemory(Settings(max_request_memory=1))
    payer = Payer("192.0.2.1")
    memory.add(payer, 10 * MEBIBYTE * 100)  # in use, so it counts beyond the limit
    assert memory.take(payer, 1) is not None
    memory.give_back(payer, 10 * MEBIBYTE * 100)
    assert memory.take(payer, 1) is None
    memory.give_back(payer, 1)
    assert memory.taken == 0
    assert not memory._by_subject


def test_tls_buffers_are_paid_for(certificate: Options) -> None:
    """A stranger over TLS who sends much pays for the TLS buffers, too, and nothing is left to pay at the end."""
    service = FakeService(SMALL)
    memories: list[RequestMemory] = []
    taken: list[int] = []
    add = RequestMemory.add

    def watched(self: RequestMemory, payer: Payer, size: int) -> None:
        add(self, payer, size)
        memories.append(self)
        taken.append(self.taken)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RequestMemory, "add", watched)
        with served_with(service, certificate) as where, client(where, is_tls=True) as talks:
            talks.sendall(
                b"POST /cloudstore/store/save HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 50000000\r\n\r\n"
            )
            with suppress(OSError):
                talks.sendall(b"x" * 2**18)
            assert talks.recv(2**16).startswith(b"HTTP/1.1 413 ")
    assert max(taken) > connections.TLS_CONNECTION_BYTES + connections.FREE_BYTES
    assert memories[0].taken == 0
    service.close()


def test_unread_replies_count_as_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unread replies count with what TLS holds of them encrypted, and with the chunk of a file behind them."""
    taken = []
    for scheme in ("http", "https"):
        unread = UnreadReplies(10 * MEBIBYTE)
        slow = HTTPProtocol.__new__(HTTPProtocol)
        slow.transport = cast("Any", SimpleNamespace(get_write_buffer_size=lambda: 1000, abort=None))
        slow.flow = cast("Any", SimpleNamespace(pause_writing=lambda: None))
        slow.reader = Client()
        slow.reader.chunk_bytes = 500
        slow.scheme = cast("Any", scheme)
        slow.client = ("192.0.2.1", 1)
        monkeypatch.setattr(HTTPProtocol, "unread", unread, raising=False)
        monkeypatch.setattr(HTTPProtocol, "_expect_reader", lambda _: None)
        slow.pause_writing()
        taken.append(unread.taken)
    assert taken == [1500, 1500 + protocol.TLS_UNREAD_BYTES]


def test_freed_memory_is_returned_to_the_system() -> None:
    """Once many connections have been closed, and not for each of them, freed memory goes back to the system."""
    limiter = ConnectionLimiter(MANY_CLOSED)
    memory = MemoryReturn(limiter)
    trimmed: list[int] = []
    memory._trim = trimmed.append
    for _ in range(2):
        for _ in range(MANY_CLOSED):
            memory.check()
            limiter.comes("192.0.2.1")
            limiter.goes("192.0.2.1")
        memory.check()
        memory.check()
    assert trimmed == [0, 0]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory")
def test_this_system_can_return_memory() -> None:
    """The C library has the function."""
    assert MemoryReturn(ConnectionLimiter(1))._trim is not None
