"""The locks of a process on the store that it has open: nothing that takes a path makes it lose them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from tests.path_operations import (
    COMMANDS,
    FUNCTIONS,
    KEYS,
    LIVE,
    NO_PATHS,
    NOT_A_PATH,
    OPERATIONS,
    commands,
    parameters,
)

fcntl = pytest.importorskip("fcntl", reason="locks that belong to a process are POSIX's")

pytestmark = pytest.mark.sqlite("it is about the locks on an SQLite file")

ROOT = Path(__file__).parent.parent.parent
#: Bytes that an open store has locked in its file and in its -shm, as SQLite's source documents them.
LOCKED = {"": (0x40000002, 510), "-shm": (128, 1)}


def unlocked(store: Path) -> list[str]:
    """Return the ends of the names of those files of a store on which nobody else has the locks of an open store."""
    found = []
    for end, (start, length) in LOCKED.items():
        with Path(f"{store}{end}").open("r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
            except OSError:
                continue
            found.append(end or "the file")
    return found


@pytest.mark.parametrize(
    "spelling",
    [
        "live.db",
        pytest.param("FOLDER/live.db", marks=pytest.mark.slow),
        pytest.param("./../NAME/live.db", marks=pytest.mark.slow),
        pytest.param("sqlite:///live.db", marks=pytest.mark.slow),
        pytest.param("sqlite:///FOLDER/live.db", marks=pytest.mark.slow),
        pytest.param("link.db", marks=pytest.mark.slow),
        pytest.param("hard.db", marks=pytest.mark.slow),
        pytest.param("live.db-shm", marks=pytest.mark.slow),
        pytest.param("live.db-wal", marks=pytest.mark.slow),
        pytest.param("live.db-journal", marks=pytest.mark.slow),
    ],
)
def test_no_operation_drops_the_locks(spelling: str, tmp_path: Path) -> None:
    """Whatever is done with the path of an open store, its process keeps its locks, and what it saved outlasts it."""
    path = spelling.replace("FOLDER", str(tmp_path)).replace("NAME", tmp_path.name)
    live = tmp_path / LIVE
    with subprocess.Popen(
        [sys.executable, "-m", "tests.path_operations", path],
        cwd=tmp_path,
        env={
            **{name: value for name, value in os.environ.items() if name != "CLOUDSTORE_SECRET"},
            "PYTHONPATH": str(ROOT),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for name in OPERATIONS:
                process.stdin.write("go\n")
                tried, given = json.loads(process.stdout.readline())
                assert tried == name
                assert not given.startswith("unexpected"), (name, given)
                assert "hard links" not in given or path == "hard.db", (name, given)  # it really was tried
                assert unlocked(live) == [], (name, given)
            (tmp_path / "hard.db").unlink(missing_ok=True)
            listed = subprocess.run(
                [sys.executable, "-m", "cloudstore_mapping", "ls", "--at", live],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            assert "first" in listed.stdout.split()
            process.stdin.write("write\n")
            assert process.stdout.readline() == "written\n"
        finally:
            process.kill()
    assert not Path(f"{live}-journal").exists()
    with cm.open(live) as store:
        assert store["first"] == 1
        assert {key: store[key] for key in KEYS} == {key: key for key in KEYS}


def test_every_command_that_takes_a_path_is_tried() -> None:
    """Each parameter of a command that takes a text is tried, or known to be no path."""
    found = {(name, parameter) for name, each in commands().items() for parameter in each}
    assert {each for each in found if each[1] not in NO_PATHS} == set(COMMANDS)


def test_every_function_that_takes_a_path_is_tried() -> None:
    """Each parameter of a public function whose type may be a path is tried, or known to be none."""
    assert set(parameters()) - NOT_A_PATH == {name for name, _ in FUNCTIONS}


def test_the_trial_finds_lost_locks(tmp_path: Path) -> None:
    """A process that closes a descriptor of its store, or of its -shm, is found to have lost its locks."""
    program = f"""
import sys, cloudstore_mapping as cm
with cm.open({str(tmp_path / LIVE)!r}) as store:
    for line in sys.stdin:
        open({str(tmp_path / LIVE)!r} + line.strip()).close()
        print(flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for end, lost in (("-wal", []), ("", ["the file"]), ("-shm", ["the file", "-shm"])):
            process.stdin.write(f"{end}\n")
            process.stdout.readline()
            assert unlocked(tmp_path / LIVE) == lost
        process.stdin.close()
