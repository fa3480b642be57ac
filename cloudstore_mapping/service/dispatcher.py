"""Dispatch a request: authenticate its caller, choose a thread or the writer, turn every exception into a reply."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec import UNSET

from cloudstore_mapping.errors import CloudStoreError, ProtocolError, TimedOutError, UnavailableError
from cloudstore_mapping.service.accounts import NOT_MADE
from cloudstore_mapping.service.batch import BatchWork, UndoneError
from cloudstore_mapping.service.idempotency import IdempotencyStore, Repeatable, Single, check_ids
from cloudstore_mapping.service.operations import Caller, Operations
from cloudstore_mapping.service.quotas import check_rate_limit, take_slot
from cloudstore_mapping.service.security import PasswordCheck, UnprovenError
from cloudstore_mapping.service.threads import BoundedThreadPool, PlainFuture, wait_for
from cloudstore_mapping.wire import Batch, Operation, Reply, Request, failure

if TYPE_CHECKING:
    from cloudstore_mapping.service.accounts import Accounts
    from cloudstore_mapping.service.quotas import AccessCounter, Clock
    from cloudstore_mapping.service.security import PasswordVerifier
    from cloudstore_mapping.service.settings import Settings
    from cloudstore_mapping.service.storage.base import Storage
    from cloudstore_mapping.service.storage.records import Account
    from cloudstore_mapping.service.storage.sql import Transaction

_QUICK: Final = frozenset({Operation.LOAD, Operation.STAT})


class PendingRequest:
    """
    A request on its way through the service, and who asked it; of a batch also which passwords were refused.

    `owner` is the account of somebody who is signed in; `waits` says that the caller does nothing until it is answered,
    and all is done or waited for on its thread; `raises` that the service's own failures are raised as they are;
    `admitted` says that the account's pace lets it pass; `caller` is for whom the last try was made that was answered;
    `until` is the monotonic time at which a caller who waits gives up.
    """

    def __init__(
        self, request: Request | Batch, address: str, owner: Account | None, *, waits: bool, raises: bool
    ) -> None:
        self.request = request
        self.address = address
        self.owner = owner
        self.waits = waits
        self.raises = raises
        self.admitted = owner is not None
        self.refused: dict[PasswordCheck, CloudStoreError] = {}
        self.caller: Caller | None = None
        self.until = math.inf
        self.answer: Future[Reply]

    @property
    def is_quick(self) -> bool:
        """Whether it is a read of one file."""
        return isinstance(self.request, Request) and self.request.operation in _QUICK

    @property
    def writes(self) -> bool:
        """Whether it changes what is stored."""
        return self.request.writes


class UnadmittedError(Exception):
    """A request was not looked at before it was its turn, and now its account has a pace."""

    def __init__(self, account: Account) -> None:
        super().__init__("The account's pace is to be kept.")
        self.account = account


class SharedSnapshot(AbstractContextManager["SharedSnapshot"]):
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


T = TypeVar("T")

_log: Final = logging.getLogger(__name__)

#: Listings that are read at once, and that wait; a scan may be long, so it never runs on the caller's thread.
SCAN_THREADS: Final = 4
SCANS_WAITING: Final = 1000
#: The same of all requests, where the storage is beyond a network: nobody's thread waits for that but these.
READ_THREADS: Final = 8
READS_WAITING: Final = 1000


class Dispatcher:
    """Answers requests; threads may share it. It closes nothing that was handed to it."""

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        clock: Clock,
        accounts: Accounts,
        passwords: PasswordVerifier,
        usage: AccessCounter,
    ) -> None:
        self._storage = storage
        self._settings = settings
        self._clock = clock
        self._accounts = accounts
        self._passwords = passwords
        self._usage = usage
        self._rules = Operations(settings, clock, passwords, usage)
        self._answers = IdempotencyStore(clock)
        self._scans = BoundedThreadPool(SCAN_THREADS, SCANS_WAITING, "cloudstore-scan")
        self._reads = BoundedThreadPool(READ_THREADS, READS_WAITING, "cloudstore-read") if storage.waits else None

    @contextmanager
    def together(self) -> Iterator[Callable[[Request | Batch, str], Reply | Future[Reply]]]:
        """Yield what answers a request from an address; see `Service.together`."""
        with SharedSnapshot(self._storage) as moment:
            yield lambda request, address: self.submit(request, address, None, moment=moment)

    def submit(
        self,
        request: Request | Batch,
        address: str,
        owner: Account | None,
        *,
        waits: bool = False,
        raises: bool = False,
        patience: float | None = None,
        moment: SharedSnapshot | None = None,
    ) -> Reply | Future[Reply]:
        """Answer a request if that takes no waiting, else begin to; see `Service.submit` and `Service.handle`."""
        asked = PendingRequest(request, address, owner, waits=waits and self._reads is None, raises=raises)
        if patience is not None:
            asked.until = time.monotonic() + patience
        if self._reads is None and asked.is_quick:
            reply = self._answer_at_once(asked, moment)
            if reply is not None:
                return reply
        asked.answer = PlainFuture()
        asked.answer.set_running_or_notify_cancel()
        self._dispatch(asked)
        return asked.answer

    def _answer_at_once(self, asked: PendingRequest, moment: SharedSnapshot | None) -> Reply | None:
        """Answer a small read, without what a future costs; None where it waits for a turn, a password or a repair."""
        try:
            if moment is not None:
                return self._read(moment.transaction(), asked, moment.accounts)
            with self._storage.read() as transaction:
                return self._read(transaction, asked, {})
        except CloudStoreError as error:
            return failure(error)
        except (UnadmittedError, UnprovenError):
            return None  # what it means is told when it is raised again
        except Exception:
            if asked.raises:
                raise
            return None

    def _read(
        self, transaction: Transaction, asked: PendingRequest, accounts: dict[tuple[str, str], Account]
    ) -> Reply | None:
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

    def _dispatch(self, asked: PendingRequest) -> None:
        if self._reads is None:
            self._start(asked)
            return
        try:
            self._reads.submit(self._start, asked)
        except UnavailableError as error:
            self._handle_error(error, asked)

    def _start(self, asked: PendingRequest) -> None:
        try:
            begun = self._begin(asked)
        except Exception as error:  # noqa: BLE001 - every failure becomes a reply
            self._handle_error(error, asked)
            return
        if isinstance(begun, Reply):
            asked.answer.set_result(begun)
        elif begun is not None:
            self._when_done(begun, asked, self._finish)

    def _when_done(
        self, future: Future[T], asked: PendingRequest, step: Callable[[Future[T], PendingRequest], object]
    ) -> None:
        """
        Go on with a step once a future has an outcome.

        A caller who waits does so here. A future's callback would run on its thread too, and lose what a handler of
        the program's signals raises meanwhile.
        """
        if asked.waits:
            try:
                if not future.done():
                    _wait_until(future, asked.until)
            except BaseException:
                if not future.cancel():  # the work has begun: an interrupt comes before a write or after it
                    wait_for(future)
                raise
            step(future, asked)
            return

        def go_on(future: Future[T]) -> None:
            try:
                step(future, asked)
            except Exception as error:  # else it is lost, and nobody ever answered
                if asked.answer.done():
                    raise
                self._handle_error(error, asked)

        future.add_done_callback(go_on)

    def _finish(self, done: Future[Reply], asked: PendingRequest) -> None:
        error = done.exception()
        if error is None:
            asked.answer.set_result(done.result())
        else:
            self._handle_error(error, asked)

    def _handle_error(self, error: BaseException, asked: PendingRequest) -> None:
        self._undo_counts(asked)
        if isinstance(error, UnadmittedError):
            self._accounts.forget(asked.request.api_key)
            self._wait_for_slot(asked, error.account)
        elif isinstance(error, UnprovenError):
            self._verify_passwords(iter(error.questions), asked)
        elif isinstance(error, UndoneError):
            asked.answer.set_result(error.reply)
        elif isinstance(error, CloudStoreError):
            asked.answer.set_result(failure(error))
        elif asked.raises:  # perhaps what a handler of the program's signals raised
            if asked.answer.done():
                raise error
            asked.answer.set_exception(error)
        else:
            _log.error("A request to %s failed.", asked.request.operation.value, exc_info=error)
            sentence = "The service failed; its owner finds the reason in its log."
            asked.answer.set_result(failure(ProtocolError(sentence, error="ServerError")))

    def _verify_passwords(self, questions: Iterator[PasswordCheck], asked: PendingRequest) -> None:
        # One after another: a batch of many waits for its turn at each of them, as single requests would.
        for question in questions:
            proof = self._proof(question, asked.address)
            if not proof.done():
                self._when_done(proof, asked, partial(self._continue_verifying, question, questions))
                return
            if not self._verified(question, proof, asked):
                return
        # All rules again from the first: what they looked at may have changed during the hashing.
        self._dispatch(asked)

    def _continue_verifying(
        self, question: PasswordCheck, questions: Iterator[PasswordCheck], proof: Future[None], asked: PendingRequest
    ) -> None:
        if self._verified(question, proof, asked):
            self._verify_passwords(questions, asked)

    def _proof(self, question: PasswordCheck, address: str) -> Future[None]:
        try:
            return self._passwords.prove(question, address)
        except Exception as error:  # noqa: BLE001 - every failure becomes a reply
            failed: Future[None] = PlainFuture()
            failed.set_exception(error)
            return failed

    def _verified(self, question: PasswordCheck, proof: Future[None], asked: PendingRequest) -> bool:
        """Whether the request goes on, now that it is known whether the password is right; else it is answered."""
        error = proof.exception()
        if isinstance(asked.request, Batch) and isinstance(error, CloudStoreError):
            asked.refused[question] = error
        elif error is not None:
            self._handle_error(error, asked)
            return False
        return True

    def _begin(self, asked: PendingRequest) -> Reply | Future[Reply] | None:
        """Answer the request, or have it answered; None where it goes on by itself, when it is its account's turn."""
        request = asked.request
        check_ids(request)
        is_quick = asked.is_quick
        if not is_quick and self._accounts.opened_lately(request.api_key):
            return self._execute(asked)
        with self._storage.read() as transaction:
            caller = self._caller(transaction, asked)  # who is refused never stands in a queue
            comes_in_turn = not asked.admitted and bool(caller.account.limits.min_interval)
            if comes_in_turn:
                check_rate_limit(transaction, caller.account, self._clock.wall())
            elif is_quick:
                return self._answer(transaction, caller, asked)
            elif isinstance(request, Request) and asked.writes:
                self._rules.check_name(request)
        account = caller.account
        if comes_in_turn:  # not while it reads, for in memory writers wait for readers
            self._wait_for_slot(asked, account)
            return None
        if asked.owner is None and not account.limits.min_interval and account.id != NOT_MADE:
            self._accounts.remember(request.api_key)
        return self._execute(asked)

    def _execute(self, asked: PendingRequest) -> Reply | Future[Reply]:
        """Have the request answered by the writer; a read by a thread for reads, in memory by this one."""
        if asked.writes:
            work = partial(self._write, asked)
            return self._storage.run(work, asked.until) if asked.waits else self._storage.submit(work)
        if asked.waits:
            self._storage.check_can_wait()
            if self._storage.reads_in_turn:  # a signal handler's thread may have the turn
                return self._scan(asked)
        return self._scans.submit(self._scan, asked)

    def _caller(self, transaction: Transaction, asked: PendingRequest, *, writes: bool = False) -> Caller:
        if asked.owner is None:
            return Caller(self._accounts.find(transaction, asked.request.api_key, asked.address, writes=writes))
        return Caller(self._accounts.owned(transaction, asked.owner.id, asked.address), is_owner=True)

    def _wait_for_slot(self, asked: PendingRequest, account: Account) -> None:
        """Go on with the request once it is stored, for all processes, that the account had its turn."""
        turn = self._storage.submit(lambda transaction: take_slot(transaction, account, self._clock.wall()))
        self._when_done(turn, asked, self._slot_taken)

    def _slot_taken(self, turn: Future[None], asked: PendingRequest) -> None:
        error = turn.exception()
        if error is not None:
            self._handle_error(error, asked)
            return
        asked.admitted = True
        self._dispatch(asked)

    def _scan(self, asked: PendingRequest) -> Reply:
        with self._storage.read() as transaction:
            return self._answer(transaction, self._admitted(transaction, asked), asked)

    def _admitted(self, transaction: Transaction, asked: PendingRequest, *, writes: bool = False) -> Caller:
        caller = self._caller(transaction, asked, writes=writes)
        if caller.account.limits.min_interval and not asked.admitted:
            raise UnadmittedError(caller.account)
        return caller

    def _write(self, asked: PendingRequest, transaction: Transaction) -> Reply:
        return self._answer(transaction, self._admitted(transaction, asked, writes=True), asked)

    def _answer(self, transaction: Transaction, caller: Caller, asked: PendingRequest) -> Reply:
        request = asked.request
        self._undo_counts(asked)  # a storage may have work done again that came to nothing
        work = self._work(asked)
        if asked.writes and request.once is not UNSET:
            reply = self._answers.once(transaction, caller, request, work)
        else:
            reply = work.do(transaction, caller)
        self._usage.count(caller.account.id, "data", *caller.used)
        asked.caller = caller
        return reply

    def _work(self, asked: PendingRequest) -> Repeatable:
        request = asked.request
        if isinstance(request, Request):
            return Single(self._rules, request)
        max_bytes = self._settings.max_batch_reply_bytes
        return BatchWork(self._rules, self._answers, request, asked.refused, max_bytes)

    def _undo_counts(self, asked: PendingRequest) -> None:
        """Count no longer what a try of the request counted as accesses."""
        caller, asked.caller = asked.caller, None
        if caller is not None:
            self._usage.count(caller.account.id, "data", *caller.used, times=-1)


def _wait_until(future: Future[T], until: float) -> None:
    """Wait for a future; `TimedOutError` at the monotonic time `until`, with `sent` False if the work never begins."""
    if not wait_for(future, None if until == math.inf else until - time.monotonic()):
        sentence = "The store was busy all the time; try again, or give a longer deadline."
        raise TimedOutError(sentence, sent=not future.cancel())
