"""The command that shows a newcomer the rest: demo."""

from __future__ import annotations

from contextlib import closing

import typer

from cloudstore_mapping.cli.output import show, stdout


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(demo)


def demo() -> None:
    """
    Show the dictionary at work: in a file, then through a service on this machine; nothing of it stays.

    Each line is really executed, and what it gave is printed as Python's prompt would.
    """
    from cloudstore_mapping.demo import transcript

    coloured = stdout().isatty()
    with closing(transcript()) as parts:
        for part in parts:
            if coloured:
                _show_coloured(part)
            else:
                show(part)


def _show_coloured(part: str) -> None:
    from rich.console import Console
    from rich.syntax import Syntax
    from rich.text import Text

    if part.startswith(">>> "):
        text = Syntax("", "pycon", theme="ansi_dark").highlight(part)
        text.rstrip()
    else:
        text = Text(part, style="bold")
    Console().print(text, soft_wrap=True)
