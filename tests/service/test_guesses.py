"""API key guessing is throttled per client address, and a right key is accepted."""

from __future__ import annotations

from typing import Any

import pytest

from cloudstore_mapping.errors import BadKeyError, TooOftenError
from cloudstore_mapping.service import quotas, security
from cloudstore_mapping.service.quotas import AttemptLimiter
from cloudstore_mapping.service.security import ApiKeyThrottle, network_of
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from tests.service_fakes import Asker, ManualClock

TRIES = Settings().key_tries
HERE = "192.0.2.1"


@pytest.fixture
def stranger(service: Service, ask: Asker) -> Asker:
    """Return somebody at the owner's service who has no key yet; the owner hasn't used the own one from there."""
    return Asker(service, "", HERE)


def guess(stranger: Asker, times: int, first: int = 0, key: str = "guess-number-{:05}") -> list[str | None]:
    """Return the errors of tries with so many different keys, by all kinds of requests in turn."""
    kinds: list[Any] = [lambda: stranger.load("a"), lambda: stranger.save("a", 1), lambda: stranger.list()]
    errors = []
    for number in range(first, first + times):
        stranger.api_key = key.format(number)
        errors.append(kinds[number % 3]().error)
    return errors


def test_too_many_wrong_keys(stranger: Asker, clock: ManualClock) -> None:
    """After so many different wrong keys the next one is `TooOften`, until the first of them counts no longer."""
    assert guess(stranger, TRIES) == ["BadKey"] * TRIES
    clock.advance(100)
    assert guess(stranger, 3, TRIES) == ["TooOften"] * 3
    for reply in (stranger.load("a"), stranger.save("a", 1), stranger.list()):
        assert (reply.error, reply.status, reply.retry_after) == ("TooOften", 429, 200)
        assert reply.sentence == "Too many wrong API keys (the service's key_tries); try again in 200 seconds."
    clock.advance(200)
    assert stranger.save("a", 1).error == "BadKey"


@pytest.mark.parametrize("key", ["guess-number-{:05}", "guess-number-{:05}-of-32-characters"], ids=["short", "long"])
def test_a_right_key_is_never_refused(service: Service, stranger: Asker, ask: Asker, key: str) -> None:
    """A right key is accepted, whatever others have guessed from its address, also at its first use from there."""
    own = Asker(service, service.accounts.create("own", "a-key-of-one's-own-of-32-characters".replace("'", "~")), HERE)
    guess(stranger, TRIES + 1, key=key)
    ask.address = HERE
    for asker in (ask, own):
        assert [asker.save("a", 1).error, asker.load("a").error, asker.list().error] == [None] * 3
    upload = service.media.begin(api_key=ask.api_key, name="a.png", content_type="image/png", address=HERE)
    upload.write(b"data")
    assert upload.finish().error is None
    assert guess(stranger, 1, TRIES + 1, key=key) == ["TooOften"]


def test_a_short_key_waits_with_guesses_at_short_keys(service: Service, stranger: Asker, clock: ManualClock) -> None:
    """A right key under 32 characters waits after too many guesses as short, unless it was used there before."""
    keys = ["a-first-short-key", "another-short-key"]
    known, first = (Asker(service, service.accounts.create(key, key), HERE) for key in keys)
    assert known.save("a", 1).error is None
    guess(stranger, TRIES, key="guess-number-{:05}-of-32-characters")
    assert first.load("a").error == "NoFile"
    first.address = "192.0.2.9"
    assert first.load("a").error == "NoFile"
    clock.advance(Settings().password_window)
    guess(stranger, TRIES)
    unknown = Asker(service, service.accounts.create("third", "the-third-short-key"), HERE)
    assert [unknown.load("a").error, unknown.save("a", 1).error] == ["TooOften", "TooOften"]
    assert [known.load("a").error, known.save("a", 2).error] == [None, None]
    unknown.address = "192.0.2.9"
    assert unknown.load("a").error == "NoFile"


def test_uploads_are_guesses_as_well(service: Service, stranger: Asker) -> None:
    """A key that is tried by an upload counts, and waits, as any other."""
    guess(stranger, TRIES - 1)
    for number, kind in enumerate((BadKeyError, TooOftenError)):
        with pytest.raises(kind):
            service.media.begin(api_key=f"wrong {number}", name="a.png", content_type="image/png", address=HERE)


def test_others_are_not_slowed(service: Service, stranger: Asker, ask: Asker) -> None:
    """What is guessed at one address slows no other."""
    guess(stranger, TRIES + 1)
    ask.address = "192.0.2.2"
    assert ask.save("a", 1).error is None


def test_one_wrong_key_is_a_mistake(stranger: Asker, ask: Asker) -> None:
    """A program that sends one wrong key again and again is told so each time, and keeps nobody else out."""
    stranger.api_key = "wrong-but-always-this"
    assert {stranger.load("a").error for _ in range(3 * TRIES)} == {"BadKey"}
    ask.address = HERE
    assert ask.save("a", 1).error is None


def test_in_the_own_process_nothing_is_counted(service: Service, ask: Asker) -> None:
    """Who asks without an address is the program that the service is in."""
    assert guess(Asker(service, ""), TRIES + 1) == ["BadKey"] * (TRIES + 1)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, clock: ManualClock) -> None:
    """However many addresses guess, or have right keys, and at whatever, only so many are remembered."""
    monkeypatch.setattr(security, "MAX_KNOWN", 100)
    counted = ApiKeyThrottle(5, 300, clock.monotonic)
    tries = AttemptLimiter(5, 300, clock.monotonic)
    for number in range(quotas.MAX_WATCHED + 100):
        tries.begin(number)
        counted.right(b"key", f"address {number}", is_short=True)
        with pytest.raises(BadKeyError):
            counted.wrong(b"wrong", f"address {number}", is_short=True)
    assert len(tries._failures) == len(counted._tries[True]._failures) == len(counted._counted) == quotas.MAX_WATCHED
    assert len(counted._known) <= 100


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("not:an:address", "not:an:address"),
        ("", ""),
    ],
)
def test_one_client_of_ipv6_has_a_network(address: str, network: str) -> None:
    """All addresses of a /64 are one, for a single client has them all; one of IPv4 is its own."""
    assert network_of(address) == network


def test_passwords_are_slowed_by_network_as_well(service: Service, ask: Asker) -> None:
    """Wrong passwords from any addresses of one IPv6 network are counted together."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="right")
    errors = []
    for number in range(6):
        ask.address = f"2001:db8::{number:x}"
        errors.append(ask.save("name", 2, f"wrong {number}").error)
    assert errors == ["Locked"] * 5 + ["TooOften"]
