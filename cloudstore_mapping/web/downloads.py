"""Downloads of media files: Range and conditional requests (RFC 9110), Content-Disposition, security headers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import suppress
from email.utils import formatdate, parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote, unquote, unquote_to_bytes
from weakref import WeakKeyDictionary

from msgspec.structs import replace
from python_multipart.multipart import parse_options_header

from cloudstore_mapping.errors import CloudStoreError, DailyLimitError, ProtocolError, UnavailableError
from cloudstore_mapping.links import TYPE_HEADER
from cloudstore_mapping.service.media import UNKNOWN_TYPE, ReplacedError, begins_as
from cloudstore_mapping.web.http import (
    CLIENT,
    CROSS_ORIGIN,
    END,
    Application,
    BoundedWorkers,
    Client,
    Header,
    Receive,
    RefusedError,
    Scope,
    Send,
    check_method,
    headers_of,
    network,
    send_pieces,
    send_reply,
)
from cloudstore_mapping.wire import failure

if TYPE_CHECKING:
    from cloudstore_mapping.service.media import MediaFiles
    from cloudstore_mapping.service.service import Service

_PLAIN: Final = re.compile(r"[^ !#$&+\-.0-9A-Z^_`a-z|~()\[\]{},;=@']")


def may_display_inline(mimetype: str, beginning: bytes) -> bool:
    """Return True if a browser may display the file inline: a safe type with its magic bytes."""
    return begins_as(mimetype, beginning)


def content_security_policy(mimetype: str, *, shown: bool) -> bytes:
    """
    Return the Content-Security-Policy of a file: no scripts, and only the needs of a browser's own viewer.

    Browsers open audio and video in a page of their own, which requests the file again, and lay out images with inline
    styles. The file's policy applies to these pages.
    """
    main = mimetype.strip().partition("/")[0].lower() if shown else ""
    needs = {"audio": b" media-src 'self';", "video": b" media-src 'self';", "image": b" style-src 'unsafe-inline';"}
    return b"default-src 'none';%b sandbox" % needs.get(main, b"")


def content_disposition(name: str, *, shown: bool) -> bytes:
    """Return the Content-Disposition (RFC 6266) for any name; Starlette has this only inside `FileResponse`."""
    plain = _PLAIN.sub("_", name)
    return (
        f"{'inline' if shown else 'attachment'}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}".encode()
    )


_RANGE: Final = re.compile(rb"\s*bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.IGNORECASE)
_TAG: Final = re.compile(rb'(?:W/)?"[^"]*"')


class RangeResult(NamedTuple):
    """Status of the response, and the range of the file's bytes, from `start` up to but excluding `stop`."""

    status: int
    start: int
    stop: int


def evaluate_conditions(
    headers: Mapping[bytes, bytes], tag: bytes, modified_at: float, size: int, *, now: float
) -> RangeResult:
    """
    Return the status and byte range of the response to a GET or HEAD request with these headers.

    `tag` is the file's strong entity tag with its quotes; `modified_at` and `now` are in seconds since 1970. A date in
    ``If-Modified-Since`` after `now` is ignored, for then the clock was wrong, and so is any until `has_safe_date`.
    Several ranges get the whole file, as allowed, so that a request can't multiply the response. So does a date in
    ``If-Range``: the file may have been replaced twice in the same second.
    """
    whole = RangeResult(200, 0, size)
    modified = int(modified_at)
    if b"if-match" in headers:
        if not _matches(headers[b"if-match"], tag, weakly=False):
            return whole._replace(status=412)
    elif (since := _seconds(headers.get(b"if-unmodified-since"))) is not None and modified > since:
        return whole._replace(status=412)
    if b"if-none-match" in headers:
        if _matches(headers[b"if-none-match"], tag, weakly=True):
            return whole._replace(status=304)
    elif has_safe_date(modified_at, now):
        since = _seconds(headers.get(b"if-modified-since"))
        if since is not None and modified <= since <= now:
            return whole._replace(status=304)
    match = _RANGE.fullmatch(headers.get(b"range", b""))
    if match is None or not any(match.groups()) or headers.get(b"if-range", tag).strip() != tag:
        return whole
    return _part(match[1], match[2], size)


def has_safe_date(modified_at: float, now: float) -> bool:
    """Return True if no other content of a file can have, or get, the same date: it has no fractions of a second."""
    return int(modified_at) < int(now)


def _part(first: bytes, last: bytes, size: int) -> RangeResult:
    if not first:  # the last bytes of the file
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), size if not last else min(int(last) + 1, size)
        if last and int(last) < start:
            return RangeResult(200, 0, size)  # not a valid range
    return RangeResult(206, start, stop) if start < stop else RangeResult(416, 0, 0)


def _matches(header: bytes, tag: bytes, *, weakly: bool) -> bool:
    if header.strip() == b"*":
        return True
    return any(each.removeprefix(b"W/") == tag if weakly else each == tag for each in _TAG.findall(header))


def _seconds(date: bytes | None) -> int | None:
    try:
        return None if date is None else int(parsedate_to_datetime(date.decode("latin-1")).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None


# Header of a part by WHATWG's HTML standard. A backslash is no escape there, as it may be part of a name.
_OPTION: Final = re.compile(rb'; (name|filename)="([^"]*)"')
_AS_BROWSERS: Final = re.compile(rb'form-data(?:; (?:name|filename)="[^"]*")+')
# The only escapes of browsers in a file's name.
_ESCAPES: Final = (("%22", '"'), ("%0D", "\r"), ("%0A", "\n"))
_QUOTED: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_EXTENDED: Final = re.compile(rb";\s*filename\*\s*=\s*([\w-]+)'[\w-]*'([^\s;\"]*)", re.IGNORECASE)
_ENCODED_WORD: Final = re.compile(r"=\?([\w-]+)\?([bq])\?([!->@-~]*)\?=", re.ASCII | re.IGNORECASE)
_BOUNDARY_OF_AIOHTTP: Final = re.compile(rb"[0-9a-f]{32}")
_CHARSETS: Final = frozenset({"utf-8", "utf8", "iso-8859-1", "us-ascii"})


def disposition_of(headers: Mapping[bytes, bytes], boundary: bytes) -> dict[bytes, bytes] | None:
    """
    Return the ``name`` and decoded ``filename`` of a part with these headers, in their order; None without any.

    A name outside UTF-8 is returned unchanged.
    """
    disposition = headers.get(b"content-disposition", b"")
    if _AS_BROWSERS.fullmatch(disposition):
        options = dict(_OPTION.findall(disposition))
    else:
        kind, options = parse_options_header(disposition)
        if kind != b"form-data":
            return None
        extended = _extended_name(disposition)
        if extended is not None:
            return {**options, b"filename": extended.encode()}
    name = _decode(options.get(b"filename", b""), "utf-8")
    if name:
        options[b"filename"] = _unescape(name, is_of_aiohttp=_is_of_aiohttp(headers, boundary)).encode()
    return options


def _is_of_aiohttp(headers: Mapping[bytes, bytes], boundary: bytes) -> bool:
    names = list(headers)
    return (
        _BOUNDARY_OF_AIOHTTP.fullmatch(boundary) is not None
        and b"content-type" in headers
        and names.index(b"content-type") < names.index(b"content-disposition")
    )


def _extended_name(disposition: bytes) -> str | None:
    """Return the decoded parameter ``filename*`` (RFC 8187), if there is a valid one."""
    match = _EXTENDED.search(_QUOTED.sub(b'""', disposition))
    return None if match is None else _decode(unquote_to_bytes(match[2]), match[1].decode("ascii", "replace"))


def _unescape(name: str, *, is_of_aiohttp: bool) -> str:
    if is_of_aiohttp:
        unquoted = unquote(name, errors="replace")
        if quote(unquoted, safe="") == name:
            return unquoted
    words = _decode_words(name)
    if words is not None:
        return words
    for escape, char in _ESCAPES:
        name = name.replace(escape, char)
    return name


def _decode_words(name: str) -> str | None:
    """Return the text of a name made only of encoded words (RFC 2047), else None."""
    words = _ENCODED_WORD.findall(name)
    charsets = {charset.lower() for charset, _, _ in words}
    if len(charsets) != 1 or _ENCODED_WORD.sub("", name).strip(" "):
        return None
    # Joined before decoding: some clients split a character between two words.
    parts = [_word_bytes(encoding.lower(), text) for _, encoding, text in words]
    return None if None in parts else _decode(b"".join(filter(None, parts)), *charsets)


def _word_bytes(encoding: str, text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) if encoding == "b" else binascii.a2b_qp(text, header=True)
    except binascii.Error:
        return None


def _decode(data: bytes, charset: str) -> str | None:
    """Return text in a supported charset; None for another charset or invalid bytes."""
    if charset.lower() not in _CHARSETS:
        return None
    try:
        return data.decode(charset)
    except UnicodeDecodeError:
        return None


_log: Final = logging.getLogger(__name__)

#: Pieces read at a time by all downloads, and queued: every connection may wait for one.
AT_ONCE: Final = 6
WAITING: Final = 2**16
#: Chunks of files in memory at a time, of `CHUNK_BYTES` each, for all clients that read; others wait for theirs.
MAX_CHUNKS: Final = 128
_slots: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]] = WeakKeyDictionary()
#: Times that a download looks up a file which is replaced again and again.
TRIES: Final = 5

_WITHOUT_FILE: Final = frozenset(
    {HTTPStatus.NOT_MODIFIED, HTTPStatus.PRECONDITION_FAILED, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}
)
# An uploaded page must not run scripts, have its type sniffed, be indexed, or reveal its link to other sites.
_HEADERS: Final[tuple[Header, ...]] = (
    (b"accept-ranges", b"bytes"),
    (b"cache-control", b"no-cache"),  # a replaced file keeps its link
    (b"cross-origin-resource-policy", b"cross-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-robots-tag", b"none"),
    *CROSS_ORIGIN,
)


def make_files(service: Service, path: str) -> Application:
    """
    Return the ASGI application serving media files at their links below `path`.

    Any extension, or none, leads to the file. An extension guessed from the content type depends on the version of
    Python, and changes when the file is replaced.
    """
    turns = BoundedWorkers(AT_ONCE, WAITING, "cloudstore-download")
    link = re.compile(re.escape(path) + r"([0-9a-f]{32})/([0-9a-f]{32})(?:\.[^/\x00-\x1f\x7f]*)?")

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get(CLIENT) or Client()
        slots = _slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(MAX_CHUNKS))
        await client.take(slots)
        try:
            if client.is_gone:
                return
            response = await _response(service.media, turns, scope, link.fullmatch(scope["path"]))
        except RefusedError as refused:
            await send_reply(send, failure(refused.error), *refused.headers)
        except DailyLimitError as error:  # as a status known to browsers and caches
            reply = replace(
                failure(error), status=HTTPStatus.TOO_MANY_REQUESTS, retry_after=service.media.rest_of_day()
            )
            await send_reply(send, reply)
        except CloudStoreError as error:
            await send_reply(send, failure(error))
        else:
            await response.send(turns, receive, send, client, slots)
        finally:
            client.chunk_bytes = 0
            client.give_back()

    return application


class _Response(NamedTuple):
    status: int
    headers: list[Header]
    pieces: Iterator[bytes]
    owner: int

    async def send(
        self, turns: BoundedWorkers, receive: Receive, send: Send, client: Client, slots: asyncio.Semaphore
    ) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        leaving = asyncio.ensure_future(_left(receive))  # sending doesn't report a disconnected client
        try:
            while not leaving.done():
                piece = await turns.run(partial(next, self.pieces, b""), self.owner)
                if piece == b"":
                    await send(END)
                    return
                client.chunk_bytes = len(piece)
                await send_pieces(send, piece, client)
                client.chunk_bytes = 0
                client.give_back()
                await client.take(slots)
        except UnavailableError as error:
            # The status was sent as a success; only a body shorter than Content-Length can still report the failure.
            _log.warning("A media file could not be sent to its end: %s", error)
        finally:
            leaving.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _response(files: MediaFiles, turns: BoundedWorkers, scope: Scope, match: re.Match[str] | None) -> _Response:
    """Return the response with its first piece already read: a file that was replaced before it is looked up again."""
    for _ in range(TRIES - 1):
        with suppress(ReplacedError):
            return await _response_now(files, turns, scope, match)
    return await _response_now(files, turns, scope, match)


async def _response_now(
    files: MediaFiles, turns: BoundedWorkers, scope: Scope, match: re.Match[str] | None
) -> _Response:
    check_method(scope["method"], ("GET", "HEAD"))
    found = None if match is None else await turns.run(partial(files.find, match[1], match[2]), network(scope))
    if found is None:
        raise ProtocolError("There is no file here; its owner may have deleted it.", error="NoPath")
    account, media = found
    tag = f'"{media.digest}"'.encode()
    asked = headers_of(scope)
    if scope["method"] == "HEAD":
        asked.pop(b"range", None)  # Range applies to GET only
    now = files.now()
    want = evaluate_conditions(asked, tag, media.updated_at, media.size, now=now)
    mimetype, beginning = await turns.run(partial(files.typed, media), account.id)
    shown = may_display_inline(mimetype, beginning)
    headers = [
        *_HEADERS,
        # Also in a 304, as browsers keep the newest policy.
        (b"content-security-policy", content_security_policy(mimetype, shown=shown)),
        (b"etag", tag),
        (b"repr-digest", b"sha-256=:%s:" % b64encode(bytes.fromhex(media.digest))),  # RFC 9530
    ]
    if has_safe_date(media.updated_at, now):
        headers.append((b"last-modified", formatdate(media.updated_at, usegmt=True).encode()))
    if want.status in _WITHOUT_FILE:
        if want.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            headers.append((b"content-range", b"bytes */%d" % media.size))
        if want.status != HTTPStatus.NOT_MODIFIED:
            headers.append((b"content-length", b"0"))
        return _Response(want.status, headers, iter(()), account.id)
    if not shown:  # UNKNOWN_TYPE also keeps browsers from running it as another page's script or style
        headers.append((TYPE_HEADER.lower().encode(), mimetype.encode("latin-1")))
    headers += [
        (b"content-type", (mimetype if shown else UNKNOWN_TYPE).encode("latin-1")),
        (b"content-disposition", content_disposition(media.name, shown=shown)),
        (b"content-length", b"%d" % (want.stop - want.start)),
    ]
    if want.status == HTTPStatus.PARTIAL_CONTENT:
        headers.append((b"content-range", b"bytes %d-%d/%d" % (want.start, want.stop - 1, media.size)))
    if scope["method"] == "HEAD":
        return _Response(want.status, headers, iter(()), account.id)
    pieces = files.while_enabled(account, files.chunks(media, want.start, want.stop))
    first = await turns.run(partial(next, pieces, b""), account.id)
    await turns.run(partial(files.use, account, media), account.id)
    return _Response(want.status, headers, chain([first], pieces), account.id)
