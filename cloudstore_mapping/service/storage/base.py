"""The contract of every storage engine, and what is the same in all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import NamedTuple, Self, TypeVar

T = TypeVar("T")


class Account(NamedTuple):
    """An owner of files."""

    id: int
    name: str
    disabled: bool


class File(NamedTuple):
    """A data file: its value as JSON, and the argon2id hashes of its passwords, None where none is set."""

    value: bytes
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
    def put(self, account_id: int, name: str, value: bytes, now: float) -> None:
        """Make this the file's value, keeping its passwords."""

    @abstractmethod
    def delete(self, account_id: int, name: str) -> bool:
        """Remove the file with its passwords, and tell whether there was one."""

    @abstractmethod
    def names(self, account_id: int, containing: str = "") -> list[str]:
        """Return the names that contain this text, case-sensitively, in the order of their code points."""

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
