"""Command doctor: test a service against the assumptions of the clients."""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from cloudstore_mapping.cli.data import AsJSON, Insecure
from cloudstore_mapping.cli.frame import Status, UsageError, report, status_of
from cloudstore_mapping.cli.output import show, show_json, stdout
from cloudstore_mapping.cli.places import as_usage
from cloudstore_mapping.errors import CloudStoreError, OutcomeUnknownError

if TYPE_CHECKING:
    from cloudstore_mapping.doctor import Doctor, Report


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(doctor)


def doctor(
    location: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="The service: https://API_KEY@host/path. Without it: the environment's CLOUDSTORE_URL, where an API "
            "key belongs: other users of the machine can see command lines.",
        ),
    ] = None,
    interval: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="SECONDS", help="Least time between two requests. Without it: 3 for the vendor's servers."
        ),
    ] = None,
    media: Annotated[
        bool,
        typer.Option("--media", help="Upload a media file of one byte too; only the dashboard can delete it."),
    ] = False,
    files: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Save up to N more files, to find the account's limit."),
    ] = 0,
    insecure: Insecure = False,
    as_json: AsJSON = False,
) -> None:
    """
    Test a service against each assumption of the clients, and print a report to paste into a bug report.

    The service may be the vendor's, ours, or another of the same protocol. The names that this uses begin with
    "doctor-" and 8 random digits, and are deleted at the end, also after Ctrl-C, which prints the report so far. The
    report holds no API key. The exit status is 1 if anything is different, or a file could not be deleted.
    """
    from cloudstore_mapping.doctor import Doctor, Outcome

    api_key, server = _address(location, insecure)
    if interval is not None and not math.isfinite(interval):
        raise UsageError("The interval is no number of seconds; write one such as 3.")
    stdout()
    examination = Doctor(api_key, server, interval=interval, media=media, files=files)
    try:
        result = examine(examination)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and (partial := examination.partial_report()) is not None:
            with suppress(OSError):  # the terminal may be gone
                _show(partial, as_json)
        # The frame prints the notes of an interrupt, and none of another exception.
        if not isinstance(error, KeyboardInterrupt):
            _show_notes(error, as_json)
        raise
    _show(result, as_json)
    if result.failure is not None:
        raise typer.Exit(status_of(result.failure))
    if result.count(Outcome.DIFFERENT) or any(not left.name.startswith("media file ") for left in result.left):
        raise typer.Exit(Status.REFUSED)


def _address(location: str | None, insecure: bool) -> tuple[str, str]:
    """Return the API key and the server at a location; `UsageError` if it is no service."""
    from cloudstore_mapping.client.address import parse_address
    from cloudstore_mapping.locations import location_of, place_at

    with as_usage():
        text = location_of(location)
        if place_at(text) is not None:
            raise ValueError(
                "The doctor examines a service over HTTP, not a file, database or memory; give an address such as "
                "https://API_KEY@host/path, or set CLOUDSTORE_URL."
            )
        return parse_address(text, insecure=insecure)


def examine(examination: Doctor) -> Report:
    """Return the report of an examination; on a terminal, announce its length and show a progress bar."""
    from cloudstore_mapping.client.progress import reporting

    if sys.stderr is None or not sys.stderr.isatty():
        return examination.examine()
    requests, minutes = examination.expected_requests, math.ceil(examination.expected_seconds / 60)
    sys.stderr.write(f"About {requests:,} requests{f', {minutes} minutes' if minutes else ''}.\n")
    with reporting(True, requests) as progress:
        return examination.examine(progress)


def _show(result: Report, as_json: bool) -> None:
    if as_json:
        show_json(result.as_json())
    else:
        show(result.as_text())


def _show_notes(error: BaseException, as_json: bool) -> None:
    for note in getattr(error, "__notes__", ()):
        report(
            OutcomeUnknownError(note) if not isinstance(error, CloudStoreError) else UsageError(note), as_json=as_json
        )
