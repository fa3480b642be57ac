"""`serve` says at its start that it can't write to its store, instead of refusing every save later."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from tests.permissions import crashed, heed_permissions
from tests.service_fakes import PATIENCE


def closed(path: Path) -> Path:
    """Make a store at a path, and close it."""
    SQLiteStorage(path).close()
    return path


#: How a store was left, what of it is read-only, and what is said of it.
CASES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Path], str]] = {
    "file": (closed, lambda path: path, "can't be written to; look at the permissions of it"),
    "file, after a crash": (crashed, lambda path: path, "can't be written to; look at the permissions of it"),
    "log": (crashed, lambda path: path.with_name("store.db-wal"), "can't be written to; look at the permissions of it"),
    "index": (crashed, lambda path: path.with_name("store.db-shm"), "look at"),
    "folder": (closed, lambda path: path.parent, "can't be opened"),
}


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_a_read_only_store(tmp_path: Path, case: str, workers: str) -> None:
    """A store that is read-only, or its log or folder, is exit status 2 and one line that names it."""
    make, of, sentence = CASES[case]
    (tmp_path / "folder").mkdir()
    path = make(tmp_path / "folder" / "store.db")
    read_only = of(path)
    before = read_only.stat().st_mode
    read_only.chmod(0o555 if read_only.is_dir() else 0o444)
    run = subprocess.run(
        [sys.executable, "-m", "cloudstore_mapping", "serve", "--port", "0", "--workers", workers, "--store", path],
        preexec_fn=heed_permissions,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    read_only.chmod(before)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert str(path) in run.stderr
    assert sentence in run.stderr


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_a_copy_into_a_read_only_folder(tmp_path: Path, command: str) -> None:
    """A backup, or a restored store, in a folder nobody may write to is exit status 2 and one line that names it."""
    store = closed(tmp_path / "store.db")
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o555)
    target = folder / "copy.db"
    source, place = (store, target) if command == "restore" else (target, store)
    arguments = [str(source), "--store", str(place)]
    run = subprocess.run(
        [sys.executable, "-m", "cloudstore_mapping", command, *arguments],
        preexec_fn=heed_permissions,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    folder.chmod(0o755)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == (
        f"cloudstore: No file can be made in {folder}; look at its permissions, or name another folder.\n"
    )
    assert not list(folder.iterdir())
