"""Address of a service: parse and check it, never show its API key."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from cloudstore_mapping.masking import SecretText, hide, mask, type_of

T = TypeVar("T")


class _Replaceable(str):
    """Default address, replaced by the environment's ``CLOUDSTORE_SERVER``; an equal address of a user is kept."""

    __slots__ = ()


#: The vendor's service, as in its newest clients.
DEFAULT_SERVER: Final = _Replaceable("https://droidscript.cloud/cloudstore")

_VENDORS_HOSTS: Final = frozenset({"droidscript.cloud", "enjine.cloud"})
#: Seconds between two requests of the vendor's own clients; its account page shows `Max Rate: 3000` (ms).
VENDORS_INTERVAL: Final = 3.0

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_EXAMPLE: Final = "https://API_KEY@host/path"


def check_api_key(api_key: str) -> SecretText:
    """Return an API key, masked; `TypeError` unless it is a text, `ValueError` if empty or an address."""
    api_key = mask(api_key)
    if not isinstance(api_key, SecretText):
        raise TypeError(f"The API key must be a str, not {type_of(api_key).__name__}.")
    if not api_key:
        raise ValueError("The API key is empty; the dashboard of the service shows it.")
    if "://" in api_key:
        raise ValueError("The API key is an address; give the key alone, or open the address with cm.open(…).")
    return api_key


def parse_address(address: str, *, insecure: bool = False) -> tuple[SecretText, str]:
    """
    Return the API key and the server in ``https://API_KEY@host[:port]/path``.

    Escapes ``%XX`` in the key are decoded. Raises `ValueError` for any other address, or if `check_server` does.
    """
    return _without_frames(partial(_parse, insecure=insecure), hide(address))


def _parse(address: str, *, insecure: bool) -> tuple[SecretText, str]:
    parts = _split(address)
    userinfo, at, _ = parts.netloc.rpartition("@")
    if not at or not userinfo:
        raise ValueError(f"The address has no API key; write it as {_EXAMPLE}.")
    if ":" in userinfo:
        raise ValueError(f"The address has a password beside the API key; write it as {_EXAMPLE}, a ':' in it as %3A.")
    try:
        api_key = unquote(userinfo, errors="strict")
    except UnicodeDecodeError:
        # Not chained: Python's message shows the bytes.
        raise ValueError("The percent-encoded API key in the address is not UTF-8; encode it again.") from None
    return hide(api_key), _checked(parts, insecure=insecure)


def check_server(server: str, *, insecure: bool = False) -> str:
    """
    Return `server` in its canonical form: no final slash, the host in lower case, no default port.

    Raises `ValueError` for anything but ``https://host[:port]/path``, and for plain http beyond loopback, unless
    `insecure`.
    """
    return _without_frames(partial(_check, insecure=insecure), hide(server))


def _check(server: str, *, insecure: bool) -> str:
    parts = _split(server)
    if "@" in parts.netloc:
        raise ValueError("The server's address holds a user name or key; give the API key as its own argument.")
    return _checked(parts, insecure=insecure)


def resolve_server(server: str | None) -> str:
    """Return the server to use: the environment's ``CLOUDSTORE_SERVER`` replaces `DEFAULT_SERVER` (None: the same)."""
    if server is None or isinstance(server, _Replaceable):
        return os.environ.get("CLOUDSTORE_SERVER") or str.__str__(DEFAULT_SERVER)
    if not isinstance(server, str):
        raise TypeError(f"The server must be an address, or None for the default, not {type(server).__name__}.")
    return server


def default_interval(server: str) -> float:
    """Return the default seconds between two requests to `server`."""
    return VENDORS_INTERVAL if urlsplit(server).hostname in _VENDORS_HOSTS else 0.0


def is_loopback(host: str) -> bool:
    """Return True if `host`, a name or an IP address without brackets, can only be this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _without_frames(parse: Callable[[str], T], address: str) -> T:
    """Return the result of `parse`; raise its `ValueError` without the frames, as they show the API key."""
    try:
        return parse(address)
    except ValueError as error:
        sentence = str(error)
    raise ValueError(sentence)


def _split(address: str) -> SplitResult:
    if any(character.isspace() or not character.isprintable() for character in address):
        raise ValueError("The address holds white space or a control character; remove it.")
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        # Not chained: Python's messages show the host with the user info.
        raise ValueError(f"The address can't be read; write it as {_EXAMPLE}.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"The address is not that of a service; write it as {_EXAMPLE}.")
    if "?" in address or "#" in address:
        raise ValueError(f"The address has a query or fragment; write it as {_EXAMPLE}, a '?' or '#' in it as %XX.")
    if "@" in parts.path:
        raise ValueError(f"The address has an '@' in its path; write it as {_EXAMPLE}, a '/' in the API key as %2F.")
    return parts


def _checked(parts: SplitResult, *, insecure: bool) -> str:
    host = parts.hostname or ""
    if parts.scheme == "http" and not insecure and not is_loopback(host):
        raise ValueError(f"Plain http would send the API key to {host} unencrypted; use https, or say insecure=True.")
    port = "" if parts.port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path.rstrip('/')}"
