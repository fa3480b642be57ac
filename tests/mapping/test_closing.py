"""Closing a store while other threads use it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.mapping import CloudStoreMapping, files_of
from cloudstore_mapping.client.transport import HTTPTransport, Transport
from cloudstore_mapping.errors import BulkError, OutcomeUnknownError
from cloudstore_mapping.wire import Reply
from tests.support.mapping_fixtures import Connect, connect, http_service, make_store
from tests.support.scripted import DONE, Script

__all__ = ["connect", "http_service", "make_store"]  # fixtures

Store = CloudStoreMapping[Any]

FOREVER = 60.0


class Watched:
    """A way to a service that calls `before` and `after` around each request, and counts the requests."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.count = 0
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None

    def send(self, request: Any) -> Reply:
        """Send."""
        self.count += 1
        self.before()
        reply = self.inner.send(request)
        self.after()
        return reply

    def close(self) -> None:
        """Close."""
        self.inner.close()


@pytest.fixture
def watched(connect: Connect) -> Iterator[tuple[Store, Watched]]:
    """A store with some keys, and the way to its service."""
    transport, api_key = connect()
    watched = Watched(transport)
    with Store(api_key, transport=watched, max_workers=2) as store:
        store.update({f"key {number}": number for number in range(30)})
        yield store, watched


ITERATIONS: dict[str, Callable[[Store], Iterator[Any]]] = {
    "items": lambda store: iter(store.items()),
    "values": lambda store: iter(store.values()),
    "items backwards": lambda store: reversed(store.items()),
    "a view's items": lambda store: iter(store.view("key ").items()),
}


@pytest.mark.parametrize("what", ITERATIONS)
def test_an_iteration_ends(watched: tuple[Store, Watched], what: str) -> None:
    """An iteration going on when the store is closed raises `ValueError`, and sends nothing."""
    store, way = watched
    iterator = ITERATIONS[what](store)
    next(iterator)
    store.close()
    count = way.count
    with pytest.raises(ValueError, match="closed"):
        next(iterator)
    assert way.count == count


def test_a_transform_writes_nothing(watched: tuple[Store, Watched]) -> None:
    """A transform whose function runs while the store is closed raises `ValueError` and writes nothing."""
    store, way = watched
    entered: Future[None] = Future()
    go: Future[None] = Future()

    def function(value: int) -> int:
        entered.set_result(None)
        go.result(FOREVER)
        return value + 1

    with ThreadPoolExecutor() as pool:
        transforming = pool.submit(store.transform, "key 1", function)
        entered.result(FOREVER)
        store.close()
        count = way.count
        go.set_result(None)
        with pytest.raises(ValueError, match="closed"):
            transforming.result(FOREVER)
    assert way.count == count


@pytest.mark.parametrize("what", ["media_files", "check_has_data"])
def test_closing_waits_for_other_work(what: str) -> None:
    """`close` also waits for work that is no request, and on a closed store such work doesn't begin."""
    seen: list[bool] = []

    class Way:
        """Way to a service: whether another thread can take the turn in the middle of its work is noted in `seen`."""

        def send(self, request: Any) -> Reply:
            raise AssertionError

        def close(self) -> None:
            pass

        def _work(self) -> list[Any]:
            turn = client._gate.turn
            with ThreadPoolExecutor() as pool:
                seen.append(pool.submit(turn.acquire, blocking=False).result(FOREVER))
            return []

        media_files = check_has_data = _work

    client = Client(Way(), "key")
    getattr(client, what)()
    client.close()
    with pytest.raises(ValueError, match="closed"):
        getattr(client, what)()
    assert seen == [False]


def test_an_interrupted_close_is_completed_by_the_next() -> None:
    """Closing again completes what an interrupt broke off, and then changes nothing."""

    class Way(Script):
        """Way to a service whose first `close` is interrupted."""

        def close(self) -> None:
            super().close()
            if self.closed == 1:
                raise KeyboardInterrupt

    way = Way()
    store = Store("key", transport=way)
    with pytest.raises(KeyboardInterrupt):
        store.close()
    store.close()
    store.close()
    assert way.closed == 2


def test_closing_waits_for_a_request(watched: tuple[Store, Watched]) -> None:
    """A save in flight is done when `close` returns, so that nothing is written afterwards."""
    store, way = watched
    begun = threading.Event()
    go = threading.Event()
    ended: list[str] = []

    def wait() -> None:
        begun.set()
        assert go.wait(FOREVER)

    def save() -> None:
        store["key 1"] = "new"

    way.before = wait
    way.after = lambda: ended.append("answered")
    gate = files_of(store).client._gate
    with ThreadPoolExecutor() as pool:
        saving = pool.submit(save)
        assert begun.wait(FOREVER)

        def close() -> None:
            store.close()
            ended.append("closed")

        closing = pool.submit(close)
        while not gate.is_closed:
            pass
        again = pool.submit(close)
        assert not closing.done()
        assert not again.done()
        go.set()
        saving.result(FOREVER)
        closing.result(FOREVER)
    assert ended == ["answered", "closed", "closed"]


def test_a_retry_and_a_wait_for_the_pace_end() -> None:
    """A thread that waits before an attempt gets `ValueError` at once, or the truth about a write sent before."""
    busy = Reply(error="Http error", message=DONE.message, status=503)
    for outcome, act, error in (
        (busy, lambda store: store["key"], ValueError),
        (busy, lambda store: store.__setitem__("key", 1), OutcomeUnknownError),
    ):
        script = Script(outcome, outcome, outcome, outcome, outcome, outcome)
        store = Store("k" * 16, transport=script)
        reached = threading.Event()
        client = files_of(store).client
        sleep = client._gate.sleep

        def sleeping(_: float, reached: threading.Event = reached, sleep: Any = sleep) -> None:
            reached.set()
            sleep(10_000.0)

        client._sleep = sleeping
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(act, store)
            assert reached.wait(FOREVER)
            store.close()
            assert isinstance(waiting.exception(FOREVER), error)
        assert len(script.requests) == 1
        assert script.closed == 1


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda store: store.get_many(map(str, range(9))), ValueError),
        (lambda store: store.update(dict.fromkeys(map(str, range(9)), 1)), BulkError),
    ],
)
def test_bulk_work_ends(act: Callable[[Store], object], error: type[Exception]) -> None:
    """Bulk work whose requests wait for another attempt ends at once, and tells of a write that may have been done."""
    busy = Reply(error="Http error", message=DONE.message, status=503)
    script = Script(*[busy] * 30)
    store = Store("k" * 16, transport=script, max_workers=2)
    client = files_of(store).client
    sleep = client._gate.sleep
    reached = threading.Event()

    def sleeping(_: float) -> None:
        reached.set()
        sleep(10_000.0)

    client._sleep = sleeping
    with ThreadPoolExecutor() as pool:
        working = pool.submit(act, store)
        assert reached.wait(FOREVER)
        store.close()
        raised = working.exception(FOREVER)
    assert isinstance(raised, error)
    if isinstance(raised, BulkError):
        assert isinstance(raised.failed["0"], OutcomeUnknownError)
    assert len(script.requests) <= 2


def test_the_pace_of_a_closed_store() -> None:
    """A thread that waits for its server's pace gets `ValueError` when the store is closed, and sends nothing."""
    script = Script(DONE)
    store = Store("k" * 16, transport=script, min_interval=10_000.0)
    client = files_of(store).client
    store["key"] = 1
    reached = threading.Event()
    sleep = client._gate.sleep

    def sleeping(seconds: float) -> None:
        reached.set()
        sleep(seconds)

    client._gate.sleep = sleeping  # type: ignore[method-assign]
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(lambda: store["key"])
        assert reached.wait(FOREVER)
        store.close()
        with pytest.raises(ValueError, match="closed"):
            waiting.result(FOREVER)
    assert len(script.requests) == 1


@pytest.mark.parametrize("connect", ["http", "vendor"], indirect=True)
def test_no_connection_afterwards(connect: Connect) -> None:
    """A closed transport opens no connection any more."""
    transport, api_key = connect()
    assert isinstance(transport, HTTPTransport)
    store = Store(api_key, transport=transport)
    store["key"] = 1
    store.close()
    with pytest.raises(ValueError, match="closed"):
        files_of(store).client.load("key")
    assert transport._pool is None


def test_closing_within_a_request(watched: tuple[Store, Watched]) -> None:
    """A store may be closed by the thread that is in the middle of a request, as by a signal handler."""
    store, way = watched
    closed: list[bool] = []

    def close() -> None:
        if not closed:
            closed.append(True)
            store.close()

    way.before = close
    with ThreadPoolExecutor() as pool:
        pool.submit(lambda: store.get("key 1")).exception(FOREVER)
    with pytest.raises(ValueError, match="closed"):
        store["key 1"]
