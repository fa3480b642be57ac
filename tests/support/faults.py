"""What each fault between a client and its service comes to."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import pytest

from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.embedded import LOCAL_SETTINGS, InProcessTransport
from cloudstore_mapping.errors import (
    CloudStoreError,
    OutcomeUnknownError,
    ProtocolError,
    TimedOutError,
    TooOftenError,
    TransportError,
    UnavailableError,
)
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.places import MEMORY, place_of
from cloudstore_mapping.testing.faults import (
    SIGN_IN_PAGE,
    Fault,
    FaultyTransport,
    answered,
    dropped,
    lost,
    not_connected,
    refused,
    slow,
    stuck,
    truncated,
    turned_away,
)
from cloudstore_mapping.wire import EXTENSIONS
from tests.vendor import Vendor, serve_vendor


class Ways:
    """Ways to empty accounts: on one service with all extensions, which many tests share, and on one with none."""

    def __init__(self, vendor: Vendor, service: Service) -> None:
        self.vendor = vendor
        self.service = service

    def to(self, kind: str) -> tuple[FaultyTransport, str]:
        """Return a way and its API key: ``extended`` with all extensions, ``plain`` at the vendor's."""
        if kind == "plain":
            self.vendor.files.clear()
            return FaultyTransport(HTTPTransport(self.vendor.address)), self.vendor.api_key
        api_key = self.service.accounts.create(secrets.token_hex(8))
        return FaultyTransport(_Shared(self.service), frozenset(EXTENSIONS)), api_key


class _Shared(InProcessTransport):
    """A way to a service that others use as well."""

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture(scope="module")
def ways() -> Iterator[Ways]:
    """Return ways to services, one of each kind for all tests of a file."""
    with serve_vendor() as vendor, Service(place_of(MEMORY).open(), LOCAL_SETTINGS) as service:
        yield Ways(vendor, service)


Error: TypeAlias = type[CloudStoreError] | None


class Row(NamedTuple):
    """What a read, a write and a write with an id become of a fault: None if it goes unseen, else their error."""

    fault: Fault
    once: tuple[Error, Error, Error]
    for_ever: tuple[Error, Error, Error]


UNSEEN = (None, None, None)
PROTOCOL = (ProtocolError, ProtocolError, ProtocolError)
TOO_OFTEN = (TooOftenError, TooOftenError, TooOftenError)
UNAVAILABLE = (UnavailableError, UnavailableError, UnavailableError)
GATEWAY = (UnavailableError, OutcomeUnknownError, OutcomeUnknownError)
FAILED = (ProtocolError, OutcomeUnknownError, OutcomeUnknownError)
UNKNOWN = (TransportError, OutcomeUnknownError, OutcomeUnknownError)

#: Each fault as it comes once, and as it comes to every attempt.
TABLE = {
    "refused": Row(refused, UNSEEN, (TransportError, TransportError, TransportError)),
    "not connected": Row(not_connected, UNSEEN, (TimedOutError, TimedOutError, TimedOutError)),
    "dropped": Row(dropped, UNSEEN, UNKNOWN),
    "lost": Row(lost, UNSEEN, UNKNOWN),
    "stuck": Row(
        stuck, (TimedOutError, OutcomeUnknownError, None), (TimedOutError, OutcomeUnknownError, OutcomeUnknownError)
    ),
    "slow": Row(
        slow, (TimedOutError, OutcomeUnknownError, None), (TimedOutError, OutcomeUnknownError, OutcomeUnknownError)
    ),
    "429": Row(answered(429, retry_after=2.0), UNSEEN, TOO_OFTEN),
    "429 of the service": Row(turned_away(TooOftenError("Wait.", retry_after=2.0)), UNSEEN, TOO_OFTEN),
    "502": Row(answered(502, SIGN_IN_PAGE), UNSEEN, GATEWAY),
    "503": Row(answered(503, retry_after=2.0), UNSEEN, GATEWAY),
    "503 of the service": Row(turned_away(UnavailableError("Wait.", retry_after=2.0)), UNSEEN, UNAVAILABLE),
    "504": Row(answered(504, SIGN_IN_PAGE), UNSEEN, GATEWAY),
    "500": Row(answered(500, SIGN_IN_PAGE), FAILED, FAILED),
    "500 of the service": Row(turned_away(ProtocolError("It failed.", error="ServerError")), PROTOCOL, PROTOCOL),
    "truncated": Row(truncated, PROTOCOL, PROTOCOL),
    "sign-in page": Row(answered(200, SIGN_IN_PAGE), PROTOCOL, PROTOCOL),
    "nothing": Row(answered(200), PROTOCOL, PROTOCOL),
    "array": Row(answered(200, b"[]"), PROTOCOL, PROTOCOL),
    "no error": Row(answered(200, b'{"message":"","data":{}}'), PROTOCOL, PROTOCOL),
    "error of another type": Row(answered(200, b'{"error":false,"data":{}}'), PROTOCOL, PROTOCOL),
    "version of another type": Row(answered(200, b'{"error":null,"data":{},"version":1}'), PROTOCOL, PROTOCOL),
}
#: The faults in spite of which the request was done.
DONE = {"lost", "slow", "truncated"}
