"""The command that runs a service: serve."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple
from urllib.parse import urlsplit

import typer

from cloudstore_mapping.cli.frame import UsageError
from cloudstore_mapping.cli.output import show, show_json, stdout
from cloudstore_mapping.cli.places import StoreOption, any_place, as_usage, configured, open_at
from cloudstore_mapping.client.address import is_loopback
from cloudstore_mapping.errors import BadNameError

if TYPE_CHECKING:
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.settings import Settings
    from cloudstore_mapping.service.storage.places import StoreLocation
    from cloudstore_mapping.web.options import Options

#: The account that a service which has none makes for whoever starts it.
OWNER: Final = "owner"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(serve)


def serve(
    store: StoreOption = None,
    host: Annotated[
        str | None, typer.Option(help="The address to listen on; 127.0.0.1, this machine only, unless one is set.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="The port to listen on; 8787 unless one is set; 0 takes any free one."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, metavar="N", help="Processes that answer requests; 1 unless set.")
    ] = None,
    tls_cert: Annotated[
        str | None, typer.Option(metavar="FILE", help="A certificate (PEM): the service then speaks https.")
    ] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="The certificate's key (PEM).")] = None,
    base_path: Annotated[
        str | None, typer.Option(metavar="PATH", help="What all paths begin with; /cloudstore unless one is set.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A TOML file of settings. Each may also be in the environment, as CLOUDSTORE_SERVICE_… in upper "
            "case, which wins over the file; an option wins over both. docs/operation.md lists them.",
        ),
    ] = None,
    log_json: Annotated[bool | None, typer.Option("--log-json", help="Log a JSON object a line.")] = None,
    access_log: Annotated[bool | None, typer.Option("--access-log", help="Log every request.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: what is printed is one JSON object, once the service answers.")
    ] = False,
) -> None:
    """
    Run a service, until Ctrl-C, SIGTERM or SIGHUP.

    The first start makes the account 'owner' and prints its API key and a password for the dashboard, this once.
    A port that can't be had is exit status 2. Without a certificate it speaks plain http: for other machines name
    one, or put a proxy with TLS before it.
    """
    options, settings = configured(
        store=store,
        host=host,
        port=port,
        workers=workers,
        tls_cert=tls_cert,
        tls_key=tls_key,
        base_path=base_path,
        config=config,
        log_json=log_json,
        access_log=access_log,
    )
    _run(options, settings, _print_object if as_json else _print_lines)


class _Start(NamedTuple):
    """What is told at a start; the secrets only at the first. No API key opens the accounts that are `closed`."""

    address: str
    place: StoreLocation
    api_key: str | None
    password: str | None
    closed: tuple[str, ...] = ()
    workers: int = 1

    @property
    def here(self) -> str:
        """The address as a program on this machine can name it: 'all addresses' is none."""
        return self.address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")

    @property
    def dashboard(self) -> str:
        """Where the owner signs in."""
        return f"{self.here}/admin.html"


def _run(options: Options, settings: Settings, tell: Callable[[_Start], None]) -> None:
    import cloudstore_mapping.web.server  # noqa: F401 - before a store is made: it says which extra is missing
    from cloudstore_mapping.web.connections import listen, raise_file_limit
    from cloudstore_mapping.web.logs import logging_as
    from cloudstore_mapping.web.options import warn_of_plain_http
    from cloudstore_mapping.web.tls import check_certificate

    with as_usage():
        check_certificate(options)
        raise_file_limit()
    place = any_place(options.store)
    if place.is_memory and options.workers > 1:
        raise UsageError("A store in memory is one process's; start it with one worker, or name a file.")
    with as_usage():
        is_older = place.is_older()
    if is_older:  # a start that is refused migrates nothing
        stdout()
        with as_usage():
            listen(options.host, options.port).close()
    with (
        logging_as(as_json=options.log_json, access=options.access_log),
        open_at(place, settings, to_write=True) as service,
    ):
        service.healthy()  # logs a full disk; what is there can be loaded, and deleted to make room
        with as_usage():
            listener = listen(options.host, options.port)
        with listener:
            warn_of_plain_http(options)
            if options.workers == 1:
                _run_here(listener, service, place, options, tell)
                return
            service.close()
            _run_workers(listener, place, options, settings, tell)


def _run_here(
    listener: Any, service: Service, place: StoreLocation, options: Options, tell: Callable[[_Start], None]
) -> None:
    from cloudstore_mapping.web.server import run_on

    with _announcing(lambda address: _tell(service, _start(service, address, place), tell)) as announce:
        run_on(listener, service, options, on_ready=announce)


def _run_workers(
    listener: Any, place: StoreLocation, options: Options, settings: Settings, tell: Callable[[_Start], None]
) -> None:
    from cloudstore_mapping.web.workers import run_workers

    def start(address: str) -> None:
        with open_at(place, settings) as service:
            _tell(service, _start(service, address, place)._replace(workers=options.workers), tell)

    with _announcing(start) as announce, as_usage():
        run_workers(listener, place, options, settings, on_ready=announce)


@contextmanager
def _announcing(start: Callable[[str], object]) -> Iterator[Callable[[str], None]]:
    """Yield `start` as a function that ends the service where it fails; its error is raised after the block."""
    failures: list[Exception] = []

    def announce(address: str) -> None:
        try:
            start(address)
        except Exception as error:  # noqa: BLE001 - uvicorn would log it with its traceback
            failures.append(error)
            signal.raise_signal(signal.SIGTERM)

    yield announce
    if failures:
        raise failures[0]


def _start(service: Service, address: str, place: StoreLocation) -> _Start:
    # Only now is it certain that the service answers. Nobody waits meanwhile: no key opens anything yet.
    if not service.accounts.any():
        with suppress(BadNameError):  # another service on the same store may make it at the same moment
            api_key, password = service.owners.create(OWNER)
            return _Start(address, place, api_key, password)
    accounts = service.accounts.all()
    has_key = any(service.accounts.keys(account.name) for account in accounts)
    return _Start(address, place, None, None, () if has_key else tuple(account.name for account in accounts))


def _tell(service: Service, start: _Start, tell: Callable[[_Start], None]) -> None:
    """Tell of a start; an account that nobody was told of is taken away, so that the next start makes it again."""
    try:
        tell(start)
    except BaseException:
        if start.api_key is not None:
            service.accounts.delete(OWNER)
        raise


def _print_object(start: _Start) -> None:
    account = None if start.api_key is None else OWNER
    show_json(
        {
            "address": start.address,
            "store": None if start.place.is_memory else str(start.place),
            "account": account,
            "api_key": start.api_key,
            "dashboard": start.dashboard,
            "user": account,
            "password": start.password,
        }
    )


def _print_lines(start: _Start) -> None:
    where = "in memory, and gone with it" if start.place.is_memory else f"in {start.place}"
    show(f"The service answers at {start.address}, until Ctrl-C.\nIts data is {where}.")
    if start.workers > 1 and start.place.file is not None:
        show(
            f"Its {start.workers} processes write to one file in turn: they answer more loads than one process, but "
            "fewer saves (docs/operation.md, Workers)."
        )
    if start.closed:
        show(f"No API key opens it yet. Make one for the account {start.closed[0]!r}, which has its data:")
        show(f"    cloudstore account rotate-key {quote(start.closed[0])} --store {quote(str(start.place))}")
    if start.api_key is None:
        return
    option = "" if is_loopback(urlsplit(start.here).hostname or "") or "https:" in start.here else ", insecure=True"
    show(f"The account {OWNER!r} is made; its API key, shown only now:\n    {start.api_key}\nA program says:")
    show(f'    cm.open("{start.here.replace("://", f"://{start.api_key}@")}"{option})')
    show(f"The dashboard is {start.dashboard}\nSign in there as {OWNER!r} with this password, to be changed there:")
    show(f"    {start.password}")
