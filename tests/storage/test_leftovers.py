"""What a store left behind when its file was moved away: no command and no function makes a new store over it."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from cloudstore_mapping.cli import app
from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.service.storage import sqlite_files
from cloudstore_mapping.service.storage.maintenance import check_file, restore_file
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.transfer import export_store, import_store
from tests.path_operations import commands
from tests.support.command_line import CliRunner, Result
from tests.support.matrix import spread

pytestmark = pytest.mark.sqlite("it is about the files beside an SQLite file")

COUNT = 20
SAVE = """
import os, signal, sys
import cloudstore_mapping as cm
store = cm.open(sys.argv[1])
for number in range(int(sys.argv[2])):
    store[str(number)] = number
print("saved", flush=True)
if sys.argv[3:] == ["stays"]:
    sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path: Path) -> None:
    """Save into a store in another process, which is killed: what it saved is in the log."""
    ran = subprocess.run([sys.executable, "-c", SAVE, path, str(COUNT)], check=False, capture_output=True)
    assert ran.returncode == -signal.SIGKILL
    assert Path(f"{path}-wal").stat().st_size


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store as a crash left it."""
    folder = tmp_path_factory.mktemp("crashed")
    killed(folder / "s.db")
    return folder


@pytest.fixture
def path(crashed: Path, tmp_path: Path) -> Path:
    """Return where a store was whose file was moved away after a crash."""
    shutil.copytree(crashed, tmp_path, dirs_exist_ok=True)
    (tmp_path / "s.db").rename(tmp_path / "away.db")
    return tmp_path / "s.db"


def comes_back(path: Path) -> None:
    """Move the file back, and check that all is there."""
    path.unlink(missing_ok=True)
    (path.parent / "away.db").rename(path)
    with cm.open(path) as store:
        assert len(store) == COUNT


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store in another folder."""
    file = tmp_path_factory.mktemp("elsewhere") / "other.db"
    cm.open(file).close()
    return file


def run(*arguments: str) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, arguments, input="secret\nsecret\n")


#: Every command, with LEFT where the file was that was moved away, and OTHER for a store.
COMMANDS = [
    "get k --at LEFT",
    "set k 1 --at LEFT",
    "merge k 1 --at LEFT",
    "rm k --at LEFT",
    "ls --at LEFT",
    "stat k --at LEFT",
    "edit k --at LEFT",
    "upload OTHER.txt --at LEFT",
    "download /files/a/b.png --at LEFT",
    "import OTHER.json --at LEFT",
    "import LEFT --at OTHER --format store",
    "export OTHER.new.json --at LEFT",
    "export LEFT --at OTHER --format store",
    "serve --port 0 --store LEFT",
    "serve --port 0 --workers 2 --store LEFT",
    "passwd k --edit --at LEFT",
    "passwd owner k --edit --store LEFT",
    "backup OTHER.backup --store LEFT",
    "backup LEFT --store OTHER",
    "restore OTHER --store LEFT",
    "restore LEFT --store OTHER.new",
    "check --store LEFT",
    "compact --store LEFT",
    "migrate --store LEFT",
    "migrate --dry-run --store LEFT",
    "migrate-names --store LEFT",
    "migrate-store LEFT OTHER.new",
    "migrate-store OTHER LEFT",
    "account create owner --store LEFT",
    "account list --store LEFT",
    "account show owner --store LEFT",
    "account set owner files=1 --store LEFT",
    "account disable owner --store LEFT",
    "account enable owner --store LEFT",
    "account rotate-key owner --store LEFT",
    "account reset-password owner --store LEFT",
    "account delete owner --yes --store LEFT",
]


#: How a location is written.
SPELLINGS = ["PATH", "sqlite:///PATH"]


@pytest.mark.parametrize(("command", "spelling"), spread([COMMANDS, SPELLINGS], 5))
def test_every_command_refuses_a_log_without_its_file(
    command: str, spelling: str, path: Path, elsewhere: Path, tmp_path: Path
) -> None:
    """A command that would open, make or read a store beside a log without its file says so, and changes nothing."""
    Path(f"{elsewhere}.txt").write_text("text")
    Path(f"{elsewhere}.json").write_text("{}")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    if command.split()[0] in ("backup", "restore") and not command.endswith("--store LEFT"):
        spelling = "PATH"  # a backup is a file
    left = spelling.replace("PATH", str(path))
    refused = run(*[word.replace("LEFT", left).replace("OTHER", str(elsewhere)) for word in command.split()])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("cloudstore: ")
    assert f"{path}-wal" in refused.stderr
    assert " away" in refused.stderr
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert not Path(f"{elsewhere}.new").exists()
    comes_back(path)


def test_the_commands_are_all() -> None:
    """Each command that takes a store's location is among those that are tried."""
    tried = [command.split() for command in COMMANDS]
    for name, takes in commands().items():
        if {"at", "store", "source"} & set(takes):
            assert [words for words in tried if words[: len(name.split())] == name.split()], name


FUNCTIONS: dict[str, Callable[[Path, Path], object]] = {
    "open": lambda left, _: cm.open(left),
    "open by its location": lambda left, _: cm.open(f"sqlite:///{left}"),
    "shelve c": lambda left, _: shelve.open(left),
    "shelve n": lambda left, _: shelve.open(left, "n"),
    "shelve r": lambda left, _: shelve.open(left, "r"),
    "shelve w": lambda left, _: shelve.open(left, "w"),
    "storage": lambda left, _: SQLiteStorage(left),
    "check": lambda left, _: check_file(left),
    "restore from it": lambda left, other: restore_file(left, other.with_name("new"), lambda _done, _total: None),
    "restore to it": lambda left, other: restore_file(other, left, lambda _done, _total: None),
    "import from it": lambda left, other: _with(other, lambda store: import_store(store, left, format="store")),
    "export to it": lambda left, other: _with(other, lambda store: export_store(store, left, format="store")),
}


def _with(location: Path, work: Callable[[cm.CloudStoreMapping[object]], object]) -> None:
    with cm.open(location) as store:
        work(store)


@pytest.mark.parametrize("what", FUNCTIONS)
def test_every_function_refuses_a_log_without_its_file(what: str, path: Path, elsewhere: Path) -> None:
    """A function that would open or make a store beside a log without its file raises, and changes nothing."""
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises((UnsupportedError, FileExistsError), match=r"-wal .*; .* away"):
        FUNCTIONS[what](path, elsewhere)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    comes_back(path)


def test_an_empty_file_is_as_good_as_none(path: Path) -> None:
    """Beside a log an empty file is no new store: SQLite would delete the log."""
    path.touch()
    with pytest.raises(UnsupportedError, match=r"s\.db-wal was left"):
        cm.open(path)
    comes_back(path)


def test_a_journal_without_its_file(tmp_path: Path) -> None:
    """A journal that holds pages of a file which isn't there, or is empty, is refused; the file comes back whole."""
    path = tmp_path / "s.db"
    with cm.open(path) as store:
        store["k"] = "x" * 100_000
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.execute("UPDATE files SET value = zeroblob(length(value))")
        for name in ("s.db", "s.db-journal"):
            shutil.copy(tmp_path / name, tmp_path / f"kept {name}")
    path.unlink()
    shutil.move(tmp_path / "kept s.db-journal", f"{path}-journal")
    for is_empty in (False, True):
        if is_empty:
            path.touch()
        with pytest.raises(UnsupportedError, match=r"s\.db-journal was left"):
            cm.open(path)
    shutil.move(tmp_path / "kept s.db", path)
    with cm.open(path) as store:
        assert store["k"] == "x" * 100_000


def test_a_log_that_stayed_beside_a_link(path: Path, tmp_path: Path) -> None:
    """Where a file was moved and a link put in its place, the log beside the link is refused: SQLite overlooks it."""
    (tmp_path / "big").mkdir()
    (tmp_path / "away.db").rename(tmp_path / "big" / "s.db")
    path.symlink_to("big/s.db")
    with pytest.raises(UnsupportedError, match=r"s\.db-wal was left"):
        cm.open(path)
    Path(f"{path}-wal").rename(tmp_path / "big" / "s.db-wal")
    with cm.open(path) as store:
        assert len(store) == COUNT


def test_a_link_to_a_file_that_was_moved(path: Path, tmp_path: Path) -> None:
    """A link that leads nowhere makes no store beside the log of the file that it led to."""
    link = tmp_path / "link.db"
    link.symlink_to("s.db")
    with pytest.raises(UnsupportedError, match=r"s\.db-wal was left"):
        cm.open(link)
    comes_back(path)


@pytest.mark.parametrize("copied", [False, True])
def test_what_a_crash_leaves_is_taken_up(copied: bool, tmp_path: Path) -> None:
    """A log and a -shm beside their file are no leftovers, after a crash and in a copy of the folder."""
    path = tmp_path / "one" / "s.db"
    path.parent.mkdir()
    killed(path)
    if copied:
        path = shutil.copytree(path.parent, tmp_path / "two") / path.name
    assert Path(f"{path}-shm").exists()
    with cm.open(path) as store:
        assert len(store) == COUNT


def test_a_shm_alone_holds_nothing(path: Path) -> None:
    """A -shm that nobody uses is no reason to refuse: a store is made beside it, and keeps what it is given."""
    Path(f"{path}-wal").unlink()
    assert Path(f"{path}-shm").exists()
    with cm.open(path) as store:
        store["k"] = 1
    with cm.open(path) as store:
        assert dict(store) == {"k": 1}


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Path]:
    """Return the path of a store that another process has open."""
    path = tmp_path / "held.db"
    command = [sys.executable, "-c", SAVE, str(path), str(COUNT), "stays"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield path
        finally:
            process.kill()


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="Linux alone tells which files are locked")
def test_a_shm_that_a_process_uses(holder: Path) -> None:
    """While a process uses the -shm with a file that was taken away, no other file gets into it."""
    holder.unlink()
    Path(f"{holder}-wal").unlink()
    for is_empty in (False, True):
        if is_empty:
            holder.touch()
        with pytest.raises(UnsupportedError, match="A process still uses the store whose file was at"):
            cm.open(holder)


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the folder of the test lie on a network file system, and return the table that says so."""
    device = tmp_path.stat().st_dev
    table = tmp_path / "mountinfo"
    number = f"{os.major(device)}:{os.minor(device)}"
    table.write_text(f"1 0 0:1 / / rw - proc proc rw\n2 1 {number} / /mnt rw shared:1 - nfs4 server:/ rw\n")
    monkeypatch.setattr(sqlite_files, "MOUNTS", table)
    return table


@pytest.fixture
def no_locks_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have whoever holds locks be no process of this machine."""
    (tmp_path / "locks").write_text("1: POSIX  ADVISORY  READ 1 00:01:2 0 EOF\n")
    monkeypatch.setattr(sqlite_files, "LOCKS", tmp_path / "locks")
    monkeypatch.setattr(sqlite_files, "PATIENCE", 0.0)


@pytest.mark.usefixtures("network", "no_locks_here")
def test_a_store_that_another_machine_has_open(holder: Path) -> None:
    """On a network file system a store that is open, but by no process of this machine, is refused and left alone."""
    with pytest.raises(UnsupportedError, match=r"is open on another machine, .*; close it there, or run"):
        cm.open(holder)
    with pytest.raises(UnsupportedError, match="is open on another machine"):
        check_file(holder)
    assert run("ls", "--at", str(holder)).exit_code == 2


@pytest.mark.usefixtures("network")
@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="Linux alone tells which files are locked")
def test_a_network_file_system_and_one_machine(holder: Path) -> None:
    """On a network file system the processes of one machine share a store."""
    with cm.open(holder) as store, cm.open(holder) as again:
        assert len(store) == len(again) == COUNT


@pytest.mark.usefixtures("network", "no_locks_here")
def test_a_network_file_system_after_a_crash(tmp_path: Path) -> None:
    """On a network file system a -shm that nobody uses any more is no reason to refuse."""
    killed(tmp_path / "s.db")
    with cm.open(tmp_path / "s.db") as store:
        assert len(store) == COUNT


@pytest.mark.usefixtures("no_locks_here")
def test_a_local_disk_needs_no_locks_table(holder: Path) -> None:
    """On a local disk, whose shared memory all see, a store is shared even by processes that don't see each other."""
    with cm.open(holder) as store:
        assert len(store) == COUNT


def test_a_second_name_of_a_file(tmp_path: Path) -> None:
    """A file with two names is refused under either: each would have a log of its own."""
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    with cm.open(first) as store:
        store["k"] = 1
        os.link(first, second)
        for path in (first, second):
            with pytest.raises(UnsupportedError, match=r"is one of 2 names of a file .*; keep one name"):
                cm.open(path)
        with pytest.raises(UnsupportedError, match="is one of 2 names"):
            check_file(second)
        second.unlink()
        store["l"] = 2
    with cm.open(first) as store:
        assert dict(store) == {"k": 1, "l": 2}


def test_the_name_of_a_draft_is_no_second_name(tmp_path: Path) -> None:
    """A restore that a crash ended just before its draft's name was removed has made a store that opens."""
    path = tmp_path / "s.db"
    cm.open(path).close()
    os.link(path, tmp_path / f".{path.name}.0123456789abcdef.part")
    cm.open(path).close()


@pytest.mark.parametrize("end", ["-wal", "-journal", "-shm"])
def test_the_name_of_a_log_is_no_store_s(end: str, tmp_path: Path, elsewhere: Path) -> None:
    """No store, backup or copy is made under a name that SQLite would take for the log of another store."""
    path = tmp_path / "s.db"
    cm.open(path).close()
    log = Path(f"{path}{end}")
    with pytest.raises(UnsupportedError, match="is the name of a log of"):
        cm.open(log)
    for command in (["backup", str(log), "--store", str(elsewhere)], ["migrate-store", str(elsewhere), str(log)]):
        refused = run(*command)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "is the name of a log of" in refused.stderr
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_link_that_leads_nowhere_is_no_place_for_a_backup(tmp_path: Path, elsewhere: Path) -> None:
    """A backup whose name is a link to nothing is refused, and not reported as made."""
    link = tmp_path / "link"
    link.symlink_to("nothing")
    refused = run("backup", str(link), "--store", str(elsewhere))
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "already; move it away" in refused.stderr
