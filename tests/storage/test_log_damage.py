"""A log that a crash left and that is damaged: refused where saves that were answered stand behind the damage."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.service.storage import sqlite_files
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.service.storage.sqlite_files import is_damaged, refuse_leftovers
from tests.storage.test_leftovers import COMMANDS, COUNT, FUNCTIONS, killed, run
from tests.storage.test_lineage import contents, filled, look_while_used
from tests.support.matrix import spread

pytestmark = pytest.mark.sqlite("it is about the log beside an SQLite file")

#: Bytes of the log's header, and of a frame with its page.
HEADER: Final = 32
FRAME: Final = 24 + 4096
#: Places in a frame: page number, pages after a commit, salts, checksum, page.
FIELDS: Final = (3, 7, 9, 18, 24, 2000, FRAME - 1)

linux = pytest.mark.skipif(not sqlite_files.LOCKS.exists(), reason="Linux alone tells which files are locked")


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store as a crash left it."""
    folder = tmp_path_factory.mktemp("crashed")
    killed(filled(folder / "s.db"))
    return folder


@pytest.fixture
def path(crashed: Path, tmp_path: Path) -> Path:
    """Return the path of a store as a crash left it, all of whose last saves are in the log."""
    folder = shutil.copytree(crashed, tmp_path / "store")
    return folder / "s.db"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Return a store in another folder."""
    (tmp_path / "elsewhere").mkdir()
    return filled(tmp_path / "elsewhere" / "other.db")


def log_of(path: Path) -> Path:
    """Return the log of a store."""
    return Path(f"{path}-wal")


def index_of(path: Path) -> Path:
    """Return the index of a store's log."""
    return Path(f"{path}-shm")


def ends(log: bytes) -> list[int]:
    """Return the number of each frame that ends a transaction."""
    return [
        number
        for number in range((len(log) - HEADER) // FRAME)
        if any(log[HEADER + number * FRAME + 4 : HEADER + number * FRAME + 8])
    ]


def flip(log: Path, place: int, bit: int = 0) -> None:
    """Flip a bit of a log."""
    content = bytearray(log.read_bytes())
    content[place] ^= 1 << bit
    log.write_bytes(content)


def found_after(path: Path) -> set[str] | None:
    """Return the keys of a store; None where it is refused, and nothing changed."""
    before = contents(path.parent)
    try:
        refuse_leftovers(path)
    except UnsupportedError as error:
        assert str(error).startswith(f"{log_of(path)} is damaged, ")  # noqa: PT017 - one of two outcomes
        assert contents(path.parent) == before
        return None
    with cm.open(path) as store:
        return set(store)


def put_back(crashed: Path, path: Path, *, with_index: bool) -> None:
    """Make a store what the crash left."""
    for file in crashed.iterdir():
        shutil.copy(file, path.parent)
    if not with_index:  # as after a restart of the machine
        index_of(path).unlink()


ALL: Final = {"precious", *map(str, range(COUNT))}


@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("with_index", [pytest.param(True, marks=linux), False])
def test_a_flipped_bit_in_each_frame(with_index: bool, every: int, crashed: Path, path: Path) -> None:
    """After one bit of the log has flipped, all is there or it is refused; without an index, but for the last save."""
    whole = log_of(path).read_bytes()
    *_, before_last, last = ends(whole)
    refused = 0
    for number in range((len(whole) - HEADER) // FRAME):
        # In the middle one field of each frame, or of one in some.
        is_middle = 4 <= number <= before_last - 3
        fields = FIELDS if not is_middle else () if number % every else FIELDS[number % len(FIELDS) :][:1]
        for field in fields:
            put_back(crashed, path, with_index=with_index)
            flip(log_of(path), HEADER + number * FRAME + field)
            found = found_after(path)
            refused += found is None
            if not with_index and before_last < number <= last:
                assert found in (ALL, ALL - {str(COUNT - 1)}), (number, field)
            else:
                assert found in (None, ALL), (number, field)
    assert refused > last / 2


@pytest.mark.parametrize("with_index", [pytest.param(True, marks=linux), False])
def test_a_flipped_bit_in_the_header(with_index: bool, crashed: Path, path: Path) -> None:
    """After any bit of the log's header has flipped it is refused."""
    for place in range(HEADER):
        put_back(crashed, path, with_index=with_index)
        flip(log_of(path), place, place % 8)
        assert found_after(path) is None


@pytest.mark.slow
def test_many_flipped_bits_of_a_log(crashed: Path, path: Path) -> None:
    """After bits have flipped anywhere in the log all is there, or it is refused."""
    dice = random.Random(0)
    whole = log_of(path).read_bytes()
    behind = HEADER + (ends(whole)[-2] + 1) * FRAME
    for _ in range(40):
        put_back(crashed, path, with_index=False)
        for _ in range(dice.randint(1, 3)):
            flip(log_of(path), dice.randrange(behind), dice.randrange(8))
        assert found_after(path) is None


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "header of zeros": lambda log: bytes(HEADER) + log[HEADER:],
    "first block of zeros": lambda log: bytes(4096) + log[4096:],
    "block of zeros": lambda log: log[:40960] + bytes(4096) + log[45056:],
    "zeros": lambda log: bytes(len(log)),
    "random": lambda log: random.Random(1).randbytes(len(log)),
    "half of the header": lambda log: log[:10],
    "a frame left out": lambda log: log[: HEADER + 5 * FRAME] + log[HEADER + 6 * FRAME :],
}
LACKS: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda log: log[:100_000],
    "header alone": lambda log: log[:HEADER],
    "empty": lambda log: b"",
    "last transaction damaged": lambda log: log[:-5] + bytes(5),
}


@pytest.mark.parametrize("damage", [*DAMAGES, *(pytest.param(each, marks=linux) for each in LACKS)])
def test_a_damaged_log(damage: str, path: Path) -> None:
    """A check of a store whose log is cut, zeroed or random says so with status 2, and nothing is changed."""
    whole = log_of(path).read_bytes()
    log_of(path).write_bytes({**DAMAGES, **LACKS}[damage](whole))
    if damage in DAMAGES:
        index_of(path).unlink()
        problem = (
            "is damaged, and saves behind the damage would be lost; restore a backup, or move the log away to go on "
        )
        remedy = "without its saves"
    else:
        index = index_of(path)
        problem = (
            f"is damaged, for it lacks saves that {index} tells of; restore a backup, or move {index} away to go on "
        )
        remedy = "without them"
    before = contents(path.parent)
    refused = run("check", "--store", str(path))
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == f"cloudstore: {log_of(path)} {problem}{remedy}.\n"
    assert contents(path.parent) == before


@pytest.mark.parametrize("damage", ["block of zeros", pytest.param("cut", marks=linux)])
def test_the_remedy_for_a_damaged_log(damage: str, path: Path) -> None:
    """Once the file that the sentence names was moved away the store opens, with what is left."""
    log_of(path).write_bytes({**DAMAGES, **LACKS}[damage](log_of(path).read_bytes()))
    assert found_after(path) is None
    (log_of(path) if damage in DAMAGES else index_of(path)).rename(path.with_name("away"))
    with cm.open(path) as store:
        assert "precious" in store
        assert len(store) < len(ALL)


@pytest.mark.parametrize("command", spread([COMMANDS], 4))
def test_every_command_refuses_a_damaged_log(command: str, path: Path, other: Path) -> None:
    """A command that would open, read or replace a store with a damaged log says so, and changes nothing."""
    flip(log_of(path), HEADER + 8 * FRAME + 100)
    Path(f"{other}.txt").write_text("text")
    Path(f"{other}.json").write_text("{}")
    before = contents(path.parent)
    refused = run(*[word.replace("LEFT", str(path)).replace("OTHER", str(other)) for word in command.split()])
    assert (refused.exit_code, refused.stdout) == (2, "")
    if "already; move it away" not in refused.stderr:  # of a new store or backup
        assert refused.stderr.startswith(f"cloudstore: {log_of(path)} is damaged, ")
    assert refused.stderr.count("\n") == 1
    assert contents(path.parent) == before
    assert not Path(f"{other}.new").exists()


@pytest.mark.parametrize("what", FUNCTIONS)
def test_every_function_refuses_a_damaged_log(what: str, path: Path, other: Path) -> None:
    """A function that would open a store with a damaged log raises, and changes nothing."""
    flip(log_of(path), HEADER + 8 * FRAME + 100)
    before = contents(path.parent)
    with pytest.raises((UnsupportedError, FileExistsError), match=r"is damaged, and saves behind|already"):
        FUNCTIONS[what](path, other)
    assert contents(path.parent) == before


def test_a_torn_last_transaction(crashed: Path, path: Path) -> None:
    """Whichever frames of the last transaction a power cut tore, the store opens with all that was answered before."""
    whole = log_of(path).read_bytes()
    first, last = ends(whole)[-2] + 1, ends(whole)[-1]
    assert last > first
    for torn in range(1, 2 ** (last + 1 - first)):
        put_back(crashed, path, with_index=False)
        for number in range(first, last + 1):
            if torn >> (number - first) & 1:
                flip(log_of(path), HEADER + number * FRAME + 24)
        assert found_after(path) == ALL - {str(COUNT - 1)}


TOKENS_ALONE = """
import os, signal, sys
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.service.storage.sqlite_files import change
storage = SQLiteStorage(sys.argv[1])
for _ in range(3):
    change(storage._session.connection)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("field", spread([FIELDS], 4))
def test_transactions_of_one_page(field: int, other: Path) -> None:
    """A damaged transaction of a single page is told by the one after it, even if that has a single page too."""
    subprocess.run([sys.executable, "-c", TOKENS_ALONE, other], check=False)
    index_of(other).unlink()
    flip(log_of(other), HEADER + (ends(log_of(other).read_bytes())[-2]) * FRAME + field)
    with pytest.raises(UnsupportedError, match="is damaged, and saves behind the damage would be lost"):
        refuse_leftovers(other)


RESTARTED = """
import os, signal, sqlite3, sys
import cloudstore_mapping as cm
store = cm.open(sys.argv[1])
for number in range(20):
    store[f"older {number}"] = number
sqlite3.connect(sys.argv[1]).execute("PRAGMA wal_checkpoint(RESTART)")
store["newer"] = 1
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_torn_transaction_over_an_older_log(path: Path) -> None:
    """
    A power cut that gave a frame of an older log the salts of this one, and nothing else, leaves no damage.

    A frame's header may lie in two sectors, of which the disk wrote only the first.
    """
    subprocess.run([sys.executable, "-c", RESTARTED, path], check=False)
    index_of(path).unlink()
    log = log_of(path).read_bytes()
    older = {number for number in ends(log) if log[HEADER + number * FRAME + 8 :][:8] != log[16:24]}
    first, last = min(set(ends(log)) - older) + 1, max(older)
    assert len(older) > 20
    for number in range(first, last + 1):
        place = HEADER + number * FRAME + 8
        log_of(path).write_bytes(log[:place] + log[16:24] + log[place + 8 :])
        refuse_leftovers(path)
    assert found_after(path) == ALL | {"newer", *(f"older {number}" for number in range(20))}


SPILL = """
import os, signal, sqlite3, sys
import cloudstore_mapping as cm
store = cm.open(sys.argv[1])
shell = sqlite3.connect(sys.argv[1], isolation_level=None)
shell.execute("PRAGMA cache_size = 1")
shell.execute("BEGIN")
shell.execute("INSERT INTO accounts (name, created_at, plan) VALUES ('o', 1.0, ?)", ("x" * 200_000,))
shell.execute("ROLLBACK")
store["torn"] = "t" * 50_000
os.kill(os.getpid(), signal.SIGKILL)
"""
SAVE_ONE = """
import os, signal, sys
import cloudstore_mapping as cm
store = cm.open(sys.argv[1])
store[sys.argv[2]] = 1
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_what_is_left_of_a_torn_transaction(path: Path) -> None:
    """What was rolled back and what a power cut tore, behind what was saved since, is no damage."""
    before = ends(log_of(path).read_bytes())[-1]
    subprocess.run([sys.executable, "-c", SPILL, path], check=False)
    index_of(path).unlink()
    log = log_of(path).read_bytes()
    assert len(log) > HEADER + (ends(log)[-1] + 20) * FRAME  # left of the longer one behind the shorter
    flip(log_of(path), HEADER + (before + 3) * FRAME + 100)
    refuse_leftovers(path)
    for number in range(3):
        subprocess.run([sys.executable, "-c", SAVE_ONE, path, f"since {number}"], check=False)
        refuse_leftovers(path)
    assert found_after(path) == ALL | {f"since {number}" for number in range(3)}


def test_an_index_of_an_earlier_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that was written before the machine was started anew tells nothing: it is never synced."""
    log_of(path).write_bytes(b"")
    monkeypatch.setattr(sqlite_files, "started_at", lambda: index_of(path).stat().st_ctime + 1)
    refuse_leftovers(path)


def test_an_index_of_the_future(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index tells nothing while the clock is behind: it may be of an earlier start."""
    log_of(path).write_bytes(b"")
    behind = index_of(path).stat().st_ctime - 1
    monkeypatch.setattr(sqlite_files, "time", SimpleNamespace(**vars(time) | {"time": lambda: behind}))
    refuse_leftovers(path)


@linux
def test_an_index_that_this_process_has_open(path: Path) -> None:
    """A look at an index ends no lock of this process: another one still can't take itself for the first."""
    log_of(path).write_bytes(b"")
    with pytest.raises(UnsupportedError):
        refuse_leftovers(path)
    inode = index_of(path).stat()
    assert (inode.st_dev, inode.st_ino) in sqlite_files._kept  # closing it would end locks
    index_of(path).unlink()
    refuse_leftovers(path)
    cm.open(path).close()
    sqlite_files.index_at(index_of(path))
    assert (inode.st_dev, inode.st_ino) not in sqlite_files._kept


@pytest.mark.parametrize("looks", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_a_store_in_use_is_never_damaged(looks: int, other: Path) -> None:
    """While processes write, carry the log over and begin it anew, it is never taken for damaged."""
    look_while_used(other, looks, lambda: refuse_leftovers(other))


def test_a_writer_that_begins_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that seems damaged isn't refused if a process has opened the store since: it may pause within a frame."""
    flip(log_of(path), HEADER + FRAME + 100)
    with pytest.raises(UnsupportedError, match="is damaged"):
        refuse_leftovers(path)
    looks = iter([False, True])
    monkeypatch.setattr(sqlite_files, "_is_in_use", lambda *_: next(looks, True))
    refuse_leftovers(path)


def test_a_log_that_is_written_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that is missing at the first look and there at the second is no damage."""
    whole = log_of(path).read_bytes()
    flip(log_of(path), HEADER + 8 * FRAME + 100)
    look = sqlite_files.look_at_log

    def look_once(log: Path, file: Path) -> sqlite_files.Log:
        found = look(log, file)
        log.write_bytes(whole)
        return found

    monkeypatch.setattr(sqlite_files, "look_at_log", look_once)
    assert not is_damaged(log_of(path), path)


WORK = """
import os, signal, sqlite3, sys
import cloudstore_mapping as cm
path, copy, *steps = sys.argv[1:]
store = cm.open(path)
shell = sqlite3.connect(path, isolation_level=None)
for number, step in enumerate(steps):
    if step == "save":
        store.update({f"{number} {each}": "x" * 3000 for each in range(20)})
    elif step == "delete":
        for key in list(store)[::3]:
            del store[key]
    elif step == "into":
        shell.execute("VACUUM INTO ?", (copy,))
    elif step == "carry":
        shell.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
    else:
        shell.execute({"vacuum": "VACUUM", "index": f"CREATE INDEX i{number} ON files (updated_at)"}[step])
print(len(store), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def worked(path: Path, *steps: str) -> int:
    """Do steps in another process, which is killed, and return how many keys there are."""
    command = [sys.executable, "-c", WORK, str(path), str(path.with_name("copy.db")), *steps]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    return int(ran.stdout)


@pytest.mark.parametrize(
    "steps",
    [
        ("save", "into", "save"),
        pytest.param(("save", "delete", "into", "save", "delete"), marks=pytest.mark.slow),
        pytest.param(("save", "delete", "carry", "into", "save"), marks=pytest.mark.slow),
        pytest.param(("save", "vacuum", "save", "delete", "into", "save"), marks=pytest.mark.slow),
        ("save", "carry", "vacuum", "carry", "save", "into", "save"),
    ],
)
def test_a_vacuumed_copy(steps: tuple[str, ...], other: Path) -> None:
    """A copy by VACUUM INTO in the place of a crashed store is refused beside its log: both stay whole."""
    count = worked(other, *steps)
    shutil.copy(other, other.with_name("away"))
    other.with_name("copy.db").replace(other)
    before = contents(other.parent)
    for command in ("check --store", "serve --port 0 --store", "ls --at"):
        refused = run(*command.split(), str(other))
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "was written for another file than the one at" in refused.stderr
    assert contents(other.parent) == before
    other.with_name("away").replace(other)
    with cm.open(other) as store:
        assert len(store) == count


@pytest.mark.parametrize(
    "steps",
    [
        ("vacuum", "save"),
        pytest.param(("save", "vacuum"), marks=pytest.mark.slow),
        pytest.param(("save", "vacuum", "save"), marks=pytest.mark.slow),
        pytest.param(("save", "vacuum", "vacuum", "carry", "save"), marks=pytest.mark.slow),
        pytest.param(("save", "index", "carry", "vacuum", "carry", "save", "index"), marks=pytest.mark.slow),
        ("save", "delete", "vacuum", "index", "save", "carry", "delete"),
    ],
)
def test_a_store_that_was_vacuumed_in_place(steps: tuple[str, ...], other: Path) -> None:
    """A store that another program vacuumed, or added an index to, is taken up after a crash with its log."""
    count = worked(other, *steps)
    with cm.open(other) as store:
        assert len(store) == count
    with cm.open(other) as store:
        assert len(store) == count


NEWER = """
import os, signal, sys
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
storage = SQLiteStorage(sys.argv[1])
storage.submit(lambda transaction: transaction.add_account("late", 1.0)).result()
storage._session.connection.execute("PRAGMA user_version = 99")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_open_that_fails_leaves_the_log(other: Path) -> None:
    """A file that is refused once SQLite has read it with its log is left as it is, and so is the log."""
    subprocess.run([sys.executable, "-c", NEWER, other], check=False)
    before = (other.read_bytes(), log_of(other).read_bytes())
    assert before[1]
    for open_it in (cm.open, SQLiteStorage):
        with pytest.raises(UnsupportedError, match="was written by a newer version"):
            open_it(other)
        assert (other.read_bytes(), log_of(other).read_bytes()) == before


def test_a_failed_open_leaves_nothing_beside_a_file(other: Path) -> None:
    """A file without a log has none after an open that failed."""
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = contents(other.parent)
    with pytest.raises(UnsupportedError, match="was written by a newer version"):
        cm.open(other)
    assert contents(other.parent) == before


def make_fifo(place: Path) -> None:
    """Make a named pipe that holds some bytes, so that a read of it ends."""
    os.mkfifo(place)
    os.write(os.open(place, os.O_RDWR), bytes(4096))


def make_socket(place: Path) -> None:
    """Make a socket."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{os.open(place.parent, os.O_RDONLY)}/{place.name}")


ODD: dict[str, tuple[str, Callable[[Path], object]]] = {
    "fifo": ("a named pipe (FIFO)", make_fifo),
    "socket": ("a socket", make_socket),
    "folder": ("a folder", Path.mkdir),
    "link": ("a symbolic link", lambda place: place.symlink_to(place.with_name("real"))),
    "dangling link": ("a symbolic link", lambda place: place.symlink_to("nothing")),
}


@pytest.mark.parametrize("end", ["-wal", "-journal", "-shm"])
@pytest.mark.parametrize("odd", ODD)
def test_a_log_that_is_no_ordinary_file(odd: str, end: str, other: Path) -> None:
    """A pipe, socket, folder or link by the name of a log is refused in one line that names it."""
    other.with_name("real").touch()
    kind, make = ODD[odd]
    place = Path(f"{other}{end}")
    make(place)
    sentence = f"{place} is {kind}, and SQLite keeps a file of that name; move it away."
    for command in ("check --store", "ls --at", "serve --port 0 --store", "account create o --store"):
        refused = run(*command.split(), str(other))
        assert (refused.exit_code, refused.stdout, refused.stderr) == (2, "", f"cloudstore: {sentence}\n")
    with pytest.raises(UnsupportedError) as caught:
        cm.open(other)
    assert str(caught.value) == sentence
    other.unlink()
    assert run("account", "create", "o", "--store", str(other)).stderr == f"cloudstore: {sentence}\n"


def test_a_pipe_beside_a_link_to_a_store(other: Path) -> None:
    """Beside a link to a store a pipe by the name of a log is refused as well."""
    link = other.with_name("link.db")
    link.symlink_to(other)
    make_fifo(Path(f"{link}-journal"))
    with pytest.raises(UnsupportedError, match=r"link\.db-journal is a named pipe"):
        cm.open(link)
