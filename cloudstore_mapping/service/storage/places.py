"""Location of a store: parse a path, SQLite URL or PostgreSQL URL, and open its storage engine."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloudstore_mapping.errors import UnsupportedError

if TYPE_CHECKING:
    from types import ModuleType

    from cloudstore_mapping.service.storage.base import Storage
    from cloudstore_mapping.service.storage.migrations import Admission

MEMORY: Final = "memory:"
#: Maximum size in bytes of an older version's file to be copied into memory; reading never migrates a file.
MAX_COPY: Final = 2**30
POSTGRES: Final = frozenset({"postgresql", "postgres"})
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # at least two letters, as C:\ is a drive
# As a path, this would create a file with a secret in its name.
_KEY_WITHOUT_SCHEME: Final = re.compile(r"[A-Za-z0-9._~-]{16,}@[^/]")
#: Prefix of the name of a shelf at the service in ``CLOUDSTORE_URL``.
NAMED: Final = "cloudstore:"
#: Mistyped locations, which would otherwise name new files, with the correct form of each.
_SLIPS: Final = (
    (re.compile(r"https?:", re.IGNORECASE), "https://API_KEY@host/path"),
    (re.compile(r"[A-Za-z0-9-]{2,}(\.[A-Za-z0-9-]+)*:(?=[0-9]{2,5}(/|\Z))"), "http://API_KEY@host:port/path"),
    (re.compile(r"(localhost|[0-9]{1,3}(\.[0-9]{1,3}){3}|\[[0-9A-Fa-f:]+\]):"), "http://API_KEY@host:port/path"),
    (re.compile(r"postgres(ql)?:", re.IGNORECASE), "postgresql://user@host/database"),
    (re.compile(r"(file|sqlite):", re.IGNORECASE), "sqlite:///path, or the path alone"),
    (re.compile(r":?memory:?\Z|memory:", re.IGNORECASE), MEMORY),
)
_EXAMPLES: Final = "give an https:// address, a path, sqlite:///path, or postgresql://user@host/database"


@dataclass(frozen=True)
class StoreLocation:
    """An SQLite file, a PostgreSQL database, or (neither) this process's memory; `str` hides secrets."""

    label: str
    file: Path | None = None
    address: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.label

    @property
    def is_memory(self) -> bool:
        """Return True for a store in memory, lost at the end of its process."""
        return self.file is None and self.address is None

    def location(self, *, secrets: bool) -> str:
        """Return the location as text for `place_of`, with or without the database's password; not for memory."""
        if self.address is None:
            return str(self.file)
        return self.address if secrets else str(_postgres().without_secrets(self.address))

    def exists(self) -> bool:
        """
        Return True if there is a store; an empty file doesn't count.

        Raises `UnavailableError` if the database can't be reached, and `UnsupportedError` if only a file's log is left.
        """
        if self.address is not None:
            return self.schema() > 0
        if self.file is None:
            return False
        from cloudstore_mapping.service.storage.sqlite_files import refuse_leftovers

        refuse_leftovers(self.file)
        return self.file.exists() and self.file.stat().st_size > 0

    def schema(self) -> int:
        """Return the schema number of a PostgreSQL database, 0 for none; raises as `exists` does."""
        return int(_postgres().schema_number(self.address))

    def open(
        self,
        *,
        to_fill: bool = False,
        readonly: bool = False,
        renames: bool = False,
        admits: Admission | None = None,
    ) -> Storage:
        """
        Open the storage, creating a missing store; raises the errors of its engine.

        A store of an older version is migrated. One whose files must be renamed first is refused unchanged, unless the
        caller `renames` them, and so is one for which `admits` raises an error. With `readonly` nothing is migrated: a
        file of an older version is copied into memory, and so is a file if it or its folder can't be written to, or its
        disk is full; an older database is refused. `to_fill` opens an empty database as the target of a copy; it can't
        be opened otherwise until `end_filling`.
        """
        if self.address is not None:
            storage: Storage = _postgres().PostgresStorage(
                self.address,
                to_fill=to_fill,
                older="refuse" if readonly else "migrate",
                renames=renames,
                admits=admits,
            )
            return storage
        from cloudstore_mapping.service.storage.sqlite import SQLiteStorage

        if not readonly or self.file is None or not self.file.exists():
            return SQLiteStorage(self.file, renames=renames, admits=admits)
        if self.is_older():
            return self._copied(self.file)
        if os.access(self.file, os.W_OK):  # otherwise SQLite would leave files beside it
            from cloudstore_mapping.service.storage.base import NoSpaceError

            with suppress(PermissionError, NoSpaceError):
                return SQLiteStorage(self.file)
        return SQLiteStorage(None, copy_of=self.file)

    def is_older(self) -> bool:
        """Return True if there is a store of an older version, not yet migrated."""
        if self.address is not None:
            return bool(0 < self.schema() < _postgres().newest_schema())
        if self.file is None or not self.exists():
            return False
        from cloudstore_mapping.service.storage.migrations import is_older
        from cloudstore_mapping.service.storage.sqlite_files import check_place

        check_place(self.file)
        return is_older(self.file)

    def _copied(self, file: Path) -> Storage:
        """Return a copy in memory of a file of an older version."""
        from cloudstore_mapping.service.storage.sqlite import SQLiteStorage

        if file.stat().st_size > MAX_COPY:
            raise UnsupportedError(
                f"{self} was written by an older version and is too large to be read without a migration; make a copy "
                "with `cloudstore backup`, then run `cloudstore migrate`, or use that version."
            )
        return SQLiteStorage(None, copy_of=file)


def place_of(location: str) -> StoreLocation:
    """Parse ``memory:``, a path, ``sqlite:///path`` or ``postgresql://…``; raise `ValueError` for anything else."""
    if location == MEMORY:
        return StoreLocation("memory")
    scheme = scheme_of(location)
    if scheme in POSTGRES:
        return StoreLocation(_postgres().label_of(location), address=location)
    if scheme == "sqlite":
        location = location.partition("://")[2].removeprefix("/")
    elif scheme is not None:
        raise ValueError(f"No store can be at {scheme}://; {_EXAMPLES}.")
    elif _KEY_WITHOUT_SCHEME.match(location):
        raise ValueError("The location looks like an API key and a host; begin it with https://.")
    else:
        _refuse_slip(location)
    if not location.strip():
        raise ValueError(f"The location is empty; {_EXAMPLES}.")
    if "@" in location and not Path(location).parent.is_dir():
        # Not shown, as it may contain an API key: "https//API_KEY@host", or a quoted address.
        raise ValueError("The location has an '@' and is no path here; begin an address with https://API_KEY@.")
    path = Path(location).absolute()
    return StoreLocation(str(path), file=path)


def _refuse_slip(location: str) -> None:
    if location.startswith(NAMED):
        raise ValueError(
            f"{location} names a shelf, for shelve.open, import and export only; give a file of this name by its "
            "absolute path."
        )
    for slip, spelling in _SLIPS:
        if match := slip.match(location):
            raise ValueError(
                f"A location that begins with {match[0]!r} is written as {spelling}; give a file of this name by its "
                "absolute path."
            )


def scheme_of(location: str) -> str | None:
    """Return the scheme of an address in lower case; None without ``://``."""
    match = _SCHEME.match(location)
    return None if match is None else match[1].lower()


def _postgres() -> ModuleType:
    try:
        from cloudstore_mapping.service.storage import postgres  # loads a driver of the extra `postgres`
    except ImportError as error:
        raise UnsupportedError(
            "PostgreSQL needs the extra 'postgres': pip install 'cloudstore-mapping[postgres]'."
        ) from error
    return postgres
