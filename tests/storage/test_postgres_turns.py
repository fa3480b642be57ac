"""Writers on PostgreSQL serve the accounts in turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage.postgres import MAX_WRITERS, MAX_WRITERS_OF_ONE, WriterPool
from tests.service_fakes import PATIENCE


class Work:
    """Work on the threads of a pool, each piece of which ends when `go` says so."""

    def __init__(self, pool: WriterPool) -> None:
        self.pool = pool
        self.order: list[str] = []
        self._begun: list[threading.Event] = []

    def submit(self, account: str, go: threading.Event | None = None) -> Future[Any]:
        """Submit a piece of an account's work, which waits for `go`."""
        begun = threading.Event()
        self._begun.append(begun)

        def work(_: Any) -> None:
            self.order.append(account)
            begun.set()
            assert go is None or go.wait(PATIENCE)

        return self.pool.submit(work, account)

    def wait_for(self, *numbers: int) -> None:
        """Wait until these pieces of work have begun."""
        for number in numbers:
            assert self._begun[number].wait(PATIENCE)


@pytest.fixture
def pool() -> Iterator[WriterPool]:
    """Return a pool that hands no transaction to its work."""
    found = WriterPool(lambda work, _: work(None))  # type: ignore[arg-type]
    yield found
    found.close()


@pytest.fixture
def work(pool: WriterPool) -> Work:
    """Return work for the pool."""
    return Work(pool)


def fill(work: Work, go: threading.Event) -> None:
    """Keep all threads busy until `go`."""
    for number in range(MAX_WRITERS):
        work.submit(f"busy {number}", go)
    work.wait_for(*range(MAX_WRITERS))
    work.order.clear()


def test_one_account_leaves_room_for_others(work: Work) -> None:
    """However much work of an account waits, another's begins at once."""
    go = threading.Event()
    futures = [work.submit("many", go) for _ in range(3 * MAX_WRITERS)]
    work.submit("other").result(PATIENCE)
    assert work.order.count("many") <= MAX_WRITERS_OF_ONE
    go.set()
    for future in futures:
        future.result(PATIENCE)


def test_accounts_are_served_in_turn(work: Work, pool: WriterPool) -> None:
    """Work of an account that comes behind much of another's waits for one piece of it at most."""
    go, first = threading.Event(), threading.Event()
    for number in range(MAX_WRITERS - 1):
        work.submit(f"busy {number}", go)
    last = work.submit("last", first)
    work.wait_for(*range(MAX_WRITERS))
    work.order.clear()
    futures = [work.submit("many") for _ in range(50)]
    other = work.submit("other")
    first.set()
    for future in (last, other, *futures):
        future.result(PATIENCE)
    assert "other" in work.order[:2]
    go.set()
    assert not pool.others_wait("many")


def test_others_wait(work: Work, pool: WriterPool) -> None:
    """In the middle of work it is known whether another account's waits for a thread."""
    go = threading.Event()
    fill(work, go)
    assert not pool.others_wait("busy 0")
    future = work.submit("other")
    assert pool.others_wait("busy 0")
    go.set()
    future.result(PATIENCE)


def test_an_account_that_is_held(work: Work, pool: WriterPool) -> None:
    """Work of an account that is held waits for its release, and work that was under way is over by then."""
    go, holding, goes_on = threading.Event(), threading.Event(), threading.Event()
    under_way = work.submit("held", go)
    work.wait_for(0)

    def hold(_: Any) -> None:
        pool.hold("held")
        holding.set()
        assert goes_on.wait(PATIENCE)

    holder = pool.submit(hold, "held")
    assert holding.wait(PATIENCE)
    later = work.submit("held")
    work.submit("other").result(PATIENCE)
    goes_on.set()
    work.submit("other").result(PATIENCE)
    assert not holder.done()
    go.set()
    holder.result(PATIENCE)
    assert under_way.done()
    assert not later.done()
    pool.release("held")
    later.result(PATIENCE)


def test_the_end_of_a_service(work: Work, pool: WriterPool) -> None:
    """Work of accounts that didn't begin in time is refused; the service's own is done, and held work at the close."""
    go = threading.Event()
    fill(work, go)
    late = work.submit("late")
    own = pool.submit(lambda _: "done", None)
    pool.end_within(0)
    go.set()
    with pytest.raises(UnavailableError, match="is ending"):
        late.result(PATIENCE)
    assert own.result(PATIENCE) == "done"


def test_held_work_at_the_close(work: Work, pool: WriterPool) -> None:
    """Closing does the work of accounts that are held."""
    hold: Callable[[Any], None] = lambda _: pool.hold("held")  # noqa: E731 - short
    pool.submit(hold, "held").result(PATIENCE)
    held = work.submit("held")
    pool.close()
    held.result(0)


def test_cancelled_work(work: Work, pool: WriterPool) -> None:
    """Work that was cancelled before its turn is not done."""
    go = threading.Event()
    fill(work, go)
    cancelled = work.submit("cancelled")
    assert cancelled.cancel()
    go.set()
    pool.close()
    assert not work.order
