"""Services that others keep JSON in over HTTP, each as a user of it would start it."""

from __future__ import annotations

import argparse
import base64
import getpass
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import requests

from benchmarks.harness import MissingError, Run
from benchmarks.load import posted
from benchmarks.serving import free_port, process, wait_for_port
from benchmarks.work import KEYS, json_of, key_of


@dataclass(frozen=True)
class Server:
    """A server that runs: its address, the bytes of a save and of a load by number, and what they have in them."""

    address: str
    save: Callable[[int], bytes]
    load: Callable[[int], bytes]
    saved: bytes
    loaded: bytes
    durability: str


@contextmanager
def etcd(run: Run) -> Iterator[Server]:
    """Run etcd; its JSON gateway takes keys and values in base64."""
    program = shutil.which("etcd")
    if program is None:
        raise MissingError("etcd isn't installed (Debian's package etcd-server).")
    port, peers = free_port(), free_port()
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peers}"
    command = [program, "--data-dir", str(run.folder / "etcd"), "--name", "bench"]
    command += ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
    command += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"bench={peer}", "--log-level", "error"]
    with process(command):
        wait_for_port(port)
        yield Server(
            client,
            posted("/v3/kv/put", lambda number: _etcd_body(number, value=json_of(number))),
            posted("/v3/kv/range", _etcd_body),
            saved=b'"header"',
            loaded=b'"kvs"',
            durability="on disk when it is answered (its log is synced)",
        )


def _etcd_body(number: int, value: bytes | None = None) -> bytes:
    parts = {"key": key_of(number).encode()} | ({} if value is None else {"value": value})
    return json.dumps({name: base64.b64encode(part).decode() for name, part in parts.items()}).encode()


@contextmanager
def kinto_in_memory(run: Run) -> Iterator[Server]:
    """Run Kinto with its engine in memory."""
    with _kinto(run, "memory", "", "nowhere: it is gone with the process") as server:
        yield server


@contextmanager
def kinto_on_postgresql(run: Run) -> Iterator[Server]:
    """Run Kinto on PostgreSQL."""
    if importlib.util.find_spec("psycopg2") is None:
        raise MissingError("psycopg2 (extra `bench`) isn't installed.")
    with postgresql(run) as url, _kinto(run, "postgresql", url, "on disk when it is answered (PostgreSQL)") as server:
        yield server


_CONFIGURATION: Final = """[app:main]
use = egg:kinto
kinto.userid_hmac_secret = benchmarks
kinto.bucket_create_principals = system.Everyone
multiauth.policies = basicauth
multiauth.policy.basicauth.use = kinto.core.authentication.BasicAuthAuthenticationPolicy
{backends}
[server:main]
use = egg:waitress#main
host = 127.0.0.1
port = {port}
[loggers]
keys = root
[handlers]
keys =
[formatters]
keys =
[logger_root]
level = ERROR
handlers =
"""
_USER: Final = ("bench", "bench")
#: On PostgreSQL it refuses one of two writes that come at once to one collection, so they go to many.
_COLLECTIONS: Final = 64


@contextmanager
def _kinto(run: Run, engine: str, url: str, durability: str) -> Iterator[Server]:
    program = Path(sys.executable).with_name("kinto")
    if importlib.util.find_spec("kinto") is None or not program.exists():
        raise MissingError("Kinto isn't installed (extra `bench`).")
    port = free_port()
    backends = ""
    for part in ("storage", "permission", "cache"):
        backends += f"kinto.{part}_backend = kinto.core.{part}.{engine}\n"
        backends += f"kinto.{part}_url = {url}\n" if url else ""
    file = run.folder / f"kinto-{engine}.ini"
    file.write_text(_CONFIGURATION.format(backends=backends, port=port))
    subprocess.run([program, "migrate", "--ini", file], check=True, capture_output=True)
    with process([str(program), "start", "--ini", str(file)]):
        wait_for_port(port)
        address = f"http://127.0.0.1:{port}"
        with requests.Session() as session:
            session.auth = _USER
            for path in ("/v1/buckets/b", *(f"/v1/buckets/b/collections/c{each}" for each in range(_COLLECTIONS))):
                session.put(address + path, json={}).raise_for_status()
        authorization = f"Authorization: Basic {base64.b64encode(':'.join(_USER).encode()).decode()}\r\n"

        def record(number: int) -> str:
            return f"/v1/buckets/b/collections/c{number % _COLLECTIONS}/records/key{number % KEYS}"

        def save(number: int) -> bytes:
            body = b'{"data":%b}' % json_of(number)
            return posted(record(number), lambda _: body, method="PUT", headers=authorization)(number)

        def load(number: int) -> bytes:
            return posted(record(number), lambda _: b"", method="GET", headers=authorization)(number)

        yield Server(address, save, load, saved=b'"data"', loaded=b'"data"', durability=durability)


@contextmanager
def postgresql(run: Run, name: str = "postgresql") -> Iterator[str]:
    """Run PostgreSQL in a folder of this name, and return its address."""
    with postgresql_process(run, name) as (address, _):
        yield address


@contextmanager
def postgresql_process(run: Run, name: str) -> Iterator[tuple[str, int]]:
    """Run PostgreSQL in a folder of this name, and return its address and its process."""
    home = programs_of_postgresql()
    # It refuses to run as root.
    is_root = os.geteuid() == 0
    user = "nobody" if is_root else getpass.getuser()
    folder = run.folder / name
    folder.mkdir()
    if is_root:
        shutil.chown(folder, user)
        run.folder.chmod(0o755)
    options = {"user": user, "cwd": folder} if is_root else {"cwd": folder}
    subprocess.run(
        [home / "initdb", "-D", folder / "data", "-U", "bench", "-A", "trust"],
        check=True,
        capture_output=True,
        **options,
    )
    port = free_port()
    command = [str(home / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
    with process([*command, "-c", f"unix_socket_directories={folder}"], **options) as started:
        wait_for_port(port)
        yield f"postgresql://bench@127.0.0.1:{port}/postgres", started.pid


@contextmanager
def store_on(engine: str, folder: Path, name: str = "service") -> Iterator[str]:
    """Return where a service may keep a new store: a file in `folder`, or a PostgreSQL that runs meanwhile."""
    if engine == "sqlite":
        yield str(folder / f"{name}.db")
        return
    with postgresql(Run(folder), name) as address:
        yield address


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the option for `store_on`."""
    parser.add_argument(
        "--engine", choices=("sqlite", "postgres"), default="sqlite", help="where the service's store is"
    )


def programs_of_postgresql() -> Path:
    """Return the folder of PostgreSQL's programs: of those in the PATH, or Debian's newest."""
    programs = [Path(found).resolve() for name in ("initdb", "postgres") if (found := shutil.which(name))]
    homes = [*(path.parent for path in programs), *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    homes = [home for home in homes if (home / "initdb").exists() and (home / "postgres").exists()]
    if not homes:
        raise MissingError("PostgreSQL (Debian's package postgresql) isn't installed.")
    return homes[0]


SERVERS: Final = {
    "etcd's HTTP gateway": etcd,
    "Kinto in memory": kinto_in_memory,
    "Kinto on PostgreSQL": kinto_on_postgresql,
}
