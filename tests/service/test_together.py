"""Requests that a service answers together, as they came in over many connections at once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

import pytest

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.wire import Reply, decode_value
from tests.service_fakes import Asker, FakeHasher, ManualClock


@pytest.fixture
def ask(storage: Storage, clock: ManualClock, hasher: FakeHasher) -> Iterator[Asker]:
    """Return somebody who asks a service on each engine."""
    with Service(storage, Settings(key_tries=2), clock, hasher) as service:
        yield Asker(service, service.accounts.create("owner"))


def reply_of(answer: Reply | Future[Reply]) -> Reply:
    """Return a reply, waited for where it is not there at once."""
    return answer if isinstance(answer, Reply) else answer.result()


def test_they_are_answered_as_one_by_one(ask: Asker) -> None:
    """Loads, writes, listings, locked files and refusals get the replies that they get alone."""
    ask.save("locked", 1)
    ask.service.set_passwords("owner", "locked", view="view")
    with ask.service.dispatcher.together() as answer:
        answers = [
            answer(ask.request(None, "new", value=2), ""),
            answer(ask.request(None, "locked", "view"), ""),
            answer(ask.request(None, "locked", "wrong"), ""),
            answer(ask.request(None, "absent"), ""),
            answer(ask.request("list", ""), ""),
        ]
    saved, right, wrong, absent, listed = map(reply_of, answers)
    assert (saved.error, right.error, wrong.error, absent.error) == (None, None, "Locked", "NoFile")
    assert decode_value(right.content) == 1
    assert "locked" in decode_value(listed.content)
    assert ask.value("new") == 2


def test_small_reads_see_one_moment(tmp_path: Path) -> None:
    """A file that is changed between two loads of a block is changed for the next block only, then for all in it."""
    with Service(SQLiteStorage(tmp_path / "store.db")) as service:
        ask = Asker(service, service.accounts.create("owner"))
        ask.save("name", 1)

        def load() -> object:
            return decode_value(reply_of(answer(ask.request(None, "name"), "")).content)

        with service.dispatcher.together() as answer:
            before = load()
            ask.save("name", 2)
            meanwhile = load()
        with service.dispatcher.together() as answer:
            after = load()
    assert (before, meanwhile, after) == (1, 1, 2)


def test_an_account_that_is_switched_off_is_refused_from_the_next_block_on(ask: Asker) -> None:
    """Accounts are found once in a block, and never remembered for another."""
    ask.save("name", 1)
    for disabled, error in ((False, None), (True, "Disabled"), (False, None)):
        ask.service.accounts.set_disabled("owner", disabled)
        with ask.service.dispatcher.together() as answer:
            assert [reply_of(answer(ask.request(None, "name"), "")).error for _ in range(2)] == [error] * 2


def test_wrong_keys_are_counted_one_by_one(ask: Asker) -> None:
    """Each wrong key of a block counts as a guess of its address, and a right one is accepted all the same."""
    ask.save("name", 1)
    guesses = [Asker(ask.service, f"guess {number}").request(None, "name") for number in range(3)]
    with ask.service.dispatcher.together() as answer:
        assert [reply_of(answer(guess, "192.0.2.1")).error for guess in guesses] == ["BadKey", "BadKey", "TooOften"]
        assert reply_of(answer(ask.request(None, "name"), "192.0.2.1")).error is None
        assert reply_of(answer(ask.request(None, "name"), "192.0.2.2")).error is None


def test_one_that_fails_fails_alone(tmp_path: Path) -> None:
    """A file that is damaged is refused, and one that is asked for after it is there."""
    path = tmp_path / "store.db"
    with Service(SQLiteStorage(path)) as service:
        ask = Asker(service, service.accounts.create("owner"))
        for name in ("damaged", "whole"):
            ask.save(name, 1)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("UPDATE files SET value = x'32' WHERE name = 'damaged'")
        with service.dispatcher.together() as answer:
            errors = [reply_of(answer(ask.request(None, name), "")).error for name in ("damaged", "whole")]
    assert errors == ["Unavailable", None]


def test_after_the_end_all_are_refused(storage: Storage) -> None:
    """A closed service answers each with `Unavailable`."""
    service = Service(storage)
    ask = Asker(service, service.accounts.create("owner"))
    service.close()
    with service.dispatcher.together() as answer:
        assert reply_of(answer(ask.request(None, "name"), "")).error == "Unavailable"
