"""Media types: aliases of the real ones, and a guess of a missing one from a file's name and first bytes."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Mapping
from typing import Final

#: The type of a file of which nothing is known.
UNKNOWN_TYPE: Final = "application/octet-stream"
#: Bytes of a file's beginning that tell what it is.
BEGINNING: Final = 16

#: How the files begin that a browser may show; the first type that fits is theirs if nothing else says another.
SIGNATURES: Final[Mapping[str, re.Pattern[bytes]]] = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    # Of layers II and III only: layer I is in no use, and its files begin as text in UTF-16 does.
    "audio/mpeg": re.compile(rb"ID3|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xfd]"),
    "audio/wav": re.compile(rb"RIFF....WAVE", re.DOTALL),
    "audio/flac": re.compile(rb"fLaC"),
    "audio/ogg": re.compile(rb"OggS"),
    "video/ogg": re.compile(rb"OggS"),
    "video/mp4": re.compile(rb"....ftyp", re.DOTALL),
    "audio/mp4": re.compile(rb"....ftyp", re.DOTALL),
    "video/webm": re.compile(rb"\x1a\x45\xdf\xa3"),
    "audio/webm": re.compile(rb"\x1a\x45\xdf\xa3"),
    "application/pdf": re.compile(rb"%PDF-"),
}

_ALIASES: Final[Mapping[str, str]] = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-png": "image/png",
    "audio/mp3": "audio/mpeg",
    "audio/mpeg3": "audio/mpeg",
    "audio/x-mp3": "audio/mpeg",
    "audio/x-mpeg": "audio/mpeg",
    "audio/x-mpeg-3": "audio/mpeg",
    "audio/wave": "audio/wav",
    "audio/x-wav": "audio/wav",
    "audio/vnd.wave": "audio/wav",
    "audio/x-flac": "audio/flac",
    "audio/x-m4a": "audio/mp4",
    "audio/m4a": "audio/mp4",
    "video/x-m4v": "video/mp4",
    "application/ogg": "video/ogg",
    "application/x-pdf": "application/pdf",
    "application/x-json": "application/json",
    "text/json": "application/json",
    # Of these none says anything.
    "binary/octet-stream": UNKNOWN_TYPE,
    "application/unknown": UNKNOWN_TYPE,
    "application/x-unknown": UNKNOWN_TYPE,
    "*/*": UNKNOWN_TYPE,
}

# What Python's own table has not in each of its versions.
_ENDINGS: Final[Mapping[str, str]] = {
    "text": "text/plain",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "m4a": "audio/mp4",
    "m4v": "video/mp4",
    "oga": "audio/ogg",
    "ogg": "audio/ogg",
    "ogv": "video/ogg",
    "opus": "audio/ogg",
    "weba": "audio/webm",
}
# Not the machine's table: the same upload has the same type everywhere.
_PYTHONS: Final = mimetypes.MimeTypes()
_PLAIN: Final = re.compile(r"[a-z0-9]{1,16}")


def real_type(content_type: str, name: str, beginning: bytes) -> str:
    """Return the type of a file that was uploaded as `content_type`: itself, what it is an alias of, or a guess."""
    return known_type(content_type) or _guess(name, beginning)


def known_type(content_type: str) -> str:
    """Return the type that `content_type` stands for, with its parameters; empty if it says nothing."""
    kind, semicolon, parameters = content_type.strip().partition(";")
    plain = kind.strip().lower()
    real = _ALIASES.get(plain, plain) if "/" in plain else _of_ending(plain)
    if real in {"", UNKNOWN_TYPE}:
        return ""
    return content_type.strip() if real == plain else f"{real}{semicolon}{parameters}"


def begins_as(content_type: str, beginning: bytes) -> bool:
    """Whether a browser may show files of this type, and these are the first bytes of one."""
    pattern = SIGNATURES.get(known_type(content_type).partition(";")[0].strip().lower())
    return pattern is not None and pattern.match(beginning) is not None


def _guess(name: str, beginning: bytes) -> str:
    by_name = _of_ending(name.rpartition(".")[2].lower()) if "." in name else ""
    if by_name and (by_name not in SIGNATURES or begins_as(by_name, beginning)):
        return by_name
    return next((kind for kind, pattern in SIGNATURES.items() if pattern.match(beginning)), UNKNOWN_TYPE)


def _of_ending(ending: str) -> str:
    if not _PLAIN.fullmatch(ending):
        return ""
    kind, encoding = _PYTHONS.guess_type(f"x.{ending}", strict=False)
    return _ENDINGS.get(ending) or ("" if kind is None or encoding is not None else _ALIASES.get(kind, kind))
