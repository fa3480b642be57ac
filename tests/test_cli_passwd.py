"""`passwd` sets the passwords of files as their owner: of a service's account, or of an embedded store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.cli import app
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.storages import location, new_storage
from tests.support.command_line import CliRunner, Result
from tests.test_cli_terminal import on_terminal

OWN_KEY = "an-owner.s_own~key"


def run(*arguments: str, stdin: str = "") -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, arguments, input=stdin)


@pytest.fixture
def file(tmp_path: Path) -> str:
    """An embedded store with three keys."""
    file = location(tmp_path / "store.db")
    with cm.open(file) as store:
        store.update({"list": 1, "a/b": 2, "plain": 3})
    return file


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The file of a service that runs, with bob's three keys and a picture; and bob's location."""
    file = location(tmp_path / "service.db")
    with Service(new_storage(file)) as service, background(service) as address:
        theirs = address.replace("://", f"://{service.accounts.create('bob', OWN_KEY)}@")
        with cm.open(theirs) as store:
            store.update({"list": 1, "a/b": 2, "plain": 3})
            store.upload(b"picture", name="pic.txt", type="text/plain")
        yield file, theirs


def is_locked(location: str, key: str, *, password: str | None = None) -> bool:
    """Whether the key can't be saved with this password."""
    with cm.open(location, password=password) as store:
        try:
            store[key] = 0
        except cm.LockedError:
            return True
    return False


def test_an_edit_password_in_a_service(service: tuple[str, str]) -> None:
    """The password of several keys is set in a running service, in force at once, and --clear takes it away."""
    store, location = service
    result = run("passwd", "bob", "list", "a/b", "--edit", "--store", store, stdin="pie\n")
    assert (result.exit_code, result.output) == (0, "")
    assert [is_locked(location, key) for key in ("list", "a/b", "plain")] == [True, True, False]
    assert not is_locked(location, "list", password="pie")
    assert run("passwd", "bob", "list", "--clear", "--store", store).exit_code == 0
    assert [is_locked(location, key) for key in ("list", "a/b")] == [False, True]


def test_passwords_of_an_embedded_store(file: str) -> None:
    """With --at all arguments are keys; both passwords may be set at once, and one be cleared."""
    at = ["--at", file]
    assert run("passwd", *at, "list", "a/b", "--edit", "--view", stdin="pie\nglass\n").output == ""
    assert is_locked(file, "list", password="glass")
    assert not is_locked(file, "a/b", password="pie")
    with cm.open(file, password="glass") as store:
        assert store["list"] == 1
    assert run("passwd", *at, "list", "--edit", "--clear").output == ""
    assert not is_locked(file, "list")
    with cm.open(file) as store, pytest.raises(cm.LockedError):
        store["list"]
    assert run("passwd", *at, "list", "--clear").output == ""
    with cm.open(file) as store:
        assert store["list"] == 0


def test_all_keys_are_tried(file: str) -> None:
    """A key that isn't there is a line on stderr and exit status 1, and the others are locked all the same."""
    result = run("passwd", "--at", file, "x", "list", "y", "--edit", "--json", stdin="pie\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert [json.loads(line)["key"] for line in result.stderr.splitlines()] == ["x", "y"]
    assert is_locked(file, "list")


def test_every_key_that_is_listed_is_found(file: str) -> None:
    """`passwd` finds each key that `ls` prints."""
    keys = ["users/ann", "a,b", "100%", "%", "", "..", " x ", "a%2Fb", "tab\t"]
    with cm.open(file) as store:
        store.update(dict.fromkeys(keys, 1))
    assert run("passwd", "--at", file, "--edit", "--", *keys, stdin="pie\n").exit_code == 0
    assert all(is_locked(file, key) for key in keys)
    with cm.open(file, password="pie") as store:
        assert all(store.stat(key)["passwords"]["edit"] for key in keys)


def test_a_default_password(service: tuple[str, str]) -> None:
    """--default is the edit password of all the account's files that have none of their own."""
    store, location = service
    assert run("passwd", "bob", "--default", "--edit", "--store", store, stdin="pie\n").output == ""
    assert is_locked(location, "plain")
    assert not is_locked(location, "plain", password="pie")
    assert run("passwd", "bob", "--default", "--clear", "--store", store).output == ""
    assert not is_locked(location, "plain")


@pytest.mark.parametrize("names", [["pic.txt"], ["--default"]])
def test_passwords_of_media(service: tuple[str, str], names: list[str]) -> None:
    """--media is about media files by their names; the password is asked when one is replaced."""
    store, location = service
    assert run("passwd", "bob", *names, "--media", "--edit", "--store", store, stdin="pie\n").output == ""
    with cm.open(location) as mapping, pytest.raises(cm.LockedError):
        mapping.upload(b"other", name="pic.txt", type="text/plain")
    assert run("passwd", "bob", *names, "--media", "--clear", "--store", store).output == ""
    with cm.open(location) as mapping:
        mapping.upload(b"other", name="pic.txt", type="text/plain")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list"], "--edit"),
        (["--edit"], "keys"),
        (["list", "--edit", "--default"], "no keys"),
        (["list", "--view", "--media"], "view password"),
        (["--view", "--default"], "view password"),
        (["list", "--edit", "--store", "x"], "one of them"),
    ],
)
def test_usage(file: str, arguments: list[str], says: str) -> None:
    """What can't be meant is exit status 2 and one line, before a password is asked for."""
    result = run("passwd", "--at", file, *arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert says in result.stderr


def test_who_is_not_there(file: str, service: tuple[str, str], tmp_path: Path) -> None:
    """No account is exit status 1, no name or no file 2, and nothing is made."""
    absent = tmp_path / "absent.db"
    for arguments, status in (
        (["eve", "list", "--store", service[0]], 1),
        (["--store", service[0]], 2),
        (["list", "--at", str(absent)], 2),
        (["bob", "list", "--store", str(absent)], 2),
        (["list", "--at", "https://KEY@example.com/x"], 2),
    ):
        result = run("passwd", "--edit", *arguments, stdin="pie\n")
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (status, "", 1)
    assert not absent.exists()


def test_an_empty_password(file: str) -> None:
    """An empty password is exit status 2, for --clear is what takes one away."""
    result = run("passwd", "--at", file, "list", "--edit", stdin="\n")
    assert (result.exit_code, "--clear" in result.stderr) == (2, True)
    assert not is_locked(file, "list")


def test_a_terminal_asks_twice(file: str) -> None:
    """On a terminal a password is asked for twice, without echo, and a slip changes nothing."""
    arguments = ["passwd", "--at", file, "list", "--edit"]
    status, shown = on_terminal(*arguments, answers={b"word: ": b"pie\n", b"again: ": b"pi\n"})
    assert (status, shown.count("\n"), "not the same" in shown, "pie" in shown) == (2, 3, True, False)
    assert not is_locked(file, "list")
    status, shown = on_terminal(*arguments, answers={b"word: ": b"pie\n", b"again: ": b"pie\n"})
    assert (status, shown) == (0, "Edit password: \nEdit password again: \n")
    assert is_locked(file, "list")
