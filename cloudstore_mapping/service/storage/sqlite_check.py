"""A look at all that an SQLite store holds, which may be in use or of an older version."""

from __future__ import annotations

from pathlib import Path

from cloudstore_mapping.service.storage.checking import Findings, Report
from cloudstore_mapping.service.storage.sqlite_backup import examine
from cloudstore_mapping.service.storage.sqlite_files import check_place

__all__ = ["Findings", "check"]


def check(path: Path, report: Report = lambda _done, _total: None) -> Findings:
    """
    Return what is found in the store at `path`, as it is at one moment; it may be in use.

    Every page, value and media file is read. Raises `UnsupportedError` for what is no store of ours or too damaged to
    be read, and `FileNotFoundError` where there is none.
    """
    check_place(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no store {path}; look at its name.")
    return examine(path, report)
