"""Upkeep on a full disk: cleanup after deleted files and accounts, compaction and migration."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.maintenance import check_file
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from tests.crash.small_disk import small_disk
from tests.media_fakes import Uploader, comes_to, rows

pytestmark = pytest.mark.sqlite("the store is a file")

SIZE: Final = 8 * 2**20
#: A store of a service, made by an earlier version.
SAMPLE: Final = Path(__file__).parent / "samples" / "e5084d3.db.gz"


def take_the_rest(disk: Path, *, but: int = 0) -> Path:
    """Fill a disk with another file, up to its last bytes, and return the file."""
    ballast = disk / "other"
    with ballast.open("wb", buffering=0) as file:
        piece = bytes(4096)
        try:
            while True:
                file.write(piece)
        except OSError:
            file.truncate(max(0, file.tell() - but))
    return ballast


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command."""
    command = [sys.executable, "-m", "cloudstore_mapping", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("way", ["files", "account"])
def test_cleanup(tmp_path: Path, way: str) -> None:
    """What refused uploads and deleted files and accounts leave on a full disk is removed, and used again."""
    with small_disk(tmp_path / "disk", SIZE) as disk:
        with Service(SQLiteStorage(disk / "store.db")) as service:
            uploader = Uploader(service)
            found: list[Any] = []

            def fill() -> None:
                while True:
                    found.append(uploader.upload(bytes(300_000), f"{len(found)}.png"))

            with pytest.raises(UnavailableError):
                fill()
            assert len(found) > 10
            assert comes_to(uploader.storage, len(found), len(found), rows(uploader.storage).chunks)
            if way == "files":
                for facts in found:
                    service.media.delete(uploader.account, facts["id"])
            else:
                service.accounts.delete("owner")
            assert comes_to(uploader.storage, 0, 0, 0)
            again = Uploader(service) if way == "account" else uploader
            for number in range(len(found)):
                again.upload(bytes(300_000), f"{number}.png")
        assert check_file(disk / "store.db").faults == []


@pytest.mark.parametrize(
    "free", [81_920, *(pytest.param(free, marks=pytest.mark.slow) for free in range(0, 200_000, 16_384))]
)
def test_migration(tmp_path: Path, free: int) -> None:
    """An older store is migrated on a nearly full disk, or left as it was with a sentence."""
    with small_disk(tmp_path / "disk", SIZE) as disk:
        place = disk / "store.db"
        place.write_bytes(gzip.decompress(SAMPLE.read_bytes()))
        before = hashlib.sha256(place.read_bytes()).digest()
        ballast = take_the_rest(disk, but=free)
        done = run("migrate", "--store", str(place))
        if done.returncode:
            assert (done.returncode, done.stderr.count("\n")) == (3, 1)
            assert "disk is full" in done.stderr
            assert hashlib.sha256(place.read_bytes()).digest() == before
            ballast.unlink()
            assert run("migrate", "--store", str(place)).returncode == 0
        assert check_file(place).faults == []


def test_compaction(tmp_path: Path) -> None:
    """A compaction without room is refused with a sentence and changes nothing; with room it is done."""
    with small_disk(tmp_path / "disk", SIZE) as disk:
        place = disk / "store.db"
        with cm.open(place) as store:
            for number in range(40):
                store[str(number)] = "x" * 60_000
            for number in range(20):
                del store[str(number)]
        ballast = take_the_rest(disk, but=65_536)
        refused = run("compact", "--store", str(place))
        assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)
        assert "MiB of free space" in refused.stderr
        assert check_file(place).faults == []
        ballast.unlink()
        assert run("compact", "--store", str(place)).returncode == 0
        with cm.open(place) as store:
            assert dict(store) == {str(number): "x" * 60_000 for number in range(20, 40)}
        assert check_file(place).faults == []
