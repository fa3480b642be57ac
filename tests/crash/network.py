"""A network between client and service that loses, repeats and delays what is sent, now and then."""

from __future__ import annotations

import random
from typing import Final

from cloudstore_mapping.client.transport import Sendable, Transport
from cloudstore_mapping.errors import TimedOutError
from cloudstore_mapping.testing.faults import (
    Fault,
    FaultyTransport,
    answered,
    dropped,
    lost,
    not_connected,
    refused,
    slow,
    stuck,
    twice,
)
from cloudstore_mapping.wire import Reply

#: Of how many requests something goes wrong.
SHARE: Final = 0.05
#: How many of a row of attempts have a fault: with the last number all of them, so that the outcome stays unknown.
ROWS: Final = (1, 1, 1, 2, 4)


class Unreliable(FaultyTransport):
    """
    A way to a service on which something goes wrong with some requests, as the `dice` fall.

    Attributes
    ----------
    late
        Requests that are still under way, though their client waits for them no longer.
    """

    def __init__(self, inner: Transport, dice: random.Random) -> None:
        super().__init__(inner)
        self.late: list[Sendable] = []
        self._dice = dice

    def send(self, request: Sendable) -> Reply:
        """Return the answer, or what becomes of it."""
        if not self.faults and self._dice.random() < SHARE:
            self.faults.extend(self._dice.choices(FAULTS, k=self._dice.choice(ROWS)))
        if self.late and self._dice.random() < 1 / 2:
            self._arrive()
        reply = super().send(request)
        self.requests.clear()
        return reply

    def close(self) -> None:
        """Let what is under way arrive, and close the way."""
        self._arrive()
        super().close()

    def _arrive(self) -> None:
        arriving, self.late = self.late, []
        for each in arriving:
            self.pass_on(each)


def late(transport: FaultyTransport, request: Sendable) -> Reply:
    """Give no answer in time, and let the request arrive after others that were sent later."""
    assert isinstance(transport, Unreliable)
    transport.late.append(request)
    raise TimedOutError("No answer came in time.", sent=True)


FAULTS: Final[tuple[Fault, ...]] = (
    *(dropped, late, lost, not_connected, refused, slow, stuck, twice),
    answered(502),
    answered(503, retry_after=1.0),
)
