"""The wire's decoder: what it takes is strict JSON with one meaning; what it refuses is an error of ours."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Final

from msgspec import UNSET, Raw

from cloudstore_mapping.errors import BadValueError, ProtocolError
from cloudstore_mapping.testing.exact import same
from cloudstore_mapping.wire import (
    BATCH_PATH,
    LOAD_PATH,
    SAVE_PATH,
    Batch,
    decode_reply,
    decode_request,
    decode_value,
    encode_reply,
    encode_request,
)

_PATHS: Final = (SAVE_PATH, LOAD_PATH, BATCH_PATH)


def check(data: bytes) -> None:
    """Read a request of the path that the first byte chooses, and the same bytes as a reply."""
    path, body = _PATHS[next(iter(data), 0) % len(_PATHS)], data[1:]
    with suppress(ProtocolError, BadValueError):
        _check_request(path, body)
    with suppress(ProtocolError):
        reply = decode_reply(body)
        assert decode_reply(encode_reply(reply)) == reply


def _check_request(path: str, body: bytes) -> None:
    request = decode_request(path, body)
    assert decode_request(request.path, encode_request(request)) == request
    for each in request.requests if isinstance(request, Batch) else (request,):
        if each.value is not UNSET:
            _check_value(each.value)


def _check_value(value: Raw) -> None:
    # What another parser reads in it is what this one does: a decision is never made on something else.
    assert same(decode_value(value), json.loads(bytes(value), parse_constant=_refuse))


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON.")
