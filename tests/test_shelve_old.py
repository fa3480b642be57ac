"""Shelves that the standard library made are recognized by the name programs use, and moved by the error's command."""

from __future__ import annotations

import dbm.dumb
import os
import pickle
import re
import shelve as standard
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from cloudstore_mapping.cli import app
from cloudstore_mapping.errors import BadValueError, UnsupportedError
from cloudstore_mapping.transfer import import_store, replacing
from cloudstore_mapping.transfer.dbmkinds import dbm_at
from tests.support.command_line import CliRunner

ROOT = Path(__file__).parent.parent
#: Shelves named ``todo``: `dbm.gnu` and `dbm.ndbm` of Debian's Python 3.11, where ndbm is Berkeley DB's; ndbm of GNU's
#: library, as Fedora's Python has it, made with Perl's NDBM_File; `dbm.dumb` of 3.11 and of 2.7; `dbm.sqlite3` of 3.13.
SAMPLES = Path(__file__).parent / "samples" / "dbm"
MAKERS = {
    "gnu": "dbm.gnu",
    "ndbm": "dbm.ndbm",
    "ndbm-gnu": "dbm.ndbm",
    "dumb": "dbm.dumb",
    "python2": "dbm.dumb",
    "sqlite3": "dbm.sqlite3",
}
#: What a Python has to have to read a sample.
READERS = {"gnu": "dbm.gnu", "ndbm": "dbm.ndbm", "ndbm-gnu": "dbm.gnu"}
#: Those whose one file has the very name that programs use.
OF_THAT_NAME = ["gnu", "sqlite3"]
VALUES: dict[str, Any] = {"tasks": [("buy apples", {"food"})], "plain": {"a": 1}}
MAKE = """
import importlib, shelve, sys
with shelve.Shelf(importlib.import_module(sys.argv[1]).open(sys.argv[2], "n")) as shelf:
    shelf.update({"tasks": [("buy apples", {"food"})], "plain": {"a": 1}})
"""
#: A program whose import was swapped.
USE = """
import sys
from cloudstore_mapping import shelve
with shelve.open(sys.argv[1]) as shelf:
    shelf["new"] = {1}
    print(sorted(shelf.items()))
"""


@pytest.fixture(params=MAKERS)
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Copy the files of a sample to where a test works, and return its name."""
    for file in (SAMPLES / request.param).iterdir():
        shutil.copy(file, tmp_path)
    return str(request.param)


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the folder, without settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("CLOUDSTORE_URL", "CLOUDSTORE_SECRET"):
        monkeypatch.delenv(name, raising=False)


def files(folder: Path) -> dict[str, bytes]:
    """Return all files in a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def command_in(error: BaseException) -> str:
    """Return the command that the one sentence of an error has."""
    sentence = str(error)
    assert sentence.count(". ") == 0
    assert "\n" not in sentence
    command = re.search(r"`(cloudstore import .*)`\.\Z", sentence)
    assert command is not None
    return command[1]


def pythons() -> list[str]:
    """Return all Pythons here: the one that runs this, Debian's, and those of pyenv."""
    others = [Path("/usr/bin/python3"), *sorted(Path.home().glob(".pyenv/versions/3.*/bin/python"))]
    return [sys.executable, *(str(path) for path in others if path.exists())]


def python_with(module: str, *, same_version: bool = False) -> str:
    """Return a Python that has the module, or skip the test."""
    check = f"import sys, {module}; assert {not same_version} or sys.version_info[:2] == {sys.version_info[:2]}"
    for python in pythons():
        if not subprocess.run([python, "-c", check], capture_output=True, check=False).returncode:
            return python
    pytest.skip(f"needs a Python with {module}, such as Debian's with python3-gdbm")


def with_ours(python: str, folder: Path) -> dict[str, str]:
    """Return an environment in which `python` knows the package, and a shell its command."""
    programs = folder / "bin"
    programs.mkdir()
    command = programs / "cloudstore"
    command.write_text(f'#!/bin/sh\nexec {python} -m cloudstore_mapping "$@"\n')
    command.chmod(0o755)
    packages = {str(Path(str(sys.modules[name].__file__)).parent.parent) for name in ("msgspec", "typer")}
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join([str(ROOT), *packages])}


def paste(python: str, folder: Path, tmp_path: Path) -> None:
    """Run the program, paste the command that it ends with, and run it again: it has all values."""
    environment = with_ours(python, tmp_path)
    program = [python, "-c", USE, "todo"]
    before = files(folder)
    refused = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert files(folder) == before
    command = re.findall(r"`(.*)`", refused.stderr)[-1]
    pasted = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert (pasted.returncode, pasted.stderr) == (0, "")
    assert pasted.stdout.startswith("Imported 2 keys and 0 media files.\n")
    kept = files(folder)
    assert {name: kept["todo.old" if name == "todo" else name] for name in before}.keys() == before.keys()
    run = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == (f"{sorted({**VALUES, 'new': {1}}.items())}\n", "")


@pytest.mark.parametrize("flag", ["r", "w", "c", "n"])
def test_it_is_refused_with_the_command(sample: str, flag: str, tmp_path: Path) -> None:
    """Opening a shelf of the standard library is an error with the import command, and nothing is made or changed."""
    before = files(tmp_path)
    with pytest.raises(UnsupportedError) as caught:
        shelve.open("todo", flag)
    place = tmp_path / "todo"
    assert command_in(caught.value) == f"cloudstore import {place} --format shelve --trust --at {place}"
    assert f"({MAKERS[sample]}: " in str(caught.value)
    assert files(tmp_path) == before


@pytest.mark.skipif(sys.platform == "win32", reason="the command is pasted into a POSIX shell")
@pytest.mark.slow
def test_pasting_the_command_moves_the_data(sample: str, tmp_path: Path) -> None:
    """The command from the error, pasted into a shell, moves a shelf of every form, and the program then works."""
    python = python_with(READERS.get(sample, "dbm"), same_version=True)
    folder = tmp_path / "it's here"  # quoted in the command
    folder.mkdir()
    for file in (SAMPLES / sample).iterdir():
        shutil.copy(file, folder)
    paste(python, folder, tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="the command is pasted into a POSIX shell")
@pytest.mark.parametrize("module", ["dbm.gnu", "dbm.ndbm", "dbm.dumb", "dbm.sqlite3"])
@pytest.mark.slow
def test_files_made_by_the_pythons_here(module: str, tmp_path: Path) -> None:
    """A shelf that a Python on this machine has just made, of each module, is refused, and moved by the command."""
    folder = tmp_path / "work"
    folder.mkdir()
    maker = python_with(module)
    subprocess.run([maker, "-c", MAKE, module, str(folder / "todo")], check=True)
    paste(python_with(module if module in READERS.values() else "dbm", same_version=True), folder, tmp_path)


def needs_reader(sample: str) -> None:
    """Skip the test where this Python lacks what reads a sample; pasting the command is tested with one that has it."""
    if sample in READERS:
        try:
            import_module(READERS[sample])
        except ImportError:  # Debian's Python has the module, which then misses another one
            pytest.skip(f"needs {READERS[sample]} in this Python")


def test_it_is_found_by_the_program_s_name(sample: str, tmp_path: Path) -> None:
    """The name that programs use leads to all files of a shelf, without the endings of these."""
    found = dbm_at(Path("todo"))
    assert found is not None
    assert found.maker == MAKERS[sample]
    assert {file.name for file in found.files} == files(tmp_path).keys()


def test_the_import_takes_the_program_s_name(sample: str, tmp_path: Path) -> None:
    """An import of a shelf takes the name that programs use, and asks for trust, whatever made the shelf."""
    needs_reader(sample)
    with cm.open("new.db") as store:
        with pytest.raises(BadValueError, match="trust=True"):
            import_store(store, "todo")
        assert import_store(store, "todo", trust=True).written == 2
    with shelve.open("new.db") as shelf:
        assert dict(shelf) == VALUES


def test_berkeley_s_files_without_an_ending(tmp_path: Path) -> None:
    """Berkeley DB's files are recognized by their magic numbers: Python 2's without an ending, and macOS's."""
    shutil.copy(SAMPLES / "ndbm" / "todo.db", "todo")
    found = dbm_at(Path("todo"))
    assert found is not None
    assert found.maker == "dbhash"
    for number, begins in enumerate([b"\x00\x06\x15\x61", b"\x61\x15\x06\x00"]):
        Path(f"mac{number}.db").write_bytes(begins + bytes(1020))
        with pytest.raises(UnsupportedError, match=r"dbm\.ndbm"):
            shelve.open(f"mac{number}")


@pytest.mark.skipif(sys.platform == "win32", reason="the command is pasted into a POSIX shell")
def test_a_shelf_of_python_2_s_berkeley_db(tmp_path: Path) -> None:
    """A shelf in a Berkeley DB file without an ending is moved as well."""
    python = python_with("dbm.ndbm", same_version=True)
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copy(SAMPLES / "ndbm" / "todo.db", folder / "todo")
    paste(python, folder, tmp_path)


def test_the_index_before_is_enough_to_be_recognized(tmp_path: Path) -> None:
    """A shelf of `dbm.dumb` whose index a crash took is refused, and the import says which file is missing."""
    for name in ("todo.dat", "todo.bak"):
        shutil.copy(SAMPLES / "dumb" / name, name)
    with pytest.raises(UnsupportedError) as caught:
        shelve.open("todo")
    command_in(caught.value)
    with cm.open("memory:") as store, pytest.raises(UnsupportedError, match=r"todo\.dir is missing, of which"):
        import_store(store, "todo", trust=True)


def test_what_is_no_shelf_is_not_in_the_way(tmp_path: Path) -> None:
    """Files of other programs, and stores of ours, with the names of a dbm's are none."""
    Path("todo.dat").write_bytes(b"Dear diary")
    Path("todo.dir").write_bytes(b"a folder's list")
    with cm.open("todo.db") as other, closing(sqlite3.connect("todo.pag")) as foreign:
        foreign.execute("CREATE TABLE t (x)")
        other["a"] = 1
        with shelve.open("todo") as shelf:
            shelf["b"] = (2,)
        with shelve.open("todo") as shelf:
            assert dict(shelf) == {"b": (2,)}
        assert other["a"] == 1


def test_a_store_of_ours_is_opened_beside_the_old_files(tmp_path: Path) -> None:
    """Once there is a store, the old files beside it are no longer looked at."""
    for file in (SAMPLES / "dumb").iterdir():
        shutil.copy(file, tmp_path)
    with cm.open("todo") as store:  # a dictionary's user is not harmed by what a shelf's left
        store["a"] = 1
    with shelve.open("todo") as shelf:
        assert dict(shelf) == {"a": 1}


def test_the_import_into_a_store_that_was_made_beside_it(tmp_path: Path) -> None:
    """With the format said, an import takes the old files although a store of the same name is there."""
    for file in (SAMPLES / "dumb").iterdir():
        shutil.copy(file, tmp_path)
    cm.open("todo").close()
    same = CliRunner().invoke(app, ["import", "todo", "--at", "todo"])
    assert (same.exit_code, same.stdout) == (2, "")
    assert "is the store itself; name another source, or its format." in same.stderr
    moved = CliRunner().invoke(app, ["import", "todo", "--format", "shelve", "--trust", "--at", "todo"])
    assert (moved.exit_code, moved.stdout) == (0, "Imported 2 keys and 0 media files.\n")
    with shelve.open("todo") as shelf:
        assert dict(shelf) == VALUES


@pytest.mark.parametrize("kind", OF_THAT_NAME)
def test_a_dictionary_names_the_command_too(kind: str, tmp_path: Path) -> None:
    """Where a dbm file has the name of a store, `open` and every command say how to move it; it may be no shelf."""
    shutil.copy(SAMPLES / kind / "todo", tmp_path)
    before = files(tmp_path)
    with pytest.raises(UnsupportedError) as caught:
        cm.open("todo")
    place = tmp_path / "todo"
    assert command_in(caught.value) == f"cloudstore import {place} --at {place}"
    for command in (["get", "a"], ["set", "a", "1"], ["ls"], ["rm", "a"]):
        result = CliRunner().invoke(app, [*command, "--at", "todo"])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"cloudstore: {caught.value}\n"
    assert files(tmp_path) == before


def test_a_secret_of_the_program_s(tmp_path: Path) -> None:
    """Where the program gives the secret, the error says to set it for the command, and doesn't show it."""
    for file in (SAMPLES / "dumb").iterdir():
        shutil.copy(file, tmp_path)
    with pytest.raises(UnsupportedError, match="set CLOUDSTORE_SECRET to the shelf's secret and move") as caught:
        shelve.open("todo", secret="a secret of the tests")
    assert "a secret of the tests" not in str(caught.value)


def move(*options: str) -> tuple[int, str, str]:
    """Paste the command into this process."""
    arguments = ["import", "todo", "--format", "shelve", "--trust", "--at", "todo", *options]
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def copied(*names: str) -> None:
    """Copy files of samples here."""
    for name in names:
        shutil.copy(SAMPLES / name, Path(name).name)


def test_a_move_that_fails_in_part_makes_nothing(tmp_path: Path) -> None:
    """If a value can't be moved there is no store of the shelf's name, which a program would take for the whole."""
    copied("dumb/todo.dat", "dumb/todo.dir")
    with dbm.dumb.open("todo", "w") as opened:
        opened[b"broken"] = b"\x80\x04."
    before = files(tmp_path)
    status, output, errors = move()
    assert (status, output) == (1, "Imported 0 keys; 1 failed.\n")
    first, second = errors.splitlines()
    assert first.startswith("cloudstore: The value of 'broken' can't be stored: ")
    assert (
        second == f"cloudstore: So there is no store {tmp_path / 'todo'} yet; mend these keys, or name another store."
    )
    assert files(tmp_path) == before
    assert CliRunner().invoke(app, ["import", "todo", "--trust", "--at", "other"]).exit_code == 1
    with shelve.open("other") as shelf:
        assert dict(shelf) == VALUES


def test_a_move_to_a_named_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--at cloudstore:NAME` moves the data to the shelf that programs open by this name, and exports that shelf."""
    copied("dumb/todo.dat", "dumb/todo.dir")
    monkeypatch.setenv("CLOUDSTORE_URL", str(tmp_path / "central"))
    with shelve.open("cloudstore:other") as shelf:
        shelf["a"] = 1
    command = ["import", "todo", "--format", "shelve", "--trust", "--at"]
    assert CliRunner().invoke(app, [*command, "cloudstore:todo", "--dry-run"]).exit_code == 0
    assert CliRunner().invoke(app, [*command, "cloudstore:todo"]).exit_code == 0
    with shelve.open("cloudstore:todo", "r") as shelf:
        assert dict(shelf) == VALUES
    exported = CliRunner().invoke(app, ["export", "again", "--format", "shelve", "--at", "cloudstore:todo"])
    assert exported.exit_code == 0, exported.stderr
    with standard.open(str(tmp_path / "again"), "r") as shelf:
        assert dict(shelf) == VALUES
    assert not (tmp_path / "cloudstore:todo").exists()
    for arguments in (command[:-1], ["export", "x.json"]):
        refused = CliRunner().invoke(app, [*arguments, "--at", "cloudstore:"])
        assert (refused.exit_code, "shelf's name" in refused.stderr) == (2, True), refused.stderr
    refused = CliRunner().invoke(app, ["get", "a", "--at", "cloudstore:todo"])
    assert (refused.exit_code, "names a shelf" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("pickled", "remedy"),
    [(b"cnowhere\nTask\n.", "put PYTHONPATH=. before"), (b"c__main__\nNowhere\n.", "transfer.import_store")],
)
def test_a_class_that_is_not_found(pickled: bytes, remedy: str, tmp_path: Path) -> None:
    """If the class of a value isn't found, the error says how to move the value."""
    with dbm.dumb.open("todo", "n") as opened:
        opened[b"task"] = pickled
    status, _, errors = move()
    assert status == 1
    assert remedy in errors.splitlines()[0]


@pytest.mark.parametrize("kind", ["dumb", "sqlite3"])
@pytest.mark.parametrize("step", ["_take_in_log", "_replace"])
def test_a_move_that_is_interrupted_leaves_the_shelf(
    kind: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends a move before its last step leaves the shelf as it was, and the command can be pasted again."""
    for file in (SAMPLES / kind).iterdir():
        shutil.copy(file, tmp_path)
    before = files(tmp_path)

    def ends(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(replacing if step == "_replace" else replacing.Replacement, step, ends)
        assert move()[0] == 130
    after = files(tmp_path)
    after.pop("todo.old", None)
    after.pop("todo.secret", None)
    assert after == before
    assert [entry for entry in tmp_path.iterdir() if entry.is_dir()] == []
    assert move()[:1] == (0,)
    with shelve.open("todo") as shelf:
        assert dict(shelf) == VALUES


def test_a_dry_run_makes_nothing(sample: str, tmp_path: Path) -> None:
    """A dry run of the command tells what would be moved, and makes neither store nor secret."""
    needs_reader(sample)
    before = files(tmp_path)
    assert move("--dry-run") == (0, "Would import 2 keys and 0 media files.\n", "")
    assert files(tmp_path) == before


@pytest.mark.skipif(sys.platform == "win32", reason="the modes of files are POSIX's")
def test_the_store_keeps_the_file_s_mode_and_secret(tmp_path: Path) -> None:
    """The store is readable by those who could read the shelf, and is signed by the secret that is there."""
    copied("sqlite3/todo")
    Path("todo").chmod(0o600)
    Path("todo.secret").write_text("a secret of the tests")
    Path("todo.secret").chmod(0o600)
    Path("todo.old").write_text("somebody's")
    assert move()[0] == 0
    assert stat.S_IMODE(Path("todo").stat().st_mode) == 0o600
    assert Path("todo.old").read_text() == "somebody's"
    assert Path("todo.old2").read_bytes() == (SAMPLES / "sqlite3" / "todo").read_bytes()
    with shelve.open("todo", secret="a secret of the tests") as shelf:
        assert dict(shelf) == VALUES


def test_a_shelf_in_use_is_not_moved(tmp_path: Path) -> None:
    """A file that another program changes, or holds a log of, while it is moved stays where it is."""
    copied("sqlite3/todo")
    with closing(sqlite3.connect("todo", isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("INSERT INTO Dict VALUES (x'61', ?)", (b"\x80\x04K\x01.",))
        status, _, errors = move()
        assert status == 2
        assert "end the program that uses it" in errors
    assert dbm_at(Path("todo")) is not None
    assert move()[1].startswith("Imported 3 keys")


def test_a_change_during_the_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shelf that was changed after it was read is not replaced."""
    copied("sqlite3/todo")
    real = replacing.Replacement._put_in_place

    def changed(self: replacing.Replacement) -> None:
        with closing(sqlite3.connect("todo")) as other, other:
            other.execute("INSERT INTO Dict VALUES (x'61', ?)", (b"\x80\x04K\x01.",))
        real(self)

    monkeypatch.setattr(replacing.Replacement, "_put_in_place", changed)
    status, _, errors = move()
    assert status == 2
    assert "was changed meanwhile and was left as it is" in errors
    assert dbm_at(Path("todo")) is not None


def test_a_log_without_its_file(tmp_path: Path) -> None:
    """A log of SQLite's that would become the new store's is in the way."""
    copied("dumb/todo.dat", "dumb/todo.dir")
    Path("todo-wal").write_bytes(b"somebody's")
    status, _, errors = move()
    assert status == 2
    assert "todo-wal may belong to" in errors
    assert not Path("todo").exists()


HELD = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("held")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="locks that a close takes along are POSIX's")
@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("todo", []),
        ("todo.db", []),
        ("todo.dat", [".dir"]),
        ("todo.dir", [".dat"]),
        ("todo.bak", [".dat"]),
        ("todo.pag", [".dir"]),
    ],
)
def test_a_live_store_keeps_its_locks(name: str, beside: list[str], tmp_path: Path) -> None:
    """Looking for old shelves where a store is open in this process takes none of its locks."""
    for end in beside:
        Path(f"todo{end}").write_bytes(b"'")
    with cm.open(name) as store:
        store["a"] = 1
        dbm_at(Path("todo"))
        dbm_at(Path(name))
        held = subprocess.run([sys.executable, "-c", HELD, name], capture_output=True, text=True, check=True)
        assert held.stdout == "held\n"


def test_a_damaged_index(tmp_path: Path) -> None:
    """A `dbm.dumb` index that is cut off in a line is one sentence with the line, and nothing is made."""
    copied("dumb/todo.dat")
    index = (SAMPLES / "dumb" / "todo.dir").read_bytes()
    Path("todo.dir").write_bytes(index[:-8])
    status, output, errors = move()
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert re.search(r"line 2 of .*todo\.dir is none of an index; is it damaged\?", errors)
    assert not Path("todo").exists()


def test_a_value_that_is_cut_off(tmp_path: Path) -> None:
    """A value of which `dbm.dumb`'s file lacks the end is an error of its key, not a shorter value."""
    with dbm.dumb.open("data", "n") as opened:
        opened[b"whole"] = b"all of it"
        opened[b"cut"] = b"all of this too"
    Path("data.dat").write_bytes(Path("data.dat").read_bytes()[:-4])
    result = CliRunner().invoke(app, ["import", "data", "--at", "new.db"])
    assert (result.exit_code, result.stdout) == (1, "Imported 1 key; 1 failed.\n")
    assert "The value of 'cut' is cut off in data; " in result.stderr
    with cm.open("new.db") as store:
        assert store.copy() == {"whole": "all of it"}


@pytest.mark.parametrize(
    ("kind", "size"),
    [("sqlite3", 4096), ("sqlite3", 6000), *(("gnu", size) for size in (4096, 12_000, 12_288, 12_352))],
)
def test_a_damaged_file(kind: str, size: int, tmp_path: Path) -> None:
    """A file that is cut off is one sentence, whatever its module raises, and nothing is made."""
    needs_reader(kind)
    Path("todo").write_bytes((SAMPLES / kind / "todo").read_bytes()[:size])
    before = files(tmp_path)
    status, output, errors = move()
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert files(tmp_path) == before


def test_text_that_is_no_pickle(tmp_path: Path) -> None:
    """A dbm file of texts is none of pickles, though a text ends as a pickle does; protocol 0's pickles are."""
    with dbm.dumb.open("texts", "n") as opened:
        opened[b"a"] = b"Buy apples."
    with dbm.dumb.open("pickles", "n") as opened:
        opened[b"a"] = pickle.dumps([1], protocol=0)
    with cm.open("memory:") as store:
        assert import_store(store, "texts").written == 1
        assert store["a"] == "Buy apples."
        with pytest.raises(BadValueError, match="is a shelf"):
            import_store(store, "pickles")
