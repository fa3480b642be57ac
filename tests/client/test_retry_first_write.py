"""A client's first write, which goes out before the service has said what it can."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import requests
from msgspec import Raw

from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.errors import NoFileError, OutcomeUnknownError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.testing.faults import Fault, FaultyTransport, answered, dropped, lost, lost_while, refused, slow
from cloudstore_mapping.wire import ID_HEADER, Request, decode_value
from tests.vendor import Fault as Answer
from tests.vendor import Vendor

OURS = Raw(b'{"n":"ours"}')
THEIRS = Raw(b'{"n":"theirs"}')

Connect = Callable[[], tuple[Client, FaultyTransport]]


@pytest.fixture(params=["own", "session"])
def connect(request: pytest.FixtureRequest, http_service: tuple[Service, str]) -> Iterator[Connect]:
    """Return a function that makes a client which has heard nothing yet, on connections of its own or a session."""
    service, address = http_service
    api_key = service.accounts.create(secrets.token_hex(8))
    with ExitStack() as stack:
        session = stack.enter_context(requests.Session()) if request.param == "session" else None

        def make() -> tuple[Client, FaultyTransport]:
            transport = FaultyTransport(HTTPTransport(address, session=session))
            client = stack.enter_context(Client(transport, api_key, clock=lambda: 0.0, sleep=lambda _: None))
            return client, transport

        yield make


def value(client: Client, name: str) -> Any:
    """Return what is under a name."""
    loaded = client.load(name)
    assert loaded is not None
    return decode_value(loaded.value)


ACTS: dict[str, Callable[[Client], object]] = {
    "save": lambda client: client.save("a", OURS),
    "merge": lambda client: client.merge("a", OURS),
    "delete": lambda client: client.delete("a"),
}


@pytest.mark.parametrize("fault", [lost, dropped, answered(502), answered(504), refused])
@pytest.mark.parametrize("write", ACTS)
def test_a_first_write_is_done_once(connect: Connect, write: str, fault: Fault) -> None:
    """A first write that is repeated undoes nothing: what somebody else saved since it was done stays."""
    client, transport = connect()
    other, _ = connect()
    other.save("a", Raw(b'{"n":"before"}'))
    transport.break_with([fault, lost_while(lambda: other.save("a", THEIRS)), fault])
    ACTS[write](client)
    assert len(transport.requests) == 4
    assert value(other, "a") == {"n": "theirs"}


def test_a_first_delete_that_found_nothing(connect: Connect) -> None:
    """A first delete that finds nothing says so, though its answer was lost, and leaves what came in between."""
    client, transport = connect()
    other, _ = connect()
    transport.break_with([lost_while(lambda: other.save("a", THEIRS))])
    with pytest.raises(NoFileError):
        client.delete("a")
    assert value(other, "a") == {"n": "theirs"}


def test_a_first_write_without_an_answer_in_time(connect: Connect) -> None:
    """A first write that isn't answered in time is not repeated: the service may be one that does it twice."""
    client, transport = connect()
    transport.break_with([slow])
    with pytest.raises(OutcomeUnknownError):
        client.save("a", OURS)
    assert len(transport.requests) == 1
    assert client.load("a") is not None
    transport.break_with([slow])
    client.save("a", THEIRS)
    assert len(transport.requests) == 2


def test_two_first_writes(connect: Connect) -> None:
    """The same first write of two clients is done twice."""
    (client, _), (second, _), (other, _) = connect(), connect(), connect()
    client.save("a", OURS)
    other.save("a", THEIRS)
    second.save("a", OURS)
    assert value(other, "a") == {"n": "ours"}


def test_what_another_service_sees_of_it(vendor: Vendor) -> None:
    """Until the service has answered the id goes in a header, which others pass over, and afterwards nowhere."""
    way = FaultyTransport(HTTPTransport(vendor.address))
    way.break_with([lost])
    with Client(way, vendor.api_key, clock=lambda: 0.0, sleep=lambda _: None) as client:
        client.save("a", OURS)
        client.save("a", THEIRS)
    first, again, second = vendor.requests
    assert first.headers[ID_HEADER] == again.headers[ID_HEADER]
    assert ID_HEADER not in second.headers
    assert not any("request" in body for body in vendor.bodies)


def test_what_a_service_that_knows_ids_sees_of_it(vendor: Vendor) -> None:
    """Once the service has said that it knows ids they go in the body, and nowhere else, until it says so no more."""
    knows = Answer(200, b'{"error":null,"message":"Entry saved"}', {"CloudStore-Extensions": "once"})
    vendor.faults.extend([knows] * 3)
    with Client(HTTPTransport(vendor.address), vendor.api_key) as client:
        for _ in range(5):
            client.save("a", OURS)
    assert [ID_HEADER in request.headers for request in vendor.requests] == [True, False, False, False, False]
    assert ["request" in body for body in vendor.bodies] == [False, True, True, True, False]
    assert len({body["request"] for body in vendor.bodies if "request" in body}) == 3


@pytest.mark.parametrize("id_", ["two words", "a\r\nX: y", "é", 'a"'])
def test_an_id_that_no_header_can_say(vendor: Vendor, id_: str) -> None:
    """An id of the caller's own that is no number goes in the body, whatever is known of the service."""
    transport = HTTPTransport(vendor.address)
    transport.send(Request(api_key=vendor.api_key, name="a", value=OURS, once=id_))
    transport.close()
    assert ID_HEADER not in vendor.requests[0].headers
    assert vendor.bodies[0]["request"] == id_
