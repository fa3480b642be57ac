"""A request on its way through the service, and what requests that come together share."""

from __future__ import annotations

import math
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import TYPE_CHECKING, Final

from cloudstore_mapping.errors import CloudStoreError
from cloudstore_mapping.wire import Batch, Operation, Reply, Request

if TYPE_CHECKING:
    from cloudstore_mapping.service.passwords import Question
    from cloudstore_mapping.service.rules import Caller
    from cloudstore_mapping.service.storage.base import Storage, Transaction
    from cloudstore_mapping.service.storage.records import Account

_QUICK: Final = frozenset({Operation.LOAD, Operation.STAT})


class Asked:
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
        self.refused: dict[Question, CloudStoreError] = {}
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


class Moment(AbstractContextManager["Moment"]):
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
