"""Commands beside a store when the power is cut or the disk fails: nothing is lost, and no file is there by half."""

from __future__ import annotations

import random
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NamedTuple

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.service.storage.maintenance import check_file
from cloudstore_mapping.transfer import import_store
from cloudstore_mapping.transfer.dbmfiles import is_dbm
from tests.crash.beside import CONTEXT, Ran, run_here
from tests.crash.commands import Command, Commands
from tests.crash.disk import Event, Synced, Written
from tests.crash.files import all_watched, files_of
from tests.crash.layer import watched
from tests.crash.memory import tmp_path
from tests.crash.power import Cut, cuts
from tests.crash.script import KEYS, Contents, contents, states, steps
from tests.crash.seen import check_answer, check_seen, check_written, split
from tests.test_crash_disk import FSYNC_FAILED, Once

__all__ = ["tmp_path"]  # a fixture: a folder in memory

pytestmark = pytest.mark.sqlite("it is told what is done to files")

NAME: Final = "store.db"


class Moment(NamedTuple):
    """What was done last: a step, of which there were so many then, or a command, and the files that it made."""

    steps: int
    ran: Ran | None = None
    made: Mapping[str, bytes] = {}


def logged(folder: Path, count: int, seed: int) -> tuple[list[Event], list[Moment]]:
    """
    Return what is done to the disk by a program with commands between its steps, and the moments of which it is told.

    Half of the commands are run by the program itself, the others in processes of their own.
    """
    folder.mkdir()
    dice = random.Random(f"commands {seed}")
    commands = Commands(folder / NAME, "beside", dice, KEYS)
    moments = [Moment(0)]
    with all_watched(folder) as disk, cm.open(folder / NAME) as store:
        for number, step in enumerate(steps(store, count, seed), 1):
            step()
            moments.append(Moment(number))
            disk.tell(len(moments) - 1)
            if number > 1 and dice.random() < 3 / 4:
                continue
            command = commands.next() if number > 1 else commands.misread()
            if number == 1 or dice.random() < 1 / 2:
                ran = run_here(command)
            else:
                ran, log = run_elsewhere(folder, command)
                disk.log += log
            moments.append(Moment(number, ran, files_of(command.target) if command.target else {}))
            disk.tell(len(moments) - 1)
    return disk.log, moments


def run_elsewhere(folder: Path, command: Command) -> tuple[Ran, list[Event]]:
    """Run a command in a process of its own, and return what it did to the disk, where nobody else did anything."""
    told, telling = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_run_and_log, args=(folder, command, telling))
    process.start()
    telling.close()
    with told:
        ran, log = told.recv()
    process.join()
    return ran, log


def _run_and_log(folder: Path, command: Command, told: Connection) -> None:
    with all_watched(folder) as disk:
        ran = run_here(command)
    told.send((ran, disk.log))


def check_cut(cut: Cut, moments: Sequence[Moment], expected: Sequence[Contents], folder: Path) -> None:
    """Check that a power cut leaves what was told to be done, and of what was under way all or nothing."""
    cut.leave(folder)
    where = f"{cut.place} ({cut.way})"
    with cm.open(folder / NAME) as store:
        rest, own = split(contents(store))
    steps = moments[cut.told].steps
    assert rest in expected[steps : steps + 2], where
    for number, (_, ran, whole) in enumerate(moments[: cut.told + 2]):
        if ran is None:
            continue
        missing = {name for name, data in whole.items() if cut.files.get(name) != data}
        if number <= cut.told:
            check_written(ran, own)
            assert missing == set(), (where, ran)
        elif missing and ran.command.target is not None:
            check_refused(folder / ran.command.target.name, where)


def check_refused(target: Path, where: str) -> None:
    """Check that an export or a backup which is not whole is not there, or refused with a sentence."""
    if target.suffix == ".db" or not (target.exists() or is_dbm(target)):
        return  # another store gets one key after another
    with cm.open("memory:") as store:
        try:
            import_store(store, target, trust=True)
        except cm.UnsupportedError:
            return
    pytest.fail(f"{target} is there by half after the cut at {where}.")


def cut_program(folder: Path, count: int, seed: int, every: int) -> tuple[int, int]:
    """Cut the power of a program with commands, and return how often, and how many commands there were."""
    before, after = folder / f"before {seed}", folder / f"after {seed}"
    log, moments = logged(before, count, seed)
    expected = states(count, seed)
    ran = 0
    for moment in moments:
        if moment.ran is not None:
            ran += 1
            check_answer(moment.ran)
            check_seen(moment.ran, expected[moment.steps : moment.steps + 1])
    after.mkdir()
    number = 0
    for number, cut in enumerate(cuts(log, every=every, seed=seed), 1):
        check_cut(cut, moments, expected, after)
        if number % 10 == 0:
            assert check_file(after / NAME).faults == []
    return number, ran


@pytest.mark.slow
def test_power_cuts(tmp_path: Path) -> None:
    """After a power cut all is there that a program and commands on its file had done, and no file by half."""
    tried, ran = cut_program(tmp_path, 20, 0, 25)
    assert tried > 10
    assert ran > 3


@pytest.mark.slow
def test_many_power_cuts(tmp_path: Path, at_length: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The same holds for thousands of cuts, in programs with all kinds of commands."""
    programs, count, every = (10, 60, 4) if at_length else (2, 40, 25)
    found = [cut_program(tmp_path, count, seed, every) for seed in range(1, programs + 1)]
    tried, ran = (sum(numbers) for numbers in zip(*found, strict=True))
    with capsys.disabled():
        sys.stdout.write(f"\n{tried} power cuts beside {ran} commands, nothing lost\n")


FAULTS: Final = {
    "sync": (Synced, FSYNC_FAILED),
    "full": (Written, sqlite3.SQLITE_FULL),
}
WAYS: Final = ("export", "import", "backup", "check", "ls", "set", "migrate", "account set")


def fail_once(folder: Path, way: str, kind: type[Event], code: int, stride: int, seed: int) -> Iterator[bool]:
    """
    Have the disk fail once at each place of a command beside a program, and yield whether the command succeeded.

    Whatever fails harms neither the program nor what it had done, and the command can be run again.
    """
    folder.mkdir()
    (whole,) = states(12, seed)[-1:]
    with cm.open(folder / NAME) as store:
        for step in steps(store, 12, seed):
            step()
    for place in range(0, 10**6, stride):
        here = folder / str(place)
        here.mkdir()
        shutil.copy(folder / NAME, here)
        dice = random.Random(f"{seed} {way}")
        command = Commands(here / NAME, "beside", dice, KEYS).next(way)
        fault = Once(kind, place, code)
        with watched(here) as disk, cm.open(here / NAME, retries=0) as store:
            store["before"] = 1
            disk.fault = fault
            ran = run_here(command)
            disk.fault = lambda _: 0
            store["after"] = 2
            rest, own = split(contents(store))
            assert rest == {**whole, "before": 1, "after": 2}
            check_answer(ran, has_room=not fault.has_come)
            check_written(ran, own)
            check_seen(ran, [{**whole, "before": 1}])
            assert list(here.glob(".*")) == []
            again = run_here(command)
        if not fault.has_come:
            return
        yield ran.status == 0
        if ran.status != 0:
            check_answer(again)
        check_seen(again, [{**whole, "before": 1}, rest])
        assert check_file(here / NAME).faults == []
        shutil.rmtree(here)


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.slow
def test_a_disk_that_fails_once(tmp_path: Path, case: str) -> None:
    """A command whose write or sync fails says so in a sentence and leaves no file by half; it harms nobody else."""
    kind, code = FAULTS[case]
    found = list(fail_once(tmp_path / case, "backup", kind, code, 1, 0))
    assert len(found) > 5
    assert not any(found)


@pytest.mark.slow
@pytest.mark.parametrize("case", FAULTS)
def test_a_disk_that_fails_once_under_any_command(
    tmp_path: Path, case: str, at_length: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same holds wherever it fails, in commands of all kinds."""
    kind, code = FAULTS[case]
    tried: Counter[bool] = Counter()
    stride = 1 if kind is Synced else 5 if at_length else 20
    for seed in range(1, 4 if at_length else 2):
        for way in WAYS:
            tried.update(fail_once(tmp_path / f"{way} {seed}", way, kind, code, stride, seed))
    with capsys.disabled():
        sys.stdout.write(
            f"\n{tried.total()} times a {case} failed under a command, which {tried[False]} times said so\n"
        )
