"""Three nodes behind a load balancer lose their primary, then one of themselves, and no acknowledged write."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.testing.linearizability import ABSENT, check_linearizable, register_step
from tests.cluster.balancer import MISSING, balanced, haproxy
from tests.cluster.clients import COUNTERS, Clients, acknowledged, read_at_last
from tests.cluster.databases import pair, store_on
from tests.cluster.nodes import nodes
from tests.postgres_server import MISSING as NO_POSTGRES
from tests.postgres_server import bundled

PROGRAMS = bundled()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAMS is None, reason=NO_POSTGRES),
    pytest.mark.skipif(haproxy() is None, reason=MISSING),
]

#: What each client has to be told done before the next thing happens.
SUCCESSES = 15


def test_nothing_acknowledged_is_lost(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Clients that save, merge and increment meanwhile see errors that may pass at most, and never a wrong answer.

    How long they saw nothing done is printed, and kept as JSON in pytest's cache (`cloudstore/outage`).
    """
    assert PROGRAMS is not None
    with pair(PROGRAMS) as (one, two), nodes(store_on(one, two), 3, tmp_path) as running:
        api_key = str(running[0].api_key)
        with balanced([node.listens_at for node in running], tmp_path) as address:
            location = f"http://{api_key}@{address}/cloudstore"
            clients = Clients(location)
            with clients.running():
                clients.wait(SUCCESSES)
                lost_at = time.monotonic()
                one.crash()
                two.promote()
                clients.wait(SUCCESSES)
                killed_at = time.monotonic()
                running[1].end(signal.SIGKILL)
                clients.wait(SUCCESSES)
                again_at = time.monotonic()
                one.make_standby(two)
                one.start()
                two.wait_until("count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'")
                two.wait_for_standbys_again()
                clients.wait(SUCCESSES)
            with cm.open(location) as store:
                read_at_last(store, clients.histories)
        outage = {
            "calls": len(clients.told),
            "errors": clients.errors(),
            "primary": clients.longest_silence(lost_at, killed_at),
            "node": clients.longest_silence(killed_at, again_at),
        }
    request.config.cache.set("cloudstore/outage", outage)
    with capsys.disabled():
        sys.stdout.write(f"\n{json.dumps(outage)}\n")
    for key, history in clients.histories.items():
        assert history.calls[-1].returned is not None, key
        check_linearizable(history.calls, register_step, ABSENT)
        if key in COUNTERS:
            done, unknown = acknowledged(history.calls, "increment")
            assert done <= history.calls[-1].result <= done + unknown
