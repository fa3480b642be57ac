"""Drafts of killed runs are removed by the next run to the same target, and those of live ones are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import drafts
from cloudstore_mapping.client.media import DownloadFile
from cloudstore_mapping.drafts import Draft, draft_of
from cloudstore_mapping.service.storage.maintenance import restore_file
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.transfer import export_store
from cloudstore_mapping.transfer.replacing import Replacement

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks that tell whether a process is alive are POSIX's")

KILL = """
import os, signal, sys
from pathlib import Path
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
target = Path(sys.argv[1])
"""
COMMANDS = {
    "backup": "from cloudstore_mapping.service.storage.sqlite import SQLiteStorage\n"
    "SQLiteStorage(target.with_name('s.db')).back_up(target, die)",
    "restore": "from cloudstore_mapping.service.storage.maintenance import restore_file\n"
    "restore_file(target.with_name('b.db'), target, die)",
    "download": "from cloudstore_mapping.client.media import DownloadFile\n"
    "with DownloadFile(target, overwrite=True) as file: file.write(b'half'); file.flush(); die()",
    "download to a folder": "from cloudstore_mapping.client.media import DownloadFile\n"
    "saving = DownloadFile(target.parent, overwrite=True)\n"
    "with saving as file: saving.set_name(target.name); file.write(b'half'); file.flush(); die()",
    "import": "from cloudstore_mapping.transfer.replacing import Replacement\n"
    "with Replacement(target) as made: made.draft.write_bytes(b'half'); die()",
}


def names(folder: Path) -> list[str]:
    """Return the names of all hidden files of a folder."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_run_is_cleared_away(command: str, tmp_path: Path) -> None:
    """What a killed run left beside its target is named after it, and gone after the next run to the same target."""
    with cm.open(tmp_path / "s.db") as store:
        store["a"] = 1
    with SQLiteStorage(tmp_path / "s.db") as storage:
        storage.back_up(tmp_path / "b.db", lambda *_: None)
    target = tmp_path / "target.db"
    ran = subprocess.run([sys.executable, "-c", KILL + COMMANDS[command], str(target)], check=False)
    assert ran.returncode == -signal.SIGKILL
    left = names(tmp_path)
    assert left
    assert all(name.startswith(".target.db.") for name in left)
    if command == "backup":
        with SQLiteStorage(tmp_path / "s.db") as storage:
            storage.back_up(target, lambda *_: None)
    elif command == "restore":
        restore_file(tmp_path / "b.db", target, lambda *_: None)
    elif command == "import":
        with Replacement(target) as made:
            made.draft.write_bytes(b"whole")
    else:
        with DownloadFile(target, overwrite=True) as file:
            file.write(b"whole")
    assert names(tmp_path) == []
    assert target.exists()


def test_a_refused_run_clears_away_too(tmp_path: Path) -> None:
    """A backup that is refused because the target exists still removes what a dead run left beside it."""
    with draft_of(tmp_path / "b.db") as draft:
        held = draft.with_suffix(drafts.LOCK).name
    (tmp_path / held).touch()
    (tmp_path / held).with_suffix(drafts.PART).write_bytes(b"half")
    (tmp_path / "b.db").touch()
    with cm.open(tmp_path / "s.db") as store:
        store["a"] = 1
    with SQLiteStorage(tmp_path / "s.db") as storage, pytest.raises(FileExistsError):
        storage.back_up(tmp_path / "b.db", lambda *_: None)
    assert names(tmp_path) == []


def test_a_live_run_is_left_alone(tmp_path: Path) -> None:
    """A second run to the same target leaves the draft of one that is still alive, and so do those to other targets."""
    with draft_of(tmp_path / "b.db") as first:
        first.write_bytes(b"half")
        with draft_of(tmp_path / "b.db") as second, draft_of(tmp_path / "b") as third:
            assert len({first, second, third}) == 3
            assert first.read_bytes() == b"half"
    assert names(tmp_path) == []


def test_strangers_are_left_alone(tmp_path: Path) -> None:
    """A file that only resembles a draft's lock, or has no lock beside it, is none of ours."""
    number = "0123456789abcdef"
    kept = [f".b.db.{number}.part", ".b.db.lock", f".b.db.{number}0.lock", f".c.db.{number}.lock"]
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / f".b.db.{'1' * 16}.lock").write_text("a letter")
    with draft_of(tmp_path / "b.db"):
        pass
    assert names(tmp_path) == sorted([*kept, f".b.db.{'1' * 16}.lock"])


def test_a_lock_that_was_taken_for_a_dead_one_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another run removes the lock before it is locked, the draft gets another name."""
    fcntl = pytest.importorskip("fcntl")
    flock = fcntl.flock
    removed: list[Path] = []

    def too_late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.extend(tmp_path.glob(".*.lock"))
            removed[0].unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    draft = Draft(tmp_path / "b.db")
    assert draft.path.with_suffix(drafts.LOCK).exists()
    assert draft.path.stem != removed[0].stem
    draft.close()
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["x" * 250, "é" * 120])
def test_a_long_name(name: str, tmp_path: Path) -> None:
    """A target whose name leaves no room for a draft's gets a draft with the beginning of it."""
    with DownloadFile(tmp_path / name, overwrite=False) as file:
        file.write(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_export_leaves_no_hidden_files(tmp_path: Path) -> None:
    """An export has fixed names beside its target, which the next one takes over, and hides nothing."""
    with cm.open("memory:") as store:
        store["a"] = 1
        seen: list[str] = []
        export_store(store, tmp_path / "all.json", progress=lambda *_: seen.extend(p.name for p in tmp_path.iterdir()))
    assert set(seen) == {"all.json.part"}


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The error names the folder that is absent, and no inner name."""
    with pytest.raises(FileNotFoundError) as caught:
        Draft(tmp_path / "absent" / "file.txt")
    assert caught.value.filename == str(tmp_path / "absent")
