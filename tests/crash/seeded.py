"""Services with a fault that only their clients together can see: a stale cache, a lost update, a write done twice."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import Final

import msgspec
from msgspec import UNSET

from cloudstore_mapping.client.transport import Sendable, Transport
from cloudstore_mapping.testing.transports import PassingTransport
from cloudstore_mapping.wire import Operation, Reply, Request

#: Every so many writes of a name something goes wrong.
EVERY: Final = 15
#: Loads that one thing that was kept answers.
KEPT_FOR: Final = 10
WRITES: Final = frozenset({Operation.SAVE, Operation.MERGE, Operation.DELETE})


class Shared(PassingTransport):
    """A way to a service that many clients use, which does one thing after another and is closed by none of them."""

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.lock = threading.Lock()
        self.writes: Counter[str] = Counter()

    def send(self, request: Sendable) -> Reply:
        """Return the answer, and let others have theirs."""
        with self.lock:
            reply = self.answer(request)
        time.sleep(0)
        return reply

    def answer(self, request: Sendable) -> Reply:
        """Return the answer, alone."""
        return super().send(request)

    def is_turn(self, request: Request) -> bool:
        """Count a write, and tell whether it is one with which something goes wrong."""
        self.writes[request.name] += 1
        return self.writes[request.name] % EVERY == 0

    def close(self) -> None:
        """Do nothing: others use it."""


class Stale(PassingTransport):
    """A way of one client's to a shared one, with a cache that doesn't learn what others write."""

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self._kept: dict[str, Reply] = {}
        self._uses: Counter[str] = Counter()

    def send(self, request: Sendable) -> Reply:
        """Return the answer, or one of before."""
        if not isinstance(request, Request) or request.operation in WRITES:
            if isinstance(request, Request):
                self._kept.pop(request.name, None)
            return super().send(request)
        if request.operation is not Operation.LOAD:
            return super().send(request)
        self._uses[request.name] += 1
        if request.name not in self._kept or self._uses[request.name] % KEPT_FOR == 0:
            self._kept[request.name] = super().send(request)
        return self._kept[request.name]


class Losing(Shared):
    """A service where now and then a write is undone by another, which was begun before and knows nothing of it."""

    def answer(self, request: Sendable) -> Reply:
        """Return the answer, and perhaps put the value before in its place."""
        if not isinstance(request, Request) or request.operation not in WRITES or not self.is_turn(request):
            return super().answer(request)
        load = Request(api_key=request.api_key, name=request.name, options=None)
        before = super().answer(load)
        reply = super().answer(request)
        if before.error is None and reply.error is None:
            super().answer(msgspec.structs.replace(load, value=before.content))
        return reply


class Doubling(Shared):
    """A service where now and then a write is done once more, after others."""

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self._again: deque[Request] = deque()

    def answer(self, request: Sendable) -> Reply:
        """Return the answer, after what is done again."""
        is_write = isinstance(request, Request) and request.operation in WRITES
        reply = super().answer(request)
        if isinstance(request, Request) and is_write:
            for again in [each for each in self._again if each.name == request.name]:
                self._again.remove(again)
                super().answer(again)
            if self.is_turn(request) and reply.error is None:
                self._again.append(msgspec.structs.replace(request, once=UNSET, if_version=UNSET))
        return reply
