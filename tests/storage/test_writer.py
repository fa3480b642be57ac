"""The thread that writes: what it makes of a session that fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.storage.base import MAX_BYTES
from cloudstore_mapping.service.storage.sqlite import LONE_SECONDS, MAX_GROUP, GroupWriter, SQLiteSession
from tests.service_fakes import PATIENCE

BROKEN = UnavailableError("The engine failed.")


class FakeSession(SQLiteSession):
    """Notes what it is told, and fails where it is told to."""

    def __init__(self) -> None:
        self.outlives_program = True
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

    def is_in_use(self) -> bool:
        """Whether this thread is in the middle of its turn."""
        return False

    def intact(self) -> bool:
        """Whether it stands."""
        return self.stands

    def end(self) -> None:
        """Note who calls."""
        self.ended_on.append(threading.current_thread())


class Writer(GroupWriter):
    """A writer that can be held back, so that what is submitted meanwhile is one group."""

    def __init__(self, session: FakeSession) -> None:
        self.seconds = 0.0
        super().__init__(session, session.end, clock=lambda: self.seconds)
        self.go = threading.Event()

    def keep_busy(self) -> Future[Any]:
        """Begin work, alone in its transaction, that lasts until `go`."""
        begun = threading.Event()
        self.go.clear()
        held = self.submit(lambda _: (begun.set(), self.go.wait(PATIENCE)), size=MAX_BYTES)  # type: ignore[func-returns-value]  # None
        assert begun.wait(PATIENCE)
        return held

    def submit_together(self, *works: Callable[[Any], Any]) -> list[Future[Any]]:
        """Submit the works so that they meet in one transaction, as far as they fit."""
        held = self.keep_busy()
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
    monkeypatch.setattr(SQLiteSession, "max_group", 1)
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
    """If the engine undoes the transaction in the middle, all work of it fails, and what waits is done in the next."""

    def lose(_: object) -> None:
        session.stands = False
        raise BROKEN

    futures = writer.submit_together(lambda _: 1, lose, lambda _: 2)
    assert [future.exception(PATIENCE) for future in futures] == [BROKEN, BROKEN, None]
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


def test_accounts_are_served_in_turn(session: FakeSession, writer: Writer) -> None:
    """An account with a thousand pieces of work delays another account's by one group at most."""
    done: list[str] = []
    held = writer.keep_busy()
    many: list[Future[Any]] = [writer.submit(lambda _: done.append("many"), "many") for _ in range(1000)]
    one = writer.submit(lambda _: done.append("one"), "one")
    writer.go.set()
    for future in (held, one, *many):
        future.result(PATIENCE)
    assert done.index("one") == 1
    assert session.commits[:2] == [1, MAX_GROUP]


@pytest.mark.parametrize("accounts", [1, 7])
def test_a_group_ends_when_its_time_is_used(session: FakeSession, writer: Writer, accounts: int) -> None:
    """A transaction has so many seconds of work, more if all is one account's; what waits is done in the next one."""
    limit = LONE_SECONDS if accounts == 1 else session.max_seconds

    def work(_: Any) -> None:
        writer.seconds += 0.4 * limit

    held = writer.keep_busy()
    futures: list[Future[Any]] = [writer.submit(work, str(number % accounts)) for number in range(7)]
    writer.go.set()
    for future in (held, *futures):
        future.result(PATIENCE)
    assert session.commits == [1, 3, 3, 1]


def test_a_group_ends_when_its_bytes_are_used(session: FakeSession, writer: Writer) -> None:
    """A transaction has so many bytes of work; larger work is alone in its own."""
    sizes = (MAX_BYTES // 2, MAX_BYTES // 2, 1, 5 * MAX_BYTES, 0, 1)
    futures: list[Future[Any]] = [writer.keep_busy(), *(writer.submit(lambda _: None, size=size) for size in sizes)]
    writer.go.set()
    for future in futures:
        future.result(PATIENCE)
    assert session.commits == [1, 2, 1, 1, 2]


def test_an_account_rests_after_long_work(writer: Writer) -> None:
    """An account whose work took long waits until the others that wait had as much time."""
    order: list[str] = []

    def work(name: str, seconds: float) -> None:
        order.append(name)
        writer.seconds += seconds

    held = writer.keep_busy()
    futures: list[Future[Any]] = [held, *(writer.submit(lambda _: work("long", 1.0), "long") for _ in range(2))]
    futures += [writer.submit(lambda _: work("short", 0.25), "short") for _ in range(6)]
    writer.go.set()
    for future in futures:
        future.result(PATIENCE)
    assert order == ["long", *["short"] * 4, "long", *["short"] * 2]


def test_waits_count_from_the_arrival(session: FakeSession, writer: Writer) -> None:
    """A transaction waits for other processes from the arrival of its first work on, not from its turn."""
    seen: list[float | None] = []

    def work(_: Any) -> None:
        seen.append(session.since)
        writer.seconds += 1.0

    for future in writer.submit_together(*[work] * 3):
        future.result(PATIENCE)
    assert seen == [0.0] * 3
    writer.run(work).result(0)
    assert seen[-1] == 3.0


def test_what_has_not_begun_in_time_is_refused(session: FakeSession, writer: Writer) -> None:
    """A writer that is to end in some seconds refuses accounts' work that has not begun; the service's own is done."""

    def work(_: Any) -> None:
        writer.seconds += 1.0

    writer.end_within(2.5)
    held = writer.keep_busy()
    futures = [writer.submit(work, "account") for _ in range(5)]
    own = [writer.submit(lambda _: "own") for _ in range(2)]
    writer.go.set()
    held.result(PATIENCE)
    errors = [future.exception(PATIENCE) for future in futures]
    assert errors[:3] == [None] * 3
    assert [str(error) for error in errors[3:]] == ["The service is ending; try again once it is back."] * 2
    assert [future.result(PATIENCE) for future in own] == ["own"] * 2


def test_a_held_account_waits(writer: Writer) -> None:
    """No work of a held account begins before its release, while that of others is done; closing does all of it."""
    writer.submit(lambda _: writer.hold("held"), "held").result(PATIENCE)
    held = writer.submit(lambda _: "done", "held")
    assert writer.submit(lambda _: held.done(), "other").result(PATIENCE) is False
    writer.release("held")
    assert held.result(PATIENCE) == "done"
    writer.submit(lambda _: writer.hold("held"), "held").result(PATIENCE)
    held = writer.submit(lambda _: "done", "held")
    writer.close()
    assert held.result(0) == "done"


def test_whether_others_wait(writer: Writer) -> None:
    """In the middle of an account's work the writer tells whether other work waits."""
    assert writer.submit(lambda _: writer.others_wait("a"), "a").result(PATIENCE) is False
    first, second = writer.submit_together(lambda _: writer.others_wait("a"), lambda _: writer.others_wait("a"))
    assert (first.result(PATIENCE), second.result(PATIENCE)) == (True, False)
