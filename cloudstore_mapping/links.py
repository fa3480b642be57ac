"""URL path of a media file, below the service's address; the same on client and service."""

from __future__ import annotations

import mimetypes
import re
from typing import Final

#: Beginning of every link to a media file.
FILES_PATH: Final = "/files/"
#: Header of a download with the file's media type, if it is served as ``application/octet-stream``.
TYPE_HEADER: Final = "CloudStore-Media-Type"

_EXTENSION: Final = re.compile(r".*\.([A-Za-z0-9]{1,16})", re.DOTALL)
UNKNOWN_EXTENSION: Final = "bin"


def media_link(folder: str, media_id: str, name: str, mimetype: str) -> str:
    """Return the link to a media file uploaded with this name and type."""
    return f"{FILES_PATH}{folder}/{media_id}.{extension(name, mimetype)}"


def extension(name: str, mimetype: str) -> str:
    """Return the extension in a media file's link: the extension of its name if plain, otherwise of its type."""
    guessed = mimetypes.guess_extension(mimetype.partition(";")[0].strip(), strict=False)
    match = _EXTENSION.fullmatch(name) or _EXTENSION.fullmatch(guessed or "")
    return UNKNOWN_EXTENSION if match is None else match[1].lower()
