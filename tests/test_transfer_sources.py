"""What an import reads: pipes too, and whatever it is, no import reports success for a part of it or for nothing."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from cloudstore_mapping.cli import app
from cloudstore_mapping.transfer import export_store, import_store
from tests.support.command_line import CliRunner

COMMAND = shlex.join([sys.executable, "-m", "cloudstore_mapping"])
SAMPLES = Path(__file__).parent / "samples" / "dbm"
#: More than a pipe holds.
CONTENT: dict[str, Any] = {"a": 1, "é,b": ["x" * 200_000], "c": None}
TEXTS = {
    "json": json.dumps(CONTENT).encode(),
    "jsonl": b"".join(json.dumps({"key": key, "value": value}).encode() + b"\n" for key, value in CONTENT.items()),
}
posix = pytest.mark.skipif(sys.platform == "win32", reason="pipes with names are POSIX's")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLOUDSTORE_URL", raising=False)
    return tmp_path


def stored(location: str = "new.db") -> dict[str, Any]:
    """Return what a store holds."""
    with cm.open(location) as store:
        return store.copy()


def run(*arguments: str, given: bytes = b"") -> tuple[int, str, str]:
    """Run an import into a store that isn't there yet; return its status, and what it said."""
    result = CliRunner().invoke(app, ["import", *arguments, "--at", "new.db"], input=given)
    return result.exit_code, result.stdout, result.stderr


@posix
@pytest.mark.parametrize("kind", ["json", pytest.param("jsonl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("given", ["", pytest.param("--format ", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "line",
    [
        "cat all | {command} -",
        pytest.param("cat all | {command} /dev/stdin", marks=pytest.mark.slow),
        pytest.param("{command} /dev/stdin < all", marks=pytest.mark.slow),
        pytest.param("{command} - < all", marks=pytest.mark.slow),
        "{command} <(cat all)",
    ],
)
def test_a_pipe_is_imported(kind: str, given: str, line: str) -> None:
    """Standard input, by any name, and a pipe of the shell are imported whole, and their format is seen."""
    bash = shutil.which("bash") or pytest.skip("needs bash: a pipe as an argument is no POSIX shell's")
    Path("all").write_bytes(TEXTS[kind])
    if line == "{command} /dev/stdin < all":
        given = "--format "  # an ordinary file, of which the name says the format
    options = f"{given}{kind}" if given else ""
    command = line.format(command=f"{COMMAND} import --at new.db {options}")
    ran = subprocess.run([bash, "-c", command], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "Imported 3 keys and 0 media files.\n", "")
    assert stored() == CONTENT


@posix
@pytest.mark.parametrize("kind", TEXTS)
def test_a_pipe_with_a_name(kind: str) -> None:
    """A named pipe is imported as a file of its name is, from a program too, with the media files beside it."""
    with cm.open("memory:") as store:
        store["a"] = 1
        store.upload(b"data", "one.png")
        export_store(store, f"all.{kind}")
    text = Path(f"all.{kind}").read_bytes()
    Path(f"all.{kind}").unlink()
    os.mkfifo(f"all.{kind}")
    writer = threading.Thread(target=Path(f"all.{kind}").write_bytes, args=[text])
    writer.start()
    with cm.open("memory:") as store:
        assert import_store(store, f"all.{kind}")[:2] == (1, 0)
        assert len(store.media_files()) == 1
    writer.join()


def test_a_shelf_is_no_store(tmp_path: Path) -> None:
    """A shelf given as the store is refused with what to give."""
    with shelve.open(tmp_path / "shelf") as db:
        with pytest.raises(TypeError, match=r"The store is a DbfilenameShelf; give a store that .* returned"):
            import_store(db, tmp_path / "all.json")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"The store is a DbfilenameShelf; give a store that .* returned"):
            export_store(db, tmp_path / "all.json")  # type: ignore[arg-type]
    assert not (tmp_path / "all.json").exists()


def test_what_follows_the_password() -> None:
    """Of a pipe whose first line is the password all of the rest is imported, by any name of standard input."""
    for name in ("-", "/dev/stdin"):
        status, output, errors = run(name, "--password", given=b"password\n" + TEXTS["jsonl"])
        assert (status, output, errors) == (0, "Imported 3 keys and 0 media files.\n", "")
        assert stored_with_password() == CONTENT
        Path("new.db").unlink()


def stored_with_password() -> dict[str, Any]:
    """Return what the store holds under the password."""
    with cm.open("new.db", password="password") as store:
        return store.copy()


@pytest.mark.parametrize(
    ("options", "given", "said"),
    [
        ([], b"", "Standard input brought nothing; look whether the program before it failed."),
        (["--format", "json"], b"", "Standard input brought nothing;"),
        (["--format", "jsonl"], b"", "Standard input brought nothing;"),
        (["--format", "jsonl"], b'{"a": 1}\n', "Line 1 of Standard input is no"),
        (["--format", "json"], TEXTS["jsonl"], "Standard input is not an object of JSON: something stands behind"),
        (["--format", "dbm"], b"x", "Standard input can bring json or jsonl only; for any other format name a file."),
        (["--format", "shelve", "--trust"], b"x", "Standard input can bring json or jsonl only;"),
        (["--format", "store"], b"x", "Standard input can bring json or jsonl only;"),
        ([], (SAMPLES / "gnu" / "todo").read_bytes(), "Standard input can bring json or jsonl only;"),
        ([], (SAMPLES / "sqlite3" / "todo").read_bytes(), "Standard input can bring json or jsonl only;"),
        ([], b'{"key": "a", "value": 1}\n', "Standard input doesn't show which format it has; give one: json, jsonl."),
        ([], b"\x1f\x8b\x08 compressed", "Standard input doesn't show which format it has;"),
        ([], json.dumps(CONTENT).encode("utf-16"), "Standard input doesn't show which format it has;"),
        (["--format", "json"], json.dumps(CONTENT).encode("utf-16"), "Standard input is not UTF-8"),
        (["--format", "jsonl"], json.dumps(CONTENT).encode("utf-16"), "Line 1 of Standard input is no"),
        (["--format", "jsonl"], TEXTS["jsonl"][:-9], "Line 3 of Standard input is no"),
        (["--format", "json"], TEXTS["json"][:-9], "Standard input is not an object of JSON:"),
    ],
)
def test_a_pipe_that_can_t_be_imported(options: list[str], given: bytes, said: str, folder: Path) -> None:
    """A pipe that brings nothing, a part or another format is exit status 2 and one line, and nothing is made."""
    status, output, errors = run("-", *options, given=given)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(f"cloudstore: {said}")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("absent.json", [], "'absent.json' can't be used: No such file or directory."),
        ("empty.json", [], "empty.json is not an object of JSON: '{' is missing"),
        ("folder", [], "The name 'folder' doesn't say which format it has"),
        ("folder", ["--format", "json"], "'folder' can't be used: Is a directory."),
        ("folder", ["--format", "jsonl"], "'folder' can't be used: Is a directory."),
        ("folder", ["--format", "shelve", "--trust"], "folder is no dbm file that is known here"),
        ("text", ["--format", "dbm"], "text is no dbm file that is known here"),
        ("text", ["--format", "store"], "text is no CloudStore file"),
        ("text", ["--format", "jsonl"], "Line 1 of text is no"),
        ("memory:", [], "A store in memory begins empty"),
        ("sqlite:///absent.db", [], "'sqlite:///absent.db' can't be used: No such file"),
        ("absent.db", ["--format", "store"], "'absent.db' can't be used: No such file"),
        ("text.json.part", ["--format", "jsonl"], "Line 1 of text.json.part is no"),
        ("media.json", [], "media.json.media has no index.jsonl, so nobody knows what is in it"),
        ("/dev/null", ["--format", "jsonl"], "/dev/null is a pipe, device or socket and was not read"),
    ],
)
def test_what_can_t_be_imported_makes_nothing(source: str, options: list[str], said: str, folder: Path) -> None:
    """A source that isn't there, or isn't what it should be, is exit status 2 and one line, and no store is made."""
    if source == "/dev/null" and not Path(source).exists():
        pytest.skip("needs /dev/null")
    Path("empty.json").touch()
    Path("text").write_text("Dear diary")
    Path("text.json.part").write_text('{"unfinished_export_of":"","begun_at":1.0}\n{"key":"a","value":1}\n')
    Path("media.json").write_text('{"a": 1}')
    for name in ("folder", "media.json.media"):
        Path(name).mkdir()
    before = {file.name for file in folder.iterdir()}
    status, output, errors = run(source, *options)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert said in errors
    assert {file.name for file in folder.iterdir()} == before


def test_what_validly_holds_nothing() -> None:
    """An import reports no keys where the source validly holds none: an empty object, no lines, an empty store."""
    Path("empty.json").write_text("{}\n")
    Path("empty.jsonl").touch()  # as the export of an empty store is
    cm.open("empty.db").close()
    for source in ("empty.json", "empty.jsonl", "empty.db"):
        assert run(source) == (0, "Imported 0 keys and 0 media files.\n", "")


def test_a_dry_run_makes_no_store(folder: Path) -> None:
    """A dry run into a store that isn't there tells what would be written, and makes none."""
    Path("all.json").write_text('{"a": 1, "b": 2}')
    assert run("all.json", "--dry-run") == (0, "Would import 2 keys and 0 media files.\n", "")
    assert [file.name for file in folder.iterdir()] == ["all.json"]


def test_a_store_into_itself() -> None:
    """A store can't be imported into itself, by any name of it."""
    with cm.open("new.db") as store:
        store["a"] = 1
    Path("link.db").symlink_to("new.db")
    for source in ("new.db", "sqlite:///new.db", str(Path("new.db").absolute())):
        status, output, errors = run(source)
        assert (status, output) == (2, "")
        assert "is the store itself; name another source, or its format." in errors


READING = [["get", "a"], ["ls"], ["rm", "a"], ["stat", "a"], ["export", "all.json"], ["download", "/files/0/0.png"]]


@pytest.mark.parametrize("command", READING)
def test_a_store_that_is_not_there(command: list[str], folder: Path) -> None:
    """A command that only reads or deletes makes no store: a slip in its name is exit status 2 and one line."""
    for options in (["--at", "absent.db"], ["--at", "sqlite:///absent.db"], []):
        result = CliRunner().invoke(app, [*command, *options])
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert result.stderr.startswith(f"cloudstore: There is no store {folder}")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["get", "absent"], 1),
        (["rm", "absent"], 1),
        (["stat", "absent"], 1),
        (["download", "/files/0/0.png"], 1),
        (["upload", "absent.png"], 2),
        (["upload", "."], 2),
        (["set", "a", "@absent.json"], 2),
        (["set", "a", "@."], 2),
        (["set", "\udcff", "1"], 1),
        (["get", "\udcff"], 1),
        (["rm", "\udcff"], 1),
        (["merge", "\udcff", "1"], 1),
        (["edit", "\udcff"], 1),
        (["account", "disable", "absent"], 2),
        (["passwd", "absent", "--at", "new.db", "--clear"], 1),
    ],
)
def test_nothing_done_is_no_success(command: list[str], status: int) -> None:
    """A command whose key, file or account isn't there, or can't be, did nothing, and says so in one line."""
    with cm.open("cloudstore.db") as store:
        store["a"] = 1
    cm.open("new.db").close()
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (status, "", 1)
    assert result.stderr.startswith("cloudstore: ")
    with cm.open("cloudstore.db") as store:
        assert store.copy() == {"a": 1}
