"""`reorganize` of a shelf: unused space of a file goes back to the disk, and everything else stays as it was."""

from __future__ import annotations

import io
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from cloudstore_mapping.client.mapping import files_of
from cloudstore_mapping.errors import UnavailableError, UnsupportedError
from cloudstore_mapping.service.storage import sqlite
from cloudstore_mapping.service.storage.sqlite import SQLiteSession
from cloudstore_mapping.service.storage.sqlite_files import Identity
from tests.support.shelves import opened_by

#: Entries of about 10 KB, of which `fill` deletes all but one in ten.
ENTRIES = 300


def fill(path: Path) -> int:
    """Make a shelf that is mostly unused; return its size."""
    with shelve.open(path) as db:
        db.update({f"key {number}": [number, "x" * 10_000] for number in range(ENTRIES)})
        for number in range(ENTRIES):
            if number % 10:
                del db[f"key {number}"]
    return path.stat().st_size


def check(path: Path) -> None:
    """Check what `fill` left, and the whole file."""
    with shelve.open(path) as db:
        assert dict(db) == {f"key {number}": [number, "x" * 10_000] for number in range(0, ENTRIES, 10)}
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def service_of(db: Any) -> Any:
    """Return the service of an open shelf."""
    return files_of(opened_by(db)).client._transport._service  # type: ignore[attr-defined]


def session_of(db: Any) -> SQLiteSession:
    """Return the writer's session of an open shelf."""
    session = service_of(db)._storage._session
    assert isinstance(session, SQLiteSession)
    return session


def test_a_file_gets_shorter(tmp_path: Path) -> None:
    """The file gets shorter at once, with its changes in the write-back cache saved, and is used on."""
    before = fill(tmp_path / "s")
    with shelve.open(tmp_path / "s", writeback=True) as db:
        db["key 0"].append(1)
        db.reorganize()
        assert (tmp_path / "s").stat().st_size < before / 5
        assert (tmp_path / "s-wal").stat().st_size == 0
        with shelve.open(tmp_path / "s") as other:
            assert other["key 0"].pop() == 1
        db["key 0"].pop()
    check(tmp_path / "s")


READER = """
import sys
from cloudstore_mapping import shelve

with shelve.open(sys.argv[1], "w") as db:
    print(len(db), flush=True)
    sys.stdin.readline()
    db["other"] = 1
    print(len(db), db["key 10"][0], flush=True)
    sys.stdin.readline()
"""


def test_other_processes_use_the_file_meanwhile(tmp_path: Path) -> None:
    """A process that has the shelf open reads and writes on after another has reorganized it, and so does that one."""
    before = fill(tmp_path / "s")
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path / "s")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == f"{ENTRIES // 10}\n"
        with shelve.open(tmp_path / "s") as db:
            db.reorganize()
            assert (tmp_path / "s").stat().st_size < before / 5
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == f"{ENTRIES // 10 + 1} 10\n"
            assert db.pop("other") == 1
            db.reorganize()
        other.communicate("\n")
        assert other.returncode == 0
    check(tmp_path / "s")


def test_a_reader_of_an_old_state(tmp_path: Path) -> None:
    """A transaction that reads meanwhile sees its own moment to the end; the file gets shorter afterwards."""
    before = fill(tmp_path / "s")
    with shelve.open(tmp_path / "s") as db:
        with closing(sqlite3.connect(tmp_path / "s", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            (rows,) = reader.execute("SELECT count(*) FROM files").fetchone()
            db.reorganize()
            del db["key 10"]
            assert reader.execute("SELECT count(*) FROM files").fetchone() == (rows,)
            reader.execute("ROLLBACK")
        db["key 10"] = [10, "x" * 10_000]
    check(tmp_path / "s")
    assert (tmp_path / "s").stat().st_size < before / 5


def test_a_writer_of_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another process writes all the time the file stays as it is, and the shelf goes on."""
    before = fill(tmp_path / "s")
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.0)
    with shelve.open(tmp_path / "s") as db:
        with closing(sqlite3.connect(tmp_path / "s", isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            with pytest.raises(UnavailableError, match="holds the store"):
                db.reorganize()
            writer.execute("ROLLBACK")
        assert (tmp_path / "s").stat().st_size == before
        db["key 0"] = [0, "x" * 10_000]
    check(tmp_path / "s")


def test_a_writer_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the transaction of another process, without SQLite's own wait, which hears no signal."""
    before = fill(tmp_path / "s")
    with (
        shelve.open(tmp_path / "s") as db,
        closing(sqlite3.connect(tmp_path / "s", isolation_level=None)) as writer,
    ):
        writer.execute("BEGIN IMMEDIATE")
        with monkeypatch.context() as patch:
            patch.setattr(time, "sleep", lambda _: writer.in_transaction and writer.execute("ROLLBACK"))
            db.reorganize()
        assert not writer.in_transaction
        assert (tmp_path / "s").stat().st_size < before / 5
    check(tmp_path / "s")


class Disk(NamedTuple):
    """A disk."""

    total: int
    free: int
    read_only: bool = False


def test_a_disk_without_room(tmp_path: Path) -> None:
    """Without room for two copies of what is used the file doesn't grow, and the shelf goes on."""
    before = fill(tmp_path / "s")
    with shelve.open(tmp_path / "s") as db:
        session = session_of(db)
        assert session._space is not None
        disk, free = session._space._look, 2 * ENTRIES // 10 * 10_000
        session._space._look = lambda _: Disk(2**40, free)
        with pytest.raises(UnavailableError, match=r"its disk needs \d+\.\d MiB of free space"):
            db.reorganize()
        assert (tmp_path / "s").stat().st_size <= before  # the log is emptied first
        session._space._look = disk
        db.reorganize()
        assert (tmp_path / "s").stat().st_size < before / 5
    check(tmp_path / "s")


def test_a_crash_in_the_middle(tmp_path: Path) -> None:
    """A process that is killed in the middle leaves a whole file; the next one opens it."""
    fill(tmp_path / "s")
    program = """
import os, sys
from cloudstore_mapping import shelve
from cloudstore_mapping.client.mapping import files_of

db = shelve.open(sys.argv[1])
session = files_of(vars(db)["_StoreShelf__opened"]).client._transport._service._storage._session
steps = iter(range(int(sys.argv[2])))
session.connection.set_progress_handler(lambda: next(steps, None) is None and os.kill(os.getpid(), 9), 1)
db.reorganize()
"""
    for steps in (100, 1500, 3000, 3260):
        ran = subprocess.run([sys.executable, "-c", program, str(tmp_path / "s"), str(steps)], check=False)
        assert ran.returncode == -9
        check(tmp_path / "s")


def test_an_older_copy_beside_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older copy of the file is refused beside the log that was begun after it: its pages are elsewhere."""
    fill(tmp_path / "s")
    copy = (tmp_path / "s").read_bytes()
    with shelve.open(tmp_path / "s") as db:
        db.reorganize()
        db["key 0"] = "new"
        log = (tmp_path / "s-wal").read_bytes()
    (tmp_path / "s").write_bytes(copy)
    (tmp_path / "s-wal").write_bytes(log)
    with pytest.raises(UnsupportedError, match="was written for another file"):
        shelve.open(tmp_path / "s")


def test_a_file_that_was_overwritten(tmp_path: Path) -> None:
    """A file that holds another store by now is left alone."""
    fill(tmp_path / "s")
    fill(tmp_path / "other")
    with shelve.open(tmp_path / "s") as db:
        db["key 0"] = "lost"
        service_of(db).sweeper.wait()
        (tmp_path / "s").write_bytes(other := (tmp_path / "other").read_bytes())
        session = session_of(db)
        done: list[str] = []
        session.connection.set_trace_callback(done.append)
        with pytest.raises(UnavailableError, match="replaced"):
            db.reorganize()
        assert done == []
    assert (tmp_path / "s").read_bytes() == other


def test_our_own_checkpoint_is_nothing_odd(tmp_path: Path) -> None:
    """The process that reorganizes doesn't take the change of the file for another program's."""
    fill(tmp_path / "s")
    with shelve.open(tmp_path / "s") as db:
        db.reorganize()
        identity = session_of(db).identity
        assert isinstance(identity, Identity)
        assert identity._changed == (tmp_path / "s").stat().st_mtime_ns


def test_a_shelf_for_reading_only(tmp_path: Path) -> None:
    """A shelf that is open for reading refuses."""
    fill(tmp_path / "s")
    with shelve.open(tmp_path / "s", "r") as db, pytest.raises(io.UnsupportedOperation):
        db.reorganize()


@pytest.mark.parametrize("where", ["memory:", "closed"])
def test_elsewhere(where: str, tmp_path: Path) -> None:
    """In memory it is `sync`; a closed shelf raises `ValueError`."""
    db = shelve.open(where if where == "memory:" else tmp_path / "s", writeback=True)
    db["a"] = [1]
    db["a"].append(2)
    if where == "closed":
        db.close()
        with pytest.raises(ValueError, match="closed"):
            db.reorganize()
        return
    db.reorganize()
    assert db.cache == {}
    assert db["a"] == [1, 2]
    db.close()


def test_nothing_unused(tmp_path: Path) -> None:
    """A file without unused space isn't written."""
    with shelve.open(tmp_path / "s") as db:
        db["a"] = 1
    before = (tmp_path / "s").read_bytes()
    with shelve.open(tmp_path / "s") as db:
        db.reorganize()
    assert (tmp_path / "s").read_bytes() == before
    with cm.open(tmp_path / "s") as store:
        assert dict(store) == {"a": 1}
