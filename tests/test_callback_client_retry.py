"""The callback client's requests: retries, ids of writes, interim responses, and its own session."""

from __future__ import annotations

import gc
import gzip
import io
import os
import signal
import socketserver
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from http.client import parse_headers
from typing import Any

import pytest
import requests
import urllib3

from cloudstore_mapping import callback_client
from cloudstore_mapping.callback_client import CloudStore, OutcomeUnknownError, TransportError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.client.test_transport_interim import HINTS, PLACES, echoing
from tests.storages import new_storage
from tests.support.matrix import spread
from tests.vendor import Fault, Recorded, Vendor

Dictionary = dict[str, Any]
BUSY = Fault(503, b"<html>")
LOST = Fault(drop="after")


@pytest.fixture
def naps() -> list[float]:
    """Return the seconds slept between attempts, which take no time."""
    return []


@pytest.fixture
def cloud(vendor: Vendor, naps: list[float]) -> Iterator[CloudStore]:
    """Return a client of `vendor` that sleeps for no time."""
    with CloudStore(Vendor.api_key, vendor.address) as cloud:
        cloud._sender._sleep = naps.append
        yield cloud


CALLS: dict[str, Callable[[CloudStore], Future[Dictionary]]] = {
    "save": lambda cloud: cloud.save("a", 2),
    "load": lambda cloud: cloud.load("a"),
    "merge": lambda cloud: cloud.merge("a", 2),
    "list": lambda cloud: cloud.list(),
    "delete": lambda cloud: cloud.delete("a"),
    "upload": lambda cloud: cloud.upload(io.BytesIO(b"data"), "a.bin"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", [BUSY, LOST, Fault(drop="before"), Fault(429, b"", {"Retry-After": "7"})])
def test_retried(cloud: CloudStore, vendor: Vendor, naps: list[float], call: str, fault: Fault) -> None:
    """A request that found the service busy, or whose reply was lost, is sent again, up to three times."""
    vendor.files["a"] = 1
    vendor.faults.extend([fault] * 3)
    reply = CALLS[call](cloud).result(30)
    assert reply["error"] is None
    assert len(vendor.requests) == 4
    assert len({request.body for request in vendor.requests if request.body and call != "upload"}) <= 1
    assert len(naps) == 3
    least = 7 if fault.status == 429 else 0
    assert all(nap >= least for nap in naps)
    assert call != "upload" or vendor.media["a.bin"].data == b"data"


@pytest.mark.parametrize("call", CALLS)
def test_lost_four_times(cloud: CloudStore, vendor: Vendor, call: str) -> None:
    """After the last attempt a write's outcome is unknown, and a read has failed."""
    vendor.files["a"] = 1
    vendor.faults.extend([LOST] * 4)
    if call == "delete":
        vendor.files |= {"a": 1}
        vendor.answer = lambda request: {"error": None, "message": ""}  # type: ignore[method-assign]
    reply = CALLS[call](cloud).result(30)
    assert (reply["error"], reply["response"]) == ("Error sending data", None)
    kind = TransportError if call in ("load", "list") else OutcomeUnknownError
    assert type(reply["exception"]) is kind
    assert ("it may have been done or not" in reply["message"]) is (kind is OutcomeUnknownError)


def test_long_wait(cloud: CloudStore, vendor: Vendor, naps: list[float]) -> None:
    """A service that asks for a long wait is not waited for, and its reply is the call's."""
    vendor.faults.append(Fault(429, b'{"error":"TooOften","message":"Wait."}', {"Retry-After": "31"}))
    reply = cloud.save("a", 1).result(30)
    assert (reply["error"], reply["message"], reply["response"].status_code) == ("TooOften", "Wait.", 429)
    assert naps == []


def test_refusal_after_a_lost_reply(cloud: CloudStore, vendor: Vendor) -> None:
    """A refusal tells nothing of the attempt before it, whose reply was lost."""
    vendor.faults.extend([LOST, Fault(200, b'{"error":"Locked","message":"Wrong password"}')])
    reply = cloud.save("a", 1).result(30)
    assert reply["error"] == "Error sending data"
    assert isinstance(reply["exception"], OutcomeUnknownError)
    assert vendor.files == {"a": 1}


def test_delete_after_a_lost_reply(cloud: CloudStore, vendor: Vendor) -> None:
    """A delete is done if its second attempt finds nothing, as the first has deleted it."""
    vendor.files["a"] = 1
    vendor.faults.append(LOST)
    assert cloud.delete("a").result(30)["error"] is None
    assert vendor.files == {}


def test_stream_without_a_position(cloud: CloudStore, vendor: Vendor) -> None:
    """A stream that can't be rewound is copied at the call, and so it can be sent again."""

    class Stream:
        def __init__(self, data: bytes) -> None:
            self.read = io.BytesIO(data).read

    vendor.faults.append(BUSY)
    stream: Any = Stream(b"data")
    assert cloud.upload(stream, "a.bin").result(30)["error"] is None
    assert len(vendor.requests) == 2
    assert vendor.media["a.bin"].data == b"data"


def test_ids_of_writes(cloud: CloudStore, vendor: Vendor) -> None:
    """Each write has its own id, until a service without the extension `once` has answered; all attempts have one."""
    vendor.faults.append(Fault(drop="before"))
    for _ in range(2):
        assert cloud.save("a", 1).result(30)["error"] is None
    first, second, third = (request.headers.get("Idempotency-Key") for request in vendor.requests)
    assert first == second
    assert first is not None
    assert first.startswith('"')
    assert third is None


def test_ids_at_our_service(naps: list[float]) -> None:
    """At a service that knows ids a write repeated after a lost reply doesn't undo another client's."""
    with Service(new_storage()) as service, background(service) as address, requests.Session() as session:
        key = service.accounts.create("owner")
        with CloudStore(key, address, session=session) as cloud, CloudStore(key, address) as other:
            cloud._sender._sleep = naps.append
            assert cloud.save("a", 0).result(30)["error"] is None

            def lose(response: requests.Response, **_: Any) -> None:
                session.hooks["response"].clear()
                other.save("a", "other").result(30)
                raise requests.ConnectionError("lost")

            session.hooks["response"].append(lose)
            assert cloud.save("a", "mine").result(30)["error"] is None
            assert cloud.load("a").result(30)["data"] == "other"
            session.hooks["response"].append(lose)
            assert cloud.delete("b").result(30)["error"] == "NoFile"
    assert len(naps) == 2


@pytest.mark.parametrize("place", sorted({*PLACES} - {"after a 100"}))
@pytest.mark.parametrize("has_session", [False, True])
def test_interim_responses(place: str, has_session: bool) -> None:
    """An interim response, which `requests` takes for the final one, ends its connection, and is shown to no hook."""
    shown = []
    with echoing(PLACES[place]) as server, requests.Session() as session:
        session.hooks["response"].append(lambda response, **_: shown.append(response.content))
        own = session if has_session else None
        with CloudStore("key", server.address, session=own, retries=0) as cloud:
            for number, name in enumerate(("a", "b", "c"), 1):
                reply = cloud.load(name).result(30)
                assert (reply["error"], reply["response"]) == ("Error sending data", None)
                assert "sent a status 10" in reply["message"]
                assert server.accepted == number
            reply = cloud.save("a", 1).result(30)
            assert type(reply["exception"]) is OutcomeUnknownError
    assert shown == []


def test_after_an_interim_response() -> None:
    """A request that got an interim response is retried on a new connection, and gets its own reply."""
    left = [HINTS]
    with echoing(lambda final: [left.pop() + final if left else final]) as server:
        with CloudStore("key", server.address) as cloud:
            cloud._sender._sleep = lambda _: None
            assert cloud.load("a").result(30)["data"] == "value of a"
            assert cloud.load("b").result(30)["data"] == "value of b"
        assert (server.requests, server.accepted) == (3, 2)


def test_interim_response_read_by_an_adapter() -> None:
    """If an adapter of the user's has read the interim response, its connection is closed all the same."""

    class Eager(requests.adapters.HTTPAdapter):
        def send(self, *args: Any, **options: Any) -> requests.Response:
            response = super().send(*args, **options)
            assert response.content is not None
            return response

    left = [HINTS]
    with echoing(lambda final: [left.pop(), final] if left else [final]) as server, requests.Session() as session:
        session.mount("http://", Eager())
        with CloudStore("key", server.address, session=session, retries=0) as cloud:
            assert "sent a status 103" in cloud.load("a").result(30)["message"]
            assert cloud.load("b").result(30)["data"] == "value of b"
        assert server.accepted == 2


def test_hook_that_raises_for_status(vendor: Vendor) -> None:
    """A session's hook may raise the error of a status: the reply is what the service said."""
    with requests.Session() as session:
        session.hooks["response"].append(lambda response, **_: response.raise_for_status())
        vendor.faults.append(Fault(401, b'{"error":"BadKey","message":"Unknown key."}'))
        with CloudStore("key", vendor.address, session=session) as cloud:
            reply = cloud.load("a").result(30)
    assert (reply["error"], reply["response"].status_code) == ("BadKey", 401)


def test_own_session(vendor: Vendor, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Our own requests to loopback take no proxy, no password of ~/.netrc, and keep no cookies."""
    netrc = tmp_path_factory.mktemp("home") / "netrc"
    netrc.write_text("machine 127.0.0.1 login ann password swordfish")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    vendor.faults.append(Fault(200, b'{"error":null,"message":1}', {"Set-Cookie": "session=1"}))
    with CloudStore(Vendor.api_key, vendor.address) as cloud:
        for _ in range(2):
            assert cloud.load("a").result(30)["error"] in (None, "NoFile")
    assert len(vendor.requests) == 2
    for request in vendor.requests:
        assert not {"Authorization", "Cookie"} & {*request.headers}
    assert vendor.accepted == 1


def test_redirects_are_not_followed(cloud: CloudStore, vendor: Vendor) -> None:
    """A redirect, which would send the API key elsewhere, is the reply."""
    vendor.faults.append(Fault(307, b"", {"Location": vendor.address + "/store/load"}))
    assert cloud.load("a").result(30)["error"] == "Http error"
    assert len(vendor.requests) == 1


def test_answer_that_is_too_large(cloud: CloudStore, vendor: Vendor) -> None:
    """An answer said to be larger than memory is not read."""
    vendor.faults.append(Fault(200, b"{", {"Content-Length": str(2**40)}))
    reply = cloud.load("a").result(30)
    assert reply["error"] == "Error parsing data"
    assert "larger than" in reply["message"]


OK = b"HTTP/1.1 200 OK\r\n"
#: Answers that `requests`, `urllib3`, Python or this client can't read, to a request that was done.
UNREADABLE: dict[str, bytes] = {
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\n{}     ",
    "a length of many digits": OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
    "a length too large": OK + b"Content-Length: 999999999999\r\n\r\n{}",
    "not gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nxxxx",
    "a bad chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
    "no HTTP": b"\0\1\2\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "many headers": OK + b"".join(b"A%d: b\r\n" % number for number in range(300)) + b"\r\n",
    "a long header": OK + b"A: " + b"x" * 70_000 + b"\r\n\r\n",
    "too short": OK + b"Content-Length: 100\r\n\r\n{}",
    "a redirect to no address": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://[::1\r\n\r\n",
    "a redirect to a bad port": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://a:b/\r\n\r\n",
    "a redirect to no host": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://\r\n\r\n",
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a connection that urllib3 drops
@pytest.mark.parametrize(
    ("answer", "has_session", "call"),
    spread([UNREADABLE, [False, True], ["save", "merge", "delete", "upload", "load", "list"]], 5),
)
def test_answer_that_cannot_be_read(naps: list[float], answer: str, has_session: bool, call: str) -> None:
    """After an answer that can't be read a write's outcome is unknown; no exception says that nothing was sent."""
    with (
        hanging_up_after(UNREADABLE[answer]) as address,
        requests.Session() as session,
        CloudStore("key", address, session=session if has_session else None) as cloud,
    ):
        cloud._sender._sleep = naps.append
        reply = CALLS[call](cloud).result(30)
    gc.collect()
    if reply["error"] == "Http error":  # `requests` may leave a redirect alone
        assert answer.startswith("a redirect")
        return
    assert "can't be sent" not in reply["message"]
    if call in ("load", "list"):
        assert reply["error"] in ("Error sending data", "Error parsing data")
        assert getattr(reply["exception"], "sent", True)
    else:
        assert reply["error"] == "Error sending data"
        assert type(reply["exception"]) is OutcomeUnknownError
        assert reply["exception"].sent


@contextmanager
def hanging_up_after(answer: bytes) -> Iterator[str]:
    """Return the address of a service that reads each request, sends this, and hangs up."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            headers = parse_headers(self.rfile)
            self.rfile.read(int(headers["Content-Length"]))
            with suppress(OSError):  # the client may be gone
                self.wfile.write(answer)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/cloudstore"
        finally:
            server.shutdown()
            thread.join()


def test_hook_that_fails_after_the_answer(vendor: Vendor) -> None:
    """A hook whose own request fails changes nothing about the write that came before: it was sent."""

    def hook(*_: Any, **__: Any) -> None:
        raise requests.exceptions.InvalidURL("no address")

    with requests.Session() as session, CloudStore("key", vendor.address, session=session) as cloud:
        session.hooks["response"] = [hook]
        reply = cloud.save("a", 1).result(30)
    assert (vendor.files, type(reply["exception"])) == ({"a": 1}, OutcomeUnknownError)


class _Raw(io.BytesIO):
    """Body of a response, without an end if it `repeats`; it counts the bytes that are read."""

    def __init__(self, data: bytes, *, repeats: bool) -> None:
        super().__init__(data)
        self.repeats = repeats
        self.count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if not data and self.repeats:
            self.seek(0)
            data = super().read(size)
        self.count += len(data)
        return data


class _Answering(requests.adapters.BaseAdapter):
    """Adapter that answers each request with a body, of no said length."""

    def __init__(self, raw: Any, headers: dict[str, str]) -> None:
        super().__init__()
        self.raw = raw
        self.headers = headers

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        """Return the response."""
        response = requests.adapters.HTTPAdapter().build_response(
            request,
            urllib3.HTTPResponse(self.raw, self.headers, 200, preload_content=False),
        )
        response.url = request.url or ""
        return response

    def close(self) -> None:
        """Do nothing."""


BOMB = gzip.compress(b'{"error":null,"message":"' + b"x" * 2**21)


@pytest.mark.parametrize("is_zipped", [False, True])
def test_answer_without_an_end(vendor: Vendor, monkeypatch: pytest.MonkeyPatch, is_zipped: bool) -> None:
    """An answer of unsaid length, or compressed, is read up to the limit, and the rest never; memory stays bounded."""
    monkeypatch.setattr(callback_client, "_MAX_REPLY", 2**20)
    raw = _Raw(BOMB if is_zipped else b"x" * 2**16, repeats=not is_zipped)
    with requests.Session() as session, CloudStore("key", vendor.address, session=session) as cloud:
        session.mount("http://", _Answering(raw, {"Content-Encoding": "gzip"} if is_zipped else {}))
        reply = cloud.load("a").result(30)
    assert (reply["error"], type(reply["response"])) == ("Error parsing data", requests.Response)
    assert "larger than 1048576 bytes" in reply["message"]
    assert raw.count <= 2**20 + 2**17
    assert reply["response"].content == b""


def test_answer_within_the_limit(vendor: Vendor) -> None:
    """An answer of unsaid length within the limit is the reply, and its response has the content."""
    raw = _Raw(b'{"error":null,"message":1}', repeats=False)
    with requests.Session() as session, CloudStore("key", vendor.address, session=session) as cloud:
        session.mount("http://", _Answering(raw, {}))
        reply = cloud.load("a").result(30)
    assert (reply["data"], reply["response"].json()) == (1, {"error": None, "message": 1})


@pytest.mark.parametrize(
    "body",
    [b'{"error":null,"message":NaN}', b'{"error":null,"message":1e400}', b'\xef\xbb\xbf{"error":null,"message":1}'],
)
def test_answer_that_is_no_json(cloud: CloudStore, vendor: Vendor, body: bytes) -> None:
    """A number that JSON or Python can't hold, or a byte order mark, makes an answer unreadable."""
    vendor.faults.append(Fault(200, body))
    assert cloud.load("a").result(30)["error"] == "Error parsing data"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_fork(cloud: CloudStore, vendor: Vendor) -> None:
    """A child has connections of its own, waits for no call of its parent, and finds the lock free."""
    held, go = threading.Event(), threading.Event()
    together = threading.Barrier(2)
    answer = vendor.answer

    def answer_together(request: Recorded) -> Dictionary:
        vendor.lock.release()
        together.wait(30)
        vendor.lock.acquire()
        return answer(request)

    vendor.answer = answer_together  # type: ignore[method-assign]  # so that there are two connections
    for each in [cloud.load(key) for key in ("c", "d")]:
        each.result(30)
    vendor.answer = answer  # type: ignore[method-assign]

    def hold(_: Dictionary) -> None:
        held.set()
        go.wait(30)

    cloud.load("b", hold)
    held.wait(30)  # a callback's thread has the lock
    with vendor.lock:
        slow = cloud.save("a", 2)
        child = os.fork()
        if child == 0:
            os._exit(_in_child(cloud))
    assert os.waitpid(child, 0)[1] == 0
    assert vendor.accepted == 3  # one of its own, though one of the parent's was idle
    go.set()
    assert slow.result(30)["error"] is None
    assert cloud.load("a").result(30)["data"] in (2, 3)


def _in_child(cloud: CloudStore) -> int:
    signal.alarm(60)  # ends a child that hangs
    try:
        done: list[Dictionary] = []
        assert cloud.save("a", 3, done.append).result(30)["error"] is None
        cloud.close()
        assert len(done) == 1
    except BaseException:  # noqa: BLE001 - the child ends here
        return 1
    return 0
