"""Into a store, from a file or another store: many keys at a time, and what is there already is left unless asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from cloudstore_mapping.client.bulk import in_batches
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.progress import Progress, reporting
from cloudstore_mapping.client.shelf import Envelopes, Secret, new_secret, secrets_of
from cloudstore_mapping.errors import (
    BadValueError,
    BulkError,
    ChangedError,
    CloudStoreError,
    NoFileError,
    UnavailableError,
    UnsupportedError,
)
from cloudstore_mapping.service.storage.places import MEMORY
from cloudstore_mapping.signed import check_secret
from cloudstore_mapping.transfer.dbmkinds import dbm_itself
from cloudstore_mapping.transfer.entries import PATIENCE, Entry, Failures
from cloudstore_mapping.transfer.formats import Format
from cloudstore_mapping.transfer.raw_store import RawStore
from cloudstore_mapping.transfer.replacing import Replacement
from cloudstore_mapping.transfer.sources import Opens, Source, StoreSource, source_at


class Imported(NamedTuple):
    """
    What an import brought: keys that were written, and how many were left as they were because they were there.

    `media` are the media files that were stored, by name, with their addresses; `media_skipped` were there already.
    """

    written: int
    skipped: int
    media: Mapping[str, str]
    media_skipped: int


def import_store(
    store: CloudStoreMapping[Any],
    source: str | os.PathLike[str] | CloudStoreMapping[Any],
    *,
    format: Format | None = None,  # noqa: A002 - as `export_store` calls it
    overwrite: bool = False,
    trust: bool = False,
    dry_run: bool = False,
    secret: Secret | None = None,
    progress: Progress = None,
) -> Imported:
    """
    Write all keys and values of a file into a store, and the media files in the folder beside it.

    An import that was interrupted is begun again: what it had written is there already. Files of JSON are read to their
    end before the first key is written.

    Parameters
    ----------
    store
        The store, or a `view` of a part of it.
    source
        A file, a pipe, another location that `cloudstore_mapping.open` knows, or another store. A dbm file or shelf has
        the name that programs open it by, without the endings that its module adds.
    format
        ``json``, ``jsonl``, ``dbm``, ``shelve`` or ``store``; without it the file and its name say which.
    overwrite
        Whether keys and media files that are there already are replaced.
    trust
        Whether a shelf may be loaded, which runs what is in its pickles: say so of your own only.
    dry_run
        Only say what would be written. A service doesn't tell which media files it has, so of one all are counted.
    secret
        What signs those values of a shelf that are no JSON; see `cloudstore_mapping.shelve.open`.
    progress
        A function of how many keys are done, and of how many; True: a bar.

    Raises
    ------
    FileNotFoundError
        There is no such file or store.
    ValueError
        The format can't be told, a pipe brings nothing, or the source is the store itself; `BadValueError` where the
        file doesn't hold to its format, or is a shelf and not trusted.
    BulkError
        Some keys could not be read or written; all others are there.
    CloudStoreError, OSError
        What else ended it; begun again, it goes on.
    """
    importing = _Import(RawStore(store), overwrite=overwrite, dry_run=dry_run, secret=secret)
    if isinstance(source, CloudStoreMapping):
        return importing.run(StoreSource(RawStore(source)), progress)
    with source_at(os.fspath(source), format, trust=trust) as opened:
        return importing.run(opened, progress)


def import_at(
    location: str | None,
    source: Source,
    open_store: Callable[[str], CloudStoreMapping[Any]],
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = None,
) -> tuple[Imported, Path | None]:
    """
    Import into the store at a location, which is made only now that the source was looked at, and in no dry run.

    A store with the name that programs open the dbm file by is there once all keys are in it, so that no program takes
    a part for the whole. A file of that very name is kept; the second of what is returned is its new path. With the
    location ``cloudstore:NAME`` the keys get the prefix of the shelf of this name.
    """
    from cloudstore_mapping.locations import location_of, shelf_at, store_file  # loads what only this needs

    location, prefix = shelf_at(location)
    location = location_of(location)
    file = store_file(location)
    replaces = file is not None and source.dbm_name is not None and _is_made_from(file, source.dbm_name)
    secret: Secret | None = None
    if isinstance(source, StoreSource) and not prefix and source.is_in(file):
        raise _itself(file)  # before it is opened to write, which migrates a store of an older version
    with ExitStack() as stack:
        replacement = None
        if dry_run and file is not None and (replaces or not file.exists()):
            secret = secrets_of(None, file, makes=False) or [new_secret()]
            location = MEMORY
        elif replaces and file is not None:
            replacement = stack.enter_context(Replacement(file))
            location = str(replacement.draft)
        is_new = file is not None and replacement is None and not file.exists()
        store = stack.enter_context(open_store(location))
        target = store.view(prefix) if prefix else store
        importing = _Import(RawStore(target), overwrite=overwrite, dry_run=dry_run, secret=secret)
        try:
            done = importing.run(source, progress)
        except (CloudStoreError, OSError, ValueError) as error:
            if is_new and not dry_run and not RawStore(store).keys():
                error.add_note(f"So the new store {file} is empty; import again, or delete it.")
            if replacement is not None and isinstance(error, BulkError):
                error.succeeded.clear()  # they were in the draft, which is gone
                error.add_note(f"So there is no store {file} yet; mend these keys, or name another store.")
            raise
    return done, None if replacement is None else replacement.kept


def _is_made_from(store: Path, name: Path) -> bool:
    """Whether a store that isn't there yet has the name of this dbm file."""
    is_there = store.exists() and store.stat().st_size > 0
    return store.resolve() == name.resolve() and (not is_there or dbm_itself(store) is not None)


def _itself(file: Path | None) -> ValueError:
    return ValueError(f"{file or 'The source'} is the store itself; name another source, or its format.")


class _Import:
    def __init__(self, target: RawStore, *, overwrite: bool, dry_run: bool, secret: Secret | None) -> None:
        self._target = target
        self._secret = secret
        self._overwrite = overwrite
        self._dry_run = dry_run
        self._failures = Failures()
        self._written: dict[str, None] = {}
        self._skipped = 0

    def run(self, source: Source, progress: Progress) -> Imported:
        # With `overwrite` it would undo what others write between a read and a write.
        if isinstance(source, StoreSource) and source.is_same(self._target):
            raise _itself(self._target.file)
        total = source.count()
        there = set(self._target.keys())
        done = 0
        with reporting(progress, total) as report:
            for batch in in_batches(source.entries(self._envelopes), Entry.size_of, seconds=PATIENCE):
                values: dict[str, bytes] = {}
                for key, value in batch:
                    if isinstance(value, CloudStoreError):
                        self._failures.add(key, value)
                    elif key in there and not self._overwrite:
                        self._skipped += 1
                    else:
                        values[key] = value
                done += len(batch) - len(values)
                with self._naming_target():
                    for _ in self._write(values, there):
                        done += 1
                        report(done)
                report(done)
        media, media_skipped = self._store_media(source.media())
        for fault in source.faults():
            self._failures.add(str(fault.key), fault)
        self._failures.check(self._written, "imported")
        return Imported(len(self._written), self._skipped, media, media_skipped)

    @contextmanager
    def _naming_target(self) -> Iterator[None]:
        """Name the store that is written to where the error says no more than "the store": there are two."""
        try:
            yield
        except UnavailableError as error:
            error.message = f"{self._target.file or self._target.address or 'The target'} can't be written to: {error}"
            raise

    def _envelopes(self) -> Envelopes:
        check_secret(self._secret, self._target.file)
        secrets = secrets_of(self._secret, self._target.file, makes=not self._dry_run)
        if not secrets and self._dry_run and self._target.file is not None:
            secrets = [new_secret()]  # in the place of the one that would be made
        return Envelopes(secrets, prefix=self._target.prefix)

    def _write(self, values: dict[str, bytes], there: set[str]) -> Iterator[str]:
        """Write the values, and yield each key once it is done with."""
        if self._overwrite and self._target.takes_batches:
            yield from self._leave_equal(values, [key for key in values if key in there])
        if self._dry_run:
            self._written |= dict.fromkeys(values)
            yield from values
            return
        # One that comes twice in a file is there by then: the last one counts, as in any JSON.
        again = {key: value for key, value in values.items() if self._overwrite or key in self._written}
        new = {key: value for key, value in values.items() if key not in again}
        for some, only_new in ((new, True), (again, False)):
            for key, error in self._target.write(some, only_new=only_new):
                if error is None:
                    self._written[key] = None
                elif isinstance(error, ChangedError):
                    self._skipped += 1
                else:
                    self._failures.add(key, error)
                yield key

    def _leave_equal(self, values: dict[str, bytes], keys: list[str]) -> Iterator[str]:
        """Take out what is there as it is: so an import that is begun again writes only what is left to write."""
        for key, stored in self._target.read(keys):
            if isinstance(stored, bytes) and msgspec.json.format(stored, indent=-1) == values[key]:
                del values[key]
                self._skipped += 1
                yield key

    def _media_there(self) -> set[str]:
        """Return the names of the target's media files; none for a service, which doesn't list them."""
        try:
            return {media.name for media in self._target.media_files()}
        except UnsupportedError:
            return set()

    def _store_media(self, files: list[tuple[str, Opens]]) -> tuple[dict[str, str], int]:
        stored: dict[str, str] = {}
        skipped = 0
        there = self._media_there() if self._dry_run and not self._overwrite else set()
        for called, opens in files:
            try:
                with opens() as content:
                    if self._dry_run:
                        if content.name in there:
                            skipped += 1
                        else:
                            stored[content.name] = ""
                        continue
                    with self._naming_target():
                        stored[content.name] = self._target.upload(
                            content.name, content.file, content.mimetype, only_new=not self._overwrite
                        )
            except ChangedError:
                skipped += 1
            except NoFileError:
                self._failures.add(called, BadValueError(f"The address {called} leads nowhere.", key=called))
            except UnsupportedError as error:
                raise UnsupportedError(
                    "This service can't tell whether a media file is there already; say overwrite=True to store it."
                ) from error
            except CloudStoreError as error:
                self._failures.add(called, error)
        return stored, skipped
