"""Opening, writing and closing a shelf, beside the standard library's, and what each part of that costs."""

from __future__ import annotations

import dbm
import shelve as standard
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import cloudstore_mapping as cm
from benchmarks.harness import Comparison, Goal, Run, Side, compare, timed
from benchmarks.work import SYNCED, value_of
from cloudstore_mapping import shelve
from cloudstore_mapping.client.shelf import secrets_of
from cloudstore_mapping.locations import check_old_data
from cloudstore_mapping.service.storage.migrations import check_file
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.service.storage.sqlite_files import check_place

_WHEN_CLOSED: Final = "on disk once it is closed, not proof against a crash in the middle"
#: Modules that the standard library may keep a shelf with, and what of it is safe.
_KINDS: Final = {"dbm.sqlite3": SYNCED, "dbm.gnu": _WHEN_CLOSED, "dbm.ndbm": _WHEN_CLOSED, "dbm.dumb": "nothing"}
#: Shelves that are opened, written and closed in a turn.
_TIMES: Final = 100


def in_a_shelf(run: Run) -> Iterator[Comparison]:
    """Measure shelves that are opened for a single write, and the parts of that."""
    folder = run.folder / "shelves"
    folder.mkdir()
    with standard.open(str(folder / "first")):
        pass
    first = dbm.whichdb(str(folder / "first"))
    sides = [
        Side("`shelve` of this package", _times(run, _ours(folder / "s")), SYNCED),
        Side("`sqlite3`", _times(run, _database(folder / "plain.db")), SYNCED),
    ]
    for name, durability in _KINDS.items():
        try:
            module = import_module(name)
        except ImportError:
            run.missing[f"`shelve` over `{name}`"] = "This Python has no such module."
            continue
        label = f"`shelve` over `{name}`" + (", as `shelve.open` here" if name == first else "")
        sides.append(Side(label, _times(run, _theirs(module, folder / name)), durability))
    title = "A shelf opened, a value of 200 bytes written, and closed"
    yield compare(run, title, sides, [Goal("≤ 2 of its time", 2, "`sqlite3`")])
    with shelve.open(folder / "open") as opened:
        yield compare(
            run, "The parts of that", [Side(name, _times(run, part)) for name, part in _parts(folder, opened)]
        )


def _parts(folder: Path, opened: Any) -> Iterator[tuple[str, Callable[[int], object]]]:
    shelf, plain = folder / "s", folder / "plain.db"
    yield "all of it", _ours(shelf)
    yield "a shelf opened and closed, nothing written", lambda _: shelve.open(shelf).close()
    yield "… of that: the store, opened by `cloudstore_mapping.open` and closed", lambda _: cm.open(shelf).close()
    yield "… … of that: the SQLite file with its checks and its writer's thread", lambda _: SQLiteStorage(shelf).close()
    yield "… … … of that: the checks of its place and its log", lambda _: check_place(shelf)
    yield "… … … of that: the check that it is a store", lambda _: check_file(shelf)
    yield "… of that: the search for a shelf of the standard library", lambda _: check_old_data(shelf, is_shelf=True)
    yield "… of that: the secret", lambda _: secrets_of(None, shelf)
    yield "a value written in a shelf that stays open, with its sync", lambda number: _write(opened, number)
    yield "`sqlite3` opened, read and closed", lambda _: _read(plain)


def _write(opened: Any, number: int) -> None:
    opened["key"] = value_of(number)


def _ours(path: Path) -> Callable[[int], None]:
    def write(number: int) -> None:
        with shelve.open(path) as opened:
            opened["key"] = value_of(number)

    return write


def _theirs(module: Any, path: Path) -> Callable[[int], None]:
    def write(number: int) -> None:
        with standard.Shelf[Any](module.open(str(path), "c")) as opened:
            opened["key"] = value_of(number)

    return write


def _database(path: Path) -> Callable[[int], None]:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE files (key TEXT PRIMARY KEY, value TEXT)")

    def write(number: int) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("INSERT OR REPLACE INTO files VALUES ('key', ?)", (str(value_of(number)),))

    return write


def _read(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT value FROM files").fetchall()


def _times(run: Run, operation: Callable[[int], object]) -> Callable[[], float]:
    return timed(operation, run.times(_TIMES))


ALL = (in_a_shelf,)
