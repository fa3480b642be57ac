"""A drop-in for the standard library's `shelve`: the same functions, on a file, a service, or the vendor's."""

from __future__ import annotations

import os
from typing import Any, Final

from cloudstore_mapping.client.options import check_options, masked
from cloudstore_mapping.client.shelf import Envelopes, Secret, Shelf, new_secret, secrets_of
from cloudstore_mapping.locations import check_old_data, store_file
from cloudstore_mapping.locations import open as open_store
from cloudstore_mapping.masking import hide, mask
from cloudstore_mapping.service.storage.places import MEMORY, place_of
from cloudstore_mapping.signed import check_secret

__all__ = ["Shelf", "open"]

_FLAGS: Final = "rwcn"


def open(  # noqa: A001 - the standard library's name
    filename: str | bytes | os.PathLike[str] | os.PathLike[bytes],
    flag: str = "c",
    protocol: int | None = None,
    writeback: bool = False,
    *,
    secret: Secret | None = None,
    **options: Any,
) -> Shelf:
    """
    Open a shelf: a dictionary that keeps any picklable values.

    A value that comes back from JSON equal, types and all, is stored as that JSON, which other programs can read; any
    other as a pickle with its HMAC-SHA256, and a pickle that isn't signed by `secret` is refused, never loaded.

    Parameters
    ----------
    filename
        A path, or any other location that `cloudstore_mapping.open` knows.
    flag
        ``r``: read only; ``w``: read and write; ``c``: the same, and a file is made where there is none; ``n``: the
        same, and all that is there is deleted.
    protocol
        Of the pickles, as in `pickle`.
    writeback
        Keep the values that were read, and write those that were changed at `Shelf.sync` and `Shelf.close`.
    secret
        What signs the pickles, of at least 16 bytes; or several: the first signs, and each of them verifies. Without
        it the environment's ``CLOUDSTORE_SECRET``; else a file's own, which is made beside it as ``….secret``.
    options
        Those of `cloudstore_mapping.open`.

    Raises
    ------
    ValueError
        The flag is none of these; `BadValueError` where a secret is too short, or where the file has signed
        pickles and its secret is neither beside it nor given.
    FileNotFoundError
        There is no file, and the flag makes none.
    UnsupportedError
        The standard library made a shelf of this name, whatever the flag; the sentence has the command that moves its
        data. Or what else `cloudstore_mapping.open` raises.
    """
    if flag not in tuple(_FLAGS):
        raise ValueError(f"The flag is one of 'r', 'w', 'c' and 'n', not {flag!r}.")
    # Masked first: a traceback with local variables shows the values that they have at the error.
    filename = location = hide(os.fsdecode(filename))
    secret, options = mask(secret), masked(options)
    check_options(options)
    path = store_file(location)
    if path is not None:
        check_old_data(path, is_shelf=True, needs_secret=secret is not None)
    if path is not None and flag in "rw" and not place_of(location).exists():
        raise FileNotFoundError(f"There is no shelf {path}; the flag 'c' makes one.")
    store = open_store(location, **options)
    try:
        if flag != "n":
            check_secret(secret, path)
        secrets = [new_secret()] if secret is None and location == MEMORY else secrets_of(secret, path)
        envelopes = Envelopes(secrets, protocol)
        if flag == "n":
            store.clear()
        return Shelf(store, envelopes, writeback=writeback, readonly=flag == "r")
    except BaseException:
        store.close()
        raise
