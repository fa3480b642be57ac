"""Repetitions: which attempts are followed by another, after how long, and what is known in the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec import Raw

from cloudstore_mapping.client.files import Client
from cloudstore_mapping.errors import (
    BadKeyError,
    CloudStoreError,
    NoFileError,
    OutcomeUnknownError,
    ProtocolError,
    TimedOutError,
    TooOftenError,
    TransportError,
    UnavailableError,
)
from cloudstore_mapping.wire import Reply, Request, encode_value, success
from tests.scripted import DONE, NO_FILE, Outcome, Script


def unsent() -> TransportError:
    """Return the error of a request that never left."""
    return TransportError("refused", sent=False)


def lost() -> TransportError:
    """Return the error of a request that may have arrived."""
    return TransportError("dropped", sent=True)


def http(status: int, retry_after: float | None = None) -> Reply:
    """Return the answer of a proxy."""
    return Reply(error="Http error", message=encode_value("Reason"), status=status, retry_after=retry_after)


Call = Callable[[Client], object]

OPERATIONS: dict[str, Call] = {
    "load": lambda client: client.load("a"),
    "save": lambda client: client.save("a", Raw(b"1")),
    "merge": lambda client: client.merge("a", Raw(b"1")),
    "delete": lambda client: client.delete("a"),
    "list": lambda client: client.list("a"),
    "upload": lambda client: client.upload("a", b"1", "text/plain"),
}
WRITES = ("save", "merge", "delete", "upload")
ANSWERS = {
    "load": DONE,
    "save": DONE,
    "merge": DONE,
    "delete": DONE,
    "list": success("a,b"),
    "upload": success("", Raw(b"{}")),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "first",
    [
        unsent(),
        lost(),
        TimedOutError("no connection", sent=False),
        http(429),
        http(502),
        http(503),
        http(504),
        Reply(error="TooOften", message=Raw(b'""'), status=429),
        Reply(error="Unavailable", message=Raw(b'""'), status=503),
    ],
    ids=lambda outcome: str(getattr(outcome, "status", None) or outcome),
)
def test_repeated(operation: str, first: Outcome) -> None:
    """After a broken or refused connection and the four statuses, every operation is sent again, the same."""
    script = Script(first, ANSWERS[operation])
    OPERATIONS[operation](script.client())
    assert len(script.requests) == 2
    assert script.requests[0] is script.requests[1]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (http(500), ProtocolError),
        (http(404), ProtocolError),
        (http(301), ProtocolError),
        (Reply(error="BadKey", message=Raw(b'""'), status=401), BadKeyError),
        (Reply(error="Nonsense", message=Raw(b'""')), ProtocolError),
        (NO_FILE, NoFileError),
        (ProtocolError("no reply"), ProtocolError),
    ],
)
def test_not_repeated(operation: str, outcome: Outcome, error: type[CloudStoreError]) -> None:
    """An answer that says no, or can't be read, is final."""
    script = Script(outcome)
    with pytest.raises(error):
        OPERATIONS[operation](script.client())
    assert len(script.requests) == 1
    assert script.slept == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_read_timeout_is_not_repeated(operation: str) -> None:
    """A service that took the request and is slow isn't asked again; of a write nobody knows whether it was done."""
    script = Script(TimedOutError("slow", sent=True))
    with pytest.raises(OutcomeUnknownError if operation in WRITES else TimedOutError) as caught:
        OPERATIONS[operation](script.client())
    assert len(script.requests) == 1
    if operation in WRITES:
        assert isinstance(caught.value.__cause__, TimedOutError)
        assert caught.value.key == "a"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("retries", [0, 1, 3])
def test_attempts_end(operation: str, retries: int) -> None:
    """A request is sent once and `retries` times more, and then fails; one that never left says so."""
    script = Script(*(unsent() for _ in range(9)))
    with pytest.raises(TransportError) as caught:
        OPERATIONS[operation](script.client(retries=retries))
    assert type(caught.value) is TransportError
    assert caught.value.sent is False
    assert len(script.requests) == retries + 1
    assert len(script.slept) == retries


@pytest.mark.parametrize("operation", WRITES)
@pytest.mark.parametrize(
    "outcomes",
    [
        (lost(), lost()),
        (unsent(), lost()),
        (lost(), unsent()),
        (lost(), TimedOutError("no connection", sent=False)),
        (http(504), unsent()),
    ],
    ids=["lost lost", "unsent lost", "lost unsent", "lost timeout", "gateway unsent"],
)
def test_unknown_outcome(operation: str, outcomes: tuple[Outcome, ...]) -> None:
    """A write without an answer is unknown if any of its attempts may have arrived, whatever the last one was."""
    with pytest.raises(OutcomeUnknownError, match=operation) as caught:
        OPERATIONS[operation](Script(*outcomes).client(retries=1))
    assert caught.value.__cause__ is outcomes[-1]
    assert caught.value.sent is True


@pytest.mark.parametrize("operation", ["load", "list"])
def test_a_read_has_no_unknown_outcome(operation: str) -> None:
    """A read that was lost is just not done."""
    with pytest.raises(TransportError) as caught:
        OPERATIONS[operation](Script(lost(), lost()).client(retries=1))
    assert type(caught.value) is TransportError


@pytest.mark.parametrize(("status", "error"), [(429, TooOftenError), (502, UnavailableError), (503, UnavailableError)])
def test_busy_to_the_end(status: int, error: type[CloudStoreError]) -> None:
    """A service that stays busy raises its last answer's error, with the seconds it asked for."""
    script = Script(*(http(status, 2.0) for _ in range(4)))
    with pytest.raises(error) as caught:
        script.client().load("a")
    assert vars(caught.value).items() >= {"retry_after": 2.0, "status": status}.items()
    assert len(script.requests) == 4


@pytest.mark.parametrize("first", [lost(), http(502), http(504)], ids=["lost", "502", "504"])
def test_repeated_delete_finds_nothing(first: Outcome) -> None:
    """`NoFile` to a repeated delete is success where the first attempt may have deleted."""
    script = Script(first, NO_FILE)
    script.client().delete("a")
    reply = Script(lost(), NO_FILE).client().exchange(Request(api_key="k", name="a", options="delete"))
    assert (reply.error, bytes(reply.message)) == (None, b'"Entry deleted"')


@pytest.mark.parametrize(
    "first",
    [unsent(), http(429), Reply(error="Unavailable", message=Raw(b'""'), status=503)],
    ids=["unsent", "429", "own 503"],
)
def test_repeated_delete_that_never_worked(first: Outcome) -> None:
    """`NoFile` to a repeated delete is an error where the first attempt can't have deleted."""
    with pytest.raises(NoFileError):
        Script(first, NO_FILE).client().delete("a")


def test_no_file_to_a_repeated_load() -> None:
    """Only a delete can have made away with what it doesn't find."""
    with pytest.raises(NoFileError):
        Script(lost(), NO_FILE).client().load("a")


def test_backoff() -> None:
    """Waits double from half a second on, each up to half shorter by chance, and none is past eight seconds."""
    script = Script(*(unsent() for _ in range(9)))
    with pytest.raises(TransportError):
        script.client(retries=6).load("a")
    for slept, longest in zip(script.slept, [0.5, 1, 2, 4, 8, 8], strict=False):
        assert longest / 2 <= slept <= longest
    assert sum(script.slept) <= 30


def test_jitter() -> None:
    """Clients that failed together don't come back together."""
    waits = set()
    for _ in range(20):
        script = Script(unsent(), DONE)
        script.client().load("a")
        waits.update(script.slept)
    assert len(waits) > 1


def test_retry_after_is_honoured() -> None:
    """The next attempt is not before the time that the service asks for, and not at once if it asks for none."""
    script = Script(http(429, 7.0), http(503, 0.0), DONE)
    script.client().load("a")
    assert script.slept[0] == 7.0
    assert 0.5 <= script.slept[1] <= 1


@pytest.mark.parametrize("waits", [[31.0], [30.0, 1.0], [20.0, 11.0]])
def test_waiting_has_a_cap(waits: list[float]) -> None:
    """A `Retry-After` beyond what is left of 30 seconds isn't waited for: the answer is the error, at once."""
    script = Script(*(http(429, wait) for wait in waits), DONE)
    with pytest.raises(TooOftenError) as caught:
        script.client().load("a")
    assert caught.value.retry_after == waits[-1]
    assert script.slept == waits[:-1]


def test_exchange_returns_error_replies() -> None:
    """`exchange` returns what the service says, be it an error, for those who want the reply."""
    assert Script(NO_FILE).client().exchange(Request(api_key="k", name="a")) is NO_FILE
    busy = http(503, 99.0)
    assert Script(busy).client().exchange(Request(api_key="k", name="a")) is busy


def test_close() -> None:
    """A client closes its transport, at the end of a `with` as well."""
    script = Script()
    with script.client():
        pass
    assert script.closed == 1
