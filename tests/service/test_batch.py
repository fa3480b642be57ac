"""Many requests in one, each answered for itself, or all done or none."""

from __future__ import annotations

import secrets
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from cloudstore_mapping.embedded import InProcessTransport
from cloudstore_mapping.service.batch import MAX_AHEAD
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.wire import Batch, Reply, Request, decode_replies, decode_value, encode_value
from tests.service_fakes import PATIENCE, Asker, FakeHasher, Held, ManualClock
from tests.storages import new_storage


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
    assert (reply.error, reply.data is UNSET) == (None, False), reply.sentence
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


_NAMES = st.sampled_from(["a", "b", "c", "", "nul\0"])
_VALUES: st.SearchStrategy[Any] = st.sampled_from([1, [1], {"a": 1}, {"b": [2]}, "x" * MAX_AHEAD])
_VERSIONS = st.sampled_from([UNSET, None, "none of them"])
_ITEMS = st.one_of(
    st.builds(item, _NAMES, value=_VALUES, if_version=_VERSIONS),
    st.builds(item, _NAMES, st.just("merge"), value=_VALUES),
    st.builds(item, _NAMES, st.just("delete")),
    st.builds(item, _NAMES, st.sampled_from([None, "stat"])),
    st.builds(item, _NAMES, if_not_version=st.just("none of them")),
    st.builds(item, st.just(""), st.just("list")),
)


def seen(reply: Reply) -> tuple[Any, ...]:
    """Return what a reply says, but for times and versions, which are never the same."""
    data = None if reply.data is UNSET else decode_value(reply.data)
    if isinstance(data, dict) and "created" in data:
        data = data["size"]
    return reply.error, bytes(reply.message), data, bool(reply.version), reply.unchanged


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # a new account each time
@given(before=st.dictionaries(_NAMES.filter(str.isalpha), _VALUES), items=st.lists(_ITEMS, min_size=1, max_size=12))
def test_a_batch_is_what_its_requests_are_one_by_one(
    service: Service, before: dict[str, Any], items: list[Request]
) -> None:
    """Whatever is asked of the same files, in whatever order: the replies are the same, and so is what is left."""
    left = []
    for together in (True, False):
        account = secrets.token_hex(8)
        asker = Asker(service, service.accounts.create(account))
        service.accounts.set_limits(account, max_files=2, max_daily_accesses=4)
        for name, value in before.items():
            asker.save(name, value)
        asked = [msgspec.structs.replace(each, api_key=asker.api_key) for each in items]
        answers = replies(ask_batch(service, asker, *asked)) if together else [service.handle(each) for each in asked]
        left.append(([seen(each) for each in answers], decode_value(asker.list().content)))
    assert left[0] == left[1]


def test_a_refusal_is_its_own(service: Service, ask: Asker) -> None:
    """What is refused writes nothing, and the others are done."""
    ask.save("list", [1])
    requests = [item("a", value=1), item("list", "merge", value={"x": 1}), item("", value=1), item("b", value=2)]
    assert errors(ask_batch(service, ask, *requests)) == [None, "BadMerge", "BadName", None]
    assert (ask.value("a"), ask.value("b"), ask.value("list")) == (1, 2, [1])


@pytest.mark.parametrize("atomic", [False, True])
def test_ids_in_a_batch(service: Service, ask: Asker, atomic: bool) -> None:
    """A request with the id of its batch is refused with the batch, before anything is done."""
    batch = Batch(
        api_key=ask.api_key,
        requests=[
            Request(name="a", value=encode_value(1), once="r1"),
            Request(name="b", value=encode_value(2), once="r2"),
            Request(name="c", value=encode_value(3), once="r2"),
        ],
        once="r1",
        atomic=atomic,
    )
    refused = service.handle(batch)
    assert (refused.error, refused.status) == ("BadRequest", 400)
    load = [item("a"), item("b"), item("c")]
    assert errors(ask_batch(service, ask, *load)) == ["NoFile", "NoFile", "NoFile"]
    # The third has the id of the second, and asks for something else.
    assert service.handle(msgspec.structs.replace(batch, once="r3")).error == ("IdMismatch" if atomic else None)
    done = ["NoFile", "NoFile"] if atomic else [None, None]
    assert errors(ask_batch(service, ask, *load)) == [*done, "NoFile"]


def test_an_atomic_batch(service: Service, ask: Asker) -> None:
    """The first refusal undoes all that came before it, and says which request it was."""
    ask.save("a", 1)
    requests = [item("a", value=2), item("new", value=3), item("a", value=4, if_version="other")]
    refused = ask_batch(service, ask, *requests, atomic=True, once="r1")
    assert (refused.error, refused.data) == ("Changed", UNSET)
    assert "Request 3 of 3" in refused.sentence
    assert ask.value("a") == 1
    assert ask.load("new").error == "NoFile"
    assert errors(ask_batch(service, ask, *requests[:2], atomic=True, once="r2")) == [None, None]
    assert (ask.value("a"), ask.value("new")) == (2, 3)


def test_a_batch_of_reads_does_not_wait_for_the_writer(tmp_path: Path, no_threads_left: None) -> None:
    """Reads alone are answered while a writer is busy, but not on the caller's thread."""
    storage = new_storage(tmp_path / "store.db")
    with Service(storage) as service:
        ask = Asker(service, service.accounts.create("owner"))
        ask.save("a", 1)
        held = Held(storage)
        assert errors(ask_batch(service, ask, item("a"), item("b"), item("", "list"))) == [None, "NoFile", None]
        held.go.set()


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


@pytest.mark.sqlite("counts its statements")
def test_passwords_of_a_batch_are_proved_together(service: Service, ask: Asker, hasher: FakeHasher) -> None:
    """However many passwords a batch has, it begins anew but once, and each is hashed but once."""
    names = [str(number) for number in range(30)]
    for name in names:
        ask.save(name, 0)
        service.set_passwords("owner", name, edit="right")
    puts = Counter(service._storage._session.connection)  # type: ignore[attr-defined]  # SQLite's
    requests = [item("log", value=0), *(item(name, value=1, password="right") for name in names)]
    assert errors(ask_batch(service, ask, *requests)) == [None] * 31
    assert (hasher.checks, puts.of("INSERT INTO files")) == (30, 1 + 31)


class Counter:
    """Counts the statements of a connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._statements: list[str] = []
        connection.set_trace_callback(self._statements.append)

    def of(self, beginning: str) -> int:
        """Return how many began so."""
        return len([statement for statement in self._statements if statement.startswith(beginning)])


def test_guesses_in_a_batch_are_counted(service: Service, ask: Asker) -> None:
    """Wrong passwords for one file are counted as those of single requests, and the batch goes on."""
    ask.save("name", 0)
    service.set_passwords("owner", "name", edit="right")
    guesses = [item("name", value=1, password=f"guess {number}") for number in range(7)]
    found = errors(ask_batch(service, ask, *guesses, item("other", value=1)))
    assert found == ["Locked"] * 5 + ["TooOften"] * 2 + [None]
    assert (ask.value("name"), ask.value("other")) == (0, 1)


@pytest.mark.parametrize(("password", "error"), [("right", None), ("wrong", "Locked"), (None, "Locked")])
def test_passwords_in_an_atomic_batch(service: Service, ask: Asker, password: str | None, error: str | None) -> None:
    """A wrong password undoes it; a right one that had to be hashed first doesn't, and nothing is done twice."""
    ask.save("name", 0)
    service.set_passwords("owner", "name", edit="right")
    requests = [
        item("new", "merge", value=[1], if_version=None),
        item("name", value=1, password=password),
        item("name", "delete", password="right"),
        item("name", value=2, if_version=None),
    ]
    reply = ask_batch(service, ask, *requests, atomic=True)
    assert reply.error == error
    assert ask.load("new").error == ("NoFile" if error else None)
    assert ask.value("name") == (0 if error else 2)
    if error:
        assert reply.sentence.startswith("Request 2 of 4: The ")


def test_a_password_that_changes_while_a_batch_waits(service: Service, ask: Asker, hasher: FakeHasher) -> None:
    """What was found out of a password is worth nothing once the file has another."""
    ask.save("name", 0)
    service.set_passwords("owner", "name", edit="old")
    hasher.gate.clear()
    future = service.submit(Batch(api_key=ask.api_key, requests=[item("name", value=1, password="new")]))
    assert hasher.begun.acquire(timeout=PATIENCE)
    service.set_passwords("owner", "name", edit="new")
    hasher.gate.set()
    assert errors(future.result(PATIENCE)) == [None]
    assert ask.value("name") == 1


def test_a_failure_of_the_hashing_fails_the_batch(
    service: Service, ask: Asker, hasher: FakeHasher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody foresaw is the batch's error, and nothing of it is done."""
    ask.save("name", 0)
    service.set_passwords("owner", "name", edit="right")
    monkeypatch.setattr(hasher, "fits", lambda *_: 1 / 0)
    reply = ask_batch(service, ask, item("new", value=1), item("name", value=1, password="hunter2"))
    assert reply.error == "ServerError"
    assert ask.load("new").error == "NoFile"
    assert "hunter2" not in caplog.text


JSON = st.recursive(
    st.none() | st.integers(0, 9) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab01"), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.sampled_from("xy"), JSON), min_size=1, max_size=6))
@settings(deadline=None)
def test_merges_in_a_batch(merges: list[tuple[str, Any]]) -> None:
    """A batch of merges leaves and answers what the same merges one by one do."""
    with Service(new_storage()) as service:
        ask, other = (Asker(service, service.accounts.create(name)) for name in ("owner", "other"))
        single = [other.merge(name, value).error for name, value in merges]
        batch = ask_batch(service, ask, *(item(name, "merge", value=value) for name, value in merges))
        assert errors(batch) == single
        for name in "xy":
            assert ask.load(name).data == other.load(name).data


def test_values_too_large_for_one_reply(clock: ManualClock) -> None:
    """Once the values of a batch fill a reply, further loads are refused, and can be asked for alone."""
    with Service(new_storage(), Settings(max_batch_reply_bytes=250), clock) as service:
        ask = Asker(service, service.accounts.create("owner"))
        for name in "abc":
            ask.save(name, "x" * 100)
        ask.save("small", 1)
        requests = [*map(item, "abc"), item("small"), item("", "list"), item("a", "stat"), item("d", value=1)]
        found = [None, None, "TooBig", "TooBig", "TooBig", None, None]
        assert errors(ask_batch(service, ask, *requests)) == found
        assert ask.value("c") == "x" * 100


def test_lists_too_large_for_one_reply(clock: ManualClock) -> None:
    """Listings fill a reply as values do."""
    with Service(new_storage(), Settings(max_batch_reply_bytes=250), clock) as service:
        ask = Asker(service, service.accounts.create("owner"))
        ask.save("n" * 100, 1)
        assert errors(ask_batch(service, ask, *[item("", "list")] * 4)) == [None, None, "TooBig", "TooBig"]


def test_accounts_in_a_batch(service: Service, ask: Asker) -> None:
    """A batch is one account's, known by its key, and sees nothing of another's."""
    other = Asker(service, service.accounts.create("other"))
    other.save("secret", 1)
    assert errors(ask_batch(service, ask, item("secret"), item("secret", "delete"))) == ["NoFile", "NoFile"]
    assert service.handle(Batch(api_key="unknown", requests=[item("a", value=1)])).error == "BadKey"
    assert other.value("secret") == 1


def test_keys_in_a_batch(service: Service, ask: Asker) -> None:
    """A batch can't mix keys: one that holds another account's is refused as a whole."""
    other = Asker(service, service.accounts.create("other"))
    foreign = msgspec.structs.replace(item("name", value=1), api_key=other.api_key)
    transport = InProcessTransport(service)
    reply = transport.send(Batch(api_key=ask.api_key, requests=[item("name", value=1), foreign]))
    assert (reply.error, reply.status) == ("BadRequest", 400)
    assert other.api_key not in reply.sentence
    assert ask.load("name").error == other.load("name").error == "NoFile"
    own = msgspec.structs.replace(item("name", value=1), api_key=ask.api_key)
    assert transport.send(Batch(api_key=ask.api_key, requests=[own])).error is None


def test_an_atomic_batch_of_reads(service: Service, ask: Asker) -> None:
    """One name that isn't there refuses all."""
    ask.save("a", 1)
    assert ask_batch(service, ask, item("a"), item("b"), atomic=True).error == "NoFile"
    assert errors(ask_batch(service, ask, item("a"), item("a", "stat"), atomic=True)) == [None, None]


def test_a_batch_that_the_service_is_closed_to() -> None:
    """A closed service answers a batch as any other request."""
    service = Service(new_storage())
    service.close()
    assert service.handle(Batch(api_key="k", requests=[item("a")])).error == "Unavailable"
