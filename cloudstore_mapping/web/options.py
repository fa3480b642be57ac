"""Options of the HTTP server: host, port, workers, TLS, proxies, tokens."""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

from msgspec import Meta

from cloudstore_mapping.service.configuration import SECRET, FileName

if TYPE_CHECKING:
    pass

_A_HOST: Final = "an IP address or a host name; 127.0.0.1 is this machine only, 0.0.0.0 all of its addresses"
_LABEL: Final = "[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
#: An IP address in the usual form, or a host name. Old forms such as 0 are excluded: 0 would mean all addresses.
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
Token: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9._~+/=-]{16,128}$",
        description="a token of 16 to 128 letters, digits and -._~+/=",
        extra=SECRET,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """
    Options of the HTTP server; `configuration.load` reads them from the environment and a file.

    `Settings` has the limits of the service itself.
    """

    store: Annotated[
        str, Meta(min_length=1, description="a path, sqlite:///path, or postgresql://user@host/database", extra=SECRET)
    ] = field(default="sqlite:///cloudstore-service.db", repr=False)  # a URL may contain a password
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
    metrics_token: Token | None = field(default=None, repr=False)
    """The bearer token to read /metrics, 16 to 128 letters, digits and -._~+/=; without it, only this machine may."""
    log_json: bool = False
    """Whether the log is a JSON object a line."""
    access_log: bool = False
    """Whether every request is logged."""


_log: Final = logging.getLogger("cloudstore_mapping.web")


def warn_of_plain_http(options: Options) -> None:
    """Log a warning if other machines reach the service over plain http, without a TLS proxy in between."""
    if options.tls_cert is None and not options.trusted_proxies and not is_loopback(options.host):
        _log.warning(
            "The service speaks plain http on %s: API keys and passwords can be read on their way from other machines."
            " Give --tls-cert and --tls-key; or listen on 127.0.0.1 behind a proxy with TLS, or name the proxy in"
            " trusted_proxies.",
            options.host,
        )


def is_loopback(host: str) -> bool:
    """Return True for a loopback address or localhost, unreachable from other machines."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
