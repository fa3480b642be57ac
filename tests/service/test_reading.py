"""Long reads: searches, listings and large loads in short read transactions, and the memory of large replies."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service import dispatcher, listings
from cloudstore_mapping.service.quotas import ReplyMemory
from cloudstore_mapping.service.reading import LongRead, Slice
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.service.threads import LOWER, Paused
from cloudstore_mapping.wire import Batch, Reply, Request, decode_replies, decode_value, encode_value
from tests.service_fakes import PATIENCE, Asker, FakeHasher, ManualClock

NAMES = [f"name {number}" for number in range(20)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the store is."""
    return tmp_path / "store.db"


@pytest.fixture
def asker(path: Path, monkeypatch: pytest.MonkeyPatch, no_threads_left: None) -> Iterator[Asker]:
    """Return somebody with 20 files, in a service whose slices are of one step, and whose steps are of three names."""
    monkeypatch.setattr(listings, "STEP_NAMES", 3)
    monkeypatch.setattr(listings, "STEP_VALUES", 3)
    monkeypatch.setattr(dispatcher, "LOCAL", Slice(seconds=1.0, steps=1))
    with Service(SQLiteStorage(path), clock=ManualClock(), hasher=FakeHasher()) as service:
        asker = Asker(service, service.accounts.create("owner"))
        for name in NAMES:
            asker.save(name, name)
        yield asker


def between(monkeypatch: pytest.MonkeyPatch, does: object) -> list[int]:
    """Do something after each slice of a long read; the list that this returns counts the slices."""
    slices: list[int] = []
    go_on = LongRead.go_on

    def watched(read: LongRead) -> object:
        outcome = go_on(read)
        if isinstance(outcome, Paused):
            slices.append(1)
            does()  # type: ignore[operator]
        return outcome

    monkeypatch.setattr(LongRead, "go_on", watched)
    return slices


def read(asker: Asker, name: str = "", **fields: object) -> Reply:
    """Return the reply to a listing, as a service gives it."""
    request = Request(api_key=asker.api_key, name=name, options="list", **fields)  # type: ignore[arg-type]
    return asker.service.submit(request).result(PATIENCE)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_long_reads_step_back(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches run at low priority, so that on a busy machine small requests don't wait for their processor time."""
    priorities: list[int] = []
    between(monkeypatch, lambda: priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
    read(asker, "e")
    assert set(priorities) == {max(LOWER, os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))}


def test_the_log_is_emptied_during_a_search(asker: Asker, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the slices of a search no transaction is open, so SQLite's log can be carried over and emptied."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)) as other:
        busy: list[int] = []

        def checkpoint() -> None:
            asker.save("other", 1)
            busy.append(other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])

        between(monkeypatch, checkpoint)
        assert set(NAMES) <= set(decode_value(read(asker, "e").content))
    assert len(busy) >= 6
    assert not any(busy)


def test_what_a_listing_holds(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name that exists during the whole listing is in it once, in order; one that comes or goes may be."""
    changes = iter([("delete", NAMES[0]), ("save", "a"), ("save", "z"), ("delete", NAMES[9])])

    def change() -> None:
        operation, name = next(changes, (None, ""))
        if operation == "save":
            asker.save(name, 1)
        elif operation == "delete":
            asker.delete(name)

    assert between(monkeypatch, change) == []
    found = decode_value(read(asker).content)
    assert found == sorted(set(found))
    assert set(NAMES) - {NAMES[0], NAMES[9]} <= set(found) <= {*NAMES, "a", "z"}
    assert "z" in found


@pytest.mark.parametrize("name", ["", "1", "absent"])
@pytest.mark.parametrize("fields", [{}, {"brief": True}, {"limit": 4}, {"limit": 4, "values": True}, {"values": True}])
def test_slices_change_no_reply(
    asker: Asker, monkeypatch: pytest.MonkeyPatch, name: str, fields: dict[str, object]
) -> None:
    """The reply to a listing is the same in slices as at once."""
    slices = between(monkeypatch, lambda: None)
    in_slices = read(asker, name, **fields)
    assert slices
    monkeypatch.setattr(dispatcher, "LOCAL", None)
    assert read(asker, name, **fields) == in_slices


def test_a_batch_of_reads_in_slices(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that only reads answers each request as one that came by itself, in slices."""
    requests = [
        Request(name=NAMES[0]),
        Request(name="absent"),
        Request(name="1", options="list"),
        Request(name=NAMES[1], options="stat"),
    ]
    alone = [
        asker.service.submit(Request(api_key=asker.api_key, name=each.name, options=each.options)).result(PATIENCE)
        for each in requests
    ]
    slices = between(monkeypatch, lambda: None)
    reply = asker.service.submit(Batch(api_key=asker.api_key, requests=requests)).result(PATIENCE)
    assert [each.content for each in decode_replies(reply.content)] == [each.content for each in alone]
    assert len(slices) > len(requests)


def test_a_key_is_checked_in_each_slice(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing whose account is disabled meanwhile is refused in the end."""
    between(monkeypatch, lambda: asker.service.accounts.set_disabled("owner", True))
    assert read(asker).error == "Disabled"


def test_the_memory_of_replies_is_bounded(no_threads_left: None) -> None:
    """Large loads are refused as unavailable while replies that aren't sent take an account's share of the memory."""
    settings = Settings(max_reply_bytes=2**20, max_batch_reply_bytes=2**18, max_value_bytes=2**18)
    with Service(SQLiteStorage(None), settings, hasher=FakeHasher()) as service:
        askers = [Asker(service, service.accounts.create(name)) for name in ("a", "b")]
        rooms = []
        errors = []
        for asker in askers:
            asker.save("large", "x" * 200_000)
            for _ in range(3):
                rooms.append(service.reply_memory.room())
                request = Request(api_key=asker.api_key, name="large")
                reply = service.dispatcher.submit(request, room=rooms[-1])
                assert not isinstance(reply, Reply)
                errors.append((reply.result(PATIENCE).error, reply.result(PATIENCE).retry_after))
        assert errors == [(None, None), (None, None), ("Unavailable", 1.0)] * 2
        for room in rooms:
            room.release()
        assert service.reply_memory.taken == 0


def test_a_room_that_was_released() -> None:
    """A reply whose client has gone takes no more memory."""
    memory = ReplyMemory(1000)
    room = memory.room()
    room.grow_to(1, 100)
    room.grow_to(1, 50)
    assert memory.taken == 100
    room.release()
    room.release()
    assert memory.taken == 0
    with pytest.raises(UnavailableError):
        room.grow_to(1, 200)
    memory.room().grow_to(1, 5000, forced=True)
    assert memory.taken == 5000


def test_a_large_value_is_read_on_a_thread(asker: Asker) -> None:
    """A value over the limit is read by another thread, with the same reply; also if it is wanted unless unchanged."""
    for size in (10, dispatcher.SMALL_VALUE):
        asker.save("name", "x" * size)
        reply = asker.service.dispatcher.submit(Request(api_key=asker.api_key, name="name"))
        assert isinstance(reply, Reply) is (size == 10)
        reply = reply if isinstance(reply, Reply) else reply.result(PATIENCE)
        assert reply.content == encode_value("x" * size)
        version = reply.version
        assert isinstance(version, str)
        unchanged = Request(api_key=asker.api_key, name="name", if_not_version=version)
        assert isinstance(asker.service.dispatcher.submit(unchanged), Reply)
