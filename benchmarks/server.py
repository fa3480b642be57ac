"""The server's rows: loads and durable saves over 32 connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Final

import cloudstore_mapping as cm
from benchmarks import slow_disk
from benchmarks.harness import Comparison, Goal, MissingError, Run, Side, compare
from benchmarks.load import Load, posted
from benchmarks.services import SERVERS, Server
from benchmarks.serving import Service, cloudstore, echo
from benchmarks.work import SYNCED, brief_loads, loader, saves

CONNECTIONS: Final = 32

_OURS: Final = "`cloudstore serve`"
_ECHO: Final = "a bare ASGI echo on uvicorn"
_SINGLE: Final = "`cloudstore serve` with a commit a save"


def loads_from(service: Service, connections: int, times: int, others: Sequence[str] = ()) -> Load:
    """Return loads from a service of ours, as our client sends them; other nodes of it share them."""
    request = posted("/cloudstore/store/load", brief_loads(service.api_key))
    return Load(service.address, request, connections=connections, times=times, expected=b'"error":null', others=others)


def saves_to(service: Service, connections: int, times: int) -> Load:
    """Return saves to a service of ours."""
    request = posted("/cloudstore/store/save", saves(service.api_key))
    return Load(service.address, request, connections=connections, times=times, expected=b'"error":null')


def under_load(run: Run) -> Iterator[Comparison]:
    """Measure saves, then loads, by all servers that there are; the others get fewer, for they are slower."""
    times = run.times(10_000)
    connections = min(CONNECTIONS, times)
    with ExitStack() as stack:
        ours = stack.enter_context(cloudstore(run.folder / "server.db"))
        with cm.open(ours.location) as store:
            loader(store)
        single = stack.enter_context(cloudstore(run.folder / "single.db", module="benchmarks.single"))
        echoes = posted("/", brief_loads(ours.api_key))
        echoing = Load(stack.enter_context(echo()), echoes, connections=connections, times=times, expected=b'"brief"')
        others = {name: server for name in SERVERS if (server := _started(run, stack, name)) is not None}

        def peers(request: Callable[[Server], tuple[Callable[[int], bytes], bytes]]) -> list[Side]:
            few = max(2, times // 20)
            return [
                Side(
                    name,
                    Load(
                        server.address, requests, connections=min(connections, few), times=few, expected=expected
                    ).turn,
                    server.durability,
                )
                for name, server in others.items()
                for requests, expected in [request(server)]
            ]

        yield compare(
            run,
            f"A durable save of 200 bytes, {connections} connections",
            [
                Side(_OURS, saves_to(ours, connections, times // 2).turn, SYNCED),
                Side(_SINGLE, saves_to(single, connections, times // 5).turn, SYNCED),
                *peers(lambda server: (server.save, server.saved)),
            ],
            [
                Goal("≥ 5 times as fast", 1 / 5, _SINGLE, "speed"),
                Goal("≥ 10 times as fast", 1 / 10, "Kinto on PostgreSQL", "speed"),
                Goal("≥ 10 times as fast", 1 / 10, "etcd's HTTP gateway", "speed"),
            ],
        )
        yield from _on_a_slow_disk(run, connections, times)
        yield compare(
            run,
            f"A load of 200 bytes, {connections} connections",
            [
                Side(_OURS, loads_from(ours, connections, times).turn),
                Side(_ECHO, echoing.turn),
                *peers(lambda server: (server.load, server.loaded)),
            ],
            [
                Goal("≥ 0.6 of its rate", 1 / 0.6, _ECHO, "speed"),
                Goal("≥ 25,000 a second on a core", 1 / 25_000, shown="rate"),
            ],
        )


def _on_a_slow_disk(run: Run, connections: int, times: int) -> Iterator[Comparison]:
    """Measure what a group's commit is for: this machine's own disk may sync in no time."""
    try:
        env = slow_disk.environment(run.folder)
    except MissingError as error:
        run.missing["a slow disk"] = str(error)
        return
    with (
        cloudstore(run.folder / "slow.db", env=env) as ours,
        cloudstore(run.folder / "slow-single.db", module="benchmarks.single", env=env) as single,
    ):
        yield compare(
            run,
            f"A durable save of 200 bytes, {connections} connections, a disk that syncs in {slow_disk.PAUSE} µs",
            [
                Side(_OURS, saves_to(ours, connections, max(2, times // 10)).turn, SYNCED),
                Side(_SINGLE, saves_to(single, connections, max(2, times // 50)).turn, SYNCED),
            ],
            [Goal("≥ 5 times as fast", 1 / 5, _SINGLE, "speed")],
        )


def _started(run: Run, stack: ExitStack, name: str) -> Server | None:
    if not run.with_servers:
        run.missing[name] = "Other servers were not wanted."
        return None
    try:
        server = stack.enter_context(SERVERS[name](run))
    except MissingError as error:
        run.missing[name] = str(error)
        return None
    # Every record is there before one is loaded.
    Load(server.address, server.save, connections=4, times=2000, expected=server.saved).turn()
    return server


ALL = (under_load,)
