"""What nobody has any more is swept in small steps, and nobody waits for all of them."""

from __future__ import annotations

import itertools
import logging
import threading
from concurrent.futures import Future
from pathlib import Path
from queue import Empty

import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.idempotency import IdempotencyStore
from cloudstore_mapping.service.media import ABANDONED_AFTER, BlobCleaner
from cloudstore_mapping.service.quotas import Clock
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.sql import Transaction
from tests.media_fakes import Uploader, comes_to, rows
from tests.service_fakes import PATIENCE, Held, ManualClock, settle
from tests.storages import new_storage


@pytest.fixture
def sweeper(storage: Storage, clock: ManualClock) -> BlobCleaner:
    """Return what sweeps a storage, one chunk or row group in each step: time passes at each look at the clock."""
    ticks = itertools.count()
    return BlobCleaner(storage, Clock(clock.wall, lambda: float(next(ticks))), IdempotencyStore(clock), pause=0)


def leave(storage: Storage, account: int, chunks: int, at: float) -> int:
    """Leave a blob that an upload of this time did not come further with."""

    def work(transaction: Transaction) -> int:
        blob = transaction.add_blob(account, at)
        for number in range(chunks):
            transaction.add_chunk(blob, number, b"x", at)
        return blob

    return storage.submit(work).result()


@pytest.mark.parametrize("storage", ["memory", "sqlite"], indirect=True)  # PostgreSQL writes side by side
def test_work_passes_between_the_steps(storage: Storage, account: int, sweeper: BlobCleaner) -> None:
    """A write that comes during a sweep waits for one step of it, not for all."""
    blob = leave(storage, account, 10, at=1.0)
    held = Held(storage)
    sweeper.begin()
    passing = storage.submit(lambda transaction: [transaction.chunk(blob, number) for number in range(100)])
    held.go.set()
    assert len([chunk for chunk in passing.result() if chunk is not None]) == 9
    assert comes_to(storage, 0, 0, 0)


def test_only_what_stood_still_for_an_hour(
    storage: Storage, account: int, sweeper: BlobCleaner, clock: ManualClock
) -> None:
    """An upload of any process may be on its way; after an hour without a chunk there is none."""
    leave(storage, account, 5, at=clock.seconds)
    clock.advance(ABANDONED_AFTER)
    sweeper.begin()
    assert rows(storage) == (0, 1, 5)
    clock.advance(1)
    sweeper.begin()
    assert comes_to(storage, 0, 0, 0)


def test_a_step_of_the_clock_abandons_no_upload(storage: Storage, account: int, clock: ManualClock) -> None:
    """An upload on its way isn't swept because the clock was set forward; one that stands still is, some time later."""
    sweeper = BlobCleaner(storage, clock, IdempotencyStore(clock), pause=0)
    leave(storage, account, 2, at=clock.seconds)
    sweeper.look()
    clock.ahead = 7 * 86_400
    for _ in range(9):
        clock.advance(100)
        sweeper.look()
    assert rows(storage) == (0, 1, 2)
    for _ in range(2):
        clock.advance(100)
        sweeper.look()
    assert comes_to(storage, 0, 0, 0)


def test_an_upload_dated_ahead(storage: Storage, account: int, clock: ManualClock) -> None:
    """An unfinished upload of a clock that was ahead is swept an hour after the clock is right."""
    sweeper = BlobCleaner(storage, clock, IdempotencyStore(clock), pause=0)
    leave(storage, account, 2, at=clock.seconds + 30 * 86_400)
    sweeper.look()
    settle(storage)
    clock.advance(ABANDONED_AFTER)
    sweeper.look()
    assert rows(storage) == (0, 1, 2)
    clock.advance(1)
    sweeper.look()
    assert comes_to(storage, 0, 0, 0)


@pytest.mark.parametrize("storage", ["memory", "sqlite"], indirect=True)  # PostgreSQL writes side by side
def test_what_comes_during_a_sweep_is_swept_as_well(storage: Storage, account: int, sweeper: BlobCleaner) -> None:
    """A begin while it runs makes it look once more."""
    leave(storage, account, 1, at=1.0)
    held = Held(storage)
    sweeper.begin()
    for _ in range(3):
        sweeper.begin()
    late: Future[int] = storage.submit(lambda transaction: transaction.add_blob(account, 1.0))
    held.go.set()
    late.result()
    assert comes_to(storage, 0, 0, 0)


def sweep_in_vain(storage: Storage, sweeper: BlobCleaner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweep once on a disk that is full."""

    def full(*_: object) -> bool:
        raise UnavailableError("The store's disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "sweep", full)
        sweeper.begin()
        sweeper.wait()
        settle(storage)


def test_a_sweep_that_fails_is_told_and_begun_again(
    storage: Storage,
    account: int,
    sweeper: BlobCleaner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is one line in the log, breaks nothing, and the next one does it all."""
    leave(storage, account, 9, at=1.0)
    with caplog.at_level(logging.WARNING):
        sweep_in_vain(storage, sweeper, monkeypatch)
    assert [record.getMessage() for record in caplog.records] == [
        "What deleted files and accounts left could not be removed: The store's disk is full."
    ]
    assert rows(storage) == (0, 1, 9)
    sweeper.begin()
    assert comes_to(storage, 0, 0, 0)


def test_a_sweep_of_nothing_that_fails_is_not_told(
    storage: Storage, sweeper: BlobCleaner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where there is nothing to take away, a failure of the sweep is nobody's concern."""
    with caplog.at_level(logging.WARNING):
        sweep_in_vain(storage, sweeper, monkeypatch)
    assert not caplog.records


def test_an_interrupted_sweep_is_not_told(
    storage: Storage, account: int, sweeper: BlobCleaner, caplog: pytest.LogCaptureFixture
) -> None:
    """An interrupt may cancel a step of a sweep; nothing is logged, and the next sweep does it all."""
    leave(storage, account, 9, at=1.0)
    held = Held(storage)
    sweeper.begin()
    storage.withdraw()
    held.go.set()
    rows(storage)
    sweeper.begin()
    assert comes_to(storage, 0, 0, 0)
    assert not caplog.records


def test_a_store_that_is_opened_is_swept_if_needed(
    storage: Storage, account: int, sweeper: BlobCleaner, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a store writes nothing, unless something was left."""
    with monkeypatch.context() as patch:
        patch.setattr(storage, "submit", None)
        sweeper.begin_if_needed()
    leave(storage, account, 5, at=1.0)
    sweeper.begin_if_needed()
    assert comes_to(storage, 0, 0, 0)


@pytest.mark.parametrize("storage", ["memory", "sqlite"], indirect=True)  # PostgreSQL writes side by side
def test_a_closed_one_begins_no_further_step(
    storage: Storage, account: int, sweeper: BlobCleaner, caplog: pytest.LogCaptureFixture
) -> None:
    """A service that ends doesn't wait for all to be swept; the next one goes on with it."""
    leave(storage, account, 10, at=1.0)
    held = Held(storage)
    sweeper.begin()
    sweeper.close()
    held.go.set()
    assert rows(storage) == (0, 1, 9)
    sweeper.begin()
    assert rows(storage) == (0, 1, 9)
    assert not caplog.records


def test_what_another_process_left_is_found(tmp_path: Path, clock: ManualClock) -> None:
    """A service that runs removes what an account left that a command deleted meanwhile, without a restart."""
    file = tmp_path / "store.db"
    with Service(new_storage(file), clock=clock) as service, new_storage(file) as there:
        uploader = Uploader(service)
        uploader.upload(b"bytes")
        service.sweeper.wait()
        there.submit(lambda transaction: transaction.delete_account(1)).result()
        assert rows(service._storage) == (1, 1, 1)
        service.sweeper.look()
        service.sweeper.wait()
        assert rows(service._storage) == (0, 0, 0)


def test_a_service_shortens_its_file(storage: Storage, sweeper: BlobCleaner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look takes a step to truncate a file longer than its content, after it began to give back space."""
    calls: list[str] = []
    monkeypatch.setattr(sweeper, "begin_if_needed", lambda: calls.append("begin"))
    monkeypatch.setattr(storage, "shorten", lambda: calls.append("shorten"))
    sweeper.look()
    assert calls == ["begin", "shorten"]


class Wait:
    """Stands for the end that is waited for: each wait passes at once, and the third is the end."""

    def __init__(self) -> None:
        self.waits: list[float | None] = []

    def get(self, *, timeout: float | None = None) -> None:
        """Note for how long it would be."""
        self.waits.append(timeout)
        if len(self.waits) < 3:
            raise Empty

    def put(self, _: None) -> None:
        """Take note of nothing."""


def test_a_running_service_looks_again_and_again(
    storage: Storage, sweeper: BlobCleaner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks every ten seconds, on one thread however often it is told to, and a look that fails ends nothing."""
    looked = threading.Semaphore(0)

    def look() -> None:
        looked.release()
        raise UnavailableError("The store's disk failed.")

    monkeypatch.setattr(sweeper, "look", look)
    waiting = Wait()
    monkeypatch.setattr(sweeper, "_end_of_watch", waiting)
    sweeper.watch()
    sweeper.watch()
    for _ in range(2):
        assert looked.acquire(timeout=PATIENCE)
    assert not looked.acquire(blocking=False)
    while len(waiting.waits) < 3:
        pass
    assert waiting.waits == [10.0] * 3


def test_between_two_steps_others_can_write(storage: Storage, account: int, clock: ManualClock) -> None:
    """A step is followed by a pause, which is not waited for on the writer's thread, so that other processes write."""
    ticks = itertools.count()
    sweeper = BlobCleaner(
        storage, Clock(clock.wall, lambda: float(next(ticks))), IdempotencyStore(clock), pause=PATIENCE
    )
    sweeper._watches = True
    leave(storage, account, 3, at=1.0)
    sweeper.begin()
    assert rows(storage) == (0, 1, 2)
    assert rows(storage) == (0, 1, 2)
    sweeper.close()
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.cancel()
