"""The connections to one server, with what all requests to it have in common."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from cloudstore_mapping._version import __version__
from cloudstore_mapping.client.address import is_loopback
from cloudstore_mapping.client.multipart import Form
from cloudstore_mapping.client.replies import joined, pieces
from cloudstore_mapping.wire import EXTENSIONS_HEADER

if TYPE_CHECKING:
    from requests import Response as Response
    from urllib3 import BaseHTTPResponse, HTTPConnectionPool

USER_AGENT: Final = f"cloudstore-mapping/{__version__}"

_EXTENSIONS: Final = EXTENSIONS_HEADER.lower().encode()
#: Connections that are kept open; more may be in use at once.
_POOL: Final = 32


class Line:
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

    def post(self, path: str, content_type: str, body: bytes | Form, max_reply: int) -> tuple[Response, str]:
        """Return the response, read to its end, and what its header says of extensions."""
        from cloudstore_mapping.client.connections import Answer

        headers = {**self._headers, "Content-Type": content_type}
        length = len(body) if isinstance(body, bytes) else body.len
        if length is not None:
            headers["Content-Length"] = str(length)
        raw: Any = self._pool.urlopen(
            "POST",
            self._target(path),
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
            import requests

            prepared = requests.Request("POST", self._server + path, headers=headers, data=body).prepare()
            return self._adapter.build_response(prepared, raw.full() if isinstance(raw, Answer) else raw)

        return _response_class()(raw.status, content, build), extensions

    def get(self, link: str, headers: dict[str, str]) -> BaseHTTPResponse:
        """Return the response to a GET, of which no more than the head is read."""
        import requests

        prepared = requests.Request("GET", self._server + link).prepare()
        return self._pool.urlopen(
            "GET",
            self._adapter.request_url(prepared, self._proxies),
            headers={"User-Agent": USER_AGENT, **headers},
            retries=self._adapter.max_retries,
            redirect=False,
            assert_same_host=False,
            timeout=self._timeout,
            preload_content=False,
            decode_content=False,
        )

    def _target(self, path: str) -> str:
        """Return what stands in the request's first line: a path, to a proxy the whole URL."""
        if path not in self._targets:
            import requests

            prepared = requests.Request("POST", self._server + path).prepare()
            self._targets[path] = self._adapter.request_url(prepared, self._proxies)
        return self._targets[path]


@functools.cache
def _response_class() -> Callable[[int, bytes, Callable[[], Response]], Response]:
    import requests

    class LazyResponse(requests.Response):
        """A response of which all but status and content is made when looked at: it would double the time to send."""

        def __init__(self, status: int, content: bytes, build: Callable[[], Response]) -> None:
            self.status_code = status
            self._content = content
            self._content_consumed = True
            self._build = build

        def __getattr__(self, name: str) -> Any:
            build = vars(self).get("_build")
            if build is None or name.startswith("__"):
                raise AttributeError(name)
            vars(self).update({**vars(build()), **vars(self)})
            return object.__getattribute__(self, name)

    return LazyResponse
