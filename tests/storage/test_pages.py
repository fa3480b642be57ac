"""Every storage engine lists names by prefix and page by page, and reads no more than it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest

from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage

#: The characters next to the ends and the gap of Unicode, in every order.
NAMES = ["".join(text) for size in (1, 2, 3) for text in product("a\ud7ff\ue000\U0010ffff", repeat=size)]


def put_all(storage: Storage, account: int, names: list[str]) -> None:
    """Put a value under each name."""
    storage.submit(lambda transaction: [transaction.put(account, name, b"1", 1.0) for name in names]).result()


def test_prefixes_and_pages(storage: Storage, account: int) -> None:
    """What is listed is what Python's own texts say, for every prefix together with every name to go on after."""
    put_all(storage, account, NAMES)
    names = sorted(NAMES)
    with storage.read() as transaction:
        for prefix in ["", *NAMES]:
            wanted = [name for name in names if name.startswith(prefix)]
            assert transaction.names(account, prefix=prefix) == wanted
            assert transaction.names(account, prefix=prefix, limit=2) == wanted[:2]
            for after in ["", *NAMES]:
                rest = [name for name in wanted if name > after]
                assert transaction.names(account, prefix=prefix, after=after, limit=3) == rest[:3]


def test_a_substring_page_by_page(storage: Storage, account: int) -> None:
    """A page of a filter holds as many names as were asked for, however far apart they stand."""
    put_all(storage, account, [f"{number:03}" for number in range(200)])
    with storage.read() as transaction:
        assert transaction.names(account, "9", limit=3) == ["009", "019", "029"]
        assert transaction.names(account, "9", after="029", limit=3) == ["039", "049", "059"]
        assert transaction.names(account, "9", prefix="1", after="189", limit=3) == ["190", "191", "192"]


def test_pages_are_an_account_s_own(storage: Storage, account: int) -> None:
    """No page holds a name of another account."""
    other = storage.submit(lambda transaction: transaction.add_account("other", 1.0)).result().id
    put_all(storage, account, ["a", "c"])
    put_all(storage, other, ["b", "d"])
    with storage.read() as transaction:
        assert transaction.names(account, after="", limit=9) == ["a", "c"]
        assert transaction.names(other, prefix="", after="b", limit=9) == ["d"]


def steps(storage: SQLiteStorage, read: Callable[[Transaction], object]) -> int:
    """Return how many steps SQLite needs for some reading."""
    counted = [0]

    def count() -> None:
        counted[0] += 1

    with storage.read() as transaction:
        storage._session.connection.set_progress_handler(count, 1)
        read(transaction)
        storage._session.connection.set_progress_handler(None, 1)
    return counted[0]


@pytest.mark.parametrize("after", ["", "name 00100", "name 04900"])
def test_a_page_costs_the_same_wherever_it_is(after: str) -> None:
    """The index leads to a page's first name, with a prefix that all names have too."""
    with SQLiteStorage(None) as storage:
        account = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result().id
        put_all(storage, account, [f"name {number:05}" for number in range(5000)])
        needed = steps(storage, lambda transaction: transaction.names(account, prefix="na", after=after, limit=10))
        assert needed < 200


def test_a_stat_knows_all_but_the_value(storage: Storage, account: int) -> None:
    """A stat tells the size, the version, both times and both hashes, and None where there is no file."""
    version = storage.submit(lambda transaction: transaction.put(account, "name", b'"\xc3\xa9"', 1.5)).result()
    with storage.read() as transaction:
        assert transaction.stat(account, "name") == (4, version, 1.5, 1.5, None, None)
        assert transaction.stat(account, "absent") is None
        assert transaction.stat(account + 1, "name") is None
    storage.submit(lambda transaction: transaction.set_passwords(account, "name", edit="e", view="v")).result()
    version = storage.submit(lambda transaction: transaction.put(account, "name", b"1", 2.5)).result()
    with storage.read() as transaction:
        assert transaction.stat(account, "name") == (1, version, 1.5, 2.5, "e", "v")


def test_the_value_is_a_file_s_last_column() -> None:
    """What stood behind it could be read only through it, 16 MB of it at worst."""
    with SQLiteStorage(None) as storage, storage.read():
        columns = storage._session.connection.execute("PRAGMA table_info(files)").fetchall()
    assert columns[-1][1] == "value"


def test_versions_never_come_again(storage: Storage, account: int) -> None:
    """No two writes have the same version, not even those of a file that was deleted in between."""

    def write(transaction: Transaction) -> list[str]:
        versions = []
        for _ in range(500):
            versions.append(transaction.put(account, "name", b"1", 1.0))
            versions.append(transaction.put(account, "name", b"1", 1.0))
            transaction.delete(account, "name")
        return versions

    assert len({*storage.submit(write).result()}) == 1000


def test_answers(storage: Storage, account: int) -> None:
    """An answer is kept under its account and id, until it is old and its turn comes to be forgotten."""
    other = storage.submit(lambda transaction: transaction.add_account("other", 1.0)).result().id

    def keep(transaction: Transaction) -> None:
        for number in range(5):
            transaction.keep_answer(account, f"{number}", b"%d" % number, 1.0 + number)
        transaction.keep_answer(other, "0", b"other", 9.0)

    def kept() -> list[bytes | None]:
        with storage.read() as transaction:
            answers = [transaction.answer(account, f"{number}") for number in range(5)]
        return [None if answer is None else answer.reply for answer in answers]

    storage.submit(keep).result()
    assert kept() == [b"0", b"1", b"2", b"3", b"4"]
    storage.submit(lambda transaction: transaction.forget_answers(4.0, 2)).result()
    assert kept() == [None, None, b"2", b"3", b"4"]
    storage.submit(lambda transaction: transaction.forget_answers(4.0, 2)).result()
    assert kept() == [None, None, None, b"3", b"4"]
    with storage.read() as transaction:
        assert transaction.answer(other, "0") == (b"other", None)
        assert transaction.answer(other, "4") is None
