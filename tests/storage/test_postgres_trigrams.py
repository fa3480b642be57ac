"""Where the server has trigram indexes, names are found by what they contain without reading all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.postgres import PostgresStorage
from cloudstore_mapping.service.storage.sql import Transaction
from tests.postgres_server import QUICK, PostgresServer

#: Servers as Debian's packages install them, with all extensions; what comes from PyPI has none.
INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"))

NAMES = [f"user {number:05}/Shopping" for number in range(20_000)]
ODD = [
    "user 00100/shopping",
    "100% done",
    "a_b_c",
    "back\\slash",
    "\1\2\3 control",
    "ÄÖÜ grüße",
    "ab",
    "Abc",
    "xABCx",
    "abcabc",
]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Return a server that has the extensions."""
    have = [programs for programs in INSTALLED if (_extensions(programs) / "pg_trgm.control").exists()]
    if not have:
        pytest.skip("needs a PostgreSQL with the extensions pg_trgm and btree_gin: Debian's package postgresql")
    server = PostgresServer(have[-1], **QUICK)
    try:
        server.make()
        server.start()
        yield server
    finally:
        server.remove()


def _extensions(programs: Path) -> Path:
    return Path("/usr/share/postgresql") / programs.parent.name / "extension"


@pytest.fixture(scope="module")
def storage(server: PostgresServer) -> Iterator[Storage]:
    """Return a storage with an account of many files, and another one."""
    with PostgresStorage(server.database()) as storage:

        def fill(transaction: Transaction) -> None:
            first, second = (transaction.add_account(name, 1.0).id for name in ("first", "second"))
            for name in [*NAMES, *ODD]:
                transaction.put(first, name, b"1", 1.0)
            transaction.put(second, "abc of another", b"1", 1.0)

        storage.submit(fill).result()
        with psycopg.connect(server.database(), autocommit=True) as connection:
            connection.execute("ANALYZE")
        yield storage


@pytest.mark.parametrize(
    "text",
    [
        "00100/",
        "abc",
        "ABC",
        "Shop",
        "shop",
        "100%",
        "%",
        "_b_",
        "k\\s",
        "\1\2\3",
        "Ö",
        "grüße",
        "ab",
        "absent",
        "user 19999",
    ],
)
@pytest.mark.slow
def test_what_is_found(storage: Storage, text: str) -> None:
    """It is what contains the text as it stands, capitals, signs of patterns and all, in the order of names."""
    with storage.read() as transaction:
        assert transaction.names(1, text) == sorted(name for name in [*NAMES, *ODD] if text in name)
        assert (
            transaction.names(1, text, prefix="user", limit=3)
            == sorted(name for name in [*NAMES, *ODD] if text in name and name.startswith("user"))[:3]
        )


@pytest.mark.slow
def test_the_index_is_used(storage: Storage) -> None:
    """A text that few names contain is looked up in the index, together with the account."""
    with storage.read() as transaction:
        condition, texts = transaction._containing("0100/Shop")
        query = (
            f"EXPLAIN SELECT name FROM files WHERE account_id = ? AND name >= ? AND {condition} ORDER BY name LIMIT ?"
        )
        plan = "\n".join(line for (line,) in transaction.rows(query, 1, "", *texts, 10_000))
    assert "files_by_trigram" in plan
    assert "account_id = " in plan[plan.index("files_by_trigram") :]


@pytest.mark.slow
def test_a_user_who_may_not_make_it(server: PostgresServer) -> None:
    """A store whose user may make no extensions does without."""
    with psycopg.connect(server.database(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE plain")
        connection.execute("CREATE ROLE plain LOGIN")
        connection.execute("GRANT ALL ON SCHEMA public TO plain")
    with psycopg.connect(server.database("plain"), autocommit=True) as connection:
        connection.execute("GRANT ALL ON SCHEMA public TO plain")
    address = server.database("plain").replace("postgres@", "plain@")
    with PostgresStorage(address) as storage:
        account = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result().id
        storage.submit(lambda transaction: [transaction.put(account, name, b"1", 1.0) for name in ODD]).result()
        with storage.read() as transaction:
            assert transaction.names(account, "abc") == ["abcabc"]
            assert "LIKE" not in transaction._containing("abc")[0]
