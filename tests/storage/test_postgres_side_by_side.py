"""Saves and loads on PostgreSQL run side by side, in two round trips a save and one a load."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.postgres import MAX_WRITERS, PostgresStorage
from cloudstore_mapping.service.storage.postgres_session import Link, Statement
from cloudstore_mapping.service.storage.records import AccessCount, AccessDelta, Limits
from cloudstore_mapping.service.storage.sql import LookAhead, Transaction
from cloudstore_mapping.wire import Batch, Request, encode_value
from tests.postgres_fixtures import address, here
from tests.service_fakes import PATIENCE, ManualClock

__all__ = ["address", "here"]


def test_work_meets(here: PostgresStorage) -> None:
    """As many pieces of work as there are writers are in their transactions at one time, and loads beside them."""
    barrier = threading.Barrier(MAX_WRITERS + 1)

    def work(transaction: Transaction) -> None:
        transaction.has_accounts()
        barrier.wait(PATIENCE)

    futures = [here.submit(work) for _ in range(MAX_WRITERS)]
    with here.read() as transaction:
        work(transaction)
    for future in futures:
        future.result(PATIENCE)


class Trips:
    """Counts groups of statements that are sent and waited for, and their statements."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.statements = 0
        trip, send = Link.trip, Link.send

        def count_trip(link: Link, group: Iterable[Statement], wait: float | None = None) -> Any:
            self.count += 1
            return trip(link, group, wait)

        def count_statements(link: Link, group: Iterable[Statement]) -> None:
            group = list(group)
            self.statements += len(group)
            send(link, group)

        monkeypatch.setattr(Link, "trip", count_trip)
        monkeypatch.setattr(Link, "send", count_statements)

    def clear(self) -> None:
        """Begin to count anew."""
        self.count = self.statements = 0


@pytest.fixture
def service(here: PostgresStorage) -> Iterator[Service]:
    """Return a service without access counts, and with a clock that stands still: their time would add trips."""
    with Service(here, Settings(count_accesses=False), clock=ManualClock()) as service:
        yield service


def test_round_trips(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save, a merge of a new or an old file take two round trips, and a load and a look one."""
    key = service.accounts.create("owner")
    value = encode_value({"a": 1})
    requests = {
        2: [Request(api_key=key, name="name", value=value, once=f"id {number}") for number in range(3)]
        + [Request(api_key=key, name=name, value=value, options="merge") for name in ("name", "new")],
        1: [Request(api_key=key, name="name"), Request(api_key=key, name="name", options="stat")],
    }
    for some in requests.values():  # so that there are connections, and the key is known
        service.submit(some[0]).result(PATIENCE)
    trips = Trips(monkeypatch)
    for count, some in requests.items():
        for request in some:
            trips.clear()
            reply = service.submit(request).result(PATIENCE)
            assert (reply.error, trips.count) == (None, count), request


def test_round_trips_of_a_batch(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of a thousand saves, each with an id, takes a few statements."""
    key = service.accounts.create("owner")
    batches = [
        Batch(
            api_key=key,
            requests=[
                Request(api_key="", name=f"{name} {number}", value=encode_value(number), once=f"{name} {number}")
                for number in range(1000)
            ],
        )
        for name in ("one", "two")
    ]
    service.submit(batches[0]).result(PATIENCE)
    trips = Trips(monkeypatch)
    service.submit(batches[1]).result(PATIENCE)
    with service._storage.read() as transaction:
        assert len(transaction.names(service.accounts.named("owner").id)) == 2000
    assert trips.count < 20
    assert trips.statements < 50


def test_many_files_in_one_transaction(here: PostgresStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work on many files locks their account instead of each of them, for the server has room for few locks."""
    account = here.submit(lambda transaction: transaction.add_account("owner", 1.0)).result(PATIENCE).id
    trips = Trips(monkeypatch)
    for names in (range(1000), range(500, 2000)):
        here.submit(
            lambda transaction, names=names: [  # type: ignore[misc]  # bound early
                transaction.put(account, f"{number:04}", b"1", 1.0) for number in names
            ]
        ).result(PATIENCE)
    assert trips.statements < 400
    with here.read() as transaction:
        assert len(transaction.names(account)) == 2000


def test_accesses_are_counted_together(here: PostgresStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The accesses of many files are added in a statement for each day, and one for the days of all accounts."""
    account = here.submit(lambda transaction: transaction.add_account("owner", 1.0)).result(PATIENCE).id
    names = [f"{number:03}" for number in range(100)]
    here.submit(lambda transaction: [transaction.put(account, name, b"1", 1.0) for name in names]).result(PATIENCE)
    used = [AccessDelta(account, "data", name, day, 2, 1.0) for name in [*names, "absent"] for day in (1, 2)]
    trips = Trips(monkeypatch)
    here.submit(lambda transaction: transaction.add_accesses(used)).result(PATIENCE)
    assert trips.statements == 6  # with the transaction's beginning, its marker and its end
    with here.read() as transaction:
        assert {transaction.accesses(account, "data", name) for name in names} == {AccessCount(2, 2, 1.0)}
        assert transaction.accesses(account, "data", "absent") is None
        assert transaction.days(account, 0) == [(1, 202), (2, 202)]


@pytest.mark.parametrize("ahead", [True, False])
def test_a_limit_that_comes_in_the_middle_of_a_save(here: PostgresStorage, *, ahead: bool) -> None:
    """Counters are exact also if an account gets them while a save is under way that knows of none."""
    account = here.submit(lambda transaction: transaction.add_account("owner", 1.0)).result(PATIENCE).id
    begun, go = threading.Event(), threading.Event()

    def save(transaction: Transaction) -> None:
        if ahead:
            transaction.look_ahead(LookAhead(None, account, ["name"], values=False))
        assert transaction.account(account) is not None
        transaction.stat(account, "other")
        begun.set()
        assert go.wait(PATIENCE)
        transaction.put(account, "name", b"123", 1.0)
        transaction.keep_answer(account, "request", b"reply", 1.0)

    saved = here.submit(save)
    assert begun.wait(PATIENCE)
    limited = here.submit(lambda transaction: transaction.set_limits(account, "own", Limits(max_files=5)))
    go.set()
    saved.result(PATIENCE)
    limited.result(PATIENCE)
    with here.read() as transaction:
        assert transaction.counters(account) == transaction.recounted(account)


def test_a_limit_that_comes_before_a_save(here: PostgresStorage) -> None:
    """A save that read an account before it got a limit is counted."""
    account = here.submit(lambda transaction: transaction.add_account("owner", 1.0)).result(PATIENCE).id

    def save(transaction: Transaction) -> None:
        assert transaction.account(account) is not None
        here.submit(lambda other: other.set_limits(account, "own", Limits(max_files=5))).result(PATIENCE)
        transaction.put(account, "name", b"123", 1.0)
        transaction.keep_answer(account, "request", b"reply", 1.0)

    here.submit(save).result(PATIENCE)
    with here.read() as transaction:
        assert transaction.counters(account) == transaction.recounted(account)
        assert transaction.recounted(account).files == 1
