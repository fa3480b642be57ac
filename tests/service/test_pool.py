"""Pools and their futures: what an interrupt of a caller's thread leaves behind."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, InvalidStateError
from contextlib import suppress

import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service import threads
from cloudstore_mapping.service.threads import BoundedThreadPool, PlainFuture, wait_for
from tests.service_fakes import PATIENCE
from tests.support.interrupts import at_instruction, in_time, interrupt

FILES = {threads.__file__, threads.__file__, threading.__file__}


def test_an_interrupted_submission_takes_no_place(no_threads_left: None) -> None:
    """Wherever who submits work is interrupted, even while a thread begins, the pool does the work of others."""
    for number in range(1, 1000):
        workers = BoundedThreadPool(1, 0, "pool")
        with at_instruction(number, FILES, interrupt) as seen, suppress(KeyboardInterrupt):
            workers.submit(int).result()
        in_time(lambda workers=workers: wait_for_place(workers))  # type: ignore[misc]  # bound early
        workers.close()
        if seen[0] < number:
            break
    assert number > 10


def wait_for_place(workers: BoundedThreadPool) -> None:
    """Have work done, once what was interrupted has made room for it."""
    while True:
        try:
            assert workers.submit(lambda: 7).result() == 7
        except UnavailableError:
            continue
        return


def test_as_many_as_may_wait(no_threads_left: None) -> None:
    """Beyond the threads and the places to wait work is refused; all that was taken is done before the end."""
    go = threading.Event()
    begun = threading.Semaphore(0)
    workers = BoundedThreadPool(2, 1, "pool")
    first = [workers.submit(lambda: (begun.release(), go.wait(PATIENCE))) for _ in range(2)]  # type: ignore[func-returns-value]  # None
    assert all(begun.acquire(timeout=PATIENCE) for _ in first)
    waiting = workers.submit(lambda: 3)
    with pytest.raises(UnavailableError, match="is busy"):
        workers.submit(lambda: 4)
    go.set()
    workers.close()
    assert waiting.result(0) == 3
    with pytest.raises(UnavailableError, match="is closed"):
        workers.submit(lambda: 5)


def test_a_dropped_pool_ends_its_threads() -> None:
    """The threads of a pool that nobody holds any more end."""
    workers = BoundedThreadPool(2, 1, "pool")
    thread = workers.submit(threading.current_thread).result(PATIENCE)
    del workers
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_future_has_one_outcome() -> None:
    """A future takes one outcome, calls back once, and what has begun or is done can't be cancelled."""
    future: PlainFuture[int] = PlainFuture()
    called: list[object] = []
    future.add_done_callback(called.append)
    assert future.set_running_or_notify_cancel()
    assert future.set_running_or_notify_cancel()
    assert not future.cancel()
    with pytest.raises(TimeoutError):
        future.result(0)
    assert not wait_for(future, 0)
    future.set_result(1)
    future.add_done_callback(called.append)
    assert called == [future, future]
    with pytest.raises(InvalidStateError):
        future.set_exception(ValueError())
    assert (future.result(0), future.exception(0), future.cancel()) == (1, None, False)


def test_a_cancelled_future() -> None:
    """A future that was cancelled before its work began is done, and the work doesn't begin."""
    future: PlainFuture[int] = PlainFuture()
    assert future.cancel()
    assert (future.cancelled(), future.done(), future.set_running_or_notify_cancel()) == (True, True, False)
    with pytest.raises(CancelledError):
        future.result(0)
