"""Two nodes, each a process of `cloudstore serve`, are one service on one database."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.postgres import PostgresStorage
from tests.cluster.nodes import Node, nodes
from tests.postgres_server import shared
from tests.service_fakes import PATIENCE
from tests.visitor import Visitor, named, owner

#: Programs that write at once.
CLIENTS = 8

Nodes = tuple[Node, Node]


@pytest.fixture(scope="module")
def address() -> str:
    """Return the address of an empty place for a store."""
    return shared.new_store()


@pytest.fixture(scope="module")
def both(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Return the two nodes."""
    with nodes(address, 2, tmp_path_factory.mktemp("nodes")) as (here, there):
        yield here, there


@pytest.fixture(scope="module")
def service(address: str, both: Nodes) -> Iterator[Service]:
    """Return the service on the same database within the test, to see and set what programs can't."""
    with Service(PostgresStorage(address)) as service:
        yield service


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_accesses_add_up(both: Nodes, service: Service) -> None:
    """What each node counted is added to what the others did."""
    key = service.accounts.create("accesses")
    service.accounts.set_limits("accesses", max_daily_accesses=100)  # so they are stored soon
    with cm.open(both[0].location(key)) as here, cm.open(both[1].location(key)) as there:
        here["key"] = 0
        for _ in range(10):
            assert here["key"] == there["key"] == 0
    account = service.accounts.named("accesses")
    wait_until(lambda: sum(service.panels.activity(account).accesses) == 21)


def test_one_pace(both: Nodes, service: Service) -> None:
    """Who may ask once an hour has asked when one node answered: the other one refuses."""
    key = service.accounts.create("pace")
    service.accounts.set_limits("pace", min_interval=3600.0)
    with cm.open(both[0].location(key), retries=0) as here, cm.open(both[1].location(key), retries=0) as there:
        here["key"] = 0
        with pytest.raises(cm.TooOftenError):
            there["key"] = 1


def test_one_quota(both: Nodes, service: Service) -> None:
    """However many write new files at two nodes at once, there are never more than the account may have."""
    key = service.accounts.create("quota")
    service.accounts.set_limits("quota", max_files=5)

    def save(client: int) -> int:
        saved = 0
        with cm.open(both[client % 2].location(key)) as store:
            for number in range(3):
                try:
                    store[f"{client} {number}"] = 0
                except cm.TooManyFilesError:
                    continue
                saved += 1
        return saved

    with ThreadPoolExecutor() as pool:
        assert sum(pool.map(save, range(CLIENTS))) == 5
    with cm.open(both[0].location(key)) as store:
        assert len(store) == 5


def test_a_password_is_in_force_on_all(both: Nodes, service: Service) -> None:
    """A password that an owner sets at one node is asked for by the other, which knew it as none, or as another."""
    key = owner(service, "passwords")
    with cm.open(both[1].location(key), password="old") as there, Visitor(both[0].address) as visitor:
        there["key"] = 0
        visitor.get()
        visitor.sign_in("passwords")
        for password in ("old", "new"):
            visitor.post("data/lock", name=named("key"), password=password, what="edit")
            if password == "old":
                there["key"] = 1
        with pytest.raises(cm.LockedError):
            there["key"] = 2


def test_a_key_is_in_force_on_all(both: Nodes, service: Service) -> None:
    """A key that an owner makes at one node opens the other, and one that is ended opens it no longer."""
    old = owner(service, "keys")
    with cm.open(both[1].location(old)) as there, Visitor(both[0].address) as visitor:
        there["key"] = 0
        visitor.get()
        visitor.sign_in("keys")
        page = visitor.post("key/rotate", view="panel=user").text
        found = re.search(r'id="new-key"[^>]* value="(\w{32})"', page)
        assert found is not None
        visitor.post("key/end", view="panel=user")
        with pytest.raises(cm.BadKeyError):
            there["key"] = 1
    with cm.open(both[1].location(found[1])) as there:
        assert there["key"] == 0
