"""`python -m benchmarks.neighbours`: how long one owner waits for an answer while another one does the worst."""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from benchmarks.harness import CLIENT_CORE, on_core
from benchmarks.services import add_engine, store_on
from benchmarks.serving import first_line, process

#: Seconds that a goal allows.
LONGEST: Final = 0.5
LONGEST_HEALTH: Final = 0.1
MEDIAN_RATIO: Final = 3.0


class Client:
    """One connection with an API key, which sends a request and waits for its answer."""

    def __init__(self, address: str, api_key: str) -> None:
        where = urlsplit(address)
        assert where.hostname is not None
        self._base = where.path
        self._api_key = api_key
        self._connection = http.client.HTTPConnection(where.hostname, where.port, timeout=600)

    def post(self, path: str, **fields: Any) -> dict[str, Any]:
        """Return the reply to a request with these fields."""
        return self.post_text(path, json.dumps({"key": self._api_key, **fields}))

    def post_text(self, path: str, body: str) -> dict[str, Any]:
        """Return the reply to a request with this body."""
        self._connection.request("POST", self._base + path, body, {"Content-Type": "application/json"})
        reply: dict[str, Any] = json.loads(self._connection.getresponse().read())
        return reply

    def save(self, name: str, value: Any, options: str | None = None) -> dict[str, Any]:
        """Save or merge a value."""
        return self.post("/store/save", file=name, value=value, options=options)

    def load(self, name: str) -> dict[str, Any]:
        """Load a value."""
        return self.post("/store/load", file=name)

    def batch(self, requests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Do many requests."""
        return self.post("/store/batch", requests=requests)

    def healthy(self) -> bool:
        """Return True if the service says that it is healthy."""
        self._connection.request("GET", self._base + "/health")
        response = self._connection.getresponse()
        response.read()
        return response.status == http.HTTPStatus.OK


#: Loads the service with one owner's requests until its process is ended.
Load: TypeAlias = Callable[[str, str, float], None]


def _check(reply: Mapping[str, Any]) -> None:
    """End this process if a request of a load failed, for then it would measure nothing; wait after a refusal."""
    for each in (reply, *(reply.get("data") or ())):
        if each["error"] in {"TooOften", "Unavailable"}:
            time.sleep(0.1)
        elif each["error"] is not None:
            print(f"The load failed: {str(each)[:200]}", file=sys.stderr)
            os._exit(1)


def _for_ever(connections: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def merges(address: str, api_key: str, scale: float) -> None:
    """Merge a little into an object of 15 MiB, in batches of 50, over and over."""
    names = round(15 * 2**20 * scale) // len('"00000000":"12345678",')
    text = json.dumps({f"{number:08}": "12345678" for number in range(names)}, separators=(",", ":"))
    body = f'{{"key":"{api_key}","file":"large","value":{text}}}'
    _check(Client(address, api_key).post_text("/store/save", body))

    def work(number: int) -> None:
        client = Client(address, api_key)
        for count in itertools.count():
            requests = [
                {"file": "large", "options": "merge", "value": {f"{number} {each}": count}, "id": "_data"}
                for each in range(50)
            ]
            _check(client.batch(requests))

    _for_ever(2, work)


def lists(address: str, api_key: str, scale: float) -> None:
    """Merge 16 MiB of empty lists onto themselves, four at a time."""
    text = f"[{','.join(['[]'] * (round(16 * 2**20 * scale) // 3 - 1))}]"

    def work(number: int) -> None:
        client = Client(address, api_key)
        body = '{"key":"%s","file":"lists %d","options":%s,"value":%s}'
        _check(client.post_text("/store/save", body % (api_key, number, "null", text)))
        while True:
            _check(client.post_text("/store/save", body % (api_key, number, '"merge"', text)))

    _for_ever(4, work)


def saves(address: str, api_key: str, scale: float) -> None:
    """Save a thousand small values in a batch, eight batches at a time."""
    count = max(2, round(1000 * scale))

    def work(number: int) -> None:
        client = Client(address, api_key)
        for turn in itertools.count():
            _check(client.batch([{"file": f"{number} {each}", "value": turn, "id": "_data"} for each in range(count)]))

    _for_ever(8, work)


def large_saves(address: str, api_key: str, scale: float) -> None:
    """Save values of 4 MiB, in batches of four, two at a time."""
    value = "x" * round(4 * 2**20 * scale)

    def work(number: int) -> None:
        client = Client(address, api_key)
        while True:
            _check(client.batch([{"file": f"{number} {each}", "value": value, "id": "_data"} for each in range(4)]))

    _for_ever(2, work)


#: Loads by name; a module that measures others adds its own.
LOADS: Final[dict[str, Load]] = {
    "batches of 50 merges into 15 MiB": merges,
    "16 MiB of empty lists merged": lists,
    "batches of 1,000 saves": saves,
    "batches of 4 MiB values": large_saves,
}


@dataclass
class Waits:
    """Seconds that each request took, by kind."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Time the block."""
        began = time.perf_counter()
        yield
        self.seconds.setdefault(kind, []).append(time.perf_counter() - began)

    def measure(self, client: Client, times: int) -> None:
        """Save, load, and ask for the health, so many times."""
        for number in range(times):
            with self.timed("save"):
                reply = client.save("name", number)
            assert reply["error"] is None, reply
            with self.timed("load"):
                reply = client.load("name")
            assert reply["error"] is None, reply
            if number % 10 == 0:
                with self.timed("health"):
                    assert client.healthy()
            time.sleep(0.002)  # a person, not a flood


@contextmanager
def loading(name: str, address: str, api_key: str, scale: float) -> Iterator[None]:
    """Load the service by another process, on the clients' core, while the block runs."""
    command = [sys.executable, "-m", "benchmarks.neighbours", "--load", name, address, "--scale", str(scale)]
    with process(command, env={**os.environ, "API_KEY": api_key}) as loader:
        os.sched_setaffinity(loader.pid, {CLIENT_CORE})
        time.sleep(3)  # until it has begun
        try:
            yield
            assert loader.poll() in {None, 0}, "The load failed."  # 0: the service ended
        finally:
            loader.kill()


@contextmanager
def _serving(store: str, environment: Mapping[str, str]) -> Iterator[tuple[Any, dict[str, str]]]:
    command = [sys.executable, "-m", "cloudstore_mapping", "serve", "--json", "--port", "0", "--store", store]
    with process(command, env={**os.environ, **environment}) as server:
        os.sched_setaffinity(server.pid, os.sched_getaffinity(os.getppid()))  # all cores: those of who started this
        yield server, json.loads(first_line(server))


def compare(name: str, store: str, times: int, rounds: int, scale: float) -> str:
    """Return a row of the table: the other owner's waits alone and meanwhile, in turn, and the time of SIGTERM."""
    with _serving(store, {}) as (server, facts):
        other = _other_key(store)
        client = Client(facts["address"], other)
        alone, meanwhile = Waits(), Waits()
        client.save("name", 0)
        for _ in range(rounds):
            alone.measure(client, times)
            with loading(name, facts["address"], facts["api_key"], scale):
                meanwhile.measure(client, times)
        with loading(name, facts["address"], facts["api_key"], scale):
            began = time.perf_counter()
            server.send_signal(signal.SIGTERM)
            server.wait()
            ending = time.perf_counter() - began
    figures = []
    for kind in ("save", "load"):
        before, during = alone.seconds[kind], meanwhile.seconds[kind]
        ratio = statistics.median(during) / statistics.median(before)
        figures += [f"{1000 * statistics.median(before):.1f}", f"{1000 * statistics.median(during):.1f}"]
        figures += [_judged(f"{ratio:.1f}", ratio <= MEDIAN_RATIO), f"{1000 * max(before):.0f}"]
        figures.append(_judged(f"{1000 * max(during):.0f}", max(during) <= LONGEST))
    health = max(meanwhile.seconds["health"])
    figures.append(_judged(f"{1000 * health:.0f}", health <= LONGEST_HEALTH))
    return f"| {name} | {' | '.join(figures)} | {ending:.1f} |"


def _judged(text: str, met: bool) -> str:
    return text if met else f"**{text}**"


def _other_key(store: str) -> str:
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.storage.places import place_of

    with Service(place_of(store).open()) as service:
        return service.accounts.create("other")


_HEAD: Final = (
    "| load | save alone (median, ms) | meanwhile | ratio | longest alone | longest meanwhile "
    "| load alone (median, ms) | meanwhile | ratio | longest alone | longest meanwhile "
    "| /health longest (ms) | SIGTERM (s) |"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbours", description=__doc__)
    parser.add_argument("--times", type=int, default=300, help="saves and loads that are timed in each round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each without and with the neighbour")
    parser.add_argument("--scale", type=float, default=1.0, help="a part of the neighbour's sizes and counts")
    parser.add_argument("--only", choices=LOADS, action="append", help="one load in place of all")
    add_engine(parser)
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.load:
        name, address = options.load
        os.nice(10)  # the client that is measured is on the same core
        with suppress(OSError, http.client.HTTPException):  # the service ended
            LOADS[name](address, os.environ["API_KEY"], options.scale)
        return
    print(_HEAD)
    print("|---" * 13 + "|")
    for name in options.only or LOADS:
        with (
            TemporaryDirectory(prefix="cloudstore-neighbours-") as folder,
            on_core(CLIENT_CORE),
            store_on(options.engine, Path(folder)) as store,
        ):
            print(compare(name, store, options.times, options.rounds, options.scale), flush=True)


if __name__ == "__main__":
    main()
