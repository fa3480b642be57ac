"""
`python -m benchmarks.soak`: a service and its clients at work for long, and whether what they hold grows.

A mix of work at half of the speed that the machine manages; the process's memory, descriptors and threads and the
store's write-ahead log are looked at again and again. Then one program does a million operations.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import cloudstore_mapping as cm
from benchmarks import machine, plots
from benchmarks.growth import Series
from benchmarks.harness import CLIENT_CORE, MissingError, on_core
from benchmarks.serving import Service, cloudstore, memory
from benchmarks.work import KEYS, key_of, value_of

RESULTS: Final = Path(__file__).parent / "results"

#: Clients at once, each a thread with a store of its own.
CLIENTS: Final = 8
#: Seconds in which the full speed is found.
TRIAL: Final = 10.0
#: Looks that are kept, however long it takes.
LOOKS: Final = 180
#: Part of the looks that is left out at the beginning, while caches and the heap fill.
WARM_UP: Final = 0.25
#: How much higher the median of the last third may be than that of the first after the warm-up, and by how many units
#: in any case: what a heap's blocks, a thread that is just ending, and a log that once waited for a reader come to.
GROWTH: Final = 1.05
SLACK: Final = {"memory, MiB": 2.0, "descriptors": 4.0, "threads": 2.0, "write-ahead log, MiB": 4.0}
#: Media files of each client, each put in the place of the one before under its name.
MEDIA: Final = 20
_MEDIA_BYTES: Final = 50_000

Store = cm.CloudStoreMapping[object]


@dataclass
class Looks:
    """What was seen, look after look: when, how many operations were done, and how much of each thing there was."""

    title: str
    minutes: list[float] = field(default_factory=list)
    operations: list[int] = field(default_factory=list)
    held: dict[str, list[float]] = field(default_factory=dict)

    def add(self, minutes: float, operations: int, held: dict[str, float]) -> None:
        """Take note of a look."""
        self.minutes.append(minutes)
        self.operations.append(operations)
        for what, amount in held.items():
            self.held.setdefault(what, []).append(amount)

    def growth(self, what: str) -> tuple[float, float]:
        """Return how much there was after the warm-up, and at the end: medians of a third of the looks each."""
        amounts = self.held[what][int(len(self.minutes) * WARM_UP) :]
        third = max(1, len(amounts) // 3)
        return _median(amounts[:third]), _median(amounts[-third:])

    def grew(self) -> list[str]:
        """Return what there was more of at the end than chance explains."""
        return [what for what in self.held if _is_more(what, *self.growth(what))]


def _is_more(what: str, before: float, after: float) -> bool:
    return after > before * GROWTH and after > before + SLACK[what]


def _median(amounts: Sequence[float]) -> float:
    return sorted(amounts)[len(amounts) // 2]


def held_by(pid: int, store: Path | None = None) -> dict[str, float]:
    """Return what a process holds, and the write-ahead log of its store."""
    process = Path("/proc") / str(pid)
    held = {
        "memory, MiB": memory(pid, "VmRSS") / 2**20,
        "descriptors": float(sum(1 for _ in (process / "fd").iterdir())),
        "threads": float(sum(1 for _ in (process / "task").iterdir())),
    }
    if store is not None:
        log = store.with_name(f"{store.name}-wal")
        held["write-ahead log, MiB"] = log.stat().st_size / 2**20 if log.exists() else 0.0
    return held


class Work:
    """Operations of a client, mixed as programs mix them; `done` counts them."""

    def __init__(self, store: Store, number: int) -> None:
        self._store = store
        self._dice = random.Random(number)
        self._numbers = itertools.count(number, CLIENTS)
        self.done = 0
        self._kinds: list[tuple[Callable[[int], object], int]] = [
            (self._load, 60),
            (self._save, 20),
            (self._merge, 8),
            (self._transform, 4),
            (self._renew, 3),
            (self._batch, 2),
            (self._list, 2),
            (self._upload, 1),
        ]

    def do(self) -> None:
        """Do the next operation."""
        kinds, weights = zip(*self._kinds, strict=True)
        number = next(self._numbers)
        self._dice.choices(kinds, weights)[0](number)
        self.done += 1

    def _load(self, number: int) -> None:
        self._store.get(key_of(number))

    def _save(self, number: int) -> None:
        self._store[key_of(number)] = value_of(number)

    def _merge(self, number: int) -> None:
        self._store.merge(key_of(number), {"by": number})

    def _transform(self, number: int) -> None:
        self._store.transform(f"count {number % 10}", lambda count: count + 1 if isinstance(count, int) else 1, 0)

    def _renew(self, number: int) -> None:
        self._store.pop(key_of(number), None)
        self._store[key_of(number)] = value_of(number)

    def _batch(self, number: int) -> None:
        self._store.update({key_of(each): value_of(each) for each in range(number, number + 20)})

    def _list(self, number: int) -> None:
        self._store.list(f"key {number % KEYS}")

    def _upload(self, number: int) -> None:
        data = number.to_bytes(8, "big") * (_MEDIA_BYTES // 8)
        if self._store.download(self._store.upload(data, name=f"{number % (MEDIA * CLIENTS)}.bin")) != data:
            raise ValueError("A media file came back as another one.")


@contextmanager
def at_work(service: Service) -> Iterator[list[Work]]:
    """Open a store for each client."""
    with ExitStack() as stack:
        yield [Work(stack.enter_context(cm.open(service.location)), number) for number in range(CLIENTS)]


def rate_of(works: Sequence[Work], seconds: float) -> float:
    """Return how many operations a second the clients manage."""
    end = time.monotonic() + seconds
    _in_threads(works, lambda work: _until(end, work))
    return sum(work.done for work in works) / seconds


def _until(end: float, work: Work) -> None:
    while time.monotonic() < end:
        work.do()


def _paced(end: float, pause: float, work: Work) -> None:
    due = time.monotonic()
    while (now := time.monotonic()) < end:
        due = max(due + pause, now - 10 * pause)  # what was missed is made up for in part
        work.do()
        time.sleep(max(0.0, due - time.monotonic()))


def _in_threads(works: Sequence[Work], act: Callable[[Work], None]) -> None:
    with ThreadPoolExecutor(len(works)) as pool:
        list(pool.map(act, works))


def of_service(folder: Path, minutes: float) -> Looks:
    """Let clients work at a service for so long, at half of its speed."""
    path = folder / "soak.db"
    looks = Looks("A service and its clients, at half speed")
    with cloudstore(path) as service, on_core(CLIENT_CORE), at_work(service) as works:
        full = rate_of(works, min(TRIAL, 6 * minutes))
        seconds = 60 * minutes
        begun = time.monotonic()
        before = sum(work.done for work in works)
        end = begun + seconds
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(seconds / LOOKS):
                done = sum(work.done for work in works) - before
                looks.add((time.monotonic() - begun) / 60, done, held_by(service.pid, path))

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            _in_threads(works, lambda work: _paced(end, 2 * len(works) / full, work))
        finally:
            ended.set()
            watcher.join()
    return looks


def of_client(folder: Path, operations: int) -> Looks:
    """Let one program do so many operations over HTTP, most of them answered by its cache, in four threads."""
    looks = Looks("One program's operations")
    with cloudstore(folder / "client.db") as service, on_core(CLIENT_CORE), ExitStack() as stack:
        store = stack.enter_context(cm.open(service.location, cache_ttl=3600))
        store.update({key_of(number): value_of(number) for number in range(KEYS)})
        begun = time.monotonic()
        done = 0
        times = math.ceil(operations / LOOKS / 4)
        with ThreadPoolExecutor(4) as pool:
            for _ in range(LOOKS):
                list(pool.map(lambda first: _read_and_save(store, first, times), range(4)))
                done += 4 * times
                looks.add((time.monotonic() - begun) / 60, done, held_by(os.getpid()))
    return looks


def _read_and_save(store: Store, first: int, times: int) -> None:
    dice = random.Random(first)
    for number in range(times):
        key = key_of(dice.randrange(KEYS))
        if number % 20:
            store.get(key)
        else:
            store[key] = value_of(first * times + number)


def lines_of(name: str, looks: Looks) -> Iterator[str]:
    """Yield what was seen as Markdown, under its picture."""
    minutes = looks.minutes[-1]
    rate = looks.operations[-1] / (60 * minutes)
    yield f"## {looks.title}"
    yield ""
    yield f"{looks.operations[-1]:,} operations in {minutes:.1f} minutes, {rate:,.0f} a second."
    yield ""
    yield "| what | after the warm-up | at the end | |"
    yield "|---|---|---|---|"
    for what in looks.held:
        before, after = looks.growth(what)
        verdict = "**grew**" if _is_more(what, before, after) else "flat"
        yield f"| {what} | {before:,.1f} | {after:,.1f} | {verdict} |"
    yield ""
    yield f"![{looks.title}]({name}.svg)"


def written(into: Path, found: dict[str, Looks]) -> Path:
    """Write the report and its pictures into a folder, and return its path."""
    into.mkdir(parents=True, exist_ok=True)
    lines = ["# What `python -m benchmarks.soak` saw", ""]
    lines += [f"- {name}: {value}" for name, value in machine.facts().items()]
    for name, looks in found.items():
        lines += ["", *lines_of(name, looks)]
        plots.drawn(Series(name, looks.title, "minutes", looks.minutes, looks.held), into, xscale="linear", marker="")
    path = into / "soak.md"
    path.write_text("\n".join(lines).rstrip() + "\n", "utf-8")
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Work, look and write; the exit status is 1 where something grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").strip())
    parser.add_argument("--minutes", type=float, default=30.0, help="how long the service is at work")
    parser.add_argument("--operations", type=int, default=1_000_000, help="how many the one program does")
    parser.add_argument("--into", type=Path, default=RESULTS, help="the folder for the report and its pictures")
    options = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="cloudstore-soak-") as folder:
        found = {
            "soak-service": of_service(Path(folder), options.minutes),
            "soak-client": of_client(Path(folder), options.operations),
        }
    try:
        print(written(options.into, found))
    except MissingError as error:
        print(error)
    grown = [f"{looks.title}: {what} grew." for looks in found.values() for what in looks.grew()]
    print(*grown or ["Nothing grew."], sep="\n")
    sys.exit(bool(grown))


if __name__ == "__main__":
    main()
