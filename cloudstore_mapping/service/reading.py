"""Long reads: searches, listings, large loads and batches of loads, in slices (a short read transaction each)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from msgspec import UNSET

from cloudstore_mapping.errors import CloudStoreError, TooBigError
from cloudstore_mapping.service.batch import MAX_AHEAD
from cloudstore_mapping.service.security import Unproven
from cloudstore_mapping.service.storage.base import RolledBack
from cloudstore_mapping.service.threads import PAUSED, Paused
from cloudstore_mapping.wire import Batch, Operation, Reply, Request, encode_replies, failure, success

if TYPE_CHECKING:
    from cloudstore_mapping.service.accounts import Caller
    from cloudstore_mapping.service.listings import AllNames, PageOfNames, PageOfValues
    from cloudstore_mapping.service.operations import Operations
    from cloudstore_mapping.service.security import PasswordCheck
    from cloudstore_mapping.service.storage.sql import Transaction

#: Number of files of a batch prefetched together.
STEP_FILES: Final = 250


class Slice(NamedTuple):
    """Bounds of a slice: it ends after `steps` steps, or with the first step to end after `seconds`."""

    seconds: float
    steps: int


#: Slices on a local disk, and over a network: longer, as each slice costs round trips.
LOCAL: Final = Slice(seconds=0.002, steps=16)
REMOTE: Final = Slice(seconds=0.05, steps=64)


class Steps(Protocol):
    """Read done step by step."""

    #: Bytes of the reply so far.
    size: int

    def step(self, transaction: Transaction, caller: Caller) -> bool:
        """Do the next step; return True after the last."""

    def reply(self) -> Reply | RolledBack:
        """Return the reply, after the last step."""


class LongRead:
    """
    Read done in slices, each in a read transaction of its own; other requests get their turn in between.

    Short transactions also let SQLite checkpoint its write-ahead log. `admit` authenticates the caller again in each
    transaction, as the API key may have been revoked. `grow` reserves memory for the reply's size so far. None for
    `bounds` reads everything in one transaction.
    """

    def __init__(
        self,
        steps: Steps,
        read: Callable[[], AbstractContextManager[Transaction]],
        admit: Callable[[Transaction], Caller | RolledBack],
        grow: Callable[[Caller, int], None],
        bounds: Slice | None,
        now: Callable[[], float],
    ) -> None:
        self._steps = steps
        self._read = read
        self._admit = admit
        self._grow = grow
        self._bounds = bounds
        self._now = now
        self._caller: Caller | None = None

    def go_on(self) -> Caller | Paused | RolledBack:
        """Run the next slice; return `PAUSED`, the caller after the last slice, or the result of a failed `admit`."""
        with self._read() as transaction:
            caller = self._admit(transaction)
            if isinstance(caller, RolledBack):
                return caller
            if self._caller is not None:
                caller.used, caller.ahead = self._caller.used, self._caller.ahead
            self._caller = caller
            began, count = self._now(), 0
            while not self._steps.step(transaction, caller):
                self._grow(caller, self._steps.size)
                count += 1
                bounds = self._bounds
                if bounds is not None and (count >= bounds.steps or self._now() - began >= bounds.seconds):
                    return PAUSED
        self._grow(caller, self._steps.size)
        return caller

    def reply(self) -> Reply | RolledBack:
        """Return the reply, after the last slice."""
        return self._steps.reply()


class Whole:
    """Read done in a single step, in one transaction."""

    def __init__(self, answer: Callable[[Transaction, Caller], Reply | RolledBack]) -> None:
        self._answer = answer
        self._reply: Reply | RolledBack | None = None
        self.size = 0

    def step(self, transaction: Transaction, caller: Caller) -> bool:
        """Do the whole read."""
        self._reply = self._answer(transaction, caller)
        self.size = len(self._reply.content) if isinstance(self._reply, Reply) else 0
        return True

    def reply(self) -> Reply | RolledBack:
        """Return the reply."""
        assert self._reply is not None  # noqa: S101 - `step` has set it
        return self._reply


class BatchOfReads:
    """
    Non-atomic batch of reads; each request is answered as if sent alone.

    `refused` holds the errors of wrong passwords. Once the results of loads and lists take `max_bytes` bytes, further
    loads and lists are refused.
    """

    def __init__(
        self, rules: Operations, batch: Batch, refused: Mapping[PasswordCheck, CloudStoreError], max_bytes: int
    ) -> None:
        self._rules = rules
        self._requests = batch.requests
        self._refused = refused
        self._max_bytes = max_bytes
        self._full = False
        self._replies: list[Reply] = []
        self._number = 0
        self._listing: AllNames | PageOfNames | PageOfValues | None = None
        self._unproven: dict[PasswordCheck, None] = {}
        self.size = 0

    def step(self, transaction: Transaction, caller: Caller) -> bool:
        """Answer the next request, or do a step of its listing; return True after the last request."""
        if self._number % STEP_FILES == 0 and self._listing is None:
            self._look_ahead(transaction, caller)
        request = self._requests[self._number]
        try:
            reply = self._answer(transaction, caller, request)
        except CloudStoreError as error:
            reply = failure(error)
        if isinstance(reply, Unproven):
            (check,) = reply.checks
            if check in self._refused:
                reply = failure(self._refused[check])
            else:
                self._unproven[check] = None
                reply = Reply()  # placeholder: the read is repeated after the hashing
        if reply is None:
            return False
        self._listing = None
        self._replies.append(reply)
        self._number += 1
        return self._number == len(self._requests)

    def _answer(self, transaction: Transaction, caller: Caller, request: Request) -> Reply | Unproven | None:
        if request.operation is Operation.STAT:
            return self._rules.answer(transaction, caller, request)
        if self._full:
            raise _too_large()
        if request.operation is Operation.LIST:
            if self._listing is None:
                self._listing = self._rules.listing(request)
            if not self._listing.step(transaction, caller):
                if self.size + self._listing.size <= self._max_bytes:
                    return None
                self._full = True
                raise _too_large()
            reply: Reply | Unproven = self._listing.reply()
        else:
            reply = self._rules.answer(transaction, caller, request)
        if isinstance(reply, Unproven):
            return reply
        if self.size + len(reply.content) > self._max_bytes:
            self._full = True
            raise _too_large()
        self.size += len(reply.content)
        return reply

    def _look_ahead(self, transaction: Transaction, caller: Caller) -> None:
        """Prefetch the files of the next requests in at most two queries, without large values."""
        requests = self._requests[self._number : self._number + STEP_FILES]
        files = [each for each in requests if each.operation is not Operation.LIST]
        loads = {each.name: None for each in files if each.operation is Operation.LOAD and each.if_not_version is UNSET}
        infos = {each.name: None for each in files if each.name not in loads}
        if loads:
            caller.ahead |= transaction.get_many(caller.account.id, [*loads], MAX_AHEAD)
        if infos:
            caller.ahead |= transaction.stat_many(caller.account.id, [*infos])

    def reply(self) -> Reply | Unproven:
        """Return the replies, or `Unproven` with all passwords to hash first."""
        if self._unproven:
            return Unproven(tuple(self._unproven))
        return success("", encode_replies(self._replies))


def _too_large() -> TooBigError:
    return TooBigError(
        "The reply to the batch is too large (the service's max_batch_reply_bytes); ask for less at once."
    )
