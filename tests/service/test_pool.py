"""Pools and their futures: what an interrupt of a caller's thread leaves behind."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, InvalidStateError
from contextlib import suppress
from queue import SimpleQueue

import pytest

from cloudstore_mapping.errors import TooOftenError, UnavailableError
from cloudstore_mapping.service import threads
from cloudstore_mapping.service.threads import PAUSED, BoundedThreadPool, Paused, PlainFuture, wait_for
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


def held(workers: BoundedThreadPool, account: object) -> threading.Event:
    """Keep a thread of the pool busy for an account until the event that this returns is set."""
    go, begun = threading.Event(), threading.Event()
    workers.submit_for(account, lambda: (begun.set(), go.wait(PATIENCE)))  # type: ignore[func-returns-value]  # None
    assert begun.wait(PATIENCE)
    return go


def test_accounts_are_served_in_turn(no_threads_left: None) -> None:
    """Accounts are served in turn, however much work one of them submitted before the others."""
    workers = BoundedThreadPool(1, 100, "pool")
    go = held(workers, "first")
    done: list[str] = []
    work = [workers.submit_for(account, done.append, account) for account in [*"aaaaaa", *"bb", "c"]]
    go.set()
    for each in work:
        each.result(PATIENCE)
    workers.close()
    assert "".join(done) == "abcabaaaa"


def test_the_account_with_the_least_running_is_next(no_threads_left: None) -> None:
    """A free thread goes to the account with the fewest running pieces."""
    workers = BoundedThreadPool(3, 100, "pool")
    gates = [held(workers, account) for account in "abc"]
    done: list[str] = []
    work = [workers.submit_for(account, done.append, account) for account in "abcd"]
    gates[2].set()
    for each in work:
        each.result(PATIENCE)
    for gate in gates:
        gate.set()
    workers.close()
    assert sorted(done[:2]) == ["c", "d"]


def test_one_account_leaves_a_thread_to_others(no_threads_left: None) -> None:
    """However much work an account submits, a thread is left for the next account; work for no account takes all."""
    workers = BoundedThreadPool(2, 100, "pool")
    go = held(workers, "a")
    more = workers.submit_for("a", lambda: "a")
    assert workers.submit_for("b", lambda: "b").result(PATIENCE) == "b"
    assert not more.done()
    assert workers.submit(lambda: "none").result(PATIENCE) == "none"
    go.set()
    assert more.result(PATIENCE) == "a"
    workers.close()


def test_paused_work_goes_on_in_turn(no_threads_left: None) -> None:
    """Work that pauses is called again after the work of other accounts, on any thread, until it is done."""
    workers = BoundedThreadPool(1, 100, "pool")
    go = held(workers, "first")
    done: list[str] = []

    def in_three() -> Paused | str:
        done.append("long")
        return PAUSED if done.count("long") < 3 else "end"

    work = workers.submit_for("a", in_three)
    others = [workers.submit_for(account, done.append, account) for account in "bcb"]
    go.set()
    assert work.result(PATIENCE) == "end"
    for each in others:
        each.result(PATIENCE)
    workers.close()
    assert done == ["long", "b", "c", "long", "b", "long"]


def test_paused_work_ends_before_the_pool(no_threads_left: None) -> None:
    """A pool that is closed finishes the work that paused."""
    workers = BoundedThreadPool(1, 100, "pool")
    go = held(workers, "first")
    left = [1, 2, 3]
    work = workers.submit_for("a", lambda: PAUSED if left and left.pop() else "end")
    go.set()
    workers.close()
    assert work.result(0) == "end"


def test_a_full_queue_of_an_account(no_threads_left: None) -> None:
    """Work of an account whose queue is full is refused as too often, and others' is taken."""
    workers = BoundedThreadPool(2, 100, "pool", waiting_of_one=2)
    go = held(workers, "a")
    work = [workers.submit_for("a", int) for _ in range(4)]
    assert workers.submit_for("b", int).result(PATIENCE) == 0  # a thread has sorted all that came before
    refused = work[2].exception(PATIENCE)
    assert isinstance(refused, TooOftenError)
    assert refused.message == "Your account has too many requests waiting; wait for replies, then try again."
    assert isinstance(work[3].exception(PATIENCE), TooOftenError)
    go.set()
    assert [each.result(PATIENCE) for each in work[:2]] == [0, 0]
    workers.close()


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


def test_its_own_threads_may_close_it(no_threads_left: None) -> None:
    """A callback, which runs on a thread of the pool, closes it; two that do so don't wait for each other."""
    pool = BoundedThreadPool(2, 10, "pool")
    together, closed = threading.Barrier(3), SimpleQueue[None]()

    def close(_: object) -> None:
        together.wait(PATIENCE)
        pool.close()
        closed.put(None)

    futures = [pool.submit(together.wait, PATIENCE) for _ in range(2)]
    for future in futures:
        future.add_done_callback(close)
    for _ in range(2):
        together.wait(PATIENCE)
    for _ in range(2):
        closed.get(timeout=PATIENCE)
    pool.close()
