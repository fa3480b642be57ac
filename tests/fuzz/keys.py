"""The escaping of keys: every text has a name of its own, which breaks no listing and no path."""

from __future__ import annotations

import re
from typing import Final

from cloudstore_mapping.client.keys import escape_key, need_no_escape, unescape_name
from cloudstore_mapping.errors import BadNameError

_DIRTY: Final = re.compile(r"[\x00-\x1f\x7f,/\\]|\A[ ]|[ ]\Z|\A\.{0,2}\Z")


def check(data: bytes) -> None:
    """Take the bytes for a text, surrogates too, and its lines for names."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        name = escape_key(text)
    except BadNameError:
        assert re.search("[\ud800-\udfff]", text)
        return
    assert unescape_name(name) == text
    assert not _DIRTY.search(name)
    key = unescape_name(text)
    assert key == text or escape_key(key) == text
    lines = text.split("\n")
    if need_no_escape(lines):
        assert [escape_key(line) for line in lines] == lines
