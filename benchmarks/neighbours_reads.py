"""
`python -m benchmarks.neighbours_reads`: one owner's searches, large loads and downloads; how long another owner waits.

The last columns show a second, idle service on the same machine meanwhile: what its processors alone cost.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import cloudstore_mapping as cm
from benchmarks.filling import filled
from benchmarks.services import add_engine, store_on
from benchmarks.serving import cloudstore

_LARGE: Final = "large"


def post(address: str, path: str, **fields: Any) -> bytes:
    """Return the reply to a request."""
    body = json.dumps(fields).encode()
    request = urllib.request.Request(address + path, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return bytes(reply.read())


@contextmanager
def repeated(count: int, work: Callable[[], object]) -> Iterator[None]:
    """Do some work over and over in so many processes of their own while the block runs."""

    def run() -> None:
        while True:
            try:
                work()
            except OSError:  # refused: a client waits, then tries again
                time.sleep(1.0)

    processes = [multiprocessing.get_context("fork").Process(target=run, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    time.sleep(0.5)  # until they have begun
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def searching(address: str, api_key: str, count: int) -> Callable[[], Any]:
    """Return the load of so many searches that find nothing."""
    return lambda: repeated(count, lambda: post(address, "/store/load", key=api_key, file="absent", options="list"))


def loading(address: str, api_key: str, count: int) -> Callable[[], Any]:
    """Return the load of so many clients that load 16 MiB."""
    return lambda: repeated(count, lambda: post(address, "/store/load", key=api_key, file=_LARGE, brief=True))


def downloading(link: str, count: int) -> Callable[[], Any]:
    """Return the load of so many clients that download a media file of 16 MiB."""

    def download() -> None:
        with urllib.request.urlopen(link, timeout=60) as reply:
            while reply.read(2**18):
                pass

    return lambda: repeated(count, download)


def waits(work: Callable[[], object], times: int) -> tuple[float, float]:
    """Return the median and the longest of the seconds that some work takes."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), max(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbours_reads", description=__doc__)
    parser.add_argument("--names", type=int, default=200_000, help="names of the owner who searches")
    parser.add_argument("--times", type=int, default=100, help="requests that are timed in each round")
    parser.add_argument("--rounds", type=int, default=3)
    add_engine(parser)
    options = parser.parse_args(arguments)
    with (
        TemporaryDirectory(prefix="cloudstore-neighbours-") as folder,
        store_on(options.engine, Path(folder)) as store,
        store_on(options.engine, Path(folder), "idle") as idle,
    ):
        busy = filled(store, options.names)
        other = _second_account(store)
        idle_owner = filled(idle, 1)
        with cloudstore(store, api_key=busy) as service, cloudstore(idle, api_key=idle_owner) as idle_service:
            control = _works(idle_service.address, idle_owner)
            _measure(service.address, busy, _works(service.address, other), control, store, options)


def _second_account(store: str) -> str:
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.storage.places import place_of

    with Service(place_of(store).open()) as service:
        return service.accounts.create("neighbour")


def _works(address: str, api_key: str) -> dict[str, Callable[[], object]]:
    """Return the requests that are timed."""
    post(address, "/store/save", key=api_key, file="name", value={"Apples": 8})
    return {
        "listing": lambda: post(address, "/store/load", key=api_key, file="", options="list"),
        "load": lambda: post(address, "/store/load", key=api_key, file="name"),
        "save": lambda: post(address, "/store/save", key=api_key, file="name", value={"Apples": 8}),
        "/health": lambda: urllib.request.urlopen(address + "/health", timeout=60).read(),
    }


def _measure(
    address: str,
    busy: str,
    works: Mapping[str, Callable[[], object]],
    control: Mapping[str, Callable[[], object]],
    store: str,
    options: argparse.Namespace,
) -> None:
    post(address, "/store/save", key=busy, file=_LARGE, value="x" * (16 * 2**20 - 100))
    with cm.open(address.replace("://", f"://{busy}@")) as files:
        link = files.upload(bytes(16 * 2**20 - 100), "media.bin").url
    loads = {
        "16 searches": searching(address, busy, 16),
        "4 searches": searching(address, busy, 4),
        "4 loads of 16 MiB": loading(address, busy, 4),
        "4 downloads of 16 MiB": downloading(link, 4),
    }
    print("| neighbour | request | median alone (ms) | meanwhile | ratio | longest (ms) | log (MiB) | idle service |")
    print("|---" * 8 + "|")
    for name, load in loads.items():
        for what, work in works.items():
            alone, meanwhile, longest = _compare(work, load, options)
            idle, idle_meanwhile, _ = _compare(control[what], load, options)
            log = Path(f"{store}-wal").stat().st_size / 2**20 if options.engine == "sqlite" else math.nan
            figures = [f"{alone * 1e3:.2f}", f"{meanwhile * 1e3:.2f}", f"{meanwhile / alone:.1f}"]
            figures += [f"{longest * 1e3:.0f}", f"{log:.1f}", f"{idle_meanwhile / idle:.1f}"]
            print(f"| {name} | {what} | {' | '.join(figures)} |", flush=True)


def _compare(
    work: Callable[[], object], load: Callable[[], Any], options: argparse.Namespace
) -> tuple[float, float, float]:
    """Return the medians of a request's seconds alone and meanwhile, and the longest meanwhile."""
    alone, meanwhile, longest = [], [], 0.0
    for _ in range(options.rounds):
        alone.append(waits(work, options.times)[0])
        with load():
            median, most = waits(work, options.times)
        meanwhile.append(median)
        longest = max(longest, most)
    return statistics.median(alone), statistics.median(meanwhile), longest


if __name__ == "__main__":
    main(sys.argv[1:])
