"""Authenticated caller of a request: its account, counted accesses and prefetched files."""

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
    """Outcome of a merge into a version of a file, computed before the write transaction: JSON or an error."""

    request: Request
    version: str
    value: bytes = b""
    error: CloudStoreError | None = None


@dataclass
class Caller:
    """
    Account of a request, authenticated by API key or as the signed-in owner (`is_owner`).

    File passwords and the daily access limit don't apply to owners. `used` has the name of each accessed file, once per
    access. `ahead` holds prefetched files, None for an absent file; each is used only once, as the request may change
    the file afterwards. `merged` is the outcome of a merge computed in advance.
    """

    account: Account
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
