"""An embedded store is one account of its file: reading makes none, and takes no service's store for an empty one."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from cloudstore_mapping.cli import app
from cloudstore_mapping.embedded import LOCAL_ACCOUNT
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.sql import AccountStatements
from cloudstore_mapping.transfer import export_store, import_store
from tests.service_fakes import Asker
from tests.storages import location, new_storage
from tests.support.command_line import CliRunner, Result


@pytest.fixture
def service_store(tmp_path: Path) -> str:
    """Return the location of a service's store, in which the account `owner` has a key."""
    place = location(tmp_path / "service.db")
    with Service(new_storage(place)) as service:
        Asker(service, service.accounts.create("owner")).save("a", 1)
    return place


def accounts_of(place: str) -> list[str]:
    """Return the names of a store's accounts."""
    with Service(new_storage(place)) as service:
        return [account.name for account in service.accounts.all()]


def run(*arguments: str) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, list(arguments))


def into_another(place: str) -> None:
    """Import a store into another one."""
    with cm.open("memory:") as store:
        import_store(store, place, format="store")


@pytest.mark.parametrize(
    "read",
    [cm.open, lambda place: shelve.open(place, "c", secret="a secret of the tests"), into_another],
    ids=["open", "shelve", "import"],
)
def test_a_service_s_store_is_not_opened_embedded(read: Callable[[str], Any], service_store: str) -> None:
    """A store with accounts, but without the embedded one, is refused with the command to use, and stays as it is."""
    with pytest.raises(
        cm.UnsupportedError, match=r"belong to the accounts of a service; run `cloudstore serve --store "
    ):
        read(service_store)
    assert accounts_of(service_store) == ["owner"]


@pytest.mark.parametrize(
    "command",
    [
        ["ls"],
        ["get", "a"],
        ["stat", "a"],
        ["set", "a", "2"],
        ["rm", "a"],
        ["export", "all.json"],
        ["export", "all.json", "--dry-run"],
        ["import", "in.json"],
    ],
    ids=" ".join,
)
def test_no_command_takes_it_for_an_empty_store(
    command: list[str], service_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command on keys ends with status 2 and the same sentence, and leaves no file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.json").write_text('{"b": 2}')
    result = run(*command, "--at", service_store)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "belong to the accounts of a service; run `cloudstore serve --store " in result.stderr
    assert result.stderr.count("\n") == 1
    assert accounts_of(service_store) == ["owner"]
    assert not list(tmp_path.glob("all.json*"))


def test_an_empty_account_beside_a_service_s(service_store: str, tmp_path: Path) -> None:
    """An empty account that an earlier version added to a service's store is neither exported nor imported."""
    with Service(new_storage(service_store)) as service:
        service.accounts.create(LOCAL_ACCOUNT)
    for command in (["export", str(tmp_path / "all.json"), "--at", service_store], ["import", service_store]):
        result = run(*command, "--format", "store" if command[0] == "import" else "json")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "belong to the accounts of a service" in result.stderr
    assert not (tmp_path / "all.json").exists()
    with cm.open(service_store) as store:
        store["mine"] = 1
        assert export_store(store, tmp_path / "all.json").keys == 1


def test_reading_makes_no_account(tmp_path: Path) -> None:
    """A new store reads as an empty one, without an account; the first write makes it."""
    place = location(tmp_path / "new.db")
    with cm.open(place) as store, cm.open(place) as other:
        assert (len(store), store.get("a"), "a" in store, store.media_files()) == (0, None, False, [])
        assert store.get_many(["a", "b"]) == {}
        assert accounts_of(place) == []
        other["a"] = 1
        assert accounts_of(place) == [LOCAL_ACCOUNT]
        assert (store["a"], list(store)) == (1, ["a"])
        store["b"] = 2
        store.update({"c": 3})
        assert dict(other) == {"a": 1, "b": 2, "c": 3}
    assert accounts_of(place) == [LOCAL_ACCOUNT]


@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.update({"a": 1, "b": 2}),
        lambda store: store.merge("a", {"b": 1}),
        lambda store: store.upload(b"data", "one.png"),
        lambda store: store.setdefault("a", 1),
    ],
    ids=["batch", "merge", "upload", "setdefault"],
)
def test_every_kind_of_first_write(write: Callable[[cm.CloudStoreMapping[Any]], object], tmp_path: Path) -> None:
    """Whatever writes first makes the account, once, and what it wrote is there."""
    place = location(tmp_path / "new.db")
    with cm.open(place) as store:
        write(store)
        assert len(store) + len(store.media_files()) > 0
    assert accounts_of(place) == [LOCAL_ACCOUNT]


@pytest.mark.sqlite("reads its file")
def test_the_bytes_of_a_first_upload(tmp_path: Path) -> None:
    """The bytes of an upload that makes the account belong to it, and so end with it."""
    with cm.open(tmp_path / "new.db") as store:
        store.upload(b"data", "one.png")
    with closing(sqlite3.connect(tmp_path / "new.db")) as connection:
        assert connection.execute(
            "SELECT count(*) FROM blobs JOIN accounts ON accounts.id = account_id"
        ).fetchone() == (1,)


def test_a_first_write_that_is_refused(tmp_path: Path) -> None:
    """A write that is undone leaves no account behind, and the next one makes it."""
    place = location(tmp_path / "new.db")
    with cm.open(place) as store:
        with pytest.raises(KeyError):
            del store["a"]
        assert accounts_of(place) == []
        store["a"] = 1
        assert dict(store) == {"a": 1}


def test_the_account_is_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that only writes looks for the account by its name until it is made, and not at every write."""
    with cm.open(location(tmp_path / "new.db")) as store:
        store["a"] = 1
        store["b"] = 2
        monkeypatch.setattr(AccountStatements, "account_named", None)
        store["c"] = 3
        assert dict(store) == {"a": 1, "b": 2, "c": 3}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which this system lacks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_first_write_after_a_fork(tmp_path: Path) -> None:
    """A child that writes first makes the account, and its parent sees what it wrote."""
    place = location(tmp_path / "new.db")
    with cm.open(place) as store:
        assert len(store) == 0
        child = os.fork()
        if child == 0:
            status = 1
            try:
                store["a"] = 1
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert dict(store) == {"a": 1}


def test_an_empty_store_is_exported(tmp_path: Path) -> None:
    """An export of a store that holds nothing says so, and is a success."""
    place = location(tmp_path / "new.db")
    cm.open(place).close()
    result = run("export", str(tmp_path / "all.json"), "--at", place)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Exported 0 keys and 0 media files.\n", "")
    assert json.loads((tmp_path / "all.json").read_text()) == {}
