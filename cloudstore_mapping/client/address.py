"""
Address of a service: parse and check it, never show its API key.

The callback client, which stands alone, has the functions for addresses without a key.
"""

from __future__ import annotations

from functools import partial
from urllib.parse import unquote

from cloudstore_mapping.callback_client import (
    ADDRESS_EXAMPLE,
    DEFAULT_SERVER,
    canonical_address,
    check_server,
    default_interval,
    is_loopback,
    resolve_server,
    split_address,
    without_frames,
)
from cloudstore_mapping.masking import SecretText, hide, mask, type_of

__all__ = [
    "DEFAULT_SERVER",
    "check_api_key",
    "check_server",
    "default_interval",
    "is_loopback",
    "parse_address",
    "resolve_server",
]


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
    return without_frames(partial(_parse, insecure=insecure), hide(address))


def _parse(address: str, *, insecure: bool) -> tuple[SecretText, str]:
    parts = split_address(address)
    userinfo, at, _ = parts.netloc.rpartition("@")
    if not at or not userinfo:
        raise ValueError(f"The address has no API key; write it as {ADDRESS_EXAMPLE}.")
    if ":" in userinfo:
        raise ValueError(
            f"The address has a password beside the API key; write it as {ADDRESS_EXAMPLE}, a ':' in it as %3A."
        )
    try:
        api_key = unquote(userinfo, errors="strict")
    except UnicodeDecodeError:
        # Not chained: Python's message shows the bytes.
        raise ValueError("The percent-encoded API key in the address is not UTF-8; encode it again.") from None
    return hide(api_key), canonical_address(parts, insecure=insecure)
