"""Saves and loads through several nodes on one PostgreSQL, near and far: rates, and whose time they take."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import cloudstore_mapping as cm
from benchmarks.distance import DISTANCES, delayed, pgbench_turn, saves_with_ids, script_of
from benchmarks.harness import CLIENT_CORE, Run, on_core
from benchmarks.protocols import processor_seconds
from benchmarks.server import CONNECTIONS, loads_from
from benchmarks.services import postgresql_process, programs_of_postgresql
from benchmarks.serving import Service, cloudstore
from benchmarks.work import loader

NODES: Final = (1, 2, 4)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table: medians of rates, their ratio to pgbench's, and the time of a core that an operation takes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nodes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=5_000, help="operations of a turn")
    options = parser.parse_args(arguments)
    programs = programs_of_postgresql()
    version = subprocess.run([programs / "postgres", "--version"], check=True, capture_output=True, text=True).stdout
    print(f"{version.strip()}, {CONNECTIONS} connections; nodes and database share a core.\n")
    print("| distance | nodes | work | a second | of pgbench | core of a node | core of the database | busy |")
    print("|---|---|---|---|---|---|---|---|")
    for distance in DISTANCES:
        for count in NODES:
            with TemporaryDirectory(prefix="cloudstore-bench-") as folder:
                run = Run(Path(folder))
                with _cluster(run, distance, count) as (nodes, database, port):
                    for row in _rows(run, programs, options, nodes, database, port):
                        print(f"| {distance:g} ms | {count} | {row} |", flush=True)


@contextmanager
def _cluster(run: Run, distance: float, count: int) -> Iterator[tuple[list[Service], int, int]]:
    """Run a database with nodes, and return the nodes, the database's process, and the port by which they reach it."""
    with ExitStack() as stack:
        address, database = stack.enter_context(postgresql_process(run, "distance"))
        port = int(address.rpartition(":")[2].partition("/")[0])
        if distance:
            port = stack.enter_context(delayed(run, run.folder / "distance" / f".s.PGSQL.{port}", distance))
        store = f"postgresql://bench@127.0.0.1:{port}/postgres"
        nodes = [stack.enter_context(cloudstore(store))]
        nodes += [stack.enter_context(cloudstore(store, api_key=nodes[0].api_key)) for _ in range(count - 1)]
        with cm.open(nodes[0].location) as mapping:
            loader(mapping)
        yield nodes, database, port


def _rows(
    run: Run, programs: Path, options: argparse.Namespace, nodes: list[Service], database: int, port: int
) -> Iterator[str]:
    others = [node.address for node in nodes[1:]]
    for kind in ("save", "load"):
        script = script_of(run, kind, nodes[0].api_key)
        if kind == "save":
            load = saves_with_ids(nodes[0], options.times, others)
        else:
            load = loads_from(nodes[0], CONNECTIONS, options.times, others)
        turns: list[tuple[float, float, float, float]] = []
        for _ in range(options.rounds + 1):
            before = _used(nodes), _used_by_all(database)
            with on_core(CLIENT_CORE):
                seconds = load.turn()
            ours, theirs = _used(nodes) - before[0], _used_by_all(database) - before[1]
            with on_core(CLIENT_CORE):
                pgbench = pgbench_turn(programs / "pgbench", port, script)
            turns.append((seconds, pgbench, ours / options.times, theirs / options.times))
        seconds, pgbench, ours, theirs = (statistics.median(column) for column in zip(*turns[1:], strict=True))
        shares = f"{ours * 1e3:.2f} ms | {theirs * 1e3:.2f} ms | {(ours + theirs) / seconds:.0%}"
        yield f"{kind} | {1 / seconds:,.0f} | {pgbench / seconds:.2f} | {shares}"


def _used(nodes: Sequence[Service]) -> float:
    return sum(processor_seconds(node.pid) for node in nodes)


def _used_by_all(parent: int) -> float:
    """Return how long a process and its children have computed, those that have ended too."""
    total = processor_seconds(parent)
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text("ascii").split():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            total += processor_seconds(int(child))
    fields = Path(f"/proc/{parent}/stat").read_text("ascii").rpartition(")")[2].split()
    return total + (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
