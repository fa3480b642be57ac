"""Plans of statements on tables without statistics, as one has that was just filled: rows are found by their keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import psycopg
import pytest
from psycopg.types.string import StrDumper

from cloudstore_mapping.service.storage.postgres import PostgresStorage
from cloudstore_mapping.service.storage.postgres_session import Link, Statement
from cloudstore_mapping.service.storage.records import AccessDelta
from cloudstore_mapping.service.storage.sql import LookAhead, Transaction
from tests.postgres_server import PostgresServer, shared
from tests.service_fakes import PATIENCE
from tests.storage.test_postgres_trigrams import server

__all__ = ["server"]

NAMES: Final = [f"user {number:05}/Shopping" for number in range(5000)]
SOME: Final = [*NAMES[:500], *(f"absent {number}" for number in range(500))]
#: The tables whose rows grow with what an account holds, and the columns of their keys.
KEYS: Final = {"files": "name", "answers": "request", "accesses": "name", "media": "id"}


def work(transaction: Transaction) -> None:
    """Do to many files at once what a batch does."""
    transaction.look_ahead(LookAhead(None, 1, SOME, requests=SOME))
    transaction.get_many(1, SOME, 1000)
    transaction.stat_many(1, SOME)
    for name in SOME:
        transaction.put(1, name, b'"other"', 2.0)
        transaction.keep_answer(1, f"new {name}", b"1", 2.0, b"1")
    for name in SOME[::2]:
        transaction.delete(1, name)
    transaction.add_accesses([AccessDelta(1, "data", name, 1, 1, 1.0) for name in SOME], 1)


@pytest.fixture(params=["bare", "with trigrams"])
def address(request: pytest.FixtureRequest) -> str:
    """Return the address of an empty place; the second has an index of trigrams."""
    if request.param == "bare":
        return shared.new_store()
    running: PostgresServer = request.getfixturevalue("server")
    with psycopg.connect(running.database(), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA plans")
    return f"{running.database()}&options=-csearch_path%3Dplans,public"


def scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the nodes of a plan that read a table or an index."""
    if "Scan" in plan["Node Type"]:
        yield plan
    for part in plan.get("Plans", ()):
        yield from scans(part)


def test_a_batch_reads_its_own_rows(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch on a table that was just filled finds each row by the primary key, and reads no others of the account."""
    sent: list[Statement] = []
    send = Link.send

    def note(link: Link, group: Iterable[Statement]) -> None:
        group = list(group)
        sent.extend(group)
        send(link, group)

    def fill(transaction: Transaction) -> None:
        transaction.add_account("owner", 1.0)
        for name in NAMES:
            transaction.put(1, name, b'"value"', 1.0)
            transaction.keep_answer(1, name, b"1", 1.0, b"1")
        transaction.start_counting(1)

    with PostgresStorage(address) as storage:
        storage.submit(fill).result(PATIENCE)
        monkeypatch.setattr(Link, "send", note)
        storage.submit(work).result(PATIENCE)
        with storage.read() as transaction:
            transaction.get_many(1, SOME, 1000)
        with storage.read() as transaction:
            transaction.stat_many(1, SOME)
    judged = set()
    with psycopg.connect(address, autocommit=True) as connection:
        connection.adapters.register_dumper(str, StrDumper)  # as text, and not of an unknown type
        for query, parameters in sent:
            if query.split()[0] not in {"SELECT", "INSERT", "UPDATE", "DELETE", "WITH"}:
                continue
            explained = connection.execute("EXPLAIN (FORMAT JSON) " + query.replace("?", "%s"), parameters).fetchone()
            assert explained is not None
            for node in scans(explained[0][0]["Plan"]):
                key = KEYS.get(node.get("Relation Name", ""))
                if key is not None:
                    assert node["Node Type"] in {"Index Scan", "Index Only Scan"}, (query, node)
                    assert f"{key} = " in node["Index Cond"], (query, node)
                    judged.add(query)
    assert len(judged) > 5
