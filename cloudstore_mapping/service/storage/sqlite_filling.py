"""A new SQLite store that is filled row by row from a store of any engine."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage.copying import Copied, Report, copy_store
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.service.storage.sqlite_backup import drafted, failed_copy, make_one_file, verify
from cloudstore_mapping.sqlite_forks import connected


def copy_to_file(source: Transaction, path: Path, report: Report) -> dict[str, Copied]:
    """
    Copy what `source` sees into a new file at `path`, which is there only once it is whole; see `copy_store`.

    Raises `FileExistsError` where there is a file already.
    """
    with drafted(path) as draft:
        try:
            with SQLiteStorage(draft) as storage:
                copied = copy_store(source, storage, report)
            with connected(draft) as connection:
                make_one_file(connection)
        except (sqlite3.Error, PermissionError, UnavailableError) as error:
            raise failed_copy(error, draft) from error
        verify(draft)
    return copied
