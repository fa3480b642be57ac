"""Accounts and the API keys that open them."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from typing import TYPE_CHECKING, Final

from cloudstore_mapping.errors import BadKeyError, BadNameError, DisabledError

if TYPE_CHECKING:
    from cloudstore_mapping.service.limits import Clock
    from cloudstore_mapping.service.storage.base import Storage, Transaction
    from cloudstore_mapping.service.storage.records import Account

KEY_LENGTH: Final = 32
#: Characters of a key that may be shown later.
HINT_LENGTH: Final = 4
_ALPHABET: Final = string.ascii_letters + string.digits
# What needs no escape in an address, for the key stands in one.
_OWN_KEY: Final = re.compile(r"[A-Za-z0-9._~-]{16,128}")
# No control characters and no lone surrogates, and no space at either end.
_NAME: Final = re.compile(r"(?! )[^\x00-\x1f\x7f\ud800-\udfff]{1,64}(?<! )")


class Accounts:
    """Makes accounts, and finds the one that an API key opens; keys are stored as their SHA-256 only."""

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._storage = storage
        self._clock = clock
        self._granted: dict[bytes, int] = {}

    def create(self, name: str, api_key: str | None = None) -> str:
        """
        Make an account, and return its API key: 32 random letters and digits, or the one that was brought.

        Raises `BadNameError` for a name that is taken, blank or over 64 characters, and `BadKeyError` for a key that
        is taken, has not 16 to 128 characters, or would need escapes in an address.
        """
        key = new_key() if api_key is None else api_key
        if not _OWN_KEY.fullmatch(key):
            raise BadKeyError("An API key of your own has 16 to 128 letters, digits, '-', '.', '_' or '~'.")
        if not _NAME.fullmatch(name):
            raise BadNameError(
                "An account's name has 1 to 64 characters: no control characters, no space at its ends.", key=name
            )

        def work(transaction: Transaction) -> None:
            if transaction.account_named(name) is not None:
                raise BadNameError(f"There is an account {name!r} already; choose another name.", key=name)
            if transaction.account_of_key(_hash(key)) is not None:
                raise BadKeyError("This API key opens another account already; choose another.")
            account = transaction.add_account(name, self._clock.wall())
            transaction.add_key(account.id, _hash(key), key[:HINT_LENGTH], self._clock.wall())

        self._storage.submit(work).result()
        return key

    def grant(self, name: str, key: str | None = None) -> str:
        """Return an API key that opens the account in this process only, and is never stored; make it if it is new."""
        key = new_key() if key is None else key

        def work(transaction: Transaction) -> Account:
            return transaction.account_named(name) or transaction.add_account(name, self._clock.wall())

        with self._storage.read() as transaction:
            account = transaction.account_named(name)
        if account is None:
            account = self._storage.submit(work).result()
        self._granted[_hash(key)] = account.id
        return key

    def any(self) -> bool:
        """Whether there is an account at all."""
        with self._storage.read() as transaction:
            return transaction.has_accounts()

    def find(self, transaction: Transaction, api_key: str) -> Account:
        """Return the account that the key opens; `BadKeyError` where it opens none, `DisabledError` where it is off."""
        key_hash = _hash(api_key)
        granted = self._granted.get(key_hash)
        account = transaction.account_of_key(key_hash) if granted is None else transaction.account(granted)
        if account is None:
            raise BadKeyError("The service doesn't know this API key; look it up in the dashboard.")
        if account.disabled:
            raise DisabledError("The account is switched off; its owner can switch it on.")
        return account


def new_key() -> str:
    """Return a new random API key."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(KEY_LENGTH))


def _hash(api_key: str) -> bytes:
    return hashlib.sha256(api_key.encode()).digest()
