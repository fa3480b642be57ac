"""The client's rows: a dictionary over HTTP and TLS, its cache, and work on many keys."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import certifi
import requests
import urllib3
from cachetools import TTLCache

import cloudstore_mapping as cm
from benchmarks.harness import Comparison, Goal, Run, Side, compare, timed
from benchmarks.serving import cloudstore
from benchmarks.work import KEYS, key_of, load_body, loader, saver, value_of


def over_http(run: Run) -> Iterator[Comparison]:
    """Measure one thread that loads 200 bytes after 200 bytes."""
    times = run.times(400)
    with ExitStack() as stack:
        service = stack.enter_context(cloudstore(run.folder / "http.db"))
        store = stack.enter_context(cm.open(service.location))
        session = stack.enter_context(requests.Session())
        manager = urllib3.PoolManager()
        stack.callback(manager.clear)
        url = f"{service.address}/store/load"
        load = loader(store)

        def posted(number: int) -> object:
            return session.post(url, json=load_body(service.api_key, key_of(number))).json()

        def requested(number: int) -> object:
            return manager.request("POST", url, json=load_body(service.api_key, key_of(number))).json()

        name = "a bare `requests.Session`"
        yield compare(
            run,
            "`store[k]` over HTTP, one thread, 200 bytes",
            [
                Side("`store[k]`", timed(load, times)),
                Side(name, timed(posted, times)),
                Side("`urllib3`", timed(requested, times)),
            ],
            [Goal("≤ 0.40 of its time", 0.40, name)],
        )


def over_tls(run: Run) -> Iterator[Comparison]:
    """Measure the same over TLS, where the vendor's client makes a connection for each."""
    with certificate(run.folder) as (cert, key), ExitStack() as stack:
        service = stack.enter_context(cloudstore(run.folder / "tls.db", "--tls-cert", str(cert), "--tls-key", str(key)))
        store = stack.enter_context(cm.open(service.location))
        url = f"{service.address}/store/load"

        def fresh(number: int) -> object:
            return requests.post(url, json=load_body(service.api_key, key_of(number)), timeout=30).json()

        name = "a new `requests.post` each time, as the vendor's client does"
        yield compare(
            run,
            "`store[k]` over TLS, one thread, 200 bytes",
            [Side("`store[k]`", timed(loader(store), run.times(400))), Side(name, timed(fresh, run.times(20)))],
            [Goal("≤ 1/40 of its time", 1 / 40, name)],
        )


@contextmanager
def certificate(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Make a certificate that `requests` takes, beside all others that it takes anyway, while the block runs."""
    cert, key, bundle = (folder / name for name in ("cert.pem", "key.pem", "bundle.pem"))
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=bench"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(cert), "-keyout", str(key)]
    subprocess.run([*request, *names], check=True, capture_output=True)
    bundle.write_text(Path(certifi.where()).read_text("utf-8") + cert.read_text("ascii"), "utf-8")
    before = os.environ.get("REQUESTS_CA_BUNDLE")
    os.environ["REQUESTS_CA_BUNDLE"] = str(bundle)
    try:
        yield cert, key
    finally:
        del os.environ["REQUESTS_CA_BUNDLE"]
        if before is not None:
            os.environ["REQUESTS_CA_BUNDLE"] = before


def from_the_cache(run: Run) -> Iterator[Comparison]:
    """Measure reads that the cache answers, each made anew from JSON."""
    times = run.times(20_000)
    bare: TTLCache[str, str] = TTLCache(1024, 3600)
    for number in range(KEYS):
        bare[key_of(number)] = json.dumps(value_of(number))
    with cm.open("memory:", cache_ttl=3600) as store:
        name = "`cachetools.TTLCache` and `json.loads`"
        yield compare(
            run,
            "`store[k]` answered by the cache, 200 bytes",
            [
                Side("`store[k]`", timed(loader(store), times)),
                Side(name, timed(lambda number: json.loads(bare[key_of(number)]), times)),
            ],
            [Goal("≤ 1.5 of its time", 1.5, name)],
        )


def many_keys(run: Run) -> Iterator[Comparison]:
    """Measure all of 1,000 keys read, and all written."""
    count = run.times(1000)
    keys = [key_of(number) for number in range(count)]
    with cloudstore(run.folder / "bulk.db") as service, cm.open(service.location) as store:
        save = saver(store)
        store.update({key: value_of(number) for number, key in enumerate(keys)})

        def load_singly(_: int) -> None:
            for key in keys:
                store[key]

        def save_singly(turn: int) -> None:
            for number in range(count):
                save(number + KEYS * (2 * turn + 1))

        def update(turn: int) -> None:
            store.update({key: value_of(number + KEYS * (2 * turn + 2)) for number, key in enumerate(keys)})

        name = f"{count:,} single requests"
        for what, together, singly in (
            ("dict(store)", lambda _: dict(store), load_singly),
            ("store.update", update, save_singly),
        ):
            yield compare(
                run,
                f"`{what}` of {count:,} keys over HTTP",
                [Side(f"`{what}`", timed(together, 1)), Side(name, timed(singly, 1))],
                [Goal("≥ 30 times as fast", 1 / 30, name, shown="speed")],
            )


ALL = (over_http, over_tls, from_the_cache, many_keys)
