"""The PostgreSQL server of the tests runs wherever its programs are installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import psycopg
import pytest

from tests.postgres_server import QUICK, PostgresServer, bundled
from tests.storages import NO_POSTGRES


def test_programs_in_somebodys_own_folder(tmp_path: Path) -> None:
    """Programs that only root may reach, as in its home, are run by the server's user all the same."""
    programs = bundled()
    if programs is None:
        pytest.skip(NO_POSTGRES)
    package = programs.parent.parent
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    for part in package.parent.glob(f"{package.name}*"):
        shutil.copytree(part, own / part.name, symlinks=True)
    server = PostgresServer(own / programs.relative_to(package.parent), **QUICK)
    try:
        server.make()
        server.start()
        with psycopg.connect(server.database()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        server.remove()
