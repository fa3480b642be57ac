"""
Streaming multipart/form-data parser of an upload: a few short fields and a file, passed on piece by piece.

Starlette's `form()` is not used: it writes the whole file to a temporary file before it returns any field, so before
the API key can be checked. python-multipart, the parser beneath it, is used directly.
"""

from __future__ import annotations

from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from cloudstore_mapping.errors import ProtocolError
from cloudstore_mapping.web.downloads import disposition_of

#: Maximum number of parts of a form, and bytes of a field.
MAX_PARTS: Final = 16
MAX_FIELD_BYTES: Final = 4096
#: Field for a conditional upload; present and empty, it forbids replacing a file.
CONDITION: Final = "if_version"
#: Maximum bytes of a part's header: a name of 1,024 bytes, escaped, and its parameters.
MAX_HEADER_BYTES: Final = 8192
#: Headers of a part with a single value.
_SINGLE: Final = frozenset({b"content-disposition", b"content-type"})


class UploadForm:
    """
    Form of an upload while it arrives: complete `fields`, and the file's name, type and bytes not yet taken.

    `before_file` has the names of the fields before the file. `has_ended` is set at the form's last boundary. Raises
    `ProtocolError` (``BadRequest``, ``BadType``).
    """

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise ProtocolError("An upload is a form; send it as multipart/form-data.", error="BadType")
        self.fields: dict[str, str] = {}
        self.before_file: frozenset[str] = frozenset()
        self.has_file = False
        self.has_ended = False
        self.filename = ""
        self.content_type = ""
        self._boundary = boundary
        self._has_begun = False
        self._pieces: list[bytes] = []
        self._parts = 0
        self._in_file = False
        self._field = ""
        self._value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._header = (bytearray(), bytearray())
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
                max_header_size=MAX_HEADER_BYTES,
            )
        except FormParserError as error:
            raise _bad(str(error)) from error

    def feed(self, data: bytes) -> None:
        """Parse the next bytes of the body."""
        if not self._has_begun:
            # The parser skips everything between a leading line end and the form, but only within a single piece.
            data = data.lstrip(b"\r\n")
            self._has_begun = bool(data)
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _bad(str(error)) from error

    def take(self) -> list[bytes]:
        """Return the bytes of the file parsed since the last call."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _bad(f"it has more than {MAX_PARTS} parts")
        self._headers = {}
        self._header = (bytearray(), bytearray())

    def _end_header(self) -> None:
        name, value = bytes(self._header[0]).lower(), bytes(self._header[1])
        if name in _SINGLE and name in self._headers:
            raise _bad(f"a part has two {name.decode().title()} headers")
        self._headers[name] = value
        self._header = (bytearray(), bytearray())

    def _end_headers(self) -> None:
        options = disposition_of(self._headers, self._boundary)
        if options is None:
            raise _bad("a part has no Content-Disposition of form-data")
        self._field = _text(options.get(b"name", b""), "a field's name")
        self._value = bytearray()
        self._in_file = self._field == "file" and b"filename" in options
        if not self._in_file:
            return
        if self.has_file:
            raise _bad("it has more than one file")
        self.has_file = True
        self.before_file = frozenset(self.fields)
        self.filename = _text(options[b"filename"], "the file's name")
        self.content_type = self._headers.get(b"content-type", b"").decode("latin-1")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._pieces.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise _bad(f"its field {self._field[:20]!r} is longer than {MAX_FIELD_BYTES:,} bytes")

    def _end_part(self) -> None:
        if not self._in_file:
            value = _text(bytes(self._value), f"the field {self._field[:20]!r}")
            if self.fields.setdefault(self._field, value) != value:
                raise _bad(f"it has two values for its field {self._field[:20]!r}")
            if self._field == CONDITION and (self._value or self.has_file):
                raise _bad(f"its field {CONDITION!r} must be empty, and come before the file")
        self._in_file = False

    def _end(self) -> None:
        self.has_ended = True


def _bad(why: str) -> ProtocolError:
    return ProtocolError(f"The form can't be read: {why}.", error="BadRequest")


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _bad(f"{what} is not UTF-8") from error
