"""A PostgreSQL database becomes a store only if it is empty, ours and no newer, and its password stays secret."""

from __future__ import annotations

import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cloudstore_mapping.errors import UnavailableError, UnsupportedError
from cloudstore_mapping.service.storage.places import StoreLocation, place_of
from cloudstore_mapping.service.storage.postgres import PostgresStorage, parameters_of, unavailable
from cloudstore_mapping.service.storage.postgres_migrations import migrate, newest, schema_of
from cloudstore_mapping.service.storage.postgres_session import read_text, write_text
from cloudstore_mapping.wire import failure
from tests.postgres_fixtures import address
from tests.postgres_server import shared
from tests.service_fakes import PATIENCE

__all__ = ["address"]


def execute(address: str, statement: str) -> list[tuple[object, ...]]:
    """Run a statement as somebody else."""
    with psycopg.connect(address, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def tables(address: str) -> list[tuple[object, ...]]:
    """Return the tables that there are."""
    return execute(address, "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()")


def test_an_empty_database_becomes_ours(address: str) -> None:
    """The tables are made once, and a second opening finds them."""
    assert not place_of(address).exists()
    PostgresStorage(address).close()
    assert place_of(address).exists()
    assert place_of(address).schema() == newest()
    made = tables(address)
    PostgresStorage(address).close()
    assert tables(address) == made


def test_nodes_that_start_at_once(address: str) -> None:
    """Of many that find an empty database one makes the tables, and all are opened."""
    starting = threading.Barrier(6)

    def work(_: int) -> bool:
        starting.wait()
        with PostgresStorage(address) as storage:
            return storage.healthy()

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


class Overtaken(psycopg.Connection[tuple[Any, ...]]):
    """A connection of a node that another one overtakes: when this has asked what tables there are, they are made."""

    overtaken_at = ""

    def execute(self, query: Any, *arguments: Any, **options: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        """Run a statement."""
        cursor = super().execute(query, *arguments, **options)
        if self.overtaken_at and "pg_class" in query:
            address, self.overtaken_at = self.overtaken_at, ""
            PostgresStorage(address).close()
        return cursor


def test_a_node_that_is_overtaken(address: str) -> None:
    """Where another node makes the tables while this one looks for any, they are not taken for another program's."""
    with Overtaken.connect(address, autocommit=True) as connection:
        connection.overtaken_at = address
        migrate(connection, address)
        assert connection.overtaken_at == ""
        assert schema_of(connection).version == newest()


def test_another_programs_tables(address: str) -> None:
    """A database with tables that aren't ours is refused, and left as it is."""
    execute(address, "CREATE TABLE accounts (id TEXT)")
    for _ in range(2):
        with pytest.raises(UnsupportedError, match=r"another program's tables.*empty one"):
            PostgresStorage(address)
    assert tables(address) == [("accounts",)]


def test_tables_of_an_extension(address: str) -> None:
    """Tables and views of extensions don't make a database somebody else's."""
    execute(address, "CREATE TABLE statistics (); ALTER EXTENSION plpgsql ADD TABLE statistics")
    try:
        assert not place_of(address).exists()
        PostgresStorage(address).close()
        assert place_of(address).exists()
    finally:
        execute(address, "ALTER EXTENSION plpgsql DROP TABLE statistics")


def test_tables_of_another_role(address: str) -> None:
    """A database with a table that the store's user may not even see is refused too."""
    schema = address.rpartition("%3D")[2]
    execute(
        address, f"CREATE TABLE others (id TEXT); CREATE ROLE {schema} LOGIN; GRANT ALL ON SCHEMA {schema} TO {schema}"
    )
    with pytest.raises(UnsupportedError, match="another program's tables"):
        PostgresStorage(address.replace("postgres@", f"{schema}@", 1))


def test_a_newer_version(address: str) -> None:
    """A store of a newer version is refused, and left as it is."""
    PostgresStorage(address).close()
    execute(address, "UPDATE cloudstore SET version = version + 1")
    with pytest.raises(UnsupportedError, match="newer version"):
        PostgresStorage(address)
    with pytest.raises(UnsupportedError, match="newer version"):
        place_of(address).exists()
    assert execute(address, "SELECT version FROM cloudstore") == [(newest() + 1,)]


def test_a_database_that_can_t_hold_every_text() -> None:
    """One that isn't in UTF-8 is refused."""
    execute(shared.database(), "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(UnsupportedError, match="UTF8"):
        PostgresStorage(shared.database("latin"))


def test_a_store_that_was_not_filled_to_the_end(address: str) -> None:
    """A database into which a copy was begun is no store, but for whoever begins the copy again."""
    PostgresStorage(address, to_fill=True).close()
    with pytest.raises(UnsupportedError, match="unfinished copy of a store; run"):
        PostgresStorage(address)
    with PostgresStorage(address, to_fill=True) as storage:
        storage.submit(lambda transaction: transaction.end_filling()).result()
    with PostgresStorage(address) as storage:
        storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result()
    with pytest.raises(UnsupportedError, match="a store in the database already"):
        PostgresStorage(address, to_fill=True)
    PostgresStorage(address).close()


@pytest.mark.parametrize(
    ("database", "sentence"),
    [("absent", r'takes no connection \(database "absent" does not exist\);'), ("postgres", "not reached")],
)
def test_a_database_that_is_not_there(tmp_path: Path, database: str, sentence: str) -> None:
    """A database that isn't there, or no server, is `UnavailableError` with a sentence that says what to look at."""
    address = shared.database("absent") if database == "absent" else f"postgresql:///postgres?host={tmp_path}"
    with pytest.raises(UnavailableError, match=sentence) as caught:
        PostgresStorage(address)
    assert isinstance(caught.value.__cause__, psycopg.Error)


ADDRESSES = [
    ("postgresql://ann:secret@db.example/store", "postgresql://ann@db.example/store"),
    ("postgres://ann:s%40cret@one:5433,two/store", "postgresql://ann@one:5433,two/store"),
    ("postgresql://one:1,two:2/store?user=ann&password=secret", "postgresql://ann@one:1,two:2/store"),
    (
        "postgresql:///store?host=/run/postgresql&password=secret&sslpassword=secret",
        "postgresql:///run/postgresql/store",
    ),
    ("postgresql://", "postgresql:///"),
]


@pytest.mark.parametrize(("address", "shown"), ADDRESSES)
def test_what_is_shown_of_an_address(address: str, shown: str) -> None:
    """The user, the servers and the database are shown, and never a password, not even by `repr`."""
    place = place_of(address)
    assert str(place) == shown
    assert "cret" not in repr(place)
    assert "cret" not in place.location(secrets=False)
    assert place.location(secrets=True) == address
    kept = {name: value for name, value in parameters_of(address).items() if "password" not in name}
    assert parameters_of(place.location(secrets=False)) == kept


@pytest.mark.parametrize(
    "address",
    ["postgresql://ann:100%secret@db/store", "postgresql://db/store?no=secret", "postgresql://db:secret/store"],
)
def test_an_address_that_can_t_be_understood(address: str) -> None:
    """It is `ValueError` with a sentence, which quotes nothing of it, and so is what the driver says to it later."""
    with pytest.raises(ValueError, match="postgresql://user@host/database") as caught:
        StoreLocation("label", address=address).open()
    assert "secret" not in str(caught.value)


def test_a_server_that_refuses(address: str, tmp_path: Path) -> None:
    """What is told of a server that takes no connection is its own reason, without the password or the address."""
    execute(address, "CREATE ROLE locked NOLOGIN PASSWORD 'right'")
    refused = f"postgresql://locked:secret@127.0.0.1:{shared.port}/postgres"
    with pytest.raises(UnavailableError, match='role "locked" is not permitted to log in') as caught:
        PostgresStorage(refused)
    assert "secret" not in str(caught.value)
    with pytest.raises(UnavailableError) as caught:
        PostgresStorage("postgresql://ann:part@secret@127.0.0.1:1/postgres")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"host": "absent.invalid"}, "host is unknown"),
        ({"port": "1"}, "No database listens there"),
        ({"sslmode": "require"}, "takes no TLS"),
    ],
)
def test_causes_of_a_connection_that_fails(change: dict[str, str], sentence: str) -> None:
    """The error for a database that isn't reached states the cause, and what to look at."""
    place = {"host": "127.0.0.1", "port": str(shared.port), "user": "postgres", "dbname": "postgres", **change}
    with pytest.raises(UnavailableError, match=sentence):
        PostgresStorage("postgresql:///?" + "&".join(f"{name}={value}" for name, value in place.items()))


def test_a_password_that_is_missing() -> None:
    """Where the server asks for a password and none is given, the error says where to put it."""
    error = psycopg.OperationalError(
        'connection to server at "127.0.0.1", port 5432 failed: fe_sendauth: no password supplied'
    )
    assert str(unavailable(error)) == (
        "The database asks for a password; set PGPASSWORD, or put it into the store's address."
    )


def test_a_full_disk_of_the_database() -> None:
    """Where the database's disk is full, clients of a service read that its operator has to free space."""
    reply = failure(unavailable(psycopg.errors.DiskFull("could not extend file")))
    assert reply.problem == "The database's disk is full; free some space, then try again."
    assert reply.sentence == "The service's disk is full; its operator has to free space."


def test_what_the_address_does_not_say(address: str) -> None:
    """A server that can be written to is looked for, and one that is gone is given up; who says otherwise is heard."""
    assert parameters_of(address)["target_session_attrs"] == "read-write"
    assert parameters_of(f"{address}&target_session_attrs=any&connect_timeout=1")["target_session_attrs"] == "any"
    assert parameters_of(f"{address}&connect_timeout=1")["connect_timeout"] == "1"


def test_the_first_server_that_can_be_written_to(address: str) -> None:
    """Of several servers those that aren't there are passed over."""
    several = shared.by_port(address, shared.port).replace("host=127.0.0.1", "host=127.0.0.1,127.0.0.1")
    several = several.replace(f"port={shared.port}", f"port=1,{shared.port}")
    with PostgresStorage(several) as storage:
        assert storage.healthy()


def test_a_server_that_only_reads(address: str) -> None:
    """A store at a server that takes no writes can be read, and isn't healthy."""
    PostgresStorage(address).close()
    read_only = address.replace("options=", "target_session_attrs=any&options=-cdefault_transaction_read_only%3Don%20")
    with PostgresStorage(read_only) as storage:
        assert storage.problem() == (
            "The database can't be written to; name all its servers in the store's address, or wait for a new primary."
        )


@pytest.mark.parametrize("setting", ["synchronous_commit", "idle_in_transaction_session_timeout"])
def test_settings_that_would_do_harm(address: str, setting: str) -> None:
    """A commit is on disk before it is answered, and nobody's transaction ends, whatever is the server's custom."""
    harmful = {"synchronous_commit": "off", "idle_in_transaction_session_timeout": "0"}
    with PostgresStorage(f"{address}%20-c{setting}%3D{harmful[setting]}") as storage:
        (found,) = storage.submit(lambda transaction: transaction.row(f"SHOW {setting}")).result()
    assert found not in ("off", "0")
    with PostgresStorage(f"{address}%20-csynchronous_commit%3Dremote_apply") as storage:
        (found,) = storage.submit(lambda transaction: transaction.row("SHOW synchronous_commit")).result()
    assert found == "remote_apply"


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the driver isn't installed the error names the extra that brings it."""
    for module in [name for name in sys.modules if name.startswith("cloudstore_mapping.service.storage.postgres")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr("cloudstore_mapping.service.storage.postgres", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UnsupportedError, match=r"cloudstore-mapping\[postgres\]"):
        place_of("postgresql://host/database")


def test_texts_that_postgresql_can_t_hold() -> None:
    """Every text is written so that it comes back, and order and containment are those of the texts themselves."""
    characters = "\0\1\2\3\4\5\6a"
    texts = [*characters, *(one + two for one in characters for two in characters), ""]
    assert [read_text(write_text(text)) for text in texts] == texts
    assert [write_text(text) for text in sorted(texts)] == sorted(map(write_text, texts))
    assert not any("\0" in write_text(text) for text in texts)
    for text in texts:
        for part in texts:
            assert (part in text) == (write_text(part) in write_text(text))
    assert write_text("plain") == "plain"


def test_a_name_of_control_characters(address: str) -> None:
    """Names with all that is written otherwise are found, listed and searched for like others."""
    names = ["\1", "\1\2", "\2", "a\3", "\4b\5"]
    with PostgresStorage(address) as storage:
        account = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result().id
        storage.submit(lambda transaction: [transaction.put(account, name, b"1", 1.0) for name in names]).result()
        with storage.read() as transaction:
            assert transaction.names(account) == sorted(names)
            assert transaction.names(account, "\2") == ["\1\2", "\2"]
            assert transaction.names(account, prefix="\1") == ["\1", "\1\2"]
            assert transaction.names(account, after="\1", limit=2) == ["\1\2", "\2"]


def test_a_lone_server_that_only_reads(address: str) -> None:
    """A store at the only server of an address goes on to be read while that takes no writes; saves are told why."""
    PostgresStorage(address).close()
    read_only = address.replace("options=", "options=-cdefault_transaction_read_only%3Don%20")
    sentence = (
        "The database can't be written to; name all its servers in the store's address, or wait for a new primary."
    )
    with PostgresStorage(read_only, patience=0.0) as storage:
        with storage.read() as transaction:
            assert not transaction.has_accounts()
        refused = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).exception(PATIENCE)
        assert str(refused) == sentence
        assert storage.problem() == sentence


def test_none_of_several_servers_takes_writes(address: str) -> None:
    """Of several servers none is read that takes no writes, for another one may: the error says so."""
    read_only = address.replace("options=", "options=-cdefault_transaction_read_only%3Don%20")
    folder, port = re.findall(r"host=([^&]*)&port=(\d+)", read_only)[0]
    several = read_only.replace(f"host={folder}&port={port}", f"host={folder},{folder}&port={port},{port}")
    with pytest.raises(UnavailableError, match="can't be written to"):
        PostgresStorage(several)
