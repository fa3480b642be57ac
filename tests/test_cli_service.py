"""`serve` runs a service that programs can use, and says at its start all that they need."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.cli import app
from cloudstore_mapping.cli.serve import OWNER, _start
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage import sqlite
from cloudstore_mapping.service.storage.places import place_of
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from tests.serving import lines, serving
from tests.support.command_line import CliRunner, Result


def test_the_first_start_prints_all_that_a_program_needs(tmp_path: Path) -> None:
    """The first start prints address, file, API key, the line that opens it, and how to sign in; the next no secret."""
    file = tmp_path / "service.db"
    with serving("--store", f"sqlite:///{file}") as process:
        answers, data, _, key, _, program, dashboard, _, password = lines(process, 9)
        address = re.fullmatch(r"The service answers at (http://127\.0\.0\.1:\d+/cloudstore), until Ctrl-C\.", answers)
        assert address is not None
        assert data == f"Its data is in {file}."
        assert re.fullmatch(r" {4}[A-Za-z0-9]{32}", key)
        location = address[1].replace("://", f"://{key.strip()}@")
        assert program == f'    cm.open("{location}")'
        assert dashboard == f"The dashboard is {address[1]}/admin.html"
        assert len(password.strip()) > 10
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


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_store_that_no_key_opens(tmp_path: Path, workers: str) -> None:
    """A start on a file that `cm.open` made prints the command that makes an API key, with which its data is there."""
    file = tmp_path / "shop's.db"
    with cm.open(file) as store:
        store["Apples"] = 8
    with Service(SQLiteStorage(file)) as service:  # else the lines below would be waited for
        assert _start(service, "http://127.0.0.1:8787/cloudstore", place_of(str(file))).closed == ("local",)
    with serving("--store", str(file), "--workers", workers) as process:
        answers, _, *of_workers, sentence, command = lines(process, 4 if workers == "1" else 5)
        assert all(line.startswith("Its 2 processes write to one file in turn: ") for line in of_workers)
        assert sentence == "No API key opens it yet. Make one for the account 'local', which has its data:"
        made = subprocess.run(
            ["/bin/sh", "-c", command.replace("cloudstore", f"{sys.executable} -m cloudstore_mapping", 1)],
            capture_output=True,
            text=True,
            check=True,
        )
        address = re.search(r"http://\S+/cloudstore", answers)
        assert address is not None
        with cm.open(address[0].replace("://", f"://{made.stdout.strip()}@")) as store:
            assert dict(store) == {"Apples": 8}
    with serving("--store", str(file)) as process:
        lines(process, 2)
        process.send_signal(signal.SIGINT)
        assert process.communicate()[0] == ""


class Overtaken(SQLiteStorage):
    """A storage in which another process makes the first start's account when this one has seen that there is none."""

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Return a transaction to read with."""
        with super().read() as transaction:
            yield transaction
            was_empty = not transaction.has_accounts()
        if was_empty:
            self.submit(lambda transaction: transaction.add_account(OWNER, 1.0)).result()


def test_first_starts_at_once() -> None:
    """Of nodes that start at once on an empty store one makes the account and tells its secrets, the others go on."""
    with Service(Overtaken(None)) as service:
        start = _start(service, "http://127.0.0.1:8787/cloudstore", place_of("memory:"))
        assert service.accounts.any()
    assert (start.api_key, start.password) == (None, None)


def test_the_line_for_a_program_can_be_used(tmp_path: Path) -> None:
    """Where the service listens on all addresses, the line names one that a program can open."""
    log: list[str] = []
    with serving("--host", "0.0.0.0", "--store", str(tmp_path / "service.db"), log=log) as process:
        answers, *_, program, dashboard, _, _ = lines(process, 9)
        assert "http://0.0.0.0:" in answers
        assert "@127.0.0.1:" in program
        assert "http://127.0.0.1:" in dashboard
        with cm.open(program.split('"')[1]) as store:
            assert list(store) == []
    (warning,) = log
    assert "The service speaks plain http on 0.0.0.0" in warning


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
    """`serve --json` prints one object; account, secrets and user are null where there was an account already."""
    file = tmp_path / "service.db"
    with serving("--json", "--store", str(file)) as process:
        first = json.loads(lines(process, 1)[0])
    with serving("--json", "--store", str(file)) as process:
        second = json.loads(lines(process, 1)[0])
    names = ["address", "store", "account", "api_key", "dashboard", "user", "password"]
    assert list(first) == list(second) == names
    assert (first["store"], first["account"], len(first["api_key"])) == (str(file), "owner", 32)
    assert (first["dashboard"], first["user"]) == (f"{first['address']}/admin.html", "owner")
    assert [second[name] for name in ("account", "api_key", "user", "password")] == [None] * 4


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


@pytest.mark.parametrize("arguments", [["serve"], ["account", "create", "name"], ["account", "list"]])
@pytest.mark.parametrize("store", ["", "sqlite://", "mysql://host/db", "no/such/folder/service.db", "other.txt"])
def test_a_store_that_can_not_be(
    arguments: list[str], store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that can't be understood or isn't ours is exit status 2 and one line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text("This is a letter, and no store at all.")
    result = run(*arguments, "--store", store)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)


def test_a_store_that_another_process_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that another process keeps locked is exit status 3 and one line that says so."""
    file = tmp_path / "service.db"
    with Service(SQLiteStorage(file)):
        pass
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.0)
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        result = run("serve", "--port", "0", "--store", str(file))
        connection.execute("ROLLBACK")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (3, "", 1)
    assert "Another process holds the store" in result.stderr


def test_a_store_of_a_newer_version(tmp_path: Path) -> None:
    """A store that a newer version wrote is exit status 2 and one line that says to upgrade."""
    file = tmp_path / "service.db"
    with Service(SQLiteStorage(file)):
        pass
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 999")
    result = run("serve", "--port", "0", "--store", str(file))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "upgrade" in result.stderr


def test_a_service_in_memory() -> None:
    """--store memory: keeps the data in memory, and says so."""
    with serving("--store", "memory:") as process:
        _, data, _, _, _, program, *_ = lines(process, 9)
        assert data == "Its data is in memory, and gone with it."
        with cm.open(program.split('"')[1]) as store:
            store["key"] = 1
            assert dict(store) == {"key": 1}
