"""Which media a browser may show: those that can't run anything, and whose bytes are what their type says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

#: Bytes of a file's beginning that tell what it is.
BEGINNING: Final = 16

#: How the bytes of each type begin that may be shown; all other types are downloaded, HTML and SVG among them.
_BEGINNINGS: Final[Mapping[str, re.Pattern[bytes]]] = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "audio/mpeg": re.compile(rb"ID3|\xff[\xe2-\xff]"),
    "audio/wav": re.compile(rb"RIFF....WAVE", re.DOTALL),
    "audio/x-wav": re.compile(rb"RIFF....WAVE", re.DOTALL),
    "audio/ogg": re.compile(rb"OggS"),
    "audio/flac": re.compile(rb"fLaC"),
    "audio/mp4": re.compile(rb"....ftyp", re.DOTALL),
    "video/mp4": re.compile(rb"....ftyp", re.DOTALL),
    "video/ogg": re.compile(rb"OggS"),
    "video/webm": re.compile(rb"\x1a\x45\xdf\xa3"),
    "audio/webm": re.compile(rb"\x1a\x45\xdf\xa3"),
    "application/pdf": re.compile(rb"%PDF-"),
}
_PLAIN: Final = re.compile(r"[^ !#$&+\-.0-9A-Z^_`a-z|~()\[\]{},;=@']")


def is_shown(mimetype: str, beginning: bytes) -> bool:
    """Whether a browser may show a file of this type that begins with these bytes, in place of downloading it."""
    pattern = _BEGINNINGS.get(mimetype.partition(";")[0].strip().lower())
    return pattern is not None and pattern.match(beginning) is not None


def disposition(name: str, *, shown: bool) -> bytes:
    """Return the Content-Disposition of a file with this name, which may hold anything, as RFC 6266 has it."""
    plain = _PLAIN.sub("_", name)
    return (
        f"{'inline' if shown else 'attachment'}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}".encode()
    )
