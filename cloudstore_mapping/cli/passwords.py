"""The command that sets the passwords of files: passwd."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloudstore_mapping.cli.asking import ask_new
from cloudstore_mapping.cli.data import AsJSON
from cloudstore_mapping.cli.frame import UsageError, report, status_of
from cloudstore_mapping.cli.places import StoreOption, change_at, change_service, kept_place
from cloudstore_mapping.errors import CloudStoreError

if TYPE_CHECKING:
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.settings import Settings
    from cloudstore_mapping.service.storage.places import StoreLocation


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(passwd)


def passwd(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME] KEY…",
            help="The account's name, then the keys; with --at the keys alone, with --default the name alone.",
        ),
    ] = [],  # noqa: B006 - typer takes it for the default and never changes it
    edit: Annotated[bool, typer.Option("--edit", help="The password that save, merge and delete ask for.")] = False,
    view: Annotated[bool, typer.Option("--view", help="The password that load asks for.")] = False,
    clear: Annotated[
        bool, typer.Option("--clear", help="Take the passwords away: with --edit or --view that one, else both.")
    ] = False,
    media: Annotated[
        bool, typer.Option("--media", help="The keys are names of media files, which have an edit password only.")
    ] = False,
    default: Annotated[
        bool,
        typer.Option("--default", help="The edit password of all the account's files that have none of their own."),
    ] = False,
    at: Annotated[
        str | None,
        typer.Option(metavar="LOCATION", help="An embedded store, as `open()` makes it, in a service's place."),
    ] = None,
    store: StoreOption = None,
    as_json: AsJSON = False,
) -> None:
    """
    Set or clear the passwords of files, as their owner; they are in force at once.

    A password is asked for without echo, twice; where standard input is no terminal it is a line of it, with both
    --edit and --view two. All keys are tried, and each that failed is a line on stderr.
    """
    if not (edit or view or clear):
        raise UsageError("Say which password: --edit, --view or both; or --clear.")
    if view and (media or default):
        raise UsageError("Only a data file of its own has a view password; say --edit.")
    account, keys = _parted(names, at, default=default)
    wanted = ["edit"] * (edit or (clear and not view)) + ["view"] * (view or not (edit or media or default))
    passwords: dict[str, Any] = dict.fromkeys(wanted) if clear else {}

    def change(service: Service) -> list[CloudStoreError]:
        service.accounts.named(account)
        for what in wanted:
            if what not in passwords:  # asked once, also after a trial
                passwords[what] = ask_new(f"{what} password")
        if default:
            service.set_default_passwords(account, **{"media" if media else "data": passwords["edit"]})
            return []
        return _set_all(_media_setter(service, account) if media else _setter(service, account), keys, passwords)

    def is_refused(errors: list[CloudStoreError]) -> bool:
        return 0 < len(keys) == len(errors)

    if at is None:
        errors = change_service(store, change, is_refused=is_refused)
    elif store is None:
        errors = change_at(*_embedded(at), change, is_refused=is_refused)
    else:
        raise UsageError("--at names an embedded store, --store a service's; give one of them.")
    for error in errors:
        report(error, as_json=as_json)
    if errors:
        raise typer.Exit(max(map(status_of, errors)))


_Set = Callable[[str, "dict[str, Any]"], None]


def _parted(names: list[str], at: str | None, *, default: bool) -> tuple[str, list[str]]:
    """Return whose files they are, and their keys."""
    from cloudstore_mapping.embedded import LOCAL_ACCOUNT

    if at is None and not names:
        raise UsageError("Say the account's name, then the keys.")
    account, keys = (names[0], names[1:]) if at is None else (LOCAL_ACCOUNT, names)
    if bool(keys) == default:
        raise UsageError("Say the keys." if not default else "The default is for all files; say no keys.")
    return account, keys


def _embedded(location: str) -> tuple[StoreLocation, Settings]:
    from cloudstore_mapping.embedded import LOCAL_SETTINGS

    place = kept_place(location)
    if not place.exists():
        raise UsageError(f"There is no store {place}; passwords are set on one that is there.")
    return place, LOCAL_SETTINGS


def _setter(service: Service, account: str) -> _Set:
    from cloudstore_mapping.keys import escape_key

    return lambda key, passwords: service.set_passwords(account, escape_key(key), **passwords)


def _media_setter(service: Service, name: str) -> _Set:
    account = service.accounts.named(name)
    return lambda key, passwords: service.media.set_password(
        account, service.media.named(account, key).id, passwords["edit"]
    )


def _set_all(set_passwords: _Set, keys: list[str], passwords: dict[str, Any]) -> list[CloudStoreError]:
    """Set the passwords of all keys that can be changed, and return the errors of the others."""
    errors = []
    for key in keys:
        try:
            set_passwords(key, passwords)
        except CloudStoreError as error:
            errors.append(error)
    return errors
