"""The fault injector: what it makes of an answer is what HTTP makes of it, and what it does to others is nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from msgspec import Raw
from msgspec.structs import asdict

from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.errors import CloudStoreError, ProtocolError, TimedOutError, TooOftenError, TransportError
from cloudstore_mapping.testing import faults
from cloudstore_mapping.testing.faults import SIGN_IN_PAGE, Delayed, Fault, FaultyTransport, answered, turned_away
from cloudstore_mapping.wire import Reply, Request, Upload
from tests import vendor
from tests.vendor import Vendor, serve_vendor

LOAD = Request(api_key=Vendor.api_key, name="a")
SAVE = Request(api_key=Vendor.api_key, name="a", value=Raw(b"2"))


@pytest.fixture
def service() -> Iterator[Vendor]:
    """Return a running service that holds one file."""
    with serve_vendor() as running:
        running.files["a"] = 1
        yield running


@pytest.fixture
def transport(service: Vendor) -> Iterator[FaultyTransport]:
    """Return a way to it that faults may lie on."""
    opened = FaultyTransport(HTTPTransport(service.address))
    yield opened
    opened.close()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 404, 301])
@pytest.mark.parametrize("body", [b"", SIGN_IN_PAGE, b'{"error":"TooOften","message":"Wait."}', b"[]"])
@pytest.mark.parametrize("retry_after", [None, 2.0])
def test_answers(
    service: Vendor, transport: FaultyTransport, status: int, body: bytes, retry_after: float | None
) -> None:
    """An answer in the service's place is the reply that the same bytes are over HTTP."""
    headers = {} if retry_after is None else {"Retry-After": str(round(retry_after))}
    service.faults.append(vendor.Fault(status, body, headers))
    over_http = transport.send(LOAD)
    transport.faults.append(answered(status, body, retry_after))
    made = transport.send(LOAD)
    assert made.response is None
    assert facts(made) == facts(over_http)
    assert len(service.requests) == 1


def facts(reply: Reply) -> dict[str, object]:
    """Return what a reply says, without the response."""
    return {
        name: bytes(field) if isinstance(field, Raw) else field
        for name, field in asdict(reply).items()
        if name != "response"
    }


@pytest.mark.parametrize("body", [SIGN_IN_PAGE, b"", b"[]", b'{"error":false}'])
def test_answers_that_can_not_be_read(service: Vendor, transport: FaultyTransport, body: bytes) -> None:
    """What HTTP can't read is the same error without it."""
    service.faults.append(vendor.Fault(200, body))
    with pytest.raises(ProtocolError) as over_http:
        transport.send(LOAD)
    transport.faults.append(answered(200, body))
    with pytest.raises(ProtocolError, match="CloudStore") as made:
        transport.send(LOAD)
    assert str(made.value) == str(over_http.value)


#: Each fault that is an error, whether the service may have seen the request, and how often it did.
ERRORS: list[tuple[Fault, type[CloudStoreError], bool | None, int]] = [
    (faults.refused, TransportError, False, 0),
    (faults.not_connected, TimedOutError, False, 0),
    (faults.dropped, TransportError, True, 0),
    (faults.lost, TransportError, True, 1),
    (faults.stuck, TimedOutError, True, 0),
    (faults.slow, TimedOutError, True, 1),
    (faults.truncated, ProtocolError, None, 1),
]


@pytest.mark.parametrize(("fault", "error", "sent", "times"), ERRORS)
def test_errors(
    service: Vendor, transport: FaultyTransport, fault: Fault, error: type[CloudStoreError], sent: bool, times: int
) -> None:
    """A fault comes to one request, which is done or not; the next one passes."""
    transport.faults.append(fault)
    with pytest.raises(error) as caught:
        transport.send(SAVE)
    assert type(caught.value) is error
    assert getattr(caught.value, "sent", None) is sent
    assert len(service.requests) == times
    assert service.files == {"a": 2 if times else 1}
    assert transport.send(LOAD).error is None
    assert transport.requests == [SAVE, LOAD]


def test_replies(service: Vendor, transport: FaultyTransport) -> None:
    """Faults that end in a reply have its bytes, with the extensions that the service is said to have."""
    transport.extensions = frozenset({"once"})
    transport.faults.extend([faults.twice, turned_away(TooOftenError("Wait.", retry_after=2.0))])
    assert bytes(transport.send(SAVE).message) == b'"Entry saved"'
    assert len(service.requests) == 2
    refusal = transport.send(SAVE)
    assert (refusal.error, refusal.status, refusal.retry_after) == ("TooOften", 429, 2.0)
    assert len(service.requests) == 2
    assert refusal.extensions == {"once"}
    assert transport.send(LOAD).extensions == {"once"}


def test_delayed(service: Vendor, transport: FaultyTransport) -> None:
    """A delayed answer comes when it is let go, and keeps nobody else from theirs."""
    late = Delayed()
    transport.faults.append(late)
    answers: list[Reply] = []
    thread = threading.Thread(target=lambda: answers.append(transport.send(SAVE)))
    thread.start()
    assert late.done.wait(30)
    assert bytes(transport.send(LOAD).content) == b"2"
    assert answers == []
    late.go.set()
    thread.join()
    assert [answer.error for answer in answers] == [None]


def test_lost_while(service: Vendor, transport: FaultyTransport) -> None:
    """Something may happen between a request that was done and the client's knowing that its answer is lost."""
    transport.faults.append(faults.lost_while(lambda: service.files.update(a=3)))
    with pytest.raises(TransportError):
        transport.send(SAVE)
    assert service.files == {"a": 3}


def test_uploads_pass(service: Vendor, transport: FaultyTransport) -> None:
    """Uploads go the same way."""
    upload = Upload(api_key=Vendor.api_key, name="a", content_type="a/b", data=b"data")
    assert transport.send(upload).error is None
    assert transport.requests == [upload]
