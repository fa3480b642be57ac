"""Fixtures of the dashboard's tests: a service over HTTP, its owner before and after signing in, and a program."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.service_fakes import Asker
from tests.visitor import Visitor, owner


@pytest.fixture
def api_key(service: Service) -> str:
    """Return the API key of the account "owner", whose owner has a password."""
    return owner(service)


@pytest.fixture
def program(service: Service, api_key: str) -> Asker:
    """Return a program of that account."""
    return Asker(service, api_key)


@pytest.fixture
def guest(service: Service, api_key: str) -> Iterator[Visitor]:
    """Return somebody who looks at the dashboard, and is not signed in."""
    with background(service) as address, Visitor(address) as visitor:
        yield visitor


@pytest.fixture
def visitor(guest: Visitor) -> Visitor:
    """Return the owner, signed in."""
    guest.sign_in()
    return guest
