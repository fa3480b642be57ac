"""Everything public that takes a path, to be tried on the path of a store that this very process has open."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

from typer.main import get_command

import cloudstore_mapping as cm
from cloudstore_mapping import shelve, transfer
from cloudstore_mapping.cli import app
from cloudstore_mapping.errors import CloudStoreError
from cloudstore_mapping.service.configuration import load
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.maintenance import check_file, restore_file
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.transfer import Format, export_store, import_store
from cloudstore_mapping.web.options import Options
from cloudstore_mapping.web.tls import check_certificate
from tests.support.command_line import CliRunner

#: The store that is open, another one that isn't, and a file of JSON.
LIVE: Final = "live.db"
OTHER: Final = "other.db"
PLAIN: Final = "some.json"
#: The keys that are written after all.
KEYS: Final = [f"late {number}" for number in range(50)]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)

Store = cm.CloudStoreMapping[Any]
Operation = Callable[[Store, str], object]

#: Parameters of commands that take a text, but no path.
NO_PATHS: Final = frozenset(
    [
        "key",
        "keys",
        "filter_",
        "name",
        "names",
        "type_",
        "link",
        "format_",
        "host",
        "port",
        "workers",
        "base_path",
        "api_key",
        "plan",
        "limits",
        "keep",
        "interval",
        "files",
    ]
)
#: A command line for each command and parameter that takes a path, at PATH; BUSY is a port that can't be had.
COMMANDS: Final[dict[tuple[str, str], str]] = {
    ("get", "at"): "get first --at PATH",
    ("set", "source"): "set k @PATH --at OTHER",
    ("set", "at"): "set k 1 --at PATH",
    ("merge", "source"): "merge k @PATH --at OTHER",
    ("merge", "at"): "merge k 1 --at PATH",
    ("rm", "at"): "rm absent --at PATH",
    ("ls", "at"): "ls --at PATH",
    ("stat", "at"): "stat first --at PATH",
    ("doctor", "location"): "doctor PATH",
    ("edit", "at"): "edit first --at PATH",
    ("upload", "file"): "upload PATH --as a.bin --at OTHER",
    ("upload", "at"): "upload PLAIN --at PATH",
    ("download", "to"): "download LINK --to PATH --force --at LIVE",
    ("download", "at"): "download LINK --to got --at PATH",
    ("import", "file"): "import PATH --at OTHER",
    ("import", "at"): "import PLAIN --at PATH",
    ("export", "file"): "export PATH --format json --overwrite --at OTHER",
    ("export", "at"): "export all.json --at PATH",
    ("serve", "store"): "serve --port BUSY --store PATH",
    ("serve", "tls_cert"): "serve --port BUSY --tls-cert PATH --tls-key PLAIN --store OTHER",
    ("serve", "tls_key"): "serve --port BUSY --tls-cert PLAIN --tls-key PATH --store OTHER",
    ("serve", "config"): "serve --port BUSY --config PATH --store OTHER",
    ("passwd", "at"): "passwd absent --clear --at PATH",
    ("passwd", "store"): "passwd local absent --clear --store PATH",
    ("backup", "file"): "backup PATH --store OTHER",
    ("backup", "store"): "backup made.backup --store PATH",
    ("restore", "file"): "restore PATH --store restored.db",
    ("restore", "store"): "restore OTHER --store PATH",
    ("check", "store"): "check --store PATH",
    ("compact", "store"): "compact --store PATH",
    ("migrate", "store"): "migrate --store PATH",
    ("migrate-names", "store"): "migrate-names --store PATH",
    ("migrate-store", "source"): "migrate-store PATH copied.db",
    ("migrate-store", "target"): "migrate-store OTHER PATH",
    ("account create", "store"): "account create another --store PATH",
    ("account list", "store"): "account list --store PATH",
    ("account show", "store"): "account show local --store PATH",
    ("account set", "store"): "account set absent files=1 --store PATH",
    ("account disable", "store"): "account disable absent --store PATH",
    ("account enable", "store"): "account enable absent --store PATH",
    ("account rotate-key", "store"): "account rotate-key absent --store PATH",
    ("account reset-password", "store"): "account reset-password absent --store PATH",
    ("account delete", "store"): "account delete absent --yes --store PATH",
}


def commands() -> dict[str, list[str]]:
    """Return all commands, each with the names of those of its parameters that take a text."""

    def walk(command: Any, names: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
        for name, each in getattr(command, "commands", {}).items():
            yield from walk(each, (*names, name))
        if not hasattr(command, "commands"):
            yield " ".join(names), [each.name for each in command.params if not getattr(each, "is_flag", False)]

    return dict(walk(get_command(app), ()))


def _command(line: str) -> Operation:
    def operation(store: Store, path: str) -> object:
        link = next(iter(store.media_files())).url
        words = {"PATH": path, "@PATH": f"@{path}", "OTHER": OTHER, "PLAIN": PLAIN, "LIVE": LIVE, "LINK": link}
        with socket.create_server(("127.0.0.1", 0)) as taken:
            words["BUSY"] = str(taken.getsockname()[1])
            result = CliRunner().invoke(app, [words.get(word, word) for word in line.split()], env={"EDITOR": "true"})
        if isinstance(result.exception, Exception):
            raise result.exception
        return f"exit status {result.exit_code}: {result.stderr}"

    return operation


def _linked(name: str, work: Operation) -> Operation:
    """Return the operation with a file that it looks for by itself being a link to the path."""

    def operation(store: Store, path: str) -> object:
        link = Path(name)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(Path(path).absolute())
        return work(store, path)

    return operation


def _open(_: Store, path: str) -> None:
    cm.open(path).close()


def _shelve(flag: str, _: Store, path: str) -> None:
    shelve.open(path, flag).close()


def _upload(store: Store, path: str) -> object:
    return store.upload(Path(path), "a.bin")


def _download(store: Store, path: str) -> object:
    return store.download(next(iter(store.media_files())), path)


def _import(kind: Format | None, store: Store, path: str) -> object:
    return import_store(store, path, format=kind, trust=True)


def _export(kind: Format | None, store: Store, path: str) -> object:
    return export_store(store, path, format=kind, overwrite=True)


def _back_up(_: Store, path: str) -> None:
    with SQLiteStorage(OTHER) as storage:
        storage.back_up(Path(path).absolute(), lambda _done, _total: None)


def _restore(backup: str, target: str) -> None:
    restore_file(Path(backup).absolute(), Path(target).absolute(), lambda _done, _total: None)


#: Each public function and its parameter that takes a path, and then the way in which it is used.
FUNCTIONS: Final[dict[tuple[str, str], Operation]] = {
    ("open location", ""): _open,
    **{("shelve.open filename", flag): partial(_shelve, flag) for flag in "rwc"},
    ("shelve.DbfilenameShelf.__init__ filename", ""): lambda _, path: shelve.DbfilenameShelf(path).close(),
    ("shelve.open filename", "its secret"): _linked("a.secret", lambda store, _: _shelve("c", store, "a")),
    ("CloudStoreMapping.upload data", ""): _upload,
    ("CloudStoreMapping.download to", ""): _download,
    **{("transfer.import_store source", str(kind)): partial(_import, kind) for kind in (None, *FORMATS)},
    ("transfer.import_store source", "its .db"): _linked("a.db", lambda store, _: _import(None, store, "a")),
    ("transfer.import_store source", "its index"): _linked(
        f"{PLAIN}.media/index.jsonl", lambda store, _: _import(None, store, PLAIN)
    ),
    **{("transfer.export_store target", str(kind)): partial(_export, kind) for kind in (None, *FORMATS)},
    ("transfer.export_store target", "its .db"): _linked("a.db", lambda store, _: _export("shelve", store, "a")),
    ("transfer.export_store target", "its .part"): _linked("a.part", lambda store, _: _export("json", store, "a")),
    ("transfer.export_store target", "its index"): _linked(
        "a.media.part/index.jsonl", lambda store, _: _export("json", store, "a")
    ),
}
#: Parts of the package that take a path from elsewhere.
PARTS: Final[dict[str, Operation]] = {
    "back_up": _back_up,
    "check": lambda _, path: check_file(Path(path).absolute()),
    "restore from": lambda _, path: _restore(path, "restored.db"),
    "restore to": lambda _, path: _restore(OTHER, path),
    "settings": lambda _, path: load((Settings,), {}, {"config": path}),
    "certificate": lambda _, path: check_certificate(Options(tls_cert=path, tls_key=path)),
}
#: Parameters whose type names a path, but whose text is base64 or an address.
NOT_A_PATH: Final = frozenset({"CloudStore.upload data", "CloudStoreMapping.download media"})

OPERATIONS: Final[dict[str, Operation]] = {
    **{" ".join(["cloudstore", *names]): _command(line) for names, line in COMMANDS.items()},
    **{" ".join(names): work for names, work in FUNCTIONS.items()},
    **PARTS,
}


def parameters() -> Iterator[str]:
    """Yield the parameters of public functions and methods whose type says that they may be paths."""
    for module in (cm, shelve, transfer):
        within = module.__name__.removeprefix("cloudstore_mapping").removeprefix(".")
        for name in module.__all__:
            public = getattr(module, name)
            functions = {name: public}
            if inspect.isclass(public):
                public_names = [each for each in dir(public) if not each.startswith("_") or each == "__init__"]
                functions = {f"{name}.{each}": getattr(public, each) for each in public_names}
            for called, function in functions.items():
                for parameter in (
                    inspect.signature(function).parameters.values() if inspect.isfunction(function) else ()
                ):
                    if any(word in str(parameter.annotation) for word in ("Path", "Place", "IO[", "Media")):
                        yield f"{within}.{called} {parameter.name}".lstrip(".")


def main(path: str) -> None:
    """
    Hold the store, try one operation for each line of input, then write all the keys, and wait for the end.

    A line of output is JSON: the operation, and what it gave or raised.
    """
    with cm.open(OTHER) as other:
        other["first"] = 1
    Path(PLAIN).write_text("{}")
    with cm.open(LIVE) as store:
        store["first"] = 1
        store.upload(b"12345", "a.bin")
        Path("link.db").symlink_to(LIVE)
        if path == "hard.db":
            os.link(LIVE, path)
        kept = {each.name for each in Path().iterdir()} | {f"{LIVE}-journal"}
        for name, operation in OPERATIONS.items():
            sys.stdin.readline()
            for left in {each.name for each in Path().iterdir()} - kept:
                (shutil.rmtree if Path(left).is_dir() else os.unlink)(left)
            try:
                given = repr(operation(store, path))
            except (CloudStoreError, OSError, ValueError) as error:
                given = f"{type(error).__name__}: {error}"
            except Exception as error:  # noqa: BLE001 - the test says so
                given = f"unexpected {error!r}"
            sys.stdout.write(f"{json.dumps([name, given])}\n")
            sys.stdout.flush()
        sys.stdin.readline()
        for key in KEYS:
            store[key] = key
        sys.stdout.write("written\n")
        sys.stdout.flush()
        sys.stdin.readline()


if __name__ == "__main__":
    main(sys.argv[1])
