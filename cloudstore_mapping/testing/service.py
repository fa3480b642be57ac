"""Stores and a service for tests: the embedded one with faults at hand, and a real one on loopback."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.embedded import open_service
from cloudstore_mapping.locations import open as open_store
from cloudstore_mapping.testing.clocks import FrozenClock
from cloudstore_mapping.testing.faults import FaultyTransport

if TYPE_CHECKING:
    from cloudstore_mapping.service.accounts import Accounts


class LoopbackAccount(NamedTuple):
    """
    An empty account at a running service.

    `address` is the service's and `api_key` the account's; `url` is both in one, as `cloudstore_mapping.open` takes it.
    """

    address: str
    api_key: str

    @property
    def url(self) -> str:
        """The location of the account."""
        return self.address.replace("://", f"://{self.api_key}@", 1)

    def open(self, **options: Any) -> CloudStoreMapping[Any]:
        """Return a store on the account, for the caller to close; `options` are those of `CloudStoreMapping`."""
        return open_store(self.url, **options)


class RunningService:
    """A service on loopback, with an account for whoever wants one."""

    def __init__(self, address: str, accounts: Accounts) -> None:
        self.address = address
        self._accounts = accounts

    def account(self) -> LoopbackAccount:
        """Return a new account."""
        return LoopbackAccount(self.address, self._accounts.create(secrets.token_hex(8)))


@contextmanager
def running_service(folder: Path) -> Iterator[RunningService]:
    """Run a service on a free port of loopback, with its data in a folder; needs the extra ``server``."""
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
    from cloudstore_mapping.web.server import background  # or the error that says which extra it needs

    with Service(SQLiteStorage(folder / "service.db")) as service, background(service) as address:
        yield RunningService(address, service.accounts)


def faulty_store() -> tuple[CloudStoreMapping[Any], FaultyTransport]:
    """Return an empty store in memory, which waits in no time, and the way to it, on which faults may be put."""
    inner, api_key = open_service(None)
    transport = FaultyTransport(inner)
    return CloudStoreMapping(api_key, "memory:", transport=transport, clock=FrozenClock()), transport
