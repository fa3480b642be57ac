"""Connections to PostgreSQL: by which address, with which settings, and how Python's values are written."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final, TypeAlias
from urllib.parse import quote, urlencode

import psycopg
from psycopg.adapt import Buffer, Dumper, Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Format
from psycopg.types.numeric import Int8BinaryDumper

from cloudstore_mapping.service.storage.postgres_errors import refuses_writes

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
Cursor: TypeAlias = psycopg.Cursor[tuple[Any, ...]]

#: What an address means where it doesn't say otherwise. Of several servers the one that can be written to is taken; a
#: server that is gone without a word is given up after some seconds, before those who wait give up.
DEFAULTS: Final = {
    "target_session_attrs": "read-write",
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "application_name": "cloudstore",
}
_SECRETS: Final = frozenset({"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"})
#: What a server lets a transaction stand still whose node is gone without a word, which nobody else can end. It is more
#: than any work of the service takes between two statements, and less than a writer waits.
IDLE_IN_TRANSACTION: Final = "10s"

# What is set of every connection where the server has a setting that does harm: a transaction of nobody holds for ever
# what it holds, or a commit is answered before it is on disk.
_SETTINGS: Final = (
    "SELECT set_config(name, better, FALSE) FROM (VALUES ('synchronous_commit', 'off', 'on'),"
    " ('idle_in_transaction_session_timeout', '0', %s), ('tcp_keepalives_idle', '7200', '10'),"
    " ('tcp_keepalives_interval', '75', '5'), ('tcp_keepalives_count', '9', '3')) AS settings (name, harmful, better)"
    " WHERE current_setting(name, TRUE) = harmful"
)

_LOCK_TIMEOUT: Final = (
    "SELECT set_config('lock_timeout', %s, FALSE) WHERE current_setting('lock_timeout')::interval = interval '0'"
)

# PostgreSQL's text holds no NUL. So the first six characters are written as one of the first two of the rest and one of
# three others, none of which stands for itself: the order of texts stays, and so does what is contained in what.
_LAST_SPECIAL: Final = 5
_WRITTEN: Final = {code: chr(1 + code // 3) + chr(3 + code % 3) for code in range(_LAST_SPECIAL + 1)}
_READ: Final = {text: chr(code) for code, text in _WRITTEN.items()}
_SPECIAL: Final = re.compile(r"[\x00-\x05]")
_PAIR: Final = re.compile(r"[\x01\x02][\x03-\x05]")


@lru_cache(maxsize=1024)
def sql(query: str) -> str:
    """Return a statement of ours as psycopg takes it, which has other marks for parameters."""
    return query.replace("?", "%s")


def write_text(text: str) -> str:
    """Return the text as PostgreSQL can hold it."""
    return text.translate(_WRITTEN) if _SPECIAL.search(text) else text


def read_text(text: str) -> str:
    """Return the text that `write_text` wrote."""
    return _PAIR.sub(lambda pair: _READ[pair[0]], text) if _SPECIAL.search(text) else text


class _TextDumper(Dumper):
    """Every text that is sent, with a type that the statement decides."""

    format = Format.BINARY

    def dump(self, obj: str) -> bytes:
        return write_text(obj).encode()


class _TextLoader(Loader):
    """Every text that comes back."""

    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        return read_text(bytes(data).decode())


def parameters_of(address: str) -> dict[str, Any]:
    """Return how to connect to the database at an address; `ValueError` for one that can't be understood."""
    # What is stumbled over is not quoted, for it may be the password.
    unclear = "The address can't be understood; write postgresql://user@host/database, and what is special as %XX."
    try:
        given = conninfo_to_dict(address)
    except psycopg.Error as error:
        raise ValueError(unclear) from error
    if not all(port.isdecimal() for port in str(given.get("port", "")).split(",") if port):
        raise ValueError(unclear)  # of an address without a host the password is taken for a port
    return {**DEFAULTS, **given}


def label_of(address: str) -> str:
    """Return what of an address may be shown: never its password; `ValueError` for one that can't be understood."""
    given = parameters_of(address)
    hosts, ports = str(given.get("host", "")).split(","), str(given.get("port", "")).split(",")
    if len(ports) < len(hosts):
        ports = ports * len(hosts)
    servers = ",".join(host + (f":{port}" if port else "") for host, port in zip(hosts, ports, strict=False))
    user = f"{given['user']}@" if "user" in given else ""
    return f"postgresql://{user}{servers}/{given.get('dbname', '')}"


def without_secrets(address: str) -> str:
    """Return the address without its password, which the environment may hold on the other side."""
    given = {name: value for name, value in conninfo_to_dict(address).items() if name not in _SECRETS}
    return f"postgresql:///?{urlencode(given, quote_via=quote)}"


def connect(parameters: dict[str, Any], *, lock_timeout: str | None = None) -> Connection:
    """
    Return a new connection, made what the rest of the engine expects; raises `psycopg.OperationalError`.

    `lock_timeout` bounds its waits for locks where the server sets no bound.
    """
    connection = _connect(parameters)
    try:
        adapters = connection.adapters
        adapters.register_dumper(str, _TextDumper)
        adapters.register_loader("text", _TextLoader)
        adapters.register_dumper(int, Int8BinaryDumper)  # else each size of a number would be a statement of its own
        connection.execute(_SETTINGS, (IDLE_IN_TRANSACTION,))
        if lock_timeout is not None:
            connection.execute(_LOCK_TIMEOUT, (lock_timeout,))
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(parameters: dict[str, Any]) -> Connection:
    try:
        return psycopg.connect(make_conninfo(**parameters), autocommit=True)
    except psycopg.OperationalError as error:
        # A lone primary that only reads for now can be read. Of several servers another one may be written to by now.
        has_others = any("," in str(parameters.get(name, "")) for name in ("host", "hostaddr", "port"))
        if has_others or not refuses_writes(error):
            raise
        try:
            lone = {**parameters, "target_session_attrs": "primary"}
            return psycopg.connect(make_conninfo(**lone), autocommit=True)
        except psycopg.OperationalError:
            raise error from None
