"""Many threads and programs on one store lose nothing."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cloudstore_mapping import callback_client, client
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.locations import open as open_store
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.testing import (
    ABSENT,
    Call,
    FaultyTransport,
    FrozenClock,
    assert_linearizable,
    check_linearizable,
    register_step,
)
from cloudstore_mapping.testing.concurrency import together
from cloudstore_mapping.testing.faults import lost, refused, slow
from cloudstore_mapping.web.server import background
from tests.storages import new_storage
from tests.support.interrupts import at_instruction
from tests.support.mapping_fixtures import Connect, MakeStore

TIMES = 1000
#: The client's files, and the one that it shares with the callback client.
CLIENT = {
    str(callback_client.__file__),
    *(str(path) for path in Path(client.__file__).parent.glob("*.py")),
}

#: What a program does to the key "one", and what came of it, for the history of all of them.
RECORDING_PROGRAM = """
import pickle, random, sys
import cloudstore_mapping as cm
from cloudstore_mapping.testing import History, strategies
location, mine = sys.argv[1:]
dice, history = random.Random(mine), History()
with cm.open(location) as store:
    print(flush=True)
    sys.stdin.readline()
    for number in range(60):
        name = dice.choice(["save", "load", "load", "contains", "merge", "delete", "pop", "setdefault", "increment"])
        value = 1 if name == "increment" else {mine: number} if name in ("save", "merge", "setdefault") else None
        operation = strategies.Operation(name, "one", value)
        with history.call(int(mine), name, value) as call:
            call.result = operation.perform(store)
sys.stdout.buffer.write(pickle.dumps(history.calls))
"""

PROGRAM = f"""
import sys
import cloudstore_mapping as cm
location, mine = sys.argv[1:]
with cm.open(location) as store:
    for number in range({TIMES}):
        store.merge("shared", {{mine: {{str(number): number}}, "last": mine}})
"""


def everything(*writers: str) -> dict[str, Any]:
    """Return what is there after each of the writers has merged `TIMES` times."""
    return {writer: {str(number): number for number in range(TIMES)} for writer in writers}


@pytest.mark.slow
def test_two_threads_merging_into_one_key(make_store: MakeStore) -> None:
    """Two threads that merge 1,000 times each into one key lose nothing."""
    store = make_store()

    def merge(mine: str) -> None:
        for number in range(TIMES):
            store.merge("shared", {mine: {str(number): number}})

    together(lambda: merge("a"), lambda: merge("b"))
    assert store["shared"] == everything("a", "b")


def run_programs(location: str) -> None:
    """Run two programs that merge into one key of the store at `location`, at once."""
    programs = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, location, mine], stderr=subprocess.PIPE, text=True)
        for mine in ("a", "b")
    ]
    for program in programs:
        _, complaint = program.communicate()
        assert (program.returncode, complaint) == (0, "")


def check(store: CloudStoreMapping[Any]) -> None:
    """Check that the programs have lost nothing."""
    with store:
        shared = store["shared"]
        assert shared.pop("last") in ("a", "b")
        assert shared == everything("a", "b")


@pytest.mark.slow
def test_two_processes_over_http(tmp_path: Path) -> None:
    """Two programs that merge 1,000 times each into one key of a service lose nothing."""
    with Service(new_storage(tmp_path / "s.db")) as service, background(service) as address:
        location = address.replace("://", f"://{service.accounts.create('tests')}@")
        run_programs(location)
        check(open_store(location))


def test_two_processes_on_one_file(tmp_path: Path) -> None:
    """Two programs that merge 1,000 times each into one key of a file lose nothing."""
    location = str(tmp_path / "store.db")
    run_programs(location)
    check(open_store(location))


def test_many_threads_saving(make_store: MakeStore) -> None:
    """Threads that share a store don't get in each other's way."""
    store = make_store()

    def work(mine: int) -> None:
        for number in range(50):
            store[f"{mine}/{number}"] = {"mine": mine, "number": number}
            assert store[f"{mine}/{number}"] == {"mine": mine, "number": number}

    together(*(lambda mine=mine: work(mine) for mine in range(8)))
    assert len(store) == 8 * 50


#: All that a store does to one key at once, where the service knows versions.
ATOMIC = ["save", "load", "load", "contains", "merge", "delete", "pop", "setdefault", "increment"]


@pytest.mark.parametrize("connect", ["memory", "file", "http"], indirect=True)
@pytest.mark.parametrize("seed", range(3))
def test_threads_at_one_key(make_store: MakeStore, seed: int) -> None:
    """Whatever threads do to one key, with a store each, can have happened one after the other."""
    stores = [make_store() for _ in range(6)]
    assert_linearizable(stores, operations=ATOMIC, seed=seed)


@pytest.mark.parametrize("connect", ["vendor"], indirect=True)
def test_threads_at_one_key_of_the_vendor(make_store: MakeStore) -> None:
    """At a service without versions single requests fit together."""
    stores = [make_store() for _ in range(6)]
    assert_linearizable(stores, operations=["save", "load", "load", "merge", "delete"])


@pytest.mark.parametrize("connect", ["http"], indirect=True)
def test_threads_at_one_key_with_faults(connect: Connect) -> None:
    """What was lost on the way was done once or not at all, whatever others did meanwhile."""
    stores = []
    with ExitStack() as stack:
        for number in range(4):
            inner, api_key = connect()
            way = FaultyTransport(inner)
            dice = random.Random(number)
            way.break_with(dice.choices([lost, refused, slow, FaultyTransport.pass_on], [1, 1, 1, 4], k=200))
            store = CloudStoreMapping[Any](api_key, transport=way, retries=1, clock=FrozenClock())
            stores.append(stack.enter_context(store))
        assert_linearizable(stores, calls=15, operations=ATOMIC)


def recorded_by_programs(location: str) -> list[Call]:
    """Return what three programs did to one key at once."""
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", RECORDING_PROGRAM, location, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(3)
    ]
    calls: list[Call] = []
    for program in programs:
        assert program.stdout is not None
        program.stdout.readline()  # it is ready
    for program in programs:
        assert program.stdin is not None
        program.stdin.write(b"\n")
        program.stdin.flush()
    for program in programs:
        output, _ = program.communicate()
        assert program.returncode == 0
        calls += pickle.loads(output)
    return calls


@pytest.mark.slow
def test_programs_at_one_key_of_a_file(tmp_path: Path) -> None:
    """Whatever programs do to one key of a file at once can have happened one after the other."""
    calls = recorded_by_programs(str(tmp_path / "store.db"))
    assert len(calls) == 180
    check_linearizable(calls, register_step, ABSENT)


@pytest.mark.slow
def test_programs_at_one_key_of_a_service(http_service: tuple[Service, str]) -> None:
    """So can what they do over HTTP."""
    service, address = http_service
    calls = recorded_by_programs(address.replace("://", f"://{service.accounts.create('programs')}@"))
    assert len(calls) == 180
    check_linearizable(calls, register_step, ABSENT)


@pytest.mark.parametrize("connect", ["http"], indirect=True)
@pytest.mark.parametrize(
    "options", [{}, {"cache_ttl": 60.0, "cache_absent_ttl": 60.0}], ids=["without cache", "with cache"]
)
@pytest.mark.parametrize(
    "step",
    [pytest.param(7, id="some instructions"), pytest.param(1, id="each instruction", marks=pytest.mark.slow)],
)
def test_a_signal_handler_uses_the_store_at_any_moment(
    make_store: MakeStore, options: dict[str, Any], step: int
) -> None:
    """A handler in the middle of its thread's save or load reads and writes many keys, and waits for no thread."""
    store = make_store(**options)
    store.update({"a": 1, "b": 2})

    def save_and_load(value: int) -> None:
        store["k"] = value
        store.cache_invalidate("a")
        assert store["a"] == 1

    def handler() -> None:
        store.update({"x": 1, "y": 2})
        assert store.get_many(["a", "x", "y"]) == {"a": 1, "x": 1, "y": 2}

    save_and_load(0)
    for number in range(1, 5000, step):
        with at_instruction(number, CLIENT, handler) as seen:
            save_and_load(number)
        if seen[0] < number:
            break
        assert store["k"] == number
    assert number > 100
