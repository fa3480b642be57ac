"""Format of SQLite's write-ahead log: a header, then frames of a header and a page each, with checksums over all."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, NamedTuple

HEADER: Final = struct.Struct(">II I I 8s II")  # magic, version, page size, checkpoints, salts, checksums
FRAME: Final = struct.Struct(">II 8s II")  # page number, pages in all after a commit, salts, checksums
VERSION: Final = 3007000
_MAGIC: Final = 0x377F0682


class Frame(NamedTuple):
    """Header of a frame in an open log, and the place of its page."""

    file: IO[bytes]
    header: bytes
    page: int
    size: int

    @property
    def number(self) -> int:
        """Page number in the database, from 1."""
        return int.from_bytes(self.header[:4], "big")

    def read(self, place: int, size: int) -> bytes:
        """Return bytes of the page, fewer if the log ends within it."""
        return at(self.file, self.page + place, size)


def page_size(beginning: bytes) -> int | None:
    """Return the page size in a log's header, in bytes; None for anything else than a header."""
    if len(beginning) < HEADER.size:
        return None
    magic, version, size, *_ = HEADER.unpack(beginning)
    if magic & ~1 != _MAGIC or version != VERSION or not 512 <= size <= 65536 or size & (size - 1):
        return None
    return int(size)


def is_little(beginning: bytes) -> bool:
    """Return True if the checksums of a log with this header use little-endian numbers."""
    return not beginning[3] & 1


def is_right(beginning: bytes) -> bool:
    """Return True for a valid header of a log, with its checksum."""
    return page_size(beginning) is not None and HEADER.unpack(beginning)[-2:] == summed(
        beginning[:24], (0, 0), little=is_little(beginning)
    )


def frames(file: IO[bytes], beginning: bytes) -> Iterator[Frame]:
    """Yield the frames of a log with this header, up to its end or to frames from before its last restart."""
    for frame in all_frames(file, beginning):
        if not frame.number or FRAME.unpack(frame.header)[2] != beginning[16:24]:
            return
        yield frame


def all_frames(file: IO[bytes], beginning: bytes) -> Iterator[Frame]:
    """Yield the frames of a log with this header, and those from before its last restart behind them."""
    size = page_size(beginning)
    place = HEADER.size
    while size is not None and len(header := at(file, place, FRAME.size)) == FRAME.size:
        yield Frame(file, header, place + FRAME.size, size)
        place += FRAME.size + size


def beginning_of(log: Path) -> bytes:
    """Return the header of a log, different after each restart of the log; empty if there is no log."""
    try:
        with log.open("rb") as file:
            return file.read(HEADER.size)
    except FileNotFoundError:
        return b""


def at(file: IO[bytes], place: int, size: int) -> bytes:
    """Return bytes of a file."""
    file.seek(place)
    return file.read(size)


def summed(data: bytes, sums: tuple[int, int], *, little: bool) -> tuple[int, int]:
    """Return SQLite's checksums of `data`, continued from `sums`."""
    first, second = sums
    if len(data) % 8:
        return -1, -1  # the log ends within a page
    for one, other in struct.iter_unpack("<II" if little else ">II", data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second
