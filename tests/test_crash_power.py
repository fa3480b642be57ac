"""Power cuts in simulation: whatever of the unsynced is left, a store holds what was answered, and nothing by half."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.service.storage.maintenance import check_file
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from tests.crash.beside import run_here
from tests.crash.commands import Command
from tests.crash.disk import Event, Synced
from tests.crash.files import all_watched, files_of
from tests.crash.layer import watched
from tests.crash.memory import tmp_path
from tests.crash.power import WAYS, Cut, cuts
from tests.crash.script import Contents, contents, states, steps
from tests.storage.test_sqlite_migrations import first

__all__ = ["first", "tmp_path"]  # fixtures: a file that the first version wrote, and a folder in memory

pytestmark = pytest.mark.sqlite("it is told what is done to files")

NAME = "store.db"


def logged(folder: Path, count: int, seed: int) -> list[Event]:
    """Return what is done to the disk from the making of a store to its closing, with steps of a program between."""
    folder.mkdir()
    with watched(folder) as disk, cm.open(folder / NAME) as store:
        for number, step in enumerate(steps(store, count, seed), 1):
            step()
            disk.tell(number)
    return disk.log


def lost(each: Iterator[Cut], expected: Sequence[Contents], folder: Path) -> Iterator[str]:
    """Yield a sentence for each cut after which a store isn't as the last answered step left it, or the one after."""
    folder.mkdir()
    for number, cut in enumerate(each):
        cut.leave(folder)
        if number % 2:  # what it holds after a crash means nothing
            (folder / f"{NAME}-shm").write_bytes(bytes([number % 256]) * 2**15)
        with cm.open(folder / NAME) as store:
            if contents(store) not in expected[cut.told : cut.told + 2]:
                yield f"After the cut at {cut.place} ({cut.way}) it isn't what {cut.told} steps left."
        if number % 10 == 0:
            assert check_file(folder / NAME).faults == []


@pytest.mark.parametrize("every", [30, pytest.param(5, marks=pytest.mark.slow)])
def test_power_cuts(tmp_path: Path, every: int) -> None:
    """After a power cut a store holds what was answered, and what was under way is whole or not there."""
    log = logged(tmp_path / "before", 12, 1)
    assert list(lost(cuts(log, every=every), states(12, 1), tmp_path / "after")) == []


@pytest.mark.parametrize(
    ("way", "seed"),
    [*((way, 0) for way in WAYS), *(pytest.param("any", seed, marks=pytest.mark.slow) for seed in (1, 2))],
)
def test_a_cut_while_the_store_is_made(tmp_path: Path, way: str, seed: int) -> None:
    """A power cut while a store is made leaves an empty store, or what becomes one, never a file that is refused."""
    log = logged(tmp_path / "before", 0, 0)
    assert list(lost(cuts(log, [way], seed=seed), [{}], tmp_path / "after")) == []


def test_a_cut_while_an_old_store_is_brought_up_to_date(tmp_path: Path, first: Path) -> None:
    """A power cut while a store of an older version is opened leaves all that it held."""
    before = {first.name: first.read_bytes()}
    with watched(tmp_path) as disk:
        SQLiteStorage(first).close()
    folder = tmp_path / "after"
    folder.mkdir()
    for cut in cuts(disk.log, every=3, before=before):
        cut.leave(folder)
        SQLiteStorage(folder / first.name).close()
        found = check_file(folder / first.name)
        assert (found.faults, found.files, found.accounts) == ([], 1, 2)


def test_the_simulation_finds_what_is_not_synced(tmp_path: Path) -> None:
    """A store that leaves syncs out, as one with ``synchronous=NORMAL`` does, loses what was answered."""
    log = logged(tmp_path / "before", 12, 1)
    hasty = [event for event in log if event != Synced(f"{NAME}-wal")]
    assert any("isn't what" in each for each in lost(cuts(hasty, ["nothing"]), states(12, 1), tmp_path / "after"))


def test_what_is_done_is_on_the_disk(tmp_path: Path) -> None:
    """An export and a download that are done are on the disk with their names, as a backup is."""
    folder = tmp_path / "before"
    folder.mkdir()
    with all_watched(folder) as disk, cm.open(folder / NAME) as store:
        media = store.upload(b"GIF89a" * 1000, "picture.gif")
        store["key"] = "value"
        store.download(media, folder / "picture.gif")
        assert run_here(Command("", ["backup", str(folder / "backup"), "--store", str(folder / NAME)])).status == 0
        for name in ("keys.json", "keys.jsonl"):
            assert run_here(Command("", ["export", str(folder / name), "--at", str(folder / NAME)])).status == 0
        made: dict[str, bytes] = {}
        for name in ("picture.gif", "backup", "keys"):
            made |= files_of(folder / name)
    (cut,) = cuts(disk.log, ["nothing"], every=len(disk.log) + 1)
    assert {name: cut.files.get(name) for name in made} == made
    assert {"picture.gif", "backup", "keys.json", "keys.jsonl.media/index.jsonl"} <= made.keys()


@pytest.mark.slow
def test_many_power_cuts(tmp_path: Path, at_length: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Of thousands of power cuts, at every moment of long programs, none loses what was answered."""
    programs, count, every = (5, 300, 3) if at_length else (1, 100, 20)
    tried = 0

    def counted(each: Iterator[Cut]) -> Iterator[Cut]:
        nonlocal tried
        for cut in each:
            tried += 1
            yield cut

    for seed in range(programs):
        log = logged(tmp_path / f"before {seed}", count, seed)
        each = counted(cuts(log, every=every, seed=seed))
        assert list(lost(each, states(count, seed), tmp_path / f"after {seed}")) == []
    with capsys.disabled():
        sys.stdout.write(f"\n{tried} power cuts, nothing lost\n")
