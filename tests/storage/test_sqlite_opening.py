"""Which files the SQLite engine opens, how it marks its own, and what it leaves alone."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from cloudstore_mapping import storefiles
from cloudstore_mapping.errors import UnavailableError, UnsupportedError
from cloudstore_mapping.service.storage.maintenance import restore_file
from cloudstore_mapping.service.storage.migrations import newest
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.storage.sqlite import SQLiteSession, SQLiteStorage
from tests.service_fakes import PATIENCE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a file may be made."""
    return tmp_path / "store.db"


@pytest.fixture
def ours(path: Path) -> Path:
    """Return a file of ours with two hundred files in it."""
    with SQLiteStorage(path) as storage:
        account = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result().id
        for number in range(200):
            storage.submit(lambda transaction, name=str(number): transaction.put(account, name, b"1" * 200, 1.0))  # type: ignore[misc]  # bound early
    return path


def modes(folder: Path) -> dict[str, int]:
    """Return the permissions of the files in a folder, by their names."""
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


@pytest.fixture(params=[0, 0o022, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set the process's umask."""
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
@pytest.mark.parametrize("proc", [True, False])
@pytest.mark.usefixtures("umask")
def test_a_new_store_is_its_owner_s(path: Path, proc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """New stores with their logs and indexes, and backups, have mode 0600, whatever the umask."""
    monkeypatch.setattr(storefiles, "OPEN_FILES", Path("/proc/self/fd" if proc else "/nowhere"))
    with SQLiteStorage(path) as storage:
        storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result()
        assert modes(path.parent) == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
        storage.back_up(path.with_name("copy.db"), lambda *_: None)
    restore_file(path.with_name("copy.db"), path.with_name("again.db"), lambda *_: None)
    assert modes(path.parent) == {"store.db": 0o600, "copy.db": 0o600, "again.db": 0o600}


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
@pytest.mark.parametrize("is_empty", [True, False])
def test_an_existing_store_keeps_its_mode(path: Path, is_empty: bool) -> None:
    """A file that exists keeps its mode, which its log and its index get as well."""
    if is_empty:
        path.touch()
    else:
        SQLiteStorage(path).close()
    path.chmod(0o660)
    with SQLiteStorage(path) as storage:
        storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result()
        assert set(modes(path.parent).values()) == {0o660}


def pragma(transaction: Transaction, name: str) -> Any:
    """Return what SQLite says of a connection."""
    assert isinstance(transaction, SQLiteSession)
    return transaction.connection.execute(f"PRAGMA {name}").fetchone()[0]


def refused(path: Path, match: str, error: type[Exception] = UnsupportedError) -> None:
    """Check that the path is refused with a sentence that begins like this, and all there is left as it was."""
    before = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    with pytest.raises(error, match=rf"^{re.escape(match)}.*; .*\.$"):
        SQLiteStorage(path)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()} == before


def test_a_file_of_ours_says_so(ours: Path) -> None:
    """The file carries "CLSD" as its application id, the number of its schema, and is in WAL mode."""
    with closing(sqlite3.connect(ours)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (0x434C5344,)
        assert connection.execute("PRAGMA user_version").fetchone() == (newest(),)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_closing_leaves_one_file(ours: Path) -> None:
    """A closed store is one file, with nothing beside it."""
    assert [file.name for file in ours.parent.iterdir()] == [ours.name]


def test_every_connection_syncs(path: Path) -> None:
    """The writer's connection and each reader's is at ``synchronous=FULL`` and holds to foreign keys."""
    with SQLiteStorage(path) as storage, ExitStack() as readers:
        sessions = [readers.enter_context(storage.read()) for _ in range(3)]
        assert len({id(session) for session in sessions}) == 3
        for name, value in {"synchronous": 2, "foreign_keys": 1}.items():
            assert [pragma(session, name) for session in sessions] == [value] * 3
            assert storage.submit(lambda transaction, name=name: pragma(transaction, name)).result() == value  # type: ignore[misc]  # bound early


def test_what_was_stored_is_there_again(ours: Path) -> None:
    """A file that is opened again holds what it held."""
    with SQLiteStorage(ours) as storage, storage.read() as transaction:
        account = transaction.account_named("owner")
        assert account is not None
        assert len(transaction.names(account.id)) == 200


@pytest.mark.parametrize("name", ["a b.db", "50%41?mode=ro#x.db", "file:x.db", ":memory:", "é😀.db"])
def test_any_path_is_taken_literally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A path means the file of this name, from the folder in which it was opened on, whatever SQLite reads in it."""
    monkeypatch.chdir(tmp_path)
    with SQLiteStorage(name) as storage:
        monkeypatch.chdir("/")
        with storage.read() as transaction:
            assert not transaction.has_accounts()
        assert (tmp_path / name).read_bytes().startswith(b"SQLite format 3\0")


def test_an_empty_file_becomes_ours(path: Path) -> None:
    """A file without a byte, as `tempfile` makes it, is taken for a new one."""
    path.touch()
    with SQLiteStorage(path) as storage:
        assert storage.healthy()


@pytest.mark.parametrize("content", [b"Dear diary", b"\0" * 4096, b"{}", b"SQLite format 3", "Grüße\n".encode() * 999])
def test_another_kind_of_file_is_refused(path: Path, content: bytes) -> None:
    """A file that isn't SQLite's is left byte for byte as it was."""
    path.write_bytes(content)
    refused(path, f"{path} is no CloudStore file and was left as it is")


@pytest.mark.parametrize(("pages", "is_taken"), [(0, True), (1, False)])
def test_a_file_that_a_crash_left_half_made(path: Path, pages: int, is_taken: bool) -> None:
    """What was written of a file that was empty is undone, as its journal says; no other journal helps."""
    path.write_bytes(bytes(8192))
    header = bytes.fromhex("d9d505f920a163d7") + b"".join(
        number.to_bytes(4, "big") for number in (0, 7, pages, 512, 4096)
    )
    Path(f"{path}-journal").write_bytes(header.ljust(512, b"\0"))
    if is_taken:
        with SQLiteStorage(path) as storage:
            assert storage.healthy()
    else:
        refused(path, f"{path} is no CloudStore file and was left as it is")


@pytest.mark.parametrize("statement", ["CREATE TABLE t (x)", "PRAGMA application_id = 7", "PRAGMA user_version = 1"])
def test_another_program_s_database_is_refused(path: Path, statement: str) -> None:
    """An SQLite file that isn't ours is left byte for byte as it was."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
    refused(path, f"{path} is another program's SQLite file and was left as it is")


@pytest.mark.parametrize("size", [1, 15, 100, 511])
def test_a_file_that_is_too_short(path: Path, size: int) -> None:
    """A file that is too short for any database is no CloudStore file, and no other program's SQLite file either."""
    path.write_bytes(b"x" * size)
    refused(path, f"{path} is no CloudStore file and was left as it is")


def test_another_program_s_database_is_not_even_recovered(tmp_path: Path, path: Path) -> None:
    """Commits that another program left in its write-ahead log stay there."""
    original = tmp_path / "original"
    original.mkdir()
    with closing(sqlite3.connect(original / path.name)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
        for file in original.iterdir():
            shutil.copy(file, tmp_path)
    assert (tmp_path / f"{path.name}-wal").stat().st_size > 0
    refused(path, f"{path} is another program's SQLite file")


def test_a_newer_version_s_file_is_refused(ours: Path) -> None:
    """A file with a schema that we don't know yet is left as it was."""
    with closing(sqlite3.connect(ours)) as connection:
        connection.execute("PRAGMA user_version = 1000")
    refused(ours, f"{ours} was written by a newer version of cloudstore-mapping")


@pytest.mark.parametrize("size", [100, 1000, 4096, -4096, -1])
def test_a_truncated_file_is_refused(ours: Path, size: int) -> None:
    """A file of ours whose end is missing is left as it was."""
    content = ours.read_bytes()
    ours.write_bytes(content[:size])
    refused(ours, f"{ours} is damaged and was left as it is")


def test_a_schema_that_is_no_text_is_refused(ours: Path) -> None:
    """A file whose tables are described in what isn't UTF-8, so that SQLite's own error isn't either, is left alone."""
    ours.write_bytes(ours.read_bytes().replace(b"mimetype TEXT NOT NULL", b"mimetype TEXT NOT \xceULL", 1))
    refused(ours, f"{ours} is damaged and was left as it is")


def test_a_damaged_schema_is_refused(ours: Path) -> None:
    """A file of ours whose first page was overwritten behind its header is left as it was."""
    content = bytearray(ours.read_bytes())
    content[100:4096] = b"\xff" * 3996
    ours.write_bytes(content)
    refused(ours, f"{ours} is damaged")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    """A path that is a folder is `IsADirectoryError`."""
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", f"{tmp_path}/folder is a folder", IsADirectoryError)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    """A path in a folder that is not there is `FileNotFoundError`, and the folder isn't made."""
    with pytest.raises(FileNotFoundError, match=r"^There is no folder .*; make it first\.$"):
        SQLiteStorage(tmp_path / "missing" / "store.db")
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_refused(path: Path) -> None:
    """What is no ordinary file is refused without waiting for anybody to write to it."""
    os.mkfifo(path)
    refused(path, f"{path} is no ordinary file")


def test_a_file_that_can_t_be_made_is_refused(path: Path) -> None:
    """Where the system lets no file be made it is `PermissionError`."""
    path.symlink_to("missing/elsewhere.db")
    refused(path, f"{path} can't be opened", PermissionError)


def test_a_file_that_was_taken_away_is_not_made_anew(ours: Path) -> None:
    """A reader who finds the file gone says so and leaves no empty one in its place."""
    with SQLiteStorage(ours) as storage:
        ours.rename(ours.with_suffix(".moved"))
        with pytest.raises(UnavailableError, match="can't be opened any more"), storage.read():
            pass
        assert not ours.exists()
        ours.with_suffix(".moved").rename(ours)


OPEN_AND_ADD = """
import sys
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
print(flush=True)
sys.stdin.read()
with SQLiteStorage(sys.argv[1]) as storage:
    storage.submit(lambda transaction: transaction.add_account(sys.argv[2], 1.0)).result()
"""


@pytest.mark.slow
def test_many_processes_make_one_new_file_together(path: Path) -> None:
    """Eight processes that open one absent file at the same moment all get it, and lose nothing of each other's."""
    command = [sys.executable, "-c", OPEN_AND_ADD, os.fspath(path)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            for number in range(8)
        ]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        assert [process.wait(PATIENCE) for process in processes] == [0] * 8
    with SQLiteStorage(path) as storage, storage.read() as transaction:
        assert all(transaction.account_named(str(number)) for number in range(8))


@pytest.mark.parametrize("end", ["-wal", "-shm", "-journal", "-WAL"])
def test_a_name_of_a_log_is_refused(tmp_path: Path, end: str) -> None:
    """No store is made under a name that SQLite gives another store's log; one that is there already still opens."""
    path = tmp_path / f"store.db{end}"
    with pytest.raises(UnsupportedError, match=r"is no name for a store: .*; choose another name\.$"):
        SQLiteStorage(path)
    assert list(tmp_path.iterdir()) == []
    SQLiteStorage(tmp_path / "made.db").close()
    (tmp_path / "made.db").rename(path)
    SQLiteStorage(path).close()
