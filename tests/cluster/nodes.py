"""Nodes: processes of `cloudstore serve` on one store, each on a port of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

#: Seconds that a node may take to end; a service has 10 for those that it accepted.
PATIENCE = 30.0


class Node:
    """
    A process of `cloudstore serve` on a port, 0 meaning any, whose log goes to a file.

    Attributes
    ----------
    address
        Where it answers.
    api_key
        The key of the account that one node makes on an empty store, None of the others.
    """

    def __init__(self, store: str, log: Path, port: int = 0) -> None:
        self.address = ""
        self.api_key: str | None = None
        self._log = log
        command = [sys.executable, "-m", "cloudstore_mapping", "serve", "--json", "--store", store]
        command += ["--port", str(port)]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)

    def wait(self) -> None:
        """Wait until it answers."""
        assert self._process.stdout is not None
        told = self._process.stdout.readline()
        if not told:
            raise RuntimeError(self._log.read_text())
        facts = json.loads(told)
        self.address, self.api_key = facts["address"], facts["api_key"]

    @property
    def listens_at(self) -> str:
        """Its host and port."""
        return urlsplit(self.address).netloc

    def location(self, api_key: str) -> str:
        """Return what a program opens."""
        return self.address.replace("://", f"://{api_key}@")

    def end(self, with_signal: signal.Signals = signal.SIGTERM) -> int:
        """End it, and return its exit status."""
        self._process.send_signal(with_signal)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        self._process.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return self._process.wait()


@contextmanager
def nodes(store: str, count: int, folder: Path) -> Iterator[list[Node]]:
    """Run so many nodes on a store, started at once; in the end none of them is left."""
    with ExitStack() as stack:
        running: list[Node] = []
        for number in range(count):
            running.append(Node(store, folder / f"node-{number + 1}.log"))
            stack.callback(running[-1].end)
        for node in running:
            node.wait()
        yield running


def first_key(running: Sequence[Node]) -> str:
    """Return the key of the account that one of them made."""
    (key,) = (node.api_key for node in running if node.api_key is not None)
    return key
