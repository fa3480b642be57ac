"""A storage is healthy only while a save would be done; asking is cheap, and never waits for long."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage import base, sqlite
from cloudstore_mapping.service.storage.base import HealthProbe, Storage
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.service.storage.sqlite_files import READ_ONLY, DiskReserve
from tests.crash.layer import watched
from tests.permissions import crashed, heed_permissions
from tests.service_fakes import PATIENCE, Held
from tests.storage.test_sqlite_space import GIB, Usage


class Submitted:
    """Probes that were begun, whose outcomes the test decides."""

    def __init__(self) -> None:
        self.begun: list[Future[None]] = []

    def __call__(self) -> Future[None]:
        """Begin another one."""
        self.begun.append(Future())
        return self.begun[-1]


def test_one_probe_at_a_time() -> None:
    """However often it is asked for, one probe runs; while it does the outcome of the one before is told."""
    submitted = Submitted()
    probe = HealthProbe(submitted)
    assert [probe.problem(0.0) for _ in range(3)] == [None] * 3
    [first] = submitted.begun
    first.set_exception(UnavailableError("It is ill."))
    assert probe.problem(0.0) == "It is ill."
    assert [probe.problem(0.0) for _ in range(3)] == ["It is ill."] * 3
    _, second = submitted.begun
    second.set_result(None)
    assert probe.problem(0.0) is None
    assert len(submitted.begun) == 2


def test_a_probe_that_waits_for_long() -> None:
    """A probe that waits for as long as `OVERDUE` is a problem until it has ended, and no other one is begun."""
    submitted = Submitted()
    now = [0.0]
    probe = HealthProbe(submitted, lambda: now[0])
    assert probe.problem(0.0) is None
    now[0] = base.OVERDUE - 1
    assert probe.problem(0.0) is None
    now[0] = base.OVERDUE
    told = "Saves wait for longer than 5 seconds; look which process holds the store."
    assert [probe.problem(0.0) for _ in range(3)] == [told] * 3
    [waiting] = submitted.begun
    waiting.set_result(None)
    assert probe.problem(0.0) is None


def test_the_first_check_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first check of a process waits for the outcome of its probe; later ones tell the one before soon."""
    waited: list[float | None] = []

    def wait_for(future: Future[None], timeout: float | None) -> bool:
        waited.append(timeout)
        return future.done()

    monkeypatch.setattr(base, "wait_for", wait_for)
    submitted = Submitted()
    probe = HealthProbe(submitted)
    probe.problem(1.0)
    submitted.begun[0].set_exception(UnavailableError("It is ill."))
    assert [probe.problem(1.0), probe.problem(1.0)] == ["It is ill."] * 2
    assert waited == [1.0, 1.0, base.LATER_PATIENCE]


def test_another_process_holds_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another connection holds the file, health says so in the end, and is well again after it."""
    monkeypatch.setattr(base, "OVERDUE", 0.0)
    monkeypatch.setattr(base, "PATIENCE", 0.05)
    path = tmp_path / "store.db"
    with SQLiteStorage(path) as storage, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert storage.problem() == "Saves wait for longer than 0 seconds; look which process holds the store."
        other.execute("ROLLBACK")
        storage.submit(lambda transaction: transaction.has_accounts()).result(PATIENCE)
        assert storage.problem() is None


def test_a_busy_writer_is_healthy(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a long piece of work is written, health is told without waiting for its end."""
    held = Held(storage)
    monkeypatch.setattr(base, "PATIENCE", 0.0)
    assert storage.healthy()
    held.go.set()
    held.future.result(PATIENCE)
    assert storage.healthy()


def test_a_full_disk_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Health is logged when it changes, not each time that more space is missing."""
    disks = [Usage(GIB, GIB)]
    monkeypatch.setattr(sqlite, "DiskReserve", lambda path: DiskReserve(path, lambda _: disks[-1]))
    with Service(SQLiteStorage(tmp_path / "store.db")) as service:
        for free in (GIB, 3 * 2**20, 2**20, 0, GIB):
            disks.append(Usage(GIB, free))
            service.healthy()
    assert caplog.messages == [
        "The service is not healthy: The store's disk is full; free at least 3 MiB, then try again.",
        "The service is healthy again.",
    ]


@pytest.mark.parametrize(
    ("disk", "sentence"),
    [
        (Usage(GIB, GIB), None),
        (Usage(GIB, 0), "The store's disk is full; free at least 6 MiB, then try again."),
        (Usage(GIB, GIB, read_only=True), READ_ONLY),
    ],
    ids=["room", "full", "read-only"],
)
def test_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Usage, sentence: str | None) -> None:
    """It is healthy exactly while there is room for a small value on a disk that takes writes."""
    monkeypatch.setattr(sqlite, "DiskReserve", lambda path: DiskReserve(path, lambda _: disk))
    with SQLiteStorage(tmp_path / "store.db") as storage:
        account = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result(PATIENCE).id
        assert storage.problem() == sentence
        saved = storage.submit(lambda transaction: transaction.put(account, "name", b"1", 1.0)).exception(PATIENCE)
        assert (None if saved is None else str(saved)) == sentence


def test_a_check_writes_nothing(tmp_path: Path) -> None:
    """However often it is asked for, nothing is written to the disk, and nothing synced."""
    with watched(tmp_path) as disk, SQLiteStorage(tmp_path / "store.db") as storage:
        storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result(PATIENCE)
        before = list(disk.log)
        for _ in range(3):
            assert storage.healthy()
        assert disk.log == before


PROBLEM = """
import sys
from pathlib import Path
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage

with SQLiteStorage(Path(sys.argv[1])) as storage:
    print(storage.problem())
"""


@pytest.mark.parametrize("read_only", ["", "-wal"], ids=["file", "log"])
def test_a_read_only_store(tmp_path: Path, read_only: str) -> None:
    """A store whose file or log is read-only can be opened to read, and isn't healthy."""
    path = crashed(tmp_path / "store.db")
    path.with_name(path.name + read_only).chmod(0o444)
    run = subprocess.run(
        [sys.executable, "-c", PROBLEM, path], preexec_fn=heed_permissions, capture_output=True, text=True, check=True
    )
    assert run.stdout == "The store can't be written to; look at the permissions of its file and folder.\n"
