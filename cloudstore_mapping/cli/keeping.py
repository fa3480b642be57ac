"""The commands that keep a store safe: backup, restore, check, migrate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cloudstore_mapping.cli.accounts import AsJSON
from cloudstore_mapping.cli.frame import Status, UsageError
from cloudstore_mapping.cli.output import show, show_json
from cloudstore_mapping.cli.places import StoreOption, as_usage, configured, file_of_store, open_file


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(backup)
    app.command()(restore)
    app.command()(check)
    app.command()(migrate)


def backup(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The backup to make; one that is there is never replaced.")
    ],
    store: StoreOption = None,
    as_json: AsJSON = False,
) -> None:
    """
    Copy a store, as it is at one moment, into a file; the service may go on meanwhile.

    The copy is checked, and is there only once it is whole. It holds all accounts, files and media.
    """
    from cloudstore_mapping.service.storage.sqlite import SQLiteStorage

    source = _existing(store)
    with as_usage(), SQLiteStorage(source) as storage, _bar() as report:
        storage.back_up(file.absolute(), report)
    _show({"backup": str(file.absolute()), "bytes": file.stat().st_size}, f"{source} is copied to {file}.", as_json)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")],
    store: StoreOption = None,
    as_json: AsJSON = False,
) -> None:
    """
    Make a backup a store again; where a store is already, nothing is done.

    The backup is checked first, to the last byte.
    """
    from cloudstore_mapping.service.storage.sqlite_backup import restore as restore_store

    target = _file(store)
    with as_usage(), _bar() as report:
        restore_store(file.absolute(), target, report)
    _show({"store": str(target), "bytes": target.stat().st_size}, f"{file} is restored to {target}.", as_json)


def check(store: StoreOption = None, as_json: AsJSON = False) -> None:
    """
    Look at all that is in a store, and print what there is; it may be in use.

    Exit status 1 where something is not what it should be: each fault is a line.
    """
    from cloudstore_mapping.service.storage.sqlite_check import check as check_store

    source = _existing(store)
    with as_usage(), _bar() as report:
        findings = check_store(source, report)
    if as_json:
        show_json({"store": str(source), **asdict(findings)})
    else:
        show(f"{source} (schema {findings.schema})")
        show(f"accounts: {findings.accounts:,}")
        show(f"data files: {findings.files:,}, {findings.file_bytes:,} bytes")
        show(f"media files: {findings.media:,}, {findings.media_bytes:,} bytes")
        show(f"left over: {findings.orphan_blobs:,} uploads, counts of {findings.orphan_accesses:,} files")
        show("\n".join(findings.faults) or "Nothing is wrong.")
    if findings.faults:
        raise typer.Exit(Status.REFUSED)


def migrate(
    store: StoreOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: AsJSON = False,
) -> None:
    """
    Bring a store to today's schema; the service does so by itself when it starts.

    All steps are one transaction: either all of them are done, or none.
    """
    from cloudstore_mapping.service.storage.migrations import newest
    from cloudstore_mapping.service.storage.sqlite_backup import verify

    source = _existing(store)
    with as_usage():
        before = verify(source)
    after = newest()
    if not dry_run:
        _, settings = configured(store=store)
        open_file(source, settings).close()
    said = f"{source} has schema {before}, the newest there is."
    if before != after:
        said = f"{source} {'would go' if dry_run else 'went'} from schema {before} to {after}."
    _show({"store": str(source), "schema": before, "newest": after, "dry_run": dry_run}, said, as_json)


def _file(store: str | None) -> Path:
    options, _ = configured(store=store)
    file = file_of_store(options.store)
    if file is None:
        raise UsageError("A store in memory is gone with its service; name the file of one.")
    return file


def _existing(store: str | None) -> Path:
    file = _file(store)
    if not file.is_file():
        raise UsageError(f"There is no store {file}; look at its name.")
    return file


def _show(facts: dict[str, object], line: str, as_json: bool) -> None:
    if as_json:
        show_json(facts)
    else:
        show(line)


@contextmanager
def _bar() -> Iterator[Callable[[int, int], object]]:
    """Give the block a function to tell how much is done, and of how much: a bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
