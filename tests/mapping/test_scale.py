"""Many keys, and many threads on one of them, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.testing.concurrency import together
from cloudstore_mapping.testing.transports import CountingTransport
from tests.support.mapping_fixtures import MakeStore


@pytest.mark.parametrize("connect", ["http"], indirect=True)
def test_ten_thousand_keys(counted: tuple[CloudStoreMapping[Any], CountingTransport]) -> None:
    """Saving and reading 10,000 keys costs at most one request and one for each 1,000 of them."""
    store, transport = counted
    data = {f"key {number}": {"number": number} for number in range(10_000)}
    store.update(data)
    assert sum(transport.take().values()) <= 1 + 10
    assert dict(store) == data
    assert transport.take() == {"list": 1 + 10}


@pytest.mark.slow
@pytest.mark.parametrize("connect", ["http"], indirect=True)
def test_eight_threads_counting(make_store: MakeStore) -> None:
    """Eight threads that increment one counter 1,000 times each, on two mappings, end at 8,000."""
    stores = [make_store(), make_store(cache_ttl=1000.0)]

    def count(store: CloudStoreMapping[Any]) -> None:
        for _ in range(1000):
            store.transform("count", lambda value: value + 1, default=0)

    together(*(lambda store=stores[number % 2]: count(store) for number in range(8)))
    stores[1].cache_clear()  # it may have the value of its own last write, not of the other's
    assert [store["count"] for store in stores] == [8000, 8000]
