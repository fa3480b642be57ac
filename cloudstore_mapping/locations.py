"""Where a store can be: the addresses and paths that `open` takes."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, Final

from cloudstore_mapping.client.address import parse_address
from cloudstore_mapping.client.mapping import CloudStoreMapping, files_of, unpickled
from cloudstore_mapping.client.options import check_options, masked
from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.masking import hide
from cloudstore_mapping.service.storage.places import Place, place_of, scheme_of

_SERVICES: Final = ("http", "https")
DEFAULT_FILE: Final = "cloudstore.db"


def open(  # noqa: A001 - the name that shelve and dbm use too
    location: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None = None,
    **options: Any,
) -> CloudStoreMapping[Any]:
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
        The location can't be understood, or is plain http to another machine without ``insecure=True``; or an option
        has a value that is not allowed.
    TypeError
        The location is neither text nor a path, or there is no such option.
    UnsupportedError
        The file or database isn't a store of ours, or is a service's, and was left as it is; or what it takes isn't
        installed.
    UnavailableError
        The database isn't reached.
    OSError
        The file can't be opened or made, or is absent with ``readonly=True``.
    """
    # Masked first: a traceback with local variables shows the values that they have at the error.
    location, options = hide(location_of(location)), masked(options)
    check_options(options)
    if scheme_of(location) in _SERVICES:
        api_key, server = parse_address(location, insecure=options.get("insecure", False))
        return CloudStoreMapping(api_key, server, **options)
    return _open_embedded(location, options)


def location_of(location: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None) -> str:
    """Return the location that `open` takes this for: without one the environment's, else the default file."""
    if location is None:
        location = os.environ.get("CLOUDSTORE_URL") or DEFAULT_FILE
    if not isinstance(location, str | bytes | os.PathLike):
        raise TypeError(f"A location is a text or a path, and not {type(location).__name__}.")
    return os.fsdecode(location)


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


def _open_embedded(location: str, options: dict[str, Any]) -> CloudStoreMapping[Any]:
    """Open a store in this process: the mapping over an in-process service."""
    from cloudstore_mapping.embedded import StoreTransport  # the service, unneeded by a program on a network

    place = place_of(location)
    if options.get("readonly") and not (place.is_memory or place.exists()):
        raise FileNotFoundError(f"There is no store {place}; look at its name, or open it without readonly=True.")
    try:
        transport = StoreTransport(place)
    except UnsupportedError:
        if place.file is not None:
            check_old_data(place.file)
        raise
    label = location if place.address is None else place.label
    try:
        options = {**options, "transport": transport}
        mapping: CloudStoreMapping[Any] = CloudStoreMapping(transport.api_key, label, **options)
    except BaseException:
        transport.close()
        raise
    store = files_of(mapping).store
    store.file = place.file
    store.reopen = partial(_reopening, place)
    if not place.is_memory:
        store.identity = (place.location(secrets=False),)  # its API key differs each time
    return mapping


def _reopening(place: Place, _: type[Any], options: dict[str, Any]) -> tuple[Any, ...]:
    """Return the pickled form of an embedded store."""
    if place.is_memory:
        raise TypeError("A store in memory can't be pickled: it is gone with its process.")
    return _reopen, (place.location(secrets="pickle_secrets" in options), options)


def _reopen(location: str, options: dict[str, Any]) -> CloudStoreMapping[Any]:
    """Open a pickled store that needs no service."""
    return unpickled(partial(open, location, **options))
