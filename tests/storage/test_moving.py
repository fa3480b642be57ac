"""A store moves from SQLite to PostgreSQL and back, and nothing of it is lost, changed, or half there."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cloudstore_mapping.errors import UnavailableError, UnsupportedError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.maintenance import back_up_storage, check, migrate_store, restore
from cloudstore_mapping.service.storage.places import StoreLocation, place_of
from cloudstore_mapping.service.storage.postgres import PostgresStorage
from cloudstore_mapping.service.storage.records import AccessDelta, Event, Limits, Media, OwnerPassword
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from tests.postgres_fixtures import address
from tests.postgres_server import shared
from tests.service_fakes import Asker

__all__ = ["address"]

#: All but who is signed in, and what is on its way in or out.
TABLES = [
    *("accounts", "api_keys", "files", "answers", "events", "blobs", "chunks", "media", "accesses", "days"),
    *("old_names", "name_scans"),
]


def nothing(_done: int, _total: int) -> None:
    """Report to nobody."""


def fill(storage: Storage) -> None:
    """Put something of every kind into a storage, for two accounts, with gaps in what is numbered."""

    def media(transaction: Transaction, account: int, media_id: str, name: str, chunks: list[bytes]) -> None:
        blob = transaction.add_blob(account, 1.5)
        for number, data in enumerate(chunks):
            transaction.add_chunk(blob, number, data, 1.5)
        whole = b"".join(chunks)
        digest = hashlib.sha256(whole).hexdigest()
        facts = Media(media_id, name, "image/png", len(whole), digest, blob, "m", 2.0, 3.0)
        assert transaction.put_media(account, facts)

    def work(transaction: Transaction) -> None:
        first = transaction.add_account("first", 1.25).id
        transaction.delete_account(transaction.add_account("gone", 1.0).id)
        second = transaction.add_account("zweite Ä", 2.0).id
        transaction.set_limits(first, "own", Limits(2**62, 1, 2, 2.5, 3, 4))
        transaction.set_disabled(second, True)
        transaction.set_default_passwords(first, data="d", media=None)
        transaction.set_owner_password(first, OwnerPassword("hash", must_change=True))
        transaction.set_next_request_at(first, 1e9 + 0.125)
        for account in (first, second):
            transaction.add_key(account, bytes([account]) * 32, "abcd", 1.0)
            transaction.add_session(bytes([account]) * 31, account, 1.0)
            transaction.add_event(account, Event(1.0, "action", "subject \0\1", "origin"), keep=9)
            transaction.keep_answer(account, "request", b'{"error":null}', 5.0, b"print" if account == first else None)
            for name in ("name", "\1\2\3", "é", "😀", "a\0b"):
                transaction.put(account, name, f'{{"of": "{account}", "é": "\\u0000"}}'.encode(), 1.0)
        transaction.set_passwords(first, "name", edit="e", view="v")
        media(transaction, second, "1" * 32, "gone.png", [b"gone"])
        transaction.delete_media(second, "1" * 32)
        media(transaction, first, "2" * 32, "m.png", [bytes(range(256)) * 2048, b"\0end"])
        media(transaction, second, "3" * 32, "empty.png", [])
        transaction.add_chunk(transaction.add_blob(first, 9.0), 0, b"on its way in", 9.0)
        used = [
            AccessDelta(first, "data", "name", 19_000, 3, 1.0),
            AccessDelta(first, "media", "2" * 32, 19_001, 4, 2.0),
        ]
        transaction.add_accesses(used)
        transaction.do("INSERT INTO old_names VALUES (?, ?, TRUE)", first, "a%2Fb")
        transaction.do("INSERT INTO name_scans VALUES (1.5)")

    storage.submit(work).result()


@pytest.fixture
def another_address() -> str:
    """Return the address of another empty place for a store."""
    return shared.new_store()


@pytest.fixture
def source(tmp_path: Path) -> StoreLocation:
    """Return a store in SQLite with something of every kind."""
    file = tmp_path / "source.db"
    with SQLiteStorage(file) as storage:
        fill(storage)
    return place_of(str(file))


def contents(place: StoreLocation) -> dict[str, list[Any]]:
    """Return all rows of all tables of a store in SQLite, as they are."""
    with closing(sqlite3.connect(str(place.file))) as connection:
        rows = {table: sorted(connection.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in TABLES}
        waiting = {number for (number,) in connection.execute("SELECT id FROM blobs WHERE NOT kept")}
    rows["accounts"] = [row for row in rows["accounts"] if not row[1].startswith("\1")]  # a deleted account
    rows["blobs"] = [row for row in rows["blobs"] if row[0] not in waiting]
    rows["chunks"] = [row for row in rows["chunks"] if row[0] not in waiting]
    return rows


def test_there_and_back(source: StoreLocation, address: str, tmp_path: Path) -> None:
    """What comes back from PostgreSQL is what went there, row by row and value by value, in every table."""
    there, back = place_of(address), place_of(str(tmp_path / "back.db"))
    reported: list[tuple[int, int]] = []
    copied = migrate_store(source, there, lambda done, total: reported.append((done, total)))
    assert reported[-1][0] == reported[-1][1] > 0
    before = contents(source)
    assert {name: each.rows for name, each in copied.items()} == {name: len(rows) for name, rows in before.items()}
    assert migrate_store(there, back, nothing) == copied
    assert contents(back) == before
    for place in (source, there, back):
        found = check(place, nothing)
        assert (found.accounts, found.files, found.media, found.faults) == (2, 10, 2, [])


def test_who_asks_is_known_there(tmp_path: Path, address: str) -> None:
    """API keys, passwords, media links and versions are those of before, and counting goes on from there."""
    file, there = place_of(str(tmp_path / "service.db")), place_of(address)
    with Service(file.open()) as service:
        key = service.accounts.create("owner")
        ask = Asker(service, key)
        version = ask.save("list", {"Apples": 8}).version
        service.set_passwords("owner", "list", edit="pie")
        upload = service.media.begin(name="a.bin", content_type="text/plain", api_key=key)
        upload.write(b"12345")
        upload.finish()
    migrate_store(file, there, nothing)
    with Service(there.open()) as service:
        ask = Asker(service, key)
        assert ask.load("list").version == version
        assert ask.save("list", 1).error == "Locked"
        assert ask.save("list", 1, "pie").error is None
        account = service.accounts.named("owner")
        media = service.media.named(account, "a.bin")
        assert service.media.find(account.folder, media.id) == (account, media)
        assert b"".join(service.media.chunks(media)) == b"12345"
        service.accounts.create("another")
        upload = service.media.begin(name="b.bin", content_type="text/plain", api_key=key)
        upload.write(b"67890")
        upload.finish()
        service.media.delete(account, media.id)
        assert b"".join(service.media.chunks(service.media.named(account, "b.bin"))) == b"67890"
        file_panel = service.panels.data_file(account, "list")
        assert file_panel is not None
        assert file_panel.accesses.today == 3


def test_nothing_is_replaced(source: StoreLocation, address: str, tmp_path: Path) -> None:
    """A store that is there, in a file or a database, is left as it is."""
    with PostgresStorage(address) as storage:
        storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result()
    with pytest.raises(UnsupportedError, match="a store in the database already"):
        migrate_store(source, place_of(address), nothing)
    with PostgresStorage(address) as storage, storage.read() as transaction:
        assert [account.name for account in transaction.accounts()] == ["owner"]
    with pytest.raises(FileExistsError):
        migrate_store(place_of(address), source, nothing)


class BrokenOffError(Exception):
    """Something that ends the copying half-way."""


@pytest.mark.parametrize("at", [1, 21, 41])
def test_one_that_is_interrupted(
    source: StoreLocation, address: str, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there of it is nothing that a service would start on, and it can be begun again."""
    monkeypatch.setattr("cloudstore_mapping.service.storage.maintenance.REPORT_EVERY", 1)

    def interrupt(done: int, _total: int) -> None:
        if done >= at:
            raise BrokenOffError

    there, back = place_of(address), place_of(str(tmp_path / "back.db"))
    with pytest.raises(BrokenOffError):
        migrate_store(source, there, interrupt)
    with pytest.raises(UnsupportedError, match="migrate-store"):
        there.open()
    migrate_store(source, there, nothing)
    with pytest.raises(BrokenOffError):
        migrate_store(there, back, interrupt)
    assert [each.name for each in tmp_path.iterdir() if "back" in each.name] == []
    migrate_store(there, back, nothing)
    assert contents(back) == contents(source)


def test_a_copy_that_does_not_come_back(source: StoreLocation, address: str) -> None:
    """A database that gives back something else than it was given is no copy, and nothing is kept."""
    PostgresStorage(address, to_fill=True).close()
    with PostgresStorage(address, to_fill=True) as storage:
        storage.submit(lambda transaction: _spoil(transaction)).result()
    with pytest.raises(UnsupportedError, match="The copied files differ from the source"):
        migrate_store(source, place_of(address), nothing)
    with PostgresStorage(address, to_fill=True) as storage, storage.read() as transaction:
        assert not transaction.has_accounts()


def _spoil(transaction: Transaction) -> None:
    transaction.do(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN NEW.value = upper(NEW.value); RETURN NEW; END'"
    )
    transaction.do("CREATE TRIGGER spoiled BEFORE INSERT ON files FOR EACH ROW EXECUTE FUNCTION spoil()")


def test_one_moment(tmp_path: Path, address: str) -> None:
    """What is written to the store while it is copied is not in the copy, in no part of it."""
    place = place_of(address)
    with place.open() as storage:
        fill(storage)
        before = check(place, nothing)

        def write(done: int, _total: int) -> None:
            storage.submit(lambda transaction: transaction.put(1, f"late {done}", b"1", 1.0)).result()

        migrate_store(place, place_of(str(tmp_path / "copy.db")), write)
        after = check(place, nothing)
    copied = check(place_of(str(tmp_path / "copy.db")), nothing)
    assert copied.files == before.files < after.files


def test_a_backup_is_restored_to_a_database(
    source: StoreLocation, address: str, another_address: str, tmp_path: Path
) -> None:
    """A backup of any store becomes one in PostgreSQL; one that is damaged or of an older version does not."""
    with source.open() as storage:
        back_up_storage(storage, tmp_path / "backup", nothing)
    restore(tmp_path / "backup", place_of(address), nothing)
    with place_of(address).open() as storage:
        back_up_storage(storage, tmp_path / "again", nothing)
    assert contents(place_of(str(tmp_path / "again"))) == contents(source)
    with pytest.raises(FileNotFoundError, match="no backup"):
        restore(tmp_path / "absent", place_of(address), nothing)
    for number, statement in enumerate(
        (
            "UPDATE files SET value = CAST('1' AS BLOB) WHERE rowid = 1",
            "UPDATE chunks SET data = x'00' WHERE number = 1",
        )
    ):
        damaged = tmp_path / f"damaged {number}"
        damaged.write_bytes((tmp_path / "backup").read_bytes())
        with closing(sqlite3.connect(damaged)) as connection:
            connection.execute(statement)
            connection.commit()
        with pytest.raises(UnsupportedError, match="is damaged and was not restored"):
            restore(damaged, place_of(another_address), nothing)
        assert not place_of(another_address).exists()
    (tmp_path / "notes").write_text("notes" * 1000)
    with pytest.raises(UnsupportedError, match="no CloudStore file"):
        restore(tmp_path / "notes", place_of(address), nothing)
    with closing(sqlite3.connect(tmp_path / "backup")) as connection:
        connection.execute("PRAGMA user_version = 1")
    with pytest.raises(UnsupportedError, match="older version; restore it to a file"):
        restore(tmp_path / "backup", place_of(address), nothing)


def test_a_check_of_a_database(address: str) -> None:
    """Faults and what is left over are found in PostgreSQL as in a file."""
    place = place_of(address)
    with place.open() as storage:
        fill(storage)

        def damage(transaction: Transaction) -> None:
            transaction.do("UPDATE files SET value = '{' WHERE name = 'name' AND account_id = 1")
            transaction.do("UPDATE chunks SET data = '' WHERE number = 1")
            transaction.do("DELETE FROM files WHERE name = 'é'")
            transaction.do("INSERT INTO accesses VALUES (1, 'data', 'gone', 1, 1, 1.0)")

        storage.submit(damage).result()
    findings = check(place, nothing)
    assert "The quotas of 'first' are counted as" in findings.faults.pop(0)
    assert findings.faults == [
        "The file 'name' of 'first' is not valid JSON; save it again.",
        "The media file 'm.png' of 'first' doesn't match its checksum; upload it again.",
    ]
    assert (findings.orphan_blobs, findings.orphan_accesses, findings.files) == (2, 1, 8)


def test_a_target_that_is_not_reached(source: StoreLocation, tmp_path: Path) -> None:
    """Where there is no server the source is left as it was, and the error says so."""
    with pytest.raises(UnavailableError, match="not reached"):
        migrate_store(source, place_of(f"postgresql:///store?host={tmp_path}"), nothing)
