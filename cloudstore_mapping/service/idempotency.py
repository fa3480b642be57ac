"""Idempotency: store the reply to each request id, and replay it for duplicates."""

from __future__ import annotations

import hashlib
import itertools
import math
from http import HTTPStatus
from typing import Final, Protocol, TypeVar

from msgspec import UNSET
from msgspec.structs import replace

from cloudstore_mapping.errors import CloudStoreError, IdMismatchError, ProtocolError
from cloudstore_mapping.service.accounts import Caller
from cloudstore_mapping.service.operations import Operations
from cloudstore_mapping.service.quotas import Clock, check_freed, check_replies
from cloudstore_mapping.service.security import Unproven
from cloudstore_mapping.service.storage.base import RolledBack
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.wire import (
    Batch,
    Operation,
    Reply,
    Request,
    decode_reply,
    encode_reply,
    encode_request,
    failure,
)

#: Minimum seconds before a stored reply expires.
REMEMBERED_FOR: Final = 900.0
#: Maximum age of the newest number that a write goes by, in seconds, and minimum time between two notes of it.
MAX_AGE: Final = 20.0
NOTE_AFTER: Final = 60.0
#: Maximum seconds between two looks; after a longer pause the notes begin anew.
MAX_PAUSE: Final = 120.0
#: Maximum seconds from the look at the newest number to the commit of a reply.
SLACK: Final = 40.0
#: Difference of a reply's number from the newest one, if the clock is behind it. Numbers have 16 digits.
STEP: Final = 0.001
#: Maximum number of replies, the newest, that look expired at a start of the service and are kept nevertheless.
KEPT_AT_START: Final = 1_000_000
#: Delete expired replies after each `FORGET_EVERY` new ones, at most `FORGET_AT_ONCE` at a time. More are deleted than
#: added, so their number stays bounded; no deletion takes long.
FORGET_EVERY: Final = 64
FORGET_AT_ONCE: Final = 256


#: Refusals with status 200 that aren't stored. A client that is refused for its account's limits repeats its requests,
#: each with a new id, so their replies would take the room that is missing.
_TEMPORARY: Final = frozenset({"Locked", "TooBig", "TooManyFiles", "DailyLimit"})

R_co = TypeVar("R_co", bound=RolledBack, covariant=True)


class Repeatable(Protocol[R_co]):
    """Work of a request with an id, to be applied once."""

    def do(self, transaction: Transaction, caller: Caller) -> Reply | R_co:
        """Execute the request."""
        ...

    def kept(self, reply: Reply) -> Reply:
        """Return the reply to store, without loaded values."""
        ...

    def replay(self, transaction: Transaction, caller: Caller, before: Reply) -> Reply | R_co:
        """Check passwords again, and return the reply to a duplicate, made from the stored reply `before`."""
        ...


class Single:
    """Work of a single request."""

    def __init__(self, rules: Operations, request: Request) -> None:
        self._rules = rules
        self._request = request

    def do(self, transaction: Transaction, caller: Caller) -> Reply | Unproven:
        """Execute the request."""
        return self._rules.answer(transaction, caller, self._request)

    def kept(self, reply: Reply) -> Reply:
        """Return the whole reply, to be stored: only writes have ids, so it holds no loaded value."""
        return reply

    def replay(self, transaction: Transaction, caller: Caller, before: Reply) -> Reply | Unproven:
        """Return the stored reply; raise `LockedError` if the file's password has changed."""
        unproven = self._rules.check_replay(transaction, caller, self._request)
        return before if unproven is None else unproven


class IdempotencyStore:
    """
    Applies a request with an id only once. Ids are unique per account, for single requests and batches together.

    The clock may be set, so replies expire by their number. A reply's number is the time, or a little more than the
    newest number if that is larger. Each process notes the newest number every minute; it deletes the replies up to a
    number that it noted `REMEMBERED_FOR` seconds ago, by the monotonic clock. Until it has such a note, after a start
    or after standing still, it keeps the replies, but of those that look expired at most `KEPT_AT_START`.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._remembered = itertools.count(1)
        #: Times by the monotonic clock, each with the newest number at that time, and the last look. Replaced as a
        #: whole instead of locked: an interrupt may leave a caller's lock behind. Of two looks at once one may be lost.
        self._notes: tuple[tuple[float, float], ...] = ()
        self._looked: tuple[float, float] = (-math.inf, -math.inf)
        #: Number before which replies are deleted without a note; None if not yet known.
        self._kept_from: float | None = None

    def once(
        self,
        transaction: Transaction,
        caller: Caller,
        request: Request | Batch,
        work: Repeatable[R_co],
        *,
        key: str | None = None,
        print_: bytes | None = None,
    ) -> Reply | R_co:
        """
        Replay the stored reply to the request's id, or do the work and store its reply, even a refusal.

        `key` replaces the id for a part of the request, a piece of a batch. `print_` is the request's fingerprint, if
        already computed.

        A temporary refusal isn't stored but raised: a missing or wrong password, a limit, a busy service. A
        `RolledBack` of the work is returned, and nothing is stored. Raises `IdMismatchError` if the id was used for
        another request. Replies stored by earlier releases have no
        fingerprint; they are replayed to any request of the same kind (single or batch).
        """
        assert request.once is not UNSET  # noqa: S101 - the caller asks first
        key = request.once if key is None else key
        print_ = fingerprint(request) if print_ is None else print_
        before = transaction.answer(caller.account.id, key)
        if before is not None:
            stored = decode_reply(before.reply)
            if before.fingerprint is None:
                is_same = stored.error is not None or isinstance(request, Batch) == (stored.data is not UNSET)
            else:
                is_same = before.fingerprint == print_
            if not is_same:
                raise mismatch()
            return work.replay(transaction, caller, stored)
        full = check_replies(transaction, caller.account)
        try:
            reply = work.do(transaction, caller)
            if isinstance(reply, RolledBack):
                return reply
        except CloudStoreError as error:
            reply = failure(error)
            if not may_store(reply):
                raise
        kept = encode_reply(work.kept(reply))
        if full is not None and not only_deletes(request):
            check_freed(transaction, caller.account, full, len(key.encode()) + len(kept))
        number = max(self._clock.wall(), self._newest(transaction) + STEP)
        transaction.keep_answer(caller.account.id, key, kept, number, print_)
        if next(self._remembered) % FORGET_EVERY == 0:
            self.forget(transaction)
        return reply

    def forget(self, transaction: Transaction) -> None:
        """Delete up to `FORGET_AT_ONCE` expired replies, oldest first."""
        self._newest(transaction)
        before = self._expired_before(transaction)
        if before > -math.inf:
            transaction.forget_answers(before, FORGET_AT_ONCE)

    def look(self, transaction: Transaction) -> bool:
        """Note the newest number, and return True if replies have expired; call it every few seconds."""
        self._look_up(transaction)
        return transaction.has_old_answers(self._expired_before(transaction))

    def _newest(self, transaction: Transaction) -> float:
        """Return a number at least as large as those of all replies stored until `MAX_AGE` seconds ago."""
        looked_at, newest = self._looked
        return newest if self._clock.monotonic() < looked_at + MAX_AGE else self._look_up(transaction)

    def _look_up(self, transaction: Transaction) -> float:
        """Return the newest number, and note it."""
        newest = transaction.newest_answer()
        now = self._clock.monotonic()
        # Numbers larger than the newest one have been deleted, and may be given again.
        notes = tuple(note for note in self._notes if note[1] <= newest)
        if now > self._looked[0] + MAX_PAUSE:
            notes, self._kept_from = (), None
        if not notes or now >= notes[-1][0] + NOTE_AFTER:
            # Keep one that is old enough, and those after it.
            oldest = now - REMEMBERED_FOR - SLACK
            first = max((index for index, (noted_at, _) in enumerate(notes) if noted_at <= oldest), default=0)
            notes = (*notes[first:], (now, newest))
        self._notes, self._looked = notes, (now, newest)
        return newest

    def _expired_before(self, transaction: Transaction) -> float:
        """Return the number before which replies have expired."""
        oldest = self._clock.monotonic() - REMEMBERED_FOR - SLACK
        expired = [number for noted_at, number in self._notes if noted_at <= oldest]
        if expired:
            return expired[-1] + STEP / 2
        if self._kept_from is None:
            self._kept_from = transaction.answered_before(self._clock.wall() - REMEMBERED_FOR, KEPT_AT_START)
        return self._kept_from


def only_deletes(request: Request | Batch) -> bool:
    """Return True for a delete, or a batch of only deletes."""
    parts = request.requests if isinstance(request, Batch) else (request,)
    return all(part.operation is Operation.DELETE for part in parts)


def fingerprint(request: Request | Batch) -> bytes:
    """Return a SHA-256 of all fields of a request except API key, passwords and ids."""
    if isinstance(request, Batch):
        parts = [_plain(part) for part in request.requests]
        return _digest(replace(request, api_key="", once=UNSET, requests=parts))
    return _digest(_plain(request))


def _plain(request: Request) -> Request:
    return replace(request, api_key="", password=None, data_password=UNSET, once=UNSET)


def _digest(request: Request | Batch) -> bytes:
    return hashlib.sha256(encode_request(request)).digest()


def may_store(refusal: Reply) -> bool:
    """Return True for a permanent refusal; with a password, more room or a service at leisure others may pass."""
    return refusal.status == HTTPStatus.OK and refusal.error not in _TEMPORARY


def mismatch() -> IdMismatchError:
    """Return the error for an id already used for another request."""
    return IdMismatchError("This request id was used for another request; draw a new id for each request.")


def check_ids(batch: Batch) -> None:
    """Raise `ProtocolError` if a request of the batch has the batch's own id."""
    for number, part in enumerate(batch.requests, 1):
        if batch.once is not UNSET and part.once == batch.once:
            raise ProtocolError(
                f"Request {number} of the batch has the id of the batch itself; give each an id of its own.",
                error="BadRequest",
            )
