"""Uploads of open files of every kind, by both clients: what is stored, and what is refused."""

from __future__ import annotations

import array
import bz2
import codecs
import csv
import gzip
import io
import lzma
import mmap
import os
import socket
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import pytest
import requests

import cloudstore_mapping as cm
from cloudstore_mapping import callback_client
from cloudstore_mapping.callback_client import CloudStore
from cloudstore_mapping.client import media
from cloudstore_mapping.embedded import InProcessTransport
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.storages import new_storage
from tests.support.matrix import spread

#: Makes an open file of bytes: of a path that has them, with functions to call at the end.
Make: TypeAlias = Callable[[Path, ExitStack], Any]
Upload: TypeAlias = Callable[[Any], bytes]

#: A file smaller than what is read ahead, and one of several pieces.
SIZES: Final = [3, 8000]


CLIENTS: Final = ["callback client", "http", "embedded"]


@pytest.fixture(params=CLIENTS)
def upload(request: pytest.FixtureRequest, no_threads_left: None) -> Iterator[Upload]:
    """Return a function that uploads a file and returns what is stored; the callback client's closes the file first."""
    with Service(new_storage()) as service, background(service) as address:
        key = service.accounts.create("owner")
        if request.param == "callback client":
            with CloudStore(key, address) as cloud:
                yield lambda file: _by_callback_client(cloud, address, file)
        else:
            place: Any = {"transport": InProcessTransport(service)} if request.param == "embedded" else {}
            if not place:
                place = {"server": address}
            with cm.CloudStoreMapping[Any](key, **place) as store:
                yield lambda file: store.download(store.upload(file, "a.bin"))


def _by_callback_client(cloud: CloudStore, address: str, file: Any) -> bytes:
    future = cloud.upload(file, "a.bin")
    if hasattr(file, "close"):
        file.close()
    reply = future.result(60)
    if reply["error"] is not None:
        raise cm.BadValueError(reply["message"])
    answer = requests.get(f"{address}/files/{reply['data']['folder']}/{reply['data']['id']}.bin", timeout=60)
    return answer.content if answer.status_code == 200 else pytest.fail(answer.text)


class _Memory(io.BytesIO):
    """A subclass of a file in memory that gives other bytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size).upper()


class _Reader(io.BufferedReader):
    """A subclass of a file on disk that gives other bytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size).upper()


class _Text(io.TextIOWrapper):
    """A subclass of a text file that gives another text."""

    def read(self, size: int | None = -1, /) -> str:
        return super().read(size).upper()


class _OnlyRead:
    """An object that can only be read."""

    def __init__(self, file: IO[Any]) -> None:
        self._file = file

    def read(self, size: int) -> Any:
        return self._file.read(size)


class _OnlyReadAll:
    """An object that can only be read in whole."""

    def __init__(self, file: IO[Any]) -> None:
        self._file = file

    def read(self) -> Any:
        return self._file.read()


def _pipe(path: Path, stack: ExitStack, mode: str) -> Any:
    reading, writing = os.pipe()
    thread = threading.Thread(target=_write_all, args=(os.fdopen(writing, "wb"), path.read_bytes()))
    thread.start()
    stack.callback(thread.join)
    return stack.enter_context(os.fdopen(reading, mode, encoding=None if mode == "rb" else "utf-8"))


def _write_all(file: IO[bytes], data: bytes) -> None:
    with file:
        file.write(data)


def _socket(path: Path, stack: ExitStack, mode: str) -> Any:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=_send_all, args=(theirs, path.read_bytes()))
    thread.start()
    stack.callback(thread.join)
    with ours:
        if mode == "rb":
            return stack.enter_context(ours.makefile("rb"))
        return stack.enter_context(ours.makefile("r", encoding="utf-8"))


def _send_all(theirs: socket.socket, data: bytes) -> None:
    with theirs:
        theirs.sendall(data)


def _compressed(path: Path, stack: ExitStack, compress: Callable[[bytes], bytes], decompressing: Any, mode: str) -> Any:
    packed = path.with_suffix(".packed")
    packed.write_bytes(compress(path.read_bytes()))
    return stack.enter_context(decompressing(packed, mode, **({} if mode == "rb" else {"encoding": "utf-8"})))


def _gzip_of_pipe(path: Path, stack: ExitStack) -> Any:
    packed = path.with_suffix(".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return stack.enter_context(gzip.open(_pipe(packed, stack, "rb")))


def _zip_member(path: Path, stack: ExitStack) -> Any:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(path, "a.txt")
    return stack.enter_context(stack.enter_context(zipfile.ZipFile(path.with_suffix(".zip"))).open("a.txt"))


def _tar_member(path: Path, stack: ExitStack) -> Any:
    with tarfile.open(path.with_suffix(".tar"), "w:gz") as packed:
        packed.add(path, "a.txt")
    return stack.enter_context(tarfile.open(path.with_suffix(".tar"))).extractfile("a.txt")


def _temporary(path: Path, stack: ExitStack, make: Callable[..., Any], mode: str) -> Any:
    file = stack.enter_context(make(mode=mode))
    file.write(path.read_bytes() if "b" in mode else path.read_text("utf-8"))
    file.seek(0)
    return file


def _mmap(path: Path, stack: ExitStack) -> Any:
    with path.open("rb") as file:
        return stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _opened(path: Path, stack: ExitStack, mode: str, **options: Any) -> Any:
    return stack.enter_context(path.open(mode, **options))


def _recoded(path: Path, stack: ExitStack, encoding: str) -> Any:
    other = path.with_suffix(f".{encoding}")
    other.write_bytes(path.read_text("utf-8").encode(encoding))
    return _opened(other, stack, "r", encoding=encoding)


def _with_windows_lines(path: Path, stack: ExitStack) -> Any:
    other = path.with_suffix(".crlf")
    other.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    return _opened(other, stack, "r", encoding="utf-8", newline="")


def _no_utf8(path: Path, stack: ExitStack) -> Any:
    other = path.with_suffix(".bytes")
    other.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    return _opened(other, stack, "r", encoding="utf-8", errors="surrogateescape")


BINARY: Final[dict[str, Make]] = {
    "rb": lambda path, stack: _opened(path, stack, "rb"),
    "rb unbuffered": lambda path, stack: _opened(path, stack, "rb", buffering=0),
    "r+b": lambda path, stack: _opened(path, stack, "r+b"),
    "r+b unbuffered": lambda path, stack: _opened(path, stack, "r+b", buffering=0),
    "subclass of BufferedReader": lambda path, stack: stack.enter_context(_Reader(io.FileIO(path))),
    "BytesIO": lambda path, _: io.BytesIO(path.read_bytes()),
    "subclass of BytesIO": lambda path, _: _Memory(path.read_bytes()),
    "NamedTemporaryFile": lambda path, stack: _temporary(path, stack, tempfile.NamedTemporaryFile, "w+b"),
    "TemporaryFile": lambda path, stack: _temporary(path, stack, tempfile.TemporaryFile, "w+b"),
    "SpooledTemporaryFile": lambda path, stack: _temporary(
        path, stack, partial(tempfile.SpooledTemporaryFile, 50_000), "w+b"
    ),
    "gzip": lambda path, stack: _compressed(path, stack, gzip.compress, gzip.open, "rb"),
    "gzip of a pipe": _gzip_of_pipe,
    "bz2": lambda path, stack: _compressed(path, stack, bz2.compress, bz2.open, "rb"),
    "lzma": lambda path, stack: _compressed(path, stack, lzma.compress, lzma.open, "rb"),
    "member of a zip file": _zip_member,
    "member of a tar file": _tar_member,
    "mmap": _mmap,
    "pipe": lambda path, stack: _pipe(path, stack, "rb"),
    "socket": lambda path, stack: _socket(path, stack, "rb"),
    "only read(size)": lambda path, stack: _OnlyRead(_opened(path, stack, "rb")),
    "only read()": lambda path, stack: _OnlyReadAll(_opened(path, stack, "rb")),
}
TEXT: Final[dict[str, Make]] = {
    "r": lambda path, stack: _opened(path, stack, "r", encoding="utf-8"),
    "latin-1": lambda path, stack: _recoded(path, stack, "latin-1"),
    "utf-16": lambda path, stack: _recoded(path, stack, "utf-16"),
    "utf-8-sig": lambda path, stack: _recoded(path, stack, "utf-8-sig"),
    "utf-7": lambda path, stack: _recoded(path, stack, "utf-7"),
    "Windows lines": _with_windows_lines,
    "no UTF-8": _no_utf8,
    "r+": lambda path, stack: _opened(path, stack, "r+", encoding="utf-8"),
    "TextIOWrapper": lambda path, _: io.TextIOWrapper(io.BytesIO(path.read_bytes()), "utf-8"),
    "subclass of TextIOWrapper": lambda path, stack: _Text(_opened(path, stack, "rb"), "utf-8"),
    "StringIO": lambda path, _: io.StringIO(path.read_text("utf-8")),
    "NamedTemporaryFile in text": lambda path, stack: _temporary(
        path, stack, partial(tempfile.NamedTemporaryFile, encoding="utf-8"), "w+"
    ),
    "TemporaryFile in text": lambda path, stack: _temporary(
        path, stack, partial(tempfile.TemporaryFile, encoding="utf-8"), "w+"
    ),
    "SpooledTemporaryFile in text": lambda path, stack: _temporary(
        path, stack, partial(tempfile.SpooledTemporaryFile, 50_000, encoding="utf-8"), "w+"
    ),
    "gzip in text": lambda path, stack: _compressed(path, stack, gzip.compress, gzip.open, "rt"),
    "codecs.open": lambda path, stack: stack.enter_context(codecs.open(str(path), encoding="latin-1")),  # noqa: SIM115
    "pipe in text": lambda path, stack: _pipe(path, stack, "r"),
    "socket in text": lambda path, stack: _socket(path, stack, "r"),
    "only read(size) of text": lambda path, stack: _OnlyRead(_opened(path, stack, "r", encoding="utf-8")),
    "only read() of text": lambda path, stack: _OnlyReadAll(_opened(path, stack, "r", encoding="utf-8")),
}


def _first_of(file: Any) -> None:
    for _ in file:
        break


READ: Final[dict[str, Callable[[Any], object]]] = {
    "nothing": lambda _: None,
    "some": lambda file: file.read(5),
    "a line": lambda file: file.readline(),
    "next": lambda file: next(iter(file)),
    "a loop": _first_of,
    "a row": lambda file: next(csv.reader(file)),
    "to the end": lambda file: file.read(),
}


def _reads(kind: str) -> list[str]:
    """Return what a program can have read of a kind of file."""
    if kind.startswith("only read()"):
        return ["nothing", "to the end"]
    if kind.startswith("only read(size)"):
        return ["nothing", "some"]
    if kind == "mmap":
        return ["nothing", "some", "a line", "to the end"]
    return [read for read in READ if read != "a row" or kind in TEXT]


def _bytes_of(text: bytes | str, file: Any) -> bytes:
    if isinstance(text, bytes):
        return text
    encoding, errors = getattr(file, "encoding", None) or "utf-8", getattr(file, "errors", None) or "strict"
    return text.encode(encoding, errors) if text else b""


@pytest.mark.parametrize(("upload", "kind"), spread([CLIENTS, [*BINARY, *TEXT]], 3), indirect=["upload"])
def test_what_is_stored(upload: Upload, tmp_path: Path, kind: str) -> None:
    """An upload stores what the program's next `read` would return, whatever it has read before."""
    for size in SIZES:
        path = tmp_path / f"{size}.txt"
        path.write_bytes("".join(f"line {number} é\n" for number in range(size)).encode())
        for read in _reads(kind):
            with ExitStack() as stack:
                file, same = ((BINARY | TEXT)[kind](path, stack) for _ in range(2))
                READ[read](file)
                READ[read](same)
                assert upload(file) == _bytes_of(
                    same.read(2**20) if isinstance(same, _OnlyRead) else same.read(), same
                ), (size, read)


UNTRUE: Final = ["/proc/self/cmdline", "/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"]


@pytest.mark.parametrize(
    ("upload", "path", "mode"), spread([CLIENTS, UNTRUE, ["rb", "rb unbuffered", "r"]], 3), indirect=["upload"]
)
def test_untrue_sizes(upload: Upload, path: str, mode: str) -> None:
    """A file of the system whose size is none, or untrue, is stored to its end."""
    if not Path(path).exists():
        pytest.skip(f"there is no {path} here")
    content = Path(path).read_bytes()
    for read in ["nothing", "some", "a line", "next", "to the end"]:
        with Path(path).open(mode.partition(" ")[0], buffering=0 if mode == "rb unbuffered" else -1) as file:
            READ[read](file)
            done = {"nothing": 0, "some": 5, "to the end": len(content)}.get(read, len(content.partition(b"\n")[0]) + 1)
            assert upload(file) == content[done:], read


def test_beyond_the_end(upload: Upload, tmp_path: Path) -> None:
    """Of a file positioned beyond its end nothing is stored, as its next `read` returns nothing."""
    (tmp_path / "a.txt").write_bytes(b"abc")
    with (tmp_path / "a.txt").open("rb") as file:
        for opened in (file, io.BytesIO(b"abc")):
            opened.seek(10)
            assert upload(opened) == b""


def test_a_named_pipe(upload: Upload, tmp_path: Path) -> None:
    """A named pipe is stored until it is closed."""
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(b"line\n" * 20_000))
    thread.start()
    with (tmp_path / "pipe").open("rb") as file:
        file.readline()
        assert upload(file) == b"line\n" * 19_999
    thread.join()


@pytest.mark.parametrize(
    ("read", "stored"), [("nothing", b"1\r\n2\r3\n"), ("a line", b"2\r3\n"), ("next", b"2\n3\n"), ("a row", b"2\n3\n")]
)
def test_line_ends(upload: Upload, tmp_path: Path, read: str, stored: bytes) -> None:
    """Of a text file the line ends are stored that it has; after `next` the ones that it reads."""
    (tmp_path / "a.txt").write_bytes(b"1\r\n2\r3\n")
    with (tmp_path / "a.txt").open() as file:
        READ[read](file)
        assert upload(file) == stored


def test_bytes_of_a_text_file(upload: Upload, tmp_path: Path) -> None:
    """Of a text file that isn't text, or a pipe, the bytes are stored as long as nothing is read."""
    data = bytes(range(256)) * 10
    (tmp_path / "a.bin").write_bytes(data)
    with ExitStack() as stack:
        assert upload(_opened(tmp_path / "a.bin", stack, "r", encoding="utf-8")) == data
        assert upload(_pipe(tmp_path / "a.bin", stack, "r")) == data


class _Gives:
    """An object whose `read` gives something else."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def read(self, size: int) -> Any:
        return self._data


def _looped(path: Path, stack: ExitStack) -> Any:
    path.write_bytes(b"line\n" * 5_000 + b"\xff")
    file = _opened(path, stack, "r", encoding="utf-8")
    next(file)
    return file


def _not_blocking(_: Path, stack: ExitStack) -> Any:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    stack.callback(os.close, writing)
    return stack.enter_context(os.fdopen(reading, "rb", buffering=0))


REFUSED: Final[dict[str, tuple[Make, str]]] = {
    "no text": (_looped, "is not utf-8 text; open it in binary mode"),
    "no bytes yet": (_not_blocking, "no bytes yet; upload it when all are there"),
    "numbers": (lambda _, __: _Gives(5), r"read\(\) gives int; give an object that reads bytes or text"),
    "no file": (lambda _, __: array.array("b", b"ab"), "upload takes bytes, text or an open file, not array"),
    "an iterator": (lambda _, __: iter([b"a"]), "upload takes bytes, text or an open file, not list_iterator"),
    "lone surrogate": (lambda _, __: _Gives("\ud800"), "The text can't be encoded as utf-8; pass bytes"),
    "only for writing": (lambda path, stack: _opened(path, stack, "wb"), "The file can't be read"),
    "a cut archive": (lambda path, stack: _cut(path, stack), r"The file can't be read \(EOFError\)"),
    "closed": (lambda path, _: _closed(path), "closed file"),
}


def _cut(path: Path, stack: ExitStack) -> Any:
    path.write_bytes(gzip.compress(os.urandom(10_000))[:-100])
    return stack.enter_context(gzip.open(path))


def _closed(path: Path) -> Any:
    path.touch()
    with path.open("rb") as file:
        return file


@pytest.mark.parametrize(("upload", "kind"), spread([CLIENTS, REFUSED], 3), indirect=["upload"])
def test_what_is_refused(upload: Upload, tmp_path: Path, kind: str) -> None:
    """What gives neither bytes nor text is refused with what to give, and nothing is stored."""
    make, message = REFUSED[kind]
    with ExitStack() as stack, pytest.raises((TypeError, ValueError), match=message):
        upload(make(tmp_path / "a.txt", stack))


@pytest.mark.parametrize("mode", ["rb", "r", "r+b", "r+"])
def test_large_files_are_not_held(tmp_path: Path, mode: str) -> None:
    """A large file on disk is never in memory as a whole: it is sent in pieces, or a copy on disk is."""
    with (tmp_path / "a.bin").open("wb") as file:
        file.truncate(2**25)
    with (tmp_path / "a.bin").open(mode) as opened:
        content, _, own = callback_client.open_media(opened, "a.bin", None, at_once=True)
    assert own is content
    assert own is not None
    with own:
        if "+" in mode:
            assert own._rolled  # type: ignore[attr-defined]
        else:
            assert isinstance(own, io.BufferedReader)
        assert callback_client.size_of(own) == 2**25


@pytest.mark.parametrize("mode", ["r+b", "r+"])
def test_a_file_that_is_changed_at_once(tmp_path: Path, mode: str) -> None:
    """A file that may be written may be changed as soon as the callback client's `upload` returns."""
    (tmp_path / "a.bin").write_bytes(b"line\n" * 5)
    with (tmp_path / "a.bin").open(mode) as file:
        file.readline()
        content, _, own = callback_client.open_media(file, "a.bin", None, at_once=True)
        file.seek(0)
        file.truncate()
    assert own is not None
    with own:
        assert b"".join(callback_client.pieces_of(content)) == b"line\n" * 4


def test_a_file_that_grows(tmp_path: Path) -> None:
    """Of a file that grows what it had at the call is sent, with this length."""
    (tmp_path / "a.log").write_bytes(b"line\n" * 5)
    with (tmp_path / "a.log").open("rb") as file, (tmp_path / "a.log").open("ab", buffering=0) as log:
        file.readline()
        content, content_type, own = callback_client.open_media(file, "a.log", None, at_once=True)
        assert isinstance(content, io.BufferedReader)
        log.write(b"more\n")
        form = callback_client.MultipartForm({}, "a.log", content_type, content)
        log.write(b"more\n")
        body = b"".join(form)
        content.seek(5)
        assert content.read() == b"line\n" * 4
    assert own is not None
    own.close()
    assert len(body) == form.len
    assert body.split(b"\r\n\r\n")[1].startswith(b"line\n" * 4 + b"\r\n--")


def test_a_pipe_is_streamed(tmp_path: Path) -> None:
    """The mapping reads a pipe while it sends it, not before."""
    (tmp_path / "a.bin").write_bytes(b"data")
    with ExitStack() as stack:
        pipe = _pipe(tmp_path / "a.bin", stack, "rb")
        content, _, own = media.open_media(pipe, "a.bin", None)
        assert own is None
        assert pipe.read() == b"data"
        assert b"".join(callback_client.pieces_of(content)) == b""


def test_a_temporary_file_is_not_copied() -> None:
    """The mapping sends a temporary file on disk without a copy."""
    with tempfile.NamedTemporaryFile() as file:
        assert media.open_media(file, "a.bin", None) == (file.file, "application/octet-stream", None)


def test_a_mapped_file_has_a_size(tmp_path: Path) -> None:
    """The mapping knows the size of a `mmap`, so that it can send it again."""
    (tmp_path / "a.bin").write_bytes(b"headbody")
    with ExitStack() as stack:
        mapped = _mmap(tmp_path / "a.bin", stack)
        mapped.read(4)
        content, _, own = media.open_media(mapped, "a.bin", None)
        assert own is not None
        with own:
            assert callback_client.size_of(content) == 4
