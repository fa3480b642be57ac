"""Commands beside a service on a disk that is really full: refused with a sentence, and done once there is room."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.service.storage.maintenance import check_file
from tests.cluster.nodes import nodes
from tests.crash.beside import Elsewhere, Ran
from tests.crash.commands import Command, Commands
from tests.crash.seen import add_to, check_answer, check_written, split
from tests.crash.small_disk import small_disk
from tests.crash.workload import Workload
from tests.test_crash_commands import diced, local_key, told

pytestmark = pytest.mark.sqlite("the store is a file")

SIZE: Final = 32 * 2**20
#: Bytes that are left on the disk while it is called full: none, or too few for some files.
LEFT: Final = (0, 4096, 40_000, 150_000)
CLIENTS: Final = 4
KEYS: Final = 12
#: Times that the disk of one store is full.
ROUNDS: Final = 4
#: What needs no room beside a service that runs.
READING: Final = ("check", "ls", "get", "stat", "account list", "account show")


@contextmanager
def filled(disk: Path, left: int) -> Iterator[None]:
    """Have a disk full while the block runs, but for a few bytes."""
    other = disk / "other"
    try:
        with other.open("wb", buffering=0) as file:
            with suppress(OSError):
                while True:
                    file.write(bytes(2**16))
            file.truncate(max(0, file.tell() - left))
        yield
    finally:
        other.unlink()


def fill_beside_commands(disk: Path, folder: Path, rounds: int, count: int, seed: int) -> list[Ran]:
    """Fill the disk of a service under clients and commands, check what all of them saw, and return the commands."""
    file = disk / "store.db"
    key = local_key(file)
    every: list[Ran] = []
    with diced(seed) as dice, nodes(str(file), 1, folder) as (node,):
        opens = [partial(cm.open, node.location(key), retries=0)] * CLIENTS
        workload = Workload(opens, f"{seed}", KEYS, refusals=(cm.UnavailableError,))
        commands = Commands(file, "beside", dice, list(workload.histories))
        with workload.running():
            for _ in range(rounds):
                drawn = [commands.next() for _ in range(count)]
                with filled(disk, dice.choice(LEFT)):
                    ran = [run_elsewhere(command) for command in drawn]
                    assert check_file(file).faults == []
                    assert list(disk.glob(".*")) == []
                workload.wait_for_calls(1)
                for first in ran:
                    check_answer(first, has_room=first.command.way in READING)
                    again = run_elsewhere(first.command) if first.status != 0 else first
                    again.called = first.called  # what it read before, it need not read again
                    check_answer(again)
                    add_to(workload.histories, again)
                    with cm.open(file) as store:
                        check_written(again, split(store.copy())[1])
                every += ran
                for left in disk.glob("beside-*"):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
        with cm.open(node.location(key)) as store:
            workload.check(store)
    assert check_file(file).faults == []
    return every


def run_elsewhere(command: Command) -> Ran:
    """Run a command in a process of its own, and return what came of it and when."""
    called = time.monotonic()
    ran = Elsewhere(command).ran()
    ran.called, ran.returned = called, time.monotonic()
    return ran


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    """
    A command beside a service on a full disk is done, or refused with a sentence and leaves no file by half.

    It harms nobody else, and is done once there is room.
    """
    with small_disk(tmp_path / "disk", SIZE) as disk:
        assert fill_beside_commands(disk, tmp_path, 1, 4, 0)


@pytest.mark.slow
def test_a_disk_that_is_full_over_and_over(tmp_path: Path, at_length: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The same holds for all kinds of commands, with clients at work, however little room is left."""
    stores = 8 if at_length else 1
    ran: list[Ran] = []
    for seed in range(1, stores + 1):
        with small_disk(tmp_path / f"disk {seed}", SIZE) as disk:
            ran += fill_beside_commands(disk, tmp_path, ROUNDS, 6, seed)
    with capsys.disabled():
        sys.stdout.write(f"\n{stores * ROUNDS} times a disk was full beside {told(ran)}, nothing lost\n")
