"""What was read lately is kept, and never past a write of one's own."""

from __future__ import annotations

import pytest

from cloudstore_mapping.client.cache import Cache, Found
from cloudstore_mapping.testing.clocks import FrozenClock
from tests.cache_fakes import FOUND, Fetch, cache, clock, make, never

__all__ = ["cache", "clock"]  # fixtures


def test_a_value_is_fetched_once(cache: Cache[bytes]) -> None:
    """What is kept is answered without a fetch, and counted."""
    fetch = Fetch()
    assert cache.read("k", fetch) == cache.read("k", never) == FOUND
    assert (len(fetch.given), cache.hits, cache.misses) == (1, 1, 1)


def test_time_to_live(cache: Cache[bytes], clock: FrozenClock) -> None:
    """After its time a value is fetched again, and the fetch is given what ran out."""
    cache.read("k", Fetch())
    clock.now += 9.9
    cache.read("k", never)
    clock.now += 0.2
    again = Fetch(Found(b"new", "v2"))
    assert cache.read("k", again).value == b"new"
    assert again.given == [FOUND]


def test_the_time_counts_from_when_the_read_began(cache: Cache[bytes], clock: FrozenClock) -> None:
    """A slow read's value is as old as its request."""

    def slow(before: object) -> Found[bytes]:
        clock.now += 6
        return FOUND

    cache.read("k", slow)
    clock.now += 5
    fetch = Fetch()
    cache.read("k", fetch)
    assert len(fetch.given) == 1


def test_revalidation(cache: Cache[bytes], clock: FrozenClock) -> None:
    """A fetch may say that what ran out still stands: then it is kept for another time."""
    cache.read("k", Fetch())
    clock.now += 11
    assert cache.read("k", lambda before: before or never(before)) == FOUND
    assert cache.read("k", never) == FOUND


def test_absence(clock: FrozenClock) -> None:
    """That nothing is there is kept only where a time is set for it, in the same slot."""
    cache = make(clock)
    fetch = Fetch(Found(None))
    cache.read("k", fetch)
    cache.read("k", fetch)
    assert len(fetch.given) == 2
    cache = make(clock, absent_ttl=2.0)
    assert cache.read("k", Fetch(Found(None))).value is None
    assert cache.read("k", never).value is None
    clock.now += 3
    assert cache.read("k", Fetch()) == FOUND
    assert cache.read("k", never) == FOUND


def test_a_failed_fetch_keeps_nothing(cache: Cache[bytes], clock: FrozenClock) -> None:
    """An error goes to who asked, and what was kept before is no longer trusted."""
    cache.read("k", Fetch())
    clock.now += 11
    with pytest.raises(ConnectionError):
        cache.read("k", Fetch(ConnectionError()))
    fetch = Fetch()
    cache.read("k", fetch)
    assert fetch.given == [None]


def test_bounds(clock: FrozenClock) -> None:
    """Slots and bytes are bounded, the least recently used goes first, and evictions are counted."""
    cache = make(clock)
    for key in "abc":
        cache.read(key, Fetch())
    cache.read("a", never)
    cache.read("d", Fetch())
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]
    assert cache.evictions == 1
    cache.read("e", Fetch(Found(b"x" * 95)))
    assert [key for key in "abcde" if cache.get(key)] == ["e"]
    cache.read("f", Fetch(Found(b"x" * 101)))
    assert [key for key in "ef" if cache.get(key)] == ["e"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("ttl", value) for value in (0, -1, float("nan"), float("inf"), "5")),
        *(("absent_ttl", value) for value in (0, -1)),
        *(("entries", value) for value in (0, -1, 1.5)),
        ("max_bytes", 0),
    ],
)
def test_bad_options(clock: FrozenClock, option: str, value: object) -> None:
    """A time or a bound that keeps nothing, or for ever, is refused."""
    with pytest.raises(ValueError, match="above 0"):
        make(clock, **{option: value})
