"""Stores for the tests of the mapping: one fixture, a parameter for each way to a service."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.transport import HTTPTransport, Transport
from cloudstore_mapping.embedded import InProcessTransport, open_service
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.testing.clocks import FrozenClock
from cloudstore_mapping.testing.transports import CountingTransport
from cloudstore_mapping.web.server import background
from tests.storages import location, new_storage
from tests.vendor import serve_vendor

#: A way to a service with its API key, made anew at each call; all of a kind reach the same account.
Connect = Callable[[], tuple[Transport, str]]
#: A store over such a way, closed at the end of the test, and the transport that counts its requests.
MakeStore = Callable[..., CloudStoreMapping[Any]]


@pytest.fixture(scope="module")
def http_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    """Return a running service, one for all tests of a file, and its address; each test has its own account there."""
    file = tmp_path_factory.mktemp("served") / "service.db"
    with Service(new_storage(file)) as service, background(service) as address:
        yield service, address


#: The ways that there are.
CONNECTIONS = ["memory", "file", "http", "vendor"]


@pytest.fixture(params=CONNECTIONS)
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connect]:
    """Ways to an empty account: embedded in memory, in a file, over HTTP, and on a service without extensions."""
    with ExitStack() as stack:
        if request.param == "file":
            yield lambda: open_service(location(tmp_path / "store.db"))
        elif request.param == "memory":
            transport, api_key = open_service(location(None))
            stack.callback(transport.close)
            yield lambda: (_Unclosed(transport), api_key)
        elif request.param == "http":
            service, address = request.getfixturevalue("http_service")
            api_key = service.accounts.create(secrets.token_hex(8))
            yield lambda: (HTTPTransport(address), api_key)
        else:
            vendor = stack.enter_context(serve_vendor())
            yield lambda: (HTTPTransport(vendor.address), vendor.api_key)


@pytest.fixture
def make_store(connect: Connect) -> Iterator[MakeStore]:
    """Return a function that opens a further store on the same account, closed at the end."""
    with ExitStack() as stack:

        def make(**options: Any) -> CloudStoreMapping[Any]:
            transport, api_key = connect()
            return stack.enter_context(CloudStoreMapping(api_key, transport=transport, **options))

        yield make


@pytest.fixture
def store(make_store: MakeStore) -> CloudStoreMapping[Any]:
    """Return an empty store."""
    return make_store()


@pytest.fixture
def counted(connect: Connect) -> Iterator[tuple[CloudStoreMapping[Any], CountingTransport]]:
    """Return an empty store, and the transport that counts its requests."""
    transport, api_key = connect()
    counting = CountingTransport(transport)
    with CloudStoreMapping[Any](api_key, transport=counting, clock=FrozenClock()) as store:
        yield store, counting


class _Unclosed:
    """A transport that others go on using: what is in memory would be gone with its service."""

    def __init__(self, inner: InProcessTransport) -> None:
        self._inner = inner
        self.send = inner.send
        self.fetch = inner.fetch

    def close(self) -> None:
        """Do nothing."""
