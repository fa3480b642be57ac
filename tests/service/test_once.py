"""Writes that are done once, however often they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET, Raw

from cloudstore_mapping.service.idempotency import FORGET_AT_ONCE, FORGET_EVERY, MAX_LOADED, REMEMBERED_FOR
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.wire import Batch, Reply, Request, decode_replies, decode_value, encode_value
from tests.service_fakes import Asker, ManualClock
from tests.storages import new_storage


def once(service: Service, ask: Asker, operation: Any, name: str, request: str, **fields: Any) -> Reply:
    """Return the reply to a write with an id."""
    if "value" in fields:
        fields["value"] = encode_value(fields["value"])
    return service.handle(Request(api_key=ask.api_key, name=name, options=operation, once=request, **fields))


def test_once(service: Service, ask: Asker) -> None:
    """A repeated id is answered as the first time, and undoes nothing that came in between."""
    first = once(service, ask, None, "name", "r1", value=1)
    ask.save("name", "theirs")
    assert once(service, ask, None, "name", "r1", value=1) == first
    assert ask.value("name") == "theirs"
    deleted = once(service, ask, "delete", "name", "r2")
    ask.save("name", "new")
    assert once(service, ask, "delete", "name", "r2") == deleted
    assert ask.value("name") == "new"
    batch = Batch(api_key=ask.api_key, requests=[Request(name="name", value=encode_value(2))], once="r3")
    done = service.handle(batch)
    ask.save("name", "newest")
    assert service.handle(batch) == done
    assert ask.value("name") == "newest"


def test_refusals_are_repeated(service: Service, ask: Asker) -> None:
    """What was refused the first time stays refused; a password may be given the second time."""
    assert once(service, ask, "delete", "name", "r1").error == "NoFile"
    ask.save("name", 1)
    assert once(service, ask, "delete", "name", "r1").error == "NoFile"
    assert ask.value("name") == 1
    service.set_passwords("owner", "name", edit="e")
    assert once(service, ask, "delete", "name", "r2").error == "Locked"
    assert once(service, ask, "delete", "name", "r2", password="e").error is None


def test_ids_are_an_accounts_own(service: Service, ask: Asker) -> None:
    """The same id of another account is another request."""
    other = Asker(service, service.accounts.create("other"))
    once(service, ask, None, "name", "r1", value=1)
    once(service, other, None, "name", "r1", value=2)
    assert (ask.value("name"), other.value("name")) == (1, 2)


def test_answers_are_remembered_for_a_while(service: Service, ask: Asker, clock: ManualClock) -> None:
    """For ten minutes at least, and not for ever where others come."""
    assert REMEMBERED_FOR > 600
    once(service, ask, None, "name", "r1", value=1)
    clock.advance(600)
    write_many(service, ask, "soon")
    ask.save("name", 2)
    once(service, ask, None, "name", "r1", value=1)
    assert ask.value("name") == 2
    clock.advance(REMEMBERED_FOR)
    write_many(service, ask, "late")
    once(service, ask, None, "name", "r1", value=1)
    assert ask.value("name") == 1


@pytest.mark.parametrize("ahead", [86_400.0, -86_400.0])
def test_answers_are_remembered_when_the_clock_is_set(
    service: Service, ask: Asker, clock: ManualClock, ahead: float
) -> None:
    """A clock that somebody sets makes nothing be forgotten early, nor for ever."""
    once(service, ask, None, "name", "r1", value=1)
    clock.ahead = ahead
    write_many(service, ask, "soon")
    clock.advance(600)
    write_many(service, ask, "later")
    ask.save("name", 2)
    once(service, ask, None, "name", "r1", value=1)
    assert ask.value("name") == 2
    clock.advance(REMEMBERED_FOR + 86_400)
    write_many(service, ask, "late")
    once(service, ask, None, "name", "r1", value=1)
    assert ask.value("name") == 1


def write_many(service: Service, ask: Asker, request: str) -> None:
    """Write with so many ids that old ones are looked for."""
    for number in range(FORGET_EVERY):
        once(service, ask, None, "other", f"{request} {number}", value=number)


def test_more_is_forgotten_than_remembered() -> None:
    """However many ids come, those that are too old never become more."""
    assert FORGET_AT_ONCE > FORGET_EVERY


@pytest.mark.sqlite("counts its statements")
def test_a_write_without_an_id_leaves_nothing(service: Service, ask: Asker) -> None:
    """Only those who ask for it pay for it."""
    asked: list[str] = []
    service._storage._session.connection.set_trace_callback(asked.append)  # type: ignore[attr-defined]  # SQLite's
    ask.save("name", 1)
    ask.load("name")
    service._storage._session.connection.set_trace_callback(None)  # type: ignore[attr-defined]
    assert not [statement for statement in asked if "answers" in statement]
    assert len([statement for statement in asked if " files " in statement]) == 3  # to save two, to load one


def test_answers_outlive_a_restart(tmp_path: Path) -> None:
    """A request is done once also where the service was started anew between its attempts."""
    with Service(new_storage(tmp_path / "s.db")) as service:
        api_key = service.accounts.create("owner")
        once(service, Asker(service, api_key), None, "name", "r1", value=1)
    with Service(new_storage(tmp_path / "s.db")) as service:
        ask = Asker(service, api_key)
        ask.save("name", 2)
        once(service, ask, None, "name", "r1", value=1)
        assert ask.value("name") == 2


@pytest.mark.parametrize("atomic", [False, True])
def test_a_request_of_a_batch_is_done_once(service: Service, ask: Asker, atomic: bool) -> None:
    """A request within a batch may have an id of its own, under which it is known alone as well."""
    item = Request(name="name", value=encode_value(1), once="r1")
    first = service.handle(Batch(api_key=ask.api_key, requests=[item], atomic=atomic))
    ask.save("name", 2)
    again = service.handle(Batch(api_key=ask.api_key, requests=[item, Request(name="name")], atomic=atomic))
    assert decode_replies(content(again))[0] == decode_replies(content(first))[0]
    assert decode_value(decode_replies(content(again))[1].content) == 2
    assert once(service, ask, None, "name", "r1", value=3).version == decode_replies(content(first))[0].version
    assert ask.value("name") == 2


def content(reply: Reply) -> Raw:
    """Return the data of a reply, which must have some."""
    assert reply.data is not UNSET
    return reply.data


def test_an_undone_batch_leaves_no_ids(service: Service, ask: Asker) -> None:
    """What an atomic batch did and undid is not known as done, and a refusal that is known undoes a batch too."""
    item = Request(name="name", value=encode_value(1), once="r1")
    refused = Request(name="absent", options="delete", once="r2")
    batch = Batch(api_key=ask.api_key, requests=[item, refused], atomic=True, once="r3")
    assert service.handle(batch).error == "NoFile"
    assert once(service, ask, "delete", "absent", "r2").error == "NoFile"
    assert once(service, ask, None, "name", "r1", value=2).error is None
    assert ask.value("name") == 2
    ask.save("absent", 1)
    reply = service.handle(batch)
    assert (reply.error, reply.sentence) == ("NoFile", "Request 2 of 2: There is no file 'absent'.")


def test_a_version_that_did_not_stand_is_repeated(service: Service, ask: Asker) -> None:
    """A refusal is repeated with its version, None as well."""
    first = once(service, ask, None, "name", "r1", value=1, if_version="v")
    assert (first.error, first.version) == ("Changed", None)
    ask.save("name", 1)
    again = once(service, ask, None, "name", "r1", value=1, if_version="v")
    assert (again.error, again.version, again.message) == ("Changed", None, first.message)


def test_an_id_that_is_used_for_something_else(service: Service, ask: Asker) -> None:
    """An id is known whatever comes under it: the answer is the remembered one, and nothing is done."""
    first = once(service, ask, None, "name", "r1", value=1)
    assert once(service, ask, "delete", "name", "r1") == first
    assert ask.value("name") == 1


def test_little_is_remembered_of_what_a_batch_loads(service: Service, ask: Asker) -> None:
    """A batch with an id that writes can't have much stored that it loads; one that only loads stores nothing."""
    ask.save("large", "x" * MAX_LOADED)
    loads = [Request(name="large"), Request(name="large")]
    writes = Batch(api_key=ask.api_key, requests=[*loads, Request(name="a", value=Raw(b"1"))], once="r1")
    assert [reply.error for reply in decode_replies(content(service.handle(writes)))] == ["TooBig", "TooBig", None]
    reads = Batch(api_key=ask.api_key, requests=loads, once="r2")
    assert [reply.error for reply in decode_replies(content(service.handle(reads)))] == [None, None]
    with service._storage.read() as transaction:
        assert transaction.answer(1, "r2") is None
