"""The stores that tests make: of SQLite, or with `pytest --engine postgres` of PostgreSQL in its place."""

from __future__ import annotations

from pathlib import Path

from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.places import place_of
from tests.postgres_server import shared


class _Engine:
    """Which engine it is, and which database stands for which file."""

    def __init__(self) -> None:
        self.is_postgres = False
        self.addresses: dict[Path, str] = {}


engine = _Engine()


def location(file: Path | None) -> str:
    """Return the location of the store in a file, or of one that nobody else opens."""
    if not engine.is_postgres:
        return "memory:" if file is None else str(file)
    if file is None:
        return shared.new_store()
    if file not in engine.addresses:
        engine.addresses[file] = shared.new_store()
    return engine.addresses[file]


def new_storage(file: Path | None = None) -> Storage:
    """Return the storage in a file, which is made where there is none yet, or one that nobody else opens."""
    return place_of(location(file)).open()
