"""Wrong passwords are counted and slowed down, and hashing never makes others wait."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import Future

import pytest

from cloudstore_mapping.service.security import QUEUE_PER_THREAD
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.threads import LOWER
from cloudstore_mapping.wire import Reply
from tests.service_fakes import PATIENCE, Asker, FakeHasher, ManualClock

ROOM = (os.cpu_count() or 1) * (1 + QUEUE_PER_THREAD)


@pytest.fixture
def locked(service: Service, ask: Asker) -> Asker:
    """Return somebody whose file "name" has the password "right", asked by every write and load."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="right", view="right")
    ask.address = "192.0.2.1"
    return ask


def guess(ask: Asker, times: int, name: str = "name") -> list[str | None]:
    """Return the errors of so many wrong tries."""
    return [ask.save(name, 2, f"wrong {number}").error for number in range(times)]


def test_too_many_wrong_passwords(locked: Asker, hasher: FakeHasher, clock: ManualClock) -> None:
    """After five wrong passwords within 300 s the next is `TooOften` without hashing, right or wrong, with the wait."""
    assert guess(locked, 5) == ["Locked"] * 5
    clock.advance(100)
    reply = locked.save("name", 2, "right")
    assert (reply.error, reply.status, reply.retry_after) == ("TooOften", 429, 200)
    assert reply.sentence == "Too many wrong passwords (the service's password_tries); try again in 200 seconds."
    assert locked.load("name", "right").error == "TooOften"
    assert hasher.checks == 5


def test_the_window_passes(locked: Asker, clock: ManualClock) -> None:
    """300 s after a wrong password it counts no longer, each for itself; a try that was refused doesn't count."""
    assert guess(locked, 1) == ["Locked"]
    clock.advance(200)
    assert guess(locked, 5) == ["Locked"] * 4 + ["TooOften"]
    clock.advance(99.5)
    reply = locked.save("name", 2, "right")
    assert (reply.error, reply.retry_after) == ("TooOften", 0.5)
    assert reply.sentence.endswith("in 1 seconds.")
    clock.advance(0.5)
    assert guess(locked, 2) == ["Locked", "TooOften"]
    clock.advance(200)
    assert locked.save("name", 2, "right").error is None


def test_others_are_not_slowed(service: Service, locked: Asker) -> None:
    """Another address, another file and another account's file of the same name have counts of their own."""
    locked.save("other", 1)
    service.set_passwords("owner", "other", edit="right")
    assert guess(locked, 6)[-1] == "TooOften"
    assert guess(locked, 1, "other") == ["Locked"]
    elsewhere = Asker(service, locked.api_key, "192.0.2.2")
    assert guess(elsewhere, 1) == ["Locked"]
    assert elsewhere.save("name", 2, "right").error is None
    stranger = Asker(service, service.accounts.create("stranger"), locked.address)
    stranger.save("name", 1)
    service.set_passwords("stranger", "name", edit="right")
    assert guess(stranger, 1) == ["Locked"]


def test_without_a_password_nothing_is_counted(locked: Asker) -> None:
    """A request without a password to a locked file is `Locked` however often it comes."""
    assert {locked.save("name", 2).error for _ in range(20)} == {"Locked"}
    assert locked.save("name", 2, "right").error is None


def test_a_remembered_password_is_not_slowed(locked: Asker) -> None:
    """Who gave the right password before goes on, whatever is guessed from the same address."""
    assert locked.save("name", 2, "right").error is None
    assert guess(locked, 6)[-1] == "TooOften"
    assert locked.save("name", 2, "right").error is None


def test_a_password_in_use_is_guessed_no_faster(service: Service, locked: Asker, hasher: FakeHasher) -> None:
    """
    A password that others used is exempt from the limit only at their addresses; elsewhere it isn't hashed again.

    A client whose wrong passwords were too many learns nothing by the right one, until its time has passed.
    """
    user, other = Asker(service, locked.api_key, "192.0.2.2"), Asker(service, locked.api_key, "192.0.2.3")
    assert user.load("name", "right").error is None
    assert guess(locked, 6)[-1] == "TooOften"
    checks = hasher.checks
    wrong, right = locked.load("name", "wrong"), locked.load("name", "right")
    assert (wrong.error, wrong.sentence) == (right.error, right.sentence) == ("TooOften", right.sentence)
    assert locked.load("name", "right").error == locked.save("name", 2, "right").error == "TooOften"
    assert user.load("name", "right").error is other.load("name", "right").error is None
    assert hasher.checks == checks
    assert guess(other, 6)[-1] == "TooOften"
    assert other.load("name", "right").error is None


def test_a_right_password_hides_no_guesses(service: Service, locked: Asker) -> None:
    """Who knows the view password can't start the count of guesses at the edit password anew with it."""
    service.set_passwords("owner", "name", edit="edit", view="view")
    assert guess(locked, 4) == ["Locked"] * 4
    assert locked.load("name", "view").error is None
    assert guess(locked, 2) == ["Locked", "TooOften"]


@pytest.mark.sqlite("requests are begun in their order where no network is waited for")
def test_tries_that_come_at_once_are_counted_before_they_are_hashed(locked: Asker, hasher: FakeHasher) -> None:
    """Of many guesses at the same moment five are hashed, and the others don't wait for these to fail."""
    hasher.gate.clear()
    futures = [
        locked.service.submit(locked.request(None, "name", f"wrong {number}"), address="a") for number in range(8)
    ]
    assert [future.result(PATIENCE).error for future in futures[5:]] == ["TooOften"] * 3
    hasher.gate.set()
    assert [future.result(PATIENCE).error for future in futures[:5]] == ["Locked"] * 5
    assert hasher.checks == 10  # each against the view password and the edit password


@pytest.mark.sqlite("requests are begun in their order where no network is waited for")
def test_many_with_the_right_password_at_once(locked: Asker, hasher: FakeHasher) -> None:
    """Twenty requests with the right password that come before it is known are hashed once, and all are answered."""
    hasher.gate.clear()
    futures = [locked.service.submit(locked.request(None, "name", "right")) for _ in range(20)]
    hasher.gate.set()
    assert [future.result(PATIENCE).error for future in futures] == [None] * 20
    assert hasher.checks == 1


@pytest.fixture
def busy(service: Service, locked: Asker, hasher: FakeHasher) -> list[Future[Reply]]:
    """Return requests that wait for their hashing: as many as there is room for."""
    for number in range(ROOM):
        locked.save(str(number), 1)
        service.set_passwords("owner", str(number), view="right")
    hasher.gate.clear()
    return [ask(locked, str(number), "right") for number in range(ROOM)]


def ask(asker: Asker, name: str, password: str) -> Future[Reply]:
    """Begin to load a file."""
    return asker.service.submit(asker.request(None, name, password), address=asker.address)


@pytest.mark.sqlite("requests are begun in their order where no network is waited for")
def test_a_full_queue_is_unavailable(locked: Asker, hasher: FakeHasher, busy: list[Future[Reply]]) -> None:
    """Where too many passwords wait the next is `Unavailable`, and who waits is answered."""
    reply = locked.load("name", "right")
    assert (reply.error, reply.status) == ("Unavailable", 503)
    assert reply.retry_after is not None
    hasher.gate.set()
    assert [future.result(PATIENCE).error for future in busy] == [None] * ROOM
    assert locked.load("name", "right").error is None


@pytest.mark.sqlite("requests are begun in their order where no network is waited for")
def test_a_full_queue_is_one_accounts(service: Service, hasher: FakeHasher, busy: list[Future[Reply]]) -> None:
    """While as many of an account's passwords wait as may, another account's is verified, and not after all of them."""
    other = Asker(service, service.accounts.create("other"))
    other.save("name", 1)
    service.set_passwords("other", "name", view="right")
    answer = ask(other, "name", "right")
    assert not answer.done()
    hasher.gate.set()
    assert answer.result(PATIENCE).error is None


@pytest.mark.sqlite("requests are begun in their order where no network is waited for")
def test_others_go_on_while_the_queue_is_full(locked: Asker, hasher: FakeHasher, busy: list[Future[Reply]]) -> None:
    """Every request without a password is answered while passwords wait."""
    assert locked.save("open", 1).error is None
    assert locked.merge("open", 2).error is None
    assert locked.value("open") == 2
    assert locked.list().error is None
    assert locked.delete("open").error is None
    assert locked.load("name").error == "Locked"
    assert not any(future.done() for future in busy)
    hasher.gate.set()


@pytest.mark.sqlite("requests are begun in their order where no network is waited for")
def test_a_full_queue_hides_no_guesses(locked: Asker, hasher: FakeHasher, busy: list[Future[Reply]]) -> None:
    """A try for which there was no room doesn't count, and doesn't make those before it forgotten."""
    hasher.gate.set()
    for future in busy:
        future.result(PATIENCE)
    assert guess(locked, 4) == ["Locked"] * 4
    hasher.gate.clear()
    for number in range(ROOM):
        locked.service.set_passwords("owner", str(number), view="new")
    waiting = [ask(locked, str(number), "new") for number in range(ROOM)]
    assert guess(locked, 6) == ["Unavailable"] * 6
    hasher.gate.set()
    for future in waiting:
        future.result(PATIENCE)
    assert guess(locked, 2) == ["Locked", "TooOften"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_hashing_steps_back(locked: Asker, hasher: FakeHasher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever hashes lets all other threads go before, so that a flood of passwords doesn't take the processor."""
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    priorities = []

    def fits(stored: str, password: str) -> bool:
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return False

    monkeypatch.setattr(hasher, "fits", fits)
    assert guess(locked, 1) == ["Locked"]
    assert priorities == [max(LOWER, before)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
