"""What 32 clients saw at once, of every operation and engine, happened one after the other; or the check finds out."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.client.address import parse_address
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.transport import HTTPTransport, Transport
from cloudstore_mapping.embedded import open_service
from cloudstore_mapping.testing.clocks import FrozenClock
from cloudstore_mapping.testing.linearizability import NotLinearizableError
from tests.cluster.nodes import first_key, nodes
from tests.crash.network import Unreliable
from tests.crash.seeded import Doubling, Losing, Shared, Stale
from tests.crash.workload import Store, Workload
from tests.storages import new_database

CLIENTS: Final = 32
KEYS: Final = 16
#: Calls that each client makes before what it did is checked.
CALLS: Final = 150

#: How the clients of a service with a fault reach it, by the fault.
SEEDED: Final[dict[str, Callable[[Transport], Callable[[], Transport]]]] = {
    "a stale cache": lambda inner: partial(Stale, Shared(inner)),
    "a lost update": lambda inner: partial(_same, Losing(inner)),
    "a write that is done twice": lambda inner: partial(_same, Doubling(inner)),
}


def _same(transport: Transport) -> Transport:
    return transport


def seen_in_memory(way: Callable[[Transport], Callable[[], Transport]], seed: object) -> None:
    """Let a few clients work with a service in memory over a way to it, and check what they saw."""
    inner, api_key = open_service(None)
    try:
        opens = way(inner)
        workload = Workload([lambda: CloudStoreMapping(api_key, "memory:", transport=opens())] * 8, f"seed {seed}", 8)
        workload.run(150)
        with CloudStoreMapping[object](api_key, "memory:", transport=Shared(inner)) as store:
            workload.check(store)
    finally:
        inner.close()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fault", SEEDED)
@pytest.mark.slow
def test_seeded_faults_are_found(fault: str, seed: int) -> None:
    """What clients saw of a service that does one thing in fifteen wrong is no history that can be."""
    with pytest.raises(NotLinearizableError):
        seen_in_memory(SEEDED[fault], seed)


@pytest.mark.parametrize("seed", range(3))
def test_without_a_fault_nothing_is_found(seed: int) -> None:
    """What the same clients saw of the same service without a fault can be."""
    seen_in_memory(lambda inner: partial(_same, Shared(inner)), seed)


@pytest.fixture(params=["one process", "two processes", "PostgreSQL"])
def locations(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """Return the ways to a store: one process on a file, two on one file, two nodes on one database."""
    store = new_database() if request.param == "PostgreSQL" else str(tmp_path / "store.db")
    with nodes(store, 1 if request.param == "one process" else 2, tmp_path) as running:
        yield [node.location(first_key(running)) for node in running]


def over(location: str, is_reliable: bool, dice: random.Random) -> Store:
    """Return a client's store; over a network that isn't reliable it waits in no time."""
    if is_reliable:
        return cm.open(location)
    api_key, server = parse_address(location)
    return CloudStoreMapping(api_key, server, transport=Unreliable(HTTPTransport(server), dice), clock=FrozenClock())


@pytest.mark.slow
@pytest.mark.parametrize("is_reliable", [True, False], ids=["reliable", "unreliable"])
def test_histories(
    locations: Sequence[str], is_reliable: bool, at_length: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    What 32 clients see of a store is explained by an order of their calls, also where messages are lost on the way.

    They save, merge, load, delete, pop, transform, and do so with many keys at once. Messages are lost, come twice or
    late; what then is repeated is done once, and what is given up at any time later or never.
    """
    calls = unknown = number = 0
    working = checking = 0.0
    wanted = 170_000 if at_length else 2_300
    while calls < wanted:
        opens = [
            partial(over, locations[client % len(locations)], is_reliable, random.Random(f"{number} {client}"))
            for client in range(CLIENTS)
        ]
        workload = Workload(opens, f"round {number}", KEYS)
        begun = time.monotonic()
        workload.run(min(CALLS, wanted // CLIENTS))
        done = time.monotonic()
        with cm.open(locations[0]) as store:
            workload.check(store)
        calls, unknown, number = calls + workload.calls, unknown + workload.unknown, number + 1
        working, checking = working + done - begun, checking + time.monotonic() - done
    with capsys.disabled():
        sys.stdout.write(f"\n{calls} calls in {working:.0f} s, {unknown} unknown, checked in {checking:.0f} s\n")
