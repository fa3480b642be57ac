"""Many requests that are answered as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from cloudstore_mapping.errors import CloudStoreError, TooBigError
from cloudstore_mapping.service.idempotency import IdempotencyStore, Single, mismatch
from cloudstore_mapping.service.operations import Caller, Operations
from cloudstore_mapping.service.security import PasswordCheck, UnprovenError
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.wire import (
    Batch,
    Operation,
    Reply,
    Request,
    decode_replies,
    encode_replies,
    encode_value,
    failure,
    success,
)

#: Bytes of a value that is read before it is asked for.
MAX_AHEAD: Final = 16 * 2**10

_OF_VALUES: Final = frozenset({Operation.LOAD, Operation.MERGE})
_LARGE: Final = frozenset({Operation.LOAD, Operation.LIST})
#: Stored in place of the reply to a read.
_READ_AGAIN: Final = success("")


class UndoneError(Exception):
    """A request of an atomic batch was refused; `reply` is the answer to the batch, which has to be undone."""

    def __init__(self, reply: Reply) -> None:
        super().__init__("A request of an atomic batch was refused.")
        self.reply = reply


class BatchWork:
    """
    A batch that is done in one transaction.

    `refused` are the errors of passwords that are known to be wrong. Once what was loaded and listed takes `max_bytes`,
    further loads and lists are refused.
    """

    def __init__(
        self,
        rules: Operations,
        answers: IdempotencyStore,
        batch: Batch,
        refused: Mapping[PasswordCheck, CloudStoreError],
        max_bytes: int,
    ) -> None:
        self._rules = rules
        self._answers = answers
        self._batch = batch
        self._refused = refused
        self._left = max_bytes
        self._full = False
        self._replies: list[Reply] = []

    def do(self, transaction: Transaction, caller: Caller) -> Reply:
        """
        Do the requests in their order, each of which is refused for itself.

        Raises `UndoneError` for the first refusal of an atomic batch. Where passwords must be hashed first it raises
        `UnprovenError` with all of them, for what comes behind the first one is tried as well: else a batch would begin
        anew as often as it has passwords.
        """
        self._look_ahead(transaction, caller)
        self._replies = self._all(lambda _, request: self._answer(transaction, caller, request), is_replay=False)
        return success("", encode_replies(self._replies))

    def kept(self, reply: Reply) -> Reply:
        """Return the reply as it is stored: without the replies to reads, which are read again for a duplicate."""
        if reply.error is not None:
            return reply
        parts = zip(self._batch.requests, self._replies, strict=True)
        return success("", encode_replies([reply if request.writes else _READ_AGAIN for request, reply in parts]))

    def replay(self, transaction: Transaction, caller: Caller, before: Reply) -> Reply:
        """
        Return the stored replies to the writes, and read again what the batch reads.

        Reads no longer depend on versions: the batch was done, whatever happened to the files since. Passwords are
        checked again; raises as `do` if one is wrong.
        """
        if before.error is not None:
            return before
        stored = decode_replies(before.content)
        if len(stored) != len(self._batch.requests):  # by an earlier version, for another batch
            raise mismatch()

        def again(index: int, request: Request) -> Reply:
            if not request.writes:
                return self._sized(transaction, caller, replace(request, if_version=UNSET))
            self._rules.check_replay(transaction, caller, request)
            return stored[index]

        return success("", encode_replies(self._all(again, is_replay=True)))

    def _all(self, answer: Callable[[int, Request], Reply], *, is_replay: bool) -> list[Reply]:
        replies: list[Reply] = []
        unproven: dict[PasswordCheck, None] = {}
        for number, request in enumerate(self._batch.requests, 1):
            try:
                reply = answer(number - 1, request)
            except CloudStoreError as error:
                reply = failure(error)
            except UnprovenError as error:
                if (refusal := self._refused.get(error.questions[0])) is None:
                    unproven[error.questions[0]] = None
                    continue
                reply = failure(refusal)
            if self._batch.atomic and reply.error is not None and (request.writes or not is_replay):
                if unproven:
                    break  # it may be refused only because those before it were not done
                sentence = f"Request {number} of {len(self._batch.requests)}: {reply.sentence}"
                raise UndoneError(replace(reply, message=encode_value(sentence)))
            replies.append(reply)
        if unproven:
            raise UnprovenError(*unproven)
        return replies

    def _look_ahead(self, transaction: Transaction, caller: Caller) -> None:
        """Read at once what the requests would read one by one, but for large values, of which there may be many."""
        values: dict[str, None] = {}
        infos: dict[str, None] = {}
        for request in self._batch.requests:
            name, operation = request.name, request.operation
            if name not in values and name not in infos and operation is not Operation.LIST:
                (values if operation in _OF_VALUES and request.if_not_version is UNSET else infos)[name] = None
        if values:
            caller.ahead |= transaction.get_many(caller.account.id, [*values], MAX_AHEAD)
        if infos:
            caller.ahead |= transaction.stat_many(caller.account.id, [*infos])

    def _answer(self, transaction: Transaction, caller: Caller, request: Request) -> Reply:
        if request.once is not UNSET and request.writes:
            return self._answers.once(transaction, caller, request, Single(self._rules, request))
        return self._sized(transaction, caller, request)

    def _sized(self, transaction: Transaction, caller: Caller, request: Request) -> Reply:
        if request.operation not in _LARGE:
            return self._rules.answer(transaction, caller, request)
        if not self._full:
            reply = self._rules.answer(transaction, caller, request)
            size = len(reply.content)
            if size <= self._left:
                self._left -= size
                return reply
            self._full = True
        raise TooBigError("What the batch asks for is too large for one reply; ask for less at once.")
