"""Recording what many clients did with one key: what each called, when, and what came of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from cloudstore_mapping.errors import BadMergeError, TimedOutError, TransportError


@dataclass(frozen=True)
class Call:
    """
    An operation that a client called.

    `called` and `returned` are seconds of one monotonic clock; where `returned` is None the outcome is unknown, and
    `result` means nothing.
    """

    client: int
    operation: str
    argument: Any
    called: float
    returned: float | None
    result: Any

    @property
    def end(self) -> float:
        """When it returned; infinity where that is unknown."""
        return inf if self.returned is None else self.returned

    def unfinished(self) -> Call:
        """Return the call as it was before anything was known of its outcome."""
        return replace(self, returned=None, result=None)

    def __str__(self) -> str:
        argument = "" if self.argument is None and self.operation in _WITHOUT_ARGUMENT else repr(self.argument)
        result = self.result.__name__ if isinstance(self.result, type) else repr(self.result)
        outcome = "of unknown outcome" if self.returned is None else f"gave {result}"
        return f"client {self.client}: {self.operation}({argument}) {outcome}"


_WITHOUT_ARGUMENT = frozenset({"load", "delete", "pop", "contains"})


@dataclass
class Running:
    """A call that has not returned; what it gives is to be set as its `result`."""

    result: Any = None


class History:
    """
    What many clients did with one key.

    Parameters
    ----------
    answers
        Errors that are results: the call's result is then that class of error, and the error goes no further.
    unknown
        Errors after which nobody knows whether the operation was done; they go no further either.
    clock
        Monotonic seconds; the default one is the same in all processes of a machine.

    Attributes
    ----------
    calls
        What was recorded, in the order in which it ended.

    Notes
    -----
    Threads may share a history. Any other error leaves the call of unknown outcome, and is raised.
    """

    def __init__(
        self,
        *,
        answers: tuple[type[Exception], ...] = (KeyError, TypeError, BadMergeError),
        unknown: tuple[type[Exception], ...] = (TransportError, TimedOutError),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.calls: list[Call] = []
        self._answers = answers
        self._unknown = unknown
        self._clock = clock
        self._lock = threading.Lock()

    @contextmanager
    def call(self, client: int, operation: str, argument: Any = None) -> Iterator[Running]:
        """Record one call, from the beginning of the block to its end; the block sets the `result` of what it gets."""
        running = Running()
        returned: float | None = None
        called = self._clock()
        try:
            yield running
            returned = self._clock()
        except self._answers as error:
            returned = self._clock()
            running.result = next(kind for kind in self._answers if isinstance(error, kind))
        except self._unknown:
            pass
        finally:
            with self._lock:
                self.calls.append(Call(client, operation, argument, called, returned, running.result))
