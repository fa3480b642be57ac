"""TLS: check the certificate at startup; limit handshakes by time, address and memory; half-close by close_notify."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from cloudstore_mapping.errors import ProtocolError
from cloudstore_mapping.service.security import network_of
from cloudstore_mapping.storefiles import read_file
from cloudstore_mapping.web.connections import TLS_CONNECTION_BYTES, TLS_WINDOW, Payer, refusal, too_many
from cloudstore_mapping.web.http import Turns
from cloudstore_mapping.web.options import Options

if TYPE_CHECKING:
    from cloudstore_mapping.web.protocol import HTTPProtocol


def check_certificate(options: Options) -> None:
    """Raise `ValueError`, with a remedy, unless the certificate and key in `options` are usable or both absent."""
    if options.tls_cert is None and options.tls_key is None:
        return
    if options.tls_cert is None or options.tls_key is None:
        raise ValueError("A certificate needs its key, and a key its certificate; give both --tls-cert and --tls-key.")
    for file in (options.tls_cert, options.tls_key):
        try:
            read_file(file)
        except OSError as error:
            raise ValueError(f"{file} can't be read ({error.strerror}); look at its name and permissions.") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.tls_cert, options.tls_key, _no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            sentence = f"{options.tls_key} is not the key of the certificate in {options.tls_cert}; name its own."
        else:
            sentence = f"{options.tls_cert} and {options.tls_key} are no certificate and key that can be read as PEM."
        raise ValueError(sentence) from error
    except _LockedKeyError:
        raise ValueError(f"{options.tls_key} has a passphrase; take it out, and protect the file instead.") from None


_PLAIN: Final = "The service speaks HTTPS here; write https:// in its address."


class _LockedKeyError(Exception):
    """OpenSSL asked for the key's passphrase; nobody could type it at startup."""


def _no_passphrase() -> str:
    raise _LockedKeyError


def server_context(options: Options) -> ssl.SSLContext | None:
    """Return the TLS context for the certificate in `options`, or None without a certificate."""
    if options.tls_cert is None:
        return None
    context = HalfCloseContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.tls_cert, options.tls_key)
    return context


class HalfCloseObject(ssl.SSLObject):
    """
    TLS of a connection; hides the client's close_notify from the event loop, and calls `on_end` instead.

    A close_notify closes only the client's side (RFC 8446, 6.1), but asyncio and uvloop close both at once.
    """

    #: Called once after the client's last bytes were read; None leaves the close_notify to the event loop.
    on_end: Callable[[], object] | None = None
    incoming: ssl.MemoryBIO
    _has_ended = False

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002  # the parameter's name in the library
        """Return decrypted bytes; after the close_notify raise `SSLWantReadError`, as if more may come."""
        if not self._has_ended:
            result = super().read(len, buffer)
            if result or self.on_end is None:
                return result
            self._has_ended = True
            # With an unread byte the event loop doesn't read on, so it doesn't see the end of the TCP connection.
            self.incoming.write(b"\0")
            self.on_end()
        raise ssl.SSLWantReadError


class HalfCloseContext(ssl.SSLContext):
    """Context of a server whose clients may close their side alone."""

    sslobject_class = HalfCloseObject

    def wrap_bio(self, incoming: ssl.MemoryBIO, *args: Any, **options: Any) -> ssl.SSLObject:
        """Return the TLS of a connection that receives from `incoming`."""
        wrapped = super().wrap_bio(incoming, *args, **options)
        if isinstance(wrapped, HalfCloseObject):
            wrapped.incoming = incoming
        return wrapped


class Handshakes:
    """
    TLS handshakes in progress in a process; only for the loop's thread.

    A handshake takes memory before uvicorn knows of its connection. So its address and memory are counted from the
    first packet, and it has a timeout of `seconds`. It begins with its client's first bytes, one in each pass of the
    event loop: a signature takes a millisecond, and many clients may connect at once. TLS keeps buffers as large as the
    largest piece received, so the socket's receive buffer stays small until the client sends a valid API key.
    """

    def __init__(
        self, context: ssl.SSLContext, protocol: type[HTTPProtocol], connections: Callable[[], int], seconds: float
    ) -> None:
        self.context = context
        self.crowd = protocol.crowd
        self.memory = protocol.memory
        self.refusals = protocol.refusals
        self._files = protocol.files
        self._known = protocol.known
        self._most_per_address = protocol.settings.max_connections_per_address
        self.seconds = seconds
        self._connections = connections
        self.under_way: set[Handshake] = set()
        self.turns = Turns()

    def admit(self, address: str) -> Payer | None:
        """Count a connection and return the payer of its memory, or log its refusal and return None over a limit."""
        if not self._files.has_room(self._connections() + len(self.under_way) + 1):
            return None  # which is logged
        if not self.crowd.comes(address):
            self.refusals.add(address, str(too_many(self._most_per_address)))
            return None
        payer = self._payer_at(address)
        error = self.memory.take(payer, TLS_CONNECTION_BYTES)
        if error is None:
            return payer
        self.crowd.goes(address)
        self.refusals.add(address, str(error))
        return None

    def _payer_at(self, address: str) -> Payer:
        network = network_of(address)
        subject = None if self.crowd.is_exempt(address) else network
        return Payer(subject, is_known=self._known.has_network(network))

    def abort(self) -> None:
        """Abort all handshakes in progress."""
        for handshake in list(self.under_way):
            handshake.abort()


class Handshake(asyncio.Protocol):
    """
    TLS handshake of a connection; afterwards the connection belongs to the protocol made by `make_protocol`.

    The loop's `connect_accepted_socket` takes a handshake timeout; uvicorn can't set the timeout of the loop's servers.
    So a duplicate of the socket replaces the transport of its accepted connection.
    """

    def __init__(self, handshakes: Handshakes, make_protocol: Callable[[], HTTPProtocol]) -> None:
        self._handshakes = handshakes
        self._make_protocol = make_protocol
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a socket's transport
        """Start the handshake, or close a connection over a limit."""
        address = _address_of(transport)
        payer = self._handshakes.admit(address)
        if payer is not None:
            accepted = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
            accepted.setblocking(False)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TLS_WINDOW)
            self._handshakes.under_way.add(self)
            self._task = asyncio.get_running_loop().create_task(self._shake_hands(accepted, address, payer))
        transport.abort()  # also closes a refused connection: before TLS it can get no reply

    async def _shake_hands(self, accepted: socket.socket, address: str, payer: Payer) -> None:
        protocol = self._make_protocol()
        protocol.has_place = True
        protocol.tls_payer = payer
        try:
            async with asyncio.timeout(self._handshakes.seconds):
                await _readable(accepted)
                await self._handshakes.turns.wait()
                if _speaks_http(accepted):
                    self._handshakes.refusals.add(address, "It sent plain HTTP, and here is TLS.")
                    _refuse_http(accepted)
                    return
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: protocol,
                    accepted,
                    ssl=self._handshakes.context,
                    ssl_handshake_timeout=self._handshakes.seconds,
                )
        except OSError as error:  # from the client, the timeout, or TLS
            if isinstance(error, ssl.SSLError) and error.reason:
                self._handshakes.refusals.add(address, f"TLS has failed ({error.reason}).")
            accepted.close()
        except asyncio.CancelledError:
            accepted.close()
            raise
        finally:
            self._handshakes.under_way.discard(self)
            if not protocol.has_begun:
                self._handshakes.crowd.goes(address)
                self._handshakes.memory.give_back(payer, TLS_CONNECTION_BYTES)

    def abort(self) -> None:
        """Abort the handshake and close its connection."""
        if self._task is not None:
            self._task.cancel()


def _speaks_http(connection: socket.socket) -> bool:
    """Return True if a readable connection begins with a letter, as with GET; TLS begins with other bytes."""
    return connection.recv(1, socket.MSG_PEEK).isalpha()


def _refuse_http(connection: socket.socket) -> None:
    """Reply to a plain HTTP request, as far as the socket takes it, and close."""
    with connection:
        connection.recv(TLS_WINDOW)  # a close with unread bytes resets the connection, and the reply may be lost
        connection.send(refusal(ProtocolError(_PLAIN, error="BadRequest"), HTTPStatus.BAD_REQUEST))
        connection.shutdown(socket.SHUT_WR)


async def _readable(connection: socket.socket) -> None:
    """Wait until a socket has something to read, or was closed."""
    loop = asyncio.get_running_loop()
    comes = asyncio.Event()
    loop.add_reader(connection, comes.set)
    try:
        await comes.wait()
    finally:
        loop.remove_reader(connection)


def _address_of(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) and peer else ""
