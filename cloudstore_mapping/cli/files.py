"""The commands on one key beside its value and its change: stat, edit."""

from __future__ import annotations

from datetime import UTC, datetime

import typer

from cloudstore_mapping.cli.asking import asked
from cloudstore_mapping.cli.data import AsJSON, AskPassword, At, Insecure, Key
from cloudstore_mapping.cli.editor import Editing
from cloudstore_mapping.cli.output import show, show_json
from cloudstore_mapping.cli.places import change_store, open_store


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(stat)
    app.command()(edit)


def stat(key: Key, at: At = None, insecure: Insecure = False, as_json: AsJSON = False) -> None:
    """
    Print what the service knows of a key beside its value: size, version, times, whether passwords are set.

    It needs no password, and counts as no access. A service that can't tell is exit status 2.
    """
    with open_store(at, password=None, insecure=insecure, readonly=True) as store:
        facts = store.stat(key)
    if as_json:
        show_json(facts)
        return
    passwords = facts.pop("passwords", {})
    told = {name: _told(name, fact) for name, fact in facts.items()}
    told |= {f"{name} password": "set" if is_set else "not set" for name, is_set in passwords.items()}
    for name, fact in told.items():
        show(f"{name + ':':<15} {fact}")


def _told(name: str, fact: object) -> str:
    if name in ("created", "updated") and isinstance(fact, int | float):
        return f"{datetime.fromtimestamp(fact, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"{fact:,} bytes" if name == "size" else str(fact)


def edit(
    key: Key, at: At = None, password: AskPassword = False, insecure: Insecure = False, as_json: AsJSON = False
) -> None:
    """
    Open the value of a key in an editor, as JSON, and save it if it was changed.

    The editor is what VISUAL or EDITOR name. A key that isn't there begins as null. If somebody else changed it
    meanwhile nothing is saved, where the service can tell. Whatever can't be saved stays in a file that is named.
    """
    secret = asked(password)
    with Editing(key) as editing:
        change_store(
            at,
            lambda store: store.transform(key, editing.change, default=None),
            password=secret,
            insecure=insecure,
            makes=True,
            is_refused=lambda _: not editing.has_changed,
        )
    if as_json:
        show_json({"key": key, "saved": editing.has_changed})
    else:
        show("Saved." if editing.has_changed else "Nothing was changed, so nothing was saved.")
