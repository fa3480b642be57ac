"""HTTP as the service speaks it: uvicorn's, with deadlines for clients that stop half-way, and replies in one piece."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from cloudstore_mapping.web.crowding import Crowd, refusal
from cloudstore_mapping.web.metrics import BYTES_IN, CONNECTIONS, Metrics

if TYPE_CHECKING:
    from cloudstore_mapping.service.settings import Settings
    from cloudstore_mapping.web.http import Scope
    from cloudstore_mapping.web.inline import Inline

#: Bytes that a request's first line and headers may take together; uvicorn itself takes any number.
MAX_HEADER_BYTES: Final = 64 * 2**10
#: Seconds that a body which is still arriving is waited for when the server is told to end.
GRACE: Final = 3.0


class HTTPProtocol(HttpToolsProtocol):
    """
    uvicorn's HTTP with an end to what it waits for without one: headers, trailers, a client that reads no reply.

    Bodies are the application's own to limit, idle connections uvicorn's.
    """

    settings: ClassVar[Settings]
    numbers: ClassVar[Metrics]
    crowd: ClassVar[Crowd]
    inline: ClassVar[Inline]

    _has_place = False
    _feeding = False
    _held: RequestResponseCycle | None = None
    _request: RequestResponseCycle | None = None
    _received = 0
    _header_timer: asyncio.TimerHandle | None = None
    _reply_timer: asyncio.TimerHandle | None = None

    def __init__(self, config: uvicorn.Config, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        self._application = self.app
        self.app = self._answer

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._application(scope, receive, send)
        except RuntimeError:
            # Of pipelined requests uvicorn tells only the last that the client has gone; the first writes, and may not.
            if not self.transport.is_closing():
                raise
            send.__self__.disconnected = True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # Called for the headers; who sends a small body sends it with them, and it is there when `data_received` ends.
        if self._feeding and app is self.app and self.inline.may_take(cast("Scope", cycle.scope)):
            self._held = cycle
        else:
            super()._start_asgi_task(cycle, app)

    def _answer_held(self, request: RequestResponseCycle) -> None:
        waits = request.more_body or self.flow.write_paused
        write = partial(self._write, request)
        if waits or not self.inline.take(cast("Scope", request.scope), bytes(request.body), write):
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
        """Begin to wait for the first headers."""
        super().connection_made(transport)
        self.numbers.row[CONNECTIONS] = len(self.connections)
        self._has_place = self.crowd.comes(self._address)
        if not self._has_place:
            transport.write(refusal(self.settings.max_connections_per_address))
            transport.close()
            return
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        super().connection_lost(exc)
        self.numbers.row[CONNECTIONS] = len(self.connections)
        if self._has_place:
            self.crowd.goes(self._address)
        self._stop_header_timer()
        self._stop_reply_timer()

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def data_received(self, data: bytes) -> None:
        """Take what came, up to the limits."""
        if not self._has_place:
            return
        self.numbers.row[BYTES_IN] += len(data)
        self._feeding = True
        try:
            super().data_received(data)
        finally:
            self._feeding = False
        if self._held is not None:
            held, self._held = self._held, None
            self._answer_held(held)
        request: RequestResponseCycle | None = self.cycle
        if request is not None and request.response_complete:
            request = None
        if request is not self._request:
            self._request = request
            self._received = 0
            self._stop_header_timer()
        self._received += len(data)
        if request is None:
            self._expect_headers()
            if self._received > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response("The headers are too long.")
        elif self._received > MAX_HEADER_BYTES:
            self._limit_body(request)

    def _limit_body(self, request: RequestResponseCycle) -> None:
        headers = request.scope["headers"]
        is_upload = any(name == b"content-type" and value.startswith(b"multipart/") for name, value in headers)
        largest = self.settings.max_media_bytes if is_upload else self.settings.max_body_bytes
        if self._received > MAX_HEADER_BYTES + 2 * largest:
            self.transport.close()  # more than any body in its chunks takes: trailers, or one that was refused long ago

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        self._expect_reader()

    def resume_writing(self) -> None:
        """Wait no longer, for the client has read."""
        super().resume_writing()
        self._stop_reply_timer()

    def shutdown(self) -> None:
        """Answer what was accepted, and wait for its body no longer than `GRACE`."""
        super().shutdown()
        if self.cycle is not None and not self.cycle.response_complete and self.cycle.more_body:
            self.loop.call_later(GRACE, self._give_up, self.cycle)

    def _give_up(self, request: RequestResponseCycle) -> None:
        if request.more_body:
            self.transport.close()

    def _expect_headers(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.settings.body_timeout, self.transport.close)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _expect_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._reply_timer = self.loop.call_later(self.settings.body_timeout, self._check_reader, left)

    def _check_reader(self, left: int) -> None:
        if self.transport.get_write_buffer_size() < left:
            self._expect_reader()
        else:
            self.transport.abort()

    def _stop_reply_timer(self) -> None:
        if self._reply_timer is not None:
            self._reply_timer.cancel()
            self._reply_timer = None
