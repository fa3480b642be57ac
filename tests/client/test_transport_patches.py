"""Patches of `requests`: mocks, recorders and instrumentations see our requests, also without a session."""

from __future__ import annotations

import functools
import http.client
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import requests
import requests_mock
import responses
import urllib3
import urllib3.connection
import vcr
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import cloudstore_mapping as cm
from cloudstore_mapping.client import transport as module
from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.transport import HTTPTransport, is_requests_patched
from cloudstore_mapping.wire import Request, Upload
from tests.vendor import Fault, Vendor

LOAD = Request(api_key="S3cretKey", name="a")
MOCKED = {"error": None, "message": "mocked"}


@pytest.fixture
def vendor(vendor: Vendor) -> Vendor:
    """Return a running service that holds one file."""
    vendor.files["a"] = 1
    return vendor


@pytest.fixture(params=["patched before", "patched after"])
def transport(
    request: pytest.FixtureRequest, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HTTPTransport]:
    """Return a transport of a program that patches before its first request, and of one that patches after it."""
    monkeypatch.setattr(module, "_originals", [])
    opened = HTTPTransport(vendor.address)
    if request.param == "patched after":
        assert bytes(opened.send(LOAD).message) == b"1"
        vendor.requests.clear()
    yield opened
    opened.close()


def test_responses_sees_our_requests(transport: HTTPTransport, vendor: Vendor) -> None:
    """`responses` answers in place of the network, and the next request after it takes the short way again."""
    with responses.RequestsMock() as mocked:
        mocked.post(f"{vendor.address}/store/load", json=MOCKED)
        assert transport.send(LOAD).sentence == "mocked"
        assert mocked.calls[0].request.headers["User-Agent"] == module.USER_AGENT
        with pytest.raises(cm.TransportError):
            transport.send(Upload(api_key="k", name="a", content_type="a/b", data=b"data"))
    assert vendor.requests == []
    assert bytes(transport.send(LOAD).message) == b"1"
    assert not is_requests_patched()


def test_requests_mock_sees_our_requests(transport: HTTPTransport, vendor: Vendor) -> None:
    """`requests_mock` answers in place of the network, downloads too."""
    with requests_mock.Mocker() as mocked:
        mocked.post(f"{vendor.address}/store/load", json=MOCKED)
        mocked.get(f"{vendor.address}/files/a.txt", content=b"mocked")
        assert transport.send(LOAD).sentence == "mocked"
        fetched = transport.fetch("/files/a.txt")
        assert b"".join(fetched.pieces) == b"mocked"
        assert mocked.call_count == 2
    assert vendor.requests == []


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Instrument `requests` by OpenTelemetry, and return its spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    RequestsInstrumentor().instrument(tracer_provider=provider)
    yield exporter
    RequestsInstrumentor().uninstrument()


def test_opentelemetry_sees_our_requests(transport: HTTPTransport, vendor: Vendor, spans: InMemorySpanExporter) -> None:
    """OpenTelemetry has a span of each request, and the service its trace."""
    transport.send(LOAD)
    transport.fetch("/files/a.txt").close()
    finished = spans.get_finished_spans()
    assert [(span.attributes or {})["http.method"] for span in finished] == ["POST", "GET"]
    assert all("traceparent" in request.headers for request in vendor.requests)
    assert len(vendor.requests) == 2


def test_vcr_records_and_plays(transport: HTTPTransport, vendor: Vendor, tmp_path: Path) -> None:
    """A recorder records our requests, and plays them without the service."""
    cassette = str(tmp_path / "cassette.yaml")
    for _ in range(2):
        with vcr.use_cassette(cassette) as recorded:
            assert bytes(transport.send(LOAD).message) == b"1"
            assert len(recorded) == 1
    assert len(vendor.requests) == 1
    assert bytes(transport.send(LOAD).message) == b"1"
    assert len(vendor.requests) == 2


def test_vcr_records_no_key(vendor: Vendor, tmp_path: Path) -> None:
    """A recorder's hook can remove the API key from a request's body."""

    def without_key(request: Any) -> Any:
        request.body = re.sub(rb'"key":"[^"]*"', b'"key":""', request.body)
        return request

    cassette = tmp_path / "cassette.yaml"
    with (
        closing(HTTPTransport(vendor.address)) as transport,
        vcr.use_cassette(str(cassette), before_record_request=without_key),
    ):
        assert bytes(transport.send(LOAD).message) == b"1"
    recorded = cassette.read_text()
    assert "store/load" in recorded
    assert LOAD.api_key not in recorded


@pytest.mark.parametrize("is_used", [False, True], ids=["recorded before", "recorded after"])
def test_vcr_records_a_users_session(vendor: Vendor, tmp_path: Path, is_used: bool) -> None:
    """A recorder records a session's requests with a deadline, and afterwards they are bounded by it again."""
    cassette = str(tmp_path / "cassette.yaml")
    with (
        requests.Session() as session,
        Client(HTTPTransport(vendor.address, session=session), vendor.api_key) as client,
    ):
        for _ in range(is_used):
            assert client.load("a") is not None
        vendor.requests.clear()
        for _ in range(2):
            with vcr.use_cassette(cassette) as recorded:
                assert client.load("a") is not None
                assert len(recorded) == 1
        assert len(vendor.requests) == 1
        session.get_adapter(vendor.address).close()
        assert client.load("a") is not None
        assert len(vendor.requests) == 2
        pools = session.get_adapter(vendor.address).poolmanager.pools  # type: ignore[attr-defined]
        kinds = [pools[key].ConnectionCls for key in pools.keys()]  # noqa: SIM118 - it has no other iterator
        assert [issubclass(kind, module._BoundedConnection) for kind in kinds] == [True]


#: Places of a patch: the owner and the attribute.
PLACES: dict[str, tuple[Any, str]] = {
    "Session.send": (requests.Session, "send"),
    "Session.request": (requests.Session, "request"),
    "Session.post": (requests.Session, "post"),
    "Session.get_adapter": (requests.Session, "get_adapter"),
    "Session.prepare_request": (requests.Session, "prepare_request"),
    "Session.merge_environment_settings": (requests.Session, "merge_environment_settings"),
    "HTTPAdapter.send": (requests.adapters.HTTPAdapter, "send"),
    "HTTPAdapter.build_response": (requests.adapters.HTTPAdapter, "build_response"),
    "HTTPAdapter.add_headers": (requests.adapters.HTTPAdapter, "add_headers"),
    "dispatch_hook": (requests.sessions, "dispatch_hook"),
    "PreparedRequest.prepare": (requests.PreparedRequest, "prepare"),
    "HTTPConnectionPool.urlopen": (urllib3.HTTPConnectionPool, "urlopen"),
    "HTTPConnection.request of urllib3": (urllib3.connection.HTTPConnection, "request"),
    "HTTPConnection.getresponse of urllib3": (urllib3.connection.HTTPConnection, "getresponse"),
    "HTTPConnection.putrequest": (http.client.HTTPConnection, "putrequest"),
    "HTTPConnection.getresponse": (http.client.HTTPConnection, "getresponse"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_patch_is_in_force(
    transport: HTTPTransport, vendor: Vendor, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Whatever `requests` uses to send can be wrapped at any time; the wrapper sees our requests while it is there."""
    owner, name = PLACES[place]
    original = getattr(owner, name)
    seen = []

    @functools.wraps(original)
    def wrapper(*args: Any, **options: Any) -> Any:
        seen.append(name)
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, wrapper)
        assert bytes(transport.send(LOAD).message) == b"1"
        assert seen
    seen.clear()
    assert bytes(transport.send(LOAD).message) == b"1"
    assert seen == []
    assert len(vendor.requests) == 2


@pytest.mark.parametrize("place", [(requests, "Session"), (requests.sessions, "HTTPAdapter")])
def test_a_replaced_class_is_in_force(
    transport: HTTPTransport, monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str]
) -> None:
    """A class in the place of one of `requests` sends our requests."""
    used = []

    class Session(requests.Session):
        def send(self, *args: Any, **options: Any) -> requests.Response:
            used.append("Session")
            return super().send(*args, **options)

    class HTTPAdapter(requests.adapters.HTTPAdapter):
        def send(self, *args: Any, **options: Any) -> requests.Response:
            used.append("HTTPAdapter")
            return super().send(*args, **options)

    monkeypatch.setattr(*place, {"Session": Session, "HTTPAdapter": HTTPAdapter}[place[1]])
    assert bytes(transport.send(LOAD).message) == b"1"
    assert used == [place[1]]


def test_a_mock_is_in_force(transport: HTTPTransport, vendor: Vendor) -> None:
    """A mock of `unittest` in the place of `Session.send` answers."""
    response = requests.Response()
    response.status_code = 200
    response._content = b'{"error":null,"message":"mocked"}'
    with mock.patch.object(requests.Session, "send", return_value=response):
        assert transport.send(LOAD).sentence == "mocked"
    assert vendor.requests == []


def test_a_subclass_as_the_session(vendor: Vendor) -> None:
    """A session of a class of the user's own sends our requests by its own methods."""
    used = []

    class Own(requests.Session):
        def post(self, *args: Any, **options: Any) -> requests.Response:
            used.append("post")
            return super().post(*args, **options)

        def request(self, *args: Any, **options: Any) -> requests.Response:
            used.append("request")
            return super().request(*args, **options)

        def send(self, *args: Any, **options: Any) -> requests.Response:
            used.append("send")
            return super().send(*args, **options)

    with Own() as session:
        assert bytes(HTTPTransport(vendor.address, session=session).send(LOAD).message) == b"1"
    assert used == ["post", "request", "send"]


def test_a_patched_request_is_the_same(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, transport: HTTPTransport
) -> None:
    """A request through a patched `requests` has the headers and body of any other: no cookie, proxy or netrc."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ann password Passw0rd\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    upload = Upload(api_key="k", name="a", content_type="a/b", data=b"data")

    def send_all() -> None:
        vendor.faults.append(Fault(200, b'{"error":null,"message":1}', {"Set-Cookie": "a=b"}))
        for _ in range(2):
            transport.send(LOAD)
        transport.send(upload)
        transport.fetch("/files/a.txt").close()

    send_all()
    with mock.patch.object(requests.Session, "send", functools.partialmethod(requests.Session.send)):
        send_all()
    sent = [(request.path, _settled(request.headers)) for request in vendor.requests]
    assert sent[:4] == sent[4:]
    assert not [headers for _, headers in sent if {"Cookie", "Authorization"} & {*headers}]


def _settled(headers: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in headers.items() if name not in ("Content-Type", "Content-Length")}


def test_patched_requests_skip_interim_responses(vendor: Vendor, transport: HTTPTransport) -> None:
    """An instrumented program gets through a proxy that sends interim responses, as any other does."""
    session = module._new_session()
    pool: Any = session.get_adapter("http://a").get_connection_with_tls_context(  # type: ignore[attr-defined]
        requests.Request("GET", "http://a").prepare(), True
    )
    assert issubclass(pool.ConnectionCls, module._FinalResponses)
    assert not issubclass(pool.ConnectionCls, module._FastRequests)


@pytest.mark.parametrize("is_patched", [False, True])
def test_elapsed(vendor: Vendor, monkeypatch: pytest.MonkeyPatch, is_patched: bool) -> None:
    """A reply's response has the time that passed until it came."""
    if is_patched:
        monkeypatch.setattr(requests.sessions, "dispatch_hook", functools.partial(requests.sessions.dispatch_hook))
    ticks = iter(range(1000))
    monkeypatch.setattr(module, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(requests.sessions, "preferred_clock", lambda: float(next(ticks)))
    transport = HTTPTransport(vendor.address)
    assert transport.send(LOAD).response.elapsed == timedelta(seconds=1)
    transport.close()
