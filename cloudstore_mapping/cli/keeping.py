"""The commands that keep a store safe: backup, restore, check, compact, migrate, migrate-names, migrate-store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloudstore_mapping.cli.accounts import AsJSON
from cloudstore_mapping.cli.frame import Status, UsageError
from cloudstore_mapping.cli.output import show, show_json
from cloudstore_mapping.cli.places import StoreOption, as_usage, configured, kept_place
from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.signed import secret_note

if TYPE_CHECKING:
    from cloudstore_mapping.service.storage.places import StoreLocation


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(backup)
    app.command()(restore)
    app.command()(check)
    app.command()(compact)
    app.command()(migrate)
    app.command()(migrate_names)
    app.command()(migrate_store)


def backup(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The backup to make; one that is there is never replaced.")
    ],
    store: StoreOption = None,
    as_json: AsJSON = False,
) -> None:
    """
    Copy a store, as it is at one moment, into a file; the service may go on meanwhile.

    The copy is there only once it is whole, with all accounts, files and media. Then each value and media file in it
    is compared with its checksum: exit status 1 where the store holds damaged ones, and each is a line.
    """
    from cloudstore_mapping.service.storage.maintenance import back_up

    source = _existing(store)
    with as_usage(), _bar() as report:
        faults = back_up(source, file.absolute(), report).faults
    facts: dict[str, object] = {"backup": str(file.absolute()), "bytes": file.stat().st_size, "faults": faults}
    lines = [f"{source} is copied to {file}{', and damaged' if faults else ''}.", *faults]
    _show(facts, "\n".join(lines), as_json, secret_note(source.file, file.absolute()))
    if faults:
        raise typer.Exit(Status.REFUSED)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")],
    store: StoreOption = None,
    as_json: AsJSON = False,
) -> None:
    """
    Make a backup a store again; where a store is already, nothing is done.

    It is there only once every page of the backup, and each value and media file with its checksum, was checked.
    """
    from cloudstore_mapping.service.storage.maintenance import restore as restore_store

    target = _place(store)
    with as_usage(), _bar() as report:
        restore_store(file.absolute(), target, report)
    with target.open(readonly=True) as storage:  # a backup of an older version stays one
        size = target.file.stat().st_size if target.file is not None else storage.size()
    facts: dict[str, object] = {"store": str(target), "bytes": size}
    _show(facts, f"{file} is restored to {target}.", as_json, secret_note(target.file, file.absolute()))


def check(
    store: StoreOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="First count the quotas of accounts anew if they are wrong.")
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """
    Look at all that is in a store, and print what there is; it may be in use.

    Exit status 1 where something is not what it should be: each fault is a line.
    """
    from cloudstore_mapping.service.storage.maintenance import check as check_store
    from cloudstore_mapping.service.storage.maintenance import repair as repair_store

    source = _existing(store)
    repaired: list[str] = []
    with as_usage(), _bar() as report:
        if repair:
            _refuse_older(source)
            repaired = repair_store(source)
        findings = check_store(source, report)
    note = secret_note(source.file)
    if as_json:
        mended = {"repaired": repaired} if repair else {}
        show_json({"store": str(source), **asdict(findings), **mended, **_noted(note)})
    else:
        show(f"{source} (schema {findings.schema})")
        show(f"accounts: {findings.accounts:,}")
        show(f"data files: {findings.files:,}, {findings.file_bytes:,} bytes")
        show(f"media files: {findings.media:,}, {findings.media_bytes:,} bytes")
        show(
            f"left over: {findings.orphan_blobs:,} uploads, counts of {findings.orphan_accesses:,} files, "
            f"{findings.deleted_accounts:,} deleted accounts"
        )
        for account in repaired:
            show(f"The quotas of {account!r} were wrong and are counted anew.")
        show("\n".join(findings.faults) or ("Nothing else is wrong." if repaired else "Nothing is wrong."))
        if note is not None:
            show(note)
    if findings.faults:
        raise typer.Exit(Status.REFUSED)


def compact(store: StoreOption = None, as_json: AsJSON = False) -> None:
    """
    Write a store's file anew without its unused space.

    Saves wait meanwhile, and the disk needs as much free space as the store has data. A service gives unused space back
    by itself; only a file made by an older version needs this command once. PostgreSQL does it by itself (autovacuum).
    """
    source = _existing(store)
    with as_usage():
        _refuse_older(source)
    with as_usage(), source.open() as storage:
        before = storage.size()
        done = storage.compact()
        after = storage.size()
    is_rewritten = done is not None and done.is_rewritten
    pending = 0 if done is None else done.pending
    facts: dict[str, object] = {
        "store": str(source),
        "before": before,
        "after": after,
        "rewritten": is_rewritten,
        "pending": pending,
    }
    if done is None:
        line = f"{source} takes {after:,} bytes and was left as it is: PostgreSQL reuses unused space by itself."
    elif is_rewritten and before == after:
        line = f"{source} was written anew and did not get smaller; with its log it takes {after:,} bytes as before."
    elif is_rewritten:
        how = "without its unused space" if after < before else "and got larger"
        line = f"{source} was written anew {how}; with its log it took {before:,} bytes and takes {after:,}."
    else:
        line = f"{source} has no unused space and was left as it is; with its log it takes {after:,} bytes."
    if pending:
        line += f"\nIts file gets {pending:,} bytes shorter once the reads of other programs have ended."
    _show(facts, line, as_json)


def migrate(
    store: StoreOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: AsJSON = False,
) -> None:
    """
    Bring a store to today's schema; a service does so by itself when it starts, and `cm.open` does.

    Older versions can't open the store any more; commands that only read migrate nothing.

    All steps are one transaction: either all of them are done, or none.
    """
    from cloudstore_mapping.service.storage.maintenance import schema_versions

    source = _existing(store)
    with as_usage():
        before, after = schema_versions(source)
        if not dry_run:
            source.open().close()
    said = f"{source} has schema {before}, the newest there is."
    if before != after:
        said = f"{source} {'would go' if dry_run else 'went'} from schema {before} to {after}."
    _show({"store": str(source), "schema": before, "newest": after, "dry_run": dry_run}, said, as_json)


def migrate_names(
    store: StoreOption = None,
    keep: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="A name that stays as it is, for good; may be given many times."),
    ] = [],  # noqa: B006 - typer takes it for the default and never changes it
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be renamed.")] = False,
    as_json: AsJSON = False,
) -> None:
    """
    Rename the files of version 0.1.0, whose names had %2F for a slash, to their keys; docs/keys.md tells more.

    Each file is renamed in a transaction of its own, with its passwords, counts and version; a run that was interrupted
    can be begun again. Where both names exist neither is changed, each pair is a line, and the exit status is 1. Stop
    the service first.
    """
    from cloudstore_mapping.service.storage.maintenance import migrate_names as rename

    source = _existing(store)
    with as_usage(), _bar() as report:
        renames = rename(source, report, keep=keep, dry_run=dry_run)
    facts: dict[str, object] = {
        "store": str(source),
        "renamed": [each._asdict() for each in renames.renamed],
        "clashes": [each._asdict() for each in renames.clashes],
        "dry_run": dry_run,
    }
    lines = [f"{each.account}: {each.old!r} and {each.new!r} both exist." for each in renames.clashes]
    if dry_run:
        lines += [f"{each.account}: {each.old!r} would be {each.new!r}." for each in renames.renamed]
    lines.append(f"{source}: {len(renames.renamed):,} files {'would be' if dry_run else 'were'} renamed.")
    if renames.clashes:
        lines.append(f"{len(renames.clashes):,} were left: delete or rename one file of each pair, then run it again.")
    _show(facts, "\n".join(lines), as_json)
    if renames.clashes:
        raise typer.Exit(Status.REFUSED)


def migrate_store(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The store: a path, or postgresql://…")],
    target: Annotated[str, typer.Argument(metavar="TO", help="Where to copy it: a new file, or postgresql://…")],
    as_json: AsJSON = False,
) -> None:
    """
    Copy a store to another engine, as it is at one moment: from a file to PostgreSQL, or back.

    All accounts, keys, passwords, limits, files, media, counts and events come over, and are compared in the end.
    Where a value or media file doesn't fit its checksum, nothing is copied. Only who is signed in has to sign in again.
    Start the service on TO when it is done: what is written to FROM meanwhile stays there. One that was interrupted
    leaves nothing, and can be begun again.
    """
    from cloudstore_mapping.service.storage.maintenance import migrate_store as migrate

    places = _there(kept_place(source)), kept_place(target)
    with as_usage(), _bar() as report:
        copied = migrate(*places, report)
    rows = {name: each.rows for name, each in copied.items()}
    told = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in rows.items())
    facts: dict[str, object] = {"from": str(places[0]), "to": str(places[1]), "rows": rows}
    note = secret_note(places[0].file, places[1].file or places[0].file)  # a copy needs no room on the old disk
    _show(facts, f"{places[0]} is copied to {places[1]}: {told}.", as_json, note)


def _place(store: str | None) -> StoreLocation:
    options, _ = configured(store=store)
    return kept_place(options.store)


def _existing(store: str | None) -> StoreLocation:
    return _there(_place(store), "look at its name, or name another by --store")


def _there(place: StoreLocation, remedy: str = "look at its name") -> StoreLocation:
    if not place.exists():
        raise UsageError(f"There is no store {place}; {remedy}.")
    return place


def _refuse_older(place: StoreLocation) -> None:
    """Raise `UnsupportedError` for a store of an older version: maintenance alone is no reason to migrate it."""
    if place.is_older():
        raise UnsupportedError(
            f"{place} was written by an older version; make a copy with `cloudstore backup`, then run `cloudstore"
            " migrate` first."
        )


def _show(facts: dict[str, object], line: str, as_json: bool, note: str | None = None) -> None:
    if as_json:
        show_json({**facts, **_noted(note)})
        return
    show(line)
    if note is not None:
        show(note)


def _noted(note: str | None) -> dict[str, object]:
    return {} if note is None else {"note": note}


@contextmanager
def _bar() -> Iterator[Callable[[int, int], object]]:
    """Give the block a function to tell how much is done, and of how much: a bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
