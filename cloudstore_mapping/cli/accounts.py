"""The commands on the accounts of a service, running or not: account create, list, show, set and so on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from cloudstore_mapping.cli.asking import ask, confirm
from cloudstore_mapping.cli.frame import UsageError
from cloudstore_mapping.cli.output import show, show_json, stdout
from cloudstore_mapping.cli.places import StoreOption, change_service, read_service

if TYPE_CHECKING:
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.storage.records import Limits

#: What limits are called on a command line, and in `Limits`.
LIMITS: Final = {
    "files": "max_files",
    "file-bytes": "max_file_bytes",
    "daily-accesses": "max_daily_accesses",
    "interval": "min_interval",
    "media-bytes": "max_media_bytes",
    "total-bytes": "max_total_bytes",
}
NO_LIMIT: Final = "unlimited"

Name: TypeAlias = Annotated[str, typer.Argument(metavar="NAME", help="The account's name.")]
Plan: TypeAlias = Annotated[
    str, typer.Option(metavar="PLAN", help="The limits to begin with: unlimited, or basic, the vendor's.")
]
AsJSON: TypeAlias = Annotated[
    bool, typer.Option("--json", help="For programs: what is printed is JSON on one line, an error a JSON object.")
]

accounts: Final = typer.Typer(help="Make, show and change the accounts of a service; one that runs knows it at once.")


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(accounts, name="account")


@accounts.command()
def create(
    name: Name,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="An API key of your own, of 16 characters or more, better 32; - asks for it without echo, or reads "
            "the first line of standard input: other users of the machine can see command lines.",
        ),
    ] = None,
    plan: Plan = "unlimited",
    password: Annotated[
        bool,
        typer.Option(
            "--password", help="Make a one-time password for the dashboard too, and print it on a second line."
        ),
    ] = False,
    store: StoreOption = None,
    as_json: AsJSON = False,
) -> None:
    """Make an account, and print its API key, this once."""
    stdout()  # before there is a secret that nobody sees
    own_key = ask("API key") if api_key == "-" else api_key

    def show_created(api_key: str, password: str | None = None) -> None:
        secrets = {"api_key": api_key} | ({} if password is None else {"password": password})
        _show({"account": name, **secrets}, "\n".join(secrets.values()), as_json=as_json)

    def make(service: Service) -> None:
        if password:
            service.owners.create(name, own_key, plan=plan, show=show_created)
        else:
            service.accounts.create(name, own_key, plan=plan, show=show_created)

    change_service(store, make, makes=True, trial=lambda service: service.accounts.create(name, own_key, plan=plan))


@accounts.command("list")
def list_(store: StoreOption = None, as_json: AsJSON = False) -> None:
    """Print all accounts: name, plan, and whether they are switched off."""
    with read_service(store) as service:
        found = service.accounts.all()
    if as_json:
        show_json([{"account": account.name, "plan": account.plan, "disabled": account.disabled} for account in found])
        return
    width = max((len(account.name) for account in found), default=0)
    for account in found:
        show(f"{account.name:<{width}}  {account.plan}{'  switched off' if account.disabled else ''}")


@accounts.command("show")
def show_(name: Name, store: StoreOption = None, as_json: AsJSON = False) -> None:
    """Print an account's plan and limits, and of its API keys when they were made and how they begin."""
    with read_service(store) as service:
        account = service.accounts.named(name)
        keys = service.accounts.keys(name)
    if as_json:
        limits = {said: getattr(account.limits, limit) for said, limit in LIMITS.items()}
        begins = [{"begins": key.hint, "created": key.created_at} for key in keys]
        facts = {"account": name, "plan": account.plan, "disabled": account.disabled}
        show_json({**facts, "limits": limits, "keys": begins})
        return
    rows = [("account", name), ("plan", account.plan), ("state", "switched off" if account.disabled else "on")]
    rows += [(said, _told(said, account.limits)) for said in LIMITS]
    rows += [("API key", f"{key.hint}…, made {datetime.fromtimestamp(key.created_at, UTC):%Y-%m-%d}") for key in keys]
    for what, told in rows:
        show(f"{f'{what}:':<15} {told}")


@accounts.command("set")
def set_(
    name: Name,
    limits: Annotated[
        list[str],
        typer.Argument(
            metavar="LIMIT=…",
            help="plan=basic sets all; files, file-bytes, daily-accesses (of a file), interval (seconds between "
            "requests), media-bytes (of a file) and total-bytes (of all that it stores) set one: a number, a size such "
            "as 3KiB, or unlimited.",
        ),
    ],
    store: StoreOption = None,
    as_json: AsJSON = False,  # noqa: ARG001 - `Commands.main` looks for it
) -> None:
    """Change what an account may use; a plan that is given too comes first."""
    said = dict(_parted(limit) for limit in limits)
    plan = said.pop("plan", None)
    changes: dict[str, Any] = {LIMITS[limit]: _value(limit, text) for limit, text in said.items()}

    def change(service: Service) -> None:
        if plan is not None:
            service.accounts.set_plan(name, plan)
        if changes:
            service.accounts.set_limits(name, **changes)
        service.sweeper.wait()  # until all files are counted: the limits are exact from now on

    change_service(store, change)


@accounts.command()
def disable(name: Name, store: StoreOption = None, as_json: AsJSON = False) -> None:  # noqa: ARG001 - as above
    """Refuse all requests with an account's API keys; its files stay."""
    change_service(store, lambda service: service.accounts.set_disabled(name, True))


@accounts.command()
def enable(name: Name, store: StoreOption = None, as_json: AsJSON = False) -> None:  # noqa: ARG001 - as above
    """Answer an account's requests again."""
    change_service(store, lambda service: service.accounts.set_disabled(name, False))


@accounts.command()
def rotate_key(
    name: Name,
    drop_old: Annotated[
        bool,
        typer.Option("--drop-old", help="The second step: make no new key, but end all keys except for the newest."),
    ] = False,
    store: StoreOption = None,
    as_json: AsJSON = False,
) -> None:
    """
    Make an account a new API key and print it, this once; the one before goes on working, and any earlier one ends.

    Hand the new one to all programs, then end the old one with --drop-old.
    """
    stdout()
    if drop_old:
        dropped = change_service(store, lambda service: service.accounts.drop_old_keys(name))
        _show({"account": name, "dropped": dropped}, f"API keys that ended: {dropped}", as_json=as_json)
        return

    def show_key(key: str) -> None:
        _show({"account": name, "api_key": key}, key, as_json=as_json)

    change_service(
        store,
        lambda service: service.accounts.rotate_key(name, show=show_key),
        trial=lambda service: service.accounts.rotate_key(name),
    )


@accounts.command()
def reset_password(name: Name, store: StoreOption = None, as_json: AsJSON = False) -> None:
    """Print a one-time password for the dashboard, this once; whoever was signed in isn't any more."""
    stdout()

    def show_password(password: str) -> None:
        _show({"account": name, "password": password}, password, as_json=as_json)

    change_service(
        store,
        lambda service: service.owners.reset_password(name, show=show_password),
        trial=lambda service: service.owners.reset_password(name),
    )


@accounts.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    store: StoreOption = None,
    as_json: AsJSON = False,  # noqa: ARG001 - `Commands.main` looks for it
) -> None:
    """Delete an account with all its files; nothing brings them back."""
    is_meant = yes

    def check(service: Service) -> None:
        nonlocal is_meant
        account = service.accounts.named(name)
        if not is_meant:
            confirm(f"Delete the account {name!r} with all its files? Type its name:", account.name)
        is_meant = True  # asked once, also after a trial

    def remove(service: Service) -> None:
        check(service)
        service.accounts.delete(name)
        service.sweeper.wait()  # or a service on the store goes on when this is interrupted

    change_service(store, remove, trial=check)


def _show(facts: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        show_json(facts)
    else:
        show(text)


def _parted(limit: str) -> tuple[str, str]:
    name, equals, text = limit.partition("=")
    if not equals or name not in (*LIMITS, "plan"):
        raise UsageError(f"{limit!r} sets no limit; write NAME=VALUE with a name of plan, {', '.join(LIMITS)}.")
    return name, text


def _value(limit: str, text: str) -> float | None:
    """Return the limit that `text` says, None for none; `UsageError` where it says no number above 0."""
    from cloudstore_mapping.service.configuration import EXAMPLES, parse_size

    if text == NO_LIMIT:
        return None
    example = EXAMPLES if limit.endswith("-bytes") else "2.5" if limit == "interval" else "100"
    try:
        value = parse_size(text) if limit.endswith("-bytes") else float(text) if limit == "interval" else int(text)
    except ValueError:
        value = 0
    if not 0 < value < 2**63:
        raise UsageError(f"{limit}={text} is no limit; write a number above 0, such as {example}, or {NO_LIMIT}.")
    return value


def _told(said: str, limits: Limits) -> str:
    value = getattr(limits, LIMITS[said])
    if value is None:
        return NO_LIMIT
    return f"{value:g} seconds" if said == "interval" else f"{value:,}"
