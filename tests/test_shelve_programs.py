"""Programs that use `shelve` do the same with ours, unchanged but for the import."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.storages import new_storage

PROGRAMS = Path(__file__).parent / "programs"
ROOT = PROGRAMS.parent.parent
OURS = "from cloudstore_mapping import shelve"

#: The runs of each program, one after another on one shelf.
RUNS: dict[str, list[list[str]]] = {
    "todo": [
        ["add", "buy", "#apples", "and", "#pears"],
        ["add", "write a letter"],
        ["done", "1"],
        ["done", "7"],
        ["list"],
        ["purge"],
        ["list"],
    ],
    "memo": [[], []],
    "sessions": [[], []],
    "addresses": [
        ["add", "Ann", "1"],
        ["add", "Ann", "2"],
        ["add", "Zoë, née Li/Wu", "3"],
        ["remove", "Bob"],
        ["find", "é"],
        ["list"],
    ],
    "spider": [["5"], ["7"]],
    "clipboard": [
        ["save", "a b", "text é"],
        ["save", "%", ""],
        ["list"],
        ["load", "a b"],
        ["delete", "a b"],
        ["load", "a b"],
        ["list"],
        ["delete"],
        ["list"],
    ],
    "game": [["play", "take", "down", "take"], ["show"], ["play", "take", "up"], ["show"]],
    "bot": [["ann", "hello hello bot"], ["quit", "bye"], ["nobody", "x x"], ["ann", "bot"]],
    "jobs": [["add", "5"], ["work", "2"], ["add", "1"], ["show"]],
    "history": [["1+2", "x=!0"], ["x=2+3j", "!1"], ["!0", "x=1", "history"]],
    "scraper": [["/", "/é?x=1"], ["/old", "/", "/é?x=1", "/old"]],
    "settings": [[], ["colour=blue", "home=/tmp", "ratio=2.5"], []],
}
#: What every run tests: a program and where its shelf is; the others are slow, as each run of a program starts Python.
FAST: Final = {("sessions", "file"), ("bot", "http")}


PLACES: Final = ("file", "http")


@pytest.fixture(params=PLACES)
def location(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return where ours keeps its data: in a file, or at a service, whose address is in the environment."""
    with ExitStack() as stack:
        if request.param == "file":
            yield str(tmp_path / "shelf.db")
        else:
            service = stack.enter_context(Service(new_storage()))
            address = stack.enter_context(background(service))
            address = address.replace("://", f"://{service.accounts.create('owner')}@")
            monkeypatch.setenv("CLOUDSTORE_URL", address)
            yield "cloudstore:shelf"


def environment() -> dict[str, str]:
    """Return the environment of a program."""
    names = {"PYTHONPATH": str(ROOT), "CLOUDSTORE_SECRET": "a secret of the tests", "PYTHONHASHSEED": "0"}
    return {**os.environ, **names}


def run(program: Path, shelf: str, arguments: list[str]) -> tuple[int, str, str]:
    """Return the exit status of a program, and what it said."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(program), shelf, *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    return ran.returncode, ran.stdout, ran.stderr


def swapped(name: str, folder: Path) -> Path:
    """Return a copy of a program with the import of our `shelve`."""
    ours = folder / f"{name}.py"
    source = (PROGRAMS / f"{name}.py").read_text()
    assert source.count("import shelve\n") == 1
    ours.write_text(source.replace("import shelve\n", f"{OURS}\n"))
    return ours


#: Prints all that a shelf holds, with its types, in an order that doesn't depend on hashes. The classes are those of a
#: program, which isn't run.
CONTENT = """
import runpy, sys

shelve_module, program, shelf = sys.argv[1:]
shelve = __import__(shelve_module, fromlist=["open"])
globals().update({key: value for key, value in runpy.run_path(program, run_name="program").items() if key[:2] != "__"})

def described(value, known):
    kind = type(value).__name__
    if isinstance(value, (type, type(None), bool, int, float, complex, str, bytes)):
        return kind, repr(value)
    if id(value) in known:  # a cycle, or the same object again
        return kind, known[id(value)][0]
    known[id(value)] = len(known), value
    if isinstance(value, dict):
        parts = [part for item in value.items() for part in item]
    elif isinstance(value, (set, frozenset)):
        return kind, sorted(repr(described(part, known)) for part in value)
    elif isinstance(value, (list, tuple)):
        parts = value
    else:
        parts = [list(part) if hasattr(part, "__next__") else part for part in value.__reduce_ex__(4)[1:]]
    return kind, [described(part, known) for part in parts]

with shelve.open(shelf, "r") as db:
    for key in sorted(db):
        print(ascii(key), ascii(described(db[key], {})))
"""


def content(module: str, program: Path, shelf: str) -> str:
    """Return all that a shelf holds, as read with the standard library's module or ours."""
    ran = subprocess.run(
        [sys.executable, "-c", CONTENT, module, str(program), shelf],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert (ran.stderr, ran.returncode) == ("", 0)
    return ran.stdout


@pytest.mark.parametrize(
    ("name", "location"),
    [
        pytest.param(name, place, marks=() if (name, place) in FAST else pytest.mark.slow)
        for name in RUNS
        for place in PLACES
    ],
    indirect=["location"],
)
def test_the_same_output_and_data(name: str, location: str, tmp_path: Path) -> None:
    """Each run prints the same, ends with the same status and leaves equal data, with `import shelve` and with ours."""
    if name == "spider" and find_spec("dbm.sqlite3"):
        pytest.skip("needs a standard library whose shelf may be used by several threads")
    theirs, ours = PROGRAMS / f"{name}.py", swapped(name, tmp_path)
    left: list[str] = []
    for arguments in RUNS[name]:
        status, output, errors = run(ours, location, arguments)
        expected = run(theirs, str(tmp_path / "standard"), arguments)
        assert (status, output, errors.replace(str(ours), str(theirs))) == expected
        if arguments in (RUNS[name][0], RUNS[name][-1]):
            left.append(content("cloudstore_mapping.shelve", ours, location))
            assert left[-1] == content("shelve", theirs, str(tmp_path / "standard"))
    assert expected[1]
    assert any(left)


@pytest.mark.parametrize(
    ("command", "location"),
    [
        pytest.param(command, place, marks=() if (command, place) == ("work", "file") else pytest.mark.slow)
        for command in ("add", "work")
        for place in PLACES
    ],
    indirect=["location"],
)
def test_a_program_that_is_killed(command: str, location: str, tmp_path: Path) -> None:
    """After SIGKILL all assignments are there that the program was told of, and it goes on as if it had ended."""
    ours = swapped("jobs", tmp_path)
    before = 30 if command == "work" else 0
    if before:
        run(ours, location, ["add", str(before)])
    with subprocess.Popen(
        [sys.executable, str(ours), location, command, "100000"], stdout=subprocess.PIPE, text=True, env=environment()
    ) as running:
        assert running.stdout is not None
        said = [running.stdout.readline() for _ in range(20)]
        running.kill()
        said += running.stdout.read().splitlines(keepends=True)
    told = [int(line) for line in said if line.endswith("\n")]
    assert len(told) >= 20
    status, output, errors = run(ours, location, ["show"])
    assert (status, errors) == (0, "")
    jobs = [line.split(" ", 2) for line in output.splitlines()]
    assert [int(key) for key, _, _ in jobs] == list(range(len(jobs)))
    done = {int(key) for key, state, _ in jobs if command == "add" or state == "State.DONE"}
    assert set(told) <= done
    assert len(done - set(told)) <= 1
    for key, _, job in jobs:
        assert job == str({"number": int(key), "data": [int(key)] * 3})
    theirs, shelf = PROGRAMS / "jobs.py", str(tmp_path / "standard")
    for given in (["add", str(len(jobs))], ["work", str(len(done) if command == "work" else 0)]):
        run(theirs, shelf, given)
    assert content("cloudstore_mapping.shelve", ours, location) == content("shelve", theirs, shelf)
    for given in (["add", "2"], ["work", "100000"]):
        assert run(ours, location, given) == run(theirs, shelf, given)
    assert content("cloudstore_mapping.shelve", ours, location) == content("shelve", theirs, shelf)
