"""Drop-in replacement for the standard library's `shelve`, over a file or a service."""

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
    Open a shelf: a dictionary of any picklable values.

    A value is stored as JSON, readable by other programs, if it comes back equal and of the same types. Any other value
    is stored as a pickle with its HMAC-SHA256; a pickle not signed with `secret` is refused, never loaded.

    Parameters
    ----------
    filename
        A path, or any other location accepted by `cloudstore_mapping.open`.
    flag
        ``r``: read only; ``w``: read and write; ``c``: read and write, creating an absent file; ``n``: like ``c``, and
        delete all existing data.
    protocol
        Pickle protocol, as in `pickle`.
    writeback
        Keep values read, and write changed ones in `Shelf.sync` and `Shelf.close`.
    secret
        Secret of at least 16 bytes to sign the pickles; or several: the first signs, all of them verify. By default the
        environment's ``CLOUDSTORE_SECRET``, or else the file's own secret, created beside it as ``….secret``.
    options
        Options of `cloudstore_mapping.open`.

    Raises
    ------
    ValueError
        The flag is unknown. `BadValueError`: a secret is too short, or the file has signed pickles and their secret is
        neither beside it nor given.
    FileNotFoundError
        There is no file, and the flag does not create it.
    UnsupportedError
        The standard library made a shelf of this name, whatever the flag; the message has the command to move its data.
        Also for any reason in `cloudstore_mapping.open`, whose other errors are raised, too.
    """
    if flag not in tuple(_FLAGS):
        raise ValueError(f"The flag is one of 'r', 'w', 'c' and 'n', not {flag!r}.")
    # Masked first: a traceback with local variables would show the secrets.
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
