"""A pooler between a node and PostgreSQL, in session or in transaction mode, changes nothing that is stored."""

from __future__ import annotations

import getpass
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage.postgres import PostgresStorage
from cloudstore_mapping.service.storage.sql import Transaction
from tests.ports import free_port
from tests.postgres_server import UNPRIVILEGED, shared
from tests.service_fakes import PATIENCE

MISSING = "needs Debian's pgbouncer: apt-get install pgbouncer"
THREADS = 8
TIMES = 20

Pooled = Callable[[str, int], str]

_names = itertools.count(1)


@pytest.fixture
def pooled(no_threads_left: None) -> Iterator[Pooled]:
    """Return what runs a pooler of this mode with so many connections, and returns an address behind it."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip(MISSING)
    processes = []
    folder = Path(tempfile.mkdtemp(prefix="cloudstore-pooler-"))  # the user that it runs as can't read pytest's own
    folder.chmod(0o755)

    def run(mode: str, size: int) -> str:
        database = f"pooled_{next(_names)}"
        server = shared.database()
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database} ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0")
        port = free_port()
        file = folder / f"{database}.ini"
        file.write_text(
            f"[databases]\n{database} = host=127.0.0.1 port={shared.port} dbname={database} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = {mode}\ndefault_pool_size = {size}\n"
        )
        as_user: dict[str, Any] = {"user": UNPRIVILEGED} if os.geteuid() == 0 else {}
        processes.append(subprocess.Popen([program, "-q", file], stderr=subprocess.DEVNULL, **as_user))
        address = f"postgresql://{getpass.getuser()}@127.0.0.1:{port}/{database}?connect_timeout=2"
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with suppress(psycopg.OperationalError):
                psycopg.connect(address).close()
                break
        return address

    yield run
    for process in processes:
        process.kill()
        process.wait()
    shutil.rmtree(folder)


def append(transaction: Transaction) -> None:
    """Add to a file's value."""
    file = transaction.get(1, "name")
    transaction.put(1, "name", b"+" if file is None else file.value + b"+", 1.0)


@pytest.mark.parametrize(("mode", "size"), [("transaction", 2), ("transaction", 20), ("session", 20), ("session", 2)])
def test_saves_and_loads_side_by_side(pooled: Pooled, mode: str, size: int) -> None:
    """Behind a pooler, even with fewer connections than a node would take, all is stored once, and loads go on."""
    with PostgresStorage(pooled(mode, size)) as storage:
        storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result(PATIENCE)

        def work(_: int) -> None:
            for _ in range(TIMES):
                storage.submit(append).result(PATIENCE)
                with storage.read() as transaction:
                    assert transaction.get(1, "name") is not None

        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(work, range(THREADS)))
        with storage.read() as transaction:
            file = transaction.get(1, "name")
        assert file is not None
        assert file.value == b"+" * (THREADS * TIMES)
        assert storage.problem() is None


def test_a_pooler_whose_connections_others_hold(pooled: Pooled) -> None:
    """Where others hold all connections of a pooler, loads, saves and health say so, and none waits forever."""
    address = pooled("session", 2)
    with PostgresStorage(address, patience=0.0) as storage:
        with storage.read() as transaction:
            transaction.has_accounts()
        storage._pool.close_idle()
        others = [psycopg.connect(address, autocommit=True) for _ in range(2)]
        for other in others:
            other.execute("SELECT 1")
        with pytest.raises(UnavailableError), storage.read() as transaction:
            transaction.has_accounts()
        assert isinstance(storage.submit(append).exception(PATIENCE), UnavailableError)
        assert storage.problem() is not None
        for other in others:
            other.close()
        with storage.read() as transaction:
            assert not transaction.has_accounts()
