"""How long a program waits for an import, and for its first store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from benchmarks.harness import Comparison, Run, Side, compare, timed

_PROGRAMS: Final = {
    "`import cloudstore_mapping`": "import cloudstore_mapping",
    "`import cloudstore_mapping`, `open('memory:')`": "import cloudstore_mapping; cloudstore_mapping.open('memory:')",
    "`import requests`": "import requests",
    "`import sqlite3, shelve`": "import sqlite3, shelve",
    "Python alone": "",
}


def of_programs(run: Run) -> Iterator[Comparison]:
    """Measure programs that do nothing else, Python's own start included."""
    yield compare(
        run,
        "A whole program, from its start to its end",
        [
            Side(name, timed(lambda _, program=program: _run(program), run.times(5)))  # type: ignore[misc]  # a default
            for name, program in _PROGRAMS.items()
        ],
    )


def _run(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True)


ALL = (of_programs,)
