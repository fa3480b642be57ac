"""What every command keeps to: exit statuses, one line on stderr, secrets, pipes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.cli import app
from cloudstore_mapping.cli.frame import UsageError, status_of
from cloudstore_mapping.client import retry
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.storages import new_storage
from tests.support.command_line import CliRunner, Result

COMMAND = [sys.executable, "-m", "cloudstore_mapping"]
SECRET = "Sup3rS3cretSup3rS3cret"  # an API key's form
COMMANDS = [
    [],
    ["demo"],
    ["get"],
    ["set"],
    ["merge"],
    ["rm"],
    ["ls"],
    ["stat"],
    ["edit"],
    ["serve"],
    ["passwd"],
    ["doctor"],
    ["account"],
    *(
        ["account", command]
        for command in (
            ["create", "list", "show", "set", "disable", "enable", "rotate-key", "reset-password", "delete"]
        )
    ),
]


def run(*arguments: str) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, arguments, prog_name="cloudstore")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: list[str]) -> None:
    """--help of each command is exit status 0 and says how it is used."""
    result = run(*command, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)  # typer colours its help where a CI asks for colours
    assert " ".join(["Usage: cloudstore", *command]) in shown


def test_no_command_at_all_is_help() -> None:
    """`cloudstore` alone is `cloudstore --help`."""
    assert run().stdout == run("--help").stdout


def test_version() -> None:
    """`cloudstore --version` prints the package's version."""
    assert run("--version").stdout == f"cloudstore-mapping {cm.__version__}\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (cm.NoFileError("", key="key"), 1),
        (cm.LockedError(""), 1),
        (cm.BadKeyError(""), 1),
        (cm.BadNameError(""), 1),
        (cm.TooOftenError(""), 1),
        (cm.ProtocolError(""), 1),
        (UsageError(""), 2),
        (cm.UnsupportedError(""), 2),
        (cm.TransportError(""), 3),
        (cm.OutcomeUnknownError(""), 3),
        (cm.UnavailableError(""), 3),
        (cm.TimedOutError(""), 3),
    ],
)
def test_the_status_of_each_error(error: cm.CloudStoreError | UsageError, status: int) -> None:
    """A service that says no is 1, what can't be done as it was written 2, a service that isn't reached 3."""
    assert status_of(error) == status


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["gte"],
        ["get"],
        ["get", "key", "more"],
        ["get", "key", "--unknown"],
        ["set", "key"],
        ["rm"],
        ["account"],
        ["serve", "--port", "many"],
        ["serve", "--port", "99999"],
        ["serve", "--workers", "0"],
        ["account", "set", "name"],
    ],
)
def test_usage(arguments: list[str]) -> None:
    """A command line that can't be understood is exit status 2 and one line, JSON where that was asked for."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("cloudstore: ")
    assert "--help'." in result.stderr
    for_a_program = run(*arguments, "--json")
    assert for_a_program.exit_code == 2
    assert json.loads(for_a_program.stderr).keys() == {"error", "message", "key"}
    assert json.loads(for_a_program.stderr)["error"] == "UsageError"


@pytest.mark.parametrize(
    "location",
    [
        "",
        "ftp://example.com/x",
        "https://example.com/no-key",
        f"http://{SECRET}@example.com/cloudstore",
        f"http://{SECRET}@127.0.0.1:port/x",
        f"http://{SECRET}:more@127.0.0.1/x",
        f"http://{SECRET}/x@127.0.0.1/x",
        f"htp://{SECRET}@127.0.0.1/x",
        f"{SECRET}@127.0.0.1:8787/cloudstore",
        os.curdir,
        __file__,
        "no/such/folder/store.db",
    ],
)
def test_a_bad_location(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A location that can't be understood or opened is exit status 2 and one line, which shows no API key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLOUDSTORE_URL", location or "no/folder")
    for result in (run("get", "key", "--at", location), run("ls", "--json", "--at", location), run("ls")):
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert SECRET not in result.output


def test_insecure_allows_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain http to another machine is refused in a sentence that names --insecure."""
    assert "--insecure" in run("get", "key", "--at", f"http://{SECRET}@example.com/cloudstore").stderr


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of a service, without an API key."""
    with Service(new_storage(tmp_path / "service.db")) as service, background(service) as address:
        yield address


@pytest.mark.parametrize(
    "arguments", [["get", "key"], ["set", "key", "1"], ["merge", "key", "1"], ["rm", "key", "key2"], ["ls"]]
)
@pytest.mark.parametrize("as_json", [[], ["--json"]])
@pytest.mark.slow
def test_an_api_key_is_never_shown(address: str, arguments: list[str], as_json: list[str]) -> None:
    """A service that doesn't know the API key is exit status 1, and the key stands nowhere in what is printed."""
    process = subprocess.run(
        [*COMMAND, *arguments, *as_json],
        env={**os.environ, "CLOUDSTORE_URL": address.replace("://", f"://{SECRET}@")},
        capture_output=True,
        text=True,
        check=False,
    )
    deleted = "Deleted 0 of 2 keys; 2 failed.\n" if arguments[0] == "rm" and not as_json else ""
    assert (process.returncode, process.stdout) == (1, deleted)
    assert "API key" in process.stderr
    assert SECRET not in process.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["get", "key", f"http://{SECRET}@127.0.0.1/x"],
        [f"http://{SECRET}@127.0.0.1/x"],
        ["get", "key", "--password", SECRET],
        ["get", "key", f"--password={SECRET}"],
        ["account", "create", "name", "--api-key", SECRET[:15], "--store", "memory.db"],
    ],
)
def test_a_secret_in_the_wrong_place_is_not_shown(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key or password where none belongs is an error that doesn't repeat it."""
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code in {1, 2}
    assert result.stderr.count("\n") == 1
    assert SECRET[:15] not in result.output


@pytest.mark.parametrize("arguments", [["get", "key"], ["set", "key", "1"], ["rm", "key"], ["ls"]])
def test_a_service_that_is_not_reached(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing listens it is exit status 3 and one line without the API key."""
    monkeypatch.setattr(retry, "MAX_WAIT", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    result = run(*arguments, "--at", f"http://{SECRET}@127.0.0.1:{port}/cloudstore")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (3, "", 1)
    assert SECRET not in result.stderr


def without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line where `module` isn't installed."""
    code = f"import sys; sys.modules[{module!r}] = None; from cloudstore_mapping.__main__ import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("typer", ["ls"], "cli"),
        pytest.param("rich", ["--help"], "cli", marks=pytest.mark.slow),
        ("uvicorn", ["serve"], "server"),
        pytest.param("uvicorn", ["demo"], "server", marks=pytest.mark.slow),
    ],
)
def test_an_extra_that_is_not_installed(
    module: str, arguments: list[str], extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What isn't installed is exit status 2 and one line with the command that installs it; nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    process = without(module, *arguments)
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert f"pip install 'cloudstore-mapping[{extra}]'" in process.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_loads_nothing_heavy() -> None:
    """Help needs neither a web framework nor SQLite nor requests, so it is quick."""
    code = (
        "import sys; from cloudstore_mapping.__main__ import main\n"
        "try: main()\n"
        "finally: sys.exit(bool({'uvicorn', 'sqlite3', 'requests', 'argon2'} & sys.modules.keys()))"
    )
    process = subprocess.run([sys.executable, "-c", code, "serve", "--help"], capture_output=True, check=False)
    assert process.returncode == 0


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    """A reader that closes the pipe ends the command without a word, with the status of a broken pipe."""
    location = str(tmp_path / "store.db")
    with cm.open(location) as store:
        store["value"] = "x" * 2**20  # more than a pipe holds
    with subprocess.Popen(
        [*COMMAND, "get", "value", "--at", location],
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # else Python itself says nothing of a write that was cut short
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == b'"xxxxxxxxx'
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
def test_a_disk_that_is_full() -> None:
    """Output that can't be written is exit status 2 and one line."""
    with Path("/dev/full").open("wb") as full:
        process = subprocess.run(
            [*COMMAND, "ls", "--json", "--at", "memory:"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert "No space left" in process.stderr


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["get", "é🍎"], b'"\\u00e9\\ud83c\\udf4e"\n'),
        pytest.param(["ls", "--json"], b'["\\u00e9\\ud83c\\udf4e"]\n', marks=pytest.mark.slow),
    ],
)
def test_a_stream_that_is_not_unicode(arguments: list[str], shown: bytes, tmp_path: Path) -> None:
    """Where stdout can't hold all characters, JSON's escapes stand for them, and it stays the same JSON."""
    location = str(tmp_path / "store.db")
    with cm.open(location) as store:
        store["é🍎"] = "é🍎"
    process = subprocess.run(
        [*COMMAND, *arguments, "--at", location],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert (process.returncode, process.stdout) == (0, shown)


def test_a_key_that_a_stream_can_not_hold(tmp_path: Path) -> None:
    """`ls` refuses to print a key that stdout can't hold, with a sentence: an escape would be another key."""
    location = str(tmp_path / "store.db")
    with cm.open(location) as store:
        store.update({"a": 1, "é": 2})
    listed = {
        encoding: subprocess.run(
            [*COMMAND, "ls", "--at", location],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        for encoding in ("ascii", "latin-1", "utf-8")
    }
    assert {encoding: (run.returncode, run.stdout) for encoding, run in listed.items()} == {
        "ascii": (2, b""),
        "latin-1": (0, b"a\n\xe9\n"),
        "utf-8": (0, "a\né\n".encode()),
    }
    assert listed["ascii"].stderr.decode() == (
        "cloudstore: The key '\\xe9' can't be printed in ascii; say --json, or set PYTHONIOENCODING=utf-8.\n"
    )
