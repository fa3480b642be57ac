"""The secrets that a shelf signs its pickles with: given, from the environment, or in a file beside the store's."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from cloudstore_mapping.errors import BadValueError, UnsupportedError
from cloudstore_mapping.storefiles import is_store, read_file

#: One secret, or the one that signs and older ones that still verify.
Secret: TypeAlias = str | bytes | Sequence[str | bytes]

#: The environment's variable that holds one; several stand on a line each.
VARIABLE: Final = "CLOUDSTORE_SECRET"
#: Bytes that a secret has at least, and those of one that is made.
MIN_BYTES: Final = 16
_NEW_BYTES: Final = 32
_END: Final = ".secret"


def secrets_of(given: Secret | None, file: Path | None, *, makes: bool = True) -> list[bytes]:
    """
    Return the secrets of a shelf, the one that signs first: those that are given, else the environment's.

    Where neither says one, they are those in the file beside the store's `file`, which is made, readable by its owner
    only, where it isn't there and this `makes` it. Else, and for a store without a file, there is none then. Raises
    `BadValueError` for one that is too short.
    """
    if given is not None:
        return _checked([given] if isinstance(given, str | bytes) else given)
    if VARIABLE in os.environ:
        return _checked(os.environ[VARIABLE].splitlines())
    if file is None or not (makes or place_of_secret(file).exists()):
        return []
    return _checked(_beside(file).splitlines())


def refuse_secret(path: Path) -> None:
    """Raise `UnsupportedError` for the file of a store's secret, without which its pickles can't be loaded."""
    name = os.path.realpath(path)
    if name.lower().endswith(_END) and is_store(Path(name[: -len(_END)])):
        raise UnsupportedError(f"{path} holds the secret of a store and was left as it is; choose another name.")


def new_secret() -> bytes:
    """Return a random secret."""
    return secrets.token_hex(_NEW_BYTES).encode("ascii")


def _checked(given: Sequence[str | bytes]) -> list[bytes]:
    found = [secret.encode() if isinstance(secret, str) else bytes(secret) for secret in given]
    if not found or any(len(secret.strip()) < MIN_BYTES for secret in found):
        raise BadValueError(f"A shelf's secret has at least {MIN_BYTES} bytes; make one with secrets.token_hex().")
    return found


def place_of_secret(file: Path) -> Path:
    """Return the file of a secret beside a store's."""
    return file.with_name(file.name + _END)


def _beside(file: Path) -> bytes:
    path = place_of_secret(file)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; move it away, for the shelf's secret is kept in a file there.")
    with suppress(FileNotFoundError):
        return read_file(path)
    # Written whole under another name first: another process may read it at any moment.
    draft = file.with_name(f"{file.name}{_END}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(new_secret() + b"\n")
            opened.flush()
            os.fsync(opened.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)  # which never replaces one that is there
    finally:
        draft.unlink()
    return read_file(path)
