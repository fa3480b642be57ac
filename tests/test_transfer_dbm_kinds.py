"""Each kind of dbm holds an export exactly, but for the keys that it can't hold, which are told."""

from __future__ import annotations

import json
import pickle
import re
import sqlite3
from contextlib import closing
from dbm import dumb
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from cloudstore_mapping.cli import app
from cloudstore_mapping.errors import BadValueError, UnsupportedError
from cloudstore_mapping.transfer import Format, export_store, import_store
from cloudstore_mapping.transfer.dbmfiles import read_dbm
from tests.dbm_kinds import KINDS, force, force_faulty, names_of
from tests.support.command_line import CliRunner

VALUES: dict[str, Any] = {
    "": [None],
    "\0": "a key of a zero byte",
    "é😀": {"deep": [[1.5, True]]},
    "a key " * 4_000: "long",
    "large": "x" * 2_000_000,
    "empty": "",
    "text that is JSON": "1",
}
#: What each kind can't hold.
LACKS = {"dbm.ndbm": {""}}


@pytest.mark.parametrize("format_", ["dbm", "shelve"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keys", [list(VALUES), ["", "large"], ["", "a"], [""]], ids=len)
def test_what_a_kind_holds(
    keys: list[str], kind: str, format_: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every key comes back with its value, or is an error by its name, and then all others come back."""
    force(kind, monkeypatch)
    values = {key: VALUES.get(key) for key in keys}
    expected = {key: value for key, value in values.items() if key not in LACKS.get(kind, ())}
    with cm.open("memory:") as store, cm.open("memory:") as other:
        store.update(values)
        if expected == values:
            assert export_store(store, tmp_path / "out", format=format_).keys == len(values)
        else:
            with pytest.raises(
                cm.BulkError, match=rf"A file of {kind} can't hold the key ''.*export it as JSON"
            ) as caught:
                export_store(store, tmp_path / "out", format=format_)
            assert set(caught.value.failed) == LACKS[kind]
            assert sorted(caught.value.succeeded) == sorted(expected)
        import_store(other, tmp_path / "out", format=format_, trust=True)
        assert other.copy() == expected


@pytest.mark.parametrize("format_", ["dbm", "shelve"])
def test_what_a_kind_loses_without_a_word(format_: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is read back: a key that is lost, cut off or refused is an error, and not in the file."""
    force_faulty(monkeypatch)
    with cm.open("memory:") as store, cm.open("memory:") as other:
        store.update({"a": 1, "lost": 2, "cut": "a text", "refused": 4, "z": 5})
        with pytest.raises(cm.BulkError, match="3 could not be exported, all others are") as caught:
            export_store(store, tmp_path / "out", format=format_)
        assert set(caught.value.failed) == {"lost", "cut", "refused"}
        assert "the item is too large" in str(caught.value.failed["refused"])
        import_store(other, tmp_path / "out", format=format_, trust=True)
        assert other.copy() == {"a": 1, "z": 5}
    assert names_of(tmp_path) == ["out.bak", "out.dat", "out.dir", "out.exported"]


def test_a_full_disk_is_no_fault_of_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dbm that finds the disk full ends the export, and leaves the earlier one as it is."""
    force("dbm.dumb", monkeypatch)
    with cm.open("memory:") as store, cm.open("memory:") as other:
        store["a"] = 1
        export_store(store, tmp_path / "out", format="dbm")
        store["a"] = 2
        force_faulty(monkeypatch, full=True)
        with pytest.raises(OSError, match="No space left"):
            export_store(store, tmp_path / "out", format="dbm", overwrite=True)
        import_store(other, tmp_path / "out")
        assert other.copy() == {"a": 1}
        force("dbm.dumb", monkeypatch)
        assert export_store(store, tmp_path / "out", format="dbm", overwrite=True).keys == 1


class Gone:
    """A class that is there no longer when its pickle is loaded."""


def test_a_pickle_that_can_t_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shelf's value whose class can't be found is an error of its key, and the others are exported."""
    force("dbm.dumb", monkeypatch)
    with shelve.open(tmp_path / "ours.db") as ours:
        ours.update({"a": Gone(), "b": {1, 2}})
    monkeypatch.delattr(f"{__name__}.Gone")
    with cm.open(tmp_path / "ours.db") as store:
        with pytest.raises(cm.BulkError) as caught:
            export_store(store, tmp_path / "out", format="shelve")
        assert set(caught.value.failed) == {"a"}
        assert caught.value.succeeded == ["b"]
    with dumb.open(str(tmp_path / "out"), "r") as opened:
        assert {key: pickle.loads(opened[key]) for key in opened.keys()} == {b"b": {1, 2}}  # noqa: SIM118 - no mapping


@pytest.mark.parametrize("format_", ["dbm", "shelve"])
def test_the_command_says_so(format_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that the format can't hold is a line on stderr, stdout counts the others, and the exit status is 1."""
    force_faulty(monkeypatch)
    monkeypatch.chdir(tmp_path)
    with cm.open("store.db") as store:
        store.update({"a": 1, "lost": 2})
    result = CliRunner().invoke(app, ["export", "out", "--format", format_, "--at", "store.db", "--json"])
    assert (result.exit_code, result.stdout) == (1, '{"succeeded":1,"failed":1}\n')
    assert [json.loads(line)["key"] for line in result.stderr.splitlines()] == ["lost"]


def damaged(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Path], dict[str, bytes]]:
    """Make a dbm file in which keys were deleted and replaced; return its name, its files and what it holds."""
    path = folder / "data"
    values = {f"key {number}": b'"%b"' % (b"v" * (number * 7)) for number in range(60)}
    opened = force(kind, monkeypatch).open(str(path), "n")
    for key, value in values.items():
        opened[key.encode()] = value
    if kind != "dbm.sqlite3":
        for number in range(0, 60, 7):
            del opened[f"key {number}".encode()]
            del values[f"key {number}"]
        for key in list(values)[::5]:
            values[key] = b'"%b"' % (b"w" * 9000)
            opened[key.encode()] = values[key]
    opened.close()
    if kind == "dbm.sqlite3":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
    return path, sorted(file for file in folder.iterdir() if file.suffix != ".bak"), values


def read(path: Path) -> dict[str, bytes | cm.CloudStoreError] | None:
    """Return what an import would find in a dbm file, or None if it refuses the file with a sentence."""
    try:
        return {entry.key: entry.value for entry in read_dbm(path)}
    except UnsupportedError:
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_off(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is cut off anywhere is refused, or each of its keys has its value or an error."""
    path, files, values = damaged(kind, tmp_path, monkeypatch)
    assert read(path) == values
    refused = 0
    for file in files:
        whole = file.read_bytes()
        lines = {0, *(end.end() for end in re.finditer(rb"\n", whole))} if file.suffix == ".dir" else set()
        for length in {*range(0, len(whole), len(whole) // 80), *range(0, len(whole), 4096)} - lines:
            file.write_bytes(whole[:length])
            found = read(path)
            refused += found is None
            for key, value in ({} if found is None else found).items():
                assert isinstance(value, BadValueError) or value == values[key], (file, length, key)
            assert found is None or found.keys() == values.keys(), (file, length)
        file.write_bytes(whole)
    assert refused > 40


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with a damaged byte is refused, or all keys are there; a damaged key or value can't always be told."""
    path, files, values = damaged(kind, tmp_path, monkeypatch)
    for file in files:
        whole = file.read_bytes()
        for at in {*range(0, len(whole), len(whole) // 150), *range(0, 300, 3)} & set(range(len(whole))):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
            found = read(path)
            assert found is None or len(found) == len(values), (file, at)
        file.write_bytes(whole)


@pytest.mark.parametrize("kind", ["dbm.ndbm", "dbm.sqlite3"])
def test_lost_pages(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with a page of zeros, as a power cut may leave it, is refused, or all keys are there."""
    path, (file,), values = damaged(kind, tmp_path, monkeypatch)
    whole = file.read_bytes()
    refused = 0
    for at in range(0, len(whole), 2048):
        file.write_bytes(whole[:at] + bytes(2048) + whole[at + 2048 :])
        found = read(path)
        refused += found is None
        assert found is None or found.keys() == values.keys(), at
    assert refused > 5


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ("'a', (0, 1)\n'b', (512, 1)", "the last line of .* is cut off"),
        ("'a', (0, 1)\n'a', (512, 1)\n", "line 2 of .* has a key twice"),
        ("'a', (0, 1)\n'b', (1, 1)\n", "line 2 of .* is none of an index"),
        ("'a', (0, 1)\n'b', (-512, 1)\n", "line 2 of .* is none of an index"),
        ("'a', (0, 1)\n5, (512, 1)\n", "line 2 of .* is none of an index"),
        ("'a', (0, 1)\n'b', 512\n", "line 2 of .* is none of an index"),
        ("'a', (0, 1)\n'b', (512, None)\n", "line 2 of .* is none of an index"),
        ("'a', (0, 513)\n'b', (512, 1)\n", "'a' and 'b' have the same place"),
    ],
)
def test_an_index_that_is_wrong(index: str, told: str, tmp_path: Path) -> None:
    """An index that `dbm.dumb` doesn't write is refused with the line."""
    (tmp_path / "data.dat").write_bytes(b"1" * 1024)
    (tmp_path / "data.dir").write_text(index)
    with pytest.raises(UnsupportedError, match=f"{told}.*; is it damaged?"):
        list(read_dbm(tmp_path / "data"))


def test_a_value_of_any_size(tmp_path: Path) -> None:
    """A damaged size in an index takes no memory: the value is cut off."""
    (tmp_path / "data.dat").write_bytes(b"1" * 1024)
    (tmp_path / "data.dir").write_text(f"'a', (0, 1)\n'b', (512, {10**15})\n'c', ({512 * 10**30}, 1)\n")
    values = {entry.key: entry.value for entry in read_dbm(tmp_path / "data")}
    assert values.pop("a") == b"1"
    assert all(isinstance(value, BadValueError) for value in values.values())
    assert values.keys() == {"b", "c"}


def test_values_without_bytes(tmp_path: Path) -> None:
    """Values without bytes begin where the next one does, which is no damage."""
    with dumb.open(str(tmp_path / "data"), "n") as opened:
        opened.update({b"a": b"", b"b": b"", b"c": b"1", b"d": b""})
    assert [entry.key for entry in read_dbm(tmp_path / "data")] == ["a", "b", "c", "d"]
