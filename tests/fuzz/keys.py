"""The escaping of keys: every text has a name of its own, which breaks no listing and no path."""

from __future__ import annotations

import re
from typing import Final

from cloudstore_mapping.client.keys import are_ordinary, key_of, name_of
from cloudstore_mapping.errors import BadNameError

_DIRTY: Final = re.compile(r"[\x00-\x1f\x7f,/\\]|\A[ ]|[ ]\Z|\A\.{0,2}\Z")


def check(data: bytes) -> None:
    """Take the bytes for a text, surrogates too, and its lines for names."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        name = name_of(text)
    except BadNameError:
        assert re.search("[\ud800-\udfff]", text)
        return
    assert key_of(name) == text
    assert not _DIRTY.search(name)
    key = key_of(text)
    assert key == text or name_of(key) == text
    lines = text.split("\n")
    if are_ordinary(lines):
        assert [name_of(line) for line in lines] == lines
