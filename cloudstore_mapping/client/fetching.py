"""Getting a media file: the beginning of an answer, and its bytes piece by piece."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote

from cloudstore_mapping.client.failures import translated
from cloudstore_mapping.client.pacing import parse_retry_after
from cloudstore_mapping.client.replies import PIECE, joined
from cloudstore_mapping.errors import ProtocolError
from cloudstore_mapping.wire import Reply, decode_reply, encode_value

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")
_FILENAME: Final = re.compile(r"filename\*=UTF-8''([^;\s]+)", re.IGNORECASE)


@dataclass
class Fetched:
    """
    A media file on its way: from the byte `start` on, of `size` in all, where that is known.

    `tag` names this very content. `refusal` is the reply where there is no file to get. `close` lets go of the
    connection, whether or not all `pieces` were taken.
    """

    refusal: Reply | None
    start: int
    size: int | None
    tag: str | None
    mimetype: str
    name: str | None
    pieces: Iterator[bytes]
    close: Callable[[], object]


class MediaTransport(Protocol):
    """A way to a service by which media files can be got as well."""

    def fetch(self, link: str, start: int = 0, tag: str | None = None) -> Fetched:
        """
        Begin to get the media file at a link, without the bytes before `start` if it still is what `tag` names.

        Raises `TransportError` or `TimedOutError` where no answer came, and so do the pieces where it breaks off.
        """


def refused(reply: Reply) -> Fetched:
    """Return what is got where there is no file."""
    return Fetched(reply, 0, None, None, "", None, iter(()), lambda: None)


def part_headers(start: int, tag: str | None) -> dict[str, str]:
    """Return the headers of a request for what a file holds from `start` on."""
    headers = {"Accept-Encoding": "identity"}
    # A weak tag, or none, doesn't tell whether the bytes are the same: then the whole file is asked for.
    if start and tag is not None and not tag.startswith("W/"):
        headers |= {"Range": f"bytes={start}-", "If-Range": tag}
    return headers


def received(
    raw: BaseHTTPResponse,
    count: Callable[[int], object],
    failures: tuple[type[Exception], ...],
    server: str,
    max_reply: int,
) -> Fetched:
    """Return what an answer of HTTP brings; its bytes are counted, and foreign errors on the way are translated."""
    if raw.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        body = b""
        if not raw.closed:  # else it is a redirect, which `requests` has read
            with raw:
                body = joined(raw.stream(PIECE, decode_content=True), max_reply)
        return refused(_refusal(raw, body))
    length = raw.headers.get("Content-Length", "")
    part = _RANGE.fullmatch(raw.headers.get("Content-Range", "")) if raw.status == HTTPStatus.PARTIAL_CONTENT else None
    name = _FILENAME.search(raw.headers.get("Content-Disposition", ""))

    def pieces() -> Iterator[bytes]:
        try:
            for piece in raw.stream(PIECE, decode_content=False):
                count(len(piece))
                yield piece
        except failures as error:
            raise translated(error, server) from error

    return Fetched(
        refusal=None,
        start=0 if part is None else int(part[1]),
        size=int(part[2]) if part is not None else int(length) if length.isdecimal() else None,
        tag=raw.headers.get("ETag"),
        mimetype=raw.headers.get("Content-Type", ""),
        name=None if name is None else unquote(name[1]),
        pieces=pieces(),
        close=raw.close,
    )


def _refusal(raw: BaseHTTPResponse, body: bytes) -> Reply:
    beside: dict[str, Any] = {"status": raw.status, "retry_after": parse_retry_after(raw.headers)}
    try:
        reply = decode_reply(body, **beside)
    except ProtocolError:
        reply = Reply(**beside)
    if reply.error is not None and reply.error != "NoPath":
        return reply
    if raw.status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return Reply(error="NoFile", message=encode_value("There is no media file at this link."), **beside)
    return Reply(error="Http error", message=encode_value(raw.reason or f"Status {raw.status}"), **beside)
