"""Many requests in one, each answered for itself, or all done or none; and requests that are done once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import UNSET

from cloudstore_mapping.service.service import FORGET_EVERY, REMEMBER_ANSWERS, Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.wire import Batch, Reply, Request, decode_replies, decode_value, encode_value
from tests.service_fakes import Asker, FakeHasher, ManualClock


def item(name: str, operation: Any = None, **fields: Any) -> Request:
    """Return a request of a batch."""
    if "value" in fields:
        fields["value"] = encode_value(fields["value"])
    return Request(api_key="", name=name, options=operation, **fields)


def ask_batch(service: Service, ask: Asker, *requests: Request, **fields: Any) -> Reply:
    """Return the reply to a batch."""
    return service.handle(Batch(api_key=ask.api_key, requests=list(requests), **fields))


def replies(reply: Reply) -> list[Reply]:
    """Return the replies of a batch that was done."""
    assert (reply.error, reply.data is UNSET) == (None, False)
    assert reply.data is not UNSET
    return decode_replies(reply.data)


def errors(reply: Reply) -> list[str | None]:
    """Return the errors of the replies of a batch."""
    return [each.error for each in replies(reply)]


def test_a_batch_is_done_in_order(service: Service, ask: Asker) -> None:
    """Each request sees what those before it did, and the replies stand in their order."""
    ask.save("old", 1)
    done = replies(
        ask_batch(
            service,
            ask,
            item("new", value={"a": 1}),
            item("new", "merge", value={"b": 2}),
            item("new"),
            item("old", "delete"),
            item("old"),
            item("", "list"),
            item("new", "stat"),
        )
    )
    assert [reply.error for reply in done] == [None, None, None, None, "NoFile", None, None]
    assert decode_value(done[2].content) == {"a": 1, "b": 2}
    assert done[2].version == done[1].version != done[0].version
    assert decode_value(done[5].content) == ["new"]
    assert decode_value(done[6].content)["size"] == 13


def test_a_refusal_is_its_own(service: Service, ask: Asker) -> None:
    """What is refused writes nothing, and the others are done."""
    ask.save("list", [1])
    requests = [item("a", value=1), item("list", "merge", value={"x": 1}), item("", value=1), item("b", value=2)]
    assert errors(ask_batch(service, ask, *requests)) == [None, "BadMerge", "BadName", None]
    assert (ask.value("a"), ask.value("b"), ask.value("list")) == (1, 2, [1])


def test_an_atomic_batch(service: Service, ask: Asker) -> None:
    """The first refusal undoes all that came before it, and says which request it was."""
    ask.save("a", 1)
    requests = [item("a", value=2), item("new", value=3), item("a", value=4, if_version="other")]
    refused = ask_batch(service, ask, *requests, atomic=True, once="r1")
    assert (refused.error, refused.data) == ("Changed", UNSET)
    assert "Request 3 of 3" in refused.sentence
    assert ask.value("a") == 1
    assert ask.load("new").error == "NoFile"
    assert errors(ask_batch(service, ask, *requests[:2], atomic=True, once="r1")) == [None, None]
    assert (ask.value("a"), ask.value("new")) == (2, 3)


def test_a_batch_of_reads_does_not_wait_for_the_writer(service: Service, ask: Asker) -> None:
    """Reads alone are answered while a writer is busy; in a batch of their own they see one moment."""
    ask.save("a", 1)
    assert errors(ask_batch(service, ask, item("a"), item("b"), item("", "list"))) == [None, "NoFile", None]


def test_passwords_in_a_batch(service: Service, ask: Asker, hasher: FakeHasher) -> None:
    """Each request has its own password; a wrong one locks that request only, and nothing is done twice."""
    for name in "abc":
        ask.save(name, 0)
        service.set_passwords("owner", name, edit=f"edit {name}", view=f"view {name}")
    done = replies(
        ask_batch(
            service,
            ask,
            item("count", "merge", value=[1]),
            item("a", value=1, password="edit a"),
            item("b", value=1, password="wrong"),
            item("c", value=1),
            item("a", password="view a"),
            item("b", password="wrong"),
            item("count", value=2, if_version=None),
        )
    )
    assert [reply.error for reply in done] == [None, None, "Locked", "Locked", None, "Locked", "Changed"]
    assert decode_value(done[4].content) == 1
    assert ask.value("b", password="view b") == 0
    assert ask.value("count") == [1]


def test_values_too_large_for_one_reply(clock: ManualClock) -> None:
    """Once the values of a batch fill a reply, further loads are refused, and can be asked for alone."""
    with Service(SQLiteStorage(None), Settings(max_batch_reply_bytes=250), clock) as service:
        ask = Asker(service, service.accounts.create("owner"))
        for name in "abc":
            ask.save(name, "x" * 100)
        assert errors(ask_batch(service, ask, *map(item, "abc"))) == [None, None, "TooBig"]
        assert ask.value("c") == "x" * 100


def test_accounts_in_a_batch(service: Service, ask: Asker) -> None:
    """A batch is one account's, known by its key, and sees nothing of another's."""
    other = Asker(service, service.accounts.create("other"))
    other.save("secret", 1)
    assert errors(ask_batch(service, ask, item("secret"), item("secret", "delete"))) == ["NoFile", "NoFile"]
    assert service.handle(Batch(api_key="unknown", requests=[item("a", value=1)])).error == "BadKey"
    assert other.value("secret") == 1


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
    done = ask_batch(service, ask, item("name", value=2), once="r3")
    ask.save("name", "newest")
    assert ask_batch(service, ask, item("name", value=2), once="r3") == done
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
    """For ten minutes at least, and not for ever."""
    assert REMEMBER_ANSWERS > 600
    once(service, ask, None, "name", "r1", value=1)
    clock.advance(600)
    once(service, ask, None, "other", "r2", value=1)
    ask.save("name", 2)
    once(service, ask, None, "name", "r1", value=1)
    assert ask.value("name") == 2
    clock.advance(REMEMBER_ANSWERS)
    once(service, ask, None, "other", "r3", value=1)
    once(service, ask, None, "name", "r1", value=1)
    assert ask.value("name") == 1
    assert FORGET_EVERY < REMEMBER_ANSWERS


def test_answers_outlive_a_restart(tmp_path: Path) -> None:
    """A request is done once also where the service was started anew between its attempts."""
    with Service(SQLiteStorage(tmp_path / "s.db")) as service:
        api_key = service.accounts.create("owner")
        once(service, Asker(service, api_key), None, "name", "r1", value=1)
    with Service(SQLiteStorage(tmp_path / "s.db")) as service:
        ask = Asker(service, api_key)
        ask.save("name", 2)
        once(service, ask, None, "name", "r1", value=1)
        assert ask.value("name") == 2


def test_a_batch_that_the_service_is_closed_to() -> None:
    """A closed service answers a batch as any other request."""
    service = Service(SQLiteStorage(None))
    service.close()
    assert service.handle(Batch(api_key="k", requests=[item("a")])).error == "Unavailable"
