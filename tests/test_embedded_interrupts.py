"""Ctrl-C at any place of a save or load of an embedded store: raised, and the store goes on."""

from __future__ import annotations

import signal
import sqlite3
import threading
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.client.mapping import files_of
from cloudstore_mapping.service import dispatcher
from cloudstore_mapping.service.dispatcher import PendingRequest
from cloudstore_mapping.service.storage import sqlite
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.threads import PlainFuture
from cloudstore_mapping.wire import Request
from tests.support.interrupts import at_line

#: The files whose every line is interrupted once.
FILES = {str(module.__file__) for module in (dispatcher, sqlite)}


def interrupted(after: int, error: type[BaseException] = KeyboardInterrupt) -> AbstractContextManager[list[int]]:
    """Raise an error in the block before the line of `FILES` with this number is executed; gives how many were."""

    def act() -> None:
        raise error

    return at_line(after, FILES, act)


@pytest.mark.parametrize("where", ["memory:", "store.db"])
@pytest.mark.parametrize("what", ["save", "load"])
def test_wherever_it_comes(tmp_path: Path, where: str, what: str) -> None:
    """The interrupt is raised, or comes too late; what was saved before stands, and the next save and load go well."""
    with cm.open(where if where == "memory:" else tmp_path / where) as store:
        store["key"] = -1
        for line in range(1, 1000):
            with interrupted(line) as seen:
                try:
                    if what == "save":
                        store["key"] = line
                    else:
                        store["key"]
                except KeyboardInterrupt:
                    pass
            if seen[0] < line:
                break
            assert store["key"] in (line - 1, line, -1)
            store["key"] = line
        assert line > 10


class MyTimeoutError(Exception):
    """What a program's own handler of a signal raises."""


@pytest.mark.parametrize("where", ["memory:", "store.db"])
@pytest.mark.parametrize("what", ["save", "load", "update"])
def test_the_program_s_own_exception(tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str, what: str) -> None:
    """What a handler of the program's signals raises within a save or load comes out as it is, and isn't logged."""
    with cm.open(where if where == "memory:" else tmp_path / where) as store:
        store["key"] = -1
        for line in range(1, 1000):
            with interrupted(line, MyTimeoutError) as seen:
                try:
                    if what == "save":
                        store["key"] = line
                    elif what == "update":
                        store.update({"key": line, "other": line})
                    else:
                        store["key"]
                    raised = False
                except MyTimeoutError:
                    raised = True
            if seen[0] < line:
                break
            assert raised
        assert line > 10
        store["key"] = 0
        assert store["key"] == 0
    assert caplog.records == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # raised in a weak reference's callback
def test_an_alarm_while_another_process_holds_the_store(tmp_path: Path) -> None:
    """A signal's handler ends a save that waits for another process, which is then never done."""

    def ring(*_: object) -> None:
        raise MyTimeoutError

    path = tmp_path / "store.db"
    before = signal.signal(signal.SIGALRM, ring)
    try:
        with cm.open(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
            store["key"] = 1
            other.execute("BEGIN IMMEDIATE")
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(MyTimeoutError):
                store["key"] = 2
            other.execute("ROLLBACK")
            assert store["key"] == 1
            store["key"] = 3
            assert store["key"] == 3
    finally:
        signal.signal(signal.SIGALRM, before)


def test_closing_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process keeps from being stored is refused when the store is closed, and not done later."""
    monkeypatch.setattr(sqlite, "CLOSING_WAIT", 0.0)
    path = tmp_path / "store.db"
    storage = sqlite.SQLiteStorage(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = storage.submit(lambda transaction: transaction.add_account("owner", 1.0))
        storage.close()
        assert str(waiting.exception(0)) == "Another process holds the store; try again."
        other.execute("ROLLBACK")
    with sqlite.SQLiteStorage(path) as again, again.read() as transaction:
        assert not transaction.has_accounts()


def test_a_dropped_session_is_closed(tmp_path: Path) -> None:
    """A session that an interrupt drops closes its connection, of which Python 3.13 would warn."""
    session = sqlite.SQLiteSession(tmp_path / "store.db", "rwc")
    connection = session.connection
    del session
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "SAVEPOINT work", "RELEASE work", "COMMIT"])
def test_right_after_a_statement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    """An interrupt that comes when a statement was just done is raised, and taken for no failure of the store."""

    def add(transaction: Transaction) -> None:
        transaction.add_account("owner", 1.0)

    with sqlite.SQLiteStorage(tmp_path / "store.db") as storage:
        execute = storage._session._execute

        def interrupted(query: str, *parameters: Any) -> Any:
            done = execute(query, *parameters)
            if query == statement:
                raise KeyboardInterrupt
            return done

        with monkeypatch.context() as patch:
            patch.setattr(storage._session, "_execute", interrupted)
            with pytest.raises(KeyboardInterrupt):
                storage.run(add)
        with storage.read() as transaction:
            assert transaction.has_accounts() == (statement == "COMMIT")
        storage.run(lambda transaction: transaction.add_account("other", 1.0)).result(0)


def test_an_interrupt_comes_before_a_write_or_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt of a thread whose work another thread has begun is raised once that work is done."""
    with cm.open("memory:") as store:
        store["k"] = 1
        service = files_of(store).client._transport._service  # type: ignore[attr-defined]
        work: PlainFuture[None] = PlainFuture()
        work.set_running_or_notify_cancel()
        waited: list[object] = []

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        def finish(future: PlainFuture[None]) -> None:
            waited.append(future)
            future.set_result(None)

        monkeypatch.setattr(dispatcher, "_wait_until", interrupted)
        monkeypatch.setattr(dispatcher, "wait_for", finish)
        asked = PendingRequest(Request(api_key="", name="k"), "", None, waits=True, raises=True)
        with pytest.raises(KeyboardInterrupt):
            service.dispatcher._when_done(work, asked, lambda *_: None)
        assert waited == [work]


@pytest.mark.parametrize("location", ["memory:", "s.db"])
def test_a_signal_handler_within_a_write(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of its thread's write a handler loads; it can't write, nor list a store in memory; it may close."""
    monkeypatch.chdir(tmp_path)
    seen: list[str] = []
    with cm.open(location) as store:
        store["k"] = 1
        storage = files_of(store).client._transport._service._storage  # type: ignore[attr-defined]

        def handler(_: object) -> None:
            with pytest.raises(RuntimeError, match="set a flag"):
                store["k"] = 2
            if location == "memory:":
                with pytest.raises(RuntimeError, match="set a flag"):
                    len(store)
            else:
                assert len(store) == 1
                assert store["k"] == 1
            seen.append("handled")
            store.close()

        storage.run(handler).result(0)
    assert seen == ["handled"]
    with pytest.raises(ValueError, match="closed"):
        store["k"] = 3


@pytest.mark.parametrize("place", ["memory:", "s.db"])
@pytest.mark.parametrize("what", ["read", "write"])
def test_a_signal_handler_while_other_threads_write(place: str, what: str, tmp_path: Path) -> None:
    """In the middle of its thread's request a handler loads and closes, also while other threads wait to write."""
    seen: list[object] = []
    with cm.open(place if place == "memory:" else tmp_path / place) as store:
        store["k"] = 1
        client = files_of(store).client
        storage = client._transport._service._storage  # type: ignore[attr-defined]
        others = [threading.Thread(target=write, args=(store,)) for _ in range(3)]

        def handler(_: object) -> None:
            for other in others:
                other.start()
            seen.append(store["k"])
            if place == "memory:" or what == "write":
                with pytest.raises(RuntimeError, match="set a flag"):
                    store["k"] = 2
            if what == "read":
                seen.append("k" in list(store))
            store.close()

        with client._gate.turn:
            if what == "write":
                storage.run(handler).result(0)
            else:
                with storage.read() as transaction:
                    handler(transaction)
        for other in others:
            other.join()
    assert seen == ([1, True] if what == "read" else [1])


def write(store: cm.CloudStoreMapping[Any]) -> None:
    """Save a value until the store is closed."""
    with pytest.raises((ValueError, cm.UnavailableError), match="closed"):
        write_again_and_again(store)


def write_again_and_again(store: cm.CloudStoreMapping[Any]) -> None:
    """Save a value until there is an error."""
    while True:
        store["other"] = 3


def test_an_interrupt_that_cancels_a_step_of_the_sweep(tmp_path: Path) -> None:
    """After an interrupt of the thread that began to sweep the bytes of replaced media are still taken away."""
    with cm.open(tmp_path / "s.db") as store:
        store.upload(bytes(100_000), "a.bin")
        service = files_of(store).client._transport._service  # type: ignore[attr-defined]
        with service._storage._writer._turn:  # so that no step of it begins
            service.media._sweeper.begin()
            service.withdraw()
        service.media._sweeper.wait()
