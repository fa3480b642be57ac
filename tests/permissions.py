"""Programs that file permissions hold for, also where the tests run as root; and the store that one left behind."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Final

_PR_CAPBSET_DROP: Final = 24
_CAP_DAC_OVERRIDE: Final = 1


def heed_permissions() -> None:
    """Take root's leave to write to read-only files from the program to be started: for `subprocess`'s `preexec_fn`."""
    ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0)  # who isn't root has none to lose


_CRASH = """
import os, sys
from pathlib import Path
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage

storage = SQLiteStorage(Path(sys.argv[1]))
storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result()
os._exit(0)
"""


def crashed(path: Path) -> Path:
    """Make a store at a path, with an account "owner", in a process that ends without closing it."""
    subprocess.run([sys.executable, "-c", _CRASH, path], check=True)
    assert path.with_name(f"{path.name}-wal").stat().st_size > 0
    return path
