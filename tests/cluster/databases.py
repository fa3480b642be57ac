"""A primary and its synchronous standby: made, lost, promoted and made again as `docs/scaling.md` says."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.cluster.page import block, replaced
from tests.postgres_server import PATIENCE, PostgresServer

#: The names of the page's two servers, by which each is known as a standby.
ONE: Final = "db1"
TWO: Final = "db2"


class DatabaseServer(PostgresServer):
    """One of the page's two servers."""

    def __init__(self, programs: Path, name: str) -> None:
        super().__init__(programs)
        self.name = name

    def make_first(self) -> None:
        """Make the files of the first primary."""
        self.make()
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(block("ini", "synchronous_standby_names"))

    def make_standby(self, primary: PostgresServer) -> None:
        """Make the files of a standby, in the place of those of what was a primary before."""
        if self.data.exists():
            self.data.rename(self.folder / "before")
        script = block("sh", "pg_basebackup")
        there = f"host=127.0.0.1 port={primary.port}"
        self.shell(replaced(script, {f"host={ONE}": there, f"application_name={TWO}": f"application_name={self.name}"}))

    def promote(self) -> None:
        """Make the standby the primary."""
        self.shell(block("sh", "pg_ctl promote"))

    def wait_for_standbys_again(self) -> None:
        """Let commits wait for a standby, as they did before there was none."""
        self.shell(block("sh", "RESET synchronous_standby_names"))

    def ask(self, query: str) -> str:
        """Return the one value that a query gives."""
        return self.shell('psql --no-align --tuples-only --command="$QUERY"', QUERY=query).strip()

    def wait_until(self, condition: str) -> None:
        """Wait until a condition in SQL holds."""
        end = time.monotonic() + PATIENCE
        while self.ask(f"SELECT {condition}") != "t":
            if time.monotonic() > end:
                raise RuntimeError(f"{condition}\n{(self.folder / 'log').read_text()}")
            time.sleep(0.05)

    def crash(self) -> None:
        """
        Kill all its processes at one moment with -9, as if its machine lost its power, and wait until they are gone.

        Those that outlived the first one by a millisecond could show what no standby has.
        """
        process, self._process = self._process, None
        assert process is not None
        memory = (self.data / "postmaster.pid").read_text().split()[-2]
        os.kill(process.pid, signal.SIGSTOP)  # so that it begins no other one
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        for with_signal in (signal.SIGSTOP, signal.SIGKILL):
            for pid in (*children, process.pid):
                os.kill(pid, with_signal)
        end = time.monotonic() + PATIENCE
        process.wait(PATIENCE)
        while any(map(_is_running, children)):
            assert time.monotonic() < end
            time.sleep(0.01)
        self.shell(f"ipcrm -m {memory}")  # which outlives them


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@contextmanager
def pair(programs: Path) -> Iterator[tuple[DatabaseServer, DatabaseServer]]:
    """Return a primary and a standby that every commit waits for; in the end both are gone, whatever they are then."""
    with ExitStack() as stack:
        one, two = (stack.enter_context(_removed(DatabaseServer(programs, name))) for name in (ONE, TWO))
        one.make_first()
        one.start()
        two.make_standby(one)
        two.start()
        one.wait_until("count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'quorum'")
        one.ask("CREATE DATABASE cloudstore")
        yield one, two


@contextmanager
def _removed(server: DatabaseServer) -> Iterator[DatabaseServer]:
    try:
        yield server
    finally:
        server.remove()


def store_on(*servers: PostgresServer) -> str:
    """Return the address of the page's database on several servers, whichever of them is the primary."""
    hosts = ",".join("127.0.0.1" for _ in servers)
    ports = ",".join(str(server.port) for server in servers)
    return f"postgresql://postgres@/cloudstore?host={hosts}&port={ports}"
