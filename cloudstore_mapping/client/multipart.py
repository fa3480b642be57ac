"""A media file: from what a user hands over to the form that carries it."""

from __future__ import annotations

import base64
import binascii
import io
import mimetypes
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any, Final, TypeAlias
from urllib.parse import quote, unquote_to_bytes

from cloudstore_mapping.errors import BadNameError, BadValueError
from cloudstore_mapping.wire import Upload

#: What a user may upload: text, bytes, or an open file.
Media: TypeAlias = str | bytes | bytearray | memoryview | IO[bytes] | IO[str]

UNKNOWN_TYPE: Final = "application/octet-stream"

_PIECE: Final = 2**16
# What WHATWG's HTML standard says of a name in a form's header: these three and no others.
_ESCAPES: Final = str.maketrans({"\n": "%0A", "\r": "%0D", '"': "%22"})
_DATA_URL: Final = re.compile(
    r"data:(?P<type>[\w!#$&^.+-]+/[\w!#$&^.+-]+(?:;[\w-]+=[^;,\s]*)*)?(?P<base64>;base64)?,", re.ASCII | re.IGNORECASE
)
_PRINTABLE: Final = re.compile(r"[ -~]+")


class Form:
    """
    The multipart form of an upload: iterating over it gives the body's bytes, piece by piece and once.

    `len` is the body's length, by the name under which `requests` looks for it; None where the file's size isn't known.
    """

    def __init__(self, upload: Upload) -> None:
        check_type(upload.content_type)
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        # A service may take `=?…?=` for an encoded name, unless the name is there as it is meant, too.
        meant = f"; filename*=UTF-8''{quote(upload.name, safe='', errors='replace')}" if "=?" in upload.name else ""
        part = f'"file"; filename="{upload.name.translate(_ESCAPES)}"{meant}\r\nContent-Type: {upload.content_type}'
        condition = (('"if_version"', ""),) if upload.only_new else ()
        fields = (('"key"', upload.api_key), ('"password"', upload.password or ""), *condition, (part, ""))
        try:
            self._head = "\r\n".join(
                f"--{boundary}\r\nContent-Disposition: form-data; name={name}\r\n\r\n{value}" for name, value in fields
            ).encode()
        except UnicodeEncodeError as error:
            raise BadNameError(
                "The API key, name or password holds a lone surrogate, which no text on the wire can; take it out.",
                key=upload.name,
            ) from error
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._data = upload.data
        self._size = size_of(upload.data)
        self.len = None if self._size is None else len(self._head) + self._size + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        yield from pieces_of(self._data)
        yield self._tail


def check_type(content_type: str) -> None:
    """Raise `BadValueError` for what can't stand in a form as a content type."""
    if not _PRINTABLE.fullmatch(content_type):
        raise BadValueError(f"{content_type!r} is no content type; give one such as 'image/jpeg', or 'text'.")


def pieces_of(data: bytes | IO[bytes]) -> Iterator[bytes]:
    """Yield the bytes of an upload, a file's from where it stands."""
    if isinstance(data, bytes):
        yield data
    else:
        yield from _pieces(data, size_of(data))


def size_of(data: bytes | IO[bytes]) -> int | None:
    """Return how many bytes an upload has, a file's from where it stands; None where that can't be known."""
    if isinstance(data, bytes):
        return len(data)
    try:
        start = data.tell()
        end = data.seek(0, os.SEEK_END)
        data.seek(start)
    except (OSError, AttributeError):
        return None
    return end - start


def _pieces(file: IO[bytes], size: int | None) -> Iterator[bytes]:
    """Yield the file from where it stands; of one whose size was announced just that much."""
    left = size
    while left != 0:
        try:
            piece: Any = file.read(_PIECE if left is None else min(left, _PIECE))
        except OSError as error:
            # urllib3 would take an OSError for one of the connection.
            raise BadValueError(f"The file can't be read ({error.strerror or type(error).__name__}).") from error
        if isinstance(piece, str):
            raise TypeError("The file gives text where bytes are sent; open it in binary mode.")
        if not piece:
            break
        if left is not None:
            left -= len(piece)
        yield piece
    if left:
        raise BadValueError("The file became shorter while it was sent; upload it again.")


def open_media(data: Media, filename: str, content_type: str | None) -> tuple[bytes | IO[bytes], str, IO[bytes] | None]:
    """
    Return the bytes or binary file that `data` means, its content type, and the file that the caller has to close.

    Text is stored as UTF-8 where the type is ``"text"`` or ``"text/…"``; of any other type it is base64, bare or in a
    ``data:`` URL, whose own type holds where none is given. Without a type the filename says it.

    Raises
    ------
    BadValueError
        The text is no base64, or no UTF-8.
    TypeError
        `data` is none of `Media`.
    """
    if not isinstance(data, str | bytes | bytearray | memoryview):
        data = _binary(data)
    if isinstance(data, str):
        content, content_type = _from_text(data, filename, content_type)
        return content, _full(content_type), None
    content_type = _full(_guess(filename) if content_type is None else content_type)
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data), content_type, None
    own = _own_handle(data)
    return own or data, content_type, own


def _binary(file: IO[bytes] | IO[str]) -> str | IO[bytes]:
    """Return the binary file below one in text mode; of one that has none, its text."""
    if not hasattr(file, "read"):
        raise TypeError(f"upload takes bytes, text or an open file, not {type(file).__name__}.")
    if isinstance(file, io.TextIOBase):
        with suppress(OSError):
            file.seek(file.tell())  # the file below has been read ahead
    below: IO[bytes] | IO[str] = getattr(file, "buffer", file)
    return below.read() if isinstance(below, io.TextIOBase) else below  # type: ignore[return-value]  # binary by now


def _own_handle(file: IO[bytes]) -> IO[bytes] | None:
    """Return a handle of our own on a file of the system, so that the user may close theirs before we are done."""
    # Two handles share one position, and one that may write moves it when it is closed: only of readers.
    if not isinstance(file, io.BufferedReader) or type(file.raw) is not io.FileIO or not file.seekable():
        return None
    position = file.tell()
    own = os.fdopen(os.dup(file.fileno()), "rb")
    own.seek(position)
    return own


def _from_text(text: str, filename: str, content_type: str | None) -> tuple[bytes, str]:
    url = None if content_type is not None and _is_text(content_type) else _DATA_URL.match(text)
    if url is not None:
        payload = unquote_to_bytes(text[url.end() :])
        content_type = content_type or url["type"] or _guess(filename)
        return (_decode_base64(payload.decode("latin-1")) if url["base64"] else payload), content_type
    content_type = _guess(filename) if content_type is None else content_type
    if not _is_text(content_type):
        return _decode_base64(text), content_type
    try:
        return text.encode(), content_type
    except UnicodeEncodeError as error:
        raise BadValueError("The text holds a lone surrogate, which UTF-8 can't; take it out.") from error


def _is_text(content_type: str) -> bool:
    return content_type.lower() == "text" or content_type.lower().startswith("text/")


def _guess(filename: str) -> str:
    content_type, encoding = mimetypes.guess_type(filename)
    return UNKNOWN_TYPE if content_type is None or encoding is not None else content_type


def _full(content_type: str) -> str:
    return "text/plain" if content_type.lower() == "text" else content_type


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadValueError(
            "The text is no base64, as which a file that is not text is uploaded; pass bytes, or the type 'text'."
        ) from error
