"""Writes that are done once, however often they come."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from msgspec import UNSET, Raw
from msgspec.structs import replace

from cloudstore_mapping.service.idempotency import FORGET_AT_ONCE, FORGET_EVERY, REMEMBERED_FOR
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.wire import (
    Batch,
    Reply,
    Request,
    decode_replies,
    decode_value,
    encode_replies,
    encode_reply,
    encode_value,
    success,
)
from tests.service_fakes import PATIENCE, Asker, Held, ManualClock, run_for, settle
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
    """For fifteen minutes at least, and for two minutes more at most."""
    run_for(REMEMBERED_FOR, service, clock)
    once(service, ask, None, "name", "r1", value=1)
    run_for(REMEMBERED_FOR, service, clock)
    write_many(service, ask, "soon")
    ask.save("name", 2)
    once(service, ask, None, "name", "r1", value=1)
    assert ask.value("name") == 2
    run_for(120, service, clock)
    once(service, ask, None, "name", "r1", value=1)
    assert ask.value("name") == 1


@pytest.mark.parametrize("ahead", [86_400.0, -86_400.0])
def test_answers_are_remembered_when_the_clock_is_set(
    service: Service, ask: Asker, clock: ManualClock, ahead: float
) -> None:
    """A clock that somebody sets makes nothing be forgotten early, nor for ever."""
    run_for(REMEMBERED_FOR, service, clock)  # after a start nothing is forgotten at all
    once(service, ask, None, "name", "r1", value=1)
    clock.ahead = ahead
    write_many(service, ask, "soon")
    run_for(REMEMBERED_FOR, service, clock)
    write_many(service, ask, "later")
    ask.save("name", 2)
    once(service, ask, None, "name", "r1", value=1)
    assert ask.value("name") == 2
    run_for(120, service, clock)
    once(service, ask, None, "name", "r1", value=1)
    assert ask.value("name") == 1


def test_answers_are_remembered_when_the_clock_is_set_in_small_steps(
    service: Service, ask: Asker, clock: ManualClock
) -> None:
    """Many small steps forward are one large step: nothing is forgotten early, nor for ever."""
    run_for(REMEMBERED_FOR, service, clock)
    once(service, ask, None, "name", "r1", value=1)
    ask.save("name", 2)
    for step in range(20):
        clock.ahead += 55
        clock.advance(0.5)
        write_many(service, ask, f"step {step}")
        service.sweeper.look()
    settle(service._storage)
    once(service, ask, None, "name", "r1", value=1)
    assert ask.value("name") == 2
    run_for(REMEMBERED_FOR + 120, service, clock)
    forget_all(service)
    assert answers(service) == 0


@pytest.mark.parametrize("starts", [1, 2])
def test_answers_are_remembered_when_the_clock_is_set_before_a_start(
    tmp_path: Path, clock: ManualClock, starts: int
) -> None:
    """A clock set forward while the service is down makes nothing be forgotten early, nor for ever."""
    with Service(new_storage(tmp_path / "s.db"), clock=clock) as service:
        ask = Asker(service, service.accounts.create("owner"))
        once(service, ask, None, "name", "r1", value=1)
        ask.save("name", 2)
    for start in range(starts):
        clock.ahead += 86_400
        clock.advance(60)
        with Service(new_storage(tmp_path / "s.db"), clock=clock) as service:
            for minute in range(3):
                write_many(service, ask, f"{start} {minute}")
                forget_all(service)
                clock.advance(60)
            ask.service = service
            once(service, ask, None, "name", "r1", value=1)
            assert ask.value("name") == 2
            run_for(REMEMBERED_FOR + 120 if start == starts - 1 else 0, service, clock)
            forget_all(service)
            assert (answers(service) == 0) == (start == starts - 1)


def test_answers_that_look_old_at_a_start_are_bounded(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of replies that look expired at a start the newest are kept, so that frequent starts don't fill the store."""
    monkeypatch.setattr("cloudstore_mapping.service.idempotency.KEPT_AT_START", 10)
    with Service(new_storage(tmp_path / "s.db"), clock=clock) as service:
        ask = Asker(service, service.accounts.create("owner"))
        for number in range(30):
            once(service, ask, None, "name", f"r{number}", value=number)
            clock.advance(1)
    clock.ahead = 86_400
    with Service(new_storage(tmp_path / "s.db"), clock=clock) as service:
        ask.service = service
        forget_all(service)
        assert answers(service) == 11
        ask.save("name", "theirs")
        once(service, ask, None, "name", "r20", value=20)
        assert ask.value("name") == "theirs"


@pytest.mark.parametrize("starts", [False, True])
def test_answers_dated_ahead_are_forgotten(tmp_path: Path, clock: ManualClock, starts: bool) -> None:
    """Replies stored by a clock that was ahead expire as others do."""
    service = Service(new_storage(tmp_path / "s.db"), clock=clock)
    run_for(REMEMBERED_FOR, service, clock)
    clock.ahead = 60 * 86_400
    ask = Asker(service, service.accounts.create("owner"))
    once(service, ask, None, "name", "r1", value=1)
    ask.save("name", 2)
    clock.ahead = 0
    if starts:
        service.close()
        service = ask.service = Service(new_storage(tmp_path / "s.db"), clock=clock)
    with service:
        once(service, ask, None, "other", "r2", value=1)
        run_for(REMEMBERED_FOR, service, clock)
        once(service, ask, None, "name", "r1", value=1)
        assert ask.value("name") == 2
        run_for(120, service, clock)
        assert answers(service) == 0


class Worker(NamedTuple):
    """A service on a store, and its clock."""

    service: Service
    clock: ManualClock


@contextmanager
def two_workers(place: Path) -> Iterator[tuple[Worker, Worker]]:
    """Yield two services on one store which have run long enough to forget replies."""
    with ExitStack() as stack:
        clocks = ManualClock(), ManualClock()
        workers = [Worker(stack.enter_context(Service(new_storage(place), clock=clock)), clock) for clock in clocks]
        run_together(REMEMBERED_FOR + 120, *workers)
        yield workers[0], workers[1]


def run_together(seconds: float, *workers: Worker) -> None:
    """Let time pass for services on one store."""
    for _ in range(int(seconds // 60)):
        for service, clock in workers:
            run_for(60, service, clock)


def test_answers_while_another_worker_does_not_see_a_step(tmp_path: Path) -> None:
    """A worker that reads no time while the clock is an hour behind forgets no reply that another one stores then."""
    with two_workers(tmp_path / "s.db") as (here, there):
        ask = Asker(here.service, here.service.accounts.create("owner"))
        here.clock.ahead = -3600
        once(here.service, ask, None, "name", "r1", value=1)
        forget_all(here.service)
        here.clock.ahead = 0
        ask.save("name", 2)
        run_together(REMEMBERED_FOR, here, there)
        once(here.service, ask, None, "name", "r1", value=1)
        assert ask.value("name") == 2
        run_together(120, here, there)
        assert answers(here.service) == 0


def test_answers_while_another_worker_stands_still(tmp_path: Path) -> None:
    """A worker that stood still while the clock was set forward forgets no reply that another one stored meanwhile."""
    with two_workers(tmp_path / "s.db") as (here, there):
        ask = Asker(here.service, here.service.accounts.create("owner"))
        once(here.service, ask, None, "name", "r0", value=0)
        run_together(120, here, there)
        run_together(REMEMBERED_FOR + 60, here)
        there.clock.advance(REMEMBERED_FOR + 60)
        once(here.service, ask, None, "name", "r1", value=1)
        ask.save("name", 2)
        for each in (here, there):
            each.clock.ahead = 3600
        forget_all(there.service)
        once(here.service, ask, None, "name", "r1", value=1)
        assert ask.value("name") == 2
        run_together(REMEMBERED_FOR + 120, here, there)
        assert answers(here.service) == 0


@pytest.mark.parametrize("empty", [False, True])
def test_answers_of_a_worker_started_while_the_clock_is_behind(tmp_path: Path, empty: bool) -> None:
    """A worker that stood still forgets no reply of one that was started meanwhile with a clock behind."""
    with two_workers(tmp_path / "s.db") as (here, there):
        ask = Asker(here.service, here.service.accounts.create("owner"))
        once(here.service, ask, None, "name", "r0", value=0)
        run_together(120 if empty else REMEMBERED_FOR, here, there)
        if not empty:
            once(here.service, ask, None, "name", "newer", value=0)
        run_together(REMEMBERED_FOR + 60 if empty else 60, here)
        assert (answers(here.service) == 0) == empty
        clock = ManualClock()
        clock.seconds = here.clock.seconds
        clock.ahead = -3600
        with Service(new_storage(tmp_path / "s.db"), clock=clock) as started:
            ask.service = started
            once(started, ask, None, "name", "r1", value=1)
            ask.save("name", 2)
            clock.ahead = 0
            once(started, ask, None, "other", "r2", value=1)
            for each in (here.clock, clock):
                each.advance(60)
            there.clock.seconds = clock.seconds
            for service in (there.service, here.service, started):
                forget_all(service)
            once(started, ask, None, "name", "r1", value=1)
            assert ask.value("name") == 2


def test_answers_of_a_busy_worker_that_never_looks(tmp_path: Path) -> None:
    """A write goes by the newest number of a moment ago, even if nothing but writes asks for it."""
    with two_workers(tmp_path / "s.db") as (here, there):
        ask = Asker(there.service, there.service.accounts.create("owner"))
        once(there.service, ask, None, "name", "r0", value=0)
        here.clock.ahead = 86_400
        once(here.service, ask, None, "name", "r1", value=1)
        run_together(600, here)
        there.clock.advance(600)
        once(there.service, ask, None, "name", "r2", value=2)
        run_together(420, here)
        there.clock.advance(420)
        assert answers(here.service) == 1
        ask.save("name", 3)
        once(there.service, ask, None, "name", "r2", value=2)
        assert ask.value("name") == 3


def test_answers_of_a_worker_that_pauses_are_bounded(
    service: Service, ask: Asker, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies don't fill the store of a program that writes every five minutes and doesn't look in between."""
    monkeypatch.setattr("cloudstore_mapping.service.idempotency.KEPT_AT_START", 10)
    for number in range(4 * FORGET_EVERY):
        once(service, ask, None, "name", f"r{number}", value=number)
        clock.advance(300)
    settle(service._storage)
    assert answers(service) < 2 * FORGET_EVERY


def test_answers_of_a_node_whose_clock_is_ahead(tmp_path: Path) -> None:
    """Replies are kept as long where the clocks of two nodes differ, by whatever."""
    with two_workers(tmp_path / "s.db") as (here, there):
        ask = Asker(here.service, here.service.accounts.create("owner"))
        there.clock.ahead = 86_400
        once(here.service, ask, None, "name", "r1", value=1)
        once(there.service, ask, None, "name", "r2", value=1)
        run_together(REMEMBERED_FOR, here, there)
        once(here.service, ask, None, "name", "r3", value=1)
        assert answers(here.service) == 3
        run_together(120, here, there)
        assert answers(here.service) == 1
        run_together(REMEMBERED_FOR, here, there)
        assert answers(here.service) == 0


def answers(service: Service) -> int:
    """Return the number of stored replies."""
    with service._storage.read() as transaction:
        return int(transaction.row("SELECT count(*) FROM answers")[0])


def forget_all(service: Service) -> None:
    """Look for expired replies, and delete them."""
    for _ in range(2 + answers(service) // FORGET_AT_ONCE):
        service.sweeper.look()
        settle(service._storage)


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
    assert once(service, ask, None, "name", "r1", value=1).version == decode_replies(content(first))[0].version
    assert ask.value("name") == 2


def content(reply: Reply) -> Raw:
    """Return the data of a reply, which must have some."""
    assert reply.data is not UNSET
    return reply.data


def test_the_refusal_of_an_atomic_batch_is_repeated(service: Service, ask: Asker) -> None:
    """An atomic batch that was refused stays refused under its id, though it would be done by now."""
    requests = [Request(name="new", value=encode_value(1)), Request(name="absent", options="delete")]
    batch = Batch(api_key=ask.api_key, requests=requests, atomic=True, once="r1")
    refused = service.handle(batch)
    assert refused.error == "NoFile"
    ask.save("absent", 1)
    again = service.handle(batch)
    assert (again.error, again.message, again.status) == (refused.error, refused.message, refused.status)
    assert ask.load("new").error == "NoFile"
    assert service.handle(msgspec.structs.replace(batch, once="r2")).error is None


def test_an_atomic_batch_without_its_password_is_not_repeated(service: Service, ask: Asker) -> None:
    """An atomic batch that lacked a password may be sent again under its id with the password."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="e")
    request = Request(name="name", value=encode_value(2))
    batch = Batch(api_key=ask.api_key, requests=[request], atomic=True, once="r1")
    assert service.handle(batch).error == "Locked"
    proven = msgspec.structs.replace(batch, requests=[msgspec.structs.replace(request, password="e")])
    assert service.handle(proven).error is None
    assert ask.value("name", "e") == 2


def test_an_undone_batch_leaves_no_ids(service: Service, ask: Asker) -> None:
    """What an atomic batch did and undid is not known as done, and a refusal that is known undoes a batch too."""
    item = Request(name="name", value=encode_value(1), once="r1")
    refused = Request(name="absent", options="delete", once="r2")
    batch = Batch(api_key=ask.api_key, requests=[item, refused], atomic=True, once="r3")
    assert service.handle(batch).error == "NoFile"
    assert once(service, ask, "delete", "absent", "r2").error == "NoFile"
    assert once(service, ask, None, "name", "r1", value=1).error is None
    assert ask.value("name") == 1
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


@pytest.mark.parametrize(
    ("operation", "name", "fields"),
    [
        (None, "other", {"value": 1}),
        (None, "name", {"value": 2}),
        (None, "name", {"value": 1, "if_version": None}),
        ("merge", "name", {"value": 1}),
        ("delete", "name", {}),
    ],
    ids=["name", "value", "condition", "merge", "delete"],
)
def test_an_id_of_another_request(
    service: Service, ask: Asker, operation: str | None, name: str, fields: dict[str, Any]
) -> None:
    """An id that was used for another request is refused with `IdMismatch`, status 422, and nothing is done."""
    once(service, ask, None, "name", "r1", value=1)
    reply = once(service, ask, operation, name, "r1", **fields)
    assert (reply.error, reply.status) == ("IdMismatch", 422)
    assert reply.sentence == "This request id was used for another request; draw a new id for each request."
    assert ask.value("name") == 1
    assert ask.load("other").error == "NoFile"


def test_passwords_make_no_other_request(service: Service, ask: Asker) -> None:
    """A duplicate with another API key of the account, or with other passwords, is the same request."""
    first = once(service, ask, None, "name", "r1", value=1, password="a")
    ask.save("name", 2)
    ask.api_key = service.accounts.rotate_key("owner")
    assert once(service, ask, None, "name", "r1", value=1, data_password="b") == first
    assert ask.value("name") == 2


@pytest.mark.parametrize("atomic", [False, True])
def test_one_id_twice_in_a_batch(service: Service, ask: Asker, atomic: bool) -> None:
    """Of two requests of a batch with one id the second is a duplicate if they are equal, else `IdMismatch`."""
    first, other = (Request(name=name, value=encode_value(1), once="r1") for name in ("a", "b"))
    batch = Batch(api_key=ask.api_key, requests=[first, first], atomic=atomic)
    equal, duplicate = decode_replies(content(service.handle(batch)))
    assert (equal.error, duplicate.version) == (None, equal.version)
    ask.delete("a")
    reply = service.handle(
        Batch(api_key=ask.api_key, requests=[replace(first, once="r2"), replace(other, once="r2")], atomic=atomic)
    )
    if atomic:
        assert (reply.error, reply.status) == ("IdMismatch", 422)
        assert reply.sentence.startswith("Request 2 of 2: ")
        assert ask.load("a").error == "NoFile"
    else:
        assert [each.error for each in decode_replies(content(reply))] == [None, "IdMismatch"]
    assert ask.load("b").error == "NoFile"


def test_a_batch_with_the_id_of_one_of_its_requests(service: Service, ask: Asker) -> None:
    """A batch with the id of one of its requests is a bad request, refused before it waits for other writes."""
    item = Request(name="name", value=encode_value(1), once="r1")
    held = Held(service._storage)
    reply = service.submit(Batch(api_key=ask.api_key, requests=[item], once="r1")).result(PATIENCE)
    held.go.set()
    assert (reply.error, reply.status) == ("BadRequest", 400)
    assert "give each an id of its own" in reply.sentence
    assert ask.load("name").error == "NoFile"


def test_a_batch_is_another_request(service: Service, ask: Asker) -> None:
    """The id of a batch is refused for another batch and for a single request, and an item's for a batch."""
    item = Request(name="name", value=encode_value(1), once="r2")
    batch = Batch(api_key=ask.api_key, requests=[item], once="r1")
    assert service.handle(batch).error is None
    assert service.handle(replace(batch, atomic=True)).error == "IdMismatch"
    assert service.handle(replace(batch, requests=[replace(item, value=Raw(b"2"))])).error == "IdMismatch"
    assert once(service, ask, None, "name", "r1", value=1).error == "IdMismatch"
    assert service.handle(replace(batch, once="r2", requests=[replace(item, once="r3")])).error == "IdMismatch"
    assert ask.value("name") == 1


def test_replies_stored_by_earlier_versions(service: Service, ask: Asker) -> None:
    """A reply stored without a fingerprint is replayed to a request of its kind, and to no other."""
    saved = encode_reply(replace(success("Entry saved"), version="v"))
    done = encode_reply(success("", encode_replies([success("Entry saved"), success("", encode_value("secret"))])))

    def keep(transaction: Transaction) -> None:
        account = transaction.account_named("owner")
        assert account is not None
        transaction.keep_answer(account.id, "single", saved, 1.0)
        transaction.keep_answer(account.id, "batch", done, 1.0)

    service._storage.submit(keep).result()
    ask.save("read", "new")
    assert once(service, ask, None, "name", "single", value=1).version == "v"
    batch = Batch(
        api_key=ask.api_key, requests=[Request(name="name", value=Raw(b"1")), Request(name="read")], once="batch"
    )
    written, read = decode_replies(content(service.handle(batch)))
    assert (written.sentence, decode_value(read.content)) == ("Entry saved", "new")
    assert ask.load("name").error == "NoFile"
    assert once(service, ask, None, "name", "batch", value=1).error == "IdMismatch"
    assert service.handle(replace(batch, once="single")).error == "IdMismatch"
    assert service.handle(replace(batch, requests=batch.requests[:1])).error == "IdMismatch"


@pytest.mark.parametrize("kind", ["file", "default"])
def test_a_replay_asks_for_the_password(service: Service, ask: Asker, kind: str) -> None:
    """A reply is replayed only to who gives the password that the file has by now."""
    once(service, ask, None, "name", "r1", value=1)
    if kind == "file":
        service.set_passwords("owner", "name", edit="e")
    else:
        service.set_default_passwords("owner", data="e")
    assert once(service, ask, None, "name", "r1", value=1).error == "Locked"
    assert once(service, ask, None, "name", "r1", value=1, password="wrong").error == "Locked"
    assert once(service, ask, None, "name", "r1", value=1, password="e").error is None
    service.set_passwords("owner", "name", edit="new")
    assert once(service, ask, None, "name", "r1", value=1, password="e").error == "Locked"


def test_a_replay_asks_for_the_account(service: Service, ask: Asker) -> None:
    """A reply is not replayed to a disabled account, nor under a key that ended."""
    once(service, ask, None, "name", "r1", value=1)
    service.accounts.set_disabled("owner", True)
    assert once(service, ask, None, "name", "r1", value=1).error == "Disabled"
    service.accounts.set_disabled("owner", False)
    service.accounts.rotate_key("owner")
    service.accounts.drop_old_keys("owner")
    assert once(service, ask, None, "name", "r1", value=1).error == "BadKey"


@pytest.mark.parametrize("atomic", [False, True])
def test_a_replayed_batch_reads_again(service: Service, ask: Asker, atomic: bool) -> None:
    """No value that a batch loads is stored: a replay reads it again, with the password that it has by now."""
    ask.save("secret", "the value")
    service.set_passwords("owner", "secret", view="v")
    write = Request(name="name", value=Raw(b"1"))
    batch = Batch(
        api_key=ask.api_key,
        requests=[write, Request(name="secret", password="v"), Request(name="sec", options="list")],
        atomic=atomic,
        once="r1",
    )
    saved, loaded, listed = decode_replies(content(service.handle(batch)))
    assert (decode_value(loaded.content), decode_value(listed.content)) == ("the value", ["secret"])
    with service._storage.read() as transaction:
        stored = transaction.answer(1, "r1")
        assert stored is not None
        assert b"the value" not in stored.reply
        assert b"secret" not in stored.reply
    service.set_passwords("owner", "secret", view="new")
    ask.save("name", 2)
    for password, error in ((None, "Locked"), ("v", "Locked"), ("new", None)):
        load = replace(batch.requests[1], password=password)
        reply = service.handle(replace(batch, requests=[write, load, batch.requests[2]]))
        again, loaded, _ = decode_replies(content(reply))
        assert (again.version, loaded.error) == (saved.version, error)
    assert decode_value(loaded.content) == "the value"
    ask.delete("secret")
    again, loaded, _ = decode_replies(content(service.handle(batch)))
    assert (again.version, loaded.error) == (saved.version, "NoFile")
    assert ask.value("name") == 2


@pytest.mark.parametrize("atomic", [False, True])
def test_a_replayed_batch_asks_for_passwords(service: Service, ask: Asker, atomic: bool) -> None:
    """A write of a replayed batch whose file has another password by now is `Locked`, an atomic batch as a whole."""
    batch = Batch(
        api_key=ask.api_key,
        requests=[Request(name="a", value=Raw(b"1")), Request(name="b", value=Raw(b"1"))],
        atomic=atomic,
        once="r1",
    )
    first = service.handle(batch)
    service.set_passwords("owner", "b", edit="e")
    locked = service.handle(batch)
    if atomic:
        assert (locked.error, locked.sentence[:16]) == ("Locked", "Request 2 of 2: ")
    else:
        assert [each.error for each in decode_replies(content(locked))] == [None, "Locked"]
    given = replace(batch, requests=[batch.requests[0], replace(batch.requests[1], password="e")])
    assert service.handle(given) == first
    with service._storage.read() as transaction:
        assert [transaction.stat(1, name) is not None for name in "ab"] == [True, True]


def test_a_large_load_in_a_batch_with_an_id(service: Service, ask: Asker) -> None:
    """A batch with an id may load as much as any other, and one that only loads stores nothing."""
    ask.save("large", "x" * 2**20)
    loads = [Request(name="large"), Request(name="large")]
    writes = Batch(api_key=ask.api_key, requests=[*loads, Request(name="a", value=Raw(b"1"))], once="r1")
    assert [reply.error for reply in decode_replies(content(service.handle(writes)))] == [None, None, None]
    reads = Batch(api_key=ask.api_key, requests=loads, once="r2")
    assert [reply.error for reply in decode_replies(content(service.handle(reads)))] == [None, None]
    with service._storage.read() as transaction:
        assert transaction.answer(1, "r2") is None


@pytest.mark.parametrize("seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 200))])
def test_answers_under_any_clocks(tmp_path: Path, seed: int) -> None:
    """Whatever clocks show, whoever starts or stands still: a reply is kept for 15 minutes, and not for ever."""
    choose = random.Random(seed)
    now = ManualClock()  # of the world, nobody sets it
    clocks = [ManualClock() for _ in range(3)]
    with ExitStack() as stack:
        services = [stack.enter_context(Service(new_storage(tmp_path / "s.db"), clock=clock)) for clock in clocks]
        api_key = services[0].accounts.create("owner")
        stored: dict[str, float] = {}
        stands_still = [0.0] * 3
        for step in range(250):
            index = choose.randrange(3)
            action = choose.choices(["wait", "write", "set", "start", "stand"], [50, 20, 4, 2, 2])[0]
            if action == "wait":
                now.advance(choose.choice([1, 10, 60, 100]))
                for clock, service, until in zip(clocks, services, stands_still, strict=True):
                    clock.seconds = now.seconds
                    if now.seconds >= until:
                        service.sweeper.look()
                        settle(service._storage)
            elif action == "set":
                clocks[index].ahead = choose.choice([0, 0, 30, -30, 1000, -1000, 86_400, -86_400])
            elif action == "start":
                services[index].close()
                services[index] = stack.enter_context(Service(new_storage(tmp_path / "s.db"), clock=clocks[index]))
                stands_still[index] = 0
            elif action == "stand":
                stands_still[index] = now.seconds + choose.choice([60, 600, 1200, 2400])
            elif now.seconds >= stands_still[index]:
                once(services[index], Asker(services[index], api_key), None, "name", f"r{step}", value=step)
                stored[f"r{step}"] = now.seconds
            with services[0]._storage.read() as transaction:
                kept = {request for (request,) in transaction.rows("SELECT request FROM answers")}
            early = {request for request, at in stored.items() if at >= now.seconds - REMEMBERED_FOR} - kept
            assert not early, f"step {step}: {early} forgotten"
        for clock in clocks:
            clock.seconds = now.seconds
        run_for(2 * REMEMBERED_FOR, services[0], clocks[0])
        assert answers(services[0]) == 0
