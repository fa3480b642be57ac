"""A store and what is particular to it, whatever it looks like from outside: options, keys, merging, closing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Generic, Self, TypeVar, cast

from msgspec import Raw

from cloudstore_mapping.client import codec
from cloudstore_mapping.client.address import DEFAULT_SERVER, check_server, default_interval, resolve_server
from cloudstore_mapping.client.bulk import Workers
from cloudstore_mapping.client.client import Client
from cloudstore_mapping.client.files import Files
from cloudstore_mapping.client.pacing import pacer_of
from cloudstore_mapping.client.passwords import Password, Passwords
from cloudstore_mapping.client.transport import DEFAULT_TIMEOUT, HTTPTransport, Transport
from cloudstore_mapping.client.views import LengthHint
from cloudstore_mapping.errors import NoFileError

if TYPE_CHECKING:
    from cloudstore_mapping.client.transport import Session

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
        timeout: float | tuple[float, float] = DEFAULT_TIMEOUT,
        retries: int = 3,
        min_interval: float | None = None,
        max_workers: int = 8,
        session: Session | None = None,
        insecure: bool = False,
        clock: Callable[[], float] = time.monotonic,
        transport: Transport | None = None,
    ) -> None:
        self._closed = False
        pacer = None
        if transport is None:
            server = check_server(resolve_server(server), insecure=insecure)
            transport = HTTPTransport(server, timeout=timeout, session=session)
            pacer = pacer_of(server)
            if min_interval is None:
                min_interval = default_interval(server)
        self._location = server
        client = Client(transport, api_key, retries=retries, min_interval=min_interval or 0.0, pacer=pacer, clock=clock)
        self._files = Files(client, Passwords(passwords, password))
        self._workers = Workers(1 if min_interval else max_workers)
        self._hint = LengthHint()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._location}{' (closed)' if self._closed else ''}>"

    def merge(self, key: str, value: V) -> None:
        """Merge `value` into what is stored under the key, at the service; where nothing is, save it."""
        text = self._writable(key)
        self._merge(text, [codec.dump(value)])

    def discard(self, key: str) -> bool:
        """Delete the key if it is there, and tell whether it was."""
        try:
            self._delete(self._text(key))
        except KeyError:
            return False
        return True

    def close(self) -> None:
        """Let go of the connections; any further use is `ValueError`. Closing again does nothing."""
        if not self._closed:
            self._closed = True
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

    def _text(self, key: object) -> str:
        self._check_open()
        hash(key)
        if not isinstance(key, str):
            raise KeyError(key)
        return str.__str__(key)

    def _writable(self, key: object) -> str:
        self._check_open()
        if not isinstance(key, str):
            raise TypeError(f"Keys are str, not {type(key).__name__}; convert {key!r} first.")
        text = str.__str__(key)
        self._files.name(text)  # refuses a lone surrogate
        return text

    def _keys(self) -> list[str]:
        self._check_open()
        return self._files.keys()

    def _read(self, keys: list[str]) -> Iterator[tuple[str, V]]:
        for key, loaded in self._workers.map(self._files.load, keys):
            try:
                raw = loaded.result()
            except NoFileError:
                continue
            yield key, cast("V", codec.load(raw))

    def _save(self, key: str, value: Raw) -> None:
        self._hint.forget()
        self._files.save(key, value)

    def _merge(self, key: str, values: list[Raw]) -> None:
        self._hint.forget()
        self._files.merge(key, values)

    def _delete(self, key: str) -> None:
        self._hint.forget()
        self._files.delete(key)
