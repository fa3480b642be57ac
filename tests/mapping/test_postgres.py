"""A dictionary over a PostgreSQL database, without a service between them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from functools import partial

import psycopg
import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from cloudstore_mapping.service.storage.places import place_of
from tests.postgres_fixtures import address
from tests.support.forking import ENDS, FOREVER, Saving, in_child

__all__ = ["address"]

PROGRAM = """
import sys, cloudstore_mapping as cm
with cm.open(sys.argv[1]) as store:
    store.transform("count", lambda count: count + 1, default=0)
    print(dict(store))
"""


@pytest.fixture
def location(address: str) -> str:
    """Return the address with a password, which the server never asks for."""
    return address.replace("postgres@", "postgres:swordfish@")


def test_it_is_kept(location: str, no_threads_left: None) -> None:
    """What was saved is there for the next one, in this program or another, and so is a media file."""
    with cm.open(location) as store:
        store["Shopping_List"] = {"Apples": 8}
        store |= {"Shopping_List": {"Pears": 1}}
        media = store.upload(b"12345", "a.bin")
    with cm.open(location) as store:
        assert dict(store) == {"Shopping_List": {"Apples": 8, "Pears": 1}}
        assert store.download(media) == b"12345"
    ran = subprocess.run([sys.executable, "-c", PROGRAM, location], check=True, capture_output=True, text=True)
    assert ran.stdout == "{'Shopping_List': {'Apples': 8, 'Pears': 1}, 'count': 1}\n"


def test_the_environment(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address may be where API keys are kept too."""
    monkeypatch.setenv("CLOUDSTORE_URL", location)
    with cm.open() as store:
        store["key"] = 1
        assert list(store) == ["key"]


def test_the_password_is_not_shown(location: str) -> None:
    """Neither what the store is shown as nor its pickle has it, unless that is asked for."""
    with cm.open(location) as store:
        store["key"] = 1
        assert repr(store) == f"<CloudStoreMapping {place_of(location)}>"
        data = pickle.dumps(store)
    assert b"swordfish" not in data
    with pickle.loads(data) as again:
        assert dict(again) == {"key": 1}
    with cm.open(location, pickle_secrets=True) as store:
        assert b"swordfish" in pickle.dumps(store)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_opens_its_own_connections(location: str) -> None:
    """After a fork parent and child go on, each over connections of its own."""
    with cm.open(location) as store:
        store["parent"] = 1
        child = os.fork()
        if child == 0:
            status = 1
            try:
                store["child"] = store["parent"] + 1
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert status == 0
        store["parent"] = 3
        assert dict(store) == {"child": 2, "parent": 3}


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forks_while_threads_save(location: str) -> None:
    """Children work while threads of the parent save over its connections, which they neither use nor end."""
    with cm.open(location) as store:
        store["kept"] = "kept"

        def use(number: int) -> None:
            store[f"child {number}"] = number
            assert (store["kept"], len(dict(store)) > number) == ("kept", True)
            if number % 2:
                store.close()

        with Saving(store) as saving:
            assert [in_child(partial(use, number)) for number in range(4)] == [""] * 4
        assert saving.errors == []
        assert {**saving.known, **{f"child {number}": number for number in range(4)}, "kept": "kept"} == dict(store)


def test_a_child_ends_like_any_program(location: str) -> None:
    """A child that used the store, closed it or did neither ends by `sys.exit`, and its parent goes on."""
    run = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", ENDS, location]
    done = subprocess.run(run, timeout=FOREVER, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{'a': 1, 'b': 2, 'c': 3}\n", "")


def test_a_long_key_is_refused(location: str) -> None:
    """An index of PostgreSQL holds keys of about a thousand bytes: a longer one is an error before it is sent there."""
    with cm.open(location) as store:
        store["k" * 1300] = 1
        with pytest.raises(cm.BadNameError, match=r"1,300 bytes \(the most that PostgreSQL takes\)"):
            store["k" * 1301] = 1
        assert list(store) == ["k" * 1300]


def test_two_stores_lose_nothing(location: str) -> None:
    """A change by somebody else in between is seen, and done again on top of."""
    with cm.open(location) as one, cm.open(location) as two:
        one["count"] = 0
        for store in (one, two) * 10:
            store.transform("count", lambda count: count + 1)
        assert two["count"] == 20

        def edit() -> None:
            with one.edit("counts") as counts:
                two.merge("counts", {"two": 1})
                counts["one"] = 1

        one["counts"] = {}
        with pytest.raises(cm.ChangedError):
            edit()
        assert one["counts"] == {"two": 1}


def test_a_shelf(location: str) -> None:
    """A shelf is kept there too; its secret is given, or the environment's, for there is no file to keep one beside."""
    with shelve.open(location, secret="sixteen characters at least") as shelf:
        shelf["set"] = {1, 2}
    with shelve.open(location, "r", secret="sixteen characters at least") as shelf:
        assert shelf["set"] == {1, 2}


def test_others_tables(location: str) -> None:
    """A database that is another program's is left as it is."""
    with psycopg.connect(location, autocommit=True) as connection:
        connection.execute("CREATE TABLE notes (id INTEGER)")
    with pytest.raises(cm.UnsupportedError, match="was left as it is"):
        cm.open(location)
