"""A log that a crashed store left is never replayed over another file that was put in the place of its own."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.service.storage import migrations, sqlite_files
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.maintenance import restore_file
from cloudstore_mapping.service.storage.migrations import schema_steps
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.service.storage.sqlite_files import Lineage, is_of_another_file, lineage_of, refuse_leftovers
from tests.service_fakes import PATIENCE
from tests.storage.test_leftovers import COMMANDS, COUNT, FUNCTIONS, SPELLINGS, killed, run
from tests.support.matrix import spread

pytestmark = pytest.mark.sqlite("it is about the log beside an SQLite file")

#: A page of SQLite's, and what comes before it in a log.
PAGE = 4096
FRAME = 24


def nothing(_done: int, _total: int) -> None:
    """Report to nobody."""


def filled(path: Path) -> Path:
    """Make a store with one key, and close it."""
    with cm.open(path) as store:
        store["precious"] = "p" * 100
    return path


def by_another(path: Path) -> None:
    """Put another store in the place of a store's file."""
    filled(path.parent / "other.db").replace(path)


def by_a_copy_of_another(path: Path) -> None:
    """Copy another store over a store's file."""
    other = filled(path.parent / "other.db")
    shutil.copy(other, path)
    other.unlink()


def by_an_older_copy(path: Path) -> None:
    """Put a copy that was made before the last start but one in the place of a store's file."""
    (path.parent / "older.db").replace(path)


def by_a_restored_backup(path: Path) -> None:
    """Restore the backup that was made just before the crash, and put it in the place of a store's file."""
    restore_file(path.parent / "backup.db", path.parent / "restored.db", nothing)
    (path.parent / "restored.db").replace(path)


def by_a_backup(path: Path) -> None:
    """Put the backup that was made just before the crash in the place of a store's file."""
    (path.parent / "backup.db").replace(path)


def by_an_old_schema(path: Path) -> None:
    """Put a store that an older version made in the place of a store's file."""
    older(path.parent / "other.db")
    (path.parent / "other.db").replace(path)


def older(path: Path) -> None:
    """Make a store as the version before made it, which had no tokens."""
    with closing(sqlite3.connect(path)) as connection:
        for step in schema_steps("sqlite")[:2]:
            connection.executescript(step)
        connection.execute("INSERT INTO accounts (id, name, created_at) VALUES (1, 'older', 1.0)")
        connection.commit()
        connection.execute(f"PRAGMA application_id = {0x434C5344}")
        connection.execute("PRAGMA user_version = 2")
        connection.execute("PRAGMA journal_mode = WAL")


REPLACED: dict[str, Callable[[Path], object]] = {
    "another": by_another,
    "copy of another": by_a_copy_of_another,
    "older copy": by_an_older_copy,
    "restored backup": by_a_restored_backup,
    "backup": by_a_backup,
    "old schema": by_an_old_schema,
}


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store as a crash left it, an older copy and a backup."""
    folder = tmp_path_factory.mktemp("crashed")
    path = filled(folder / "s.db")
    shutil.copy(path, folder / "older.db")
    with cm.open(path) as store:
        store["later"] = 1
    with SQLiteStorage(path) as storage:
        storage.back_up(folder / "backup.db", nothing)
    killed(path)
    return folder


@pytest.fixture
def path(crashed: Path, tmp_path: Path) -> Path:
    """Return the path of a store as a crash left it."""
    shutil.copytree(crashed, tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / "s.db", tmp_path / "away")
    return tmp_path / "s.db"


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store in another folder."""
    return filled(tmp_path_factory.mktemp("elsewhere") / "other.db")


def contents(folder: Path) -> dict[str, bytes]:
    """Return what is in the files of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def come_back(path: Path, keys: set[str]) -> None:
    """Check that the file holds these keys without the log, and the log's own file all that was saved in it."""
    log = Path(f"{path}-wal").rename(path.with_name("away-wal"))
    with SQLiteStorage(path) as storage, storage.read() as transaction:
        assert {name for account in transaction.accounts() for name in transaction.names(account.id)} == keys
    assert log.exists()
    with cm.open(path.with_name("away")) as store:
        assert len(store) == COUNT + 2


@pytest.mark.parametrize(("command", "spelling"), spread([COMMANDS, SPELLINGS], 7))
def test_every_command_refuses_the_log_of_another_file(command: str, spelling: str, path: Path, other: Path) -> None:
    """A command that would open, read or replace a store beside the log of another one says so, and changes nothing."""
    by_another(path)
    Path(f"{other}.txt").write_text("text")
    Path(f"{other}.json").write_text("{}")
    before = contents(path.parent)
    is_file = command.split()[0] in ("backup", "restore") and not command.endswith("--store LEFT")
    left = ("PATH" if is_file else spelling).replace("PATH", str(path))
    refused = run(*[word.replace("LEFT", left).replace("OTHER", str(other)) for word in command.split()])
    assert (refused.exit_code, refused.stdout) == (2, "")
    if "already; move it away" not in refused.stderr:  # of a new store or backup
        assert refused.stderr == (
            f"cloudstore: {path}-wal was written for another file than the one at {path}; move that file back beside "
            "it, or move the log away.\n"
        )
    assert contents(path.parent) == before
    assert not Path(f"{other}.new").exists()
    come_back(path, {"precious"})


@pytest.mark.parametrize(("what", "replaced"), spread([FUNCTIONS, REPLACED], 6))
def test_every_function_refuses_the_log_of_another_file(what: str, replaced: str, path: Path, other: Path) -> None:
    """A function that would open a store beside the log of another file, or of a later one, raises: nothing changes."""
    REPLACED[replaced](path)
    before = contents(path.parent)
    with pytest.raises((UnsupportedError, FileExistsError), match=r"; .* away|already"):
        FUNCTIONS[what](path, other)
    assert contents(path.parent) == before


@pytest.mark.parametrize(
    ("replaced", "keys"),
    [
        ("another", {"precious"}),
        ("copy of another", {"precious"}),
        ("older copy", {"precious"}),
        ("restored backup", {"precious", "later"}),
        ("backup", {"precious", "later"}),
        ("old schema", set()),
    ],
)
def test_both_files_are_still_whole(replaced: str, keys: set[str], path: Path) -> None:
    """After the refusal each file holds what it held: one without the log, the other with it."""
    REPLACED[replaced](path)
    with pytest.raises(UnsupportedError, match="was written for another file"):
        cm.open(path)
    come_back(path, keys)


def test_a_link_to_another_file(path: Path) -> None:
    """The log is looked for beside the file that a link leads to."""
    by_another(path)
    link = path.with_name("link.db")
    link.symlink_to(path)
    with pytest.raises(UnsupportedError, match=rf"{path}-wal was written for another file than the one at {link}"):
        cm.open(link)


def test_its_own_log_is_taken_up(path: Path) -> None:
    """A log is no other file's: after a crash, with the file that it was written for, all that was saved is there."""
    with cm.open(path) as store:
        assert len(store) == COUNT + 2


def work_of(index: int) -> Callable[[Transaction], object]:
    """Return one of the kinds of work that write, each of another table."""
    return [
        lambda transaction: transaction.add_account("late", 1.0),
        lambda transaction: transaction.put(1, "name", b"1", 1.0),
        lambda transaction: transaction.delete(1, "precious"),
        lambda transaction: transaction.set_disabled(1, disabled=True),
        lambda transaction: transaction.add_blob(1, 1.0),
    ][index]


@pytest.mark.parametrize("kind", range(5))
def test_every_transaction_changes_the_token(kind: int, other: Path) -> None:
    """Whatever a transaction writes, the store's token is new after it, and the one before is kept."""
    with SQLiteStorage(other) as storage:
        before = token(storage)
        storage.submit(work_of(kind)).result(PATIENCE)
        after = token(storage)
    assert after.token != before.token
    assert after.previous == before.token
    assert lineage_of(other) == after


def token(storage: Storage) -> Lineage:
    """Return the lineage of an open store."""
    with storage.read() as transaction:
        return Lineage(*transaction.row("SELECT token, previous FROM lineage"))


def test_a_transaction_that_writes_nothing(other: Path) -> None:
    """A health check or work that changes nothing leaves the token as it is, and the log empty."""
    with SQLiteStorage(other) as storage:
        before = token(storage)
        assert storage.healthy()
        storage.submit(lambda transaction: transaction.delete(1, "nothing")).result(PATIENCE)
        assert token(storage) == before
        assert Path(f"{other}-wal").stat().st_size == 0


@pytest.mark.parametrize("copy", ["backup", "restored"])
def test_a_copy_has_a_token_of_its_own(copy: str, other: Path, tmp_path: Path) -> None:
    """A backup and what is restored from it each have a new token."""
    with SQLiteStorage(other) as storage:
        storage.back_up(tmp_path / "backup", nothing)
        restore_file(tmp_path / "backup", tmp_path / "restored", nothing)
        copied = lineage_of(tmp_path / copy)
        assert copied is not None
        assert copied.token != token(storage).token
    assert lineage_of(tmp_path / "restored") != lineage_of(tmp_path / "backup")


def test_a_log_that_a_crash_cut_off(path: Path) -> None:
    """A log without a whole transaction holds nothing: it is no reason to refuse any file."""
    by_another(path)
    Path(f"{path}-shm").unlink()  # whose mark of the last commit would tell that the log was longer
    log = Path(f"{path}-wal")
    first = 32 + FRAME + PAGE
    whole = log.read_bytes()
    log.write_bytes(whole[: first - 1])
    refuse_leftovers(path)
    log.write_bytes(bytes(32))  # before the header is synced, nothing follows
    refuse_leftovers(path)
    log.write_bytes(whole[: first - 1] + bytes([whole[first - 1] ^ 1]))
    refuse_leftovers(path)
    log.write_bytes(whole)
    with pytest.raises(UnsupportedError):
        refuse_leftovers(path)


SHELL = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("UPDATE accounts SET plan = 'changed'")
print(flush=True)
sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_log_of_another_program(other: Path) -> None:
    """A log that another program alone wrote fits while a process uses it with the file, and is refused after that."""
    with subprocess.Popen(
        [sys.executable, "-c", SHELL, other], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        if sqlite_files.LOCKS.exists():  # Linux alone tells which files are locked
            refuse_leftovers(other)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(UnsupportedError, match="was written for another file"):
        refuse_leftovers(other)
    with closing(sqlite3.connect(other)) as connection:  # as the program itself would
        connection.execute("PRAGMA wal_checkpoint")
    cm.open(other).close()


def test_a_store_of_an_older_version_and_its_log(tmp_path: Path) -> None:
    """A store that an older version left behind in a crash is brought up to date with all that is in its log."""
    older(tmp_path / "s.db")
    with subprocess.Popen([sys.executable, "-c", SHELL, tmp_path / "s.db"], stdin=subprocess.PIPE) as process:
        process.communicate()
    assert Path(f"{tmp_path / 's.db'}-wal").stat().st_size > 0
    with SQLiteStorage(tmp_path / "s.db") as storage, storage.read() as transaction:
        assert [account.plan for account in transaction.accounts()] == ["changed"]


MIGRATE = """
import os, signal, sys
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
storage = SQLiteStorage(sys.argv[1])
storage.submit(lambda transaction: transaction.add_account("late", 1.0)).result()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_store_that_was_just_brought_up_to_date(tmp_path: Path) -> None:
    """After a migration and a crash the log fits its own file, and no other one of the older version."""
    path = tmp_path / "s.db"
    older(path)
    older(tmp_path / "other.db")
    subprocess.run([sys.executable, "-c", MIGRATE, path], check=False)
    path.rename(tmp_path / "away")
    (tmp_path / "other.db").rename(path)
    with pytest.raises(UnsupportedError, match="was written for another file"):
        SQLiteStorage(path)
    (tmp_path / "away").replace(path)
    with SQLiteStorage(path) as storage, storage.read() as transaction:
        assert [account.name for account in transaction.accounts()] == ["late", "older"]


def test_a_later_migration_changes_the_token(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration of a store that has a token gives it the next one, like every transaction that writes."""
    before = lineage_of(other)
    assert before is not None
    monkeypatch.setattr(
        migrations, "schema_steps", lambda engine: [*schema_steps(engine), "CREATE TABLE later (what TEXT);"]
    )
    SQLiteStorage(other).close()
    after = lineage_of(other)
    assert after is not None
    assert after.previous == before.token


USE = """
import sys
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
with SQLiteStorage(sys.argv[1]) as storage:
    storage._session.connection.execute("PRAGMA wal_autocheckpoint = " + sys.argv[3])
    print(flush=True)
    for number in range(int(sys.argv[2])):
        storage.run(lambda transaction: transaction.put(1, str(number % 50), b"1" * (number % 5000), 1.0)).result()
"""


def look_while_used(store: Path, saves: int, look: Callable[[], object]) -> None:
    """Look again and again while two processes write to a store, carry its log over and begin it anew."""
    looked = 0
    command = [sys.executable, "-c", USE, str(store), str(saves)]
    with (
        subprocess.Popen([*command, "1"], stdout=subprocess.PIPE) as one,
        subprocess.Popen([*command, "5"], stdout=subprocess.PIPE) as two,
    ):
        for process in (one, two):
            assert process.stdout is not None
            process.stdout.readline()
        while one.poll() is None or two.poll() is None:
            look()
            looked += 1
    assert one.returncode == two.returncode == 0
    assert looked


@pytest.mark.parametrize("looks", [250, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_store_in_use_is_never_refused(looks: int, other: Path) -> None:
    """While processes write, carry the log over and begin it anew, it is never taken for another file's."""
    SQLiteStorage(other).submit(lambda transaction: transaction.put(1, "name", b"1", 1.0)).result(PATIENCE)

    def look() -> None:
        assert not is_of_another_file(Path(f"{other}-wal"), other, lambda: False)

    look_while_used(other, looks, look)


def test_a_file_that_changes_meanwhile(path: Path) -> None:
    """A file or log that changes while they are looked at is looked at again, and refused only once both stay."""
    log = Path(f"{path}-wal")
    shutil.copy(path, path.with_name("right"))
    by_another(path)
    looks = threading.local()
    looks.left = 1

    def lineage(place: Path) -> Lineage | None:
        found = lineage_of(place)
        if looks.left:
            looks.left -= 1
            path.with_name("right").replace(path)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cloudstore_mapping.service.storage.sqlite_files.lineage_of", lineage)
        assert not is_of_another_file(log, path, lambda: False)
    assert not looks.left


CREATE = """
import os, signal, sqlite3, sys
from pathlib import Path
from cloudstore_mapping.service.storage.migrations import migrate

class Killed(sqlite3.Connection):
    def execute(self, statement, *parameters):
        if statement == "COMMIT" and self.total_changes:
            super().execute("PRAGMA cache_size = 1")  # so that pages get into the file before the commit
            super().execute("INSERT INTO accounts (name, created_at, plan) VALUES ('o', 1.0, ?)", ("x" * 300000,))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(statement, *parameters)

migrate(sqlite3.connect(sys.argv[1], isolation_level=None, factory=Killed), Path(sys.argv[1]))
"""


@pytest.fixture
def unmade(tmp_path: Path) -> Path:
    """Return the path of a store that a crash ended the making of: its journal empties the file."""
    path = tmp_path / "unmade.db"
    subprocess.run([sys.executable, "-c", CREATE, path], check=False)
    journal = Path(f"{path}-journal")
    assert sqlite_files.is_of_new_file(sqlite_files.journal_head(journal))
    return path


@pytest.mark.parametrize("schema", ["today's", "older"])
def test_the_journal_of_a_new_file(unmade: Path, other: Path, schema: str) -> None:
    """A journal that a crash left while a store was made is never applied to another one: it would empty that."""
    if schema == "older":
        other.unlink()
        older(other)
    journal = Path(f"{unmade}-journal")
    other.replace(unmade)
    before = (unmade.read_bytes(), journal.read_bytes())
    with pytest.raises(UnsupportedError, match=rf"^{journal} was written for another file than the one at {unmade}; "):
        cm.open(unmade)
    assert (unmade.read_bytes(), journal.read_bytes()) == before


def test_the_making_of_a_store_is_taken_up(unmade: Path) -> None:
    """A store whose making a crash ended is made by the next who opens it."""
    with cm.open(unmade) as store:
        store["k"] = 1
    with cm.open(unmade) as store:
        assert dict(store) == {"k": 1}


READING = [
    "get precious --at STORE",
    "ls --at STORE",
    "stat precious --at STORE",
    "export STORE.json --at STORE",
    "backup STORE.backup --store STORE",
    "check --store STORE",
    "migrate --dry-run --store STORE",
    "restore STORE --store STORE.new",
    "migrate-store STORE STORE.new",
    "account list --store STORE",
    "import STORE --at STORE.new --format store",
]


@pytest.mark.parametrize("command", READING)
def test_reading_leaves_no_log(command: str, other: Path) -> None:
    """A command that reads leaves nothing beside a store that has no log, and the store as it was."""
    before = other.read_bytes()
    done = run(*[word.replace("STORE", str(other)) for word in command.split()])
    assert done.exit_code in (0, 1), done.stderr  # there is no such importer
    assert other.read_bytes() == before
    assert {file.name for file in other.parent.iterdir() if file.name.endswith(("-wal", "-shm", "-journal"))} == set()


@pytest.mark.parametrize("command", ["check", "migrate --dry-run", "restore"])
def test_reading_leaves_a_crashed_store(command: str, path: Path) -> None:
    """A look at a store that a crash left changes neither its file nor its log."""
    files = (path, Path(f"{path}-wal"))
    before = [file.read_bytes() for file in files]
    options = [str(path), "--store", f"{path}.new"] if command == "restore" else ["--store", str(path)]
    assert run(*command.split(), *options).exit_code == 0
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(("end", "size"), [("-wal", 0), ("-shm", 0), ("-shm", 32768), ("-journal", 0)])
@pytest.mark.parametrize("command", ["restore", "account create", "migrate-store"])
def test_an_empty_log_is_no_hindrance(command: str, end: str, size: int, other: Path, tmp_path: Path) -> None:
    """An empty log, or an index of one, that was left without its file keeps nobody from making a store there."""
    new = tmp_path / "new.db"
    Path(f"{new}{end}").write_bytes(bytes(size))
    arguments = {
        "restore": ["restore", str(other), "--store", str(new)],
        "account create": ["account", "create", "o", "--store", str(new)],
        "migrate-store": ["migrate-store", str(other), str(new)],
    }[command]
    assert run(*arguments).exit_code == 0
    assert run("check", "--store", str(new)).exit_code == 0
    with SQLiteStorage(new) as storage:
        assert len(storage.submit(lambda transaction: transaction.accounts()).result(PATIENCE)) == 1
