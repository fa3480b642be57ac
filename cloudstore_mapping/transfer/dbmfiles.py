"""Files of `dbm` and `shelve`, of every kind that the standard library makes: read, and written whole or not at all."""

from __future__ import annotations

import ast
import dbm
import errno
import hashlib
import os
import pickle
import pickletools
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

from msgspec import MsgspecError

from cloudstore_mapping.client import codec
from cloudstore_mapping.client.shelf import Envelopes
from cloudstore_mapping.errors import BadValueError, UnsupportedError, shorten
from cloudstore_mapping.sqlite_forks import connected
from cloudstore_mapping.storefiles import open_file, read_file
from cloudstore_mapping.transfer.dbmkinds import TABLE, DbmFile, berkeley_count, dbm_at, read_only
from cloudstore_mapping.transfer.entries import Entry, about, checked
from cloudstore_mapping.wire import decode_value, encode_value

_STOP: Final = b"."  # a pickle's last byte
#: `dbm.dumb` begins each value at a multiple of so many bytes.
_DUMB_BLOCK: Final = 512

#: The kinds whose module is another one's.
_NAMES: Final = {"_dbm": "ndbm", "_gdbm": "gnu"}
#: Errors of the whole file, whichever key was written.
_OF_THE_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)

#: A key and its value; None for one that is cut off.
_Pair: TypeAlias = tuple[bytes, bytes | None]


def is_dbm(path: Path) -> bool:
    """Whether there is a dbm file under this name."""
    return dbm_at(path) is not None


def is_shelf(path: Path) -> bool:
    """Whether the first value of a dbm file is a pickle by its form, as those of a shelf are; none is loaded."""
    with _pairs(path) as pairs:
        return any(_is_pickle(value) for _, value in islice(pairs, 1))


def length(path: Path) -> int:
    """Return how many keys a dbm file holds, after all of it was read, and nothing of it loaded."""
    with _pairs(path) as pairs:
        return sum(1 for _ in pairs)


def read_dbm(path: Path) -> Iterator[Entry]:
    """Yield what a dbm file holds: values that are JSON as that, and other texts as texts."""
    return _entries(path, _plain)


def read_shelf(path: Path, envelopes: Envelopes) -> Iterator[Entry]:
    """Yield what a shelf holds, as a shelf of ours stores it; this runs what is in its pickles."""

    def value(key: str, pickled: bytes) -> Entry:
        try:
            loaded = pickle.loads(pickled)  # noqa: S301 - whoever calls this was asked whether the shelf is trusted
            return Entry(key, bytes(codec.encode(envelopes.dump(key, loaded))))
        except Exception as error:  # noqa: BLE001 - whatever runs in a pickle raises whatever it likes
            return Entry(key, about(key, error, _remedy(error)))

    return _entries(path, value)


def _remedy(error: Exception) -> str | None:
    """Return why a pickle's class isn't found, and the remedy; None for any other error."""
    if isinstance(error, AttributeError) and "__main__" in str(error):
        return f"{error}; its class is in the program itself, so let this program call transfer.import_store"
    if isinstance(error, ImportError):
        return f"{error}; its class is in your program's folder, so put PYTHONPATH=. before the command there"
    return None


def pickled(key: str, value: bytes, envelopes: Envelopes) -> bytes:
    """Return a stored value as the standard library's shelf holds it; `BadValueError` where it can't be trusted."""
    return pickle.dumps(envelopes.load(key, codec.decode(value)))


def write(path: Path, entries: Iterable[tuple[str, bytes]]) -> list[BadValueError]:
    """
    Make a new dbm file, of the kind that the standard library prefers here; return an error for each key it can't hold.

    All of it is read back, for some kinds lose a key or a value without a word.
    """
    failed: dict[bytes, str] = {}
    digests: dict[bytes, bytes] = {}
    with closing(dbm.open(os.fspath(path), "n")) as opened:
        kind = f"dbm.{_NAMES.get(type(opened).__module__, type(opened).__module__.removeprefix('dbm.'))}"
        for key, value in entries:
            name = key.encode()
            try:
                if kind == "dbm.ndbm" and not name:  # it takes it, but then may list no key at all
                    raise ValueError("it takes no empty key")  # noqa: TRY301 - told as what it raises itself
                opened[name] = value
                digests[name] = _digest(value)
            except (*dbm.error, ValueError, OverflowError) as error:
                if getattr(error, "errno", None) in _OF_THE_DISK:
                    raise
                failed[name] = str(error) or type(error).__name__
    lost = _lost(path, digests)
    if kind == "dbm.sqlite3":
        with connected(path) as connection:  # so that no log is left beside it
            connection.execute("PRAGMA journal_mode = DELETE")
    for name in lost:
        failed[name] = "it was not there when the file was read back"
    return [
        BadValueError(f"A file of {kind} can't hold the key {shorten(key)}: {why}; export it as JSON.", key=key)
        for key, why in ((name.decode(), why) for name, why in failed.items())
    ]


def _lost(path: Path, digests: dict[bytes, bytes]) -> list[bytes]:
    """Return the keys that don't have the value with their digest, after taking away those with another value."""
    lost = dict(digests)
    wrong: list[bytes] = []
    with _pairs(path) as pairs:
        for name, value in pairs:
            if _digest(value or b"") == lost.get(name):
                del lost[name]
            else:
                wrong.append(name)
    if wrong:
        with closing(dbm.open(os.fspath(path), "w")) as opened:
            for name in wrong:
                del opened[name]
    return list(lost)


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()


def _entries(path: Path, value: Callable[[str, bytes], Entry]) -> Iterator[Entry]:
    with _pairs(path) as pairs:
        for key, stored in pairs:
            try:
                text = key.decode()
            except UnicodeDecodeError:
                shown = key.decode("utf-8", "backslashreplace")
                yield Entry(shown, BadValueError(f"The key {shown!r} is no UTF-8; give it another name.", key=shown))
                continue
            if stored is None:
                sentence = f"The value of {text!r} is cut off in {path}; mend the file, or delete the key there."
                yield Entry(text, BadValueError(sentence, key=text))
                continue
            yield value(text, stored)


def _is_pickle(value: bytes | None) -> bool:
    """Whether these bytes are one whole pickle of any protocol: Python 2 made shelves of protocol 0, which is text."""
    if value is None or not value.endswith(_STOP):
        return False
    try:
        *_, (_, _, position) = pickletools.genops(value)
    except Exception:  # noqa: BLE001 - any bytes may be there
        return False
    return position == len(value) - 1 > 0


def _plain(key: str, stored: bytes) -> Entry:
    try:
        decode_value(stored)
    except (MsgspecError, UnicodeDecodeError, RecursionError):
        try:
            return Entry(key, bytes(encode_value(stored.decode())))
        except UnicodeDecodeError:
            sentence = f"The value of {shorten(key)} is neither JSON nor text in UTF-8; if the file is a shelf, say so."
            return Entry(key, BadValueError(sentence, key=key))
    return checked(key, stored)


@contextmanager
def _pairs(path: Path) -> Iterator[Iterator[_Pair]]:
    found = dbm_at(path)
    if found is None:
        raise UnsupportedError(f"{path} is no dbm file that is known here; look at its name.")
    if found.reader == "dbm.sqlite3":
        pairs = _of_sqlite(found.name)
    elif found.reader == "dbm.dumb":
        pairs = _of_dumb(found.name)
    else:
        pairs = _of_module(found)
    with closing(pairs):
        yield _undamaged(found, pairs)


def _undamaged(found: DbmFile, pairs: Iterator[_Pair]) -> Iterator[_Pair]:
    try:
        yield from pairs
    except (*dbm.error, sqlite3.Error, ValueError) as error:
        raise UnsupportedError(f"{found.name} can't be read by {found.reader}: {error}; is it damaged?") from error


def _of_sqlite(path: Path) -> Generator[_Pair]:
    with closing(read_only(path)) as connection:
        for key, value in connection.execute(f"SELECT CAST(key AS BLOB), CAST(value AS BLOB) FROM {TABLE}"):  # noqa: S608 - constants
            if key is None:
                raise ValueError("it has a row without a key")
            yield key, value
        # Of a page that is lost, SQLite reads fewer rows, or zeros; but each key is in the index of keys as well.
        (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise ValueError(found.splitlines()[-1])
        # It fills up a cut page with zeros, unless its log has the page.
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        if path.stat().st_size % page_size and not Path(f"{path}-wal").exists():
            raise ValueError("its last page is cut off")


def _of_dumb(path: Path) -> Generator[_Pair]:
    # Not by the module: of a value that is cut off it returns what is left, and it opens a file without its index.
    index = Path(f"{path}.dir")
    if not index.is_file():
        raise ValueError(f"{index} is missing, of which {path}.bak is the version before")
    places = _places(index)
    with open_file(f"{path}.dat") as file:
        end = file.seek(0, os.SEEK_END)
        for key, (start, size) in places.items():
            is_whole = start + size <= end
            file.seek(start if is_whole else end)
            yield key.encode("latin-1"), file.read(size) if is_whole else None


def _places(index: Path) -> dict[str, tuple[int, int]]:
    """Return the start and size of each key's value; `ValueError` for an index that `dbm.dumb` doesn't write."""
    places: dict[str, tuple[int, int]] = {}
    text = read_file(index).decode("latin-1")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            key, (start, size) = ast.literal_eval(line)
            is_valid = isinstance(key, str) and min(start, size) >= 0 and start % _DUMB_BLOCK == 0
        except (SyntaxError, TypeError, ValueError) as error:
            raise ValueError(f"line {number} of {index} is none of an index") from error
        if not is_valid or key in places:
            raise ValueError(f"line {number} of {index} {'has a key twice' if is_valid else 'is none of an index'}")
        places[key] = (start, size)
    if text and not text.endswith("\n"):
        raise ValueError(f"the last line of {index} is cut off")
    end, last = 0, ""
    for start, size, key in sorted((start, size, key) for key, (start, size) in places.items() if size):
        if start < end:
            raise ValueError(f"{shorten(last)} and {shorten(key)} have the same place in {index}")
        end, last = start + size, key
    return places


def _of_module(found: DbmFile) -> Generator[_Pair]:
    try:
        module = import_module(found.reader)
    except ImportError as error:
        raise UnsupportedError(
            f"{found.name} is a file of {found.maker}, and this Python lacks {found.reader}; use "
            + ("Debian's with python3-gdbm, or " if found.reader == "dbm.gnu" else "")
            + "the Python that made the file."
        ) from error
    with ExitStack() as stack:
        name = found.name
        if found.maker == "dbhash":  # Python 2's, which `dbm.ndbm` finds under a longer name
            name = Path(stack.enter_context(TemporaryDirectory())) / "linked"
            Path(f"{name}.db").symlink_to(found.name.absolute())
        count = berkeley_count(found.files[0])
        opened = stack.enter_context(closing(module.open(os.fspath(name), "r")))
        # These libraries end the keys at an error as if they were all.
        if found.reader == "dbm.gnu":
            count = len(opened)
        seen = 0
        for key in _keys(opened):
            value = opened.get(key)
            if value is None:
                raise ValueError(f"it lists the key {shorten(key.decode('utf-8', 'backslashreplace'))} without a value")
            yield key, value
            seen += 1
        if count is not None and seen < count:
            raise ValueError(f"it does not list all of its keys ({count - seen:,} are missing)")


def _keys(opened: Any) -> Iterator[bytes]:
    if not hasattr(opened, "firstkey"):
        keys = opened.keys()
        if len(set(keys)) < len(keys):
            raise ValueError("it lists a key twice")
        yield from keys
        return
    key = opened.firstkey()
    while key is not None:
        yield key
        key = opened.nextkey(key)
