"""Signed pickles in a store's file: unreadable without the secret of their shelf."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cloudstore_mapping.client.shelf import VARIABLE, Secret, place_of_secret, secret_files
from cloudstore_mapping.errors import BadValueError
from cloudstore_mapping.sqlite_forks import connected
from cloudstore_mapping.storefiles import is_store

# Matches a stored signed pickle or a serializer's bytes, whichever of the two names comes first, except under keys with
# a prefix.
_SIGNED: Final = """
SELECT EXISTS (
    SELECT 1 FROM files
    WHERE (?1 IS NULL OR substr(name, 1, length(?1)) <> ?1) AND (
    replace(CAST(substr(value, 1, 100) AS TEXT), ' ', '') GLOB '{"__shelf__":{"pickle":*'
    OR replace(CAST(substr(value, 1, 100) AS TEXT), ' ', '') GLOB '{"__shelf__":{"bytes":*'
    OR replace(CAST(substr(value, 1, 100) AS TEXT), ' ', '') GLOB '{"__shelf__":{"hmac-sha256":*'
    )
)
"""


def holds_signed(path: Path, *, besides: str | None = None) -> bool:
    """
    Return True if the file at `path` is a store with pickles signed by a shelf's secret.

    Those under keys with the prefix `besides` don't count.
    """
    path = Path(os.path.realpath(path))
    if not is_store(path):
        return False

    from cloudstore_mapping.service.storage.migrations import reading
    from cloudstore_mapping.service.storage.sqlite_files import reading_mode

    with reading(path), connected(f"{path.as_uri()}?mode={reading_mode(path)}", uri=True) as connection:
        return bool(connection.execute(_SIGNED, (besides,)).fetchone()[0])


def check_secret(given: Secret | None, file: Path | None, *, besides: str | None = None) -> None:
    """
    Raise `BadValueError` if a store holds signed pickles and their secret is neither beside it nor given.

    Those under keys with the prefix `besides`, which will be deleted, don't count.
    """
    if given is not None or VARIABLE in os.environ or file is None:
        return
    place = place_of_secret(file)
    if not secret_files(file) and holds_signed(file, besides=besides):
        raise BadValueError(
            f"{file} holds signed pickles, but no {place.name} with their secret is beside it; put {place} back, or "
            f"give the secret by secret=… or {VARIABLE}."
        )


def secret_note(store: Path | None, looked_at: Path | None = None) -> str | None:
    """
    Return a sentence about the secret needed with a copy of a store; None if it needs none.

    `looked_at` is the file to search for pickles, by default `store`.
    """
    looked_at = looked_at or store
    if looked_at is None or not holds_signed(looked_at):
        return None
    if store is not None and (beside := secret_files(store)):
        return f"Nobody can read its signed pickles without {beside[0]}; keep that file with each copy."
    return f"Nobody can read its signed pickles without their secret (FILE.secret or {VARIABLE}); keep it as well."
