"""Files of `dbm` and `shelve`, of every kind that the standard library makes: read, and written whole or not at all."""

from __future__ import annotations

import dbm
import os
import pickle
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from msgspec import MsgspecError

from cloudstore_mapping.client import codec
from cloudstore_mapping.client.envelopes import Envelopes
from cloudstore_mapping.errors import BadValueError, UnsupportedError
from cloudstore_mapping.transfer.entries import Entry, about, checked
from cloudstore_mapping.wire import decode_value, encode_value

#: What the names of the files end with that one dbm file consists of.
ENDS: Final = ("", ".db", ".pag", ".dat", ".dir", ".bak")

_SQLITE: Final = b"SQLite format 3\0"
#: The table of the files that `dbm.sqlite3` makes, which Python knows from 3.13 on; they are read on every one.
_TABLE: Final = "Dict"
_PICKLED: Final = (b"\x80", b".")

_Pair = tuple[bytes, bytes]


def is_dbm(path: Path) -> bool:
    """Whether there is a dbm file under this name."""
    return bool(_kind(path))


def is_shelf(path: Path) -> bool:
    """Whether the first value of a dbm file looks like a pickle, as those of a shelf do."""
    with _pairs(path) as pairs:
        first = next(pairs, None)
    return first is not None and first[1].startswith(_PICKLED[0]) and first[1].endswith(_PICKLED[1])


def length(path: Path) -> int:
    """Return how many keys a dbm file holds."""
    with _pairs(path, keys_only=True) as pairs:
        return sum(1 for _ in pairs)


def files_of(path: Path) -> list[Path]:
    """Return the files that are there of the dbm file under this name."""
    return [file for end in ENDS if (file := Path(f"{path}{end}")).exists()] if is_dbm(path) else []


def read_dbm(path: Path) -> Iterator[Entry]:
    """Yield what a dbm file holds: values that are JSON as that, and other texts as texts."""
    return _entries(path, _plain)


def read_shelf(path: Path, envelopes: Envelopes) -> Iterator[Entry]:
    """Yield what a shelf holds, as a shelf of ours stores it; this runs what is in its pickles."""

    def value(key: str, pickled: bytes) -> Entry:
        try:
            loaded = pickle.loads(pickled)  # noqa: S301 - whoever calls this was asked whether the shelf is trusted
            return Entry(key, bytes(codec.dump(envelopes.dump(key, loaded))))
        except Exception as error:  # noqa: BLE001 - whatever runs in a pickle raises whatever it likes
            return Entry(key, about(key, error))

    return _entries(path, value)


def pickled(key: str, value: bytes, envelopes: Envelopes) -> bytes:
    """Return a stored value as the standard library's shelf holds it; `BadValueError` where it can't be trusted."""
    return pickle.dumps(envelopes.load(key, codec.load(value)))


def write(path: Path, entries: Iterable[tuple[str, bytes]]) -> None:
    """Make a dbm file, of the kind that the standard library prefers here, in the place of one that is there."""
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        try:
            with closing(dbm.open(os.fspath(draft), "n")) as opened:
                for key, value in entries:
                    opened[key.encode()] = value
        except dbm.error as error:
            raise UnsupportedError(
                f"{dbm.whichdb(os.fspath(draft))} can't hold what is to be written: {error}; export as JSON."
            ) from error
        for old in files_of(path):
            old.unlink()
        for file in Path(folder).iterdir():
            file.replace(path.parent / file.name)


def _entries(path: Path, value: Callable[[str, bytes], Entry]) -> Iterator[Entry]:
    with _pairs(path) as pairs:
        for key, stored in pairs:
            try:
                text = key.decode()
            except UnicodeDecodeError:
                shown = key.decode("utf-8", "backslashreplace")
                yield Entry(shown, BadValueError(f"The key {shown!r} is no UTF-8; give it another name.", key=shown))
                continue
            yield value(text, stored)


def _plain(key: str, stored: bytes) -> Entry:
    try:
        decode_value(stored)
    except (MsgspecError, UnicodeDecodeError, RecursionError):
        try:
            return Entry(key, bytes(encode_value(stored.decode())))
        except UnicodeDecodeError:
            sentence = f"The value of {key!r} is neither JSON nor text in UTF-8; if the file is a shelf, say so."
            return Entry(key, BadValueError(sentence, key=key))
    return checked(key, stored)


@contextmanager
def _pairs(path: Path, *, keys_only: bool = False) -> Iterator[Iterator[_Pair]]:
    kind = _kind(path)
    if kind == "dbm.sqlite3":
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            value = "x''" if keys_only else "CAST(value AS BLOB)"
            yield iter(connection.execute(f"SELECT CAST(key AS BLOB), {value} FROM {_TABLE}"))  # noqa: S608 - constants
        return
    if not kind:
        raise UnsupportedError(f"{path} is no dbm file that is known here; look at its name.")
    try:
        module = import_module(kind)
    except ImportError as error:
        raise UnsupportedError(
            f"{path} is a file of {kind}, which this Python lacks; install it (Debian: python3-gdbm)."
        ) from error
    try:
        opened = module.open(os.fspath(path), "r")
    except dbm.error as error:
        raise UnsupportedError(f"{path} can't be read by {kind}: {error}; is it damaged?") from error
    with closing(opened):
        yield ((key, b"" if keys_only else opened[key]) for key in _keys(opened))


def _keys(opened: Any) -> Iterator[bytes]:
    if not hasattr(opened, "firstkey"):
        yield from opened.keys()
        return
    key = opened.firstkey()
    while key is not None:
        yield key
        key = opened.nextkey(key)


def _kind(path: Path) -> str:
    """Return the module that made the file, empty where it is none that is known or there is none."""
    with suppress(OSError):
        with path.open("rb") as file:
            if file.read(len(_SQLITE)) != _SQLITE:
                return dbm.whichdb(os.fspath(path)) or ""
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
            return "dbm.sqlite3" if (_TABLE,) in tables else ""
    return dbm.whichdb(os.fspath(path)) or ""
