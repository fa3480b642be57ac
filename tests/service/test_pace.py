"""Rate limit of an account: no client that keeps the interval at its own end is refused, and the average is bounded."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.transport import Sendable
from cloudstore_mapping.errors import TooOftenError
from cloudstore_mapping.service.accounts import PLANS
from cloudstore_mapping.service.quotas import DRIFT, JITTER, MAX_SKEW, take_slot
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.records import Account
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.wire import Batch, Reply, Request, encode_value
from tests.service_fakes import Asker, ManualClock

#: The interval of the vendor's BASIC plan, and of its clients.
INTERVAL = PLANS["basic"].min_interval or 0.0
#: A time since 1970 at which floats are as coarse as today's.
START = 1_800_000_000.0


class _Turns:
    """The stored time of one account, as a transaction has it."""

    def __init__(self) -> None:
        self.at: float | None = None
        self.account = Account(1, "owner", disabled=False, limits=PLANS["basic"])

    def next_request_at(self, _: int) -> float | None:
        return self.at

    def set_next_request_at(self, _: int, at: float) -> None:
        self.at = at

    def take(self, now: float) -> None:
        """Take a turn, or raise `TooOftenError`."""
        take_slot(cast("Transaction", self), self.account, now)

    def refusal(self, now: float) -> TooOftenError | None:
        """Take a turn, and return the refusal if there is one."""
        try:
            self.take(now)
        except TooOftenError as error:
            return error
        return None


DELAYS: dict[str, Callable[[int], float]] = {
    "none": lambda _: 0.0,
    "a stall of some seconds in every minute": lambda number: max(0.0, JITTER - number % 20 * INTERVAL),
    "early and late in turn": lambda number: number % 2 * JITTER,
    "drawn by lot": lambda number: random.Random(number).uniform(0, JITTER),
    "now and then": lambda number: JITTER * (random.Random(number).random() < 0.1),
}


@pytest.mark.parametrize("delays", DELAYS)
@pytest.mark.parametrize("interval", [2.9985, 3.0, 3.001, 3.01])
def test_whoever_keeps_the_pace_is_never_refused(delays: str, interval: float) -> None:
    """Requests sent at the interval pass however the network delays each, by a clock as fast as one may be."""
    turns = _Turns()
    for arrival in sorted(START + number * interval + DELAYS[delays](number) for number in range(15_000)):
        turns.take(arrival)


@given(st.lists(st.floats(0, JITTER), max_size=50))
def test_any_delays(delays: list[float]) -> None:
    """So they do for delays of any pattern."""
    turns = _Turns()
    for arrival in sorted(START + number * INTERVAL + delay for number, delay in enumerate(delays)):
        turns.take(arrival)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=200))
def test_the_average_is_bounded(pauses: list[float]) -> None:
    """However requests come, no more pass than one for each interval and those that a network may hold back."""
    turns = _Turns()
    now, passed = START, 0
    for pause in pauses:
        now += pause
        passed += turns.refusal(now) is None
    assert passed <= 1 + (now - START + JITTER + 0.1) / (INTERVAL * (1 - DRIFT))


@given(st.lists(st.floats(0, 1), min_size=8, max_size=60))
def test_the_wait_is_right(pauses: list[float]) -> None:
    """A refusal names the seconds, never 0.0 and at most the interval, after which the request passes."""
    turns = _Turns()
    now = START
    for pause in pauses:
        now += pause
        refused = turns.refusal(now)
        if refused is not None:
            told = re.search(r"in (\d+\.\d) seconds\.$", str(refused))
            assert told is not None
            wait = refused.retry_after or 0.0
            assert 0 < wait <= float(told[1]) <= INTERVAL
            now += wait
            turns.take(now)


def test_the_wait_is_long_enough() -> None:
    """Who waits just as long as the refusal says passes, whatever the times are rounded to."""
    draw = random.Random(14)
    for _ in range(2000):
        turns = _Turns()
        now = START + draw.random()
        while (refused := turns.refusal(now)) is None:
            now += draw.random()
        turns.take(now + (refused.retry_after or 0.0))


@pytest.mark.parametrize("back", [1.0, JITTER, JITTER + 2, JITTER + INTERVAL + 2, 3600.0, 1e9])
def test_a_clock_that_is_set_back(back: float) -> None:
    """A service whose clock is set back, by little or much, lets nobody wait much longer than an interval."""
    turns = _Turns()
    for _ in range(6):
        turns.take(START)
    now = START - back
    refused = turns.refusal(now)
    if refused is not None:
        wait = refused.retry_after or 0.0
        assert 0 < wait <= INTERVAL + MAX_SKEW
        turns.take(now + wait)


def test_a_stall_of_the_network(service: Service, clock: ManualClock) -> None:
    """Requests sent three seconds apart pass when they come at once, of every operation and a batch; others wait."""
    ask = Asker(service, service.accounts.create("small", plan="basic"))
    clock.advance(5 * INTERVAL)
    batch = Batch(api_key=ask.api_key, requests=[Request(name="a", value=encode_value(1))])
    assert ask.save("name", 1).error is ask.merge("name", 2).error is ask.load("name").error is ask.list().error is None
    assert service.handle(batch).error is ask.delete("name").error is None
    assert ask.list().error == "TooOften"


class _Delayed:
    """A transport on which each request takes as long as the next of `delays`, by the clock that all go by."""

    def __init__(self, service: Service, clock: ManualClock, delays: list[float]) -> None:
        self._service = service
        self._clock = clock
        self._delays = delays
        self.replies: list[Reply] = []

    def send(self, request: Sendable) -> Reply:
        assert isinstance(request, Request)
        self._clock.advance(self._delays[len(self.replies) % len(self._delays)])
        self.replies.append(self._service.handle(request))
        return self.replies[-1]

    def close(self) -> None:
        pass


def test_our_own_clients_keep_the_pace(service: Service, clock: ManualClock) -> None:
    """A client of ours with the plan's interval is never refused, so it repeats nothing."""
    key = service.accounts.create("small", plan="basic")
    transport = _Delayed(service, clock, [0.0, 0.2, 5.0, 0.0, 2.9, 0.1])
    client = Client(transport, key, min_interval=INTERVAL, clock=lambda: clock.seconds, sleep=clock.advance)
    for number in range(60):
        client.save(f"file {number % 7}", encode_value(number))
    assert [reply.error for reply in transport.replies] == [None] * 60
    assert client.stats.retries == 0
