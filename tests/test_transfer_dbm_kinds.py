"""Each kind of dbm holds an export exactly, but for the keys that it can't hold, which are told."""

from __future__ import annotations

import json
import pickle
from dbm import dumb
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from cloudstore_mapping.cli import app
from cloudstore_mapping.transfer import Format, export_store, import_store
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
