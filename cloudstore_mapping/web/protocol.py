"""
HTTP/1.1 protocol of a connection: uvicorn's, with timeouts, limits for strangers, half-close, and no upgrades.

Only this file uses private names of uvicorn. The public way, an ASGI application on uvicorn's own protocol, gives no
access to a connection: no timeout for headers or unread replies, no limit for pipelined requests, no half-close. It
also costs more: 1.16 times the processor time for a save over 32 connections, 1.63 times for a load
(`python -m benchmarks.protocols`; over a single connection 0.99 and 1.08). `setup.cfg` has an upper bound for uvicorn,
`tests/web/test_uvicorn.py` the names, and CI runs the tests on the lowest, the pinned and unreleased versions.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter, deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from cloudstore_mapping.errors import CloudStoreError, ProtocolError
from cloudstore_mapping.service.security import network_of
from cloudstore_mapping.web.connections import (
    FREE_BYTES,
    SMALL_WINDOW,
    TLS_CONNECTION_BYTES,
    TLS_WINDOW,
    ConnectionLimiter,
    Drain,
    KnownClients,
    OpenFiles,
    Payer,
    RefusalLog,
    RequestMemory,
    UnreadReplies,
    no_room,
    refusal,
    too_many,
)
from cloudstore_mapping.web.http import CLIENT, CLOSE, END, Client
from cloudstore_mapping.web.metrics import BYTES_IN, CONNECTIONS, Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudstore_mapping.service.settings import Settings
    from cloudstore_mapping.web.api import FastPath
    from cloudstore_mapping.web.http import Scope, Send

#: Maximum bytes of a request's first line and headers together; uvicorn itself has no limit.
MAX_HEADER_BYTES: Final = 64 * 2**10
#: Characters allowed in a Host header (host and port); it may be empty.
_HOST: Final = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
#: Seconds to wait for the next bytes of a body during shutdown; `server.LAST_RESORT` bounds the whole shutdown.
GRACE: Final = 3.0
#: Seconds for a TLS client to close its side of a connection during shutdown.
GOODBYE: Final = 0.5
#: Bytes parsed at a time while the end of a request is unknown; only a few requests fit into a piece of this size.
BLIND_PIECE: Final = 1024
#: Maximum pipelined requests parsed behind the current request; only a client testing the limits reaches it.
MAX_PARSED_AHEAD: Final = 64
#: Memory in bytes of an upload stored as it arrives: three storage chunks of 512 KiB.
UPLOAD_MEMORY: Final = 3 * 2**19
#: TLS buffers per connection, each as large as the largest piece received.
TLS_BUFFERS: Final = 2
#: Memory in bytes of a TLS connection with unread replies, beside the bytes it reports: they are also held encrypted.
TLS_UNREAD_BYTES: Final = 256 * 2**10
#: Unread reply bytes above which writing to a client pauses; without TLS this is the default.
HIGH_WATER: Final = 64 * 2**10
#: Socket receive buffer in bytes of a client with a valid API key: the system's default.
LARGE_WINDOW: Final = 208 * 2**10
#: Seconds for a refused TLS client to read the reply.
LAST_WORD_SECONDS: Final = 0.5
#: Bytes at the beginning of a body searched for an API key.
PEEKED: Final = 4096
#: An API key in JSON or in a form, placed before the value or the file.
_KEY: Final = re.compile(rb"""(?:"key"[ \t\r\n]*:[ \t\r\n]*"|name="?key"?\r\n\r\n)([A-Za-z0-9._~-]{16,128})["\r]""")
#: Headers with a single value; of two, different programs would take different ones.
_SINGLE: Final = frozenset({b"authorization", b"content-type", b"idempotency-key", b"origin", b"sec-fetch-site"})
_HEADERS_END: Final = b"\r\n\r\n"


class _Parser:
    """
    Request parser for HTTP/1.1 only: it ignores ``Upgrade``, as RFC 9110 allows.

    llhttp stops after the headers of an upgrade request, and treats its body as another protocol. So a new parser gets
    the same headers again, without ``Upgrade``.
    """

    def __init__(self, protocol: HTTPProtocol) -> None:
        self._protocol = protocol
        self._begin()

    def _begin(self) -> None:
        parser = httptools.HttpRequestParser(self._protocol)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's: earlier requests are answered
        self._feed_data = parser.feed_data
        self.get_http_version = parser.get_http_version
        self.get_method = parser.get_method
        self.should_keep_alive = parser.should_keep_alive
        self.should_upgrade = parser.should_upgrade

    def feed_data(self, data: bytes) -> None:
        """Parse bytes; `HttpParserError` if they aren't HTTP."""
        rest = memoryview(data)
        while rest:
            try:
                self._feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                self._begin()
                self._feed_data(self._protocol.take_head())
            else:
                return


def _take_turn(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


class HTTPProtocol(HttpToolsProtocol):
    """
    uvicorn's HTTP protocol, with timeouts for headers, trailers and clients not reading their replies.

    It also limits the memory of requests. The application has the timeout of bodies, and uvicorn the timeout of idle
    connections. A client may close its side after sending its requests, or keep sending a body after an early reply:
    it gets its replies in both cases.
    """

    settings: ClassVar[Settings]
    numbers: ClassVar[Metrics]
    crowd: ClassVar[ConnectionLimiter]
    files: ClassVar[OpenFiles]
    inline: ClassVar[FastPath]
    memory: ClassVar[RequestMemory]
    known: ClassVar[KnownClients]
    unread: ClassVar[UnreadReplies]
    drain: ClassVar[Drain]
    refusals: ClassVar[RefusalLog]

    #: True if the connection is counted; a TLS handshake counts it before this protocol begins.
    has_place = False
    has_begun = False
    #: Payer of the connection's TLS memory, until it sends a valid API key.
    tls_payer: Payer | None = None
    _is_deaf = False
    _feeding = False
    _has_ended = False
    _head: bytes | None = None
    _refusal: tuple[int, str] | None = None
    _last_word: bytes | None = None
    _held: RequestResponseCycle | None = None
    _running: RequestResponseCycle | None = None
    _request: RequestResponseCycle | None = None
    _discarded: RequestResponseCycle | None = None
    _received = 0
    _data = b""
    _at = 0
    _tail = b""
    _body_left: int | None = 0
    _payer: Payer | None = None
    _api_key = ""
    _charged = 0
    #: `tls.HalfCloseObject` of the connection, if it has TLS; that module imports this one.
    _tls: Any = None
    _tls_bytes = 0
    _is_streamed = False
    _is_small = False
    _header_timer: asyncio.TimerHandle | None = None
    _reply_timer: asyncio.TimerHandle | None = None

    def __init__(self, config: uvicorn.Config, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        self._chunks: list[bytes] = []
        # The parser calls this for each chunk of a body, be it a single byte, so it has no code in Python.
        self.on_body = self._chunks.append  # type: ignore[assignment, method-assign]
        self.parser = cast("Any", _Parser(self))
        self.reader = Client()
        self._application = self.app
        self.app = self._answer

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        request: RequestResponseCycle = send.__self__
        scope[CLIENT] = self.reader
        try:
            await self._application(scope, receive, partial(self._send, request) if request.more_body else send)
        except asyncio.CancelledError:  # the server is stopped by force
            request.disconnected = True
            self.transport.abort()
        except RuntimeError:
            # uvicorn reports a disconnected client to the last pipelined request only, so the first may still write.
            if not self.transport.is_closing():
                raise
            request.disconnected = True
        else:
            if request.response_started and not request.response_complete:  # a download cut short, which has its line
                request.disconnected = True  # or uvicorn's log would call it a fault of the program
                self.transport.close()

    async def _send(self, request: RequestResponseCycle, message: Any) -> None:
        """Send a part of a reply; delay its end until the request has ended: its client may still be sending."""
        if message["type"] == "http.response.start" and request.waiting_for_100_continue and request.more_body:
            # A client without a 100 Continue may or may not send its body, so the connection can't be reused.
            message = {**message, "headers": [*message.get("headers", ()), CLOSE]}
        elif message["type"] == "http.response.body" and request.more_body and not message.get("more_body"):
            await request.send(cast("Any", {**message, "more_body": True}))
            await self._discard_body(request)
            message = END
        await request.send(message)

    async def _discard_body(self, request: RequestResponseCycle) -> None:
        self._discarded = request
        self._shrink_window()
        self._charge(0)
        try:
            async with asyncio.timeout(self.settings.body_timeout):
                while (await request.receive()).get("more_body"):
                    turn = self.loop.create_future()
                    self.flow.pause_reading()
                    self.drain.wait(partial(_take_turn, turn))
                    await turn
        except TimeoutError:
            request.keep_alive = False

    def on_headers_complete(self) -> None:
        """Begin a request; for an upgrade request, keep its headers to parse them again without ``Upgrade``."""
        if not self.parser.should_upgrade():
            self._check_headers()
            self._foresee_body()
            super().on_headers_complete()
            self.headers = cast("Any", deque(maxlen=0))  # drop trailers: they are no headers
            return
        if self.parser.get_method() == b"CONNECT":
            raise self._refused(400, "There are no tunnels here; use another method than CONNECT.")
        lines = [b"%b: %b\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"]
        version = self.parser.get_http_version().encode()
        self._head = b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(lines))

    def _check_headers(self) -> None:
        """
        Refuse headers that are too long, an invalid ``Host``, a coding besides chunked, or a single header twice.

        RFC 9112 and 9110 require or recommend it, and llhttp doesn't do it.
        """
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEADER_BYTES:
            raise self._refused(400, "The headers are too long.")
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) != 1 and (hosts or self.parser.get_http_version() == "1.1"):
            raise self._refused(400, f"The request has {len(hosts)} Host headers; send exactly one.")
        if hosts and _HOST.fullmatch(hosts[0]) is None:
            raise self._refused(400, "The Host header is no host; send the name or address, and the port.")
        listed = [value for name, value in self.headers if name == b"transfer-encoding"]
        if listed and len([coding for coding in b",".join(listed).split(b",") if coding.strip()]) > 1:
            raise self._refused(
                501, "Only chunked is known as Transfer-Encoding; send the body without another coding."
            )
        single = [name for name, _ in self.headers if name in _SINGLE]
        if len(single) > 1 and len(single) > len({*single}):
            (name, number), *_ = Counter(single).most_common(1)
            raise self._refused(400, f"The request has {number} {name.decode().title()} headers; send only one.")

    def _foresee_body(self) -> None:
        """Record the length of the request's body (None if chunked), and if it is a form, stored as it arrives."""
        self._body_left = 0
        self._is_streamed = False
        for name, value in self.headers:
            if name == b"content-length":
                self._body_left = int(value)
            elif name == b"transfer-encoding":
                self._body_left = None
            elif name == b"content-type":
                self._is_streamed = value.startswith(b"multipart/")

    def _refused(self, status: int, why: str) -> httptools.HttpParserError:
        self._refusal = status, why  # uvicorn has the same message for every client
        return httptools.HttpParserError(why)

    def on_message_complete(self) -> None:
        """Complete a request, unless its headers are to be parsed again without ``Upgrade``."""
        self._join_chunks()
        if self._head is None:
            super().on_message_complete()

    def _join_chunks(self) -> None:
        """Add the parsed chunks to the request's body, together."""
        if self._chunks:
            body = b"".join(self._chunks)
            self._chunks.clear()
            if not self._is_deaf:
                super().on_body(body)

    def take_head(self) -> bytes:
        """Return and clear the kept headers of an upgrade request, without ``Upgrade``."""
        head, self._head = self._head, None
        return head or b""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        # Called at the end of the headers. A small body usually comes with them, complete when `data_received` ends.
        if self._feeding and app is self.app and self.inline.may_take(cast("Scope", cycle.scope)):
            self._held = cycle
        else:
            super()._start_asgi_task(cycle, app)

    def _answer_held(self, request: RequestResponseCycle) -> None:
        waits = request.more_body or self.flow.write_paused
        cast("Scope", request.scope)[CLIENT] = self.reader
        write = partial(self._write, request)
        send = cast("Send", request.send)
        if waits or not self.inline.take(cast("Scope", request.scope), bytes(request.body), write, send):
            super()._start_asgi_task(request, self.app)

    def _write(self, request: RequestResponseCycle, status: int, head: bytes, body: bytes) -> bool:
        request.response_started = request.response_complete = True
        is_there = not (request.disconnected or self.transport.is_closing())
        if is_there:
            lines = b"".join([b"%b: %b\r\n" % header for header in self.server_state.default_headers])
            if not request.keep_alive:
                lines += b"connection: close\r\n"
            self.transport.writelines((b"%b%b%b\r\n" % (STATUS_LINE[status], lines, head), body))
            if not request.keep_alive:
                self.transport.close()
        request.on_response()
        return is_there

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Count the connection and await its first headers, or refuse it over a connection limit."""
        super().connection_made(transport)
        self.numbers.row[CONNECTIONS] = len(self.connections)
        self.has_begun = True
        if self.scheme == "https":  # by default TLS buffers half a megabyte in each direction
            transport.set_write_buffer_limits(HIGH_WATER)
            if hasattr(transport, "set_read_buffer_limits"):  # undocumented, and the same in asyncio and uvloop
                # While we don't read, an unread byte pauses the socket: its end would close a connection that still
                # has a close_notify, or requests, to be read.
                transport.set_read_buffer_limits(1)
            self._tls = transport.get_extra_info("ssl_object")
            self._tls.on_end = partial(self.loop.call_soon, self._end_tls)
        has_room = self.has_place or self.files.has_room(len(self.connections))
        self.has_place = self.has_place or (has_room and self.crowd.comes(self._address))
        if self.has_place:
            self._expect_headers()
            return
        error: CloudStoreError = no_room()
        if has_room:
            error = too_many(self.settings.max_connections_per_address)
            self.refusals.add(self._address, str(error))
        transport.write(refusal(error))
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection's place and memory, and stop its timers."""
        super().connection_lost(exc)
        self.reader.leave()
        if self._tls is not None:
            self._tls.on_end = None
        # A timer, and a method of ours, would keep us and the buffers of TLS for a while.
        self._unset_keepalive_if_required()  # after an error, uvicorn doesn't
        self.app = self._application
        # An unanswered request, and one answered without a task, refers to us.
        self.cycle = self._held = self._running = self._request = self._discarded = cast("Any", None)
        self.pipeline.clear()
        self.numbers.row[CONNECTIONS] = len(self.connections)
        if self.has_place:
            self.crowd.goes(self._address)
        self._data = b""
        self._charge(0)
        self._give_back_tls()
        self.unread.remove(self)
        self._stop_header_timer()
        self._stop_reply_timer()

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def data_received(self, data: bytes) -> None:
        """
        Parse received bytes, within the limits.

        Requests are parsed one at a time; pipelined bytes behind a request wait unparsed. Reading from the socket
        pauses until the request is answered, and until the client reads its replies.
        """
        if self._is_deaf or not self.has_place:
            self.flow.pause_reading()
            self.drain.wait(self._read_on)
            return
        self.numbers.row[BYTES_IN] += len(data)
        if self.scheme == "https" and len(data) > FREE_BYTES:
            self._grow_tls(len(data) * TLS_BUFFERS)
        self._data = self._data[self._at :] + data if self._data else data
        self._at = 0
        self._advance()

    def _grow_tls(self, size: int) -> None:
        """Note the size of the TLS buffers; until the client is trusted, the connection pays for them to its end."""
        more = size - self._tls_bytes
        if more > 0:
            self._tls_bytes = size
            if self.tls_payer is not None:
                self.memory.add(self.tls_payer, more)

    def _shrink_window(self) -> None:
        """Shrink the socket's receive buffer: the system limits this memory only for all connections together."""
        if not self._is_small:
            self._is_small = True
            # TLS decrypts and keeps what arrives before it is read, so there the buffer stays smaller.
            self._set_window(TLS_WINDOW if self.scheme == "https" else SMALL_WINDOW)

    def _set_window(self, size: int) -> None:
        connection = self.transport.get_extra_info("socket")  # None once it is closed
        if connection is not None:
            with suppress(OSError, ValueError):  # of a closing one: asyncio's and uvloop's error
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _advance(self) -> None:
        while self._at < len(self._data) and not self._is_deaf:
            if self._is_busy():
                self._wait()
                return
            begin, self._at = self._at, self._end_of_piece()
            self._feed(self._data[begin : self._at])
        self._data = b""
        self._at = 0
        if self._has_ended and not self._is_deaf and not self._close_after_replies():
            self.transport.close()

    def _is_busy(self) -> bool:
        """Return True if a complete request awaits its reply, or the client has yet to read earlier replies."""
        request: RequestResponseCycle | None = self.cycle
        if request is None or request.response_complete:
            return self.flow.write_paused
        return not request.more_body

    def _wait(self) -> None:
        """Pause reading; `on_response_complete` or `resume_writing` resumes it."""
        self.flow.pause_reading()
        self._shrink_window()
        self._charge(len(self._data) - self._at)

    def _go_on(self) -> None:
        if self._is_deaf or self.transport.is_closing():
            return
        if self._is_busy():
            self._charge(len(self._data) - self._at)
            return
        self._charge(0)
        if self._data:
            self._unset_keepalive_if_required()
            self._advance()
        if not self._data and not self._has_ended:
            self.flow.resume_reading()

    def _end_of_piece(self) -> int:
        """Return the end of the next piece for the parser: the end of a request's headers or body, if known."""
        data, at = self._data, self._at
        request: RequestResponseCycle | None = self.cycle
        if request is not None and request.more_body and not request.response_complete:
            if self._body_left is None:
                return min(len(data), at + BLIND_PIECE)
            end = min(len(data), at + self._body_left)
            self._body_left -= end - at
            return max(end, at + 1)  # at least one byte: the parser decides on the true end
        if self._tail:
            found = (self._tail + data[at : at + 3]).find(_HEADERS_END)
            if found >= 0:
                end = at + found + 4 - len(self._tail)
                self._tail = b""
                return end
        found = data.find(_HEADERS_END, at)
        if found >= 0:
            self._tail = b""
            return found + 4
        end = min(len(data), at + 4 * BLIND_PIECE)
        self._tail = (self._tail + data[max(at, end - 3) : end])[-3:]
        return end

    def _feed(self, piece: bytes) -> None:
        self._feeding = True
        try:
            self._parse(piece)
            self._join_chunks()
        finally:
            self._feeding = False
        self._limit(len(piece))
        if self._held is not None and not (self._held.more_body and self._at < len(self._data)):
            held, self._held = self._held, None
            self._answer_held(held)
        if len(self.pipeline) > MAX_PARSED_AHEAD:
            self.send_400_response("There are too many requests ahead of their replies.")
        request: RequestResponseCycle | None = self._request
        if request is not None and request.more_body and self._payer is None and request.body:
            self._payer = self._payer_of(request, piece)
        if self._received > FREE_BYTES or self._tls_bytes:
            self._charge(0)

    def _parse(self, piece: bytes) -> None:
        # Instead of uvicorn's `data_received`, whose line in the log tells neither the address nor the reason.
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserError:
            self.send_400_response("This is not valid HTTP/1.1; check the first line, headers and chunks.")

    def _payer_of(self, request: RequestResponseCycle, piece: bytes) -> Payer:
        """Return the payer of a request's memory, by the first piece of its body."""
        found = _KEY.search(piece, 0, PEEKED)
        if found is not None:
            self._api_key = found[1].decode()
            if self.known.has_key(self._api_key):
                self._trust()
                return Payer(f"key {self._api_key}", is_known=True)
        return self._payer_at(self.inline.address_of(cast("Scope", request.scope)))

    def _payer_at(self, address: str) -> Payer:
        return Payer(None if self.crowd.is_exempt(address) else network_of(address))

    def _charge(self, waiting: int) -> None:
        """Charge the memory of the unanswered request, and of `waiting` bytes behind it; refuse it over the limit."""
        request = self._request
        size = waiting
        if self.tls_payer is None:
            size += self._tls_bytes
        if request is None or not (request.response_complete or request is self._discarded):
            size += min(self._received, UPLOAD_MEMORY) if self._is_streamed and request else self._received
        is_over = self.transport.is_closing() or (self._is_deaf and self._last_word is None)
        if is_over or size <= FREE_BYTES:
            size = 0
        if size == self._charged:
            return
        payer = self._payer
        if payer is None:
            self._payer = payer = self._payer_at(self._address)
        more, self._charged = size - self._charged, size
        if more < 0:
            self.memory.give_back(payer, -more)
            return
        error = self.memory.take(payer, more)
        if error is not None:
            self._charged -= more
            self._refuse(error)

    def _limit(self, came: int) -> None:
        """Count `came` more bytes, and apply the limits of headers and bodies."""
        if self._is_deaf:
            return
        request: RequestResponseCycle | None = self.cycle
        if request is not None and request.response_complete:
            request = None
        if request is not self._request:
            self._forget()
            self._request = request
            self._stop_header_timer()
        self._received += came
        if request is None:
            self._expect_headers()
            if self._received > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response("The headers are too long.")
        elif self._received > MAX_HEADER_BYTES and request is not self._discarded:
            self._limit_body(request)

    def _forget(self) -> None:
        """Release the request's memory, and reset the counts for the next request."""
        if self._charged and self._payer is not None:
            self.memory.give_back(self._payer, self._charged)
        self._charged = 0
        self._payer = None
        self._api_key = ""
        self._received = 0

    def on_response_complete(self) -> None:
        """Continue with the next pipelined request, or send a waiting refusal."""
        self._remember_client()
        has_more = bool(self.pipeline)
        super().on_response_complete()
        self._request = None
        payer = self._payer
        self._forget()
        if self.transport.is_closing():
            return
        if self._tls_bytes:
            self._payer = payer
            self._charge(0)
        if has_more:
            self.flow.pause_reading()
        elif self._last_word is not None:
            self._say(self._last_word)
        elif self._data:
            self.flow.pause_reading()
            self._unset_keepalive_if_required()
            self.loop.call_soon(self._go_on)
        elif self.flow.write_paused:
            self.flow.pause_reading()

    def _remember_client(self) -> None:
        """After a success, remember the API key found in a large request, and trust the connection."""
        if self._request is None or not (self._api_key or self.tls_payer):
            return
        scope = cast("Scope", self._request.scope)
        is_right = scope["method"] == "POST" and scope.get("outcome", "") is None
        if is_right and self._api_key:
            self.known.add(self._api_key, scope["client"][0] if scope["client"] else "")
        if is_right:
            self._trust()

    def _trust(self) -> None:
        """Release the TLS memory, and enlarge the receive buffer for faster sending."""
        if self.tls_payer is not None:
            self._give_back_tls()
            self._set_window(LARGE_WINDOW)

    def _give_back_tls(self) -> None:
        if self.tls_payer is not None:
            self.memory.give_back(self.tls_payer, TLS_CONNECTION_BYTES + self._tls_bytes)
            self.tls_payer = None

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's may say that the transport stays open
        """After the client closes its side, answer its requests, then close; TLS calls this only while it closes."""
        return self.scheme != "https" and self._end()

    def _end_tls(self) -> None:
        """After the client's close_notify, answer its requests, then close."""
        if not (self.transport.is_closing() or self._end()):
            self.transport.close()

    def _end(self) -> bool:
        """Close after the replies to all requests received; return False if there are none."""
        if self._is_deaf:
            return self._last_word is not None
        if self._data:
            self._has_ended = True
            return True
        return self._close_after_replies()

    def _close_after_replies(self) -> bool:
        """Close after the replies to all complete requests; return False if there are none."""
        last = self._last_whole()
        if last is None:
            return False
        last.keep_alive = False
        return True

    def _last_whole(self) -> RequestResponseCycle | None:
        """Return the last complete unanswered request; drop an incomplete request behind it."""
        last: RequestResponseCycle | None = self.cycle
        if self.pipeline and last is not None and last.more_body:  # queued behind earlier requests
            self.pipeline.popleft()
            last = self.cycle = self.pipeline[0][0] if self.pipeline else self._running  # type: ignore[assignment]
        return None if last is None or last.response_complete or last.more_body else last

    def send_400_response(self, msg: str) -> None:
        """Refuse invalid HTTP, after the replies to earlier requests."""
        status, why = self._refusal or (400, msg)
        self._refuse(ProtocolError(why, error="BadRequest"), status)

    def _refuse(self, error: CloudStoreError, status: int | None = None) -> None:
        """Refuse further bytes: answer complete requests, send this error, and close once the client has seen it."""
        if self._is_deaf or self.transport.is_closing():
            return
        self.refusals.add(self._address, str(error))
        reply = refusal(error, status)
        self._is_deaf = True
        self._shrink_window()
        self._data = b""
        self._at = 0
        self._stop_header_timer()
        request: RequestResponseCycle | None = self.cycle
        if self._last_whole() is not None:
            self._last_word = reply
            self._charge(0)
            return
        self._charge(0)
        if request is not None and not request.response_complete:
            request.disconnected = True
            request.body = bytearray()  # free it: the connection may stay open until its client has seen the reply
            request.message_event.set()
            if request.response_started:  # answered early, and its body turned out invalid
                self.transport.close()
                return
        self._say(reply)

    def _say(self, reply: bytes) -> None:
        """Send the last reply of a connection, and close our side."""
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        self.transport.write(reply)
        # Closing the socket while the client still sends would reset it, and the client might never see the reply.
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._expect_headers()
        else:
            self.transport.close()
            self.loop.call_later(LAST_WORD_SECONDS, self.transport.abort)

    def _limit_body(self, request: RequestResponseCycle) -> None:
        headers = request.scope["headers"]
        is_upload = any(name == b"content-type" and value.startswith(b"multipart/") for name, value in headers)
        largest = self.settings.max_media_bytes if is_upload else self.settings.max_body_bytes
        if self._received > MAX_HEADER_BYTES + 2 * largest:
            self.refusals.add(self._address, "The trailers are too long.")
            self.transport.close()  # longer than any chunked body, so these are trailers

    def pause_writing(self) -> None:
        """Count the client's unread replies, and start the timeout for reading them."""
        super().pause_writing()
        size = self.transport.get_write_buffer_size() + self.reader.chunk_bytes
        self.reader.give_back()  # else clients that don't read would hold up those that do
        if self.scheme == "https":
            size += TLS_UNREAD_BYTES
        self.unread.add(self, network_of(self._address), size, self._drop)
        self._expect_reader()

    def _drop(self) -> None:
        self.refusals.add(self._address, "Its unread replies are most of those that max_unread_memory allows.")
        self.transport.abort()

    def resume_writing(self) -> None:
        """Stop the timeout for reading, and continue with waiting requests."""
        super().resume_writing()
        self.unread.remove(self)
        self._stop_reply_timer()
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_soon(self._go_on)

    def shutdown(self) -> None:
        """Answer accepted requests; wait for a body as long as some of it arrives within each `GRACE` seconds."""
        super().shutdown()
        if self.cycle is not None and not self.cycle.response_complete and self.cycle.more_body:
            self.loop.call_later(GRACE, self._give_up, self.cycle, self._received)

    def _give_up(self, request: RequestResponseCycle, received: int) -> None:
        if not request.more_body or self.transport.is_closing():
            return
        if self._received == received:
            self.transport.close()
        else:
            self.loop.call_later(GRACE, self._give_up, request, self._received)

    def _expect_headers(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.settings.body_timeout, self._give_up_headers)

    def _give_up_headers(self) -> None:
        if self._received and not self._is_deaf:
            self.refusals.add(self._address, "Its headers took longer than body_timeout.")
        self.transport.close()

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _expect_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._reply_timer = self.loop.call_later(self.settings.body_timeout, self._check_reader, left)

    def _check_reader(self, left: int) -> None:
        """Abort the connection unless its client read at `min_upload_rate` or faster since `left` was measured."""
        least = min(left, int(self.settings.min_upload_rate * self.settings.body_timeout))
        if self.transport.get_write_buffer_size() <= left - max(1, least):
            self._expect_reader()
        else:
            self.refusals.add(self._address, "It read its reply more slowly than min_upload_rate.")
            self.transport.abort()

    def _stop_reply_timer(self) -> None:
        if self._reply_timer is not None:
            self._reply_timer.cancel()
            self._reply_timer = None


class Server(uvicorn.Server):
    """uvicorn's server, with callbacks at its start, every second and at its end; it closes all connections in time."""

    #: Aborts all TLS handshakes in progress; None without TLS.
    abort_handshakes: Callable[[], object] | None = None
    on_started: Callable[[], object] | None = None
    on_second: Callable[[], object] | None = None
    #: Called with False when shutdown begins, and with True when the server is stopped by force.
    on_ending: Callable[[bool], object] | None = None

    def count_connections(self) -> int:
        """Return the number of open connections, without TLS handshakes."""
        return len(self.server_state.connections)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start answering, then call `on_started`; shut down if it fails."""
        await super().startup(sockets)
        try:
            if self.on_started is not None:
                self.on_started()
        except BaseException:
            await self.shutdown(sockets)
            raise

    async def on_tick(self, counter: int) -> bool:
        """Call `on_second` once a second; uvicorn calls this ten times a second."""
        if counter % 10 == 0 and self.on_second is not None:
            self.on_second()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down gracefully: answer accepted requests, then close all connections."""
        hanging_up = asyncio.create_task(self._hang_up())
        if self.on_ending is not None:
            self.on_ending(False)
        try:
            await super().shutdown(sockets)
        finally:
            hanging_up.cancel()
        if self.force_exit:
            if self.on_ending is not None:
                self.on_ending(True)
            await self.lifespan.shutdown()  # uvicorn omits this, then logs a missing end
        for connection in list(self.server_state.connections):  # still open after the shutdown timeout
            connection.transport.abort()
        await asyncio.sleep(0)

    async def _hang_up(self) -> None:
        # A TLS connection ends with a close_notify from both sides, and an idle client may never send its own.
        while self.abort_handshakes is not None:
            self.abort_handshakes()
            closing = {each for each in self.server_state.connections if each.transport.is_closing()}
            await asyncio.sleep(GOODBYE)
            for connection in closing & self.server_state.connections:
                if not connection.transport.get_write_buffer_size():
                    connection.transport.abort()
