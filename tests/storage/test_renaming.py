"""Files of version 0.1.0 are renamed to their keys: each wholly or not at all, once, with all that is theirs."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import cloudstore_mapping as cm
from cloudstore_mapping import transfer
from cloudstore_mapping.cli import app
from cloudstore_mapping.errors import UnavailableError, UnsupportedError
from cloudstore_mapping.keys import escape_key
from cloudstore_mapping.service.storage import renaming
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.places import StoreLocation, place_of
from cloudstore_mapping.service.storage.records import AccessDelta
from cloudstore_mapping.service.storage.sql import Transaction, new_name, old_name
from tests.storages import new_database
from tests.support.command_line import CliRunner, Result

# Keys with their names in version 0.1.0.
OLD = {
    "users/ann": "users%2Fann",
    "a,b": "a%2Cb",
    "a\\b": "a%5Cb",
    " x ": "%20x%20",
    "/": "%2F",
    "%2F": "%252F",
    "%252F": "%25252F",
    "..": "%2E.",
    "a\tb": "a%09b",
}
SAME = {"plain": "plain", "100%": "100%", "": "%", "%": "%25", "a%20b": "a%20b", "nul\0": "nul%00"}

texts = st.text("%250FCE ./,\\a\0", max_size=8) | st.text(max_size=6)


@pytest.mark.parametrize(("key", "name"), (OLD | SAME).items())
def test_old_names(key: str, name: str) -> None:
    """A name of version 0.1.0 leads to the key that it had, and a name that stays to none."""
    new = escape_key(key)
    assert old_name(new) == name
    assert new_name(name) == (None if key in SAME else new)
    assert new_name(f"{name},") is None


@given(texts)
@example("%252F")
def test_every_old_name_is_translated_once(key: str) -> None:
    """The old name of every key is translated to its new one, or is the same; a new name is never longer."""
    new = escape_key(key)
    assert new_name(old_name(new)) == (None if old_name(new) == new else new)
    assert len(new) <= len(old_name(new))


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StoreLocation:
    """Return where an empty store is to be, for each engine."""
    return place_of(str(tmp_path / "store.db") if request.param == "sqlite" else new_database())


def fill(storage: Storage, names: list[str]) -> None:
    """Save files under these names for an embedded store's account, each with its name as value."""

    def work(transaction: Transaction) -> None:
        found = transaction.account_named("local")
        account = found or transaction.add_account("local", 1.0)
        for name in names:
            transaction.put(account.id, name, json.dumps(name).encode(), 2.0)
            transaction.set_passwords(account.id, name, edit=f"edit {name}", view=f"view {name}")
            transaction.add_accesses([AccessDelta(account.id, "data", name, 19_000, len(name), 1.0)])

    storage.submit(work).result()


#: What undoes the schemas behind the one that knows old names.
NEWER = (
    "DROP TABLE counters",
    "DROP INDEX accounts_deleted",
    "ALTER TABLE accounts DROP COLUMN deleted",
    "ALTER TABLE blobs DROP COLUMN size",
)


def make_old(storage: Storage, schema: int) -> None:
    """Take a store back to the schema that knew nothing of old names."""

    def work(transaction: Transaction) -> None:
        transaction.do("DROP TABLE old_names")
        transaction.do("DROP TABLE name_scans")
        transaction.do("ALTER TABLE answers DROP COLUMN fingerprint")
        for statement in NEWER:
            transaction.do(statement)
        transaction.do(f"PRAGMA user_version = {schema}" if schema > 1 else "UPDATE cloudstore SET version = 1")

    storage.submit(work).result()


@pytest.fixture
def old(place: StoreLocation) -> StoreLocation:
    """Return a store of version 0.1.0, with files of an old name, and of one that stays."""
    with place.open() as storage:
        fill(storage, [*OLD.values(), *SAME.values()])
        make_old(storage, 3 if place.file else 1)
    return place


def facts(place: StoreLocation) -> dict[str, Any]:
    """Return by name all that is stored of each file."""
    with place.open(renames=True) as storage, storage.read() as transaction:
        account = transaction.account_named("local")
        assert account is not None
        names = transaction.names(account.id)
        return {
            name: (
                transaction.get(account.id, name),
                transaction.stat(account.id, name),
                transaction.accesses(account.id, "data", name),
            )
            for name in names
        }


def migrate(place: StoreLocation, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the command, and return its status and what it printed."""
    done = run("migrate-names", "--store", place.location(secrets=True), "--json", *arguments)
    return done.exit_code, json.loads(done.stdout)


def run(*arguments: str) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [*arguments])


def test_all_that_is_a_file_s_comes_along(old: StoreLocation) -> None:
    """Value, version, passwords, times and counts are those of before, under the key's own text."""
    before = facts(old)
    status, done = migrate(old)
    assert status == 0
    assert done["clashes"] == []
    assert {(each["old"], each["new"]) for each in done["renamed"]} == {(name, key) for key, name in OLD.items()}
    after = facts(old)
    assert after == {escape_key(key): before[name] for key, name in (OLD | SAME).items()}
    with cm.open(old.location(secrets=True)) as store:
        assert sorted(store) == sorted(OLD | SAME)
    assert run("check", "--store", old.location(secrets=True)).exit_code == 0


def test_twice_without_harm(old: StoreLocation) -> None:
    """A second run renames nothing, though new names may look like old ones, and nor does one after new files."""
    migrate(old)
    before = facts(old)
    assert migrate(old) == (0, {"store": str(old), "renamed": [], "clashes": [], "dry_run": False})
    with old.open() as storage:
        fill(storage, ["new%2Fkey"])
    assert migrate(old)[1]["renamed"] == []
    assert facts(old) == before | {"new%2Fkey": facts(old)["new%2Fkey"]}


def test_a_dry_run_changes_nothing(old: StoreLocation) -> None:
    """`--dry-run` tells what a run does, and leaves all as it is."""
    with old.open(renames=True) as storage:
        fill(storage, ["users/ann"])
    before = facts(old)
    foreseen = migrate(old, "--dry-run")
    assert facts(old) == before
    assert foreseen == (1, migrate(old)[1] | {"dry_run": True})


def test_a_clash_is_left_and_reported(old: StoreLocation) -> None:
    """Where both names exist neither is changed, nor a name that one of them is in the way of; then both are keys."""
    with old.open(renames=True) as storage:
        fill(storage, ["users/ann", "/"])
    before = facts(old)
    for _ in range(2):
        status, done = migrate(old)
        assert status == 1
        assert {(each["old"], each["new"]) for each in done["clashes"]} == {
            ("users%2Fann", "users/ann"),
            ("%2F", "/"),
            ("%252F", "%2F"),
            ("%25252F", "%252F"),
        }
    after = facts(old)
    for name in ("users%2Fann", "users/ann", "%2F", "/", "%252F"):
        assert after[name] == before[name]
    with cm.open(old.location(secrets=True), password="x") as store:
        assert {"users%2Fann", "users/ann"} < {*store}
    with old.open() as storage:
        storage.submit(lambda transaction: transaction.delete(1, "users/ann")).result()
    assert [each["old"] for each in migrate(old)[1]["renamed"]] == ["users%2Fann"]


def test_a_name_that_is_kept(old: StoreLocation) -> None:
    """`--keep` leaves a name as it is for good."""
    assert "users%2Fann" not in [each["old"] for each in migrate(old, "--keep", "users%2Fann")[1]["renamed"]]
    assert migrate(old)[1]["renamed"] == []
    with cm.open(old.location(secrets=True)) as store:
        assert "users%2Fann" in store


def test_a_store_without_a_note(place: StoreLocation) -> None:
    """The first run on a store that was never one of 0.1.0 renames what clients of 0.1.0 wrote, the second nothing."""
    with place.open() as storage:
        fill(storage, ["users%2Fann", "%252F"])
    assert len(migrate(place)[1]["renamed"]) == 2
    assert {*facts(place)} == {"users/ann", "%2F"}
    assert migrate(place) == (0, {"store": str(place), "renamed": [], "clashes": [], "dry_run": False})
    assert {*facts(place)} == {"users/ann", "%2F"}


@pytest.mark.parametrize("at", range(6))
def test_an_interrupted_run(old: StoreLocation, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """A run that ends anywhere leaves every file under one of its two names, and the next one goes on."""
    before = facts(old)
    steps = iter(range(at))
    rename = renaming._rename

    def fail(file: Any, transaction: Transaction) -> Any:
        if next(steps, None) is None:
            rename(file, transaction)
            raise UnavailableError("The disk is full.")  # within the transaction, after all that it does
        return rename(file, transaction)

    monkeypatch.setattr(renaming, "_rename", fail)
    monkeypatch.setattr(renaming, "IN_FLIGHT", 1)
    with pytest.raises(UnavailableError), old.open() as storage:
        renaming.rename_files(storage, 1.0, lambda _done, _total: None)
    found = facts(old)
    assert len(found) == len(before)
    renamed = {old_name(name) for name in found.keys() - before.keys()}
    assert all(
        found[name] == before.get(name, before.get(old_name(name))) for name in found if name not in ("%2F", "%252F")
    )
    assert len(renamed) <= at
    with pytest.raises(UnsupportedError, match="migrate-names"):
        cm.open(old.location(secrets=True))
    monkeypatch.undo()
    assert migrate(old)[0] == 0
    assert facts(old) == {escape_key(key): before[name] for key, name in (OLD | SAME).items()}


def test_an_old_store_is_not_opened(old: StoreLocation) -> None:
    """Where keys would seem to be missing, nothing opens the store, and each says which command to run."""
    location = old.location(secrets=True)
    with pytest.raises(UnsupportedError, match=r"0\.1\.0.*`cloudstore migrate-names --store") as caught:
        cm.open(location)
    assert str(old) in str(caught.value)
    for command in (
        ("get", "users/ann", "--at", location),
        ("ls", "--at", location),
        ("passwd", "local", "users/ann", "--edit", "--clear", "--store", location),
        ("serve", "--port", "0", "--store", location),
    ):
        done = run(*command)
        assert done.exit_code == 2, command
        assert "cloudstore migrate-names" in done.stderr, command
    assert run("check", "--store", location).exit_code == 0


def test_an_old_store_without_old_names(place: StoreLocation) -> None:
    """A store of version 0.1.0 all of whose names stay is opened as ever."""
    with place.open() as storage:
        fill(storage, [*SAME.values()])
        make_old(storage, 3 if place.file else 1)
    with cm.open(place.location(secrets=True)) as store:
        assert sorted(store) == sorted(SAME)
    with cm.open(place.location(secrets=True)) as store:
        assert len(store) == len(SAME)


def test_counts_of_a_file_deleted_before(place: StoreLocation) -> None:
    """What is left of the counts of a deleted file with the new name is not added to, and in nobody's way."""
    with place.open() as storage:
        fill(storage, ["a%2Fb", "a/b"])
        storage.submit(lambda transaction: transaction.delete(1, "a/b")).result()
        make_old(storage, 3 if place.file else 1)
    before = facts(place)
    assert migrate(place)[0] == 0
    assert facts(place) == {"a/b": before["a%2Fb"]}


def test_a_damaged_value_stays_damaged(tmp_path: Path) -> None:
    """A renamed file that isn't what was saved is found, as any other."""
    place = place_of(str(tmp_path / "store.db"))
    with place.open() as storage:
        fill(storage, ["a%2Fb"])
    migrate(place)
    assert run("check", "--store", str(tmp_path / "store.db")).exit_code == 0
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        connection.execute("UPDATE files SET value = CAST('1' AS BLOB)")
        connection.commit()
    assert "'a/b' of 'local' doesn't match its checksum" in run("check", "--store", str(tmp_path / "store.db")).stdout


def test_an_export_of_version_0_1_0(tmp_path: Path) -> None:
    """An export holds keys, so that of a store with old names is imported under the same keys."""
    (tmp_path / "old.json").write_text(json.dumps(OLD | SAME))
    lines = [json.dumps({"key": key, "value": name}) for key, name in (OLD | SAME).items()]
    (tmp_path / "old.jsonl").write_text("\n".join(lines) + "\n")
    for file in ("old.json", "old.jsonl"):
        with cm.open("memory:") as store:
            transfer.import_store(store, tmp_path / file)
            assert dict(store) == OLD | SAME
            assert sorted(store._files.client.list()) == sorted(map(escape_key, OLD | SAME))
