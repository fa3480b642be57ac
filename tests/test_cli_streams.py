"""Standard streams that are closed, fail or carry other bytes end a command with one line, never with a traceback."""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import cloudstore_mapping as cm
from cloudstore_mapping.cli import app, asking
from cloudstore_mapping.cli.frame import UsageError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from tests.support.command_line import CliRunner, Result, command_of
from tests.test_cli_terminal import on_terminal

COMMAND = [sys.executable, "-m", "cloudstore_mapping"]
#: A value for each argument, by its metavar; any other is -, standard input where a command takes that.
ARGUMENTS = {
    "KEY": "key",
    "NAME": "name",
    "LINK": "/files/0/0.png",
    "LIMIT=…": "files=1",
    "[NAME] KEY…": "name key",
    "FILTER": "key",
}
#: Options that make a command read standard input.
OPTIONS = {"--password": [], "--api-key": ["-"], "--edit": [], "--as": ["name"], "--format": ["jsonl"]}
#: What reads standard input if it is run so.
READERS = ["get", "set", "merge", "rm", "ls", "edit", "upload", "import", "export", "account create", "passwd"]
#: What prints nothing when all went well.
SILENT = ["set", "merge", "rm", "account set", "account disable", "account enable", "account delete"]


def every_command(group: Any, *names: str) -> Iterator[list[str]]:
    """Yield a command line for each command, so that a new one is tried by itself."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from every_command(command, *names, name)
            continue
        options: list[str] = []
        arguments: list[str] = []
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                arguments += ARGUMENTS.get(parameter.metavar or "", "-").split()
            else:
                options += [
                    word for option in parameter.opts if option in OPTIONS for word in [option, *OPTIONS[option]]
                ]
        yield [*names, name, *options, *arguments]


COMMANDS = {re.split(" -| key| name", " ".join(line))[0]: line for line in every_command(typer.main.get_command(app))}
del COMMANDS["serve"]  # which runs until somebody ends it


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store and a service's store, of the default names."""
    folder = tmp_path_factory.mktemp("stores")
    with cm.open(folder / "cloudstore.db") as store:
        store["key"] = 1
    with Service(SQLiteStorage(folder / "cloudstore-service.db")) as service:
        service.accounts.create("name")
    return folder


@pytest.fixture(autouse=True)
def folder(stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a store and a service's store, the default ones."""
    shutil.copytree(stores, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name in ("CLOUDSTORE_URL", "CLOUDSTORE_SERVICE_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EDITOR", "true")
    return tmp_path


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command in this process as it is set up; return its status and what it said on stderr."""
    with pytest.raises(SystemExit) as ended:
        command_of(app)(arguments, prog_name="cloudstore")
    return int(ended.value.code or 0), capsys.readouterr().err


def is_one_line(status: int, said: str) -> bool:
    """Whether a command that failed said so in one line, and one that didn't in none."""
    return (status, said) == (0, "") or (status in (1, 2) and re.fullmatch("cloudstore: .*\n", said) is not None)


@pytest.mark.parametrize("command", COMMANDS)
def test_stdin_is_closed(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where standard input is closed a command that would read it is exit status 2 and one line; no other minds."""
    monkeypatch.setattr(sys, "stdin", None)
    status, said = run(COMMANDS[command], capsys)
    assert is_one_line(status, said), said
    if command in READERS:
        assert (status, said) == (2, "cloudstore: Standard input is closed; give it a file or a pipe.\n")


class Failing(io.RawIOBase):
    """Standard input on a disk that fails."""

    def readable(self) -> bool:
        """Whether it can be read: it seems so."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fail."""
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def with_input(arguments: list[str], given: Any) -> Result:
    """Run a command on an input."""
    return CliRunner().invoke(app, arguments, input=given)


@pytest.mark.parametrize("command", COMMANDS)
def test_stdin_fails(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where standard input can't be read it is exit status 2 and one line that says why."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Failing())))
    status, said = run(COMMANDS[command], capsys)
    assert is_one_line(status, said), said
    if command in READERS:
        assert status == 2
        assert "Input/output error" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_stdin_is_not_utf_8(command: str) -> None:
    """Bytes that are no UTF-8 are exit status 2 and one line without them, unless they are a file's."""
    line = [word for word in COMMANDS[command] if word != "--password" or command != "upload"]
    result = with_input(line, b"\xff\xfe\x00secret\n" * 3)
    assert is_one_line(result.exit_code, result.stderr) or command == "upload", result.stderr
    assert "secret" not in result.stderr
    if command in READERS:
        assert result.exit_code == (0 if command == "upload" else 2)


@pytest.mark.parametrize("command", COMMANDS)
def test_stdout_is_closed(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where standard output is closed, a command that has something to say there fails in one line."""
    line = [word for word in COMMANDS[command] if word not in ("--password", "--api-key")]
    line = [word if word != "-" else "1" for word in line] if command in ("set", "merge", "account create") else line
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"input\n")))
    monkeypatch.setattr(sys, "stdout", None)
    status, said = run(line, capsys)
    assert is_one_line(status, said), said
    if command not in SILENT:
        assert status in (1, 2)


@pytest.mark.parametrize("command", [["create", "new"], ["rotate-key", "name"], ["reset-password", "name"]])
def test_no_secret_is_made_for_nobody(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What prints a secret, this once, changes nothing where standard output is closed."""
    before = with_input(["account", "show", "name", "--json"], "").stdout
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", None)
        assert run(["account", *command], capsys)[0] == 2
    assert with_input(["account", "show", "name", "--json"], "").stdout == before
    assert with_input(["account", "show", "new"], "").exit_code == 1


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("set q - <&-", 2, "cloudstore: Standard input is closed; give it a file or a pipe.\n"),
        pytest.param(
            "get key --password <&-",
            2,
            "cloudstore: Standard input is closed; give it a file or a pipe.\n",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "account create x --api-key - <&-",
            2,
            "cloudstore: Standard input is closed; give it a file or a pipe.\n",
            marks=pytest.mark.slow,
        ),
        pytest.param("get key <&-", 0, "", marks=pytest.mark.slow),
        pytest.param(
            "set q - 0>out",
            2,
            "cloudstore: Standard input can't be read: Bad file descriptor.\n",
            marks=pytest.mark.slow,
        ),
        ("get key >&-", 2, "cloudstore: Standard input or output failed (Bad file descriptor); send it elsewhere.\n"),
        pytest.param("set q 1 >&-", 0, "", marks=pytest.mark.slow),
        pytest.param("get key --at ftp://host 2>&-", 2, "", marks=pytest.mark.slow),
        ("get key --at ftp://host <&- >&- 2>&-", 2, ""),
    ],
)
def test_as_a_shell_closes_them(line: str, status: int, said: str) -> None:
    """The streams that a shell closes are those."""
    ran = subprocess.run(["sh", "-c", f"{shlex.join(COMMAND)} {line}"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (status, said)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX's")
@pytest.mark.parametrize(
    ("command", "question"),
    [
        (["get", "key", "--password"], b"Password: "),
        (["account", "delete", "name"], b"Type its name:"),
    ],
)
def test_bytes_typed_on_a_terminal(command: list[str], question: bytes) -> None:
    """What is typed and is no UTF-8 is one line too, and not shown in it."""
    status, shown = on_terminal(*command, answers={question: b"\xe9\xff\n"})
    assert status in (1, 2)
    assert shown.splitlines()[-1].startswith("cloudstore: ")
    assert "Traceback" not in shown


def test_a_password_that_is_not_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python can't decode a password that was typed, the error doesn't show its bytes, as Python's does."""

    def read_password(prompt: str) -> str:
        return b"\xffsecret".decode()

    monkeypatch.setattr("getpass.getpass", read_password)
    monkeypatch.setattr(asking, "is_on_terminal", lambda: True)
    with pytest.raises(UsageError) as caught:
        asking.ask("password")
    assert str(caught.value) == "The password is not UTF-8."
    assert caught.value.__suppress_context__


def test_no_byte_of_standard_input_is_lost(folder: Path) -> None:
    """Behind the password's line all of the rest is read, by whatever name standard input goes."""
    rest = b'"' + b"x" * 2**18 + b'"'
    for name in ("-", "@/dev/stdin"):
        assert with_input(["set", "long", name, "--password"], b"password\n" + rest).exit_code == 0
        with cm.open("cloudstore.db") as store:
            assert len(store["long"]) == 2**18
            del store["long"]
    for name in ("-", "/dev/stdin"):
        result = with_input(["upload", name, "--as", "long", "--password"], b"password\n" + rest)
        assert result.exit_code == 0
        with cm.open("cloudstore.db") as store:
            assert store.download(result.stdout.strip()) == rest
