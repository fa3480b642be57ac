"""Sides that do the same work, measured in turn within one run: what else the machine does meanwhile hits all alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

#: One turn of a side; it returns the seconds that one operation took.
Turn = Callable[[], float]

_CORES: Final = sorted(os.sched_getaffinity(0))
#: Where what answers runs and where what asks does: two cores if there are two.
SERVER_CORE: Final = _CORES[-1]
CLIENT_CORE: Final = _CORES[0]


class MissingError(Exception):
    """Somebody to compare with can't be had here; the sentence says what is missing."""


@dataclass
class Run:
    """How much is measured, where its files are, and who could not be had."""

    folder: Path
    rounds: int = 11
    scale: float = 1.0
    with_servers: bool = True
    missing: dict[str, str] = field(default_factory=dict)

    def times(self, count: int) -> int:
        """Return how often to do what a full run does so many times."""
        return max(2, round(count * self.scale))


@dataclass(frozen=True)
class Side:
    """Somebody who does the work, and what of it is safe when it is answered."""

    name: str
    turn: Turn
    durability: str = ""


@dataclass(frozen=True)
class Goal:
    """
    What a side's time has to be: at most `limit` times that of `against`, or so many seconds where that is empty.

    `text` says it as the table of goals does; `shown` is how what came of it reads: "time", the ratio of the times,
    "speed", that of the rates, "rate", operations a second, or "seconds".
    """

    text: str
    limit: float
    against: str = ""
    shown: str = "time"


@dataclass
class Measured:
    """A side's seconds an operation, turn by turn."""

    name: str
    durability: str
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median turn."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third."""
        if len(self.seconds) < 2:
            return self.median, self.median
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third


@dataclass
class Comparison:
    """Sides that did the same work, the one that goals are for first."""

    title: str
    sides: list[Measured]
    goals: Sequence[Goal] = ()

    def ratio(self, name: str) -> float:
        """Return the first side's time as a multiple of another's: the median of the rounds."""
        (other,) = (side for side in self.sides if side.name == name)
        pairs = zip(self.sides[0].seconds, other.seconds, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    def reached(self, goal: Goal) -> float | None:
        """Return what came of a goal, to be at most its limit; None where the other side could not be had."""
        if not goal.against:
            return self.sides[0].median
        return self.ratio(goal.against) if any(side.name == goal.against for side in self.sides) else None


def timed(operation: Callable[[int], object], times: int) -> Turn:
    """Return a turn of so many operations, each of which is given a number that none before it had."""
    begin = 0

    def turn() -> float:
        nonlocal begin
        numbers = range(begin, begin + times)
        begin += times
        started = time.perf_counter()
        for number in numbers:
            operation(number)
        return (time.perf_counter() - started) / times

    return turn


def compare(run: Run, title: str, sides: Sequence[Side], goals: Sequence[Goal] = ()) -> Comparison:
    """Measure the sides, each once in a round, after a round that doesn't count."""
    measured = [Measured(side.name, side.durability) for side in sides]
    with on_core(CLIENT_CORE):
        for side in sides:
            side.turn()
        for _ in range(run.rounds):
            for side, times in zip(sides, measured, strict=True):
                times.seconds.append(side.turn())
    return Comparison(title, measured, goals)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run the block's thread on this core, and for good every thread and process that it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
