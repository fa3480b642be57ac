"""Which media a browser may show: those that can't run anything, and whose bytes are what their type says."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from cloudstore_mapping.service.media_types import begins_as

_PLAIN: Final = re.compile(r"[^ !#$&+\-.0-9A-Z^_`a-z|~()\[\]{},;=@']")


def is_shown(mimetype: str, beginning: bytes) -> bool:
    """Whether a browser may show a file of this type that begins with these bytes, in place of downloading it."""
    return begins_as(mimetype, beginning)


def policy(mimetype: str, *, shown: bool) -> bytes:
    """
    Return the Content-Security-Policy of a file: no script in any, and no more than a browser's own viewer needs.

    A browser opens audio and video by a page of its own, which asks for the file once more, and lays out a picture by
    styles in its page; such pages are under the file's policy.
    """
    main = mimetype.strip().partition("/")[0].lower() if shown else ""
    needs = {"audio": b" media-src 'self';", "video": b" media-src 'self';", "image": b" style-src 'unsafe-inline';"}
    return b"default-src 'none';%b sandbox" % needs.get(main, b"")


def disposition(name: str, *, shown: bool) -> bytes:
    """Return the Content-Disposition of a file with this name, which may hold anything, as RFC 6266 has it."""
    plain = _PLAIN.sub("_", name)
    return (
        f"{'inline' if shown else 'attachment'}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}".encode()
    )
