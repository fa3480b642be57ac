"""From what came over HTTP to a reply: read within a limit, and taken for what it is."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Protocol

from cloudstore_mapping.client.pacing import parse_retry_after
from cloudstore_mapping.errors import ProtocolError
from cloudstore_mapping.wire import EXTENSIONS, Reply, decode_reply, encode_value

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

#: Bytes that are read at a time.
PIECE: Final = 2**16


class Answer(Protocol):
    """What of a `requests.Response` is read here."""

    status_code: int
    reason: str
    headers: Any

    @property
    def content(self) -> Any:
        """The whole body."""


def pieces(raw: BaseHTTPResponse, max_reply: int) -> Iterable[bytes]:
    """Return the body of an answer, in one piece where that is known to be small enough."""
    length = raw.length_remaining
    if length is not None and length <= max_reply and "Content-Encoding" not in raw.headers:
        return (raw.read(),)
    return raw.stream(PIECE, decode_content=True)


def joined(pieces: Iterable[bytes], max_reply: int) -> bytes:
    """Return the pieces as one; `ProtocolError` where they are more than `max_reply` bytes."""
    size = 0
    kept = []
    for piece in pieces:
        size += len(piece)
        if size > max_reply:
            raise ProtocolError(f"The answer is larger than {max_reply} bytes; ask for less at once.", status=200)
        kept.append(piece)
    return b"".join(kept)


@functools.lru_cache(maxsize=16)
def known_extensions(header: str) -> frozenset[str]:
    """Return those of our extensions that a service names."""
    return frozenset(map(str.strip, header.split(","))) & frozenset(EXTENSIONS)


def reply_of(response: Answer, extensions: frozenset[str]) -> Reply:
    """Return the reply that a response carries; what is none, such as a proxy's page, is an ``Http error``."""
    status = response.status_code
    if status == HTTPStatus.OK:
        return decode_reply(response.content, extensions=extensions, response=response)
    retry_after = parse_retry_after(response.headers)
    beside: dict[str, Any] = {"retry_after": retry_after, "extensions": extensions, "response": response}
    with suppress(ProtocolError):
        reply = decode_reply(response.content, status=status, **beside)
        if reply.error is not None:
            return reply
    message = encode_value(response.reason or f"Status {status}")
    return Reply(error="Http error", message=message, status=status, **beside)
