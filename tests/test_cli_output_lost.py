"""Commands that show a secret once, and a standard output that is closed, full or has no reader."""

from __future__ import annotations

import gzip
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.errors import CloudStoreError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from tests.service_fakes import ManualClock

#: A store of a service of an older version; see `tests/storage/test_older.py`.
SAMPLE = Path(__file__).parent / "samples" / "e5084d3.db.gz"
COMMAND = [sys.executable, "-m", "cloudstore_mapping"]


def closed(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command whose standard output is closed, as ``>&-`` closes it."""
    shell = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, *arguments]
    return subprocess.run(shell, stderr=subprocess.PIPE, text=True, check=False, timeout=120)


def full(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command whose standard output is a full disk."""
    with Path("/dev/full").open("wb") as device:
        return subprocess.run(
            [*COMMAND, *arguments], stdout=device, stderr=subprocess.PIPE, text=True, check=False, timeout=120
        )


def unread(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [*COMMAND, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=120
        )
    finally:
        os.close(writer)


Run = Callable[[list[str]], "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
without_output = pytest.mark.parametrize(("run", "status"), [(closed, 2), (full, 2), (unread, 141)])
also_as_json = pytest.mark.parametrize(
    ("run", "status", "as_json"), [(closed, 2, []), (full, 2, ["--json"]), (unread, 141, [])]
)


def state(file: Path) -> list[object]:
    """Return all that a secret could have changed in a store: accounts, keys, passwords, events."""
    with Service(SQLiteStorage(file)) as service, service._storage.read() as transaction:
        return [
            (account.name, transaction.keys(account.id), transaction.owner_password(account.id))
            for account in service.accounts.all()
        ]


def check(ended: subprocess.CompletedProcess[str], status: int) -> None:
    """Check how a command ended: one line on stderr, or without a word where the reader left."""
    assert ended.returncode == status
    assert ended.stderr.count("\n") == (status == 2), ended.stderr
    if status == 2:
        assert "Standard input or output failed" in ended.stderr


@also_as_json
@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_serve(run: Run, status: int, as_json: list[str], workers: str, tmp_path: Path) -> None:
    """A first start that can't show its secrets makes no account, so that the next one shows them."""
    file = tmp_path / "s.db"
    arguments = ["serve", "--port", "0", "--workers", workers, "--store", str(file), *as_json]
    check(run(arguments), status)
    assert state(file) == []


@also_as_json
@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "other"],
        ["create", "other", "--password"],
        ["create", "other", "--api-key", "an-api-key-of-ones-own"],
        ["rotate-key", "owner"],
        ["reset-password", "owner"],
    ],
)
@pytest.mark.slow
def test_account(run: Run, status: int, arguments: list[str], as_json: list[str], tmp_path: Path) -> None:
    """A command that can't show the secret it makes changes nothing."""
    file = tmp_path / "s.db"
    with Service(SQLiteStorage(file)) as service:
        service.owners.create("owner")
        service.accounts.rotate_key("owner")
    before = state(file)
    check(run(["account", *arguments, "--store", str(file), *as_json]), status)
    assert state(file) == before


@without_output
@pytest.mark.parametrize("arguments", [["ls"], ["get", "key"], ["stat", "key"], ["--help"], ["get", "key", "--json"]])
@pytest.mark.slow
def test_other_commands(run: Run, status: int, arguments: list[str], tmp_path: Path) -> None:
    """A command that prints ends with one line as well, and not with a traceback."""
    file = tmp_path / "s.db"
    subprocess.run([*COMMAND, "set", "key", "1", "--at", str(file)], check=True, timeout=120)
    ended = run(arguments if arguments == ["--help"] else [*arguments, "--at", str(file)])
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("\n") <= 1
    assert ended.returncode in (status, 1)


@pytest.mark.parametrize(
    "arguments",
    [["serve", "--port", "0"], *(["account", what, "ann"] for what in ("create", "rotate-key", "reset-password"))],
)
def test_an_older_store(arguments: list[str], tmp_path: Path) -> None:
    """A command with something to show leaves a store of an older version as it is if standard output is closed."""
    file = tmp_path / "old.db"
    file.write_bytes(content := gzip.decompress(SAMPLE.read_bytes()))
    assert closed([*arguments, "--store", str(file)]).returncode == 2
    assert file.read_bytes() == content


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_an_error_that_nobody_can_read(redirection: str, tmp_path: Path) -> None:
    """Where standard error is closed or full the exit status tells of an error all the same."""
    get = [*COMMAND, "get", "key", "--at", str(tmp_path / "absent" / "s.db")]
    ended = subprocess.run(["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *get], check=False, timeout=120)
    assert ended.returncode == 2


def test_show_is_the_last_word(service: Service, clock: ManualClock) -> None:
    """A secret is shown after all checks, once, and what fails to show it undoes all of it."""
    shown: list[object] = []

    def fail(*secrets: str) -> None:
        shown.append(secrets)
        raise OSError("nobody looks")

    service.owners.create("owner")
    key = service.accounts.keys("owner")
    with pytest.raises(CloudStoreError, match="already"):
        service.accounts.create("owner", show=fail)
    assert shown == []
    for work in (
        lambda: service.accounts.create("new", show=fail),
        lambda: service.owners.create("new", show=fail),
        lambda: service.accounts.rotate_key("owner", show=fail),
        lambda: service.owners.reset_password("owner", show=fail),
    ):
        with pytest.raises(OSError, match="nobody looks"):
            work()
    assert len(shown) == 4
    assert [account.name for account in service.accounts.all()] == ["owner"]
    assert service.accounts.keys("owner") == key
    assert service.accounts.rotate_key("owner", show=shown.append) == shown[-1]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["get", "download"])
def test_a_disk_that_takes_a_part(tmp_path: Path, command: str, unbuffered: str) -> None:
    """A value or file that standard output takes a part of is an error, also where Python writes without a buffer."""
    with cm.open(tmp_path / "store.db") as store:
        store["value"] = "x" * 300_000
        link = store.upload(b"y" * 300_000, "file.bin").url
    arguments = ["get", "value"] if command == "get" else ["download", link, "--to", "-"]
    with (tmp_path / "output").open("wb") as output:
        run = subprocess.run(
            [*COMMAND, *arguments, "--at", tmp_path / "store.db"],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000)),
        )
    assert (run.returncode, "Standard input or output failed (File too large)" in run.stderr) == (2, True), run.stderr
