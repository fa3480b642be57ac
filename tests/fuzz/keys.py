"""The escaping of keys: every text has a name of its own, which the service can keep, whatever its kind."""

from __future__ import annotations

import re
from typing import Final

from cloudstore_mapping.errors import BadNameError
from cloudstore_mapping.keys import are_plain, escape_key, literal_part, literal_prefix, unescape_name

_NOT_KEPT: Final = {
    False: re.compile(r"\x00|\A\Z"),
    True: re.compile(r"[\x00-\x1f\x7f,]|\A\Z|(?:\A|/)\.{1,2}(?:/|\Z)"),
}


def check(data: bytes) -> None:
    """Take the bytes for a text, surrogates too, and its lines for names."""
    text = data.decode("utf-8", "surrogateescape")
    for joined, not_kept in _NOT_KEPT.items():
        try:
            name = escape_key(text, joined=joined)
        except BadNameError:
            assert re.search("[\ud800-\udfff]", text)
            return
        assert unescape_name(name, joined=joined) == text
        assert not not_kept.search(name)
        if not not_kept.search(text):
            assert escape_key(unescape_name(text, joined=joined), joined=joined) == text
        assert literal_part(text) in name
        assert literal_part(text, joined=joined) in name
        assert name.startswith((literal_prefix(text), literal_prefix(text, joined=joined)))
    lines = text.split("\n")
    if are_plain(lines):
        assert [escape_key(line) for line in lines] == lines == [escape_key(line, joined=True) for line in lines]
