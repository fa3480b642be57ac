"""Writes with an id, under which the service does them once: they may be sent again whatever became of them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from msgspec import UNSET, Raw
from msgspec.structs import replace

import cloudstore_mapping as cm
from cloudstore_mapping import callback_client
from cloudstore_mapping.callback_client import CloudStore
from cloudstore_mapping.client import retry
from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.transport import Sendable
from cloudstore_mapping.errors import (
    IdMismatchError,
    NoFileError,
    OutcomeUnknownError,
    TimedOutError,
    TooOftenError,
    TransportError,
    UnavailableError,
)
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.testing.clocks import FrozenClock
from cloudstore_mapping.web.server import background
from cloudstore_mapping.wire import Reply, Request, encode_replies, success
from tests.service_fakes import PATIENCE, Asker
from tests.support.scripted import ALL, DONE, NO_FILE, Outcome, Script, told

ONCE = frozenset({"once", "batch", "version"})
WITHOUT = ONCE - {"once"}
TURNED_AWAY = Reply(error="TooOften", message=Raw(b'""'), status=429)
GATEWAY = Reply(error="Http error", message=Raw(b'""'), status=504)


def lost() -> TransportError:
    """Return the error of a request that may have arrived."""
    return TransportError("dropped", sent=True)


def slow() -> TimedOutError:
    """Return the error of a request that no answer came to."""
    return TimedOutError("slow", sent=True)


def ids(script: Script) -> list[object]:
    """Return the ids of the requests that were sent."""
    return [request.once for request in script.sent]


WRITE = Request(name="a", value=Raw(b"1"))
WRITES: dict[str, Callable[[Client], object]] = {
    "save": lambda client: client.save("a", Raw(b"1")),
    "merge": lambda client: client.merge("a", Raw(b"1")),
    "delete": lambda client: client.delete("a"),
    "save over a version": lambda client: client.save("a", Raw(b"1"), if_version="v1"),
    "delete of a version": lambda client: client.delete("a", if_version="v1"),
    "batch": lambda client: client.batch([Request(name="a"), WRITE]),
    "atomic batch": lambda client: client.batch([Request(name="a"), WRITE], atomic=True),
}
#: What the first time did must not be done again without an id: its condition would find what it left.
NOT_TWICE = ("save over a version", "delete of a version", "batch", "atomic batch")


def answer_to(write: str) -> Reply:
    """Return the answer that says that a write was done."""
    return success("", encode_replies([replace(DONE, version="v1")] * 2)) if "batch" in write else DONE


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("first", [lost, slow, lambda: GATEWAY, lambda: TURNED_AWAY])
def test_attempts_share_an_id(write: str, first: Callable[[], Outcome]) -> None:
    """All attempts of a write have one id, so that it may be tried again after a read timeout too."""
    client, script = told(ONCE, first(), first(), answer_to(write))
    WRITES[write](client)
    assert len(script.requests) == 3
    assert len(set(ids(script))) == 1
    (once,) = set(ids(script))
    assert isinstance(once, str)
    assert len(once) == 32


@pytest.mark.parametrize("write", WRITES)
def test_each_write_has_its_own(write: str) -> None:
    """No two writes have the same id, be they the same otherwise."""
    client, script = told(ONCE, *[answer_to(write)] * 20)
    for _ in range(20):
        WRITES[write](client)
    assert len(set(ids(script))) == 20


@pytest.mark.parametrize("read", [lambda client: client.load("a"), lambda client: client.list()])
def test_reads_have_none(read: Callable[[Client], object]) -> None:
    """A read has no id, and none that the service is slow with is sent again."""
    client, script = told(ONCE, slow())
    with pytest.raises(TimedOutError):
        read(client)
    assert ids(script) == [UNSET]


def test_uploads_have_none() -> None:
    """An upload has no id, so that nobody knows what became of a slow one."""
    client, script = told(ONCE, slow())
    with pytest.raises(OutcomeUnknownError):
        client.upload("a", b"", "a/b")
    assert len(script.requests) == 1


@pytest.mark.parametrize("first", [lost(), GATEWAY])
def test_uploads_of_only_a_new_file(first: Outcome) -> None:
    """One that nobody may replace is not sent again once it may be done: its second time would find the first one's."""
    client, script = told(ALL, first)
    with pytest.raises(OutcomeUnknownError):
        client.upload("a", b"", "a/b", only_new=True)
    assert len(script.requests) == 1


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("extensions", [ONCE, WITHOUT], ids=["once", "without"])
def test_no_answer_at_all(write: str, extensions: frozenset[str]) -> None:
    """A write that no attempt of got an answer is unknown, and says which it was."""
    client, script = told(extensions, *[lost()] * 4)
    with pytest.raises(OutcomeUnknownError, match="batch of 2 requests" if "batch" in write else "'a'"):
        WRITES[write](client)
    assert len(script.requests) == (1 if write in NOT_TWICE and extensions is WITHOUT else 4)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("first", [lost(), GATEWAY])
def test_without_ids(write: str, first: Outcome) -> None:
    """Without an id only that is sent again whose second time leaves what the first one did."""
    client, script = told(WITHOUT, first, answer_to(write))
    if write in NOT_TWICE:
        with pytest.raises(OutcomeUnknownError):
            WRITES[write](client)
        assert len(script.requests) == 1
    else:
        WRITES[write](client)
        assert len(script.requests) == 2


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("first", [TransportError("refused", sent=False), TURNED_AWAY])
def test_what_was_not_done_is_sent_again(write: str, first: Outcome) -> None:
    """A request that never arrived, or was turned away, is sent again with an id or without."""
    client, script = told(WITHOUT, first, answer_to(write))
    WRITES[write](client)
    assert len(script.requests) == 2


def test_a_repeated_delete_that_finds_nothing() -> None:
    """With an id `NoFile` is the answer to the first attempt too; without one that may have deleted it."""
    with pytest.raises(NoFileError):
        told(ONCE, lost(), NO_FILE)[0].delete("a")
    told(WITHOUT, lost(), NO_FILE)[0].delete("a")


def test_a_service_that_forgot_ids_meanwhile() -> None:
    """A reply that doesn't name `once` is from a service that didn't look at the id."""
    client, script = told(ONCE, lost(), NO_FILE)
    script.extensions = frozenset()
    client.delete("a")
    assert script.outcomes == []


@pytest.mark.parametrize("extensions", [ONCE, WITHOUT], ids=["once", "without"])
@pytest.mark.parametrize("write", ["save", "merge", "delete"])
@pytest.mark.parametrize("first", [lost(), GATEWAY])
def test_turned_away_after_it_may_be_done(extensions: frozenset[str], write: str, first: Outcome) -> None:
    """A service too busy for the last attempt says nothing of the first one: the outcome is unknown."""
    client, _ = told(extensions, first, *[TURNED_AWAY] * 3)
    with pytest.raises(OutcomeUnknownError) as caught:
        WRITES[write](client)
    assert isinstance(caught.value.__cause__, TooOftenError)
    assert caught.value.key == "a"


@pytest.mark.parametrize("write", [*WRITES, "upload"])
@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_gateway_has_the_last_word(write: str, status: int) -> None:
    """A gateway that got no answer from the service can't know whether that did the write, so neither do we."""
    acts: dict[str, Callable[[Client], object]] = {**WRITES, "upload": lambda client: client.upload("a", b"", "a/b")}
    answer = Reply(error="Http error", message=Raw(b'"Bad Gateway"'), status=status, retry_after=1.0)
    client, _ = told(ONCE, lost(), *[answer] * 3) if write != "upload" else told(ONCE, *[answer] * 4)
    with pytest.raises(OutcomeUnknownError, match=f"was {status} Bad Gateway: it may have been done or not") as caught:
        acts[write](client)
    assert (caught.value.status, caught.value.sent) == (status, True)
    assert isinstance(caught.value.__cause__, UnavailableError)
    assert caught.value.__cause__.retry_after == 1.0
    with pytest.raises(UnavailableError):
        told(ONCE, *[answer] * 4)[0].load("a")


def test_a_read_that_was_turned_away() -> None:
    """Of a read it doesn't matter what became of the first attempt."""
    with pytest.raises(TooOftenError):
        told(ONCE, lost(), *[TURNED_AWAY] * 3)[0].load("a")


def test_prepared_requests_have_ids_too() -> None:
    """`exchange` gives a write its id, whoever made the request."""
    client, script = told(ONCE, DONE)
    client.exchange(WRITE)
    assert ids(script) != [UNSET]
    assert WRITE.once is UNSET


@pytest.mark.parametrize(("wait", "attempts"), [(0.0, 4), (159.0, 4), (160.0, 3), (240.0, 2), (479.0, 2), (480.0, 1)])
def test_ids_are_forgotten_in_the_end(wait: float, attempts: int) -> None:
    """A write isn't sent again 8 minutes after its first attempt: the service may forget its id after ten."""
    clock = FrozenClock()
    script = Script(DONE, *[slow()] * 4, extensions=ONCE)
    send = script.send

    def send_slowly(request: Sendable) -> Reply:
        clock.advance(wait)
        return send(request)

    client = Client(script, "k", clock=clock, sleep=lambda _: None, deadline=None)
    client.save("first", Raw(b"1"))
    script.requests.clear()
    script.send = send_slowly  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknownError):
        client.save("a", Raw(b"1"))
    assert len(script.requests) == attempts


def test_the_pace_counts_for_ids() -> None:
    """A write whose turn at the pace comes more than 8 minutes after its first attempt isn't sent again."""
    clock = FrozenClock()
    script = Script(DONE, slow(), DONE, extensions=ONCE)
    client = Client(script, "k", clock=clock, sleep=clock.sleep, min_interval=500.0)
    client.save("first", Raw(b"1"))
    with pytest.raises(OutcomeUnknownError):
        client.save("a", Raw(b"1"))
    assert len(script.requests) == 2
    assert sum(clock.slept) < 510  # the turn of the second attempt is not waited for


def test_an_id_of_another_request(service: Service, ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that the service knows for another request is an error that says so, in both clients."""
    monkeypatch.setattr(retry, "secrets", SimpleNamespace(token_hex=lambda _: "one-id"))
    monkeypatch.setattr(callback_client, "secrets", SimpleNamespace(token_hex=lambda _: "one-id"))
    sentence = "This request id was used for another request; draw a new id for each request."
    with background(service) as address:
        with cm.open(address.replace("://", f"://{ask.api_key}@")) as store:
            store["a"] = 1
            with pytest.raises(IdMismatchError, match=sentence) as caught:
                store["b"] = 1
            assert (caught.value.error, caught.value.status) == ("IdMismatch", 422)
        with CloudStore(ask.api_key, address) as cloud:
            cloud.load("a").result(PATIENCE)
            reply = cloud.save("c", 1).result(PATIENCE)
            assert (reply["error"], reply["message"], reply["response"].status_code) == ("IdMismatch", sentence, 422)
    assert ask.list().sentence == "a"
