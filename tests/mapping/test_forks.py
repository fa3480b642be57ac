"""Embedded stores at a fork: SQLite is quiet at that moment, and each process goes on with connections of its own."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import sqlite_forks
from cloudstore_mapping.client.mapping import CloudStoreMapping, files_of
from cloudstore_mapping.service.storage import sqlite
from cloudstore_mapping.service.storage.sqlite import SQLiteSession, SQLiteStorage
from cloudstore_mapping.service.storage.sqlite_files import Identity
from cloudstore_mapping.storefiles import is_store
from tests.storage.test_locks import unlocked
from tests.support.forking import ENDS, FOREVER, Saving, in_child

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which this system lacks"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
    pytest.mark.sqlite("it is about what a fork copies of SQLite"),
]

Store = CloudStoreMapping[Any]

#: A value whose transaction is in the log before its commit: larger than SQLite's cache.
LARGE = "x" * 8_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a store."""
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """Return a store in a file, with a key."""
    with cm.open(path) as store:
        store["kept"] = "kept"
        yield store


def use(store: Store, key: str = "child") -> None:
    """Save and load."""
    store[key] = 1
    assert (store[key], store["kept"]) == (1, "kept")


def complaint(error: type[BaseException], act: Callable[[], object]) -> str:
    """Run `act` in a child, and return the error of that type which it raised there."""
    complaint = in_child(act)
    assert complaint.startswith(error.__name__)
    return complaint


class StoppedInside:
    """A thread that is stopped at `name` in `thing`, inside SQLite or a transaction, and goes on at the block's end."""

    def __init__(self, patch: pytest.MonkeyPatch, thing: Any, name: str, act: Callable[[], object]) -> None:
        self.go = threading.Event()
        self._reached = threading.Event()
        original = getattr(thing, name)

        def stopping(*args: Any, **options: Any) -> Any:
            if not self._reached.is_set():
                self._reached.set()
                self.go.wait()
            return original(*args, **options)

        patch.setattr(thing, name, stopping)
        self._thread = threading.Thread(target=act, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()
        assert self._reached.wait(FOREVER)

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._thread.join()


PLACES: dict[str, tuple[Any, str, Callable[[Store, Path], object]]] = {
    "save": (SQLiteSession, "_commit", lambda store, _: store.update(saved=1)),
    "load": (SQLiteSession, "row", lambda store, _: store["kept"]),
    "opening": (sqlite, "check_place", lambda _, path: cm.open(path).close()),
    "a new connection": (sqlite, "track_session", lambda store, _: read_anew(store)),
    "closing": (Identity, "part_from_log", lambda _, path: cm.open(path).close()),
    "a look at a file": (sqlite_forks, "closing", lambda _, path: is_store(path)),
    "backup": (sqlite, "back_up", lambda _, path: back_up(path)),
}


def read_anew(store: Store) -> None:
    """Load over a connection that is opened for it."""
    transport: Any = files_of(store).client._transport
    transport._storage._idle.clear()
    store["kept"]


def back_up(path: Path) -> None:
    """Back a store up beside itself."""
    with SQLiteStorage(path) as storage:
        storage.back_up(path.with_name("backup.db"), lambda *_: None)


@pytest.mark.parametrize("where", PLACES)
def test_a_fork_waits_for_threads_in_sqlite(
    where: str, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork waits until other threads are out of SQLite and of transactions; so its child can use the store."""
    thing, name, act = PLACES[where]
    stopped = StoppedInside(monkeypatch, thing, name, lambda: act(store, path))
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        stopped.go.set()
        time.sleep(seconds)

    with stopped:
        monkeypatch.setattr(sqlite_forks, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        assert in_child(lambda: use(store)) == ""
        assert waited
        assert in_child(lambda: use(cm.open(path))) == ""
    use(store)


@pytest.mark.parametrize("where", PLACES)
def test_a_fork_gives_up_waiting(where: str, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork is done though another thread stays in SQLite: each use in the child is refused, with the remedy."""
    monkeypatch.setattr(sqlite_forks, "PATIENCE", 0.0)
    thing, name, act = PLACES[where]
    with StoppedInside(monkeypatch, thing, name, lambda: act(store, path)):
        for child_s in (lambda: store["kept"], lambda: store.update(a=1), lambda: cm.open(path)):
            assert "by 'spawn'" in complaint(cm.UnsupportedError, child_s)
    use(store)


@pytest.mark.parametrize("location", ["store.db", "memory:"])
@pytest.mark.parametrize("act", [lambda store: store.update(b=1), lambda store: store["a"]], ids=["save", "load"])
def test_nothing_begins_during_a_fork(
    location: str, act: Callable[[Store], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save or load that comes while another thread forks waits for it, and the child does without that thread."""
    with cm.open(location if location == "memory:" else tmp_path / location) as store:
        store["a"] = store["b"] = 0
        waits = threading.Event()

        def sleep(seconds: float) -> None:
            waits.set()
            time.sleep(seconds)

        monkeypatch.setattr(sqlite_forks, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        thread = threading.Thread(target=act, args=(store,), daemon=True)
        sqlite_forks._before()
        try:
            thread.start()
            assert waits.wait(FOREVER)
            assert thread.is_alive()
            assert in_child(lambda: act(store)) == ""
        finally:
            sqlite_forks._after_in_parent()
        thread.join(FOREVER)
        assert not thread.is_alive()


def test_what_an_interrupt_left_behind(store: Store) -> None:
    """A thread that was interrupted, and left its mark in SQLite behind, keeps no fork waiting."""
    transport: Any = files_of(store).client._transport
    session = transport._storage._session
    session.user = threading.get_ident()
    sqlite_forks._inside[threading.get_ident()] = True
    assert in_child(lambda: use(store)) == ""
    assert (session.user, sqlite_forks._inside) == (0, {})


def test_a_fork_waits_for_no_other_process(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waits for another process's transaction keeps no fork waiting."""
    monkeypatch.setattr(sqlite_forks, "PATIENCE", 0.0)
    waits, goes_on = threading.Event(), threading.Event()

    def sleep(seconds: float) -> None:
        waits.set()
        goes_on.wait(seconds)

    monkeypatch.setattr(sqlite, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    thread = threading.Thread(target=store.update, kwargs={"late": 1}, daemon=True)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        thread.start()
        assert waits.wait(FOREVER)
        assert in_child(lambda: store["kept"]) == ""
        holder.communicate(b"\n")
    goes_on.set()
    thread.join(FOREVER)
    assert store["late"] == 1


HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print(flush=True)
sys.stdin.readline()
"""


def test_a_child_locks_for_itself(store: Store, path: Path) -> None:
    """A child's locks are its own: its parent may close the store meanwhile, and takes no log away from it."""
    reading, writing = os.pipe()
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            use(store)
            os.write(told, b"1")
            os.read(reading, 1)
            use(store, "later")
            assert in_child(lambda: is_locked(path)) == ""
            status = 0
        finally:
            os._exit(status)
    os.read(ready, 1)
    store.close()
    os.write(writing, b"1")
    assert os.waitpid(child, 0)[1] == 0
    with cm.open(path) as store:
        assert dict(store) == {"child": 1, "kept": "kept", "later": 1}


def is_locked(path: Path) -> None:
    """Check that another process has the locks of an open store."""
    assert unlocked(path) == []


def test_a_parent_keeps_its_locks(store: Store, path: Path) -> None:
    """A child that lets go of its parent's connections, or ends, leaves the parent all locks, and the log."""
    assert in_child(lambda: None) == ""
    assert in_child(lambda: use(store)) == ""
    assert in_child(store.close) == ""
    assert in_child(lambda: is_locked(path)) == ""
    assert Path(f"{path}-wal").stat().st_size
    use(store, "parent")


@pytest.mark.parametrize("close", [lambda store: store.close(), lambda store: files_of(store).client.hurry()])
def test_a_child_closes_nothing_of_its_parent(close: Callable[[Store], object], store: Store) -> None:
    """A child that closes the store waits for no lock that a thread of its parent held."""
    transport: Any = files_of(store).client._transport
    with transport._service.media._sweeper._lock:
        assert in_child(lambda: close(store)) == ""
    use(store)


def test_a_fork_within_a_transaction(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork by a thread in the middle of a save, as in a signal's handler, is done at once; the parent saves."""
    commit = SQLiteSession._commit
    found: list[str] = []
    children: list[int] = []
    waited: list[float] = []
    monkeypatch.setattr(sqlite_forks, "time", SimpleNamespace(sleep=waited.append, monotonic=time.monotonic))

    def forking(session: SQLiteSession) -> None:
        monkeypatch.setattr(SQLiteSession, "_commit", commit)
        found.append(complaint(cm.UnsupportedError, lambda: use(store)))
        found.append(complaint(cm.UnsupportedError, lambda: cm.open(path)))
        children.append(os.fork())
        commit(session)

    monkeypatch.setattr(SQLiteSession, "_commit", forking)
    try:
        store["a"] = LARGE
    finally:
        if children == [0]:
            os._exit(3 if isinstance(sys.exc_info()[1], cm.CloudStoreError) else 4)  # the transaction is the parent's
    assert os.waitstatus_to_exitcode(os.waitpid(children[-1], 0)[1]) == 3
    assert all("by 'spawn'" in sentence for sentence in found)
    assert waited == []
    assert dict(store) == {"a": LARGE, "kept": "kept"}
    assert in_child(lambda: use(store)) == ""
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


TOO_LONG = """
import os, sys, threading
import cloudstore_mapping as cm
from cloudstore_mapping import sqlite_forks
from cloudstore_mapping.service.storage.sqlite_files import Identity
from cloudstore_mapping.service.storage.sqlite import SQLiteSession
from cloudstore_mapping.storefiles import is_store

sqlite_forks.PATIENCE = 0.0
store = cm.open(sys.argv[1])
store["a"] = 1
inside, go, commit = threading.Event(), threading.Event(), SQLiteSession._commit

def slow(session):
    inside.set()
    go.wait()
    commit(session)

SQLiteSession._commit = slow
thread = threading.Thread(target=store.update, kwargs={"b": 2})
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    for act in (lambda: store["a"], lambda: cm.open(sys.argv[1]), store.close):
        try:
            act()
        except cm.UnsupportedError as error:
            print(error, flush=True)
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
go.set()
thread.join()
print(dict(store))
"""


def test_a_fork_that_waits_too_long(path: Path) -> None:
    """A fork is done though another thread stays in a transaction: the child is told, and its end harms nobody."""
    run = [sys.executable, "-W", "ignore", "-c", TOO_LONG, str(path)]
    done = subprocess.run(run, timeout=FOREVER, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, second, last = done.stdout.splitlines()
    assert first == second == sqlite_forks._BROKEN
    assert last == "{'a': 1, 'b': 2}"


def test_a_copy_of_memory() -> None:
    """A child goes on with a copy of a store in memory, and neither process sees what the other one saves."""
    with cm.open("memory:") as store:
        store["kept"] = "kept"
        media = store.upload(b"12345", "a.bin")

        def go_on() -> None:
            use(store)
            assert store.download(media) == b"12345"
            assert in_child(lambda: use(store, "grandchild")) == ""
            assert dict(store) == {"child": 1, "kept": "kept"}
            store.close()

        assert in_child(go_on) == ""
        use(store, "parent")
        assert dict(store) == {"kept": "kept", "parent": 1}


def test_a_fork_within_an_edit(store: Store) -> None:
    """Both processes leave the block of an `edit`, and the one that saves last is told of the other's change."""
    store["count"] = {"n": 1}
    children: list[int] = []

    def edit() -> None:
        with store.edit("count") as value:
            value["n"] += 1
            children.append(os.fork())
            if children[0]:
                assert os.waitpid(children[0], 0)[1] == 0

    try:
        with pytest.raises(cm.ChangedError):
            edit()
    finally:
        if children == [0]:
            os._exit(0 if store["count"] == {"n": 2} else 1)
    assert store["count"] == {"n": 2}


def test_a_hook_within_a_fork(store: Store) -> None:
    """A hook that runs within the fork is told to use the store at another time; it would wait for the fork's end."""
    sqlite_forks._before()
    try:
        for act in (lambda: store["kept"], lambda: store.update(a=1), lambda: list(store)):
            with pytest.raises(cm.UnsupportedError, match="before the fork, or after it"):
                act()
    finally:
        sqlite_forks._after_in_parent()
    use(store)


@pytest.mark.parametrize("location", ["store.db", "memory:"])
def test_a_child_ends_like_any_program(location: str, tmp_path: Path) -> None:
    """A child that used the store, closed it or did neither ends by `sys.exit`, and its parent goes on."""
    run = [sys.executable, "-W", "ignore", "-c", ENDS, location]
    done = subprocess.run(run, timeout=FOREVER, capture_output=True, text=True, check=False, cwd=tmp_path)
    known = "{'a': 1, 'c': 3}" if location == "memory:" else "{'a': 1, 'b': 2, 'c': 3}"
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, known, "")


@pytest.mark.parametrize("forks", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_forks_while_threads_save(forks: int, store: Store, path: Path, tmp_path: Path) -> None:
    """Forks from several threads, and from children, while others save: no process hangs, and no save is lost."""
    complaints: list[str] = []
    acknowledged = tmp_path / "acknowledged"
    acknowledged.mkdir()

    def act(name: str, depth: int) -> None:
        mine = cm.open(path) if depth else store
        for number in range(3):
            use(mine, f"{name}.{number}")
            (acknowledged / f"{name}.{number}").touch()
        if depth:
            with Saving(mine, 1, f"{name}."):
                assert in_child(lambda: act(f"{name}.n", 0)) == ""

    def fork(name: str) -> None:
        complaints.extend(in_child(lambda number=number: act(f"{name}{number}", number % 2)) for number in range(forks))  # type: ignore[misc]

    with Saving(store) as saving:
        others = [threading.Thread(target=fork, args=(name,)) for name in ("a", "b")]
        for thread in others:
            thread.start()
        for thread in others:
            thread.join()
    assert (saving.errors, {*complaints}) == ([], {""})
    found = dict(store)
    store.close()
    with cm.open(path) as store:
        assert dict(store) == found
    assert {key for key, value in saving.known.items() if not found[key] >= value} == set()
    assert {entry.name for entry in acknowledged.iterdir()} <= {*found}
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_processes_while_threads_save(store: Store) -> None:
    """Processes and pools that `multiprocessing` forks work while threads save."""
    context = multiprocessing.get_context("fork")
    with Saving(store) as saving:
        with context.Pool(2) as pool:
            assert pool.map_async(store.get, ["kept"] * 8).get(FOREVER) == ["kept"] * 8
        process = context.Process(target=use, args=(store,))
        process.start()
        process.join(FOREVER)
    assert (process.exitcode, saving.errors, store["child"]) == (0, [], 1)
