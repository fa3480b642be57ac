"""The envelope around pickles: only what the secret signed is unpickled, and every value comes back as it was."""

from __future__ import annotations

import base64
import secrets
from typing import Any, Final

from cloudstore_mapping.client.shelf import MARK, Envelopes
from cloudstore_mapping.errors import BadValueError
from cloudstore_mapping.testing.exact import same
from tests.fuzz.values import Values

_OURS: Final = Envelopes([secrets.token_bytes(32)])
_THEIRS: Final = Envelopes([secrets.token_bytes(32)])
_FIELDS: Final = ("pickle", "hmac-sha256", "json", "pickle ")


class _Unpickled(BaseException):
    """What was not signed was loaded all the same; no `except` for errors stops it."""


class _Trap:
    """Raises where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _spring, ()


def _spring() -> None:
    raise _Unpickled


def check(data: bytes) -> None:
    """Have values there and back, then a stranger's envelope, a moved one, and one made of the bytes."""
    values = Values(data)
    value, other = values.value(), values.value()
    for each in (value, (value, other), {MARK: value}, {MARK: (other,)}, data, complex(len(data), 1)):
        assert same(_OURS.load("key", _OURS.dump("key", each)), each)
    trap = _THEIRS.dump("key", _Trap())
    _refuses("key", trap)
    _refuses("other key", _OURS.dump("key", _Trap()))
    changed = dict(trap[MARK])
    for _ in range(values.number() % 4):
        changed[_FIELDS[values.number() % len(_FIELDS)]] = values.value()
    _refuses("key", {MARK: changed})
    _refuses("key", {MARK: {"pickle": base64.b64encode(data).decode(), "hmac-sha256": data[:32].hex()}})


def _refuses(key: str, stored: Any) -> None:
    try:
        loaded = _OURS.load(key, stored)
    except BadValueError:
        return
    assert stored[MARK].keys() == {"json"}
    assert same(loaded, stored[MARK]["json"])
