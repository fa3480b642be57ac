"""Which files are opened as files, and which by SQLite alone."""

from __future__ import annotations

import dbm.dumb
import json
import os
import socket
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.storefiles import APPLICATION_ID, application_id, is_store, open_file, read_file
from cloudstore_mapping.transfer import export_store, import_store


@pytest.fixture
def store_file(tmp_path: Path) -> Path:
    """Return a store with a key, which is closed."""
    path = tmp_path / "s.db"
    with cm.open(path) as store:
        store["k"] = 1
    return path


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Return another program's SQLite file."""
    path = tmp_path / "foreign.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")
    return path


@pytest.mark.parametrize("content", [b"", b"1", b"x" * 50, b"SQLite format 3", b"{}" * 5000, bytes(4096)])
def test_other_files_are_opened(content: bytes, tmp_path: Path) -> None:
    """What is no SQLite file is opened, however short it is."""
    path = tmp_path / "file"
    path.write_bytes(content)
    assert application_id(path) is None
    assert read_file(path) == content
    with open_file(path, "ab") as file:
        file.write(b"more")
    assert read_file(str(path)) == content + b"more"


def test_what_is_no_file(tmp_path: Path) -> None:
    """Python says itself what it can't open."""
    (tmp_path / "loop").symlink_to("loop")
    for name, error in {
        "absent": FileNotFoundError,
        ".": IsADirectoryError,
        "loop": OSError,
        "a\0b": ValueError,
    }.items():
        with pytest.raises(error):
            read_file(tmp_path / name)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A pipe, socket or device is refused unopened: it could wait, or bring bytes, without end."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(tmp_path / "socket"))
        for path in (tmp_path / "pipe", tmp_path / "socket", Path("/dev/zero")):
            with pytest.raises(UnsupportedError, match="is a pipe, device or socket and was not read"):
                open_file(path)


def test_a_pipe_is_read_where_it_may_be(tmp_path: Path) -> None:
    """A shell's `<(command)` is read to its end where the caller admits a pipe; a device isn't."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"{}",))
    writer.start()
    assert read_file(pipe, pipe=True) == b"{}"
    writer.join()
    with pytest.raises(UnsupportedError, match="was not read"):
        read_file("/dev/zero", pipe=True)


def test_a_store_is_known_by_any_name(store_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store is refused by its path, a relative one, a link and another name; so is what lies beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("s.db")
    os.link(store_file, tmp_path / "second")
    (tmp_path / "to-wal").symlink_to("s.db-wal")
    for name in (store_file, "s.db", "./s.db", "link", "second", "s.db-wal", "s.db-shm", "s.db-journal", "to-wal"):
        with pytest.raises(UnsupportedError, match=r"belongs to a store, .*; make a copy with `cloudstore backup`"):
            read_file(name)
        with pytest.raises(UnsupportedError, match="belongs to a store and was left as it is; choose another name"):
            open_file(name, "wb")
    assert is_store(store_file)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "s.db", "second", "to-wal"]


def test_a_damaged_store_is_one(store_file: Path) -> None:
    """A store that is cut off, or just being written, is refused as well."""
    content = store_file.read_bytes()
    for size in (512, 4096, len(content) - 1):
        store_file.write_bytes(content[:size])
        assert application_id(store_file) == APPLICATION_ID


def test_another_program_s_database_is_a_file(foreign: Path, tmp_path: Path) -> None:
    """Another program's SQLite file may be uploaded, and replaced by a download."""
    with cm.open(tmp_path / "s.db") as store:
        media = store.upload(foreign)
        assert store.download(media) == foreign.read_bytes()
        other = store.upload(b"12345", "a.bin")
        store.download(other, foreign)
    assert foreign.read_bytes() == b"12345"


def test_a_dumb_dbm_beside_a_store(tmp_path: Path) -> None:
    """A dbm of the kind "dumb" is imported by its name, although a store lies beside it under that name and ``.db``."""
    with dbm.dumb.open(str(tmp_path / "todo"), "c") as old:
        old["a"] = json.dumps({"x": 1})
    with cm.open(tmp_path / "todo.db") as store:
        import_store(store, tmp_path / "todo")
        assert dict(store) == {"a": {"x": 1}}


@pytest.mark.parametrize("kind", ["dbm", "shelve"])
def test_an_export_to_dbm_leaves_a_store(kind: str, store_file: Path, tmp_path: Path) -> None:
    """An export whose files would have the name of a store is refused."""
    before = store_file.read_bytes()
    with cm.open("memory:") as store, pytest.raises(UnsupportedError, match=r"s\.db belongs to a store"):
        export_store(store, tmp_path / "s", format=kind, overwrite=True)  # type: ignore[arg-type]  # a text of these
    assert store_file.read_bytes() == before
