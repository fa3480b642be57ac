"""Three nodes behind a load balancer lose their primary, their standby or a node, and no acknowledged write."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.testing.linearizability import ABSENT, check_linearizable, register_step
from tests.cluster.balancer import MISSING, balanced, haproxy
from tests.cluster.clients import CLIENTS, COUNTERS, Clients, acknowledged, read_at_last, slowest
from tests.cluster.databases import DatabaseServer, pair, store_on
from tests.cluster.nodes import Node, first_key, nodes
from tests.postgres_server import programs

pytestmark = [pytest.mark.slow, pytest.mark.skipif(haproxy() is None, reason=MISSING)]

#: What each client has to be told done before the next thing happens.
SUCCESSES = 15


class Cluster(NamedTuple):
    """All that runs: a primary, its standby, the nodes, and what a program opens to reach one of these."""

    one: DatabaseServer
    two: DatabaseServer
    nodes: list[Node]
    location: str


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Return a service that runs, of which nothing is left in the end."""
    with ExitStack() as stack:
        one, two = stack.enter_context(pair(programs()))
        running = stack.enter_context(nodes(store_on(one, two), 3, tmp_path))
        address = stack.enter_context(balanced([node.listens_at for node in running], tmp_path))
        yield Cluster(one, two, running, f"http://{first_key(running)}@{address}/cloudstore")


def check(clients: Clients, location: str) -> None:
    """Check that what the clients were told, and what is stored in the end, is explained by an order of their calls."""
    with cm.open(location) as store:
        read_at_last(store, clients.histories)
    for key, history in clients.histories.items():
        assert history.calls[-1].returned is not None, key
        check_linearizable(history.calls, register_step, ABSENT)
        if key in COUNTERS:
            done, unknown = acknowledged(history.calls, "increment")
            assert done <= history.calls[-1].result <= done + unknown


def test_nothing_acknowledged_is_lost(
    cluster: Cluster, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Clients see no wrong answer, whether the primary dies or a node, and the service goes on with a new standby.

    How long they saw nothing done is printed, and kept as JSON in pytest's cache (`cloudstore/outage`).
    """
    one, two = cluster.one, cluster.two
    clients = Clients(cluster.location)
    with clients.running():
        clients.wait_for_successes(SUCCESSES)
        lost_at = time.monotonic()
        one.crash()
        two.promote()
        promoted_at = time.monotonic()
        clients.wait_for_successes(SUCCESSES)
        killed_at = time.monotonic()
        cluster.nodes[1].end(signal.SIGKILL)
        clients.wait_for_successes(SUCCESSES)
        again_at = time.monotonic()
        one.make_standby(two)
        one.start()
        two.wait_until("count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'")
        two.wait_for_standbys_again()
        clients.wait_for_successes(SUCCESSES)
    outage = {
        "calls": len(clients.told),
        "errors": clients.errors(),
        "promotion": promoted_at - lost_at,
        "nothing done, primary lost": clients.longest_silence(lost_at, killed_at),
        "longest call, primary lost": slowest(clients.histories, lost_at, killed_at),
        "nothing done, node lost": clients.longest_silence(killed_at, again_at),
        "longest call, node lost": slowest(clients.histories, killed_at, again_at),
    }
    request.config.cache.set("cloudstore/outage", outage)
    with capsys.disabled():
        sys.stdout.write(f"\n{json.dumps(outage)}\n")
    check(clients, cluster.location)


def test_what_only_the_primary_had_was_never_acknowledged(cluster: Cluster) -> None:
    """
    Where the standby dies first, what the primary then wrote is lost with it, and nobody was told that it is done.

    The outage is longer than anybody waits: clients that don't try again see that a call failed or may have, no more.
    """
    one, two = cluster.one, cluster.two
    clients = Clients(cluster.location, hasty=CLIENTS // 2)
    with clients.running():
        clients.wait_for_successes(SUCCESSES)
        clients.goes_on.clear()
        two.crash()
        written = one.ask("SELECT pg_current_wal_flush_lsn()")
        one.wait_until(f"pg_current_wal_flush_lsn() > '{written}'")
        one.crash()
        clients.wait_for_errors(CLIENTS // 2)
        two.start()
        two.promote()
        clients.goes_on.set()
        clients.wait_for_successes(SUCCESSES)
    assert clients.errors().keys() <= {"UnavailableError", "OutcomeUnknownError"}
    check(clients, cluster.location)


def test_writes_wait_for_a_standby(cluster: Cluster) -> None:
    """While there is no standby loads go on, and a write is acknowledged only once there is one again."""
    with cm.open(cluster.location) as store, cm.open(cluster.location) as reader:
        store["key"] = "before"
        cluster.two.crash()
        with ThreadPoolExecutor(1) as pool:
            saving = pool.submit(store.__setitem__, "key", "after")
            cluster.one.wait_until("count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            assert reader["key"] == "before"
            assert not saving.done()
            cluster.two.start()
            saving.result()
        assert reader["key"] == "after"
