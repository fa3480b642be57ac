"""`python -m benchmarks.crowds`: how long others wait for an answer while somebody attacks the service."""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import urlsplit

from benchmarks.harness import CLIENT_CORE, on_core
from benchmarks.services import add_engine, store_on
from benchmarks.serving import first_line, process
from cloudstore_mapping.web.connections import raise_file_limit

_LOCKED: Final = "locked"
_FORM: Final = "application/x-www-form-urlencoded\r\nSec-Fetch-Site: same-origin"
_BODY: Final = "POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"


class Asker:
    """One connection that asks, and waits for each answer."""

    def __init__(self, address: str) -> None:
        where = urlsplit(address)
        self.base = where.path
        self.socket = socket.create_connection((where.hostname, where.port), timeout=60)

    def ask(self, path: str, kind: str, body: str) -> bytes:
        """Return the beginning of the answer, which ends in the same piece."""
        head = _BODY.format(path=self.base + path, kind=kind, length=len(body))
        self.socket.sendall((head + body).encode())
        return self.socket.recv(2**16)

    def load(self, api_key: str, name: str, password: str | None = None) -> bytes:
        """Load a value."""
        return self.ask(
            "/store/load", "application/json", json.dumps({"key": api_key, "file": name, "password": password})
        )


def flood(what: str, address: str) -> None:
    """Try one key or password after the other, until the process is ended."""
    asker = Asker(address)
    number = 0
    while True:
        number += 1
        if what == "keys":
            asker.load(f"guess{number:027}", "name")
        elif what == "passwords":
            asker.load(os.environ["API_KEY"], _LOCKED, f"wrong {number}")
        elif what == "sign-ins":
            asker.ask("/admin/sign-in", _FORM, f"user=owner&password=wrong+{number}")
        else:
            asker.ask("/store/save", "application/json", "[" * 10_000)


@contextmanager
def waiting(address: str, count: int, sent: bytes) -> Iterator[None]:
    """Hold so many connections open on which nothing comes after these bytes."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(Asker(address).socket).sendall(sent)
        yield


@contextmanager
def flooding(what: str, address: str, api_key: str) -> Iterator[None]:
    """Have two processes try one thing after the other, on the core of whoever asks."""
    command = [sys.executable, "-m", "benchmarks.crowds", "--flood", what, address]
    with ExitStack() as stack:
        for _ in range(2):
            flooder = stack.enter_context(process(command, env={**os.environ, "API_KEY": api_key}))
            os.sched_setaffinity(flooder.pid, {CLIENT_CORE})
        time.sleep(1)  # until they have begun
        yield


def waits(asker: Asker, api_key: str, times: int) -> tuple[float, float]:
    """Return the median and the 99th percentile of the seconds that a load takes."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        answer = asker.load(api_key, "name")
        seconds.append(time.perf_counter() - began)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        time.sleep(0.0005)  # others are people, not a flood
    return statistics.median(seconds), statistics.quantiles(seconds, n=100)[98]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowds", description=__doc__)
    parser.add_argument("--times", type=int, default=1000, help="loads that are timed in each of seven rounds")
    parser.add_argument("--idle", type=int, default=10_000, help="connections on which nothing happens")
    add_engine(parser)
    parser.add_argument("--flood", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.flood:
        flood(*options.flood)
    raise_file_limit()
    with (
        TemporaryDirectory(prefix="cloudstore-crowds-") as folder,
        on_core(CLIENT_CORE),
        store_on(options.engine, Path(folder)) as store,
    ):
        settings = {"CLOUDSTORE_SERVICE_BODY_TIMEOUT": "600", "CLOUDSTORE_SERVICE_PASSWORD_TRIES": "1000000000"}
        command = [sys.executable, "-m", "cloudstore_mapping", "serve", "--json", "--port", "0", "--store", store]
        with process(command, env={**os.environ, **settings}) as server:
            facts = json.loads(first_line(server))
            _measure(facts["address"], facts["api_key"], store, options.times, options.idle)


def _measure(address: str, api_key: str, store: str, times: int, idle: int) -> None:
    asker = Asker(address)
    for name in ("name", _LOCKED):
        body = json.dumps({"key": api_key, "file": name, "value": {"Apples": 8}})
        asker.ask("/store/save", "application/json", body)
    _lock(store)
    half_body = _BODY.format(path=asker.base + "/store/save", kind="application/json", length=1000)
    attacks: dict[str, Callable[[], AbstractContextManager[None]]] = {
        f"{idle:,} silent connections": lambda: waiting(address, idle, b""),
        f"{idle // 10:,} half headers": lambda: waiting(address, idle // 10, half_body[:40].encode()),
        f"{idle // 10:,} half bodies": lambda: waiting(address, idle // 10, f'{half_body}{{"key"'.encode()),
        "wrong API keys, two at a time": lambda: flooding("keys", address, api_key),
        "wrong passwords, two at a time": lambda: flooding("passwords", address, api_key),
        "wrong sign-ins, two at a time": lambda: flooding("sign-ins", address, api_key),
        "brackets, two at a time": lambda: flooding("brackets", address, api_key),
    }
    print("| attack | median alone (µs) | median meanwhile (µs) | ratio | 99 % within, alone (µs) | meanwhile (µs) |")
    print("|---|---|---|---|---|---|")
    for name, attack in attacks.items():
        alone, meanwhile = [], []
        for _ in range(7):
            alone.append(waits(asker, api_key, times))
            with attack():
                meanwhile.append(waits(asker, api_key, times))
        before, last = map(statistics.median, zip(*alone, strict=True))
        during, last_during = map(statistics.median, zip(*meanwhile, strict=True))
        figures = f"{before * 1e6:,.0f} | {during * 1e6:,.0f} | {during / before:.2f} | {last * 1e6:,.0f}"
        print(f"| {name} | {figures} | {last_during * 1e6:,.0f} |", flush=True)


def _lock(store: str) -> None:
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.storage.places import place_of

    with Service(place_of(store).open()) as service:
        (account,) = service.accounts.all()
        service.set_passwords(account.name, _LOCKED, view="right")


if __name__ == "__main__":
    main()
