"""`--engine postgres` runs the tests that make a store, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.service.service import Service
from tests.engine_use import uses_engine


def test_a_test_without_a_store(request: pytest.FixtureRequest) -> None:
    """A test without a store runs once, not on each engine."""
    assert not uses_engine(request.node)


def test_a_service_of_a_fixture(request: pytest.FixtureRequest, service: Service) -> None:
    """A service from a fixture depends on the engine."""
    assert uses_engine(request.node)


def test_a_mapping_of_a_fixture(request: pytest.FixtureRequest, store: CloudStoreMapping[Any]) -> None:
    """A mapping from a fixture depends on the engine."""
    assert uses_engine(request.node)
