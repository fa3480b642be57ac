"""Whoever uses a store in a file is told when that file was moved away, over every way to it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from cloudstore_mapping.cli import app
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.base import OperatorError
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.web.server import background
from tests.service_fakes import PATIENCE
from tests.serving import serving, told
from tests.support.command_line import CliRunner, Result

#: For whom the file is, and for clients of a service.
SENTENCE = "file was moved, deleted or replaced"
FOR_CLIENTS = OperatorError.for_clients


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return where a store is."""
    return tmp_path / "store.db"


def run(*arguments: str) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, arguments)


def replace(file: Path) -> Path:
    """Put another store in the place of an open one, as a restore with `mv` does, and return where that is now."""
    other = file.with_name("other.db")
    with cm.open(other) as store:
        store["whose"] = "another's"
    moved = file.with_name("moved.db")
    file.rename(moved)
    other.rename(file)
    return moved


@pytest.fixture
def service(file: Path) -> Iterator[Service]:
    """Return a service on the file."""
    with Service(SQLiteStorage(file)) as service:
        yield service


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    """Return the address at which the service answers."""
    with background(service) as address:
        yield address


def test_an_embedded_store(file: Path) -> None:
    """Saves and uploads to an embedded store are refused, its loads go on, and each file ends with its own data."""
    with cm.open(file, retries=0) as store:
        store["before"] = 1
        moved = replace(file)
        with pytest.raises(cm.UnavailableError, match=SENTENCE):
            store["late"] = 1
        with pytest.raises(cm.UnavailableError, match=SENTENCE):
            store.upload(b"12345", "late.bin")
        assert dict(store) == {"before": 1}
    with cm.open(moved) as store:
        assert dict(store) == {"before": 1}
    with cm.open(file) as store:
        assert dict(store) == {"whose": "another's"}


def test_a_shelf(file: Path) -> None:
    """A shelf's sync is refused and keeps what it was to write back, which is written once the file is back."""
    with shelve.open(str(file), writeback=True, retries=0) as db:
        db["list"] = [1]
        db.sync()
        db["list"].append(2)
        moved = replace(file)
        with pytest.raises(cm.UnavailableError, match=SENTENCE):
            db.sync()
        moved.replace(file)
    with shelve.open(str(file)) as db:
        assert db["list"] == [1, 2]


def test_a_service(file: Path, service: Service, address: str, caplog: pytest.LogCaptureFixture) -> None:
    """
    A service answers saves and uploads 503, loads and downloads from its own file, and its health is 503.

    Its clients can't put the file back: they are told less than the log.
    """
    key = service.accounts.create("owner")
    with cm.open(address.replace("://", f"://{key}@"), retries=0) as store:
        store["before"] = 1
        media = store.upload(b"12345", "before.bin")
        assert requests.get(f"{address}/health", timeout=PATIENCE).status_code == 200
        replace(file)
        caplog.set_level(logging.WARNING)
        assert requests.get(f"{address}/health", timeout=PATIENCE).status_code == 503
        assert SENTENCE in caplog.text
        caplog.clear()
        with pytest.raises(cm.UnavailableError, match=FOR_CLIENTS) as caught:
            store["late"] = 1
        assert caught.value.status == 503
        with pytest.raises(cm.UnavailableError, match=FOR_CLIENTS):
            store.upload(b"12345", "late.bin")
        assert SENTENCE in caplog.text
        with pytest.raises(cm.UnavailableError, match=SENTENCE):
            service.accounts.create("late")
        assert dict(store) == {"before": 1}
        assert store.download(media) == b"12345"


def test_how_often_files_were_used_is_kept(file: Path, service: Service, address: str) -> None:
    """What was counted while the file was away is stored once it is back."""
    key = service.accounts.create("owner")
    with cm.open(address.replace("://", f"://{key}@")) as store:
        store["key"] = 1
        service.usage.flush()
        moved = file.rename(file.with_name("moved.db"))
        assert store["key"] == 1
        with pytest.raises(cm.UnavailableError, match=SENTENCE):
            service.usage.flush()
        moved.rename(file)
        service.usage.flush()
    panel = service.panels.data_file(service.accounts.named("owner"), "key")
    assert panel is not None
    assert panel.accesses is not None
    assert panel.accesses.today == 2


def test_a_killed_service_whose_store_was_replaced(file: Path, tmp_path: Path) -> None:
    """After a restore over a served store and a kill the next start is refused, until the old log is moved away."""
    with serving("--json", "--store", str(file), ends_by=signal.SIGKILL) as process:
        facts = told(process)
        location = facts["address"].replace("://", f"://{facts['api_key']}@")
        with cm.open(location, retries=0) as store:
            store["day"] = "Monday"
            assert run("backup", str(tmp_path / "backup"), "--store", str(file)).exit_code == 0
            store["day"] = "Tuesday"
            assert run("restore", str(tmp_path / "backup"), "--store", str(tmp_path / "restored")).exit_code == 0
            file.rename(tmp_path / "moved.db")
            (tmp_path / "restored").rename(file)
            with pytest.raises(cm.UnavailableError, match=FOR_CLIENTS):
                store["day"] = "Wednesday"
    log = Path(f"{file}-wal")
    before = (file.read_bytes(), log.read_bytes())
    refused = run("serve", "--port", "0", "--store", str(file))
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"cloudstore: {log} was written for another file than the one at {file}; move that file back beside it, or "
        "move the log away.\n"
    )
    assert (file.read_bytes(), log.read_bytes()) == before
    log.rename(tmp_path / "moved.db-wal")
    for path, day in ((file, "Monday"), (tmp_path / "moved.db", "Tuesday")):
        with serving("--json", "--store", str(path)) as process:
            location = told(process)["address"].replace("://", f"://{facts['api_key']}@")
            with cm.open(location) as store:
                assert dict(store) == {"day": day}


def test_a_restore_over_a_served_store(file: Path, tmp_path: Path) -> None:
    """A restore onto a store in use is refused; one that is moved in its place makes each process refuse saves."""
    log: list[str] = []
    with serving("--json", "--workers", "2", "--store", str(file), log=log) as process:
        facts = told(process)
        location = facts["address"].replace("://", f"://{facts['api_key']}@")
        with cm.open(location, retries=0) as store:
            store["before"] = 1
            run = CliRunner().invoke(app, ["backup", str(tmp_path / "backup"), "--store", str(file)])
            assert run.exit_code == 0
            store["after"] = 1
            run = CliRunner().invoke(app, ["restore", str(tmp_path / "backup"), "--store", str(file)])
            assert run.exit_code == 2
            run = CliRunner().invoke(app, ["restore", str(tmp_path / "backup"), "--store", str(tmp_path / "restored")])
            assert run.exit_code == 0
            file.rename(tmp_path / "moved.db")
            (tmp_path / "restored").rename(file)
            for _ in range(10):  # so that each process is asked
                with cm.open(location, retries=0) as other, pytest.raises(cm.UnavailableError, match=FOR_CLIENTS):
                    other["late"] = 1
                assert requests.get(f"{facts['address']}/health", timeout=PATIENCE).status_code == 503
    assert any(SENTENCE in line for line in log)
    for path, names in ((file, ["before"]), (tmp_path / "moved.db", ["after", "before"])):
        with SQLiteStorage(path) as storage, storage.read() as transaction:
            account = transaction.account_named("owner")
            assert account is not None
            assert transaction.names(account.id) == names
