"""The way to a service: one method; over HTTP, here and in `line` alone, with `requests`."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from cloudstore_mapping.client.failures import translated
from cloudstore_mapping.client.fetching import part_headers, received
from cloudstore_mapping.client.line import Line
from cloudstore_mapping.client.multipart import Form
from cloudstore_mapping.client.replies import PIECE, joined, known_extensions, reply_of
from cloudstore_mapping.wire import (
    EXTENSIONS_HEADER,
    UPLOAD_PATH,
    Batch,
    Reply,
    Request,
    Upload,
    encode_request,
)

if TYPE_CHECKING:
    from requests import Response as Response
    from requests import Session as Session

    from cloudstore_mapping.client.fetching import Fetched

#: What a service can be asked: whatever a transport sends.
Sendable: TypeAlias = Request | Batch | Upload

DEFAULT_TIMEOUT: Final = (5.0, 30.0)
DEFAULT_MAX_REPLY: Final = 2**28
JSON_TYPE: Final = "application/json; charset=UTF-8"


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
    sent_bytes, received_bytes
        Bytes of the bodies of all requests that were answered (a stream of unknown length isn't counted), and of the
        answers, unpacked.

    Notes
    -----
    May be used by many threads, and after a fork by the child. Redirects are never followed: the key is in the body.
    """

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
        self._line: Line | None = None
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
            path, content_type = UPLOAD_PATH, body.content_type
        else:
            body = encode_request(request)
            path, content_type = request.path, JSON_TYPE
        try:
            response, extensions = self._post(path, content_type, body)
        except (requests.RequestException, HTTPError) as error:
            # A ValueError is about a URL, and shows it: a proxy's has a password.
            raise translated(error, self.server) from (None if isinstance(error, ValueError) else error)
        with self._lock:
            self.sent_bytes += (len(body) if isinstance(body, bytes) else body.len) or 0
            self.received_bytes += len(response.content)
        return reply_of(response, known_extensions(extensions))

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

    def _post(self, path: str, content_type: str, body: bytes | Form) -> tuple[Response, str]:
        """Return the response, read to its end, and what its header says of extensions."""
        if self._session is None:
            return self._own_line().post(path, content_type, body, self._max_reply)
        response = self._session.post(
            self.server + path,
            data=body,
            headers={"Content-Type": content_type},
            timeout=self._timeout,
            allow_redirects=False,
            stream=True,
        )
        with response:
            content = joined(response.iter_content(PIECE), self._max_reply)
        response._content = content  # noqa: SLF001 - `requests` has no public way to read with a limit
        return response, response.headers.get(EXTENSIONS_HEADER, "")

    def _own_line(self) -> Line:
        with self._lock:
            # After a fork the old connections are the parent's.
            if self._line is None or self._line.process != os.getpid():
                self._line = Line(self.server, self._timeout)
            return self._line
