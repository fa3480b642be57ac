"""A media file of a gibibyte passes through a service that stays small, and what is cut off leaves nothing."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple, cast
from urllib.parse import urlsplit

import pytest

import cloudstore_mapping as cm
from benchmarks.serving import memory
from tests.service_fakes import PATIENCE, ManualClock

GIBIBYTE = 2**30
#: What the service may take in memory at its peak, in bytes, and what the client may take beside what it had.
MOST = 150 * 2**20
MOST_MORE = 32 * 2**20

_SERVE = """
import sys
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.web.server import run

service = Service(SQLiteStorage(sys.argv[1]))
key = service.accounts.create("owner")
run(service, port=0, on_ready=lambda address: print(address, key, flush=True))
"""


def until(condition: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait for what other processes and threads do; what never comes is an error."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline


class Server(NamedTuple):
    """A service in a process of its own."""

    pid: int
    address: str
    key: str
    file: Path

    @property
    def location(self) -> str:
        """Where `open` finds it."""
        return self.address.replace("://", f"://{self.key}@")

    def peak(self) -> int:
        """Return the most memory that the process ever had, in bytes."""
        return memory(self.pid, "VmHWM")

    def rows(self, table: str) -> int:
        """Return how many rows a table of the store has."""
        with closing(sqlite3.connect(self.file, timeout=30)) as connection:
            return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """Return the folder in which the service makes its temporary files."""
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture
def server(tmp_path: Path, spool: Path) -> Iterator[Server]:
    """Return a running service with an account."""
    file = tmp_path / "service.db"
    with subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(file)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(spool)},
    ) as process:
        try:
            assert process.stdout is not None
            address, key = process.stdout.readline().split()
            yield Server(process.pid, address, key, file)
        finally:
            process.terminate()


class Blocks(io.RawIOBase):
    """A file of `size` bytes that are never all there: each mebibyte is another one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._at = 0
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        """Whether it can be read: it can."""
        return True

    def seekable(self) -> bool:
        """Whether its size can be found out: it can."""
        return True

    def tell(self) -> int:
        """Return where it stands."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Stand somewhere else."""
        self._at = offset if whence == 0 else self._size
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # as RawIOBase hands it over
        """Fill the buffer with what comes next."""
        size = min(len(buffer), self._size - self._at, 2**16)
        block = (self._at // 2**20).to_bytes(8, "big") * (size // 8 + 1)
        buffer[:size] = block[:size]
        self.digest.update(block[:size])
        self._at += size
        return size


class Digest(io.RawIOBase):
    """A file that keeps no more of what is written than its size and SHA-256."""

    def __init__(self) -> None:
        super().__init__()
        self.digest = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        """Whether it can be written: it can."""
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # of bytes, as a download has them
        """Take the next bytes."""
        self.digest.update(data)
        self.size += len(data)
        return len(data)


@pytest.mark.slow
def test_a_gibibyte_there_and_back(server: Server) -> None:
    """It comes back equal, both sides' memory stays small, and what is deleted is swept away."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets this process's peak
    before = memory(os.getpid(), "VmRSS")
    with cm.open(server.location) as store:
        source, target = Blocks(GIBIBYTE), Digest()
        media = store.upload(cast("IO[bytes]", source), "large.bin")
        assert media.size == GIBIBYTE
        store.download(media, cast("IO[bytes]", target))
        assert (target.size, target.digest.digest()) == (GIBIBYTE, source.digest.digest())
        assert server.peak() < MOST
        assert memory(os.getpid(), "VmHWM") - before < MOST_MORE
        store.upload(b"small", "large.bin")
        until(lambda: server.rows("blobs") == 1, 10 * PATIENCE)  # a gibibyte is swept
        assert server.rows("chunks") == 1
    assert server.peak() < MOST


@contextmanager
def sending(server: Server, announced: int, sent: bytes) -> Iterator[socket.socket]:
    """An upload on a socket, of which so much has been sent as this."""
    where = urlsplit(server.address)
    head = (
        f"--b\r\nContent-Disposition: form-data; name=key\r\n\r\n{server.key}\r\n--b\r\n"
        'Content-Disposition: form-data; name=file; filename="cut.bin"\r\nContent-Type: a/b\r\n\r\n'
    ).encode()
    with socket.create_connection((where.hostname or "", where.port or 0)) as connection:
        connection.sendall(
            f"POST {where.path}/upload-2 HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            f"Content-Length: {announced}\r\n\r\n".encode()
        )
        connection.sendall(head + sent)
        yield connection


def test_an_upload_that_is_cut_off_leaves_nothing(server: Server) -> None:
    """After a connection that ends in the middle of a file there is neither file nor blob nor chunk."""
    with sending(server, 2**30, bytes(3 * 2**20)):
        until(lambda: server.rows("chunks") > 0)
    until(lambda: server.rows("blobs") == 0)
    assert [server.rows(table) for table in ("chunks", "media", "blobs")] == [0, 0, 0]


def test_a_server_that_ends_in_an_upload_leaves_nothing_for_long(server: Server) -> None:
    """What a killed service had of an upload is swept by the next one once nobody can be sending it any more."""
    from cloudstore_mapping.service.media import ABANDONED_AFTER
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.storage.sqlite import SQLiteStorage

    with sending(server, 2**30, bytes(3 * 2**20)):
        until(lambda: server.rows("chunks") > 0)
        os.kill(server.pid, signal.SIGKILL)
    clock = ManualClock()
    for later, left in ((0.0, 1), (ABANDONED_AFTER + 60, 0)):
        with closing(sqlite3.connect(server.file)) as connection:
            (touched,) = connection.execute("SELECT touched_at FROM blobs").fetchone()
        clock.seconds = touched + later
        with Service(SQLiteStorage(server.file), clock=clock):
            until(lambda: server.rows("blobs") == left)  # noqa: B023 - it is called at once
    assert server.rows("chunks") == 0


def spooled(pid: int) -> int:
    """Return the bytes in the files without a name that a process has open."""
    sizes = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            if "(deleted)" in str(link.readlink()):
                sizes.append(link.stat().st_size)
    return sum(sizes)


@contextmanager
def sending_file_first(server: Server, size: int, after: bytes) -> Iterator[socket.socket]:
    """A form on a socket whose file of zeros has been sent, without what comes `after` it."""
    where = urlsplit(server.address)
    head = b'--b\r\nContent-Disposition: form-data; name=file; filename="first.bin"\r\nContent-Type: a/b\r\n\r\n'
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=PATIENCE) as connection:
        connection.sendall(
            f"POST {where.path}/upload-2 HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            f"Content-Length: {len(head) + size + len(after)}\r\n\r\n".encode()
        )
        connection.sendall(head)
        piece = bytes(2**20)
        for _ in range(size // len(piece)):
            connection.sendall(piece)
        yield connection


@pytest.mark.parametrize("spooled_bytes", [40 * 2**20, pytest.param(200 * 2**20, marks=pytest.mark.slow)])
def test_a_large_file_before_its_key(server: Server, spool: Path, spooled_bytes: int) -> None:
    """A large file whose key comes after it is stored, the service's memory stays small, and nothing is left."""
    after = f"\r\n--b\r\nContent-Disposition: form-data; name=key\r\n\r\n{server.key}\r\n--b--\r\n".encode()
    with sending_file_first(server, spooled_bytes, after) as connection:
        until(lambda: spooled(server.pid) > spooled_bytes - 2**20)
        assert list(spool.iterdir()) == []
        assert server.rows("blobs") == 0
        connection.sendall(after)
        reply = connection.recv(2**16)
        while not reply.endswith(b"}"):  # head and body may come apart
            piece = connection.recv(2**16)
            assert piece, reply
            reply += piece
    assert f'"size":{spooled_bytes}'.encode() in reply
    assert server.rows("chunks") == spooled_bytes // 2**19
    until(lambda: spooled(server.pid) == 0)
    assert server.peak() < MOST


@pytest.mark.parametrize("ends_by", ["hanging up", "a kill"])
def test_a_spooled_file_leaves_nothing(server: Server, spool: Path, ends_by: str) -> None:
    """A file whose key never comes is gone when its client hangs up, or the service is killed."""
    with sending_file_first(server, 8 * 2**20, b"\r\n--b--\r\n"):
        until(lambda: spooled(server.pid) > 4 * 2**20)
        if ends_by == "a kill":
            os.kill(server.pid, signal.SIGKILL)
    until(lambda: ends_by == "a kill" or spooled(server.pid) == 0)
    assert list(spool.iterdir()) == []
    assert server.rows("blobs") == 0
