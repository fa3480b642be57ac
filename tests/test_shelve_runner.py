"""`python -m cloudstore_mapping.shelve` runs a program as `python` does, but with our `shelve`."""

from __future__ import annotations

import os
import py_compile
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from cloudstore_mapping import shelve

ROOT = Path(__file__).parent.parent
#: Frames of Python's own import of the program in a traceback.
IMPORTS = re.compile(r'  File "<frozen .*\n')
PROGRAM = '''"""A program."""
import atexit, shelve, sys
from dataclasses import dataclass

@dataclass
class Task:
    text: str

db = shelve.open("shelf", writeback=True)
atexit.register(db.close)
db.setdefault("tasks", []).append(Task("a"))
print(__name__, __doc__, __file__, __spec__ and __spec__.name, __package__, sys.argv, sys.path[0], sorted(globals()))

def fail():
    raise {"error": LookupError("no"), "interrupt": KeyboardInterrupt()}[sys.argv[1]]

if sys.argv[1] == "hook":
    sys.excepthook = lambda kind, error, trace: print(kind, trace.tb_frame.f_code.co_name, trace.tb_lineno)
    raise LookupError
if sys.argv[1].isdecimal():
    sys.exit(int(sys.argv[1]))
if sys.argv[1] == "sentence":
    sys.exit("a sentence")
if sys.argv[1] != "end":
    fail()
'''


def run(folder: Path, *arguments: str, given: str | None = None) -> tuple[int, str, str]:
    """Run Python in a folder, with `given` on stdin; return its exit status, what it printed, and its errors."""
    ran = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        input=given,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["program.py", "end"], id="end"),
        pytest.param(["./program.py", "error", "-x"], id="error"),
        pytest.param(["program.py", "interrupt"], id="interrupt"),
        pytest.param(["package/__main__.py", "end"], id="folder"),
        pytest.param(["program.py", "3"], id="status", marks=pytest.mark.slow),
        pytest.param(["program.py", "sentence"], id="sentence", marks=pytest.mark.slow),
        pytest.param(["program.py", "hook"], id="hook"),
        pytest.param(["absent.py"], id="absent", marks=pytest.mark.slow),
        pytest.param(["broken.py"], id="syntax", marks=pytest.mark.slow),
        pytest.param(["-m", "program", "2"], id="module"),
        pytest.param(["-m", "package", "2"], id="package", marks=pytest.mark.slow),
        pytest.param(["-m", "absent"], id="absent module", marks=pytest.mark.slow),
        pytest.param(["-m", "program", "error"], id="module error"),
        pytest.param(["-m", "bare"], id="bare package", marks=pytest.mark.slow),
        pytest.param(["-m", "absent.module"], id="absent parent", marks=pytest.mark.slow),
        pytest.param(["-m", "package.py"], id="file as module", marks=pytest.mark.slow),
        pytest.param(["-m", "sys"], id="built-in module", marks=pytest.mark.slow),
        pytest.param(["-c", "import sys; print(__name__, sys.argv, sys.path[0], sorted(globals()))", "a"], id="code"),
        pytest.param(["-c", "x = 1\nraise ValueError(x)"], id="code error"),
        pytest.param(["-c", "x = = 1"], id="code syntax", marks=pytest.mark.slow),
        pytest.param(["package", "end"], id="folder itself"),
        pytest.param(["./package/", "error"], id="folder error", marks=pytest.mark.slow),
        pytest.param(["bare"], id="bare folder"),
        pytest.param(["program.zip", "error"], id="zip"),
        pytest.param(["program.zip", "3"], id="zip status", marks=pytest.mark.slow),
        pytest.param(["broken"], id="folder syntax", marks=pytest.mark.slow),
        pytest.param(["program.pyc", "end"], id="compiled", marks=pytest.mark.slow),
        pytest.param(["-", "end"], id="stdin"),
        pytest.param(["-", "error"], id="stdin error", marks=pytest.mark.slow),
    ],
)
def test_a_program_runs_as_with_python(arguments: list[str], tmp_path: Path) -> None:
    """Arguments, globals, output, tracebacks and exit status are those of `python program.py`, without its imports."""
    for name in ("standard", "ours"):
        folder = tmp_path / name / "work"
        (folder / "package").mkdir(parents=True)
        (folder / "program.py").write_text(PROGRAM)
        (folder / "package" / "__init__.py").touch()
        (folder / "package" / "__main__.py").write_text(PROGRAM)
        (folder / "broken.py").write_text("x = = 1\n")
        (folder / "bare").mkdir()
        (folder / "bare" / "__init__.py").touch()
        (folder / "broken").mkdir()
        (folder / "broken" / "__main__.py").write_text("x = = 1\n")
        with ZipFile(folder / "program.zip", "w") as zipped:
            zipped.writestr("__main__.py", PROGRAM)
        py_compile.compile(str(folder / "program.py"), str(folder / "program.pyc"), dfile="program.py")
    given = PROGRAM if arguments[0] == "-" else None
    theirs = run(tmp_path / "standard" / "work", *arguments, given=given)
    ours = run(tmp_path / "ours" / "work", "-m", "cloudstore_mapping.shelve", *arguments, given=given)
    status, output, errors = (
        part.replace(str(tmp_path / "standard"), str(tmp_path / "ours")) if isinstance(part, str) else part
        for part in theirs
    )
    assert isinstance(errors, str)
    expected = IMPORTS.sub("", errors)
    if "SyntaxError" in errors:  # without those frames it has no heading
        expected = expected.removeprefix("Traceback (most recent call last):\n")
    assert ours == (status, output, expected)


def test_the_program_has_our_shelf(tmp_path: Path) -> None:
    """The program's `shelve` is ours: at its end it writes back objects of its own classes, which it then reads."""
    (tmp_path / "program.py").write_text(PROGRAM)
    for _ in range(2):
        assert run(tmp_path, "-m", "cloudstore_mapping.shelve", "program.py", "end")[0] == 0
    (tmp_path / "count.py").write_text(PROGRAM.partition("print(")[0] + "print(len(db['tasks']))")
    assert run(tmp_path, "-m", "cloudstore_mapping.shelve", "count.py") == (0, "3\n", "")
    assert (tmp_path / "shelf.secret").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-m"], "The option -m needs a module after it."),
        (["-c"], "The option -c needs code after it."),
        (["-u", "program.py"], "There is no option -u; write options of Python before -m cloudstore_mapping.shelve."),
    ],
)
def test_wrong_arguments(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    """An option without its argument, and an option of Python, are refused with a sentence and status 2."""
    status, output, errors = run(tmp_path, "-m", "cloudstore_mapping.shelve", *arguments)
    assert (status, output, errors.splitlines()[0]) == (2, "", sentence)
    assert errors.splitlines()[1].startswith("usage: ")


def test_usage(tmp_path: Path) -> None:
    """Without a program the command says how it is used."""
    status, output, _ = run(tmp_path, "-m", "cloudstore_mapping.shelve")
    assert (status, output.startswith("usage: python -m cloudstore_mapping.shelve (program.py")) == (2, True)
    assert shelve.__doc__ is not None
    assert "python -m cloudstore_mapping.shelve program.py" in shelve.__doc__
