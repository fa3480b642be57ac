"""Dispatch a request: authenticate the caller, choose a thread or the writer, turn every exception into a reply."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from msgspec import UNSET

from cloudstore_mapping.errors import (
    BadMergeError,
    CloudStoreError,
    LimitError,
    ProtocolError,
    TimedOutError,
    UnavailableError,
)
from cloudstore_mapping.service.accounts import NOT_MADE, Caller
from cloudstore_mapping.service.batch import BatchWork, Budget, Needs, Piece, Refused, Undone
from cloudstore_mapping.service.idempotency import IdempotencyStore, Repeatable, Single, check_ids, may_store
from cloudstore_mapping.service.merging import CLOSING, Merged, MergePool
from cloudstore_mapping.service.operations import MAX_INLINE_MERGE, Operations
from cloudstore_mapping.service.quotas import check_rate_limit, take_slot
from cloudstore_mapping.service.reading import LOCAL, REMOTE, BatchOfReads, LongRead, Steps, Whole
from cloudstore_mapping.service.security import PasswordCheck, Unproven, network_of
from cloudstore_mapping.service.storage.base import DiskFullError, RolledBack
from cloudstore_mapping.service.storage.records import LARGE
from cloudstore_mapping.service.storage.sql import LookAhead
from cloudstore_mapping.service.threads import BoundedThreadPool, Paused, PlainFuture, wait_for
from cloudstore_mapping.wire import Batch, Operation, Reply, Request, failure

if TYPE_CHECKING:
    from cloudstore_mapping.service.accounts import Accounts
    from cloudstore_mapping.service.quotas import AccessCounter, Clock, ReplyRoom
    from cloudstore_mapping.service.security import PasswordVerifier
    from cloudstore_mapping.service.settings import Settings
    from cloudstore_mapping.service.storage.base import Storage
    from cloudstore_mapping.service.storage.records import Account, File, FileInfo
    from cloudstore_mapping.service.storage.sql import Transaction

_QUICK: Final = frozenset({Operation.LOAD, Operation.STAT})
#: Operations to read a file's value.
_OF_VALUES: Final = frozenset({Operation.LOAD, Operation.MERGE})


class Answerer(Protocol):
    """Function to answer requests in a shared snapshot; see `Dispatcher.together`."""

    def __call__(
        self, request: Request | Batch, address: str, room: ReplyRoom | None = None, /
    ) -> Reply | Future[Reply]:
        """Answer a request from a client address; a large reply takes its memory from `room`."""


class PendingRequest:
    """
    State of a request during its dispatch.

    - `owner`: the signed-in owner's account on the dashboard; None for a request with an API key.
    - `waits`: the caller blocks until the reply. All work runs on the caller's thread, or this thread waits for it.
    - `raises`: raise the service's own failures unchanged in place of a "ServerError" reply.
    - `admitted`: the request has passed the account's rate limit.
    - `refused`: the error of each wrong password in a batch.
    - `caller`: the caller of the last answered try; its accesses are counted.
    - `until`: monotonic time of a blocking caller's timeout.
    - `room`: memory of a large reply; None if the service runs in the caller's process.
    - `is_local`: the service runs in the caller's process and has no other clients. Batches aren't cut into pieces
      unless the disk is too full for all of it, and merges aren't computed in other processes.
    - `account_id`: the account's queue, once the account is known.
    - `batch`: progress of a batch done in pieces.
    - `merged`: outcome of a large merge; it was computed `computed` times.
    - `holds`: the account's other writes wait for this request.
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
        self.is_local = False
        self.account_id: int | None = None
        self.batch: BatchWork | None = None
        self.merged: Merged | None = None
        self.computed = 0
        self.holds = False
        self.room: ReplyRoom | None = None
        self.answer: Future[Reply]

    @property
    def is_quick(self) -> bool:
        """True for a load or stat."""
        return isinstance(self.request, Request) and self.request.operation in _QUICK

    @property
    def writes(self) -> bool:
        """True for a request with writes."""
        return self.request.writes


@dataclass(frozen=True)
class Unadmitted(RolledBack):
    """Result for a request that skipped its account's rate limit: the limit was set after the key was remembered."""

    account: Account


class SharedSnapshot(AbstractContextManager["SharedSnapshot"]):
    """Snapshot shared by several reads, opened by the first of them; `accounts` caches its authenticated callers."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._stack = ExitStack()
        self._transaction: Transaction | None = None
        #: Accounts by API key and client address.
        self.accounts: dict[tuple[str, str], Account] = {}

    def transaction(self) -> Transaction:
        """Return the snapshot's read transaction; open it on the first call."""
        if self._transaction is None:
            self._transaction = self._stack.enter_context(self._storage.read())
        return self._transaction

    def __exit__(self, *exc_info: object) -> None:
        with suppress(CloudStoreError):  # an error at the transaction's end: its reads are done
            self._stack.close()


T = TypeVar("T")

_log: Final = logging.getLogger(__name__)

#: Thread pool for long reads (searches, listings, large loads, batches of loads): number of threads, and maximum
#: number of queued reads, in all and per account. Long reads never run on the caller's thread.
SCAN_THREADS: Final = 4
SCANS_WAITING: Final = 4000
SCANS_WAITING_OF_ONE: Final = 500
#: The same for all requests to a storage with `waits`: only these threads wait for the network.
READ_THREADS: Final = 16
READS_WAITING: Final = 4000
READS_WAITING_OF_ONE: Final = 1000
#: Maximum number of times to compute a merge again after a conflicting write; the last time the account's other writes
#: wait.
MAX_COMPUTED: Final = 4
#: Maximum size of a value read on the caller's thread, in bytes.
SMALL_VALUE: Final = 64 * 2**10


class Dispatcher:
    """Dispatches requests. Thread-safe; `close` ends only its own threads and processes, not its arguments."""

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        clock: Clock,
        accounts: Accounts,
        passwords: PasswordVerifier,
        usage: AccessCounter,
        answers: IdempotencyStore,
    ) -> None:
        self._storage = storage
        self._settings = settings
        self._clock = clock
        self._accounts = accounts
        self._passwords = passwords
        self._usage = usage
        self._rules = Operations(settings, clock, passwords, usage, storage.max_name_bytes)
        self._answers = answers
        self._scans = BoundedThreadPool(
            SCAN_THREADS, SCANS_WAITING, "cloudstore-scan", waiting_of_one=SCANS_WAITING_OF_ONE, steps_back=True
        )
        self._reads = None
        if storage.waits:
            self._reads = BoundedThreadPool(
                READ_THREADS, READS_WAITING, "cloudstore-read", waiting_of_one=READS_WAITING_OF_ONE
            )
        self._merges = MergePool()
        self._is_closed = False
        self._under_way: set[PendingRequest] = set()  # batches done in pieces

    @contextmanager
    def together(self) -> Iterator[Answerer]:
        """
        Yield a function to answer requests as `submit` does, with a shared snapshot for all small reads in the block.

        Sharing makes each read cheaper. The block must not wait for anything.
        """
        with SharedSnapshot(self._storage) as moment:
            yield lambda request, address, room=None: self.submit(request, address, moment=moment, room=room)

    def submit(
        self,
        request: Request | Batch,
        address: str = "",
        owner: Account | None = None,
        *,
        waits: bool = False,
        raises: bool = False,
        patience: float | None = None,
        moment: SharedSnapshot | None = None,
        room: ReplyRoom | None = None,
    ) -> Reply | Future[Reply]:
        """
        Answer a request as `Service.submit` does, but return the reply itself if it is ready at once (a small read's).

        A large reply's memory is reserved by `room`; the caller releases it once the reply is sent. Without enough free
        memory the reply is `UnavailableError`. `waits`, `raises` and `patience` are for `Service.handle`, `moment` for
        `together`.
        """
        if self._is_closed:
            return failure(UnavailableError("The service is closed; try again later.", retry_after=1.0))
        asked = PendingRequest(request, address, owner, waits=waits and self._reads is None, raises=raises)
        asked.is_local = waits
        asked.room = room
        if patience is not None:
            asked.until = time.monotonic() + patience
        if self._reads is None and asked.is_quick:
            reply = self._answer_at_once(asked, moment)
            if isinstance(reply, Reply):
                return reply
        asked.answer = PlainFuture()
        asked.answer.set_running_or_notify_cancel()
        self._dispatch(asked)
        return asked.answer

    def _answer_at_once(self, asked: PendingRequest, moment: SharedSnapshot | None) -> Reply | RolledBack | None:
        """Answer a small read without a future's cost, unless it needs a rate limit slot, password check or thread."""
        try:
            if moment is not None:
                return self._read(moment.transaction(), asked, moment.accounts)
            with self._storage.read() as transaction:
                return self._read(transaction, asked, {})
        except CloudStoreError as error:
            return failure(error)
        except Exception:
            if asked.raises:
                raise
            return None

    def _read(
        self, transaction: Transaction, asked: PendingRequest, accounts: dict[tuple[str, str], Account]
    ) -> Reply | RolledBack | None:
        who = (asked.request.api_key, asked.address)
        caller = Caller(accounts[who], asked.address) if who in accounts else self._caller(transaction, asked)
        if caller.account.limits.min_interval and not asked.admitted:
            return None
        if not caller.is_owner:
            accounts[who] = caller.account
        return self._answer_small(transaction, caller, asked)

    def _answer_small(
        self, transaction: Transaction, caller: Caller, asked: PendingRequest
    ) -> Reply | RolledBack | None:
        """Answer a single read; return None for a large value, to be read on another thread."""
        request = asked.request
        if isinstance(request, Request) and request.operation is Operation.LOAD and not asked.waits:
            found: File | FileInfo | None
            if request.if_not_version is UNSET:
                found = transaction.get(caller.account.id, request.name, SMALL_VALUE)
                is_large = found is LARGE
            else:
                found = transaction.stat(caller.account.id, request.name)
                is_wanted = found is not None and found.version != request.if_not_version
                is_large = is_wanted and found is not None and found.size > SMALL_VALUE
            if is_large:
                return None
            caller.ahead[request.name] = found
        return self._answer(transaction, caller, asked)

    def end_within(self, seconds: float) -> None:
        """Refuse all merges not computed within `seconds`."""
        self._merges.end_within(seconds)

    def check_key(self, api_key: str, address: str) -> Future[None] | None:
        """
        Begin to authenticate an API key without a request; return None if it is already known to be accepted.

        The call, or the future, raises `BadKeyError`, `TooOftenError` or `DisabledError`, the errors of a request.
        """
        if self._is_closed or self._accounts.opened_lately(api_key) is not None:
            return None
        if self._reads is not None:
            return self._reads.submit_for(_strangers(address), self._find, api_key, address)
        self._find(api_key, address)
        return None

    def _find(self, api_key: str, address: str) -> None:
        with self._storage.read() as transaction:
            self._accounts.find(transaction, api_key, address)

    def refuse_all(self) -> None:
        """Answer all further requests with `Unavailable`; `close` follows."""
        self._is_closed = True

    def close(self) -> None:
        """Finish running work and end the threads; wait up to `CLOSING` seconds for batches and merges."""
        end = time.monotonic() + CLOSING
        self._merges.close()
        for asked in [*self._under_way]:
            wait_for(asked.answer, max(0.0, end - time.monotonic()))
        if self._reads is not None:
            self._reads.close()
        self._scans.close()

    def _dispatch(self, asked: PendingRequest) -> None:
        if self._reads is None:
            self._start(asked)
            return
        try:
            account = asked.owner.id if asked.owner else self._accounts.opened_lately(asked.request.api_key)
            queue = _strangers(asked.address) if account is None else account
            self._reads.submit_for(queue, self._start, asked).add_done_callback(partial(self._begun, asked))
        except UnavailableError as error:
            self._handle_error(error, asked)

    def _begun(self, asked: PendingRequest, done: Future[None]) -> None:
        """Answer with the error if the account's queue refused the request."""
        error = done.exception()
        if error is not None:
            self._handle_error(error, asked)

    def _start(self, asked: PendingRequest) -> None:
        try:
            begun = self._begin(asked)
        except Exception as error:  # noqa: BLE001 - every failure becomes a reply
            self._handle_error(error, asked)
            return
        if isinstance(begun, Reply):
            asked.answer.set_result(begun)
        elif isinstance(begun, RolledBack):
            self._do_again(begun, asked)
        elif begun is not None:
            self._when_done(begun, asked, self._finish)

    def _when_done(
        self, future: Future[T], asked: PendingRequest, step: Callable[[Future[T], PendingRequest], object]
    ) -> None:
        """
        Call `step` once the future is done.

        For a blocking caller (`asked.waits`), wait here. A callback would run on the caller's thread too, and the
        future would swallow any exception raised by a signal handler meanwhile.
        """
        if asked.waits:
            try:
                if not future.done():
                    _wait_until(future, asked.until)
            except BaseException:
                if not future.cancel():  # the work is running: an interrupt comes before a write or after it
                    wait_for(future)
                raise
            step(future, asked)
            return

        def go_on(future: Future[T]) -> None:
            try:
                step(future, asked)
            except Exception as error:  # else the future logs it, and the client gets no reply
                if asked.answer.done():
                    raise
                self._handle_error(error, asked)

        future.add_done_callback(go_on)

    def _finish(self, done: Future[Any], asked: PendingRequest) -> None:
        """Send a `Reply`; after a `Piece`, continue the batch; for `Needs.MERGE`, compute the merge, then try again."""
        following: Future[Any] | None = done
        while following is not None:
            following = self._finish_step(following, asked)

    def _finish_step(self, done: Future[Any], asked: PendingRequest) -> Future[Any] | None:
        """Do a step of `_finish`; for a blocking caller, return the finished future of the next piece, if any."""
        error = done.exception()
        if isinstance(error, DiskFullError) and _is_divisible(asked):
            return self._divide(error, asked)
        if error is not None:
            self._handle_error(error, asked)
            return None
        outcome = done.result()
        if isinstance(outcome, Reply):
            self._reply(outcome, asked)
        elif isinstance(outcome, Piece):
            return self._go_on_with_batch(outcome, asked)
        elif isinstance(outcome, RolledBack):
            self._do_again(outcome, asked)
        else:
            self._compute(asked)
        return None

    def _reply(self, reply: Reply, asked: PendingRequest) -> None:
        if asked.caller is not None:  # the write is committed: it can't be refused
            self._grow(asked, asked.caller, len(reply.content), forced=True)
        self._release(asked)
        self._under_way.discard(asked)
        asked.answer.set_result(reply)

    def _release(self, asked: PendingRequest) -> None:
        if asked.holds:
            asked.holds = False
            self._storage.release(asked.account_id)

    def _divide(self, error: DiskFullError, asked: PendingRequest) -> Future[Any] | None:
        """After a full disk refused a batch, or a piece, do it in smaller pieces; refuse single requests only."""
        self._undo_counts(asked)
        if asked.batch is None:
            asked.batch = self._batch_work(asked)
        if asked.batch.use_smaller_pieces():
            return self._begin_piece(asked)
        return self._go_on_with_batch(asked.batch.refused(error), asked)

    def _begin_piece(self, asked: PendingRequest) -> Future[Any] | None:
        """Submit the next piece of a batch; for a blocking caller, wait for it and return its future."""
        piece = self._submit_write(asked)
        # A step that continued the batch here would nest the calls of a thousand pieces.
        self._when_done(piece, asked, (lambda *_: None) if asked.waits else self._finish)
        return piece if asked.waits else None

    def _go_on_with_batch(self, piece: Piece, asked: PendingRequest) -> Future[Any] | None:
        """Add a piece to its batch and continue; return as `_begin_piece` does."""
        batch = asked.batch
        assert batch is not None  # noqa: S101 - only batches have pieces
        asked.caller = None  # so that the accesses of this piece stay counted
        if piece.replies:
            asked.merged, asked.computed = None, 0
            self._release(asked)
        batch.advance(piece)
        if batch.is_done:
            self._reply(batch.reply(), asked)
        elif piece.needs is Needs.MERGE:
            self._compute(asked)
        elif piece.needs is Needs.LISTING:
            self._when_done(self._scans.submit_for(asked.account_id, self._list_of_batch, asked), asked, self._finish)
        else:
            return self._begin_piece(asked)
        return None

    def _list_of_batch(self, asked: PendingRequest) -> Piece | RolledBack:
        assert asked.batch is not None  # noqa: S101 - only batches have pieces
        with self._storage.read() as transaction:
            caller = self._admitted(transaction, asked)
            return caller if isinstance(caller, RolledBack) else asked.batch.listings(transaction, caller)

    def _compute(self, asked: PendingRequest) -> None:
        """Compute a merge outside of any transaction, then submit the write; give up after too many conflicts."""
        request = asked.request if asked.batch is None else asked.batch.next_request
        assert isinstance(request, Request)  # noqa: S101 - a batch in pieces has a `batch`
        assert request.value is not UNSET  # noqa: S101 - it is a merge
        if asked.computed > MAX_COMPUTED:
            raise UnavailableError(
                "Other writes to the file are always in the way of the merge; try again.", retry_after=1.0
            )
        asked.computed += 1
        versions: list[str] = []

        def read() -> bytes | None:
            assert asked.account_id is not None  # noqa: S101 - the writer set it
            with self._storage.read() as transaction:
                file = transaction.get(asked.account_id, request.name)
            if file is None:
                return None
            versions.append(file.version)
            return file.value

        computing = self._merges.submit(asked.account_id, read, bytes(request.value))
        self._when_done(computing, asked, partial(self._computed, request, versions))

    def _computed(
        self, request: Request, versions: list[str], computing: Future[bytes | None], asked: PendingRequest
    ) -> None:
        error = computing.exception()
        if isinstance(error, LimitError | BadMergeError):  # the writer raises it if the file is unchanged
            asked.merged = Merged(request, versions[0], error=error)
        elif error is not None:
            self._handle_error(error, asked)
            return
        else:
            value = computing.result()
            asked.merged = None if value is None else Merged(request, versions[0], value)
        self._when_done(self._submit_write(asked), asked, self._finish)

    def _handle_error(self, error: BaseException, asked: PendingRequest) -> None:
        self._undo_counts(asked)
        self._release(asked)
        if isinstance(error, CloudStoreError):
            self._reply(failure(error) if asked.batch is None else asked.batch.broken_off(error), asked)
        elif asked.raises:  # a signal handler of the program may have raised it
            if asked.answer.done():
                raise error
            self._under_way.discard(asked)
            asked.answer.set_exception(error)
        else:
            _log.error("A request to %s failed.", asked.request.operation.value, exc_info=error)
            sentence = "The service failed; its owner finds the reason in its log."
            self._reply(failure(ProtocolError(sentence, error="ServerError")), asked)

    def _do_again(self, result: RolledBack, asked: PendingRequest) -> None:
        """Dispatch the request again once it has a rate limit slot or verified passwords; answer a refused batch."""
        self._undo_counts(asked)
        self._release(asked)
        if isinstance(result, Unadmitted):
            self._accounts.forget(asked.request.api_key)
            self._wait_for_slot(asked, result.account)
        elif isinstance(result, Unproven):
            self._verify_passwords(iter(result.checks), asked)
        elif isinstance(result, Refused):
            self._answer_undone(result.reply, asked)

    def _answer_undone(self, reply: Reply, asked: PendingRequest) -> None:
        """Answer a refused atomic batch; first store the refusal under its id, if it has an id and writes."""
        if asked.request.once is UNSET or not asked.writes or not may_store(reply):
            self._reply(reply, asked)
            return

        def work(transaction: Transaction) -> Reply | RolledBack:
            undone = Undone(self._batch_work(asked), reply)
            return self._answers.once(transaction, self._caller(transaction, asked, writes=True), asked.request, undone)

        self._when_done(self._submit(work, asked), asked, self._finish)

    def _verify_passwords(self, questions: Iterator[PasswordCheck], asked: PendingRequest) -> None:
        # One password after another: a batch waits in the queue for each of its passwords, as single requests would.
        for question in questions:
            proof = self._proof(question, asked.address)
            if not proof.done():
                self._when_done(proof, asked, partial(self._continue_verifying, question, questions))
                return
            if not self._verified(question, proof, asked):
                return
        # Start again with the first rule: files or the account may have changed during the hashing.
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
        """Return True if the request continues after a password check; else answer it with the check's error."""
        error = proof.exception()
        if isinstance(asked.request, Batch) and isinstance(error, CloudStoreError):
            asked.refused[question] = error
        elif error is not None:
            self._handle_error(error, asked)
            return False
        return True

    def _begin(self, asked: PendingRequest) -> Reply | RolledBack | Future[Any] | None:
        """Authenticate and execute the request; return None if it first waits for a rate limit slot."""
        request = asked.request
        if isinstance(request, Batch):
            check_ids(request)
        is_quick = asked.is_quick
        known = None if is_quick or asked.owner is not None else self._accounts.opened_lately(request.api_key)
        if known is not None:
            asked.account_id = known
            return self._execute(asked)
        with self._storage.read() as transaction:
            if is_quick:
                self._look_ahead(transaction, asked)
            caller = self._caller(transaction, asked)  # a refused caller never enters a queue
            comes_in_turn = not asked.admitted and bool(caller.account.limits.min_interval)
            if comes_in_turn:
                check_rate_limit(transaction, caller.account, self._clock.wall())
            elif is_quick:
                reply = self._answer_small(transaction, caller, asked)
                if reply is not None:
                    return reply
            elif isinstance(request, Request) and asked.writes:
                self._rules.check_name(request)
        account = caller.account
        asked.account_id = account.id
        if comes_in_turn:  # after the read: in memory, writers wait for readers
            self._wait_for_slot(asked, account)
            return None
        if asked.owner is None and not account.limits.min_interval and account.id != NOT_MADE:
            self._accounts.remember(request.api_key, account.id)
        return self._execute(asked)

    def _execute(self, asked: PendingRequest) -> Reply | RolledBack | Future[Any]:
        """Submit a write to the writer, a read to a thread for long reads; a read in memory runs on this thread."""
        if asked.writes:
            if isinstance(asked.request, Batch) and not (
                asked.request.atomic or asked.is_local or asked.batch is not None
            ):
                asked.batch = self._batch_work(asked)
                self._under_way.add(asked)
            return self._submit_write(asked)
        read = self._long_read(asked)
        if not asked.waits:
            return self._scans.submit_for(asked.account_id, self._read_on, asked, read)
        self._storage.check_can_wait()
        if self._storage.reads_in_turn:  # in memory: a signal handler's thread may hold the lock (an RLock)
            return self._read_all(asked, read)
        return self._scans.submit(self._read_all, asked, read)

    def _long_read(self, asked: PendingRequest) -> LongRead:
        request = asked.request
        max_bytes = self._settings.max_batch_reply_bytes
        steps: Steps
        if isinstance(request, Request):
            is_list = request.operation is Operation.LIST
            steps = self._rules.listing(request) if is_list else Whole(partial(self._load_large, asked))
        elif request.atomic or asked.waits:
            steps = Whole(self._batch_work(asked).do)
        else:
            steps = BatchOfReads(self._rules, request, asked.refused, max_bytes)
        # For a blocking caller, read one snapshot without pauses: no other client waits for the store.
        bounds = None if asked.waits else REMOTE if self._storage.waits else LOCAL
        admit = partial(self._admitted, asked=asked)
        return LongRead(steps, self._storage.read, admit, partial(self._grow, asked), bounds, self._clock.monotonic)

    def _load_large(self, asked: PendingRequest, transaction: Transaction, caller: Caller) -> Reply | RolledBack:
        assert isinstance(asked.request, Request)  # noqa: S101 - batches have other steps
        info = transaction.stat(caller.account.id, asked.request.name)
        if info is not None:
            self._grow(asked, caller, info.size)  # before reading the value
        return self._rules.answer(transaction, caller, asked.request)

    def _grow(self, asked: PendingRequest, caller: Caller, size: int, *, forced: bool = False) -> None:
        """Reserve memory for a reply of `size` bytes: twice the size, except for loads, as the parts are joined."""
        if asked.room is not None and size > SMALL_VALUE:
            asked.room.grow_to(caller.account.id, size if asked.is_quick else 2 * size, forced=forced)

    def _read_on(self, asked: PendingRequest, read: LongRead) -> Reply | RolledBack | Paused:
        """Run a slice of a long read; return the reply after the last slice, else `PAUSED`."""
        caller = read.go_on()
        if not isinstance(caller, Caller):
            return caller
        reply = read.reply()
        if isinstance(reply, Reply):
            self._undo_counts(asked)
            self._count(asked, caller)
        return reply

    def _read_all(self, asked: PendingRequest, read: LongRead) -> Reply | RolledBack:
        reply = self._read_on(asked, read)
        assert not isinstance(reply, Paused)  # noqa: S101 - a read without bounds never pauses
        return reply

    def _submit_write(self, asked: PendingRequest) -> Future[Reply | RolledBack | Piece | Needs]:
        request = asked.request
        if asked.batch is not None:
            return self._submit(partial(self._write_piece, asked), asked, asked.batch.size)
        size = 0
        for part in request.requests if isinstance(request, Batch) else (request,):
            size += 0 if part.value is UNSET else len(part.value)
        if asked.merged is not None:
            size = len(asked.merged.value)
        return self._submit(partial(self._write, asked), asked, size)

    def _submit(self, work: Callable[[Transaction], T], asked: PendingRequest, size: int = 0) -> Future[T]:
        """Queue work for the writer: in the account's queue, or a separate queue while this request holds that."""
        if asked.waits:
            return self._storage.run(work, asked.until)
        return self._storage.submit(work, (asked.account_id,) if asked.holds else asked.account_id, size)

    def _look_ahead(self, transaction: Transaction, asked: PendingRequest) -> None:
        """Save round trips to a storage over a network: prefetch the request's rows; a write also locks them."""
        if self._reads is None:
            return
        owner, request = asked.owner, asked.request
        account = self._accounts.hint(request.api_key) if owner is None else (None, owner.id)
        once = [request.once] if asked.writes and request.once is not UNSET else []
        values, max_bytes = None, None
        if isinstance(request, Batch):
            requests = request.requests if asked.batch is None else asked.batch.coming
            names = sorted({part.name for part in requests if part.operation is not Operation.LIST})
            if asked.batch is not None:
                once = [asked.batch.key] if asked.batch.key is not None else []
            once += [part.once for part in requests if part.once is not UNSET and part.writes]
        else:
            names = [request.name] if request.operation is not Operation.LIST else []
            values = request.operation in _OF_VALUES and request.if_not_version is UNSET
            if not (asked.is_local if asked.writes else asked.waits):
                max_bytes = MAX_INLINE_MERGE if asked.writes else SMALL_VALUE
        if account is None or not names:
            return
        transaction.look_ahead(LookAhead(*account, names, values=values, max_bytes=max_bytes, requests=once))

    def _caller(self, transaction: Transaction, asked: PendingRequest, *, writes: bool = False) -> Caller:
        if asked.owner is None:
            account = self._accounts.find(transaction, asked.request.api_key, asked.address, writes=writes)
            return Caller(account, asked.address)
        account = self._accounts.owned(transaction, asked.owner.id, asked.address)
        return Caller(account, asked.address, is_owner=True)

    def _wait_for_slot(self, asked: PendingRequest, account: Account) -> None:
        """Rate limit: take a slot in storage, shared by all processes, then dispatch the request again."""
        turn = self._storage.submit(lambda transaction: take_slot(transaction, account, self._clock.wall()), account.id)
        self._when_done(turn, asked, self._slot_taken)

    def _slot_taken(self, turn: Future[None], asked: PendingRequest) -> None:
        error = turn.exception()
        if error is not None:
            self._handle_error(error, asked)
            return
        asked.admitted = True
        self._dispatch(asked)

    def _admitted(
        self, transaction: Transaction, asked: PendingRequest, *, writes: bool = False
    ) -> Caller | Unadmitted:
        caller = self._caller(transaction, asked, writes=writes)
        if caller.account.limits.min_interval and not asked.admitted:
            return Unadmitted(caller.account)
        return caller

    def _write(self, asked: PendingRequest, transaction: Transaction) -> Reply | RolledBack | Needs:
        """Do a write; return `Needs.MERGE` for a large merge, to be computed outside of the transaction first."""
        self._look_ahead(transaction, asked)
        caller = self._admitted(transaction, asked, writes=True)
        if isinstance(caller, Unadmitted):
            return caller
        request = asked.request
        if not asked.is_local and isinstance(request, Request):
            caller.merged = asked.merged
            is_new = request.once is UNSET or transaction.answer(caller.account.id, request.once) is None
            must_compute = is_new and self._rules.must_compute(transaction, caller, request)
            if isinstance(must_compute, Unproven):
                return must_compute
            if must_compute:
                self._hold(asked, caller)
                return Needs.MERGE
        return self._answer(transaction, caller, asked)

    def _write_piece(self, asked: PendingRequest, transaction: Transaction) -> Piece | Reply | RolledBack:
        """Do the next piece of a batch."""
        assert asked.batch is not None  # noqa: S101 - only batches have pieces
        self._undo_counts(asked)  # a storage may roll back and run the work again
        self._look_ahead(transaction, asked)
        caller = self._admitted(transaction, asked, writes=True)
        if isinstance(caller, Unadmitted):
            return caller
        caller.merged = asked.merged
        others_wait = partial(self._storage.others_wait, caller.account.id)
        budget = Budget(self._clock.monotonic, others_wait, asked.batch.most)
        piece = asked.batch.piece(transaction, caller, budget)
        if isinstance(piece, RolledBack):
            return piece
        if isinstance(piece, Piece) and piece.needs is Needs.MERGE:
            self._hold(asked, caller)
        self._usage.count(caller.account.id, "data", *caller.used)
        asked.caller = caller
        return piece

    def _hold(self, asked: PendingRequest, caller: Caller) -> None:
        """Before the last computation of a merge, hold the account's other writes: they caused the conflicts."""
        asked.account_id = caller.account.id
        if asked.computed == MAX_COMPUTED:
            asked.holds = True
            self._storage.hold(caller.account.id)

    def _answer(self, transaction: Transaction, caller: Caller, asked: PendingRequest) -> Reply | RolledBack:
        request = asked.request
        reply: Reply | RolledBack
        self._undo_counts(asked)  # a storage may roll back and run the work again
        if asked.writes and request.once is not UNSET:
            reply = self._answers.once(transaction, caller, request, self._work(asked))
        elif isinstance(request, Request):
            reply = self._rules.answer(transaction, caller, request)
        else:
            reply = self._batch_work(asked).do(transaction, caller)
        if isinstance(reply, Reply):
            self._count(asked, caller)
        return reply

    def _count(self, asked: PendingRequest, caller: Caller) -> None:
        """Count the accesses of the answered try of the request."""
        self._usage.count(caller.account.id, "data", *caller.used)
        asked.caller = caller

    def _work(self, asked: PendingRequest) -> Repeatable[RolledBack]:
        request = asked.request
        if isinstance(request, Request):
            return Single(self._rules, request)
        return self._batch_work(asked)

    def _batch_work(self, asked: PendingRequest) -> BatchWork:
        assert isinstance(asked.request, Batch)  # noqa: S101 - the caller asked
        is_bounded = asked.request.atomic and asked.writes and not asked.is_local
        return BatchWork(
            self._rules,
            self._answers,
            asked.request,
            asked.refused,
            self._settings.max_batch_reply_bytes,
            self._settings.max_atomic_bytes if is_bounded else None,
            is_local=asked.is_local,
        )

    def _undo_counts(self, asked: PendingRequest) -> None:
        """Subtract the accesses counted for an earlier try of the request."""
        caller, asked.caller = asked.caller, None
        if caller is not None:
            self._usage.count(caller.account.id, "data", *caller.used, times=-1)


def _is_divisible(asked: PendingRequest) -> bool:
    """Return True for a batch that may be done in pieces; merges in pieces need processes, which no program expects."""
    request = asked.request
    if not isinstance(request, Batch) or request.atomic or not asked.writes:
        return False
    return not asked.is_local or all(part.operation is not Operation.MERGE for part in request.requests)


def _strangers(address: str) -> tuple[str, str]:
    """Return the queue for requests with unknown API keys: the same for all keys guessed from a client network."""
    return "strangers", network_of(address)


def _wait_until(future: Future[T], until: float) -> None:
    """Wait for a future; raise `TimedOutError` at monotonic time `until`, with `sent` False if it was cancelled."""
    if not wait_for(future, None if until == math.inf else until - time.monotonic()):
        sentence = "The store was busy all the time; try again, or give a longer deadline."
        raise TimedOutError(sentence, sent=not future.cancel())
