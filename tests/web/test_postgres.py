"""A service over HTTP whose database is slow, or goes away, says so at once, and answers again once it is back."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import requests

import cloudstore_mapping as cm
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.base import OperatorError
from cloudstore_mapping.service.storage.postgres import PostgresStorage
from cloudstore_mapping.web.server import background
from tests.postgres_fixtures import address, proxy, wait_for_lock
from tests.postgres_proxy import Proxy
from tests.postgres_server import shared

__all__ = ["address", "proxy"]

OWN_KEY = "an-owner.s_own~key"


@pytest.fixture
def served(address: str, proxy: Proxy) -> Iterator[str]:
    """Return the address of a service that gives up a lost database at once, with the account bob and its key."""
    storage = PostgresStorage(shared.by_port(address, proxy.port), patience=0.0)
    with Service(storage) as service, background(service) as at:
        service.accounts.create("bob", OWN_KEY)
        yield at


def test_a_database_that_goes_away(served: str, proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    """Health is 503 and so are requests, with a sentence; metrics are still there; then all is as before."""
    with cm.open(served.replace("://", f"://{OWN_KEY}@"), retries=0) as store:
        store["list"] = 1
        proxy.closed = True
        proxy.cut_all()
        assert requests.get(f"{served}/health", timeout=30).status_code == 503
        with pytest.raises(cm.UnavailableError):
            store["list"]
        with pytest.raises(cm.UnavailableError, match=OperatorError.for_clients):
            store["list"] = 2
        assert "database is not reached" in caplog.text
        metrics = requests.get(f"{served}/metrics", timeout=30)
        assert metrics.status_code == 200
        assert "cloudstore_store_bytes " not in metrics.text
        proxy.closed = False
        assert requests.get(f"{served}/health", timeout=30).status_code == 200
        assert store["list"] == 1
        assert "cloudstore_store_bytes " in requests.get(f"{served}/metrics", timeout=30).text


def test_a_database_that_is_slow(served: str, address: str) -> None:
    """While requests wait for the database others are taken and refused, as what needs no database shows."""
    location = served.replace("://", f"://{OWN_KEY}@")
    with cm.open(location) as store, psycopg.connect(address) as slow, ThreadPoolExecutor() as pool:
        store["list"] = 1
        slow.execute("LOCK TABLE accounts, api_keys, files IN ACCESS EXCLUSIVE MODE")
        waiting = [pool.submit(lambda: store["list"]), pool.submit(requests.get, f"{served}/health", timeout=30)]
        wait_for_lock(address, sessions=2)
        assert requests.get(f"{served}/store/save", timeout=30).status_code == 405
        assert requests.post(f"{served}/store/load", data="{", timeout=30).status_code == 415
        assert not any(each.done() for each in waiting)
        slow.rollback()
        assert waiting[0].result() == 1
        assert waiting[1].result().status_code == 200
