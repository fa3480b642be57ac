"""Files of an export: recognise those of an earlier one, and replace all of them or none."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cloudstore_mapping.client.shelf import refuse_secret
from cloudstore_mapping.drafts import draft_of
from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.sqlite_forks import connected
from cloudstore_mapping.storefiles import (
    PRIVATE,
    SIDECARS,
    application_id,
    open_file,
    read_file,
    refuse_log_name,
    refuse_sidecar,
    refuse_store,
    sync_folder,
)
from cloudstore_mapping.transfer.dbmkinds import TABLE
from cloudstore_mapping.transfer.journal import END, is_replacing
from cloudstore_mapping.transfer.jsonfiles import has_layout_of_export
from cloudstore_mapping.transfer.mediafolder import folder_of, is_exported

if TYPE_CHECKING:
    from cloudstore_mapping.transfer.formats import Format
    from cloudstore_mapping.transfer.journal import Journal
    from cloudstore_mapping.transfer.mediafolder import MediaDraft

#: The end of the name of a dbm export's record, which lies beside its files.
RECORD: Final = ".exported"
#: The end of the name of the folder in which new files are made; it is gone when the export ends.
DRAFT: Final = f".new{END}"
#: The ends of the names of all files that a dbm can have, of any kind.
PARTS: Final = ("", ".db", ".pag", ".dat", ".dir", ".bak")
#: Without this one `dbm` finds none of several files, so it goes first and comes last.
_DIRECTORY: Final = ".dir"


#: Bytes of a file that are read at a time.
_PIECE: Final = 2**18


class Record(msgspec.Struct, omit_defaults=True):
    """
    The SHA-256 of each of a dbm export's files by its name, and of those that they are replacing.

    `keys` and `media` are how many keys a dbm has, and the folder of media files beside it or JSON: an import misses
    what is lost later. Earlier versions didn't write them.
    """

    exported: dict[str, str]
    replaced: dict[str, str] = {}
    keys: int | None = None
    media: int | None = None


_encode: Final = msgspec.json.Encoder().encode
_read_record: Final = msgspec.json.Decoder(Record).decode


class ExportTarget:
    """
    The files that an export to `path` makes, and those of an earlier export that they replace.

    A file is an earlier export's if it is empty, if it has the exact layout of an export as JSON or JSON Lines, or if
    the record of a dbm export beside it names it with its checksum. Nothing else is replaced or removed.
    """

    def __init__(self, path: Path, kind: Format, store: Path | None) -> None:
        self._is_dbm = kind in ("dbm", "shelve")
        # A link is followed to the one file that an export as JSON makes; a dbm has several.
        self.path = Path(os.path.realpath(path)) if path.is_symlink() and not self._is_dbm else path
        self._media = folder_of(path)
        self._named = path  # beside which the media files and the record lie
        self._record = path.with_name(path.name + RECORD)
        self._journal = self.path.with_name(self.path.name + END)
        self._draft = self.path.with_name(self.path.name + DRAFT)
        self._store_files = [] if store is None else [Path(f"{store}{end}") for end in ("", *SIDECARS, ".secret")]

    def exists(self) -> bool:
        """Return whether a file is there that the export would replace."""
        return bool(self._existing(self._recorded()))

    def check(self, *, overwrite: bool) -> None:
        """Raise `FileExistsError` or `UnsupportedError` unless all that is in the way may be replaced."""
        if self.path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self.path))
        for file in (*self._names(), self._record, self._journal):
            self._refuse_store(file)
        record = self._recorded()
        existing = self._existing(record)
        if not overwrite and not self._is_interrupted(record, existing):
            for file in (*existing, self._media):
                if os.path.lexists(file):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(file))
        if os.path.lexists(self._record) and record is None:
            raise _foreign(self._record)
        for file in existing:
            if not _is_export(file, record):
                raise _foreign(file)
        for folder, unfinished in ((self._media, False), (self._media.with_name(self._media.name + END), True)):
            if os.path.lexists(folder) and not is_exported(folder, unfinished=unfinished):
                raise _foreign(folder)
        if os.path.lexists(self._draft) and not self._is_own_draft():
            raise _foreign(self._draft)

    @contextmanager
    def drafted(self) -> Iterator[Path]:
        """Give the block the name of a new file in a folder beside the target, from which `replace` takes all files."""
        self._clear_draft()
        self._draft.mkdir(0o700)
        try:
            yield self._draft / self.path.name
        finally:
            self._clear_draft()

    def replace(self, journal: Journal, media: MediaDraft, keys: int, *, overwrite: bool) -> None:
        """
        Put the drafted files in their place, with the media files, and remove those of the earlier export.

        The journal says so before the first step, and is removed after the last: until then an import refuses the
        files, and the next export makes all of them anew. Of a dbm that consists of several files, the one without
        which `dbm` finds none of them is removed first and comes last. `keys` is how many keys are in the files.
        """
        names = {file.name for file in self._names()}
        new = [file for file in self._draft.iterdir() if file.name in names]
        new.sort(key=lambda file: file.name.endswith(_DIRECTORY))
        for file in new:
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        self.check(overwrite=overwrite)  # again: it may have taken hours to read the store
        old = self._existing(self._recorded())
        old.sort(key=lambda file: not file.name.endswith(_DIRECTORY))
        journal.begin_replacing()
        digests = {file.name: _digest(file) for file in new} if self._is_dbm else {}
        if self._is_dbm:
            self._write_record(Record(digests, {file.name: _digest(file) for file in old}))
        media.finish()
        if len(new) > 1 and old and old[0].name.endswith(_DIRECTORY):
            old.pop(0).unlink()
        for file in new:
            place = self.path.with_name(file.name)
            if place.is_file():
                shutil.copymode(place, file)
            else:
                file.chmod(PRIVATE)
            file.replace(place)
        for file in old:
            if file.name not in [made.name for made in new]:
                file.unlink()
        if self._is_dbm:
            self._write_record(Record(digests, keys=keys, media=len(media)))
        elif len(media):  # how many keys there are, JSON shows itself
            self._write_record(Record({}, media=len(media)))
        else:
            self._record.unlink(missing_ok=True)
        sync_folder(self.path.parent)

    def _names(self) -> list[Path]:
        return [Path(f"{self.path}{end}") for end in PARTS] if self._is_dbm else [self.path]

    def _existing(self, record: Record | None) -> list[Path]:
        recorded = [] if record is None else [self.path.with_name(name) for name in record.exported | record.replaced]
        return [file for file in dict.fromkeys([*self._names(), *recorded]) if os.path.lexists(file)]

    def _recorded(self) -> Record | None:
        """Return the record beside the target, None for none, and for a file that is none."""
        return _record_of(self._named)

    def _write_record(self, record: Record) -> None:
        is_beside = self._record.parent == self._draft.parent  # else `self.path` is where a link leads to
        own = nullcontext(self._draft / f"{self.path.name}{RECORD}")
        with own if is_beside else draft_of(self._record) as draft:
            with open_file(draft, "wb") as file:
                file.write(_encode(record) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._record)
        sync_folder(self._record.parent)

    def _is_interrupted(self, record: Record | None, existing: list[Path]) -> bool:
        """Return whether an export was interrupted before all of its new files were in their place."""
        made = {self.path.name} if record is None or not self._is_dbm else set(record.exported)
        return is_replacing(self._journal) and not made.issubset(file.name for file in existing)

    def _is_own_draft(self) -> bool:
        if not stat.S_ISDIR(self._draft.lstat().st_mode):
            return False
        return all(file.name.startswith(self.path.name) and _is_regular(file) for file in self._draft.iterdir())

    def _clear_draft(self) -> None:
        if os.path.lexists(self._draft):
            for file in list(self._draft.iterdir()):
                file.unlink()
            self._draft.rmdir()

    def _refuse_store(self, file: Path) -> None:
        for part in self._store_files:
            if _is_same(file, part):
                raise UnsupportedError(f"{file} belongs to the store itself and was left as it is; name another file.")
        refuse_store(file)
        refuse_sidecar(file)
        refuse_log_name(file, "an export")
        refuse_secret(file)


def check_complete(path: Path) -> None:
    """Raise `UnsupportedError` for a file of an export that was interrupted while it put its files in their place."""
    for place in {path, Path(os.path.realpath(path))}:
        if is_replacing(place.with_name(place.name + END)):
            raise UnsupportedError(
                f"The export that made {path} was interrupted while it replaced an earlier one; run it again first."
            )


def record_of(path: Path) -> Record:
    """Return the record of the export at `path`, an empty one where there is none."""
    return _record_of(path) or Record({})


def _record_of(path: Path) -> Record | None:
    file = path.with_name(path.name + RECORD)
    if not _is_regular(file) or application_id(file) is not None:
        return None
    try:
        record = _read_record(read_file(file))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    names = {f"{path.name}{end}" for end in PARTS}
    return record if names.issuperset(record.exported | record.replaced) else None


def _foreign(path: Path) -> UnsupportedError:
    return UnsupportedError(
        f"{path} was not made by an export, or was changed since, and was left as it is; move it away, or name another "
        "file."
    )


def _is_same(file: Path, other: Path) -> bool:
    try:
        return file.samefile(other)
    except OSError:  # one of them is not there
        return False


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _is_export(file: Path, record: Record | None) -> bool:
    if not _is_regular(file):
        return False
    if file.stat().st_size == 0:
        return True
    if record is not None:
        known = {record.exported.get(file.name), record.replaced.get(file.name)} - {None, ""}
        if known and _digest(file) in known:
            return True
    return application_id(file) is None and has_layout_of_export(file)


def _digest(file: Path) -> str:
    """
    Return the SHA-256 of a file's bytes; of an SQLite file that of its rows, which only SQLite may read.

    It is empty for an SQLite file that is in use, or has no rows of a dbm.
    """
    if application_id(file) is None:
        with open_file(file) as opened:
            digest = hashlib.sha256()
            while piece := opened.read(_PIECE):
                digest.update(piece)
            return digest.hexdigest()
    if any(os.path.lexists(f"{file}{end}") for end in SIDECARS):
        return ""
    digest = hashlib.sha256()
    with connected(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True) as connection:
        try:
            for key, value in connection.execute(f"SELECT key, value FROM {TABLE} ORDER BY key"):  # noqa: S608 - constants
                digest.update(_encode([key, value]))
        except sqlite3.Error:  # another program's
            return ""
    return digest.hexdigest()
