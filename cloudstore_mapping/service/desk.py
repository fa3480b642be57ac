"""How a request is answered: whose it is, on which thread it is done, and what is said whatever happens."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec import UNSET

from cloudstore_mapping.errors import BadKeyError, CloudStoreError, ProtocolError, UnavailableError
from cloudstore_mapping.service.answers import MAX_LOADED, Answers
from cloudstore_mapping.service.batch import BatchWork, UndoneError
from cloudstore_mapping.service.limits import check_turn, take_turn
from cloudstore_mapping.service.passwords import Question, UnprovenError
from cloudstore_mapping.service.pool import Pool
from cloudstore_mapping.service.rules import Caller, Rules
from cloudstore_mapping.wire import Batch, Operation, Reply, Request, failure

if TYPE_CHECKING:
    from cloudstore_mapping.service.accounts import Accounts
    from cloudstore_mapping.service.limits import Clock
    from cloudstore_mapping.service.passwords import Passwords
    from cloudstore_mapping.service.settings import Settings
    from cloudstore_mapping.service.storage.base import Storage, Transaction
    from cloudstore_mapping.service.storage.records import Account
    from cloudstore_mapping.service.usage import Usage

_log: Final = logging.getLogger(__name__)

#: Listings that are read at once, and that wait; a scan may be long, so it never runs on the caller's thread.
SCAN_THREADS: Final = 4
SCANS_WAITING: Final = 1000
#: The same of all requests, where the storage is beyond a network: nobody's thread waits for that but these.
READ_THREADS: Final = 8
READS_WAITING: Final = 1000

_QUICK: Final = frozenset({Operation.LOAD, Operation.STAT})


class _Asked:
    """
    A request on its way through the service, and who asked it; of a batch also which passwords were refused.

    `owner` is the account of somebody who is signed in; `waits` says that the caller does nothing until it is answered;
    `admitted` says that the account's pace lets it pass; `caller` is for whom the last try was made that was answered.
    """

    def __init__(self, request: Request | Batch, address: str, owner: Account | None, waits: bool) -> None:
        self.request = request
        self.address = address
        self.owner = owner
        self.waits = waits
        self.admitted = owner is not None
        self.refused: dict[Question, CloudStoreError] = {}
        self.caller: Caller | None = None
        self.answer: Future[Reply]


class _UnadmittedError(Exception):
    """A write was not looked at before it was its turn, and now its account has a pace."""

    def __init__(self, account: Account) -> None:
        super().__init__("The account's pace is to be kept.")
        self.account = account


class _Moment(AbstractContextManager["_Moment"]):
    """One moment of a storage, which begins when it is first read, and `accounts` that were found then."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._stack = ExitStack()
        self._transaction: Transaction | None = None
        #: By API key and address.
        self.accounts: dict[tuple[str, str], Account] = {}

    def transaction(self) -> Transaction:
        """Return what reads of this moment."""
        if self._transaction is None:
            self._transaction = self._stack.enter_context(self._storage.read())
        return self._transaction

    def __exit__(self, *exc_info: object) -> None:
        with suppress(CloudStoreError):  # of the end of a transaction that has read already
            self._stack.close()


class Desk:
    """Answers requests; threads may share it. It closes nothing that was handed to it."""

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        clock: Clock,
        accounts: Accounts,
        passwords: Passwords,
        usage: Usage,
    ) -> None:
        self._storage = storage
        self._settings = settings
        self._clock = clock
        self._accounts = accounts
        self._passwords = passwords
        self._usage = usage
        self._rules = Rules(settings, clock, passwords, usage)
        self._answers = Answers(clock)
        self._scans = Pool(SCAN_THREADS, SCANS_WAITING, "cloudstore-scan")
        self._reads = Pool(READ_THREADS, READS_WAITING, "cloudstore-read") if storage.waits else None

    @contextmanager
    def together(self) -> Iterator[Callable[[Request | Batch, str], Reply | Future[Reply]]]:
        """Yield what answers a request from an address; see `Service.together`."""
        with _Moment(self._storage) as moment:
            yield lambda request, address: self.submit(request, address, None, moment=moment)

    def submit(
        self,
        request: Request | Batch,
        address: str,
        owner: Account | None,
        *,
        waits: bool = False,
        moment: _Moment | None = None,
    ) -> Reply | Future[Reply]:
        """Answer a request if that takes no waiting, else begin to; see `Service.submit`."""
        asked = _Asked(request, address, owner, waits)
        if self._reads is None and isinstance(request, Request) and request.operation in _QUICK:
            reply = self._answer_at_once(asked, moment)
            if reply is not None:
                return reply
        asked.answer = Future()
        asked.answer.set_running_or_notify_cancel()
        self._advance(asked)
        return asked.answer

    def _answer_at_once(self, asked: _Asked, moment: _Moment | None) -> Reply | None:
        """Answer a small read, without what a future costs; None where it waits for a turn, a password or a repair."""
        try:
            if moment is not None:
                return self._read(moment.transaction(), asked, moment.accounts)
            with self._storage.read() as transaction:
                return self._read(transaction, asked, {})
        except CloudStoreError as error:
            return failure(error)
        except Exception:  # noqa: BLE001 - what it means is told when it is raised again
            return None

    def _read(self, transaction: Transaction, asked: _Asked, accounts: dict[tuple[str, str], Account]) -> Reply | None:
        who = (asked.request.api_key, asked.address)
        caller = Caller(accounts[who]) if who in accounts else self._caller(transaction, asked)
        if caller.account.limits.min_interval and not asked.admitted:
            return None
        if not caller.is_owner:
            accounts[who] = caller.account
        return self._answer(transaction, caller, asked)

    def close(self) -> None:
        """Finish what was begun on threads of its own."""
        if self._reads is not None:
            self._reads.close()
        self._scans.close()

    def _advance(self, asked: _Asked) -> None:
        if self._reads is None:
            self._proceed(asked)
            return
        try:
            self._reads.submit(self._proceed, asked)
        except UnavailableError as error:
            self._settle(error, asked)

    def _proceed(self, asked: _Asked) -> None:
        try:
            begun = self._begin(asked)
        except Exception as error:  # noqa: BLE001 - every failure becomes a reply
            self._settle(error, asked)
            return
        if isinstance(begun, Reply):
            asked.answer.set_result(begun)
        elif begun is not None:
            begun.add_done_callback(lambda done: self._finish(done, asked))

    def _finish(self, done: Future[Reply], asked: _Asked) -> None:
        error = done.exception()
        if error is None:
            asked.answer.set_result(done.result())
        else:
            self._settle(error, asked)

    def _settle(self, error: BaseException, asked: _Asked) -> None:
        self._take_back(asked)
        if isinstance(error, _UnadmittedError):
            self._accounts.forget(asked.request.api_key)
            self._in_turn(asked, error.account)
        elif isinstance(error, UnprovenError):
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

    def _begin(self, asked: _Asked) -> Reply | Future[Reply] | None:
        """Answer the request, or have it answered; None where it goes on by itself, when it is its account's turn."""
        request = asked.request
        writes = request.writes if isinstance(request, Batch) else request.operation.writes
        write = self._storage.run if asked.waits else self._storage.submit
        if writes and self._accounts.opened_lately(request.api_key):
            return write(partial(self._write, asked))
        with self._storage.read() as transaction:
            caller = self._caller(transaction, asked)  # who is refused never stands in a queue
            if not asked.admitted and caller.account.limits.min_interval:
                check_turn(transaction, caller.account, self._clock.wall())
                self._in_turn(asked, caller.account)
                return None
            if isinstance(request, Request) and request.operation in _QUICK:
                return self._answer(transaction, caller, asked)
            if isinstance(request, Request) and request.operation.writes:
                self._rules.check_name(request.name)
        if writes:
            if asked.owner is None and not caller.account.limits.min_interval:
                self._accounts.remember(request.api_key)
            return write(partial(self._write, asked))
        return self._scans.submit(self._scan, asked, caller)

    def _caller(self, transaction: Transaction, asked: _Asked) -> Caller:
        if asked.owner is None:
            return Caller(self._accounts.find(transaction, asked.request.api_key, asked.address))
        account = transaction.account(asked.owner.id)
        if account is None:
            raise BadKeyError("The account is there no longer.")
        return Caller(account, is_owner=True)

    def _in_turn(self, asked: _Asked, account: Account) -> None:
        """Go on with the request once it is stored, for all processes, that the account had its turn."""
        turn = self._storage.submit(lambda transaction: take_turn(transaction, account, self._clock.wall()))
        turn.add_done_callback(partial(self._turned, asked))

    def _turned(self, asked: _Asked, turn: Future[None]) -> None:
        error = turn.exception()
        if error is not None:
            self._settle(error, asked)
            return
        asked.admitted = True
        self._advance(asked)

    def _scan(self, asked: _Asked, caller: Caller) -> Reply:
        with self._storage.read() as transaction:
            return self._answer(transaction, caller, asked)

    def _write(self, asked: _Asked, transaction: Transaction) -> Reply:
        caller = self._caller(transaction, asked)
        if caller.account.limits.min_interval and not asked.admitted:
            raise _UnadmittedError(caller.account)
        once = asked.request.once
        if once is UNSET:
            return self._answer(transaction, caller, asked)
        return self._answers.once(
            transaction, caller.account.id, once, partial(self._answer, transaction, caller, asked, MAX_LOADED)
        )

    def _answer(self, transaction: Transaction, caller: Caller, asked: _Asked, max_loaded: int = sys.maxsize) -> Reply:
        request = asked.request
        self._take_back(asked)  # a storage may have work done again that came to nothing
        if isinstance(request, Batch):
            max_bytes = min(self._settings.max_batch_reply_bytes, max_loaded)
            reply = BatchWork(self._rules, self._answers, request, asked.refused, max_bytes).do(transaction, caller)
        else:
            reply = self._rules.answer(transaction, caller, request)
        self._usage.count(caller.account.id, "data", *caller.used)
        asked.caller = caller
        return reply

    def _take_back(self, asked: _Asked) -> None:
        """Count no longer what a try of the request counted as accesses."""
        caller, asked.caller = asked.caller, None
        if caller is not None:
            self._usage.count(caller.account.id, "data", *caller.used, times=-1)
