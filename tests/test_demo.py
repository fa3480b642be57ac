"""`cloudstore demo` shows what a newcomer's own prompt would."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from cloudstore_mapping import demo
from cloudstore_mapping.cli import app
from tests.support.command_line import CliRunner

TRANSCRIPT = """\
1. A dictionary in a file

>>> import cloudstore_mapping as cm
>>> store = cm.open("shopping.db")
>>> store["Shopping_List"] = {"Apples": 8, "Oranges": 6}
>>> store["Shopping_List"]
{'Apples': 8, 'Oranges': 6}
>>> store |= {"Shopping_List": {"Oranges": 10, "Bananas": 8}}  # merged where the data is
>>> store["Shopping_List"]
{'Apples': 8, 'Oranges': 10, 'Bananas': 8}
>>> list(store), len(store), "Shopping_List" in store
(['Shopping_List'], 1, True)
>>> store["Recipes"]  # a dictionary says KeyError; NoFileError is one
cloudstore_mapping.errors.NoFileError: There is nothing under 'Recipes'.
>>> del store["Shopping_List"]
>>> len(store)
0
>>> store.close()

2. The same dictionary through a service, started on this machine

>>> store = cm.open("http://API_KEY@127.0.0.1:PORT/cloudstore")
>>> store["Shopping_List"] = {"Apples": 8, "Oranges": 6}
>>> store["Shopping_List"]
{'Apples': 8, 'Oranges': 6}
>>> store |= {"Shopping_List": {"Oranges": 10, "Bananas": 8}}  # merged where the data is
>>> store["Shopping_List"]
{'Apples': 8, 'Oranges': 10, 'Bananas': 8}
>>> list(store), len(store), "Shopping_List" in store
(['Shopping_List'], 1, True)
>>> store["Recipes"]  # a dictionary says KeyError; NoFileError is one
cloudstore_mapping.errors.NoFileError: There is nothing under 'Recipes'.
>>> service.set_passwords("owner", "Shopping_List", edit="pie")  # at the service: its owner locks the list
>>> store["Shopping_List"] = {}
cloudstore_mapping.errors.LockedError: 'Shopping_List' is locked, and the password is missing or wrong; give the right one.
>>> store.close()
>>> store = cm.open("http://API_KEY@127.0.0.1:PORT/cloudstore", password="pie")
>>> store["Shopping_List"] = {}
>>> store["Shopping_List"]
{}
>>> store.close()

Next: `cloudstore set KEY JSON`, `get KEY` and `ls` work on ./cloudstore.db, as `cm.open()` does;
`cloudstore serve` starts a service that stays, and `cloudstore --help` lists the rest.
"""  # noqa: E501 - a prompt doesn't break lines


def test_the_transcript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration prints this, twice in a row, and leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for _ in range(2):
        result = CliRunner().invoke(app, ["demo"])
        assert (result.exit_code, result.stderr) == (0, "")
        assert re.sub(r":\d+/", ":PORT/", result.stdout) == TRANSCRIPT
        assert Path.cwd() == tmp_path
        assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_early_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transcript that is closed half-way closes its store and service and removes its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    parts = demo.transcript()
    while not next(parts).startswith('>>> store = cm.open("http'):
        pass
    parts.close()
    assert Path.cwd() == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_the_lines_are_really_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed after a line is what the line gave, whatever the line is."""
    monkeypatch.setattr(demo, "_EMBEDDED", ["6 * 7", "x = None", "x", "x.y", "is not Python", "1 / 0"])
    parts = demo.transcript()
    next(parts)
    shown = [next(parts).partition("\n")[2] for _ in range(6)]
    parts.close()
    assert shown == [
        "42",
        "",
        "",
        "AttributeError: 'NoneType' object has no attribute 'y'",
        "SyntaxError: invalid syntax",
        "ZeroDivisionError: division by zero",
    ]
