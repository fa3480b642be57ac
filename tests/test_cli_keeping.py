"""`backup`, `restore`, `check` and `migrate` keep a store safe, and never take one's place."""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
from contextlib import closing
from importlib import resources
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from cloudstore_mapping.cli import app
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.migrations import newest
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.storefiles import APPLICATION_ID
from cloudstore_mapping.web.server import background
from tests.support.command_line import CliRunner, Result

#: A store of a service of an older version; see `tests/storage/test_older.py`.
SAMPLE = Path(__file__).parent / "samples" / "e5084d3.db.gz"


def run(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a store with a value and a media file."""
    file = tmp_path / "service.db"
    with Service(SQLiteStorage(file)) as service, background(service) as address:
        key = service.accounts.create("bob", "an-owner.s_own~key")
        opened = cm.open(address.replace("://", f"://{key}@"))
        opened["name"] = {"a": 1}
        opened.upload(b"12345", "a.bin")
        opened.close()
    return file


def test_there_and_back(store: Path, tmp_path: Path) -> None:
    """A backup is made and restored, and the restored store is the same to its owner."""
    backup, again = tmp_path / "backup", tmp_path / "again.db"
    made = run("backup", backup, "--store", store)
    assert (made.exit_code, made.stdout, made.stderr) == (0, f"{store} is copied to {backup}.\n", "")
    restored = run("restore", backup, "--store", f"sqlite:///{again}", "--json")
    assert restored.exit_code == 0
    assert json.loads(restored.stdout) == {"store": str(again), "bytes": again.stat().st_size}
    with Service(SQLiteStorage(again)) as service, background(service) as address:
        with cm.open(address.replace("://", "://an-owner.s_own~key@")) as opened:
            assert dict(opened) == {"name": {"a": 1}}
        assert b"".join(service.media.chunks(service.media.named(service.accounts.named("bob"), "a.bin"))) == b"12345"


def test_the_secret_of_a_shelf_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that copy or look at a store with signed pickles say in one line which secret they need."""
    monkeypatch.delenv("CLOUDSTORE_SECRET", raising=False)
    shelf, copy, again = tmp_path / "shelf.db", tmp_path / "copy.db", tmp_path / "again.db"
    with shelve.open(shelf) as db:
        db["plain"] = 1
    assert "pickle" not in run("backup", tmp_path / "plain.db", "--store", shelf).stdout
    with shelve.open(shelf) as db:
        db["a"] = {1}
    beside = f"Nobody can read its signed pickles without {shelf}.secret; keep that file with each copy."
    lost = (
        "Nobody can read its signed pickles without their secret (FILE.secret or CLOUDSTORE_SECRET); keep it as well."
    )
    for note, command in [
        (beside, ["backup", copy, "--store", shelf]),
        (beside, ["check", "--store", shelf]),
        (beside, ["migrate-store", shelf, tmp_path / "moved.db"]),
        (lost, ["restore", copy, "--store", again]),
        (lost, ["check", "--store", again]),
        (beside, ["export", tmp_path / "all.json", "--at", shelf]),
        (beside, ["export", tmp_path / "all.jsonl", "--at", shelf]),
        (beside, ["export", tmp_path / "other.db", "--format", "store", "--at", shelf]),
    ]:
        told = run(*command)
        assert (told.exit_code, told.stdout.splitlines()[-1]) == (0, note)
    assert json.loads(run("check", "--json", "--store", shelf).stdout)["note"] == beside
    assert "Nobody" not in run("export", tmp_path / "old", "--format", "shelve", "--at", shelf).stdout


def test_a_backup_of_a_store_in_use(store: Path, tmp_path: Path) -> None:
    """The service goes on while its store is copied."""
    with Service(SQLiteStorage(store)) as service:
        made = run("backup", tmp_path / "backup", "--store", store, "--json")
        assert json.loads(made.stdout)["backup"] == str(tmp_path / "backup")
        service.accounts.create("late")
    assert "accounts: 1\n" in run("check", "--store", tmp_path / "backup").stdout


def flip(file: Path, before: bytes, after: bytes) -> None:
    """Flip a bit in a file, of what stands there once."""
    content = file.read_bytes()
    assert content.count(before) == 1
    assert sum((one ^ other).bit_count() for one, other in zip(before, after, strict=True)) == 1
    file.write_bytes(content.replace(before, after))


#: What is damaged by one bit, and the line that names it.
DAMAGE = {
    "value": (b'{"a":1}', b'{"a":3}', "The file 'name' of 'bob' doesn't match its checksum; save it again."),
    "media": (b"12345", b"12347", "The media file 'a.bin' of 'bob' doesn't match its checksum; upload it again."),
}


@pytest.mark.parametrize("end", ["-wal", "-SHM", "-journal"])
def test_a_name_of_a_log_is_refused(store: Path, tmp_path: Path, end: str) -> None:
    """No command makes a file under a name that SQLite gives a store's log, even if there is no such store yet."""
    backup, own, target = tmp_path / "backup", tmp_path / "own.db", tmp_path / f"other.db{end}"
    assert run("backup", backup, "--store", store).exit_code == 0
    assert run("set", "key", "1", "--at", own).exit_code == 0
    before = sorted(tmp_path.iterdir())
    for arguments in (
        ("backup", target, "--store", store),
        ("restore", backup, "--store", target),
        ("migrate-store", store, target),
        ("account", "create", "ann", "--store", target),
        ("set", "key", "1", "--at", target),
        ("import", own, "--at", target),
        *(("export", target, "--format", kind, "--at", own) for kind in ("json", "jsonl", "dbm", "shelve", "store")),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (2, ""), arguments
        assert result.stderr.startswith(f"cloudstore: {target} is no name for a")
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("damage", ["value", "media"])
def test_a_damaged_backup_is_refused(store: Path, tmp_path: Path, damage: str) -> None:
    """A bit that flipped in a value or media file of a backup is one line and status 2, and no store is made."""
    before, after, fault = DAMAGE[damage]
    run("backup", tmp_path / "backup", "--store", store)
    flip(tmp_path / "backup", before, after)
    files = sorted(tmp_path.iterdir())
    refused = run("restore", tmp_path / "backup", "--store", tmp_path / "again.db")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"cloudstore: {tmp_path}/backup is damaged and was not restored; "
        f"`cloudstore check --store {tmp_path}/backup` names each fault.\n"
    )
    assert sorted(tmp_path.iterdir()) == files
    assert fault in run("check", "--store", tmp_path / "backup").stdout


@pytest.mark.parametrize("damage", ["value", "media"])
def test_a_backup_of_a_damaged_store(store: Path, tmp_path: Path, damage: str) -> None:
    """What is damaged in a store is so in its backup, which is made all the same: a line each, and status 1."""
    before, after, fault = DAMAGE[damage]
    flip(store, before, after)
    made = run("backup", tmp_path / "backup", "--store", store)
    assert (made.exit_code, made.stderr) == (1, "")
    assert made.stdout == f"{store} is copied to {tmp_path / 'backup'}, and damaged.\n{fault}\n"
    assert json.loads(run("backup", tmp_path / "again", "--store", store, "--json").stdout)["faults"] == [fault]


@pytest.mark.parametrize("damage", ["value", "media"])
def test_a_damaged_store_is_not_moved(store: Path, tmp_path: Path, damage: str) -> None:
    """A store that holds something damaged is copied to no other engine, and says so in one line."""
    before, after, _ = DAMAGE[damage]
    flip(store, before, after)
    refused = run("migrate-store", store, tmp_path / "copy.db")
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "is damaged and was not copied" in refused.stderr
    assert not (tmp_path / "copy.db").exists()


def test_a_name_that_is_no_text(store: Path) -> None:
    """A damaged name is a fault as any other, and what comes after it is looked at too."""
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("UPDATE files SET name = CAST(x'6ee16d65' AS TEXT)")
        connection.commit()
    found = run("check", "--store", store)
    assert found.exit_code == 1
    assert found.stdout.splitlines()[-1] == "The file 'n\\udce1me' of 'bob' doesn't match its checksum; save it again."


def test_a_value_of_an_older_version(store: Path, tmp_path: Path) -> None:
    """A value that was stored without a checksum is no damage: it is backed up, restored and copied."""
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("UPDATE files SET version = 'AbCdEfGhIjKl'")
        connection.commit()
    for command in (
        ["backup", tmp_path / "backup", "--store", store],
        ["restore", tmp_path / "backup", "--store", tmp_path / "again.db"],
        ["migrate-store", store, tmp_path / "copy.db"],
    ):
        assert run(*command).exit_code == 0


def test_nothing_is_replaced(store: Path, tmp_path: Path) -> None:
    """A file that is there is left as it is, and says so in one line."""
    before = store.read_bytes()
    run("backup", tmp_path / "backup", "--store", store)
    for command in (("backup", tmp_path / "backup"), ("restore", tmp_path / "backup")):
        refused = run(*command, "--store", store)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "already; move it away" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert store.read_bytes() == before


@pytest.mark.parametrize(
    "command", [["backup", "b"], ["restore", "absent"], ["check"], ["migrate"], ["migrate", "--dry-run"]]
)
def test_what_is_not_there(tmp_path: Path, command: list[str]) -> None:
    """A store or backup that isn't there is one line and status 2, and none is made."""
    refused = run(*command, "--store", tmp_path / "absent.db")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "There is no " in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_check(store: Path) -> None:
    """What there is is counted; a fault is a line of its own and status 1."""
    good = run("check", "--store", store)
    assert (good.exit_code, good.stdout.splitlines()) == (
        0,
        [
            f"{store} (schema {newest()})",
            "accounts: 1",
            "data files: 1, 7 bytes",
            "media files: 1, 5 bytes",
            "left over: 0 uploads, counts of 0 files, 0 deleted accounts",
            "Nothing is wrong.",
        ],
    )
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("UPDATE files SET value = CAST('{' AS BLOB)")
        connection.commit()
    bad = run("check", "--store", store)
    assert bad.exit_code == 1
    assert bad.stdout.splitlines()[-1] == "The file 'name' of 'bob' is not valid JSON; save it again."
    told = json.loads(run("check", "--store", store, "--json").stdout)
    assert (told["files"], len(told["faults"])) == (1, 1)


def test_a_migration(tmp_path: Path) -> None:
    """A dry run says what would be done and does nothing; the real one does it, and a second finds nothing to do."""
    old = tmp_path / "old.db"
    script = (resources.files("cloudstore_mapping.service.storage") / "schema" / "sqlite-1.sql").read_text()
    with closing(sqlite3.connect(old)) as connection:
        connection.executescript(script)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
    before = old.read_bytes()
    would = run("migrate", "--store", old, "--dry-run")
    assert (would.exit_code, would.stdout) == (0, f"{old} would go from schema 1 to {newest()}.\n")
    assert old.read_bytes() == before
    assert run("migrate", "--store", old).stdout == f"{old} went from schema 1 to {newest()}.\n"
    again = json.loads(run("migrate", "--store", old, "--json").stdout)
    assert again == {"store": str(old), "schema": newest(), "newest": newest(), "dry_run": False}


def test_what_is_no_store(tmp_path: Path) -> None:
    """A file of another kind is refused with a sentence, and left as it is."""
    other = tmp_path / "notes.txt"
    other.write_text("notes" * 1000)
    for command in (["backup", tmp_path / "b"], ["check"], ["migrate"]):
        refused = run(*command, "--store", other)
        assert refused.exit_code == 2
        assert "no CloudStore file" in refused.stderr
    assert other.read_text() == "notes" * 1000


def test_a_damaged_backup(tmp_path: Path) -> None:
    """A damaged backup is called one, and nothing is made of it."""
    store, backup, new = tmp_path / "store.db", tmp_path / "backup.db", tmp_path / "new.db"
    cm.open(store).close()
    assert run("backup", str(backup), "--store", str(store)).exit_code == 0
    backup.write_bytes(backup.read_bytes()[:-4096])
    result = run("restore", str(backup), "--store", str(new))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (f"cloudstore: The backup {backup} is damaged and was not restored; restore another one.\n")
    assert not new.exists()


def test_no_store_to_keep_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no store, the option that names another is told."""
    monkeypatch.chdir(tmp_path)
    result = run("backup", "copy.db")
    assert result.exit_code == 2
    assert result.stderr.endswith("cloudstore-service.db; look at its name, or name another by --store.\n")


def test_a_repair(store: Path) -> None:
    """`check --repair` counts wrong quotas of an account anew, and says so; a check alone names the account."""
    assert run("account", "set", "bob", "files=5", "--store", store).exit_code == 0

    def spoil() -> None:
        with closing(sqlite3.connect(store)) as connection:
            connection.execute("UPDATE counters SET bytes = bytes + 1")
            connection.commit()

    spoil()
    found = run("check", "--store", store)
    assert (found.exit_code, "`cloudstore check --repair`" in found.stdout) == (1, True)
    repaired = run("check", "--repair", "--store", store)
    assert (repaired.exit_code, repaired.stdout.splitlines()[-2:]) == (
        0,
        ["The quotas of 'bob' were wrong and are counted anew.", "Nothing else is wrong."],
    )
    again = run("check", "--repair", "--store", store)
    assert (again.exit_code, again.stdout.splitlines()[-1]) == (0, "Nothing is wrong.")
    spoil()
    assert json.loads(run("check", "--repair", "--store", store, "--json").stdout)["repaired"] == ["bob"]
    assert run("check", "--store", store).exit_code == 0


def unused(store: Path) -> None:
    """Give the store's file some unused pages."""
    with closing(sqlite3.connect(store)) as connection:
        connection.executescript("CREATE TABLE t AS SELECT zeroblob(100000); DROP TABLE t;")


def test_a_store_that_is_compacted(store: Path) -> None:
    """`compact` says that it wrote a store anew and how many bytes that saved; the store is the same afterwards."""
    unused(store)
    done = json.loads(run("compact", "--store", store, "--json").stdout)
    assert (done["store"], done["rewritten"], done["pending"]) == (str(store), True, 0)
    assert done["after"] < done["before"]
    assert run("check", "--store", store).exit_code == 0
    unused(store)
    line = f"{re.escape(str(store))} was written anew without .* took [0-9,]+ bytes and takes [0-9,]+\\.\n"
    assert re.fullmatch(line, run("compact", "--store", store).stdout)


@pytest.mark.parametrize(("unused_pages", "how"), [(0, "got larger"), (1, "did not get smaller"), (2, "unused space")])
def test_a_store_of_an_older_version_that_is_compacted(unused_pages: int, how: str, tmp_path: Path) -> None:
    """`compact` says whether a file got larger, as one may by the list of pages that it needs to get shorter later."""
    store = tmp_path / "old.db"
    store.write_bytes(gzip.decompress(SAMPLE.read_bytes()))
    assert run("migrate", "--store", store).exit_code == 0
    with closing(sqlite3.connect(store)) as connection:
        tables = [f"t{number}" for number in range(unused_pages)]
        connection.executescript("".join(f"CREATE TABLE {table} (a);" for table in tables))
        connection.executescript("".join(f"DROP TABLE {table};" for table in tables))
        assert connection.execute("PRAGMA freelist_count").fetchone() == (unused_pages,)
    before = store.stat().st_size
    said = run("compact", "--store", store).stdout
    after = store.stat().st_size
    assert how in said
    assert after - before == (1 - unused_pages) * 4096
    sizes = f"takes {after:,} bytes as before" if before == after else f"took {before:,} bytes and takes {after:,}"
    assert said.endswith(f"; with its log it {sizes}.\n")


def test_a_store_without_unused_space_is_left(store: Path) -> None:
    """`compact` says that it did nothing if a store has no unused space."""
    run("compact", "--store", store)
    before = store.read_bytes()
    done = json.loads(run("compact", "--store", store, "--json").stdout)
    assert (done["rewritten"], done["pending"]) == (False, 0)
    assert " has no unused space and was left as it is; " in run("compact", "--store", store).stdout
    assert store.read_bytes() == before


def test_a_store_that_is_compacted_beside_a_reader(store: Path) -> None:
    """`compact` says how much shorter the file gets later, if a program reads an older state of it."""
    unused(store)
    with closing(sqlite3.connect(store)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM accounts").fetchall()
        done = run("compact", "--store", store)
        length = store.stat().st_size
    written, later = done.stdout.splitlines()
    assert " was written anew " in written
    pending = re.fullmatch(
        r"Its file gets ([0-9,]+) bytes shorter once the reads of other programs have ended\.", later
    )
    assert pending is not None
    assert run("compact", "--store", store).exit_code == 0
    assert length - store.stat().st_size == int(pending[1].replace(",", "")) > 0
