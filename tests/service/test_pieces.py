"""Batches in pieces and large merges in a service for many: others have their turn, and nothing is done twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from cloudstore_mapping.errors import BadMergeError, UnavailableError
from cloudstore_mapping.service import merge_worker
from cloudstore_mapping.service.batch import LONE_PIECE_SECONDS, PIECE_SECONDS, Budget
from cloudstore_mapping.service.dispatcher import MAX_COMPUTED
from cloudstore_mapping.service.merge_worker import REFUSED, merge_values
from cloudstore_mapping.service.merging import MergePool, MergeProcess
from cloudstore_mapping.service.operations import MAX_INLINE_MERGE
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.base import MAX_BYTES
from cloudstore_mapping.wire import Batch, Reply, Request, decode_replies, decode_value, encode_value
from tests.service_fakes import PATIENCE, Asker, FakeHasher, Held, ManualClock
from tests.storages import new_storage

#: A value that is too large to be merged in the writer.
LARGE = {"text": "x" * MAX_INLINE_MERGE}


def item(name: str, options: Any = None, **fields: Any) -> Request:
    """Return a request without an API key, for a batch."""
    if "value" in fields:
        fields["value"] = encode_value(fields["value"])
    return Request(name=name, options=options, **fields)


def batch_of(ask: Asker, *requests: Request, **fields: Any) -> Batch:
    """Return a batch of these requests."""
    return Batch(api_key=ask.api_key, requests=list(requests), **fields)


def replies(reply: Reply) -> list[Reply]:
    """Return the replies of a batch that was done."""
    assert (reply.error, reply.data is UNSET) == (None, False), reply.sentence
    assert reply.data is not UNSET
    return decode_replies(reply.data)


def errors(reply: Reply) -> list[str | None]:
    """Return the errors of the replies of a batch."""
    return [each.error for each in replies(reply)]


def submit(service: Service, request: Request | Batch) -> Reply:
    """Return the reply to a request as a client on the network gets it."""
    return service.submit(request).result(PATIENCE)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each piece of a batch hold one request."""
    monkeypatch.setattr(Budget, "is_used", lambda _: True)


class LocalMerges(MergeProcess):
    """Merges on the pool's thread; before each it calls `before`."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.before = before
        self.merged = 0

    def merge(self, stored: bytes, value: bytes) -> bytes:
        """Return the JSON of a merge."""
        self.merged += 1
        self.before()
        outcome, text = merge_values(stored, value)
        if outcome == REFUSED:
            raise BadMergeError(text.decode())
        return text

    def kill(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def merges(service: Service, monkeypatch: pytest.MonkeyPatch) -> LocalMerges:
    """Return what merges large values in place of processes."""
    monkeypatch.setattr(merge_worker, "_limit_memory", lambda _: None)  # which would be that of the tests
    process = LocalMerges()
    service.dispatcher._merges = MergePool(1, start=lambda: process)
    return process


@pytest.mark.usefixtures("one_by_one")
def test_others_have_their_turn_between_two_pieces(tmp_path: Path, no_threads_left: None) -> None:
    """A batch of many saves delays another account's save by one piece."""
    storage = new_storage(tmp_path / "store.db")
    with Service(storage) as service:
        ask, other = (Asker(service, service.accounts.create(name)) for name in ("owner", "other"))
        for each in (ask, other):
            each.save("first", 1)
        held = Held(storage)
        order: list[str] = []
        batch = service.submit(batch_of(ask, *(item(f"{number:03}", value=1) for number in range(100))))
        saving = service.submit(other.request(None, "name", value=1))
        batch.add_done_callback(lambda _: order.append("batch"))
        saving.add_done_callback(lambda _: order.append("save"))
        held.go.set()
        assert errors(batch.result(PATIENCE)) == [None] * 100
        assert saving.result(PATIENCE).error is None
        assert order == ["save", "batch"]


def test_a_piece_ends_when_its_budget_is_used() -> None:
    """A piece takes its time while other work waits, longer while none does, and only so many bytes."""
    clock = ManualClock()
    waiting = [True]
    budget = Budget(clock.monotonic, lambda: waiting[0])
    assert not budget.is_used()
    clock.advance(1.01 * PIECE_SECONDS)
    assert budget.is_used()
    waiting[0] = False
    assert not budget.is_used()
    clock.advance(LONE_PIECE_SECONDS)
    assert budget.is_used()
    budget = Budget(clock.monotonic, lambda: False)
    budget.take(MAX_BYTES - 1)
    assert not budget.is_used()
    budget.take(1)
    assert budget.is_used()


@pytest.mark.usefixtures("one_by_one")
def test_a_batch_in_pieces_is_done_in_order(service: Service, ask: Asker, merges: LocalMerges) -> None:
    """Whatever the pieces, each request sees what those before it did, listings and large merges too."""
    ask.save("old", 1)
    requests = [
        item("", "list"),
        item("new", value={"a": 1}),
        item("new", "merge", value={"b": 2}),
        item("", "list"),
        item("", "list"),
        item("new", "merge", value=LARGE),
        item("new", "merge", value={"c": 3}),
        item("new"),
        item("old", "delete"),
        item("old"),
        item("old", "merge", value=LARGE),
        item("", "list"),
    ]
    done = replies(submit(service, batch_of(ask, *requests)))
    assert [reply.error for reply in done] == [*[None] * 9, "NoFile", None, None]
    assert decode_value(done[0].content) == ["old"]
    assert decode_value(done[3].content) == decode_value(done[4].content) == ["new", "old"]
    assert decode_value(done[7].content) == {"a": 1, "b": 2, **LARGE, "c": 3}
    assert ask.value("old") == LARGE
    assert merges.merged == 2


@pytest.mark.usefixtures("one_by_one")
def test_a_batch_that_broke_off_goes_on(service: Service, ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch with an id that broke off between two pieces is finished when sent again; no piece is done twice."""
    requests = [item(name, "merge", value=[1], if_version=None) for name in "abcd"]
    batch = batch_of(ask, item("", "list"), *requests, once="r1")
    submitted = service._storage.submit
    left = [4]

    def failing(*arguments: Any, **named: Any) -> Future[Any]:
        left[0] -= 1
        if not left[0]:
            raise UnavailableError("The store failed.", retry_after=1.0)
        return submitted(*arguments, **named)

    monkeypatch.setattr(service._storage, "submit", failing)
    broken = submit(service, batch)
    assert (broken.error, broken.status) == ("Unavailable", 503)
    assert decode_value(ask.list().content) == ["a", "b"]
    versions = [ask.load(name).version for name in "ab"]
    done = replies(submit(service, batch))
    assert [reply.error for reply in done] == [None] * 5
    assert [reply.version for reply in done[1:3]] == versions
    again = replies(submit(service, batch))
    assert [(reply.error, reply.version) for reply in again] == [(None, reply.version) for reply in done]
    assert [ask.value(name) for name in "abcd"] == [[1]] * 4


@pytest.mark.usefixtures("one_by_one")
def test_a_service_that_dies_between_two_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a service did of a batch before it died is known to the next one, which does only the rest."""
    place = tmp_path / "store.db"
    with Service(new_storage(place)) as service:
        ask = Asker(service, service.accounts.create("owner"))
        batch = batch_of(ask, *(item(name, value=1, if_version=None) for name in "abc"), once="r1")
        monkeypatch.setattr(service.dispatcher, "_go_on_with_batch", lambda *_: None)  # as if it were killed here
        service.submit(batch)
        assert service._storage.submit(lambda _: None, 1).result(PATIENCE) is None
        service.dispatcher._under_way.clear()
    with Service(new_storage(place)) as service:
        again = Asker(service, ask.api_key)
        assert decode_value(again.list().content) == ["a"]
        assert errors(submit(service, batch)) == [None] * 3
        assert decode_value(again.list().content) == ["a", "b", "c"]


@pytest.mark.usefixtures("one_by_one")
def test_two_copies_of_a_batch_at_a_time(service: Service, ask: Asker) -> None:
    """Two copies of a batch with one id, done in turn piece by piece, do each piece once, and are answered the same."""
    batch = batch_of(ask, *(item(name, value=1, if_version=None) for name in "abcdef"), once="r1")
    ask.save("first", 1)  # the key is known from then on, and nothing is read for it
    held = Held(service._storage)
    copies = [service.submit(batch) for _ in range(2)]
    held.go.set()
    first, second = (replies(copy.result(PATIENCE)) for copy in copies)
    assert [(reply.error, reply.version) for reply in second] == [(None, reply.version) for reply in first]


@pytest.mark.usefixtures("one_by_one")
def test_an_id_names_one_batch_in_pieces(service: Service, ask: Asker) -> None:
    """Another batch under the id of one that was done in pieces is refused, and nothing of it is done."""
    assert errors(submit(service, batch_of(ask, item("a", value=1), item("b", value=1), once="r1"))) == [None] * 2
    other = submit(service, batch_of(ask, item("c", value=1), item("d", value=1), once="r1"))
    assert (other.error, other.status) == ("IdMismatch", 422)
    assert decode_value(ask.list().content) == ["a", "b"]


@pytest.mark.usefixtures("one_by_one")
def test_a_batch_without_an_id_tells_what_was_done(
    service: Service, ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch without an id that broke off is answered with what was committed, and the error for the rest."""
    submitted = service._storage.submit
    left = [3]

    def failing(*arguments: Any, **named: Any) -> Future[Any]:
        left[0] -= 1
        if not left[0]:
            raise UnavailableError("The store failed.", retry_after=1.0)
        return submitted(*arguments, **named)

    monkeypatch.setattr(service._storage, "submit", failing)
    found = errors(submit(service, batch_of(ask, *(item(name, value=1) for name in "abcd"))))
    assert found == [None, None, "Unavailable", "Unavailable"]
    assert decode_value(ask.list().content) == ["a", "b"]


@pytest.mark.usefixtures("one_by_one")
def test_passwords_of_a_batch_in_pieces(service: Service, ask: Asker, hasher: FakeHasher) -> None:
    """Each request of a batch in pieces has its own password; a wrong one locks that request only."""
    for name in "abc":
        ask.save(name, 0)
        service.set_passwords("owner", name, edit=f"edit {name}")
    passwords = {"a": "edit a", "b": "wrong", "c": "edit c"}
    requests = [item(name, value=1, password=password) for name, password in passwords.items()]
    batch = batch_of(ask, item("count", "merge", value=[1]), *requests, once="r1")
    assert errors(submit(service, batch)) == [None, None, "Locked", None]
    service.set_passwords("owner", "a", edit="new")
    assert errors(submit(service, batch)) == [None, "Locked", "Locked", None]
    assert ask.value("count") == [1]


@pytest.mark.usefixtures("one_by_one")
def test_accesses_of_a_batch_in_pieces_are_counted(service: Service, ask: Asker) -> None:
    """A file that may be used so many times a day is so in a batch of many pieces as well."""
    service.accounts.set_limits("owner", max_daily_accesses=3)
    found = errors(submit(service, batch_of(ask, *[item("name", value=1)] * 5)))
    assert found == [None, None, None, "DailyLimit", "DailyLimit"]


@pytest.mark.usefixtures("one_by_one")
def test_what_a_batch_in_pieces_loads_is_bounded(clock: ManualClock) -> None:
    """Once the values of all pieces together fill a reply, further loads are refused."""
    with Service(new_storage(), Settings(max_batch_reply_bytes=250), clock) as service:
        ask = Asker(service, service.accounts.create("owner"))
        for name in "abc":
            ask.save(name, "x" * 100)
        requests = [*map(item, "abc"), item("", "list"), item("d", value=1)]
        assert errors(submit(service, batch_of(ask, *requests))) == [None, None, "TooBig", "TooBig", None]


def test_an_atomic_batch_is_bounded() -> None:
    """An atomic batch whose values take too long to write or merge is refused, stays so under its id; loads count."""
    with Service(new_storage(), Settings(max_atomic_bytes=10_000)) as service:
        ask = Asker(service, service.accounts.create("owner"))
        ask.save("large", {"x": "x" * 2_000})
        ask.save("larger", "x" * 9_000)
        save = item("a", value="x" * 4_000)
        for refused in (
            [save, save, save],
            [item("large", "merge", value={"y": 1})],
            [item("larger"), item("b", value="x" * 2_000)],
        ):
            batch = batch_of(ask, *refused, atomic=True, once=f"r{len(refused)}")
            reply = submit(service, batch)
            assert (reply.error, reply.status) == ("TooBig", 200)
            assert "max_atomic_bytes" in reply.sentence
            assert submit(service, batch).message == reply.message
        assert ask.load("a").error == ask.load("b").error == "NoFile"
        assert errors(submit(service, batch_of(ask, save, save, atomic=True))) == [None] * 2
        assert errors(submit(service, batch_of(ask, save, save, save))) == [None] * 3
        assert submit(service, batch_of(ask, item("", "list"), save, atomic=True)).error == "BadRequest"


def test_a_store_of_one_s_own_has_no_bounds(service: Service, ask: Asker, merges: LocalMerges) -> None:
    """In the user's own process an atomic batch may be of any size, and all is done at once, in one transaction."""
    ask.save("large", LARGE)
    requests = [item("large", "merge", value={"y": 1}) for _ in range(60)]
    assert errors(service.handle(batch_of(ask, *requests, atomic=True))) == [None] * 60
    assert errors(service.handle(batch_of(ask, *requests, item("", "list")))) == [None] * 61
    assert merges.merged == 0


def test_a_large_merge_does_not_hold_the_writer(service: Service, ask: Asker, merges: LocalMerges) -> None:
    """While a large merge is computed another account's save and load are done."""
    other = Asker(service, service.accounts.create("other"))
    ask.save("large", LARGE)
    begun, go = threading.Event(), threading.Event()
    merges.before = lambda: (begun.set(), go.wait(PATIENCE))  # type: ignore[func-returns-value]  # None
    merging = service.submit(ask.request("merge", "large", value={"y": 1}))
    assert begun.wait(PATIENCE)
    assert other.save("name", 1).error is None
    assert other.value("name") == 1
    assert not merging.done()
    go.set()
    assert merging.result(PATIENCE).error is None
    assert ask.value("large") == {**LARGE, "y": 1}


def test_a_large_merge_is_written_on_what_is_there(service: Service, ask: Asker, merges: LocalMerges) -> None:
    """If the file changed while its merge was computed, the merge is computed again on the new value."""
    ask.save("large", LARGE)
    changes = iter([{**LARGE, "a": 1}, {**LARGE, "a": 2}])

    def change() -> None:
        for value in changes:
            ask.save("large", value)
            return

    merges.before = change
    assert submit(service, ask.request("merge", "large", value={"y": 1})).error is None
    assert ask.value("large") == {**LARGE, "a": 2, "y": 1}
    assert merges.merged == 3


@pytest.mark.parametrize("left", ["deleted", "small"])
def test_a_file_that_gets_small_while_it_is_merged(
    service: Service, ask: Asker, merges: LocalMerges, left: str
) -> None:
    """If the file was deleted or got small meanwhile, the merge is done on what is there."""
    ask.save("large", LARGE)
    merges.before = lambda: ask.delete("large") if left == "deleted" else ask.save("large", {"a": 1})
    assert submit(service, ask.request("merge", "large", value={"y": 1})).error is None
    assert ask.value("large") == ({"y": 1} if left == "deleted" else {"a": 1, "y": 1})


def test_a_merge_that_others_are_in_the_way_of(service: Service, ask: Asker, merges: LocalMerges) -> None:
    """After several tries the account's other writes wait for the merge, and are done after it."""
    ask.save("large", LARGE)
    saving: list[Future[Reply]] = []

    def save() -> None:
        saving.append(service.submit(ask.request(None, "large", value={**LARGE, "a": len(saving)})))
        if len(saving) <= MAX_COMPUTED:
            saving[-1].result(PATIENCE)

    merges.before = save
    assert submit(service, ask.request("merge", "large", value={"y": 1})).error is None
    assert merges.merged == MAX_COMPUTED + 1
    assert [each.result(PATIENCE).error for each in saving] == [None] * (MAX_COMPUTED + 1)
    assert ask.value("large") == {**LARGE, "a": MAX_COMPUTED}


def test_a_merge_that_other_processes_are_in_the_way_of(service: Service, ask: Asker, merges: LocalMerges) -> None:
    """If even then somebody else changes the file, the merge is refused as unavailable, and the account goes on."""
    ask.save("large", LARGE)
    account = service.accounts.named("owner").id

    def save() -> None:  # as another process would, past the account's queue
        value = bytes(encode_value({**LARGE, "a": merges.merged}))
        service._storage.submit(lambda transaction: transaction.put(account, "large", value, 1.0)).result(PATIENCE)

    merges.before = save
    reply = submit(service, ask.request("merge", "large", value={"y": 1}))
    assert (reply.error, merges.merged) == ("Unavailable", MAX_COMPUTED + 1)
    assert ask.save("large", 1).error is None


def test_a_large_merge_is_done_once(service: Service, ask: Asker, merges: LocalMerges) -> None:
    """A large merge with an id is replayed when it comes again, and so is its refusal; nothing is computed then."""
    ask.save("large", LARGE)
    merge = msgspec.structs.replace(ask.request("merge", "large", value={"y": [1]}), once="r1")
    first = submit(service, merge)
    ask.save("large", {**LARGE, "y": [2, 3]})
    assert submit(service, merge).version == first.version
    ask.save("array", [LARGE])
    bad = msgspec.structs.replace(ask.request("merge", "array", value={"x": 1}), once="r2")
    refused = submit(service, bad)
    assert refused.error == "BadMerge"
    ask.save("array", {})
    assert submit(service, bad).message == refused.message
    assert merges.merged == 2
    assert ask.value("large") == {**LARGE, "y": [2, 3]}


def test_rules_hold_when_a_large_merge_is_written(
    service: Service, ask: Asker, merges: LocalMerges, hasher: FakeHasher
) -> None:
    """Passwords and limits are checked before a large merge is computed, and again when it is written."""
    ask.save("large", LARGE)
    merge = ask.request("merge", "large", "old", value={"y": 1})
    service.set_passwords("owner", "large", edit="old")
    assert submit(service, msgspec.structs.replace(merge, password="wrong")).error == "Locked"
    assert submit(service, msgspec.structs.replace(merge, if_version="other")).error == "Changed"
    assert merges.merged == 0
    merges.before = lambda: service.set_passwords("owner", "large", edit="new")
    assert submit(service, merge).error == "Locked"
    assert merges.merged == 1
    merges.before = lambda: None
    service.accounts.set_limits("owner", max_file_bytes=MAX_INLINE_MERGE + 20)
    assert submit(service, msgspec.structs.replace(merge, password="new", value=encode_value(LARGE))).error is None
    wide = encode_value({"y": "y" * 100})
    assert submit(service, msgspec.structs.replace(merge, password="new", value=wide)).error == "TooBig"
    assert ask.value("large", "new") == LARGE


def test_the_end_refuses_what_has_not_begun(service: Service, ask: Asker, merges: LocalMerges) -> None:
    """A hundred large merges that wait at the end are refused as unavailable, and none of them is half done."""
    ask.save("large", LARGE)
    begun, go = threading.Event(), threading.Event()
    merges.before = lambda: (begun.set(), go.wait(PATIENCE))  # type: ignore[func-returns-value]  # None
    merging = [service.submit(ask.request("merge", "large", value={str(number): 1})) for number in range(100)]
    many = [item("large", "merge", value={"b": 1}) for _ in range(50)]
    batches = [service.submit(batch_of(ask, item("a", value=1), *many, once="r1"))]
    batches.append(service.submit(batch_of(ask, item("b", value=1), *many)))
    assert begun.wait(PATIENCE)
    service._storage.submit(lambda _: None, 1).result(PATIENCE)  # all are at the pool by now
    service.dispatcher._merges.stop()
    go.set()
    outcomes = [future.result(PATIENCE).error for future in merging]
    done = [number for number, error in enumerate(outcomes) if error is None]  # the one that was computed, or none
    assert len(done) <= 1
    assert {error for error in outcomes if error is not None} == {"Unavailable"}
    assert batches[0].result(PATIENCE).error == "Unavailable"
    assert errors(batches[1].result(PATIENCE)) == [None, *["Unavailable"] * 50]
    assert ask.value("large") == {**LARGE, **{str(number): 1 for number in done}}
    assert ask.value("a") == 1
