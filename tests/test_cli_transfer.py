"""`import` and `export` do what they say, on one line each, and say what can't be done."""

from __future__ import annotations

import json
import os
import shelve
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.cli import app
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.transfer import Exported
from cloudstore_mapping.web.server import background
from tests.storages import new_storage
from tests.support.command_line import CliRunner, Result
from tests.test_cli_terminal import on_terminal


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a store of two keys and a media file, the default one."""
    monkeypatch.chdir(tmp_path)
    for name in ("CLOUDSTORE_URL", "CLOUDSTORE_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with cm.open("cloudstore.db") as store:
        store.update({"a": 1, "b,c": ["é"]})
        store.upload(b"data", "one.png")
    return tmp_path


def run(*arguments: str, stdin: str = "") -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, list(arguments), input=stdin)


def said(result: Result) -> tuple[int, str, str]:
    """Return the status of a command, and what it printed."""
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("options", [["all.json"], ["all.jsonl"], ["all", "--format", "dbm"]])
def test_there_and_back(options: list[str]) -> None:
    """Each says what it did, an import also what it left as it was."""
    assert said(run("export", *options)) == (0, "Exported 2 keys and 1 media file.\n", "")
    into = ("import", *options, "--at", "other.db")
    assert said(run(*into)) == (0, "Imported 2 keys and 1 media file.\n", "")
    left = "2 keys and 1 media file were left as they are there; --overwrite replaces what differs.\n"
    assert said(run(*into)) == (0, f"Imported 0 keys and 0 media files.\n{left}", "")
    with cm.open("other.db") as store:
        assert store.copy() == {"a": 1, "b,c": ["é"]}
        assert [store.download(media) for media in store.media_files()] == [b"data"]


def test_for_programs() -> None:
    """With --json what was done is one object."""
    exported = {"dry_run": False, "keys": 2, "media": 1, "before": 0, "skipped": 0, "missing": []} | {"before_age": 0.0}
    assert json.loads(run("export", "all.json", "--json").stdout) == exported
    imported = json.loads(run("import", "all.json", "--json", "--at", "other.db").stdout)
    assert (imported["written"], imported["skipped"], imported["media_skipped"]) == (2, 0, 0)
    assert list(imported["media"]) == ["one.png"]


def test_a_dry_run() -> None:
    """With --dry-run nothing is written, and it says so."""
    assert said(run("export", "all.json", "--dry-run"))[1] == "Would export 2 keys and 1 media file.\n"
    assert not Path("all.json").exists()
    run("export", "all.json")
    assert (
        said(run("import", "all.json", "--dry-run", "--at", "other.db"))[1] == "Would import 2 keys and 1 media file.\n"
    )
    with cm.open("other.db") as store:
        assert not store
        assert not store.media_files()


def test_another_location() -> None:
    """Data go to and come from another store, over HTTP too."""
    with Service(new_storage()) as service, background(service) as address:
        url = address.replace("://", f"://{service.accounts.create('owner')}@")
        assert said(run("export", url)) == (0, "Exported 2 keys and 1 media file.\n", "")
        left = "2 keys were left as they are there; --overwrite replaces what differs.\n"
        assert said(run("export", url))[1] == f"Exported 0 keys and 0 media files.\n{left}"
        assert said(run("export", "new.json", "--dry-run", "--at", url))[1] == (
            "Would export 2 keys and what media files their values name.\n"
        )
        assert said(run("import", url, "--at", "other.db"))[1] == "Imported 2 keys and 0 media files.\n"


def test_a_shelf_asks_for_trust() -> None:
    """A shelf of the standard library is loaded only with --trust."""
    with shelve.open("todo") as shelf:
        shelf["tasks"] = [("buy apples", {"food"})]
    status, output, errors = said(run("import", "todo"))
    assert (status, output) == (2, "")
    assert errors.endswith("if it is your own, say --trust.\n")
    assert said(run("import", "todo", "--trust")) == (0, "Imported 1 key and 0 media files.\n", "")
    from cloudstore_mapping import shelve as ours

    with ours.open("cloudstore.db", "r") as db:
        assert db["tasks"] == [("buy apples", {"food"})]


def test_what_single_keys_lack() -> None:
    """Each key that can't be imported is a line on stderr, and the status is 1; stdout says how many are imported."""
    Path("in.json").write_text('{"x": [1e400], "y": 2, "z": "\\ud800"}')
    status, output, errors = said(run("import", "in.json"))
    assert (status, output) == (1, "Imported 1 key; 2 failed.\n")
    lines = errors.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("cloudstore: The value of 'x' can't be stored: ")
    assert lines[1].startswith("cloudstore: The value of 'z' can't be stored: ")
    with cm.open("cloudstore.db") as store:
        assert store["y"] == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["import", "absent.json"], "'absent.json' can't be used: No such file or directory."),
        (["import", "notes"], "The name 'notes' doesn't say which format it has; give one: "),
        (["import", "broken.json"], "broken.json is not an object of JSON: Expecting value, at character 7; "),
        (["export", "notes"], "The name 'notes' doesn't say which format it has; give one: "),
        (["export", "broken.json"], "'broken.json' exists already; --overwrite replaces an earlier export."),
        (["export", "absent/all.json"], "can't be used: No such file or directory."),
        (["export", "taken.json"], "taken.json.part is no unfinished export and was left as it is; move it away."),
        (["export", "ftp://host/all"], "No store can be at ftp://"),
    ],
)
def test_what_can_t_be_done(arguments: list[str], line: str) -> None:
    """It is one line that says what to do, with status 2, and nothing changes."""
    Path("notes").write_text("notes")
    Path("broken.json").write_text('{"a": }')
    Path("taken.json.part").write_text("notes\n")
    there = {path: path.read_bytes() for path in Path().iterdir() if "-" not in path.name}
    status, output, errors = said(run(*arguments))
    assert (status, output) == (2, "")
    assert line in errors
    assert errors.startswith("cloudstore: ")
    assert errors.count("\n") == 1
    assert {path: path.read_bytes() for path in Path().iterdir() if "-" not in path.name} == there


def test_a_bar_on_a_terminal(folder: Path) -> None:
    """On a terminal a bar shows how far it is, and only there."""
    status, shown = on_terminal("export", str(folder / "all.json"), "--at", str(folder / "cloudstore.db"))
    assert status == 0
    assert "100%" in shown


def test_an_import_that_brought_nothing() -> None:
    """Where every key failed, a store that was made for them is told to be empty; one that was there is not."""
    Path("in.json").write_text('{"x": [1e400]}')
    for there, notes in ((False, 1), (True, 0)):
        if there:
            cm.open("other.db").close()
        status, output, errors = said(run("import", "in.json", "--at", "other.db"))
        assert (status, output) == (1, "Imported 0 keys; 1 failed.\n")
        assert errors.count("other.db is empty; import again, or delete it.") == notes


def test_an_import_that_ends_early() -> None:
    """A source that fails in the middle is told with the empty store that the import had made."""
    with Service(new_storage()) as service, background(service) as address:
        url = address.replace("://", f"://{service.accounts.create('owner')}@")
        with cm.open(url) as store:
            store["a"] = 1
        service.set_passwords("owner", "a", view="pw")
        status, output, errors = said(run("import", url, "--at", "other.db"))
    assert (status, output) == (1, "Imported 0 keys; 1 failed.\n")
    assert "other.db is empty" in errors


def test_how_old_resumed_values_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that reuses values says how old they are."""
    done = Exported(3, 0, before=2, before_age=601.0)
    monkeypatch.setattr("cloudstore_mapping.transfer.export_store", lambda *_, **__: done)
    assert said(run("export", "all.json"))[1] == (
        "Exported 3 keys and 0 media files.\n"
        "2 keys of these had been read up to 11 minutes ago, by an export that was interrupted; what changed since is "
        "not in the file.\n"
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["upload", "FILE"], "pipe"),
        (["upload", "FILE"], "/dev/zero"),
        (["set", "a", "@FILE"], "/dev/zero"),
        (["import", "FILE", "--format", "jsonl"], "/dev/zero"),
    ],
)
def test_only_regular_files(arguments: list[str], file: str) -> None:
    """A device is not read, nor is a pipe uploaded: it is status 2 and a line that says so."""
    os.mkfifo("pipe")
    status, output, errors = said(run(*[argument.replace("FILE", file) for argument in arguments]))
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert f"{file} is a pipe, device or socket and was not read; name a regular file." in errors


def test_what_rm_deleted() -> None:
    """Where some of several keys can't be deleted, it says how many are."""
    assert said(run("rm", "a", "absent", "b,c"))[:2] == (1, "Deleted 2 of 3 keys; 1 failed.\n")
    assert said(run("rm", "absent"))[:2] == (1, "")
