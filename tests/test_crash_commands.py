"""Killed with -9 while commands run on the same file: what was answered is there, and no command leaves half a file."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.service.storage.maintenance import check_file
from tests.cluster.nodes import nodes
from tests.crash.beside import Beside, Ran, run_here
from tests.crash.commands import Command, Commands
from tests.crash.program import STEPS, Program
from tests.crash.script import KEYS, contents, states
from tests.crash.seen import add_to, check_answer, check_seen, check_written, split
from tests.crash.workload import Workload
from tests.test_crash_kill import CALLS, CLIENTS, KILLS, Service
from tests.test_crash_kill import KEYS as WORKLOAD_KEYS

pytestmark = pytest.mark.sqlite("the store is a file")

#: Times that a program is told to go on before it is killed, at most.
ROUNDS: Final = 6


def local_key(file: Path) -> str:
    """Make a store, and return the API key of the account that programs have which open its file, as commands do."""
    made = run_here(Command("account create", ["account", "create", "local", "--store", str(file)]))
    check_answer(made)
    return made.output.strip()


@contextmanager
def diced(seed: object) -> Iterator[random.Random]:
    """Give the block its dice; what it raises says what they were made of."""
    try:
        yield random.Random(str(seed))
    except BaseException as error:
        error.add_note(f"The seed was {seed}.")
        raise


def told(ran: Iterable[Ran]) -> str:
    """Return how many commands were run, and what came of them."""
    counts = Counter("killed" if each.status is None else "refused" if each.status else "done" for each in ran)
    return f"{counts.total()} commands, " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


def kill_program(folder: Path, seed: int) -> list[Ran]:
    """Kill a program while commands run on its file in it and beside it, check what is left, and return them."""
    file = folder / f"{seed}" / "store.db"
    file.parent.mkdir()
    expected = states(STEPS, seed)
    with diced(seed) as dice:
        program = Program(file, seed)
        beside = Beside(Commands(file, "outside", random.Random(f"outside {seed}"), KEYS), program.done)
        try:
            asked = 1
            program.ask(steps=asked, commands=1)
            program.wait_for(asked, commands=1)
            with beside.running():
                for _ in range(dice.randint(1, ROUNDS)):
                    more = dice.randint(1, STEPS // (ROUNDS + 1))
                    program.ask(steps=more, commands=dice.randint(0, 2))
                    beside.wait_for(1)
                    program.wait_for(asked + dice.randint(0, more))
                    asked += more
                done = program.kill()
                if dice.random() < 1 / 2:
                    beside.kill()
                beside.wait_for(dice.randint(0, 2))
        finally:
            program.kill()
        assert check_file(file).faults == []
        with cm.open(file) as store:
            rest, own = split(contents(store))
        assert rest in expected[done : done + 2], done
        every = [*program.ran.values(), *beside.ran]
        for ran in every:
            check_answer(ran)
            check_written(ran, own)
            check_seen(ran, expected[int(ran.called) : done + 2])
    return every


def test_a_killed_program(tmp_path: Path) -> None:
    """
    A program that is killed leaves all that it had done, whatever commands run on its file in it and beside it.

    What they wrote is there if they succeeded, and an export or a backup is whole if it is there, killed or not.
    """
    assert any(ran.status == 0 for ran in kill_program(tmp_path, 0))


@pytest.mark.parametrize("asked", [1, pytest.param(STEPS // 2, marks=pytest.mark.slow), STEPS])
def test_a_killed_program_whose_file_was_replaced(tmp_path: Path, asked: int) -> None:
    """After a kill no command applies the log to another store in the file's place; both are whole after that."""
    file, other, away = tmp_path / "store.db", tmp_path / "other.db", tmp_path / "away.db"
    local_key(other)
    program = Program(file, 0)
    try:
        program.ask(steps=asked, commands=0)
        program.wait_for(asked)
    finally:
        done = program.kill()
    file.rename(away)
    other.rename(file)
    log = Path(f"{file}-wal")
    before = (file.read_bytes(), log.read_bytes())
    for command in (["ls", "--at"], ["set", "k", "1", "--at"], ["check", "--store"], ["account", "list", "--store"]):
        ran = run_here(Command(command[0], [*command, str(file)]))
        assert ran.status == 2
    assert (file.read_bytes(), log.read_bytes()) == before
    log.rename(f"{away}-wal")
    assert check_file(file).faults == check_file(away).faults == []
    with cm.open(file) as store:
        assert len(store) == 0
    with cm.open(away) as store:
        rest, _ = split(contents(store))
    assert rest in states(STEPS, 0)[done : done + 2]


@pytest.mark.slow
def test_many_killed_programs(tmp_path: Path, at_length: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The same holds for many programs, killed at any moment."""
    kills = 200 if at_length else 8
    ran = [each for seed in range(1, kills + 1) for each in kill_program(tmp_path, seed)]
    with capsys.disabled():
        sys.stdout.write(f"\n{kills} programs killed beside {told(ran)}, nothing lost\n")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Return a service of the account `local`, which complained of nothing in the end."""
    service = Service(tmp_path, local_key(tmp_path / "service.db"))
    with ExitStack() as stack:
        stack.callback(service.end)
        yield service
    assert (tmp_path / "service.log").read_text() == ""


@pytest.fixture(params=["alone", "beside another"])
def locations(request: pytest.FixtureRequest, service: Service, tmp_path: Path) -> Iterator[list[str]]:
    """Return the ways to its store: itself, and perhaps another process on the same file, which is not killed."""
    with nodes(str(service.file), 1 if request.param == "beside another" else 0, tmp_path) as others:
        key = service.location.partition("://")[2].partition("@")[0]
        yield [service.location, *(other.location(key) for other in others)]
    assert all(log.read_text() == "" for log in tmp_path.glob("node-*.log"))


@pytest.mark.slow
def test_a_killed_service(
    service: Service, locations: Sequence[str], at_length: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Clients of a service that is killed over and over see nothing that can't be, whatever commands run on its file.

    Nor do the commands: what an export or a backup holds was there while it was made. So if they are killed.
    """
    opens = [partial(cm.open, locations[client % len(locations)]) for client in range(CLIENTS)]
    every: list[Ran] = []
    calls = kills = 0
    for lot in range(20 if at_length else 1):
        with diced(f"lot {lot}") as dice:
            workload = Workload(opens, f"lot {lot}", WORKLOAD_KEYS)
            keys = list(workload.histories)
            beside = Beside(Commands(service.file, f"lot-{lot}", dice, keys, service.location))
            with beside.running(), workload.running():
                for _ in range(KILLS):
                    beside.wait_for(dice.randint(0, 2))
                    workload.wait_for_calls(dice.randint(1, CALLS))
                    if dice.random() < 1 / 2:
                        beside.kill()
                    service.kill()
                    assert check_file(service.file).faults == []
                workload.wait_for_calls(1)
            with cm.open(service.location) as store:
                _, own = split(dict(store))
                for ran in beside.ran:
                    check_answer(ran)
                    check_written(ran, own)
                    add_to(workload.histories, ran)
                workload.check(store)
        every += beside.ran
        calls, kills = calls + workload.calls, kills + KILLS
    with capsys.disabled():
        sys.stdout.write(f"\n{kills} times killed during {calls} calls beside {told(every)}, nothing lost\n")
