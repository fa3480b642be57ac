"""
Shelf: the contract of the standard library's `shelve` over a store, with signed pickles.

A value is stored as JSON if it comes back equal and of the same types, otherwise as a pickle with an HMAC-SHA256
signature; a pickle without a valid signature is never loaded.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import io
import math
import os
import pickle
import secrets
import shelve
from collections.abc import ItemsView, Iterable, Iterator, MutableMapping, Sequence, ValuesView
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

from cloudstore_mapping.client import codec
from cloudstore_mapping.errors import BadValueError, BulkError, UnsupportedError, shorten
from cloudstore_mapping.masking import hide
from cloudstore_mapping.storefiles import is_store, read_file

#: Only name of a JSON object that stands for another value: a pickle, or an object with only this name.
MARK: Final = "__shelf__"
_JSON: Final = "json"
_PICKLE: Final = "pickle"
_SIGNATURE: Final = "hmac-sha256"

#: Nesting depth stored as JSON: every service takes it.
MAX_DEPTH: Final = 60
# Python's limit for parsing is a little longer.
_MAX_INT: Final = 10**4000
_PURPOSE: Final = b"cloudstore-mapping shelf\0"

#: A secret, or the signing secret followed by older secrets still accepted.
Secret: TypeAlias = str | bytes | Sequence[str | bytes]

#: Environment variable with secrets, one per line.
VARIABLE: Final = "CLOUDSTORE_SECRET"
#: Minimum size of a secret in bytes, and random bytes of a new secret.
MIN_BYTES: Final = 16
_NEW_BYTES: Final = 32
_SUFFIX: Final = ".secret"


class Shelf(shelve.Shelf[Any]):
    """
    A dictionary of any picklable values, kept in a store.

    Parameters
    ----------
    dict
        The store, closed by `close`.
    envelopes
        Encoder of the values.
    writeback
        Keep values read, and write changed ones in `sync` and `close`.
    readonly
        Refuse every change.

    Notes
    -----
    Unlike the standard library's shelf, it never serves a value after its write failed, a failed `sync` keeps the
    unwritten values and can be repeated, and a `close` with a failed `sync` leaves the shelf open.
    """

    _before: dict[str, bytes]  # stored JSON of each cached value

    def __init__(
        self,
        dict: MutableMapping[str, Any],  # noqa: A002 - the standard library's name
        envelopes: Envelopes,
        *,
        writeback: bool = False,
        readonly: bool = False,
    ) -> None:
        self.dict: Any = dict
        self.writeback = writeback
        self.cache: Any = {}
        self._before = {}
        self._envelopes = envelopes
        self._readonly = readonly
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self.dict!r}>"

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, key: object) -> bool:
        return key in self.cache or key in self._open

    def __getitem__(self, key: str) -> Any:
        store = self._open
        if key in self.cache:
            return self.cache[key]
        return self._load(key, store[key])

    def get(self, key: str, default: Any = None) -> Any:
        """Return the key's value, or `default` if absent."""
        try:
            return self[key]
        except KeyError:
            return default

    def __setitem__(self, key: str, value: Any) -> None:
        store = self._writable
        stored = self._envelopes.dump(_require_text(key), value)
        self._forget(key)
        store[key] = stored
        self._keep(key, value, stored)

    def __delitem__(self, key: str) -> None:
        store = self._writable
        self._forget(key)
        del store[key]

    def items(self) -> ItemsView[str, Any]:
        """Return a view of keys and values, with bulk reads."""
        return _ShelfItems(self)

    def values(self) -> ValuesView[Any]:
        """Return a view of the values, with bulk reads."""
        return _ShelfValues(self)

    def pairs(self) -> Iterator[tuple[str, Any]]:
        """Yield each key with its value, with bulk reads."""
        for key, stored in self._open.items():
            yield key, self.cache[key] if key in self.cache else self._load(key, stored)

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Save many values, with bulk writes."""
        store = self._writable
        values: dict[str, Any] = {}
        values.update(other, **more)
        stored = {key: self._envelopes.dump(_require_text(key), value) for key, value in values.items()}
        for key in stored:
            self._forget(key)
        done: Iterable[str] = ()
        try:
            store.update(stored)
            done = stored
        except BulkError as error:
            done = error.succeeded
            raise
        finally:
            for key in done:
                self._keep(key, values[key], stored[key])

    def clear(self) -> None:
        """Delete all keys."""
        store = self._writable
        self.cache.clear()
        self._before.clear()
        store.clear()

    def sync(self) -> None:
        """
        Write the changed values in the write-back cache, and empty it.

        After a failure they stay in the cache for another `sync`: `BulkError`, or the error of a single key.
        """
        store = self._open
        if not self._readonly:
            stored = {key: self._envelopes.dump(key, value) for key, value in self.cache.items()}
            encoded = {key: bytes(codec.encode(value)) for key, value in stored.items()}
            try:
                store.update({key: stored[key] for key in stored if encoded[key] != self._before[key]})
            except BulkError as error:
                self._before.update((key, encoded[key]) for key in error.succeeded)
                raise
        self.cache.clear()
        self._before.clear()

    def close(self) -> None:
        """Call `sync` and close the store; any further use is `ValueError`."""
        if self._closed:
            return
        self.sync()
        self._closed = True
        self.dict.close()

    def __del__(self) -> None:
        # A forgotten shelf writes back, like the standard library's, unless its `__init__` failed.
        if vars(self).get("_closed") is False:
            self.close()

    @property
    def _open(self) -> Any:
        if self._closed:
            raise ValueError("invalid operation on closed shelf")
        return self.dict

    @property
    def _writable(self) -> Any:
        store = self._open
        if self._readonly:
            raise io.UnsupportedOperation("The shelf is open for reading only; open it with the flag 'w' or 'c'.")
        return store

    def _load(self, key: str, stored: Any) -> Any:
        value = self._envelopes.load(key, stored)
        self._keep(key, value, stored)
        return value

    def _keep(self, key: str, value: Any, stored: Any) -> None:
        if self.writeback:
            self.cache[key] = value
            self._before[key] = bytes(codec.encode(stored))

    def _forget(self, key: str) -> None:
        self.cache.pop(key, None)
        self._before.pop(key, None)


class _ShelfItems(ItemsView[str, Any]):
    def __iter__(self) -> Iterator[tuple[str, Any]]:
        shelf: Any = self._mapping  # type: ignore[attr-defined]  # set by collections.abc
        return shelf.pairs()  # type: ignore[no-any-return]  # of a shelf


class _ShelfValues(ValuesView[Any]):
    def __iter__(self) -> Iterator[Any]:
        shelf: Any = self._mapping  # type: ignore[attr-defined]  # set by collections.abc
        return (value for _, value in shelf.pairs())


def _require_text(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"Keys are str, not {type(key).__name__}; convert {shorten(key)} first.")
    return key


class Envelopes:
    """
    Encode the values of a shelf as JSON or signed pickles, and decode them.

    Parameters
    ----------
    secrets
        The first secret signs pickles, all of them verify. Without secrets only JSON values can be stored.
    protocol
        Pickle protocol, as in `pickle`.

    Notes
    -----
    A signature covers the key, so a pickle moved to another key is refused, too.
    """

    def __init__(self, secrets: Sequence[bytes], protocol: int | None = None) -> None:
        self._secrets = tuple(secrets)
        self._protocol = pickle.DEFAULT_PROTOCOL if protocol is None else protocol

    def dump(self, key: str, value: Any) -> Any:
        """
        Return the JSON value to store for `value`: itself, if it comes back equal and of the same types.

        Raises `BadValueError` for a value to be pickled without a secret, and the errors of `pickle`.
        """
        if is_exact(value):
            return {MARK: {_JSON: value}} if _is_marked(value) else value
        if not self._secrets:
            raise BadValueError(
                f"The value under {shorten(key)} is not plain JSON, so it must be pickled and signed; give the shelf "
                "a secret=…, or set CLOUDSTORE_SECRET.",
                key=key,
            )
        buffer = io.BytesIO()
        pickle.Pickler(buffer, self._protocol).dump(value)
        pickled = buffer.getvalue()
        signature = _sign(self._secrets[0], key, pickled).hex()
        return {MARK: {_PICKLE: base64.b64encode(pickled).decode("ascii"), _SIGNATURE: signature}}

    def load(self, key: str, stored: Any) -> Any:
        """
        Return the value for a stored JSON value.

        Raises `BadValueError`, without loading it, for a pickle not signed for this key by any of the secrets.
        """
        if not _is_marked(stored):
            return stored
        content = stored[MARK]
        if isinstance(content, dict) and content.keys() == {_JSON}:
            return content[_JSON]
        return pickle.loads(self._verified(key, content))  # noqa: S301 - the signature was verified

    def _verified(self, key: str, content: Any) -> bytes:
        try:
            pickled = base64.b64decode(content[_PICKLE], validate=True)
            signature = bytes.fromhex(content[_SIGNATURE])
        except (TypeError, KeyError, ValueError, binascii.Error) as error:
            raise BadValueError(
                f"The value under {shorten(key)} was not stored by a shelf, so it was not loaded.", key=key
            ) from error
        if not any(hmac.compare_digest(_sign(secret, key, pickled), signature) for secret in self._secrets):
            raise BadValueError(
                f"The pickle under {shorten(key)} is not signed by this shelf's secret, so it was not loaded; give the "
                "secret that it was written with.",
                key=key,
            )
        return pickled


def is_exact(value: Any) -> bool:
    """Return True if `value` comes back from JSON equal and with the same types."""
    parts = [(value, 0)]
    while parts:
        part, depth = parts.pop()
        kind = type(part)
        if part is None or kind is bool:
            continue
        if kind is str:
            if not part.isascii() and not _is_unicode(part):
                return False
        elif kind is int:
            if not -_MAX_INT < part < _MAX_INT:
                return False
        elif kind is float:
            if not math.isfinite(part):
                return False
        elif kind in (list, dict):
            if depth == MAX_DEPTH:  # also ends the loop for a value containing itself
                return False
            inner = part if kind is list else part.values()
            if kind is dict and not all(type(name) is str and _is_unicode(name) for name in part):
                return False
            parts.extend((each, depth + 1) for each in inner)
        else:
            return False
    return True


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_marked(value: Any) -> bool:
    return type(value) is dict and value.keys() == {MARK}


def _sign(secret: bytes, key: str, pickled: bytes) -> bytes:
    name = key.encode("utf-8", "surrogatepass")
    return hmac.digest(secret, _PURPOSE + len(name).to_bytes(8, "big") + name + pickled, "sha256")


# Secrets


def secrets_of(given: Secret | None, file: Path | None, *, makes: bool = True) -> list[bytes]:
    """
    Return the secrets of a shelf, the signing secret first: those given, or the environment's.

    Otherwise the secret is in a file beside the store's `file`, readable by its owner only, and created if absent and
    `makes` is true. A store without a file has no secret. Raises `BadValueError` if a secret is too short.
    """
    if given is not None:
        return _checked([given] if isinstance(given, str | bytes) else given)
    if VARIABLE in os.environ:
        return _checked(os.environ[VARIABLE].splitlines())
    if file is None or not (makes or place_of_secret(file).exists()):
        return []
    return _checked(_file_secret(file).splitlines())


def refuse_secret(path: Path) -> None:
    """Raise `UnsupportedError` for the secret file of a store, as its pickles can't be loaded without it."""
    name = os.path.realpath(path)
    if name.lower().endswith(_SUFFIX) and is_store(Path(name[: -len(_SUFFIX)])):
        raise UnsupportedError(f"{path} holds the secret of a store and was left as it is; choose another name.")


def new_secret() -> bytes:
    """Return a random secret."""
    return secrets.token_hex(_NEW_BYTES).encode("ascii")


def place_of_secret(file: Path) -> Path:
    """Return the path of the secret file beside a store's file."""
    return file.with_name(file.name + _SUFFIX)


def _checked(given: Sequence[str | bytes]) -> list[bytes]:
    found: list[bytes] = [hide(secret.encode() if isinstance(secret, str) else bytes(secret)) for secret in given]
    if not found or any(len(secret.strip()) < MIN_BYTES for secret in found):
        raise BadValueError(f"A shelf's secret has at least {MIN_BYTES} bytes; make one with secrets.token_hex().")
    return found


def _file_secret(file: Path) -> bytes:
    path = place_of_secret(file)
    if path.is_dir():
        raise IsADirectoryError(
            f"{path} is a folder; move it away, because the shelf's secret is kept in a file of this name."
        )
    with suppress(FileNotFoundError):
        return read_file(path)
    # Written under another name first, as other processes may read it at any moment.
    draft = file.with_name(f"{file.name}{_SUFFIX}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(new_secret() + b"\n")
            opened.flush()
            os.fsync(opened.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)  # never replaces an existing file
    finally:
        draft.unlink()
    return read_file(path)
