"""Servers as processes of their own, on their own core."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import SERVER_CORE, MissingError, on_core

_PATIENCE: Final = 30.0


@contextmanager
def process(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command on the servers' core while the block runs; it is ended by a signal."""
    with on_core(SERVER_CORE):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, **options}
        started = subprocess.Popen(command, text=True, **options)
    with started:
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.communicate(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                started.kill()


def first_line(started: subprocess.Popen[str]) -> str:
    """Return the first line that a process prints."""
    assert started.stdout is not None
    line = started.stdout.readline()
    if not line:
        raise RuntimeError(f"{started.args!r} ended before it answered.")
    return line.strip()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def wait_for_port(port: int) -> None:
    """Return once somebody listens on the port."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise MissingError(f"Nobody answered on port {port} in {_PATIENCE:g} seconds.") from None
            time.sleep(0.05)
        else:
            return


def memory(pid: int, field: str) -> int:
    """Return how much memory a process has (``VmRSS``) or had at most (``VmHWM``), in bytes."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])


@dataclass(frozen=True)
class Service:
    """A service of ours that runs: its address, an API key, and its process."""

    address: str
    api_key: str
    pid: int

    @property
    def location(self) -> str:
        """What `cloudstore_mapping.open` opens."""
        return self.address.replace("://", f"://{self.api_key}@")

    def peak_bytes(self) -> int:
        """Return the most memory that the process has had."""
        return memory(self.pid, "VmHWM")


@contextmanager
def cloudstore(
    store: Path | str,
    *options: str,
    api_key: str = "",
    module: str = "cloudstore_mapping",
    env: Mapping[str, str] | None = None,
) -> Iterator[Service]:
    """Run `cloudstore serve` on a store, whose API key is `api_key` unless it is new."""
    command = [sys.executable, "-m", module, "serve", "--store", str(store), "--port", "0", "--json", *options]
    with process(command, env=env) as started:
        facts = json.loads(first_line(started))
        yield Service(facts["address"], facts["api_key"] or api_key, started.pid)


@contextmanager
def echo() -> Iterator[str]:
    """Run the server that only echoes; the block gets its address."""
    with process([sys.executable, "-m", "benchmarks.echo"]) as started:
        yield first_line(started)
