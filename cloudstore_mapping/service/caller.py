"""The caller of a request: an account, and what the request used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cloudstore_mapping.service.storage.records import Account, File, FileInfo

if TYPE_CHECKING:
    from cloudstore_mapping.errors import CloudStoreError
    from cloudstore_mapping.service.storage.sql import Transaction
    from cloudstore_mapping.wire import Request


@dataclass(frozen=True)
class Merged:
    """The outcome of a request's merge into a version of its file, computed before the transaction that writes it."""

    request: Request
    version: str
    value: bytes = b""
    error: CloudStoreError | None = None


@dataclass
class Caller:
    """
    The account that makes a request, by an API key, or by its owner, whom passwords and accesses don't limit.

    `used` are the files that the request used, once for each access. `ahead` are files that were read before they are
    asked for, None for an absent one; each is used once, for the request may change it then. `merged` is the outcome of
    a merge that was computed before.
    """

    account: Account
    is_owner: bool = False
    used: list[str] = field(default_factory=list)
    ahead: dict[str, File | FileInfo | None] = field(default_factory=dict)
    merged: Merged | None = None

    def __post_init__(self) -> None:
        #: Whether files may be used so many times a day only.
        self.is_limited = not self.is_owner and self.account.limits.max_daily_accesses is not None

    def get(self, transaction: Transaction, name: str) -> File | None:
        """Return one of the account's files, None where there is none."""
        if name in self.ahead and not isinstance(found := self.ahead.pop(name), FileInfo):
            return found
        return transaction.get(self.account.id, name)

    def stat(self, transaction: Transaction, name: str) -> FileInfo | None:
        """Return what can be told of one of the account's files, None where there is none."""
        if name in self.ahead and not isinstance(found := self.ahead.pop(name), File):
            return found
        return transaction.stat(self.account.id, name)
