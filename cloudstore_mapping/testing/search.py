"""Wing and Gong's search for an order of calls, with the memoization of Lowe, "Testing for linearizability" (2017)."""

from __future__ import annotations

import enum
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from math import inf
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from cloudstore_mapping.testing.exact import frozen
from cloudstore_mapping.testing.histories import Call

State = TypeVar("State")

#: State, operation, argument, result and whether that is known, to the state afterwards; None: it can't be so.
Step: TypeAlias = Callable[[State, str, Any, Any, bool], State | None]


class Missing(enum.Enum):
    """The type of `MISSING`, for None is a value like any other."""

    MISSING = "missing"


#: What a part is where a state has none of its name.
MISSING: Final = Missing.MISSING


def _wants_nothing(_call: Call) -> None:
    return None


def _one_part(state: Any) -> Mapping[Any, Any]:
    return {"": state}


def _leaves_anything(_call: Call, _part: Any, _value: Any) -> bool:
    return True


class Hints(NamedTuple, Generic[State]):
    """
    What can be told of a call by itself; it saves a search from most ways that lead nowhere.

    Attributes
    ----------
    reads
        The operations that never change the state.
    wants
        Returns the one state in which a call of known outcome can have had its result, None if there are several.
    parts
        Returns what a state is made of, so that each call changes few parts.
    leaves
        Tells whether a call can give a part, by its name, a value that it did not have before; `MISSING`: take it away.
    """

    reads: Container[str] = ()
    wants: Callable[[Call], State | None] = _wants_nothing
    parts: Callable[[State], Mapping[Any, Any]] = _one_part
    leaves: Callable[[Call, Any, Any], bool] = _leaves_anything


class UndecidedError(RuntimeError):
    """There were more orders than could be tried; record fewer calls at once."""


class Order(NamedTuple):
    """An order of all calls, or the longest beginning of one; each with the state that it led to."""

    is_complete: bool
    calls: list[tuple[Call, Any]]


class _Move(NamedTuple):
    """A call that may be the next in the order, with the state after it and what stands for that in sets."""

    number: int
    state: Any
    place: Hashable


class Search(Generic[State]):
    """A search for an order of calls."""

    def __init__(self, calls: Sequence[Call], step: Step[State], hints: Hints[State], limit: int) -> None:
        self._step = step
        self._reads = hints.reads
        self._limit = limit
        self._candidates = Candidates(
            [call for call in calls if call.returned is not None],
            [call for call in calls if call.returned is None and call.operation not in hints.reads],
        )
        self._needs = Needs(self._candidates.calls, hints)

    def run(self, initial: State) -> Order:
        """Return an order of all calls that begins with the state `initial`, or of as many as have one."""
        candidates, needs = self._candidates, self._needs
        order = [_Move(-1, initial, frozen(initial))]
        moves = [self._moves(order[-1])]
        seen: set[tuple[int, Hashable]] = set()
        longest: list[_Move] = []
        if not needs.can_all_be_met(initial):
            return self._order(False, order)
        while not candidates.are_done:
            move = next(moves[-1], None)
            if move is None:
                longest = max(longest, order.copy(), key=len)
                moves.pop()
                if not moves:
                    return self._order(False, longest)
                move = order.pop()
                candidates.put_back(move.number)
                needs.put_back(move.number)
                continue
            configuration = (candidates.taken | 1 << move.number, move.place)
            if configuration in seen:
                continue
            if len(seen) == self._limit:
                raise UndecidedError(
                    f"There are more than {self._limit:,} ways in which {len(candidates.calls)} calls can have come "
                    "about, too many to look at; record fewer clients at once, or give a higher limit."
                )
            seen.add(configuration)
            candidates.take(move.number)
            needs.take(move.number)
            moves.append(self._moves(move) if needs.can_be_met(order[-1].state, move.state) else iter(()))
            order.append(move)
        return self._order(True, order)

    def _moves(self, last: _Move) -> Iterator[_Move]:
        """Yield what may come next, what was answered first before the others: most often it was done first."""
        writes = []
        for number in self._candidates.now():
            call = self._candidates.calls[number]
            is_known = call.returned is not None
            after = self._step(last.state, call.operation, call.argument, call.result, is_known)
            if after is None:
                continue
            if call.operation in self._reads:
                # It changes nothing for the others, so it fits nowhere better.
                yield _Move(number, after, last.place)
                return
            place = frozen(after)
            if is_known or place != last.place:  # else it may as well come later, or never
                writes.append(_Move(number, after, place))
        yield from writes

    def _order(self, is_complete: bool, moves: Sequence[_Move]) -> Order:
        return Order(is_complete, [(self._candidates.calls[move.number], move.state) for move in moves[1:]])


class Needs(Generic[State]):
    """The calls that can have had their result in one state only, and what is left that can make its parts in time."""

    def __init__(self, calls: Sequence[Call], hints: Hints[State]) -> None:
        self._parts = hints.parts
        self._is_taken = [False] * len(calls)
        #: The needs of a part with a value, by both: the calls that have it, and how many are left that lead there.
        self._wanting: dict[tuple[Hashable, Hashable], list[_Need]] = {}
        #: For each call the needs that it can meet.
        self._meets: list[list[_Need]] = [[] for _ in calls]
        wanted = {
            number: hints.parts(state)
            for number, call in enumerate(calls)
            if call.returned is not None and (state := hints.wants(call)) is not None
        }
        writing = [number for number, call in enumerate(calls) if call.operation not in hints.reads]
        names = dict.fromkeys(name for parts in wanted.values() for name in parts)
        met: dict[tuple[Hashable, Hashable], list[int]] = {}
        for number, parts in wanted.items():
            for name in names:
                value = parts.get(name, MISSING)
                place = (name, frozen(value))
                if place not in met:
                    met[place] = [each for each in writing if hints.leaves(calls[each], name, value)]
                need = _Need(number)
                self._wanting.setdefault(place, []).append(need)
                for other in met[place]:
                    if other != number and calls[other].called <= calls[number].end:
                        self._meets[other].append(need)
                        need.left += 1

    def take(self, number: int) -> None:
        """Note that a call came."""
        self._is_taken[number] = True
        for need in self._meets[number]:
            need.left -= 1

    def put_back(self, number: int) -> None:
        """Note that it didn't."""
        self._is_taken[number] = False
        for need in self._meets[number]:
            need.left += 1

    def can_all_be_met(self, initial: State) -> bool:
        """Whether all that is wanted is there at the beginning, or can come."""
        parts = {name: frozen(value) for name, value in self._parts(initial).items()}
        missing = frozen(MISSING)
        return all(parts.get(name, missing) == value or self._can_come(name, value) for name, value in self._wanting)

    def can_be_met(self, before: State, after: State) -> bool:
        """Whether what wants the parts that were changed last can still come."""
        old, new = self._parts(before), self._parts(after)
        for name in {**old, **new}:
            was, becomes = frozen(old.get(name, MISSING)), frozen(new.get(name, MISSING))
            if was != becomes and not self._can_come(name, was):
                return False
        return True

    def _can_come(self, name: Hashable, value: Hashable) -> bool:
        return all(need.left or self._is_taken[need.number] for need in self._wanting.get((name, value), ()))


class _Need:
    def __init__(self, number: int) -> None:
        self.number = number
        self.left = 0


class Candidates:
    """
    The calls that are not in the order yet, of which any that was called before another of them returned may be next.

    `calls` are the known ones, by the time they were called, and then the others; `taken` has a bit for each.
    """

    def __init__(self, known: Sequence[Call], unknown: Sequence[Call]) -> None:
        self.calls = [*known, *unknown]
        self.taken = 0
        self._left = len(known)
        self._end = len(known)
        # A list whose items know their neighbours: what was taken out of it last can be put back where it was.
        self._next = [*range(1, self._end + 1), 0]
        self._previous = [self._end, *range(self._end)]
        self._kinds = [
            (call.operation, frozen(call.argument), frozen(call.result) if call.returned is not None else None)
            for call in self.calls
        ]

    @property
    def are_done(self) -> bool:
        """Whether all known ones are in the order."""
        return self._left == 0

    def now(self) -> Iterator[int]:
        """
        Return those that may be next, the known ones first, in the order in which they returned.

        Of several that do the same the first is enough: what fits with another one in its place fits with it.
        """
        earliest = inf
        known = []
        number = self._next[self._end]
        while number != self._end and self.calls[number].called <= earliest:
            known.append(number)
            earliest = min(earliest, self.calls[number].end)
            number = self._next[number]
        known.sort(key=lambda number: self.calls[number].end)
        unknown = []
        for number in range(self._end, len(self.calls)):
            if self.calls[number].called > earliest:
                break
            if not self.taken >> number & 1:
                unknown.append(number)
        firsts: dict[Hashable, int] = {}
        for number in (*known, *unknown):
            firsts.setdefault(self._kinds[number], number)
        return iter(firsts.values())

    def take(self, number: int) -> None:
        """Put a call into the order."""
        self.taken |= 1 << number
        if number < self._end:
            self._left -= 1
            self._next[self._previous[number]] = self._next[number]
            self._previous[self._next[number]] = self._previous[number]

    def put_back(self, number: int) -> None:
        """Take the call that was put into the order last out of it."""
        self.taken ^= 1 << number
        if number < self._end:
            self._left += 1
            self._next[self._previous[number]] = self._previous[self._next[number]] = number
