"""The stand-ins of the kit: a clock, and transports that fail, count or take their time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.embedded import InProcessTransport, open_service
from cloudstore_mapping.errors import NoFileError, OutcomeUnknownError, TimedOutError, TransportError, UnsupportedError
from cloudstore_mapping.testing import CountingTransport, FaultyTransport, FrozenClock, SlowTransport, faults
from tests.support.scripted import Script

Store = cm.CloudStoreMapping[Any]


@pytest.fixture
def inner() -> Iterator[tuple[InProcessTransport, str]]:
    """Return a way to an empty account, and its API key."""
    transport, api_key = open_service(None)
    yield transport, api_key
    transport.close()


def test_a_frozen_clock() -> None:
    """It stands still until it is moved, and who waits on it moves it."""
    clock = FrozenClock(5.0)
    assert (clock(), clock()) == (5.0, 5.0)
    clock.advance(2)
    clock.sleep(0.5)
    assert (clock(), clock.now, clock.slept) == (7.5, 7.5, [0.5])


def test_a_store_waits_on_its_clock(inner: tuple[InProcessTransport, str]) -> None:
    """Retries, and the time that a service asks for, pass on the clock that a store was given."""
    clock = FrozenClock()
    way = FaultyTransport(inner[0])
    with Store(inner[1], transport=way, clock=clock) as store:
        way.break_with([faults.refused, faults.answered(429, retry_after=20.0)])
        store["a"] = 1
        assert store["a"] == 1
    assert len(clock.slept) == 2
    assert clock.slept[1] >= 20.0


def test_the_cache_goes_by_the_clock(inner: tuple[InProcessTransport, str]) -> None:
    """A store's cache forgets by the same clock."""
    clock = FrozenClock()
    counting = CountingTransport(inner[0])
    with Store(inner[1], transport=counting, clock=clock, cache_ttl=10) as store:
        store["a"] = 1
        counting.take()
        assert store["a"] == 1
        assert counting.take() == {}
        clock.advance(11)
        assert store["a"] == 1
        assert counting.take() == {"load": 1}


def test_counting(inner: tuple[InProcessTransport, str]) -> None:
    """Requests are counted by operation, uploads too, until the counts are taken."""
    counting = CountingTransport(inner[0])
    with Store(inner[1], transport=counting) as store:
        store["a"] = 1
        store.merge("a", 2)
        assert list(store) == ["a"]
        media = store.upload(b"data", "a.bin")
        assert store.download(media) == b"data"
        assert counting.take() == {"save": 1, "merge": 1, "list": 1, "upload": 1}
        assert counting.take() == {}


def test_slow(inner: tuple[InProcessTransport, str]) -> None:
    """Each answer comes after the time that was set, by the sleep that was given."""
    clock = FrozenClock(0.0)
    slow = SlowTransport(inner[0], 2.0, sleep=clock.sleep)
    with Store(inner[1], transport=slow, clock=clock) as store:
        store["a"] = 1
        slow.seconds = 0.5
        assert store["a"] == 1
    assert clock.slept == [2.0, 0.5]


def test_faults_in_a_block(inner: tuple[InProcessTransport, str]) -> None:
    """Within the block every request has the fault, however often it is tried again; afterwards none has."""
    way = FaultyTransport(inner[0])
    with Store(inner[1], transport=way, clock=FrozenClock()) as store:
        store["a"] = 1
        way.break_with([])
        with way.broken(), pytest.raises(TransportError):
            store.get("a")
        assert len(way.requests) == 4
        with way.broken(faults.slow), pytest.raises(TimedOutError):
            store.get("a")
        with way.broken(faults.lost), pytest.raises(OutcomeUnknownError):
            store["a"] = 2
        assert store["a"] == 2


def test_media_pass_where_they_can(inner: tuple[InProcessTransport, str]) -> None:
    """Media files come through all of them, and where the transport behind has none that is said."""
    way = SlowTransport(FaultyTransport(CountingTransport(inner[0])), 0.0, sleep=lambda _: None)
    with Store(inner[1], transport=way) as store:
        media = store.upload(b"data", "a.bin")
        assert store.download(media) == b"data"
        with pytest.raises(NoFileError):
            store.download(media.url.rpartition("/")[0] + f"/{'0' * 32}.bin")
    with pytest.raises(UnsupportedError, match="Script has no way to media files"):
        CountingTransport(Script()).fetch("/files/a/b.c")


def test_they_close_what_is_behind() -> None:
    """Closing one closes the transport behind it."""
    script = Script()
    for way in (CountingTransport(script), FaultyTransport(script), SlowTransport(script, 0.0)):
        way.close()
    assert script.closed == 3
