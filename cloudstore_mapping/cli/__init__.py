"""The command line; no rules of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from cloudstore_mapping._version import __version__
from cloudstore_mapping.cli import accounts, data, doctor, files, keeping, media, passwords, serve, tour, transfer
from cloudstore_mapping.cli.frame import Commands
from cloudstore_mapping.cli.output import show

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode="markdown",  # the mode that joins the lines of a paragraph
    pretty_exceptions_enable=False,  # they can show local variables, and so passwords
    help="""The cloud as a Python dict, from the command line.

    Exit status: 0 done; 1 the service said no; 2 usage: the command line, the JSON or the location is wrong; 3 the
    service was not reached; 130 ended by Ctrl-C (143 by SIGTERM, 129 by SIGHUP), and what it had
    begun may be done or not; 141 the reader of a pipe left. An error is one line on stderr.""",
)


def _version(is_asked: bool) -> None:
    if is_asked:
        show(f"cloudstore-mapping {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    pass


tour.register(app)
data.register(app)
files.register(app)
media.register(app)
transfer.register(app)
serve.register(app)
accounts.register(app)
passwords.register(app)
doctor.register(app)
keeping.register(app)
