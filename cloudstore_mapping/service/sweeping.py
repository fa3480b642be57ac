"""Taking away the bytes that no media file has any more, in steps that let other work pass between them."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cloudstore_mapping.errors import UnavailableError

if TYPE_CHECKING:
    from cloudstore_mapping.service.limits import Clock
    from cloudstore_mapping.service.storage.base import Storage, Transaction

_log: Final = logging.getLogger(__name__)

#: Seconds without a new chunk after which an upload is one that a crash has ended, in any process.
ABANDONED_AFTER: Final = 3600.0
#: Chunks that are taken away at a time: few enough that writers wait for some milliseconds only.
CHUNKS_AT_ONCE: Final = 4


class Sweeper:
    """Sweeps a storage on its writer's thread, a step at a time, until there is nothing left to take away."""

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._storage = storage
        self._clock = clock
        self._lock = threading.Lock()
        self._running = False
        self._again = False
        self._closed = False

    def begin_if_needed(self) -> None:
        """Sweep if there is something to take away: a store that is opened begins with a read, not with a write."""
        try:
            with self._storage.read() as transaction:
                is_needed = transaction.has_left_over(self._clock.wall() - ABANDONED_AFTER)
        except UnavailableError:
            return  # it is told of where the store is used, and done the next time
        if is_needed:
            self.begin()

    def begin(self) -> None:
        """Sweep all that can be swept, without waiting for it."""
        try:
            with self._lock:
                self._again = self._running
                if self._running or self._closed:
                    return
                self._running = True
            self._step()
        except BaseException:  # an interrupt: whoever begins next sweeps
            self._running = False
            raise

    def close(self) -> None:
        """Begin no further step; what is left is swept the next time."""
        with self._lock:
            self._closed = True

    def _step(self) -> None:
        before = self._clock.wall() - ABANDONED_AFTER

        def work(transaction: Transaction) -> bool:
            return transaction.sweep(before, CHUNKS_AT_ONCE)

        try:
            self._storage.submit(work).add_done_callback(self._stepped)
        except UnavailableError as error:
            self._end(error)

    def _stepped(self, step: Future[bool]) -> None:
        if step.cancelled():  # by an interrupt of the thread that began it
            self._step()
            return
        error = step.exception()
        if error is not None:
            self._end(error)
            return
        with self._lock:
            goes_on = (step.result() or self._again) and not self._closed
            self._running = goes_on
            self._again = False
        if goes_on:
            self._step()

    def _end(self, error: BaseException) -> None:
        with self._lock:
            self._running = False
            if self._closed:
                return  # it was given up, and is done the next time
        with suppress(UnavailableError), self._storage.read() as transaction:
            if not transaction.has_left_over(self._clock.wall() - ABANDONED_AFTER):
                return  # it shared the transaction of a write that failed, and is told of there
        _log.warning("Bytes that no media file has could not be taken away: %s", error)
