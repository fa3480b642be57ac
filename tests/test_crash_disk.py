"""A disk that fails or is full at any one write or sync: no false success, no damage, and what is refused is said."""

from __future__ import annotations

import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import requests

import cloudstore_mapping as cm
from cloudstore_mapping.service.storage.base import OperatorError
from cloudstore_mapping.service.storage.maintenance import check_file
from cloudstore_mapping.testing.service import running_service
from tests.crash.disk import Disk, Event, Synced, Told, Written
from tests.crash.layer import watched
from tests.crash.memory import tmp_path
from tests.crash.power import cuts
from tests.crash.script import Contents, contents, states, steps
from tests.service_fakes import PATIENCE

__all__ = ["tmp_path"]  # a fixture: a folder in memory

pytestmark = pytest.mark.sqlite("SQLite's disk fails")

NAME: Final = "store.db"
FSYNC_FAILED: Final = 0x40A  # SQLITE_IOERR_FSYNC
WRITE_FAILED: Final = 0x30A  # SQLITE_IOERR_WRITE
STOPPED: Final = "The store's disk failed; look at it, then start again."


class Once:
    """A fault of the n-th event of a kind, after which the disk claims that all is well."""

    def __init__(self, kind: type[Event], place: int, code: int) -> None:
        self.has_come = False
        self._kind = kind
        self._left = place
        self._code = code

    def __call__(self, event: Event) -> int:
        """Return the code of the event."""
        if self.has_come or not isinstance(event, self._kind):
            return sqlite3.SQLITE_OK
        self._left -= 1
        self.has_come = self._left < 0
        return self._code if self.has_come else sqlite3.SQLITE_OK


def sentence(error: Exception) -> str:
    """Return what an error says, without the key in question."""
    return str(error).rpartition("': ")[2]


def run_until(store: cm.CloudStoreMapping[Any], disk: Disk, fault: Once, count: int, seed: int) -> str | None:
    """Do the steps of a program until one fails, and return what is then said; the disk is told how far it came."""
    disk.fault = fault
    for number, step in enumerate(steps(store, count, seed), 1):
        try:
            step()
        except cm.BulkError as error:
            return sentence(next(iter(error.failed.values())))
        except cm.UnavailableError as error:
            return sentence(error)
        disk.tell(number)
    return None


def places(folder: Path, kind: type[Event], count: int, seed: int) -> int:
    """Return how many events of a kind there are in a program that has a store open."""
    folder.mkdir()
    with watched(folder) as disk, cm.open(folder / NAME) as store:
        begun = len(disk.log)
        for step in steps(store, count, seed):
            step()
        return sum(isinstance(event, kind) for event in disk.log[begun:])


def try_all(
    folder: Path, kind: type[Event], code: int, *, stride: int, count: int = 12, seed: int = 1
) -> Iterator[str | None]:
    """
    Let a program have its disk fail once at each place, and yield what it was told.

    That is nothing where what failed was to carry the log over into the file, for it is done again later.
    """
    expected = states(count, seed)
    for place in range(0, places(folder / "whole", kind, count, seed), stride):
        here = folder / str(place)
        here.mkdir()
        with watched(here) as disk:
            with cm.open(here / NAME, retries=0) as store:
                said = run_until(store, disk, Once(kind, place, code), count, seed)
                told = max((each.count for each in disk.log if isinstance(each, Told)), default=0)
                assert contents(store) == expected[told], (place, told)
                if code == sqlite3.SQLITE_FULL:
                    store["later"] = 1
                    assert contents(store) == {**expected[told], "later": 1}
                    del store["later"]
                elif said is not None:
                    with pytest.raises(cm.UnavailableError) as caught:
                        store["later"] = 1
                    assert sentence(caught.value) == said
            (left,) = cuts(disk.log, ["nothing"], every=len(disk.log) + 1)
        found = [reopened(here)]
        left.leave(here)
        found.append(reopened(here))
        # What was refused may be there all the same, as its writer was told: nobody knows.
        possible = expected[told : told + (1 if code == sqlite3.SQLITE_FULL else 2)]
        assert all(each in possible for each in found), (place, told)
        yield said


def reopened(folder: Path) -> Contents:
    """Return what a store holds that is whole, and opened again."""
    assert check_file(folder / NAME).faults == []
    with cm.open(folder / NAME) as store:
        return contents(store)


CASES: Final = {
    "sync": (Synced, FSYNC_FAILED, STOPPED),
    "write": (Written, WRITE_FAILED, STOPPED),
    "full": (Written, sqlite3.SQLITE_FULL, None),  # the second try finds room
}


@pytest.mark.parametrize("case", CASES)
def test_a_disk_that_fails_once(tmp_path: Path, case: str) -> None:
    """
    A write or sync that fails is never answered success, and harms nothing that was.

    After a failed one the store takes no more writes and says so; a write that a full disk refused once is tried again.
    """
    kind, code, said = CASES[case]
    assert set(try_all(tmp_path, kind, code, stride=3 if kind is Synced else 17)) == {said}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_disk_that_fails_once_in_a_long_program(
    tmp_path: Path, case: str, at_length: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same holds wherever it fails in programs that are long enough for the log to be carried over."""
    kind, code, said = CASES[case]
    tried: Counter[str | None] = Counter()
    for seed in range(4 if at_length else 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        stride = (1 if kind is Synced else 40) if at_length else (30 if kind is Synced else 500)
        tried.update(try_all(folder, kind, code, stride=stride, count=150, seed=seed))
    assert set(tried) <= {said, None}
    with capsys.disabled():
        sys.stdout.write(f"\n{tried.total()} times a {case} failed, and {tried[said]} times it was told\n")


def test_a_failed_sync_over_http(tmp_path: Path) -> None:
    """After a failed sync a service answers 503 to writes and to who asks for its health, and goes on with loads."""
    with watched(tmp_path) as disk, running_service(tmp_path) as service:
        account = service.account()
        with account.open(retries=0) as store:
            store["key"] = "before"
            assert requests.get(f"{account.address}/health", timeout=PATIENCE).status_code == 200
            disk.fault = Once(Synced, 0, FSYNC_FAILED)
            for _ in range(2):
                with pytest.raises(cm.UnavailableError, match=OperatorError.for_clients) as caught:
                    store["key"] = "after"
                assert caught.value.status == 503
            assert store["key"] == "before"
            assert requests.get(f"{account.address}/health", timeout=PATIENCE).status_code == 503
