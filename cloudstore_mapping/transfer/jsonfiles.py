"""JSON files, one object of all keys, and JSON Lines, one object a key: read and written without holding the whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, Final, NoReturn, TextIO

import msgspec
from msgspec import Raw

from cloudstore_mapping.errors import BadValueError
from cloudstore_mapping.storefiles import open_file
from cloudstore_mapping.transfer.entries import Entry, checked
from cloudstore_mapping.wire import fault_of

#: Characters that are read at once, at least.
PIECE: Final = 2**16
#: Characters of the longest value that is looked for an end of.
LONGEST: Final = 2**30

encode_key: Final = msgspec.json.Encoder().encode


class Line(msgspec.Struct):
    """What a line of JSON Lines holds."""

    key: str
    value: Raw


class _Counted(Line):
    """The first line of an export also says how many keys the export has: lines that are lost later are missed."""

    exported_keys: int = 0


_read_line: Final = msgspec.json.Decoder(_Counted).decode
_read_named: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_LINE_START: Final = b'{"key":'


def read_lines(path: Path, called: str) -> Iterator[Entry]:
    """
    Yield what the lines hold; `BadValueError` for one that isn't ``{"key": …, "value": …}``, or where some are lost.

    Exports that were put behind one another announce the sum of their keys.
    """
    announced = read = 0
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():
                continue
            try:
                found = _read_line(text)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise BadValueError(
                    f'Line {number} of {called} is no {{"key": …, "value": …}}: {fault_of(text, error)}; mend it, and '
                    "import again."
                ) from error
            announced += found.exported_keys
            read += 1
            yield checked(found.key, bytes(found.value))
    if read < announced:
        raise BadValueError(
            f"{called} has {read:,} of the {announced:,} keys that were exported; get the file again, or take "
            '"exported_keys" out of its first line if you took the others away.'
        )


def is_line(text: bytes) -> bool:
    """Whether this is one line of JSON Lines."""
    try:
        _read_line(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def write_lines(file: IO[bytes], entries: Iterable[tuple[str, bytes]], count: int) -> None:
    """Write a line for each of so many entries; the first one says how many there are."""
    for key, value in entries:
        file.write(_line_of(key, value, count))
        count = 0


def _line_of(key: str, value: bytes, count: int) -> bytes:
    keys = b',"exported_keys":%d' % count if count else b""
    return b'{"key":%b,"value":%b%b}\n' % (encode_key(key), value, keys)


def read_object(path: Path, called: str) -> Iterator[Entry]:
    """Yield what the one object in the file holds; `BadValueError` where it is none, or not whole."""
    with TextIOWrapper(open_file(path), "utf-8-sig", newline="") as file:
        scanner = _Scanner(called, file)
        scanner.take("{")
        if scanner.peek() == "}":
            scanner.take("}")
        else:
            while True:
                key, _ = scanner.value()
                if not isinstance(key, str):
                    scanner.fail("a key is not a text")
                scanner.take(":")
                value, text = scanner.value()
                del value
                yield checked(key, text.encode("utf-8", "surrogatepass"))
                if scanner.peek() != ",":
                    break
                scanner.take(",")
            scanner.take("}")
        if scanner.peek():
            scanner.fail("something stands behind the object")


def write_object(file: IO[bytes], entries: Iterable[tuple[str, bytes]]) -> None:
    """Write one object, a line a key."""
    start = b"{\n"
    for key, value in entries:
        file.write(b"%b%b: %b" % (start, encode_key(key), value))
        start = b",\n"
    file.write(b"{}\n" if start == b"{\n" else b"\n}\n")


def has_layout_of_export(path: Path) -> bool:
    """Return whether a file is laid out, to the byte, as `write_object` or `write_lines` do it."""
    with open_file(path) as file:
        start = file.read(len(_LINE_START))
        file.seek(0)
        if start == _LINE_START:
            return all(_is_line(line) for line in file)
        return file.readline() == b"{\n" and _is_object(file) if start[:2] == b"{\n" else start == b"{}\n"


def _is_line(line: bytes) -> bool:
    try:
        found = _read_line(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return line == _line_of(found.key, bytes(found.value), found.exported_keys)


def _is_object(lines: Iterator[bytes]) -> bool:
    """Return whether these are a name and its value a line, with a comma behind all but the last, and then the end."""
    is_last = False
    for line in lines:
        if is_last:
            return line == b"}\n" and next(lines, None) is None
        is_last = not line.endswith(b",\n")
        text = line.removesuffix(b"\n").removesuffix(b",")
        try:
            found = _read_named(b"{%b}" % text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        if text != b", ".join(b"%b: %b" % (encode_key(name), bytes(value)) for name, value in found.items()):
            return False
    return False


class _Scanner:
    """Finds one value after another in a text that is read piece by piece."""

    def __init__(self, called: str, file: TextIO) -> None:
        self._called = called
        self._file = file
        self._text = ""
        self._at = 0
        self._passed = 0  # characters before the ones that are held
        self._decoder = json.JSONDecoder(parse_constant=self._refuse)

    def peek(self) -> str:
        """Return the next character that is no space, empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            if not self._read():
                return ""

    def take(self, char: str) -> None:
        """Pass this character."""
        if self.peek() != char:
            self.fail(f"{char!r} is missing")
        self._at += 1

    def value(self) -> tuple[Any, str]:
        """Pass a value, and return it with its text."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) > LONGEST or not self._read():
                    self._at = error.pos
                    self.fail(error.msg)
            except (ValueError, RecursionError) as error:  # NaN, more digits than Python takes, brackets without end
                self.fail(fault_of(b"", error))
            else:
                # What ends with what is held may go on behind it: 12 is the beginning of 123.
                if end < len(self._text) or not self._read():
                    text = self._text[self._at : end]
                    self._at = end
                    return value, text

    def _read(self) -> bool:
        """Hold more of the file, as much again as is held, so that a long value is looked at only a few times."""
        held = self._text[self._at :]
        try:
            more = self._file.read(max(PIECE, len(held)))
        except UnicodeDecodeError as error:
            raise BadValueError(f"{self._called} is not UTF-8 ({error.reason}); convert it to UTF-8.") from error
        if not more:
            return False
        self._passed += self._at
        self._text = held + more
        self._at = 0
        return True

    def fail(self, why: str) -> NoReturn:
        """Raise what is wrong here."""
        raise BadValueError(
            f"{self._called} is not an object of JSON: {why}, at character {self._passed + self._at + 1}; mend it, and "
            "import again."
        )

    def _refuse(self, constant: str) -> NoReturn:
        raise ValueError(f"JSON knows no {constant}")
