"""How often files are used is counted in memory, stored now and then, and is one count for all processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest

from cloudstore_mapping.errors import DailyLimitError, OutcomeUnknownError, UnavailableError
from cloudstore_mapping.service.quotas import DAY, MAX_AHEAD, AccessCounter
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.records import AccessCount, Account, Limits
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.wire import Batch
from tests.service_fakes import PATIENCE, Asker, Held, ManualClock
from tests.storages import new_storage

MIDNIGHT = 1_700_006_400.0
TODAY = int(MIDNIGHT) // DAY


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands at midnight."""
    clock = ManualClock()
    clock.seconds = MIDNIGHT
    return clock


@pytest.fixture
def usage(storage: Storage, clock: ManualClock) -> Iterator[AccessCounter]:
    """Return the counts of a storage."""
    usage = AccessCounter(storage, clock)
    yield usage
    usage.close()


@pytest.fixture
def owner(storage: Storage, account: int) -> Account:
    """Return an account with a file, whose files may be used three times a day."""
    storage.submit(lambda transaction: transaction.put(account, "name", b"1", 1.0)).result()
    limits = Limits(max_daily_accesses=3)
    storage.submit(lambda transaction: transaction.set_limits(account, "own", limits)).result()
    with storage.read() as transaction:
        found = transaction.account(account)
    assert found is not None
    return found


def stored(storage: Storage, account: Account, name: str = "name") -> AccessCount | None:
    """Return what the storage knows."""
    with storage.read() as transaction:
        return transaction.accesses(account.id, "data", name)


def use(usage: AccessCounter, storage: Storage, account: Account, times: int = 1) -> None:
    """Use the file, as often as it may be."""
    for _ in range(times):
        with storage.read() as transaction:
            usage.admit(transaction, account, "data", "name")
        usage.count(account.id, "data", "name")


def is_used_up(usage: AccessCounter, storage: Storage, account: Account) -> bool:
    """Whether the file may be used no more today."""
    try:
        with storage.read() as transaction:
            usage.admit(transaction, account, "data", "name")
    except DailyLimitError:
        return True
    return False


def test_an_access_is_stored_by_a_flush(
    usage: AccessCounter, storage: Storage, owner: Account, clock: ManualClock
) -> None:
    """What was counted is stored with the day and the time of the last access, and so is the account's day."""
    use(usage, storage, owner)
    clock.advance(5)
    use(usage, storage, owner)
    usage.flush()
    assert stored(storage, owner) == AccessCount(TODAY, 2, MIDNIGHT + 5)
    usage.count(owner.id, "data", "absent")
    usage.flush()
    assert stored(storage, owner, "absent") is None
    with storage.read() as transaction:
        assert transaction.days(owner.id, TODAY) == [(TODAY, 3)]
        assert transaction.days(owner.id, TODAY + 1) == []


def test_what_was_used_includes_what_is_not_stored(usage: AccessCounter, storage: Storage, owner: Account) -> None:
    """Who asks how often a file was used is told of the last second too."""
    for times in (1, 2):
        use(usage, storage, owner)
        with storage.read() as transaction:
            assert usage.used(transaction, owner.id, "data", "name") == AccessCount(TODAY, times, MIDNIGHT)
        usage.flush()


def test_it_is_stored_by_itself(
    usage: AccessCounter, storage: Storage, owner: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to ask for it: a second after the first access all are stored."""
    monkeypatch.setattr("cloudstore_mapping.service.quotas.INTERVAL", 0.001)
    use(usage, storage, owner)
    while stored(storage, owner) is None:
        pass
    assert stored(storage, owner) == AccessCount(TODAY, 1, MIDNIGHT)


class Pause(threading.Event):
    """Stands for the end that is waited for, and tells how long it is; `go` lets one wait pass."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: SimpleQueue[float | None] = SimpleQueue()
        self.go = threading.Semaphore(0)

    def set(self) -> None:
        """End, which lets the wait pass as well."""
        super().set()
        self.go.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until told to go on."""
        self.begun.put(timeout)
        assert self.go.acquire(timeout=PATIENCE)
        return self.is_set()


def test_it_is_stored_no_more_than_once_a_second(storage: Storage, owner: Account, clock: ManualClock) -> None:
    """Before each write there is a second of waiting, and what came in it is stored together."""
    usage = AccessCounter(storage, clock)
    usage._closed = pause = Pause()
    use(usage, storage, owner)
    assert pause.begun.get(timeout=PATIENCE) == 1.0
    use(usage, storage, owner)
    assert stored(storage, owner) is None
    pause.go.release()
    use(usage, storage, owner)
    while pause.begun.empty():
        usage.count(owner.id, "data", "another")  # so that there is always something to store
    assert pause.begun.get() == 1.0
    before = stored(storage, owner)
    assert before is not None
    assert before.times >= 2
    usage.close()
    assert stored(storage, owner) == AccessCount(TODAY, 3, MIDNIGHT)


def test_the_limit_holds_across_flushes(usage: AccessCounter, storage: Storage, owner: Account) -> None:
    """A file may be used exactly as often as it may, whatever of it is stored already."""
    use(usage, storage, owner)
    usage.flush()
    use(usage, storage, owner)
    usage.flush()
    usage.flush()
    use(usage, storage, owner)
    assert is_used_up(usage, storage, owner)
    usage.flush()
    assert is_used_up(usage, storage, owner)
    assert stored(storage, owner) == AccessCount(TODAY, 3, MIDNIGHT)


def test_the_limit_says_when_it_ends(usage: AccessCounter, storage: Storage, owner: Account) -> None:
    """The error names the limit, and the midnight at which it is over."""
    use(usage, storage, owner, 3)
    with (
        storage.read() as transaction,
        pytest.raises(DailyLimitError, match=r"allows 3 \(daily-accesses\); .* 2023-11-16 00:00 UTC") as caught,
    ):
        usage.admit(transaction, owner, "data", "name")
    assert caught.value.key == "name"


def test_midnight_in_utc_begins_anew(
    usage: AccessCounter, storage: Storage, owner: Account, clock: ManualClock
) -> None:
    """The last second of a day counts to it, the first of the next begins at nothing, stored or not."""
    clock.advance(DAY - 1)
    use(usage, storage, owner, 3)
    assert is_used_up(usage, storage, owner)
    clock.advance(1)
    use(usage, storage, owner, 2)
    usage.flush()
    assert stored(storage, owner) == AccessCount(TODAY + 1, 2, MIDNIGHT + DAY)
    with storage.read() as transaction:
        assert transaction.days(owner.id, 0) == [(TODAY, 3), (TODAY + 1, 2)]
    clock.advance(DAY)
    use(usage, storage, owner, 3)
    assert is_used_up(usage, storage, owner)


def test_a_clock_that_is_set_back_resets_nothing(
    usage: AccessCounter, storage: Storage, owner: Account, clock: ManualClock
) -> None:
    """A step back by five minutes, over midnight, changes no count, in memory nor in the storage."""
    use(usage, storage, owner, 2)
    clock.ahead = -10
    use(usage, storage, owner)
    assert is_used_up(usage, storage, owner)
    usage.flush()
    clock.ahead = -MAX_AHEAD
    assert is_used_up(usage, storage, owner)
    used = stored(storage, owner)
    assert used == AccessCount(TODAY, 3, MIDNIGHT)


@pytest.mark.parametrize("days", [1, 30])
@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("starts", [False, True])
def test_accesses_of_days_to_come_do_not_count(
    usage: AccessCounter,
    storage: Storage,
    owner: Account,
    clock: ManualClock,
    days: int,
    flushed: bool,
    starts: bool,
) -> None:
    """A clock that was ahead locks no file once it is right, and a day has its own limit, no more and no less."""
    use(usage, storage, owner, 2)
    clock.ahead = days * DAY
    use(usage, storage, owner, 3)
    assert is_used_up(usage, storage, owner)
    if flushed or starts:
        usage.flush()
    clock.ahead = 0
    if starts:
        usage.close()
        usage = AccessCounter(storage, clock)
    clock.advance(2)  # after which totals are read anew
    with storage.read() as transaction:
        assert usage.used(transaction, owner.id, "data", "name") in (None, AccessCount(TODAY, 2, MIDNIGHT))
    for day in range(days + 2):
        while not is_used_up(usage, storage, owner):
            use(usage, storage, owner)
        usage.flush()
        assert stored(storage, owner) == AccessCount(TODAY + day, 3, MIDNIGHT + day * DAY + 2)
        assert is_used_up(usage, storage, owner)
        clock.advance(DAY)
    usage.close()


def test_an_access_while_the_clock_is_set_back(
    usage: AccessCounter, storage: Storage, owner: Account, clock: ManualClock
) -> None:
    """An access admitted by a clock that was ahead, and counted once it is right, counts today."""
    clock.ahead = 30 * DAY
    with storage.read() as transaction:
        usage.admit(transaction, owner, "data", "name")
    clock.ahead = 0
    usage.count(owner.id, "data", "name")
    usage.flush()
    assert stored(storage, owner) == AccessCount(TODAY, 1, MIDNIGHT)


def test_what_other_processes_counted_adds_up(tmp_path: Path, clock: ManualClock) -> None:
    """Two processes on one file store the sum of both, and each refuses after a second what both have used up."""
    with new_storage(tmp_path / "s.db") as one, new_storage(tmp_path / "s.db") as two:
        account = one.submit(lambda transaction: transaction.add_account("owner", 1.0)).result()
        account = account._replace(limits=Limits(max_daily_accesses=5))
        one.submit(lambda transaction: transaction.put(account.id, "name", b"1", 1.0)).result()
        here, there = AccessCounter(one, clock), AccessCounter(two, clock)
        use(here, one, account, 2)
        use(there, two, account, 2)
        here.flush()
        there.flush()
        assert stored(one, account) == AccessCount(TODAY, 4, MIDNIGHT)
        use(here, one, account)
        here.flush()
        assert not is_used_up(there, two, account)
        clock.advance(1.0)
        assert is_used_up(there, two, account)
        here.close()
        there.close()
        assert stored(two, account) == AccessCount(TODAY, 5, MIDNIGHT)


def test_what_could_not_be_stored_is_kept(
    usage: AccessCounter, storage: Storage, owner: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is full for a while loses no count."""
    use(usage, storage, owner, 2)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "submit", _full)
        with pytest.raises(UnavailableError):
            usage.flush()
    use(usage, storage, owner)
    assert is_used_up(usage, storage, owner)
    usage.flush()
    assert stored(storage, owner) == AccessCount(TODAY, 3, MIDNIGHT)


def _full(_: object) -> None:
    raise UnavailableError("The store's disk is full.")


def test_what_may_be_stored_is_not_counted_again(
    usage: AccessCounter, storage: Storage, owner: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts of which nobody knows whether they are stored are not stored a second time."""

    def lost_behind_the_commit(work: Callable[[Transaction], object]) -> None:
        submit(work).result()
        raise OutcomeUnknownError("It may be stored or not.")

    use(usage, storage, owner, 2)
    submit = storage.submit
    with monkeypatch.context() as patch:
        patch.setattr(storage, "submit", lost_behind_the_commit)
        with pytest.raises(OutcomeUnknownError):
            usage.flush()
    usage.flush()
    assert stored(storage, owner) == AccessCount(TODAY, 2, MIDNIGHT)


def test_counts_that_come_during_a_flush(tmp_path: Path, clock: ManualClock) -> None:
    """An access while others are being stored is neither lost nor counted twice."""
    with new_storage(tmp_path / "s.db") as storage, ThreadPoolExecutor(1) as pool:
        account = storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result()
        account = account._replace(limits=Limits(max_daily_accesses=3))
        storage.submit(lambda transaction: transaction.put(account.id, "name", b"1", 1.0)).result()
        usage = AccessCounter(storage, clock)
        use(usage, storage, account)
        held = Held(storage)
        flush = pool.submit(usage.flush)
        while usage._soon:
            pass
        use(usage, storage, account)
        assert not is_used_up(usage, storage, account)
        held.go.set()
        flush.result(PATIENCE)
        use(usage, storage, account)
        assert is_used_up(usage, storage, account)
        usage.close()
        assert stored(storage, account) == AccessCount(TODAY, 3, MIDNIGHT)


def test_a_deleted_file_leaves_no_count(clock: ManualClock) -> None:
    """What was counted of a file goes with it, unless its account has a limit that a new file would begin anew."""
    with Service(new_storage(), clock=clock) as service:
        ask = Asker(service, service.accounts.create("owner"))
        for limit, left in ((None, False), (10, True)):
            service.accounts.set_limits("owner", max_daily_accesses=limit)
            assert ask.save("name", 1).error is None
            service.usage.flush()
            assert ask.delete("name").error is None
            with service._storage.read() as transaction:
                assert (transaction.accesses(1, "data", "name") is not None) is left


def test_refused_work_is_not_counted(clock: ManualClock) -> None:
    """Only what was done is counted: neither refused requests nor those of a batch that was undone."""
    with Service(new_storage(), Settings(max_value_bytes=10), clock) as service:
        ask = Asker(service, service.accounts.create("owner"))
        ask.save("name", 1)
        assert ask.save("name", "x" * 20).error == "TooBig"
        assert ask.merge("name", {"a": "x" * 20}).error == "TooBig"
        assert ask.load("absent").error == "NoFile"
        batch = [ask.request(None, "name", value=2), ask.request(None, "absent")]
        assert service.handle(Batch(api_key=ask.api_key, requests=batch, atomic=True)).error == "NoFile"
        assert service.handle(Batch(api_key=ask.api_key, requests=batch)).error is None
        ask.load("name")
        with service._storage.read() as transaction:
            used = service.usage.used(transaction, 1, "data", "name")
        assert used is not None
        assert used.times == 3


def test_what_is_lost_at_the_end_is_said_once(
    tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Counts that can't be stored when a service is closed are one line of the log, however often it is closed."""
    with new_storage(tmp_path / "store.db") as storage:
        usage = AccessCounter(storage, clock)
        usage.count(1, "data", "name")
        storage.close()
        usage.close()
        usage.close()
    assert len(caplog.records) == 1


def test_a_service_that_does_not_count(clock: ManualClock) -> None:
    """The service in a user's own file never writes for a read."""
    with Service(new_storage(), Settings(count_accesses=False), clock) as service:
        ask = Asker(service, service.accounts.create("owner"))
        ask.save("name", 1)
        ask.load("name")
        assert service.usage._thread is None
        with service._storage.read() as transaction:
            assert service.usage.used(transaction, 1, "data", "name") is None


def test_a_failure_that_lasts_is_told_once(
    storage: Storage,
    account: int,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Counts that can't be stored are tried each second, and logged once a cause, until they were stored again."""
    monkeypatch.setattr("cloudstore_mapping.service.quotas.INTERVAL", 0.001)
    monkeypatch.setattr("cloudstore_mapping.service.quotas.LONG_INTERVAL", 0.001)
    usage = AccessCounter(storage, clock)
    tries = iter(["lost", "lost", "full", "full", "", "full"])
    done = threading.Event()

    def flush(**_: object) -> None:
        if (cause := next(tries, None)) is None:
            done.set()
        elif cause:
            raise UnavailableError(cause)

    monkeypatch.setattr(usage, "flush", flush)
    usage.count(account, "data", "name")
    assert done.wait(PATIENCE)
    usage.close()
    told = [record.getMessage().rpartition(": ")[2] for record in caplog.records]
    assert told == ["lost", "full", "full"]


def test_a_limited_file_is_stored_sooner_than_others(usage: AccessCounter, storage: Storage, owner: Account) -> None:
    """Each second only files with a daily limit are stored, of which other processes must know; others later."""
    storage.submit(lambda transaction: transaction.put(owner.id, "another", b"1", 1.0)).result()
    use(usage, storage, owner)
    usage.count(owner.id, "data", "another")
    usage.flush(everything=False)
    assert stored(storage, owner) == AccessCount(TODAY, 1, MIDNIGHT)
    assert stored(storage, owner, "another") is None
    usage.flush()
    assert stored(storage, owner, "another") == AccessCount(TODAY, 1, MIDNIGHT)


def test_many_counts_are_stored_in_pieces(
    usage: AccessCounter, storage: Storage, owner: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One transaction stores the counts of few files, so that writers go on; what fails in the middle is kept."""
    names = [f"file {number:03}" for number in range(5)]
    storage.submit(lambda transaction: [transaction.put(owner.id, name, b"1", 1.0) for name in names]).result()
    monkeypatch.setattr("cloudstore_mapping.service.quotas.PIECE", 2)
    usage.count(owner.id, "data", *names)
    submit, sizes = storage.submit, []

    def second_fails(work: Callable[[Transaction], object]) -> object:
        sizes.append(work)
        if len(sizes) == 2:
            _full(work)
        return submit(work)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "submit", second_fails)
        with pytest.raises(UnavailableError):
            usage.flush()
    assert [stored(storage, owner, name) is not None for name in names] == [True, True, False, False, False]
    usage.flush()
    assert [stored(storage, owner, name) for name in names] == [AccessCount(TODAY, 1, MIDNIGHT)] * 5


def test_the_end_does_not_wait_for_all_counts(
    storage: Storage,
    owner: Account,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A service that ends stores counts for a moment only; how many files lose theirs is one line of the log."""
    usage = AccessCounter(storage, clock)
    names = [f"file {number:03}" for number in range(5)]
    storage.submit(lambda transaction: [transaction.put(owner.id, name, b"1", 1.0) for name in names]).result()
    monkeypatch.setattr("cloudstore_mapping.service.quotas.PIECE", 2)
    usage.count(owner.id, "data", *names)
    submit = storage.submit

    def slow(work: Callable[[Transaction], object]) -> object:
        clock.advance(0.75)
        return submit(work)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "submit", slow)
        usage.close()
    assert [stored(storage, owner, name) is not None for name in names] == [True] * 4 + [False]
    assert [record.getMessage() for record in caplog.records] == ["The counts of 1 files were lost at the end."]


def test_counts_that_wait_are_bounded(
    usage: AccessCounter,
    storage: Storage,
    owner: Account,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While the store takes no writes, no more files are counted than memory is meant for, and the log says so."""
    monkeypatch.setattr("cloudstore_mapping.service.quotas.MAX_COUNTED", 2)
    storage.submit(lambda transaction: transaction.put(owner.id, "c", b"1", 1.0)).result()
    usage.count(owner.id, "data", "a", "b", "c", "b")
    usage.flush()
    assert stored(storage, owner, "c") is None
    assert [record.getMessage().partition(" ")[0] for record in caplog.records] == ["1"]


def test_what_was_counted_before_the_limit_counts(usage: AccessCounter, storage: Storage, owner: Account) -> None:
    """Accesses of before an account had its limit count against it, stored or not, and each once."""
    usage.count(owner.id, "data", "name", times=2)
    use(usage, storage, owner)
    assert is_used_up(usage, storage, owner)
    usage.flush(everything=False)
    assert stored(storage, owner) == AccessCount(TODAY, 3, MIDNIGHT)
