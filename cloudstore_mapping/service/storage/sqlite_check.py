"""A look at all that an SQLite store holds, which may be in use or of an older version."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from cloudstore_mapping.service.storage.checking import Findings, Report, look
from cloudstore_mapping.service.storage.sqlite_backup import verify
from cloudstore_mapping.service.storage.sqlite_session import SQLiteSession, unavailable

__all__ = ["Findings", "check"]

#: The first schema that has media files.
WITH_MEDIA: Final = 2


def check(path: Path, report: Report = lambda _done, _total: None) -> Findings:
    """
    Return what is found in the store at `path`, as it is at one moment; it may be in use.

    Every page, value and media file is read. Raises `UnsupportedError` for what is no store of ours or too damaged to
    be read, and `FileNotFoundError` where there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no store {path}; look at its name.")
    schema = verify(path)
    try:
        with closing(SQLiteSession(path, "ro")) as session, session.snapshot():
            return look(session, schema, report, has_media=schema >= WITH_MEDIA)
    except sqlite3.Error as error:
        raise unavailable(error) from error
