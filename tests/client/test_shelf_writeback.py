"""A shelf with write-back saves the entries that the program changed, however it ends, and no others."""

from __future__ import annotations

import gc
import json
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.storages import new_storage
from tests.support.matrix import spread
from tests.vendor import serve_vendor

ROOT = Path(__file__).parent.parent.parent
SECRET = "a secret of the tests"

#: A program that leaves changes in the caches of four shelves, and never closes them.
FORGETFUL = """
import atexit, os, signal, sys
atexit.register(lambda: main["b"].append(4))
from cloudstore_mapping import shelve
import keeper

def opened(prefix):
    db = shelve.open(sys.argv[1], prefix=prefix, writeback=True)
    db["a"], db["b"] = [1], [1]
    db.sync()
    db["a"].append({2})
    db["b"].append(2)
    return db

class Node:
    def __init__(self):
        self.me, self.db = self, opened("cycle")

def end():
    local = opened("local")
    match sys.argv[2]:
        case "exception":
            raise LookupError
        case "exit":
            sys.exit(3)
        case "SIGTERM":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
            os.kill(os.getpid(), signal.SIGTERM)
    keeper.local = local  # alive at the end of the program

main = opened("main")
Node()
keeper.kept = opened("keeper")
atexit.register(lambda: main["a"].append(3))
end()
"""
LAST: list[tuple[str, Any]] = [("a", {2}), ("b", 2)]
STATUS = {"end": 0, "exception": 1, "exit": 3, "SIGTERM": 4}


@pytest.fixture
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return where the shelves are: in a file, at a service, at one without extensions."""
    with ExitStack() as stack:
        if request.param == "file":
            yield str(tmp_path / "shelf")
        elif request.param == "http":
            service = stack.enter_context(Service(new_storage()))
            address = stack.enter_context(background(service))
            yield address.replace("://", f"://{service.accounts.create('owner')}@")
        else:
            vendor = stack.enter_context(serve_vendor())
            yield vendor.address.replace("://", f"://{vendor.api_key}@")


def run(source: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder."""
    (folder / "keeper.py").touch()
    return subprocess.run(
        [sys.executable, "-c", source, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CLOUDSTORE_SECRET": SECRET},
        check=False,
    )


@pytest.mark.parametrize(
    ("location", "ending"),
    [
        pytest.param(place, ending, marks=() if (place, ending) in fast else pytest.mark.slow)
        for fast in [[("file", "exception"), ("file", "SIGTERM"), ("http", "end"), ("vendor", "exit")]]
        for place in ("file", "http", "vendor")
        for ending in STATUS
    ],
    indirect=["location"],
)
def test_changes_are_written_at_the_end_of_the_program(location: str, ending: str, tmp_path: Path) -> None:
    """Changes in the caches of open shelves are saved when the program ends, wherever it holds the shelves."""
    ran = run(FORGETFUL, location, ending, folder=tmp_path)
    assert ran.returncode == STATUS[ending], ran.stderr
    assert "LookupError" in ran.stderr if ending == "exception" else ran.stderr == ""
    with shelve.open(location, "r", secret=SECRET) as db:
        lists = {f"{name}/{key}": [1, last] for name in ("cycle", "keeper", "local") for key, last in LAST}
        assert dict(db) == {**lists, "main/a": [1, {2}, 3], "main/b": [1, 2, 4]}


INTERRUPTED = """
import atexit, sys
from cloudstore_mapping import shelve

class Interrupting:
    left = 0
    def __init__(self):
        self.x = 1
    def __getstate__(self):
        if Interrupting.left:
            Interrupting.left -= 1
            raise KeyboardInterrupt
        return {"x": self.x}

first, *others = shelves = [shelve.open(sys.argv[1], prefix=name, writeback=True) for name in "abc"]
for db in shelves:
    db["x"], db["y"] = Interrupting() if db is first else [1], [1]
    db.sync()
    db["y"].append(2)
first["x"].x = 2
atexit.register(lambda: shelves)  # which keeps them alive
Interrupting.left = int(sys.argv[2])
"""


@pytest.mark.parametrize("times", [1, 1000])
def test_an_interrupt_of_the_write_back_at_the_end(times: int, tmp_path: Path) -> None:
    """Ctrl-C at the end interrupts one shelf's write, which is done again later, or the exit status tells otherwise."""
    ran = run(INTERRUPTED, str(tmp_path / "shelf"), str(times), folder=tmp_path)
    assert (ran.returncode, "KeyboardInterrupt" in ran.stderr) == (0 if times == 1 else 120, True), ran.stderr
    with cm.open(tmp_path / "shelf") as store:
        assert [store[f"{name}/y"] for name in "bc"] == [[1, 2], [1, 2]]
        assert store["a/y"] == ([1, 2] if times == 1 else [1])


INTERRUPTED_AT = """
import atexit, sys
from cloudstore_mapping import shelve
from cloudstore_mapping.client import shelf

def trace(frame, event, _):
    global left
    if frame.f_code.co_filename != shelf.__file__ or frame.f_code.co_name == "_is_finalizing":
        return None
    if event == "line":
        left -= 1
        if left == 0:
            sys.settrace(None)
            raise KeyboardInterrupt
    return trace

left = int(sys.argv[2])
shelves = [shelve.open(sys.argv[1], prefix=name, writeback=True) for name in "ab"]
for db in shelves:
    db["x"] = [1]
    db.sync()
    db["x"].append(2)
atexit.register(lambda: (shelves, sys.settrace(trace)))
"""


@pytest.mark.parametrize(
    "line",
    [pytest.param(number, marks=() if number in (1, 2, 4, 8, 30) else pytest.mark.slow) for number in range(1, 100)],
)
def test_an_interrupt_at_any_line_of_the_write_back_at_the_end(line: int, tmp_path: Path) -> None:
    """Wherever Ctrl-C comes at the end, the changes of all shelves are saved."""
    ran = run(INTERRUPTED_AT, str(tmp_path / "shelf"), str(line), folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    with cm.open(tmp_path / "shelf") as store:
        assert (store["a/x"], store["b/x"]) == ([1, 2], [1, 2]), ran.stderr


HOOKED = """
import sys
from cloudstore_mapping import shelve

def hook(*_):
    HOW

sys.excepthook = hook
db = shelve.open(sys.argv[1], writeback=True)
db["a"], db["b"] = [1], [1]
db.sync()
db["a"].append(lambda: 0)
db["b"].append(2)
"""


@pytest.mark.parametrize("how", ["sys.exit(1)", "1 / 0", "pass"])
def test_a_hook_for_exceptions_that_ends(how: str, tmp_path: Path) -> None:
    """The exit status tells of a value that can't be saved, whatever the program's hook for exceptions does."""
    ran = run(HOOKED.replace("HOW", how), str(tmp_path / "shelf"), folder=tmp_path)
    assert ran.returncode == 120, ran.stderr
    with shelve.open(tmp_path / "shelf", "r", secret=SECRET) as db:
        assert dict(db) == {"a": [1], "b": [1, 2]}


MOVED = """
import os, shutil, sys
from cloudstore_mapping import shelve
db = shelve.open(sys.argv[1], writeback=True)
db["a"], db["b"] = [1], [1]
db.sync()
db["a"].append(2)
os.rename(sys.argv[1], sys.argv[1] + ".old")
if sys.argv[2] == "replaced":
    shutil.copy(sys.argv[1] + ".old", sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows moves no open file")
@pytest.mark.parametrize("what", ["moved", "replaced"])
def test_a_file_that_is_moved_before_the_end(what: str, tmp_path: Path) -> None:
    """No other file gets the changes, neither a new one nor the one in its place, and the exit status tells it."""
    ran = run(MOVED, str(tmp_path / "shelf"), what, folder=tmp_path)
    assert (ran.returncode, "was moved, deleted or replaced" in ran.stderr) == (120, True), ran.stderr
    with shelve.open(tmp_path / "shelf.old", "r", secret=SECRET) as db:
        assert dict(db) == {"a": [1], "b": [1]}
    assert (tmp_path / "shelf").exists() == (what == "replaced")
    assert not (tmp_path / "shelf-wal").exists()


def test_an_interrupt_of_a_postponed_write_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shelf that the garbage collector found is written back at the next use of a shelf but one, after Ctrl-C."""
    db = shelve.open(tmp_path / "shelf", writeback=True)
    db["a"] = [1]
    db["a"].append(2)
    cycle: list[Any] = [db]
    cycle.append(cycle)
    monkeypatch.setattr(type(db), "close", Mock(side_effect=KeyboardInterrupt))
    del db, cycle
    gc.collect()
    with pytest.raises(KeyboardInterrupt):
        shelve.open(tmp_path / "other")
    monkeypatch.undo()
    shelve.open(tmp_path / "other").close()
    with cm.open(tmp_path / "shelf") as store:
        assert store["a"] == [1, 2]


@pytest.mark.parametrize("place", ["global", "dropped"])
def test_a_failure_at_the_end_is_reported(place: str, tmp_path: Path) -> None:
    """If a change can't be saved, the reason is on stderr, and the exit status isn't 0; all other changes are saved."""
    source = """
import sys
from cloudstore_mapping import shelve
other = shelve.open("other", writeback=True)
other["a"] = [1]
other["a"].append(2)
db = shelve.open("shelf", writeback=True)
db["a"], db["b"], db["c"] = [1], [1], [1]
db["a"].append(2)
db["b"].append(lambda: None)
db["c"].append({2})
if sys.argv[1] == "dropped":
    del db
"""
    ran = run(source, place, folder=tmp_path)
    assert ran.returncode == 120
    assert ran.stderr.count("Can't pickle") == 1
    assert ("were not saved" in ran.stderr) == (place == "global")
    assert ("under 'b'" in ran.stderr) == (place == "global")
    with shelve.open(tmp_path / "other", "r", secret=SECRET) as db:
        assert db["a"] == [1, 2]
    with shelve.open(tmp_path / "shelf", "r", secret=SECRET) as db:
        assert dict(db) == {"a": [1, 2], "b": [1], "c": [1, {2}]}


#: A program whose shelf is changed after its write-back at the end, by functions registered before the import.
LATE_CHANGES = """
import atexit, sys, weakref
class Kept: pass
kept = Kept()
weakref.finalize(kept, lambda: tasks.append("finalized"))
atexit.register(lambda: db.update(new=db["other"] + [tasks[-1]]))
atexit.register(lambda: tasks.append("end"))
from cloudstore_mapping import shelve
db = shelve.open(sys.argv[1], writeback=True)
tasks = db["tasks"] = []
db["other"] = [1]
tasks.append("work")
"""


@pytest.mark.parametrize("location", ["file", "http", pytest.param("vendor", marks=pytest.mark.slow)], indirect=True)
def test_changes_after_the_write_back_at_the_end(location: str, tmp_path: Path) -> None:
    """A shelf is open until the last function of `atexit`, and what these change is saved, too."""
    ran = run(LATE_CHANGES, location, folder=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    with shelve.open(location, "r", secret=SECRET) as db:
        assert sorted(db["tasks"]) == ["end", "finalized", "work"]
        assert db["new"][0] == 1


#: A program that changes a shelf, and its standard streams, in a function registered before the import.
LATE_STREAMS = """
import atexit, sys
old = sys.stdout, sys.stderr
def end():
    db["a"].append(2)
    if sys.argv[3]:
        db["b"].append(lambda: None)
    exec(sys.argv[2])
atexit.register(end)
from cloudstore_mapping import shelve
db = shelve.open(sys.argv[1], writeback=True)
db["a"], db["b"] = [1], [1]
cycle = [db]
cycle.append(cycle)
keep = sys.modules["string"] = cycle
exec(sys.argv[4])
"""
STREAMS = {
    "same": ("", ""),
    "error restored": ("sys.stderr = sys.__stderr__", ""),
    "both restored": ("sys.stdout, sys.stderr = old", ""),
    "error closed": ("sys.stderr.close()", ""),
    "output closed": ("sys.stdout.close()", ""),
    "output replaced": ("import io; sys.stdout = io.StringIO()", ""),
    "no error": ("", "sys.stderr = sys.__stderr__ = None"),
    "none": ("", "sys.stdout = sys.__stdout__ = sys.stderr = sys.__stderr__ = None"),
    "broken": ("print('x'); sys.stderr.close()", "import os; r, w = os.pipe(); os.close(r); sys.stdout = open(w, 'w')"),
    "same for both": ("", "sys.stdout = sys.stderr"),
    "without attributes": (
        "",
        "sys.stdout = sys.__stdout__ = sys.__stderr__ = None\n"
        "sys.stderr = type('S', (), {'__slots__': (), 'write': len, 'flush': lambda self: None})()",
    ),
}


@pytest.mark.parametrize(("fails", "streams"), spread([[False, True], STREAMS], 4))
def test_changes_after_the_write_back_with_other_streams(streams: str, fails: bool, tmp_path: Path) -> None:
    """The last changes are saved, or the exit status tells otherwise, whatever a function does to a standard stream."""
    late, early = STREAMS[streams]
    ran = run(LATE_STREAMS, str(tmp_path / "shelf"), late, "fails" if fails else "", early, folder=tmp_path)
    assert (ran.returncode != 0) == (fails or "pipe" in early), ran.stderr
    with shelve.open(tmp_path / "shelf", "r", secret=SECRET) as db:
        assert dict(db) == {"a": [1, 2], "b": [1]}


@pytest.mark.parametrize("method", ["close", "sync"])
@pytest.mark.parametrize("writeback", [True, False])
def test_a_subclass_that_ends_itself(method: str, writeback: bool, tmp_path: Path) -> None:
    """At the end of a program a subclass's own `close` and `sync` are called, as the standard library does."""
    source = f"""
import sys
from cloudstore_mapping import shelve
class Own(shelve.DbfilenameShelf):
    def {method}(self):
        if not self.shelf_is_closed:
            self["t"] = [*self["t"], "{method}"]
        super().{method}()
db = Own(sys.argv[1], writeback={writeback})
db["t"] = [1]
"""
    ran = run(source, str(tmp_path / "shelf"), folder=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    with shelve.open(tmp_path / "shelf", "r", secret=SECRET) as db:
        assert db["t"] == [1, method]


def test_an_end_that_is_held_by_the_interpreter(tmp_path: Path) -> None:
    """A shelf that Python drops after its modules' names is closed without a word, as its changes are saved."""
    source = """
import sys
from cloudstore_mapping import shelve
db = shelve.open(sys.argv[1], writeback=True)
db["t"] = []
db["t"].append(1)
sys.excepthook = lambda *_: db["t"].append(2)
raise ValueError
"""
    ran = run(source, str(tmp_path / "shelf"), folder=tmp_path)
    assert (ran.returncode, ran.stderr) == (1, "")
    with shelve.open(tmp_path / "shelf", "r", secret=SECRET) as db:
        assert db["t"] == [1, 2]


@pytest.mark.parametrize("location", ["file", "http", "vendor"], indirect=True)
def test_a_shelf_in_a_cycle_is_written_back(location: str) -> None:
    """If the garbage collector finds a shelf in a cycle, the shelf is written back before its store is closed."""
    db = shelve.open(location, writeback=True, secret=SECRET)
    db["a"] = [1]
    db["a"].append(2)
    cycle: list[Any] = [db]
    cycle.append(cycle)
    del db, cycle
    gc.collect()
    with shelve.open(location, "r", secret=SECRET) as again:
        assert again["a"] == [1, 2]


class Stamped:
    """Object whose pickles all differ."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "saved": time.monotonic_ns()}


class Pair(NamedTuple):
    """Tuple with names."""

    left: int
    right: int


class Whole(int):
    """Integer."""


class Hashed:
    """Object in sets, in an order that depends on its address."""


class Named:
    """Object equal to others of its name."""

    def __init__(self, name: str, tags: list[str]) -> None:
        self.name = name
        self.tags = tags

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Named) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


def grown() -> set[str]:
    """Return a set whose order depends on its history, as it had more elements before."""
    grown = {str(number) for number in range(1000)}
    for number in range(20, 1000):
        grown.remove(str(number))
    return grown


UNSTABLE: dict[str, Callable[[], Any]] = {
    "set of texts": lambda: {"apples", "pears", "plums", "figs"},
    "grown set": grown,
    "set of objects": lambda: {Hashed() for _ in range(50)},
    "set of tuples with objects": lambda: [{("a", Hashed()), ("b", Hashed())}, {frozenset({Hashed(), Hashed()})}],
    "stamped": lambda: Stamped([1]),
    "stamped in a list": lambda: [Stamped({"a"}), {"b", "c"}],
    "plain": lambda: {"a": [1]},
    "tuple": lambda: ("a", {1: frozenset({"x", "y"})}),
}


@pytest.mark.parametrize("make", UNSTABLE.values(), ids=UNSTABLE)
def test_a_value_that_was_only_read_is_not_written_back(make: Callable[[], Any], tmp_path: Path) -> None:
    """If a program reads an entry, and another one changes it meanwhile, the change stays, whatever the value."""
    with shelve.open(tmp_path / "shelf") as db:
        db["a"] = make()
    with shelve.open(tmp_path / "shelf", writeback=True) as reader:
        assert reader["a"] is reader["a"]
        list(reader.items())
        with shelve.open(tmp_path / "shelf") as other:
            other["a"] = "changed"
        assert reader["a"] != "changed"
    with shelve.open(tmp_path / "shelf") as db:
        assert db["a"] == "changed"


class Dated(Stamped):
    """Object whose pickles differ from one day to the next."""

    today = 1

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "saved": self.today}


def test_a_value_whose_pickle_changes_with_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that was only read is not written back if its pickle has changed by itself since."""
    with shelve.open(tmp_path / "shelf") as db:
        db["a"] = Dated([1])
    with shelve.open(tmp_path / "shelf", writeback=True) as db:
        assert db["a"].value == [1]
        monkeypatch.setattr(Dated, "today", 2)
        with shelve.open(tmp_path / "shelf") as other:
            other["a"] = "changed"
    with shelve.open(tmp_path / "shelf") as db:
        assert db["a"] == "changed"


class Locked:
    """Object whose pickle takes its lock away."""

    def __init__(self) -> None:
        self.n, self.lock = 0, threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        vars(self).pop("lock")
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, lock=threading.Lock())


class Once:
    """Object whose pickle uses up its iterator."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = iter(numbers)

    def __getstate__(self) -> list[int]:
        return [*self.numbers]

    def __setstate__(self, state: list[int]) -> None:
        self.numbers = iter(state)


def test_a_pickle_with_side_effects(tmp_path: Path) -> None:
    """A value that is read is not pickled before `sync`, as a pickle may change it."""
    with shelve.open(tmp_path / "shelf") as db:
        db["a"], db["b"], db["c"] = Locked(), Once([1, 2]), Once([1])
    with shelve.open(tmp_path / "shelf", writeback=True) as db:
        with db["a"].lock:
            db["a"].n += 1
        assert db["b"]
        assert db["c"]
        db["c"].numbers = iter([1, 2, 3])
    with shelve.open(tmp_path / "shelf", writeback=True) as db:
        assert db["a"].n == 1
        assert [*db["b"].numbers] == [1, 2]
        assert [*db["c"].numbers] == [1, 2, 3]


ONCE = """
import atexit, sys
atexit.register(lambda: db["t"].append(2))
from cloudstore_mapping import shelve
from tests.client.test_shelf_writeback import Once
db = shelve.open(sys.argv[1], writeback=True)
db["t"] = [1]
db["a"], db["b"]
"""


def test_a_pickle_with_side_effects_at_the_end(tmp_path: Path) -> None:
    """A value that its pickle uses up is not pickled again after it was saved at the end of a program."""
    with shelve.open(tmp_path / "shelf", secret=SECRET) as db:
        db["a"], db["b"] = Once([1, 2]), [Once([1]), {"x"}]
    ran = run(ONCE, str(tmp_path / "shelf"), folder=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    with shelve.open(tmp_path / "shelf", "r", secret=SECRET) as db:
        assert db["t"] == [1, 2]
        assert [*db["a"].numbers] == [1, 2]
        assert [*db["b"][0].numbers] == [1]


class Sealed:
    """Object with its state elsewhere, and a pickle that hides the state and differs each time."""

    lists: dict[int, list[int]] = {}  # noqa: RUF012 - of the class

    def __init__(self) -> None:
        self.lists[id(self)] = [1]

    def __getstate__(self) -> dict[str, str]:
        return {"sealed": f"{time.monotonic_ns()} {json.dumps(self.lists[id(self)])}"}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.lists[id(self)] = json.loads(state["sealed"].split(" ", 1)[1])


def test_a_change_that_cannot_be_seen(tmp_path: Path) -> None:
    """If an object's pickles all differ, and its state is in no attribute, it counts as changed, and is written."""
    with shelve.open(tmp_path / "shelf") as db:
        db["a"] = Sealed()
    with shelve.open(tmp_path / "shelf", writeback=True) as db:
        Sealed.lists[id(db["a"])].append(2)
    with shelve.open(tmp_path / "shelf") as db:
        loaded = db["a"]
        assert Sealed.lists[id(loaded)] == [1, 2]


class Anything:
    """Object without attributes."""


def test_a_change_that_only_the_own_pickler_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change in what a program's own pickler stores of an object is written back."""
    names: dict[int, str] = {}

    class OwnPickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            return names.get(id(thing), "first") if isinstance(thing, Anything) else None

    class OwnUnpickler(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            thing = Anything()
            names[id(thing)] = pid
            return thing

    monkeypatch.setattr(shelve, "Pickler", OwnPickler)
    monkeypatch.setattr(shelve, "Unpickler", OwnUnpickler)
    with shelve.open(tmp_path / "shelf") as db:
        db["a"] = [Anything()]
    with shelve.open(tmp_path / "shelf", writeback=True) as db:
        names[id(db["a"][0])] = "second"
    with shelve.open(tmp_path / "shelf") as db:
        thing = db["a"][0]
        assert names[id(thing)] == "second"


def test_a_shelf_collected_within_a_transaction(tmp_path: Path) -> None:
    """A shelf that the garbage collector finds while its thread writes to the same file doesn't wait for itself."""
    db = shelve.open(tmp_path / "shelf", writeback=True)
    db["a"] = [1]
    db["a"].append(2)
    cycle: list[Any] = [db]
    cycle.append(cycle)
    with closing(sqlite3.connect(tmp_path / "shelf", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        del db, cycle
        gc.collect()
        connection.execute("COMMIT")
    with shelve.open(tmp_path / "shelf", "r") as again:
        assert again["a"] == [1, 2]


def test_no_function_of_python_is_called_by_the_collector(tmp_path: Path) -> None:
    """While a shelf is open, the garbage collector calls no function in which Python would ignore an interrupt."""
    with shelve.open(tmp_path / "shelf", writeback=True):
        modules = [getattr(callback, "__module__", None) for callback in gc.callbacks]
        assert not [module for module in modules if module is not None and module.startswith("cloudstore_mapping")]
        assert modules.count(None) == 2  # methods written in C


READS = """
import sys
from cloudstore_mapping import shelve
with shelve.open("shelf", writeback=True) as db:
    assert db["a"]
    print(flush=True)
    input()
"""


def test_a_reader_in_another_process(tmp_path: Path) -> None:
    """A set of texts, whose order differs in each process, is not written back by a process that only reads it."""
    with shelve.open(tmp_path / "shelf", secret=SECRET) as db:
        db["a"] = {"apples", "pears", "plums", "figs"}
    with subprocess.Popen(
        [sys.executable, "-c", READS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CLOUDSTORE_SECRET": SECRET, "PYTHONHASHSEED": "7"},
    ) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        with shelve.open(tmp_path / "shelf", secret=SECRET) as db:
            db["a"] = {"quinces"}
        reader.communicate(b"\n")
    assert reader.returncode == 0
    with shelve.open(tmp_path / "shelf", secret=SECRET) as db:
        assert db["a"] == {"quinces"}


def grow(value: Stamped) -> None:
    """Change an object whose pickles all differ."""
    value.value.append(2)


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], object], Callable[[Any], bool]]] = {
    "set": (lambda: {"a"}, lambda value: value.add("b"), lambda value: value == {"a", "b"}),
    "equal object": (lambda: Named("n", []), lambda value: value.tags.append("t"), lambda value: value.tags == ["t"]),
    "stamped": (lambda: Stamped([1]), grow, lambda value: value.value == [1, 2]),
    "pair": (
        lambda: Stamped(Pair(1, 2)),
        lambda value: setattr(value, "value", Pair(3, 4)),
        lambda value: value.value == Pair(3, 4),
    ),
    "subclass of int": (
        lambda: Stamped(Whole(1)),
        lambda value: setattr(value, "value", Whole(2)),
        lambda value: value.value == 2,
    ),
    "bool for int": (lambda: [1], lambda value: value.__setitem__(0, True), lambda value: value[0] is True),
    "order": (lambda: {"a": 1, "b": 2}, lambda value: value.update(a=value.pop("a")), lambda v: list(v) == ["b", "a"]),
    "sharing": (lambda: [[1], [1]], lambda value: value.__setitem__(1, value[0]), lambda value: value[0] is value[1]),
}


@pytest.mark.parametrize(("make", "change", "is_changed"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_written_back(
    make: Callable[[], Any], change: Callable[[Any], object], is_changed: Callable[[Any], bool], tmp_path: Path
) -> None:
    """Any change of a value is written back, also one that `==` doesn't see."""
    with shelve.open(tmp_path / "shelf") as db:
        db["a"] = make()
    with shelve.open(tmp_path / "shelf", writeback=True) as db:
        change(db["a"])
    with shelve.open(tmp_path / "shelf") as db:
        assert is_changed(db["a"])


@pytest.mark.parametrize("part", [[1], {"a": 1}, {1}], ids=["list", "dictionary", "set"])
def test_sharing_within_a_value_is_kept(part: Any, tmp_path: Path) -> None:
    """An object that a value holds twice is still one object after a load, as with the standard library's shelf."""
    with shelve.open(tmp_path / "shelf") as db:
        db["list"] = [part, part]
        db["nested"] = {"a": [part], "b": {"c": part}}
    with shelve.open(tmp_path / "shelf") as db:
        first, second = db["list"]
        assert first is second
        nested = db["nested"]
        assert nested["a"][0] is nested["b"]["c"]
        assert first == part


LATE = """
import io, sys
from cloudstore_mapping import shelve

class LastStream(io.StringIO):
    def flush(self):
        if sys.is_finalizing() and not self.closed:
            self.close()
            with shelve.open(sys.argv[1]) as db:
                db["late"] = 1
                assert list(db) == ["late"]

sys.stdout = LastStream()
"""


def test_a_shelf_opened_at_the_very_end(tmp_path: Path) -> None:
    """A shelf can be opened when the interpreter begins no threads any more: its callers do the work."""
    ran = run(LATE, str(tmp_path / "shelf"), folder=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    with shelve.open(tmp_path / "shelf") as db:
        assert dict(db) == {"late": 1}
