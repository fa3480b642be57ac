"""Python values in a shelf: as JSON where that says all of them, else as a pickle under a signature."""

from __future__ import annotations

import base64
import binascii
import hmac
import io
import math
import pickle
from collections.abc import Sequence
from typing import Any, Final

from cloudstore_mapping.errors import BadValueError

#: The one name of an object that stands for a value which is no JSON, or for one that looks like such an object.
MARK: Final = "__shelf__"
_JSON: Final = "json"
_PICKLE: Final = "pickle"
_SIGNATURE: Final = "hmac-sha256"

#: Brackets within brackets that are stored as JSON: all services take them.
MAX_DEPTH: Final = 60
# More digits than these Python itself doesn't read.
_MAX_INT: Final = 10**4000
_PURPOSE: Final = b"cloudstore-mapping shelf\0"


class Envelopes:
    """
    Writes values as JSON, and reads them back.

    Parameters
    ----------
    secrets
        What pickles are signed with: the first signs, each of them verifies. Without one, only what is JSON is stored.
    protocol
        The pickles' protocol, as in `pickle`.

    Notes
    -----
    A pickle's signature covers the key that it is stored under: moved to another key, it is refused as well.
    """

    def __init__(self, secrets: Sequence[bytes], protocol: int | None = None) -> None:
        self._secrets = tuple(secrets)
        self._protocol = pickle.DEFAULT_PROTOCOL if protocol is None else protocol

    def dump(self, key: str, value: Any) -> Any:
        """
        Return the JSON value that stands for `value`: itself, where it comes back equal and of the same types.

        Raises `BadValueError` where it has to be pickled and there is no secret, and what `pickle` raises.
        """
        if is_exact(value):
            return {MARK: {_JSON: value}} if _is_marked(value) else value
        if not self._secrets:
            raise BadValueError(
                f"The value under {key!r} is more than JSON, so it is pickled and signed; give the shelf a secret=…, "
                "or set CLOUDSTORE_SECRET.",
                key=key,
            )
        buffer = io.BytesIO()
        pickle.Pickler(buffer, self._protocol).dump(value)
        pickled = buffer.getvalue()
        signature = _sign(self._secrets[0], key, pickled).hex()
        return {MARK: {_PICKLE: base64.b64encode(pickled).decode("ascii"), _SIGNATURE: signature}}

    def load(self, key: str, stored: Any) -> Any:
        """
        Return the value that a stored one stands for.

        Raises `BadValueError`, and loads nothing, for a pickle that none of the secrets signed for this key.
        """
        if not _is_marked(stored):
            return stored
        content = stored[MARK]
        if isinstance(content, dict) and content.keys() == {_JSON}:
            return content[_JSON]
        return pickle.loads(self._verified(key, content))  # noqa: S301 - one of ours: its signature was verified

    def _verified(self, key: str, content: Any) -> bytes:
        try:
            pickled = base64.b64decode(content[_PICKLE], validate=True)
            signature = bytes.fromhex(content[_SIGNATURE])
        except (TypeError, KeyError, ValueError, binascii.Error) as error:
            raise BadValueError(f"What is under {key!r} is no value of a shelf; it was not loaded.", key=key) from error
        if not any(hmac.compare_digest(_sign(secret, key, pickled), signature) for secret in self._secrets):
            raise BadValueError(
                f"The pickle under {key!r} is not signed by this shelf's secret, so it was not loaded; give the secret "
                "that it was written with.",
                key=key,
            )
        return pickled


def is_exact(value: Any) -> bool:
    """Whether `value` comes back from JSON equal, with the very types that it has."""
    parts = [(value, 0)]
    while parts:
        part, depth = parts.pop()
        kind = type(part)
        if part is None or kind is bool:
            continue
        if kind is str:
            if not part.isascii() and not _is_unicode(part):
                return False
        elif kind is int:
            if not -_MAX_INT < part < _MAX_INT:
                return False
        elif kind is float:
            if not math.isfinite(part):
                return False
        elif kind in (list, dict):
            if depth == MAX_DEPTH:  # so it ends for what holds itself
                return False
            inside = part if kind is list else part.values()
            if kind is dict and not all(type(name) is str and _is_unicode(name) for name in part):
                return False
            parts.extend((each, depth + 1) for each in inside)
        else:
            return False
    return True


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_marked(value: Any) -> bool:
    return type(value) is dict and value.keys() == {MARK}


def _sign(secret: bytes, key: str, pickled: bytes) -> bytes:
    name = key.encode("utf-8", "surrogatepass")
    return hmac.digest(secret, _PURPOSE + len(name).to_bytes(8, "big") + name + pickled, "sha256")
