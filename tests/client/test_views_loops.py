"""Loops whose caller stays the same around a write see the write: as Python, and compiled by Cython and mypyc."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.testing.clocks import FrozenClock
from tests.support import loops
from tests.support.mapping_fixtures import Connect

Store = CloudStoreMapping[Any]

DATA = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}


def _run(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "MYPYC_OPT_LEVEL": "0"})
    assert done.returncode == 0, done.stdout + done.stderr


def _loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("loops", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compiler() -> str:
    """Return the C compiler; skip the test on a machine without one, or without Python's headers."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("This machine has no C compiler.")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("This machine has no Python.h.")
    return compiler


def _with_cython(folder: Path) -> ModuleType:
    pytest.importorskip("Cython", reason="Cython is not installed.")
    compiler = _compiler()
    _run(sys.executable, "-m", "cython", "-3", "loops.py", "-o", "loops.c", cwd=folder)
    include = f"-I{sysconfig.get_path('include')}"
    _run(compiler, "-shared", "-fPIC", "-O0", "-w", include, "loops.c", "-o", "compiled.so", cwd=folder)
    return _loaded(folder / "compiled.so")


def _with_mypyc(folder: Path) -> ModuleType:
    for module in ("mypyc", "setuptools"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed.")
    _compiler()
    _run(sys.executable, "-m", "mypyc", "loops.py", cwd=folder)
    (file,) = folder.glob(f"loops*{sysconfig.get_config_var('EXT_SUFFIX')}")
    return _loaded(file)


COMPILERS: dict[str, Callable[[Path], ModuleType]] = {
    "Python": lambda _: loops,
    "Cython": _with_cython,
    "mypyc": _with_mypyc,
}


@pytest.fixture(scope="module", params=["Python", "Cython", pytest.param("mypyc", marks=pytest.mark.slow)])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Return the loops, as Python or compiled in a temporary folder."""
    folder = tmp_path_factory.mktemp("compiled")
    shutil.copy(loops.__file__, folder / "loops.py")
    module = COMPILERS[request.param](folder)
    assert (module is loops) == (request.param == "Python")
    return module


@pytest.mark.parametrize("name", loops.LOOPS)
def test_loops_see_writes(connect: Connect, compiled: ModuleType, name: str) -> None:
    """A loop around writes of this process has the result that it has with a dictionary, even if no time passes."""
    if name == "iteration in one function, length in another":  # a dictionary does not allow it
        expected: Any = [5, 6, 5, ["a", "b", "c", "d", "e", "g"], 6]
    else:
        plain = dict(DATA)
        expected = loops.LOOPS[name](plain, plain)
    transport, api_key = connect()
    clock = FrozenClock()
    with Store(api_key, transport=transport, clock=clock) as store:
        other = Store(api_key, transport=transport, clock=clock)
        for key, value in DATA.items():  # one after another, for the order of the vendor's listing
            store[key] = value
        assert compiled.LOOPS[name](store, other) == expected
