"""Dictionaries that others keep on a disk, as users would open them, with every save on disk when it is made."""

from __future__ import annotations

import json
import os
import shelve
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from benchmarks.harness import MissingError, Run
from benchmarks.serving import free_port, process, wait_for_port

_SYNCED: Final = "on disk when it is made"


@contextmanager
def diskcache(run: Run) -> Iterator[tuple[Any, str]]:
    """Open a diskcache whose SQLite syncs every commit; its default syncs none."""
    try:
        from diskcache import Cache  # type: ignore[import-untyped]  # nobody types it
    except ImportError as error:
        raise MissingError("diskcache isn't installed (extra `bench`).") from error

    class Updated(Cache):  # type: ignore[misc]  # it has no types
        def update(self, values: dict[str, Any]) -> None:
            for key, value in values.items():
                self[key] = value

    with Updated(str(run.folder / "diskcache"), sqlite_synchronous=2) as cache:
        yield cache, f"{_SYNCED} (SQLite, `synchronous=FULL`)"


class _Kept:
    """A dictionary of which every save is followed by what puts it on the disk."""

    def __init__(self, inner: Any, keep: Callable[[], object]) -> None:
        self._inner = inner
        self._keep = keep

    def __getitem__(self, key: str) -> Any:
        return self._inner[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def update(self, values: dict[str, Any]) -> None:
        self._inner.update(values)
        self._keep()


@contextmanager
def sqlitedict(run: Run) -> Iterator[tuple[Any, str]]:
    """Open an sqlitedict of JSON that syncs."""
    try:
        from sqlitedict import SqliteDict  # type: ignore[import-untyped]  # nobody types it
    except ImportError as error:
        raise MissingError("sqlitedict isn't installed (extra `bench`).") from error
    with SqliteDict(str(run.folder / "sqlitedict.db"), encode=json.dumps, decode=json.loads) as inner:
        inner.conn.execute("PRAGMA synchronous = FULL")
        yield _Kept(inner, inner.commit), f"{_SYNCED} (SQLite, `synchronous=FULL`, a commit a save)"


@contextmanager
def standard_shelve(run: Run) -> Iterator[tuple[Any, str]]:
    """Open the standard library's shelve."""
    with ExitStack() as stack:
        inner = stack.enter_context(shelve.open(str(run.folder / "shelf")))
        inner["first"] = None
        inner.sync()
        files = [stack.enter_context(path.open("r+b")) for path in run.folder.glob("shelf*")]

        def keep() -> None:
            inner.sync()
            for file in files:
                os.fsync(file.fileno())

        yield _Kept(inner, keep), f"{_SYNCED} (`sync()` and `fsync` after each save), but torn by a crash"


@contextmanager
def redis_dict(run: Run) -> Iterator[tuple[Any, str]]:
    """Open a redis-dict on a redis-server that syncs every write."""
    server = shutil.which("redis-server")
    if server is None or not run.with_servers:
        raise MissingError("redis-server isn't installed (Debian's package), or wasn't wanted.")
    try:
        from redis_dict import RedisDict
    except ImportError as error:
        raise MissingError("redis-dict isn't installed (extra `bench`).") from error
    port = free_port()
    folder = run.folder / "redis"
    folder.mkdir()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with process([server, *options, "--appendonly", "yes", "--appendfsync", "always"]):
        wait_for_port(port)
        yield RedisDict(namespace="bench", host="127.0.0.1", port=port), f"{_SYNCED} (`appendfsync always`)"


DICTIONARIES: Final = {
    "diskcache": diskcache,
    "sqlitedict": sqlitedict,
    "shelve": standard_shelve,
    "redis-dict": redis_dict,
}
