"""Which form data have or get: told by the name of a file, by what is in it, or by whoever asks."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from cloudstore_mapping.transfer.dbmfiles import is_dbm, is_shelf

#: ``json``: one object; ``jsonl``: a line a key; ``dbm``: values that are JSON; ``shelve``: pickles, as the standard
#: library's; ``store``: another location.
Format: TypeAlias = Literal["json", "jsonl", "dbm", "shelve", "store"]

_ENDS: Final[dict[str, Format]] = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_LOCATION: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|memory:\Z")
#: Where an SQLite file says which program's it is, and what ours say; as `file(1)` finds it.
_ID_AT: Final = 68
_OURS: Final = b"CLSD"


def format_of_source(place: str, given: Format | None) -> Format:
    """Return the form of what is read; `ValueError` where it can't be told, `FileNotFoundError` where nothing is."""
    if _is_told(place, given):
        return given or "store"
    path = Path(place)
    if not path.exists() and not is_dbm(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
    if given is not None:
        return given
    if _is_ours(path):
        return "store"
    if is_dbm(path):
        return "shelve" if is_shelf(path) else "dbm"
    return _by_name(path)


def format_of_target(place: str, given: Format | None) -> Format:
    """Return the form of what is written; `ValueError` where it can't be told."""
    if _is_told(place, given):
        return given or "store"
    path = Path(place)
    if given is not None:
        return given
    return "store" if _is_ours(path) else _by_name(path)


def _is_told(place: str, given: Format | None) -> bool:
    if given is not None and given not in get_args(Format):
        raise ValueError(f"There is no format {given!r}; the formats are {', '.join(get_args(Format))}.")
    return given == "store" or (given is None and _LOCATION.match(place) is not None)


def _by_name(path: Path) -> Format:
    try:
        return _ENDS[path.suffix.lower()]
    except KeyError:
        raise ValueError(
            f"The name {str(path)!r} doesn't say which format it has; give one: {', '.join(get_args(Format))}."
        ) from None


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(_ID_AT + len(_OURS))[_ID_AT:] == _OURS
