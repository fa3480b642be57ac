"""A shelf is read where nothing can be written: a read-only file, a read-only folder, through a link."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from tests.permissions import crashed, heed_permissions

ROOT = Path(__file__).parent.parent.parent
READ = """
import sys
import cloudstore_mapping as cm
from cloudstore_mapping import shelve
with shelve.open(sys.argv[1], "r") as db:
    print(sorted(db.items()), len(db), "a" in db)
    try:
        db["a"] = 1
    except OSError as error:
        print(error)
with cm.open(sys.argv[1], readonly=True) as store:
    print(sorted(store))
"""
SEEN = """[('a', {1}), ('b', [2])] 2 True
The shelf is open for reading only; open it with the flag 'w' or 'c'.
['a', 'b']
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, to give up root's rights on files")


def read(path: Path) -> str:
    """Read a shelf in a process that permissions hold for."""
    ran = subprocess.run(
        [sys.executable, "-c", READ, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=heed_permissions,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a shelf in a folder of its own."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with shelve.open(folder / "shelf") as db:
        db.update({"a": {1}, "b": [2]})
    return folder / "shelf"


@pytest.mark.parametrize("what", ["file", "folder", "both"])
def test_a_place_that_is_read_only(what: str, path: Path) -> None:
    """The flag `r` reads a file that can't be written, or in a folder that can't; nothing is made beside it."""
    if what != "folder":
        path.chmod(0o444)
    if what != "file":
        path.parent.chmod(0o555)
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    try:
        assert read(path) == SEEN
        assert {file: file.read_bytes() for file in path.parent.iterdir()} == before
    finally:
        path.parent.chmod(0o755)


def test_a_shelf_that_is_open_elsewhere(path: Path) -> None:
    """In a read-only folder, saves of a program that has the shelf open are read, also those in its log alone."""
    with shelve.open(path) as db:
        del db["b"]
        db["b"] = [2]
        assert path.with_name("shelf-wal").stat().st_size > 0
        path.parent.chmod(0o555)
        try:
            assert read(path) == SEEN
        finally:
            path.parent.chmod(0o755)


def test_a_foreign_file_in_a_read_only_folder(tmp_path: Path) -> None:
    """A file of another program stays an error, and so does a store of a service."""
    (tmp_path / "text").write_text("no store")
    with pytest.raises(cm.UnsupportedError):
        cm.open(tmp_path / "text", readonly=True)
    with pytest.raises(cm.UnsupportedError):
        cm.open(crashed(tmp_path / "service.db"), readonly=True)


def test_reading_makes_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag `r` makes no secret file."""
    monkeypatch.delenv("CLOUDSTORE_SECRET", raising=False)
    with cm.open(tmp_path / "shelf") as store:
        store["a"] = 1
    with shelve.open(tmp_path / "shelf", "r") as db:
        assert db["a"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["shelf"]


def test_a_link_to_a_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret belongs to the file, by whichever link it is opened; one beside a link, as before, is read too."""
    monkeypatch.delenv("CLOUDSTORE_SECRET", raising=False)
    for folder in ("data", "links"):
        (tmp_path / folder).mkdir()
    real, link = tmp_path / "data" / "real", tmp_path / "links" / "link"
    link.symlink_to(real)
    with shelve.open(link) as db:
        db["a"] = {1}
    assert {file.name for file in tmp_path.glob("*/*.secret")} == {"real.secret"}
    with shelve.open(real) as db:
        assert db["a"] == {1}
    real.with_name("real.secret").rename(link.with_name("link.secret"))
    with shelve.open(link) as db:
        assert db["a"] == {1}
    assert not real.with_name("real.secret").exists()


@pytest.mark.parametrize("flag", ["r", "w"])
def test_an_empty_file_is_no_shelf(flag: str, tmp_path: Path) -> None:
    """Only the flags that make a shelf write into an empty file, and a store opened for reading is not made in it."""
    path = tmp_path / "empty"
    path.touch()
    with pytest.raises(FileNotFoundError, match=r"There is no shelf .*; the flag 'c' makes one"):
        shelve.open(path, flag)
    with pytest.raises(FileNotFoundError, match=r"There is no store .*; look at its name"):
        cm.open(path, readonly=True)
    assert (path.read_bytes(), [*tmp_path.iterdir()]) == (b"", [path])
    with shelve.open(path, "c") as db:
        db["a"] = 1
