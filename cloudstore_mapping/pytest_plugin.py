"""
pytest fixtures: cloudstore, cloudstore_faults, cloudstore_service.

pytest loads this file in every project, so hypothesis and the service are imported only when a fixture is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cloudstore_mapping import CloudStoreMapping
    from cloudstore_mapping.testing.faults import FaultyTransport
    from cloudstore_mapping.testing.service import LoopbackAccount, RunningService


@pytest.fixture
def _cloudstore_and_faults() -> Iterator[tuple[CloudStoreMapping[Any], FaultyTransport]]:
    from cloudstore_mapping.testing.service import faulty_store

    store, faults = faulty_store()
    with store:
        yield store, faults


@pytest.fixture
def cloudstore(_cloudstore_and_faults: tuple[CloudStoreMapping[Any], FaultyTransport]) -> CloudStoreMapping[Any]:
    """Return an empty store in memory, like those of `cloudstore_mapping.open`; closed at the end."""
    return _cloudstore_and_faults[0]


@pytest.fixture
def cloudstore_faults(_cloudstore_and_faults: tuple[CloudStoreMapping[Any], FaultyTransport]) -> FaultyTransport:
    """Return the transport of the store `cloudstore`, a `testing.FaultyTransport` that fails on demand."""
    return _cloudstore_and_faults[1]


@pytest.fixture(scope="session")
def _cloudstore_running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    from cloudstore_mapping.testing.service import running_service

    with running_service(tmp_path_factory.mktemp("cloudstore")) as service:
        yield service


@pytest.fixture
def cloudstore_service(_cloudstore_running: RunningService) -> LoopbackAccount:
    """Return an empty account at a service on loopback: its `address`, `api_key`, `url`, and `open` for a store."""
    return _cloudstore_running.account()
