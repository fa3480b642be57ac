"""Command lines on a store that others are using, drawn by lot, and what each of them writes and makes."""

from __future__ import annotations

import dbm.dumb
import json
import os
import random
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

import cloudstore_mapping as cm

#: The keys that commands write begin with this, and then with the name of the command; nobody else writes them.
OWN: Final = "beside "
#: Keys of a long import; a short one has one.
MANY: Final = 300

#: Which commands run how often. Those on a key or all keys can also ask a service, those on a store take its file.
_ON_KEYS: Final = {"export": 4, "import": 3, "ls": 2, "get": 1, "stat": 1, "set": 2, "merge": 1}
_ON_STORES: Final = {"backup": 2, "check": 2, "migrate": 1, "account list": 1, "account show": 1, "account set": 1}
#: Those that name the store itself where another file belongs; they may refuse that.
_ON_ITSELF: Final = {"import itself": 2, "export to itself": 2, "restore over it": 1, "back up over it": 1}

_EXPORTS: Final = {"json": ".json", "jsonl": ".jsonl", "dbm": ".dbm", "shelve": ".shelf", "store": ".db"}
_FORMS: Final = ("", *_EXPORTS)


class Command(NamedTuple):
    """
    A command line.

    Attributes
    ----------
    way
        What is done.
    writes
        The keys that it writes.
    target
        The file that it makes.
    may_fail
        Whether it may be refused, or asks a service that may be killed meanwhile.
    """

    way: str
    arguments: list[str]
    writes: tuple[str, ...] = ()
    target: Path | None = None
    may_fail: bool = False


def value_of(key: str) -> list[str]:
    """Return the value that a command writes under one of its own keys."""
    return [key] * 10


class Commands:
    """
    Commands on a store, drawn by lot.

    Parameters
    ----------
    file
        The store's file.
    name
        What the commands' own files and keys begin with; the files are beside the store's.
    keys
        Keys that others write.
    location
        Where a service on the file is reached, if there is one.
    """

    def __init__(
        self, file: Path, name: str, dice: random.Random, keys: Sequence[str], location: str | None = None
    ) -> None:
        self._file = file
        self._name = name
        self._dice = dice
        self._keys = keys
        self._location = location
        self._ways = {**_ON_KEYS, **_ON_STORES, **_ON_ITSELF}
        self._count = 0

    def misread(self) -> Command:
        """Return a command that takes the store for a file of another kind."""
        return Command(
            "import itself", ["import", str(self._file), "--format", "json", "--at", str(self._file)], may_fail=True
        )

    def next(self, way: str | None = None) -> Command:
        """Return one more, of this way if one is given."""
        if way is None:
            (way,) = self._dice.choices(list(self._ways), list(self._ways.values()))
        self._count += 1
        own = self._file.with_name(f"{self._name}-{self._count}")
        if way in _ON_STORES:
            return self._on_store(way, own)
        if way in _ON_ITSELF:
            return self._on_itself(way)
        return self._on_keys(way, own)

    def _on_keys(self, way: str, own: Path) -> Command:
        is_remote = self._location is not None and self._dice.random() < 1 / 4
        at = ["--at", str(self._location if is_remote else self._spelled())]
        match way:
            case "export":
                form, end = self._dice.choice(list(_EXPORTS.items()))
                target = own.with_suffix(end)
                return Command(way, ["export", str(target), "--format", form, *at], (), target, is_remote)
            case "import":
                source, keys = self._source(own)
                return Command(way, ["import", str(source), *at], keys, None, is_remote)
            case "set" | "merge":
                key = f"{OWN}{own.name}"
                return Command(way, [way, key, json.dumps(value_of(key)), *at], (key,), None, is_remote)
            case "ls":
                return Command(way, ["ls", "--json", *at], may_fail=is_remote)
        # The key need not be there.
        return Command(way, [way, self._dice.choice(self._keys), *at], may_fail=True)

    def _on_store(self, way: str, own: Path) -> Command:
        store = ["--store", self._spelled()]
        match way:
            case "backup":
                target = own.with_suffix(".backup")
                return Command(way, ["backup", str(target), *store], (), target)
            case "check":
                return Command(way, ["check", "--json", *store])
            case "account show":
                return Command(way, ["account", "show", "local", *store])
            case "account set":
                return Command(way, ["account", "set", "local", "plan=unlimited", *store])
        return Command(way, [*way.split(), *store])

    def _on_itself(self, way: str) -> Command:
        place, form = self._spelled(), self._dice.choice(_FORMS)
        at = [*(["--format", form] if form else []), "--at", self._spelled()]
        arguments = {
            "import itself": ["import", place, "--overwrite", *at],
            "export to itself": ["export", place, "--overwrite", *at],
            "restore over it": ["restore", place, "--store", self._spelled()],
            "back up over it": ["backup", place, "--store", self._spelled()],
        }
        return Command(way, arguments[way], may_fail=True)

    def _spelled(self) -> str:
        """Return the store's location, in one of the ways to write it."""
        link = self._file.with_name("link.db")
        with suppress(FileExistsError):
            link.symlink_to(self._file)
        return self._dice.choice([str(self._file), f"sqlite:///{self._file}", str(link), os.path.relpath(self._file)])

    def _source(self, own: Path) -> tuple[Path, tuple[str, ...]]:
        """Return a new file to import, and the keys in it."""
        keys = tuple(f"{OWN}{own.name} {number}" for number in range(self._dice.choice((1, MANY))))
        values = {key: value_of(key) for key in keys}
        source = own.with_suffix(f".source{self._dice.choice(['.json', '.jsonl', '.dbm', '.db'])}")
        match source.suffix:
            case ".json":
                source.write_text(json.dumps(values))
            case ".jsonl":
                lines = [json.dumps({"key": key, "value": value}) for key, value in values.items()]
                source.write_text("\n".join(lines))
            case ".dbm":
                with closing(dbm.dumb.open(str(source), "n")) as file:
                    file.update({key.encode(): json.dumps(value).encode() for key, value in values.items()})
            case ".db":
                with cm.open(source) as store:
                    store.update(values)
        return source, keys
