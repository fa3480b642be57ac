"""Nodes: processes of `cloudstore serve` on one store, each on a port of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

COMMAND = (sys.executable, "-m", "cloudstore_mapping", "serve")
#: Seconds that a node may take to end; a service has 10 for those that it accepted.
PATIENCE = 30.0


class Node:
    """A process of `cloudstore serve`, whose log goes to a file."""

    def __init__(self, store: str, log: Path, *arguments: str) -> None:
        self.log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [*COMMAND, "--port", "0", "--json", "--store", store, *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert self._process.stdout is not None
        told = self._process.stdout.readline()
        if not told:
            self.end()
            raise RuntimeError(log.read_text())
        facts = json.loads(told)
        self.address: str = facts["address"]
        #: The key of the account that the first node on an empty store makes, None of the others.
        self.api_key: str | None = facts["api_key"]

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
    """Run so many nodes on a store, the first of which makes it ours; in the end none of them is left."""
    with ExitStack() as stack:
        running: list[Node] = []
        for number in range(count):
            node = Node(store, folder / f"node-{number + 1}.log")
            stack.callback(node.end)
            running.append(node)
        yield running
