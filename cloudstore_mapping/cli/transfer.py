"""The commands that carry data in and out: import, export."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Literal, TypeAlias

import typer

from cloudstore_mapping.cli.asking import STDIN, asked, stdin
from cloudstore_mapping.cli.data import AsJSON, AskPassword, At, Insecure
from cloudstore_mapping.cli.frame import UsageError, report, status_of
from cloudstore_mapping.cli.output import show, show_json
from cloudstore_mapping.cli.places import as_usage, open_store
from cloudstore_mapping.errors import BulkError, CloudStoreError
from cloudstore_mapping.oserrors import sentence_of

FormatOption: TypeAlias = Annotated[
    Literal["json", "jsonl", "dbm", "shelve", "store"] | None,
    typer.Option(
        "--format",
        help="One JSON object; JSON Lines, each with key and value; a dbm file of JSON; a shelf of the standard "
        "library's; or another location. Without it the file's name says which.",
    ),
]
Overwrite: TypeAlias = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
OverwriteExport: TypeAlias = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier export; any other file is left, and is an error.")
]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("import")(import_)
    app.command()(export)


def import_(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="The file, - for standard input, or another location. A shelf or dbm file has the name that programs "
            "open it by.",
        ),
    ],
    format_: FormatOption = None,
    overwrite: Overwrite = False,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Load a shelf, which runs what is in its pickles: only one of your own."),
    ] = False,
    dry_run: DryRun = False,
    at: At = None,
    password: AskPassword = False,
    insecure: Insecure = False,
    as_json: AsJSON = False,
) -> None:
    """
    Write all keys of a file into a store, and the media files in the folder FILE.media.

    What is there already is left as it is. An import that was interrupted goes on when it is begun again. Each key that
    can't be read or written is a line on stderr, and the others go on. Where --at says the name of the shelf or dbm
    file itself, the store is there once all keys are in it, and a file of that very name is kept as NAME.old. With
    --at cloudstore:NAME the keys become those of the shelf that programs open by this name.
    """
    from cloudstore_mapping.transfer.importing import import_at
    from cloudstore_mapping.transfer.sources import source_at

    secret = asked(password)
    stream = stdin() if file in STDIN else None
    with (
        _failing(file, "Would import" if dry_run else "Imported", as_json),
        source_at(file, format_, trust=trust, stream=stream) as source,
    ):
        opens = partial(open_store, password=secret, insecure=insecure, makes=True, readonly=dry_run)
        done, kept = import_at(at, source, opens, overwrite=overwrite, dry_run=dry_run, progress=True)
    if as_json:
        show_json({"dry_run": dry_run, **done._asdict(), "kept": None if kept is None else str(kept)})
        return
    verb = "Would import" if dry_run else "Imported"
    show(f"{verb} {_keys(done.written)} and {_media(len(done.media))}.")
    if done.skipped or done.media_skipped:
        show(_left(done.skipped, f" and {_media(done.media_skipped)}", dry_run))
    if kept is not None:
        show(f"{file} is the store now; the file before is kept as {kept}.")


def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to make, or another location.")],
    format_: FormatOption = None,
    overwrite: OverwriteExport = False,
    dry_run: DryRun = False,
    at: At = None,
    password: AskPassword = False,
    insecure: Insecure = False,
    as_json: AsJSON = False,
) -> None:
    """
    Write all keys of a store into a file, and its media files into the folder FILE.media.

    FILE is there once it is whole. An export that was interrupted is begun again by the same command, which takes over
    what can't have changed. A service lists no media files: of one, those are taken whose addresses stand in the
    values. Each key that can't be read, or that the format can't hold, is a line on stderr, and the others go on; the
    exit status is 1. With --at cloudstore:NAME only the keys of the shelf of this name are exported.
    """
    from cloudstore_mapping.locations import shelf_at
    from cloudstore_mapping.signed import secret_note
    from cloudstore_mapping.transfer import export_store
    from cloudstore_mapping.transfer.formats import format_of_target
    from cloudstore_mapping.transfer.raw_store import RawStore

    failing = _failing(file, "Would export" if dry_run else "Exported", as_json)
    with as_usage():
        at, prefix = shelf_at(at)
    with open_store(at, password=asked(password), insecure=insecure, readonly=True) as store, failing:
        part = store.view(prefix) if prefix else store
        done = export_store(part, file, format=format_, overwrite=overwrite, dry_run=dry_run, progress=True)
        # A shelf of the standard library has the pickles alone.
        note = None if format_of_target(file, format_) == "shelve" else secret_note(RawStore(store).file)
    if as_json:
        show_json({"dry_run": dry_run, **done._asdict(), **({} if note is None else {"note": note})})
        return
    verb = "Would export" if dry_run else "Exported"
    media = "what media files their values name" if done.media is None else _media(done.media)
    show(f"{verb} {_keys(done.keys)} and {media}.")
    if done.before:
        show(
            f"{_keys(done.before)} of these had been read up to {_minutes(done.before_age)} ago, by an export that was "
            "interrupted; what changed since is not in the file."
        )
    if done.skipped:
        show(_left(done.skipped, "", dry_run))
    for address in done.missing:
        show(f"A value names {address}, which leads nowhere.")
    if note is not None:
        show(note)


@contextmanager
def _failing(file: str, verb: str, as_json: bool) -> Iterator[None]:
    """Print what went wrong with single keys, and turn what is wrong with the file into `UsageError`."""
    try:
        with _as_usage(file):
            yield
    except BulkError as error:
        if as_json:
            show_json({"succeeded": len(error.succeeded), "failed": len(error.failed)})
        else:
            show(f"{verb} {_keys(len(error.succeeded))}; {len(error.failed):,} failed.")
        failures = [failure for failure in error.failed.values() if isinstance(failure, CloudStoreError)]
        for failure in failures:
            report(failure, as_json=as_json)
        _report_notes(error, as_json)
        raise typer.Exit(max(map(status_of, failures))) from error
    except (CloudStoreError, UsageError) as error:
        noted = error.__cause__ or error
        if not hasattr(noted, "__notes__"):
            raise
        report(error, as_json=as_json)
        _report_notes(noted, as_json)
        raise typer.Exit(status_of(error)) from error


def _report_notes(error: BaseException, as_json: bool) -> None:
    for note in getattr(error, "__notes__", ()):
        report(UsageError(note), as_json=as_json)


@contextmanager
def _as_usage(file: str) -> Iterator[None]:
    try:
        yield
    except CloudStoreError as error:
        if isinstance(error, ValueError):
            raise UsageError(_as_options(str(error))) from error
        raise
    except FileExistsError as error:
        raise UsageError(f"{error.filename!r} exists already; --overwrite replaces an earlier export.") from error
    except OSError as error:
        raise UsageError(sentence_of(error, file)) from error
    except ValueError as error:
        raise UsageError(_as_options(str(error))) from error


def _as_options(sentence: str) -> str:
    for name in ("trust", "overwrite", "insecure"):
        sentence = sentence.replace(f"{name}=True", f"--{name}")
    return sentence


def _left(keys: int, media: str, dry_run: bool) -> str:
    is_one = keys == 1 and not media
    left = "would be" if dry_run else "was" if is_one else "were"
    as_now = "it is" if is_one else "they are"
    return f"{_keys(keys)}{media} {left} left as {as_now} there; --overwrite replaces what differs."


def _minutes(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes} minute{'' if minutes == 1 else 's'}"


def _keys(count: int) -> str:
    return f"{count:,} key{'' if count == 1 else 's'}"


def _media(count: int) -> str:
    return f"{count:,} media file{'' if count == 1 else 's'}"
