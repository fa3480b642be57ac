"""Service facade: build the parts, answer requests, set file passwords, report health and shut down."""

from __future__ import annotations

import enum
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Final, Self

from cloudstore_mapping.errors import NoFileError, TimedOutError, shorten
from cloudstore_mapping.service.accounts import COMMAND_LINE, Accounts, dashboard_queue
from cloudstore_mapping.service.dispatcher import Dispatcher
from cloudstore_mapping.service.idempotency import IdempotencyStore
from cloudstore_mapping.service.media import BlobCleaner, MediaFiles
from cloudstore_mapping.service.panels import DashboardQueries
from cloudstore_mapping.service.quotas import AccessCounter, Clock, ReplyMemory
from cloudstore_mapping.service.security import ApiKeyThrottle, Argon2Hasher, Hasher, PasswordVerifier
from cloudstore_mapping.service.sessions import SessionService
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.records import Account
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.threads import PlainFuture
from cloudstore_mapping.wire import Batch, Reply, Request

_log: Final = logging.getLogger(__name__)


class Keep(enum.Enum):
    """Type of `KEEP`, the default of password arguments: leave the password unchanged. None clears it."""

    KEEP = enum.auto()


KEEP: Final = Keep.KEEP


class Service:
    """
    Answers requests for the accounts and files of a storage; thread-safe. `close` closes the storage too.

    A small read is answered on the caller's thread, unless its storage `waits` for a network; a write is answered after
    its commit.
    """

    def __init__(
        self,
        storage: Storage,
        settings: Settings | None = None,
        clock: Clock | None = None,
        hasher: Hasher | None = None,
    ) -> None:
        settings = Settings() if settings is None else settings
        self.settings = replace(settings, max_name_bytes=min(settings.max_name_bytes, storage.max_name_bytes))
        self._clock = Clock() if clock is None else clock
        self._storage = storage
        guesses = ApiKeyThrottle(self.settings.key_tries, self.settings.password_window, self._clock.monotonic)
        answers = IdempotencyStore(self._clock)  # one for all users, so that it reads the clock often
        #: Background cleanup of the storage.
        self.sweeper = BlobCleaner(storage, self._clock, answers)
        self.accounts = Accounts(storage, self._clock, guesses, self.sweeper.begin)
        self._passwords = PasswordVerifier(self.settings, self._clock, Argon2Hasher() if hasher is None else hasher)
        #: Cause of the problem found by the last health check, None if there was none.
        self._problem: str | None = None
        self.usage = AccessCounter(storage, self._clock, enabled=self.settings.count_accesses)
        self.media = MediaFiles(
            storage, self.settings, self._clock, self.accounts, self._passwords, self.usage, self.sweeper
        )
        self.owners = SessionService(storage, self._clock, self.accounts, self._passwords)
        self.panels = DashboardQueries(storage, self._clock, self.usage)
        self.reply_memory = ReplyMemory(self.settings.max_reply_bytes)
        #: Answers requests; see its `submit`.
        self.dispatcher = Dispatcher(
            storage, self.settings, self._clock, self.accounts, self._passwords, self.usage, answers
        )

    def handle(
        self, request: Request | Batch, *, address: str = "", raises: bool = False, patience: float | None = None
    ) -> Reply:
        """
        Answer a request and return the reply, waiting for it; errors become replies (see `submit`).

        With `raises`, for a service embedded in the caller's program, unexpected exceptions are raised unchanged: the
        program's signal handlers may have raised them. Raises `TimedOutError` after `patience` seconds; its `sent` is
        False if the request will never be executed.
        """
        answer = self.dispatcher.submit(request, address, waits=True, raises=raises, patience=patience)
        if isinstance(answer, Reply):
            return answer
        try:
            return answer.result(patience)
        except TimeoutError as error:
            if answer.done():  # raised by the work, not by the wait
                raise
            raise TimedOutError("The store did not answer in time; try again, or give a longer deadline.") from error

    def submit(self, request: Request | Batch, *, address: str = "", owner: Account | None = None) -> Future[Reply]:
        """
        Begin to answer a request, and return a future of its reply; errors become replies, never exceptions.

        `address` is the client's address, for throttling wrong passwords. A started request can't be cancelled.
        Callbacks of the future must be short: they run on threads shared with other requests. `owner` is the account
        of a signed-in owner: it replaces the API key, and rate limit, passwords and daily limit don't apply.
        """
        answer = self.dispatcher.submit(request, address, owner)
        if not isinstance(answer, Reply):
            return answer
        answered: Future[Reply] = PlainFuture()
        answered.set_result(answer)
        return answered

    def set_passwords(
        self,
        account: str,
        name: str,
        *,
        edit: str | Keep | None = KEEP,
        view: str | Keep | None = KEEP,
        origin: str = COMMAND_LINE,
    ) -> None:
        """
        Set the edit and view passwords of a data file; None or an empty string clears a password.

        The change is in effect on return, and recorded as an audit event from `origin`. Raises `NoFileError` for an
        unknown file, `BadNameError` for an unknown account, and `BadValueError` for a common password.
        """
        if not self.set_passwords_of(account, [name], edit=edit, view=view, origin=origin):
            raise NoFileError(f"There is no file {shorten(name)}.", key=name)

    def set_passwords_of(
        self,
        account: str,
        names: Sequence[str],
        *,
        edit: str | Keep | None = KEEP,
        view: str | Keep | None = KEEP,
        origin: str = COMMAND_LINE,
    ) -> int:
        """Do as `set_passwords` for several files in one transaction; return the number of those that exist."""
        names = list(dict.fromkeys(names))
        given = {
            what: self._passwords.hash(password)
            for what, password in (("edit", edit), ("view", view))
            if not isinstance(password, Keep)
        }

        def work(transaction: Transaction) -> int:
            owner = self.accounts.owner(transaction, account, origin)
            found = transaction.stat_many(owner.id, names) if names else {}
            for each, info in found.items():
                if info is not None:
                    hashes = {"edit": info.edit_password, "view": info.view_password, **given}
                    transaction.set_passwords(owner.id, each, **hashes)
                    for what, hash_ in given.items():
                        action = f"{what} password {'cleared' if hash_ is None else 'set'}"
                        self.accounts.record(transaction, owner, action, each, origin)
            return sum(info is not None for info in found.values())

        return self._storage.submit(work, dashboard_queue(account)).result()

    def set_default_passwords(
        self,
        account: str,
        *,
        data: str | Keep | None = KEEP,
        media: str | Keep | None = KEEP,
        origin: str = COMMAND_LINE,
    ) -> None:
        """Set the default edit passwords of the account's data files and media files, as `set_passwords` does."""
        given = {
            what: self._passwords.hash(password)
            for what, password in (("data", data), ("media", media))
            if not isinstance(password, Keep)
        }

        def work(transaction: Transaction) -> None:
            owner = self.accounts.owner(transaction, account, origin)
            hashes = {"data": owner.data_password, "media": owner.media_password, **given}
            transaction.set_default_passwords(owner.id, **hashes)
            for what, hash_ in given.items():
                action = f"default password of {what} files {'cleared' if hash_ is None else 'set'}"
                self.accounts.record(transaction, owner, action, "", origin)

        self._storage.submit(work, dashboard_queue(account)).result()

    def healthy(self) -> bool:
        """Return True if reads and writes succeed at present; log every change. Takes a few seconds at most."""
        problem = self._storage.problem()
        cause = None if problem is None else problem.partition(";")[0]  # the remedy may change with the disk's use
        if cause != self._problem:
            self._problem = cause
            if problem is None:
                _log.warning("The service is healthy again.")
            else:
                _log.warning("The service is not healthy: %s", problem)
        return problem is None

    def keep_tidy(self) -> None:
        """Check for cleanup work every few seconds from now on, on a thread: other processes may leave some."""
        self.sweeper.watch()

    def store_bytes(self) -> int:
        """Return the size of the storage in bytes."""
        return self._storage.size()

    def compact(self) -> None:
        """Return unused space of the storage to the disk; raise `UnavailableError` on failure."""
        self._storage.compact()

    def withdraw(self) -> None:
        """Cancel the write awaited by this thread, or wait until it is done; for use after an interrupt."""
        self._storage.withdraw()

    def hurry(self) -> None:
        """Wait only briefly for other processes from now on; refuse writes blocked by them. Stop the cleanup."""
        self.media.hurry()
        self._storage.hurry()

    def end_within(self, seconds: float) -> None:
        """Refuse with `Unavailable` all writes not begun within so many seconds, for a shutdown with `close` then."""
        self.dispatcher.end_within(seconds)
        self._storage.end_within(seconds)

    def close(self) -> None:
        """
        Answer all submitted requests, then close the storage; later requests get `Unavailable`.

        A submitted write with a password still to be hashed gets `Unavailable` too. Don't call this from a callback of
        `submit`'s future.
        """
        self.dispatcher.refuse_all()
        self.hurry()
        self._passwords.close()
        self.dispatcher.close()
        self.media.close()
        self.usage.close()
        self._storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
