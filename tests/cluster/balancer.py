"""The load balancer of `docs/scaling.md`, haproxy with the page's own configuration, on loopback."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import requests

from tests.cluster.page import block, replaced
from tests.postgres_server import PATIENCE

#: What a run without it says.
MISSING = "needs Debian's haproxy: apt-get install haproxy"


def haproxy() -> str | None:
    """Return the path of the program, which Debian keeps where not everybody looks; None where it isn't there."""
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")


def configuration(bind: str, nodes: Sequence[str]) -> str:
    """Return the page's configuration for these addresses."""
    addresses = {f"10.0.0.1{number}:8787": node for number, node in enumerate(nodes, 1)}
    return replaced(block("haproxy", "frontend"), {":443 ssl crt /etc/haproxy/cloud.pem": bind, **addresses})


@contextmanager
def balanced(nodes: Sequence[str], folder: Path) -> Iterator[str]:
    """Run a load balancer before nodes, and return the host and port where it listens."""
    program = haproxy()
    assert program is not None
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener, (folder / "haproxy.log").open("ab") as log:
        host, port = listener.getsockname()
        file = folder / "haproxy.cfg"
        file.write_text(configuration(f"fd@{listener.fileno()}", nodes))
        process = subprocess.Popen([program, "-db", "-f", file], stdout=log, stderr=log, pass_fds=[listener.fileno()])
        try:
            address = f"{host}:{port}"
            _wait(process, f"http://{address}/cloudstore/health", folder / "haproxy.log")
            yield address
        finally:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until it passes on what it is asked."""
    end = time.monotonic() + PATIENCE
    while True:
        with suppress(requests.RequestException):
            if requests.get(url, timeout=1).ok:
                return
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(log.read_text())
        time.sleep(0.02)
