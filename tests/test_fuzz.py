"""What arbitrary bytes may not do: with those that are kept, and with new ones that atheris makes of them."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import fuzz

FOLDER = Path(fuzz.__file__).parent
CORPUS = FOLDER / "corpus"
TARGETS = sorted(folder.name for folder in CORPUS.iterdir())
#: Seconds for each target, and at full length.
SECONDS = 8
FULL_SECONDS = 600


def test_each_target_has_kept_inputs() -> None:
    """For every target there is a folder of inputs, and the other way round."""
    assert {*TARGETS, "values"} == {file.stem for file in FOLDER.glob("[!_]*.py")}


@pytest.mark.parametrize("target", TARGETS)
def test_kept_inputs(target: str) -> None:
    """What was found once, by hand or by fuzzing, keeps the rules of its target."""
    check = import_module(f"tests.fuzz.{target}").check
    kept = sorted((CORPUS / target).iterdir())
    assert kept
    for file in (*kept, Path("/dev/null")):
        check(file.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_new_inputs(target: str, tmp_path: Path, at_length: bool) -> None:
    """No input breaks its target's rules, takes ten seconds, or makes the process take more than a gibibyte."""
    if find_spec("atheris") is None:
        pytest.skip("needs atheris, which the extra 'dev' brings where there is one for this Python")
    seconds = FULL_SECONDS if at_length else SECONDS
    command = [sys.executable, "-m", "tests.fuzz", target, str(seconds), str(tmp_path)]
    ran = subprocess.run(
        command, cwd=FOLDER.parent.parent, check=False, capture_output=True, text=True, errors="replace"
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    done = re.search(r"^Done (\d+) runs", ran.stderr, re.MULTILINE)
    assert done is not None
    assert int(done[1]) > 0
