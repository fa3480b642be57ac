"""HTTP transport with requests and urllib3: one attempt, its deadline, and their exceptions as ours."""

from __future__ import annotations

import binascii
import functools
import hashlib
import importlib
import io
import math
import queue
import re
import socket
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from operator import attrgetter
from time import perf_counter
from types import FunctionType
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, Protocol, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

from cloudstore_mapping import callback_client
from cloudstore_mapping._version import __version__
from cloudstore_mapping.client.address import is_loopback
from cloudstore_mapping.errors import (
    BadNameError,
    BadValueError,
    CloudStoreError,
    ProtocolError,
    TimedOutError,
    TransportError,
)
from cloudstore_mapping.forks import renew_after_fork
from cloudstore_mapping.links import TYPE_HEADER
from cloudstore_mapping.masking import SecretBytes, hide
from cloudstore_mapping.wire import (
    EXTENSIONS,
    EXTENSIONS_HEADER,
    UPLOAD_PATH,
    Batch,
    Reply,
    Request,
    Upload,
    decode_reply,
    encode_request,
    encode_value,
    id_beside,
)

#: Seconds for a request with all its attempts, waits and slow replies.
DEFAULT_DEADLINE: Final = 60.0


class Deadline:
    """
    Time by which a request must end: `seconds` from now by `clock`; None: no limit.

    Attributes
    ----------
    began
        Time of the beginning.
    restarts_on_read
        True while each read restarts the deadline, as during a download.
    sent
        True if the current attempt may have left this machine; a transport that can't tell does not set it.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float]) -> None:
        self._seconds = math.inf if seconds is None else seconds
        self._clock = clock
        self.began = clock()
        self._until = self.began + self._seconds
        self.restarts_on_read = False
        self.sent = False

    def left(self) -> float:
        """Return the seconds left, 0 or less once the deadline has passed."""
        return self._until - self._clock()

    def within(self, timeout: float) -> float:
        """Return `timeout`, or the seconds left if fewer; `TimeoutError` once the deadline has passed."""
        left = self._until - self._clock()
        if left <= 0:
            raise TimeoutError("The deadline has passed.")
        return min(timeout, left)

    def restart(self) -> None:
        """Restart the deadline after progress of an upload or download."""
        self._until = self._clock() + self._seconds

    def extend(self, seconds: float) -> None:
        """Exclude a wait from the deadline, such as for the rate limit."""
        self._until += seconds


class Group(Protocol):
    """Bulk work in progress, a `bulk.CallGroup`."""

    has_ended: bool
    connections: dict[int, Any]

    def sleep(self, seconds: float) -> object:
        """Sleep, but not beyond the end of the bulk work."""

    def wake(self) -> None:
        """End all present and future sleeps."""


class _Scope(threading.local):
    """Request running on this thread, and the bulk work it belongs to."""

    deadline: Deadline | None = None
    group: Group | None = None


scope: Final = _Scope()


if TYPE_CHECKING:
    from http.client import HTTPResponse as RawResponse

    from requests import Response as Response
    from requests import Session as Session
    from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPResponse
    from urllib3.connection import HTTPConnection as _ConnectionBase
    from urllib3.util import Timeout
else:
    _ConnectionBase = object

R = TypeVar("R")

#: Any message a transport sends.
Sendable: TypeAlias = Request | Batch | Upload

DEFAULT_TIMEOUT: Final = (5.0, 30.0)
DEFAULT_MAX_REPLY: Final = 2**28
JSON_TYPE: Final = "application/json; charset=UTF-8"
ACCEPTED_ENCODINGS: Final = "gzip, deflate"
USER_AGENT: Final = f"cloudstore-mapping/{__version__}"

#: Bytes read at a time.
CHUNK_SIZE: Final = 2**16
#: Largest request body copied behind its head; a larger body is sent separately.
MAX_COPIED_BODY: Final = 2**16

_EXTENSIONS: Final = EXTENSIONS_HEADER.lower().encode()
#: Connections kept open; more may be in use at once.
_POOL_SIZE: Final = 32
_WITHOUT_BODY: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_ENCODING_HEADERS: Final = frozenset({b"transfer-encoding", b"content-encoding"})
# Not 101: nothing asks for another protocol, so it is an error.
_INTERIM: Final = re.compile(rb"HTTP/1\.\d\s+1(?!01)\d\d\b")
_INTERIM_STATUSES: Final = range(100, 200)
_MOST_INTERIM_LINES: Final = 1000
#: As in `http.client`, which refuses a line of this length.
_LONGEST_LINE: Final = 2**16 + 1
#: Python refuses to convert thousands of digits.
_LENGTH: Final = re.compile(r"[0-9]{1,100}")
_SHA256: Final = re.compile(r"(?:^|[ ,])sha-256=:([A-Za-z0-9+/=]{1,100}):")
_RANGE: Final = re.compile(r"bytes ([0-9]{1,100})-[0-9]+/([0-9]{1,100})")
_FILENAME: Final = re.compile(r"filename\*=UTF-8''([^;\s]+)", re.IGNORECASE)


class Transport(Protocol):
    """Transport to a service: sends a message and returns the reply."""

    def send(self, request: Sendable) -> Reply:
        """
        Return the service's reply, also if it is an error.

        Raises `TransportError` or `TimedOutError` without a reply, `ProtocolError` for an unreadable reply.
        """

    def close(self) -> None:
        """Release all resources."""


@dataclass
class Fetched:
    """
    Media file being downloaded, from byte `start` of `size` (None if unknown).

    `tag` identifies this exact content; `digest` is its SHA-256 in hexadecimal, if the service tells it. `refusal` is
    the error reply if there is no such file. Call `close` to release the connection, also after an incomplete read of
    `pieces`.
    """

    refusal: Reply | None
    start: int
    size: int | None
    tag: str | None
    mimetype: str
    name: str | None
    pieces: Iterator[bytes]
    close: Callable[[], object]
    digest: str | None = None


def refused(reply: Reply) -> Fetched:
    """Return a download without content, for an error reply."""
    return Fetched(reply, 0, None, None, "", None, iter(()), lambda: None)


class HTTPTransport:
    """
    Send requests over HTTP, on persistent connections.

    Parameters
    ----------
    server
        The service's address without the API key, as returned by `address.check_server`.
    timeout
        Seconds to wait for the connection and for each part of the answer, or a single number for both.
    session
        A `requests.Session` to use, with its proxies, hooks and adapters; `close` leaves it open. Without it, the
        environment's proxies at the time of the first request apply, except to loopback; and while something has
        replaced a part of `requests` (a mock, a recorder, an instrumentation), requests go through `requests`.
    max_reply
        Maximum size of an answer in bytes, uncompressed.

    Attributes
    ----------
    server
        The service's address.
    has_id_header
        True: until a reply names the extension `once`, the id of a write goes into the header ``Idempotency-Key``,
        ignored by services without the extension.
    sent_bytes, received_bytes
        Body bytes of all answered requests (except streams of unknown length) and of the answers, uncompressed.

    Notes
    -----
    Thread safe, also after a fork. Redirects are never followed, because the body holds the API key.
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
            raise ValueError("timeout must be seconds above 0: one number, or two for the connection and the answer.")
        self._session = session
        self._patched: Session | None = None
        self._max_reply = max_reply
        self._pool: _ServerPool | None = None
        self._knows_ids = False
        self._lock = threading.RLock()  # a signal handler may send a request, too
        self.sent_bytes = 0
        self.received_bytes = 0
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Leave the open connections to the parent process, those of the user's session, too."""
        self._lock = threading.RLock()
        self._pool = self._patched = None
        adapters = getattr(self._session, "adapters", None)
        for adapter in adapters.values() if isinstance(adapters, dict) else ():
            # As if the adapter came out of a pickle: with new pools.
            if (state := getattr(adapter, "__getstate__", None)) and hasattr(adapter, "__setstate__"):
                adapter.__setstate__(state())

    def __repr__(self) -> str:
        return f"<HTTPTransport to {self.server}>"

    def send(self, request: Sendable) -> Reply:
        """Return the service's reply, also if it is an error; raises as `Transport.send` does."""
        import requests
        from urllib3.exceptions import HTTPError

        body: bytes | MultipartForm
        if isinstance(request, Upload):
            body = MultipartForm(request)
            path, headers = UPLOAD_PATH, {"Content-Type": body.content_type}
        else:
            path, headers = request.path, {"Content-Type": JSON_TYPE}
            if not self._knows_ids:
                request, id_header = id_beside(request)
                headers |= id_header
            body = SecretBytes(encode_request(request))  # masked, as it holds the API key
        if scope.deadline is not None:
            scope.deadline.sent = False
        try:
            response, extensions = self._post(path, headers, body)
        except (requests.RequestException, HTTPError, OSError) as error:
            if not _is_translatable(error):
                raise
            # The message of a ValueError shows a URL, and a proxy's URL may hold a password.
            raise self._translated(error) from (None if isinstance(error, ValueError) else error)
        finally:
            if scope.group is not None:
                scope.group.connections.pop(threading.get_ident(), None)
        with self._lock:
            self.sent_bytes += (len(body) if isinstance(body, bytes) else body.len) or 0
            self.received_bytes += len(response.content)
        if not response.content and callback_client.is_cut_off(response.status_code, response.headers):
            raise self._broken()
        reply = _reply_of(response, _known_extensions(extensions))
        if reply.extensions:
            self._knows_ids = "once" in reply.extensions
        return reply

    def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
        """
        Post a body as it is, and return the response as it came, whatever its status and content.

        Raises `TransportError` or `TimedOutError` without a response, `ProtocolError` if it is not HTTP or too large.
        """
        import requests
        from urllib3.exceptions import HTTPError

        if scope.deadline is not None:
            scope.deadline.sent = False
        try:
            response, _ = self._post(path, {"Content-Type": JSON_TYPE, **(headers or {})}, SecretBytes(body))
        except (requests.RequestException, HTTPError, OSError) as error:
            if not _is_translatable(error):
                raise
            raise self._translated(error) from (None if isinstance(error, ValueError) else error)
        return response

    def fetch(self, link: str, start: int = 0, tag: str | None = None) -> Fetched:
        """
        Begin to download the media file at `link`, from byte `start` if its content still has the tag `tag`.

        Raises `TransportError` or `TimedOutError` without an answer; so does iteration over the pieces.
        """
        import requests
        from urllib3.exceptions import HTTPError

        headers = _range_headers(start, tag)
        try:
            session = self._session_in_use()
            if session is None:
                raw = self._own_pool().get(link, headers)
                return self._open_download(raw, raw.close)
            response = self._send_through(session, "GET", link, headers)
            return self._open_download(response.raw, response.close)
        except (requests.RequestException, HTTPError, OSError) as error:
            if not _is_translatable(error):
                raise
            raise translate_exception(error, self.server) from error

    def is_in_use(self) -> bool:
        """Return True in a signal handler, or `__del__`, whose own thread holds the lock."""
        owned: bool = self._lock._is_owned()  # type: ignore[attr-defined]  # noqa: SLF001 - as `Condition` asks
        return owned

    def close(self) -> None:
        """Close the connections, but not the user's session."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
        patched, self._patched = self._patched, None
        if patched is not None:
            patched.close()

    def _post(self, path: str, headers: dict[str, str], body: bytes | MultipartForm) -> tuple[Response, str]:
        """Return the response, read completely, and its extensions header."""
        session = self._session_in_use()
        if session is None:
            return self._own_pool().post(path, headers, body, self._max_reply)
        response = self._send_through(session, "POST", path, headers, body)
        if response.raw is None:  # a mock's, made by hand
            content = response.content
        else:
            with response:
                content = _join(response.iter_content(CHUNK_SIZE), self._max_reply)
        response._content = content  # noqa: SLF001 - see the module's docstring
        return response, response.headers.get(EXTENSIONS_HEADER, "")

    def _translated(self, error: Exception) -> CloudStoreError:
        """Return the error for an exception of a post; after the request was sent, it is one of the answer."""
        raised = translate_exception(error, self.server)
        if scope.deadline is not None and not scope.deadline.sent and hasattr(raised, "sent"):
            raised.sent = False  # no connection
        elif scope.deadline is not None and scope.deadline.sent and isinstance(raised, ProtocolError):
            raised = _unreadable(raised)
        return raised

    def _session_in_use(self) -> Session | None:
        """Return the session for the next request, None for the pool of our own."""
        if self._session is not None or not is_requests_patched():
            return self._session
        with self._lock:
            if self._patched is None:
                self._patched = _new_session()
            return self._patched

    def _send_through(
        self, session: Session, method: str, path: str, headers: dict[str, str], body: Any = None
    ) -> Response:
        """Return the response to a request sent through a session, its body still unread."""
        import requests

        options: dict[str, Any] = {}
        if session is not self._session:
            options["auth"] = _unchanged  # `requests` would look for a password in ~/.netrc
            if is_loopback(urlsplit(self.server).hostname or ""):
                options["proxies"] = {"http": "", "https": "", "all": ""}
        else:
            self._bound_reads(session)
        received: list[Response] = []

        def check(response: Response, **_: Any) -> None:
            received.append(response)
            self._refuse_interim(response)

        # Hooks of a request replace those of the session. Ours runs first, as another hook may read the content and so
        # give the connection back.
        theirs = (getattr(session, "hooks", None) or {}).get("response", ())
        hooks = [check, *((theirs,) if callable(theirs) else theirs)]
        url = self.server + path
        if scope.deadline is not None:
            scope.deadline.sent = True
        try:
            # Not `request`: a user's class may have a `post` of its own.
            response = (session.post if method == "POST" else session.get)(
                url,
                data=body,
                headers=headers,
                timeout=_timeout_left(self._timeout),
                allow_redirects=False,
                stream=True,
                hooks={"response": hooks},
                **options,
            )
        except BaseException as error:
            # A hook may call `raise_for_status`: the response is the reply all the same. But the response to a
            # hook's own request is no reply to this one.
            failed = error.response if isinstance(error, requests.HTTPError) else None
            if failed is not None and _is_response_to(failed, method, url, body):
                response = failed
            elif received and "resolve_redirects" in _functions(error):
                response = received[-1]  # `requests` reads a redirect's address, though it doesn't follow it
            else:
                for response in received:
                    response.close()
                raise
        finally:
            received.clear()  # breaks a cycle that would keep the response's connection open after `session.close()`
        self._refuse_interim(response)  # again, as something may have sent the request without hooks
        return response

    def _refuse_interim(self, response: Response) -> None:
        """Close the connection of an interim (1xx) response, and raise `TransportError`: the final one will follow."""
        if response.status_code not in _INTERIM_STATUSES:
            return
        response.close()
        # If the content was read, the connection is already back in its pool.
        if (adapter := getattr(response, "connection", None)) is not None:
            adapter.close()
        raise TransportError(
            f"{self.server} sent a status {response.status_code} before its answer, which requests can't skip; "
            "open the store without session=, or have the service or its proxy send none.",
            sent=True,
        )

    def _bound_reads(self, session: Session) -> None:
        """
        Have new connections of the user's session to this server obey the deadline of a request.

        `requests` has only a timeout for each read, which a service sending a byte now and then never exceeds. Done for
        each request: closing the adapter drops its pools, and a recorder replaces the class of connections.
        """
        if scope.deadline is None or not _is_own(getattr(type(session), "merge_environment_settings", None)):
            return
        find_pool = getattr(session.get_adapter(self.server), "get_connection_with_tls_context", None)
        if find_pool is None:  # no adapter of `requests`
            return
        import requests

        prepared = requests.Request("POST", self.server).prepare()
        settings = session.merge_environment_settings(self.server, {}, None, None, None)
        _bound_connections(find_pool(prepared, settings["verify"], settings["proxies"], settings["cert"]))

    def _own_pool(self) -> _ServerPool:
        with self._lock:
            if self._pool is None:
                pool = _ServerPool(self.server, self._timeout)
                self._pool = self._pool or pool
            return self._pool

    def _open_download(self, raw: BaseHTTPResponse, close: Callable[[], object]) -> Fetched:
        if raw.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            body = b""
            try:
                if not raw.closed:  # `requests` has already read a redirect
                    body = _join(raw.stream(CHUNK_SIZE, decode_content=True), self._max_reply)
            finally:
                close()
            return refused(_download_refusal(raw, body))
        is_part = raw.status == HTTPStatus.PARTIAL_CONTENT
        part = _RANGE.fullmatch(raw.headers.get("Content-Range", "")) if is_part else None
        if is_part and part is None:
            close()
            raise TransportError(f"{self.server} sent a part of the file without its place; try again.", sent=True)
        length = raw.headers.get("Content-Length", "")
        name = _FILENAME.search(raw.headers.get("Content-Disposition", ""))
        return Fetched(
            refusal=None,
            start=0 if part is None else int(part[1]),
            size=int(part[2]) if part is not None else int(length) if _LENGTH.fullmatch(length) else None,
            tag=raw.headers.get("ETag"),
            mimetype=raw.headers.get(TYPE_HEADER) or raw.headers.get("Content-Type", ""),
            name=None if name is None else unquote(name[1]),
            pieces=self._download_pieces(raw),
            close=close,
            digest=_sha256(raw.headers.get("Repr-Digest", "")),
        )

    def _download_pieces(self, raw: BaseHTTPResponse) -> Iterator[bytes]:
        import requests
        from urllib3.exceptions import HTTPError

        is_empty = True
        try:
            for piece in _readable(raw.stream(CHUNK_SIZE, decode_content=False)):
                with self._lock:
                    self.received_bytes += len(piece)
                is_empty = is_empty and not piece
                yield piece
        except (requests.RequestException, HTTPError) as error:
            raise translate_exception(error, self.server) from error
        if is_empty and callback_client.is_cut_off(raw.status, raw.headers):
            raise self._broken()

    def _broken(self) -> TransportError:
        return TransportError(f"The connection to {self.server} broke within the answer; try again.", sent=True)


class _IdleConnections:
    """
    Idle connections of a pool, in place of its `queue.LifoQueue`.

    A signal can interrupt the queue while it holds its lock, and then every later request waits for ever.
    """

    def __init__(self) -> None:
        self._idle: deque[Any] = deque()

    def get(self, block: bool = False, timeout: float | None = None) -> Any:  # noqa: ARG002 - as of a queue
        """Return the connection put last; `queue.Empty` if there is none."""
        try:
            return self._idle.pop()
        except IndexError:
            raise queue.Empty from None

    def put(self, connection: Any, block: bool = False) -> None:  # noqa: ARG002 - as of a queue
        """Keep an idle connection; `queue.Full` beyond `_POOL_SIZE`."""
        if len(self._idle) >= _POOL_SIZE:
            raise queue.Full
        self._idle.append(connection)

    def qsize(self) -> int:
        """Return the number of idle connections."""
        return len(self._idle)

    def close(self) -> None:
        """Close all idle connections."""
        while self._idle:
            connection = self._idle.pop()
            if connection is not None:  # None stands for a broken connection
                connection.close()


class _ServerPool:
    """
    Connection pool of a server, with everything common to its requests prepared once.

    `requests.Session.post` spends half the time of a small request on repeated work: it looks up the environment's
    proxies, parses the URL, merges headers and cookies.
    """

    def __init__(self, server: str, timeout: tuple[float, float]) -> None:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Timeout

        self._server = server
        self._timeouts = timeout
        self._timeout = Timeout(connect=timeout[0], read=timeout[1])
        self._adapter = HTTPAdapter(pool_maxsize=_POOL_SIZE)
        with requests.Session() as session:
            settings = session.merge_environment_settings(server, {}, None, None, None)
        self._proxies = {} if is_loopback(urlsplit(server).hostname or "") else settings["proxies"]
        prepared = requests.Request("POST", server).prepare()
        verify, cert = settings["verify"], settings["cert"]
        self._pool: HTTPConnectionPool = self._adapter.get_connection_with_tls_context(  # type: ignore[assignment]
            prepared, verify, self._proxies, cert
        )
        idle = _IdleConnections()
        self._pool.pool = idle  # type: ignore[assignment]  # all that a pool uses of a queue
        weakref.finalize(self._pool, idle.close)  # as the pool does with its own queue
        self._adapter.cert_verify(self._pool, server, verify, cert)  # type: ignore[no-untyped-call]  # sets the CA files
        self._pool.ConnectionCls = fast_connections().get(self._pool.ConnectionCls, self._pool.ConnectionCls)
        self._targets: dict[str, str] = {}
        self._headers = {
            "Host": urlsplit(prepared.url or server).netloc,
            "User-Agent": USER_AGENT,
            "Accept-Encoding": ACCEPTED_ENCODINGS,
        }

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()  # the adapter drops its pools, but does not close a pool still referenced elsewhere
        self._adapter.close()

    def post(
        self, path: str, more: dict[str, str], body: bytes | MultipartForm, max_reply: int
    ) -> tuple[Response, str]:
        """Return the response, read completely, and its extensions header."""
        import requests

        headers = {**self._headers, **more}
        length = len(body) if isinstance(body, bytes) else body.len
        if length is not None:
            headers["Content-Length"] = str(length)
        started = perf_counter()
        raw: Any = self._pool.urlopen(
            "POST",
            self._targets.get(path) or self._targets.setdefault(path, self._target(path)),
            body=body,
            headers=headers,
            retries=self._adapter.max_retries,
            redirect=False,
            assert_same_host=False,
            timeout=self._timeout_left(),
            chunked=length is None,
            preload_content=False,
            decode_content=False,
        )
        elapsed = perf_counter() - started
        if isinstance(raw, PlainResponse):
            raw.release()
            content = raw.content if len(raw.content) <= max_reply else _join((raw.content,), max_reply)
            extensions = raw.headers.get(_EXTENSIONS, b"").decode("latin-1")
        else:
            with raw:
                content = _join(_body_pieces(raw, max_reply), max_reply)
            extensions = raw.headers.get(EXTENSIONS_HEADER, "")

        def build() -> Response:
            prepared = requests.Request("POST", self._server + path, headers=headers, data=body).prepare()
            full = raw.full() if isinstance(raw, PlainResponse) else raw
            response = self._adapter.build_response(prepared, full)
            response.elapsed = timedelta(seconds=elapsed)
            return response

        return _lazy_response_class(requests.Response)(raw.status, content, build), extensions

    def get(self, link: str, headers: dict[str, str]) -> BaseHTTPResponse:
        """Return the response to a GET, its body still unread."""
        return self._pool.urlopen(
            "GET",
            self._target(link),
            headers={"User-Agent": USER_AGENT, **headers},
            retries=self._adapter.max_retries,
            redirect=False,
            assert_same_host=False,
            timeout=self._timeout_left(),
            preload_content=False,
            decode_content=False,
        )

    def _timeout_left(self) -> Timeout:
        deadline = scope.deadline
        if deadline is None or deadline.left() >= max(self._timeouts):
            return self._timeout
        from urllib3.util import Timeout

        connect, read = _timeout_left(self._timeouts)
        return Timeout(connect=connect, read=read)

    def _target(self, path: str) -> str:
        """Return the target of the request line: a path, or the whole URL for a proxy."""
        import requests

        return self._adapter.request_url(requests.Request("GET", self._server + path).prepare(), self._proxies)


# Patches of `requests`: while there are any, requests go through it.

#: Attributes by module, and by module and class, that are called to send a request, or that patches of the network
#: under `requests` replace.
_REPLACEABLE: Final = {
    ("requests", ""): "Session",
    ("requests.sessions", ""): (
        "Session HTTPAdapter Request PreparedRequest dispatch_hook extract_cookies_to_jar get_environ_proxies "
        "merge_cookies merge_hooks merge_setting"
    ),
    ("requests.adapters", ""): "HTTPAdapter PoolManager Response proxy_from_url select_proxy",
    ("requests.models", ""): "PreparedRequest Response",
    ("requests.sessions", "Session"): (
        "__init__ request get post send get_adapter mount prepare_request merge_environment_settings"
    ),
    ("requests.adapters", "HTTPAdapter"): (
        "__init__ send get_connection_with_tls_context cert_verify build_response request_url add_headers "
        "init_poolmanager proxy_manager_for proxy_headers"
    ),
    ("requests.models", "PreparedRequest"): "prepare prepare_url prepare_headers prepare_body",
    ("urllib3.poolmanager", ""): "HTTPConnectionPool HTTPSConnectionPool",
    ("urllib3.connectionpool", ""): "HTTPConnectionPool HTTPSConnectionPool",
    ("urllib3.connectionpool", "HTTPConnectionPool"): "urlopen ConnectionCls",
    ("urllib3.connectionpool", "HTTPSConnectionPool"): "urlopen ConnectionCls",
    ("urllib3.connection", ""): "HTTPConnection HTTPSConnection",
    ("urllib3.connection", "HTTPConnection"): "connect request putrequest putheader getresponse",
    ("urllib3.connection", "HTTPSConnection"): "connect request getresponse",
    ("http.client", ""): "HTTPConnection",
    ("http.client", "HTTPConnection"): "connect request putrequest putheader endheaders send getresponse",
}
_OWN_PACKAGES: Final = frozenset({"requests", "urllib3", "http"})


class _Owner(NamedTuple):
    """Module or class with the attributes that it had when none was replaced."""

    owner: Any
    get: Callable[[Any], Any]
    values: Any


_originals: list[_Owner] = []


def is_requests_patched() -> bool:
    """Return True if anything has replaced a part of `requests`, or of the packages under it, that sends requests."""
    global _originals
    if not _originals:
        found = [_look_up(module, name, names.split()) for (module, name), names in _REPLACEABLE.items()]
        if not all(_is_own(value) for _, _, values in found for value in values):
            return True
        _originals = found
    for owner, get, values in _originals:  # noqa: SIM110 - a generator would double the time, with each request
        if get(owner) != values:
            return True
    return False


def _look_up(module: str, name: str, names: list[str]) -> _Owner:
    owner = importlib.import_module(module)
    owner = getattr(owner, name) if name else owner
    get = attrgetter(*names, names[0])  # at least two names, so that it returns a tuple
    return _Owner(owner, get, get(owner))


def _is_own(value: object) -> bool:
    """Return True for a class or function defined in `requests`, `urllib3` or `http`, False for any replacement."""
    if isinstance(value, FunctionType):
        module = value.__globals__.get("__name__", "")  # `functools.wraps` copies `__module__`
    else:
        module = value.__module__ if isinstance(value, type) else ""
    return module.partition(".")[0] in _OWN_PACKAGES


def _new_session() -> Session:
    """Return a session that sends the same requests as our own pool: with no cookies, after interim responses."""
    from http.cookiejar import DefaultCookiePolicy

    import requests

    session = requests.Session()
    session.headers = {"User-Agent": USER_AGENT, "Accept-Encoding": ACCEPTED_ENCODINGS}
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
    adapters = dict(session.adapters) if isinstance(session.adapters, dict) else {}
    for prefix, adapter in adapters.items():
        if type(adapter) is requests.sessions.HTTPAdapter:
            session.mount(prefix, _adapter_class(type(adapter))(pool_maxsize=_POOL_SIZE))
    return session


def _adapter_class(base: Callable[..., R]) -> Callable[..., R]:
    class Adapter(base):  # type: ignore[valid-type, misc]  # mypy does not know the base
        """Adapter with connections that skip interim responses, unless something has replaced their class."""

        def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
            pool = super().get_connection_with_tls_context(*args, **options)
            kind = type(pool).ConnectionCls
            pool.ConnectionCls = _patchable_connections().get(kind, kind)
            return pool

    return Adapter


def _unchanged(prepared: R) -> R:
    return prepared


def _is_response_to(response: Response, method: str, url: str, body: object) -> bool:
    """Return True for the response to this request."""
    import requests

    sent = response.request
    if sent is None or sent.method != method or sent.body is not body:
        return False
    return (sent.url or "").startswith(requests.Request(method, url).prepare().url or url)


@functools.cache
def _lazy_response_class(base: type[R]) -> Callable[[int, bytes, Callable[[], R]], R]:
    """Return a subclass of `base` that takes a status, a content, and a function to build the rest on demand."""

    class LazyResponse(base):  # type: ignore[valid-type, misc]  # mypy does not know the base
        """Response built on first access to anything but status and content: building doubles the time of a save."""

        def __init__(self, status: int, content: bytes, build: Callable[[], R]) -> None:
            self.status_code = status
            self._content = content
            self._content_consumed = True
            self._build = build

        def __getattr__(self, name: str) -> Any:
            build = vars(self).get("_build")
            if build is None or name.startswith("__"):
                raise AttributeError(name)
            self.__dict__.update({**vars(build()), **vars(self)})
            return object.__getattribute__(self, name)

    return LazyResponse


# Connections: `http.client` sends head and body apart, so the server wakes twice, and parses headers as e-mail.


class PlainResponse:
    """
    Complete response to a POST: status, headers by lower-case name, content.

    It has the attributes a pool of `urllib3` expects of a response.
    """

    retries: Any = None
    version_string = "HTTP/1.1"
    length_remaining = 0
    _pool: Any = None
    _connection: Any = None

    def __init__(self, status: int, headers: dict[bytes, bytes], content: bytes, received: bytes) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        self._received = received

    def release(self) -> None:
        """Return the connection to its pool."""
        self._pool._put_conn(self._connection)  # noqa: SLF001 - see the module's docstring

    def full(self) -> HTTPResponse:
        """Return the same response as an object of `urllib3`."""
        from http.client import HTTPResponse as RawResponse  # imports email

        original = RawResponse(_FakeSocket(io.BytesIO(self._received)), method="POST")  # type: ignore[arg-type]
        original.begin()
        original.read()  # releases the stream: Python 3.13 warns about a stream dropped half read
        return _urllib3_response(original, io.BytesIO(self.content))


def _timeout_left(timeout: tuple[float, float]) -> tuple[float, float]:
    """Return the timeouts for connection and reads, neither longer than the time left for the request."""
    if scope.deadline is None:
        return timeout
    try:
        return scope.deadline.within(timeout[0]), scope.deadline.within(timeout[1])
    except TimeoutError as error:
        raise TimedOutError(
            "The deadline passed before the request was sent; give a longer one.", sent=False
        ) from error


class _BoundedReads(io.RawIOBase):
    """
    Reads of a response, each within the timeout and all within the deadline, while `are_bounded`.

    The first of them return `received`, bytes read before.
    """

    def __init__(self, connection: Any, sock: socket.socket, received: bytes = b"") -> None:
        self._raw = sock.makefile("rb", buffering=0)
        self._received = received
        self._sock = sock
        self._timeout = connection.timeout
        self._deadline = scope.deadline
        self.are_bounded = self._timeout is not None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._received:
            count = min(len(buffer), len(self._received))
            buffer[:count] = self._received[:count]
            self._received = self._received[count:]
            return count
        deadline = self._deadline
        if deadline is None or not self.are_bounded:
            return self._raw.readinto(buffer)
        self._sock.settimeout(deadline.within(self._timeout))
        read = self._raw.readinto(buffer)
        if deadline.restarts_on_read:
            deadline.within(self._timeout)
            deadline.restart()
        return read

    def close(self) -> None:
        self._raw.close()
        super().close()


def _connect(connection: Any) -> None:
    """Connect if need be, bound the sending by the deadline, and remember that the request is about to leave."""
    if connection.sock is None:
        connection.connect()
    deadline, group = scope.deadline, scope.group
    if deadline is not None and connection.timeout is not None:
        connection.timeout = deadline.within(connection.timeout)
        deadline.sent = True
    if group is not None:
        group.connections[threading.get_ident()] = connection


class _BoundedConnection(_ConnectionBase):
    """Mixin for a connection: sending, and all reads of a response, end at the deadline of the request."""

    def send(self, data: Any) -> None:
        """Send bytes in parts: the timeout is for each of them, as for each part of a response."""
        if not isinstance(data, bytes) or len(data) <= CHUNK_SIZE:
            super().send(data)
            return
        deadline = scope.deadline
        with memoryview(data) as view:
            for start in range(0, len(view), CHUNK_SIZE):
                if deadline is not None and self.sock is not None and self.timeout is not None:
                    self.sock.settimeout(deadline.within(self.timeout))
                super().send(view[start : start + CHUNK_SIZE])

    def request(self, *arguments: Any, **options: Any) -> None:
        """Send a request."""
        _connect(self)
        super().request(*arguments, **options)

    def response_class(  # type: ignore[override]  # a class there, called like this
        self, sock: socket.socket, debuglevel: int = 0, method: str | None = None
    ) -> RawResponse:
        """Return the response that `http.client` will read from this connection."""
        from http.client import HTTPResponse  # imports email

        stream = _FakeSocket(io.BufferedReader(_BoundedReads(self, sock)))
        return HTTPResponse(stream, debuglevel, method)  # type: ignore[arg-type]


@functools.cache
def bounded_class(base: type[Any]) -> type[Any]:
    """Return the bounded class for a class of connection."""
    return type(f"Bounded{base.__name__}", (_BoundedConnection, base), {})


def _bound_connections(pool: Any) -> None:
    """Bound the new connections of a pool, unless something has replaced their class."""
    kind = pool.ConnectionCls
    is_bounded = isinstance(kind, type) and issubclass(kind, _BoundedConnection)
    if is_bounded:
        kind = type(pool).ConnectionCls
    if _is_own(kind):
        pool.ConnectionCls = bounded_class(kind)
    elif is_bounded:
        vars(pool).pop("ConnectionCls", None)


class _FinalResponses(_BoundedConnection):
    """Mixin for a connection: skip interim responses, and close the connection if bytes are left behind a response."""

    def response_class(  # type: ignore[override]  # a class there, called like this
        self, sock: socket.socket, *_: Any, method: str | None = None
    ) -> RawResponse:
        """Return the response that `http.client` will read from this connection."""
        return _final_response_class()(_Received(self, sock), method)


class _FastRequests(_FinalResponses):
    """
    Mixin for a connection: send a POST with a bytes body in a single segment, and parse a plain answer quickly.

    Pool, TLS, proxies, timeouts and exceptions are `urllib3`'s, and so is every other request and answer.
    """

    _is_fast = False

    def request(  # type: ignore[override]  # same arguments as urllib3's
        self, method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        self._is_fast = method == "POST" and isinstance(body, bytes)
        if not self._is_fast:
            super().request(method, url, body, headers, **options)
            return
        _connect(self)
        self.sock.settimeout(self.timeout)
        lines = "\r\n".join(map(": ".join, (headers or {}).items()))
        head = f"POST {url} HTTP/1.1\r\n{lines}\r\n\r\n".encode("latin-1")
        if len(body) > MAX_COPIED_BODY:
            self.sock.sendall(head)
            self.send(body)
        else:
            self.sock.sendall(SecretBytes(head + body))  # Python's TLS has it in a variable

    def getresponse(self) -> Any:
        if not self._is_fast:
            return super().getresponse()
        timeout = self.timeout
        if scope.deadline is not None and timeout is not None:
            timeout = scope.deadline.within(timeout)
        self.sock.settimeout(timeout)
        received = self.sock.recv(io.DEFAULT_BUFFER_SIZE)
        # A full buffer may have left more bytes of this answer, or of another, with the socket.
        plain = parse_plain_response(received) if len(received) < io.DEFAULT_BUFFER_SIZE else None
        if plain is not None:
            return plain
        original = _final_response_class()(_Received(self, self.sock, received), "POST")
        try:
            original.begin()
        except BaseException:
            original.close()  # closes the stream, too
            raise
        if original.will_close:
            self.close()
        return _urllib3_response(original)


@functools.cache
def fast_connections() -> dict[type[Any], type[Any]]:
    """Return the fast class for each class of connection; others, such as SOCKS proxies', have none."""
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class FastHTTPConnection(_FastRequests, HTTPConnection):
        """Fast connection over plain HTTP."""

    class FastHTTPSConnection(_FastRequests, HTTPSConnection):
        """Fast connection over TLS."""

    return {HTTPConnection: FastHTTPConnection, HTTPSConnection: FastHTTPSConnection}


@functools.cache
def _patchable_connections() -> dict[type[Any], type[Any]]:
    """Return the class for each class of connection that sends as `urllib3` does, for requests through `requests`."""
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class FinalHTTPConnection(_FinalResponses, HTTPConnection):
        """Connection over plain HTTP."""

    class FinalHTTPSConnection(_FinalResponses, HTTPSConnection):
        """Connection over TLS."""

    return {HTTPConnection: FinalHTTPConnection, HTTPSConnection: FinalHTTPSConnection}


class _Received(io.BufferedReader):
    """
    Bytes received on a connection for a single response.

    A line can be put back. With `is_last`, closing checks that no bytes are left, and otherwise closes the connection:
    they belong to no request, and the next one would take them for its own response.
    """

    def __init__(self, connection: Any, sock: socket.socket, received: bytes = b"") -> None:
        self._reads = _BoundedReads(connection, sock, received)
        super().__init__(self._reads)
        self._connection = connection
        self._sock = sock
        self._line = b""
        self.is_last = False

    def put_back(self, line: bytes) -> None:
        """Have `readline` return this line next."""
        self._line = line

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return the line put back, or else the next."""
        line, self._line = self._line, b""
        return line or super().readline(size)

    def close(self) -> None:
        """Close the stream, and the connection if bytes are left."""
        if self.is_last:
            self.is_last = False
            if self._connection.sock is self._sock and self._has_more():
                self._connection.close()
        super().close()

    def _has_more(self) -> bool:
        from ssl import SSLWantReadError

        timeout = self._sock.gettimeout()
        self._reads.are_bounded = False
        try:
            self._sock.settimeout(0)
            return bool(self.peek(1))
        except (BlockingIOError, SSLWantReadError):
            return False
        except (OSError, ValueError):
            return True
        finally:
            self._sock.settimeout(timeout)


@functools.cache
def _final_response_class() -> Callable[[_Received, str | None], RawResponse]:
    from http.client import HTTPException, HTTPResponse  # imports email

    class FinalResponse(HTTPResponse):
        """Final response, after any interim (1xx) responses; `http.client` skips only those with the status 100."""

        def __init__(self, stream: _Received, method: str | None) -> None:
            super().__init__(_FakeSocket(stream), method=method)  # type: ignore[arg-type]
            self._stream = stream

        def begin(self) -> None:
            """Read status and headers."""
            is_interim = False
            for _ in range(_MOST_INTERIM_LINES):
                line = self._stream.readline(_LONGEST_LINE)
                if is_interim:
                    is_interim = line not in (b"\r\n", b"\n", b"")
                elif _INTERIM.match(line):
                    is_interim = True
                else:
                    break
            else:
                raise HTTPException(f"more than {_MOST_INTERIM_LINES} lines of interim responses")
            self._stream.put_back(line)
            super().begin()
            if self.status < HTTPStatus.OK:
                raise HTTPException(f"a response with the status {self.status}")
            self._stream.is_last = not self.will_close

    return FinalResponse


class _FakeSocket:
    """Socket for `http.client`, which only calls `makefile`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def makefile(self, _: str) -> BinaryIO:
        return self._stream


def parse_plain_response(received: bytes) -> PlainResponse | None:
    """Return the response in these bytes if it is a complete HTTP/1.1 response with a Content-Length, else None."""
    head, end, content = received.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    # Repeated and folded headers are left to `http.client`.
    if len(headers) != len(lines) or b"\r\n " in head or b"\r\n\t" in head or not _ENCODING_HEADERS.isdisjoint(headers):
        return None
    status = first[9:12]
    if not (end and first.startswith(b"HTTP/1.1 ") and status.isdigit() and int(status) >= HTTPStatus.OK):
        return None
    if headers.get(b"content-length") != b"%d" % len(content) or int(status) in _WITHOUT_BODY:
        return None
    if headers.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    return PlainResponse(int(status), headers, content, received)


def _urllib3_response(original: RawResponse, body: BinaryIO | None = None) -> HTTPResponse:
    from urllib3 import HTTPHeaderDict, HTTPResponse

    return HTTPResponse(
        body=original if body is None else body,
        headers=HTTPHeaderDict(original.msg.items()),
        status=original.status,
        version=original.version,
        version_string="HTTP/1.1",
        reason=original.reason,
        preload_content=False,
        decode_content=False,
        original_response=original,
        request_method="POST",
    )


# Replies: read a response within the size limit and decode it.


def _body_pieces(raw: BaseHTTPResponse, max_reply: int) -> Iterable[bytes]:
    """Return the body of an answer, in a single piece if its known length is within the limit."""
    length = raw.length_remaining
    if length is not None and length <= max_reply and "Content-Encoding" not in raw.headers:
        return (raw.read(),)
    return raw.stream(CHUNK_SIZE, decode_content=True)


def _join(pieces: Iterable[bytes], max_reply: int) -> bytes:
    """Return the joined pieces; `ProtocolError` beyond `max_reply` bytes."""
    size = 0
    kept = []
    for piece in _readable(pieces):
        size += len(piece)
        if size > max_reply:
            raise ProtocolError(f"The answer is larger than {max_reply} bytes; ask for less at once.", status=200)
        kept.append(piece)
    return b"".join(kept)


def _readable(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces; `ProtocolError` for the plain `ValueError` of `http.client`, such as of a negative length."""
    try:
        yield from pieces
    except ValueError as error:
        if _is_translatable(error):
            raise
        raise ProtocolError(f"The answer can't be read ({error}); is the address right?", status=200) from error


@functools.lru_cache(maxsize=16)
def _known_extensions(header: str) -> frozenset[str]:
    """Return the extensions in a service's header known to this version."""
    return frozenset(map(str.strip, header.split(","))) & frozenset(EXTENSIONS)


def _reply_of(response: Response, extensions: frozenset[str]) -> Reply:
    """
    Return the reply in a response; anything else, such as a proxy's page, is an ``Http error``.

    A proxy may pass on a success with another 2xx, such as 203.
    """
    status = response.status_code
    if status == HTTPStatus.OK:
        return decode_reply(response.content, extensions=extensions, response=response)
    retry_after = parse_retry_after(response.headers)
    facts: dict[str, Any] = {"retry_after": retry_after, "extensions": extensions, "response": response}
    with suppress(ProtocolError):
        reply = decode_reply(response.content, status=status, **facts)
        if reply.error is not None or status < HTTPStatus.MULTIPLE_CHOICES:
            return reply
    message = encode_value(response.reason or f"Status {status}")
    return Reply(error="Http error", message=message, status=status, **facts)


def _range_headers(start: int, tag: str | None) -> dict[str, str]:
    """Return the headers to request a file's bytes from `start` on."""
    headers = {"Accept-Encoding": "identity"}
    # A weak tag or none does not identify the bytes, so the whole file is requested.
    if start and tag is not None and not tag.startswith("W/"):
        headers |= {"Range": f"bytes={start}-", "If-Range": tag}
    return headers


def _sha256(header: str) -> str | None:
    """Return the SHA-256 in a ``Repr-Digest`` (RFC 9530) in hexadecimal, None if there is none."""
    found = _SHA256.search(header)
    try:
        digest = b"" if found is None else binascii.a2b_base64(found[1])
    except binascii.Error:
        return None
    return digest.hex() if len(digest) == hashlib.sha256().digest_size else None


def _download_refusal(raw: BaseHTTPResponse, body: bytes) -> Reply:
    facts: dict[str, Any] = {"status": raw.status, "retry_after": parse_retry_after(raw.headers)}
    try:
        reply = decode_reply(body, **facts)
    except ProtocolError:
        reply = Reply(**facts)
    if reply.error is not None and reply.error != "NoPath":
        return reply
    if raw.status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return Reply(error="NoFile", message=encode_value("There is no media file at this link."), **facts)
    return Reply(error="Http error", message=encode_value(raw.reason or f"Status {raw.status}"), **facts)


def _now() -> datetime:
    return datetime.now(UTC)


def parse_retry_after(headers: Mapping[str, str], now: Callable[[], datetime] = _now) -> float | None:
    """Return the seconds in ``Retry-After``, a number or a date; a date is compared with the answer's own date."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    moment = _parse_date(text)
    if moment is None:
        return None
    return max(0.0, (moment - (_parse_date(headers.get("Date", "")) or now())).total_seconds())


def _parse_date(text: str) -> datetime | None:
    from email.utils import parsedate_to_datetime  # a tenth of this package's import time, and rarely needed

    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


# Exceptions of `requests` and `urllib3`, recognised by name so that neither has to be imported.


class _Translation(NamedTuple):
    """Error for some foreign exception classes."""

    classes: str
    error: Callable[..., CloudStoreError]
    sentence: str


def _unsent(error: type[TransportError | TimedOutError]) -> Callable[..., CloudStoreError]:
    return functools.partial(error, sent=False)


_sent = functools.partial(TransportError, sent=True)

_PROXY_ERRORS: Final = "requests.InvalidProxyURL requests.ProxyError urllib3.ProxyError urllib3.ProxySchemeUnknown"

#: The first row naming a class of any exception in the chain applies; `sent` is False only if the request certainly
#: did not reach the service.
TRANSLATIONS: Final = (
    _Translation(
        _PROXY_ERRORS,
        _unsent(TransportError),
        "The proxy on the way to {server} can't be used{why}; "
        "check HTTP_PROXY, HTTPS_PROXY and NO_PROXY, or the session's proxies.",
    ),
    _Translation(
        "urllib3.NewConnectionError", _unsent(TransportError), "{server} was not reached{why}; check the address."
    ),
    _Translation(
        "requests.ConnectTimeout urllib3.ConnectTimeoutError",
        _unsent(TimedOutError),
        "{server} did not take the connection in time; try again later, or give a longer timeout.",
    ),
    _Translation(
        "requests.ReadTimeout requests.Timeout urllib3.TimeoutError builtins.TimeoutError",
        TimedOutError,
        "{server} did not answer in time; try again later, or give a longer timeout.",
    ),
    _Translation(
        "ssl.SSLCertVerificationError",
        _sent,
        "TLS with {server} failed{why}; check its certificate, or name a private one's file by REQUESTS_CA_BUNDLE.",
    ),
    _Translation(
        "requests.SSLError ssl.SSLError urllib3.SSLError",
        _sent,
        "TLS with {server} failed{why}; check its certificate, and the CA file if REQUESTS_CA_BUNDLE names one.",
    ),
    _Translation(
        "requests.MissingSchema requests.InvalidSchema requests.InvalidURL requests.URLRequired requests.InvalidHeader "
        "requests.UnrewindableBodyError urllib3.LocationValueError urllib3.InvalidHeader",
        ProtocolError,
        "The request to {server} can't be sent{why}; check the address, and the proxy's if there is one.",
    ),
    _Translation(
        "requests.ContentDecodingError requests.InvalidJSONError requests.JSONDecodeError requests.HTTPError "
        "requests.TooManyRedirects requests.StreamConsumedError urllib3.DecodeError",
        ProtocolError,
        "The answer of {server} can't be read{why}; is the address right?",
    ),
    _Translation(
        "requests.ConnectionError requests.ChunkedEncodingError requests.RetryError requests.RequestException "
        "urllib3.HTTPError",
        _sent,
        "The connection to {server} broke{why}; try again.",
    ),
)


_PLAIN_HTTP: Final = _Translation(
    "ssl.SSLError", _sent, "TLS with {server} failed{why}; it may speak http there, so check the address and its port."
)


def translate_exception(error: Exception, server: str) -> CloudStoreError:
    """Return the error of this package for an exception of `requests` or `urllib3`."""
    if (path := _missing_file(error)) is not None:
        return TransportError(
            f"There is no certificate file {path}; correct REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE, "
            "or the session's verify and cert.",
            is_permanent=True,
        )
    chain = list(_chain(error))
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for link in chain for kind in type(link).__mro__}
    row = next(row for row in TRANSLATIONS if not names.isdisjoint(row.classes.split()))
    # Messages of `requests` may show URLs with passwords, so only the system's messages are quoted.
    system = [link for link in chain if type(link).__module__.partition(".")[0] not in ("requests", "urllib3")]
    cause = system[-1] if system else chain[-1]
    reason = getattr(cause, "strerror", None) or str(cause)[:200] if system else type(cause).__name__
    response = getattr(error, "response", None)
    if "WRONG_VERSION_NUMBER" in str(reason) or "HTTP_REQUEST" in str(reason):
        row = _PLAIN_HTTP
    raised = row.error(row.sentence.format(server=server, why=f" ({reason})"), response=response)
    if isinstance(raised, TransportError | TimedOutError) and any(map(_in_handshake, chain)):
        raised.sent = False
    if isinstance(raised, TransportError):
        raised.is_permanent = _is_permanent(chain, is_proxy=row.classes == _PROXY_ERRORS)
    return raised


def _is_translatable(error: Exception) -> bool:
    """Return True for an exception of `requests` or `urllib3`, False for one of a hook."""
    import requests
    from urllib3.exceptions import HTTPError

    return isinstance(error, requests.RequestException | HTTPError) or _missing_file(error) is not None


def _unreadable(error: ProtocolError) -> ProtocolError:
    """Return the error of a reply that can't be read, for an error after the request was sent."""
    message = error.message.replace("The request to ", "The answer of ").replace(" can't be sent", " can't be read")
    return ProtocolError(message, status=error.status or 0, response=error.response)


def _missing_file(error: Exception) -> str | None:
    """Return the path in the plain `OSError` that `requests` raises without a file of certificates, or None."""
    if type(error) is not OSError or error.errno is not None:
        return None
    path = str(error).partition(", invalid path: ")[2]
    return path or None


def _is_permanent(chain: list[BaseException], *, is_proxy: bool) -> bool:
    """Return True if another attempt would fail in the same way, because a setting is wrong."""
    import ssl

    for link in chain:
        if isinstance(link, ssl.SSLCertVerificationError):
            return True
        if {"ssl_wrap_socket"} == _functions(link) & {"ssl_wrap_socket", "do_handshake"}:
            return True  # reading the files of certificates
        if is_proxy and (isinstance(link, ConnectionRefusedError) or "Tunnel connection failed: 4" in str(link)):
            return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and the exceptions inside it, causes last."""
    yield error
    for part in (*error.args, getattr(error, "reason", None), error.__cause__):
        if isinstance(part, BaseException):
            yield from _chain(part)


def _in_handshake(error: BaseException) -> bool:
    # TLS raises the same classes before, during and after a request; only the traceback distinguishes them.
    return not _functions(error).isdisjoint({"ssl_wrap_socket", "do_handshake"})


def _functions(error: BaseException) -> frozenset[str]:
    """Return the names of the functions that an exception passed."""
    return frozenset(frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))


# Uploads: the multipart form of a media file.


class MultipartForm(callback_client.MultipartForm):
    """Multipart body of an upload, each of whose pieces restarts the deadline."""

    def __init__(self, upload: Upload) -> None:
        check_type(upload.content_type)
        fields = {"key": upload.api_key, "password": upload.password or ""}
        if upload.only_new:
            fields["if_version"] = ""
        try:
            super().__init__(
                {name: hide(value) for name, value in fields.items()}, upload.name, upload.content_type, upload.data
            )
        except callback_client.BadValueError as error:
            raise BadNameError(str(error), key=upload.name) from None

    def _pieces(self) -> Iterator[bytes]:
        return pieces_of(self._data)


def check_type(content_type: str) -> None:
    """Raise `BadValueError` for a content type with characters not allowed in a form."""
    try:
        callback_client.check_type(content_type)
    except callback_client.BadValueError as error:
        raise BadValueError(str(error)) from None


def pieces_of(data: bytes | IO[bytes]) -> Iterator[bytes]:
    """
    Yield the bytes of an upload, as `callback_client.pieces_of` does.

    The deadline restarts with each: the service accepted the one before, and the time for reading does not count.
    """
    deadline = scope.deadline
    try:
        yield from callback_client.pieces_of(data, (lambda: None) if deadline is None else deadline.restart)
    except callback_client.BadValueError as error:
        raise BadValueError(str(error)) from error.__cause__
