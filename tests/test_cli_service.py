"""`serve` runs a service that programs can use, and `account` makes its accounts."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import cloudstore_mapping as cm
from cloudstore_mapping.cli import app
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.web.serve import background

OWN_KEY = "an-owner.s_own~key"


@contextmanager
def serving(*arguments: str, ends_by: signal.Signals = signal.SIGTERM) -> Iterator[subprocess.Popen[str]]:
    """`cloudstore serve` on a free port, ended by a signal: cleanly, or this fails."""
    with subprocess.Popen(
        [sys.executable, "-m", "cloudstore_mapping", "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(ends_by)
            _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    """Return the next lines that a process prints."""
    assert process.stdout is not None
    return [process.stdout.readline().rstrip("\n") for _ in range(count)]


def test_the_first_start_prints_all_that_a_program_needs(tmp_path: Path) -> None:
    """The first start prints address, file, API key and the line that opens it; the next makes no second account."""
    file = tmp_path / "service.db"
    with serving("--store", f"sqlite:///{file}") as process:
        answers, data, _, key, _, program = lines(process, 6)
        address = re.fullmatch(r"The service answers at (http://127\.0\.0\.1:\d+/cloudstore), until Ctrl-C\.", answers)
        assert address is not None
        assert data == f"Its data is in {file}."
        assert re.fullmatch(r" {4}[A-Za-z0-9]{32}", key)
        location = address[1].replace("://", f"://{key.strip()}@")
        assert program == f'    cm.open("{location}")'
        with cm.open(location) as store:
            store["Shopping_List"] = {"Apples": 8}

    with serving("--store", str(file), ends_by=signal.SIGINT) as process:
        answers, data = lines(process, 2)
        assert data == f"Its data is in {file}."
        port = re.search(r":(\d+)/", answers)
        assert port is not None
        with cm.open(re.sub(r":\d+/", port[0], location)) as store:
            assert dict(store) == {"Shopping_List": {"Apples": 8}}
        process.send_signal(signal.SIGINT)
        assert process.communicate()[0] == ""


def test_the_line_for_a_program_can_be_used(tmp_path: Path) -> None:
    """Where the service listens on all addresses, the line names one that a program can open."""
    with serving("--host", "0.0.0.0", "--store", str(tmp_path / "service.db")) as process:
        answers, *_, program = lines(process, 6)
        assert "http://0.0.0.0:" in answers
        assert "@127.0.0.1:" in program
        with cm.open(program.split('"')[1]) as store:
            assert list(store) == []


def test_a_reader_that_left(tmp_path: Path) -> None:
    """A start whose lines nobody can read ends quietly, with the status of a broken pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "cloudstore_mapping", "serve", "--port", "0", "--store", str(tmp_path / "service.db")],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, b"")


def test_serve_for_a_program_is_pinned(tmp_path: Path) -> None:
    """`serve --json` prints one object; account and api_key are null where there was an account already."""
    file = tmp_path / "service.db"
    with serving("--json", "--store", str(file)) as process:
        first = json.loads(lines(process, 1)[0])
    with serving("--json", "--store", str(file)) as process:
        second = json.loads(lines(process, 1)[0])
    assert list(first) == list(second) == ["address", "store", "account", "api_key"]
    assert (first["store"], first["account"], len(first["api_key"])) == (str(file), "owner", 32)
    assert (second["account"], second["api_key"]) == (None, None)


def run(*arguments: str, stdin: str = "") -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, arguments, input=stdin)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """A port that can't be had is exit status 2 and one line; no account is made, whose key nobody would see."""
    file = tmp_path / "service.db"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--port", str(port), "--store", str(file))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert str(port) in result.stderr
    with Service(SQLiteStorage(file)) as service:
        assert not service.accounts.any()


@pytest.mark.parametrize("arguments", [["serve"], ["account", "create", "name"]])
@pytest.mark.parametrize("store", ["", "sqlite://", "postgresql://host/db", "no/such/folder/service.db", "other.txt"])
def test_a_store_that_can_not_be(
    arguments: list[str], store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that can't be understood or isn't ours is exit status 2 and one line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text("This is a letter, and no store at all.")
    result = run(*arguments, "--store", store)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)


def test_an_account_of_a_running_service(tmp_path: Path) -> None:
    """`account create` prints the API key alone, and a service that runs knows it at once."""
    file = tmp_path / "service.db"
    with Service(SQLiteStorage(file)) as service, background(service) as address:
        result = run("account", "create", "bob", "--store", f"sqlite:///{file}")
        assert (result.exit_code, result.stderr) == (0, "")
        assert re.fullmatch(r"[A-Za-z0-9]{32}\n", result.stdout)
        with cm.open(address.replace("://", f"://{result.stdout.strip()}@")) as store:
            store["key"] = 1
            assert dict(store) == {"key": 1}


def test_an_account_for_a_program_is_pinned(tmp_path: Path) -> None:
    """`account create --json` prints one object with the name and the API key."""
    result = run("account", "create", "bob", "--api-key", OWN_KEY, "--json", "--store", str(tmp_path / "service.db"))
    assert (result.exit_code, result.stdout) == (0, f'{{"account":"bob","api_key":"{OWN_KEY}"}}\n')


def test_an_api_key_from_standard_input(tmp_path: Path) -> None:
    """--api-key - takes the first line of standard input, for command lines can be seen by others."""
    result = run("account", "create", "bob", "--api-key", "-", "--store", str(tmp_path / "service.db"), stdin=OWN_KEY)
    assert (result.exit_code, result.stdout) == (0, f"{OWN_KEY}\n")


def test_a_name_or_key_that_is_taken(tmp_path: Path) -> None:
    """A name or key that is taken is exit status 1 and one line, which shows no key."""
    store = ["--store", str(tmp_path / "service.db")]
    assert run("account", "create", "bob", "--api-key", OWN_KEY, *store).exit_code == 0
    same_name = run("account", "create", "bob", *store)
    same_key = run("account", "create", "eve", "--api-key", OWN_KEY, *store)
    for result in (same_name, same_key):
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        assert OWN_KEY not in result.stderr
    assert "'bob'" in same_name.stderr
