"""Media files over HTTP: whole or in part, in pieces that are read when the client has taken those before."""

from __future__ import annotations

import asyncio
import logging
import re
from base64 import b64encode
from collections.abc import Iterator
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec.structs import replace

from cloudstore_mapping.errors import CloudStoreError, DailyLimitError, ProtocolError, UnavailableError
from cloudstore_mapping.web.http import (
    CROSS_ORIGIN,
    END,
    Application,
    Header,
    Receive,
    RefusedError,
    Scope,
    Send,
    check_method,
    send_reply,
)
from cloudstore_mapping.web.kinds import disposition, is_shown, policy
from cloudstore_mapping.web.ranges import wanted
from cloudstore_mapping.wire import failure

if TYPE_CHECKING:
    from cloudstore_mapping.service.media import MediaFiles
    from cloudstore_mapping.service.service import Service

_log: Final = logging.getLogger(__name__)

_WITHOUT_FILE: Final = frozenset(
    {HTTPStatus.NOT_MODIFIED, HTTPStatus.PRECONDITION_FAILED, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}
)
# What keeps a page that somebody uploaded from running, from being guessed at, and from telling where it was found.
_HEADERS: Final[tuple[Header, ...]] = (
    (b"accept-ranges", b"bytes"),
    (b"cache-control", b"no-cache"),  # a link stays when its file is replaced
    (b"cross-origin-resource-policy", b"cross-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-robots-tag", b"none"),
    *CROSS_ORIGIN,
)


def make_files(service: Service, path: str) -> Application:
    """
    Return the ASGI application for media files by their links, which begin with `path`.

    Any ending, or none, leads to the file: it may be guessed from a type, which another version of Python guesses
    otherwise, and which changes when the file is replaced.
    """
    link = re.compile(re.escape(path) + r"([0-9a-f]{32})/([0-9a-f]{32})(?:\.[^/\x00-\x1f\x7f]*)?")

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await _response(service.media, scope, link.fullmatch(scope["path"]))
        except RefusedError as refused:
            await send_reply(send, failure(refused.error), *refused.headers)
        except DailyLimitError as error:  # with what browsers and caches understand
            reply = replace(
                failure(error), status=HTTPStatus.TOO_MANY_REQUESTS, retry_after=service.media.rest_of_day()
            )
            await send_reply(send, reply)
        except CloudStoreError as error:
            await send_reply(send, failure(error))
        else:
            await response.send(receive, send)

    return application


class _Response(NamedTuple):
    status: int
    headers: list[Header]
    pieces: Iterator[bytes]

    async def send(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        leaving = asyncio.ensure_future(_left(receive))  # for sending tells nobody that the client has gone
        try:
            while not leaving.done():
                piece = await asyncio.to_thread(next, self.pieces, b"")
                if piece == b"":
                    await send(END)
                    return
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except UnavailableError as error:
            # It has begun as a success: that it ends before its length is all that can still be told.
            _log.warning("A media file could not be sent to its end: %s", error)
        finally:
            leaving.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _response(files: MediaFiles, scope: Scope, match: re.Match[str] | None) -> _Response:
    check_method(scope["method"], ("GET", "HEAD"))
    found = None if match is None else await asyncio.to_thread(files.find, match[1], match[2])
    if found is None:
        raise ProtocolError("There is no file here; its owner may have deleted it.", error="NoPath")
    account, media = found
    tag = f'"{media.digest}"'.encode()
    asked = dict(scope["headers"])
    if scope["method"] == "HEAD":
        asked.pop(b"range", None)  # which means nothing but to a GET
    want = wanted(asked, tag, media.updated_at, media.size)
    mimetype, beginning = await asyncio.to_thread(files.typed, media)
    shown = is_shown(mimetype, beginning)
    headers = [
        *_HEADERS,
        (b"content-security-policy", policy(mimetype, shown=shown)),  # of a 304 too: a browser keeps the newest
        (b"etag", tag),
        (b"repr-digest", b"sha-256=:%s:" % b64encode(bytes.fromhex(media.digest))),  # RFC 9530
        (b"last-modified", formatdate(media.updated_at, usegmt=True).encode()),
    ]
    if want.status in _WITHOUT_FILE:
        if want.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            headers.append((b"content-range", b"bytes */%d" % media.size))
        if want.status != HTTPStatus.NOT_MODIFIED:
            headers.append((b"content-length", b"0"))
        return _Response(want.status, headers, iter(()))
    headers += [
        (b"content-type", mimetype.encode("latin-1")),
        (b"content-disposition", disposition(media.name, shown=shown)),
        (b"content-length", b"%d" % (want.stop - want.start)),
    ]
    if want.status == HTTPStatus.PARTIAL_CONTENT:
        headers.append((b"content-range", b"bytes %d-%d/%d" % (want.start, want.stop - 1, media.size)))
    if scope["method"] == "HEAD":
        return _Response(want.status, headers, iter(()))
    await asyncio.to_thread(files.use, account, media)
    return _Response(want.status, headers, files.chunks(media, want.start, want.stop))
