"""A store that an older version made opens with everything in it, and only who writes to it migrates it."""

from __future__ import annotations

import gzip
import logging
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.cli import app
from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.service.quotas import Clock
from cloudstore_mapping.service.security import Argon2Hasher
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.migrations import newest, schema_steps
from cloudstore_mapping.service.storage.places import place_of
from cloudstore_mapping.service.storage.records import AccessCount, Counters, Limits
from cloudstore_mapping.wire import Request, decode_value, encode_value
from tests.path_operations import commands
from tests.service_fakes import Asker
from tests.storages import new_database
from tests.support.command_line import CliRunner, Result

pytestmark = pytest.mark.sqlite("about a file")

#: A store of a service, made by commit e5084d3 with schema 2; see the test for what is in it.
SAMPLE = Path(__file__).parent.parent / "samples" / "e5084d3.db.gz"
KEY = "ann-0123456789-0123456789"
#: When it was made, and the token of a session that began then.
MADE_AT = 1_767_225_600.0
TOKEN = "XK3IvjukU3V4Snb5g3b97Rbd5I1Rre16sokvfMwClsQ"
DATABASE_TOKEN = "472iyVJv1kIjlEi_VMt7r9cFqnpb1eUjbFsb4jr3XBk"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return a copy of the sample."""
    path = tmp_path / "old.db"
    path.write_bytes(gzip.decompress(SAMPLE.read_bytes()))
    return path


def schema(path: Path) -> int:
    """Return the number of a file's schema."""
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def run(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def old_database() -> str:
    """Return the address of a database with what that version kept in PostgreSQL."""
    address = new_database()
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(address) as connection:
        connection.execute(schema_steps("postgres")[0])
        connection.execute("CREATE TABLE cloudstore (version BIGINT NOT NULL, unfinished BOOLEAN NOT NULL)")
        connection.execute(gzip.decompress(SAMPLE.with_suffix("").with_suffix(".sql.gz").read_bytes()).decode())
    return address


def test_everything_in_a_file_is_there(old: Path) -> None:
    """Accounts, keys, limits, data, passwords, versions, counts, media, sessions and stored replies come along."""
    with closing(sqlite3.connect(old)) as connection:
        versions = dict(connection.execute("SELECT name, version FROM files").fetchall())
    everything_is_there(str(old), versions, TOKEN)
    assert run("check", "--store", old).exit_code == 0


@pytest.mark.parametrize("command", ["compact", "check --repair"])
def test_maintenance_migrates_nothing(command: str, old: Path) -> None:
    """`compact` and `check --repair` refuse an older store, say what to do, and change no byte of it."""
    before = old.read_bytes()
    done = run(*command.split(), "--store", old)
    assert (done.exit_code, old.read_bytes()) == (2, before)
    assert "run `cloudstore migrate` first" in " ".join(done.stderr.split())
    assert run("migrate", "--store", old).exit_code == 0
    assert run(*command.split(), "--store", old).exit_code == 0


def test_everything_in_a_database_is_there(old_database: str) -> None:
    """So does all that is in PostgreSQL; what only reads is refused before, and migrates nothing."""
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(old_database) as connection:
        versions = dict(connection.execute("SELECT name, version FROM files").fetchall())
    refused = run("account", "list", "--store", old_database)
    assert (refused.exit_code, "`cloudstore migrate" in refused.stderr) == (2, True)
    assert run("check", "--store", old_database).exit_code == 0
    assert place_of(old_database).schema() == 1
    everything_is_there(old_database, versions, DATABASE_TOKEN)
    assert run("check", "--store", old_database).exit_code == 0
    assert run("account", "list", "--store", old_database).exit_code == 0


def everything_is_there(location: str, versions: dict[str, str], token: str) -> None:
    """Look at all that is in the sample."""
    with Service(place_of(location).open(), clock=Clock(wall=lambda: MADE_AT)) as service:
        ann, bob, off = service.accounts.all()
        assert ann.limits == Limits(max_files=50, max_total_bytes=2**20)
        assert (bob.plan, off.disabled) == ("basic", True)
        ask = Asker(service, KEY)
        assert ask.value("plain") == {"a": [1, 2.5, None, "naïve"]}
        assert (ask.value("users/ann"), ask.value("100%")) == (1, "percent")
        assert ask.load("locked").error == "Locked"
        assert ask.value("locked", "view-it") == "secret"
        assert ask.save("locked", 1, "view-it").error == "Locked"
        assert {name: ask.load(name, "view-it").version for name in versions} == versions
        with service._storage.read() as transaction:
            assert transaction.accesses(ann.id, "data", "plain") == AccessCount(20454, 4, MADE_AT)
            assert transaction.counters(ann.id) == transaction.recounted(ann.id) == Counters(6, 524460, 1, 80, 0)
            assert transaction.counters(off.id) is None
        again = Request(api_key=KEY, name="once", value=encode_value("second"), once="request-1")
        assert service.handle(again).error is None
        assert ask.value("once") == "first"
        hello = service.media.named(ann, "hello.txt")
        assert b"".join(service.media.chunks(hello)) == b"hello, world"
        signed_in = service.owners.session(token)
        assert signed_in is not None
        assert signed_in.account.name == "ann"
        assert decode_value(ask.list().data) == sorted(versions)  # type: ignore[arg-type]  # there always is some


@pytest.mark.parametrize(
    "command",
    [
        "backup COPY --store OLD",
        "check --store OLD",
        "account list --store OLD",
        "account show ann --store OLD",
        "migrate --dry-run --store OLD",
        "migrate-names --dry-run --store OLD",
        "migrate-store OLD COPY",
    ],
)
def test_commands_that_only_read_migrate_nothing(old: Path, tmp_path: Path, command: str) -> None:
    """A command that only reads leaves a store of an older version to that version, byte for byte."""
    before = old.read_bytes()
    copy = tmp_path / "copy.db"
    done = run(*[word.replace("OLD", str(old)).replace("COPY", str(copy)) for word in command.split()])
    assert (done.exit_code, done.stderr) == (0, "")
    assert old.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path != copy] == ["old.db"]
    if command.startswith("backup"):
        assert schema(copy) == schema(old) == 2
        assert run("restore", copy, "--store", tmp_path / "again.db").exit_code == 0
        assert schema(tmp_path / "again.db") == 2


def embedded(old: Path) -> None:
    """Make a store of an older version that of an embedded one."""
    with closing(sqlite3.connect(old)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("DELETE FROM accounts WHERE name <> 'ann'")
        connection.execute("UPDATE accounts SET name = 'local', max_files = NULL, max_total_bytes = NULL")
        connection.execute("UPDATE accounts SET data_password = NULL, media_password = NULL")
        connection.execute("UPDATE files SET edit_password = NULL, view_password = NULL")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@pytest.mark.parametrize("command", ["get plain", "ls", "stat plain", "export FILE"])
def test_commands_that_only_read_an_embedded_store(old: Path, tmp_path: Path, command: str) -> None:
    """So does a command on a program's own store."""
    embedded(old)
    done = run(*command.replace("FILE", str(tmp_path / "all.json")).split(), "--at", old)
    assert (done.exit_code, done.stderr) == (0, "")
    with cm.open(old, readonly=True) as store:
        assert store["users/ann"] == 1
    assert schema(old) == 2


#: Commands on a service's store that are refused, each with its standard input; SAMPLE is another one of the same kind.
REFUSED = {
    "set k 1 --at OLD": "",
    "merge k 1 --at OLD": "",
    "rm plain --at OLD": "",
    "edit plain --at OLD": "",
    "upload FILE --at OLD": "",
    "import FILE --format json --at OLD": "",
    "import OLD --at NEW": "",
    "export FILE --at OLD": "",
    "export OLD --format store --at NEW": "",
    "get absent --at OLD": "",
    "stat absent --at OLD": "",
    "download /files/0/0 --at OLD": "",
    "passwd plain --clear --at OLD": "",
    "passwd absent plain --clear --store OLD": "",
    "passwd ann absent --clear --store OLD": "",
    "passwd ann absent --media --clear --store OLD": "",
    "passwd ann plain --edit --store OLD": "password1\n",
    "passwd ann plain --view --store OLD": "",
    "account create ann --store OLD": "",
    "account create new --password --plan none --store OLD": "",
    "account create new --api-key short --store OLD": "",
    f"account create new --api-key {KEY} --store OLD": "",
    "account show absent --store OLD": "",
    "account set absent files=1 --store OLD": "",
    "account set ann plan=none --store OLD": "",
    "account disable absent --store OLD": "",
    "account enable absent --store OLD": "",
    "account rotate-key absent --store OLD": "",
    "account rotate-key absent --drop-old --store OLD": "",
    "account reset-password absent --store OLD": "",
    "account delete absent --yes --store OLD": "",
    "account delete ann --store OLD": "",
    "serve --port BUSY --store OLD": "",
    "compact --store OLD": "",
    "check --repair --store OLD": "",
    "backup FILE --store OLD": "",
    "restore SAMPLE --store OLD": "",
    "migrate-store SAMPLE OLD": "",
}
#: The same on an embedded store.
REFUSED_EMBEDDED = {
    "set locked 1 --at OLD": "",
    "set locked 1 --password --at OLD": "wrong\n",
    "merge locked 1 --at OLD": "",
    "merge plain NOTJSON --at OLD": "",
    "rm absent locked --at OLD": "",
    "edit locked --at OLD": "",
    "edit plain --at OLD": "",
    "upload ABSENT --at OLD": "",
    "upload FILE --as hello.txt --at OLD": "",
    "import BROKEN --at OLD": "",
    "import OLD --at OLD": "",
    "export OLD --format store --at OLD": "",
    "passwd absent --edit --at OLD": "a good secret\n",
    "passwd plain --edit --at OLD": "",
}
#: Commands that migrate on purpose, list accounts, which can't be refused, or have no store.
NEVER_REFUSED = {"migrate", "migrate-names", "account list", "ls", "demo", "doctor"}


def refused(command: str, given: str, folder: Path, old: Path | str) -> Result:
    """Run a command in the folder with the words in capitals filled in, and return its result; no bytes may change."""
    for name in ("FILE", "BROKEN"):
        (folder / name).write_text('{"k": 1}' if name == "FILE" else "{")
    (folder / "SAMPLE").write_bytes(gzip.decompress(SAMPLE.read_bytes()))
    with cm.open(folder / "NEW") as new:
        new["k"] = 1
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with socket.create_server(("127.0.0.1", 0)) as busy:
        words = {"OLD": str(old), "BUSY": str(busy.getsockname()[1])}
        words |= {name: str(folder / name) for name in ("FILE", "BROKEN", "SAMPLE", "NEW", "ABSENT")}
        arguments = [words.get(word, word) for word in command.split()]
        done = CliRunner().invoke(app, arguments, input=given, env={"EDITOR": "false"})
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    return done


@pytest.mark.parametrize("command", REFUSED)
def test_a_refused_command_migrates_nothing(command: str, old: Path, tmp_path: Path) -> None:
    """A command that is refused in the end leaves a service's store of an older version as it is, byte for byte."""
    done = refused(command, REFUSED[command], tmp_path, old)
    assert done.exit_code in (1, 2), done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("command", REFUSED_EMBEDDED)
def test_a_refused_command_on_an_embedded_store(command: str, old: Path, tmp_path: Path) -> None:
    """So does a command on a program's own store."""
    embedded(old)
    with closing(sqlite3.connect(old)) as connection:
        password = Argon2Hasher().hash("right")
        connection.execute(
            "UPDATE files SET edit_password = ?, view_password = ? WHERE name = 'locked'", [password] * 2
        )
        connection.execute("UPDATE media SET edit_password = ?", [password])
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    done = refused(command, REFUSED_EMBEDDED[command], tmp_path, old)
    assert done.exit_code in (1, 2), done.output


def test_refused_commands_on_a_database(old_database: str, tmp_path: Path) -> None:
    """So does each command on a database; those that would change it name the command that migrates it."""
    for command, given in REFUSED.items():
        done = refused(command, given, tmp_path, old_database)
        assert (done.exit_code in (1, 2), place_of(old_database).schema()) == (True, 1), command
    change = ("account", "disable", "ann", "--store", old_database)
    assert "`cloudstore migrate --store" in run(*change).stderr
    assert run("migrate", "--store", old_database).exit_code == 0
    assert run(*change).exit_code == 0


@pytest.mark.parametrize(
    ("command", "given", "printed"),
    [
        ("account set ann files=60 --store OLD", "", ""),
        ("account set ann plan=basic --store OLD", "", ""),
        ("account create new --api-key - --store OLD", "new-0123456789-0123456789\n", "new-0123456789-0123456789\n"),
        ("account rotate-key ann --drop-old --store OLD", "", "API keys that ended: 0\n"),
        ("account delete ann --yes --store OLD", "", ""),
        ("passwd ann plain absent --edit --store OLD", "a good secret\n", ""),
        ("passwd ann hello.txt --media --clear --store OLD", "", ""),
        ("rm plain absent --at EMBEDDED", "", "Deleted 1 of 2 keys; 1 failed.\n"),
        ("set plain - --at EMBEDDED", "[1]", ""),
        ("merge plain - --at EMBEDDED", '{"b": 2}', ""),
        ("edit plain --at EMBEDDED", "", "Saved.\n"),
    ],
)
def test_a_command_that_is_not_refused(command: str, given: str, printed: str, old: Path) -> None:
    """A command that writes migrates the store, asks and prints only once, and does its work once."""
    if "EMBEDDED" in command:
        embedded(old)
    words = {"OLD": str(old), "EMBEDDED": str(old)}
    arguments = [words.get(word, word) for word in command.split()]
    done = CliRunner().invoke(app, arguments, input=given, env={"EDITOR": "sed -i s/2.5/7/"})
    assert (done.stdout, schema(old)) == (printed, newest()), done.stderr
    again = CliRunner().invoke(app, ["account", "show", "ann", "--store", str(old)])
    assert (again.exit_code == 0) == ("EMBEDDED" not in command and "delete" not in command)


def test_an_edit_without_a_change(old: Path) -> None:
    """An edit of an older store that changes nothing migrates nothing."""
    embedded(old)
    before = old.read_bytes()
    done = CliRunner().invoke(app, ["edit", "plain", "--at", str(old)], env={"EDITOR": "true"})
    assert (done.exit_code, old.read_bytes()) == (0, before)


def test_an_upload_from_a_pipe(old: Path) -> None:
    """An upload to an older store stores all bytes of a pipe, and prints one link."""
    embedded(old)
    command = [sys.executable, "-m", "cloudstore_mapping", "upload", "-", "--as", "new.txt", "--at", str(old)]
    done = subprocess.run(command, input="all bytes", capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    got = CliRunner().invoke(app, ["download", done.stdout.strip(), "--to", "-", "--at", str(old)])
    assert (got.stdout, schema(old)) == ("all bytes", newest())


@pytest.mark.parametrize("command", ["rotate-key", "reset-password"])
def test_a_secret_for_an_older_store(command: str, old: Path) -> None:
    """A secret that is made for an older store is printed once, and opens the store."""
    done = run("account", command, "ann", "--store", old)
    (secret,) = done.stdout.splitlines()
    with Service(place_of(str(old)).open()) as service:
        if command == "rotate-key":
            assert Asker(service, secret).value("users/ann") == 1
        else:
            assert service.owners.sign_in("ann", secret, "here") is not None


def test_a_program_that_opens_a_services_store(old: Path, old_database: str) -> None:
    """A program's `open` of a service's older store is refused before a migration, on both engines."""
    before = old.read_bytes()
    for location in (str(old), old_database):
        with pytest.raises(UnsupportedError, match="cloudstore serve"):
            cm.open(location)
    assert old.read_bytes() == before
    assert place_of(old_database).schema() == 1


def test_names_that_were_noted_but_not_renamed(old: Path, old_database: str) -> None:
    """A store that a later version began to migrate, with files still to be renamed, is refused unchanged as well."""
    psycopg = pytest.importorskip("psycopg")
    note = "INSERT INTO old_names (account_id, name) VALUES (1, 'users%2Fann')"
    with closing(sqlite3.connect(old)) as connection:
        connection.executescript("".join(schema_steps("sqlite")[2:4]))
        connection.executescript(f"{note}; PRAGMA user_version = 4; PRAGMA wal_checkpoint(TRUNCATE)")
    with psycopg.connect(old_database) as connection:
        connection.execute(schema_steps("postgres")[1])
        connection.execute("UPDATE cloudstore SET version = 2")
        connection.execute(note)
    before = old.read_bytes()
    for location in (str(old), old_database):
        done = run("migrate", "--store", location)
        assert (done.exit_code, "migrate-names" in done.stderr) == (2, True)
    assert (old.read_bytes(), place_of(old_database).schema()) == (before, 2)


@pytest.mark.parametrize(
    "command",
    [
        "import OLD --at NEW",
        "import OLD --at NEW --dry-run",
        "import FILE --format json --at OLD --dry-run",
        "export OLD --format store --at NEW --dry-run",
    ],
)
def test_transfers_that_only_read(command: str, old: Path, tmp_path: Path) -> None:
    """An import from an older store, and a dry run of an import or export into it, migrate nothing."""
    embedded(old)
    before = old.read_bytes()
    (tmp_path / "FILE").write_text('{"k": 1}')
    with cm.open(tmp_path / "NEW") as new:
        new["k"] = 1
    words = {"OLD": str(old), "NEW": str(tmp_path / "NEW"), "FILE": str(tmp_path / "FILE")}
    done = run(*[words.get(word, word) for word in command.split()])
    assert (done.exit_code, done.stderr) == (0, "")
    assert old.read_bytes() == before


def test_every_command_is_among_them() -> None:
    """Each command of the command line is tried as one that is refused, unless it never is."""
    assert {
        name for name in commands() if any(line.startswith(f"{name} ") for line in REFUSED)
    } == commands().keys() - NEVER_REFUSED


def test_a_large_one_is_not_copied_into_memory(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a copy in memory would be too large, reading is refused with the commands to run, and nothing is changed."""
    monkeypatch.setattr("cloudstore_mapping.service.storage.places.MAX_COPY", 1000)
    refused = run("account", "list", "--store", old)
    assert refused.exit_code == 2
    assert "`cloudstore migrate`" in refused.stderr
    assert run("account", "disable", "ann", "--store", old).stderr == refused.stderr
    assert schema(old) == 2


def test_a_migration_is_announced_once(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who opens a store to write migrates it, and logs one line about it; a new store is not announced."""
    with caplog.at_level(logging.WARNING):
        for path in (old, old, old.with_name("new.db")):
            place_of(str(path)).open().close()
    assert [record.getMessage() for record in caplog.records] == [
        f"{old} was migrated from schema 2 to {newest()}; older versions of cloudstore-mapping can't open it any more."
    ]


def test_one_whose_files_must_be_renamed_stays_as_it_is(old: Path) -> None:
    """A store with names of version 0.1.0 is refused before anything in it is changed, and the command is told."""
    embedded(old)
    with closing(sqlite3.connect(old)) as connection:
        connection.execute("UPDATE files SET name = 'users%2Fann' WHERE name = 'users/ann'")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = old.read_bytes()
    with pytest.raises(UnsupportedError, match="migrate-names"):
        cm.open(old)
    for command in (["serve", "--port", "0"], ["migrate"]):
        refused = run(*command, "--store", old)
        assert refused.exit_code == 2
        assert "migrate-names" in refused.stderr
    assert old.read_bytes() == before
    assert run("migrate-names", "--store", old).exit_code == 0
    with cm.open(old) as store:
        assert store["users/ann"] == 1
