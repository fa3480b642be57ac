"""PostgreSQL schema: creation of the tables, migrations, and recognition of CloudStore databases."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from shlex import quote
from typing import Final, Literal, NamedTuple, TypeAlias

import psycopg

from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.service.storage.migrations import ACCOUNT, ANY_ACCOUNT, Admission, announce, schema_steps
from cloudstore_mapping.service.storage.postgres_session import Connection
from cloudstore_mapping.service.storage.renaming import OLD_NAME, must_be_renamed, old_names_among

#: Key of the advisory lock for schema changes, against other starting nodes: "CLSD", as in the header of SQLite files.
LOCK: Final = 0x434C5344
#: The first schema with a table of names from version 0.1.0.
WITH_OLD_NAMES: Final = 2
#: The first schema with quota counters, and with the removal of deleted accounts in steps.
WITH_COUNTERS: Final = 4

#: Handling of an older schema: migrate it, refuse it, or keep it for a caller familiar with its tables.
Older: TypeAlias = Literal["migrate", "refuse", "keep"]

_SELECT_VERSION: Final = "SELECT version, unfinished FROM cloudstore"
# Tables of any role, except those of extensions. A single statement: another node may create the tables between two.
_COUNT_TABLES: Final = (
    "SELECT count(*), count(*) FILTER (WHERE relname = 'cloudstore') FROM pg_class"
    " WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT EXISTS"
    " (SELECT 1 FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')"
)
_COUNT_INDEX: Final = (
    "SELECT count(*) FROM pg_indexes WHERE schemaname = current_schema() AND indexname = 'files_by_trigram'"
)

# Optional index for substring searches without a scan of all names of an account. The account is its first column, too;
# GIN needs btree_gin for it.
_TRIGRAMS: Final = (
    "CREATE EXTENSION IF NOT EXISTS pg_trgm",
    "CREATE EXTENSION IF NOT EXISTS btree_gin",
    "CREATE INDEX files_by_trigram ON files USING gin (account_id, name gin_trgm_ops)",
)


class Schema(NamedTuple):
    """Schema number of a database, 0 for none; `unfinished` during a copy into it, and after a failed copy."""

    version: int
    unfinished: bool = False


def schema_of(connection: Connection) -> Schema:
    """Return the database's schema; raise `UnsupportedError` if its tables are foreign or of a newer version."""
    with connection.transaction():
        return _schema(connection)


def newest() -> int:
    """Return the number of the newest schema."""
    return len(schema_steps("postgres"))


def migrate(
    connection: Connection,
    place: str,
    *,
    to_fill: bool = False,
    older: Older = "migrate",
    renames: bool = False,
    admits: Admission | None = None,
) -> None:
    """
    Bring the database to the newest schema, or create the tables in an empty database; starting nodes take turns.

    Raises `UnsupportedError` and changes nothing if the database

    - is foreign, of a newer version, or not in UTF-8;
    - holds an unfinished copy, or with `to_fill` a store; `to_fill` marks the database as unfinished;
    - has an older schema, and `older` forbids the migration;
    - has files to be renamed first, unless `renames` is True.

    `admits` is called only before a migration; its error cancels the migration and is raised, too.
    """
    steps = schema_steps("postgres")
    schema = schema_of(connection)
    if 0 < schema.version < len(steps) and older == "keep":
        return
    if schema.version < len(steps) and older != "migrate":
        _refuse_old_names(connection, place, schema)
        raise UnsupportedError(
            f"{place} was written by an older version and must be migrated before reading; back it up with pg_dump,"
            f" then run `cloudstore migrate --store {quote(place)}`, or use that version."
        )
    if schema.version < len(steps):
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            schema = _schema(connection)  # again: another node may have migrated it meanwhile
            if not renames:
                _refuse_old_names(connection, place, schema)
            if schema.version:
                _refuse_contents(connection, schema, to_fill=to_fill)
            if admits is not None and 0 < schema.version < len(steps):
                admits(partial(_has_account, connection))
            for number in range(schema.version, len(steps)):
                connection.execute(steps[number])
            if schema.version == 0:
                connection.execute("CREATE TABLE cloudstore (version BIGINT NOT NULL, unfinished BOOLEAN NOT NULL)")
                connection.execute("INSERT INTO cloudstore VALUES (0, FALSE)")
                _create_index(connection)
            elif schema.version < WITH_OLD_NAMES:
                _list_old_names(connection)
            connection.execute("UPDATE cloudstore SET version = %s", (len(steps),))
        if 0 < schema.version < len(steps):
            announce(place, schema.version, len(steps))
    _refuse_contents(connection, schema, to_fill=to_fill)
    if to_fill:
        connection.execute("UPDATE cloudstore SET unfinished = TRUE")


def _refuse_contents(connection: Connection, schema: Schema, *, to_fill: bool) -> None:
    """Raise `UnsupportedError` for a store in a database `to_fill`, otherwise for an unfinished copy."""
    if to_fill and _number(connection, "SELECT count(*) FROM accounts"):
        raise UnsupportedError("There is a store in the database already; choose an empty database.")
    if schema.unfinished and not to_fill:
        raise UnsupportedError(
            "The database holds an unfinished copy of a store; run `cloudstore migrate-store` again, or empty the "
            "database."
        )


def _has_account(connection: Connection, name: str | None) -> bool:
    query, values = (ANY_ACCOUNT, ()) if name is None else (ACCOUNT.replace("?", "%s"), (name,))
    return connection.execute(query, values).fetchone() is not None


def _list_old_names(connection: Connection) -> None:
    """List the files with names of version 0.1.0, before this version adds any file."""
    for row in _old_names(connection):
        connection.execute("INSERT INTO old_names (account_id, name) VALUES (%s, %s)", row)
    connection.execute("INSERT INTO name_scans VALUES (extract(epoch FROM now()))")


def _refuse_old_names(connection: Connection, place: str, schema: Schema) -> None:
    if not schema.version:
        return
    rows = _old_names(connection) if schema.version < WITH_OLD_NAMES else connection.execute(OLD_NAME).fetchall()
    if rows:
        raise must_be_renamed(place, rows[0][-1])


def _old_names(connection: Connection) -> list[tuple[int, str]]:
    rows = connection.execute("SELECT account_id, name FROM files WHERE strpos(name, '%') > 0").fetchall()
    return [*old_names_among((account_id, name) for account_id, name in rows)]


def has_trigrams(connection: Connection) -> bool:
    """Return True if file names have a trigram index."""
    return _number(connection, _COUNT_INDEX) > 0


def _create_index(connection: Connection) -> None:
    # Optional: some servers lack the extensions or don't let this user create them.
    with suppress(psycopg.Error), connection.transaction():
        for statement in _TRIGRAMS:
            connection.execute(statement)


def _schema(connection: Connection) -> Schema:
    encoding = connection.execute("SHOW server_encoding").fetchone()
    if encoding is not None and encoding[0] != "UTF8":
        raise UnsupportedError("The database can't represent all characters; create one with ENCODING 'UTF8'.")
    tables, ours = connection.execute(_COUNT_TABLES).fetchone() or (0, 0)
    if not ours:
        if tables:
            raise UnsupportedError(
                "The database holds another program's tables and was left as it is; create an empty one for the store."
            )
        return Schema(0)
    row = connection.execute(_SELECT_VERSION).fetchone()
    schema = Schema(0) if row is None else Schema(*row)
    if schema.version > newest():
        raise UnsupportedError(
            "The database was written by a newer version of cloudstore-mapping and was left as it is; upgrade, then "
            "open it."
        )
    return schema


def _number(connection: Connection, query: str) -> int:
    row = connection.execute(query).fetchone()
    return 0 if row is None else int(row[0])
