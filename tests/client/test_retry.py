"""Retry: repeated attempts, rate limit, unknown outcomes, and uploads of streams."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import Raw

from cloudstore_mapping import callback_client
from cloudstore_mapping.callback_client import Pacer, pacer_of
from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.transport import Sendable, parse_retry_after
from cloudstore_mapping.errors import (
    BadKeyError,
    ChangedError,
    CloudStoreError,
    NoFileError,
    OutcomeUnknownError,
    ProtocolError,
    TimedOutError,
    TooOftenError,
    TransportError,
    UnavailableError,
)
from cloudstore_mapping.wire import Reply, Request, Upload, encode_value, failure, success
from tests.support.scripted import ALL, DONE, NO_FILE, UPLOADED, Outcome, Script, told


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
    "upload": UPLOADED,
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
    """An answer that says no, or can't be read, is final; a gateway's 500 tells nothing of a write."""
    script = Script(outcome)
    is_unknown = operation in WRITES and isinstance(outcome, Reply) and outcome.status == 500
    with pytest.raises(OutcomeUnknownError if is_unknown else error):
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


class _Clock:
    """A clock that stands still but for those who sleep by it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class _Times:
    """A transport that notes when it is asked."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock
        self.sent: list[float] = []
        self.requests: list[Sendable] = []

    def send(self, request: Sendable) -> Reply:
        self.requests.append(request)
        self.sent.append(self._clock())
        return success("")

    def close(self) -> None:
        pass


def test_slots_in_order() -> None:
    """Slots are an interval apart in the order in which they are asked for; after a pause the next one is now."""
    clock = _Clock()
    pacer = Pacer(clock, clock.sleep)
    assert [pacer.reserve(3.0) for _ in range(3)] == [1000.0, 1003.0, 1006.0]
    clock.now = 2000.0
    assert [pacer.reserve(3.0) for _ in range(2)] == [2000.0, 2003.0]


def test_no_interval_no_wait() -> None:
    """Without an interval every slot is now, and nobody sleeps."""
    clock = _Clock()
    pacer = Pacer(clock, clock.sleep)
    pacer.wait(pacer.reserve(0.0))
    pacer.wait(pacer.reserve(0.0))
    assert clock.slept == []


def test_waiting_holds_no_lock() -> None:
    """Who waits for a slot doesn't keep others from getting theirs."""
    clock = _Clock()
    reserved: list[float] = []
    pacer = Pacer(clock, lambda _: reserved.append(pacer.reserve(1.0)))
    pacer.reserve(1.0)
    pacer.wait(pacer.reserve(1.0))
    assert reserved == [1002.0]


def test_clients_share_a_pacer() -> None:
    """Two clients of one server keep its interval between any two of their requests."""
    clock = _Clock()
    pacer = Pacer(clock, clock.sleep)
    transport = _Times(clock)
    clients = [Client(transport, "k", min_interval=3.0, pacer=pacer) for _ in range(2)]
    for client in (*clients, *clients):
        client.save("a", success("").message)
    assert transport.sent == [1000.0, 1003.0, 1006.0, 1009.0]


def test_no_interval_no_turn() -> None:
    """A client without an interval neither waits for the rate limit of others on its server nor adds to it."""
    clock = _Clock()
    pacer = Pacer(clock, clock.sleep)
    transport = _Times(clock)
    slow, free = (Client(transport, "k", min_interval=interval, pacer=pacer) for interval in (3.0, 0.0))
    pacer.reserve(3.0)
    slow.reserve()
    free.save("a", success("").message)
    assert transport.sent == [1000.0]
    assert slow.reserve() == 1006.0


def test_reserved_slot_is_kept() -> None:
    """A request that was given its slot in advance starts then, whoever asks meanwhile."""
    clock = _Clock()
    transport = _Times(clock)
    client = Client(transport, "k", min_interval=3.0, clock=clock, sleep=clock.sleep)
    first, second = client.reserve(), client.reserve()
    client.exchange(Request(api_key="k", name="b"), start=second)
    client.exchange(Request(api_key="k", name="a"), start=first)
    assert transport.sent == [1003.0, 1003.0]
    assert [request.name for request in transport.requests if isinstance(request, Request)] == ["b", "a"]


def test_one_pacer_a_server() -> None:
    """In a process there is one pacer for each server."""
    assert pacer_of("https://one.example/x") is pacer_of("https://one.example/x")
    assert pacer_of("https://one.example/x") is not pacer_of("https://two.example/x")


def test_one_pacer_for_threads_that_open_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a server's pacer is made another time at the same moment, both users get the same one."""
    of_the_other: list[Pacer] = []

    class Slow(Pacer):
        """Is made while another is made."""

        def __init__(self) -> None:
            super().__init__()
            if not of_the_other:
                of_the_other.append(self)
                of_the_other[0] = pacer_of("http://one.example")

    monkeypatch.setattr(callback_client, "Pacer", Slow)
    assert pacer_of("http://one.example") is of_the_other[0]
    assert pacer_of("http://one.example") is of_the_other[0]


def test_a_signal_handler_reserves_a_time_meanwhile() -> None:
    """A signal handler that sends a request while its thread reserves a time gets one of its own, without waiting."""
    reserved: list[float] = []

    class Interrupted:
        """A clock during whose first reading the handler runs."""

        def __init__(self) -> None:
            self.has_run = False

        def __call__(self) -> float:
            if not self.has_run:
                self.has_run = True
                reserved.append(pacer.reserve(3.0))
            return 1000.0

    pacer = Pacer(Interrupted(), lambda _: None)
    reserved.append(pacer.reserve(3.0))
    assert reserved == [1000.0, 1003.0]


@pytest.mark.parametrize(
    "address", ["https://HOST.example:443/x", "https://host.example/x/", "HTTPS://host.EXAMPLE:443/x"]
)
def test_one_pacer_for_each_spelling(address: str) -> None:
    """The default port, capital letters and a final slash make no other server, so the pace is the same."""
    with CloudStoreMapping[Any]("key", address) as store:
        assert store._files.client._pacer is pacer_of("https://host.example/x")
    with CloudStoreMapping[Any]("key", "http://127.0.0.1:80/x") as store:
        assert store._files.client._pacer is pacer_of("http://127.0.0.1/x")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_its_own_pace() -> None:
    """A child goes on from its parent's last request, and from then on keeps a pace of its own."""
    clock = _Clock()
    pacer = Pacer(clock, clock.sleep)
    assert pacer.reserve(3.0) == 1000.0
    for _ in range(2):
        child = os.fork()
        if child == 0:
            os._exit(0 if pacer.reserve(3.0) == 1003.0 else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert pacer.reserve(3.0) == 1003.0


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": " 120 "}, 120.0),
        ({"Retry-After": "9" * 400}, 999999999.0),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "1.5"}, None),
        ({"Retry-After": "٣"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Thu, 01 Jan 2026 12:00:07 GMT"}, 7.0),
        ({"Retry-After": "Thu, 01 Jan 2026 12:00:07 -0000"}, 7.0),
        ({"Retry-After": "Thu, 01 Jan 2026 11:00:00 GMT"}, 0.0),
        ({"Retry-After": "Thu, 01 Jan 2026 12:00:07 GMT", "Date": "Thu, 01 Jan 2026 12:00:05 GMT"}, 2.0),
        ({"Retry-After": "Thu, 01 Jan 2026 12:00:07 GMT", "Date": "today"}, 7.0),
        ({"Retry-After": "Thu, 99 Jan 2026 12:00:07 GMT"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    """`Retry-After` is seconds or a date, which counts from the reply's own date so far as it has one."""
    assert parse_retry_after(headers, lambda: NOON) == seconds


def test_retry_after_a_date_gone_by() -> None:
    """Without a date of its own, a reply's `Retry-After` counts from now."""
    assert parse_retry_after({"Retry-After": "Thu, 01 Jan 2015 12:00:00 GMT"}) == 0.0


UNKNOWN = failure(OutcomeUnknownError("The database was lost.", error="OutcomeUnknown"))
CHANGED = Reply(error="Changed", message=encode_value("Somebody else changed it."), version="2")


def test_how_it_travels() -> None:
    """It is an error of its own, under the status that proxies give a service which didn't answer in time."""
    assert (UNKNOWN.error, UNKNOWN.status) == ("OutcomeUnknown", 504)


def test_a_write_with_an_id_is_sent_again() -> None:
    """Where the service knows the request again, it is repeated until the outcome is known."""
    client, script = told(ALL, UNKNOWN, UNKNOWN, DONE)
    client.save("a", Raw(b"1"))
    first, *others = script.sent
    assert len(others) == 2
    assert all(request is first for request in others)


def test_a_write_that_bears_repeating_is_sent_again() -> None:
    """Without ids a plain save is repeated, and a delete that then finds nothing was done."""
    script = Script(UNKNOWN, DONE, UNKNOWN, NO_FILE)
    script.client().save("a", Raw(b"1"))
    script.client().delete("a")
    assert len(script.requests) == 4


def test_a_write_that_looks_at_a_version_is_not() -> None:
    """A second time it would find what the first one may have left: that its outcome is unknown is all that is told."""
    client, script = told(ALL - {"once"}, UNKNOWN, CHANGED)
    with pytest.raises(OutcomeUnknownError, match="database was lost") as caught:
        client.save("a", Raw(b"1"), if_version="1")
    assert (caught.value.key, caught.value.status, caught.value.sent) == ("a", 504, True)
    assert len(script.requests) == 1


def test_it_is_told_in_the_end() -> None:
    """Where no try is left, the outcome is still unknown, whatever the last try was refused for."""
    script = Script(*[UNKNOWN] * 4)
    with pytest.raises(OutcomeUnknownError):
        script.client().save("a", Raw(b"1"))
    busy = Reply(error="Unavailable", message=encode_value("Busy."), status=503)
    script = Script(UNKNOWN, *[busy] * 3)
    with pytest.raises(OutcomeUnknownError):
        script.client().save("a", Raw(b"1"))


def test_an_answer_that_is_final() -> None:
    """What the service then says for certain is believed."""
    client, _ = told(ALL, UNKNOWN, CHANGED)
    with pytest.raises(ChangedError):
        client.save("a", Raw(b"1"), if_version="1")
    client, _ = told(ALL, UNKNOWN, NO_FILE)
    with pytest.raises(NoFileError):
        client.delete("a")


BUSY = Reply(error="Http error", message=Raw(b'"Reason"'), status=503)


class _Readers:
    """A transport that reads what it is sent before each of its prepared outcomes."""

    def __init__(self, *outcomes: Reply | TransportError) -> None:
        self._outcomes = list(outcomes)
        self.read: list[bytes] = []

    def send(self, request: Sendable) -> Reply:
        assert isinstance(request, Upload)
        assert not isinstance(request.data, bytes)
        self.read.append(request.data.read())
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, TransportError):
            raise outcome
        return outcome

    def close(self) -> None:
        pass


class _Pipe(io.BytesIO):
    """A stream that can't be rewound."""

    def seekable(self) -> bool:
        return False


class _Bare:
    """A stream with no more than it takes."""

    def read(self) -> bytes:
        return b"data"


@pytest.mark.parametrize("first", [TransportError("lost", sent=True), BUSY])
def test_stream_is_rewound(first: Reply | TransportError) -> None:
    """A file is sent again from where it stood."""
    file = io.BytesIO(b"headbody")
    file.seek(4)
    transport = _Readers(first, UPLOADED)
    Client(transport, "key", sleep=lambda _: None).upload("a", file, "text/plain")
    assert transport.read == [b"body", b"body"]


@pytest.mark.parametrize("stream", [_Pipe(b"data"), _Bare()])
@pytest.mark.parametrize("first", [TransportError("lost", sent=True), BUSY])
def test_stream_that_cannot_be_rewound(stream: Any, first: Reply | TransportError) -> None:
    """What can't be sent twice is sent once."""
    transport = _Readers(first)
    with pytest.raises(TransportError):
        Client(transport, "key", sleep=lambda _: None).upload("a", stream, "text/plain")
    assert len(transport.read) == 1
