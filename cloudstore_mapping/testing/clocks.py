"""A clock that only the test moves."""

from __future__ import annotations


class FrozenClock:
    """
    Seconds that stand still until somebody moves them, for all that takes a `clock`.

    A client that is given one waits on it as well, so its retries and its pace take no time: `sleep` moves it on.

    Attributes
    ----------
    now
        What it shows; a test may set it.
    slept
        How long each `sleep` was, in order.
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def sleep(self, seconds: float) -> None:
        """Let time pass as one who waits for it."""
        self.slept.append(seconds)
        self.advance(seconds)
