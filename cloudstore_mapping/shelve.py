"""
Drop-in replacement for the standard library's `shelve`, over a file or a service.

``python -m cloudstore_mapping.shelve program.py …`` runs a program with this module in place of `shelve`.
"""

from __future__ import annotations

import collections
import os
import pickle
import shelve
from collections.abc import MutableMapping
from io import BytesIO
from pickle import DEFAULT_PROTOCOL, Pickler, Unpickler
from typing import Any, Final

from cloudstore_mapping.client.mapping import files_of
from cloudstore_mapping.client.options import check_options, masked
from cloudstore_mapping.client.shelf import (
    Deserializer,
    Envelopes,
    Secret,
    Serializer,
    StoreShelf,
    new_secret,
    secrets_of,
    write_postponed,
)
from cloudstore_mapping.locations import check_old_data, location_of, shelf_at, shelf_prefix, store_file
from cloudstore_mapping.locations import open as open_store
from cloudstore_mapping.masking import hide, mask
from cloudstore_mapping.service.storage.places import MEMORY, place_of
from cloudstore_mapping.signed import check_secret

__all__ = ["BsdDbShelf", "DbfilenameShelf", "Shelf", "ShelveError", "open"]

# Programs import these from `shelve`, or replace the two classes there by those of another pickle module.
_ = (BytesIO, DEFAULT_PROTOCOL, Pickler, Unpickler, collections)

_FLAGS: Final = "rwcn"


class _ShelveError(Exception):
    """Error of the arguments of a shelf."""


#: The standard library's, in versions of Python that have it.
ShelveError: type[Exception] = getattr(shelve, "ShelveError", _ShelveError)


def _dumps(value: Any, protocol: int) -> bytes:
    buffer = BytesIO()
    Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def _has_own_pickler() -> bool:
    return Pickler is not pickle.Pickler


def _loads(data: bytes) -> Any:
    return Unpickler(BytesIO(data)).load()  # noqa: S301 - a signature was verified, or the user's dictionary holds it


def _check_serializers(serializer: Serializer | None, deserializer: Deserializer | None) -> None:
    if (serializer is None) != (deserializer is None):
        raise ShelveError("A serializer and a deserializer belong together; give both, or neither.")


class Shelf(shelve.Shelf[Any]):
    """
    A shelf over any dictionary from bytes to bytes, as the standard library's in Python 3.15.

    Parameters
    ----------
    dict
        The dictionary; keys are stored in the encoding `keyencoding`.
    protocol, writeback
        As for `open`.
    serializer, deserializer
        As for `open`; by default those of `pickle`.
    """

    dict: Any
    cache: Any
    writeback: bool
    keyencoding: str
    _protocol: int

    def __init__(
        self,
        dict: MutableMapping[bytes, bytes],  # noqa: A002 - the standard library's name
        protocol: int | None = None,
        writeback: bool = False,
        keyencoding: str = "utf-8",
        *,
        serializer: Serializer | None = None,
        deserializer: Deserializer | None = None,
    ) -> None:
        _check_serializers(serializer, deserializer)
        self.serializer: Serializer = serializer or _dumps
        self.deserializer: Deserializer = deserializer or _loads
        super().__init__(dict, protocol, writeback, keyencoding)

    def __getitem__(self, key: str) -> Any:
        try:
            return self.cache[key]
        except KeyError:
            value = self.deserializer(self.dict[key.encode(self.keyencoding)])
        if self.writeback:
            self.cache[key] = value
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        if self.writeback:
            self.cache[key] = value
        self.dict[key.encode(self.keyencoding)] = self.serializer(value, self._protocol)

    def reorganize(self) -> None:
        """Call `sync`, and the dictionary's own `reorganize`, if it has one."""
        self.sync()
        if hasattr(self.dict, "reorganize"):
            self.dict.reorganize()


class BsdDbShelf(Shelf, shelve.BsdDbShelf[Any]):
    """A shelf over a Berkeley DB, with the methods `first`, `next`, `previous`, `last` and `set_location`."""

    def set_location(self, key: Any) -> tuple[str, Any]:
        """Move to a key of the database, and return the key and value there."""
        return self._decoded(self.dict.set_location(key))

    def next(self) -> tuple[str, Any]:
        """Move to the next key, and return it with its value."""
        return self._decoded(next(self.dict))

    def previous(self) -> tuple[str, Any]:
        """Move to the previous key, and return it with its value."""
        return self._decoded(self.dict.previous())

    def first(self) -> tuple[str, Any]:
        """Move to the first key, and return it with its value."""
        return self._decoded(self.dict.first())

    def last(self) -> tuple[str, Any]:
        """Move to the last key, and return it with its value."""
        return self._decoded(self.dict.last())

    def _decoded(self, pair: tuple[bytes, bytes]) -> tuple[str, Any]:
        key, data = pair
        return key.decode(self.keyencoding), self.deserializer(data)


class DbfilenameShelf(StoreShelf, Shelf):
    """A shelf in a file or at a service; the arguments are those of `open`."""

    def __init__(
        self,
        filename: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None,
        flag: str = "c",
        protocol: int | None = None,
        writeback: bool = False,
        *,
        serializer: Serializer | None = None,
        deserializer: Deserializer | None = None,
        secret: Secret | None = None,
        prefix: str = "",
        **options: Any,
    ) -> None:
        # Masked first: a traceback with local variables would show the secrets.
        filename, secret, options = hide(filename), mask(secret), masked(options)
        if flag not in tuple(_FLAGS):
            raise ValueError(f"The flag is one of 'r', 'w', 'c' and 'n', not {flag!r}.")
        _check_serializers(serializer, deserializer)
        write_postponed()
        filename, prefix = _location_and_prefix(filename, prefix)
        location = hide(location_of(filename))
        check_options(options)
        path = store_file(location)
        if path is not None:
            check_old_data(path, is_shelf=True, needs_secret=secret is not None)
        if path is not None and flag in "rw" and not place_of(location).exists():
            raise FileNotFoundError(f"There is no shelf {path}; the flag 'c' makes one.")
        if flag == "r":
            options["readonly"] = True
        store = open_store(location, **options)
        try:
            check_secret(secret, path, besides=prefix if flag == "n" else None)
            is_memory = secret is None and location == MEMORY
            secrets = [new_secret()] if is_memory else secrets_of(secret, path, makes=False)
            content = store.view(prefix) if prefix else store
            if flag == "n":
                content.clear()  # no secret is made if this fails
            envelopes = Envelopes(
                secrets or secrets_of(secret, path, makes=flag != "r"),
                protocol,
                prefix=prefix,
                dumps=_dumps,
                loads=_loads,
                serializer=serializer,
                deserializer=deserializer,
                is_custom=_has_own_pickler,
                pickle_secrets=bool(options.get("pickle_secrets")),
            )
            StoreShelf.__init__(
                self,
                content,
                envelopes,
                writeback=writeback,
                readonly=flag == "r",
                opened=store,
                compact=_compact,
            )
        except BaseException:
            store.close()
            raise


def _compact(store: Any) -> None:
    files_of(store).client.compact()


def _location_and_prefix(filename: Any, prefix: str) -> tuple[Any, str]:
    """Return the location and the prefix of the keys; a prefix that ends in a letter or digit gets a slash."""
    if not isinstance(prefix, str):
        raise TypeError(f"The prefix must be a str, not {type(prefix).__name__}.")
    location, named = shelf_at(filename)
    if named and prefix:
        raise ValueError(
            "A shelf's name is written as cloudstore:NAME, without a prefix; give a file of this name by its absolute "
            "path."
        )
    return location, named or shelf_prefix(prefix)


def open(  # noqa: A001 - the standard library's name
    filename: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None,
    flag: str = "c",
    protocol: int | None = None,
    writeback: bool = False,
    *,
    serializer: Serializer | None = None,
    deserializer: Deserializer | None = None,
    secret: Secret | None = None,
    prefix: str = "",
    **options: Any,
) -> DbfilenameShelf:
    """
    Open a shelf: a dictionary of any picklable values.

    A value is stored as JSON, readable by other programs, if it comes back equal and of the same types. Any other value
    is stored as a pickle with its HMAC-SHA256; a pickle not signed with `secret` is refused, never loaded.

    Parameters
    ----------
    filename
        A path, or any other location accepted by `cloudstore_mapping.open`. ``cloudstore:NAME``: the shelf of this name
        at the environment's ``CLOUDSTORE_URL``.
    flag
        ``r``: read only; ``w``: read and write; ``c``: read and write, creating an absent file; ``n``: like ``c``, and
        delete all existing data of the shelf.
    protocol
        Pickle protocol, as in `pickle`.
    writeback
        Keep values read, and write changed ones in `Shelf.sync`, in `Shelf.close`, and at the end of the program.
    serializer, deserializer
        Functions that replace JSON and pickles: ``serializer(value, protocol)`` returns bytes, of which
        ``deserializer(data)`` returns the value. The bytes are signed, too.
    secret
        Secret of at least 16 bytes to sign the pickles; or several: the first signs, all of them verify. By default the
        file's own secret, beside it as ``….secret``, and then those of the environment's ``CLOUDSTORE_SECRET``. A file
        without either gets a secret of its own.
    prefix
        Prefix of the shelf's keys in the store, so that several shelves share one; a ``/`` is added to one that ends
        in a letter or digit. ``cloudstore:NAME`` is short for it.
    options
        Options of `cloudstore_mapping.open`.

    Raises
    ------
    ValueError
        The flag is unknown. `BadValueError`: a secret is too short, or others may read its file; or the file has signed
        pickles and their secret is neither beside it nor given.
    FileNotFoundError
        There is no file, and the flag does not create it.
    ShelveError
        Only one of `serializer` and `deserializer` is given.
    UnsupportedError
        The standard library made a shelf of this name, whatever the flag; the message has the command to move its data.
        Also for any reason in `cloudstore_mapping.open`, whose other errors are raised, too.
    """
    # Masked first: a traceback with local variables would show the secrets.
    filename, secret, options = hide(filename), mask(secret), masked(options)
    return DbfilenameShelf(
        filename,
        flag,
        protocol,
        writeback,
        serializer=serializer,
        deserializer=deserializer,
        secret=secret,
        prefix=prefix,
        **options,
    )


if __name__ == "__main__":
    import sys

    from cloudstore_mapping.shelve_runner import main

    main(sys.argv[1:])
