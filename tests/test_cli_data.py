"""The commands on keys and values do what they say, on a file and through a service."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.cli import app
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.storages import new_storage
from tests.support.command_line import CliRunner, Result
from tests.support.matrix import spread
from tests.vendor import Vendor

Run = Callable[..., Result]


PLACES = ["embedded", "service"]


@pytest.fixture(params=PLACES)
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where an empty store is."""
    if request.param == "embedded":
        cm.open(tmp_path / "store.db").close()
        yield str(tmp_path / "store.db")
        return
    with Service(new_storage(tmp_path / "service.db")) as service, background(service) as address:
        yield address.replace("://", f"://{service.accounts.create('tests')}@")


@pytest.fixture
def run(location: str) -> Run:
    """Run a command on the store."""

    def run(command: str, *arguments: str, stdin: str | bytes = "") -> Result:
        return CliRunner().invoke(app, [command, "--at", location, *arguments], input=stdin)

    return run


@pytest.fixture
def store(location: str) -> Iterator[cm.CloudStoreMapping[Any]]:
    """The same store, as a dictionary."""
    with cm.open(location) as store:
        yield store


KEYS = [
    *(
        "users/ann",
        "users/b,c",
        "a b",
        " x ",
        "100%",
        "%",
        "%2C",
        "%2F",
        "a%2Fb",
        "..",
        "a/../b",
        "tab\t",
        "naïve",
        "😀",
    ),
    *("", "line\nend", "\\", "-dash"),
]


def check_every_key(location: str, *, has_stat: bool) -> None:
    """Check that the commands on one key find each key that `ls` prints."""

    def on(command: str, *arguments: str) -> Result:
        return CliRunner().invoke(app, [command, "--at", location, *arguments])

    listed = json.loads(on("ls", "--json").stdout)
    assert on("ls").stdout == "".join(f"{key}\n" for key in listed)
    for key in listed:
        assert json.loads(on("get", "--", key).stdout) == key
        if has_stat:
            assert on("stat", "--", key).exit_code == 0
        assert on("set", "--", key, "1").exit_code == 0
        assert on("get", "--", key).stdout == "1\n"
    for text in ("users/", "a", ",", "%", "..", "/"):
        assert json.loads(on("ls", text, "--json").stdout) == [key for key in listed if text in key]
        assert json.loads(on("ls", text, "--prefix", "--json").stdout) == [
            key for key in listed if key.startswith(text)
        ]
    assert on("rm", "--", *listed).exit_code == 0
    assert on("ls").stdout == ""


def test_every_key_that_is_listed_is_found(location: str, store: cm.CloudStoreMapping[Any]) -> None:
    """`get`, `stat`, `set` and `rm` find each key that `ls` prints, and its filters take keys."""
    store.update({key: key for key in KEYS})
    assert sorted(store) == sorted(KEYS)
    check_every_key(location, has_stat=True)


def test_every_key_on_a_service_with_joined_lists(vendor: Vendor) -> None:
    """The same holds where names are joined by commas, also for files that another program named."""
    location = vendor.address.replace("://", f"://{vendor.api_key}@")
    with cm.open(location) as store:
        store.update({key: key for key in KEYS})
    vendor.files |= {name: name for name in ("theirs/1", "their\ttab", "x/../y", "%41")}
    check_every_key(location, has_stat=False)
    assert vendor.files == {}


VALUES = ["null", "false", "0", "-5", '""', "{}", "[]", str(10**40), "1.5", '"\\u0000é🍎"', '{"Apples":8,"Oranges":6}']


@pytest.mark.parametrize(
    ("location", "text", "source"), spread([PLACES, VALUES, ["argument", "stdin", "file"]], 4), indirect=["location"]
)
def test_what_is_set_is_what_is_stored(
    run: Run, store: cm.CloudStoreMapping[Any], tmp_path: Path, text: str, source: str
) -> None:
    """`set` saves the JSON of its argument, of standard input for -, of a file for @file, and prints nothing."""
    (tmp_path / "value.json").write_text(text, "utf-8")
    argument = {"argument": text, "stdin": "-", "file": f"@{tmp_path / 'value.json'}"}[source]
    result = run("set", "key", argument, stdin=text)
    assert (result.exit_code, result.output) == (0, "")
    assert store["key"] == json.loads(text)


@pytest.mark.parametrize(("location", "text"), spread([PLACES, VALUES], 2), indirect=["location"])
def test_get_prints_the_value_as_json(run: Run, store: cm.CloudStoreMapping[Any], text: str) -> None:
    """`get` prints the value as JSON on one line, a text with its quotes."""
    store["key"] = json.loads(text)
    result = run("get", "key")
    assert (result.exit_code, json.loads(result.stdout), result.stdout.count("\n")) == (0, json.loads(text), 1)


def test_get_for_a_program_is_pinned(run: Run, store: cm.CloudStoreMapping[Any]) -> None:
    """`get --json` prints these bytes: no spaces, text as it is, and escapes for what isn't printable."""
    store["key"] = {"Apples": [8, None], "é🍎": "line\nend \u2028 \x7f \u202e"}
    assert run("get", "key", "--json").stdout == ('{"Apples":[8,null],"é🍎":"line\\nend \\u2028 \\u007f \\u202e"}\n')


def test_the_deepest_value_can_be_printed(run: Run, store: cm.CloudStoreMapping[Any]) -> None:
    """A value nested as deeply as a service takes comes out again."""
    text = "[" * 99 + "]" * 99
    assert run("set", "key", text).exit_code == 0
    assert run("get", "key", "--json").stdout == f"{text}\n"


def test_get_of_an_absent_key(run: Run) -> None:
    """`get` of a key that isn't there is exit status 1 and one line on stderr."""
    result = run("get", "no\nkey")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "cloudstore: There is nothing under 'no\\nkey'.\n"


def test_an_error_for_a_program_is_pinned(run: Run) -> None:
    """With --json an error is a JSON object on stderr: the class, the sentence, the key."""
    result = run("get", "nothing", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        '{"error": "NoFileError", "message": "There is nothing under \'nothing\'.", "key": "nothing"}\n'
    )


def test_merge(run: Run, store: cm.CloudStoreMapping[Any]) -> None:
    """`merge` merges at the service, and saves where nothing is."""
    assert run("merge", "list", '{"Apples": 8, "Oranges": 6}').exit_code == 0
    assert run("merge", "list", "-", stdin='{"Oranges": 10, "Bananas": 8}').exit_code == 0
    assert store["list"] == {"Apples": 8, "Oranges": 10, "Bananas": 8}


def test_rm_tries_all_keys(run: Run, store: cm.CloudStoreMapping[Any]) -> None:
    """`rm` deletes every key that is there, whatever the others do, and is exit status 1 if one wasn't."""
    store.update({"a": 1, "b": 2, "c": 3})
    assert run("rm", "a").output == ""
    result = run("rm", "b", "x", "c", "y", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert [json.loads(line)["key"] for line in result.stderr.splitlines()] == ["x", "y"]
    assert list(store) == []


def test_a_key_that_begins_with_a_dash(run: Run, store: cm.CloudStoreMapping[Any]) -> None:
    """After -- everything is an argument."""
    assert run("set", "--", "--json", "-1").exit_code == 0
    assert store["--json"] == -1


ODD_KEYS = ["Shopping", "shop,list", "a/b", "100%", "two\nlines", "\x1b[31mred", "", "é"]


def test_ls_prints_keys_as_they_are_into_a_pipe(run: Run, store: cm.CloudStoreMapping[Any]) -> None:
    """`ls` prints the keys, one a line, and nothing where there are none."""
    assert run("ls").output == ""
    store.update(dict.fromkeys(ODD_KEYS, 0))
    assert run("ls").stdout == "".join(f"{key}\n" for key in store)


def test_ls_for_a_program_is_pinned(run: Run, store: cm.CloudStoreMapping[Any]) -> None:
    """`ls --json` prints one array on one line, exact for every key, empty where there are none."""
    assert run("ls", "--json").stdout == "[]\n"
    store["two\nlines"] = store["\x1b[31mred é"] = 0
    assert sorted(json.loads(run("ls", "--json").stdout)) == ["\x1b[31mred é", "two\nlines"]
    assert run("ls", "red", "--json").stdout == '["\\u001b[31mred é"]\n'


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["hop"], ["Shopping", "shop,list"]),
        (["shop"], ["shop,list"]),
        (["sh", "--prefix"], ["shop,list"]),
        (["hop", "--prefix"], []),
        ([",l"], ["shop,list"]),
        (["%"], ["100%"]),
        (["_"], []),
    ],
)
def test_ls_filters(run: Run, store: cm.CloudStoreMapping[Any], arguments: list[str], expected: list[str]) -> None:
    """FILTER is a part of the key, with --prefix its beginning; upper and lower case are told apart."""
    store.update(dict.fromkeys(ODD_KEYS, 0))
    assert json.loads(run("ls", *arguments, "--json").stdout) == expected


BAD = [
    ("hello", "Expecting value, line 1, column 1; a text is written with its quotes"),
    ("", "Expecting value, line 1, column 1."),
    ('{"a": 1,\n "b" 2}', "Expecting ':' delimiter, line 2, column 6"),
    ("[1, 2", "line 1, column 6"),
    ("[1] 2", "Extra data, line 1, column 5"),
    ('{"a": [1, NaN]}', "$.a[1] is nan"),
    ("-Infinity", "$ is -inf"),
    ("[1e400]", "$[0] is inf"),
    ('{"a": "\\ud800"}', "$.a holds a lone surrogate"),
    (b'"\xff"', "can't decode byte 0xff in position 1"),
    (b"\xef\xbb\xbf1", "BOM"),
    ("1" * 5000, "holds an integer of more than 4,300 digits; store it as text"),
    ("[" * 100_000, "is nested too deeply; flatten it"),
]


@pytest.mark.parametrize(
    ("location", "command", "bad"), spread([PLACES, ["set", "merge"], BAD], 4), indirect=["location"]
)
def test_bad_json(run: Run, store: cm.CloudStoreMapping[Any], command: str, bad: tuple[str | bytes, str]) -> None:
    """What is no JSON is exit status 2 and one line that says where, and nothing is written."""
    text, place = bad
    store["key"] = "before"
    result = run(command, "key", "-", stdin=text)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("cloudstore: Standard input is not JSON: ")
    assert place in result.stderr
    assert store["key"] == "before"


def test_the_last_of_equal_names_wins(run: Run, store: cm.CloudStoreMapping[Any]) -> None:
    """Of equal names in one object the last counts, as everywhere here."""
    assert run("set", "key", '{"a": 1, "a": 2}').exit_code == 0
    assert store["key"] == {"a": 2}


def test_a_file_that_is_not_there(run: Run, store: cm.CloudStoreMapping[Any], tmp_path: Path) -> None:
    """@file that can't be read is exit status 2, and nothing is written."""
    result = run("set", "key", f"@{tmp_path / 'absent'}")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "No such file" in result.stderr
    assert list(store) == []


def test_the_environment_says_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --at it is CLOUDSTORE_URL, and without that cloudstore.db in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLOUDSTORE_URL", raising=False)
    assert CliRunner().invoke(app, ["set", "key", "1"]).exit_code == 0
    with cm.open("cloudstore.db") as store:
        assert store["key"] == 1
    monkeypatch.setenv("CLOUDSTORE_URL", "sqlite:///other.db")
    assert CliRunner().invoke(app, ["set", "key", "2"]).exit_code == 0
    with cm.open("other.db") as store:
        assert store["key"] == 2


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[str]:
    """The address of a store whose key `list` has the edit password `édit` and the view password `view`."""
    with Service(new_storage(tmp_path / "service.db")) as service, background(service) as address:
        location = address.replace("://", f"://{service.accounts.create('tests')}@")
        with cm.open(location) as store:
            store["list"] = {}
        service.set_passwords("tests", "list", edit="édit", view="view")
        yield location


@pytest.mark.parametrize("line_end", ["\n", "\r\n", ""])
def test_the_password_is_the_first_line_of_a_pipe(locked: str, line_end: str) -> None:
    """--password reads the first line of a standard input that is no terminal, without its line end."""
    result = CliRunner().invoke(app, ["get", "list", "--password", "--at", locked], input=f"view{line_end}")
    assert (result.exit_code, result.output) == (0, "{}\n")


def test_the_value_may_follow_the_password(locked: str) -> None:
    """What follows the password on standard input is left for a JSON of -."""
    result = CliRunner().invoke(app, ["set", "list", "-", "--password", "--at", locked], input='édit\n{"a":\n1}\n')
    assert (result.exit_code, result.output) == (0, "")
    with cm.open(locked, password="édit") as store:
        assert store["list"] == {"a": 1}


@pytest.mark.parametrize("arguments", [["get", "list"], ["set", "list", "1"], ["merge", "list", "1"], ["rm", "list"]])
def test_a_wrong_password(locked: str, arguments: list[str]) -> None:
    """A locked key is exit status 1 with or without a password, and the password is never shown."""
    missing = CliRunner().invoke(app, [*arguments, "--at", locked])
    wrong = CliRunner().invoke(app, [*arguments, "--json", "--password", "--at", locked], input="open-sesame\n")
    assert (missing.exit_code, wrong.exit_code) == (1, 1)
    assert "locked" in missing.stderr
    assert json.loads(wrong.stderr)["error"] == "LockedError"
    assert "open-sesame" not in wrong.output
    assert CliRunner().invoke(app, ["ls", "--at", locked]).stdout == "list\n"


@pytest.mark.parametrize("stdin", [b"", b"\xff\n"])
def test_no_password_to_read(locked: str, stdin: bytes) -> None:
    """A standard input without a readable first line is exit status 2."""
    result = CliRunner().invoke(app, ["get", "list", "--password", "--at", locked], input=stdin)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "password" in result.stderr
