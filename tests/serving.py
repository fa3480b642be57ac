"""`cloudstore serve` as a process of its own, for tests of what a user starts; and what a process takes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def serving(
    *arguments: str, ends_by: signal.Signals = signal.SIGTERM, log: list[str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """
    Run `cloudstore serve` on a free port, and end it by a signal: cleanly, and silently but for its `log`.

    A kill is an end without words.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "cloudstore_mapping", "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(ends_by)
            _, errors = process.communicate()
    if ends_by == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        return
    assert process.returncode == 0
    if log is None:
        assert errors == ""
    else:
        log.extend(errors.splitlines())


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    """Return the next lines that a process prints."""
    assert process.stdout is not None
    return [process.stdout.readline().rstrip("\n") for _ in range(count)]


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what `serve --json` prints."""
    facts: dict[str, Any] = json.loads(lines(process, 1)[0])
    return facts
