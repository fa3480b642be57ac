"""A retry after a lost reply, and what somebody else wrote in between: safe with an id, undone without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from msgspec import Raw

from cloudstore_mapping.client.files import Client
from cloudstore_mapping.errors import ChangedError, NoFileError, OutcomeUnknownError
from cloudstore_mapping.testing.faults import FaultyTransport, lost, lost_while, slow
from cloudstore_mapping.wire import EXTENSIONS, Request, decode_value, encode_value
from tests.support.faults import Ways, ways

__all__ = ["ways"]  # a fixture

OURS = Raw(b'{"n":"ours"}')
THEIRS = Raw(b'{"n":"theirs"}')


class _Pair(NamedTuple):
    """Our client on its way through faults, and another one of the same account."""

    client: Client
    transport: FaultyTransport
    other: Client

    def stored(self) -> dict[str, Any]:
        """Return what the service holds now."""
        return {name: self.value(name) for name in self.other.list()}

    def value(self, name: str) -> Any:
        """Return what is under a name."""
        loaded = self.other.load(name)
        assert loaded is not None
        return decode_value(loaded.value)


def pair(transport: FaultyTransport, api_key: str) -> _Pair:
    """Return two clients that know what the service can, which holds one file."""
    client = Client(transport, api_key, clock=lambda: 0.0, sleep=lambda _: None)
    client.save("a", encode_value({"n": "before"}))
    other = Client(_Through(transport), api_key, retries=0)
    other.list()
    return _Pair(client, transport, other)


class _Through:
    """A way past the faults."""

    def __init__(self, transport: FaultyTransport) -> None:
        self.send: Any = transport.pass_on

    def close(self) -> None:
        """Do nothing: the way is the other client's."""


@pytest.fixture
def extended(ways: Ways) -> Iterator[_Pair]:
    """Return two clients of a service with all extensions."""
    transport, api_key = ways.to("extended")
    yield pair(transport, api_key)
    transport.close()


@pytest.fixture
def plain(ways: Ways) -> Iterator[_Pair]:
    """Return two clients of a service with none."""
    transport, api_key = ways.to("plain")
    yield pair(transport, api_key)
    transport.close()


Act = Callable[[Client], object]

#: What we do, and what is left of what somebody else saved between its two attempts: with an id, and without one.
INTERLEAVED: dict[str, tuple[Act, Any, Any]] = {
    "save": (lambda client: client.save("a", OURS), {"a": {"n": "theirs"}}, {"a": {"n": "ours"}}),
    "merge": (lambda client: client.merge("a", OURS), {"a": {"n": "theirs"}}, {"a": {"n": "ours"}}),
    "delete": (lambda client: client.delete("a"), {"a": {"n": "theirs"}}, {}),
}


@pytest.mark.parametrize("write", INTERLEAVED)
def test_with_an_id(extended: _Pair, write: str) -> None:
    """A repeated write that was done already undoes nothing: what somebody else saved since then stays."""
    act, left, _ = INTERLEAVED[write]
    extended.transport.break_with([lost_while(lambda: extended.other.save("a", THEIRS)), slow, lost])
    act(extended.client)
    assert len(extended.transport.requests) == 4
    assert extended.stored() == left


@pytest.mark.parametrize("write", INTERLEAVED)
def test_without_an_id(plain: _Pair, write: str) -> None:
    """Without ids the repeated write comes last, and what somebody else saved is gone; the service can't know."""
    act, _, left = INTERLEAVED[write]
    plain.transport.break_with([lost_while(lambda: plain.other.save("a", THEIRS))])
    act(plain.client)
    assert len(plain.transport.requests) == 2
    assert plain.stored() == left


@pytest.mark.parametrize("atomic", [False, True])
def test_a_batch(extended: _Pair, atomic: bool) -> None:
    """A batch is repeated as one, and each of its replies is the first time's."""
    requests = [
        Request(name="a", value=OURS),
        Request(name="a"),
        Request(name="b", value=OURS, if_version=None),
        Request(name="c", options="delete"),
    ][: 3 if atomic else 4]
    extended.transport.break_with([lost_while(lambda: extended.other.save("a", THEIRS)), slow])
    replies = extended.client.batch(requests, atomic=atomic)
    assert [reply.error for reply in replies] == [None, None, None, "NoFile"][: len(requests)]
    assert bytes(replies[1].content) in (
        bytes(OURS),
        bytes(THEIRS),
    )  # what a read says may be of the first time or of the last
    assert extended.stored() == {"a": {"n": "theirs"}, "b": {"n": "ours"}}


def test_versions_of_a_repeated_write(extended: _Pair) -> None:
    """A repeated write returns the version that it made: saving on it later finds what somebody else changed."""
    extended.transport.break_with([lost_while(lambda: extended.other.save("a", THEIRS))])
    version = extended.client.save("a", OURS)
    assert version is not None
    with pytest.raises(ChangedError):
        extended.client.save("a", OURS, if_version=version)
    assert extended.stored() == {"a": {"n": "theirs"}}


def test_conditions_of_a_repeated_write(extended: _Pair) -> None:
    """A repeated write doesn't fail on the condition that its own first attempt made untrue."""
    extended.transport.break_with([lost])
    version = extended.client.save("b", OURS, if_version=None)
    extended.transport.break_with([slow])
    extended.client.save("b", THEIRS, if_version=version)
    assert extended.value("b") == {"n": "theirs"}


def test_a_refusal_is_repeated_too(extended: _Pair) -> None:
    """A write that was refused at first was not done, and what comes of its repetition holds."""
    extended.transport.break_with([lost])
    with pytest.raises(ChangedError):
        extended.client.save("a", OURS, if_version=None)
    extended.transport.break_with([lost])
    with pytest.raises(NoFileError):
        extended.client.delete("b")
    assert extended.stored() == {"a": {"n": "before"}}


def test_a_delete_that_found_nothing(extended: _Pair) -> None:
    """A repeated delete doesn't find what was saved after it found nothing."""
    extended.transport.break_with([lost_while(lambda: extended.other.save("b", THEIRS))])
    with pytest.raises(NoFileError):
        extended.client.delete("b")
    assert extended.value("b") == {"n": "theirs"}


def test_ids_of_two_writes(extended: _Pair) -> None:
    """The same write meant twice is done twice."""
    extended.client.save("a", OURS)
    extended.other.save("a", THEIRS)
    extended.client.save("a", OURS)
    assert extended.stored() == {"a": {"n": "ours"}}


def test_conditions_without_ids(ways: Ways) -> None:
    """Where the service has versions but no ids, a conditional write that was lost is unknown and not repeated."""
    transport, api_key = ways.to("extended")
    transport.extensions = frozenset(EXTENSIONS) - {"once"}
    client, _, other = pair(transport, api_key)
    transport.break_with([lost])
    with pytest.raises(OutcomeUnknownError):
        client.save("b", OURS, if_version=None)
    assert len(transport.requests) == 1
    assert sorted(other.list()) == ["a", "b"]
    transport.close()
