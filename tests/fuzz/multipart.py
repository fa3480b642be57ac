"""The form of an upload: it says the same in whatever pieces it comes; what it refuses is an error of ours."""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

from cloudstore_mapping.errors import ProtocolError
from cloudstore_mapping.web.forms import MAX_FIELD_BYTES, MAX_PARTS, UploadForm

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # which has a line for each refusal

_TYPE: Final = "multipart/form-data; boundary=b"


class _Read(NamedTuple):
    fields: dict[str, str]
    file: tuple[bool, str, str, bytes]
    has_ended: bool


def check(data: bytes) -> None:
    """Read the bytes as a form at once, and in pieces as long as the first byte says; and as a form's content type."""
    size, body = max(1, next(iter(data), 0)), data[1:]
    assert _read(body, len(body) or 1) == _read(body, size)
    try:
        UploadForm(body.decode("latin-1"))
    except ProtocolError:
        return


def _read(body: bytes, size: int) -> _Read | None:
    """Return what the form says, None where it is refused."""
    form = UploadForm(_TYPE)
    try:
        for start in range(0, len(body), size):
            form.feed(body[start : start + size])
    except ProtocolError:
        return None
    assert len(form.fields) <= MAX_PARTS
    assert all(len(text.encode()) <= MAX_FIELD_BYTES for text in form.fields.values())
    file = form.has_file, form.filename, form.content_type, b"".join(form.take())
    return _Read(form.fields, file, form.has_ended)
