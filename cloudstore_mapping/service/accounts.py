"""Accounts and API keys: create, authenticate, rotate, disable and delete; plans, limits, audit events; the caller."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, ParamSpec, TypeAlias

from cloudstore_mapping.errors import BadKeyError, BadNameError, BadValueError, DisabledError
from cloudstore_mapping.service.quotas import OWN_PLAN, Clock
from cloudstore_mapping.service.storage.records import Account, Event, File, FileInfo, Limits, OwnerPassword

if TYPE_CHECKING:
    from cloudstore_mapping.service.merging import Merged
    from cloudstore_mapping.service.security import ApiKeyThrottle
    from cloudstore_mapping.service.storage.base import Storage
    from cloudstore_mapping.service.storage.records import ApiKey
    from cloudstore_mapping.service.storage.sql import Transaction

#: Default plan of new accounts.
DEFAULT_PLAN: Final = "unlimited"

PLANS: Final[Mapping[str, Limits]] = {
    DEFAULT_PLAN: Limits(),
    # Limits of the vendor's BASIC plan, from its account page.
    "basic": Limits(max_files=100, max_file_bytes=3072, max_daily_accesses=300, min_interval=3.0),
}


P = ParamSpec("P")

#: Callback to show a secret to its owner. It raises an exception if nobody saw the secret.
Show: TypeAlias = Callable[[str], object]

#: Origin of changes made on the command line. It needs no authentication: its user has access to the store's file.
COMMAND_LINE: Final = "command line"
#: Maximum number of audit events stored per account; older ones are deleted.
MAX_EVENTS: Final = 1000
#: Limits must be below this: every storage engine can store the integers below it.
MAX_LIMIT: Final = 2**63

#: Id of a granted key's account before its first write creates it. Nothing is stored under this id.
NOT_MADE: Final = 0

#: Maximum number of recently authenticated API keys in memory.
MAX_LATELY: Final = 1024

KEY_LENGTH: Final = 32
#: Number of first characters of a key stored in clear, to recognise the key in lists.
HINT_LENGTH: Final = 4
_ALPHABET: Final = string.ascii_letters + string.digits
# Only characters safe in a URL without escapes: the key is part of one.
_OWN_KEY: Final = re.compile(r"[A-Za-z0-9._~-]{16,128}")
# No control characters, no lone surrogates, and no space at either end.
_NAME: Final = re.compile(r"(?! )[^\x00-\x1f\x7f\ud800-\udfff]{1,64}(?<! )")


class Accounts:
    """
    Creates, changes and deletes accounts, and authenticates requests by API key.

    Only the SHA-256 of an API key is stored. Every change is recorded in the account's audit events with its `origin`:
    the command line, or the client's address. Methods raise `BadNameError` for an unknown account name. Thread-safe.
    """

    def __init__(
        self, storage: Storage, clock: Clock, guesses: ApiKeyThrottle, tidy: Callable[[], object] = lambda: None
    ) -> None:
        self._tidy = tidy  # starts the background cleanup
        self._storage = storage
        self._clock = clock
        self._guesses = guesses
        #: Account of each granted key, by the key's hash: its id, or its name until a read has found the id.
        self._granted: dict[bytes, int | str] = {}
        #: Ids of accounts without a rate limit, by recently authenticated API key.
        self._lately: dict[str, int] = {}

    def create(
        self,
        name: str,
        api_key: str | None = None,
        *,
        plan: str = DEFAULT_PLAN,
        origin: str = COMMAND_LINE,
        password_hash: str | None = None,
        show: Show | None = None,
    ) -> str:
        """
        Create an account and return its API key: `api_key` if given, else 32 random letters and digits.

        `password_hash` is the hash of a one-time password for the dashboard. `show` is called with the key just before
        the commit; if it raises, no account is created. Raises `BadNameError` if the name is taken, blank or over 64
        characters; `BadKeyError` if the key is taken, isn't 16 to 128 characters long or would need escapes in a URL;
        and `BadValueError` if the plan isn't in `PLANS`.
        """
        key = new_key() if api_key is None else api_key
        limits = _limits_of(plan)
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
            transaction.set_limits(account.id, plan, limits)
            self._add_key(transaction, account, key)
            self.record(transaction, account, "account made", "", origin)
            if password_hash is not None:
                self.set_one_time_password(transaction, account, password_hash, origin)

        self._storage.submit(shown_before(work, key, show)).result()
        return key

    def all(self) -> list[Account]:
        """Return all accounts, sorted by name."""
        with self._storage.read() as transaction:
            return transaction.accounts()

    def named(self, name: str) -> Account:
        """Return the account with this name."""
        with self._storage.read() as transaction:
            return self.owner(transaction, name)

    def owner(self, transaction: Transaction, name: str, origin: str = COMMAND_LINE) -> Account:
        """
        Return the account with this name, read in this transaction.

        Raises `BadNameError` if there is none, and `DisabledError` if it is disabled, unless `origin` is the command
        line.
        """
        account = transaction.account_named(name)
        if account is None:
            raise BadNameError(f"There is no account {name!r}; `cloudstore account list` shows all.", key=name)
        if origin != COMMAND_LINE:
            check_enabled(account)
        return account

    def owned(self, transaction: Transaction, account_id: int, origin: str = COMMAND_LINE) -> Account:
        """Return the account with this id; raise `BadKeyError` if it was deleted, `DisabledError` as `owner` does."""
        account = transaction.account(account_id)
        if account is None:
            raise BadKeyError("The account is there no longer.")
        if origin != COMMAND_LINE:
            check_enabled(account)
        return account

    def keys(self, name: str) -> list[ApiKey]:
        """Return the stored data of the account's API keys, the newest last."""
        with self._storage.read() as transaction:
            return transaction.keys(self.owner(transaction, name).id)

    def set_plan(self, name: str, plan: str, *, origin: str = COMMAND_LINE) -> None:
        """Set the account's plan, replacing all its limits; raise `BadValueError` if it isn't in `PLANS`."""
        limits = _limits_of(plan)

        def work(transaction: Transaction, account: Account) -> None:
            transaction.set_limits(account.id, plan, limits)

        self._change(name, f"plan {plan!r} set", origin, work)
        self._tidy()

    def set_limits(self, name: str, *, origin: str = COMMAND_LINE, **limits: float | None) -> None:
        """
        Change some of the account's `Limits`; None removes a limit.

        Quotas of files and bytes take effect once a background task has counted all files of the account. A limit is an
        integer above 0; `min_interval` (seconds) may be a float. Raises `BadValueError` for an unknown limit or a wrong
        value.
        """
        for limit, value in limits.items():
            _check_limit(limit, value)

        def work(transaction: Transaction, account: Account) -> None:
            changed = account.limits._replace(**limits)  # type: ignore[arg-type]  # checked above
            plan = next((plan for plan, its in PLANS.items() if its == changed), OWN_PLAN)
            transaction.set_limits(account.id, plan, changed)

        self._change(name, f"limits set: {', '.join(sorted(limits))}", origin, work)
        self._tidy()

    def set_disabled(self, name: str, disabled: bool, *, origin: str = COMMAND_LINE) -> None:
        """
        Disable the account, or enable it again; its files are kept.

        Disabling ends its sessions. All requests and sign-ins of a disabled account are refused with `DisabledError`.
        """

        def work(transaction: Transaction, account: Account) -> None:
            transaction.set_disabled(account.id, disabled)
            if disabled:
                transaction.end_sessions(account.id)

        self._change(name, f"account switched {'off' if disabled else 'on'}", origin, work)

    def rotate_key(self, name: str, *, origin: str = COMMAND_LINE, show: Show | None = None) -> str:
        """
        Add a new API key to the account and return it; only the previous newest key stays valid beside it.

        `show` is called with the key just before the commit; if it raises, nothing changes.
        """
        key = new_key()

        def work(transaction: Transaction, account: Account) -> None:
            for old in transaction.keys(account.id)[:-1]:
                transaction.remove_key(account.id, old.hash)
            self._add_key(transaction, account, key)

        self._change(name, "API key made", origin, shown_before(work, key, show))
        return key

    def drop_old_keys(self, name: str, *, origin: str = COMMAND_LINE) -> int:
        """Delete all API keys of the account but the newest, and return the number of deleted keys."""
        dropped: list[ApiKey] = []

        def work(transaction: Transaction, account: Account) -> None:
            dropped[:] = transaction.keys(account.id)[:-1]
            for old in dropped:
                transaction.remove_key(account.id, old.hash)

        self._change(name, "old API key ended", origin, work)
        return len(dropped)

    def delete(self, name: str) -> None:
        """
        Delete the account with all its files, keys and events.

        The deletion takes effect at once, and the name may be used again. A background task frees the space in steps;
        after an interruption the next service on the store continues it.
        """

        def work(transaction: Transaction) -> None:
            transaction.delete_account(self.owner(transaction, name).id)

        self._storage.submit(work).result()
        self._tidy()

    def set_one_time_password(self, transaction: Transaction, account: Account, hash_: str | None, origin: str) -> None:
        """Set a one-time dashboard password, to be changed at the first sign-in, and end the account's sessions."""
        transaction.set_owner_password(account.id, OwnerPassword(hash_, must_change=True))
        transaction.end_sessions(account.id)
        self.record(transaction, account, "one-time password made", "", origin)

    def record(self, transaction: Transaction, account: Account, action: str, subject: str, origin: str) -> None:
        """Add an audit event to the account: an action on a subject (a file, or empty) by an origin."""
        transaction.add_event(account.id, Event(self._clock.wall(), action, subject, origin), MAX_EVENTS)

    def _change(self, name: str, action: str, origin: str, work: Callable[[Transaction, Account], object]) -> None:
        def change(transaction: Transaction) -> None:
            account = self.owner(transaction, name, origin)
            work(transaction, account)
            self.record(transaction, account, action, "", origin)

        self._storage.submit(change, dashboard_queue(name)).result()

    def _add_key(self, transaction: Transaction, account: Account, key: str) -> None:
        # Rotation keeps the newest key, so a new key's time must be the latest even if the clock was set back.
        newest = max((old.created_at for old in transaction.keys(account.id)), default=0.0)
        made_at = max(self._clock.wall(), newest + 1e-3)
        transaction.add_key(account.id, _hash(key), key[:HINT_LENGTH], made_at)

    def grant(self, name: str, key: str | None = None) -> str:
        """
        Return an API key of the account, valid in this process only and never stored.

        If there is no such account, reads find no files and the first write creates it.
        """
        key = new_key() if key is None else key
        self._granted[_hash(key)] = name
        return key

    def any(self) -> bool:
        """Return True if there is at least one account."""
        with self._storage.read() as transaction:
            return transaction.has_accounts()

    def opened_lately(self, api_key: str) -> int | None:
        """Return the account id of a recently authenticated key without a rate limit, or None for any other key."""
        return self._lately.get(api_key)

    def remember(self, api_key: str, account_id: int) -> None:
        """Remember that the key authenticates an account without a rate limit."""
        if len(self._lately) >= MAX_LATELY:
            self._lately.clear()
        self._lately[api_key] = account_id

    def forget(self, api_key: str) -> None:
        """Forget the account of the key, after it was refused."""
        self._lately.pop(api_key, None)

    def hint(self, api_key: str) -> tuple[bytes | None, int | None] | None:
        """Return the hash of the key, or the account's id, by which `find` looks it up; None if by its name."""
        key_hash = _hash(api_key)
        granted = self._granted.get(key_hash)
        if isinstance(granted, str):
            return None
        return (key_hash, None) if granted is None else (None, granted)

    def find(self, transaction: Transaction, api_key: str, address: str, *, writes: bool = False) -> Account:
        """
        Authenticate a request by API key from the client `address`, and return its account.

        `writes` is True if the transaction may write. Raises `BadKeyError` if no account has the key, `TooOftenError`
        after too many wrong keys from the address (`ApiKeyThrottle`), and `DisabledError` if the account is disabled.
        """
        key_hash = _hash(api_key)
        granted = self._granted.get(key_hash)
        if granted is None:
            account = transaction.account_of_key(key_hash)
        elif isinstance(granted, int):
            account = transaction.account(granted)
        else:
            account = self._granted_by_name(transaction, key_hash, granted, writes=writes)
        if account is None or account.disabled:
            self.forget(api_key)
        is_short = len(api_key) < KEY_LENGTH
        if account is None:
            self._guesses.wrong(key_hash, address, is_short=is_short)
        if is_short:
            self._guesses.right(key_hash, address, is_short=True)
        check_enabled(account)
        return account

    def _granted_by_name(self, transaction: Transaction, key_hash: bytes, name: str, *, writes: bool) -> Account:
        account = transaction.account_named(name)
        if account is None:
            if writes:
                return transaction.add_account(name, self._clock.wall())
            return Account(NOT_MADE, name, disabled=False)
        if not writes:  # a write transaction may have created it, and may yet be rolled back
            self._granted[key_hash] = account.id
        return account


def check_enabled(account: Account) -> None:
    """Raise `DisabledError` for a disabled account."""
    if account.disabled:
        raise DisabledError(
            "The account is switched off; whoever runs the service can switch it on: `cloudstore account enable`."
        )


def shown_before(work: Callable[P, None], secret: str, show: Show | None) -> Callable[P, None]:
    """
    Return work for a transaction: do `work`, then call `show` with the secret before the commit, only once.

    If `show` raises, the transaction is rolled back: no secret becomes valid unseen.
    """
    waiting = [] if show is None else [show]

    def shown(*args: P.args, **kwargs: P.kwargs) -> None:
        work(*args, **kwargs)
        if waiting:  # else it was shown already, and this is a retry of the transaction
            waiting.pop()(secret)

    return shown


def new_key() -> str:
    """Return a new random API key."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(KEY_LENGTH))


def _limits_of(plan: str) -> Limits:
    if plan not in PLANS:
        raise BadValueError(f"There is no plan {plan!r}; the plans are {' and '.join(PLANS)}.")
    return PLANS[plan]


def _check_limit(name: str, value: object) -> None:
    if name not in Limits._fields:
        raise BadValueError(f"There is no limit {name!r}; the limits are {', '.join(Limits._fields)}.")
    if value is None:
        return
    kinds = (int, float) if name == "min_interval" else (int,)
    if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < MAX_LIMIT:
        raise BadValueError(f"{name} is a number above 0, or None for no limit, not {value!r}.")


def dashboard_queue(name: str) -> Hashable:
    """Return the key of the writer's queue for changes of an account and by its owner in the dashboard."""
    return ("dashboard", name)


def _hash(api_key: str) -> bytes:
    return hashlib.sha256(api_key.encode()).digest()


@dataclass
class Caller:
    """
    Account of a request, authenticated by API key or as the signed-in owner (`is_owner`), and the client's address.

    File passwords and the daily access limit don't apply to owners. `used` has the name of each accessed file, once per
    access. `ahead` holds prefetched files, None for an absent file; each is used only once, as the request may change
    the file afterwards. `merged` is the outcome of a merge computed in advance.
    """

    account: Account
    address: str
    is_owner: bool = False
    used: list[str] = field(default_factory=list)
    ahead: dict[str, File | FileInfo | None] = field(default_factory=dict)
    merged: Merged | None = None

    def __post_init__(self) -> None:
        #: True if the account has a daily access limit per file.
        self.is_limited = not self.is_owner and self.account.limits.max_daily_accesses is not None

    def get(self, transaction: Transaction, name: str) -> File | None:
        """Return a file of the account with its value, None for an absent file."""
        if name in self.ahead and not isinstance(found := self.ahead.pop(name), FileInfo):
            return found
        return transaction.get(self.account.id, name)

    def stat(self, transaction: Transaction, name: str) -> FileInfo | None:
        """Return the `FileInfo` (no value) of a file of the account, None for an absent file."""
        if name in self.ahead and not isinstance(found := self.ahead.pop(name), File):
            return found
        return transaction.stat(self.account.id, name)
