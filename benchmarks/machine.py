"""On what a run was made: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Final

_PACKAGES: Final = (
    *("requests", "urllib3", "msgspec", "cachetools", "uvicorn", "uvloop", "httptools"),
    *("diskcache", "sqlitedict", "redis-dict", "kinto"),
)
_PROGRAMS: Final = {"redis-server": "--version", "etcd": "--version"}


def facts() -> dict[str, str]:
    """Return what is known, by what it is."""
    found = {
        "commit": commit(),
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "a sync of its disk": f"{1e6 * _sync_seconds():.0f} µs",
        "load when it began": f"{os.getloadavg()[0]:.1f}",
    }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    for program, option in _PROGRAMS.items():
        if path := shutil.which(program):
            said = subprocess.run([path, option], check=False, capture_output=True, text=True).stdout
            found[program] = said.partition("\n")[0].strip()
    return found


def commit() -> str:
    """Return the commit that was measured, marked where files differ from it."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        check=False,
        capture_output=True,
        text=True,
    )
    return said.stdout.strip() or "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _sync_seconds(times: int = 200) -> float:
    """Return how long this machine's disk takes to sync 4 KiB, the median of so many."""
    seconds = []
    with tempfile.TemporaryFile() as file:
        for number in range(times):
            file.write(number.to_bytes(2, "big") * 2048)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
