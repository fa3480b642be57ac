"""How a PostgreSQL database becomes ours, and how an older one of ours becomes today's."""

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

#: What nodes that start at once take in turn before they change a table: "CLSD", as SQLite's files begin with.
LOCK: Final = 0x434C5344
#: The first schema that knows which names are of version 0.1.0.
WITH_OLD_NAMES: Final = 2
#: The first schema that has quota counters, and deleted accounts whose rows are removed later.
WITH_COUNTERS: Final = 4

#: What becomes of a database of an older version: it is migrated, or refused; or kept, for who knows its tables.
Older: TypeAlias = Literal["migrate", "refuse", "keep"]

_VERSION: Final = "SELECT version, unfinished FROM cloudstore"
# Tables of any role, but for those of extensions. In one statement: between two another node may make the tables.
_TABLES: Final = (
    "SELECT count(*), count(*) FILTER (WHERE relname = 'cloudstore') FROM pg_class"
    " WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT EXISTS"
    " (SELECT 1 FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')"
)
_INDEX: Final = "SELECT count(*) FROM pg_indexes WHERE schemaname = current_schema() AND indexname = 'files_by_trigram'"

# Finds what contains a text without reading all names of an account, where the server has what that takes. The account
# comes first here too, for which GIN needs the second extension.
_TRIGRAMS: Final = (
    "CREATE EXTENSION IF NOT EXISTS pg_trgm",
    "CREATE EXTENSION IF NOT EXISTS btree_gin",
    "CREATE INDEX files_by_trigram ON files USING gin (account_id, name gin_trgm_ops)",
)


class Schema(NamedTuple):
    """The number of a database's schema, 0 for none, and whether what was being copied into it is not all there."""

    version: int
    unfinished: bool = False


def schema_of(connection: Connection) -> Schema:
    """Return what schema the database has; `UnsupportedError` where its tables aren't ours, or of a newer version."""
    with connection.transaction():
        return _schema(connection)


def newest() -> int:
    """Return the number of today's schema."""
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
    Bring the database to the newest schema, making an empty one ours; nodes that start at once do it in turn.

    Raises `UnsupportedError`, with the database untouched, where it isn't ours, can't hold any text, is of a newer
    version, or was never filled to the end; one that is `to_fill` now has to be empty, and is marked. The same for one
    of an older version that is not to be migrated (see `Older`), or whose files must be renamed first; and the error
    of `admits`, which is called only before a migration.
    """
    wanted = schema_steps("postgres")
    schema = schema_of(connection)
    if 0 < schema.version < len(wanted) and older == "keep":
        return
    if schema.version < len(wanted) and older != "migrate":
        _refuse_old_names(connection, place, schema)
        raise UnsupportedError(
            f"{place} was written by an older version and has to be migrated before it can be read; copy it by pg_dump,"
            f" then run `cloudstore migrate --store {quote(place)}`, or use that version."
        )
    if schema.version < len(wanted):
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            schema = _schema(connection)  # asked again: another node may have done it meanwhile
            if not renames:
                _refuse_old_names(connection, place, schema)
            if schema.version:
                _refuse_contents(connection, schema, to_fill=to_fill)
            if admits is not None and 0 < schema.version < len(wanted):
                admits(partial(_has_account, connection))
            for number in range(schema.version, len(wanted)):
                connection.execute(wanted[number])
            if schema.version == 0:
                connection.execute("CREATE TABLE cloudstore (version BIGINT NOT NULL, unfinished BOOLEAN NOT NULL)")
                connection.execute("INSERT INTO cloudstore VALUES (0, FALSE)")
                _index(connection)
            elif schema.version < WITH_OLD_NAMES:
                _note_old_names(connection)
            connection.execute("UPDATE cloudstore SET version = %s", (len(wanted),))
        if 0 < schema.version < len(wanted):
            announce(place, schema.version, len(wanted))
    _refuse_contents(connection, schema, to_fill=to_fill)
    if to_fill:
        connection.execute("UPDATE cloudstore SET unfinished = TRUE")


def _refuse_contents(connection: Connection, schema: Schema, *, to_fill: bool) -> None:
    """Raise `UnsupportedError` for a store in a database `to_fill`, and for an unfinished copy otherwise."""
    if to_fill and _number(connection, "SELECT count(*) FROM accounts"):
        raise UnsupportedError("There is a store in the database already; choose an empty one.")
    if schema.unfinished and not to_fill:
        raise UnsupportedError(
            "The database holds a part of a store that was being copied into it; do that again with"
            " `cloudstore migrate-store`, or empty it."
        )


def _has_account(connection: Connection, name: str | None) -> bool:
    query, values = (ANY_ACCOUNT, ()) if name is None else (ACCOUNT.replace("?", "%s"), (name,))
    return connection.execute(query, values).fetchone() is not None


def _note_old_names(connection: Connection) -> None:
    """Note which files have names of version 0.1.0, before the first file is added by this one."""
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
    """Whether names are indexed by what they contain."""
    return _number(connection, _INDEX) > 0


def _index(connection: Connection) -> None:
    # A server without the extensions, or one on which this user may not make them, does without.
    with suppress(psycopg.Error), connection.transaction():
        for statement in _TRIGRAMS:
            connection.execute(statement)


def _schema(connection: Connection) -> Schema:
    encoding = connection.execute("SHOW server_encoding").fetchone()
    if encoding is not None and encoding[0] != "UTF8":
        raise UnsupportedError("The database can't hold every text; make one with ENCODING 'UTF8'.")
    tables, ours = connection.execute(_TABLES).fetchone() or (0, 0)
    if not ours:
        if tables:
            raise UnsupportedError(
                "The database holds another program's tables and was left as it is; make an empty one for the store."
            )
        return Schema(0)
    row = connection.execute(_VERSION).fetchone()
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
