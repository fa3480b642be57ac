"""HTTP server: run uvicorn on a socket or in a background thread; keep-alive timeout, signals, graceful shutdown."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from cloudstore_mapping.web.api import FastPath, make_app
from cloudstore_mapping.web.connections import (
    ConnectionLimiter,
    Drain,
    KnownClients,
    MemoryReturn,
    OpenFiles,
    RefusalLog,
    RequestMemory,
    UnreadReplies,
    address_of,
    listen,
    raise_file_limit,
)
from cloudstore_mapping.web.metrics import InstrumentedApp, Metrics, new_rows
from cloudstore_mapping.web.options import Options, warn_of_plain_http
from cloudstore_mapping.web.protocol import HTTPProtocol, Server
from cloudstore_mapping.web.tls import Handshake, Handshakes, server_context

if TYPE_CHECKING:
    from cloudstore_mapping.service.service import Service

#: Keep-alive timeout in seconds: the longest idle time of a connection between two requests.
KEEP_ALIVE: Final = 20
#: Maximum seconds of a graceful shutdown; container engines kill after 10.
LAST_RESORT: Final = 8
#: Switch interval in seconds: the longest time a thread may hold the GIL while others wait. At Python's default of
#: 5 ms, each load would wait 5 ms during the write of a batch.
SWITCH_INTERVAL: Final = 0.0005
#: Seconds after a signal for starting further writes; the rest of `LAST_RESORT` is for the replies.
LAST_WRITES: Final = 5


def ending_signals() -> list[signal.Signals]:
    """Return the signals for shutdown: SIGTERM, SIGINT, and SIGHUP of a closing terminal unless ignored (nohup)."""
    signals = [signal.SIGTERM, signal.SIGINT]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


def run(
    service: Service,
    *,
    host: str = "127.0.0.1",
    port: int = 8787,
    base_path: str = "/cloudstore",
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """
    Serve until SIGTERM, SIGINT or SIGHUP, then answer all accepted requests, close the service and return.

    `on_ready` is called with the service's URL once it answers. It runs on the serving thread, so it must not wait.
    Raise `OSError` if the port can't be used; the service then stays open.
    """
    options = Options(host=host, port=port, base_path=base_path)
    with listen(host, port) as listener:
        warn_of_plain_http(options)
        run_on(listener, service, options, on_ready=on_ready)


def run_on(
    listener: socket.socket,
    service: Service,
    options: Options,
    *,
    metrics: Metrics | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve on a listening socket, as `run` does."""
    server = _Server(service, listener, options, on_ready, metrics, raise_file_limit())
    server.on_ending = lambda by_force: service.end_within(0 if by_force else LAST_WRITES)
    # At its end uvicorn raises the captured signal again for the previous handlers; these do nothing more by then.
    owns_signals = threading.current_thread() is threading.main_thread()
    signals = ending_signals() if owns_signals else ()
    handlers = {number: signal.signal(number, server.handle_exit) for number in signals}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(min(interval, SWITCH_INTERVAL))
    try:
        server.run(sockets=[listener])
    finally:
        server.refusals.flush(at_once=True)
        service.close()
        sys.setswitchinterval(interval)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def background(
    service: Service, *, host: str = "127.0.0.1", port: int = 0, base_path: str = "/cloudstore"
) -> Iterator[str]:
    """
    Serve in a background thread during the ``with`` block, and return the service's URL to it.

    Port 0 takes any free port. The caller closes the service.
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


class _Server(Server):
    """HTTP server of a service, with this project's configuration of uvicorn."""

    def __init__(
        self,
        service: Service,
        listener: socket.socket,
        options: Options,
        on_ready: Callable[[str], None] | None,
        metrics: Metrics | None = None,
        max_connections: int = sys.maxsize,
    ) -> None:
        known_clients = KnownClients()
        settings_ = service.settings
        self.refusals = RefusalLog()
        open_files = OpenFiles(max_connections, max_by_setting=settings_.max_connections)
        counted = Metrics(new_rows(1)) if metrics is None else metrics
        observed = InstrumentedApp(
            make_app(service, base_path=options.base_path, known=known_clients),
            counted,
            options.base_path,
            service.store_bytes,
            logs=options.access_log,
            metrics_token=options.metrics_token,
        )

        refused = self.refusals

        class Protocol(HTTPProtocol):
            settings = settings_
            numbers = counted
            crowd = ConnectionLimiter(settings_.max_connections_per_address, options.trusted_proxies)
            files = open_files
            inline = FastPath(service, options.base_path, observed, options.trusted_proxies, known_clients)
            memory = RequestMemory(settings_)
            known = known_clients
            unread = UnreadReplies(settings_.max_unread_memory)
            drain = Drain()
            refusals = refused

        context = server_context(options)
        handshakes = None
        if context is not None:
            handshakes = Handshakes(context, Protocol, self.count_connections, settings_.body_timeout)
            self.abort_handshakes = handshakes.abort

        def make_protocol(**arguments: Any) -> asyncio.Protocol:
            if handshakes is None:
                return Protocol(**arguments)
            return Handshake(handshakes, partial(Protocol, **arguments))

        super().__init__(
            uvicorn.Config(
                observed,
                loop="uvloop",
                http=make_protocol,  # type: ignore[arg-type]  # called like a class
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(options.trusted_proxies),
                forwarded_allow_ips=options.trusted_proxies,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=LAST_RESORT,
            )
        )

        memory = None if context is None else MemoryReturn(Protocol.crowd)

        def look_after() -> None:
            open_files.check()
            refused.flush()
            if memory is not None:
                memory.check()

        self.on_second = look_after

        def start() -> None:
            service.keep_tidy()
            if on_ready is not None:
                on_ready(address_of(listener, options))

        self.on_started = start
        counted.start()
