"""Which form data have or get: told by the name of a file, by what is in it, or by whoever asks."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from cloudstore_mapping.storefiles import is_store, open_file
from cloudstore_mapping.transfer.dbmfiles import is_dbm, is_shelf
from cloudstore_mapping.transfer.dbmkinds import SQLITE, dbm_at, first_bytes
from cloudstore_mapping.transfer.jsonfiles import is_line

#: ``json``: one object; ``jsonl``: a line a key; ``dbm``: values that are JSON; ``shelve``: pickles, as the standard
#: library's; ``store``: another location.
Format: TypeAlias = Literal["json", "jsonl", "dbm", "shelve", "store"]

_ENDS: Final[dict[str, Format]] = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}
#: What can come through a pipe.
_STREAMS: Final = ("json", "jsonl")
_LOCATION: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|memory:\Z")


def format_of_source(place: str, given: Format | None) -> Format:
    """Return the form of what is read; `ValueError` where it can't be told, `FileNotFoundError` where nothing is."""
    if _is_told(place, given):
        return given or "store"
    path = Path(place)
    if not path.exists() and not is_dbm(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
    if given is not None:
        return given
    if is_store(path):
        return "store"
    if is_dbm(path):
        return "shelve" if is_shelf(path) else "dbm"
    return _by_name(path)


def format_of_stream(called: str, name: str, held: Path, given: Format | None) -> Format:
    """Return the form of what came through a pipe and is `held` in a file; `ValueError` where it can't be told."""
    if given is not None and given not in get_args(Format):
        raise _no_format(given)
    if given not in (None, *_STREAMS) or dbm_at(held) or first_bytes(held) == SQLITE:
        raise ValueError(f"{called} can bring {' or '.join(_STREAMS)} only; for any other format name a file.")
    if not held.stat().st_size:
        raise ValueError(f"{called} brought nothing; look whether the program before it failed.")
    return given or _ENDS.get(Path(name).suffix.lower()) or _by_lines(called, held)


def _by_lines(called: str, held: Path) -> Format:
    with open_file(held) as file:
        lines = (line for line in file if line.strip())
        first = next(lines, b"").removeprefix(b"\xef\xbb\xbf")
        is_last = next(lines, None) is None
    if not first.lstrip().startswith(b"{") or (is_line(first) and is_last):  # one line of JSON Lines is an object too
        raise ValueError(f"{called} doesn't show which format it has; give one: {', '.join(_STREAMS)}.")
    return "jsonl" if is_line(first) else "json"


def format_of_target(place: str, given: Format | None) -> Format:
    """Return the form of what is written; `ValueError` where it can't be told."""
    if _is_told(place, given):
        return given or "store"
    path = Path(place)
    if given is not None:
        return given
    return "store" if is_store(path) else _by_name(path)


def _is_told(place: str, given: Format | None) -> bool:
    if given is not None and given not in get_args(Format):
        raise _no_format(given)
    return given == "store" or (given is None and _LOCATION.match(place) is not None)


def _no_format(given: str) -> ValueError:
    return ValueError(f"There is no format {given!r}; the formats are {', '.join(get_args(Format))}.")


def _by_name(path: Path) -> Format:
    try:
        return _ENDS[path.suffix.lower()]
    except KeyError:
        raise ValueError(
            f"The name {str(path)!r} doesn't say which format it has; give one: {', '.join(get_args(Format))}."
        ) from None
