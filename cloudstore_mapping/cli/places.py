"""What a command works on, opened: a store, or the file behind a service; and what is asked for on the way."""

from __future__ import annotations

import getpass
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from cloudstore_mapping.cli.frame import UsageError
from cloudstore_mapping.errors import CloudStoreError

if TYPE_CHECKING:
    from cloudstore_mapping.client.mapping import CloudStoreMapping
    from cloudstore_mapping.service.service import Service

_BEFORE_AT: Final = re.compile(r"[^/\s]*@")


def open_store(location: str | None, *, password: str | None, insecure: bool) -> CloudStoreMapping[Any]:
    """Return the store at `location`; `UsageError` where that can't be understood or opened."""
    from cloudstore_mapping.locations import open as open_location

    with _as_usage():
        return open_location(location, password=password, insecure=insecure)


def open_service(location: str) -> Service:
    """Return the service on the file at `location`; `UsageError` where that can't be understood or opened."""
    from cloudstore_mapping.locations import file_of
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.storage.sqlite import SQLiteStorage

    with _as_usage():
        return Service(SQLiteStorage(file_of(location)))


def ask(what: str) -> str:
    """Return what is typed without echo; where stdin is no terminal, its next line."""
    if sys.stdin.isatty():
        try:
            return getpass.getpass(f"{what[0].upper()}{what[1:]}: ")
        except EOFError as error:
            raise UsageError(f"No {what} was given.") from error
    line = sys.stdin.buffer.readline()
    if not line:
        raise UsageError(f"Standard input ended before the {what}; it is its first line.")
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise UsageError(f"The {what} on standard input is not UTF-8.") from None  # Python's shows its bytes


@contextmanager
def _as_usage() -> Iterator[None]:
    try:
        yield
    except CloudStoreError:
        raise
    except (OSError, ValueError) as error:
        message = str(error).replace("insecure=True", "--insecure")
        # An address without its https:// is taken for a path, and shown with the key in it.
        raise UsageError(_BEFORE_AT.sub("…@", message)) from error
