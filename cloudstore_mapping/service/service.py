"""The service: finds whose a request is, has it done where that blocks nobody, and answers it whatever happens."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from typing import Final, Self

from msgspec import UNSET

from cloudstore_mapping.errors import CloudStoreError, NoFileError, ProtocolError, UnavailableError
from cloudstore_mapping.service.accounts import Accounts
from cloudstore_mapping.service.answers import MAX_LOADED, Answers
from cloudstore_mapping.service.batch import BatchWork, UndoneError
from cloudstore_mapping.service.hashing import Argon2Hasher, Hasher
from cloudstore_mapping.service.limits import Clock
from cloudstore_mapping.service.passwords import Passwords, Question, UnprovenError
from cloudstore_mapping.service.pool import Pool
from cloudstore_mapping.service.rules import Rules
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.base import Storage, Transaction
from cloudstore_mapping.service.storage.records import Account
from cloudstore_mapping.wire import Batch, Operation, Reply, Request, failure

_log: Final = logging.getLogger(__name__)

#: Listings that are read at once, and that wait; a scan may be long, so it never runs on the caller's thread.
SCAN_THREADS: Final = 4
SCANS_WAITING: Final = 1000

_QUICK: Final = frozenset({Operation.LOAD, Operation.STAT})


class _Asked:
    """A request on its way through the service, and who asked it; of a batch also which passwords were refused."""

    def __init__(self, request: Request | Batch, address: str) -> None:
        self.request = request
        self.address = address
        self.refused: dict[Question, CloudStoreError] = {}
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
        self._answers = Answers(self._clock)

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
            self._prove(iter(error.questions), asked)
        elif isinstance(error, UndoneError):
            asked.answer.set_result(error.reply)
        elif isinstance(error, CloudStoreError):
            asked.answer.set_result(failure(error))
        else:
            _log.error("A request to %s failed.", asked.request.operation.value, exc_info=error)
            sentence = "The service failed; its owner finds the reason in its log."
            asked.answer.set_result(failure(ProtocolError(sentence, error="ServerError")))

    def _prove(self, questions: Iterator[Question], asked: _Asked) -> None:
        # One after another: a batch of many waits for its turn at each of them, as single requests would.
        for question in questions:
            proof = self._proof(question, asked.address)
            if not proof.done():
                proof.add_done_callback(partial(self._go_on, question, questions, asked))
                return
            if not self._proved(question, proof, asked):
                return
        # All rules again from the first: what they looked at may have changed during the hashing.
        self._advance(asked)

    def _go_on(self, question: Question, questions: Iterator[Question], asked: _Asked, proof: Future[None]) -> None:
        if self._proved(question, proof, asked):
            self._prove(questions, asked)

    def _proof(self, question: Question, address: str) -> Future[None]:
        try:
            return self._passwords.prove(question, address)
        except Exception as error:  # noqa: BLE001 - every failure becomes a reply
            failed: Future[None] = Future()
            failed.set_exception(error)
            return failed

    def _proved(self, question: Question, proof: Future[None], asked: _Asked) -> bool:
        """Whether the request goes on, now that it is known whether the password is right; else it is answered."""
        error = proof.exception()
        if isinstance(asked.request, Batch) and isinstance(error, CloudStoreError):
            asked.refused[question] = error
        elif error is not None:
            self._settle(error, asked)
            return False
        return True

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
        return self._answers.once(
            transaction, account.id, once, partial(self._answer, transaction, account, asked, MAX_LOADED)
        )

    def _answer(
        self, transaction: Transaction, account: Account, asked: _Asked, max_loaded: int = sys.maxsize
    ) -> Reply:
        request = asked.request
        if isinstance(request, Batch):
            max_bytes = min(self.settings.max_batch_reply_bytes, max_loaded)
            return BatchWork(self._rules, self._answers, request, asked.refused, max_bytes).do(transaction, account)
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
