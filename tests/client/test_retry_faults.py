"""Every operation of the client through every fault, on a service with all extensions and on one with none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec import Raw

from cloudstore_mapping.client.files import Client, Loaded
from cloudstore_mapping.errors import CloudStoreError, NoFileError, TimedOutError
from cloudstore_mapping.testing.faults import FaultyTransport, lost, refused, stuck, twice
from cloudstore_mapping.wire import Request, decode_value, encode_value
from tests.support.faults import DONE, TABLE, Error, Ways, ways
from tests.support.matrix import spread

__all__ = ["ways"]  # a fixture

BEFORE: dict[str, Any] = {"a": {"x": 1}, "b": [2]}


@dataclass
class Subject:
    """A client on its way through faults to a service that holds `BEFORE`, and a client that has none to go through."""

    client: Client
    transport: FaultyTransport
    other: Client
    version: str | None
    slept: list[float] = field(default_factory=list)

    @property
    def has_ids(self) -> bool:
        """Whether writes have ids."""
        return "once" in self.client.extensions

    def files(self) -> dict[str, Any]:
        """Return what the service holds now."""
        return {name: value(self.other.load(name)) for name in self.other.list()}


def value(loaded: Loaded | None) -> Any:
    """Return the value that was loaded."""
    assert loaded is not None
    return decode_value(loaded.value)


@pytest.fixture(params=["extended", "plain"])
def subject(request: pytest.FixtureRequest, ways: Ways) -> Iterator[Subject]:
    """Return a client that knows what the service can, with all extensions and with none."""
    transport, api_key = ways.to(request.param)
    slept: list[float] = []
    with Client(transport, api_key, clock=lambda: 0.0, sleep=slept.append) as client:
        for name, content in BEFORE.items():
            client.save(name, encode_value(content))
        loaded = client.load("a")
        assert loaded is not None
        other = Client(transport, api_key, retries=0, clock=lambda: 0.0)
        other.list()
        yield Subject(client, transport, other, loaded.version, slept)


def batch(subject: Subject, *requests: Request, atomic: bool = False) -> list[Any]:
    """Send a batch, and return the values that came."""
    replies = subject.client.batch(requests, atomic=atomic)
    for reply in replies:
        subject.client.raise_for(reply, None)
    return [decode_value(reply.content) for reply in replies]


NEW = Raw(b'{"y":2}')
CHANGES = (Request(name="a", options="delete"), Request(name="c", value=NEW), Request(name="a", value=NEW))

#: What each read returns.
READS: dict[str, tuple[Callable[[Subject], object], object]] = {
    "load": (lambda subject: value(subject.client.load("a")), {"x": 1}),
    "load of a version": (lambda subject: value(subject.client.load("a", if_not_version="another")), {"x": 1}),
    "list": (lambda subject: subject.client.list(), ["a", "b"]),
    "list of a prefix": (lambda subject: subject.client.list("b", prefix=True), ["b"]),
    "pages": (lambda subject: [name for page in subject.client.pages(limit=1) for name in page], ["a", "b"]),
    "stat": (lambda subject: type(subject.client.stat("a")), dict),
    "batch of loads": (lambda subject: batch(subject, Request(name="a"), Request(name="b")), [{"x": 1}, [2]]),
}
#: What the service holds after each write.
WRITES: dict[str, tuple[Callable[[Subject], object], dict[str, Any]]] = {
    "save": (lambda subject: subject.client.save("a", NEW), {"a": {"y": 2}, "b": [2]}),
    "merge": (lambda subject: subject.client.merge("a", NEW), {"a": {"x": 1, "y": 2}, "b": [2]}),
    "delete": (lambda subject: subject.client.delete("a"), {"b": [2]}),
    "upload": (lambda subject: subject.client.upload("a", b"media", "a/b"), BEFORE),
    "save over a version": (
        lambda subject: subject.client.save("a", NEW, if_version=subject.version),
        {"a": {"y": 2}, "b": [2]},
    ),
    "save where nothing is": (
        lambda subject: subject.client.save("c", NEW, if_version=None),
        {**BEFORE, "c": {"y": 2}},
    ),
    "delete of a version": (lambda subject: subject.client.delete("a", if_version=subject.version), {"b": [2]}),
    "batch": (lambda subject: batch(subject, *CHANGES), {"a": {"y": 2}, "b": [2], "c": {"y": 2}}),
    "atomic batch": (lambda subject: batch(subject, *CHANGES, atomic=True), {"a": {"y": 2}, "b": [2], "c": {"y": 2}}),
}
NEED_EXTENSIONS = {
    "stat",
    "batch of loads",
    "save over a version",
    "save where nothing is",
    "delete of a version",
    "batch",
    "atomic batch",
}
NEED_MEDIA = {"upload"}  # which a service in memory doesn't take
OPERATIONS = {**READS, **WRITES}

EXTENDED = [operation for operation in OPERATIONS if operation not in NEED_MEDIA]
PLAIN = [operation for operation in OPERATIONS if operation not in NEED_EXTENSIONS]
#: A test of each operation on each service that has it.
each_operation = pytest.mark.parametrize(
    ("subject", "operation"),
    [*(("extended", operation) for operation in EXTENDED), *(("plain", operation) for operation in PLAIN)],
    indirect=["subject"],
)
#: The same with each fault; half of them by default.
each_operation_and_fault = pytest.mark.parametrize(
    ("subject", "operation", "fault"),
    [*spread([["extended"], EXTENDED, TABLE], 2), *spread([["plain"], PLAIN, TABLE], 2)],
    indirect=["subject"],
)


def expected(subject: Subject, operation: str, errors: tuple[Error, Error, Error]) -> Error:
    """Return what a row says of an operation."""
    read, write, write_with_id = errors
    if operation in READS:
        return read
    return write_with_id if subject.has_ids and operation != "upload" else write


@each_operation_and_fault
def test_once(subject: Subject, operation: str, fault: str) -> None:
    """A fault that comes once goes unseen or is its error, and what is stored is known."""
    error = expected(subject, operation, TABLE[fault].once)
    subject.transport.break_with([TABLE[fault].fault])
    act, meant = OPERATIONS[operation]
    if error is None:
        result = act(subject)
        assert operation in WRITES or result == meant
        assert len(subject.transport.requests) >= 2
    else:
        fails(subject, act, error)
        assert len(subject.transport.requests) == 1
    is_done = operation in WRITES and (error is None or fault in DONE)
    assert subject.files() == (meant if is_done else BEFORE)


@each_operation_and_fault
def test_for_ever(subject: Subject, operation: str, fault: str) -> None:
    """A fault that stays is its error once the attempts are used up, and what is stored is known."""
    error = expected(subject, operation, TABLE[fault].for_ever)
    assert error is not None
    subject.transport.break_with([TABLE[fault].fault] * 9)
    act, meant = OPERATIONS[operation]
    fails(subject, act, error)
    is_repeated = expected(subject, operation, TABLE[fault].once) is None
    assert len(subject.transport.requests) == (4 if is_repeated else 1)
    subject.transport.break_with([])
    assert subject.files() == (meant if operation in WRITES and fault in DONE else BEFORE)


def fails(subject: Subject, act: Callable[[Subject], object], error: type[CloudStoreError]) -> None:
    """Check that something is just this error, that it says of what, and shows no API key."""
    with pytest.raises(CloudStoreError) as caught:
        act(subject)
    assert type(caught.value) is error
    assert not isinstance(caught.value, KeyError)
    assert caught.value.key in ("a", "c", None)
    assert subject.client._api_key not in f"{caught.value} {caught.value!r} {caught.value.__cause__}"


@pytest.mark.parametrize("fault", TABLE)
@pytest.mark.parametrize("times", [1, 9])
def test_absence_is_never_guessed(subject: Subject, fault: str, times: int) -> None:
    """Only the service's word makes a load `NoFileError`, whatever comes in its place."""
    row = TABLE[fault]
    error = (row.once if times == 1 else row.for_ever)[0]
    subject.transport.break_with([row.fault] * times)
    fails_with = NoFileError if error is None else error
    with pytest.raises(fails_with) as caught:
        subject.client.load("absent")
    assert type(caught.value) is fails_with


@pytest.mark.parametrize("fault", ["dropped", "lost", "502", "504"])
def test_a_repeated_delete_of_nothing(subject: Subject, fault: str) -> None:
    """With an id the repeated delete tells whether something was there; without one it may have deleted it itself."""
    subject.transport.break_with([TABLE[fault].fault])
    if subject.has_ids:
        with pytest.raises(NoFileError):
            subject.client.delete("absent")
    else:
        subject.client.delete("absent")
    assert len(subject.transport.requests) == 2


@each_operation
def test_twice(subject: Subject, operation: str) -> None:
    """A request that something on the way sends twice does with an id what it does once; without, a delete may not."""
    act, meant = OPERATIONS[operation]
    subject.transport.break_with([twice])
    if operation == "delete" and not subject.has_ids:
        with pytest.raises(NoFileError):
            act(subject)
    else:
        result = act(subject)
        assert operation in WRITES or result == meant
    assert subject.files() == (meant if operation in WRITES else BEFORE)


def test_retry_after(subject: Subject) -> None:
    """The next attempt waits as long as the answer asks for."""
    for fault in ("429", "429 of the service", "503", "503 of the service"):
        subject.slept.clear()
        subject.transport.break_with([TABLE[fault].fault])
        subject.client.load("a")
        assert subject.slept == [2.0]


def test_stats(subject: Subject) -> None:
    """The client counts each attempt under its operation, and those that were repetitions."""
    before = subject.client.stats
    subject.transport.break_with([lost, refused])
    subject.client.save("a", NEW)
    subject.client.load("a")
    subject.transport.break_with([stuck])
    with pytest.raises(TimedOutError):
        subject.client.list()
    after = subject.client.stats
    assert after.retries - before.retries == 2
    assert {name: count - before.requests.get(name, 0) for name, count in after.requests.items()} == {
        "save": 3,
        "load": 1,
        "list": 1,
    }
