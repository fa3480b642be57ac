"""Options of the HTTP server, and the check of its TLS certificate."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from msgspec import Meta

from cloudstore_mapping.service.configuration import SECRET, FileName
from cloudstore_mapping.storefiles import read_file

if TYPE_CHECKING:
    from cloudstore_mapping.web.connections import ConnectionLimiter, OpenFiles
    from cloudstore_mapping.web.protocol import HTTPProtocol

_A_HOST: Final = "an IP address or a host name; 127.0.0.1 is this machine only, 0.0.0.0 all of its addresses"
_LABEL: Final = "[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
#: An address in the usual form, or a name; an old form such as 0 would be an address as well, and 0 is all of them.
HOST: Final = (
    r"^([0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9._-]+)?"
    rf"|(?!(.*\.)?(0[xX][0-9A-Fa-f]*|[0-9]+)\.?$)({_LABEL}\.)*{_LABEL}\.?)$"
)


def _check_networks(text: str) -> None:
    for part in text.split(",") if text else ():
        ipaddress.ip_network(part.strip())


Networks: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[0-9A-Fa-f.:/, ]*$",
        description="IP addresses or networks, separated by commas",
        extra={"checks": (_check_networks,)},
    ),
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """
    Where a service listens, and how; `configuration.load` reads them from the environment and a file.

    What the service itself allows is in `Settings`.
    """

    store: Annotated[
        str, Meta(min_length=1, description="a path, sqlite:///path, or postgresql://user@host/database", extra=SECRET)
    ] = field(default="sqlite:///cloudstore-service.db", repr=False)  # an address may hold a password
    """Where the data is kept: a path, sqlite:///path, or postgresql://user@host/database."""
    host: Annotated[str, Meta(pattern=HOST, description=_A_HOST)] = "127.0.0.1"
    """The address to listen on; 127.0.0.1 is this machine only, 0.0.0.0 all of its addresses."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8787
    """The port to listen on; 0 takes any free one."""
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    """Processes that answer requests."""
    tls_cert: FileName | None = None
    """A file with the certificate and those between it and its authority (PEM); the service then speaks https."""
    tls_key: FileName | None = None
    """The file with the certificate's private key (PEM, without a passphrase)."""
    base_path: Annotated[
        str,
        Meta(
            pattern=r"^(?=/)(?!.*/\.{1,2}(/|$))(/[A-Za-z0-9._~-]+)*/?$",
            description="a path such as /cloudstore, or / for none",
        ),
    ] = "/cloudstore"
    """What the paths of all requests begin with."""
    trusted_proxies: Networks = ""
    """Proxies whose X-Forwarded-For and X-Forwarded-Proto are believed, separated by commas."""
    metrics_token: Annotated[
        str | None,
        Meta(
            pattern=r"^[A-Za-z0-9._~+/=-]{16,128}$",
            description="16 to 128 letters, digits and characters of -._~+/=",
            extra=SECRET,
        ),
    ] = field(default=None, repr=False)
    """The bearer token that reads /metrics; without one, only this machine does."""
    log_json: bool = False
    """Whether the log is a JSON object a line."""
    access_log: bool = False
    """Whether every request is logged."""


_log: Final = logging.getLogger("cloudstore_mapping.web")

#: Strict-Transport-Security (HSTS): a browser uses only https for this host, for a year after each reply.
HSTS: Final = (b"strict-transport-security", b"max-age=31536000")
HSTS_LINE: Final = b"%b: %b\r\n" % HSTS


def is_pinned(scope: Mapping[str, Any]) -> bool:
    """
    Return True for a request over https whose reply carries `HSTS`.

    Not for localhost: the header holds for all ports of a host, and so for other programs there that speak http.
    """
    if scope.get("scheme") != "https":
        return False
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").lower().partition(b":")[0]
    return host != b"localhost" and not host.endswith(b".localhost")


def warn_of_plain_http(options: Options) -> None:
    """Log a warning if other machines reach the service by plain http, and no proxy with TLS is in between."""
    if options.tls_cert is None and not options.trusted_proxies and not is_loopback(options.host):
        _log.warning(
            "The service speaks plain http on %s: API keys and passwords can be read on their way from other machines."
            " Give --tls-cert and --tls-key; or listen on 127.0.0.1 behind a proxy with TLS, or name the proxy in"
            " trusted_proxies.",
            options.host,
        )


def is_loopback(host: str) -> bool:
    """Return True for an address of this machine that no other machine reaches."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def check_certificate(options: Options) -> None:
    """Raise `ValueError` with a sentence that says what to do unless `options` name a certificate that can be used."""
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


class _LockedKeyError(Exception):
    """OpenSSL asked for a passphrase, which nobody could type at a start."""


def _no_passphrase() -> str:
    raise _LockedKeyError


def server_context(options: Options) -> ssl.SSLContext | None:
    """Return what speaks TLS by the certificate that `options` name, or None without one."""
    if options.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(options.tls_cert, options.tls_key)
    return context


class Handshakes:
    """
    The TLS handshakes under way in a process; only for the loop's thread.

    A handshake takes memory before the server knows of its connection, so its address is counted from the first
    packet, and it has a deadline.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        crowd: ConnectionLimiter,
        files: OpenFiles,
        seconds: float,
        connections: Callable[[], int],
    ) -> None:
        self.context = context
        self.crowd = crowd
        self.files = files
        self.seconds = seconds
        self.connections = connections
        self.under_way: set[Handshake] = set()

    def has_room(self) -> bool:
        """Whether one connection more may be open."""
        return self.files.has_room(self.connections() + len(self.under_way) + 1)

    def abort(self) -> None:
        """End all that are under way."""
        for handshake in list(self.under_way):
            handshake.abort()


class Handshake(asyncio.Protocol):
    """
    One TLS handshake; once it is done, the connection belongs to the protocol that `make_protocol` returns.

    The loop's public way to speak TLS on an accepted socket has a deadline, which its servers don't let uvicorn set.
    So the socket leaves the transport that it was accepted with.
    """

    def __init__(self, handshakes: Handshakes, make_protocol: Callable[[], HTTPProtocol]) -> None:
        self._handshakes = handshakes
        self._make_protocol = make_protocol
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is a socket's
        """Begin the handshake, if there is a place for the connection."""
        address = _address_of(transport)
        if self._handshakes.has_room() and self._handshakes.crowd.comes(address):
            accepted = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
            accepted.setblocking(False)
            self._handshakes.under_way.add(self)
            self._task = asyncio.get_running_loop().create_task(self._shake_hands(accepted, address))
        transport.abort()  # where there is no place: without TLS there are no words for a refusal

    async def _shake_hands(self, accepted: socket.socket, address: str) -> None:
        protocol = self._make_protocol()
        protocol.has_place = True
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol,
                accepted,
                ssl=self._handshakes.context,
                ssl_handshake_timeout=self._handshakes.seconds,
            )
        except OSError:  # the client's, the deadline's, or TLS's own
            accepted.close()
        except asyncio.CancelledError:
            accepted.close()
            raise
        finally:
            self._handshakes.under_way.discard(self)
            if not protocol.has_begun:
                self._handshakes.crowd.goes(address)

    def abort(self) -> None:
        """End the handshake and its connection."""
        if self._task is not None:
            self._task.cancel()


def _address_of(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) and peer else ""
