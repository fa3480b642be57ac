"""`python -m benchmarks.neighbours_reads`: one owner's searches and large loads, and how long another owner waits."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.filling import filled
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
    options = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="cloudstore-neighbours-") as folder:
        store = Path(folder) / "service.db"
        busy = filled(store, options.names)
        other = _second_account(store)
        with cloudstore(store, api_key=busy) as service:
            _measure(service.address, busy, other, store, options)


def _second_account(store: Path) -> str:
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.storage.places import place_of

    with Service(place_of(str(store)).open()) as service:
        return service.accounts.create("neighbour")


def _measure(address: str, busy: str, other: str, store: Path, options: argparse.Namespace) -> None:
    post(address, "/store/save", key=busy, file=_LARGE, value="x" * (16 * 2**20 - 100))
    post(address, "/store/save", key=other, file="name", value={"Apples": 8})
    works: dict[str, Callable[[], object]] = {
        "listing": lambda: post(address, "/store/load", key=other, file="", options="list"),
        "load": lambda: post(address, "/store/load", key=other, file="name"),
        "save": lambda: post(address, "/store/save", key=other, file="name", value={"Apples": 8}),
        "/health": lambda: urllib.request.urlopen(address + "/health", timeout=60).read(),
    }
    loads = {
        "16 searches": searching(address, busy, 16),
        "4 searches": searching(address, busy, 4),
        "4 loads of 16 MiB": loading(address, busy, 4),
    }
    print("| neighbour | request | median alone (ms) | meanwhile | ratio | longest (ms) | log (MiB) |")
    print("|---|---|---|---|---|---|---|")
    for name, load in loads.items():
        for what, work in works.items():
            alone, meanwhile, longest = [], [], 0.0
            for _ in range(options.rounds):
                alone.append(waits(work, options.times)[0])
                with load():
                    median, most = waits(work, options.times)
                meanwhile.append(median)
                longest = max(longest, most)
            before, during = statistics.median(alone), statistics.median(meanwhile)
            log = store.with_name(store.name + "-wal").stat().st_size / 2**20
            figures = (
                f"{before * 1e3:.2f} | {during * 1e3:.2f} | {during / before:.1f} | {longest * 1e3:.0f} | {log:.1f}"
            )
            print(f"| {name} | {what} | {figures} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
