"""What `docs/scaling.md` says of costs, settings and placing is so."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from statistics import mean

import pytest

from benchmarks import bytes_of_files, cost_of_requests, placement
from cloudstore_mapping.service import settings
from cloudstore_mapping.service.configuration import load
from cloudstore_mapping.service.storage.postgres import MAX_CONNECTIONS
from cloudstore_mapping.web import options
from tests.cluster.balancer import MISSING, configuration, haproxy
from tests.cluster.page import PAGE, block
from tests.postgres_server import shared

#: Files that a test loads, fewer than for the page; how much what each takes may then differ.
FILES = 2_000
NEAR = 0.2


def rows(header: str) -> dict[str, list[float]]:
    """Return the numbers in the rows of the page's table that begins so, by what stands before them."""
    (found,) = re.findall(rf"^\| {header} .*\n\|[-|]+\n((?:\|.*\n)+)", PAGE.read_text("utf-8"), re.MULTILINE)
    table = {}
    for line in found.splitlines():
        what, *numbers = line.strip("| ").split(" | ")
        table[what] = [float(number.replace(",", "")) for number in numbers if number != bytes_of_files.NOT_APART]
    return table


@pytest.mark.slow
def test_the_table_of_requests() -> None:
    """Each request takes as many statements as the page says, no more round trips, and about as many bytes."""
    said = rows("request")
    counted = dict(cost_of_requests.rows(shared.new_store()))
    assert list(said) == list(counted)
    for request, (statements, round_trips, *bytes_) in said.items():
        counts = counted[request]
        assert round(counts.statements) == statements, request
        # Now and then an answer is waited for together with the next.
        assert round_trips - 1 <= round(counts.round_trips) <= round_trips, request
        assert [counts.bytes_to, counts.bytes_back] == pytest.approx(bytes_, rel=NEAR), request


@pytest.mark.slow
def test_the_table_of_files() -> None:
    """A file takes about as many bytes on the disk as the page says, in both engines."""
    said = rows("what on the disk")
    in_sqlite = bytes_of_files.in_sqlite(FILES)
    in_postgres = bytes_of_files.in_postgres(shared.new_store(), FILES)
    assert list(said) == list(in_postgres)
    for what, numbers in said.items():
        found = [engine[what] for engine in (in_sqlite, in_postgres) if what in engine]
        assert found == pytest.approx(numbers, rel=NEAR), what


def test_what_follows_from_placing() -> None:
    """A smaller simulation bears out what the page says of the ways to place accounts."""
    for name, skew in placement.SKEWS.items():
        accounts = placement.Accounts(skew(20_000), 10**6)
        modulo, ring, bounded, moved = placement.rows(accounts, 16)
        largest = accounts.sizes[0] / mean(accounts.loads(placement.ring(accounts, 16, []), 16))
        assert modulo.moved_accounts > 0.9, name
        assert ring.moved_accounts < 0.1
        assert moved.fullest < 1.1 * max(1, largest) < 1.1 * ring.fullest
        assert moved.named < bounded.named / 5
        assert moved.moved_accounts < 0.01


@pytest.mark.slow
def test_the_table_of_placing() -> None:
    """The page has what the simulation prints."""
    printed = "\n".join(placement.table(placement.ACCOUNTS, placement.FILES, placement.SHARDS))
    assert f"\n{printed}\n" in PAGE.read_text("utf-8")


def test_the_settings_of_a_node(tmp_path: Path) -> None:
    """The file of settings can be loaded, and the load balancer asks the nodes where they listen and answer."""
    file = tmp_path / "cloudstore.toml"
    file.write_text(block("toml", "store"))
    loaded = load((options.Options, settings.Settings), {}, {"config": str(file)})
    assert loaded.keys() == tomllib.loads(file.read_text()).keys()
    proxy = block("haproxy", "frontend")
    assert proxy.count(f":{options.Options.port}") == 6
    assert f"{options.Options.base_path}/health" in proxy
    assert f"{options.Options.base_path}/metrics" in proxy


def test_the_connections_of_a_process() -> None:
    """The page says how many connections a process opens."""
    text = PAGE.read_text("utf-8")
    assert text.count(f"up to {MAX_CONNECTIONS}") == 2


@pytest.mark.skipif(haproxy() is None, reason=MISSING)
def test_the_load_balancer_s_configuration(tmp_path: Path) -> None:
    """The load balancer finds nothing to object to."""
    file = tmp_path / "haproxy.cfg"
    file.write_text(configuration("127.0.0.1:8443", [f"127.0.0.1:{port}" for port in (8001, 8002, 8003)]))
    done = subprocess.run([str(haproxy()), "-c", "-f", file], capture_output=True, text=True)
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr
