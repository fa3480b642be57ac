"""The exceptions of `requests` and `urllib3`: each has its meaning, and `sent` is False only where that is certain."""

from __future__ import annotations

import builtins
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partialmethod
from http.client import RemoteDisconnected
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests.exceptions
import urllib3.exceptions
from msgspec import Raw
from requests.adapters import BaseAdapter
from urllib3.connectionpool import HTTPConnectionPool

from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.transport import TRANSLATIONS, HTTPTransport, translate_exception
from cloudstore_mapping.errors import (
    BadKeyError,
    CloudStoreError,
    NoFileError,
    ProtocolError,
    TimedOutError,
    TransportError,
)
from cloudstore_mapping.wire import Request, Upload
from tests.support.certificates import SELF_SIGNED
from tests.vendor import Fault, Vendor

SERVER = "https://service.example/cloudstore"
SECRETS = ("S3cretKey", "Passw0rd")
POOL = HTTPConnectionPool("service.example")
CONNECTION: Any = POOL._new_conn()

CLASSES = [
    kind
    for kind in vars(requests.exceptions).values()
    if isinstance(kind, type) and issubclass(kind, requests.RequestException)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_table_is_complete(kind: type[Exception]) -> None:
    """The table names every exception of `requests`, each once."""
    name = f"requests.{kind.__name__}"
    assert [row.classes.split().count(name) for row in TRANSLATIONS if name in row.classes.split()] == [1]


def test_table_names_what_exists() -> None:
    """The table names no class that there isn't."""
    modules = {"requests": requests.exceptions, "urllib3": urllib3.exceptions, "ssl": ssl, "builtins": builtins}
    for name in " ".join(row.classes for row in TRANSLATIONS).split():
        module, _, kind = name.partition(".")
        assert hasattr(modules[module], kind), name


def caused(error: BaseException, cause: BaseException) -> Any:
    """Return the error, raised from the cause."""
    error.__cause__ = cause
    return error


def retried(reason: Exception) -> urllib3.exceptions.MaxRetryError:
    """Return what `urllib3` makes of an error while connecting."""
    return urllib3.exceptions.MaxRetryError(POOL, "/cloudstore/store/save", reason)


REFUSED = caused(
    urllib3.exceptions.NewConnectionError(CONNECTION, "Failed"), ConnectionRefusedError(111, "Connection refused")
)
UNKNOWN_HOST = caused(
    urllib3.exceptions.NameResolutionError("service.example", CONNECTION, socket.gaierror(-2, "Name not known")),
    socket.gaierror(-2, "Name or service not known"),
)
SLOW = urllib3.exceptions.ConnectTimeoutError(CONNECTION, "timed out")
UNTRUSTED = urllib3.exceptions.SSLError(ssl.SSLCertVerificationError(1, "certificate verify failed"))
BROKEN_TLS = urllib3.exceptions.SSLError(ssl.SSLError(1, "bad record mac"))
SILENT = urllib3.exceptions.ReadTimeoutError(POOL, "/", "Read timed out.")
ABORTED = urllib3.exceptions.ProtocolError("Connection aborted.", RemoteDisconnected("Remote end closed connection"))
STALLED = urllib3.exceptions.ProtocolError("Connection aborted.", TimeoutError("timed out"))
PROXY = urllib3.exceptions.ProxyError("Unable to connect to proxy", OSError("Tunnel connection failed: 407 Sign in"))

#: What may happen, what is raised, and whether the service may have seen the request.
MEANINGS: list[tuple[Exception, type[CloudStoreError], bool | None, str]] = [
    (requests.ConnectionError(retried(REFUSED)), TransportError, False, "Connection refused"),
    (requests.ConnectionError(retried(UNKNOWN_HOST)), TransportError, False, "Name or service not known"),
    (requests.ConnectTimeout(retried(SLOW)), TimedOutError, False, "connection in time"),
    (requests.exceptions.SSLError(retried(UNTRUSTED)), TransportError, True, "certificate verify failed"),
    (requests.exceptions.SSLError(retried(BROKEN_TLS)), TransportError, True, "bad record mac"),
    (requests.exceptions.ProxyError(retried(PROXY)), TransportError, False, "407 Sign in"),
    (requests.exceptions.InvalidProxyURL("http://Passw0rd@"), TransportError, False, "proxy"),
    (requests.ReadTimeout(SILENT), TimedOutError, True, "answer in time"),
    (requests.Timeout(), TimedOutError, True, "answer in time"),
    (requests.ConnectionError(SILENT), TimedOutError, True, "answer in time"),
    (requests.ConnectionError(STALLED), TimedOutError, True, "answer in time"),
    (requests.ConnectionError(ABORTED), TransportError, True, "Remote end closed"),
    (requests.ConnectionError(), TransportError, True, "broke"),
    (requests.exceptions.ChunkedEncodingError(ABORTED), TransportError, True, "broke"),
    (requests.exceptions.RetryError(retried(urllib3.exceptions.ResponseError())), TransportError, True, "broke"),
    (requests.RequestException("S3cretKey"), TransportError, True, "broke"),
    (requests.exceptions.ContentDecodingError(), ProtocolError, None, "can't be read"),
    (requests.exceptions.InvalidURL("http://S3cretKey@host"), ProtocolError, None, "can't be sent"),
    (requests.exceptions.InvalidSchema(), ProtocolError, None, "can't be sent"),
    (requests.exceptions.TooManyRedirects(), ProtocolError, None, "can't be read"),
    (retried(REFUSED), TransportError, False, "Connection refused"),
    (retried(SLOW), TimedOutError, False, "connection in time"),
    (SILENT, TimedOutError, True, "answer in time"),
    (STALLED, TimedOutError, True, "answer in time"),
    (ABORTED, TransportError, True, "Remote end closed"),
    (retried(PROXY), TransportError, False, "407 Sign in"),
    (urllib3.exceptions.ClosedPoolError(POOL, "closed"), TransportError, True, "broke"),
    (urllib3.exceptions.DecodeError("no gzip"), ProtocolError, None, "can't be read"),
    (urllib3.exceptions.LocationParseError("http://S3cretKey@host"), ProtocolError, None, "can't be sent"),
]


@pytest.mark.parametrize(("error", "kind", "sent", "part"), MEANINGS)
def test_meaning(error: Exception, kind: type[CloudStoreError], sent: bool | None, part: str) -> None:
    """Each exception is one error of ours, with a sentence of what happened and what to do, and no secret."""
    raised = translate_exception(error, SERVER)
    assert type(raised) is kind
    assert getattr(raised, "sent", None) is sent
    assert part in str(raised)
    assert SERVER in str(raised)
    assert not [secret for secret in SECRETS if secret in str(raised)]


class _Adapter(BaseAdapter):
    """Raises where a connection would be opened."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def send(self, *_: Any, **__: Any) -> Any:
        raise self._error

    def close(self) -> None:
        pass


@pytest.mark.parametrize("error", [error for error, *_ in MEANINGS if isinstance(error, requests.RequestException)])
def test_on_a_users_session(error: Exception) -> None:
    """What a user's adapter raises is translated as well, and the error holds it as its cause unless it shows a URL."""
    with requests.Session() as session:
        session.mount("https://", _Adapter(error))
        with pytest.raises(CloudStoreError) as caught:
            HTTPTransport(SERVER, session=session).send(Request(api_key="S3cretKey", name="a", password="Passw0rd"))
    assert caught.value.__cause__ is (None if isinstance(error, ValueError) else error)
    assert not [secret for secret in SECRETS if secret in f"{caught.value!s}{caught.value!r}"]


def test_errors_of_hooks_pass() -> None:
    """What isn't of `requests` goes through as it is."""
    with requests.Session() as session:
        session.mount("https://", _Adapter(ZeroDivisionError()))
        with pytest.raises(ZeroDivisionError):
            HTTPTransport(SERVER, session=session).send(Request(api_key="k", name="a"))


def test_error_that_carries_a_response() -> None:
    """A response that an exception brings along is the error's."""
    response = requests.Response()
    assert translate_exception(requests.HTTPError(response=response), SERVER).response is response


@pytest.fixture
def untrusted(tmp_path: Path) -> Iterator[str]:
    """Return the address of a server with a certificate that nobody vouches for."""
    (tmp_path / "self-signed.pem").write_text(SELF_SIGNED)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "self-signed.pem")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"https://127.0.0.1:{server.getsockname()[1]}/cloudstore"
        thread.join()


@pytest.mark.parametrize("has_session", [False, True])
def test_certificates_are_verified(untrusted: str, has_session: bool) -> None:
    """A server that can't prove who it is gets nothing of a request."""
    with requests.Session() as session:
        transport = HTTPTransport(untrusted, session=session if has_session else None)
        with pytest.raises(TransportError, match=r"TLS.*certificate verify failed.*check its certificate") as caught:
            transport.send(Request(api_key="S3cretKey", name="a"))
        transport.close()
    assert caught.value.sent is False
    assert str(caught.value).endswith("or name a private one's file by REQUESTS_CA_BUNDLE.")


@pytest.mark.parametrize("has_session", [False, True])
def test_https_where_http_is_spoken(has_session: bool) -> None:
    """Of a server that answers TLS in plain text the error says that it may speak http, and blames no certificate."""
    with socket.create_server(("127.0.0.1", 0)) as server, requests.Session() as session:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.recv(1)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"https://127.0.0.1:{server.getsockname()[1]}/cloudstore"
        transport = HTTPTransport(address, session=session if has_session else None)
        with pytest.raises(TransportError, match=r"it may speak http there") as caught:
            transport.send(Request(api_key="S3cretKey", name="a"))
        transport.close()
        thread.join()
    assert "certificate" not in str(caught.value)
    assert caught.value.sent is False


@pytest.fixture
def hangs_up() -> Iterator[str]:
    """Return the address of a server that takes a connection, reads a little, and ends it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}/cloudstore"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(("scheme", "sent"), [("http", True), ("https", False)])
@pytest.mark.parametrize("has_session", [False, True])
def test_a_handshake_comes_before_the_request(hangs_up: str, scheme: str, sent: bool, has_session: bool) -> None:
    """A connection that ends while TLS is set up carried no request; one that ends later may have."""
    with requests.Session() as session:
        transport = HTTPTransport(f"{scheme}://{hangs_up}", session=session if has_session else None)
        for request in (
            Request(api_key="k", name="a"),
            Upload(api_key="k", name="a", content_type="a/b", data=b"x" * 10_000_000),
        ):
            with pytest.raises(TransportError) as caught:
                transport.send(request)
            assert caught.value.sent is sent
        transport.close()


ABSENT = "/absent/ca.pem"


@pytest.fixture(params=["own", "session", "patched"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[requests.Session | None]:
    """Return no session, a session, and no session while `requests` is patched."""
    if request.param == "patched":
        monkeypatch.setattr(requests.Session, "send", partialmethod(requests.Session.send))
    with requests.Session() as session:
        yield session if request.param == "session" else None


@pytest.fixture
def clean_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the proxies of the environment."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def fails_at_once(address: str, session: requests.Session | None, match: str) -> CloudStoreError:
    """Return the error of a save, after a single attempt and no wait."""
    transport = HTTPTransport(address, session=session)
    with Client(transport, "S3cretKey", sleep=lambda _: pytest.fail("retried")) as client:
        with pytest.raises(CloudStoreError, match=match) as caught:
            client.save("a", Raw(b"1"))
        assert client.stats.retries == 0
    assert getattr(caught.value, "sent", False) is False
    return caught.value


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_missing_certificate_files(
    way: requests.Session | None, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A file of certificates that does not exist is named at once, with the settings that may name it."""
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(variable, ABSENT)
    error = fails_at_once("https://127.0.0.1:1/cloudstore", way, f"no certificate file {ABSENT}; .*{variable}")
    assert type(error) is TransportError
    with pytest.raises(TransportError, match=ABSENT):
        HTTPTransport("https://127.0.0.1:1/cloudstore", session=way).fetch("/files/a.txt")


def test_a_missing_client_certificate() -> None:
    """A session's client certificate that does not exist is named at once."""
    with requests.Session() as session:
        session.cert = ABSENT
        fails_at_once("https://127.0.0.1:1/cloudstore", session, f"no certificate file {ABSENT}; .*session's")


def test_a_ca_file_without_certificates(
    untrusted: str, way: requests.Session | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file of certificates without any is the fault of that setting, and nothing is sent."""
    (tmp_path / "ca.pem").write_text("nothing")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    fails_at_once(untrusted, way, "TLS with .* failed .*REQUESTS_CA_BUNDLE")
    host, _, port = untrusted.removeprefix("https://").removesuffix("/cloudstore").partition(":")
    with suppress(OSError):
        socket.create_connection((host, int(port))).close()  # its server waits for a connection


def test_a_certificate_that_nobody_vouches_for(untrusted: str, way: requests.Session | None) -> None:
    """A server's certificate does not become valid by another attempt."""
    error = fails_at_once(untrusted, way, "TLS.*certificate verify failed.*check its certificate")
    assert type(error) is TransportError


def test_errors_of_the_system_in_hooks_pass(way: requests.Session | None) -> None:
    """An `OSError` of a user's hook or adapter is none of ours."""
    with requests.Session() as session:
        session.mount("https://", _Adapter(FileNotFoundError(2, "No such file", "notes.txt")))
        with pytest.raises(FileNotFoundError):
            HTTPTransport(SERVER, session=session).send(Request(api_key="k", name="a"))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_not_there(
    way: requests.Session | None, monkeypatch: pytest.MonkeyPatch, clean_proxies: None, scheme: str
) -> None:
    """A proxy that refuses the connection is to blame, and not the service."""
    monkeypatch.setenv(f"{scheme}_proxy", "http://ann:Passw0rd@127.0.0.1:1")
    address = f"{scheme}://service.invalid/cloudstore"
    error = fails_at_once(address, way, r"The proxy .* can't be used \(Connection refused\); check .*HTTPS_PROXY")
    assert "Passw0rd" not in f"{error} {error!r}"


@pytest.fixture(params=[403, 407, 502])
def refusing_proxy(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """Return the address of a proxy that opens no tunnel, and its status."""

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            self.send_error(request.param)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", request.param
        server.shutdown()
        thread.join()


def test_a_proxy_that_opens_no_tunnel(
    way: requests.Session | None,
    monkeypatch: pytest.MonkeyPatch,
    clean_proxies: None,
    refusing_proxy: tuple[str, int],
) -> None:
    """A proxy's refusal to open a tunnel is named with its status; only one of the kind 5xx may pass."""
    address, status = refusing_proxy
    monkeypatch.setenv("https_proxy", address)
    server = "https://service.invalid/cloudstore"
    match = rf"The proxy .* can't be used \(Tunnel connection failed: {status} .*check HTTP_PROXY"
    if status < 500:
        fails_at_once(server, way, match)
        return
    with Client(HTTPTransport(server, session=way), "k", sleep=lambda _: None) as client:
        with pytest.raises(TransportError, match=match) as caught:
            client.save("a", Raw(b"1"))
        assert client.stats.retries == 3
    assert type(caught.value) is TransportError


def test_a_proxy_that_asks_for_a_sign_in(
    way: requests.Session | None, monkeypatch: pytest.MonkeyPatch, clean_proxies: None, vendor: Vendor
) -> None:
    """A status 407 is a proxy's, and the error says where its password goes."""
    monkeypatch.setenv("http_proxy", vendor.address.removesuffix("/cloudstore"))
    vendor.faults.append(Fault(407, b"<html>"))
    fails_at_once("http://service.invalid/cloudstore", way, "407 .*user and password into its address")


@pytest.mark.parametrize("reads_first", [False, True])
def test_a_hook_that_raises_for_a_status(vendor: Vendor, reads_first: bool) -> None:
    """A reply is the same reply if a hook of the session raises for its status, and 503 is retried."""

    def raise_for_status(response: requests.Response, **_: Any) -> None:
        assert not reads_first or response.content
        response.raise_for_status()

    vendor.files["a"] = 1
    with requests.Session() as session:
        session.hooks["response"] = raise_for_status
        client = Client(HTTPTransport(vendor.address, session=session), "k", sleep=lambda _: None)
        vendor.faults.extend([Fault(503, b"<html>", {"Retry-After": "1"})] * 2)
        assert client.load("a") is not None
        assert (len(vendor.requests), client.stats.retries) == (3, 2)
        vendor.faults.append(Fault(401, b'{"error":"BadKey","message":"Unknown key."}'))
        with pytest.raises(BadKeyError) as caught:
            client.load("a")
        assert caught.value.response.status_code == 401
        with pytest.raises(NoFileError):
            client.fetch("/files/absent.txt")


def test_a_hook_whose_own_request_fails(vendor: Vendor) -> None:
    """The response to another request, such as a hook's for a token, is never taken for the reply."""
    vendor.files["a"] = 1

    def fetch_token(response: requests.Response, **_: Any) -> None:
        requests.post(
            f"{vendor.address}/store/load", json={"key": "k", "file": "b", "options": None}
        ).raise_for_status()

    with requests.Session() as session:
        session.hooks["response"].append(fetch_token)
        vendor.faults.append(Fault(200, b'{"error":null,"message":1}'))
        vendor.faults.append(Fault(404, b'{"error":"NoFile","message":"no token"}'))
        with pytest.raises(ProtocolError, match="can't be read"):
            HTTPTransport(vendor.address, session=session).send(Request(api_key="k", name="a"))


def test_a_hook_that_fails_leaves_nothing_open(vendor: Vendor) -> None:
    """If a hook raises, the response that it was given is closed."""
    received = []

    def fail(response: requests.Response, **_: Any) -> None:
        received.append(response)
        raise ZeroDivisionError

    vendor.files["a"] = "x" * 1_000_000
    with requests.Session() as session:
        session.hooks["response"].append(fail)
        with pytest.raises(ZeroDivisionError):
            HTTPTransport(vendor.address, session=session).send(Request(api_key="k", name="a"))
    assert [response.raw.closed for response in received] == [True]
