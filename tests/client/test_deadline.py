"""Deadline: one limit for a request with all its attempts, waits and slow replies."""

from __future__ import annotations

import io
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from msgspec import Raw

import cloudstore_mapping as cm
from cloudstore_mapping.callback_client import Pacer
from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.media import Download, DownloadTarget
from cloudstore_mapping.client.transport import Deadline, HTTPTransport
from cloudstore_mapping.errors import (
    BulkError,
    OutcomeUnknownError,
    TimedOutError,
    TooOftenError,
    TransportError,
    UnavailableError,
)
from cloudstore_mapping.service.storage import sqlite
from cloudstore_mapping.testing.clocks import FrozenClock
from cloudstore_mapping.wire import Reply, encode_value
from tests.service_fakes import PATIENCE
from tests.support.scripted import DONE, Script

BODY = b'{"error":null,"message":"ok"}'
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
UNTIL_THE_END = b"HTTP/1.1 200 OK\r\n\r\n" + BODY


@contextmanager
def serving(*steps: bytes | Callable[[], object], reads_all: bool = True) -> Iterator[str]:
    """Serve a single connection: read the request, then send bytes and call functions in this order."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    if reads_all:
                        read_request(connection)
                    for step in steps:
                        if callable(step):
                            step()
                        else:
                            connection.sendall(step)
                    connection.recv(1)  # until the client hangs up

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/cloudstore"
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        thread.join()


def read_request(connection: socket.socket) -> None:
    """Read a request to its end."""
    stream = connection.makefile("rb")
    length = 0
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    stream.read(length)


class TickingClock(FrozenClock):
    """Clock that counts, in the semaphore `ticks`, how often it was looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.ticks = threading.Semaphore(0)

    def __call__(self) -> float:
        """Return the time."""
        self.ticks.release()
        return super().__call__()

    def drip(self) -> None:
        """Wait until a client looked, as it does before each read, and let 15 seconds pass."""
        assert self.ticks.acquire(timeout=PATIENCE)
        self.advance(15.0)

    def stop(self) -> None:
        """Let nobody wait any more."""
        self.ticks.release(1000)


def dripping(answer: bytes, clock: TickingClock, start: int = 0) -> Sequence[bytes | Callable[[], object]]:
    """Return the steps of a service that sends a byte every 15 s, after `start` bytes at once."""
    steps: list[bytes | Callable[[], object]] = [answer[:start]]
    for number in range(start, len(answer)):
        steps += [clock.drip, answer[number : number + 1]]
    return steps


ACTS: dict[str, Callable[[Client], object]] = {
    "load": lambda client: client.load("a"),
    "save": lambda client: client.save("a", Raw(b"1")),
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("start", [0, 30, 45], ids=["status line", "headers", "body"])
@pytest.mark.parametrize("answer", [PLAIN, CHUNKED, UNTIL_THE_END], ids=["plain", "chunked", "until the end"])
def test_a_dripping_answer(session: requests.Session | None, answer: bytes, start: int, act: str) -> None:
    """A service that sends a byte now and then doesn't stretch a request beyond its deadline."""
    clock = TickingClock()
    with serving(*dripping(answer, clock, min(start, len(answer) - 12))) as address:
        transport = HTTPTransport(address, session=session)
        client = Client(transport, "key", clock=clock, sleep=clock.sleep, deadline=100.0)
        with pytest.raises(OutcomeUnknownError if act == "save" else TimedOutError) as caught:
            ACTS[act](client)
        clock.stop()
        transport.close()
        if session is not None:
            session.close()
    timeout = caught.value.__cause__ if act == "save" else caught.value
    assert isinstance(timeout, TimedOutError)
    assert timeout.at_deadline
    assert "longer deadline" in str(timeout)


def test_without_a_deadline_drips_are_taken(session: requests.Session | None) -> None:
    """With `deadline=None` only `timeout` counts, which each byte begins anew."""
    clock = TickingClock()
    clock.stop()
    with serving(*dripping(PLAIN, clock)) as address:
        transport = HTTPTransport(address, session=session)
        assert Client(transport, "key", clock=clock, deadline=None).save("a", Raw(b"1")) is None
        transport.close()
        if session is not None:
            session.close()


def test_a_dripping_answer_to_an_upload() -> None:
    """Once all of an upload is sent, its answer must be there within the deadline."""
    clock = TickingClock()
    with serving(*dripping(PLAIN, clock)) as address:
        transport = HTTPTransport(address)
        with pytest.raises(OutcomeUnknownError):
            Client(transport, "key", clock=clock, deadline=100.0).upload("a", b"x", "text/plain")
        clock.stop()
        transport.close()


def test_an_upload_with_progress() -> None:
    """An upload may take longer than the deadline as long as its pieces are taken."""
    clock = FrozenClock()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            clock.advance(90.0)
            return super().read(min(size or 0, 10))

    answer = b'{"error":null,"message":"","data":{"name":"a","folder":"f","id":"i","mimetype":"text/plain","size":100}}'
    with serving(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer), answer) as address:
        transport = HTTPTransport(address)
        assert Client(transport, "key", clock=clock, deadline=100.0).upload("a", Slow(bytes(100)), "text/plain")
        transport.close()


@pytest.mark.parametrize("step", [90.0, 110.0])
def test_a_download_with_progress(step: float) -> None:
    """A download may take longer than the deadline as long as something comes, but may not pause that long."""
    clock = FrozenClock()
    content = [bytes([number]) for number in range(10)]
    arrived = [threading.Event() for _ in content]
    steps: list[bytes | Callable[[], object]] = [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + content[0]]
    begun = threading.Event()
    steps.append(begun.wait)
    for number, piece in enumerate(content[1:]):
        if number:
            steps.append(arrived[number - 1].wait)
        steps += [lambda: clock.advance(step), piece]

    class Read(Deadline):
        def restart(self) -> None:
            super().restart()
            if self.restarts_on_read:
                next((event for event in arrived if not event.is_set()), arrived[0]).set()

    with serving(*steps) as address:
        transport = HTTPTransport(address)
        client = Client(transport, "key", clock=clock, sleep=clock.sleep, retries=0)
        client.new_deadline = lambda: Read(100.0, clock)  # type: ignore[method-assign]
        buffer = io.BytesIO()
        run = Download(client, "/files/a/b", DownloadTarget(buffer), None, lambda _: begun.set()).run
        if step < 100:
            run()
            assert buffer.getvalue() == b"".join(content)
        else:
            with pytest.raises(TimedOutError):
                run()
        for event in arrived:
            event.set()
        transport.close()


def test_it_counts_all_attempts_and_waits() -> None:
    """The next attempt is not waited for if it would begin beyond the deadline: the last error is raised at once."""
    clock = FrozenClock()
    script = Script(*[TransportError("refused", sent=False) for _ in range(9)])
    client = Client(script, "k", clock=clock, sleep=clock.sleep, retries=8, deadline=3.0)
    began = clock.now
    with pytest.raises(TransportError):
        client.load("a")
    assert 1 < len(script.requests) < 6
    assert clock.now - began < 3.0


@pytest.mark.parametrize(("status", "error"), [(503, UnavailableError), (429, TooOftenError)])
def test_retry_after_beyond_it(status: int, error: type[Exception]) -> None:
    """A `Retry-After` beyond the deadline is not waited for."""
    clock = FrozenClock()
    busy = Reply(error="Http error", message=encode_value("Busy"), status=status, retry_after=10.0)
    script = Script(busy, DONE)
    with pytest.raises(error):
        Client(script, "k", clock=clock, sleep=clock.sleep, deadline=10.0).load("a")
    assert clock.slept == []


def test_the_pace_is_not_counted() -> None:
    """Waiting for the pace takes nothing from the deadline, neither before the first attempt nor before the next."""
    clock = FrozenClock()
    script = Script(DONE, TransportError("refused", sent=False), DONE)
    client = Client(script, "k", clock=clock, sleep=clock.sleep, min_interval=100.0, deadline=1.0)
    client.load("a")
    client.load("a")
    assert len(script.requests) == 3


def test_a_slow_answer_to_the_pace() -> None:
    """A pacer tells how long its turn is away."""
    clock = FrozenClock()
    pacer = Pacer(clock, clock.sleep)
    assert [pacer.delay(pacer.reserve(3.0)) for _ in range(3)] == [0.0, 3.0, 6.0]


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf"), "5", True, (1, 2)])
def test_it_is_checked_when_given(tmp_path: Path, deadline: Any) -> None:
    """Anything but a finite number of seconds above 0, or None, is refused when the store is opened."""
    for location in ("http://KEY@127.0.0.1:1/cloudstore", tmp_path / "a.db"):
        with pytest.raises(ValueError, match="deadline must be a number of seconds above 0, or None"):
            cm.open(location, deadline=deadline)
    cm.open(tmp_path / "a.db", deadline=None).close()
    cm.open(tmp_path / "a.db", deadline=5).close()


class _Time:
    """Time of SQLite's waits: sleeping moves it and the client's clock."""

    def __init__(self, clock: FrozenClock) -> None:
        self.monotonic = clock
        self.sleep = clock.sleep


@pytest.mark.parametrize(("deadline", "waited"), [(5.0, 5.0), (45.0, 45.0), (None, 120.0)])
def test_another_process_holds_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deadline: float | None, waited: float
) -> None:
    """An embedded write that waits for another process fails at the deadline, and is not done later."""
    from cloudstore_mapping.service import dispatcher

    clock = FrozenClock()
    with cm.open(tmp_path / "a.db", deadline=deadline, clock=clock) as store:
        store["a"] = 1
        for module in (sqlite, dispatcher):
            monkeypatch.setattr(module, "time", _Time(clock))
        transport: Any = store._files.client._transport
        monkeypatch.setattr(transport._service._storage._writer, "_clock", clock)
        began = clock.now
        with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(UnavailableError if deadline is None else TimedOutError) as caught:
                store["a"] = 2
            other.execute("ROLLBACK")
        assert waited - 1 <= clock.now - began <= waited + 5
        assert isinstance(caught.value, UnavailableError | TimedOutError)
        assert caught.value.sent is (deadline is None)
        assert store["a"] == 1


def test_another_thread_waits_for_the_file(tmp_path: Path) -> None:
    """A write behind another one that waits for the file fails at its own deadline, and is never done."""
    with (
        cm.open(tmp_path / "a.db") as store,
        cm.open(tmp_path / "a.db") as hasty,
        closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as other,
    ):
        transport: Any = store._files.client._transport
        hasty._files.client._transport, unused = transport, hasty._files.client._transport
        hasty._files.client._api_key = store._files.client._api_key
        store["a"] = hasty["a"] = 1
        hasty._files.client._deadline = 0.001
        other.execute("BEGIN IMMEDIATE")
        slow = threading.Thread(target=store.__setitem__, args=("b", 2))
        slow.start()
        while not transport._service._storage._writer._turn.locked():
            pass
        with pytest.raises(TimedOutError) as caught:
            hasty["a"] = 3
        assert caught.value.sent is False
        other.execute("ROLLBACK")
        slow.join()
        assert dict(store) == {"a": 1, "b": 2}
        hasty._files.client._transport = unused


def test_a_batch_at_its_deadline(tmp_path: Path) -> None:
    """Bulk work on a held file ends at the first request's deadline, and names all its keys."""
    with (
        cm.open(tmp_path / "a.db") as store,
        closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as other,
    ):
        assert len(store) == 0
        store._files.client._deadline = 0.001
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BulkError) as caught:
            store.update({str(number): number for number in range(3000)})
        other.execute("ROLLBACK")
        store._files.client._deadline = None
        assert len(caught.value.failed) == 3000
        assert store.stats.requests["batch"] == 1
        assert len(store) == 0


def test_pickled_stores_keep_it() -> None:
    """A pickled store keeps its deadline."""
    with CloudStoreMapping[Any]("key", "http://127.0.0.1:1/x", deadline=7.0) as store:
        assert store._files.store.options["deadline"] == 7.0
