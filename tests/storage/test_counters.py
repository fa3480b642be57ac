"""Quota counters: exact after every change, and counted in short steps where they begin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from cloudstore_mapping.service.storage import sql
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.maintenance import check, repair
from cloudstore_mapping.service.storage.places import place_of
from cloudstore_mapping.service.storage.records import Limits, Media
from cloudstore_mapping.service.storage.sql import Transaction
from tests.storages import location, new_storage

LIMITS = Limits(max_files=1000, max_total_bytes=2**30)


@pytest.fixture
def limited(storage: Storage, account: int) -> int:
    """Return the id of an account whose holdings are counted."""
    storage.submit(lambda transaction: transaction.set_limits(account, "own", LIMITS)).result()
    finish(storage)
    return account


def step(storage: Storage) -> bool:
    """Do the smallest step of background work, and tell whether there may be more."""
    return storage.submit(lambda transaction: transaction.tidy(1e12, lambda: True)).result()


def finish(storage: Storage) -> None:
    """Do all background work that there is."""
    while step(storage):
        pass


def putting(account: int, name: str, value: bytes = b"1") -> Callable[[Transaction], object]:
    """Return the work that saves a file."""
    return lambda transaction: transaction.put(account, name, value, 1.0)


def media(blob: int, media_id: str, name: str, size: int) -> Media:
    """Return a media file."""
    return Media(media_id, name, "image/png", size, "digest", blob, None, 1.0, 1.0)


def made(name: str, transaction: Transaction) -> int:
    """Make an account with a limit and a file, and return its id."""
    account = transaction.add_account(name, 1.0).id
    transaction.set_limits(account, "own", LIMITS)
    transaction.put(account, "name", b"1", 1.0)
    return account


def changes(account: int) -> Iterator[Callable[[Transaction], object]]:
    """Yield all that changes what an account holds."""
    blobs: list[int] = []

    def begin(transaction: Transaction) -> None:
        blobs.append(transaction.add_blob(account, 2.0))
        transaction.add_chunk(blobs[-1], 0, bytes(1000), 2.0)
        transaction.add_chunk(blobs[-1], 1, bytes(10), 2.0)

    for name in ("a", "é", "a%2Fb", "\1\0", "z"):
        yield putting(account, name, b'"value"')
    yield putting(account, "a")
    yield putting(account, "a", b'"%s"' % (b"x" * 5000))
    yield lambda transaction: transaction.delete(account, "z")
    yield lambda transaction: transaction.delete(account, "z")
    yield lambda transaction: transaction.rename_file(account, "a%2Fb", "a/b")
    yield begin
    yield lambda transaction: transaction.put_media(account, media(blobs[0], "0" * 32, "one.png", 1010))
    yield lambda transaction: transaction.put_media(account, media(blobs[0], "9" * 32, "again.png", 1010))
    yield begin
    yield lambda transaction: transaction.put_media(account, media(blobs[1], "0" * 32, "one.png", 1010))
    yield begin
    yield lambda transaction: transaction.drop_blob(blobs[2])
    yield lambda transaction: transaction.drop_blob(blobs[2])
    yield begin
    yield lambda transaction: transaction.sweep(1e12, 1)
    yield lambda transaction: transaction.add_chunk(blobs[3], 2, b"more", 3.0)
    yield lambda transaction: transaction.delete_media(account, "0" * 32)
    yield lambda transaction: transaction.delete_media(account, "0" * 32)
    yield lambda transaction: transaction.keep_answer(account, "é\1", b"reply", 1.0)
    yield lambda transaction: transaction.keep_answer(account, "two", b"another reply", 5.0)
    yield lambda transaction: transaction.forget_answers(4.0, 10)


def test_counters_are_exact_after_every_change(storage: Storage, limited: int) -> None:
    """After each change of files, media, uploads and stored replies the counters are what counting gives."""
    for number, change in enumerate(changes(limited)):
        storage.submit(change).result()
        with storage.read() as transaction:
            assert transaction.counters(limited) == transaction.recounted(limited), number
    finish(storage)
    with storage.read() as transaction:
        counted = transaction.counters(limited)
        assert counted == transaction.recounted(limited)
        assert counted is not None
        assert (counted.files, counted.uploads, counted.leaving) == (4, 0, 0)
        assert counted.replies == len("two" + "another reply")


def test_a_change_that_is_undone_is_not_counted(storage: Storage, limited: int) -> None:
    """Counters are changed in the transaction of the change."""

    def fail(transaction: Transaction) -> None:
        transaction.put(limited, "name", b"1", 1.0)
        raise KeyError

    with pytest.raises(KeyError):
        storage.submit(fail).result()
    with storage.read() as transaction:
        assert transaction.counters(limited) == (0, 0, 0, 0, 0)


def test_only_accounts_with_a_limit_are_counted(storage: Storage, account: int) -> None:
    """An account has counters while it has a limit on files or bytes, and changes of other limits leave them."""

    def set_limits(limits: Limits) -> bool:
        storage.submit(lambda transaction: transaction.set_limits(account, "own", limits)).result()
        finish(storage)
        with storage.read() as transaction:
            return transaction.is_counted(account)

    storage.submit(lambda transaction: transaction.put(account, "name", b"1", 1.0)).result()
    assert not set_limits(Limits(max_file_bytes=1))
    assert set_limits(Limits(max_files=1))
    assert set_limits(Limits(max_total_bytes=1))
    assert not set_limits(Limits())


def test_files_are_counted_in_steps_beside_changes(
    storage: Storage, account: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account that gets a limit is counted a few files at a time, and what changes in between is counted once."""
    monkeypatch.setattr(sql, "ROWS_COUNTED", 2)
    names = [f"file {number}" for number in range(9)]
    storage.submit(lambda transaction: [transaction.put(account, name, b"1", 1.0) for name in names]).result()
    storage.submit(lambda transaction: transaction.set_limits(account, "own", LIMITS)).result()
    steps = 0
    while step(storage):
        steps += 1
        if steps > 4:
            continue
        for side in ("a", "file 4", "z"):
            storage.submit(putting(account, f"{side} {steps}", b'"new"')).result()
        storage.submit(lambda transaction: transaction.delete(account, names.pop(0))).result()
        storage.submit(putting(account, names[-1], b"1" * steps * 100)).result()
    assert steps > 3
    with storage.read() as transaction:
        assert transaction.is_counted(account)
        assert transaction.counters(account) == transaction.recounted(account)


def test_wrong_counters_are_found_and_repaired(tmp_path: Path) -> None:
    """`check` names an account whose counters are wrong, and a repair counts it anew; others are left alone."""
    file = tmp_path / "store.db"
    with new_storage(file) as storage:
        for name in ("right", "wrong"):
            account = storage.submit(partial(made, name)).result()
        finish(storage)
        wrong = "UPDATE counters SET files = 7 WHERE account_id = ?"
        storage.submit(lambda transaction: transaction.do(wrong, account)).result()
    place = place_of(location(file))
    (fault,) = check(place, lambda _done, _total: None).faults
    assert "'wrong' are counted as 7 files of 5 bytes, not 1 of 5" in fault
    assert repair(place) == ["wrong"]
    assert check(place, lambda _done, _total: None).faults == []
