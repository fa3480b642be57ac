"""`python -m benchmarks.strangers`: memory and disk that strangers take, and how others save meanwhile."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import urlsplit

import requests

from benchmarks.services import add_engine, store_on
from benchmarks.serving import Service, cloudstore, memory, process
from cloudstore_mapping.web.connections import raise_file_limit

MEBIBYTE: Final = 2**20
#: What the service promises of its memory while all attacks go on together.
MOST_MEMORY: Final = 300 * MEBIBYTE
_WRONG: Final = "w" * 32
_HEAD: Final = "POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"

#: What attackers speak TLS with: they trust anybody.
_CLIENT: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_CLIENT.check_hostname = False
_CLIENT.verify_mode = ssl.CERT_NONE


@dataclass(frozen=True)
class Target:
    """A service to attack: where it is, and whether it speaks TLS."""

    host: str
    port: int
    base: str
    is_tls: bool
    size: int

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection whose replies nobody reads."""
        return await asyncio.open_connection(self.host, self.port, ssl=_CLIENT if self.is_tls else None, limit=2**10)

    def head(self, path: str, length: int, kind: str = "application/json") -> bytes:
        """Return the headers of a request with a body of this length."""
        return _HEAD.format(path=self.base + path, kind=kind, length=length).encode()


async def _slow_headers(target: Target, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(target.head("/store/save", 10)[:-2])
    while True:
        await asyncio.sleep(1)
        writer.write(b"X: x\r\n")
        await writer.drain()


async def _slow_bodies(target: Target, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    beginning = json.dumps({"key": _WRONG, "file": "name", "value": ""}).encode()[:-2]
    writer.write(target.head("/store/save", target.size) + beginning)
    await _pour(writer, target.size - len(beginning) - 1)
    await asyncio.sleep(3600)


async def _files_before_keys(target: Target, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
    writer.write(target.head("/upload-2", 2 * target.size, "multipart/form-data; boundary=b") + head)
    await _pour(writer, target.size)
    while True:
        await asyncio.sleep(1)
        writer.write(b"x" * 2048)
        await writer.drain()


async def _requests_ahead(target: Target, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    body = json.dumps({"key": _WRONG, "file": "name", "value": 1}).encode()
    many = (target.head("/store/save", len(body)) + body) * 200
    while True:
        writer.write(many)
        await writer.drain()


async def _unread_replies(target: Target, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(f"GET {target.base}/openapi.json HTTP/1.1\r\nHost: test\r\n\r\n".encode() * 2000)
    await writer.drain()
    await asyncio.sleep(3600)


async def _pour(writer: asyncio.StreamWriter, size: int) -> None:
    piece = b"x" * 2**16
    while size > 0:
        writer.write(piece[: min(size, len(piece))])
        size -= len(piece)
        await writer.drain()


async def _half_handshakes(target: Target) -> None:
    coming = ssl.MemoryBIO()
    hello = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        _CLIENT.wrap_bio(coming, hello, server_hostname="test").do_handshake()
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(hello.read())
        await writer.drain()
        while await reader.read(2**16):
            pass
    finally:
        writer.close()


Attack = Callable[[Target, asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]

ATTACKS: Final[Mapping[str, Attack]] = {
    "slow headers": _slow_headers,
    "slow bodies": _slow_bodies,
    "files before keys": _files_before_keys,
    "requests ahead": _requests_ahead,
    "unread replies": _unread_replies,
}
HANDSHAKES: Final = "half handshakes"


async def _attack(target: Target, names: Sequence[str], connections: int) -> None:
    """Hold so many connections of each kind, and open another for each that ends."""

    async def go_on(name: str) -> None:
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                if name == HANDSHAKES:
                    await _half_handshakes(target)
                else:
                    reader, writer = await target.connect()
                    try:
                        await ATTACKS[name](target, reader, writer)
                    finally:
                        writer.transport.abort()
            await asyncio.sleep(0.5)

    await asyncio.gather(*(go_on(name) for name in names for _ in range(connections)))


@contextmanager
def attacking(service: Service, names: Sequence[str], connections: int, size: int) -> Iterator[None]:
    """Attack a service while the block runs, by a process for each kind."""
    with ExitStack() as stack:
        for name in names:
            command = [sys.executable, "-m", "benchmarks.strangers", "--attack", name]
            command += ["--address", service.address, "--connections", str(connections), "--size", str(size)]
            stack.enter_context(process(command))
        yield


@dataclass
class Seen:
    """What an attack took from the service, and what became of another client's saves."""

    name: str
    memory: int = 0
    pss: int = 0
    disk: int = 0
    connections: int = 0
    seconds: list[float] = field(default_factory=list)
    refused: int = 0

    def line(self) -> str:
        """Return the table's line."""
        median = statistics.median(self.seconds) * 1000 if self.seconds else float("nan")
        longest = max(self.seconds, default=float("nan")) * 1000
        figures = f"{self.memory / MEBIBYTE:,.0f} | {self.pss / MEBIBYTE:,.0f} | {self.disk / MEBIBYTE:,.0f}"
        saves = f"{len(self.seconds):,} | {median:,.1f} | {longest:,.0f} | {self.refused}"
        return f"| {self.name} | {self.connections:,} | {figures} | {saves} |"


HEADER: Final = (
    "| attack | connections | most memory (MiB) | PSS at its end (MiB) | temporary files (MiB)"
    " | saves meanwhile | median (ms) | longest (ms) | refused |\n|---|---|---|---|---|---|---|---|---|"
)


def watch(service: Service, name: str, seconds: float, verify: str | bool = True) -> Seen:
    """Save as another client for some seconds, and look at what the service takes."""
    seen = Seen(name)
    headers = {"Content-Type": "application/json"}
    with requests.Session() as session:
        end = time.monotonic() + seconds
        number = 0
        while time.monotonic() < end:
            number += 1
            body = json.dumps({"key": service.api_key, "file": f"name{number % 50}", "value": {"Apples": number}})
            began = time.perf_counter()
            try:
                answer = session.post(f"{service.address}/store/save", body, headers=headers, timeout=60, verify=verify)
                if answer.status_code == 200 and answer.json()["error"] is None:
                    seen.seconds.append(time.perf_counter() - began)
                else:
                    seen.refused += 1
            except requests.RequestException:
                seen.refused += 1
            if number % 10 == 0:
                seen.memory = max(seen.memory, memory(service.pid, "VmRSS"))
                seen.disk = max(seen.disk, temporary_bytes(service.pid))
                seen.connections = max(seen.connections, open_sockets(service.pid))
            time.sleep(0.01)
    seen.memory = max(seen.memory, memory(service.pid, "VmRSS"))
    seen.pss = pss(service.pid)
    return seen


def pss(pid: int) -> int:
    """Return a process's memory, with its share of what it has in common with others, in bytes."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    return 1024 * int(text.partition("\nPss:")[2].split()[0])


def temporary_bytes(pid: int) -> int:
    """Return how much a process's temporary files take, which have no names."""
    total = 0
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if "(deleted)" in str(each.readlink()):
                total += each.stat().st_blocks * 512
    return total


def open_sockets(pid: int) -> int:
    """Return how many sockets a process has open."""
    count = 0
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            count += str(each.readlink()).startswith("socket:")
    return count


def certificate(folder: Path) -> list[str]:
    """Make a certificate for this machine; return the options of `serve` that name it."""
    program = shutil.which("openssl")
    if program is None:
        raise SystemExit("Certificates are made by the program openssl; install it.")
    command = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return ["--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")]


def measure(
    folder: Path,
    names: Sequence[str],
    connections: int,
    size: int,
    seconds: float,
    settings: Mapping[str, str],
    *,
    is_tls: bool = False,
    engine: str = "sqlite",
) -> Seen:
    """Start a service, attack it by all these ways together, and return what was seen."""
    folder.mkdir(exist_ok=True)
    options = certificate(folder) if is_tls else []
    env = {**os.environ, **{f"CLOUDSTORE_SERVICE_{name.upper()}": value for name, value in settings.items()}}
    with store_on(engine, folder) as store, cloudstore(store, *options, env=env) as service:
        verify: str | bool = str(folder / "cert.pem") if is_tls else True
        watch(service, "", 0.5, verify)  # so that the client is known, as one is that saved before
        with attacking(service, names, connections, size):
            label = " + ".join(names) if len(names) < 3 else f"all {len(names)} together"
            return watch(service, f"{label}{' over TLS' if is_tls else ''}", seconds, verify)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strangers", description=__doc__)
    parser.add_argument("--connections", type=int, default=500, help="connections of each attack")
    parser.add_argument("--seconds", type=float, default=45.0, help="how long each attack goes on")
    parser.add_argument("--size", type=int, default=17 * MEBIBYTE, help="bytes of a body or file")
    parser.add_argument("--spool", default="256 MiB", help="the setting max_spool_bytes")
    parser.add_argument("--only", action="append", help="only this attack, or 'all' or 'all over TLS'")
    add_engine(parser)
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    raise_file_limit()
    if options.attack:
        where = urlsplit(options.address)
        target = Target(where.hostname or "", where.port or 0, where.path, where.scheme == "https", options.size)
        asyncio.run(_attack(target, [options.attack], options.connections))
        return
    settings = {"max_spool_bytes": options.spool, "max_address_spool_bytes": options.spool}
    kinds: dict[str, tuple[list[str], bool]] = {name: ([name], False) for name in ATTACKS}
    kinds |= {f"{name} over TLS": ([name], True) for name in (*ATTACKS, HANDSHAKES)}
    kinds |= {"all": (list(ATTACKS), False), "all over TLS": ([*ATTACKS, HANDSHAKES], True)}
    print(HEADER)
    for name, (attacks, is_tls) in kinds.items():
        if options.only and name not in options.only:
            continue
        with TemporaryDirectory(prefix="cloudstore-strangers-") as folder:
            seen = measure(
                Path(folder),
                attacks,
                options.connections,
                options.size,
                options.seconds,
                settings,
                is_tls=is_tls,
                engine=options.engine,
            )
        print(seen.line(), flush=True)


if __name__ == "__main__":
    main()
