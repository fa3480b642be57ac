"""One address may have so many connections at a time, and its crowd keeps nobody else out."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web import connections
from cloudstore_mapping.web.connections import ConnectionLimiter
from tests.raw_http import Connection, FakeService, body

LOAD = "/store/load"


@pytest.fixture
def limited_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this machine's own addresses, the only ones that a test has, limited as all others are."""
    monkeypatch.setattr(connections, "NOT_LIMITED", ())


def test_an_address_has_its_limit(limited_here: None) -> None:
    """A connection past the limit is answered 429 at once, other addresses are served, and a closed one makes room."""
    with FakeService(Settings(max_connections_per_address=3)).served() as address, ExitStack() as stack:
        crowd = [stack.enter_context(Connection(address)) for _ in range(3)]
        for connection in crowd:
            connection.post(LOAD, body())
            assert connection.answer().status == 200
        refused = stack.enter_context(Connection(address))
        answer = refused.answer()
        assert (answer.status, answer.json["error"], answer.headers["retry-after"]) == (429, "TooOften", "5")
        assert answer.json["message"] == (
            "There are 3 connections from your address already (the service's max_connections_per_address); close one,"
            " or wait."
        )
        assert refused.rest() == b""
        other = stack.enter_context(Connection(address, "127.0.0.2"))
        other.post(LOAD, body())
        assert other.answer().status == 200
        crowd[0].reset()
        while not _is_served(address):
            pass  # until the service has seen that one has gone


def _is_served(address: str) -> bool:
    try:
        with Connection(address) as connection:
            connection.post(LOAD, body())
            return connection.answer().status == 200
    except (ConnectionError, IndexError):  # it ended while it was written to
        return False


def test_this_machine_has_none() -> None:
    """Who connects from the service's own machine is not limited: a proxy there stands for many."""
    with FakeService(Settings(max_connections_per_address=1)).served() as address, ExitStack() as stack:
        for _ in range(5):
            connection = stack.enter_context(Connection(address))
            connection.post(LOAD, body())
            assert connection.answer().status == 200


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["192.0.2.1"] * 3, [True, True, False]),
        (["192.0.2.1", "192.0.2.1", "192.0.2.2"], [True, True, True]),
        (["2001:db8::1", "2001:db8::2", "2001:db8::3"], [True, True, False]),
        (["10.1.2.3"] * 3, [True, True, True]),
        (["2001:db8:1::1"] * 3, [True, True, True]),
        (["::ffff:10.1.2.3"] * 3, [True, True, True]),
        (["127.0.0.1", "::1"] * 3, [True] * 6),
        ([""] * 3, [True, True, False]),
    ],
)
def test_who_counts_as_one(addresses: list[str], expected: list[bool]) -> None:
    """An IPv4 address, or the network of an IPv6 client, has a limit of its own; trusted proxies have none."""
    crowd = ConnectionLimiter(2, "10.0.0.0/8, 2001:db8:1::1, no network")
    assert [crowd.comes(address) for address in addresses] == expected


def test_who_has_gone_takes_no_memory() -> None:
    """Nothing is remembered of an address without connections."""
    crowd = ConnectionLimiter(2)
    for number in range(1000):
        address = f"2001:db8:0:{number:x}::1"
        assert crowd.comes(address)
        crowd.goes(address)
    assert not crowd._connections
