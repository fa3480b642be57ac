"""What a command works on, opened: a store, or the file behind a service, and the settings that somebody made."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from cloudstore_mapping.cli.frame import UsageError
from cloudstore_mapping.errors import CloudStoreError
from cloudstore_mapping.oserrors import sentence_of

if TYPE_CHECKING:
    from cloudstore_mapping.client.mapping import CloudStoreMapping
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.settings import Settings
    from cloudstore_mapping.service.storage.places import StoreLocation
    from cloudstore_mapping.web.options import Options

_BEFORE_AT: Final = re.compile(r"(?<![^/\s])(?!API_KEY@)[^/\s]*@")

StoreOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="Where the service keeps its data: a path, sqlite:///path, or postgresql://user@host/database. Without "
        "it: the environment's CLOUDSTORE_SERVICE_STORE, where a password is best kept, else "
        "sqlite:///cloudstore-service.db.",
    ),
]


def open_store(
    location: str | None, *, password: str | None, insecure: bool, makes: bool = False, readonly: bool = False
) -> CloudStoreMapping[Any]:
    """
    Return the store at `location`; `UsageError` where that can't be understood or opened.

    Where there is none it is `UsageError` too, unless it `makes` one: a slip in a name is no empty store. With
    `readonly` one of an older version is not migrated.
    """
    from cloudstore_mapping.locations import location_of, place_at
    from cloudstore_mapping.locations import open as open_location

    with as_usage():
        place = None if makes else place_at(location_of(location))
        readonly = readonly and place is not None and place.is_older()
        if place is not None and not place.is_memory and not place.exists():
            raise UsageError(f"There is no store {place}; look at its name, or save a key to make it.")
        return open_location(location, password=password, insecure=insecure, readonly=readonly)


def open_service(store: str | None, *, makes: bool = False, readonly: bool = False) -> Service:
    """
    Return the service on the store that is given or set; `UsageError` where that can't be understood or opened.

    Where there is none it is `UsageError` too, unless it `makes` one. With `readonly` one of an older version is not
    migrated.
    """
    options, settings = configured(store=store)
    place = kept_place(options.store)
    if not makes and not place.exists():
        raise UsageError(f"There is no store {place}; `cloudstore serve --store` makes one.")
    return open_at(place, settings, readonly=readonly)


def open_at(place: StoreLocation, settings: Settings, *, to_write: bool = False, readonly: bool = False) -> Service:
    """
    Return the service on the store at a place; `UsageError` where it can't be opened, or is read-only `to_write`.

    Raises `UnsupportedError` where its files have to be renamed first.
    """
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.storage.renaming import refuse_old_names

    with as_usage():
        storage = place.open(readonly=readonly and place.is_older())
        try:
            if to_write:
                storage.check_writable()
                storage.look_for_damage()
            if not readonly:
                with storage.read() as transaction:
                    refuse_old_names(transaction, str(place))
        except BaseException:
            storage.close()
            raise
        return Service(storage, settings)


def any_place(store: str) -> StoreLocation:
    """Return where a store is; `UsageError` where that can't be understood."""
    from cloudstore_mapping.service.storage.places import place_of

    with as_usage():
        return place_of(store)


def kept_place(store: str) -> StoreLocation:
    """Return where a store is that outlasts its process; `UsageError` for one in memory too."""
    place = any_place(store)
    if place.is_memory:
        raise UsageError("A store in memory is gone with its service; name a file or a database.")
    return place


def configured(**given: object) -> tuple[Options, Settings]:
    """Return what the command line, the environment and the file of settings say; `UsageError` where one is wrong."""
    from cloudstore_mapping.service.configuration import load
    from cloudstore_mapping.service.settings import Settings, check_together
    from cloudstore_mapping.web.options import Options

    with as_usage():
        said = load((Options, Settings), os.environ, given)
    options, settings = (
        {field.name: said[field.name] for field in fields(kind) if field.name in said} for kind in (Options, Settings)
    )
    with as_usage():
        check_together(made := Settings(**settings))
    return Options(**options), made


@contextmanager
def as_usage() -> Iterator[None]:
    """Turn what the block says of a wrong location or setting into `UsageError`."""
    try:
        yield
    except CloudStoreError:
        raise
    except (OSError, ValueError) as error:
        sentence = sentence_of(error) if isinstance(error, OSError) else str(error)
        message = sentence.replace("insecure=True", "--insecure")
        # An address without its https:// is taken for a path, and shown with the key in it.
        raise UsageError(_BEFORE_AT.sub("…@", message)) from error
