"""Threads of the event loop serve owners in turn: none holds the others up, and none takes all the room."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable

import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.web.http import BoundedWorkers
from tests.service_fakes import PATIENCE


class Gate:
    """Work that waits until it may end; `begun` are the owners of what has begun, in order."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun: list[Hashable] = []

    def work(self, owner: Hashable) -> Callable[[], Hashable]:
        """Return work of an owner."""

        def work() -> Hashable:
            self.begun.append(owner)
            assert self.go.wait(PATIENCE)
            return owner

        return work


def start(workers: BoundedWorkers, gate: Gate, owner: Hashable) -> asyncio.Task[Hashable]:
    """Begin to run work of an owner."""
    return asyncio.get_running_loop().create_task(workers.run(gate.work(owner), owner))


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go on until something holds."""
    while not condition():
        await asyncio.sleep(0)


def test_an_owner_never_has_all_threads() -> None:
    """Another owner's work begins at once, however much of the first one's runs and waits."""

    async def use() -> None:
        gate, workers = Gate(), BoundedWorkers(3, 100, "test", of_one=2)
        tasks = [start(workers, gate, "ann") for _ in range(20)]
        await until(lambda: gate.begun == ["ann", "ann"])
        tasks.append(start(workers, gate, "bob"))
        await until(lambda: gate.begun == ["ann", "ann", "bob"])
        gate.go.set()
        assert await asyncio.gather(*tasks) == ["ann"] * 20 + ["bob"]

    asyncio.run(use())


def test_work_of_an_owner_alone() -> None:
    """Without a limit of its own an owner alone has all threads but one, and of a single thread that one."""

    async def use(threads: int) -> list[Hashable]:
        gate, workers = Gate(), BoundedWorkers(threads, 100, "test")
        tasks = [start(workers, gate, "ann") for _ in range(5)]
        await until(lambda: len(gate.begun) == max(1, threads - 1))
        for _ in range(10):
            await asyncio.sleep(0)
        begun = [*gate.begun]
        gate.go.set()
        await asyncio.gather(*tasks)
        return begun

    assert asyncio.run(use(3)) == ["ann"] * 2
    assert asyncio.run(use(1)) == ["ann"]


def test_owners_begin_in_turn() -> None:
    """Of two owners that wait, the one that has used less time begins first, though its work came last."""

    async def use() -> list[Hashable]:
        gate, workers = Gate(), BoundedWorkers(1, 100, "test")
        tasks = [start(workers, gate, "ann") for _ in range(3)]
        await until(lambda: gate.begun == ["ann"])
        tasks += [start(workers, gate, "bob") for _ in range(2)]
        await asyncio.sleep(0)
        gate.go.set()
        await asyncio.gather(*tasks)
        return gate.begun

    assert asyncio.run(use())[:2] == ["ann", "bob"]


def test_the_longest_queue_is_cut() -> None:
    """Where too much waits, the newest work of the owner with the most is refused, and nobody else's."""

    async def use() -> None:
        gate, workers = Gate(), BoundedWorkers(2, 5, "test", of_one=1)
        tasks = [start(workers, gate, "ann") for _ in range(6)]
        await until(lambda: gate.begun == ["ann"])
        others = [start(workers, gate, f"owner {number}") for number in range(3)]
        await asyncio.sleep(0)
        gate.go.set()
        assert await asyncio.gather(*others) == ["owner 0", "owner 1", "owner 2"]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [isinstance(result, UnavailableError) for result in results]
        assert refused == [False, False, False, False, True, True]

    asyncio.run(use())


@pytest.mark.parametrize("has_begun", [True, False])
def test_cancelled_work_gives_its_thread_back(has_begun: bool) -> None:
    """Whoever leaves while its work waits or runs takes no thread from those after it."""

    async def use() -> None:
        gate, workers = Gate(), BoundedWorkers(1, 100, "test")
        first = start(workers, gate, "ann")
        await until(lambda: gate.begun == ["ann"])
        leaves = first if has_begun else start(workers, gate, "bob")
        last = start(workers, gate, "carl")
        await asyncio.sleep(0)
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        assert gate.begun == ["ann"]  # the thread still works
        gate.go.set()
        assert await last == "carl"
        assert gate.begun == ["ann", "carl"]

    asyncio.run(use())


def test_a_new_loop_begins_anew() -> None:
    """What was left behind by a loop that has ended takes no room from the next one."""
    gate, workers = Gate(), BoundedWorkers(1, 1, "test")

    async def leave() -> None:
        start(workers, gate, "ann")
        start(workers, gate, "ann")
        await until(lambda: gate.begun == ["ann"])

    async def use() -> Hashable:
        return await start(workers, gate, "bob")

    asyncio.run(leave())
    gate.go.set()
    assert asyncio.run(use()) == "bob"
