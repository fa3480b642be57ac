"""Accounts are made with a key that opens them, and found by it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudstore_mapping.errors import BadKeyError, BadNameError, DisabledError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.sql import Transaction
from tests.service_fakes import Asker
from tests.storages import new_storage


@pytest.fixture
def service(storage: Storage) -> Iterator[Service]:
    """Return a service without accounts on each engine."""
    with Service(storage) as service:
        yield service


def found(service: Service, storage: Storage, api_key: str) -> str:
    """Return the name of the account that the key opens."""
    with storage.read() as transaction:
        return service.accounts.find(transaction, api_key, "").name


def test_a_new_service_has_no_accounts(service: Service) -> None:
    """There is no account until one is made: no default credentials."""
    assert not service.accounts.any()
    service.accounts.create("owner")
    assert service.accounts.any()


def test_a_made_key_is_32_random_letters_and_digits(service: Service, storage: Storage) -> None:
    """Each account gets a key of its own that opens it."""
    keys = {service.accounts.create(name): name for name in ("one", "two", "three")}
    assert len(keys) == 3
    for key, name in keys.items():
        assert re.fullmatch("[A-Za-z0-9]{32}", key)
        assert found(service, storage, key) == name


def test_a_key_may_be_brought(service: Service, storage: Storage) -> None:
    """An owner's own key of 16 characters or more is taken as it is, upper and lower case being different."""
    for number, key in enumerate(["a" * 16, "A" * 16, "0.-_~" * 10, "z" * 128]):
        assert service.accounts.create(str(number), key) == key
        assert found(service, storage, key) == str(number)


@pytest.mark.parametrize("key", ["", "a" * 15, "a" * 129, "a" * 16 + "\n", "a" * 16 + "@", "é" * 16, "a b" * 8])
def test_a_bad_key_is_refused(service: Service, key: str) -> None:
    """A key that is too short, too long or needs escapes in an address is `BadKeyError` that doesn't repeat it."""
    with pytest.raises(BadKeyError) as caught:
        service.accounts.create("owner", key)
    assert not key or key not in str(caught.value)
    assert not service.accounts.any()


@pytest.mark.parametrize("name", ["a", "Zoë Müller", "'; --", "😀", "x" * 64, "a  b"])
def test_names_of_accounts(service: Service, storage: Storage, name: str) -> None:
    """A name is any line of text up to 64 characters."""
    assert found(service, storage, service.accounts.create(name)) == name


@pytest.mark.parametrize("name", ["", " ", " a", "a ", "a\n", "a\0b", "\x7f", "\ud800", "x" * 65], ids=ascii)
def test_bad_names_of_accounts(service: Service, name: str) -> None:
    """Names that couldn't be read off a screen are `BadNameError`."""
    with pytest.raises(BadNameError, match=r"^An account's name has 1 to 64 characters"):
        service.accounts.create(name)
    assert not service.accounts.any()


def test_names_and_keys_are_taken_once(service: Service, storage: Storage) -> None:
    """A second account with the same name or key is refused, and the first is untouched."""
    key = service.accounts.create("owner", "k" * 16)
    with pytest.raises(BadNameError, match="already") as caught:
        service.accounts.create("owner")
    assert caught.value.key == "owner"
    with pytest.raises(BadKeyError, match="already"):
        service.accounts.create("other", key)
    with storage.read() as transaction:
        assert transaction.account_named("other") is None
    assert found(service, storage, key) == "owner"


def test_a_granted_key_opens_the_account_here_only(service: Service, storage: Storage) -> None:
    """A granted key opens an account, made or not, within this service and no other on the same storage."""
    keys = [service.accounts.grant("owner") for _ in range(2)]
    assert [found(service, storage, key) for key in keys] == ["owner"] * 2
    with pytest.raises(BadKeyError):
        found(Service(storage), storage, keys[0])


def test_an_account_that_is_made_and_undone(service: Service, storage: Storage) -> None:
    """A granted key's account that a write made, and that was undone with it, is made by the next write."""
    key = service.accounts.grant("owner")

    def work(transaction: Transaction) -> None:
        for _ in range(2):
            service.accounts.find(transaction, key, "", writes=True)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        storage.submit(work).result()
    assert storage.submit(lambda transaction: service.accounts.find(transaction, key, "", writes=True).id).result() > 0


def test_find_tells_why_not(service: Service, storage: Storage) -> None:
    """A key that opens nothing is `BadKeyError`, that of an account which is switched off `DisabledError`."""
    key = service.accounts.create("owner")
    for wrong in ("", key.swapcase(), key[:-1], hashlib.sha256(key.encode()).hexdigest()):
        with pytest.raises(BadKeyError):
            found(service, storage, wrong)
    storage.submit(lambda transaction: transaction.set_disabled(1, disabled=True)).result()
    for opens in (key, service.accounts.grant("owner")):
        with pytest.raises(DisabledError):
            found(service, storage, opens)


@pytest.mark.sqlite("reads its file")
def test_keys_are_not_in_the_file(tmp_path: Path) -> None:
    """Whoever reads the file finds the SHA-256 of a key, and no key."""
    with Service(new_storage(tmp_path / "store.db")) as service:
        key = service.accounts.create("owner")
        Asker(service, key).save("name", 1)
    content = (tmp_path / "store.db").read_bytes()
    assert key.encode() not in content
    assert hashlib.sha256(key.encode()).digest() in content
