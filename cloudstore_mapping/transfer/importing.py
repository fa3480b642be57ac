"""Into a store, from a file or another store: many keys at a time, and what is there already is left unless asked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from cloudstore_mapping.client.bulk import in_batches
from cloudstore_mapping.client.envelopes import Envelopes
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.progress import Progress, reporting
from cloudstore_mapping.client.raw import RawStore
from cloudstore_mapping.client.secret import Secret, secrets_of
from cloudstore_mapping.errors import BadValueError, ChangedError, CloudStoreError, NoFileError, UnsupportedError
from cloudstore_mapping.transfer.entries import PATIENCE, Entry, Failures
from cloudstore_mapping.transfer.formats import Format, format_of_source
from cloudstore_mapping.transfer.sources import FileSource, Opens, Source, StoreSource


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
        A file, another location that `cloudstore_mapping.open` knows, or another store.
    format
        ``json``, ``jsonl``, ``dbm``, ``shelve`` or ``store``; without it the file and its name say which.
    overwrite
        Whether keys and media files that are there already are replaced.
    trust
        Whether a shelf may be loaded, which runs what is in its pickles: say so of your own only.
    dry_run
        Only say what would be written.
    secret
        What signs those values of a shelf that are no JSON; see `cloudstore_mapping.shelve.open`.
    progress
        A function of how many keys are done, and of how many; True: a bar.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The format can't be told; `BadValueError` where the file doesn't hold to it, or is a shelf and not trusted.
    BulkError
        Some keys could not be read or written; all others are there.
    CloudStoreError, OSError
        What else ended it; begun again, it goes on.
    """
    target = RawStore(store)
    importing = _Import(target, overwrite=overwrite, dry_run=dry_run)
    if isinstance(source, CloudStoreMapping):
        return importing.run(StoreSource(RawStore(source)), progress)
    place = os.fspath(source)
    kind = format_of_source(place, format)
    if kind == "store":
        from cloudstore_mapping.locations import open as open_store  # loads what only this needs

        with open_store(place) as other:
            return importing.run(StoreSource(RawStore(other)), progress)
    if kind == "shelve" and not trust:
        raise BadValueError(
            f"{place} is a shelf, and loading it runs what is in its pickles; if it is your own, say trust=True."
        )
    path = Path(place)
    return importing.run(FileSource(path, kind, lambda: Envelopes(secrets_of(secret, target.file))), progress)


class _Import:
    def __init__(self, target: RawStore, *, overwrite: bool, dry_run: bool) -> None:
        self._target = target
        self._overwrite = overwrite
        self._dry_run = dry_run
        self._failures = Failures()
        self._written: dict[str, None] = {}
        self._skipped = 0

    def run(self, source: Source, progress: Progress) -> Imported:
        total = source.count()
        there = set(self._target.keys())
        done = 0
        with reporting(progress, total) as report:
            for batch in in_batches(source.entries(), Entry.size_of, seconds=PATIENCE):
                values: dict[str, bytes] = {}
                for key, value in batch:
                    if isinstance(value, CloudStoreError):
                        self._failures.add(key, value)
                    elif key in there and not self._overwrite:
                        self._skipped += 1
                    else:
                        values[key] = value
                done += len(batch) - len(values)
                for _ in self._write(values, there):
                    done += 1
                    report(done)
                report(done)
        media, media_skipped = self._store_media(source.media())
        self._failures.check(self._written, "imported")
        return Imported(len(self._written), self._skipped, media, media_skipped)

    def _write(self, values: dict[str, bytes], there: set[str]) -> Iterator[str]:
        """Write the values, and yield each key once it is done with."""
        if self._dry_run:
            self._written |= dict.fromkeys(values)
            yield from values
            return
        if self._overwrite and self._target.takes_batches:
            yield from self._leave_equal(values, [key for key in values if key in there])
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

    def _store_media(self, files: list[tuple[str, Opens]]) -> tuple[dict[str, str], int]:
        stored: dict[str, str] = {}
        skipped = 0
        for called, opens in files:
            try:
                with opens() as content:
                    if self._dry_run:
                        stored[content.name] = ""
                        continue
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
