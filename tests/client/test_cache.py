"""Cache: entries expire, are evicted, and never outlive a write of their key."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from cloudstore_mapping.client import cache as cache_module
from cloudstore_mapping.client.cache import LATEST_WRITE, Cache, Found
from cloudstore_mapping.errors import OutcomeUnknownError, ProtocolError, TransportError
from cloudstore_mapping.testing.clocks import FrozenClock
from tests.support.cache_fakes import FOUND, Fetch, SlowFetch, cache, clock, make, never

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


def test_a_write_forgets_before_it_begins(cache: Cache[bytes]) -> None:
    """While a write is under way nothing of before is answered, and what is read then isn't kept."""
    cache.read("k", Fetch())
    with cache.write("k"):
        assert cache.get("k") is None
        during = Fetch(Found(b"during"))
        assert cache.read("k", during) == cache.read("k", during) == Found(b"during")
    after = Fetch(Found(b"after"))
    assert cache.read("k", after).value == b"after"
    assert (len(during.given), len(after.given)) == (2, 1)


def test_a_read_that_began_during_a_write_never_fills(cache: Cache[bytes]) -> None:
    """It may have seen what was there before the write, even if it ends later than the write."""
    slow = SlowFetch()
    with ThreadPoolExecutor() as pool, slow.ended_with(Found(b"old")), cache.write("k"):
        reading = pool.submit(cache.read, "k", slow)
        slow.begun.wait()
    assert reading.result().value == b"old"
    assert cache.get("k") is None


def test_a_write_keeps_what_it_left(cache: Cache[bytes], clock: FrozenClock) -> None:
    """What a write is known to have left is kept, from when it began."""
    with cache.write("k") as write:
        clock.now += 4
        write.commit(Found(b"new", "v2"))
    assert cache.read("k", never) == Found(b"new", "v2")
    clock.now += 7
    fetch = Fetch()
    cache.read("k", fetch)
    assert len(fetch.given) == 1


def test_an_amendment_lives_no_longer(cache: Cache[bytes], clock: FrozenClock) -> None:
    """What a write makes of what was kept is no newer than that was; of nothing it makes nothing."""
    cache.read("k", Fetch())
    clock.now += 9
    with cache.write("k") as write:
        write.patch(Found(b"amended"))
    assert cache.get("k") == Found(b"amended")
    clock.now += 2
    assert cache.get("k") is None
    with cache.write("k") as write:
        write.patch(Found(b"amended"))
    assert cache.get("k") is None


def test_a_failed_write_keeps_nothing(cache: Cache[bytes]) -> None:
    """A write that fails leaves the key forgotten, whatever it said before."""
    cache.read("k", Fetch())
    with pytest.raises(TimeoutError), cache.write("k") as write:  # noqa: PT012 - the block is what is tested
        write.commit(Found(b"new"))
        raise TimeoutError
    assert cache.get("k") is None


def test_two_writes_at_once_keep_nothing(cache: Cache[bytes]) -> None:
    """Of two writes that overlap nobody knows which the service did last."""
    with cache.write("k") as first:
        with cache.write("k") as second:
            second.commit(Found(b"second"))
        assert cache.get("k") is None
        first.commit(Found(b"first"))
    assert cache.get("k") is None


@pytest.mark.parametrize("disturbance", ["invalidate", "clear"])
def test_a_write_that_was_disturbed_keeps_nothing(cache: Cache[bytes], disturbance: str) -> None:
    """Forgetting a key during a write of it holds."""
    acts: dict[str, Callable[[], object]] = {
        "invalidate": lambda: cache.invalidate("k"),
        "clear": cache.clear,
    }
    with cache.write("k") as write:
        acts[disturbance]()
        write.commit(FOUND)
    assert cache.get("k") is None


@pytest.mark.parametrize("event", ["write", "invalidate", "clear", "write that fails"])
def test_a_read_that_began_before_never_fills(cache: Cache[bytes], event: str) -> None:
    """A slow read that began before a write ended is answered to its own reader only."""
    slow = SlowFetch()
    with ThreadPoolExecutor() as pool, slow.ended_with(Found(b"old")):
        reading = pool.submit(cache.read, "k", slow)
        slow.begun.wait()
        if event == "write":
            with cache.write("k") as write:
                write.commit(Found(b"new"))
        elif event == "write that fails":
            with pytest.raises(OSError, match="lost"), cache.write("k"):
                raise OSError("lost")
        elif event == "clear":
            cache.clear()
        else:
            getattr(cache, event)("k")
        now = cache.get("k")
        assert now == (Found(b"new") if event == "write" else None)
    assert reading.result().value == b"old"
    assert cache.get("k") == now


def test_who_asks_after_a_write_does_not_wait_for_a_read_of_before(cache: Cache[bytes]) -> None:
    """A read after a write makes a request of its own, though another one is under way."""
    slow = SlowFetch()
    with ThreadPoolExecutor() as pool, slow.ended_with(Found(b"old")):
        reading = pool.submit(cache.read, "k", slow)
        slow.begun.wait()
        with cache.write("k"):
            pass
        assert cache.read("k", Fetch(Found(b"new"))).value == b"new"
    assert reading.result().value == b"old"
    assert cache.read("k", never).value == b"new"


def test_one_fetch_for_all_who_miss_together(cache: Cache[bytes]) -> None:
    """Threads that miss the same key at once share one request, and the service's error as well."""
    for outcome in (FOUND, TransportError("lost", sent=True)):
        cache.clear()
        slow = SlowFetch()
        misses = cache.misses
        with ThreadPoolExecutor(8) as pool:
            readings = [pool.submit(cache.read, "k", slow) for _ in range(8)]
            while cache.misses < misses + 8:
                slow.begun.wait()
            if isinstance(outcome, Exception):
                slow.reply.set_exception(outcome)
                assert {type(reading.exception()) for reading in readings} == {TransportError}
            else:
                slow.reply.set_result(outcome)
                assert {reading.result() for reading in readings} == {FOUND}
        assert slow.count == 1


def test_no_old_fetch_is_joined(cache: Cache[bytes], clock: FrozenClock) -> None:
    """A read waits for no fetch older than the time to live; that one's late result replaces none of a later fetch."""
    slow = SlowFetch()
    with ThreadPoolExecutor() as pool:
        with slow.ended_with(Found(b"old", "v1")):
            reading = pool.submit(cache.read, "k", slow)
            slow.begun.wait()
            clock.now += 10.0
            assert cache.read("k", Fetch(Found(b"new", "v2"))).value == b"new"
        assert reading.result().value == b"old"
    assert cache.read("k", never).value == b"new"


def test_other_keys_go_on_meanwhile(cache: Cache[bytes]) -> None:
    """No lock is held during a fetch or a write: other keys are read and written meanwhile."""
    slow = SlowFetch()
    with ThreadPoolExecutor() as pool, slow.ended_with(FOUND):
        reading = pool.submit(cache.read, "k", slow)
        slow.begun.wait()
        assert cache.read("other", Fetch()) == FOUND
        with cache.write("third"):
            assert cache.read("other", never) == FOUND
    assert reading.result() == FOUND


def test_offers(cache: Cache[bytes], clock: FrozenClock) -> None:
    """What was read beside the cache is kept from its mark on, unless its key was written since."""
    mark = cache.mark("k")
    clock.now += 4
    cache.put("k", FOUND, mark)
    assert cache.get("k") == FOUND
    clock.now += 7
    assert cache.get("k") is None
    disturbances: list[Callable[[], object]] = [lambda: cache.invalidate("k"), cache.clear]
    for disturb in disturbances:
        mark = cache.mark("k")
        disturb()
        cache.put("k", FOUND, mark)
        assert cache.get("k") is None
    with cache.write("k"):
        cache.put("k", FOUND, cache.mark("k"))
    assert cache.get("k") is None


def test_generations_are_bounded(cache: Cache[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """After writes of very many keys the cache forgets all at once, and what is kept or read then is right."""
    monkeypatch.setattr(cache_module, "MORE_GENERATIONS", 7)
    mark = cache.mark("early")
    cache.read("k", Fetch())
    for number in range(30):
        with cache.write(f"key {number}"):
            pass
    cache.put("early", Found(b"old"), mark)
    assert cache.get("early") is None
    assert cache.get("k") is None
    assert cache.read("k", Fetch(Found(b"new"))) == cache.read("k", never) == Found(b"new")
    assert len(cache._generations) <= 10


def test_hits_and_misses(cache: Cache[bytes]) -> None:
    """Each read is counted once, as a hit if it was answered from the cache, otherwise as a miss."""
    assert cache.get("k") is None
    cache.read("k", Fetch())
    cache.read("k", never)
    cache.get("k")
    assert (cache.hits, cache.misses) == (2, 2)


@pytest.mark.parametrize("error", [OutcomeUnknownError("lost"), ProtocolError("unreadable"), KeyboardInterrupt()])
def test_a_write_of_unknown_outcome(error: BaseException, clock: FrozenClock) -> None:
    """A key whose write may still be applied is not cached, until that can't be any more."""
    cache: Cache[bytes] = Cache(1000.0, entries=10, max_bytes=1000, size=len, clock=clock)
    with suppress(type(error)), cache.write("k"):
        clock.now += LATEST_WRITE  # it may take its whole deadline
        raise error
    values = iter([b"before", b"late", b"late"])
    assert cache.read("k", lambda _: Found(next(values))).value == b"before"
    assert cache.read("k", lambda _: Found(next(values))).value == b"late"
    with cache.write("k") as write:
        write.commit(Found(b"own"))
    assert cache.get("k") is None
    clock.now += LATEST_WRITE
    assert cache.read("k", lambda _: Found(next(values))).value == b"late"
    assert cache.read("k", lambda _: Found(next(values))).value == b"late"


def test_a_refused_write(clock: FrozenClock) -> None:
    """A key whose write was refused is cached again."""
    cache: Cache[bytes] = Cache(1000.0, entries=10, max_bytes=1000, size=len, clock=clock)
    with suppress(TransportError), cache.write("k"):
        raise TransportError("refused", sent=False)
    assert cache.read("k", lambda _: Found(b"value")).value == b"value"
    assert cache.get("k") == Found(b"value")


def test_many_writes_of_unknown_outcome(clock: FrozenClock) -> None:
    """However many writes of a key have an unknown outcome, the cache remembers the last one only."""
    cache: Cache[bytes] = Cache(1000.0, entries=10, max_bytes=1000, size=len, clock=clock)
    for _ in range(100):
        with suppress(OutcomeUnknownError), cache.write("k"):
            raise OutcomeUnknownError("lost")
        clock.now += 1
    assert len(cache._writes["k"]) == 1
    clock.now += LATEST_WRITE - 2
    cache.read("k", lambda _: Found(b"value"))
    assert cache.get("k") is None
    clock.now += 1
    cache.read("k", lambda _: Found(b"value"))
    assert cache.get("k") == Found(b"value")
