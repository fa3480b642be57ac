"""
File names in a multipart form: decode Content-Disposition as each HTTP client encodes it.

Browsers and most programs send a name in UTF-8, and percent-encode a double quote, CR and LF, nothing else, as WHATWG's
HTML standard says. So ``100%20.txt`` is a name, unless its part shows that it was encoded:

- ``filename*=utf-8''sp%20ace.txt`` (RFC 8187; .NET, older urllib3) comes before a ``filename`` beside it.
- ``=?utf-8?B?w6kudHh0?=`` (RFC 2047; .NET, PowerShell, JavaMail) is decoded if all of the name is such words.
- aiohttp percent-encodes every character but letters, digits and ``-._~``. It is known by three marks together: its
  boundary is 32 hexadecimal digits, a part's Content-Type comes before its Content-Disposition, and the name is exactly
  what such an encoding gives.

What can't be decoded is the name as it was sent.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Final
from urllib.parse import quote, unquote, unquote_to_bytes

from python_multipart.multipart import parse_options_header

# The header of a part as WHATWG's HTML standard has it, which knows no backslash as an escape: a name may hold some.
_OPTION: Final = re.compile(rb'; (name|filename)="([^"]*)"')
_AS_BROWSERS: Final = re.compile(rb'form-data(?:; (?:name|filename)="[^"]*")+')
# What browsers write for these three in a file's name, and nothing else.
_ESCAPES: Final = (("%22", '"'), ("%0D", "\r"), ("%0A", "\n"))
_QUOTED: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_EXTENDED: Final = re.compile(rb";\s*filename\*\s*=\s*([\w-]+)'[\w-]*'([^\s;\"]*)", re.IGNORECASE)
_ENCODED_WORD: Final = re.compile(r"=\?([\w-]+)\?([bq])\?([!->@-~]*)\?=", re.ASCII | re.IGNORECASE)
_BOUNDARY_OF_AIOHTTP: Final = re.compile(rb"[0-9a-f]{32}")
_CHARSETS: Final = frozenset({"utf-8", "utf8", "iso-8859-1", "us-ascii"})


def disposition_of(headers: Mapping[bytes, bytes], boundary: bytes) -> dict[bytes, bytes] | None:
    """
    Return the ``name`` and the decoded ``filename`` of a part, whose headers come in their order; None without any.

    A name that is no UTF-8 is returned as it is.
    """
    disposition = headers.get(b"content-disposition", b"")
    if _AS_BROWSERS.fullmatch(disposition):
        options = dict(_OPTION.findall(disposition))
    else:
        kind, options = parse_options_header(disposition)
        if kind != b"form-data":
            return None
        extended = _EXTENDED.search(_QUOTED.sub(b'""', disposition))
        with suppress(ValueError):
            if extended is not None:
                name = _text(unquote_to_bytes(extended[2]), extended[1].decode("ascii"))
                return {**options, b"filename": name.encode()}
    if b"filename" in options:
        names = list(headers)
        is_of_aiohttp = (
            _BOUNDARY_OF_AIOHTTP.fullmatch(boundary) is not None
            and b"content-type" in headers
            and names.index(b"content-type") < names.index(b"content-disposition")
        )
        with suppress(UnicodeDecodeError):
            options[b"filename"] = _decoded(options[b"filename"].decode(), is_of_aiohttp=is_of_aiohttp).encode()
    return options


def _decoded(name: str, *, is_of_aiohttp: bool) -> str:
    if is_of_aiohttp:
        decoded = unquote(name, errors="replace")
        if quote(decoded, safe="") == name:
            return decoded
    with suppress(ValueError):
        return _from_words(name)
    for escape, char in _ESCAPES:
        name = name.replace(escape, char)
    return name


def _from_words(name: str) -> str:
    """Return what a name of encoded words says; `ValueError` if there is anything else in it."""
    words = _ENCODED_WORD.findall(name)
    charsets = {charset.lower() for charset, _, _ in words}
    if not words or _ENCODED_WORD.sub("", name).strip(" ") or len(charsets) > 1:
        raise ValueError(name)
    # Joined before they are decoded: some clients cut a character in two.
    return _text(b"".join(_bytes(encoding.lower(), text) for _, encoding, text in words), *charsets)


def _bytes(encoding: str, text: str) -> bytes:
    # `binascii.Error` is a ValueError.
    return base64.b64decode(text, validate=True) if encoding == "b" else binascii.a2b_qp(text, header=True)


def _text(data: bytes, charset: str) -> str:
    if charset.lower() not in _CHARSETS:
        raise ValueError(charset)
    return data.decode(charset)
