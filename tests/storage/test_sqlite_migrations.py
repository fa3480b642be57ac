"""A file that an older version wrote becomes one of today's, with all that is in it."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from importlib import resources
from pathlib import Path

import pytest

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.migrations import schema_steps
from cloudstore_mapping.service.storage.records import Limits
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.storefiles import APPLICATION_ID
from tests.service_fakes import Asker, FakeHasher

SCHEMA = resources.files("cloudstore_mapping.service.storage") / "schema"
KEY = "an API key of the first version"


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """Return a file as the first schema has it, with two accounts, one key, and a file with passwords."""
    path = tmp_path / "first.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((SCHEMA / "sqlite-1.sql").read_text())
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO accounts (id, name, created_at) VALUES (1, 'one', 1.0), (2, 'two', 2.0)")
        connection.execute("INSERT INTO api_keys VALUES (?, 1, 1.0)", (hashlib.sha256(KEY.encode()).digest(),))
        connection.execute(
            "INSERT INTO files VALUES (1, 'name', 'v', '0$edit', '0$view', 1.0, 2.0, CAST('[1]' AS BLOB))"
        )
        connection.execute("INSERT INTO answers VALUES (1, 'id', CAST('{}' AS BLOB), 1.0)")
        connection.commit()
    return path


def test_what_the_first_version_stored(first: Path) -> None:
    """Keys, values and passwords are what they were; accounts are unlimited and have a folder each."""
    with Service(SQLiteStorage(first), hasher=FakeHasher()) as service:
        ask = Asker(service, KEY)
        assert ask.value("name", "view") == [1]
        assert ask.load("name").error == "Locked"
        assert ask.save("name", 2, "edit").error is None
        one, two = service.accounts.all()
        assert one.limits == two.limits == Limits()
        assert len(one.folder) == len(two.folder) == 32
        assert one.folder != two.folder
        assert one.data_password is one.media_password is None
    with Service(SQLiteStorage(first), hasher=FakeHasher()) as service:
        assert [account.folder for account in service.accounts.all()] == [one.folder, two.folder]


def test_all_schemas_are_numbered() -> None:
    """The steps from nothing to today's schema are numbered from 1 on, without a gap."""
    names = {file.name for file in SCHEMA.iterdir()}
    numbered = {
        f"{engine}-{number}.sql"
        for engine in ("postgres", "sqlite")
        for number in range(1, 1 + len(schema_steps(engine)))
    }
    assert names == numbered


def test_a_step_that_fails_changes_nothing(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration is one transaction: where it can't be finished the file stays what it was."""
    with closing(sqlite3.connect(first)) as connection:
        connection.execute("CREATE TABLE days (what TEXT)")  # the last of the second schema's tables
        before = connection.execute("SELECT sql FROM sqlite_schema").fetchall()
    with pytest.raises(Exception, match="days"):
        SQLiteStorage(first)
    with closing(sqlite3.connect(first)) as connection:
        assert connection.execute("SELECT sql FROM sqlite_schema").fetchall() == before
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
