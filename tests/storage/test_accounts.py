"""Every storage engine keeps accounts and the hashes of their API keys."""

from __future__ import annotations

from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.records import Account


def add(storage: Storage, name: str, *key_hashes: bytes) -> Account:
    """Add an account that these keys open."""
    account = storage.submit(lambda transaction: transaction.add_account(name, 1.0)).result()
    for key_hash in key_hashes:
        add_key(storage, account, key_hash)
    return account


def add_key(storage: Storage, account: Account, key_hash: bytes) -> None:
    """Let one more key open an account."""
    storage.submit(lambda transaction: transaction.add_key(account.id, key_hash, "hint", 1.0)).result()


def test_a_new_store_has_no_accounts(storage: Storage) -> None:
    """A new store says that it has no account, until it has one."""
    with storage.read() as transaction:
        assert not transaction.has_accounts()
    add(storage, "someone")
    with storage.read() as transaction:
        assert transaction.has_accounts()


def test_an_account_is_found_by_id_and_name(storage: Storage) -> None:
    """An account that was added is found under its id and under its name, and is not disabled."""
    account = add(storage, "Zoë 'the' \"first\"; --")
    assert (account.name, account.disabled) == ("Zoë 'the' \"first\"; --", False)
    with storage.read() as transaction:
        assert transaction.account(account.id) == account
        assert transaction.account_named(account.name) == account


def test_what_is_absent_is_none(storage: Storage) -> None:
    """An id, a name or a key that belongs to nobody gives None."""
    account = add(storage, "someone", b"a" * 32)
    with storage.read() as transaction:
        assert transaction.account(account.id + 1) is None
        assert transaction.account_named("SOMEONE") is None
        assert transaction.account_named("") is None
        assert transaction.account_of_key(b"A" * 32) is None


def test_each_key_opens_its_account(storage: Storage) -> None:
    """An account may have several keys, each of which opens it and no other."""
    one = add(storage, "one", b"a" * 32, b"\0" * 32)
    two = add(storage, "two", b"b" * 32)
    with storage.read() as transaction:
        assert transaction.account_of_key(b"a" * 32) == one
        assert transaction.account_of_key(b"\0" * 32) == one
        assert transaction.account_of_key(b"b" * 32) == two


def test_an_account_is_switched_off_and_on(storage: Storage) -> None:
    """An account that is switched off says so, however it is found, and nobody else's does."""
    one = add(storage, "one", b"a" * 32)
    two = add(storage, "two")
    storage.submit(lambda transaction: transaction.set_disabled(one.id, disabled=True)).result()
    with storage.read() as transaction:
        found = [transaction.account(one.id), transaction.account_named("one"), transaction.account_of_key(b"a" * 32)]
        assert found == [one._replace(disabled=True)] * 3
        assert transaction.account(two.id) == two
    storage.submit(lambda transaction: transaction.set_disabled(one.id, disabled=False)).result()
    with storage.read() as transaction:
        assert transaction.account(one.id) == one
