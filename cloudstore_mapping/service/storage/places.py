"""Where a store's data is: what a location means, and the engine that opens it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloudstore_mapping.errors import UnavailableError, UnsupportedError

if TYPE_CHECKING:
    from types import ModuleType

    from cloudstore_mapping.service.storage.base import Storage

MEMORY: Final = "memory:"
POSTGRES: Final = frozenset({"postgresql", "postgres"})
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two letters at least: C:\ is a drive
# A path like this would make a file with a secret for its name.
_KEY_WITHOUT_SCHEME: Final = re.compile(r"[A-Za-z0-9._~-]{16,}@[^/]")
#: Beginning of a location that names a shelf at the service in the environment's ``CLOUDSTORE_URL``.
NAMED: Final = "cloudstore:"
#: Slips in a location, which would silently be the name of a new file, with the right spelling.
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
    """A file, the address of a PostgreSQL database, or with neither the memory of one process; `str` may be shown."""

    label: str
    file: Path | None = None
    address: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.label

    @property
    def is_memory(self) -> bool:
        """Whether it is gone with its process."""
        return self.file is None and self.address is None

    def location(self, *, secrets: bool) -> str:
        """Return what `place_of` takes for this place, which is not memory, with the password of an address or not."""
        if self.address is None:
            return str(self.file)
        return self.address if secrets else str(_postgres().without_secrets(self.address))

    def exists(self) -> bool:
        """
        Whether there is a store already; an empty file is none.

        Raises `UnavailableError` where a database isn't reached, `UnsupportedError` for the log of a file that is gone.
        """
        if self.address is not None:
            return self.schema() > 0
        if self.file is None:
            return False
        from cloudstore_mapping.service.storage.sqlite_files import refuse_leftovers

        refuse_leftovers(self.file)
        return self.file.exists() and self.file.stat().st_size > 0

    def schema(self) -> int:
        """Return the number of the schema that a database has, 0 for none; raises as `exists` does."""
        return int(_postgres().schema_number(self.address))

    def open(self, *, to_fill: bool = False, readonly: bool = False) -> Storage:
        """
        Open the storage, which is made where there is none; raises what its engine raises.

        With `readonly`, a file that can't be written to, is in such a folder or on a full disk is copied into memory.
        One of a database that is `to_fill` by copying has to be empty, and is nothing else until `end_filling`.
        """
        if self.address is not None:
            storage: Storage = _postgres().PostgresStorage(self.address, to_fill=to_fill)
            return storage
        from cloudstore_mapping.service.storage.sqlite import SQLiteStorage

        if not readonly or self.file is None or not self.file.exists():
            return SQLiteStorage(self.file)
        if os.access(self.file, os.W_OK):  # else SQLite would make files beside it that it can't remove
            from cloudstore_mapping.service.storage.sqlite_files import FULL

            try:
                return SQLiteStorage(self.file)
            except PermissionError:
                pass
            except UnavailableError as error:
                if error.message != FULL:
                    raise
        return SQLiteStorage(None, copy_of=self.file)


def place_of(location: str) -> StoreLocation:
    """Return the place that ``memory:``, a path, ``sqlite:///path`` or ``postgresql://…`` means; else `ValueError`."""
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
        # Its name is not shown, as it may hold an API key: "https//API_KEY@host", or an address in quotes.
        raise ValueError("The location is no path here, and has an '@'; begin an address with https://API_KEY@.")
    path = Path(location).absolute()
    return StoreLocation(str(path), file=path)


def _refuse_slip(location: str) -> None:
    if location.startswith(NAMED):
        raise ValueError(
            f"{location} is a shelf's name, for shelve.open and the commands import and export; give a file of this "
            "name by its absolute path."
        )
    for slip, spelling in _SLIPS:
        if match := slip.match(location):
            raise ValueError(
                f"A location that begins with {match[0]!r} is written as {spelling}; give a file of this name by its "
                "absolute path."
            )


def scheme_of(location: str) -> str | None:
    """Return what stands before the ``://`` of an address, None of what is none."""
    match = _SCHEME.match(location)
    return None if match is None else match[1].lower()


def _postgres() -> ModuleType:
    try:
        from cloudstore_mapping.service.storage import postgres  # loads a driver, which is of an extra
    except ImportError as error:
        raise UnsupportedError(
            "PostgreSQL needs the extra 'postgres': pip install 'cloudstore-mapping[postgres]'."
        ) from error
    return postgres
