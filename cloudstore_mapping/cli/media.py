"""The commands on media files: upload, download."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from cloudstore_mapping.cli.asking import STDIN, asked, stdin
from cloudstore_mapping.cli.data import AsJSON, AskPassword, At, Insecure
from cloudstore_mapping.cli.frame import UsageError
from cloudstore_mapping.cli.output import show_json, show_keys, show_path, stdout
from cloudstore_mapping.cli.places import as_usage, change_store, open_store
from cloudstore_mapping.errors import CloudStoreError
from cloudstore_mapping.links import FILES_PATH
from cloudstore_mapping.oserrors import sentence_of
from cloudstore_mapping.storefiles import open_file

if TYPE_CHECKING:
    from cloudstore_mapping.client.mapping import CloudStoreMapping
    from cloudstore_mapping.client.media import Media

#: What stands for standard input or output in the place of a file.
STREAM: Final = "-"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(upload)
    app.command()(download)


def upload(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file; - is standard input, which needs --as.")],
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="What it is called there; without it its own name.")
    ] = None,
    type_: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="Its type, such as image/jpeg; without it the name says it."),
    ] = None,
    at: At = None,
    password: AskPassword = False,
    insecure: Insecure = False,
    as_json: AsJSON = False,
) -> None:
    """
    Store a media file, in the place of one of the same name, and print its link.

    Whoever has the link gets the file. With --json what is printed has name, folder, id, mimetype, size and url.
    """
    if name is None and (file == STREAM or not Path(file).name):
        raise UsageError(f"{'Standard input' if file == STREAM else repr(file)} has no name; give it one with --as.")
    secret = asked(password)
    path = None if file in STDIN else Path(file)

    def send(store: CloudStoreMapping[Any]) -> Media:
        return store.upload(stdin() if path is None else path, name, type=type_, password=secret, progress=True)

    def try_to_send(store: CloudStoreMapping[Any]) -> None:
        """Send no byte of the file: it may be large, or a stream that can be read only once."""
        if path is not None:
            open_file(path).close()
        store.upload(b"", name or Path(file).name, type=type_, password=secret)

    with _as_usage(file):
        media = change_store(at, send, password=None, insecure=insecure, makes=True, trial=try_to_send)
    if as_json:
        show_json(media._asdict())
    else:
        show_keys([media.url])


def download(
    link: Annotated[
        str,
        typer.Argument(metavar="LINK", help="What upload printed: an address, or /files/… of the store that is named."),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where to write it; a folder keeps its name, - is standard output. Without it, under its own name in "
            "the folder that you are in.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
    at: At = None,
    insecure: Insecure = False,
    as_json: AsJSON = False,
) -> None:
    """
    Get a media file, and print where it was written.

    Nothing is there before it is whole; what breaks off is gone on with where it broke. An address needs no API key.
    """
    with _open_for(link, at, insecure) as store:
        if to == STREAM:
            with _as_usage(None):
                stdout()  # before anything is fetched
                store.download(link, cast("IO[bytes]", _Output()), progress=True)
            sys.stdout.buffer.flush()
            return
        with _as_usage(to or "."):
            path = store.download(link, to or ".", overwrite=force, progress=True)
    if as_json:
        show_json({"file": str(path), "size": path.stat().st_size})
    else:
        show_path(path)


def _open_for(link: str, at: str | None, insecure: bool) -> CloudStoreMapping[Any]:
    """Return the store that the link is of: its address says it, else it is the one that is named."""
    from cloudstore_mapping.client.mapping import CloudStoreMapping

    server, path, _ = link.rpartition(FILES_PATH)
    if at is not None or not (server and path):
        return open_store(at, password=None, insecure=insecure, readonly=True)
    with as_usage():
        return CloudStoreMapping("no key", server, insecure=insecure)  # a download sends none


@contextmanager
def _as_usage(file: str | None) -> Iterator[None]:
    """Turn what the block says of a file of the user's, and of a wrong link or name, into `UsageError`."""
    try:
        yield
    except CloudStoreError:
        raise
    except FileExistsError as error:
        raise UsageError(f"{error.filename!r} exists already; --force replaces it.") from error
    except OSError as error:
        if file is None:
            raise
        raise UsageError(sentence_of(error, file)) from error
    except ValueError as error:
        raise UsageError(str(error)) from error


class _Output(io.RawIOBase):
    """Standard output as a file that never goes back: behind it may be one that others have written to."""

    def writable(self) -> bool:
        """Whether it can be written: it can."""
        return True

    def write(self, data: Any) -> int:
        """Write the next bytes."""
        return sys.stdout.buffer.write(data)
