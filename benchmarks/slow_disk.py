"""A disk that takes its time to sync, as one does that loses nothing when the power fails: for a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from benchmarks.harness import MissingError

#: Microseconds that each sync takes longer.
PAUSE: Final = 1000

_SOURCE: Final = f"""
#include <sys/syscall.h>
#include <unistd.h>

int fdatasync(int file) {{ usleep({PAUSE}); return syscall(SYS_fdatasync, file); }}
int fsync(int file) {{ usleep({PAUSE}); return syscall(SYS_fsync, file); }}
"""


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process for which all disks are slow; `MissingError` without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise MissingError("There is no C compiler `cc`, which makes what holds up each sync.")
    source, library = folder / "slow_disk.c", folder / "slow_disk.so"
    source.write_text(_SOURCE, "ascii")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}
