"""`open()`: parse a location (URL, path, ``memory:``) and open the store at it."""

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
from cloudstore_mapping.service.storage.places import NAMED, StoreLocation, place_of, scheme_of

_SERVICES: Final = ("http", "https")
DEFAULT_FILE: Final = "cloudstore.db"


def open(  # noqa: A001 - the name that shelve and dbm use too
    location: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None = None,
    **options: Any,
) -> CloudStoreMapping[Any]:
    """
    Open a store as a dictionary.

    Parameters
    ----------
    location
        ``https://API_KEY@host/path``: a service. A path or ``sqlite:///path``: an SQLite file, created if absent.
        ``postgresql://user:password@host/database``: a PostgreSQL database, whose tables are created if absent (needs
        the extra ``postgres``). ``memory:``: a store that ends with the process. None: the environment's
        ``CLOUDSTORE_URL``, or else ``cloudstore.db`` in the working directory.
    options
        Options of `CloudStoreMapping`; those about HTTP have no effect on other stores.

    Raises
    ------
    ValueError
        The location can't be understood, or is plain http to another machine without ``insecure=True``; or an option
        has a value that is not allowed.
    TypeError
        The location is neither text nor a path, or there is no such option.
    UnsupportedError
        The file or database is not a store of this package, or belongs to a service; it was left unchanged. Or a
        required package is not installed, or another thread used SQLite for long when this process was forked.
    UnavailableError
        The database can't be reached.
    OSError
        The file can't be opened or created, or is absent with ``readonly=True``.
    """
    # Masked first: a traceback with local variables would show the secrets.
    location, options = hide(location_of(location)), masked(options)
    check_options(options)
    if scheme_of(location) in _SERVICES:
        api_key, server = parse_address(location, insecure=options.get("insecure", False))
        return CloudStoreMapping(api_key, server, **options)
    return _open_embedded(location, options)


def open_copy(location: str, **options: Any) -> CloudStoreMapping[Any]:
    """
    Open a copy in memory of the store of an older version at a location; writes are lost with the copy.

    Raises as `open` does, and `UnsupportedError` if the store is too large to be copied, or a database.
    """
    location, options = hide(location), masked(options)
    check_options(options)
    return _open_embedded(location, options, copies=True)


def location_of(location: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None) -> str:
    """Return the location as text; for None the environment's, or else the default file."""
    if location is None:
        location = os.environ.get("CLOUDSTORE_URL") or DEFAULT_FILE
    if not isinstance(location, str | bytes | os.PathLike):
        raise TypeError(f"A location must be a text or a path, not {type(location).__name__}.")
    text = os.fsdecode(location)
    is_file = not isinstance(location, str) and text.startswith(NAMED)
    return os.path.join(os.curdir, text) if is_file else text  # noqa: PTH118 - `Path` drops the dot


def shelf_at(location: Any) -> tuple[Any, str]:
    """
    Return the location that ``cloudstore:NAME`` means, None for the environment's, and the prefix of the shelf's keys.

    Any other location is returned as it is, without a prefix. Raises `ValueError` if the name or the environment's
    ``CLOUDSTORE_URL`` is missing.
    """
    if not isinstance(location, str) or not location.startswith(NAMED):
        return location, ""
    name = location.removeprefix(NAMED)
    if not name:
        raise ValueError("A shelf's name is written as cloudstore:NAME; give a file of this name by its absolute path.")
    if not os.environ.get("CLOUDSTORE_URL"):
        raise ValueError(
            f"{location} is a shelf at the service in the environment's CLOUDSTORE_URL; set it to the service's "
            "address https://API_KEY@host/path."
        )
    return None, shelf_prefix(name)


def shelf_prefix(name: str) -> str:
    """Return the prefix of the keys of a shelf: its name, with a slash after a letter or digit."""
    return f"{name}/" if name[-1:].isalnum() else name


def place_at(location: str) -> StoreLocation | None:
    """Return the place of an embedded store at a location; None for a service."""
    return None if scheme_of(location) in _SERVICES else place_of(location)


def store_file(location: str) -> Path | None:
    """Return the file of the store at a location; None for a store without a file."""
    place = place_at(location)
    return None if place is None else place.file


def check_old_data(path: Path, *, is_shelf: bool = False, needs_secret: bool = False) -> None:
    """Raise `UnsupportedError`, with the command to move the data, if a dbm file is at the path of a store."""
    from cloudstore_mapping.transfer.dbmkinds import refusal  # with imports that nothing else needs

    if error := refusal(path, is_shelf=is_shelf, needs_secret=needs_secret):
        raise error


def _open_embedded(location: str, options: dict[str, Any], *, copies: bool = False) -> CloudStoreMapping[Any]:
    """Open a store in this process: the mapping over an in-process service; see `open_copy` for `copies`."""
    from cloudstore_mapping.embedded import StoreTransport  # the service, not needed over a network

    place = place_of(location)
    if options.get("readonly") and not (place.is_memory or place.exists()):
        raise FileNotFoundError(f"There is no store {place}; look at its name, or open it without readonly=True.")
    try:
        transport = StoreTransport(place, readonly=copies or bool(options.get("readonly")))
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


def _reopening(place: StoreLocation, _: type[Any], options: dict[str, Any]) -> tuple[Any, ...]:
    """Return the pickled form of an embedded store."""
    if place.is_memory:
        raise TypeError("A store in memory can't be pickled: it is gone with its process.")
    return _reopen, (place.location(secrets="pickle_secrets" in options), options)


def _reopen(location: str, options: dict[str, Any]) -> CloudStoreMapping[Any]:
    """Open a pickled embedded store."""
    return unpickled(partial(open, location, **options))
