"""`python -m benchmarks.protocols`: what our HTTP on uvicorn's private API saves, beside uvicorn's public way."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import uvicorn

from benchmarks.harness import CLIENT_CORE, on_core
from benchmarks.server import loads_from, saves_to
from benchmarks.serving import Service, cloudstore, first_line, process
from cloudstore_mapping.service.service import Service as Served
from cloudstore_mapping.service.storage.places import place_of
from cloudstore_mapping.web.api import make_app
from cloudstore_mapping.web.connections import listen
from cloudstore_mapping.web.metrics import InstrumentedApp, Metrics, new_rows

CONNECTIONS: Final = (1, 32)


def serve(store: str) -> None:
    """Serve a store by uvicorn's own protocol: the same application, and no bounds for strangers."""
    listener = listen("127.0.0.1", 0)
    with Served(place_of(store).open()) as service:
        app = InstrumentedApp(make_app(service), Metrics(new_rows(1)), "/cloudstore", service.store_bytes, logs=False)
        config = uvicorn.Config(
            app, loop="uvloop", http="httptools", ws="none", log_config=None, access_log=False, server_header=False
        )
        api_key = service.accounts.create("owner")
        print(json.dumps({"port": listener.getsockname()[1], "api_key": api_key}), flush=True)
        uvicorn.Server(config).run(sockets=[listener])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.protocols", description=__doc__)
    parser.add_argument("--times", type=int, default=5000, help="requests in each of the rounds")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, of which the median counts")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve)
        return
    with TemporaryDirectory(prefix="cloudstore-protocols-") as folder, ExitStack() as stack, on_core(CLIENT_CORE):
        ours = stack.enter_context(cloudstore(Path(folder) / "ours.db"))
        command = [sys.executable, "-m", "benchmarks.protocols", "--serve", str(Path(folder) / "public.db")]
        started = stack.enter_context(process(command))
        facts = json.loads(first_line(started))
        public = Service(f"http://127.0.0.1:{facts['port']}/cloudstore", facts["api_key"], started.pid)
        print("| work | connections | ours (µs) | uvicorn's public way (µs) | public / ours | of processor time |")
        print("|---|---|---|---|---|---|")
        for name, load in (("save", saves_to), ("load", loads_from)):
            for connections in CONNECTIONS:
                mine: list[tuple[float, float]] = []
                theirs: list[tuple[float, float]] = []
                for _ in range(options.rounds + 1):
                    for side, times in ((ours, mine), (public, theirs)):
                        before = processor_seconds(side.pid)
                        seconds = load(side, connections, options.times).turn()
                        times.append((seconds, (processor_seconds(side.pid) - before) / options.times))
                wall, busy = zip(*mine[1:], strict=True), zip(*theirs[1:], strict=True)
                (our_wall, our_busy), (their_wall, their_busy) = (map(statistics.median, each) for each in (wall, busy))
                figures = f"{our_wall * 1e6:,.0f} | {their_wall * 1e6:,.0f} | {their_wall / our_wall:.2f}"
                print(f"| {name} | {connections} | {figures} | {their_busy / our_busy:.2f} |", flush=True)


def processor_seconds(pid: int) -> float:
    """Return how long a process has computed; unlike the time on the wall, others on the machine don't change it."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
