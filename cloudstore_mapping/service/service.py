"""The service: finds whose a request is, has it done where that blocks nobody, and answers it whatever happens."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from functools import partial
from http import HTTPStatus
from typing import Final, Self

from msgspec import UNSET

from cloudstore_mapping.errors import CloudStoreError, NoFileError, ProtocolError, UnavailableError
from cloudstore_mapping.service.accounts import Accounts
from cloudstore_mapping.service.batch import UnprovenItemError, answer_batch
from cloudstore_mapping.service.hashing import Argon2Hasher, Hasher
from cloudstore_mapping.service.limits import Clock
from cloudstore_mapping.service.passwords import Passwords, UnprovenError
from cloudstore_mapping.service.pool import Pool
from cloudstore_mapping.service.rules import Rules
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.base import Account, Storage, Transaction
from cloudstore_mapping.wire import Batch, Operation, Reply, Request, decode_reply, encode_reply, failure

_log: Final = logging.getLogger(__name__)

#: Listings that are read at once, and that wait; a scan may be long, so it never runs on the caller's thread.
SCAN_THREADS: Final = 4
SCANS_WAITING: Final = 1000


_QUICK: Final = frozenset({Operation.LOAD, Operation.STAT})

#: Seconds for which what a request with an id was answered is remembered, and between two looks for older ones.
REMEMBER_ANSWERS: Final = 900.0
FORGET_EVERY: Final = 60.0


class _Asked:
    """A request on its way through the service, and who asked it; of a batch also what was refused meanwhile."""

    def __init__(self, request: Request | Batch, address: str) -> None:
        self.request = request
        self.address = address
        self.refused: dict[int, CloudStoreError] = {}
        self.answer: Future[Reply] = Future()
        self.answer.set_running_or_notify_cancel()


class Service:
    """
    Answers requests on the accounts and files of a storage, which it closes in the end.

    Threads may share it. A small read is answered on the caller's thread; a write is answered after its commit.
    """

    def __init__(
        self,
        storage: Storage,
        settings: Settings | None = None,
        clock: Clock | None = None,
        hasher: Hasher | None = None,
    ) -> None:
        self.settings = Settings() if settings is None else settings
        self._clock = Clock() if clock is None else clock
        self._storage = storage
        self.accounts = Accounts(storage, self._clock)
        self._passwords = Passwords(self.settings, self._clock, Argon2Hasher() if hasher is None else hasher)
        self._scans = Pool(SCAN_THREADS, SCANS_WAITING, "cloudstore-scan")
        self._closed = False
        self._rules = Rules(self.settings, self._clock, self._passwords)
        self._forgotten_at = self._clock.monotonic()

    def handle(self, request: Request | Batch, *, address: str = "") -> Reply:
        """Return the answer to a request, whatever it is; see `submit`."""
        return self.submit(request, address=address).result()

    def submit(self, request: Request | Batch, *, address: str = "") -> Future[Reply]:
        """
        Begin to answer a request; the future holds the reply, an error's too, and never an exception.

        `address` is who asks, for counting wrong passwords. What is begun can't be cancelled any more. Callbacks of
        the future run on threads that others wait for: they should be short.
        """
        asked = _Asked(request, address)
        if self._closed:
            asked.answer.set_result(
                failure(UnavailableError("The service is closed; try again later.", retry_after=1.0))
            )
        else:
            self._advance(asked)
        return asked.answer

    def _advance(self, asked: _Asked) -> None:
        try:
            begun = self._begin(asked)
        except Exception as error:  # noqa: BLE001 - every failure becomes a reply
            self._settle(error, asked)
            return
        if isinstance(begun, Reply):
            asked.answer.set_result(begun)
        else:
            begun.add_done_callback(lambda done: self._finish(done, asked))

    def _finish(self, done: Future[Reply], asked: _Asked) -> None:
        error = done.exception()
        if error is None:
            asked.answer.set_result(done.result())
        else:
            self._settle(error, asked)

    def _settle(self, error: BaseException, asked: _Asked) -> None:
        if isinstance(error, UnprovenError):
            self._prove(error, asked)
        elif isinstance(error, CloudStoreError):
            asked.answer.set_result(failure(error))
        else:
            _log.error("A request to %s failed.", asked.request.operation.value, exc_info=error)
            sentence = "The service failed; its owner finds the reason in its log."
            asked.answer.set_result(failure(ProtocolError(sentence, error="ServerError")))

    def _prove(self, unproven: UnprovenError, asked: _Asked) -> None:
        def proved(done: Future[None]) -> None:
            error = done.exception()
            if isinstance(unproven, UnprovenItemError) and isinstance(error, CloudStoreError):
                asked.refused[unproven.number] = error
                error = None
            if error is None:
                # All rules again from the first: what they looked at may have changed during the hashing.
                self._advance(asked)
            else:
                self._settle(error, asked)

        try:
            proof = self._passwords.prove(unproven, asked.address)
        except Exception as error:  # noqa: BLE001 - every failure becomes a reply
            proof = Future()
            proof.set_exception(error)
        proof.add_done_callback(proved)

    def _begin(self, asked: _Asked) -> Reply | Future[Reply]:
        request = asked.request
        with self._storage.read() as transaction:
            account = self.accounts.find(transaction, request.api_key)  # who is refused never stands in a queue
            if isinstance(request, Request) and request.operation in _QUICK:
                return self._rules.answer(transaction, account, request)
            if isinstance(request, Request) and request.operation.writes:
                self._rules.check_name(request.name)
        if request.writes if isinstance(request, Batch) else request.operation.writes:
            return self._storage.submit(partial(self._write, asked))
        return self._scans.submit(self._scan, asked, account)

    def _scan(self, asked: _Asked, account: Account) -> Reply:
        with self._storage.read() as transaction:
            return self._answer(transaction, account, asked)

    def _write(self, asked: _Asked, transaction: Transaction) -> Reply:
        account = self.accounts.find(transaction, asked.request.api_key)
        once = asked.request.once
        if once is UNSET:
            return self._answer(transaction, account, asked)
        before = transaction.answer(account.id, once)
        if before is not None:
            return decode_reply(before)
        try:
            reply = self._answer(transaction, account, asked)
        except CloudStoreError as error:
            reply = failure(error)
            if isinstance(asked.request, Batch) or reply.status != HTTPStatus.OK or error.error == "Locked":
                raise  # nothing was written, and the next time it may go well
        transaction.keep_answer(account.id, once, encode_reply(reply), self._clock.wall())
        now = self._clock.monotonic()
        if now - self._forgotten_at > FORGET_EVERY:
            self._forgotten_at = now
            transaction.forget_answers(self._clock.wall() - REMEMBER_ANSWERS)
        return reply

    def _answer(self, transaction: Transaction, account: Account, asked: _Asked) -> Reply:
        request = asked.request
        if isinstance(request, Batch):
            max_bytes = self.settings.max_batch_reply_bytes
            return answer_batch(self._rules, transaction, account, request, asked.refused, max_bytes)
        return self._rules.answer(transaction, account, request)

    def set_passwords(self, account: str, name: str, *, edit: str | None = None, view: str | None = None) -> None:
        """
        Make these the passwords of an account's file, None or empty meaning none; in force when this returns.

        Raises `NoFileError` where there is no such account or file.
        """
        edit_hash = self._passwords.hash(edit)
        view_hash = self._passwords.hash(view)

        def work(transaction: Transaction) -> None:
            owner = transaction.account_named(account)
            if owner is None or not transaction.set_passwords(owner.id, name, edit=edit_hash, view=view_hash):
                raise _no_file(name)

        self._storage.submit(work).result()

    def healthy(self) -> bool:
        """Whether its storage can be read, and has not given up writing; quick, on any thread."""
        return self._storage.healthy()

    def close(self) -> None:
        """
        Answer what was submitted, then close the storage; later requests are answered `Unavailable`.

        So is a write whose password would have to be hashed only now. Not from a callback of `submit`'s future.
        """
        self._closed = True
        self._passwords.close()
        self._scans.close()
        self._storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _no_file(name: str) -> NoFileError:
    return NoFileError(f"There is no file {name!r}.", key=name)
