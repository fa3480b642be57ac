"""The commands for whoever runs a service: serve, account."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Final, TypeAlias
from urllib.parse import urlsplit

import typer

from cloudstore_mapping.cli.frame import UsageError
from cloudstore_mapping.cli.output import show, show_json
from cloudstore_mapping.cli.places import ask, open_service
from cloudstore_mapping.client.address import is_loopback

#: The account that a service which has none makes for whoever starts it.
OWNER: Final = "owner"

Store: TypeAlias = Annotated[
    str, typer.Option(metavar="URL", help="Where the service keeps its data: sqlite:///path, created if it is absent.")
]
_DEFAULT_STORE: Final = "sqlite:///cloudstore-service.db"

accounts: Final = typer.Typer(help="Make the accounts of a service.")


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(serve)
    app.add_typer(accounts, name="account")


def serve(
    store: Store = _DEFAULT_STORE,
    host: Annotated[str, typer.Option(help="The address to listen on; 127.0.0.1 is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes any free one.")] = 8787,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: what is printed is one JSON object, once the service answers.")
    ] = False,
) -> None:
    """
    Run a service, until Ctrl-C or SIGTERM.

    The first start makes the account 'owner' and prints its API key, this once. A port that can't be had is exit
    status 2. It speaks plain http: for other machines put a proxy with TLS before it.
    """
    from cloudstore_mapping.locations import file_of
    from cloudstore_mapping.web.serve import run

    failures: list[Exception] = []
    with open_service(store) as service:

        def announce(address: str) -> None:
            try:
                # Only now is it certain that somebody sees the key. Nobody waits meanwhile: no key opens anything yet.
                api_key = None if service.accounts.any() else service.accounts.create(OWNER)
                (_print_object if as_json else _print_lines)(address, Path(file_of(store)).absolute(), api_key)
            except Exception as error:  # noqa: BLE001 - uvicorn would log it with its traceback
                failures.append(error)
                signal.raise_signal(signal.SIGTERM)

        try:
            run(service, host=host, port=port, on_ready=announce)
        except OSError as error:
            raise UsageError(str(error)) from error
    if failures:
        raise failures[0]


def _print_object(address: str, file: Path, api_key: str | None) -> None:
    account = None if api_key is None else OWNER
    show_json({"address": address, "store": str(file), "account": account, "api_key": api_key})


def _print_lines(address: str, file: Path, api_key: str | None) -> None:
    show(f"The service answers at {address}, until Ctrl-C.\nIts data is in {file}.")
    if api_key is None:
        return
    # "All addresses" is none that a program can name.
    here = address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    option = "" if is_loopback(urlsplit(here).hostname or "") else ", insecure=True"
    show(f"The account {OWNER!r} is made; its API key, shown only now:\n    {api_key}\nA program says:")
    show(f'    cm.open("{here.replace("://", f"://{api_key}@")}"{option})')


@accounts.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The account's name.")],
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="An API key of your own, of 16 characters or more; - asks for it without echo, or reads the first "
            "line of standard input: other users of the machine can see command lines.",
        ),
    ] = None,
    store: Store = _DEFAULT_STORE,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: what is printed is a JSON object with account and api_key.")
    ] = False,
) -> None:
    """Make an account, and print its API key, this once; a service that is running knows it at once."""
    own_key = ask("API key") if api_key == "-" else api_key
    with open_service(store) as service:
        created = service.accounts.create(name, own_key)
    if as_json:
        show_json({"account": name, "api_key": created})
    else:
        show(created)
