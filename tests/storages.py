"""The stores that tests make: of SQLite, or with `pytest --engine postgres` of PostgreSQL in its place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import pytest

from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.places import place_of

#: What a test says that needs PostgreSQL where there is none.
NO_POSTGRES: Final = "needs PostgreSQL, which the extra 'dev' brings"


class _Engine:
    """Which engine it is, which database stands for which file, and PostgreSQL's programs if they were chosen."""

    def __init__(self) -> None:
        self.is_postgres = False
        self.addresses: dict[Path, str] = {}
        self.programs: Path | None = None


engine = _Engine()


def new_database() -> str:
    """Return the address of an empty place in PostgreSQL; the test is skipped where there is none to be had."""
    pytest.importorskip("psycopg", reason=NO_POSTGRES)
    from tests.postgres_server import shared

    return shared.new_store()


def end_database() -> None:
    """End the server of all databases, if there is one."""
    if "tests.postgres_server" in sys.modules:
        from tests.postgres_server import shared

        shared.remove()


def location(file: Path | None) -> str:
    """Return the location of the store in a file, or of one that nobody else opens."""
    if not engine.is_postgres:
        return "memory:" if file is None else str(file)
    if file is None:
        return new_database()
    if file not in engine.addresses:
        engine.addresses[file] = new_database()
    return engine.addresses[file]


def new_storage(place: Path | str | None = None) -> Storage:
    """Return the storage in a file or at a location, made where there is none yet; or one that nobody else opens."""
    return place_of(place if isinstance(place, str) else location(place)).open()
