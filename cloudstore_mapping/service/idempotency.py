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
from cloudstore_mapping.service.quotas import MAX_AHEAD, Clock, SteadyClock, check_freed, check_replies
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
#: Maximum number of replies, the newest, that look expired at a start of the service and are kept nevertheless.
KEPT_AT_START: Final = 1_000_000
#: Delete expired replies after each `FORGET_EVERY` new ones, at most `FORGET_AT_ONCE` at a time. More are deleted than
#: added, so their number stays bounded; no deletion takes long.
FORGET_EVERY: Final = 64
FORGET_AT_ONCE: Final = 256


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

    Stored times are of the wall clock, which may be set, even between two runs of the service. So replies are kept for
    `REMEMBERED_FOR` seconds by a clock without the steps that this process has seen, and for as long after its start
    (then at most `KEPT_AT_START`). A process started while the clock is behind dates its replies too early.
    """

    def __init__(self, clock: Clock) -> None:
        self._monotonic = clock.monotonic
        #: For all that expires; `look` reads it every few seconds.
        self.clock = SteadyClock(clock, REMEMBERED_FOR)
        self._remembered = itertools.count(1)
        self._trusts_from = clock.monotonic() + REMEMBERED_FOR
        #: Time before which replies are deleted until `_trusts_from`; None if not yet known.
        self._kept_from: float | None = None
        #: Whether `look` found replies dated ahead.
        self._redates = False

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

        A temporary refusal isn't stored but raised: a missing or wrong password, a busy service. A `RolledBack` of the
        work is returned, and nothing is stored. Raises
        `IdMismatchError` if the id was used for another request. Replies stored by earlier releases have no
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
        # Another worker may not have seen the clock set back and forward again, so the date is the latest possible one.
        now = self.clock.read().latest
        kept = encode_reply(work.kept(reply))
        if full is not None and not only_deletes(request):
            check_freed(transaction, caller.account, full, len(key.encode()) + len(kept))
        transaction.keep_answer(caller.account.id, key, kept, now, print_)
        if next(self._remembered) % FORGET_EVERY == 0:
            self.forget(transaction)
        return reply

    def forget(self, transaction: Transaction) -> None:
        """
        Delete up to `FORGET_AT_ONCE` expired replies, oldest first.

        Replies dated ahead, by a clock that was wrong, get the present time instead, and expire after it.
        """
        now, before = self._times(transaction)
        if self._redates:
            transaction.redate_answers(now + MAX_AHEAD, now, FORGET_AT_ONCE)
        if before > -math.inf:
            transaction.forget_answers(before, FORGET_AT_ONCE)

    def look(self, transaction: Transaction) -> bool:
        """Return True if `forget` has something to do; call it every few seconds, for it follows the clock too."""
        now, before = self._times(transaction)
        self._redates = transaction.has_answers_after(now + MAX_AHEAD)
        return self._redates or transaction.has_old_answers(before)

    def _times(self, transaction: Transaction) -> tuple[float, float]:
        """Return the time of new replies, and the time before which replies are expired."""
        times = self.clock.read()
        if self._monotonic() >= self._trusts_from:
            return times.latest, times.earliest - REMEMBERED_FOR
        if self._kept_from is None:
            self._kept_from = transaction.answered_before(times.now - REMEMBERED_FOR, KEPT_AT_START)
        return times.latest, self._kept_from


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
    """Return True for a permanent refusal; a missing or wrong password or a busy service may pass on a retry."""
    return refusal.status == HTTPStatus.OK and refusal.error != "Locked"


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
