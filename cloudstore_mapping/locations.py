"""Where a store can be: the addresses and paths that `open` takes."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from cloudstore_mapping.client.address import parse_address
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.service.storage.places import Place, place_of, scheme_of

V = TypeVar("V")

_SERVICES: Final = ("http", "https")
DEFAULT_FILE: Final = "cloudstore.db"


def open(location: str | os.PathLike[str] | None = None, **options: Any) -> CloudStoreMapping[Any]:  # noqa: A001
    """
    Open a store, as a dictionary.

    Parameters
    ----------
    location
        ``https://API_KEY@host/path``, a service; a path or ``sqlite:///path``, one SQLite file, created if it is
        absent; ``postgresql://user:password@host/database``, a PostgreSQL database, whose tables are made if they are
        absent (with the extra ``postgres``); ``memory:``, gone with the process; None, what the environment's
        ``CLOUDSTORE_URL`` says, else ``cloudstore.db`` in the working directory.
    options
        Those of `CloudStoreMapping`; what concerns only a service over HTTP is without effect on others.

    Raises
    ------
    ValueError
        The location can't be understood, or is plain http to another machine without ``insecure=True``.
    UnsupportedError
        The file or database isn't a store of ours, or is a service's, and was left as it is; or what it takes isn't
        installed.
    UnavailableError
        The database isn't reached.
    OSError
        The file can't be opened or made.
    """
    location = location_of(location)
    if scheme_of(location) in _SERVICES:
        api_key, server = parse_address(location, insecure=options.get("insecure", False))
        return CloudStoreMapping(api_key, server, **options)
    return EmbeddedMapping(location, **options)


def location_of(location: str | os.PathLike[str] | None) -> str:
    """Return the location that `open` takes this for: without one the environment's, else the default file."""
    if location is None:
        location = os.environ.get("CLOUDSTORE_URL") or DEFAULT_FILE
    return os.fspath(location)


def place_at(location: str) -> Place | None:
    """Return the place where `open` itself keeps the store at a location; None for a service's."""
    return None if scheme_of(location) in _SERVICES else place_of(location)


def store_file(location: str) -> Path | None:
    """Return the file that `open` keeps the store at a location in; None where it keeps it in none."""
    place = place_at(location)
    return None if place is None else place.file


def check_old_data(path: Path, *, is_shelf: bool = False, needs_secret: bool = False) -> None:
    """Raise `UnsupportedError`, with the command that moves the data, where a dbm file is in the way of a store."""
    from cloudstore_mapping.transfer.dbmkinds import refusal  # loads what only this needs

    if error := refusal(path, is_shelf=is_shelf, needs_secret=needs_secret):
        raise error


class EmbeddedMapping(CloudStoreMapping[V]):
    """The mapping over a service in this process, which keeps its data at a location that is no service's."""

    def __init__(self, location: str, **options: Any) -> None:
        from cloudstore_mapping.embedded import StoreTransport  # the service, which a program on a network never needs

        self._place = place_of(location)
        try:
            transport = StoreTransport(self._place)
        except UnsupportedError:
            if self._place.file is not None:
                check_old_data(self._place.file)
            raise
        label = location if self._place.address is None else self._place.label
        try:
            super().__init__(transport.api_key, label, **{**options, "transport": transport})
        except BaseException:
            transport.close()
            raise

    def _identity(self) -> tuple[str, ...]:
        # Its API key is another each time.
        return super()._identity() if self._place.is_memory else (self._place.location(secrets=False),)

    def _file(self) -> Path | None:
        return self._place.file

    def __reduce__(self) -> tuple[Any, ...]:
        if self._place.is_memory:
            raise TypeError("A store in memory can't be pickled: it is gone with its process.")
        return partial(open, **self._options), (self._place.location(secrets="pickle_secrets" in self._options),)
