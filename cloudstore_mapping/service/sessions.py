"""Sessions of the dashboard: sign in, sign out, expire sessions; change and reset owners' passwords."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cloudstore_mapping.errors import BadValueError, LockedError, TooOftenError, TransportError
from cloudstore_mapping.service.accounts import (
    COMMAND_LINE,
    DEFAULT_PLAN,
    Show,
    check_enabled,
    dashboard_queue,
    shown_before,
)
from cloudstore_mapping.service.common_passwords import check_uncommon
from cloudstore_mapping.service.quotas import AttemptLimiter
from cloudstore_mapping.service.security import PasswordCheck
from cloudstore_mapping.service.storage.records import OwnerPassword

if TYPE_CHECKING:
    from cloudstore_mapping.service.accounts import Accounts
    from cloudstore_mapping.service.quotas import Clock
    from cloudstore_mapping.service.security import PasswordVerifier
    from cloudstore_mapping.service.storage.base import Storage
    from cloudstore_mapping.service.storage.records import Account
    from cloudstore_mapping.service.storage.sql import Transaction

#: Seconds until a session expires: after its last use, and after the sign-in.
IDLE_END: Final = 30 * 60.0
ABSOLUTE_END: Final = 12 * 3600.0
#: Minimum seconds between two writes of a session's last use.
TOUCH_INTERVAL: Final = 60.0
#: Refused sign-ins per account and hour recorded as audit events; more would evict all other events.
REFUSALS_AN_HOUR: Final = 20

#: Minimum length of an owner's password in bytes; the maximum is `Settings.max_password_bytes`.
MIN_PASSWORD_BYTES: Final = 8

TOKEN_BYTES: Final = 32
# One-time passwords are typed from a screen: four groups, no look-alike characters; 80 random bits.
_ONE_TIME_ALPHABET: Final = "abcdefghijkmnpqrstuvwxyz23456789"
_ONE_TIME_GROUPS: Final = 4
_GROUP_LENGTH: Final = 4

#: Id of no account. Sign-in reads as much for it as for an account, so timing doesn't reveal user names.
_NOBODY: Final = 0
_WRONG: Final = "The user name or the password is wrong; try again."


@dataclass(frozen=True)
class SignedInOwner:
    """Signed-in owner of a session; with `must_change`, the one-time password must be changed first."""

    account: Account
    must_change: bool
    token_hash: bytes = field(repr=False)


class SessionService:
    """
    Sign-in, sign-out and password changes of owners; thread-safe, and each call waits for the storage.

    Only the browser has a session's token; the storage has its SHA-256.
    """

    def __init__(self, storage: Storage, clock: Clock, accounts: Accounts, passwords: PasswordVerifier) -> None:
        self._storage = storage
        self._now = clock.wall
        self._accounts = accounts
        self._passwords = passwords
        self._refusals = AttemptLimiter(REFUSALS_AN_HOUR, 3600.0, clock.monotonic)
        self._dummy: str | None = None
        self._lock = threading.Lock()

    def sign_in(self, name: str, password: str, address: str, *, instead_of: str = "") -> str:
        """
        Authenticate an owner and return the token of a new session; end the session with the token `instead_of`.

        An unknown user, a user without a password and a wrong password raise the same `LockedError` after the same
        work, so replies and timing don't reveal user names. Raises `TooOftenError` after too many of them from an
        address, and `DisabledError` for the right password of a disabled account.
        """
        with self._storage.read() as transaction:
            account = transaction.account_named(name)
            stored = transaction.owner_password(_NOBODY if account is None else account.id).hash
        try:
            self._prove(name, password, stored, address)
        except LockedError:
            self._record_refusal(account, address)
            raise LockedError(_WRONG) from None
        token = secrets.token_urlsafe(TOKEN_BYTES)

        def work(transaction: Transaction) -> None:
            found = transaction.account_named(name)
            if found is None or transaction.owner_password(found.id).hash != stored:
                raise LockedError(_WRONG)  # the password changed during the hashing
            check_enabled(found)  # last, so that only its owner learns this
            now = self._now()
            transaction.forget_sessions(now - ABSOLUTE_END, now - IDLE_END, now + ABSOLUTE_END)
            transaction.end_session(_hash(instead_of))
            transaction.add_session(_hash(token), found.id, now)
            self._accounts.record(transaction, found, "signed in", "", address)

        self._storage.submit(work, dashboard_queue(name)).result()
        return token

    def session(self, token: str) -> SignedInOwner | None:
        """Return the signed-in owner of the session with this token; None if it is unknown, ended or expired."""
        hash_ = _hash(token)
        now = self._now()
        with self._storage.read() as transaction:
            session = transaction.session(hash_)
            account = None if session is None else transaction.account(session.account_id)
            if session is None or account is None or account.disabled:
                return None
            must_change = transaction.owner_password(account.id).must_change
        # Absolute differences: setting the clock back must not make a session last longer.
        if abs(now - session.created_at) >= ABSOLUTE_END or abs(now - session.used_at) >= IDLE_END:
            return None
        if abs(now - session.used_at) >= TOUCH_INTERVAL:
            with suppress(TransportError):  # the dashboard works read-only if the store takes no writes
                self._storage.submit(
                    lambda transaction: transaction.touch_session(hash_, now), dashboard_queue(account.name)
                ).result()
        return SignedInOwner(account, must_change, hash_)

    def sign_out(self, signed_in: SignedInOwner, *, origin: str) -> None:
        """End the session, and record it as an audit event from `origin`."""

        def work(transaction: Transaction) -> None:
            transaction.end_session(signed_in.token_hash)
            self._accounts.record(transaction, signed_in.account, "signed out", "", origin)

        self._storage.submit(work, dashboard_queue(signed_in.account.name)).result()

    def change_password(self, signed_in: SignedInOwner, old: str, new: str, address: str) -> None:
        """
        Change the owner's password to `new`, and end all other sessions.

        Raises `LockedError` if the old password is wrong, throttled as in `sign_in`; and `BadValueError` if the new
        password is too short, common, the user name or the old password.
        """
        account = signed_in.account
        with self._storage.read() as transaction:
            stored = transaction.owner_password(account.id).hash
        try:
            self._prove(account.name, old, stored, address)
        except LockedError:
            raise LockedError("The old password is wrong; nothing was changed.") from None
        if len(new.encode()) < MIN_PASSWORD_BYTES:
            raise BadValueError(f"The new password is too short; take one of at least {MIN_PASSWORD_BYTES} characters.")
        if new == old:
            raise BadValueError("The new password is the old one; take another.")
        self._passwords.check_length(new)
        check_uncommon(new, account.name)
        hash_ = self._passwords.hash(new)

        def work(transaction: Transaction) -> None:
            self._accounts.owned(transaction, account.id, address)
            if transaction.owner_password(account.id).hash != stored:
                raise LockedError("The password was changed meanwhile; sign in again.")
            transaction.set_owner_password(account.id, OwnerPassword(hash_, must_change=False))
            transaction.end_sessions(account.id, but=signed_in.token_hash)
            self._accounts.record(transaction, account, "password changed", "", address)

        self._storage.submit(work, dashboard_queue(account.name)).result()

    def create(
        self,
        name: str,
        api_key: str | None = None,
        *,
        plan: str = DEFAULT_PLAN,
        show: Callable[[str, str], object] | None = None,
    ) -> tuple[str, str]:
        """
        Create an account; return its API key and a one-time password for the dashboard (see `reset_password`).

        `show` is called with both just before the commit; if it raises, no account is created. Raises the errors of
        `Accounts.create`.
        """
        password = one_time_password()
        hash_ = self._passwords.hash(password)
        shows = None if show is None else lambda key: show(key, password)
        return self._accounts.create(name, api_key, plan=plan, password_hash=hash_, show=shows), password

    def reset_password(self, name: str, *, origin: str = COMMAND_LINE, show: Show | None = None) -> str:
        """
        Set and return a new one-time password, to be changed at the first sign-in; end all sessions of the account.

        `show` is called with the password just before the commit; if it raises, nothing changes. Raises `BadNameError`
        for an unknown account.
        """
        password = one_time_password()
        hash_ = self._passwords.hash(password)

        def work(transaction: Transaction) -> None:
            account = self._accounts.owner(transaction, name)
            self._accounts.set_one_time_password(transaction, account, hash_, origin)

        self._storage.submit(shown_before(work, password, show)).result()
        return password

    def record(self, account: Account, action: str, subjects: Iterable[str], origin: str) -> None:
        """Add an audit event for each of the files in `subjects`: an action of the account's owner."""

        def work(transaction: Transaction) -> None:
            for subject in subjects:
                self._accounts.record(transaction, account, action, subject, origin)

        self._storage.submit(work, dashboard_queue(account.name)).result()

    def _prove(self, name: str, password: str, stored: str | None, address: str) -> None:
        dummy = self._dummy_hash()
        if not password:
            raise LockedError(_WRONG)
        self._passwords.check_length(password)
        question = PasswordCheck(("owner", name[:65]), ((password, (dummy if stored is None else stored,)),))
        self._passwords.prove(question, address).result()
        if stored is None:
            raise LockedError(_WRONG)

    def _dummy_hash(self) -> str:
        """Return the hash of a random password; verifying against it takes as long as against a user's hash."""
        with self._lock:
            if self._dummy is None:
                self._dummy = self._passwords.hash(secrets.token_urlsafe(TOKEN_BYTES))
        assert self._dummy is not None  # noqa: S101 - `hash` returns None for an empty password only
        return self._dummy

    def _record_refusal(self, account: Account | None, address: str) -> None:
        # Don't wait, and do the same work for unknown users: timing must not reveal user names.
        def work(transaction: Transaction) -> None:
            if account is not None:
                self._accounts.record(transaction, account, "sign-in refused", "", address)

        with suppress(TooOftenError, TransportError):
            self._refusals.begin(_NOBODY if account is None else account.id)
            self._storage.submit(work)


def one_time_password() -> str:
    """Return a random password of characters easy to read from a screen."""
    groups = ("".join(map(secrets.choice, [_ONE_TIME_ALPHABET] * _GROUP_LENGTH)) for _ in range(_ONE_TIME_GROUPS))
    return "-".join(groups)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
