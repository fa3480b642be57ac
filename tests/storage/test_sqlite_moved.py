"""A store's file that is moved, deleted or replaced while it is open: refused, never lost, never mixed with another."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cloudstore_mapping.errors import OutcomeUnknownError, UnavailableError
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from tests.service_fakes import PATIENCE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the store is, in a folder of its own."""
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder" / "store.db"


@pytest.fixture
def storage(path: Path, no_threads_left: None) -> Iterator[SQLiteStorage]:
    """Return an open storage with an account and the file "before", whose commits are in the log only."""
    SQLiteStorage(path).close()
    with SQLiteStorage(path) as storage:
        storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result(PATIENCE)
        put(storage, "before")
        yield storage


def put(storage: SQLiteStorage, name: str) -> None:
    """Save a value under a name."""
    storage.submit(lambda transaction: transaction.put(1, name, b"1", 1.0)).result(PATIENCE)


def names(storage: SQLiteStorage) -> list[str]:
    """Return the names of all values."""
    with storage.read() as transaction:
        return transaction.names(1)


def names_in(path: Path) -> list[str]:
    """Return the names of all values in the store at a path, opened anew and without damage."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [name for (name,) in connection.execute("SELECT name FROM files ORDER BY name")]


def another(path: Path) -> Path:
    """Return another store beside `path`, with the account "other" and the file "other"."""
    file = path.parent.parent / "other.db"
    with SQLiteStorage(file) as storage:
        storage.submit(lambda transaction: transaction.add_account("other", 1.0)).result(PATIENCE)
        put(storage, "other")
    return file


def of(path: Path, ending: str) -> Path:
    """Return the store's file with an ending, such as its log."""
    return path.with_name(path.name + ending)


def move_folder(path: Path) -> None:
    """Rename the folder that the store is in."""
    path.parent.rename(path.parent.with_name("renamed"))


def replace_folder(path: Path) -> None:
    """Put another folder with another store in the place of the store's own."""
    file = another(path)
    move_folder(path)
    path.parent.mkdir()
    file.rename(path)


def replace_log(path: Path) -> None:
    """Put a copy of the log in its place."""
    shutil.copy(of(path, "-wal"), of(path, "-copy"))
    of(path, "-copy").replace(of(path, "-wal"))


def replace_by_a_copy(path: Path) -> None:
    """Put a copy of the store's file in its place, as a move to another disk and back does."""
    shutil.copy(path, of(path, "-copy"))
    of(path, "-copy").replace(path)


#: What happens to a store that is open, and which of its files is missed.
LOSSES: dict[str, tuple[Callable[[Path], object], str]] = {
    "renamed": (lambda path: path.rename(path.with_name("moved.db")), "file"),
    "deleted": (lambda path: path.unlink(), "file"),
    "replaced": (lambda path: another(path).replace(path), "file"),
    "replaced by a copy": (replace_by_a_copy, "file"),
    "folder renamed": (move_folder, "file"),
    "folder replaced": (replace_folder, "file"),
    "log deleted": (lambda path: of(path, "-wal").unlink(), "-wal file"),
    "log replaced": (replace_log, "-wal file"),
    "index deleted": (lambda path: of(path, "-shm").unlink(), "-shm file"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_writes_are_refused(path: Path, storage: SQLiteStorage, loss: str) -> None:
    """The next write is refused with a sentence that says which file is gone and what to do, and it isn't healthy."""
    lose, lost = LOSSES[loss]
    assert storage.healthy()
    lose(path)
    for _ in range(2):
        with pytest.raises(UnavailableError) as caught:
            put(storage, "late")
        assert str(caught.value) == (
            f"The store's {lost} was moved, deleted or replaced while the store was open; put it back, or start again."
        )
    assert not storage.healthy()
    assert storage.problem() == str(caught.value)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_write_whose_commit_was_done(path: Path, storage: SQLiteStorage, loss: str) -> None:
    """Where a file goes while a group is written, its commit is of unknown outcome, and nobody is told success."""
    lose, lost = LOSSES[loss]

    def work(transaction: Transaction) -> None:
        transaction.put(1, "late", b"1", 1.0)
        lose(path)

    with pytest.raises(OutcomeUnknownError, match=rf"^The store's {lost} was moved, .* it may be lost; ") as caught:
        storage.submit(work).result(PATIENCE)
    assert caught.value.error == "OutcomeUnknown"


@pytest.mark.parametrize("loss", LOSSES)
def test_reads_never_see_another_file(path: Path, storage: SQLiteStorage, loss: str) -> None:
    """Reads go on from the open file; one that needs a new connection is refused, and makes no file anew."""
    lose, _ = LOSSES[loss]
    assert names(storage) == ["before"]
    lose(path)
    files = sorted(path.parent.parent.rglob("*"))
    with storage.read() as transaction:
        assert transaction.names(1) == ["before"]
        with pytest.raises(UnavailableError), storage.read():
            pass
    assert names(storage) == ["before"]
    assert sorted(path.parent.parent.rglob("*")) == files


@pytest.mark.parametrize("loss", LOSSES)
def test_no_backup_of_another_file(path: Path, storage: SQLiteStorage, tmp_path: Path, loss: str) -> None:
    """A backup of a store whose file is gone is refused, and none is made."""
    lose, _ = LOSSES[loss]
    lose(path)
    with pytest.raises(UnavailableError):
        storage.back_up(tmp_path / "backup", lambda *_: None)
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize(
    ("take_away", "put_back"),
    [
        (lambda path: path.rename(of(path, "-away")), lambda path: of(path, "-away").rename(path)),
        (move_folder, lambda path: path.parent.with_name("renamed").rename(path.parent)),
        (
            lambda path: of(path, "-wal").rename(of(path, "-away")),
            lambda path: of(path, "-away").rename(of(path, "-wal")),
        ),
    ],
    ids=["file", "folder", "log"],
)
def test_a_file_that_is_put_back(
    path: Path, storage: SQLiteStorage, take_away: Callable[[Path], object], put_back: Callable[[Path], object]
) -> None:
    """Once the same file is back, writes are done again, without opening anew."""
    take_away(path)
    with pytest.raises(UnavailableError):
        put(storage, "refused")
    put_back(path)
    put(storage, "after")
    assert storage.healthy()
    storage.close()
    assert names_in(path) == ["after", "before"]


def test_a_link_that_leads_elsewhere(path: Path, storage: SQLiteStorage) -> None:
    """A store that was opened by a link is gone once the link leads to another file."""
    link = path.parent.parent / "link.db"
    link.symlink_to(path)
    with SQLiteStorage(link) as linked:
        put(linked, "by link")
        other = another(path)
        link.unlink()
        link.symlink_to(other)
        with pytest.raises(UnavailableError):
            put(linked, "late")
        put(storage, "by path")
    storage.close()
    assert names_in(path) == ["before", "by link", "by path"]
    assert names_in(other) == ["other"]


def test_a_file_that_was_moved_holds_all(path: Path, storage: SQLiteStorage) -> None:
    """What was answered before the file was moved is in it after the close, and no log is left where it was."""
    moved = path.with_name("moved.db")
    names(storage)  # so that there is a reader's connection
    path.rename(moved)
    storage.close()
    assert list(path.parent.iterdir()) == [moved]
    assert names_in(moved) == ["before"]


def test_a_file_that_was_moved_for_another(path: Path, storage: SQLiteStorage) -> None:
    """Where another store took the place of a moved one, the close gives each what is its own."""
    moved = path.with_name("moved.db")
    path.rename(moved)
    another(path).rename(path)
    storage.close()
    assert names_in(moved) == ["before"]
    assert names_in(path) == ["other"]


@pytest.mark.parametrize("copied", [False, True], ids=["by another", "by a copy"])
def test_a_file_that_was_replaced(
    path: Path, storage: SQLiteStorage, copied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The log of a file that was replaced is never replayed over the one in its place: it is kept beside, and said."""
    (replace_by_a_copy if copied else lambda path: another(path).replace(path))(path)
    storage.close()
    [kept] = path.parent.glob("*.lost")
    assert str(kept) in caplog.text
    assert names_in(path) == ([] if copied else ["other"])
    if copied:  # it can be put together by hand
        kept.rename(of(path, "-wal"))
        assert names_in(path) == ["before"]


def test_a_deleted_file_leaves_its_log(path: Path, storage: SQLiteStorage) -> None:
    """Of a file that is gone the log stays as it was, for it holds the last that was answered."""
    path.unlink()
    storage.close()
    assert of(path, "-wal").stat().st_size > 0


def test_another_store_s_log_is_left_alone(path: Path, storage: SQLiteStorage) -> None:
    """The close takes no log away from another store that is open in the place of the moved one."""
    for ending in ("", "-wal", "-shm"):
        of(path, ending).rename(path.parent.parent / f"moved.db{ending}")
    another(path).rename(path)
    with SQLiteStorage(path) as other:
        put(other, "late")
        storage.close()
        put(other, "later")
    assert names_in(path) == ["late", "later", "other"]
    assert names_in(path.parent.parent / "moved.db") == ["before"]


HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM files").fetchone()
print(flush=True)
sys.stdin.read()
"""


def test_a_moved_file_that_another_process_has_open(path: Path, storage: SQLiteStorage) -> None:
    """Nothing is carried over into a file that another process has open under its new name."""
    moved = path.with_name("moved.db")
    path.rename(moved)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, os.fspath(moved)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        before = moved.read_bytes()
        storage.close()
        assert moved.read_bytes() == before
        assert of(path, "-wal").stat().st_size > 0
        process.communicate()
    of(path, "-wal").rename(of(moved, "-wal"))
    assert names_in(moved) == ["before"]


@pytest.mark.parametrize("loss", [loss for loss, (_, lost) in LOSSES.items() if lost != "file"])
def test_a_lost_log_takes_nothing_along(path: Path, storage: SQLiteStorage, loss: str) -> None:
    """What was answered before the log went is in the file after the close."""
    lose, _ = LOSSES[loss]
    lose(path)
    with pytest.raises(UnavailableError):
        put(storage, "late")
    storage.close()
    assert names_in(path) == ["before"]


@pytest.mark.parametrize("size", [1, 300])
def test_a_file_that_was_overwritten(path: Path, storage: SQLiteStorage, size: int, tmp_path: Path) -> None:
    """A backup copied over the open file (`cp`) is noticed by the next read and write, and left as it is at the end."""
    backup = tmp_path / "backup.db"
    storage.back_up(backup, lambda done, total: None)
    for number in range(size):
        put(storage, f"later {number}")
    assert len(names(storage)) == size + 1  # over a connection that the next read has again
    shutil.copyfile(backup, path)
    with pytest.raises(UnavailableError, match="The store's file was moved, deleted or replaced"):
        names(storage)
    with pytest.raises(UnavailableError, match="The store's file was moved, deleted or replaced"):
        put(storage, "refused")
    assert storage.problem() is not None
    log = of(path, "-wal").read_bytes()
    storage.close()
    assert path.read_bytes() == backup.read_bytes()
    with SQLiteStorage(path) as opened:
        assert names(opened) == ["before"]
    (kept,) = path.parent.glob("*.lost")
    assert kept.read_bytes() == log


def test_a_file_that_others_write_to_is_not_overwritten(path: Path, storage: SQLiteStorage) -> None:
    """A checkpoint of another process changes the file, and nothing is refused."""
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0
        put(storage, "after")
        assert names(storage) == ["after", "before"]
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        assert names(storage) == ["after", "before"]
        put(storage, "again")
    assert storage.problem() is None
