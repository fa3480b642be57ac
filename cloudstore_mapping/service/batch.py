"""Many requests that are answered as one."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from cloudstore_mapping.errors import CloudStoreError, TooBigError
from cloudstore_mapping.service.passwords import UnprovenError
from cloudstore_mapping.service.rules import Rules
from cloudstore_mapping.service.storage.base import Account, Transaction
from cloudstore_mapping.wire import Batch, Operation, Reply, encode_replies, failure, success


class UnprovenItemError(UnprovenError):
    """The password of one request of a batch must be hashed first."""

    def __init__(self, unproven: UnprovenError, number: int) -> None:
        super().__init__(unproven.file, unproven.password, unproven.hashes)
        self.number = number


def answer_batch(
    rules: Rules,
    transaction: Transaction,
    account: Account,
    batch: Batch,
    refused: Mapping[int, CloudStoreError],
    max_bytes: int,
) -> Reply:
    """
    Do the requests in their order; each is refused for itself, but in an atomic batch the first refusal is raised.

    `refused` are those, by number, whose passwords are known to be wrong. Once the replies take `max_bytes`, further
    loads are refused.
    """
    replies: list[Reply] = []
    size = 0
    for number, request in enumerate(batch.requests):
        try:
            if number in refused:
                raise refused[number]
            reply = rules.answer(transaction, account, request)
            size += len(reply.content)
            if size > max_bytes and request.operation is Operation.LOAD:
                size -= len(reply.content)
                raise TooBigError("The values of the batch are too large for one reply; ask for fewer at once.")
        except UnprovenError as error:
            raise UnprovenItemError(error, number) from error
        except CloudStoreError as error:
            if batch.atomic:
                raise _numbered(error, number, len(batch.requests)) from error
            reply = failure(error)
        replies.append(reply)
    return success("", encode_replies(replies))


def _numbered(error: CloudStoreError, number: int, count: int) -> CloudStoreError:
    numbered = copy.copy(error)
    numbered.message = f"Request {number + 1} of {count}: {error.message}"
    return numbered
