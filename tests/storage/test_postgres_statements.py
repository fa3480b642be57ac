"""Statements of the PostgreSQL engine: which of them carry their account's id, as `docs/scaling.md` lists them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pytest

from cloudstore_mapping.service.storage.postgres import PostgresStorage
from cloudstore_mapping.service.storage.postgres_session import BLOBS, Link, Statement
from cloudstore_mapping.service.storage.records import AccessDelta, Event, Limits, Media, OwnerPassword
from cloudstore_mapping.service.storage.sql import LookAhead, Transaction
from tests.cluster.page import block
from tests.postgres_fixtures import address, proxy
from tests.postgres_proxy import Cut, Proxy
from tests.postgres_server import shared
from tests.service_fakes import PATIENCE

__all__ = ["address", "proxy"]

#: Arguments of the methods of a transaction, by the names of their parameters.
EXAMPLES: Final[dict[str, Any]] = {
    "account_id": 1,
    "name": "name",
    "now": 1.0,
    "kind": "data",
    "folder": "f" * 32,
    "key_hash": b"k",
    "token_hash": b"t",
    "blob": BLOBS + 1,
    "number": 0,
    "data": b"1",
    "event": Event(1.0, "action", "", ""),
    "keep": 5,
    "hint": "hint",
    "request": "request",
    "reply": b"1",
    "fingerprint": b"1",
    "enough": 5,
    "since": 0,
    "media_id": "m" * 32,
    "limit": 5,
    "containing": "am",
    "prefix": "n",
    "after": "a",
    "max_bytes": 100,
    "but": b"b",
    "before": 9.0,
    "rows": 5,
    "counted_to": "",
    "is_over": lambda: False,
    "old": "name",
    "new": "new name",
    "chunks": 2,
    "created_before": 0.5,
    "used_before": 0.5,
    "created_after": 1e12,
    "latest": 1e12,
    "newer": 5,
    "names": ["one", "two"],
    "value": b"1",
    "plan": "own",
    "limits": Limits(),
    "disabled": False,
    "media": None,
    "edit": None,
    "view": None,
    "at": 1.0,
    "password": OwnerPassword(None, False),
    "used": [AccessDelta(1, "data", "name", 1, 1, 1.0), AccessDelta(1, "data", "name", 2, 1, 1.0)],
}
#: Others, of methods whose parameters have the same names as those of different ones.
OWN: Final[dict[str, dict[str, Any]]] = {
    "put_media": {"media": Media("m" * 32, "photo", "image/png", 1, "0" * 64, BLOBS + 1, None, 1.0, 1.0)},
    "look_ahead": {"hint": LookAhead(b"k", None, ["name"], values=True, requests=["request"])},
    "add_account": {"name": "another"},
    "keep_answer": {"request": "new request"},
    "add_accesses": {"latest": 9},
}
#: Methods that run what they are given, and one that makes a copy a store.
GENERAL: Final = frozenset({"row", "rows", "stream", "do", "count", "end_filling", "bytes_of", "blob_bytes_of"})
#: The order of methods whose effects others need, or end; the rest comes between.
FIRST: Final = ("add_account", "add_key", "add_session", "put", "add_blob", "add_chunk", "put_media", "look_ahead")
LAST: Final = ("delete", "delete_media", "remove_key", "end_session", "forget_sessions", "sweep", "delete_account")

_TABLES: Final = re.compile(r"(?:FROM|INTO|UPDATE|JOIN) (?!unnest)[a-z_]+\b")
_BY_KEY: Final = "(SELECT account_id FROM api_keys WHERE hash = ?)"
_CARRIES: Final = re.compile(
    r"account_id = (?:\?|a\.id|new\.account_id)|\baccounts (?:AS a )?(?:SET .*)?WHERE (?:a\.)?id = \?"
    r"|\baccounts\.id = new\.account_id|INSERT INTO [a-z_]+ \((?:[a-z_]+, )*account_id\b"
    r"|\(a\.account_id,|AS new \(account_id"
)


def methods() -> list[str]:
    """Return the names of a transaction's methods, in an order in which most find something."""
    found = {
        name for name, _ in inspect.getmembers(Transaction, inspect.isfunction) if not name.startswith("_")
    } - GENERAL
    return [*FIRST, *sorted(found - {*FIRST, *LAST}), *LAST]


def call(transaction: Transaction, name: str) -> None:
    """Call a method with examples."""
    method = getattr(transaction, name)
    parameters = inspect.signature(getattr(Transaction, name)).parameters
    chosen = {each: OWN.get(name, {}).get(each, EXAMPLES[each]) for each in parameters if each != "self"}
    result = method(**chosen)
    if isinstance(result, Iterator):
        list(result)


@pytest.fixture
def sent(address: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the statements that all methods of a transaction send, in one that reads and in one that writes."""
    statements: list[str] = []
    send = Link.send

    def note(link: Link, group: Iterable[Statement]) -> None:
        group = list(group)
        statements.extend(query for query, _ in group)
        send(link, group)

    with PostgresStorage(shared.by_port(address, proxy.port)) as storage:
        storage.submit(lambda transaction: transaction.add_account("name", 1.0)).result(PATIENCE)
        monkeypatch.setattr(Link, "send", note)
        for name in methods():
            storage.submit(lambda transaction, name=name: call(transaction, name)).result(PATIENCE)  # type: ignore[misc]  # bound early
        for names in (["one", "two"], [str(number) for number in range(100)]):
            hint = LookAhead(None, 1, names)
            storage.submit(lambda transaction, hint=hint: transaction.look_ahead(hint)).result(PATIENCE)  # type: ignore[misc]  # bound early
        with storage.read() as transaction:
            transaction.look_ahead(OWN["look_ahead"]["hint"])
        storage.problem()
        proxy.cut(b"COMMIT\0", Cut.AFTER)  # after which the marker is looked for
        storage.submit(lambda transaction: transaction.end_session(b"t")).result(PATIENCE)
    return statements


def without_account(statement: str) -> list[str]:
    """Return the parts of a statement that name tables of accounts without an account's id."""
    parts = [_BY_KEY[1:-1]] if _BY_KEY in statement else []
    rest = statement.replace(_BY_KEY, "?")
    if _TABLES.search(rest) and not _CARRIES.search(rest):
        parts.append(re.sub(r" FOR (?:NO KEY )?UPDATE(?: SKIP LOCKED)?", "", rest))
    return parts


def test_statements_without_an_account_are_those_of_the_page(sent: list[str]) -> None:
    """Every statement carries its account's id, but for those that the page on scaling lists."""
    found = {" ".join(part.split()) for statement in sent for part in without_account(statement)}
    said = {" ".join(line.split()) for line in block("sql", "FROM writers").splitlines()}
    assert found == said
