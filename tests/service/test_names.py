"""What a file may be called, and how large a value may be."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from functools import partial

import pytest

from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.embedded import InProcessTransport
from cloudstore_mapping.errors import LockedError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.web.server import background
from cloudstore_mapping.wire import Request, decode_value, encode_value
from tests.service_fakes import Asker
from tests.storages import new_storage

KEPT = [
    "../../etc/passwd",
    "/",
    ".",
    "a,b",
    ",",
    " ",
    " a ",
    "%2e%2e",
    "%00",
    "'; --",
    "\x01\n\x7f\u202e",
    "é",
    "e\u0301",
    "😀",
    "__proto__",
    "a" * 1024,
    "é" * 512,
]


def test_names_are_kept_exactly(ask: Asker) -> None:
    """Every name is a file of its own, listed and loaded as it was written, and never a path."""
    for name in KEPT:
        assert ask.save(name, name).error is None
    assert decode_value(ask.list().content) == sorted(KEPT)
    assert [ask.value(name) for name in KEPT] == KEPT


@pytest.mark.parametrize("is_http", [False, True])
def test_names_are_kept_by_every_operation(service: Service, is_http: bool) -> None:
    """Each name is found by load, stat, batches, prefixes, pages and passwords, in this process and over HTTP."""
    api_key = service.accounts.create("owner")
    with ExitStack() as stack:
        address = stack.enter_context(background(service)) if is_http else ""
        transport = HTTPTransport(address) if is_http else InProcessTransport(service)
        client = stack.enter_context(Client(transport, api_key))
        names = sorted([*KEPT, "users/ann", "100%", "%2F", "a\tb", "a/../b", "%", "%25"])
        client.ask()
        replies = client.batch([Request(name=name, value=encode_value(name)) for name in names])
        assert {reply.error for reply in replies} == {None}
        assert [name for page in client.pages(limit=3) for name in page] == client.list() == names
        assert [name for name, _, value in client.values(names) if decode_value(value) == name] == names
        left = [*names]
        for name in names:
            loaded = client.load(name)
            assert loaded is not None
            assert decode_value(loaded.value) == name
            found = [other for other in left if other.startswith(name)]
            assert [other for page in client.pages(name, prefix=True, limit=2) for other in page] == found
            assert client.list(name) == [other for other in left if name in other]
            service.set_passwords("owner", name, view="pie")
            assert client.stat(name)["passwords"] == {"edit": False, "view": True}
            with pytest.raises(LockedError):
                client.load(name)
            client.merge(name, encode_value(1))
            client.delete(name)
            left.remove(name)
        assert client.list() == []


@pytest.mark.parametrize("name", ["", "\0", "a\0b", "a" * 1025, "é" * 513], ids=ascii)
def test_other_names_are_refused(ask: Asker, name: str) -> None:
    """No name, one with NUL, and one over the limit in UTF-8 are `BadName` for every operation on a file."""
    for reply in (ask.load(name), ask.save(name, 1), ask.merge(name, 1), ask.delete(name)):
        assert reply.error == "BadName"
    assert decode_value(ask.list().content) == []


def _put(account: int, name: str, transaction: Transaction) -> None:
    transaction.put(account, name, b'"' + b"x" * 500 + b'"', 1.0)


def test_what_is_there_is_read_and_deleted(no_threads_left: None) -> None:
    """A file beyond the limits of names and values is listed, loaded and deleted; only saves of it are refused."""
    storage = new_storage()
    names = ["n" * 1000, "m" * 1000]
    with Service(storage, Settings(max_name_bytes=10, max_value_bytes=100)) as service:
        key = service.accounts.create("owner")
        account = service.accounts.named("owner").id
        for name in names:
            storage.submit(partial(_put, account, name)).result()
        ask = Asker(service, key)
        assert decode_value(ask.list().content) == sorted(names)
        assert ask.value(names[0]) == "x" * 500
        for refused in (ask.save(names[0], 1), ask.merge(names[0], 1), ask.load("o" * 11), ask.delete("o" * 11)):
            assert refused.error == "BadName"
            assert refused.sentence == (
                "A file's name can't be longer than 10 bytes (the service's max_name_bytes); shorten it."
            )
        assert [ask.delete(name).error for name in names] == [None, None]
        assert decode_value(ask.list().content) == []


@pytest.mark.parametrize("containing", ["\0", "a" * 5000])
def test_any_text_is_a_filter(ask: Asker, containing: str) -> None:
    """A filter that no name can contain finds nothing, and is no error."""
    ask.save("a", 1)
    assert decode_value(ask.list(containing).content) == []


def test_a_value_over_the_limit(no_threads_left: None) -> None:
    """A value of the limit's size is taken, one byte more is `TooBig`, and what was there stays."""
    with Service(new_storage(), Settings(max_value_bytes=10)) as service:
        ask = Asker(service, service.accounts.create("owner"))
        assert ask.save("name", "x" * 8).error is None
        reply = ask.save("name", "x" * 9)
        assert (reply.error, reply.status) == ("TooBig", 200)
        assert (
            reply.sentence
            == "The value takes 11 bytes and a file at most 10 (the service's max_value_bytes); split it."
        )
        assert ask.value("name") == "x" * 8


def test_a_merged_value_over_the_limit(no_threads_left: None) -> None:
    """A merge whose result is over the limit is `TooBig`, though each part is not, and what was there stays."""
    with Service(new_storage(), Settings(max_value_bytes=10)) as service:
        ask = Asker(service, service.accounts.create("owner"))
        assert ask.merge("name", {"a": 1}).error is None
        assert ask.merge("name", {"b": 1}).error == "TooBig"
        assert ask.value("name") == {"a": 1}
        assert ask.merge("new", [1, 2, 3, 4, 5]).error == "TooBig"


def test_merges_lose_nothing(ask: Asker) -> None:
    """Two threads that merge 1,000 names each into one file leave all 2,000."""

    def merge(thread: int) -> None:
        for number in range(1000):
            ask.merge("name", {f"{thread}-{number}": number})

    threads = [threading.Thread(target=merge, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ask.value("name") == {f"{thread}-{number}": number for thread in range(2) for number in range(1000)}
