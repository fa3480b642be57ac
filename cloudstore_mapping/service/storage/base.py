"""The contract of every storage engine, and what is the same in all of them."""

from __future__ import annotations

import secrets
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Final, NamedTuple, Self, TypeVar

T = TypeVar("T")

#: Random bytes of a version: two of one file are never the same.
VERSION_BYTES: Final = 9


class Account(NamedTuple):
    """An owner of files."""

    id: int
    name: str
    disabled: bool


class File(NamedTuple):
    """A data file: its value as JSON, the hashes of its passwords, None where none is set, and its version."""

    value: bytes
    edit_password: str | None
    view_password: str | None
    version: str


class FileInfo(NamedTuple):
    """What can be told of a data file without its value, of `size` bytes; its passwords as in `File`."""

    size: int
    version: str
    created_at: float
    updated_at: float
    edit_password: str | None
    view_password: str | None


class Transaction(ABC):
    """
    What can be read and written as one; all names are data, never paths, and all times are seconds since 1970.

    One thread at a time may use it, and only within the `Storage.read` or `Storage.submit` that handed it out.
    """

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
    def has_accounts(self) -> bool:
        """Whether there is any account."""

    @abstractmethod
    def add_account(self, name: str, now: float) -> Account:
        """Add an account under a name that no other has."""

    @abstractmethod
    def add_key(self, account_id: int, key_hash: bytes, now: float) -> None:
        """Let the API key with this SHA-256 open the account, beside those that already do."""

    @abstractmethod
    def set_disabled(self, account_id: int, disabled: bool) -> None:
        """Switch the account off or on."""

    @abstractmethod
    def get(self, account_id: int, name: str) -> File | None:
        """Return the file, None where there is none."""

    @abstractmethod
    def stat(self, account_id: int, name: str) -> FileInfo | None:
        """Return what can be told of the file without reading its value, None where there is none."""

    def put(self, account_id: int, name: str, value: bytes, now: float) -> str:
        """Make this the file's value, keeping its passwords, and return its new version."""
        version = secrets.token_urlsafe(VERSION_BYTES)
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
    def answer(self, account_id: int, request: str) -> bytes | None:
        """Return what a request with this id was answered, None where there was none lately."""

    @abstractmethod
    def keep_answer(self, account_id: int, request: str, reply: bytes, now: float) -> None:
        """Remember what a request with this id was answered."""

    @abstractmethod
    def forget_answers(self, before: float, limit: int) -> None:
        """Forget what was answered before this time, of all accounts, the oldest first and so many at most."""

    @abstractmethod
    def set_passwords(self, account_id: int, name: str, *, edit: str | None, view: str | None) -> bool:
        """Make these hashes the file's passwords, and tell whether there is such a file."""


class Storage(ABC):
    """
    A store of accounts and files; threads may share it.

    An engine's own errors leave it as `UnavailableError`, with a sentence for the service's owner; so does any use
    after `close`.
    """

    @abstractmethod
    def read(self) -> AbstractContextManager[Transaction]:
        """
        Return a transaction to read with, on the caller's thread: all it reads is of one moment.

        On a disk it never waits for a writer; in memory it may wait for work that is being done.
        """

    @abstractmethod
    def submit(self, work: Callable[[Transaction], T]) -> Future[T]:
        """
        Run `work` in a writing transaction; the future completes after the commit is on disk.

        Writers come one after another, so what `work` reads still stands when it writes. What `work` raises undoes
        what it wrote, is the future's exception, and touches nobody else's work.
        """

    @abstractmethod
    def healthy(self) -> bool:
        """Whether it can be read, and has not given up writing; quick, on any thread."""

    @abstractmethod
    def close(self) -> None:
        """Finish what was submitted, then let go of all connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def after_prefix(prefix: str) -> str | None:
    """Return the first text behind all that begin with `prefix`, by code points; None where there is none."""
    for index in range(len(prefix) - 1, -1, -1):
        following = ord(prefix[index]) + 1
        if following == 0xD800:
            following = 0xE000  # no text holds a surrogate
        if following <= sys.maxunicode:
            return prefix[:index] + chr(following)
    return None
