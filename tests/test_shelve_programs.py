"""Programs that use `shelve` do the same with ours, unchanged but for the import."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.serve import background
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
}


@pytest.fixture(params=["file", "http"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return where ours keeps its data: in a file, or at a service."""
    with ExitStack() as stack:
        if request.param == "file":
            yield str(tmp_path / "shelf.db")
        else:
            service = stack.enter_context(Service(new_storage()))
            address = stack.enter_context(background(service))
            yield address.replace("://", f"://{service.accounts.create('owner')}@")


def run(program: Path, shelf: str, arguments: list[str]) -> tuple[int, str, str]:
    """Return the exit status of a program, and what it said."""
    environment = {"PYTHONPATH": str(ROOT), "CLOUDSTORE_SECRET": "a secret of the tests", "PYTHONHASHSEED": "0"}
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(program), shelf, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.parametrize(
    ("name", "location"),
    [
        *((name, "file") for name in RUNS),
        *(pytest.param(name, "http", marks=pytest.mark.slow if len(RUNS[name]) > 2 else ()) for name in RUNS),
    ],
    indirect=["location"],
)
def test_the_same_output(name: str, location: str, tmp_path: Path) -> None:
    """Each run prints the same and ends with the same status, on the standard library's shelf and on ours."""
    theirs = PROGRAMS / f"{name}.py"
    ours = tmp_path / f"{name}.py"
    source = theirs.read_text()
    assert source.count("import shelve\n") == 1
    ours.write_text(source.replace("import shelve\n", f"{OURS}\n"))
    for arguments in RUNS[name]:
        expected = run(theirs, str(tmp_path / "standard"), arguments)
        assert expected[1] or expected[2]
        assert run(ours, location, arguments) == expected
