"""What the README shows is what happens."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.testing.transports import CountingTransport
from cloudstore_mapping.web.server import background
from tests.few_tries import FEW_TRIES

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
SERVED = "http://API_KEY@127.0.0.1:8787/cloudstore"


def blocks(language: str) -> list[str]:
    """Return the README's code blocks in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """An empty folder to work in, and a service on loopback: its API key and address."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLOUDSTORE_URL", raising=False)
    with Service(SQLiteStorage(tmp_path / "service.sqlite")) as service, background(service) as address:
        yield service.accounts.create("readme"), address


def test_the_python_examples(served: tuple[str, str]) -> None:
    """Every Python example gives what it shows, with a service of ours for the one that it names."""
    api_key, address = served
    text = "".join(blocks("python"))
    assert SERVED in text
    text = text.replace(SERVED, address.replace("://", f"://{api_key}@"))
    text = text.replace('"API_KEY", "http://127.0.0.1:8787/cloudstore"', f'"{api_key}", "{address}"')
    flags = doctest.ELLIPSIS
    examples = doctest.DocTestParser().get_doctest(text, {}, "README.md", "README.md", 0)
    assert len(examples.examples) > 20
    complaints: list[str] = []
    doctest.DocTestRunner(optionflags=flags).run(examples, out=complaints.append)
    assert not complaints, "".join(complaints)


def test_the_users_test_file(tmp_path: Path) -> None:
    """The test file of ten lines passes as it stands."""
    (text,) = [block for block in blocks("python") if block.startswith("# test_mine.py\n")]
    lines = [line for line in text.splitlines()[1:] if line]
    assert len(lines) == 7
    (tmp_path / "test_mine.py").write_text(text)
    (tmp_path / "conftest.py").write_text(FEW_TRIES)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis", "test_mine.py"]
    env = {**os.environ, "PYTEST_ADDOPTS": ""}  # options for this run aren't for that one
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_command_line_examples(served: tuple[str, str]) -> None:
    """Every command gives what it shows."""
    ran = 0
    shells = "".join(blocks("console"))
    for command, shown in re.findall(r"^\$ cloudstore (.*)\n((?:(?!\$).*\n)*)", shells, re.MULTILINE):
        done = subprocess.run(
            [sys.executable, "-m", "cloudstore_mapping", *shlex.split(command)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ,
        )
        assert done.stdout == shown
        ran += 1
    assert ran == 5


def cells() -> list[tuple[str, str, str]]:
    """Return the expressions of the README's table of costs, with what they cost on any service and on ours."""
    rows = [re.split(r"(?<!\\)\|", line)[1:4] for line in README.splitlines() if line.startswith("| `")]
    return [
        (expression.replace("\\|", "|"), without.strip(), ours.strip())
        for spans, without, ours in rows
        for expression in re.findall("`(.+?)`", spans)
    ]


@pytest.mark.parametrize("connect", ["http", "vendor"], indirect=True)
@pytest.mark.parametrize(("expression", "without", "ours"), cells())
def test_the_table_of_costs(
    counted: tuple[CloudStoreMapping[Any], CountingTransport],
    request: pytest.FixtureRequest,
    expression: str,
    without: str,
    ours: str,
) -> None:
    """Each expression costs what the table says."""
    store, transport = counted
    data = {"a": 1, "b": 2, "c": 3}
    store.update(data)
    transport.take()
    names = {"store": store, "k": "a", "absent": "absent", "v": {"x": 1}, "m": data, "other": {"a", "z"}}
    exec(expression, names)
    cost = without if "vendor" in request.node.callspec.id else ours
    assert sum(transport.take().values()) == eval(cost.replace("⌈N/1000⌉", "1"), {"N": len(data)})


def test_the_table_is_read_whole() -> None:
    """Every expression of the table is tried, that with a `|` as well."""
    assert "store |= m" in [expression for expression, _, _ in cells()]
    assert len(cells()) == 31


def test_the_commands_are_the_first_shell_blocks() -> None:
    """The shell blocks show the demo, run the tests, and measure; each sets up all that it needs."""
    ends = ["/cloudstore demo", "python -m pytest -n auto --dist loadfile", "python -m benchmarks"]
    for block, end in zip(blocks("sh"), ends, strict=True):
        assert block.rstrip().endswith(end)
        assert "-m venv .venv" in block
