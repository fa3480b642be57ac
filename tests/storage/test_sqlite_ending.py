"""However an SQLite storage ends, what was submitted is done and nothing of it stays."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import Future
from pathlib import Path

import pytest

from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from tests.service_fakes import PATIENCE, Held


def writers() -> list[threading.Thread]:
    """Return the threads that write."""
    return [thread for thread in threading.enumerate() if thread.name == "cloudstore-writer"]


def descriptors(path: Path) -> int:
    """Return how many descriptors this process has on the store and the files beside it."""
    links = Path("/proc/self/fd")
    if not links.is_dir():
        pytest.skip("Only Linux tells what a process has open.")
    return sum(os.fspath(path) in os.fspath(link.readlink()) for link in links.iterdir() if link.is_symlink())


def run(code: str, path: Path) -> str:
    """Run a program with the path as its argument, warnings being errors; return what it prints."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code, os.fspath(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def accounts(path: Path) -> list[int]:
    """Return which of the accounts "0" to "99" there are."""
    with SQLiteStorage(path) as storage, storage.read() as transaction:
        return [number for number in range(100) if transaction.account_named(str(number))]


def test_closing_lets_go_of_all(tmp_path: Path, no_threads_left: None) -> None:
    """A closed storage has no thread, and no descriptor of the file."""
    path = tmp_path / "store.db"
    with SQLiteStorage(path) as storage:
        with storage.read() as one, storage.read() as two:
            assert one is not two
        assert descriptors(path) > 0
    assert descriptors(path) == 0


def test_a_forgotten_storage_ends_by_itself(tmp_path: Path, no_threads_left: None) -> None:
    """A storage that is dropped unclosed finishes what was submitted, then lets go of its thread and files."""
    path = tmp_path / "store.db"
    storage = SQLiteStorage(path)
    with storage.read() as transaction:
        assert not transaction.has_accounts()
    gone = weakref.ref(storage)
    held = Held(storage)
    future = storage.submit(lambda transaction: transaction.add_account("7", 1.0))
    (writer,) = writers()
    del storage, transaction
    assert gone() is None
    held.go.set()
    writer.join(PATIENCE)
    assert not writer.is_alive()
    assert future.result(0).name == "7"
    assert descriptors(path) == 0
    assert accounts(path) == [7]


def test_a_storage_may_be_forgotten_on_its_own_thread(tmp_path: Path, no_threads_left: None) -> None:
    """Where the last one who knows the storage is a callback on the writer's thread, it ends as well."""
    path = tmp_path / "store.db"
    known = [SQLiteStorage(path)]
    held = Held(known[0])
    (writer,) = writers()
    cleared: Future[int] = Future()

    def forget(_: object) -> None:
        known.clear()
        cleared.set_result(gc.collect())

    known[0].submit(lambda transaction: transaction.add_account("7", 1.0)).add_done_callback(forget)
    held.go.set()
    cleared.result(PATIENCE)
    writer.join(PATIENCE)
    assert not writer.is_alive()
    assert descriptors(path) == 0
    assert accounts(path) == [7]


END = """
import sys
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage

storage = SQLiteStorage(sys.argv[1])
with storage.read() as transaction:
    assert not transaction.has_accounts()
for number in range(100):
    storage.submit(lambda transaction, name=str(number): transaction.add_account(name, 1.0))
"""


@pytest.mark.parametrize("last", ["", "del storage, transaction", "raise SystemExit"])
def test_a_program_that_ends_unclosed_loses_nothing(tmp_path: Path, last: str) -> None:
    """A program that ends without `close` ends at once, silently, and with all it submitted in the file."""
    assert run(END + last, tmp_path / "store.db") == ""
    assert accounts(tmp_path / "store.db") == list(range(100))
    assert [file.name for file in tmp_path.iterdir()] == ["store.db"]


LAST_ACTS = """
import atexit, sys

def act():
    print(storage.submit(lambda transaction: transaction.has_accounts()).result())

{}
storage = SQLiteStorage(sys.argv[1])
"""
IMPORT = "from cloudstore_mapping.service.storage.sqlite import SQLiteStorage"
CATCH = """
def refused():
    try:
        act()
    except ConnectionError as error:
        print(error)
"""


def test_a_program_s_last_acts_don_t_hang(tmp_path: Path) -> None:
    """An exit handler may still use the storage; one that comes after its end is refused, and not left waiting."""
    early = LAST_ACTS.format(f"{IMPORT}\natexit.register(act)")
    assert run(early, tmp_path / "early.db") == "False\n"
    late = LAST_ACTS.format(f"{CATCH}\natexit.register(refused)\n{IMPORT}")
    assert run(late, tmp_path / "late.db") == "The store is closed; open it again.\n"


FORK = """
import os, sys
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage

storage = SQLiteStorage(sys.argv[1])
with storage.read() as transaction:
    assert not transaction.has_accounts()
child = os.fork()
if not child:
    for use in (lambda: storage.read().__enter__(), lambda: storage.submit(print)):
        try:
            use()
        except ConnectionError as error:
            print(error, storage.healthy())
    with SQLiteStorage(sys.argv[1]) as own:
        own.submit(lambda transaction: transaction.add_account("1", 1.0)).result()
    raise SystemExit
assert os.waitpid(child, 0)[1] == 0
storage.submit(lambda transaction: transaction.add_account("2", 1.0)).result()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="This system has no fork.")
def test_a_forked_process_opens_its_own(tmp_path: Path) -> None:
    """After a fork the child is refused instead of left waiting, can open the file anew, and ends well."""
    code = (
        "import warnings\nwarnings.simplefilter('ignore', DeprecationWarning)\n" + FORK
    )  # Python's own, about threads
    sentence = "The store was opened before a fork; open it in each process. False\n"
    assert run(code, tmp_path / "store.db") == sentence * 2
    assert accounts(tmp_path / "store.db") == [1, 2]
