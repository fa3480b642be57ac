"""Every storage engine tells what an account's files take: how many they are, how large, and how often used."""

from __future__ import annotations

from typing import Final

import pytest

from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.records import AccessCount, AccessDelta, Kind, Media
from cloudstore_mapping.service.storage.sql import Transaction

#: A day, and a time on it.
TODAY: Final = 19_000
NOW: Final = TODAY * 86_400.0


def put(storage: Storage, account: int, name: str, value: bytes = b"1") -> None:
    """Put a data file."""
    storage.submit(lambda transaction: transaction.put(account, name, value, 1.0)).result()


def put_media(storage: Storage, account: int, media_id: str) -> None:
    """Put a media file, whose name is its id."""

    def work(transaction: Transaction) -> bool:
        blob = transaction.add_blob(account, 1.0)
        media = Media(media_id, media_id, "image/png", 0, "digest", blob, None, 1.0, 1.0)
        return transaction.put_media(account, media)

    assert storage.submit(work).result()


def add(storage: Storage, *used: AccessDelta) -> None:
    """Add accesses."""
    storage.submit(lambda transaction: transaction.add_accesses(used)).result()


def accesses(storage: Storage, account: int, name: str = "name", kind: Kind = "data") -> AccessCount | None:
    """Return how often a file was used."""
    with storage.read() as transaction:
        return transaction.accesses(account, kind, name)


def days(storage: Storage, account: int, since: int = 0) -> list[tuple[int, int]]:
    """Return how often an account's files were used on each day."""
    with storage.read() as transaction:
        return transaction.days(account, since)


def count(storage: Storage, account: int, enough: int | None = None) -> int:
    """Return how many files there are."""
    with storage.read() as transaction:
        return transaction.count_files(account, enough)


def test_data_and_media_are_counted_together(storage: Storage, account: int) -> None:
    """A limit of files is one for both, and nobody counts further than that."""
    other = storage.submit(lambda transaction: transaction.add_account("other", 1.0)).result().id
    put(storage, other, "not mine")
    assert count(storage, account) == 0
    for number in range(3):
        put(storage, account, f"data {number}")
        put_media(storage, account, f"media {number}")
    assert [count(storage, account, enough) for enough in (None, 0, 1, 4, 6, 7)] == [6, 0, 1, 4, 6, 6]
    assert count(storage, other) == 1


def test_files_are_described_in_the_order_of_their_names(storage: Storage, account: int) -> None:
    """A description is that of `names`, with all of `stat` beside each, page by page."""
    for name in ("é", "b", "a%b", "a_b"):
        put(storage, account, name, name.encode())
    storage.submit(lambda transaction: transaction.set_passwords(account, "b", edit="hash", view=None)).result()
    with storage.read() as transaction:
        described = transaction.describe(account, limit=9)
        assert [name for name, _ in described] == ["a%b", "a_b", "b", "é"]
        assert all(info == transaction.stat(account, name) for name, info in described)
        assert [info.size for _, info in described] == [3, 3, 1, 2]
        assert [name for name, _ in transaction.describe(account, "_", limit=9)] == ["a_b"]
        assert [name for name, _ in transaction.describe(account, "b", after="a%b", limit=1)] == ["a_b"]
        assert transaction.describe(account + 1, limit=9) == []


def test_the_largest_come_first(storage: Storage, account: int) -> None:
    """As many as are asked for, by name where they are equal, in bytes and not in characters."""
    for name, value in (("small", b"1"), ("b", b"22"), ("a", b"22"), ("large", '"é"'.encode())):
        put(storage, account, name, value)
    with storage.read() as transaction:
        assert transaction.largest(account, 3) == [("large", 4), ("a", 2), ("b", 2)]
        assert transaction.largest(account + 1, 3) == []


@pytest.mark.parametrize("kind", ["data", "media"])
def test_accesses_add_up(storage: Storage, account: int, kind: Kind) -> None:
    """A file's accesses of a day are one number, with the time of the last one."""
    put(storage, account, "name")
    put_media(storage, account, "name")
    assert accesses(storage, account, kind=kind) is None
    add(
        storage,
        AccessDelta(account, kind, "name", TODAY, 2, NOW),
        AccessDelta(account, kind, "name", TODAY, 3, NOW + 9),
    )
    add(storage, AccessDelta(account, kind, "name", TODAY, 1, NOW + 5))
    assert accesses(storage, account, kind=kind) == AccessCount(TODAY, 6, NOW + 9)
    assert accesses(storage, account, kind="media" if kind == "data" else "data") is None


def test_another_day_begins_anew(storage: Storage, account: int) -> None:
    """A later day counts from 0; an earlier one, of a clock set back, is no way to begin anew."""
    put(storage, account, "name")
    add(storage, AccessDelta(account, "data", "name", TODAY, 5, NOW))
    add(storage, AccessDelta(account, "data", "name", TODAY + 1, 1, NOW + 86_400))
    assert accesses(storage, account) == AccessCount(TODAY + 1, 1, NOW + 86_400)
    add(storage, AccessDelta(account, "data", "name", TODAY, 2, NOW))
    assert accesses(storage, account) == AccessCount(TODAY + 1, 3, NOW + 86_400)


def test_a_day_of_a_clock_that_was_ahead(storage: Storage, account: int) -> None:
    """A day after the latest that may be right is replaced by an earlier one, with its count and its last access."""
    put(storage, account, "name")
    add(storage, AccessDelta(account, "data", "name", TODAY + 2, 5, NOW + 2 * 86_400))
    today = [AccessDelta(account, "data", "name", TODAY, 2, NOW)]
    storage.submit(lambda transaction: transaction.add_accesses(today, TODAY + 2)).result()
    assert accesses(storage, account) == AccessCount(TODAY + 2, 7, NOW + 2 * 86_400)
    storage.submit(lambda transaction: transaction.add_accesses(today, TODAY + 1)).result()
    assert accesses(storage, account) == AccessCount(TODAY, 2, NOW)


def test_only_files_that_are_there_are_counted(storage: Storage, account: int) -> None:
    """A count that comes after its file's delete, or its account's, leaves nothing; the account's days stand."""
    put(storage, account, "data")
    put_media(storage, account, "media")
    add(
        storage,
        AccessDelta(account, "media", "data", TODAY, 1, NOW),
        AccessDelta(account, "data", "media", TODAY, 1, NOW),
        AccessDelta(account + 1, "data", "data", TODAY, 1, NOW),
    )
    assert accesses(storage, account, "data", "media") is None
    assert accesses(storage, account, "media", "data") is None
    assert accesses(storage, account + 1, "data") is None
    assert days(storage, account) == [(TODAY, 2)]
    assert days(storage, account + 1) == []


def test_what_is_known_of_a_deleted_file_goes_on(storage: Storage, account: int) -> None:
    """A file with a count that was deleted and made anew is counted on, until the count is forgotten."""
    put(storage, account, "name")
    add(storage, AccessDelta(account, "data", "name", TODAY, 5, NOW))
    storage.submit(lambda transaction: transaction.delete(account, "name")).result()
    add(storage, AccessDelta(account, "data", "name", TODAY, 1, NOW))
    assert accesses(storage, account) == AccessCount(TODAY, 6, NOW)
    storage.submit(lambda transaction: transaction.forget_accesses(account, "data", "name")).result()
    assert accesses(storage, account) is None
    add(storage, AccessDelta(account, "data", "name", TODAY, 1, NOW))
    assert accesses(storage, account) is None


def test_days_of_an_account(storage: Storage, account: int) -> None:
    """All that its files were used in a day, of both kinds, from one day on and in order."""
    put(storage, account, "name")
    put_media(storage, account, "media")
    add(storage, AccessDelta(account, "data", "name", TODAY + 2, 4, NOW))
    add(
        storage,
        AccessDelta(account, "data", "name", TODAY, 1, NOW),
        AccessDelta(account, "media", "media", TODAY, 2, NOW),
        AccessDelta(account, "data", "name", TODAY + 1, 3, NOW),
    )
    assert days(storage, account) == [(TODAY, 3), (TODAY + 1, 3), (TODAY + 2, 4)]
    assert days(storage, account, TODAY + 1) == [(TODAY + 1, 3), (TODAY + 2, 4)]


def test_counts_go_with_their_account(storage: Storage, account: int) -> None:
    """A deleted account leaves neither counts nor days once it is tidied up, and another's stand."""
    other = storage.submit(lambda transaction: transaction.add_account("other", 1.0)).result().id
    for each in (account, other):
        put(storage, each, "name")
        add(storage, AccessDelta(each, "data", "name", TODAY, 1, NOW))
    storage.submit(lambda transaction: transaction.delete_account(account)).result()
    while storage.submit(lambda transaction: transaction.tidy(0.0, lambda: True)).result():
        pass
    assert (accesses(storage, account), days(storage, account)) == (None, [])
    assert (accesses(storage, other), days(storage, other)) == (AccessCount(TODAY, 1, NOW), [(TODAY, 1)])
