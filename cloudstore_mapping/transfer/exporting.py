"""Export of a store to files: many keys at a time, on disk as soon as they are read, resumed after any interruption."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cloudstore_mapping.client.bulk import in_batches
from cloudstore_mapping.client.progress import Progress, reporting
from cloudstore_mapping.client.shelf import Envelopes, Secret, secrets_of
from cloudstore_mapping.errors import BadValueError, CloudStoreError, NoFileError, UnsupportedError
from cloudstore_mapping.service.storage.places import MEMORY, scheme_of
from cloudstore_mapping.transfer import dbmfiles
from cloudstore_mapping.transfer.entries import PATIENCE, Entry, Failures, about, entries_of
from cloudstore_mapping.transfer.export_target import ExportTarget
from cloudstore_mapping.transfer.formats import Format, format_of_target
from cloudstore_mapping.transfer.importing import import_store
from cloudstore_mapping.transfer.journal import Journal
from cloudstore_mapping.transfer.jsonfiles import write_lines, write_object
from cloudstore_mapping.transfer.links import Links
from cloudstore_mapping.transfer.mediafolder import MediaDraft, MediaItem
from cloudstore_mapping.transfer.raw_store import RawStore

if TYPE_CHECKING:
    from cloudstore_mapping.client.mapping import CloudStoreMapping


class Exported(NamedTuple):
    """
    What an export brought: keys and media files.

    `media` is None where that can't be told without reading the values, in a dry run on a service. `before` counts
    those of the keys that an interrupted export had read from a service without versions, `before_age` is the seconds
    since that export began. `skipped` are the keys that another store had already. `missing` are addresses of media
    files that stand in values and lead nowhere.
    """

    keys: int
    media: int | None
    before: int = 0
    skipped: int = 0
    missing: Sequence[str] = ()
    before_age: float = 0.0


def export_store(
    store: CloudStoreMapping[Any],
    target: str | os.PathLike[str],
    *,
    format: Format | None = None,  # noqa: A002 - as `shutil.make_archive` calls it
    overwrite: bool = False,
    dry_run: bool = False,
    secret: Secret | None = None,
    progress: Progress = None,
) -> Exported:
    """
    Write all keys and values of a store into a file, and its media files into a folder beside it.

    What was read is kept in ``….part`` until the file is whole. Begun again after an interruption, an export reads all
    values anew, for they may have changed, and keeps the media files whose checksums are still those of the store. A
    service without versions takes seconds a key: of one, the values that were read within the last hour are kept too.
    An export is not of one moment where others write meanwhile. Media files are those of an embedded store; of a
    service, which lists none, those whose addresses stand in the values.

    Only files that an earlier export made are replaced, and all of them or none: an empty file; one that is laid out
    as an export is, as JSON or JSON Lines; the files of a dbm as the record ``….exported`` beside them knows them, by
    their checksums; a folder of media files with its index. Anything else in the way is refused before anything is
    read or changed, and so are the store itself and the files beside it, whatever they are called here.

    Parameters
    ----------
    store
        The store, or a `view` of a part of it.
    target
        A file; or another location that `cloudstore_mapping.open` knows: then see `import_store`.
    format
        ``json``, ``jsonl``, ``dbm``, ``shelve`` or ``store``; without it the file's name says which.
    overwrite
        Whether an earlier export that is there may be replaced, and in another store a key.
    dry_run
        Only say what there is to export.
    secret
        Of a shelf whose pickles are to be read for the format ``shelve``; see `cloudstore_mapping.shelve.open`.
    progress
        A function of how many keys are read, and of how many; True: a bar.

    Raises
    ------
    FileExistsError
        There is such a file, and it isn't to be replaced.
    ValueError
        The name doesn't say the format, or the target is the store itself.
    UnsupportedError
        A file that would be replaced was not made by an export, or belongs to a store; the ``….part`` beside it is
        another store's export; or the store is empty only because the data in it are a service's.
    BulkError
        Some keys could not be read, of a password for one, or the format can't hold them; all others are in the file.
    CloudStoreError, OSError
        What else ended it; begun again, it goes on.
    """
    place = os.fspath(target)
    kind = format_of_target(place, format)
    if kind == "store":
        from cloudstore_mapping.locations import open as open_store  # loads what only this needs
        from cloudstore_mapping.locations import place_at

        found = place_at(place)
        file = None if found is None else found.file
        readonly = dry_run and found is not None and found.is_older()
        if dry_run and file is not None and not file.exists():
            place = MEMORY  # a dry run makes no store
        if RawStore(store).is_in(file):
            raise _itself()  # before it is opened to write, which migrates a store of an older version
        with open_store(place, readonly=readonly) as other:
            if RawStore(other).is_same(RawStore(store)):
                raise _itself()
            done = import_store(other, store, overwrite=overwrite, dry_run=dry_run, progress=progress)
        return Exported(done.written, len(done.media), skipped=done.skipped)
    if scheme_of(place) is not None:
        raise ValueError("The target is the address of a store; name a file, or leave the format out.")
    return _Export(RawStore(store), Path(place), kind, secret, progress).run(overwrite=overwrite, dry_run=dry_run)


def _itself() -> ValueError:
    return ValueError("The target is the store itself; name another one.")


class _Export:
    def __init__(self, store: RawStore, target: Path, kind: Format, secret: Secret | None, progress: Progress) -> None:
        self._store = store
        self._path = target
        self._kind = kind
        self._target = ExportTarget(target, kind, store.file)
        self._secret = secret
        self._progress = progress
        self._failures = Failures()

    def run(self, *, overwrite: bool, dry_run: bool) -> Exported:
        self._target.check(overwrite=overwrite)
        self._store.check_has_data()
        if dry_run:
            return Exported(len(self._store.keys()), self._count_media())
        with self._journal() as journal:
            self._read(journal)
            media = MediaDraft(self._path)
            missing = self._read_media(media, self._media_links(journal.entries()))
            with self._target.drafted() as draft:
                self._write(draft, journal.entries(), len(journal.keys))
                keys = sum(key not in self._failures for key in journal.keys)
                self._target.replace(journal, media, keys, overwrite=overwrite)
            journal.remove()
            self._failures.check(journal.keys, "exported")
            age = journal.age if journal.before else 0.0
            return Exported(len(journal.keys), len(media), journal.before, missing=tuple(missing), before_age=age)

    def _journal(self) -> Journal:
        journal = Journal(self._target.path, self._store.identity)
        if journal.is_replacing and self._target.exists():  # of an export that ended between its last steps, long ago
            journal.begin_anew()
        return journal

    def _read(self, journal: Journal) -> None:
        keys = self._store.keys()
        if journal.keys and self._store.has_versions:  # reading all again is quick, and misses no change
            journal.begin_anew()
        journal.drop_others(keys)
        left = [key for key in keys if key not in journal.keys]
        done = len(keys) - len(left)
        with reporting(self._progress, len(keys)) as report:
            for batch in in_batches(entries_of(self._store, left), Entry.size_of, seconds=PATIENCE):
                journal.add([(key, value) for key, value in batch if isinstance(value, bytes)])
                for key, value in batch:
                    if isinstance(value, CloudStoreError):
                        self._failures.add(key, value)
                done += len(batch)
                report(done)

    def _count_media(self) -> int | None:
        try:
            return len(self._store.media_files())
        except UnsupportedError:
            return None

    def _media_links(self, entries: Iterator[tuple[str, bytes]]) -> list[str]:
        try:
            return [media.url for media in self._store.media_files()]
        except UnsupportedError:
            links = Links(self._store.address)
            for _, value in entries:
                links.look(value)
            return list(links.found)

    def _read_media(self, draft: MediaDraft, links: list[str]) -> list[str]:
        missing: list[str] = []
        wanted = set(links)
        draft.keep(lambda item: item.link in wanted and self._is_still(item))
        for link in links:
            if link not in draft:
                try:
                    draft.add(link, self._store.fetch)
                except NoFileError:
                    missing.append(link)
        return missing

    def _is_still(self, item: MediaItem) -> bool:
        try:
            return self._store.is_still(item.link, item.sha256, item.size)
        except NoFileError:
            return False

    def _write(self, draft: Path, entries: Iterator[tuple[str, bytes]], count: int) -> None:
        if self._kind in ("json", "jsonl"):
            with draft.open("xb") as file:
                if self._kind == "json":
                    write_object(file, entries)
                else:
                    write_lines(file, entries, count)
            return
        pairs = self._pickled(entries) if self._kind == "shelve" else entries
        for error in dbmfiles.write(draft, pairs):
            self._failures.add(str(error.key), error)

    def _pickled(self, entries: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        envelopes = Envelopes(secrets_of(self._secret, self._store.file, makes=False), prefix=self._store.prefix)
        for key, value in entries:
            try:
                yield key, dbmfiles.pickled(key, value, envelopes)
            except BadValueError as error:
                self._failures.add(key, error)
            except Exception as error:  # noqa: BLE001 - whatever loads or makes a pickle raises whatever it likes
                self._failures.add(key, about(key, error))
