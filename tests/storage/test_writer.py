"""The thread that writes: what it makes of a session that fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage.group_commit import MAX_GROUP, GroupWriter, WriteSession
from tests.service_fakes import PATIENCE

BROKEN = UnavailableError("The engine failed.")


class FakeSession(WriteSession):
    """Notes what it is told, and fails where it is told to."""

    def __init__(self) -> None:
        self.commits: list[int] = []
        self.kept = 0
        self.stands = True
        self.fails: set[str] = set()
        self.ended_on: list[threading.Thread] = []

    def _fail(self, where: str) -> None:
        if where in self.fails:
            raise BROKEN

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Begin, then commit."""
        self._fail("begin")
        self.kept, self.stands = 0, True
        yield
        self._fail("commit")
        self.commits.append(self.kept)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Keep what doesn't raise."""
        yield
        self._fail("release")
        self.kept += 1

    def intact(self) -> bool:
        """Whether it stands."""
        return self.stands

    def end(self) -> None:
        """Note who calls."""
        self.ended_on.append(threading.current_thread())


class Writer(GroupWriter):
    """A writer that can be held back, so that what is submitted meanwhile is one group."""

    def __init__(self, session: FakeSession) -> None:
        super().__init__(session, session.end)
        self.go = threading.Event()

    def submit_together(self, *works: Callable[[Any], Any]) -> list[Future[Any]]:
        """Submit the works so that they meet in one transaction, as far as they fit."""
        begun = threading.Event()
        self.go.clear()
        held = self.submit(lambda _: (begun.set(), self.go.wait(PATIENCE)))  # type: ignore[func-returns-value]  # None
        assert begun.wait(PATIENCE)
        futures = [self.submit(work) for work in works]
        self.go.set()
        held.exception(PATIENCE)
        return futures


@pytest.fixture
def session() -> FakeSession:
    """Return a session."""
    return FakeSession()


@pytest.fixture
def writer(session: FakeSession, no_threads_left: None) -> Iterator[Writer]:
    """Return a writer with that session."""
    writer = Writer(session)
    yield writer
    writer.close()


def test_a_group_is_one_transaction(session: FakeSession, writer: Writer) -> None:
    """All that waits is committed at once, but never more than `MAX_GROUP`, so that the first doesn't wait long."""
    futures = writer.submit_together(*[lambda _: None] * (MAX_GROUP + 1))
    assert [future.result(PATIENCE) for future in futures] == [None] * (MAX_GROUP + 1)
    assert session.commits == [1, MAX_GROUP, 1]


def test_a_session_says_how_large_a_group_may_be(
    session: FakeSession, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine may want smaller groups; the benchmarks compare with groups of one."""
    monkeypatch.setattr(WriteSession, "max_group", 1)
    for future in writer.submit_together(*[lambda _: None] * 3):
        future.result(PATIENCE)
    assert session.commits == [1, 1, 1, 1]


@pytest.mark.parametrize("where", ["begin", "commit"])
def test_a_failed_transaction_is_everybody_s_failure(session: FakeSession, writer: Writer, where: str) -> None:
    """Where the transaction fails each is told the reason, and the next group is done."""
    futures = writer.submit_together(lambda _: session.fails.add(where), lambda _: 1, lambda _: 2)
    if where == "begin":
        assert futures[0].result(PATIENCE) is None
        futures = [writer.submit(lambda _: 1), writer.submit(lambda _: 2)]
    assert [future.exception(PATIENCE) for future in futures] == [BROKEN] * len(futures)
    session.fails.clear()
    assert writer.submit(lambda _: 3).result(PATIENCE) == 3


def test_a_lost_transaction_is_everybody_s_failure(session: FakeSession, writer: Writer) -> None:
    """Where the engine undid the transaction in the middle, those who were done before are told as well."""

    def lose(_: object) -> None:
        session.stands = False
        raise BROKEN

    futures = writer.submit_together(lambda _: 1, lose, lambda _: 2)
    assert [future.exception(PATIENCE) for future in futures] == [BROKEN] * 3
    assert writer.submit(lambda _: 3).result(PATIENCE) == 3


def test_work_that_can_t_be_kept_is_its_own_failure(session: FakeSession, writer: Writer) -> None:
    """Where the end of a savepoint fails the work is told so once, and its neighbours are done."""
    before, failing, after = writer.submit_together(
        lambda _: 1, lambda _: session.fails.add("release"), lambda _: session.fails.clear()
    )
    assert before.result(PATIENCE) == 1
    assert failing.exception(PATIENCE) is BROKEN
    assert after.result(PATIENCE) is None


def test_it_ends_once_on_its_own_thread(session: FakeSession, no_threads_left: None) -> None:
    """What lets go of the connections runs last, once, and where they were used."""
    writer = Writer(session)
    future = writer.submit(lambda _: threading.current_thread())
    writer.close()
    writer.close()
    assert session.ended_on == [future.result(0)]
    with pytest.raises(UnavailableError, match="is closed"):
        writer.submit(lambda _: None)


def test_values_are_not_kept_alive(writer: Writer) -> None:
    """A thread that waits holds on to nothing of the work that it did last."""

    class Value:
        """Something that is dropped."""

        def __init__(self) -> None:
            self.dropped = threading.Event()

        def __del__(self) -> None:
            self.dropped.set()

    value = Value()
    dropped = value.dropped
    writer.submit(lambda _, value=value: None).result(PATIENCE)  # type: ignore[misc]  # bound early
    del value
    assert dropped.wait(PATIENCE)


def test_work_is_done_by_who_waits_for_it(session: FakeSession, writer: Writer) -> None:
    """Where nobody writes, `run` does the work on the caller's thread at once, in a transaction of its own."""
    future = writer.run(lambda _: threading.current_thread())
    assert future.done()
    assert future.result() is threading.current_thread()
    assert session.commits == [1]
    failed = writer.run(lambda _: 1 / 0)
    assert isinstance(failed.exception(0), ZeroDivisionError)


def test_work_waits_for_who_came_first(session: FakeSession, writer: Writer) -> None:
    """While other work is being done or waits, `run` hands its own to the thread, which does it after that."""
    begun, go = threading.Event(), threading.Event()
    first = writer.submit(lambda _: (begun.set(), go.wait(PATIENCE)))  # type: ignore[func-returns-value]  # None
    assert begun.wait(PATIENCE)
    second = writer.run(lambda _: threading.current_thread())
    assert not second.done()
    go.set()
    assert second.result(PATIENCE) is not threading.current_thread()
    assert first.done()


def test_others_wait_for_work_on_a_caller_s_thread(session: FakeSession, writer: Writer) -> None:
    """What is submitted while `run` works is done after it, never within its transaction."""
    submitted: list[Future[Any]] = []

    def work(_: Any) -> None:
        submitted.append(writer.submit(lambda _: len(session.commits)))

    writer.run(work).result(0)
    assert submitted[0].result(PATIENCE) == 1


def test_interrupted_work_is_withdrawn(session: FakeSession, writer: Writer) -> None:
    """After an interrupt the work that its thread submitted is cancelled, or awaited if it has begun."""
    begun, go = threading.Event(), threading.Event()
    done: list[str] = []

    def slow(_: Any) -> None:
        begun.set()
        assert go.wait(PATIENCE)
        done.append("slow")

    def waiting() -> None:
        writer.submit(lambda _: done.append("never"))
        writer.withdraw()

    writer.submit(slow)
    assert begun.wait(PATIENCE)
    with ThreadPoolExecutor() as pool:
        pool.submit(waiting).result(PATIENCE)
        pool.submit(go.set)
        writer.withdraw()
        assert done == ["slow"]
    writer.submit(lambda _: done.append("last")).result(PATIENCE)
    assert done == ["slow", "last"]


def test_a_signal_handler_does_not_wait_for_its_own_thread(session: FakeSession, writer: Writer) -> None:
    """In the middle of its thread's work a signal handler can't have work done and wait; it can close the writer."""
    seen: list[str] = []

    def handler(_: Any) -> None:
        with pytest.raises(RuntimeError, match="set a flag") as caught:
            writer.run(lambda _: None)
        seen.append(str(caught.value))
        writer.close()

    writer.run(handler).result(0)
    writer.close()
    assert len(seen) == 1
    assert session.commits == [1]


def test_nothing_is_run_after_the_end(session: FakeSession, writer: Writer) -> None:
    """Once it is closed `run` refuses work, as `submit` does."""
    writer.close()
    with pytest.raises(UnavailableError):
        writer.run(lambda _: None)
    assert session.commits == []


def test_an_interrupt_is_the_caller_s(session: FakeSession, writer: Writer) -> None:
    """Ctrl-C during work on the caller's thread undoes the work, and is raised there as it always is."""

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.run(interrupt)
    assert writer.run(lambda _: 1).result(0) == 1
    assert session.commits == [1]


def test_a_thread_that_python_takes_for_dead(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes on where Python takes its thread for stopped, as an interrupt makes it do (python/cpython#90882)."""
    monkeypatch.setattr(threading.Thread, "is_alive", lambda _: False)
    assert writer.run(lambda _: 1).result(0) == 1
    assert writer.submit(lambda _: 2).result(PATIENCE) == 2


def test_nothing_waits_behind_the_end(session: FakeSession, no_threads_left: None) -> None:
    """Work that comes at the moment of closing is done or refused, and never left waiting."""
    writer = Writer(session)
    late: list[Future[Any]] = []
    begun, go = threading.Event(), threading.Event()
    writer.submit(lambda _: (begun.set(), go.wait(PATIENCE)))  # type: ignore[func-returns-value]  # None
    assert begun.wait(PATIENCE)
    writer._jobs.queue.put(None)
    late.append(writer.submit(lambda _: 1))
    go.set()
    assert isinstance(late[0].exception(PATIENCE), UnavailableError)
    writer.close()
