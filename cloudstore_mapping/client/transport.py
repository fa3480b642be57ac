"""The way to a service: one method; over HTTP, here alone, with `requests`."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias
from urllib.parse import urlsplit

from cloudstore_mapping._version import __version__
from cloudstore_mapping.client.address import is_loopback
from cloudstore_mapping.client.failures import translated
from cloudstore_mapping.client.fetching import part_headers, received
from cloudstore_mapping.client.lazy import lazy
from cloudstore_mapping.client.multipart import Form
from cloudstore_mapping.client.replies import PIECE, joined, known_extensions, pieces, reply_of
from cloudstore_mapping.wire import (
    EXTENSIONS_HEADER,
    UPLOAD_PATH,
    Batch,
    Reply,
    Request,
    Upload,
    encode_request,
    id_beside,
)

if TYPE_CHECKING:
    from requests import Response as Response
    from requests import Session as Session
    from urllib3 import BaseHTTPResponse, HTTPConnectionPool

    from cloudstore_mapping.client.fetching import Fetched

#: What a service can be asked: whatever a transport sends.
Sendable: TypeAlias = Request | Batch | Upload

DEFAULT_TIMEOUT: Final = (5.0, 30.0)
DEFAULT_MAX_REPLY: Final = 2**28
JSON_TYPE: Final = "application/json; charset=UTF-8"

USER_AGENT: Final = f"cloudstore-mapping/{__version__}"

_EXTENSIONS: Final = EXTENSIONS_HEADER.lower().encode()
#: Connections that are kept open; more may be in use at once.
_POOL: Final = 32


class Transport(Protocol):
    """The way to a service: whatever can send a request and say what was answered."""

    def send(self, request: Sendable) -> Reply:
        """
        Return the service's answer, be it an error.

        Raises `TransportError` or `TimedOutError` where none came, `ProtocolError` where it can't be read.
        """

    def close(self) -> None:
        """Close what was opened."""


class HTTPTransport:
    """
    Sends requests over HTTP, on connections that stay open.

    Parameters
    ----------
    server
        The service's address, without the API key, as `address.check_server` gives it.
    timeout
        Seconds to wait for the connection and for each piece of the answer, or one number for both.
    session
        A `requests.Session` to use, with its proxies, hooks and adapters; `close` leaves it open. Without one, the
        environment's proxies are used as they are at the first request, and none to loopback.
    max_reply
        Bytes of an answer, unpacked, past which it is refused.

    Attributes
    ----------
    server
        The service's address.
    has_id_header
        True: as long as no answer has named the extension `once`, the id of a write goes in the header
        ``Idempotency-Key``, where it is nothing to a service that doesn't know it.
    sent_bytes, received_bytes
        Bytes of the bodies of all requests that were answered (a stream of unknown length isn't counted), and of the
        answers, unpacked.

    Notes
    -----
    May be used by many threads, and after a fork by the child. Redirects are never followed: the key is in the body.
    """

    has_id_header: Final = True

    def __init__(
        self,
        server: str,
        *,
        timeout: float | tuple[float, float] = DEFAULT_TIMEOUT,
        session: Session | None = None,
        max_reply: int = DEFAULT_MAX_REPLY,
    ) -> None:
        self.server = server
        self._timeout = timeout if isinstance(timeout, tuple) else (timeout, timeout)
        if not all(isinstance(seconds, int | float) and seconds > 0 for seconds in self._timeout):
            raise ValueError("timeout is a number of seconds above 0, or two: for the connection and for the answer.")
        self._session = session
        self._max_reply = max_reply
        self._line: _Line | None = None
        self._knows_ids = False
        self._lock = threading.Lock()
        self.sent_bytes = 0
        self.received_bytes = 0

    def __repr__(self) -> str:
        return f"<HTTPTransport to {self.server}>"

    def send(self, request: Sendable) -> Reply:
        """Return the service's answer, be it an error; raises as `Transport.send` does."""
        import requests
        from urllib3.exceptions import HTTPError

        body: bytes | Form
        if isinstance(request, Upload):
            body = Form(request)
            path, headers = UPLOAD_PATH, {"Content-Type": body.content_type}
        else:
            path, headers = request.path, {"Content-Type": JSON_TYPE}
            if not self._knows_ids:
                request, beside = id_beside(request)
                headers |= beside
            body = encode_request(request)
        try:
            response, extensions = self._post(path, headers, body)
        except (requests.RequestException, HTTPError) as error:
            # A ValueError is about a URL, and shows it: a proxy's has a password.
            raise translated(error, self.server) from (None if isinstance(error, ValueError) else error)
        with self._lock:
            self.sent_bytes += (len(body) if isinstance(body, bytes) else body.len) or 0
            self.received_bytes += len(response.content)
        reply = reply_of(response, known_extensions(extensions))
        if reply.extensions:
            self._knows_ids = "once" in reply.extensions
        return reply

    def fetch(self, link: str, start: int = 0, tag: str | None = None) -> Fetched:
        """Begin to get a media file; see `fetching.MediaTransport.fetch`."""
        import requests
        from urllib3.exceptions import HTTPError

        headers = part_headers(start, tag)
        try:
            if self._session is None:
                raw = self._own_line().get(link, headers)
            else:
                url = self.server + link
                raw = self._session.get(
                    url, headers=headers, timeout=self._timeout, allow_redirects=False, stream=True
                ).raw
            return received(raw, self._received, (requests.RequestException, HTTPError), self.server, self._max_reply)
        except (requests.RequestException, HTTPError) as error:
            raise translated(error, self.server) from error

    def _received(self, size: int) -> None:
        with self._lock:
            self.received_bytes += size

    def close(self) -> None:
        """Close the connections, unless the session is the user's."""
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _post(self, path: str, headers: dict[str, str], body: bytes | Form) -> tuple[Response, str]:
        """Return the response, read to its end, and what its header says of extensions."""
        if self._session is None:
            return self._own_line().post(path, headers, body, self._max_reply)
        response = self._session.post(
            self.server + path,
            data=body,
            headers=headers,
            timeout=self._timeout,
            allow_redirects=False,
            stream=True,
        )
        with response:
            content = joined(response.iter_content(PIECE), self._max_reply)
        response._content = content  # noqa: SLF001 - `requests` has no public way to read with a limit
        return response, response.headers.get(EXTENSIONS_HEADER, "")

    def _own_line(self) -> _Line:
        with self._lock:
            # After a fork the old connections are the parent's.
            if self._line is None or self._line.process != os.getpid():
                self._line = _Line(self.server, self._timeout)
            return self._line


class _Line:
    """
    The connections to one server, all that its requests have in common prepared once.

    `requests.Session.post` spends half a small request's time on what is the same each time: it looks for proxies in
    the environment, takes the URL apart, merges headers and cookies.
    """

    def __init__(self, server: str, timeout: tuple[float, float]) -> None:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Timeout

        from cloudstore_mapping.client.connections import QUICK

        self.process = os.getpid()
        self._server = server
        self._timeout = Timeout(connect=timeout[0], read=timeout[1])
        self._adapter = HTTPAdapter(pool_maxsize=_POOL)
        with requests.Session() as session:
            settings = session.merge_environment_settings(server, {}, None, None, None)
        self._proxies = {} if is_loopback(urlsplit(server).hostname or "") else settings["proxies"]
        prepared = requests.Request("POST", server).prepare()
        verify, cert = settings["verify"], settings["cert"]
        self._pool: HTTPConnectionPool = self._adapter.get_connection_with_tls_context(  # type: ignore[assignment]
            prepared, verify, self._proxies, cert
        )
        self._adapter.cert_verify(self._pool, server, verify, cert)  # type: ignore[no-untyped-call]  # it says CA files
        self._pool.ConnectionCls = QUICK.get(self._pool.ConnectionCls, self._pool.ConnectionCls)
        self._targets: dict[str, str] = {}
        self._headers = {
            "Host": urlsplit(prepared.url or server).netloc,
            "User-Agent": USER_AGENT,
            "Accept-Encoding": "gzip, deflate",
        }

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()  # the adapter lets go of its pools, but closes none that is still known to somebody
        self._adapter.close()

    def post(self, path: str, more: dict[str, str], body: bytes | Form, max_reply: int) -> tuple[Response, str]:
        """Return the response, read to its end, and what its header says of extensions."""
        import requests

        from cloudstore_mapping.client.connections import Answer

        headers = {**self._headers, **more}
        length = len(body) if isinstance(body, bytes) else body.len
        if length is not None:
            headers["Content-Length"] = str(length)
        raw: Any = self._pool.urlopen(
            "POST",
            self._targets.get(path) or self._targets.setdefault(path, self._target(path)),
            body=body,
            headers=headers,
            retries=self._adapter.max_retries,
            redirect=False,
            assert_same_host=False,
            timeout=self._timeout,
            chunked=length is None,
            preload_content=False,
            decode_content=False,
        )
        if isinstance(raw, Answer):
            raw.release()
            content = joined((raw.content,), max_reply)
            extensions = raw.headers.get(_EXTENSIONS, b"").decode("latin-1")
        else:
            with raw:
                content = joined(pieces(raw, max_reply), max_reply)
            extensions = raw.headers.get(EXTENSIONS_HEADER, "")

        def build() -> Response:
            prepared = requests.Request("POST", self._server + path, headers=headers, data=body).prepare()
            return self._adapter.build_response(prepared, raw.full() if isinstance(raw, Answer) else raw)

        return lazy(requests.Response)(raw.status, content, build), extensions

    def get(self, link: str, headers: dict[str, str]) -> BaseHTTPResponse:
        """Return the response to a GET, of which no more than the head is read."""
        return self._pool.urlopen(
            "GET",
            self._target(link),
            headers={"User-Agent": USER_AGENT, **headers},
            retries=self._adapter.max_retries,
            redirect=False,
            assert_same_host=False,
            timeout=self._timeout,
            preload_content=False,
            decode_content=False,
        )

    def _target(self, path: str) -> str:
        """Return what stands in a request's first line: a path, to a proxy the whole URL."""
        import requests

        return self._adapter.request_url(requests.Request("GET", self._server + path).prepare(), self._proxies)
