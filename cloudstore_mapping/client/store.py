"""A store and what is particular to it, whatever it looks like from outside: options, keys, closing."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import msgspec
from msgspec import UNSET, Raw

from cloudstore_mapping.client import codec
from cloudstore_mapping.client.address import (
    DEFAULT_SERVER,
    check_server,
    default_interval,
    parse_address,
    resolve_server,
)
from cloudstore_mapping.client.bulk import Workers, read_many, write_many
from cloudstore_mapping.client.cache import DEFAULT_BYTES, DEFAULT_ENTRIES, Cache, Found
from cloudstore_mapping.client.changes import Change
from cloudstore_mapping.client.client import Client
from cloudstore_mapping.client.files import Files
from cloudstore_mapping.client.pacing import pacer_of
from cloudstore_mapping.client.passwords import Password, Passwords
from cloudstore_mapping.client.progress import Progress
from cloudstore_mapping.client.transport import DEFAULT_TIMEOUT, HTTPTransport, Transport
from cloudstore_mapping.client.views import LengthHint
from cloudstore_mapping.errors import CloudStoreError, NoFileError

if TYPE_CHECKING:
    from cloudstore_mapping.client.transport import Session

T = TypeVar("T")
V = TypeVar("V")


class Store(Generic[V]):
    """What `CloudStoreMapping` is built on: the account's files by key, opened with options and closed in the end."""

    def __init__(
        self,
        api_key: str,
        server: str = DEFAULT_SERVER,
        *,
        passwords: Mapping[str, str | Password | None] | None = None,
        password: str | None = None,
        media_password: str | None = None,
        cache_ttl: float | None = None,
        cache_size: int = DEFAULT_ENTRIES,
        cache_bytes: int = DEFAULT_BYTES,
        cache_absent_ttl: float | None = None,
        timeout: float | tuple[float, float] = DEFAULT_TIMEOUT,
        retries: int = 3,
        min_interval: float | None = None,
        max_workers: int = 8,
        progress: Progress = None,
        session: Session | None = None,
        insecure: bool = False,
        pickle_secrets: bool = False,
        clock: Callable[[], float] = time.monotonic,
        transport: Transport | None = None,
    ) -> None:
        self._closed = False
        self._own_transport = transport is not None
        self._options: dict[str, Any] = {
            "cache_ttl": cache_ttl,
            "cache_size": cache_size,
            "cache_bytes": cache_bytes,
            "cache_absent_ttl": cache_absent_ttl,
            "timeout": timeout,
            "retries": retries,
            "min_interval": min_interval,
            "max_workers": max_workers,
            "insecure": insecure,
        }
        if pickle_secrets:
            secrets = {"password": password, "passwords": passwords, "media_password": media_password}
            self._options |= {"pickle_secrets": True, **secrets}
        self._api_key = api_key if pickle_secrets else None
        self._cache: Cache[bytes] | None = None
        listing: Cache[dict[str, None]] | None = None
        if cache_ttl is not None:
            self._cache = Cache(
                cache_ttl,
                entries=cache_size,
                max_bytes=cache_bytes,
                size=len,
                clock=clock,
                absent_ttl=cache_absent_ttl,
            )
            listing = Cache(cache_ttl, entries=1, max_bytes=1, size=lambda _: 0, clock=clock)
        self._workers = Workers(max_workers)
        pacer = None
        if transport is None:
            server = check_server(resolve_server(server), insecure=insecure)
            transport = HTTPTransport(server, timeout=timeout, session=session)
            pacer = pacer_of(server)
            if min_interval is None:
                min_interval = default_interval(server)
        if min_interval:
            self._workers = Workers(1)
        self._location = server
        self._whose = hashlib.sha256(api_key.encode("utf-8", "surrogatepass")).hexdigest()
        self._address: str = getattr(transport, "server", "")
        self._media_password = media_password
        self._client = Client(
            transport,
            api_key,
            retries=retries,
            min_interval=min_interval or 0.0,
            pacer=pacer,
            clock=clock,
            sleep=getattr(clock, "sleep", time.sleep),
        )
        self._files = Files(self._client, Passwords(passwords, password), self._cache, listing)
        self._progress = progress
        self._local = threading.local()
        self._hint = LengthHint()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._location}{' (closed)' if self._closed else ''}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Neither a session, a clock nor a function of the user's comes along, and secrets only where it was asked for.
        if self._own_transport:
            raise TypeError("A store over a transport of its own can't be pickled; open it anew on the other side.")
        return _reopened, (type(self), self._api_key, self._location, self._options)

    def close(self) -> None:
        """Let go of the connections; any further use is `ValueError`. Closing again does nothing."""
        if not self._closed:
            self._closed = True
            self._client.hurry()
            self._workers.close()
            self._files.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("The store is closed; open it again.")

    def _identity(self) -> tuple[str, ...]:
        """Return what tells this store from all others, without its API key."""
        return (self._location, self._whose)

    def _file(self) -> Path | None:
        """Return the file that an embedded store is in."""
        return None

    def _text(self, key: object) -> str:
        text = self._readable(key)
        if text is None:
            raise KeyError(key)
        return text

    def _readable(self, key: object) -> str | None:
        self._check_open()
        hash(key)
        return str.__str__(key) if isinstance(key, str) else None

    def _writable(self, key: object) -> str:
        self._check_open()
        if not isinstance(key, str):
            raise TypeError(f"Keys are str, not {type(key).__name__}; convert {key!r} first.")
        text = str.__str__(key)
        if not text.isascii():
            self._files.name(text)  # refuses a lone surrogate
        return text

    def _keys(self) -> list[str]:
        self._check_open()
        return self._files.keys()

    def _outcomes(self, keys: Sequence[str]) -> Iterator[tuple[str, Found[bytes] | CloudStoreError]]:
        return read_many(self._files, self._workers, keys, self._progress, listed=True)

    def _read(self, keys: Sequence[str]) -> Iterator[tuple[str, V]]:
        for key, outcome in self._outcomes(keys):
            if isinstance(outcome, NoFileError):
                continue
            if isinstance(outcome, CloudStoreError):
                raise outcome
            yield key, self._decoded(outcome)

    def _decoded(self, found: Found[bytes]) -> V:
        assert found.value is not None  # noqa: S101 - an absence is `NoFileError` by now
        value: V = codec.load(found.value)
        return value

    def _save(self, key: str, value: Raw, version: str | msgspec.UnsetType | None = UNSET) -> None:
        self._hint.forget()
        self._files.save(key, value, version)

    def _delete(self, key: str, version: str | msgspec.UnsetType = UNSET) -> None:
        self._hint.forget()
        self._files.delete(key, version)

    def _change_many(self, changes: Sequence[Change], *, absent_is_done: bool = False) -> None:
        self._hint.forget()
        write_many(self._files, self._workers, changes, self._progress, absent_is_done=absent_is_done)


def _reopened(kind: type[Store[Any]], api_key: str | None, server: str, options: dict[str, Any]) -> Store[Any]:
    """Open what was pickled; a key that stayed behind is the environment's for the same server."""
    if api_key is None:
        location = os.environ.get("CLOUDSTORE_URL", "")
        api_key, environment = parse_address(location, insecure=True) if location else ("", "")
        if environment != server:
            raise ValueError(
                f"The store was pickled without its API key; set CLOUDSTORE_URL to its address at {server}."
            )
    return kind(api_key, server, **options)
