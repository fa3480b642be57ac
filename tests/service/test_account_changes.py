"""Accounts are changed: keys exchanged, default passwords given, switched off, deleted; each change is remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from cloudstore_mapping.errors import BadNameError, DisabledError, UnavailableError
from cloudstore_mapping.service.accounts import MAX_EVENTS
from cloudstore_mapping.service.media import CHUNK_BYTES
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.records import Account, Event
from tests.media_fakes import write
from tests.service_fakes import PATIENCE, Asker, Held, ManualClock

#: The address of an owner who is signed in.
HERE: Final = "192.0.2.1"


def events(service: Service) -> list[tuple[str, str, str]]:
    """Return what was done to the account, the latest first, without its times."""
    with service._storage.read() as transaction:
        account = service.accounts.owner(transaction, "owner")
        return [(event.action, event.subject, event.origin) for event in transaction.events(account.id, 1000)]


def test_two_keys_are_live_while_one_is_exchanged(service: Service, ask: Asker) -> None:
    """A new key opens the account beside the one before it, which ends when the owner says so or with the next."""
    first = ask.api_key
    second = service.accounts.rotate_key("owner")
    assert [Asker(service, key).list().error for key in (first, second)] == [None, None]
    third = service.accounts.rotate_key("owner")
    assert [Asker(service, key).list().error for key in (first, second, third)] == ["BadKey", None, None]
    assert service.accounts.drop_old_keys("owner") == 1
    assert [Asker(service, key).list().error for key in (second, third)] == ["BadKey", None]
    assert service.accounts.drop_old_keys("owner") == 0
    assert Asker(service, third).list().error is None


def test_a_key_is_known_by_its_beginning_only(service: Service, ask: Asker) -> None:
    """What can be shown of a key is its first four characters."""
    (key,) = service.accounts.keys("owner")
    assert key.hint == ask.api_key[:4]
    assert ask.api_key not in repr(key)


def test_an_account_is_switched_off_and_on(service: Service, ask: Asker) -> None:
    """Everything with a key of an account that is off is `Disabled`, its files are there when it is on again."""
    ask.save("name", 1)
    service.accounts.set_disabled("owner", disabled=True)
    assert ask.load("name").error == ask.save("name", 2).error == ask.list().error == "Disabled"
    service.accounts.set_disabled("owner", disabled=False)
    assert ask.value("name") == 1


OWNERS_CHANGES: dict[str, Callable[[Service, Account, str, str], object]] = {
    "a new key": lambda service, *_: service.accounts.rotate_key("owner", origin=HERE),
    "the end of old keys": lambda service, *_: service.accounts.drop_old_keys("owner", origin=HERE),
    "a file's password": lambda service, *_: service.set_passwords("owner", "name", edit="e", origin=HERE),
    "a default password": lambda service, *_: service.set_default_passwords("owner", data="d", origin=HERE),
    "a media file's password": lambda service, account, media_id, _: service.media.set_password(
        account, media_id, "e", origin=HERE
    ),
    "a media file's end": lambda service, account, media_id, _: service.media.delete(account, media_id, origin=HERE),
    "an upload": lambda service, account, *_: service.media.begin(
        name="a.png", content_type="", address=HERE, owner=account
    ),
    "another upload": lambda service, _, __, key: service.media.begin(name="a.png", content_type="", api_key=key),
}


@pytest.mark.parametrize("change", OWNERS_CHANGES)
def test_the_owner_of_a_disabled_account_changes_nothing(service: Service, ask: Asker, change: str) -> None:
    """Each change by the owner of a disabled account is refused, also by a request that was let in before."""
    ask.save("name", 1)
    account = service.accounts.named("owner")
    upload = service.media.begin(name="photo.png", content_type="image/png", owner=account)
    upload.write(b"photo")
    upload.finish()
    media_id = service.media.named(account, "photo.png").id
    before = events(service)
    service.accounts.set_disabled("owner", disabled=True)
    with pytest.raises(DisabledError, match="switched off"):
        OWNERS_CHANGES[change](service, account, media_id, ask.api_key)
    for request in (ask.request(None, "name"), ask.request(None, "name", value=2), ask.request("list", "")):
        assert service.submit(request, address=HERE, owner=account).result(PATIENCE).error == "Disabled"
    assert events(service) == [("account switched off", "", "command line"), *before]
    service.accounts.set_disabled("owner", disabled=False)
    OWNERS_CHANGES[change](service, account, media_id, ask.api_key)


def test_whoever_runs_the_service_changes_a_disabled_account(service: Service, ask: Asker) -> None:
    """The command line changes keys and passwords of a disabled account, which stays disabled."""
    service.accounts.set_disabled("owner", disabled=True)
    key = service.accounts.rotate_key("owner")
    service.owners.reset_password("owner")
    assert Asker(service, key).list().error == ask.list().error == "Disabled"


@pytest.mark.sqlite("writes come one after another")
def test_a_request_that_waits_while_its_account_is_disabled(service: Service, ask: Asker) -> None:
    """A write that was accepted before its account was disabled, and comes behind that, is refused."""
    account = service.accounts.named("owner")
    ask.save("name", 1)
    held = Held(service._storage)
    disabled = service._storage.submit(
        lambda transaction: transaction.set_disabled(account.id, disabled=True), account.id
    )
    replies = [
        service.submit(ask.request(None, "name", value=2)),
        service.submit(ask.request("delete", "name"), address=HERE, owner=account),
    ]
    held.go.set()
    disabled.result(PATIENCE)
    assert [reply.result(PATIENCE).error for reply in replies] == ["Disabled", "Disabled"]
    service.accounts.set_disabled("owner", disabled=False)
    assert ask.value("name") == 1


def test_media_on_their_way_while_an_account_is_disabled(service: Service, ask: Asker) -> None:
    """A download and an upload that were begun before their account was disabled end before their next piece."""
    account = service.accounts.named("owner")
    uploads = [service.media.begin(name="photo.png", content_type="image/png", api_key=ask.api_key) for _ in range(2)]
    uploads[0].write(b"1" * 3 * CHUNK_BYTES)
    uploads[0].finish()
    pieces = service.media.while_enabled(account, service.media.chunks(service.media.named(account, "photo.png")))
    assert next(pieces) == b"1" * CHUNK_BYTES
    service.accounts.set_disabled("owner", disabled=True)
    with pytest.raises(UnavailableError, match="disabled or deleted"):
        next(pieces)
    with pytest.raises(DisabledError):
        write(uploads[1], b"2" * 3 * CHUNK_BYTES)
    uploads[1].abort()


def test_a_deleted_account_leaves_nothing(service: Service, ask: Asker) -> None:
    """Its key opens nothing, its name is free, and who takes the name finds no file."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="e")
    service.accounts.delete("owner")
    assert ask.load("name").error == "BadKey"
    again = Asker(service, service.accounts.create("owner"))
    assert again.list().sentence == ""
    assert again.save("name", 2).error is None


@pytest.mark.parametrize("change", ["rotate_key", "drop_old_keys", "delete", "keys", "named"])
def test_an_account_that_is_not_there(service: Service, change: str) -> None:
    """A name that nobody has is said to be just that, and how to find the right one."""
    with pytest.raises(BadNameError, match=r"no account 'nobody'; .*account list") as caught:
        getattr(service.accounts, change)("nobody")
    assert caught.value.key == "nobody"


def test_all_accounts_by_name(service: Service) -> None:
    """The accounts are told in the order of their names."""
    for name in ("b", "a", "c"):
        service.accounts.create(name)
    assert [account.name for account in service.accounts.all()] == ["a", "b", "c"]
    assert len({account.folder for account in service.accounts.all()}) == 3


def test_changes_are_remembered_without_secrets(service: Service, ask: Asker, clock: ManualClock) -> None:
    """Who set which password when is in the account's events, never the password, and neither is a key."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", edit="swordfish", view="", origin="owner at 127.0.0.1")
    service.set_default_passwords("owner", data="swordfish")
    key = service.accounts.rotate_key("owner")
    service.accounts.set_limits("owner", max_files=3)
    assert events(service) == [
        ("limits set: max_files", "", "command line"),
        ("API key made", "", "command line"),
        ("default password of data files set", "", "command line"),
        ("view password cleared", "name", "owner at 127.0.0.1"),
        ("edit password set", "name", "owner at 127.0.0.1"),
        ("account made", "", "command line"),
    ]
    assert "swordfish" not in str(events(service))
    assert key not in str(events(service))


def test_the_oldest_events_are_forgotten(service: Service, ask: Asker) -> None:
    """An account's events are bounded, and another's are its own."""
    service.accounts.create("other")
    with service._storage.read() as transaction:
        account = service.accounts.owner(transaction, "owner")

    def work(transaction: object) -> None:
        for number in range(MAX_EVENTS + 5):
            transaction.add_event(account.id, Event(number, str(number), "", ""), MAX_EVENTS)  # type: ignore[attr-defined]

    service._storage.submit(work).result()
    assert [action for action, _, _ in events(service)] == [
        str(MAX_EVENTS + 4 - number) for number in range(MAX_EVENTS)
    ]


def test_a_default_password_locks_what_has_none(service: Service, ask: Asker) -> None:
    """The account's data password is asked to change files without their own and to make new ones, not to read."""
    ask.save("plain", 1)
    ask.save("own", 1)
    service.set_passwords("owner", "own", edit="mine")
    service.set_default_passwords("owner", data="all")
    for name in ("plain", "new"):
        assert ask.save(name, 2).error == ask.save(name, 2, "mine").error == "Locked"
        assert ask.save(name, 2, "all").error is None
    assert ask.value("plain") == 2
    assert ask.save("own", 2, "all").error == ask.delete("own", "all").error == "Locked"
    assert ask.save("own", 3, "mine").error is None
    service.set_default_passwords("owner", data=None)
    assert ask.save("plain", 3).error is None


def test_a_default_password_opens_for_viewing(service: Service, ask: Asker) -> None:
    """Like a file's own edit password it opens for viewing what has a view password."""
    ask.save("name", 1)
    service.set_passwords("owner", "name", view="v")
    service.set_default_passwords("owner", data="all")
    assert ask.load("name").error == "Locked"
    assert ask.value("name", "v") == ask.value("name", "all") == 1


def test_a_default_password_is_not_guessed_file_by_file(service: Service, ask: Asker) -> None:
    """Wrong tries on all files that it locks are counted together."""
    service.set_default_passwords("owner", data="all")
    tries = [ask.save(str(number), 1, "guess").error for number in range(7)]
    assert tries == [*["Locked"] * 5, *["TooOften"] * 2]
