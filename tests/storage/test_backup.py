"""A store is copied while it is used, looked at, and made a store again."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from cloudstore_mapping.errors import UnavailableError, UnsupportedError
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.maintenance import Findings, back_up_storage, check_file, restore_file
from cloudstore_mapping.service.storage.migrations import newest
from cloudstore_mapping.service.storage.records import Account, Limits, Media, OwnerPassword
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.service.storage.sqlite_backup import verify

WRITERS = 8


def nothing(_done: int, _total: int) -> None:
    """Report to nobody."""


def fill(storage: Storage) -> Account:
    """Put something of every kind into a storage, and return its account."""

    def work(transaction: Transaction) -> Account:
        account = transaction.add_account("owner", 1.0)
        transaction.set_limits(account.id, "custom", Limits(max_files=7))
        transaction.add_key(account.id, b"k" * 32, "abcd", 1.0)
        transaction.set_owner_password(account.id, OwnerPassword("hash", must_change=True))
        transaction.put(account.id, "name", b'{"a": 1}', 1.0)
        transaction.set_passwords(account.id, "name", edit="e", view="v")
        blob = transaction.add_blob(account.id, 1.0)
        transaction.add_chunk(blob, 0, b"first", 1.0)
        transaction.add_chunk(blob, 1, b"second", 1.0)
        digest = hashlib.sha256(b"firstsecond").hexdigest()
        transaction.put_media(account.id, Media("0" * 32, "m.png", "image/png", 11, digest, blob, "m", 1.0, 1.0))
        return account

    return storage.submit(work).result()


def dump(path: Path) -> list[str]:
    """Return all that a database holds, as SQL, but for the token that each copy has of its own."""
    with closing(sqlite3.connect(path)) as connection:
        return [line for line in connection.iterdump() if not line.startswith('INSERT INTO "lineage"')]


def test_a_backup_restores_to_the_same(storage: Storage, tmp_path: Path) -> None:
    """What is restored is what was there: accounts, keys, limits, passwords, values, media."""
    account = fill(storage)
    reported: list[tuple[int, int]] = []
    back_up_storage(storage, tmp_path / "backup", lambda done, total: reported.append((done, total)))
    assert reported[-1][0] == reported[-1][1] > 0
    restore_file(tmp_path / "backup", tmp_path / "restored", nothing)
    assert dump(tmp_path / "restored") == dump(tmp_path / "backup")
    with SQLiteStorage(tmp_path / "restored") as restored, restored.read() as transaction, storage.read() as before:
        assert transaction.accounts() == before.accounts()
        assert transaction.get(account.id, "name") == before.get(account.id, "name")
        media = transaction.media_named(account.id, "m.png")
        assert media is not None
        assert media == before.media_named(account.id, "m.png")
        assert (transaction.chunk(media.blob, 0), transaction.chunk(media.blob, 1)) == (b"first", b"second")
        assert transaction.keys(account.id) == before.keys(account.id)


def test_a_backup_holds_no_session(tmp_path: Path) -> None:
    """A session of the dashboard that has ended since comes to life in no restored store, nor in a restored copy."""
    with SQLiteStorage(tmp_path / "store") as storage:
        account = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result()
        storage.submit(lambda transaction: transaction.add_session(b"hash", account.id, 1.0)).result()
        back_up_storage(storage, tmp_path / "backup", nothing)
    restore_file(tmp_path / "store", tmp_path / "restored", nothing)
    for copy in ("backup", "restored"):
        with SQLiteStorage(tmp_path / copy) as copied, copied.read() as transaction:
            assert transaction.accounts()
            assert transaction.session(b"hash") is None


def test_a_backup_is_of_one_moment(tmp_path: Path) -> None:
    """Taken while eight clients write, it restores to a state that one moment had."""
    stop = threading.Event()
    with SQLiteStorage(tmp_path / "store") as storage, ThreadPoolExecutor(WRITERS) as pool:
        account = fill(storage).id

        def step(transaction: Transaction, number: int) -> None:
            total = transaction.get(account, "total")
            mine = transaction.get(account, f"{number}")
            count = int(mine.value) + 1 if mine else 1
            transaction.put(account, f"{number}", b"%d" % count, 1.0)
            transaction.put(account, f"copy {number}", b"%d" % count, 1.0)
            transaction.put(account, f"filler {number} {count % 50}", b'"%s"' % (b"x" * 20_000), 1.0)
            transaction.put(account, "total", b"%d" % (int(total.value) + 1 if total else 1), 1.0)

        def write(number: int) -> int:
            times = 0
            while not stop.is_set() or not times:
                storage.submit(lambda transaction: step(transaction, number)).result()
                times += 1
            return times

        writing = [pool.submit(write, number) for number in range(WRITERS)]
        totals = []
        try:
            for number in range(5):
                back_up_storage(storage, tmp_path / f"backup {number}", nothing)
                totals.append(total_of(tmp_path / f"backup {number}", tmp_path / f"restored {number}", account))
        finally:
            stop.set()
        done = sum(each.result() for each in writing)
    assert totals == sorted(totals)
    assert totals[0] < totals[-1] <= done
    assert check_file(tmp_path / "store").faults == []


def total_of(backup: Path, restored: Path, account: int) -> int:
    """Restore a backup, and return its total, which has to be that of all writers, each with its copy."""
    restore_file(backup, restored, nothing)
    with SQLiteStorage(restored) as storage, storage.read() as transaction:

        def number(name: str) -> int:
            file = transaction.get(account, name)
            return int(file.value) if file else 0

        assert [number(f"{each}") for each in range(WRITERS)] == [number(f"copy {each}") for each in range(WRITERS)]
        assert number("total") == sum(number(f"{each}") for each in range(WRITERS))
        return number("total")


def test_nothing_is_overwritten(storage: Storage, tmp_path: Path) -> None:
    """A file that is there, or the log of one, is left as it is, and no draft stays behind."""
    fill(storage)
    (tmp_path / "there").write_text("mine")
    (tmp_path / "other-wal").write_text("mine")
    for name in ("there", "other"):
        with pytest.raises(FileExistsError, match="move it away"):
            back_up_storage(storage, tmp_path / name, nothing)
    back_up_storage(storage, tmp_path / "backup", nothing)
    with pytest.raises(FileExistsError, match="move it away"):
        restore_file(tmp_path / "backup", tmp_path / "there", nothing)
    with pytest.raises(FileNotFoundError, match="no folder"):
        back_up_storage(storage, tmp_path / "absent" / "backup", nothing)
    assert (tmp_path / "there").read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


def test_a_backup_that_breaks_off_leaves_nothing(storage: Storage, tmp_path: Path) -> None:
    """An error in the middle, a full disk or Ctrl-C, leaves neither backup nor draft."""
    fill(storage)
    before = sorted(tmp_path.iterdir())

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up_storage(storage, tmp_path / "backup", interrupt)
    assert sorted(tmp_path.iterdir()) == before
    with storage.read() as transaction:
        assert transaction.has_accounts()


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """Return a backup of a store in memory."""
    with SQLiteStorage(None) as storage:
        fill(storage)
        back_up_storage(storage, tmp_path / "backup", nothing)
    return tmp_path / "backup"


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign", "newer", "no database"])
def test_what_is_no_whole_backup(backup: Path, damage: str) -> None:
    """A backup that is damaged, foreign or of a newer version is refused with a sentence, and no store is made."""
    content = bytearray(backup.read_bytes())
    if damage == "flipped":
        content[len(content) // 2 : len(content) // 2 + 3000] = b"\xff" * 3000
    kept = {"cut": content[:-4096], "empty": bytearray(), "no database": bytearray(b"x" * 9000)}
    backup.write_bytes(kept.get(damage, content))
    if damage in ("foreign", "newer"):
        with closing(sqlite3.connect(backup)) as connection:
            connection.execute(f"PRAGMA {'application_id' if damage == 'foreign' else 'user_version'} = 1000")
    with pytest.raises((UnsupportedError, UnavailableError)) as caught:
        restore_file(backup, backup.with_name("restored"), nothing)
    assert str(backup) in str(caught.value)
    assert [file.name for file in backup.parent.iterdir()] == ["backup"]


def test_a_backup_that_is_not_there(tmp_path: Path) -> None:
    """A name that leads nowhere is said to be just that."""
    with pytest.raises(FileNotFoundError, match="no backup"):
        restore_file(tmp_path / "absent", tmp_path / "restored", nothing)
    with pytest.raises(FileNotFoundError, match="no store"):
        check_file(tmp_path / "absent")


def test_a_check_counts_and_finds_faults(backup: Path) -> None:
    """It counts what is there, and names the value that is no JSON and the media file that isn't what it was."""
    assert verify(backup) == newest()
    assert check_file(backup) == Findings(newest(), accounts=1, files=1, file_bytes=8, media=1, media_bytes=11)
    with closing(sqlite3.connect(backup)) as connection:
        connection.execute("UPDATE files SET value = CAST('{' AS BLOB)")
        connection.execute("UPDATE chunks SET data = CAST('worst' AS BLOB) WHERE number = 0")
        connection.execute("INSERT INTO blobs (account_id, touched_at) VALUES (1, 1.0)")
        connection.execute("INSERT INTO accesses VALUES (1, 'data', 'gone', 1, 1, 1.0)")
        connection.commit()
    reported: list[tuple[int, int]] = []
    findings = check_file(backup, lambda done, total: reported.append((done, total)))
    assert findings.faults == [
        "The quotas of 'owner' are counted as 2 files of 23 bytes, not 2 of 16; run `cloudstore check --repair`.",
        "The file 'name' of 'owner' is not valid JSON; save it again.",
        "The media file 'm.png' of 'owner' doesn't match its checksum; upload it again.",
    ]
    assert (findings.orphan_blobs, findings.orphan_accesses) == (1, 1)
    assert reported == [(1, 2), (2, 2)]
