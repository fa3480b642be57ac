"""The statements that every engine takes on accounts and data files; those on media are in `media_tables`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

from cloudstore_mapping.service.storage.records import (
    Account,
    ApiKey,
    Event,
    File,
    FileInfo,
    Limits,
    Listed,
    OwnerPassword,
    Session,
)
from cloudstore_mapping.service.storage.seals import Seals


class AccountsTable(ABC):
    """Accounts, the keys that open them, and who is signed in."""

    @abstractmethod
    def account(self, account_id: int) -> Account | None:
        """Return the account with this id."""

    @abstractmethod
    def account_of_key(self, key_hash: bytes) -> Account | None:
        """Return the account that the API key with this SHA-256 opens."""

    @abstractmethod
    def account_named(self, name: str) -> Account | None:
        """Return the account with this name."""

    @abstractmethod
    def account_of_folder(self, folder: str) -> Account | None:
        """Return the account whose media are in this folder."""

    @abstractmethod
    def accounts(self) -> list[Account]:
        """Return all accounts, by name."""

    @abstractmethod
    def has_accounts(self) -> bool:
        """Whether there is any account."""

    @abstractmethod
    def add_account(self, name: str, now: float) -> Account:
        """Add an account under a name that no other has."""

    @abstractmethod
    def delete_account(self, account_id: int) -> None:
        """Remove the account and all that is its; its blobs are left to `sweep`."""

    @abstractmethod
    def set_disabled(self, account_id: int, disabled: bool) -> None:
        """Switch the account off or on."""

    @abstractmethod
    def set_limits(self, account_id: int, plan: str, limits: Limits) -> None:
        """Make these the account's limits, under the name of a plan."""

    @abstractmethod
    def set_default_passwords(self, account_id: int, *, data: str | None, media: str | None) -> None:
        """Make these hashes the edit passwords of files that have none of their own."""

    @abstractmethod
    def next_request_at(self, account_id: int) -> float | None:
        """Return when the account's next request may come, None where it never had to wait."""

    @abstractmethod
    def set_next_request_at(self, account_id: int, at: float) -> None:
        """Remember when the account's next request may come."""

    @abstractmethod
    def add_key(self, account_id: int, key_hash: bytes, hint: str, now: float) -> None:
        """Let the API key with this SHA-256 open the account, beside those that already do."""

    @abstractmethod
    def keys(self, account_id: int) -> list[ApiKey]:
        """Return the keys that open the account, the oldest first."""

    @abstractmethod
    def remove_key(self, account_id: int, key_hash: bytes) -> None:
        """Let this API key open the account no longer."""

    @abstractmethod
    def owner_password(self, account_id: int) -> OwnerPassword:
        """Return what the owner of the account signs in with: with no hash, where nobody may or there is no account."""

    @abstractmethod
    def set_owner_password(self, account_id: int, password: OwnerPassword) -> None:
        """Make this what the owner signs in with."""

    @abstractmethod
    def add_session(self, token_hash: bytes, account_id: int, now: float) -> None:
        """Remember that somebody with this token is signed in."""

    @abstractmethod
    def session(self, token_hash: bytes) -> Session | None:
        """Return who is signed in with this token."""

    @abstractmethod
    def touch_session(self, token_hash: bytes, now: float) -> None:
        """Remember that the session was used."""

    @abstractmethod
    def end_session(self, token_hash: bytes) -> None:
        """Sign this one out."""

    @abstractmethod
    def end_sessions(self, account_id: int, but: bytes | None = None) -> None:
        """Sign out all of an account's, but perhaps the one with this token."""

    @abstractmethod
    def forget_sessions(self, created_before: float, used_before: float) -> None:
        """Forget the sessions, of all accounts, that began or were last used before these times."""

    @abstractmethod
    def add_event(self, account_id: int, event: Event, keep: int) -> None:
        """Remember what was done, and forget all but the last `keep` of the account."""

    @abstractmethod
    def events(self, account_id: int, limit: int) -> list[Event]:
        """Return what was done, the latest first."""


class FilesTable(ABC):
    """Data files, by account and name, and what requests on them were answered."""

    @cached_property
    def _seals(self) -> Seals:
        return Seals()

    @abstractmethod
    def get(self, account_id: int, name: str) -> File | None:
        """Return the file, None where there is none."""

    @abstractmethod
    def stat(self, account_id: int, name: str) -> FileInfo | None:
        """Return what can be told of the file without reading its value, None where there is none."""

    @abstractmethod
    def get_many(self, account_id: int, names: Sequence[str], max_bytes: int) -> dict[str, File | None]:
        """Return by name what `get` would, but leave it those files that are damaged, or larger than so many bytes."""

    @abstractmethod
    def stat_many(self, account_id: int, names: Sequence[str]) -> dict[str, FileInfo | None]:
        """Return by name what `stat` would."""

    def put(self, account_id: int, name: str, value: bytes, now: float) -> str:
        """Make this the file's value, keeping its passwords, and return its new version."""
        version = self._seals.sealed(name, value)
        self._put(account_id, name, value, version, now)
        return version

    @abstractmethod
    def _put(self, account_id: int, name: str, value: bytes, version: str, now: float) -> None:
        """Store the value under this version."""

    @abstractmethod
    def delete(self, account_id: int, name: str) -> bool:
        """Remove the file with its passwords, and tell whether there was one."""

    @abstractmethod
    def names(
        self,
        account_id: int,
        containing: str = "",
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int | None = None,
    ) -> list[str]:
        """
        Return the names that contain one text as it stands, begin with another and come behind a third.

        They are in the order of their code points, the first `limit` of them.
        """

    @abstractmethod
    def describe(
        self, account_id: int, containing: str = "", *, after: str | None = None, limit: int
    ) -> list[tuple[str, FileInfo]]:
        """Return what `names` returns, each with what can be told of the file."""

    @abstractmethod
    def page(
        self,
        account_id: int,
        containing: str = "",
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int,
        max_bytes: int,
    ) -> list[Listed]:
        """Return the files that `names` returns, without the values that are damaged, or larger than so many bytes."""

    @abstractmethod
    def largest(self, account_id: int, limit: int) -> list[tuple[str, int]]:
        """Return the names of the largest files with their sizes, the largest first."""

    @abstractmethod
    def count_files(self, account_id: int, enough: int | None = None) -> int:
        """Return how many data and media files there are together, counting no further than `enough`."""

    @abstractmethod
    def set_passwords(self, account_id: int, name: str, *, edit: str | None, view: str | None) -> bool:
        """Make these hashes the file's passwords, and tell whether there is such a file."""

    @abstractmethod
    def answer(self, account_id: int, request: str) -> bytes | None:
        """Return what a request with this id was answered, None where there was none lately."""

    @abstractmethod
    def keep_answer(self, account_id: int, request: str, reply: bytes, now: float) -> None:
        """Remember what a request with this id was answered."""

    @abstractmethod
    def forget_answers(self, before: float, limit: int) -> None:
        """Forget what was answered before this time, of all accounts, the oldest first and so many at most."""
