"""Pacing: who may start when, and how long a service asks to wait."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.retry import Pacer, pacer_of
from cloudstore_mapping.client.transport import Sendable, parse_retry_after
from cloudstore_mapping.wire import Reply, Request, success


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
