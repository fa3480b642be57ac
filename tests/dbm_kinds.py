"""Kinds of dbm, each forced by name, so that no test depends on the kind that this Python prefers."""

from __future__ import annotations

import dbm
import importlib
import importlib.util
import sqlite3
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from dbm import dumb
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

KINDS: Final = ("dbm.dumb", "dbm.gnu", "dbm.ndbm", "dbm.sqlite3")
_EXTENSIONS: Final = {"dbm.gnu": "_gdbm", "dbm.ndbm": "_dbm"}


def force(kind: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Make `dbm` write by this kind, and return its module; the test is skipped where this machine lacks it."""
    with suppress(ImportError):
        module = importlib.import_module(kind)
        _prefer(module, kind, monkeypatch)
        return module
    module = _Sqlite3(kind) if kind == "dbm.sqlite3" else _of_debian(kind)
    monkeypatch.setitem(sys.modules, kind, module)
    _prefer(module, kind, monkeypatch)
    monkeypatch.setattr(dbm, kind.removeprefix("dbm."), module, raising=False)
    return module


def force_faulty(monkeypatch: pytest.MonkeyPatch, *, full: bool = False) -> None:
    """Make `dbm` write by a kind that loses, cuts off or refuses some keys, or finds the disk full."""
    _prefer(dumb, "dbm.dumb", monkeypatch)
    monkeypatch.setattr(dbm, "_defaultmod", _Faulty(full=full))


def _prefer(module: ModuleType, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbm, "_defaultmod", module)
    monkeypatch.setitem(vars(dbm)["_modules"], kind, module)


def _of_debian(kind: str) -> ModuleType:
    """Return the module of Debian's Python, if it is of this version."""
    name = _EXTENSIONS[kind]
    file = Path(f"/usr/lib/python3.{sys.version_info.minor}/lib-dynload") / (
        f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    )
    if not file.exists():
        pytest.skip(f"needs {kind}, which this Python lacks: apt-get install python3-gdbm")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Sqlite3(ModuleType):
    """What `dbm.sqlite3`, which came with Python 3.13, does with a file, for the Pythons before it."""

    error = OSError

    def open(self, file: str, flag: str = "r", mode: int = 0o666) -> _Database:
        """Open a database; only a new one is asked for."""
        assert flag == "n"
        Path(file).unlink(missing_ok=True)
        return _Database(file)


class _Database:
    def __init__(self, file: str) -> None:
        self._connection = sqlite3.connect(file, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = wal")
        self._connection.execute("CREATE TABLE Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._connection.execute(
            "REPLACE INTO Dict (key, value) VALUES (CAST(? AS BLOB), CAST(? AS BLOB))", (key, value)
        )

    def close(self) -> None:
        """Close it."""
        self._connection.close()


_Database.__module__ = "dbm.sqlite3"


class _Faulty(ModuleType):
    error = OSError

    def __init__(self, *, full: bool = False) -> None:
        super().__init__("faulty")
        self._full = full

    def open(self, file: str, flag: str = "r", mode: int = 0o666) -> Any:
        """Open a file of `dbm.dumb` that does so."""
        return _FaultyDatabase(dumb.open(file, flag, mode), full=self._full)


class _FaultyDatabase:
    def __init__(self, inner: Any, *, full: bool) -> None:
        self._inner = inner
        self._full = full

    def __setitem__(self, key: bytes, value: bytes) -> None:
        if self._full:
            raise OSError(28, "No space left on device")
        if key == b"refused":
            raise OSError("the item is too large for a page")
        if key == b"cut":
            value = value[:1]
        if key != b"lost":
            self._inner[key] = value

    def close(self) -> None:
        """Close it."""
        self._inner.close()


_FaultyDatabase.__module__ = "dbm.dumb"


def names_of(folder: Path, *but: str) -> list[str]:
    """Return the names of all that is in a folder, but some."""
    return sorted(file.name for file in folder.iterdir() if file.name not in but)


def parts(name: str, ends: Iterable[str] = ("", ".db", ".pag", ".dat", ".dir", ".bak")) -> list[str]:
    """Return the names that files of a dbm can have."""
    return [f"{name}{end}" for end in ends]
