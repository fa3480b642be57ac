"""An export that is not finished: what was read so far, on disk, so that it goes on after whatever ends it."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final, Self

import msgspec

from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.storefiles import belongs_to_store, open_file, refuse_store
from cloudstore_mapping.transfer.jsonfiles import Line, encode_key

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

END: Final = ".part"
#: Seconds after its beginning for which an interrupted export is resumed; later its values would be too old.
RESUMES_WITHIN: Final = 3600.0

_encode: Final = msgspec.json.Encoder().encode


class _Sealed(Line):
    """A line of JSON Lines with the checksum of this line and of all lines before it."""

    checksum: str


_read_line: Final = msgspec.json.Decoder(_Sealed).decode
#: The line behind which all that was read is being put in its place.
_REPLACING: Final = b'{"finished":true}\n'


class _Head(msgspec.Struct):
    """The first line: which store's data these are, and when the first of them were read."""

    unfinished_export_of: str
    begun_at: float


#: Bytes of a line's checksum.
_CHECKSUM: Final = 8
_BEGINNING: Final = _encode(_Head("", 0.0))[:24]


def is_replacing(path: Path) -> bool:
    """Return whether there is a journal of an export that was interrupted while it replaced files."""
    if not path.is_file() or belongs_to_store(path):
        return False
    with open_file(path) as file:
        return file.read(len(_BEGINNING)) == _BEGINNING and any(line == _REPLACING for line in file)


class Journal:
    """
    The keys and values of one store that were read so far, a line each, in a file beside the one to be.

    Each line has a checksum that covers the lines before it as well, and what doesn't fit ends the reuse. `before`
    counts the keys that an earlier run had read, and `age` is the seconds since it began. Raises `UnsupportedError` for
    the journal of another store, or a file that is none, and `BlockingIOError` while another export writes it.
    """

    def __init__(self, target: Path, identity: str) -> None:
        self.path = target.with_name(target.name + END)
        self.keys: set[str] = set()
        #: Whether an export has begun to replace files, and was interrupted before it had replaced all of them.
        self.is_replacing = False
        self.age = 0.0
        self._identity = identity
        refuse_store(self.path)
        self._file: IO[bytes] = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
        try:
            self._lock()
            self._begin()
        except BaseException:
            self._file.close()
            raise
        self.before = len(self.keys)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def _lock(self) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(
                    errno.EWOULDBLOCK, "another export writes it at this moment", str(self.path)
                ) from None

    def _begin(self) -> None:
        first = self._file.readline()
        if not first.endswith(b"\n"):  # new, or its very first line was cut off
            if not _BEGINNING.startswith(first[: len(_BEGINNING)]):
                raise self._foreign()
            self.begin_anew()
            return
        try:
            head = msgspec.json.decode(first, type=_Head)
        except msgspec.MsgspecError as error:
            raise self._foreign() from error
        if head.unfinished_export_of != self._identity:
            raise UnsupportedError(
                f"{self.path} is an unfinished export of another store; delete it to begin anew, or name another file."
            )
        self._go_on(first)
        self.age = time.time() - head.begun_at
        if not 0 <= self.age < RESUMES_WITHIN:  # its values are old, or a clock was set
            self.begin_anew()

    def begin_anew(self) -> None:
        """Forget all that was read, but not that files are only partly replaced."""
        self.keys = set()
        self.before = 0
        self.age = 0.0
        self._file.seek(0)
        self._file.truncate()
        head = _encode(_Head(self._identity, time.time())) + b"\n"
        self._digest = hashlib.blake2b(head, digest_size=_CHECKSUM)
        self._write(head + _REPLACING if self.is_replacing else head)

    def _go_on(self, head: bytes) -> None:
        """Reuse the lines up to the first one that is cut off, or isn't what was written."""
        self._digest = hashlib.blake2b(head, digest_size=_CHECKSUM)
        end = self._file.tell()
        fits = True
        for line in iter(self._file.readline, b""):
            if line == _REPLACING:
                self.is_replacing = True
            elif fits and (key := self._unsealed(line)) is not None:
                self.keys.add(key)
            else:
                fits = False
            if fits:
                end = self._file.tell()
        self._file.seek(end)
        self._file.truncate()
        if self.is_replacing and not fits:  # it may have stood behind what doesn't fit
            self._write(_REPLACING)

    def _unsealed(self, line: bytes) -> str | None:
        """Return the key of a line that is as it was written, behind the lines before it; None for any other line."""
        try:
            found = _read_line(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        digest = self._digest.copy()
        if line != _sealed(digest, found.key, bytes(found.value)):
            return None
        self._digest = digest
        return found.key

    def _foreign(self) -> UnsupportedError:
        return UnsupportedError(f"{self.path} is no unfinished export and was left as it is; move it away.")

    def add(self, entries: Sequence[tuple[str, bytes]]) -> None:
        """Put entries on disk."""
        self._file.seek(0, os.SEEK_END)
        self._write(b"".join(_sealed(self._digest, key, value) for key, value in entries))
        self.keys.update(key for key, _ in entries)

    def drop_others(self, keys: Iterable[str]) -> None:
        """Leave out all keys but these: the store has deleted them since they were read."""
        self.keys.intersection_update(keys)
        self.before = len(self.keys)

    def begin_replacing(self) -> None:
        """Put on disk that from now on until `remove` the files in their place may be of different exports."""
        self._file.seek(0, os.SEEK_END)
        self._write(_REPLACING)
        self.is_replacing = True

    def entries(self) -> Iterator[tuple[str, bytes]]:
        """Yield all that was read, but for keys that were dropped."""
        self._file.seek(0)
        self._file.readline()
        for line in iter(self._file.readline, b""):
            if line != _REPLACING:
                found = _read_line(line)
                if found.key in self.keys:
                    yield found.key, bytes(found.value)

    def remove(self) -> None:
        """Take the journal away: all that is in it is in its place."""
        self.path.unlink()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())


def _sealed(digest: hashlib.blake2b, key: str, value: bytes) -> bytes:
    """Return an entry's line, after its key and value went into the digest of all lines."""
    content = b'{"key":%b,"value":%b' % (encode_key(key), value)
    digest.update(content)
    return b'%b,"checksum":"%b"}\n' % (content, digest.hexdigest().encode())
