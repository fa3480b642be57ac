"""`backup`, `restore`, `check` and `migrate` keep a store safe, and never take one's place."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from importlib import resources
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import cloudstore_mapping as cm
from cloudstore_mapping.cli import app
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.migrations import APPLICATION_ID, newest
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.web.serve import background


def run(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a store with a value and a media file."""
    file = tmp_path / "service.db"
    with Service(SQLiteStorage(file)) as service, background(service) as address:
        key = service.accounts.create("bob", "an-owner.s_own~key")
        opened = cm.open(address.replace("://", f"://{key}@"))
        opened["name"] = {"a": 1}
        opened.upload(b"12345", "a.bin")
        opened.close()
    return file


def test_there_and_back(store: Path, tmp_path: Path) -> None:
    """A backup is made and restored, and the restored store is the same to its owner."""
    backup, again = tmp_path / "backup", tmp_path / "again.db"
    made = run("backup", backup, "--store", store)
    assert (made.exit_code, made.stdout, made.stderr) == (0, f"{store} is copied to {backup}.\n", "")
    restored = run("restore", backup, "--store", f"sqlite:///{again}", "--json")
    assert restored.exit_code == 0
    assert json.loads(restored.stdout) == {"store": str(again), "bytes": again.stat().st_size}
    with Service(SQLiteStorage(again)) as service, background(service) as address:
        with cm.open(address.replace("://", "://an-owner.s_own~key@")) as opened:
            assert dict(opened) == {"name": {"a": 1}}
        assert b"".join(service.media.chunks(service.media.named(service.accounts.named("bob"), "a.bin"))) == b"12345"


def test_a_backup_of_a_store_in_use(store: Path, tmp_path: Path) -> None:
    """The service goes on while its store is copied."""
    with Service(SQLiteStorage(store)) as service:
        made = run("backup", tmp_path / "backup", "--store", store, "--json")
        assert json.loads(made.stdout)["backup"] == str(tmp_path / "backup")
        service.accounts.create("late")
    assert "accounts: 1\n" in run("check", "--store", tmp_path / "backup").stdout


def test_nothing_is_replaced(store: Path, tmp_path: Path) -> None:
    """A file that is there is left as it is, and says so in one line."""
    before = store.read_bytes()
    run("backup", tmp_path / "backup", "--store", store)
    for command in (("backup", tmp_path / "backup"), ("restore", tmp_path / "backup")):
        refused = run(*command, "--store", store)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "already; move it away" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert store.read_bytes() == before


@pytest.mark.parametrize(
    "command", [["backup", "b"], ["restore", "absent"], ["check"], ["migrate"], ["migrate", "--dry-run"]]
)
def test_what_is_not_there(tmp_path: Path, command: list[str]) -> None:
    """A store or backup that isn't there is one line and status 2, and none is made."""
    refused = run(*command, "--store", tmp_path / "absent.db")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "There is no " in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_check(store: Path) -> None:
    """What there is is counted; a fault is a line of its own and status 1."""
    good = run("check", "--store", store)
    assert (good.exit_code, good.stdout.splitlines()) == (
        0,
        [
            f"{store} (schema {newest()})",
            "accounts: 1",
            "data files: 1, 7 bytes",
            "media files: 1, 5 bytes",
            "left over: 0 uploads, counts of 0 files",
            "Nothing is wrong.",
        ],
    )
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("UPDATE files SET value = CAST('{' AS BLOB)")
        connection.commit()
    bad = run("check", "--store", store)
    assert bad.exit_code == 1
    assert bad.stdout.splitlines()[-1] == "The file 'name' of 'bob' is no JSON; save it again."
    told = json.loads(run("check", "--store", store, "--json").stdout)
    assert (told["files"], len(told["faults"])) == (1, 1)


def test_a_migration(tmp_path: Path) -> None:
    """A dry run says what would be done and does nothing; the real one does it, and a second finds nothing to do."""
    old = tmp_path / "old.db"
    script = (resources.files("cloudstore_mapping.service.storage") / "schema" / "sqlite-1.sql").read_text()
    with closing(sqlite3.connect(old)) as connection:
        connection.executescript(script)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
    before = old.read_bytes()
    would = run("migrate", "--store", old, "--dry-run")
    assert (would.exit_code, would.stdout) == (0, f"{old} would go from schema 1 to {newest()}.\n")
    assert old.read_bytes() == before
    assert run("migrate", "--store", old).stdout == f"{old} went from schema 1 to {newest()}.\n"
    again = json.loads(run("migrate", "--store", old, "--json").stdout)
    assert again == {"store": str(old), "schema": newest(), "newest": newest(), "dry_run": False}


def test_what_is_no_store(tmp_path: Path) -> None:
    """A file of another kind is refused with a sentence, and left as it is."""
    other = tmp_path / "notes.txt"
    other.write_text("notes" * 1000)
    for command in (["backup", tmp_path / "b"], ["check"], ["migrate"]):
        refused = run(*command, "--store", other)
        assert refused.exit_code == 2
        assert "no CloudStore file" in refused.stderr
    assert other.read_text() == "notes" * 1000
