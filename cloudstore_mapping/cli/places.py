"""What a command works on, opened: a store, or the file behind a service, and the settings that somebody made."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, TypeVar

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

T = TypeVar("T")
S = TypeVar("S", bound="AbstractContextManager[Any]")

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
        place = place_at(location_of(location))
        readonly = readonly and place is not None and place.is_older()
        if place is not None and not makes and not place.is_memory and not place.exists():
            raise UsageError(f"There is no store {place}; look at its name, or save a key to make it.")
        return open_location(location, password=password, insecure=insecure, readonly=readonly)


def change_store(
    location: str | None,
    work: Callable[[CloudStoreMapping[Any]], T],
    *,
    password: str | None,
    insecure: bool,
    makes: bool = False,
    trial: Callable[[CloudStoreMapping[Any]], object] | None = None,
    is_refused: Callable[[T], bool] = lambda _: False,
) -> T:
    """
    Open the store at `location` to write, and return the result of `work`; raises as `open_store` and `work` do.

    A refused command changes nothing, but opening a store of an older version migrates it. So `trial`, or the work, is
    first done on a copy in memory. If it raises there, or its result `is_refused`, the store stays as it is. A store
    that can't be copied (a database, or a large file) is refused, with the command that migrates it.
    """
    from cloudstore_mapping.locations import location_of, open_copy, place_at

    with as_usage():
        location = location_of(location)
        place = place_at(location)
        is_older = place is not None and place.is_older()
        copy = open_copy(location, password=password, insecure=insecure) if is_older else None
    opens = partial(open_store, location, password=password, insecure=insecure, makes=makes)
    return _tried_first(work, copy, opens, trial=trial, is_refused=is_refused)


def change_service(
    store: str | None,
    work: Callable[[Service], T],
    *,
    makes: bool = False,
    trial: Callable[[Service], object] | None = None,
    is_refused: Callable[[T], bool] = lambda _: False,
) -> T:
    """Do `work` with the service on the store that is given or set, as `change_store` does; see `read_service`."""
    options, settings = configured(store=store)
    place = kept_place(options.store)
    if not makes and not place.exists():
        raise _absent(place)
    return change_at(place, settings, work, trial=trial, is_refused=is_refused)


def change_at(
    place: StoreLocation,
    settings: Settings,
    work: Callable[[Service], T],
    *,
    trial: Callable[[Service], object] | None = None,
    is_refused: Callable[[T], bool] = lambda _: False,
) -> T:
    """Do `work` with the service on the store at a place, as `change_store` does; see `open_at`."""
    with as_usage():
        is_older = place.is_older()
    copy = open_at(place, settings, readonly=True) if is_older else None
    return _tried_first(work, copy, partial(open_at, place, settings), trial=trial, is_refused=is_refused)


def _tried_first(
    work: Callable[[S], T],
    copy: S | None,
    opens: Callable[[], S],
    *,
    trial: Callable[[S], object] | None,
    is_refused: Callable[[T], bool],
) -> T:
    """Return the result of `work` on what `opens` returns, after a trial on the copy, if there is one."""
    if copy is not None:
        with copy:
            if trial is not None:
                trial(copy)
            elif is_refused(result := work(copy)):
                return result
    with opens() as opened:
        return work(opened)


def read_service(store: str | None) -> Service:
    """
    Return the service on the store that is given or set, to read it; a store of an older version is not migrated.

    Raises `UsageError` if there is none, or the location can't be understood or opened.
    """
    options, settings = configured(store=store)
    place = kept_place(options.store)
    if not place.exists():
        raise _absent(place)
    return open_at(place, settings, readonly=True, allows_old_names=True)


def _absent(place: StoreLocation) -> UsageError:
    return UsageError(f"There is no store {place}; `cloudstore serve --store` makes one.")


def open_at(
    place: StoreLocation,
    settings: Settings,
    *,
    to_write: bool = False,
    readonly: bool = False,
    allows_old_names: bool = False,
) -> Service:
    """
    Return the service on the store at a place; `UsageError` if it can't be opened, or is read-only `to_write`.

    A `readonly` store of an older version is a copy in memory. Raises `UnsupportedError` if its files have to be
    renamed first, unless the caller `allows_old_names`.
    """
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.storage.renaming import refuse_old_names

    with as_usage():
        storage = place.open(readonly=readonly and place.is_older())
        try:
            if to_write:
                storage.check_writable()
                storage.look_for_damage()
            if not allows_old_names:
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
