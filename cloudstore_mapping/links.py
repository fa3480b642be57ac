"""Where media files are: the part of their address behind the service's, made alike by both sides."""

from __future__ import annotations

import mimetypes
import re
from typing import Final

#: What every link of a media file begins with.
FILES_PATH: Final = "/files/"

_EXTENSION: Final = re.compile(r".*\.([A-Za-z0-9]{1,16})", re.DOTALL)
UNKNOWN_EXTENSION: Final = "bin"


def media_link(folder: str, media_id: str, name: str, mimetype: str) -> str:
    """Return where the media file is that was uploaded under this name, as this type."""
    return f"{FILES_PATH}{folder}/{media_id}.{extension(name, mimetype)}"


def extension(name: str, mimetype: str) -> str:
    """Return the end of a media file's link: its name's, where that is a plain one, else its type's."""
    guessed = mimetypes.guess_extension(mimetype.partition(";")[0].strip(), strict=False)
    match = _EXTENSION.fullmatch(name) or _EXTENSION.fullmatch(guessed or "")
    return UNKNOWN_EXTENSION if match is None else match[1].lower()
