"""The service on a socket: uvicorn around the ASGI application, with deadlines for clients that stop half-way."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from cloudstore_mapping.web.app import make_app
from cloudstore_mapping.web.http import WHOLE
from cloudstore_mapping.web.listening import address_of, listen
from cloudstore_mapping.web.metrics import BYTES_IN, CONNECTIONS, Metrics, new_rows
from cloudstore_mapping.web.observing import Observed
from cloudstore_mapping.web.options import Options

if TYPE_CHECKING:
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.settings import Settings

#: Bytes that a request's first line and headers may take together; uvicorn itself takes any number.
MAX_HEADER_BYTES: Final = 64 * 2**10
#: Seconds that a connection may stand idle between two requests.
KEEP_ALIVE: Final = 20
#: Seconds that a body which is still arriving is waited for when the server is told to end.
GRACE: Final = 3.0
#: Seconds that a client over TLS gets to end its side of a connection when the server ends.
GOODBYE: Final = 0.5
#: Seconds until the server ends in any case; container engines kill after 10.
LAST_RESORT: Final = 8

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def run(
    service: Service,
    *,
    host: str = "127.0.0.1",
    port: int = 8787,
    base_path: str = "/cloudstore",
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """
    Serve until SIGTERM or SIGINT, then answer what was accepted, close the service and return.

    `on_ready` is called with the service's address once it answers, on the thread that serves: it must not wait.
    A port that can't be had is an `OSError`, and the service stays open.
    """
    with listen(host, port) as listener:
        run_on(listener, service, Options(host=host, port=port, base_path=base_path), on_ready=on_ready)


def run_on(
    listener: socket.socket,
    service: Service,
    options: Options,
    *,
    metrics: Metrics | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve on a socket that listens already; as `run`."""
    server = _Server(service, listener, options, on_ready, metrics)
    # uvicorn hands the signal that ended it on to the handlers of before; these have nothing more to do.
    owns_signals = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.signal(number, server.handle_exit) for number in _SIGNALS if owns_signals}
    try:
        server.run(sockets=[listener])
    finally:
        service.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def background(
    service: Service, *, host: str = "127.0.0.1", port: int = 0, base_path: str = "/cloudstore"
) -> Iterator[str]:
    """
    Serve in a thread while the block runs; the block gets the service's address.

    Port 0 is any that is free. The service stays open: whoever opened it closes it.
    """
    ready: Future[str] = Future()
    with listen(host, port) as listener:
        server = _Server(service, listener, Options(host=host, base_path=base_path), ready.set_result)

        def serve() -> None:
            try:
                server.run(sockets=[listener])
            except BaseException as error:
                if ready.done():
                    raise
                ready.set_exception(error)

        thread = threading.Thread(target=serve, name="cloudstore-server", daemon=True)
        thread.start()
        try:
            yield ready.result()
        finally:
            server.should_exit = True
            thread.join()


class _Server(uvicorn.Server):
    """uvicorn with this project's settings, which tells when it answers."""

    def __init__(
        self,
        service: Service,
        listener: socket.socket,
        options: Options,
        on_ready: Callable[[str], None] | None,
        metrics: Metrics | None = None,
    ) -> None:
        class Protocol(_Protocol):
            settings = service.settings
            numbers = Metrics(new_rows(1)) if metrics is None else metrics

        super().__init__(
            uvicorn.Config(
                Observed(
                    make_app(service, base_path=options.base_path),
                    Protocol.numbers,
                    options.base_path,
                    service.store_bytes,
                    seconds=service.settings.body_timeout,
                    logs=options.access_log,
                ),
                loop="uvloop",
                http=Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(options.trusted_proxies),
                forwarded_allow_ips=options.trusted_proxies,
                ssl_certfile=options.tls_cert,
                ssl_keyfile=options.tls_key,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=LAST_RESORT,
            )
        )
        self._on_ready = on_ready
        self._address = address_of(listener, options)
        Protocol.numbers.start()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        try:
            if self._on_ready is not None:
                self._on_ready(self._address)
        except BaseException:
            await self.shutdown(sockets)
            raise

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        hanging_up = asyncio.create_task(self._hang_up())
        try:
            await super().shutdown(sockets)
        finally:
            hanging_up.cancel()
        for connection in list(self.server_state.connections):  # those that outlasted the last resort
            connection.transport.abort()
        await asyncio.sleep(0)

    async def _hang_up(self) -> None:
        # TLS ends by a goodbye of both, and an idle client may never say its own.
        while self.config.is_ssl:
            closing = {each for each in self.server_state.connections if each.transport.is_closing()}
            await asyncio.sleep(GOODBYE)
            for connection in closing & self.server_state.connections:
                if not connection.transport.get_write_buffer_size():
                    connection.transport.abort()


class _Protocol(HttpToolsProtocol):
    """
    uvicorn's HTTP with an end to what it waits for without one: headers, trailers, a client that reads no reply.

    Bodies are the application's own to limit, idle connections uvicorn's.
    """

    settings: ClassVar[Settings]
    numbers: ClassVar[Metrics]

    _request: RequestResponseCycle | None = None
    _received = 0
    _header_timer: asyncio.TimerHandle | None = None
    _reply_timer: asyncio.TimerHandle | None = None

    def __init__(self, config: uvicorn.Config, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        self._application = self.app
        self.app = self._answer

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        request: RequestResponseCycle = send.__self__
        if not request.more_body and scope["method"] == "POST":
            scope["extensions"] = {WHOLE: {"body": request.body}}

        async def answer(message: Any) -> None:
            if message["type"] != WHOLE:
                await send(message)
                return
            if self.flow.write_paused and not request.disconnected:
                await self.flow.drain()
            if not request.disconnected:
                self._write_whole(request, message["status"], message["head"], message["body"])

        try:
            await self._application(scope, receive, answer)
        except RuntimeError:
            # Of pipelined requests uvicorn tells only the last that the client has gone; the first writes, and may not.
            if not self.transport.is_closing():
                raise
            request.disconnected = True

    def _write_whole(self, request: RequestResponseCycle, status: int, head: bytes, body: bytes) -> None:
        request.response_started = request.response_complete = True
        lines = b"".join([b"%b: %b\r\n" % header for header in self.server_state.default_headers])
        if not request.keep_alive:
            lines += b"connection: close\r\n"
        self.transport.write(b"%b%b%b\r\n\r\n%b" % (STATUS_LINE[status], lines, head, body))
        request.message_event.set()
        if not request.keep_alive:
            self.transport.close()
        request.on_response()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.numbers.row[CONNECTIONS] = len(self.connections)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.numbers.row[CONNECTIONS] = len(self.connections)
        self._stop_header_timer()
        self._stop_reply_timer()

    def data_received(self, data: bytes) -> None:
        self.numbers.row[BYTES_IN] += len(data)
        super().data_received(data)
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
        super().pause_writing()
        self._expect_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_reply_timer()

    def shutdown(self) -> None:
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
