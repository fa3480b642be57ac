"""Rows of a node on PostgreSQL, near to it and far away, beside pgbench with the same reads and writes."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import cloudstore_mapping as cm
from benchmarks.harness import Comparison, Goal, MissingError, Run, Side, compare
from benchmarks.load import Load, posted
from benchmarks.server import CONNECTIONS, loads_from
from benchmarks.services import postgresql, programs_of_postgresql
from benchmarks.serving import Service, cloudstore, free_port, process, wait_for_port
from benchmarks.work import KEYS, loader, saves

#: Milliseconds of a round trip to a database in another data centre.
DISTANCES: Final = (0.0, 2.4)
#: Seconds of a turn of pgbench.
SECONDS: Final = 5

_OURS: Final = "`cloudstore serve` on PostgreSQL"
_PGBENCH: Final = "pgbench"
_ACCOUNT: Final = (
    "SELECT id, name, disabled, plan, folder, data_password, max_files FROM accounts"
    " WHERE id = (SELECT account_id FROM api_keys WHERE hash = '\\x{key}');"
)
_SCRIPTS: Final = {
    "save": (
        "\\set number random(0, {last})\n\\set id random(1, 1000000000000)\nBEGIN;\n{account}\n"
        "SELECT octet_length(value), version, created_at, updated_at, edit_password, view_password FROM files"
        " WHERE account_id = 1 AND name = 'key ' || :number FOR UPDATE;\n"
        "SELECT reply, fingerprint FROM answers WHERE account_id = 1 AND request = 'r' || :id;\n"
        "UPDATE files SET value = '{value}', version = 'v' || :id, updated_at = 1.0"
        " WHERE account_id = 1 AND name = 'key ' || :number;\n"
        "INSERT INTO answers (account_id, request, reply, fingerprint, answered_at)"
        " VALUES (1, 'r' || :id, 'Entry saved', 'fingerprint', 1.0) ON CONFLICT DO NOTHING;\nCOMMIT;\n"
    ),
    "load": (
        "\\set number random(0, {last})\nBEGIN;\n{account}\n"
        "SELECT value, version, edit_password, view_password FROM files"
        " WHERE account_id = 1 AND name = 'key ' || :number;\nCOMMIT;\n"
    ),
}


def far_away(run: Run) -> Iterator[Comparison]:
    """Measure saves and loads through one node, at each distance from the database."""
    if not run.with_servers:
        run.missing[_PGBENCH] = "Other servers were not wanted."
        return
    try:
        found = shutil.which("pgbench")
        pgbench = programs_of_postgresql() / "pgbench" if found is None else Path(found)
        with postgresql(run, "distance") as address:
            yield from _at_each_distance(run, pgbench, address)
    except MissingError as error:
        run.missing[_PGBENCH] = str(error)


def _at_each_distance(run: Run, pgbench: Path, address: str) -> Iterator[Comparison]:
    api_key = ""
    for distance in DISTANCES:
        with ExitStack() as stack:
            port = int(address.rpartition(":")[2].partition("/")[0])
            if distance:
                port = stack.enter_context(delayed(run, run.folder / "distance" / f".s.PGSQL.{port}", distance))
            here = f"postgresql://bench@127.0.0.1:{port}/postgres"
            node = stack.enter_context(cloudstore(here, api_key=api_key))
            api_key = node.api_key
            with cm.open(node.location) as store:
                loader(store)
            limit = 1 / 0.5 if distance else 1 / 0.25
            for kind in _SCRIPTS:
                script = script_of(run, kind, api_key)
                times = run.times(5_000)
                ours = saves_with_ids(node, times) if kind == "save" else loads_from(node, CONNECTIONS, times)
                yield compare(
                    run,
                    f"A {kind} of 200 bytes, {CONNECTIONS} connections, {distance:g} ms from PostgreSQL",
                    [Side(_OURS, ours.turn), Side(_PGBENCH, partial(pgbench_turn, pgbench, port, script))],
                    [Goal(f"≥ {1 / limit:g} times as fast", limit, _PGBENCH, "speed")],
                )


def saves_with_ids(node: Service, times: int, others: Sequence[str] = ()) -> Load:
    """Return saves with ids, as our client sends them."""
    body = saves(node.api_key)

    def request(number: int) -> bytes:
        return posted("/cloudstore/store/save", body, headers=f"Idempotency-Key: {secrets.token_hex(16)}\r\n")(number)

    return Load(node.address, request, connections=CONNECTIONS, times=times, expected=b'"error":null', others=others)


def script_of(run: Run, kind: str, api_key: str) -> Path:
    """Write pgbench's script that does what a save or load does, and return its file."""
    file = run.folder / f"{kind}.sql"
    account = _ACCOUNT.format(key=hashlib.sha256(api_key.encode()).hexdigest())
    file.write_text(_SCRIPTS[kind].format(account=account, last=KEYS - 1, value='"' + "x" * 198 + '"'))
    return file


def pgbench_turn(pgbench: Path, port: int, script: Path) -> float:
    """Run a script in 32 clients for some seconds, and return the seconds of each transaction."""
    command: list[str | Path] = [pgbench, "-n", "-h", "127.0.0.1", "-p", str(port), "-U", "bench"]
    command += ["-c", str(CONNECTIONS), "-j", "2", "-T", str(SECONDS), "-f", script, "postgres"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (rate,) = re.findall(r"tps = ([\d.]+)", told)
    return 1 / float(rate)


@contextmanager
def delayed(run: Run, socket: Path, milliseconds: float) -> Iterator[int]:
    """Run a way to a server's socket that delays, and return the port where it listens."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise MissingError("A C compiler (Debian's package gcc) isn't installed.")
    program = run.folder / "delay"
    subprocess.run([compiler, "-O2", "-o", program, Path(__file__).with_name("delay.c")], check=True)
    port = free_port()
    with process([str(program), str(port), str(socket), str(round(milliseconds * 500))]):
        wait_for_port(port)
        yield port


ALL = (far_away,)
