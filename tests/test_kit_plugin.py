"""The fixtures for pytest, as a user's tests get them: in a pytest of its own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloudstore_mapping import pytest_plugin

#: Modules of what comes with extras or tools, which `cloudstore-mapping[testing]` alone doesn't bring.
BEYOND = ["uvicorn", "httptools", "uvloop", "starlette", "jinja2", "python_multipart", "prometheus_client"]
BEYOND += ["js_lib_htmx", "argon2", "typer", "rich", "playwright", "diskcache", "zict", "sqlitedict"]

ONLY_OURS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": pytest_plugin.__name__}

FIXTURES = """
import threading
import cloudstore_mapping as cm
import pytest
from cloudstore_mapping.testing import faults

stores = []

@pytest.mark.parametrize("number", range(2))
def test_empty(cloudstore, number):
    stores.append(cloudstore)
    assert dict(cloudstore) == {}
    cloudstore["a"] = number
    assert cloudstore["a"] == number

def test_closed():
    for store in stores:
        with pytest.raises(ValueError, match="closed"):
            store["a"]

def test_faults(cloudstore, cloudstore_faults):
    cloudstore_faults.break_with([faults.lost] * 4)
    with pytest.raises(cm.OutcomeUnknownError):
        cloudstore["a"] = 1
    assert cloudstore["a"] == 1

def test_faults_alone(cloudstore_faults):
    assert cloudstore_faults.requests == []
"""
SERVICE = """
import os
import cloudstore_mapping as cm
import pytest

@pytest.mark.parametrize("number", range(6))
def test_an_account_of_its_own(cloudstore_service, number, record_property):
    with cloudstore_service.open() as store, cm.open(cloudstore_service.url) as other:
        assert dict(store) == {}
        store["number"] = number
        assert other["number"] == number
    with cm.CloudStoreMapping(cloudstore_service.api_key, cloudstore_service.address) as third:
        assert dict(third) == {"number": number}
    with open(os.environ["SEEN"], "a") as seen:
        print(os.environ.get("PYTEST_XDIST_WORKER", "alone"), cloudstore_service.address, file=seen)
"""


def run(
    folder: Path, text: str, *arguments: str, without: list[str] | None = None, plugins: bool = True
) -> subprocess.CompletedProcess[str]:
    """
    Run pytest on a file of tests in an empty folder.

    What is in `without` can't be imported there. Unless `plugins`, those of others are not loaded.
    """
    (folder / "test_mine.py").write_text(text)
    missing = "" if without is None else f"import sys\nsys.modules.update(dict.fromkeys({without!r}))\n"
    (folder / "blocking.py").write_text(missing)
    path = os.pathsep.join([str(folder), str(Path(pytest_plugin.__file__).parent.parent)])
    environment = {**os.environ, "PYTEST_ADDOPTS": "", "PYTHONPATH": path, "SEEN": str(folder / "seen")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "blocking", "-p", "no:cacheprovider", "-W", "error", *arguments],
        cwd=folder,
        env=environment | ({} if plugins else ONLY_OURS),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_fixtures(tmp_path: Path) -> None:
    """`cloudstore` is empty in each test and closed after it, and breaks as `cloudstore_faults` is told to."""
    done = run(tmp_path, FIXTURES)
    assert "5 passed" in done.stdout, done.stdout + done.stderr


def test_they_need_no_more_than_the_extra(tmp_path: Path) -> None:
    """With hypothesis and pytest alone the store and its faults work."""
    done = run(tmp_path, FIXTURES, without=BEYOND, plugins=False)
    assert "5 passed" in done.stdout, done.stdout + done.stderr


def seen(folder: Path) -> set[tuple[str, ...]]:
    """Return the workers that had a service, with its address."""
    return {tuple(line.split()) for line in (folder / "seen").read_text().splitlines()}


def test_the_service(tmp_path: Path) -> None:
    """All tests have one service, and each an empty account there."""
    done = run(tmp_path, SERVICE, plugins=False)
    assert "6 passed" in done.stdout, done.stdout + done.stderr
    assert len(seen(tmp_path)) == 1


@pytest.mark.slow
def test_the_service_under_xdist(tmp_path: Path) -> None:
    """Each worker of pytest-xdist has a service of its own."""
    done = run(tmp_path, SERVICE, "-n", "2", "--dist", "each")
    assert "12 passed" in done.stdout, done.stdout + done.stderr
    assert {worker for worker, _ in seen(tmp_path)} == {"gw0", "gw1"}
    assert len({address for _, address in seen(tmp_path)}) == 2


@pytest.mark.slow
def test_the_service_without_its_extra(tmp_path: Path) -> None:
    """Where the extra is missing the error names it, and the command that brings it."""
    done = run(tmp_path, SERVICE, without=["uvicorn"])
    assert "pip install 'cloudstore-mapping[server]'" in done.stdout
    assert "6 errors" in done.stdout


def test_without_hypothesis(tmp_path: Path) -> None:
    """Where hypothesis is missing the error names the extra, and tests that use no fixture aren't disturbed."""
    text = FIXTURES.replace("from cloudstore_mapping.testing import faults\n", "") + "\ndef test_other():\n    pass\n"
    done = run(tmp_path, text, "-k", "empty or other", without=["hypothesis"], plugins=False)
    assert "pip install 'cloudstore-mapping[testing]'" in done.stdout
    assert "1 passed, " in done.stdout
    assert "2 errors" in done.stdout


def test_pytest_starts_as_quickly(tmp_path: Path) -> None:
    """A pytest whose tests use no fixture loads neither hypothesis, nor a service, nor a client of HTTP for it."""
    heavy = '{"hypothesis", "sqlite3", "requests", "uvicorn"}'
    text = f"import sys\ndef test_light():\n    assert not {heavy} & sys.modules.keys()\n"
    done = run(tmp_path, text, plugins=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_module_imports_pytest_alone() -> None:
    """The module that pytest loads at its start imports nothing but pytest, outside its fixtures."""
    tree = ast.parse(Path(pytest_plugin.__file__).read_text("utf-8"))
    imported = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "collections.abc", "typing", "pytest"}


@pytest.mark.slow
def test_the_fixtures_are_explained(tmp_path: Path) -> None:
    """`pytest --fixtures` lists the three, each with a sentence."""
    done = run(tmp_path, "", "--fixtures", plugins=False)
    for name in ("cloudstore", "cloudstore_faults", "cloudstore_service"):
        assert f"\n{name} -- " in done.stdout or f"\n{name} [" in done.stdout, name
