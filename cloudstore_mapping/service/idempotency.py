"""Idempotency: store the reply to each request id, and replay it for duplicates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from cloudstore_mapping.errors import CloudStoreError
from cloudstore_mapping.service.quotas import Clock
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.wire import Reply, decode_reply, encode_reply, failure

#: Seconds for which an answer is remembered at least.
REMEMBERED_FOR: Final = 900.0
#: Seconds by which the wall clock gets ahead of the monotonic one only if somebody set it.
JUMP: Final = 60.0
#: Answers that are remembered between two looks for older ones, and how many of those are then forgotten: more than
#: came in between, so that there is never much to forget and never more than was remembered at the busiest time.
FORGET_EVERY: Final = 64
FORGET_AT_ONCE: Final = 256
#: Bytes of what a batch with an id may load, for all of it is stored.
MAX_LOADED: Final = 2**20


class Answers:
    """Has a request done once, however often it comes; an id is one account's, and may be of any kind of request."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._remembered = itertools.count(1)
        self._ahead = clock.wall() - clock.monotonic()
        self._forgets_from = -math.inf

    def once(self, transaction: Transaction, account_id: int, request: str, work: Callable[[], Reply]) -> Reply:
        """
        Return what a request with this id was answered, else do the work and remember its reply, a refusal too.

        A refusal that may be none the next time is raised as it is: a missing or wrong password, a service too busy.
        """
        before = transaction.answer(account_id, request)
        if before is not None:
            return decode_reply(before)
        try:
            reply = work()
        except CloudStoreError as error:
            reply = failure(error)
            if reply.status != HTTPStatus.OK or reply.error == "Locked":
                raise
        now = self._clock.wall()
        transaction.keep_answer(account_id, request, encode_reply(reply), now)
        if next(self._remembered) % FORGET_EVERY == 0 and self._may_forget(now):
            transaction.forget_answers(now - REMEMBERED_FOR, FORGET_AT_ONCE)
        return reply

    def _may_forget(self, wall: float) -> bool:
        """Whether what seems old is; after the clock was set forward an answer of just now seems so for a while."""
        monotonic = self._clock.monotonic()
        before, self._ahead = self._ahead, wall - monotonic
        if self._ahead > before + JUMP:
            self._forgets_from = monotonic + REMEMBERED_FOR
        return monotonic >= self._forgets_from
