"""Owners: who is let in, for how long, what a wrong password costs, and how passwords change."""

from __future__ import annotations

import hashlib
import threading

import pytest

from cloudstore_mapping.errors import (
    BadNameError,
    BadValueError,
    DisabledError,
    LockedError,
    ProtocolError,
    TooOftenError,
)
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.sessions import ABSOLUTE_END, IDLE_END, REFUSALS_AN_HOUR, SignedInOwner
from tests.service_fakes import PATIENCE, FakeHasher, ManualClock, settle
from tests.visitor import PASSWORD, owner


@pytest.fixture
def token(service: Service) -> str:
    """Return the token of a session of the account "owner", whose password is its own."""
    owner(service)
    return service.owners.sign_in("owner", PASSWORD, "here")


def signed_in(service: Service, token: str) -> SignedInOwner:
    """Return who is signed in, which somebody has to be."""
    found = service.owners.session(token)
    assert found is not None
    return found


def events(service: Service) -> list[tuple[str, str]]:
    """Return what was done and from where, the latest first."""
    activity = service.panels.activity(service.accounts.named("owner"))
    return [(event.action, event.origin) for event in activity.events]


def test_a_session_is_its_accounts(service: Service, token: str) -> None:
    """Who signed in is found by the token, and nobody by another one."""
    found = signed_in(service, token)
    assert (found.account.name, found.must_change) == ("owner", False)
    assert service.owners.session(f"{token}x") is None
    assert service.owners.session("") is None


def test_only_the_hash_of_a_token_is_stored(service: Service, token: str) -> None:
    """A session is stored under its token's SHA-256, which is in no `repr`; a token has 256 random bits."""
    with service._storage.read() as transaction:
        assert transaction.session(hashlib.sha256(token.encode()).digest()) is not None
    assert len(token) >= 43
    assert "token" not in repr(signed_in(service, token))


def test_each_sign_in_has_its_own_token(service: Service, token: str) -> None:
    """A sign-in makes a new token, and ends the session that it replaces."""
    other = service.owners.sign_in("owner", PASSWORD, "here", instead_of=token)
    assert other != token
    assert service.owners.session(token) is None
    assert service.owners.session(other) is not None


def refusal(service: Service, name: str, password: str, address: str = "here") -> str:
    """Return how a sign-in is refused."""
    with pytest.raises(LockedError) as caught:
        service.owners.sign_in(name, password, address)
    return str(caught.value)


def test_one_sentence_for_all_that_is_wrong(service: Service, hasher: FakeHasher, token: str) -> None:
    """A wrong password, an unknown user and one without a password are told alike, and cost one hashing each."""
    service.accounts.create("nobody")
    checks = hasher.checks
    sentences = {refusal(service, "owner", "wrong"), refusal(service, "stranger", "x"), refusal(service, "nobody", "x")}
    assert len(sentences) == 1
    assert hasher.checks == checks + 3
    assert refusal(service, "owner", "") in sentences


def test_too_many_tries(service: Service, clock: ManualClock, token: str) -> None:
    """The sixth wrong try in 300 s of a user from an address is `TooOften`, known user or not; others aren't slowed."""
    for name in ("owner", "stranger"):
        for _ in range(5):
            refusal(service, name, "wrong")
        with pytest.raises(TooOftenError) as caught:
            service.owners.sign_in(name, PASSWORD, "here")
        assert caught.value.retry_after == 300
    assert service.owners.sign_in("owner", PASSWORD, "there")
    clock.advance(300)
    assert service.owners.sign_in("owner", PASSWORD, "here")


def test_a_password_that_is_too_long(service: Service, hasher: FakeHasher, token: str) -> None:
    """A password over 1,024 bytes is refused before it is hashed."""
    checks = hasher.checks
    with pytest.raises(ProtocolError):
        service.owners.sign_in("owner", "x" * 1025, "here")
    assert hasher.checks == checks


def test_a_disabled_account(service: Service, token: str) -> None:
    """The sessions of a disabled account end, and nobody signs in until it is enabled; the others stay."""
    owner(service, "other")
    service.accounts.set_disabled("owner", disabled=True)
    assert service.owners.session(token) is None
    with pytest.raises(DisabledError, match="switched off"):
        service.owners.sign_in("owner", PASSWORD, "here")
    assert refusal(service, "owner", "wrong") == refusal(service, "nobody", "wrong")
    assert service.owners.session(service.owners.sign_in("other", PASSWORD, "here")) is not None
    service.accounts.set_disabled("owner", disabled=False)
    assert service.owners.session(token) is None
    assert service.owners.session(service.owners.sign_in("owner", PASSWORD, "here")) is not None


def test_sessions_of_an_account_that_was_disabled_before(service: Service, token: str) -> None:
    """A session that is still stored for a disabled account, as by an earlier version, is none."""
    account = service.accounts.named("owner")
    service._storage.submit(lambda transaction: transaction.set_disabled(account.id, disabled=True)).result(PATIENCE)
    assert service.owners.session(token) is None


def test_a_password_change_while_the_account_is_disabled(service: Service, token: str) -> None:
    """A change of the password that was begun before the account was disabled is refused."""
    who = signed_in(service, token)
    before = len(events(service))
    service.accounts.set_disabled("owner", disabled=True)
    with pytest.raises(DisabledError):
        service.owners.change_password(who, PASSWORD, "another horse", "here")
    assert len(events(service)) == before + 1


def test_an_idle_session_ends(service: Service, clock: ManualClock, token: str) -> None:
    """A session ends after 30 minutes without use."""
    for _ in range(3):
        clock.advance(IDLE_END - 1)
        assert service.owners.session(token) is not None
    clock.advance(IDLE_END)
    assert service.owners.session(token) is None


def test_every_session_ends(service: Service, clock: ManualClock, token: str) -> None:
    """A session ends after 12 hours, however much it is used."""
    for _ in range(int(ABSOLUTE_END / 1000)):
        assert service.owners.session(token) is not None
        clock.advance(1000)
    clock.advance(ABSOLUTE_END % 1000)
    assert service.owners.session(token) is None


def test_a_clock_set_back_makes_no_session_last(service: Service, clock: ManualClock, token: str) -> None:
    """A session that seems to begin in the future, by more than it may last, is over."""
    clock.advance(-ABSOLUTE_END)
    assert service.owners.session(token) is None


def test_a_session_of_a_clock_that_was_ahead_stays_over(service: Service, clock: ManualClock, token: str) -> None:
    """A session begun by a clock that was ahead doesn't come back when its time does, once somebody signed in."""
    clock.ahead = 30 * 86_400
    wrong = service.owners.sign_in("owner", PASSWORD, "here")
    clock.ahead = 0
    assert service.owners.session(wrong) is None
    service.owners.sign_in("owner", PASSWORD, "here")
    clock.ahead = 30 * 86_400
    assert service.owners.session(wrong) is None


def test_a_session_is_written_once_a_minute(service: Service, clock: ManualClock, token: str) -> None:
    """That a session is used is stored once a minute at most."""
    found = signed_in(service, token)

    def used_at() -> float:
        with service._storage.read() as transaction:
            session = transaction.session(found.token_hash)
        assert session is not None
        return session.used_at

    began = used_at()
    clock.advance(59)
    signed_in(service, token)
    assert used_at() == began
    clock.advance(1)
    signed_in(service, token)
    assert used_at() == began + 60


def test_sign_out(service: Service, token: str) -> None:
    """After signing out the token opens nothing."""
    service.owners.sign_out(signed_in(service, token), origin="here")
    assert service.owners.session(token) is None


def test_a_changed_password(service: Service, token: str) -> None:
    """A new password is the only one that opens, and ends all sessions but the one that changed it."""
    other = service.owners.sign_in("owner", PASSWORD, "there")
    service.owners.change_password(signed_in(service, token), PASSWORD, "another horse", "here")
    assert service.owners.session(other) is None
    assert service.owners.session(token) is not None
    refusal(service, "owner", PASSWORD)
    assert service.owners.sign_in("owner", "another horse", "here")


def test_a_new_password_has_to_be_one(service: Service, token: str) -> None:
    """A new password has 8 bytes or more and isn't the old one, which has to be right; else nothing changes."""
    who = signed_in(service, token)
    with pytest.raises(LockedError):
        service.owners.change_password(who, "wrong", "another horse", "here")
    for new in ("seven77", PASSWORD):
        with pytest.raises(BadValueError):
            service.owners.change_password(who, PASSWORD, new, "here")
    with pytest.raises(ProtocolError):
        service.owners.change_password(who, PASSWORD, "x" * 1025, "here")
    assert service.owners.sign_in("owner", PASSWORD, "here")


@pytest.mark.parametrize(
    ("new", "match"),
    [
        ("password", "most common"),
        ("Password123!", "most common"),
        ("12345678", "most common"),
        (" QWERTYUIOP ", "most common"),
        ("welcome2026", "most common"),
        ("A.Long-Name", "user name"),
        ("a.long-name1", "user name"),
        ("abababab", "repeats"),
    ],
)
def test_a_common_password(service: Service, new: str, match: str) -> None:
    """A common password, the user name, and one or two characters over and over are no password of an owner's."""
    owner(service, "a.long-name")
    who = signed_in(service, service.owners.sign_in("a.long-name", PASSWORD, "here"))
    with pytest.raises(BadValueError, match=f"{match}.*; take another"):
        service.owners.change_password(who, PASSWORD, new, "here")
    service.owners.change_password(who, PASSWORD, f"{new} of a horse", "here")


@pytest.mark.parametrize(("short", "long"), [("horse-7", "horse-78"), ("äöü-", "äöü-x")])
def test_the_shortest_password(service: Service, token: str, short: str, long: str) -> None:
    """An owner's password has at least 8 bytes in UTF-8."""
    who = signed_in(service, token)
    with pytest.raises(BadValueError, match="too short"):
        service.owners.change_password(who, PASSWORD, short, "here")
    service.owners.change_password(who, PASSWORD, long, "here")


def test_old_passwords_are_guessed_no_faster(service: Service, token: str) -> None:
    """Wrong old passwords count like wrong sign-ins."""
    for _ in range(5):
        with pytest.raises(LockedError):
            service.owners.change_password(signed_in(service, token), "wrong", "another horse", "here")
    with pytest.raises(TooOftenError):
        service.owners.sign_in("owner", PASSWORD, "here")


def test_a_one_time_password(service: Service, token: str) -> None:
    """A one-time password ends all sessions, opens, says that it has to be changed, and is another at each call."""
    once = service.owners.reset_password("owner")
    last = service.owners.reset_password("owner")
    assert once != last
    assert service.owners.session(token) is None
    refusal(service, "owner", once)
    who = signed_in(service, service.owners.sign_in("owner", last, "here"))
    assert who.must_change
    service.owners.change_password(who, last, "another horse", "here")
    assert not signed_in(service, service.owners.sign_in("owner", "another horse", "here")).must_change


def test_no_account_to_reset(service: Service) -> None:
    """The password of an account that isn't there is `BadNameError`."""
    with pytest.raises(BadNameError, match="no account"):
        service.owners.reset_password("stranger")


def test_a_password_changed_meanwhile(service: Service, hasher: FakeHasher, token: str) -> None:
    """A password that is changed while it is proven lets nobody in any more."""
    service.owners.change_password(signed_in(service, token), PASSWORD, "another horse", "here")  # not proven before
    hasher.gate.clear()
    while hasher.begun.acquire(blocking=False):
        pass
    caught: list[BaseException] = []

    def try_in() -> None:
        try:
            service.owners.sign_in("owner", "another horse", "there")
        except LockedError as error:
            caught.append(error)

    thread = threading.Thread(target=try_in)
    thread.start()
    assert hasher.begun.acquire(timeout=PATIENCE)
    service.owners.reset_password("owner")
    hasher.gate.set()
    thread.join()
    assert len(caught) == 1


def test_events_of_sign_ins(service: Service, token: str) -> None:
    """Sign-ins, refusals, changes and resets are in the list of events, with where they came from."""
    refusal(service, "owner", "wrong", "elsewhere")
    settle(service._storage)  # nobody waits for the record of a refusal
    service.owners.change_password(signed_in(service, token), PASSWORD, "another horse", "here")
    service.owners.sign_out(signed_in(service, token), origin="here")
    service.owners.reset_password("owner")
    assert events(service)[:5] == [
        ("one-time password made", "command line"),
        ("signed out", "here"),
        ("password changed", "here"),
        ("sign-in refused", "elsewhere"),
        ("signed in", "here"),
    ]


def test_refusals_dont_push_out_all_else(service: Service, token: str) -> None:
    """Of refused sign-ins only some are remembered in an hour."""
    for number in range(REFUSALS_AN_HOUR + 5):
        refusal(service, "owner", "wrong", f"address {number}")
    settle(service._storage)  # nobody waits for the records
    assert [action for action, _ in events(service)].count("sign-in refused") == REFUSALS_AN_HOUR


def test_refusals_of_nobody_leave_nothing(service: Service, token: str) -> None:
    """However many sign in as nobody that there is, those refused of an owner are remembered, and no others."""
    for number in range(REFUSALS_AN_HOUR + 5):
        refusal(service, f"nobody {number}", "wrong", f"address {number}")
    refusal(service, "owner", "wrong", "elsewhere")
    settle(service._storage)
    assert [event for event in events(service) if event[0] == "sign-in refused"] == [("sign-in refused", "elsewhere")]
