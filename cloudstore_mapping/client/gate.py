"""Gate: lets requests pass until it closes, and waits for those in flight."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from typing import Any

from cloudstore_mapping.client.deadline import Group, scope
from cloudstore_mapping.forks import renew_after_fork


def closed_error() -> ValueError:
    """Return the error of every operation on a closed store."""
    return ValueError("The store is closed; open it again.")


class _Thread(threading.local):
    """State of a thread: it holds `turn` during a request; an RLock, as a signal handler may send another request."""

    def __init__(self, turns: weakref.WeakValueDictionary[int, Any]) -> None:
        self.turn = threading.RLock()
        turns[threading.get_ident()] = self.turn


class Gate:
    """
    Let requests pass until `shut`; `wait` then returns once none is in flight.

    Send a request in ``with gate.turn:`` after `check`. Thread safe; `wait` ignores requests of its own thread.
    """

    def __init__(self) -> None:
        self.is_closed = False
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Forget the requests of other threads in a child process."""
        self._turns: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._sleepers: dict[int, Group] = {}  # by thread
        self._thread = _Thread(self._turns)
        # Held until the gate closes. Not an `Event`: an interrupt inside an `Event` can leave its lock held.
        self._asleep = threading.Lock()
        if not self.is_closed:
            self._asleep.acquire()

    @property
    def turn(self) -> Any:
        """Lock to hold during a request."""
        return self._thread.turn

    def check(self) -> None:
        """Raise `ValueError` if the gate is closed."""
        if self.is_closed:
            raise closed_error()

    def sleep(self, seconds: float) -> None:
        """Sleep, but not beyond the end of this thread's bulk work; `ValueError` as soon as the gate closes."""
        if scope.group is None:
            until = time.monotonic() + seconds
            while not self.is_closed and (left := until - time.monotonic()) > 0:
                if self._asleep.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
                    self._asleep.release()
        else:
            self._sleep_in(scope.group, seconds)
        self.check()

    def _sleep_in(self, group: Group, seconds: float) -> None:
        thread = threading.get_ident()
        self._sleepers[thread] = group
        try:
            if not self.is_closed:
                group.sleep(seconds)
        finally:
            self._sleepers.pop(thread, None)

    def shut(self) -> None:
        """Let no further request pass, and end all sleeps."""
        was_closed, self.is_closed = self.is_closed, True
        if not was_closed:
            self._asleep.release()
            for group in list(self._sleepers.values()):
                group.wake()

    def is_in_use(self) -> bool:
        """Return True in a signal handler, or `__del__`, in the middle of a request of this thread."""
        owned: bool = self.turn._is_owned()  # noqa: SLF001 - as `threading.Condition` asks
        return owned

    def wait(self) -> None:
        """Wait for the requests in flight, except those of this thread; at Python's end no other thread runs."""
        if sys.is_finalizing():
            return
        for reference in self._turns.valuerefs():  # a copy, as other threads add turns
            turn = reference()
            if turn is not None:
                with turn:
                    pass
