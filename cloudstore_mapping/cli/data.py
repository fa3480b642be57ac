"""The commands on a store's keys and values: get, set, merge, rm, ls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from cloudstore_mapping.cli.asking import asked
from cloudstore_mapping.cli.frame import report, status_of
from cloudstore_mapping.cli.output import show, show_json, show_keys, show_value
from cloudstore_mapping.cli.places import change_store, open_store
from cloudstore_mapping.cli.values import read
from cloudstore_mapping.errors import CloudStoreError

if TYPE_CHECKING:
    from cloudstore_mapping.client.mapping import CloudStoreMapping

Key: TypeAlias = Annotated[str, typer.Argument(metavar="KEY", help="The key; after -- it may begin with a dash.")]
Source: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="JSON",
        help="The value as JSON; - reads it from standard input, @FILE from a file. A text is JSON with its quotes: "
        "'\"text\"'.",
    ),
]
At: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="LOCATION",
        help="Where the store is: https://API_KEY@host/path, a file, or sqlite:///file. Without it: the environment's "
        "CLOUDSTORE_URL, else cloudstore.db. An address with an API key belongs in the environment: other users of "
        "the machine can see command lines.",
    ),
]
AskPassword: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--password",
        help="Ask for the file's password, without echo. Where standard input is no terminal, the password is its "
        "first line, and what follows is left for a JSON of -.",
    ),
]
Insecure: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--insecure", help="Allow plain http to another machine: the API key and all data can be read on the way."
    ),
]
AsJSON: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--json",
        help="For programs: what is printed is JSON on one line, an error a JSON object on stderr with error, "
        "message and key.",
    ),
]
# A negative number is a value and no option, so these commands take an option that they don't know for an argument.
_TAKES_NUMBERS = {"ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(get)
    app.command("set", context_settings=_TAKES_NUMBERS)(set_)
    app.command(context_settings=_TAKES_NUMBERS)(merge)
    app.command()(rm)
    app.command()(ls)


def get(
    key: Key, at: At = None, password: AskPassword = False, insecure: Insecure = False, as_json: AsJSON = False
) -> None:
    """Print the value of a key as JSON: indented on a terminal, else on one line."""
    with open_store(at, password=asked(password), insecure=insecure, readonly=True) as store:
        value = store[key]
    (show_json if as_json else show_value)(value)


def set_(
    key: Key,
    source: Source,
    at: At = None,
    password: AskPassword = False,
    insecure: Insecure = False,
    as_json: AsJSON = False,  # noqa: ARG001 - `Commands.main` looks for it
) -> None:
    """Save a value under a key, in the place of what is there."""
    _change(lambda store, value: store.update({key: value}), source, at, password, insecure)


def merge(
    key: Key,
    source: Source,
    at: At = None,
    password: AskPassword = False,
    insecure: Insecure = False,
    as_json: AsJSON = False,  # noqa: ARG001 - `Commands.main` looks for it
) -> None:
    """Merge a value into what is under a key, at the service; where nothing is, save it."""
    _change(lambda store, value: store.merge(key, value), source, at, password, insecure)


def rm(
    keys: Annotated[list[str], typer.Argument(metavar="KEY", help="The keys; after -- they may begin with a dash.")],
    at: At = None,
    password: AskPassword = False,
    insecure: Insecure = False,
    as_json: AsJSON = False,
) -> None:
    """Delete keys: all of them are tried, and each that failed is a line on stderr."""
    errors = change_store(
        at,
        partial(_delete, keys),
        password=asked(password),
        insecure=insecure,
        is_refused=lambda errors: len(errors) == len(keys),
    )
    for error in errors:
        report(error, as_json=as_json)
    if errors:
        if len(keys) > 1 and not as_json:
            show(f"Deleted {len(keys) - len(errors):,} of {len(keys):,} keys; {len(errors):,} failed.")
        raise typer.Exit(max(map(status_of, errors)))


def _delete(keys: list[str], store: CloudStoreMapping[Any]) -> list[CloudStoreError]:
    """Delete all keys that can be deleted, and return the errors of the others."""
    errors = []
    for key in keys:
        try:
            del store[key]
        except CloudStoreError as error:
            errors.append(error)
    return errors


def ls(
    filter_: Annotated[
        str, typer.Argument(metavar="FILTER", help="Only keys that contain this, upper and lower case told apart.")
    ] = "",
    prefix: Annotated[bool, typer.Option("--prefix", help="Only keys that begin with FILTER.")] = False,
    at: At = None,
    password: AskPassword = False,
    insecure: Insecure = False,
    as_json: AsJSON = False,
) -> None:
    """
    Print the keys, one a line; with --json as one array, which is exact for keys that hold a line end.

    A key that the terminal's encoding can't hold is exit status 2; --json prints any.
    """
    with open_store(at, password=asked(password), insecure=insecure, readonly=True) as store:
        keys = [filter_ + key for key in store.view(filter_)] if prefix else store.list(filter_)
    (show_json if as_json else show_keys)(keys)


def _change(
    change: Callable[[CloudStoreMapping[Any], Any], object],
    source: str,
    at: str | None,
    password: bool,
    insecure: bool,
) -> None:
    secret = asked(password)
    value = read(source)
    change_store(at, lambda store: change(store, value), password=secret, insecure=insecure, makes=True)
