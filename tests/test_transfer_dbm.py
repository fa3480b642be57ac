"""Files of `dbm` and `shelve` of every kind are read, and what is written is read by the standard library."""

from __future__ import annotations

import datetime as dt
import dbm.dumb
import os
import pickle
import shelve
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve as our_shelve
from cloudstore_mapping.errors import BadValueError, BulkError, UnsupportedError
from cloudstore_mapping.transfer import export_store, import_store

SECRET = "a secret of the tests"
#: What shelves are for: values that are no JSON, and one that looks like a pickle of ours.
VALUES: dict[str, Any] = {
    "a set": {1, 2},
    "a date": dt.date(2026, 11, 25),
    "JSON": {"a": [1.5]},
    "marked": {"__shelf__": {"json": 1}},
    "é": ("tuple", b"bytes"),
}
MAKE = """
import importlib, sys
module = importlib.import_module(sys.argv[1])
with module.open(sys.argv[2], "n") as opened:
    for number in range(300):
        opened[f"key {number}"] = str(number * 10)
"""
READ = """
import sys
import cloudstore_mapping as cm
from cloudstore_mapping.transfer import import_store
with cm.open("memory:") as store:
    done = import_store(store, sys.argv[1])
    assert store.copy() == {f"key {number}": number * 10 for number in range(300)}, store.copy()
    print(done.written)
"""


def python_with(module: str) -> str:
    """Return a Python of this version that has the module, or skip the test: Debian's, where this one has it not."""
    for python in (sys.executable, "/usr/bin/python3"):
        check = f"import sys, {module}; assert sys.version_info[:2] == {sys.version_info[:2]}"
        if Path(python).exists() and not subprocess.run([python, "-c", check], capture_output=True).returncode:
            return python
    pytest.skip(f"needs a Python with {module}: apt-get install python3-gdbm")


@pytest.mark.parametrize("module", ["dbm.gnu", "dbm.ndbm", "dbm.dumb"])
def test_every_kind(module: str, tmp_path: Path) -> None:
    """A file is recognized whatever module made it, and all of its keys are imported."""
    python = python_with(module)
    paths = os.pathsep.join([str(Path(cm.__file__).parent.parent), str(Path(msgspec.__file__).parent.parent)])
    file = str(tmp_path / "data")
    for arguments in ([MAKE, module, file], [READ, file]):
        ran = subprocess.run(
            [python, "-W", "error", "-c", *arguments],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "300\n"


def test_the_kind_of_a_newer_python(tmp_path: Path) -> None:
    """A file of `dbm.sqlite3`, which came with Python 3.13, is imported with every Python."""
    file = tmp_path / "data"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE Dict (key BLOB, value BLOB)")
        connection.executemany("INSERT INTO Dict VALUES (?, ?)", [(b"a", b"1"), ("é".encode(), b"text")])
    with cm.open("memory:") as store:
        assert import_store(store, file).written == 2
        assert store.copy() == {"a": 1, "é": "text"}


def test_a_kind_that_this_python_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the module is missing that made a file, the error says what to install."""
    file = tmp_path / "data"
    file.write_bytes(b"\xce\x9a\x57\x13" + bytes(60))  # how files of GNU's dbm begin
    monkeypatch.setitem(sys.modules, "dbm.gnu", None)
    with cm.open("memory:") as store, pytest.raises(UnsupportedError, match="python3-gdbm"):
        import_store(store, file)


def test_a_shelf_there_and_back(tmp_path: Path) -> None:
    """A shelf of the standard library becomes one of ours, and that one again, with all its values and their types."""
    with shelve.open(str(tmp_path / "theirs")) as shelf:
        shelf.update(VALUES)
    with cm.open(tmp_path / "ours.db") as store:
        assert import_store(store, tmp_path / "theirs", trust=True, secret=SECRET).written == len(VALUES)
        assert store["JSON"] == VALUES["JSON"]
    with our_shelve.open(tmp_path / "ours.db", secret=SECRET) as ours:
        assert dict(ours) == VALUES
    with cm.open(tmp_path / "ours.db") as store:
        export_store(store, tmp_path / "again", format="shelve", secret=SECRET)
    with shelve.open(str(tmp_path / "again"), "r") as shelf:
        assert dict(shelf) == VALUES
        assert [type(value) for _, value in sorted(shelf.items())] == [
            type(value) for _, value in sorted(VALUES.items())
        ]


@pytest.mark.parametrize("prefix", ["p/", "p:"])
def test_a_shelf_into_a_view_and_back(prefix: str, tmp_path: Path) -> None:
    """What is imported into a view of a store is a shelf with its prefix, and is exported from the view."""
    with shelve.open(str(tmp_path / "theirs")) as shelf:
        shelf.update(VALUES)
    with cm.open(tmp_path / "ours.db") as store:
        assert import_store(store.view(prefix), tmp_path / "theirs", format="shelve", trust=True).written == len(VALUES)
        inner = store.view(prefix[0]).view(prefix[1:])
        export_store(inner, tmp_path / "again", format="shelve")
    with our_shelve.open(tmp_path / "ours.db", prefix=prefix) as ours:
        assert dict(ours) == VALUES
    with shelve.open(str(tmp_path / "again"), "r") as shelf:
        assert dict(shelf) == VALUES


def test_the_file_s_own_secret(tmp_path: Path) -> None:
    """Without a secret that is given, the embedded file's own signs what is imported, and reads what is exported."""
    with shelve.open(str(tmp_path / "theirs")) as shelf:
        shelf.update(VALUES)
    with cm.open(tmp_path / "ours.db") as store:
        import_store(store, tmp_path / "theirs", trust=True)
        export_store(store, tmp_path / "again", format="shelve")
    with our_shelve.open(tmp_path / "ours.db") as ours, shelve.open(str(tmp_path / "again"), "r") as shelf:
        assert dict(ours) == dict(shelf) == VALUES


class Payload:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_a_shelf_is_loaded_only_if_it_is_trusted(tmp_path: Path) -> None:
    """Loading a foreign shelf would run what is in it, so that has to be asked for; counting its keys runs nothing."""
    with shelve.open(str(tmp_path / "theirs")) as shelf:
        shelf["a"] = Payload(tmp_path / "made")
    with cm.open(tmp_path / "ours.db") as store:
        with pytest.raises(BadValueError, match="say trust=True"):
            import_store(store, tmp_path / "theirs")
        with pytest.raises(BadValueError, match="say trust=True"):
            import_store(store, tmp_path / "theirs", dry_run=True)
        assert not (tmp_path / "made").exists()
        import_store(store, tmp_path / "theirs", trust=True)
        assert (tmp_path / "made").exists()


def test_pickles_in_a_store_are_loaded_only_if_they_are_signed(tmp_path: Path) -> None:
    """A shelf's export loads no pickle of another secret: it is an error of its key, and all others are there."""
    with our_shelve.open(tmp_path / "ours.db", secret="another secret of the tests") as ours:
        ours.update({"a": Payload(tmp_path / "made"), "b": 1})
    with cm.open(tmp_path / "ours.db") as store:
        with pytest.raises(BulkError) as caught:
            export_store(store, tmp_path / "out", format="shelve", secret=SECRET)
        assert isinstance(caught.value.failed["a"], BadValueError)
        assert not (tmp_path / "made").exists()
    with shelve.open(str(tmp_path / "out"), "r") as shelf:
        assert dict(shelf) == {"b": 1}


def test_what_can_t_be_imported(tmp_path: Path) -> None:
    """Keys that are no text, pickles that can't be loaded and values without a secret are errors of their keys."""
    with dbm.dumb.open(str(tmp_path / "theirs"), "n") as opened:
        opened[b"JSON"] = pickle.dumps(1)
        opened[b"a set"] = pickle.dumps({1})
        opened[b"\xff"] = pickle.dumps(1)
        opened[b"broken"] = b"\x80\x04."
    with cm.open("memory:") as store:
        with pytest.raises(BulkError) as caught:
            import_store(store, tmp_path / "theirs", trust=True, format="shelve")
        assert set(caught.value.failed) == {"a set", "broken", "\\xff"}
        assert "CLOUDSTORE_SECRET" in str(caught.value.failed["a set"])
        assert store.copy() == {"JSON": 1}


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    """A value of a dbm file that is neither JSON nor text is an error that says what it might be."""
    with dbm.dumb.open(str(tmp_path / "data"), "n") as opened:
        opened[b"a"] = b"text"
        opened[b"b"] = b"\xff"
    with cm.open("memory:") as store, pytest.raises(BulkError, match="if the file is a shelf, say so"):
        import_store(store, tmp_path / "data")


def test_an_export_in_the_place_of_another(tmp_path: Path) -> None:
    """With `overwrite` the files of a dbm that was there are gone, whatever they were called."""
    with cm.open("memory:") as store:
        store["a"] = 1
        export_store(store, tmp_path / "out", format="dbm")
        before = sorted(file.name for file in tmp_path.iterdir())
        store["b"] = 2
        del store["a"]
        with pytest.raises(FileExistsError):
            export_store(store, tmp_path / "out", format="dbm")
        export_store(store, tmp_path / "out", format="dbm", overwrite=True)
        assert sorted(file.name for file in tmp_path.iterdir()) == before
        store.clear()
        import_store(store, tmp_path / "out")
        assert store.copy() == {"b": 2}
