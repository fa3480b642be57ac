"""
Connections of `urllib3` that send a request as one piece, and read a small plain answer at once.

The pool, TLS, proxies, timeouts and what errors mean stay as they are, and so does every other answer: `http.client`
sends head and body apart, which wakes the server twice, and reads headers by the rules of e-mail.
"""

from __future__ import annotations

import http.client
import io
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, BinaryIO, Final

from urllib3 import HTTPHeaderDict, HTTPResponse
from urllib3.connection import HTTPConnection, HTTPSConnection

#: Bytes of a body that is copied behind its head; a larger one is sent after it.
COPIED: Final = 2**16

_WITHOUT_BODY: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
# What makes an answer more than a length and so many bytes.
_NOT_PLAIN: Final = frozenset({b"transfer-encoding", b"content-encoding"})


class Answer:
    """
    A plain answer, whole: its status, its headers by their names in lower case, and its content.

    It has what a pool of `urllib3` asks of a response.
    """

    retries: Any = None
    version_string = "HTTP/1.1"
    length_remaining = 0
    _pool: Any = None
    _connection: Any = None

    def __init__(self, status: int, headers: dict[bytes, bytes], content: bytes, whole: bytes) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        self._whole = whole

    def release(self) -> None:
        """Give the connection back to its pool."""
        self._pool._put_conn(self._connection)  # noqa: SLF001 - as urllib3's own response does it

    def full(self) -> HTTPResponse:
        """Return what `urllib3` makes of this answer."""
        original = http.client.HTTPResponse(_Opened(io.BytesIO(self._whole)), method="POST")  # type: ignore[arg-type]
        original.begin()
        original.read()  # which lets go of the stream: dropped half read it makes Python 3.13 complain
        return _response(original, io.BytesIO(self.content))


class _Quick(HTTPConnection):
    """A connection on which requests with bytes for a body are sent and answered quickly."""

    _is_quick = False

    def request(  # type: ignore[override]  # as urllib3 has it
        self, method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        self._is_quick = method == "POST" and isinstance(body, bytes)
        if not self._is_quick:
            super().request(method, url, body, headers, **options)
            return
        if self.sock is None:
            self.connect()
        self.sock.settimeout(self.timeout)
        lines = "".join([f"{name}: {value}\r\n" for name, value in (headers or {}).items()])
        head = f"POST {url} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")
        if len(body) > COPIED:
            self.sock.sendall(head)
            self.sock.sendall(body)
        else:
            self.sock.sendall(head + body)

    def getresponse(self) -> Any:
        if not self._is_quick:
            return super().getresponse()
        self.sock.settimeout(self.timeout)
        stream = self.sock.makefile("rb")
        try:
            answer = plain_answer(stream.peek())
        except BaseException:
            stream.close()
            raise
        if answer is not None:
            stream.close()
            return answer
        original = http.client.HTTPResponse(_Opened(stream), method="POST")  # type: ignore[arg-type]
        try:
            original.begin()
        except BaseException:
            original.close()  # and the stream with it
            raise
        if original.will_close:
            self.close()
        return _response(original)


class QuickHTTPSConnection(_Quick, HTTPSConnection):
    """The same over TLS."""


#: The quick kind of each kind of connection; one that isn't here, through a SOCKS proxy, stays as it is.
QUICK: Final[dict[type[Any], type[Any]]] = {HTTPConnection: _Quick, HTTPSConnection: QuickHTTPSConnection}


class _Opened:
    """What `http.client` takes for a socket: something to read from."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def makefile(self, _: str) -> BinaryIO:
        return self._stream


def plain_answer(received: bytes) -> Answer | None:
    """Return the answer that these bytes are, None where they are not one, of HTTP/1.1, of a given length, whole."""
    head, end, content = received.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    # Headers that are there twice, or go on in the next line, are for `http.client` to read.
    if len(headers) != len(lines) or b"\r\n " in head or b"\r\n\t" in head or not _NOT_PLAIN.isdisjoint(headers):
        return None
    status = first[9:12]
    if not (end and first.startswith(b"HTTP/1.1 ") and status.isdigit() and int(status) >= HTTPStatus.OK):
        return None
    if headers.get(b"content-length") != b"%d" % len(content) or int(status) in _WITHOUT_BODY:
        return None
    if headers.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    return Answer(int(status), headers, content, received)


def _response(original: http.client.HTTPResponse, body: BinaryIO | None = None) -> HTTPResponse:
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
