"""`account` makes, shows, changes and deletes the accounts of a service, running or not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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
def store(tmp_path: Path) -> str:
    """The store of a service with the account bob, whose API key is `OWN_KEY`."""
    store = location(tmp_path / "service.db")
    with Service(new_storage(store)) as service:
        service.accounts.create("bob", OWN_KEY)
    return store


def account(store: str, *arguments: str) -> str:
    """Run a command on accounts that goes well, and return what it prints."""
    result = run("account", *arguments, "--store", store)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def shown(store: str, name: str = "bob") -> Any:
    """Return what `account show --json` prints."""
    return json.loads(account(store, "show", name, "--json"))


def test_an_account_of_a_running_service(tmp_path: Path) -> None:
    """`account create` prints the API key alone, and a service that runs knows it at once."""
    store_ = location(tmp_path / "service.db")
    with Service(new_storage(store_)) as service, background(service) as address:
        result = run("account", "create", "bob", "--store", store_)
        assert (result.exit_code, result.stderr) == (0, "")
        assert re.fullmatch(r"[A-Za-z0-9]{32}\n", result.stdout)
        with cm.open(address.replace("://", f"://{result.stdout.strip()}@")) as store:
            store["key"] = 1
            assert dict(store) == {"key": 1}


def test_an_account_for_a_program_is_pinned(tmp_path: Path) -> None:
    """`account create --json` prints one object with the name and the API key."""
    result = run("account", "create", "bob", "--api-key", OWN_KEY, "--json", "--store", str(tmp_path / "service.db"))
    assert (result.exit_code, result.stdout) == (0, f'{{"account":"bob","api_key":"{OWN_KEY}"}}\n')


def test_an_api_key_from_standard_input(tmp_path: Path) -> None:
    """--api-key - takes the first line of standard input, for command lines can be seen by others."""
    result = run("account", "create", "bob", "--api-key", "-", "--store", str(tmp_path / "service.db"), stdin=OWN_KEY)
    assert (result.exit_code, result.stdout) == (0, f"{OWN_KEY}\n")


def test_a_name_or_key_that_is_taken(tmp_path: Path) -> None:
    """A name or key that is taken is exit status 1 and one line, which shows no key."""
    store = ["--store", str(tmp_path / "service.db")]
    assert run("account", "create", "bob", "--api-key", OWN_KEY, *store).exit_code == 0
    same_name = run("account", "create", "bob", *store)
    same_key = run("account", "create", "eve", "--api-key", OWN_KEY, *store)
    for result in (same_name, same_key):
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        assert OWN_KEY not in result.stderr
    assert "'bob'" in same_name.stderr


def test_an_account_on_a_plan_with_a_password(tmp_path: Path) -> None:
    """--plan gives the plan's limits, --password a one-time password on a second line."""
    store = location(tmp_path / "service.db")
    key, password = account(store, "create", "bob", "--plan", "basic", "--password").splitlines()
    assert (len(key), len(password) > 10) == (32, True)
    facts = shown(store)
    assert facts["limits"] == {
        "files": 100,
        "file-bytes": 3072,
        "daily-accesses": 300,
        "interval": 3.0,
        "media-bytes": None,
        "total-bytes": None,
    }
    assert [made["begins"] for made in facts["keys"]] == [key[:4]]
    with Service(new_storage(store)) as service:
        assert service.owners.sign_in("bob", password, "127.0.0.1")


def test_list_and_show_for_people(store: str) -> None:
    """`list` prints a line an account, `show` one a fact; neither shows more of a key than its beginning."""
    account(store, "create", "al", "--plan", "basic")
    account(store, "disable", "al")
    assert account(store, "list") == "al   basic  switched off\nbob  unlimited\n"
    text = account(store, "show", "bob")
    assert "files:          unlimited\n" in text
    assert re.search(r"^API key: +an-o…, made 20\d\d-\d\d-\d\d$", text, re.MULTILINE)
    assert OWN_KEY not in text


def test_list_for_a_program_is_pinned(store: str) -> None:
    """`list --json` prints one array of objects."""
    assert account(store, "list", "--json") == '[{"account":"bob","plan":"unlimited","disabled":false}]\n'


@pytest.mark.parametrize(
    ("limits", "name", "value"),
    [
        (["files=7"], "files", 7),
        (["file-bytes=3KiB"], "file-bytes", 3072),
        (["file-bytes=1.5 MB"], "file-bytes", 1_500_000),
        (["daily-accesses=10"], "daily-accesses", 10),
        (["interval=0.5"], "interval", 0.5),
        (["media-bytes=1GiB"], "media-bytes", 2**30),
        (["total-bytes=5"], "total-bytes", 5),
        (["files=7", "plan=basic"], "files", 7),
        (["plan=basic", "files=unlimited"], "files", None),
        (["plan=basic"], "daily-accesses", 300),
    ],
)
def test_set(store: str, limits: list[str], name: str, value: object) -> None:
    """`set` changes limits, a plan first; sizes may have a unit, and `unlimited` is none."""
    assert account(store, "set", "bob", *limits) == ""
    assert shown(store)["limits"][name] == value


@pytest.mark.parametrize(
    "limit", ["files", "files=", "files=0", "files=-1", "files=1.5", "file-bytes=3XB", "interval=nan", "pace=1", "=1"]
)
def test_set_of_what_is_no_limit(store: str, limit: str) -> None:
    """What sets no limit is exit status 2 and one line, and nothing is changed, not even by what stands beside it."""
    result = run("account", "set", "bob", "plan=basic", limit, "--store", store)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert shown(store)["plan"] == "unlimited"


def test_a_plan_that_is_none(store: str) -> None:
    """A plan that there isn't is exit status 1, and the line names those that there are."""
    result = run("account", "set", "bob", "plan=gold", "--store", store)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "basic" in result.stderr


def opened(address: str, key: str) -> cm.CloudStoreMapping[Any]:
    """Return a dictionary over the service at the address."""
    return cm.open(address.replace("://", f"://{key}@"))


def test_disable_and_enable(store: str) -> None:
    """An account that is switched off is refused by a service that runs, until it is on again."""
    with Service(new_storage(store)) as service, background(service) as address, opened(address, OWN_KEY) as mapping:
        mapping["key"] = 1
        account(store, "disable", "bob")
        with pytest.raises(cm.DisabledError):
            mapping["key"]
        account(store, "enable", "bob")
        assert mapping["key"] == 1


def opens(store: str, key: str) -> bool:
    """Whether the API key opens an account."""
    with Service(new_storage(store)) as service, background(service) as address, opened(address, key) as mapping:
        try:
            return list(mapping) == []
        except cm.BadKeyError:
            return False


def test_keys_are_rotated_in_two_steps(store: str) -> None:
    """`rotate-key` prints a key that works beside the old one; with --drop-old it makes none and ends the old one."""
    key = account(store, "rotate-key", "bob").strip()
    assert (opens(store, key), opens(store, OWN_KEY)) == (True, True)
    assert account(store, "rotate-key", "bob", "--drop-old", "--json") == '{"account":"bob","dropped":1}\n'
    assert (opens(store, key), opens(store, OWN_KEY)) == (True, False)


def test_reset_password(store: str) -> None:
    """`reset-password` prints a password that the owner can sign in with, alone or as JSON."""
    password = account(store, "reset-password", "bob").strip()
    with Service(new_storage(store)) as service:
        assert service.owners.sign_in("bob", password, "127.0.0.1")
    facts = json.loads(account(store, "reset-password", "bob", "--json"))
    assert (facts["account"], facts["password"] != password) == ("bob", True)


def test_delete_asks_first(store: str) -> None:
    """`delete` without --yes changes nothing where nobody can be asked; with it the account is gone."""
    result = run("account", "delete", "bob", "--store", store, stdin="bob\n")
    assert (result.exit_code, result.stderr.count("\n"), "--yes" in result.stderr) == (2, 1, True)
    assert not opens(store, "0" * 32)
    assert opens(store, OWN_KEY)
    account(store, "delete", "bob", "--yes")
    assert account(store, "list") == ""


def test_delete_on_a_terminal_wants_the_name(store: str) -> None:
    """On a terminal `delete` asks for the account's name, and anything else changes nothing."""
    arguments = ["account", "delete", "bob", "--store", store]
    assert on_terminal(*arguments, answers={b"Type its name: ": b"yes\n"})[0] == 2
    assert opens(store, OWN_KEY)
    assert on_terminal(*arguments, answers={b"Type its name: ": b"bob\n"})[0] == 0
    assert account(store, "list") == ""


@pytest.mark.parametrize("command", ["show", "disable", "enable", "rotate-key", "reset-password", "delete"])
def test_an_account_that_is_not_there(store: str, command: str) -> None:
    """A command on an account that there isn't is exit status 1 and one line."""
    result = run("account", command, "eve", "--store", store)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "'eve'" in result.stderr


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    """A command other than `create` makes no store, for its name may be a slip: exit status 2 and one line."""
    result = run("account", "list", "--store", str(tmp_path / "slip.db"))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert list(tmp_path.iterdir()) == []


def test_the_environment_names_the_store(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --store it is CLOUDSTORE_SERVICE_STORE, as for `serve`."""
    monkeypatch.setenv("CLOUDSTORE_SERVICE_STORE", str(store))
    assert run("account", "list").stdout == "bob  unlimited\n"
