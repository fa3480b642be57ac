"""A deleted account is gone at once for everyone, and its rows are removed in short steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudstore_mapping.service.storage import sql
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.maintenance import check
from cloudstore_mapping.service.storage.places import place_of
from cloudstore_mapping.service.storage.records import AccessDelta, Event, Limits, Media
from cloudstore_mapping.service.storage.sql import Transaction
from tests.storages import location, new_storage

FILES = 10
TABLES = ("files", "media", "blobs", "chunks", "answers", "events", "accesses", "days", "counters", "api_keys")


def step(storage: Storage) -> bool:
    """Do the smallest step of background work, and tell whether there may be more."""
    return storage.submit(lambda transaction: transaction.tidy(10.0, lambda: True)).result()


def rows(storage: Storage, *tables: str) -> list[int]:
    """Return how many rows tables have."""
    with storage.read() as transaction:
        session = transaction
        return [session.row(f"SELECT count(*) FROM {table}")[0] for table in tables]


def fill(transaction: Transaction, name: str, key: bytes) -> int:
    """Make an account that has something of every kind, and return its id."""
    account = transaction.add_account(name, 1.0).id
    transaction.set_limits(account, "own", Limits(max_files=1000))
    transaction.add_key(account, key, "hint", 1.0)
    transaction.add_session(key, account, 1.0)
    transaction.add_event(account, Event(1.0, "action", "", "origin"), keep=9)
    transaction.keep_answer(account, "request", b"reply", 1.0)
    for number in range(FILES):
        transaction.put(account, f"file {number}", b"1", 1.0)
    for number in range(2):
        blob = transaction.add_blob(account, 20.0)
        transaction.add_chunk(blob, 0, b"bytes", 20.0)
        if number:
            media = Media(key.hex()[:32], "m.png", "image/png", 5, "digest", blob, None, 1.0, 1.0)
            assert transaction.put_media(account, media)
    transaction.add_accesses([AccessDelta(account, "data", "file 1", 1, 1, 1.0)])
    return account


def test_it_is_gone_at_once(storage: Storage) -> None:
    """No key, name, folder, id or session leads to a deleted account, and its name is free, before a row is removed."""
    key, other = b"k" * 32, b"o" * 32
    account = storage.submit(lambda transaction: fill(transaction, "gone", key)).result()
    storage.submit(lambda transaction: fill(transaction, "other", other)).result()
    with storage.read() as transaction:
        folder = transaction.row("SELECT folder FROM accounts WHERE id = ?", account)[0]
    storage.submit(lambda transaction: transaction.delete_account(account)).result()
    assert rows(storage, "files") == [2 * FILES]
    with storage.read() as transaction:
        assert transaction.account_of_key(key) is None
        assert transaction.account_named("gone") is None
        assert transaction.account_of_folder(folder) is None
        assert transaction.account(account) is None
        assert transaction.session(key) is None
        assert [each.name for each in transaction.accounts()] == ["other"]
    storage.submit(lambda transaction: fill(transaction, "gone", key)).result()
    while step(storage):
        pass
    with storage.read() as transaction:
        assert [each.name for each in transaction.accounts()] == ["gone", "other"]


def test_an_upload_to_it_ends(storage: Storage) -> None:
    """Who still uploads to a deleted account can't finish, and what was sent is removed with the rest."""
    account = storage.submit(lambda transaction: fill(transaction, "gone", b"k" * 32)).result()
    blob = storage.submit(lambda transaction: transaction.add_blob(account, 20.0)).result()
    storage.submit(lambda transaction: transaction.delete_account(account)).result()
    while step(storage):
        pass
    assert not storage.submit(lambda transaction: transaction.add_chunk(blob, 0, b"late", 20.0)).result()
    assert rows(storage, *TABLES) == [0] * len(TABLES)


def test_its_rows_go_in_steps(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step removes a few rows, so that other writes pass in between; in the end nothing is left of it alone."""
    monkeypatch.setattr(sql, "ROWS", 3)
    account = storage.submit(lambda transaction: fill(transaction, "gone", b"k" * 32)).result()
    before = rows(storage, *TABLES)
    other = storage.submit(lambda transaction: fill(transaction, "other", b"o" * 32)).result()
    storage.submit(lambda transaction: transaction.delete_account(account)).result()
    left = [2 * FILES]
    while step(storage):
        left += rows(storage, "files")
        assert left[-1] >= left[-2] - 3
        storage.submit(lambda transaction: transaction.put(other, "file 1", b"2", 2.0)).result()
    assert len(set(left)) == 1 + -(-FILES // 3)
    assert rows(storage, *TABLES) == before
    with storage.read() as transaction:
        assert transaction.recounted(other) == transaction.counters(other)


def test_one_that_is_broken_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends in the middle leaves the rest to the next one; `check` counts it, and finds no fault."""
    monkeypatch.setattr(sql, "ROWS", 3)
    file = tmp_path / "store.db"
    with new_storage(file) as storage:
        account = storage.submit(lambda transaction: fill(transaction, "gone", b"k" * 32)).result()
        storage.submit(lambda transaction: transaction.delete_account(account)).result()
        while rows(storage, "files") == [FILES]:
            assert step(storage)
    found = check(place_of(location(file)), lambda _done, _total: None)
    assert (found.accounts, found.files, found.deleted_accounts, found.faults) == (0, 0, 1, [])
    with new_storage(file) as storage:
        with storage.read() as transaction:
            assert transaction.is_untidy(10.0)
        while step(storage):
            pass
        with storage.read() as transaction:
            assert not transaction.is_untidy(10.0)
        assert rows(storage, *TABLES) == [0] * len(TABLES)
