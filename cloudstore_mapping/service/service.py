"""The service, put together: requests are answered, passwords set, and all that runs is ended."""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, Self

from cloudstore_mapping.errors import NoFileError, TimedOutError, UnavailableError, shorten
from cloudstore_mapping.service.accounts import COMMAND_LINE, Accounts
from cloudstore_mapping.service.dispatcher import Answerer, Dispatcher
from cloudstore_mapping.service.media import BlobCleaner, MediaFiles
from cloudstore_mapping.service.panels import DashboardQueries
from cloudstore_mapping.service.quotas import AccessCounter, Clock
from cloudstore_mapping.service.reply_memory import ReplyMemory, ReplyRoom
from cloudstore_mapping.service.security import ApiKeyThrottle, Argon2Hasher, Hasher, PasswordVerifier
from cloudstore_mapping.service.sessions import SessionService
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.records import Account
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.threads import PlainFuture
from cloudstore_mapping.wire import Batch, Reply, Request, failure

_log: Final = logging.getLogger(__name__)


class Keep(enum.Enum):
    """The type of `KEEP`: what is not given stays what it is, for None is a password that is cleared."""

    KEEP = enum.auto()


KEEP: Final = Keep.KEEP


class Service:
    """
    Answers requests on the accounts and files of a storage, which it closes in the end.

    Threads may share it. A small read is answered on the caller's thread, unless its storage `waits` for a network; a
    write is answered after its commit.
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
        #: Background work on the storage.
        self.sweeper = BlobCleaner(storage, self._clock)
        self.accounts = Accounts(storage, self._clock, guesses, self.sweeper.begin)
        self._passwords = PasswordVerifier(self.settings, self._clock, Argon2Hasher() if hasher is None else hasher)
        self._closed = False
        #: Why it was not healthy when that was asked for last.
        self._problem: str | None = None
        self.usage = AccessCounter(storage, self._clock, enabled=self.settings.count_accesses)
        self.media = MediaFiles(
            storage, self.settings, self._clock, self.accounts, self._passwords, self.usage, self.sweeper
        )
        self.owners = SessionService(storage, self._clock, self.accounts, self._passwords)
        self.panels = DashboardQueries(storage, self._clock, self.usage)
        self.reply_memory = ReplyMemory(self.settings.max_reply_bytes)
        self._dispatcher = Dispatcher(storage, self.settings, self._clock, self.accounts, self._passwords, self.usage)

    def handle(
        self, request: Request | Batch, *, address: str = "", raises: bool = False, patience: float | None = None
    ) -> Reply:
        """
        Return the answer to a request, whatever it is; see `submit`.

        `raises` is for a caller in whose program the service runs: what isn't a refusal is raised as it is, for it may
        be what a handler of the program's signals raised. After `patience` seconds without an answer `TimedOutError`
        is raised; its `sent` is False if the request never will be done.
        """
        if self._closed:
            return _closed()
        answer = self._dispatcher.submit(request, address, None, waits=True, raises=raises, patience=patience)
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
        Begin to answer a request; the future holds the reply, an error's too, and never an exception.

        `address` is who asks, for counting wrong passwords. What is begun can't be cancelled any more. Callbacks of
        the future run on threads that others wait for: they should be short. With `owner` it is that account's owner
        who asks, signed in: instead of by an API key, and limited by no pace, password or daily number of accesses.
        """
        answer = self.answer(request, address=address, owner=owner)
        if not isinstance(answer, Reply):
            return answer
        answered: Future[Reply] = PlainFuture()
        answered.set_result(answer)
        return answered

    def answer(
        self,
        request: Request | Batch,
        *,
        address: str = "",
        owner: Account | None = None,
        room: ReplyRoom | None = None,
    ) -> Reply | Future[Reply]:
        """
        Return what `submit` does, or the reply itself if it is there at once, as that to a small read is.

        The memory of a large reply is taken from `reply_memory` by `room`, which the caller releases once the reply is
        sent; `UnavailableError` if there is none left.
        """
        if self._closed:
            return _closed()
        return self._dispatcher.submit(request, address, owner, room=room)

    def check_key(self, api_key: str, address: str) -> Future[None] | None:
        """
        Begin to look whether a request with this API key would be refused for it, and return None if that is known.

        The call, or the future, raises `BadKeyError`, `TooOftenError` or `DisabledError`, as `answer` would tell.
        """
        return None if self._closed else self._dispatcher.check_key(api_key, address)

    @contextmanager
    def together(self) -> Iterator[Answerer]:
        """
        Yield what answers a request from an address as `answer` does; all small reads in the block see one moment.

        They cost less than one by one. The block must wait for nothing.
        """
        if self._closed:
            yield lambda _request, _address, _room=None: _closed()
            return
        with self._dispatcher.together() as answer:
            yield answer

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
        Make these the passwords of an account's file, None or empty meaning none; in force when this returns.

        `origin` is who did it, for the account's list of events. Raises `NoFileError` where there is no such file, and
        `BadNameError` where there is no such account.
        """
        given = {
            what: self._passwords.hash(password)
            for what, password in (("edit", edit), ("view", view))
            if not isinstance(password, Keep)
        }

        def work(transaction: Transaction) -> None:
            owner = self.accounts.owner(transaction, account, origin)
            info = transaction.stat(owner.id, name)
            if info is None:
                raise NoFileError(f"There is no file {shorten(name)}.", key=name)
            hashes = {"edit": info.edit_password, "view": info.view_password, **given}
            transaction.set_passwords(owner.id, name, **hashes)
            for what, hash_ in given.items():
                action = f"{what} password {'cleared' if hash_ is None else 'set'}"
                self.accounts.record(transaction, owner, action, name, origin)

        self._storage.submit(work).result()

    def set_default_passwords(
        self,
        account: str,
        *,
        data: str | Keep | None = KEEP,
        media: str | Keep | None = KEEP,
        origin: str = COMMAND_LINE,
    ) -> None:
        """Make these the edit passwords of data and media files without one of their own; as `set_passwords`."""
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

        self._storage.submit(work).result()

    def healthy(self) -> bool:
        """Whether reads and saves succeed at present; it is soon known, and logged when it changes."""
        problem = self._storage.problem()
        if problem != self._problem:
            self._problem = problem
            if problem is None:
                _log.warning("The service is healthy again.")
            else:
                _log.warning("The service is not healthy: %s", problem)
        return problem is None

    def keep_tidy(self) -> None:
        """Look every few seconds from now on for background work: other processes leave some."""
        self.sweeper.watch()

    def store_bytes(self) -> int:
        """Return how many bytes its storage takes."""
        return self._storage.size()

    def compact(self) -> None:
        """Give unused space of its storage back to the disk; raises `UnavailableError` where that fails."""
        self._storage.compact()

    def withdraw(self) -> None:
        """After an interrupt of this thread, cancel the write that it waits for, or wait until it is done."""
        self._storage.withdraw()

    def hurry(self) -> None:
        """Wait no longer than a moment for other processes from now on; what they keep from being stored is refused."""
        self.media.hurry()
        self._storage.hurry()

    def end_within(self, seconds: float) -> None:
        """Refuse as `Unavailable` all writes that have not begun in so many seconds: `close` comes then."""
        self._dispatcher.end_within(seconds)
        self._storage.end_within(seconds)

    def close(self) -> None:
        """
        Answer what was submitted, then close the storage; later requests are answered `Unavailable`.

        So is a write whose password would have to be hashed only now. Not from a callback of `submit`'s future.
        """
        self._closed = True
        self.hurry()
        self._passwords.close()
        self._dispatcher.close()
        self.media.close()
        self.usage.close()
        self._storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _closed() -> Reply:
    return failure(UnavailableError("The service is closed; try again later.", retry_after=1.0))
