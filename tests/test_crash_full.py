"""A disk that is really full: writes are refused with a sentence, reads and deletes go on, and so do writes later."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from shutil import disk_usage
from typing import Any, Final

import pytest
import requests

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage import sqlite
from cloudstore_mapping.service.storage.base import DiskFullError, NoSpaceError
from cloudstore_mapping.service.storage.maintenance import check_file
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.storage.sqlite import SQLiteSession, SQLiteStorage
from cloudstore_mapping.service.storage.sqlite_files import LOG, DiskReserve
from cloudstore_mapping.web.server import background
from tests.cluster.nodes import first_key, nodes
from tests.crash.small_disk import small_disk
from tests.service_fakes import PATIENCE, Held
from tests.serving import serving, told
from tests.storage.test_sqlite_space import Usage
from tests.support.matrix import spread
from tests.visitor import Visitor, owner, shown

pytestmark = pytest.mark.sqlite("the store is a file")

SIZE: Final = 12 * 2**20
#: The sentence for the operator, and the one for clients of a service.
FULL: Final = (
    r"The store's disk is full(?: but for [0-9.]+ MiB kept for deletes)?; "
    r"free (?:some space|at least [0-9,]+ [MK]iB), then try again\.$"
)
FOR_CLIENTS: Final = r"The service's disk is full; its operator has to free space\.$"

#: A store of a service of an older version; see `tests/storage/test_older.py`.
SAMPLE: Final = Path(__file__).parent / "samples" / "e5084d3.db.gz"

Store = cm.CloudStoreMapping[Any]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk that is soon full."""
    with small_disk(tmp_path / "disk", SIZE) as folder:
        yield folder


@pytest.fixture
def store(disk: Path, tmp_path: Path) -> Iterator[Store]:
    """Return a store at a service on that disk, which is whole in the end."""
    with nodes(str(disk / "store.db"), 1, tmp_path) as (node,):
        with cm.open(node.location(first_key([node])), retries=0) as store:
            yield store
        assert check_file(disk / "store.db").faults == []
    assert check_file(disk / "store.db").faults == []


def fill(write: Callable[[str], object]) -> list[str]:
    """Write under one name after another until the disk is full, and return the names."""
    names: list[str] = []

    def write_on() -> None:
        for number in count():
            write(f"{number:06}")
            names.append(f"{number:06}")

    with pytest.raises(cm.UnavailableError) as caught:
        write_on()
    assert re.search(FULL if caught.value.response is None else FOR_CLIENTS, str(caught.value))
    assert caught.value.status == 503
    assert names
    return names


@pytest.mark.parametrize("size", [10_000, 100_000, 1_500_000])
@pytest.mark.slow
def test_a_store_that_fills_its_disk(store: Store, disk: Path, size: int) -> None:
    """On a disk that the store itself has filled all is read, and deleted; then as much is written as before."""
    for _ in range(2):
        names = fill(lambda name: store.__setitem__(name, name * (size // 6)))
        for name in names[:: max(1, len(names) // 20)]:
            assert store[name] == name * (size // 6)
        assert len(store) == len(names)
        for name in names:
            del store[name]
        assert len(store) == 0


@pytest.mark.parametrize(
    ("size", "length"),
    [
        (2, 20_000),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in [(3, 1_000), (5, 20_000), (8, 100_000)]),
        (3, 200_000),
    ],
)
def test_a_small_disk_is_emptied_again(tmp_path: Path, size: int, length: int) -> None:
    """A store alone on a disk of a few megabytes fills it; then all can be deleted, and soon a save is taken again."""
    with small_disk(tmp_path / "disk", size * 2**20) as disk:
        place = disk / "store.db"
        with cm.open(place, retries=0) as store:
            fill_many(store, length)
        with cm.open(place, retries=0) as store:
            keys = list(store)
            for key in keys[:2]:
                del store[key]
            store["small"] = 1
            for key in keys[2:]:
                del store[key]
            assert list(store) == ["small"]
        assert check_file(place).faults == []


@pytest.mark.parametrize("length", [100, 5_000, 65_536])
def test_a_refused_save_needs_the_room_of_the_log(tmp_path: Path, length: int) -> None:
    """A save is refused for lack of room only if an emptied log would not make that room."""
    with small_disk(tmp_path / "disk", 24 * 2**20) as disk:
        place = disk / "store.db"
        with cm.open(place, retries=0) as store:
            names = fill(lambda name: store.upload(bytes(400_000), name))
            names += fill(lambda name: store.__setitem__(name, "x" * length))
        with cm.open(place, retries=0) as store, pytest.raises(UnavailableError, match=FULL):
            store["more"] = "x" * 65_536  # at its end a program also gives back the 32 KiB of the log's index
        with cm.open(place, retries=0) as store:
            for _ in range(2):
                del store[names.pop()]
            store["later"] = "x" * (length // 2)


def test_commands_on_a_full_disk(tmp_path: Path) -> None:
    """After a crash on a full disk a command deletes keys, prints nothing else, and room for a save is made."""
    with small_disk(tmp_path / "disk", 3 * 2**20) as disk:
        place = disk / "store.db"
        filling = f"""
import os, cloudstore_mapping as cm
store = cm.open({str(place)!r}, retries=0)
try:
    for number in range(10_000):
        store[str(number)] = "x" * 20_000
except cm.UnavailableError as error:
    assert "disk is full" in str(error)
try:
    for key in reversed(list(store)[4:]):
        del store[key]
finally:
    os._exit(0)
"""
        subprocess.run([sys.executable, "-c", filling], check=True)
        for arguments in [["rm", "0"], ["rm", "1"], ["set", "small", "1"], ["rm", "10"]]:
            run = subprocess.run(
                [sys.executable, "-m", "cloudstore_mapping", *arguments, "--at", str(place)],
                capture_output=True,
                text=True,
                check=False,
            )
            assert (run.returncode, run.stderr) == (0, "")
        assert check_file(place).faults == []


def fill_many(store: Store, length: int) -> None:
    """Save texts of this length, a few at a time, until the disk is full."""

    def write_on() -> None:
        for number in count():
            store.update({f"{number:06}-{part}": "x" * length for part in range(4)})

    with pytest.raises(cm.BulkError) as caught:
        write_on()
    for key, error in caught.value.failed.items():
        assert re.fullmatch(f"{key!r}: (?:{FULL[:-1]}|{FOR_CLIENTS[:-1]})", str(error))


def test_media_files_that_fill_a_disk(store: Store, disk: Path) -> None:
    """An upload that finds no room is refused, and leaves no file; those that are there are still read."""
    found = {}

    def upload(name: str) -> None:
        found[name] = store.upload(name.encode() * 20_000, name)

    names = fill(upload)
    assert check_file(disk / "store.db").media == len(names)
    assert {name: store.download(found[name]) for name in names} == {name: name.encode() * 20_000 for name in names}


@pytest.mark.parametrize("is_embedded", [True, False])
def test_the_words_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_embedded: bool
) -> None:
    """Clients read that the operator has to free space; the operator's log and an embedded user, how much."""
    disks = [Usage(2**30, 2**30)]
    monkeypatch.setattr(sqlite, "DiskReserve", lambda path: DiskReserve(path, lambda _: disks[-1]))
    with ExitStack() as stack:
        if is_embedded:
            store = stack.enter_context(cm.open(tmp_path / "store.db", retries=0))
        else:
            service = stack.enter_context(Service(SQLiteStorage(tmp_path / "store.db")))
            address = stack.enter_context(background(service))
            location = address.replace("://", f"://{owner(service)}@")
            store = stack.enter_context(cm.open(location, retries=0))
            visitor = stack.enter_context(Visitor(address))
            visitor.get()
            visitor.sign_in()
        store["key"] = 1
        refused: list[Callable[[], object]] = [
            lambda: store.update({str(number): 1 for number in range(10)}),
            lambda: store.__setitem__("key", 2),
            lambda: store.upload(b"1", "a.bin"),
        ]
        clients = "The service's disk is full; its operator has to free space."
        operator = logged = (
            "The store's disk is full but for 5 MiB kept for deletes; free at least 1 MiB, then try again."
        )
        for write, free in zip(refused, (LOG, 0, 0), strict=True):
            disks.append(Usage(2**30, free))
            if not free:  # the log, a line a minute, is that of the first write
                operator = "The store's disk is full; free at least 6 MiB, then try again."
            with pytest.raises(cm.CloudStoreError) as caught:
                write()
            errors = caught.value.failed.values() if isinstance(caught.value, cm.BulkError) else [caught.value]
            assert all(str(error).endswith(operator if is_embedded else clients) for error in errors)
        if not is_embedded:
            assert clients in shown(visitor.post("data/save", view="new=1", file="another", value="2", version=""))
    lines = [line for line in caplog.messages if "503" in line]
    assert lines == ([] if is_embedded else [f"Requests are answered 503: {logged}"])


def test_a_disk_that_others_fill(store: Store, disk: Path) -> None:
    """On a disk that others have filled to the last byte writes are refused; once they make room all goes on."""
    store["key"] = "before"
    with pytest.raises(OSError, match="No space left"):
        (disk / "other").write_bytes(bytes(SIZE))
    with pytest.raises(cm.UnavailableError, match=FOR_CLIENTS):
        store["key"] = "after"
    assert store["key"] == "before"
    (disk / "other").unlink()
    store["key"] = "after"
    assert store["key"] == "after"


def test_opening_on_a_full_disk(disk: Path) -> None:
    """A closed store on a disk without a byte left is opened for reading; for writing the error names the disk."""
    path = disk / "store.db"
    with shelve.open(path) as db:
        db["key"] = {1}
    with pytest.raises(OSError, match="No space left"):
        (disk / "other").write_bytes(bytes(SIZE))
    with cm.open(path, readonly=True) as store, shelve.open(path, "r") as db:
        assert (list(store), dict(db)) == (["key"], {"key": {1}})
    for flag in "wcn":
        with pytest.raises(cm.UnavailableError, match=FULL):
            shelve.open(path, flag)
    (disk / "other").unlink()
    with shelve.open(path) as db:
        assert dict(db) == {"key": {1}}


@pytest.mark.slow
def test_a_start_on_a_full_disk(disk: Path) -> None:
    """A service starts on a full disk, where loads go on and deletes make room, and logs when that begins and ends."""
    log: list[str] = []
    with serving("--json", "--store", str(disk / "store.db")) as process:
        first = told(process)
        with cm.open(first["address"].replace("://", f"://{first['api_key']}@")) as store:
            store["key"] = "before"
    (disk / "other").write_bytes(bytes(disk_usage(disk).free - 2**20))
    with serving("--json", "--store", str(disk / "store.db"), log=log) as process:
        address = told(process)["address"]
        with cm.open(address.replace("://", f"://{first['api_key']}@"), retries=0) as store:
            assert store["key"] == "before"
            with pytest.raises(cm.UnavailableError, match=FOR_CLIENTS):
                store["key"] = "after"
            (disk / "other").unlink()
            assert requests.get(f"{address}/health", timeout=PATIENCE).status_code == 200
            store["key"] = "after"
    problem = "The store's disk is full; free at least 3 MiB, then try again."
    assert [line.partition("WARNING ")[2] for line in log] == [
        f"The service is not healthy: {problem}",
        f"Requests are answered 503: {problem}",
        "The service is healthy again.",
    ]


@pytest.mark.parametrize(
    ("command", "size"),
    [
        ("backup", 256),
        ("migrate-store", 160),  # without room for the index of the copy's log
        *(pytest.param(*each, marks=pytest.mark.slow) for each in [("restore", 256), ("migrate-store", 256)]),
    ],
)
def test_a_copy_to_a_full_disk(tmp_path: Path, command: str, size: int) -> None:
    """A command that finds no room for a copy names the disk of the copy, and leaves nothing there."""
    store = tmp_path / "store.db"
    with cm.open(store) as opened:
        opened["key"] = "x" * 2**19
    with small_disk(tmp_path / "disk", size * 1024) as disk:
        target = str(disk / "copy.db")
        source, place = (str(store), target) if command == "restore" else (target, str(store))
        arguments = [str(store), target] if command == "migrate-store" else [source, "--store", place]
        run = subprocess.run(
            [sys.executable, "-m", "cloudstore_mapping", command, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.stderr == (
            f"cloudstore: The disk of {disk} is full; free some space there, or name a file on another disk.\n"
        )
        assert (run.returncode, run.stdout, list(disk.iterdir())) == (3, "", [])


@pytest.mark.parametrize("command", spread([["export", "import"]], 2))
def test_a_store_on_a_full_disk_is_named(tmp_path: Path, command: str) -> None:
    """Of two stores the one is named whose disk is full."""
    source = tmp_path / "source.db"
    with cm.open(source) as opened:
        opened["key"] = "x" * 2**20
    with small_disk(tmp_path / "disk", 2**20) as disk:
        target = disk / "target.db"
        arguments = (
            ["export", str(target), "--format", "store", "--at", str(source)]
            if command == "export"
            else ["import", str(source), "--at", str(target)]
        )
        run = subprocess.run(
            [sys.executable, "-m", "cloudstore_mapping", *arguments], capture_output=True, text=True, check=False
        )
    assert (run.returncode, run.stdout) == (3, "")
    told = f"cloudstore: {target} can't be written to: 'key': {FULL[:-1]}\n"
    if command == "import":
        told += f"cloudstore: So the new store {target} is empty; import again, or delete it.\n"
    assert re.fullmatch(told, run.stderr)


@pytest.mark.parametrize("command", spread([["backup", "migrate-store", "restore", "check", "migrate", "account"]], 2))
def test_an_older_store_on_a_full_disk(tmp_path: Path, command: str) -> None:
    """On a disk without a byte left a command on an older store does its work or is refused in one line."""
    with small_disk(tmp_path / "disk", 2 * 2**20) as disk:
        store, other = str(disk / "old.db"), str(tmp_path / "other.db")
        Path(store).write_bytes(gzip.decompress(SAMPLE.read_bytes()))
        with pytest.raises(OSError, match="No space left"):
            (disk / "other").write_bytes(bytes(SIZE))
        arguments = {
            "backup": [other, "--store", store],
            "migrate-store": [store, other],
            "restore": [store, "--store", other],
            "account": ["list", "--store", store],
        }
        run = subprocess.run(
            [sys.executable, "-m", "cloudstore_mapping", command, *arguments.get(command, ["--store", store])],
            capture_output=True,
            text=True,
            check=False,
        )
    if command in ("account", "migrate-store"):  # these read a copy in memory
        assert (run.returncode, run.stderr) == (0, "")
    else:
        assert (run.returncode, run.stdout) == (3, "")
        assert re.fullmatch(f"cloudstore: {FULL[:-1]}\n", run.stderr)
        assert not Path(other).exists()


def test_a_compaction_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compact` without room for its copy says how much space it needs, and the store stays as it is."""
    disks = [Usage(2**30, 2**30)]
    monkeypatch.setattr(sqlite, "DiskReserve", lambda path: DiskReserve(path, lambda _: disks[-1]))
    with cm.open(tmp_path / "store.db") as store:
        store.update(dict.fromkeys("abc", "x" * 2**20))
        del store["a"]
    with SQLiteStorage(tmp_path / "store.db") as storage:
        disks.append(Usage(2**30, 2**20))
        with pytest.raises(NoSpaceError, match=r"^To compact the store, its disk needs (9\.[0-9]) MiB of free space; "):
            storage.compact()
    assert check_file(tmp_path / "store.db").files == 2


def test_a_backup_to_a_full_disk(tmp_path: Path) -> None:
    """A backup that finds no room names the disk it was to be on, which may be another one than the store's."""
    with SQLiteStorage(tmp_path / "store.db") as storage, small_disk(tmp_path / "disk", 64 * 1024) as disk:
        with pytest.raises(UnavailableError, match=f"^The disk of {disk} is full; free some space there"):
            storage.back_up(disk / "copy.db", lambda _done, _total: None)
        assert not list(disk.iterdir())


def free_space(disk: Path) -> int:
    """Return the free bytes of a disk."""
    return disk_usage(disk).free


@contextmanager
def opened(disk: Path, where: str, folder: Path) -> Iterator[Store]:
    """Open a store on a disk in this program, or at a service."""
    place = disk / "store.db"
    if where == "embedded":
        with cm.open(place, retries=0) as store:
            yield store
    else:
        with nodes(str(place), 1, folder) as (node,), cm.open(node.location(first_key([node])), retries=0) as store:
            yield store
    assert check_file(place).faults == []


@pytest.mark.parametrize("where", ["embedded", "http"])
@pytest.mark.parametrize("way", ["clear", "delete_many"])
def test_large_values_are_deleted_together(tmp_path: Path, where: str, way: str) -> None:
    """On a full disk `clear` and `delete_many` delete many large values, and as many are saved again."""
    with small_disk(tmp_path / "disk", 24 * 2**20) as disk, opened(disk, where, tmp_path) as store:
        saved = []
        for _ in range(2):
            saved.append(len(fill(lambda name: store.__setitem__(name, name * 50_000))))
            store.clear() if way == "clear" else store.delete_many(list(store))
            assert len(store) == 0
        assert saved[1] >= saved[0] - 3


@pytest.mark.parametrize("where", ["embedded", "http"])
def test_many_deletes_go_in_pieces(tmp_path: Path, where: str) -> None:
    """On a full disk deletes that need more than its reserve together are done in pieces."""
    with small_disk(tmp_path / "disk", 2 * 2**20) as disk, opened(disk, where, tmp_path) as store:
        fill_many(store, 400)
        some = list(store)[::8]  # a page holds about so many, so nearly all pages are written
        assert len(some) > 200
        assert free_space(disk) < 600_000
        store.delete_many(some)
        store.clear()
        assert len(store) == 0
        store["key"] = "x" * 2_000


def too_much(transaction: Transaction) -> None:
    """Write more than a full disk has room for."""
    transaction.do("CREATE TABLE too_much AS SELECT randomblob(100000000) AS data")


def full_storage(storage: SQLiteStorage) -> int:
    """Fill the disk of a storage with values, and return their account."""
    account = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result().id

    def put_on() -> None:
        for number in count():
            value = b'"%s"' % (b"1" * 300_000)
            storage.submit(lambda transaction: transaction.put(account, f"{number:06}", value, 1.0)).result()  # noqa: B023

    with pytest.raises(UnavailableError, match=FULL):
        put_on()
    return account


def names_of(storage: SQLiteStorage, account: int) -> list[str]:
    """Return the names of an account's files."""
    with storage.read() as transaction:
        return transaction.names(account)


@pytest.mark.parametrize("is_read", [False, True])
def test_a_refused_transaction_gives_its_space_back(tmp_path: Path, is_read: bool) -> None:
    """A transaction that finds the disk full leaves the reserve as it was, even while a reader holds a snapshot."""
    with small_disk(tmp_path / "disk", SIZE) as disk, SQLiteStorage(disk / "store.db") as storage:
        account = full_storage(storage)
        before = free_space(disk)
        with ExitStack() as stack:
            if is_read:
                stack.enter_context(storage.read()).names(account)
            for _ in range(2):
                with pytest.raises(DiskFullError):
                    storage.submit(too_much).result()
            assert free_space(disk) >= before - 2**20  # the checkpoint of the small log may have made the file longer
            assert storage.submit(lambda transaction: transaction.delete(account, "000000")).result()
        assert storage.submit(lambda transaction: transaction.delete(account, "000001")).result()
        assert storage.problem() is None


def test_the_file_has_room_to_take_in_the_log(tmp_path: Path) -> None:
    """Whatever is committed while a reader keeps the log from being emptied, deletes go on after the reader's end."""

    def rewrite(transaction: Transaction) -> None:
        transaction.do("UPDATE files SET value = randomblob(300002) WHERE name = '000000'")

    with small_disk(tmp_path / "disk", SIZE) as disk, SQLiteStorage(disk / "store.db") as storage:
        with storage.read() as reader:
            assert not reader.has_accounts()
            account = full_storage(storage)
            outcomes = [storage.submit(rewrite).exception() for _ in range(50)]
            assert {type(each) for each in outcomes} == {type(None), DiskFullError}
            names = names_of(storage, account)
        for name in names:
            assert storage.submit(lambda transaction, name=name: transaction.delete(account, name)).result()  # type: ignore[misc]


@pytest.mark.parametrize("deletes", [True, False])
def test_a_long_log_has_room_in_the_file(deletes: bool, tmp_path: Path) -> None:
    """Saves, and deletes, beside a reader leave the room that the log takes in the file once the reader has ended."""
    with small_disk(tmp_path / "disk", 100 * 2**20) as disk, cm.open(disk / "store.db", retries=0) as store:
        store["first"] = 1
        with SQLiteStorage(disk / "store.db") as storage, storage.read() as reader:
            assert reader.has_accounts()
            names = fill(lambda name: store.__setitem__(name, "x" * 5_000_000))
            if deletes:
                store.delete_many(names)
        store.clear()
        store["another"] = 1
        assert dict(store) == {"another": 1}


def test_a_refused_piece_of_work_refuses_no_other(tmp_path: Path) -> None:
    """Of a group of writes on a full disk only that is refused which finds no room by itself."""
    with small_disk(tmp_path / "disk", SIZE) as disk, SQLiteStorage(disk / "store.db") as storage:
        account = full_storage(storage)
        held = Held(storage)
        futures: list[Future[Any]] = [
            storage.submit(lambda transaction: transaction.delete(account, "000000")),
            storage.submit(too_much),
            storage.submit(lambda transaction: transaction.delete(account, "000001")),
        ]
        held.go.set()
        assert futures[0].result(PATIENCE)
        assert isinstance(futures[1].exception(PATIENCE), DiskFullError)
        assert futures[2].result(PATIENCE)


def test_a_large_value_is_deleted(tmp_path: Path) -> None:
    """On a full disk a value larger than the reserve is deleted."""
    with small_disk(tmp_path / "disk", 24 * 2**20) as disk, SQLiteStorage(disk / "store.db") as storage:
        account = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result().id
        storage.submit(lambda transaction: transaction.put(account, "large", bytes(7 * 2**20), 1.0)).result()
        storage.submit(lambda transaction: transaction.delete(account, "none")).result()
        (disk / "other").write_bytes(bytes(free_space(disk) - 2**20))
        assert storage.submit(lambda transaction: transaction.delete(account, "large")).result()


def test_a_full_disk_of_an_earlier_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store whose log an earlier version left on all of its disk is opened and emptied."""
    with small_disk(tmp_path / "disk", 24 * 2**20) as disk:
        with monkeypatch.context() as patch:
            patch.setattr(SQLiteSession, "_empty_log", lambda _: None)
            patch.setattr(SQLiteSession, "_disk_room", lambda _: nullcontext())
            with SQLiteStorage(disk / "store.db") as storage:
                account = full_storage(storage)
                with pytest.raises(DiskFullError):
                    storage.submit(too_much).result()
        assert free_space(disk) == 0
        assert (disk / "store.db-wal").stat().st_size > LOG
        with SQLiteStorage(disk / "store.db") as storage:
            for name in names_of(storage, account):
                assert storage.submit(lambda transaction, name=name: transaction.delete(account, name)).result()  # type: ignore[misc]
            storage.submit(
                lambda transaction: transaction.put(account, "key", b'"%s"' % (b"1" * 300_000), 1.0)
            ).result()
        assert check_file(disk / "store.db").faults == []
