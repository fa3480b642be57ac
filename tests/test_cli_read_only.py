"""`serve` says at its start that it can't write to its store, instead of refusing every save later."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from tests.crash.small_disk import small_disk
from tests.permissions import crashed, heed_permissions
from tests.service_fakes import PATIENCE
from tests.support.matrix import spread


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


@contextmanager
def read_only_disk(folder: Path, make: Callable[[Path], Path]) -> Iterator[Path]:
    """Yield a store on a file system that takes no writes any more, as a snapshot is."""
    with small_disk(folder, 2**22) as disk:
        store = make(disk / "store.db")
        with cm.open(store) as opened:
            opened["key"] = "value"
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        yield store


def said(*arguments: str) -> tuple[int, str, str]:
    """Run a command where permissions hold; return its exit status and what it prints."""
    run = subprocess.run(
        [sys.executable, "-m", "cloudstore_mapping", *arguments],
        preexec_fn=heed_permissions,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    return run.returncode, run.stdout, run.stderr


def readers(store: Path, folder: Path) -> list[list[str]]:
    """Return all commands that only read a store."""
    at, kept = ["--at", str(store)], ["--store", str(store)]
    return [
        ["ls", *at],
        ["get", "key", *at],
        ["stat", "key", *at],
        ["export", str(folder / "all.json"), *at],
        ["import", str(store), "--at", str(folder / "other.db")],
        ["download", "/files/x/y.txt", *at],
        ["account", "list", *kept],
        ["account", "show", "local", *kept],
        ["backup", str(folder / "copy.db"), *kept],
        ["check", *kept],
        ["migrate", "--dry-run", *kept],
        ["restore", str(store), "--store", str(folder / "restored.db")],
        ["migrate-store", str(store), str(folder / "moved.db")],
    ]


#: Which commands are tried together: by default each place has a share of them.
SHARES = {f"{number} of 4": slice(number - 1, None, 4) for number in range(1, 5)}


@pytest.mark.parametrize(("share", "on"), spread([SHARES, ["disk", "folder"]], 4))
def test_reading_a_read_only_store(tmp_path: Path, on: str, share: str) -> None:
    """What only reads a store that nobody can write beside is one line with the reason and the way to a copy."""
    (tmp_path / "folder").mkdir()
    with ExitStack() as stack:
        if on == "disk":
            store = stack.enter_context(read_only_disk(tmp_path / "disk", closed))
        else:
            store = closed(tmp_path / "folder" / "store.db")
            with cm.open(store) as opened:
                opened["key"] = "value"
            store.parent.chmod(0o555)
            stack.callback(store.parent.chmod, 0o755)
        reason = "on a read-only file system" if on == "disk" else "in a read-only folder"
        remedy = (
            "Copy it, with its -wal file if there is one, to a folder that can be written to, and use the copy."
            if on == "disk"
            else "Look at the folder's permissions."
        )
        for command in readers(store, tmp_path)[SHARES[share]]:
            assert said(*command) == (
                2,
                "",
                f"cloudstore: {store} can't be opened {reason}, for SQLite writes beside it even to read. {remedy}\n",
            ), command
        if on == "disk":
            copy = tmp_path / "copied"
            shutil.copytree(store.parent, copy)
            assert said("get", "key", "--at", str(copy / store.name))[:2] == (0, '"value"\n')


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
        f"cloudstore: No file can be made in {folder}; check its permissions, or name another folder.\n"
    )
    assert not list(folder.iterdir())


def test_a_new_store_on_a_read_only_disk(tmp_path: Path) -> None:
    """A store that can't be made on a read-only file system is one line with that reason."""
    with read_only_disk(tmp_path / "disk", closed) as store:
        new = store.with_name("new.db")
        assert said("set", "key", "1", "--at", str(new)) == (
            2,
            "",
            f"cloudstore: {new} can't be made on a read-only file system; choose another folder.\n",
        )
