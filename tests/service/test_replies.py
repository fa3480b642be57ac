"""What the service answers to each operation, and in which order it looks at a request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET, Raw

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.wire import Reply, Request, decode_value
from tests.service_fakes import PATIENCE, Asker, FakeHasher, Held, ManualClock
from tests.storages import new_storage

VALUES: list[Any] = [None, True, False, 0, -1, 2**70, 1.5, "", "text", "\0", "😀", [], [[]], {}, {"": None}, {"a": [2]}]


@pytest.fixture
def ask(storage: Storage, clock: ManualClock, hasher: FakeHasher) -> Iterator[Asker]:
    """Return somebody who asks a service on each engine."""
    with Service(storage, clock=clock, hasher=hasher) as service:
        yield Asker(service, service.accounts.create("owner"))


def facts(reply: Reply) -> tuple[str | None, Any, Any, int]:
    """Return what a reply holds, decoded."""
    message = decode_value(reply.message)
    data = None if reply.data is UNSET else decode_value(reply.data)
    return reply.error, message, data, reply.status


def error(reply: Reply) -> str | None:
    """Return the name of a reply's error, after a look at its sentence."""
    if reply.error is not None:
        assert reply.sentence.endswith(".")
        assert reply.data is UNSET
    return reply.error


def test_a_save(ask: Asker) -> None:
    """A save is answered "Entry saved", new or not, and without the value."""
    assert facts(ask.save("name", {"a": 1})) == (None, "Entry saved", None, 200)
    assert facts(ask.save("name", {"b": 1})) == (None, "Entry saved", None, 200)
    assert ask.value("name") == {"b": 1}


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_load(ask: Asker, value: object) -> None:
    """A load holds the value itself twice, as message and as data, falsy ones too."""
    ask.save("name", value)
    assert facts(ask.load("name")) == (None, value, value, 200)


def test_a_value_comes_back_byte_for_byte(ask: Asker) -> None:
    """A value is stored and loaded as it was written, numbers and spaces and all."""
    text = b'{"b": 1.0, "a":1E2,\n"a":[]}'
    ask.service.handle(Request(api_key=ask.api_key, name="name", value=Raw(text)))
    assert bytes(ask.load("name").content) == text


def test_a_merge(ask: Asker) -> None:
    """A merge is answered "Entry saved", and leaves what was stored together with the value."""
    assert facts(ask.merge("name", {"a": {"x": 1}})) == (None, "Entry saved", None, 200)
    assert facts(ask.merge("name", {"a": {"y": 2}})) == (None, "Entry saved", None, 200)
    assert ask.value("name") == {"a": {"x": 1, "y": 2}}
    ask.merge("name", None)
    assert ask.value("name") is None


def test_a_merge_that_makes_no_sense(ask: Asker) -> None:
    """A merge onto no element of an array is `BadMerge` with the path, and nothing is written."""
    ask.save("name", {"items": [1]})
    reply = ask.merge("name", {"b": 1, "items": {"length": 5}})
    assert error(reply) == "BadMerge"
    assert "$.items.length" in reply.sentence
    assert ask.value("name") == {"items": [1]}


def test_a_delete(ask: Asker) -> None:
    """A delete is answered "Entry deleted", and the file is gone."""
    ask.save("name", 1)
    assert facts(ask.delete("name")) == (None, "Entry deleted", None, 200)
    assert error(ask.load("name")) == "NoFile"


def test_a_list(ask: Asker) -> None:
    """A list holds the names that contain the filter: joined by commas, and as an array."""
    assert facts(ask.list()) == (None, "", [], 200)
    for name in ("b,2", "a1", "B3"):
        ask.save(name, 1)
    assert facts(ask.list()) == (None, "B3,a1,b,2", ["B3", "a1", "b,2"], 200)
    assert facts(ask.list("b")) == (None, "b,2", ["b,2"], 200)
    assert facts(ask.list("%")) == (None, "", [], 200)


def test_what_is_absent(ask: Asker) -> None:
    """Loading or deleting what isn't there is `NoFile` with its name."""
    for reply in (ask.load("absent"), ask.delete("absent")):
        assert error(reply) == "NoFile"
        assert reply.sentence == "There is no file 'absent'."


def test_an_unknown_key(ask: Asker) -> None:
    """A key that opens nothing is `BadKey` for every operation, and the reply doesn't repeat it."""
    ask.save("name", 1)
    other = Asker(ask.service, ask.api_key.swapcase())
    for reply in (
        other.load("name"),
        other.save("name", 2),
        other.merge("name", 2),
        other.delete("name"),
        other.list(),
    ):
        assert (error(reply), reply.status) == ("BadKey", 401)
        assert other.api_key not in reply.sentence
    assert ask.value("name") == 1


def test_a_disabled_account(ask: Asker, storage: Storage) -> None:
    """An account that is switched off is `Disabled` for every operation, and is itself again afterwards."""
    ask.save("name", 1)

    def switch(disabled: bool) -> None:
        with storage.read() as transaction:
            account = transaction.account_named("owner")
        assert account is not None
        storage.submit(lambda transaction: transaction.set_disabled(account.id, disabled)).result()

    switch(True)
    for reply in (ask.load("name"), ask.save("name", 2), ask.merge("name", 2), ask.delete("name"), ask.list()):
        assert error(reply) == "Disabled"
    switch(False)
    assert ask.value("name") == 1


def test_accounts_never_see_each_other(ask: Asker) -> None:
    """No operation of one account finds, changes or lists a file of another."""
    other = Asker(ask.service, ask.service.accounts.create("other"))
    ask.save("name", 1)
    assert error(other.load("name")) == "NoFile"
    assert error(other.delete("name")) == "NoFile"
    assert decode_value(other.list().content) == []
    other.merge("name", {"mine": 2})
    other.save("another", 3)
    assert ask.value("name") == 1
    assert decode_value(ask.list().content) == ["name"]
    ask.delete("name")
    assert other.value("name") == {"mine": 2}


def test_the_order_of_the_rules(storage: Storage, clock: ManualClock, hasher: FakeHasher) -> None:
    """Of all that is wrong the first is told: account, disabled, name, password, value."""
    service = Service(storage, Settings(max_value_bytes=4), clock, hasher)
    ask = Asker(service, service.accounts.create("owner"))
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="secret")
    with storage.read() as transaction:
        account = transaction.account_named("owner")
    assert account is not None
    assert error(ask.save("name", "too long", "secret")) == "TooBig"
    assert error(ask.merge("name", "too long", "secret")) == "TooBig"
    assert error(ask.save("name", "too long")) == "Locked"
    assert error(ask.save("", "too long")) == "BadName"
    storage.submit(lambda transaction: transaction.set_disabled(account.id, disabled=True)).result()
    assert error(ask.save("", "too long")) == "Disabled"
    assert error(Asker(service, "unknown").save("", "too long")) == "BadKey"
    service.close()


def test_who_is_refused_doesn_t_wait_for_others(tmp_path: Path, no_threads_left: None) -> None:
    """A write that must fail by its key or name is answered at once, whatever the writer is busy with."""
    storage = new_storage(tmp_path / "store.db")
    with Service(storage) as service:
        ask = Asker(service, service.accounts.create("owner"))
        held = Held(storage)
        assert error(Asker(service, "unknown").save("name", 1)) == "BadKey"
        assert error(ask.save("", 1)) == "BadName"
        held.go.set()


@pytest.mark.sqlite("writes come one after another")
def test_rules_hold_in_the_transaction_that_writes(tmp_path: Path, no_threads_left: None) -> None:
    """An account that is switched off while its write waits for its turn is `Disabled`, and nothing is written."""
    storage = new_storage(tmp_path / "store.db")
    with Service(storage) as service:
        ask = Asker(service, service.accounts.create("owner"))
        held = Held(storage)
        storage.submit(lambda transaction: transaction.set_disabled(1, disabled=True), 1)
        waiting = service.submit(ask.request(None, "name", value=1))
        held.go.set()
        assert error(waiting.result(PATIENCE)) == "Disabled"
        with storage.read() as transaction:
            assert transaction.names(1) == []


def test_a_begun_request_can_t_be_cancelled(ask: Asker) -> None:
    """Who no longer wants the answer changes nothing: the request is done."""
    future = ask.service.submit(ask.request(None, "name", value=1))
    assert not future.cancel()
    assert future.result().error is None
    assert ask.value("name") == 1
