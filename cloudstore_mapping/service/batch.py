"""Batch requests: run an atomic batch in a single bounded transaction, other batches in pieces (a transaction each)."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
from msgspec import UNSET

from cloudstore_mapping.errors import CloudStoreError, ProtocolError, TooBigError
from cloudstore_mapping.service.accounts import Caller
from cloudstore_mapping.service.idempotency import IdempotencyStore, Single, fingerprint, mismatch
from cloudstore_mapping.service.operations import Operations
from cloudstore_mapping.service.security import PasswordCheck, Unproven
from cloudstore_mapping.service.storage.base import MAX_BYTES, RolledBack
from cloudstore_mapping.service.storage.sql import LookAhead, Transaction
from cloudstore_mapping.wire import (
    Batch,
    Operation,
    Reply,
    Request,
    decode_replies,
    encode_replies,
    encode_value,
    failure,
    for_operator,
    success,
)

#: Maximum size of a prefetched value in bytes.
MAX_AHEAD: Final = 16 * 2**10

#: Number of files prefetched together in a piece.
LOOK_AHEAD: Final = 256
#: Seconds of work per piece: while other work waits for the writer, and while none waits.
PIECE_SECONDS: Final = 0.003
LONE_PIECE_SECONDS: Final = 0.1
#: Maximum number of requests in a piece sharing its transaction with other work: this work waits for the piece.
MAX_SHARING: Final = 32
#: Maximum number of requests in a piece after a full disk refused a larger one; each further refusal divides it.
MOST_ON_FULL_DISK: Final = 64
SMALLER: Final = 8
#: Weight of a merge's bytes in an atomic batch: unlike a save's, they are decoded, merged and encoded.
MERGE_WEIGHT: Final = 10

_OF_VALUES: Final = frozenset({Operation.LOAD, Operation.MERGE})
_LARGE: Final = frozenset({Operation.LOAD, Operation.LIST})
#: Placeholder stored in place of the reply to a read.
_READ_AGAIN: Final = success("")


@dataclass(frozen=True)
class Refused(RolledBack):
    """Result of an atomic batch with a refused request: roll the batch back and answer with `reply`."""

    reply: Reply


class Needs(enum.Enum):
    """Step outside of a write transaction before a batch can continue."""

    MERGE = enum.auto()
    LISTING = enum.auto()


class Budget:
    """
    Limits on the time and bytes of a piece of a batch.

    While other work waits, a piece ends after `PIECE_SECONDS`; else after `LONE_PIECE_SECONDS`, as each piece costs a
    commit. It always ends after `MAX_BYTES` bytes, and after `most` requests.
    """

    def __init__(self, clock: Callable[[], float], others_wait: Callable[[], bool], most: int | None = None) -> None:
        self._clock = clock
        self._others_wait = others_wait
        self._left = most
        self._began = clock()
        self._bytes = 0

    def take(self, size: int) -> None:
        """Count a request, and the bytes read or written by it."""
        self._bytes += size
        if self._left is not None:
            self._left -= 1

    def is_used(self) -> bool:
        """Return True if the piece must end."""
        if self._left is not None and self._left <= 0:
            return True
        seconds = self._clock() - self._began
        if self._bytes >= MAX_BYTES or seconds >= LONE_PIECE_SECONDS:
            return True
        return seconds >= PIECE_SECONDS and self._others_wait()


@dataclass
class _Room:
    """Bytes left in a reply for the results of loads and lists."""

    left: int
    is_full: bool = False


@dataclass(frozen=True)
class Piece:
    """Replies to some consecutive requests of a batch, done in one transaction, and the step needed next, if any."""

    replies: list[Reply]
    room: _Room
    needs: Needs | None = None


class BatchWork:
    """
    Execution of a batch, in one transaction (`do`) or in pieces (`piece`, `advance`).

    An atomic batch runs in one transaction. Other work waits for it, so it is refused with `TooBigError` if its values
    take more than `max_atomic` bytes. Any other batch runs in pieces, one transaction each, and other accounts get
    their turn in between: `piece` runs the next piece, and `advance` adds its replies after the commit.

    Idempotency: each piece stores its replies in its own transaction. The first piece stores them under the batch's id,
    each later piece under a key made of the id and the index of its first request. If an interrupted batch is sent
    again, it finds each finished piece, replays it and continues after the last; two copies sent at the same time use
    the same keys. Listings write nothing, so they run outside of pieces.

    `refused` holds the errors of wrong passwords. Once the results of loads and lists take `max_bytes` bytes, further
    loads and lists are refused.
    """

    def __init__(
        self,
        rules: Operations,
        answers: IdempotencyStore,
        batch: Batch,
        refused: Mapping[PasswordCheck, CloudStoreError],
        max_bytes: int,
        max_atomic: int | None = None,
        *,
        is_local: bool = False,
    ) -> None:
        self._is_local = is_local
        self._rules = rules
        self._answers = answers
        self._batch = batch
        self._refused = refused
        self._max_atomic = max_atomic
        self._room = _Room(max_bytes)
        #: Replies of all committed pieces so far.
        self.replies: list[Reply] = []
        #: Maximum number of requests in a piece on a full disk, else None.
        self.most: int | None = None
        self._is_stored = False
        self._print: bytes | None = None
        self._sizes = [0 if part.value is UNSET else len(part.value) for part in batch.requests]
        self._size_left = sum(self._sizes)

    def do(self, transaction: Transaction, caller: Caller) -> Reply | RolledBack:
        """
        Do all requests in order; a refused request doesn't affect the others, except in an atomic batch.

        Returns `Refused` for the first refusal in an atomic batch, and `Unproven` with all passwords to hash first.
        Requests after the first such password are tried too; else a batch would restart once per password.
        """
        weighed = 0

        def answer(_: int, request: Request) -> Reply | Unproven:
            nonlocal weighed
            if self._max_atomic is None:
                return self._answer(transaction, caller, request, self._room)
            weighed += self._weight(transaction, caller, request)
            self._check_weight(weighed)
            reply = self._answer(transaction, caller, request, self._room)
            weighed += len(reply.content) if isinstance(reply, Reply) and request.operation in _LARGE else 0
            self._check_weight(weighed)
            return reply

        piece = self._do(transaction, caller, answer)
        if isinstance(piece, RolledBack):
            return piece
        self.replies = piece.replies
        return self.reply()

    def _weight(self, transaction: Transaction, caller: Caller, request: Request) -> int:
        """Return the weight of a request in an atomic batch, in bytes; raise `ProtocolError` for a listing."""
        if request.operation is Operation.LIST:
            raise ProtocolError("An atomic batch holds no listings; list the names before it.", error="BadRequest")
        size = 0 if request.value is UNSET else len(request.value)
        if request.operation is not Operation.MERGE:
            return size
        return MERGE_WEIGHT * (size + self._rules.stored_size(transaction, caller, request.name))

    def _check_weight(self, weighed: int) -> None:
        if self._max_atomic is not None and weighed > self._max_atomic:
            raise TooBigError(
                f"The values of the atomic batch take more than {self._max_atomic:,} bytes (the service's "
                f"max_atomic_bytes; those of merges count {MERGE_WEIGHT} times); split the batch."
            )

    def kept(self, reply: Reply) -> Reply:
        """Return the reply to store: replies to reads are left out, and read again for a duplicate."""
        return reply if reply.error is not None else self.stored(0, self.replies)

    def stored(self, start: int, replies: list[Reply]) -> Reply:
        """Return the replies to the requests from index `start` on, in the form to store."""
        parts = zip(self._batch.requests[start:], replies, strict=False)
        return success("", encode_replies([reply if request.writes else _READ_AGAIN for request, reply in parts]))

    def replay(self, transaction: Transaction, caller: Caller, before: Reply) -> Reply | RolledBack:
        """
        Return the stored replies to the writes, and repeat the batch's reads.

        Repeated reads ignore `if_version`: the batch was done, and the files may have changed since. Passwords are
        checked again; errors as in `do`. Raises `IdMismatchError` for another batch.
        """
        if before.error is not None:
            return before
        stored = decode_replies(before.content)
        if len(stored) != len(self._batch.requests):  # stored by an earlier release, for another batch
            raise mismatch()
        piece = self.again(transaction, caller, stored)
        return piece if isinstance(piece, RolledBack) else success("", encode_replies(piece.replies))

    def again(self, transaction: Transaction, caller: Caller, stored: list[Reply]) -> Piece | RolledBack:
        """Check the passwords of the next requests again, return their stored replies, and repeat their reads."""
        start = len(self.replies)
        if len(stored) == len(self._batch.requests):
            stored = stored[start:]  # an earlier release stored all replies together
        if len(stored) > len(self._batch.requests) - start:
            raise mismatch()
        room = replace(self._room)

        def again(index: int, request: Request) -> Reply | Unproven:
            if not request.writes:
                return self._sized(transaction, caller, msgspec.structs.replace(request, if_version=UNSET), room)
            unproven = self._rules.check_replay(transaction, caller, request)
            return stored[index - start] if unproven is None else unproven

        return self._do(transaction, caller, again, end=start + len(stored), room=room, is_replay=True)

    @property
    def is_done(self) -> bool:
        """True once all pieces are committed."""
        return len(self.replies) == len(self._batch.requests)

    @property
    def size(self) -> int:
        """Approximate bytes written by the next piece; with many requests left, enough for a transaction of its own."""
        if len(self._batch.requests) - len(self.replies) > MAX_SHARING:
            return MAX_BYTES + 1
        return min(self._size_left, max(MAX_BYTES, self._sizes[len(self.replies)]))

    @property
    def next_request(self) -> Request:
        """First request still to do."""
        return self._batch.requests[len(self.replies)]

    def reply(self) -> Reply:
        """Return the reply to a finished batch."""
        return self._reply_of(self.replies)

    def _reply_of(self, replies: list[Reply]) -> Reply:
        """Return the reply with these replies, each in the words for its reader; its `problem` is the first one."""
        problem = next((reply.problem for reply in replies if reply.problem is not None), None)
        if problem is None:
            return success("", encode_replies(replies))
        if self._is_local:
            return success("", encode_replies(map(for_operator, replies)))
        return msgspec.structs.replace(success("", encode_replies(replies)), problem=problem)

    def broken_off(self, error: CloudStoreError) -> Reply:
        """
        Return the reply to an interrupted batch.

        Without an id, return the replies so far, and the error for each of the other requests. With an id, return only
        the error: the client sends the batch again, and it continues after the last committed piece.
        """
        if not self.replies or self._batch.once is not UNSET:
            return failure(error)
        rest = len(self._batch.requests) - len(self.replies)
        return self._reply_of([*self.replies, *[failure(error)] * rest])

    def use_smaller_pieces(self) -> bool:
        """Use pieces of fewer requests from now on; return False if the next piece has one request already."""
        left = len(self._batch.requests) - len(self.replies)
        before = left if self.most is None else min(left, self.most)
        self.most = max(1, min(MOST_ON_FULL_DISK, before // SMALLER))
        return before > 1

    def refused(self, error: CloudStoreError) -> Piece:
        """Return a piece that refuses the next request."""
        return Piece([failure(error)], self._room)

    def advance(self, piece: Piece) -> None:
        """Add the replies of a piece after its commit, or of listings after reading them."""
        start = len(self.replies)
        self._size_left -= sum(self._sizes[start : start + len(piece.replies)])
        if piece.replies and self._batch.requests[start].operation is not Operation.LIST:
            self._is_stored = True
        self.replies += piece.replies
        self._room = piece.room

    def piece(self, transaction: Transaction, caller: Caller, budget: Budget) -> Piece | Reply | RolledBack:
        """
        Do the next requests until the budget is used or the batch needs a listing or large merge; store their replies.

        Returns the stored reply to the whole batch if its id has such a reply, and `Unproven` for passwords to hash.
        """
        request = self.next_request
        key = self._key()
        if request.operation is Operation.LIST:
            return Piece([], self._room, Needs.LISTING)
        is_new = key is None or transaction.answer(caller.account.id, key) is None
        needs = self._needs_merge(transaction, caller, request) if is_new else None
        if needs is not None:
            return needs if isinstance(needs, RolledBack) else Piece([], self._room, needs)
        if key is None:
            return self.new_piece(transaction, caller, budget)
        if self._print is None:
            self._print = fingerprint(self._batch)
        work = _PieceWork(self, budget)
        reply = self._answers.once(transaction, caller, self._batch, work, key=key, print_=self._print)
        return reply if work.done is None or isinstance(reply, RolledBack) else work.done

    @property
    def coming(self) -> Sequence[Request]:
        """First requests of the next piece, up to `LOOK_AHEAD`, for prefetching."""
        start = len(self.replies)
        return self._batch.requests[start : start + LOOK_AHEAD]

    @property
    def key(self) -> str | None:
        """Idempotency key of the next piece; None for a batch without an id."""
        return self._key()

    def _key(self) -> str | None:
        """Return the idempotency key of the next piece, longer than any request id; None for a batch without an id."""
        once = self._batch.once
        if once is UNSET or not self._is_stored:
            return None if once is UNSET else once
        return f"piece:{hashlib.sha256(once.encode()).hexdigest()}:{len(self.replies)}"

    def listings(self, transaction: Transaction, caller: Caller) -> Piece | RolledBack:
        """Do the listings up to the next other request, in a read transaction."""
        start = len(self.replies)
        room = replace(self._room)
        requests = self._batch.requests
        others = (index for index in range(start, len(requests)) if requests[index].operation is not Operation.LIST)
        return self._do(
            transaction,
            caller,
            lambda _, request: self._sized(transaction, caller, request, room),
            end=next(others, len(requests)),
            room=room,
        )

    def new_piece(self, transaction: Transaction, caller: Caller, budget: Budget) -> Piece | RolledBack:
        """Do the next requests until the budget is used or the batch needs a listing or large merge."""
        room = replace(self._room)

        def answer(index: int, request: Request) -> Reply | Unproven:
            reply = self._answer(transaction, caller, request, room)
            budget.take(self._sizes[index] + (len(reply.content) if isinstance(reply, Reply) else 0))
            return reply

        return self._do(transaction, caller, answer, budget=budget, room=room)

    def _do(
        self,
        transaction: Transaction,
        caller: Caller,
        answer: Callable[[int, Request], Reply | Unproven],
        *,
        end: int | None = None,
        budget: Budget | None = None,
        room: _Room | None = None,
        is_replay: bool = False,
    ) -> Piece | RolledBack:
        """Answer the next requests with `answer`; a budget ends the piece as in `new_piece`."""
        replies: list[Reply] = []
        unproven: dict[PasswordCheck, None] = {}
        requests = self._batch.requests
        start = looked_at = len(self.replies)
        needs = None
        for index in range(start, len(requests) if end is None else end):
            request = requests[index]
            if index == looked_at:
                looked_at = len(requests) if budget is None else min(index + LOOK_AHEAD, len(requests))
                self._look_ahead(transaction, caller, requests[index:looked_at])
            try:
                reply: Reply | Unproven | None = None
                if budget is not None and index > start:
                    if budget.is_used():
                        break
                    found = self._needs(transaction, caller, request)
                    if isinstance(found, Needs):
                        needs = found
                        break
                    reply = found
                if reply is None:
                    reply = answer(index, request)
            except CloudStoreError as error:
                reply = failure(error)
            if isinstance(reply, Unproven):
                (check,) = reply.checks
                if check not in self._refused:
                    unproven[check] = None
                    continue
                reply = failure(self._refused[check])
            if self._batch.atomic and reply.error is not None and (request.writes or not is_replay):
                if unproven:
                    break  # the refusal may only result from the skipped requests before it
                which = f"Request {index + 1} of {len(requests)}: "
                problem = None if reply.problem is None else which + reply.problem
                message = encode_value(which + reply.sentence)
                return Refused(msgspec.structs.replace(reply, message=message, problem=problem))
            replies.append(reply)
        if unproven:
            return Unproven(tuple(unproven))
        return Piece(replies, self._room if room is None else room, needs)

    def _needs(self, transaction: Transaction, caller: Caller, request: Request) -> Needs | Unproven | None:
        if request.operation is Operation.LIST:
            return Needs.LISTING
        return self._needs_merge(transaction, caller, request)

    def _needs_merge(self, transaction: Transaction, caller: Caller, request: Request) -> Needs | Unproven | None:
        if request.operation is not Operation.MERGE:
            return None
        if request.once is not UNSET and transaction.answer(caller.account.id, request.once) is not None:
            return None
        must = self._rules.must_compute(transaction, caller, request)
        return must if isinstance(must, Unproven) else Needs.MERGE if must else None

    def _look_ahead(self, transaction: Transaction, caller: Caller, requests: Sequence[Request]) -> None:
        """Prefetch the files of the requests in at most two queries; leave out large values to bound the memory."""
        values: dict[str, None] = {}
        infos: dict[str, None] = {}
        names = sorted({request.name for request in requests if request.operation is not Operation.LIST})
        once = [request.once for request in requests if request.once is not UNSET and request.writes]
        if names:
            transaction.look_ahead(LookAhead(None, caller.account.id, names, requests=once))
        for request in requests:
            name, operation = request.name, request.operation
            if name not in values and name not in infos and operation is not Operation.LIST:
                (values if operation in _OF_VALUES and request.if_not_version is UNSET else infos)[name] = None
        if values:
            caller.ahead |= transaction.get_many(caller.account.id, [*values], MAX_AHEAD)
        if infos:
            caller.ahead |= transaction.stat_many(caller.account.id, [*infos])

    def _answer(self, transaction: Transaction, caller: Caller, request: Request, room: _Room) -> Reply | Unproven:
        if request.once is not UNSET and request.writes:
            return self._answers.once(transaction, caller, request, Single(self._rules, request))
        return self._sized(transaction, caller, request, room)

    def _sized(self, transaction: Transaction, caller: Caller, request: Request, room: _Room) -> Reply | Unproven:
        if request.operation not in _LARGE:
            return self._rules.answer(transaction, caller, request)
        if not room.is_full:
            reply = self._rules.answer(transaction, caller, request)
            if isinstance(reply, Unproven):
                return reply
            size = len(reply.content)
            if size <= room.left:
                room.left -= size
                return reply
            room.is_full = True
        raise TooBigError(
            "The reply to the batch is too large (the service's max_batch_reply_bytes); ask for less at once."
        )


class _PieceWork:
    """Work of `IdempotencyStore.once` for a piece of a batch; `done` is its outcome."""

    def __init__(self, batch: BatchWork, budget: Budget) -> None:
        self._batch = batch
        self._budget = budget
        self.done: Piece | None = None

    def do(self, transaction: Transaction, caller: Caller) -> Reply | RolledBack:
        """Do a new piece."""
        return self._note(self._batch.new_piece(transaction, caller, self._budget), success(""))

    def kept(self, _: Reply) -> Reply:
        """Return the piece's replies in the form to store."""
        assert self.done is not None  # noqa: S101 - `do` has set it
        return self._batch.stored(len(self._batch.replies), self.done.replies)

    def replay(self, transaction: Transaction, caller: Caller, before: Reply) -> Reply | RolledBack:
        """Rebuild an already committed piece from its stored replies."""
        if before.error is not None:
            return before
        return self._note(self._batch.again(transaction, caller, decode_replies(before.content)), before)

    def _note(self, piece: Piece | RolledBack, reply: Reply) -> Reply | RolledBack:
        if isinstance(piece, RolledBack):
            return piece
        self.done = piece
        return reply


class Undone:
    """Work of `IdempotencyStore.once` for storing the refusal of an atomic batch after its rollback."""

    def __init__(self, work: BatchWork, reply: Reply) -> None:
        self._work = work
        self._reply = reply

    def do(self, _transaction: Transaction, _caller: Caller) -> Reply:
        """Return the refusal."""
        return self._reply

    def kept(self, reply: Reply) -> Reply:
        """Return the whole refusal, to be stored."""
        return reply

    def replay(self, transaction: Transaction, caller: Caller, before: Reply) -> Reply | RolledBack:
        """Return the reply to a duplicate of the batch, done meanwhile."""
        return self._work.replay(transaction, caller, before)
