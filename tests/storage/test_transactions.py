"""Every storage engine does its work in transactions: all or nothing, one after another, answered after the commit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage.base import RolledBack, Storage
from cloudstore_mapping.service.storage.records import File
from cloudstore_mapping.service.storage.sql import Transaction
from tests.service_fakes import PATIENCE, Held, unversioned


def putting(account: int, name: str, value: bytes = b"1") -> Callable[[Transaction], None]:
    """Return the work of putting a value."""

    def put(transaction: Transaction) -> None:
        transaction.put(account, name, value, 1.0)

    return put


def names(storage: Storage, account: int) -> list[str]:
    """Return the names of an account's files."""
    with storage.read() as transaction:
        return transaction.names(account)


def test_the_future_holds_what_the_work_returns(storage: Storage) -> None:
    """What the work returns is the future's result, None and False too."""
    for result in (None, False, 0, "text"):
        assert storage.submit(lambda _, result=result: result).result() == result  # type: ignore[misc]  # bound early


def test_what_is_answered_can_be_read(storage: Storage, account: int) -> None:
    """Whoever is told that the work is done can read what it wrote, within the very callback that tells."""
    seen: Future[list[str]] = Future()
    held = Held(storage)
    done = storage.submit(putting(account, "name"))
    done.add_done_callback(lambda _: seen.set_result(names(storage, account)))
    held.go.set()
    assert seen.result(PATIENCE) == ["name"]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), asyncio.CancelledError()], ids=repr)
def test_work_that_raises_undoes_its_own_writes_only(storage: Storage, account: int, error: BaseException) -> None:
    """What the work raises is its future's exception; its own writes are undone, those of its neighbours are not."""

    def fail(transaction: Transaction) -> None:
        transaction.put(account, "fails", b"1", 1.0)
        transaction.delete(account, "before")
        raise error

    held = Held(storage)
    before, failing, after = (
        storage.submit(work) for work in (putting(account, "before"), fail, putting(account, "after"))
    )
    held.go.set()
    assert failing.exception(PATIENCE) is error
    assert before.result(PATIENCE) is after.result(PATIENCE) is None
    assert names(storage, account) == ["after", "before"]


@pytest.mark.parametrize("alone", [False, True])
def test_a_rolled_back_result_undoes_its_own_writes_only(storage: Storage, account: int, alone: bool) -> None:
    """Work that returns a `RolledBack` leaves nothing behind, and this is its result; its neighbours' writes stay."""
    answer = RolledBack()

    def refuse(transaction: Transaction) -> RolledBack:
        transaction.put(account, "refused", b"1", 1.0)
        transaction.delete(account, "before")
        return answer

    if alone:
        storage.run(putting(account, "before")).result(PATIENCE)
        assert storage.run(refuse).result(PATIENCE) is answer
        storage.run(putting(account, "after")).result(PATIENCE)
    else:
        held = Held(storage)
        before, refused, after = (
            storage.submit(work, account) for work in (putting(account, "before"), refuse, putting(account, "after"))
        )
        held.go.set()
        assert refused.result(PATIENCE) is answer
        assert before.result(PATIENCE) is after.result(PATIENCE) is None
    assert names(storage, account) == ["after", "before"]


@pytest.mark.parametrize("storage", ["memory", "sqlite"], indirect=True)  # PostgreSQL writes side by side
def test_work_that_waits_is_done_in_one_transaction(storage: Storage, account: int) -> None:
    """Twenty pieces of work that wait are all done before the first of them is answered: one commit for all."""
    answered = [0]

    def work(transaction: Transaction) -> int:
        transaction.put(account, "name", b"1", 1.0)
        return answered[0]

    held = Held(storage)
    futures = [storage.submit(work) for _ in range(20)]
    for future in futures:
        future.add_done_callback(lambda _: answered.__setitem__(0, answered[0] + 1))
    held.go.set()
    assert [future.result(PATIENCE) for future in futures] == [0] * 20


@pytest.mark.parametrize("storage", ["memory", "sqlite"], indirect=True)  # PostgreSQL writes side by side
def test_work_is_done_in_the_order_of_its_submission(storage: Storage, account: int) -> None:
    """Work sees what was submitted before it, and nothing of what comes after."""

    def append(transaction: Transaction, digit: bytes) -> None:
        file = transaction.get(account, "name") or File(b"", None, None, "")
        transaction.put(account, "name", file.value + digit, 1.0)

    held = Held(storage)
    digits = [b"%d" % number for number in range(9)]
    futures = [storage.submit(lambda transaction, digit=digit: append(transaction, digit)) for digit in digits]  # type: ignore[misc]  # bound early
    held.go.set()
    for future in futures:
        future.result(PATIENCE)
    with storage.read() as transaction:
        file = transaction.get(account, "name")
        assert file is not None
        assert file.value == b"012345678"


def test_what_work_reads_still_stands_when_it_writes(storage: Storage, account: int) -> None:
    """Two threads that each add one, 200 times, to the same number leave 400."""

    def add_one(transaction: Transaction) -> None:
        file = transaction.get(account, "number") or File(b"0", None, None, "")
        transaction.put(account, "number", b"%d" % (int(file.value) + 1), 1.0)

    def add_many() -> None:
        for _ in range(200):
            storage.submit(add_one).result()

    threads = [threading.Thread(target=add_many) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with storage.read() as transaction:
        assert unversioned(transaction.get(account, "number")) == File(b"400", None, None, "")


def test_work_that_was_cancelled_in_time_is_not_done(storage: Storage, account: int) -> None:
    """A future that is cancelled while it waits is never begun, and its neighbours are done."""
    held = Held(storage)
    cancelled = storage.submit(putting(account, "cancelled"))
    other = storage.submit(putting(account, "other"))
    assert cancelled.cancel()
    assert not held.future.cancel()
    held.go.set()
    assert other.result(PATIENCE) is None
    with pytest.raises(CancelledError):
        cancelled.result(PATIENCE)
    assert names(storage, account) == ["other"]


def test_many_read_while_one_writes(storage: Storage, account: int) -> None:
    """Readers on many threads each see a listing that was once whole: two files that always come together."""
    stop = threading.Event()
    torn: list[Any] = []

    def read() -> None:
        while not stop.is_set():
            with storage.read() as transaction:
                found = tuple(unversioned(transaction.get(account, name)) for name in "ab")
            if found[0] != found[1]:
                torn.append(found)

    def write(transaction: Transaction, value: bytes) -> None:
        transaction.put(account, "a", value, 1.0)
        transaction.put(account, "b", value, 1.0)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(50):
        storage.submit(lambda transaction, number=number: write(transaction, b"%d" % number)).result()  # type: ignore[misc]  # bound early
    stop.set()
    for reader in readers:
        reader.join()
    assert torn == []


def test_a_reader_that_raises_harms_nobody(storage: Storage, account: int) -> None:
    """What is raised while reading comes out as it is, and the storage goes on."""

    def fail() -> None:
        with storage.read() as transaction:
            transaction.names(account)
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            fail()
    storage.submit(putting(account, "name")).result()
    assert names(storage, account) == ["name"]


def test_closing_finishes_what_was_submitted(storage: Storage, account: int) -> None:
    """Work that waits when the storage is closed is done and answered."""
    held = Held(storage)
    futures = [storage.submit(putting(account, str(number))) for number in range(10)]
    closing = threading.Thread(target=storage.close)
    closing.start()
    held.go.set()
    closing.join(PATIENCE)
    assert [future.result(0) for future in futures] == [None] * 10


def test_a_closed_store_refuses(storage: Storage) -> None:
    """After `close` reading and writing are `UnavailableError` that says so, and it isn't healthy."""
    assert storage.healthy()
    storage.close()
    storage.close()
    with pytest.raises(UnavailableError, match=r"^The store is closed; "), storage.read():
        pass
    with pytest.raises(UnavailableError, match=r"^The store is closed; "):
        storage.submit(lambda transaction: transaction.has_accounts())
    assert not storage.healthy()


def test_it_may_be_closed_from_a_callback(storage: Storage) -> None:
    """A callback of a future may close the storage, though it runs on the writer's own thread."""
    held = Held(storage)
    closed: Future[None] = Future()
    future = storage.submit(lambda transaction: transaction.has_accounts())
    future.add_done_callback(lambda _: closed.set_result(storage.close()))
    held.go.set()
    assert closed.result(PATIENCE) is None
    storage.close()


def test_an_engine_s_own_error_is_unavailable(storage: Storage) -> None:
    """What the engine refuses leaves it as `UnavailableError` with the engine's error as its cause."""
    storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result()
    error = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).exception(PATIENCE)
    assert isinstance(error, UnavailableError)
    assert error.__cause__ is not None
    assert error.retry_after is not None
