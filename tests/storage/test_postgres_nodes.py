"""Several nodes that write to one PostgreSQL database at once lose nothing, and decide by what stands."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.postgres import PostgresStorage
from cloudstore_mapping.service.storage.records import Limits
from cloudstore_mapping.service.storage.sql import Transaction
from tests.postgres_fixtures import Halfway, address, here, there, wait_for_lock
from tests.service_fakes import PATIENCE, Held

__all__ = ["address", "here", "there"]


@pytest.fixture
def account(here: PostgresStorage) -> int:
    """Return the id of an account."""
    return here.submit(lambda transaction: transaction.add_account("owner", 1.0)).result(PATIENCE).id


def append(transaction: Transaction, account: int, name: str, more: bytes, half_way: Halfway | None = None) -> None:
    """Add to a file's value, which is empty where there is none."""
    file = transaction.get(account, name)
    if half_way is not None:
        half_way.stop()
    transaction.put(account, name, more if file is None else file.value + more, 1.0)


def append_to_many(transaction: Transaction, account: int, name: str, more: bytes, half_way: Halfway | None) -> None:
    """Do the same with a file that is read among others."""
    file = transaction.get_many(account, [name, "another"], 100)[name]
    if half_way is not None:
        half_way.stop()
    transaction.put(account, name, more if file is None else file.value + more, 1.0)


def value(storage: Storage, account: int, name: str) -> bytes | None:
    """Return a file's value."""
    with storage.read() as transaction:
        file = transaction.get(account, name)
    return None if file is None else file.value


def put(storage: Storage, account: int, *names: str) -> None:
    """Put empty files."""
    storage.submit(lambda transaction: [transaction.put(account, name, b"", 1.0) for name in names]).result(PATIENCE)


@pytest.mark.parametrize("add", [append, append_to_many])
def test_what_was_read_stands_until_it_is_written(
    here: PostgresStorage, there: PostgresStorage, account: int, address: str, add: Any
) -> None:
    """A node that reads a file to change it keeps others from that until its change is stored."""
    put(here, account, "name")
    half_way = Halfway()
    first = half_way.begin(here, partial(add, account=account, name="name", more=b"1", half_way=half_way))
    second = there.submit(partial(append, account=account, name="name", more=b"2"))
    wait_for_lock(address)
    assert not second.done()
    half_way.go.set()
    first.result(PATIENCE)
    second.result(PATIENCE)
    assert value(here, account, "name") == b"12"
    assert half_way.times == 1


@pytest.mark.parametrize("add", [append, append_to_many])
def test_a_name_that_is_free_is_held_too(
    here: PostgresStorage, there: PostgresStorage, account: int, address: str, add: Any
) -> None:
    """A node that found no file and makes one keeps others from its name until the file is stored."""
    half_way = Halfway()
    first = half_way.begin(here, partial(add, account=account, name="name", more=b"1", half_way=half_way))
    second = there.submit(partial(append, account=account, name="name", more=b"2"))
    wait_for_lock(address)
    half_way.go.set()
    first.result(PATIENCE)
    second.result(PATIENCE)
    assert value(here, account, "name") == b"12"
    assert half_way.times == 1


def test_a_file_that_was_deleted_meanwhile(
    here: PostgresStorage, there: PostgresStorage, account: int, address: str
) -> None:
    """Who waits for a file that is deleted finds it gone, and may make it anew."""
    put(here, account, "name")
    half_way = Halfway()

    def delete(transaction: Transaction) -> bool:
        transaction.stat(account, "name")
        half_way.stop()
        return transaction.delete(account, "name")

    first = half_way.begin(here, delete)
    second = there.submit(partial(append, account=account, name="name", more=b"2"))
    wait_for_lock(address)
    half_way.go.set()
    assert first.result(PATIENCE) is True
    second.result(PATIENCE)
    assert value(here, account, "name") == b"2"


def test_an_account_that_was_deleted_meanwhile(here: PostgresStorage, there: PostgresStorage, account: int) -> None:
    """What is written for an account that goes in between is removed with it, and later work sees that it is gone."""
    half_way = Halfway()

    def work(transaction: Transaction) -> bool:
        there_is_one = transaction.account(account) is not None
        half_way.stop()
        if there_is_one:
            transaction.put(account, "name", b"1", 1.0)
        return there_is_one

    first = half_way.begin(here, work)
    there.submit(lambda transaction: transaction.delete_account(account)).result(PATIENCE)
    half_way.go.set()
    assert first.result(PATIENCE) is True
    while there.submit(lambda transaction: transaction.tidy(0.0, lambda: True)).result(PATIENCE):
        pass
    with here.read() as transaction:
        assert transaction.account(account) is None
        assert transaction.names(account) == []
    late = here.submit(lambda transaction: transaction.put(account, "late", b"1", 1.0))
    with pytest.raises(UnavailableError):
        late.result(PATIENCE)


def test_an_answer_is_given_once(here: PostgresStorage, there: PostgresStorage, account: int, address: str) -> None:
    """A request that two nodes do at once is done by one of them, and the other finds its answer."""
    half_way = Halfway()

    def once(transaction: Transaction, mine: bytes, half_way: Halfway | None = None) -> bytes:
        if (before := transaction.answer(account, "request")) is not None:
            return before.reply
        append(transaction, account, "log", mine, half_way)
        transaction.keep_answer(account, "request", mine, 1.0)
        return mine

    first = half_way.begin(here, partial(once, mine=b"1", half_way=half_way))
    second = there.submit(partial(once, mine=b"2"))
    wait_for_lock(address)
    half_way.go.set()
    assert first.result(PATIENCE) == b"1"
    assert second.result(PATIENCE) == b"1"
    assert value(here, account, "log") == b"1"


@pytest.mark.parametrize("asks", ["files", "bytes", "turn", "name", "password"])
def test_what_is_asked_about_an_account_is_asked_in_turn(
    here: PostgresStorage, there: PostgresStorage, account: int, address: str, asks: str
) -> None:
    """Two nodes can't both find that an account has room, or its turn: the second finds what the first one did."""
    half_way = Halfway()
    questions: dict[str, Any] = {
        "files": lambda transaction: transaction.count_files(account, 1),
        "bytes": lambda transaction: transaction.media_bytes(account),
        "turn": lambda transaction: transaction.next_request_at(account),
        "name": lambda transaction: transaction.account_named("owner"),
        "password": lambda transaction: transaction.owner_password(account),
    }

    def ask(transaction: Transaction, half_way: Halfway | None = None) -> Any:
        questions[asks](transaction)
        if half_way is not None:
            half_way.stop()
            transaction.put(account, "first", b"1", 1.0)
        return transaction.count_files(account)

    first = half_way.begin(here, partial(ask, half_way=half_way))
    second = there.submit(ask)
    wait_for_lock(address)
    half_way.go.set()
    assert first.result(PATIENCE) == 1
    assert second.result(PATIENCE) == 1


def test_others_of_an_account_don_t_wait(here: PostgresStorage, there: PostgresStorage, account: int) -> None:
    """While a node changes a file, or asks how many there are, others read all, and write all else."""
    put(here, account, "one", "two")
    half_way = Halfway()

    def work(transaction: Transaction) -> None:
        transaction.count_files(account, 1)
        append(transaction, account, "one", b"1", half_way)

    first = half_way.begin(here, work)
    there.submit(partial(append, account=account, name="two", more=b"2")).result(PATIENCE)
    there.submit(partial(append, account=account, name="new", more=b"3")).result(PATIENCE)
    assert value(there, account, "one") == b""
    assert value(there, account, "two") == b"2"
    half_way.go.set()
    first.result(PATIENCE)
    assert value(there, account, "one") == b"1"


def test_one_that_has_to_wait_holds_up_no_others(here: PostgresStorage, there: PostgresStorage, account: int) -> None:
    """Of a group the pieces of work that others are in the way of are put off; the rest is stored without them."""
    put(here, account, "held")
    half_way = Halfway()
    first = half_way.begin(here, partial(append, account=account, name="held", more=b"1", half_way=half_way))
    held = Held(there)
    before = there.submit(partial(append, account=account, name="before", more=b"2"))
    waiting = there.submit(partial(append, account=account, name="held", more=b"2"))
    after = there.submit(partial(append, account=account, name="after", more=b"2"))
    held.go.set()
    before.result(PATIENCE)
    after.result(PATIENCE)
    assert not waiting.done()
    half_way.go.set()
    first.result(PATIENCE)
    waiting.result(PATIENCE)
    assert value(here, account, "held") == b"12"


def test_groups_in_opposite_orders_end(here: PostgresStorage, there: PostgresStorage, account: int) -> None:
    """Groups, and work that changes many files, lose nothing where two nodes take the same in opposite order."""
    names = [f"{number:02}" for number in range(20)]
    put(here, account, *names)
    futures: list[Future[None]] = []

    def append_all(transaction: Transaction, names: list[str]) -> None:
        for name in names:
            append(transaction, account, name, b"+")

    for _ in range(5):
        for storage, order in ((here, names), (there, names[::-1])):
            futures += [storage.submit(partial(append, account=account, name=name, more=b"-")) for name in order]
            futures.append(storage.submit(partial(append_all, names=order)))
    for future in futures:
        future.result(PATIENCE)
    for name in names:
        found = value(here, account, name) or b""
        assert (found.count(b"-"), found.count(b"+")) == (10, 10)


def test_many_nodes_add_to_one_file(here: PostgresStorage, there: PostgresStorage, account: int) -> None:
    """Four threads on two nodes that each add 100 times to a file which isn't there at first leave all of it."""

    def add_many(storage: Storage) -> None:
        for _ in range(100):
            storage.submit(partial(append, account=account, name="name", more=b".")).result(PATIENCE)

    threads = [threading.Thread(target=add_many, args=(storage,)) for storage in (here, there) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(here, account, "name") == b"." * 400


def test_an_error_is_that_of_its_own_work(here: PostgresStorage, account: int) -> None:
    """What the database refuses later than it was asked for is told to the work that asked, and the others are done."""
    held = Held(here)
    before = here.submit(partial(append, account=account, name="before", more=b"1"))
    failing = here.submit(lambda transaction: transaction.put(account, "name", b"\xff", 1.0))
    after = here.submit(partial(append, account=account, name="after", more=b"1"))
    held.go.set()
    before.result(PATIENCE)
    after.result(PATIENCE)
    assert "invalid byte sequence" in str(failing.exception(PATIENCE))
    assert [value(here, account, name) for name in ("before", "name", "after")] == [b"1", None, b"1"]


def test_work_that_raises_is_undone_alone(here: PostgresStorage, account: int) -> None:
    """Work that raises is undone, what was in the way of it too, and its neighbours are done once."""
    done: list[str] = []

    def work(transaction: Transaction, name: str, fails: bool) -> None:
        append(transaction, account, name, b"1")
        if fails:
            raise ValueError(name)
        done.append(name)

    held = Held(here)
    futures = [here.submit(partial(work, name=str(number), fails=number % 2 == 1)) for number in range(6)]
    held.go.set()
    assert [type(future.exception(PATIENCE)) for future in futures] == [type(None), ValueError] * 3
    assert sorted(done) == ["0", "2", "4"]
    with here.read() as transaction:
        assert transaction.names(account) == ["0", "2", "4"]


def test_media_of_two_nodes(here: PostgresStorage, there: PostgresStorage, account: int) -> None:
    """Two sweep at once without getting in each other's way, and between them take away all."""
    blobs = [here.submit(lambda transaction: transaction.add_blob(account, 1.0)).result(PATIENCE) for _ in range(20)]
    for blob in blobs:
        here.submit(partial(_add_chunk, blob=blob)).result(PATIENCE)
    futures = [storage.submit(lambda transaction: transaction.sweep(5.0, 1)) for storage in (here, there) * 40]
    for future in futures:
        future.result(PATIENCE)
    # Who finds that others sweep all that is left may have nothing to do, so a few may be left.
    for _ in range(80):
        here.submit(lambda transaction: transaction.sweep(5.0, 1)).result(PATIENCE)
    assert not here.submit(lambda transaction: transaction.sweep(5.0, 1)).result(PATIENCE)


def _add_chunk(transaction: Transaction, blob: int) -> None:
    assert transaction.add_chunk(blob, 0, b"1", 1.0)


def test_limits_are_in_force_on_all_nodes(here: PostgresStorage, there: PostgresStorage, account: int) -> None:
    """What one node stored of an account the others read at once."""
    limits = Limits(max_files=3)
    here.submit(lambda transaction: transaction.set_limits(account, "own", limits)).result(PATIENCE)
    with there.read() as transaction:
        found = transaction.account(account)
    assert found is not None
    assert found.limits == limits
