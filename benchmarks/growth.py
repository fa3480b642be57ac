"""How the cost of an operation grows: with the number of keys, the size of values, threads, and connections."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeAlias

import cloudstore_mapping as cm
from benchmarks.filling import filled, name_of
from benchmarks.harness import CLIENT_CORE, Run, on_core, timed
from benchmarks.listing import PAGE, page_of
from benchmarks.server import loads_from, saves_to
from benchmarks.serving import Service, cloudstore
from benchmarks.work import loader, value_of
from cloudstore_mapping.client.transport import HTTPTransport

Store: TypeAlias = cm.CloudStoreMapping[object]

#: The line of what the server took for pages and values, which is not to grow with the store.
MEMORY: Final = "peak memory of the server, MiB"
#: How much more it may be in the largest store than in the smallest: caches that have a limit fill up.
MEMORY_LIMIT: Final = 1.25

_SIZES: Final = (10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
_THREADS: Final = (1, 2, 4, 8, 16, 32, 64)
_CONNECTIONS: Final = (1, 2, 8, 32, 128, 512)
_TURNS: Final = 3


@dataclass(frozen=True)
class Series:
    """What was measured at each of the `xs`; `lines` are its names, with a unit, and a value for each x."""

    name: str
    title: str
    x_title: str
    xs: Sequence[float]
    lines: dict[str, list[float]]


def _median(turn: Callable[[], float]) -> float:
    turn()
    return statistics.median(turn() for _ in range(_TURNS))


def with_keys(run: Run) -> Series:
    """Measure stores of 1,000 to 1,000,000 keys over HTTP."""
    counts = sorted({max(100, run.times(10**power)) for power in (3, 4, 5, 6)})
    lines: dict[str, list[float]] = {
        "load, ms": [],
        "save, ms": [],
        f"page of {PAGE:,} names, ms": [],
        MEMORY: [],
    }
    for count in counts:
        path = run.folder / f"growth-{count}.db"
        api_key = filled(path, count)
        with cloudstore(path, api_key=api_key) as service, cm.open(service.location) as store, on_core(CLIENT_CORE):
            step = max(1, count // 997)

            def load(number: int, store: Store = store, count: int = count, step: int = step) -> object:
                return store[name_of(number * step % count)]

            def save(number: int, store: Store = store, count: int = count, step: int = step) -> None:
                store[name_of(number * step % count)] = value_of(number)

            transport = HTTPTransport(service.address)
            figures = (
                _median(timed(load, run.times(500))),
                _median(timed(save, run.times(200))),
                _median(timed(page_of(service, transport, count), run.times(50))),
            )
            transport.close()
            for line, seconds in zip(lines.values(), figures, strict=False):
                line.append(seconds * 1000)
            lines[MEMORY].append(service.peak_bytes() / 2**20)
    return Series("keys", "Cost by the number of keys", "keys in the store", counts, lines)


def with_sizes(run: Run, service: Service) -> Series:
    """Measure values of 10 bytes to 10 MB over HTTP."""
    sizes = [size for size in _SIZES if size <= 10_000_000 * run.scale or size <= 1000]
    lines: dict[str, list[float]] = {"load, ms": [], "save, ms": []}
    with cm.open(service.location) as store, on_core(CLIENT_CORE):
        for size in sizes:
            text = "lorem ipsum " * (size // 12 + 1)
            times = max(2, min(run.times(300), 20_000_000 // size))

            def save(number: int, text: str = text, size: int = size) -> None:
                store["key"] = f"{number:08d}{text}"[: max(8, size - 2)]

            lines["save, ms"].append(_median(timed(save, times)) * 1000)
            lines["load, ms"].append(_median(timed(lambda _: store["key"], times)) * 1000)
    return Series("sizes", "Cost by the size of a value", "bytes of a value", sizes, lines)


def with_threads(run: Run, service: Service) -> Series:
    """Measure threads that share one store over HTTP."""
    threads = [count for count in _THREADS if count <= 64 * run.scale or count <= 2]
    line: list[float] = []
    with cm.open(service.location) as store:
        load = loader(store)
        times = run.times(3000)
        for count in threads:
            with on_core(CLIENT_CORE), ThreadPoolExecutor(count) as pool:

                def turn(count: int = count, pool: ThreadPoolExecutor = pool) -> float:
                    each = max(1, times // count)
                    started = time.perf_counter()
                    work = [pool.submit(lambda: [load(number) for number in range(each)]) for _ in range(count)]
                    for done in work:
                        done.result()
                    return (time.perf_counter() - started) / (each * count)

                line.append(1 / _median(turn))
    return Series("threads", "Loads of one store by threads that share it", "threads", threads, {"loads/s": line})


def with_connections(run: Run, service: Service) -> Series:
    """Measure a server under load over many connections."""
    connections = [count for count in _CONNECTIONS if count <= 512 * run.scale or count <= 2]
    lines: dict[str, list[float]] = {"loads/s": [], "durable saves/s": []}
    with cm.open(service.location) as store:
        loader(store)
    with on_core(CLIENT_CORE):
        times = run.times(6000)
        for count in connections:
            lines["loads/s"].append(1 / _median(loads_from(service, count, max(count, times)).turn))
            lines["durable saves/s"].append(1 / _median(saves_to(service, count, max(count, times // 2)).turn))
    return Series("connections", "Rates by the number of connections", "connections", connections, lines)


def measured(run: Run) -> Iterator[Series]:
    """Yield all series."""
    yield with_keys(run)
    with cloudstore(run.folder / "growth.db") as service:
        for measure in (with_sizes, with_threads, with_connections):
            yield measure(run, service)
