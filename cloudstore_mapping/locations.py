"""Where a store can be: the addresses and paths that `open` takes."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from cloudstore_mapping.client.address import parse_address
from cloudstore_mapping.client.mapping import CloudStoreMapping

V = TypeVar("V")

MEMORY: Final = "memory:"
_SERVICES: Final = ("http", "https")
DEFAULT_FILE: Final = "cloudstore.db"
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two letters at least: C:\ is a drive
# A path like this would make a file with a secret for its name.
_KEY_WITHOUT_SCHEME: Final = re.compile(r"[A-Za-z0-9._~-]{16,}@[^/]")


def open(location: str | os.PathLike[str] | None = None, **options: Any) -> CloudStoreMapping[Any]:  # noqa: A001
    """
    Open a store, as a dictionary.

    Parameters
    ----------
    location
        ``https://API_KEY@host/path``, a service; a path or ``sqlite:///path``, one SQLite file, created if it is
        absent; ``memory:``, gone with the process; None, what the environment's ``CLOUDSTORE_URL`` says, else
        ``cloudstore.db`` in the working directory.
    options
        Those of `CloudStoreMapping`; what concerns only a network is without effect on a file.

    Raises
    ------
    ValueError
        The location can't be understood, or is plain http to another machine without ``insecure=True``.
    UnsupportedError
        The file isn't a store of ours, and was left as it is.
    OSError
        The file can't be opened or made.
    """
    if location is None:
        location = os.environ.get("CLOUDSTORE_URL") or DEFAULT_FILE
    location = os.fspath(location)
    if _scheme(location) in _SERVICES:
        api_key, server = parse_address(location, insecure=options.get("insecure", False))
        return CloudStoreMapping(api_key, server, **options)
    return EmbeddedMapping(None if location == MEMORY else file_of(location), location, **options)


def store_file(location: str) -> Path | None:
    """Return the file that `open` keeps the store at a location in; None where it keeps it in none."""
    if location == MEMORY or _scheme(location) in _SERVICES:
        return None
    return Path(file_of(location)).absolute()


def file_of(location: str) -> str:
    """Return the path that a path or ``sqlite:///path`` means; `ValueError` for what means none."""
    scheme = _scheme(location)
    if scheme == "sqlite":
        location = location.partition("://")[2].removeprefix("/")
    elif scheme is not None:
        raise ValueError(f"No store can be at {scheme}://; give an https:// address, a path, or sqlite:///path.")
    elif _KEY_WITHOUT_SCHEME.match(location):
        raise ValueError("The location looks like an API key and a host; begin it with https://.")
    if not location:
        raise ValueError("The location is empty; give an https:// address, a path, or sqlite:///path.")
    return location


def _scheme(location: str) -> str | None:
    match = _SCHEME.match(location)
    return None if match is None else match[1].lower()


class EmbeddedMapping(CloudStoreMapping[V]):
    """The mapping over a service in this process, which keeps its data in the file `path`, or with None in memory."""

    def __init__(self, path: str | None, label: str, **options: Any) -> None:
        from cloudstore_mapping.embedded import open_service  # loads SQLite, which a program on a network never needs

        self._path = None if path is None else str(Path(path).absolute())
        transport, api_key = open_service(self._path)
        try:
            super().__init__(api_key, label, **{**options, "transport": transport})
        except BaseException:
            transport.close()
            raise

    def _identity(self) -> tuple[str, ...]:
        return super()._identity() if self._path is None else (self._path,)  # its API key is another each time

    def _file(self) -> Path | None:
        return None if self._path is None else Path(self._path)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is None:
            raise TypeError("A store in memory can't be pickled: it is gone with its process.")
        return partial(open, **self._options), (self._path,)
