"""`stat` tells of a key without its value, `edit` opens it in an editor, and nothing that was typed is lost."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.cli import app
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests import storages
from tests.support.command_line import CliRunner, Result
from tests.test_cli_terminal import on_terminal
from tests.vendor import Vendor


@pytest.fixture(params=["embedded", "service"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a store is whose key `list` is locked for viewing and editing, and `plain` is not."""
    file = storages.location(tmp_path / "service.db")
    with Service(storages.new_storage(file)) as service, background(service) as address:
        if request.param == "service":
            location = address.replace("://", f"://{service.accounts.create('local')}@")
        else:
            location = file
        with cm.open(location) as store:
            store.update({"list": {"Apples": 8}, "plain": {"é": [1, 2]}})
        service.set_passwords("local", "list", edit="pie", view="glass")
        yield location


def run(command: str, *arguments: str, stdin: str = "") -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [command, *arguments], input=stdin)


def test_stat(location: str) -> None:
    """`stat` tells size, version, times and which passwords are set, a line each, and needs none of them."""
    result = run("stat", "list", "--at", location)
    assert (result.exit_code, result.stderr) == (0, "")
    time = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    assert re.fullmatch(
        rf"size: +12 bytes\nversion: +\S+\ncreated: +{time}\nupdated: +{time}\n"
        r"edit password: +set\nview password: +set\n",
        result.stdout,
    )
    assert "edit password:  not set" in run("stat", "plain", "--at", location).stdout


def test_stat_for_a_program(location: str) -> None:
    """`stat --json` prints the same as one object, times in seconds since 1970."""
    facts = json.loads(run("stat", "list", "--json", "--at", location).stdout)
    assert list(facts) == ["size", "version", "created", "updated", "passwords"]
    assert (facts["size"], facts["passwords"]) == (12, {"edit": True, "view": True})
    assert 1.6e9 < facts["created"] <= facts["updated"]


def test_stat_of_an_absent_key(location: str) -> None:
    """`stat` of a key that isn't there is exit status 1 and one line."""
    result = run("stat", "absent", "--at", location)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)


def test_stat_of_a_service_that_can_not_tell(vendor: Vendor) -> None:
    """A service without the extension is exit status 2 and one line that says so."""
    result = run("stat", "key", "--at", vendor.address.replace("://", f"://{Vendor.api_key}@"))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "'stat'" in result.stderr


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that is the editor: Python that finds the file's path in `path` and its text in `text`."""
    program = tmp_path / "editor.py"
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"'{sys.executable}' '{program}'")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    write(program, "")
    return program


def write(program: Path, does: str) -> None:
    """Make the editor do this."""
    program.write_text(
        f"import pathlib, sys\npath = pathlib.Path(sys.argv[-1])\ntext = path.read_text('utf-8')\n{does}"
    )


def kept(tmp_path: Path) -> list[str]:
    """Return what is in the files that were left behind."""
    return [file.read_text("utf-8") for file in tmp_path.glob("cloudstore-edit-*/*")]


def test_edit(location: str, editor: Path, tmp_path: Path) -> None:
    """`edit` opens the value as indented JSON, saves what was made of it, and leaves no file behind."""
    write(editor, "print(text, file=open(path.parent.parent / 'seen', 'w'))\npath.write_text(text.replace('1', '10'))")
    result = run("edit", "plain", "--at", location)
    assert (result.exit_code, result.output) == (0, "Saved.\n")
    assert (tmp_path / "seen").read_text("utf-8") == '{\n  "é": [\n    1,\n    2\n  ]\n}\n\n'
    with cm.open(location) as store:
        assert store["plain"] == {"é": [10, 2]}
    assert not list(tmp_path.glob("cloudstore-edit-*"))


@pytest.mark.parametrize("does", ["", "path.write_text(text.replace(' ', ''))"])
def test_an_edit_that_changes_nothing(location: str, editor: Path, does: str) -> None:
    """Where the value stays the same, white space aside, nothing is saved, which is said."""
    write(editor, does)
    with cm.open(location) as store:
        before = store.stat("plain")
        assert run("edit", "plain", "--at", location).stdout == "Nothing was changed, so nothing was saved.\n"
        assert run("edit", "plain", "--json", "--at", location).stdout == '{"key":"plain","saved":false}\n'
        assert store.stat("plain") == before


def test_an_edit_of_a_new_key(location: str, editor: Path) -> None:
    """A key that isn't there begins as null."""
    write(editor, "assert text == 'null\\n'\npath.write_text('[1]')")
    assert run("edit", "new", "--json", "--at", location).stdout == '{"key":"new","saved":true}\n'
    with cm.open(location) as store:
        assert store["new"] == [1]


def test_an_edit_with_a_password(location: str, editor: Path) -> None:
    """--password asks for the file's password, with which it is loaded and saved."""
    write(editor, "path.write_text(text.replace('8', '9'))")
    assert run("edit", "list", "--password", "--at", location, stdin="pie\n").stdout == "Saved.\n"
    with cm.open(location, password="pie") as store:
        assert store["list"] == {"Apples": 9}


def test_what_somebody_else_changed_meanwhile(location: str, editor: Path, tmp_path: Path) -> None:
    """If the key was changed meanwhile nothing is saved, and what was typed is in a file that is named."""
    by_another = f"import cloudstore_mapping\ncloudstore_mapping.open({location!r})['plain'] = 5\n"
    write(editor, f"{by_another}path.write_text('[10]')")
    result = run("edit", "plain", "--at", location)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "Somebody else changed 'plain'" in result.stderr
    assert "value.json" in result.stderr
    assert kept(tmp_path) == ["[10]"]
    with cm.open(location) as store:
        assert store["plain"] == 5


@pytest.mark.parametrize(
    ("does", "says", "left"),
    [
        ('path.write_text(\'{"a": 1,\\n "b" 2}\')', "line 2, column 6", ['{"a": 1,\n "b" 2}']),
        ("path.write_text('')", "line 1, column 1", [""]),
        ("path.write_text('[7]')\nsys.exit(3)", "ended with status 3", ["[7]"]),
        ("sys.exit(3)", "ended with status 3", []),
    ],
)
def test_what_can_not_be_saved(
    location: str, editor: Path, tmp_path: Path, does: str, says: str, left: list[str]
) -> None:
    """What is no JSON, or left by an editor that failed, is exit status 2, one line, and kept in a file."""
    write(editor, does)
    result = run("edit", "plain", "--at", location)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert says in result.stderr
    assert kept(tmp_path) == left
    assert ("value.json" in result.stderr) == bool(left)
    with cm.open(location) as store:
        assert store["plain"] == {"é": [1, 2]}


def test_a_refused_save_keeps_what_was_typed(location: str, editor: Path, tmp_path: Path) -> None:
    """A key that may be viewed but not changed is exit status 1, and what was typed is kept."""
    write(editor, "path.write_text('[7]')")
    result = run("edit", "list", "--password", "--at", location, stdin="glass\n")
    assert (result.exit_code, result.stderr.count("\n"), "value.json" in result.stderr) == (1, 1, True)
    assert kept(tmp_path) == ["[7]"]


@pytest.mark.parametrize("editor_", ["no-such-program", "'", "/"])
def test_no_editor(location: str, editor: Path, editor_: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An editor that can't be started is exit status 2 and one line that names EDITOR."""
    monkeypatch.setenv("VISUAL", editor_)
    result = run("edit", "plain", "--at", location)
    assert (result.exit_code, result.stderr.count("\n"), "EDITOR" in result.stderr) == (2, 1, True)
    assert not list(tmp_path.glob("cloudstore-edit-*"))


@pytest.mark.parametrize("does", ["path.unlink()", "path.unlink()\npath.mkdir()"])
def test_an_editor_that_removes_the_file(location: str, editor: Path, does: str) -> None:
    """Where the editor leaves no file it is exit status 2 and one line that says so; the value stays."""
    write(editor, does)
    result = run("edit", "plain", "--at", location)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "The editor left no file that can be read (" in result.stderr
    assert "save it under the same name." in result.stderr
    with cm.open(location) as store:
        assert store["plain"] == {"é": [1, 2]}


def test_an_interrupt_while_the_editor_is_open(location: str, editor: Path) -> None:
    """An interrupt of `edit` alone leaves the editor its file, and what it saves then is saved."""
    write(editor, "import os, signal\nos.kill(os.getppid(), signal.SIGINT)\npath.write_text('[8]')")
    result = run("edit", "plain", "--at", location)
    assert (result.exit_code, result.output) == (0, "Saved.\n")
    with cm.open(location) as store:
        assert store["plain"] == [8]


def test_an_editor_that_an_interrupt_ends(location: str, editor: Path, tmp_path: Path) -> None:
    """An interrupt that ends the editor is exit status 130, and leaves no file where nothing was typed."""
    write(
        editor, "import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\nos.kill(os.getpid(), signal.SIGINT)"
    )
    assert run("edit", "plain", "--at", location).exit_code == 130
    assert not list(tmp_path.glob("cloudstore-edit-*"))


def test_a_terminal_opens_bad_json_again(tmp_path: Path, editor: Path) -> None:
    """On a terminal what is no JSON is said, and opened again as it is, until it is JSON."""
    location = str(tmp_path / "store.db")
    write(editor, "path.write_text('[1]' if text == '[1' else '[1')")
    status, shown = on_terminal("edit", "key", "--at", location, answers={b"leaves it: ": b"\n"})
    assert (status, shown.count("is not JSON"), shown.endswith("Saved.\n")) == (0, 1, True)
    with cm.open(location) as store:
        assert store["key"] == [1]
