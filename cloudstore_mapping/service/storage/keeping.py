"""What keeps a store safe, whatever its engine: copies, checks, moving to another engine, names of version 0.1.0."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.service.storage.checking import Findings, look
from cloudstore_mapping.service.storage.copying import Copied, Report, copy_store
from cloudstore_mapping.service.storage.places import StoreLocation
from cloudstore_mapping.service.storage.renaming import Renames, rename_files
from cloudstore_mapping.service.storage.sql import Transaction


def schemas(place: StoreLocation) -> tuple[int, int]:
    """Return the number of the schema that a store which is there has, and that of the newest one."""
    if place.file is not None:
        from cloudstore_mapping.service.storage.migrations import newest
        from cloudstore_mapping.service.storage.sqlite_backup import verify
        from cloudstore_mapping.service.storage.sqlite_files import check_place

        check_place(place.file)
        return verify(place.file), newest()
    from cloudstore_mapping.service.storage.postgres_migrations import newest as newest_of_postgres

    return place.schema(), newest_of_postgres()


def check(place: StoreLocation, report: Report) -> Findings:
    """Return the findings of a look at a store, as it is at one moment; it may be in use."""
    if place.file is not None:
        from cloudstore_mapping.service.storage.sqlite_check import check as check_file

        return check_file(place.file, report)
    schema = place.schema()
    with place.open() as storage, storage.read() as transaction:
        return look(transaction, schema, report)


def back_up(source: StoreLocation, path: Path, report: Report) -> Findings:
    """
    Copy a store into a new file at `path`, and return the findings of a look at the copy.

    What is damaged in the store is so in the copy, which is kept: all else is in it.
    """
    from cloudstore_mapping.service.storage.sqlite_check import check as check_file

    with source.open() as storage:
        storage.back_up(path, report)
    return check_file(path, report)


def restore(backup: Path, place: StoreLocation, report: Report) -> None:
    """
    Make a backup a store again at a place where there is none, once each value and media file fits its checksum.

    Raises `UnsupportedError` where it isn't one of ours, is damaged or of a newer version, or where the database holds
    a store already; `FileExistsError` where the file is there; `FileNotFoundError` where there is no backup.
    """
    from cloudstore_mapping.service.storage.migrations import newest
    from cloudstore_mapping.service.storage.sqlite import SQLiteSession
    from cloudstore_mapping.service.storage.sqlite_backup import check_restorable, examine
    from cloudstore_mapping.service.storage.sqlite_backup import restore as restore_file
    from cloudstore_mapping.service.storage.sqlite_files import reading_mode, refuse_leftovers

    if place.file is not None:
        restore_file(backup, place.file, report)
        return
    refuse_leftovers(backup)
    if not backup.is_file():
        raise FileNotFoundError(f"There is no backup {backup}; look at its name.")
    findings = examine(backup, report)
    check_restorable(backup, findings)
    if findings.schema < newest():
        raise UnsupportedError(
            f"{backup} is of an older version; restore it to a file, then copy that with `cloudstore migrate-store`."
        )
    with closing(SQLiteSession(backup, reading_mode(backup))) as session, session.snapshot():
        _fill(session, place, report)


def migrate_store(source: StoreLocation, target: StoreLocation, report: Report) -> dict[str, Copied]:
    """
    Copy all that a store holds at one moment to a place where there is none yet, and return what was copied.

    Who is signed in isn't copied, nor what is being uploaded. Raises `UnsupportedError` where something in the source
    is damaged, and that or `FileExistsError` where there is a store already.
    """
    with source.open() as storage, storage.read() as read:
        transaction = read
        if look(transaction, schema=0).faults:
            raise UnsupportedError(
                f"{source} is damaged and was not copied; `cloudstore check --store {source}` names each fault."
            )
        return _fill(transaction, target, report)


def migrate_names(
    place: StoreLocation, report: Report, *, keep: Collection[str] = (), dry_run: bool = False
) -> Renames:
    """Rename the files of a store that have names of version 0.1.0; see `renaming.rename_files`."""
    with place.open() as storage:
        return rename_files(storage, time.time(), report, keep=keep, dry_run=dry_run)


def _fill(source: Transaction, target: StoreLocation, report: Report) -> dict[str, Copied]:
    if target.file is not None:
        from cloudstore_mapping.service.storage.sqlite_filling import copy_to_file

        return copy_to_file(source, target.file, report)
    with target.open(to_fill=True) as storage:
        return copy_store(source, storage, report)
