"""The command line on a store in PostgreSQL: served by many, kept safe, and never with its password shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import requests

import cloudstore_mapping as cm
from cloudstore_mapping.cli import app
from cloudstore_mapping.service.storage.places import place_of
from cloudstore_mapping.service.storage.postgres_migrations import newest
from tests.postgres_fixtures import address
from tests.serving import lines, serving, told
from tests.support.command_line import CliRunner, Result

__all__ = ["address"]

OWN_KEY = "an-owner.s_own~key"
TIMES = 1000

#: A program that merges many times into one key, under a name of its own.
PROGRAM = f"""
import sys, cloudstore_mapping as cm
location, mine = sys.argv[1:]
with cm.open(location) as store:
    for number in range({TIMES}):
        store.merge("shared", {{mine: {{str(number): number}}}})
"""


def run(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def store(address: str) -> str:
    """Return a store's address with a password in it, which a server that trusts everybody never asks for."""
    secret = address.replace("postgres@", "postgres:swordfish@")
    made = run("account", "create", "bob", "--api-key", OWN_KEY, "--store", secret)
    assert (made.exit_code, made.stderr) == (0, "")
    return secret


def test_compacting_is_left_to_postgres(store: str) -> None:
    """`compact` says that it does nothing on PostgreSQL, which reuses space by itself."""
    done = run("compact", "--store", store)
    assert (done.exit_code, done.stderr) == (0, "")
    assert " was left as it is: PostgreSQL reuses unused space by itself.\n" in done.stdout
    assert json.loads(run("compact", "--store", store, "--json").stdout)["rewritten"] is False


@pytest.mark.slow
def test_the_first_start(address: str) -> None:
    """A service on an empty database makes an owner, says where the data is without the password, and answers."""
    secret = address.replace("postgres@", "postgres:swordfish@")
    with serving("--store", secret) as process:
        answers, data, _, key, *_ = lines(process, 9)
        served = re.fullmatch(r"The service answers at (\S+), until Ctrl-C\.", answers)
        assert served is not None
        assert data == f"Its data is in {place_of(secret)}."
        with cm.open(served[1].replace("://", f"://{key.strip()}@")) as store:
            store["Shopping_List"] = {"Apples": 8}
            assert dict(store) == {"Shopping_List": {"Apples": 8}}
    with serving("--json", "--store", secret, "--workers", "2") as process:
        facts = told(process)
        assert (facts["store"], facts["api_key"]) == (str(place_of(secret)), None)
        with cm.open(facts["address"].replace("://", f"://{key.strip()}@")) as store:
            assert store["Shopping_List"] == {"Apples": 8}
        metrics = requests.get(f"{facts['address']}/metrics", timeout=30).text
        size = re.search(r"^cloudstore_store_bytes (.+)$", metrics, re.MULTILINE)
        assert size is not None
        assert float(size[1]) > 0


def test_two_first_starts_at_once(address: str) -> None:
    """Of two services that start on one empty database at the same moment one makes the owner, and both answer."""
    with serving("--json", "--store", address) as one, serving("--json", "--store", address) as two:
        starts = [told(process) for process in (one, two)]
        (key,) = (start["api_key"] for start in starts if start["api_key"] is not None)
        for start in starts:
            with cm.open(start["address"].replace("://", f"://{key}@")) as store:
                store.merge("starts", {start["address"]: 1})
                assert start["address"] in store["starts"]


@pytest.mark.slow
def test_two_services_that_merge_into_one_key(store: str) -> None:
    """Two services on one database, each with a program that merges 1,000 times into the same key, lose nothing."""
    with serving("--json", "--store", store) as one, serving("--json", "--store", store) as two:
        locations = [told(process)["address"].replace("://", f"://{OWN_KEY}@") for process in (one, two)]
        programs = [
            subprocess.Popen([sys.executable, "-c", PROGRAM, location, mine], stderr=subprocess.PIPE, text=True)
            for location, mine in zip(locations, "ab", strict=True)
        ]
        for program in programs:
            _, complaint = program.communicate()
            assert (program.returncode, complaint) == (0, "")
        with cm.open(locations[0]) as opened:
            everything = {str(number): number for number in range(TIMES)}
            assert opened["shared"] == {"a": everything, "b": everything}


def test_accounts_and_passwords(store: str) -> None:
    """Accounts are listed, changed and deleted, and passwords set, as of a store in a file."""
    with serving("--json", "--store", store) as process:
        location = told(process)["address"].replace("://", f"://{OWN_KEY}@")
        with cm.open(location) as opened:
            opened["list"] = 1
            assert run("passwd", "bob", "list", "--view", "--clear", "--store", store).exit_code == 0
            assert run("account", "disable", "bob", "--store", store).exit_code == 0
            with pytest.raises(cm.DisabledError):
                opened["list"]
    listed = json.loads(run("account", "list", "--json", "--store", store).stdout)
    assert listed == [{"account": "bob", "disabled": True, "plan": "unlimited"}]
    assert run("account", "delete", "bob", "--yes", "--store", store).exit_code == 0
    assert run("account", "list", "--store", store).stdout == ""


def test_keeping_it_safe(store: str, tmp_path: Path) -> None:
    """It is checked, copied into a file, and made a store again."""
    label, backup = place_of(store), tmp_path / "backup"
    checked = run("check", "--store", store)
    assert (checked.exit_code, checked.stdout.splitlines()[:2]) == (0, [f"{label} (schema {newest()})", "accounts: 1"])
    made = run("backup", backup, "--store", store)
    assert (made.exit_code, made.stdout, made.stderr) == (0, f"{label} is copied to {backup}.\n", "")
    refused = run("restore", backup, "--store", store)
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "a store in the database already" in refused.stderr
    assert run("migrate", "--store", store).stdout == f"{label} has schema {newest()}, the newest there is.\n"


def test_moving_it(store: str, tmp_path: Path) -> None:
    """`migrate-store` copies it into a file, and says how many rows of what it copied, or as JSON."""
    file = tmp_path / "service.db"
    moved = run("migrate-store", store, file)
    assert (moved.exit_code, moved.stderr) == (0, "")
    assert re.fullmatch(
        rf"{re.escape(str(place_of(store)))} is copied to {file}: 1 accounts, 1 api keys, .*\.\n", moved.stdout
    )
    again = run("migrate-store", file, tmp_path / "again.db", "--json")
    facts = json.loads(again.stdout)
    assert (facts["from"], facts["to"], facts["rows"]["accounts"]) == (str(file), str(tmp_path / "again.db"), 1)
    refused = run("migrate-store", file, store)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "swordfish" not in refused.stderr + moved.stdout


@pytest.mark.parametrize("command", [["check"], ["migrate"], ["account", "list"], ["backup", "b"]])
def test_a_database_without_a_store(address: str, command: list[str]) -> None:
    """A command that makes no store finds none, and leaves the database empty."""
    result = run(*command, "--store", address)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "There is no store" in result.stderr
    with psycopg.connect(address) as connection:
        query = "SELECT count(*) FROM information_schema.tables WHERE table_schema = current_schema()"
        assert connection.execute(query).fetchone() == (0,)


@pytest.mark.parametrize("command", [["serve"], ["account", "list"], ["check"], ["migrate-store"]])
def test_a_database_that_is_not_reached(command: list[str], tmp_path: Path) -> None:
    """It is one line and status 3, without the password."""
    address = f"postgresql://bob:swordfish@/store?host={tmp_path}"
    arguments = [*command, address, tmp_path / "to"] if command == ["migrate-store"] else [*command, "--store", address]
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (3, "", 1)
    assert "not reached" in result.stderr
    assert "swordfish" not in result.stderr


@pytest.mark.parametrize("address", ["postgresql://bob:swordfish", "postgresql://bob:100%swordfish@db/store"])
def test_an_address_that_can_t_be_understood(address: str) -> None:
    """It is one line and status 2, without the password."""
    result = run("account", "list", "--store", address)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "can't be understood" in result.stderr
    assert "swordfish" not in result.stderr
