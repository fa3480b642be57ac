"""An import that reports success brought all that was exported: what was lost on the way is missed."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.cli import app
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.errors import BadValueError, BulkError
from cloudstore_mapping.transfer import export_store, import_store
from tests.dbm_kinds import force
from tests.support.command_line import CliRunner

PICTURES = {f"{name}.png": name.encode() for name in ("one", "two", "three")}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Return an export of a key and three media files."""
    with cm.open("memory:") as store:
        store["a"] = 1
        for name, data in PICTURES.items():
            store.upload(data, name)
        export_store(store, tmp_path / "all.json")
    return tmp_path / "all.json"


def imported(file: Path) -> tuple[dict[str, Any], dict[str, str], set[str]]:
    """Import a file; return the keys and media files that came over, and what failed."""
    failed: set[str] = set()
    with cm.open("memory:") as store:
        try:
            import_store(store, file)
        except BulkError as error:
            failed = {Path(key).name for key in error.failed}
        return store.copy(), {media.name: store.download(media).decode() for media in store.media_files()}, failed


def lose_line(file: Path, number: int) -> str:
    """Take a line out of a file, and return it."""
    lines = file.read_text("utf-8").splitlines(keepends=True)
    lost = lines.pop(number)
    file.write_text("".join(lines), "utf-8")
    return lost


@pytest.mark.parametrize("number", [0, 1, -1])
@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("file_too", [True, False])
def test_an_index_that_lost_a_line(number: int, record: bool, file_too: bool, export: Path) -> None:
    """A line of the index that is lost fails the import, by the file that it named or by how many were exported."""
    folder = export.with_name("all.json.media")
    lost = json.loads(lose_line(folder / "index.jsonl", number))
    if file_too:
        (folder / lost["file"]).unlink()
    if not record:
        export.with_name("all.json.exported").unlink()  # as earlier versions export
    keys, media, failed = imported(export)
    assert keys == {"a": 1}
    assert set(media) == set(PICTURES) - {lost["name"]}
    expected = ({"all.json.media"} if record else set()) | (set() if file_too else {lost["file"]})
    assert failed == expected


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("files_too", [True, False])
def test_an_empty_index(record: bool, files_too: bool, export: Path) -> None:
    """An emptied index fails the import, with or without the files that it named."""
    folder = export.with_name("all.json.media")
    (folder / "index.jsonl").write_text("")
    for file in folder.iterdir():
        if files_too and file.name != "index.jsonl":
            file.unlink()
    if not record:
        export.with_name("all.json.exported").unlink()
    keys, media, failed = imported(export)
    assert (keys, media) == ({"a": 1}, {})
    assert len(failed) == (1 if files_too else 4)


def test_a_folder_that_is_missing(export: Path) -> None:
    """A folder of media files that isn't there fails the import of the file beside which it was."""
    export.with_name("all.json.media").rename(export.with_name("elsewhere"))
    assert imported(export) == ({"a": 1}, {}, {"all.json.media"})
    export.with_name("all.json.exported").unlink()
    assert imported(export) == ({"a": 1}, {}, set())


def test_an_export_of_an_earlier_version(export: Path) -> None:
    """An export that doesn't say how many files there are is imported if its index names all."""
    export.with_name("all.json.exported").unlink()
    assert imported(export)[1:] == ({name: data.decode() for name, data in PICTURES.items()}, set())


def test_a_lost_line_is_told(export: Path) -> None:
    """On the command line it is exit status 1, a line for what is wrong, and how many keys came over."""
    lost = json.loads(lose_line(export.with_name("all.json.media") / "index.jsonl", -1))
    ran = CliRunner().invoke(app, ["import", str(export), "--at", str(export.with_name("o.db"))])
    assert (ran.exit_code, ran.stdout) == (1, "Imported 1 key; 2 failed.\n")
    assert "has 2 of the 3 media files that were exported; get it again" in ran.stderr
    assert f"{lost['file']} is not in the index.jsonl beside it and was not imported" in ran.stderr


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("named", [True, False])
def test_what_is_no_file_in_the_folder(kind: str, named: bool, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe or socket in the folder fails the import by its name, and nobody waits for it."""
    folder = export.with_name("all.json.media")
    item = json.loads((folder / "index.jsonl").read_text("utf-8").splitlines()[0])
    path = folder / (item["file"] if named else "stranger")
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        monkeypatch.chdir(folder)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    _, media, failed = imported(export)
    assert failed == {item["name"] if named else "stranger"}
    assert len(media) == (2 if named else 3)


CONTENT = {f"key {number}": number for number in range(5)}


@pytest.fixture
def store() -> Any:
    """Return a store of five keys."""
    with cm.open("memory:") as store:
        store.update(CONTENT)
        yield store


@pytest.mark.parametrize("number", [1, 3, -1])
def test_json_lines_that_are_lost(number: int, store: CloudStoreMapping[Any], tmp_path: Path) -> None:
    """A line that an export as JSON Lines lost is missed before anything is imported."""
    file = tmp_path / "all.jsonl"
    export_store(store, file)
    lose_line(file, number)
    with cm.open("memory:") as other:
        with pytest.raises(BadValueError, match="has 4 of the 5 keys that were exported; get the file again"):
            import_store(other, file)
        assert not other


def test_json_lines_of_several_exports(store: CloudStoreMapping[Any], tmp_path: Path) -> None:
    """Exports put behind one another, sorted or added to, are whole; of one without a count nothing is missed."""
    file = tmp_path / "all.jsonl"
    export_store(store, file)
    lines = file.read_text("utf-8").splitlines(keepends=True)
    file.write_text("".join(sorted(lines * 2, reverse=True)) + '{"key":"mine","value":0}\n', "utf-8")
    assert imported(file)[0] == CONTENT | {"mine": 0}
    file.write_text("".join(lines[1:3]), "utf-8")
    assert imported(file)[0] == {"key 1": 1, "key 2": 2}


@pytest.mark.parametrize("kind", ["dbm", "shelve"])
def test_a_dbm_that_lost_a_key(
    kind: Any, store: CloudStoreMapping[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that the index of a dbm or shelf lost is missed before anything is imported."""
    force("dbm.dumb", monkeypatch)
    export_store(store, tmp_path / "all", format=kind)
    lose_line(tmp_path / "all.dir", -1)
    with cm.open("memory:") as other:
        with pytest.raises(BadValueError, match="has 4 of the 5 keys that were exported; get it again, or remove"):
            import_store(other, tmp_path / "all", format=kind, trust=True)
        assert not other
        (tmp_path / "all.exported").unlink()
        import_store(other, tmp_path / "all", format=kind, trust=True)
        assert len(other) == 4


def test_an_export_replaces_one_that_lost_lines(store: CloudStoreMapping[Any], tmp_path: Path) -> None:
    """An export that lost a line still counts as one that a new export replaces."""
    for name in ("all.jsonl", "all.json"):
        export_store(store, tmp_path / name)
    lose_line(tmp_path / "all.jsonl", -1)
    for name in ("all.jsonl", "all.json"):
        export_store(store, tmp_path / name, overwrite=True)
        assert imported(tmp_path / name)[0] == CONTENT


def test_an_export_through_a_link(tmp_path: Path) -> None:
    """The record lies beside the media files, so the file that a link leads to is whole by itself, as before."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "all.json").symlink_to("elsewhere/real.json")
    with cm.open("memory:") as store:
        store.upload(b"data", "one.png")
        export_store(store, tmp_path / "all.json")
    assert imported(tmp_path / "all.json") == ({}, {"one.png": "data"}, set())
    assert imported(tmp_path / "elsewhere" / "real.json") == ({}, {}, set())
