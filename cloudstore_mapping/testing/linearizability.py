"""Whether what many clients saw of one key can have happened one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

from cloudstore_mapping.testing.histories import Call, History
from cloudstore_mapping.testing.register import ABSENT, REGISTER_HINTS, register_step
from cloudstore_mapping.testing.search import Hints, Order, Search, Step, UndecidedError

__all__ = [
    "ABSENT",
    "REGISTER_HINTS",
    "Call",
    "Hints",
    "History",
    "NotLinearizableError",
    "UndecidedError",
    "check_linearizable",
    "register_step",
]

State = TypeVar("State")

#: Sets of calls with a state that are looked at before the search gives up: a minute, or some.
DEFAULT_LIMIT: Final = 1_000_000
#: Calls of a kind that an error shows.
_SHOWN: Final = 5


class NotLinearizableError(AssertionError):
    """
    No order of the calls explains all results.

    `call` is the first one, by the time it returned, that can't be explained together with those before it.
    """

    def __init__(self, message: str, call: Call) -> None:
        super().__init__(message)
        self.call = call


def check_linearizable(
    calls: Iterable[Call],
    step: Step[State],
    initial: State,
    *,
    hints: Hints[State] | None = None,
    limit: int = DEFAULT_LIMIT,
) -> None:
    """
    Check that some order of the calls, each within the time it took, explains every result.

    Parameters
    ----------
    calls
        The calls on one key, in any order, with times of one clock. One whose outcome is unknown may have taken effect
        at any time after it was called, or never.
    step
        A function of the state, the operation, its argument, its result and whether that is known, which returns the
        state afterwards, or None where the call can't have had this result in this state. States are values that can
        be hashed, or are made of dictionaries, lists and sets of such.
    initial
        The state before the first call.
    hints
        What makes the search quick where many clients write at once; those of `register_step` are known.
    limit
        How many sets of calls with a state to look at.

    Raises
    ------
    NotLinearizableError
        There is no such order.
    UndecidedError
        The limit was reached before either was certain.
    """
    if hints is None:
        hints = REGISTER_HINTS if step is register_step else Hints()

    def search(some: Sequence[Call]) -> Order:
        return Search(some, step, hints, limit).run(initial)

    ordered = sorted(calls, key=lambda call: call.called)
    if search(ordered).is_complete:
        return
    # A beginning of what has an order has one as well: up to the result at `low` there is one, up to `high` none.
    ends = sorted((call for call in ordered if call.returned is not None), key=lambda call: call.end)
    low, high = -1, len(ends) - 1
    before = Order(True, [])
    while high - low > 1:
        middle = (low + high) // 2
        try:
            found = search(_known_by(ends[: middle + 1], ordered))
        except UndecidedError:
            break  # that there is none up to `high` is certain
        if found.is_complete:
            low, before = middle, found
        else:
            high = middle
    call = ends[high]
    overlapping = [each for each in ordered if each is not call and each.called <= call.end and each.end >= call.called]
    raise _explained(call, before, overlapping)


def _known_by(ended: Sequence[Call], ordered: Sequence[Call]) -> list[Call]:
    """Return what was known when the last of some calls had ended: of later ones that they were called, no more."""
    now = ended[-1].end
    known = {id(call) for call in ended}
    return [call if id(call) in known else call.unfinished() for call in ordered if call.called <= now]


def _explained(call: Call, before: Order, overlapping: Sequence[Call]) -> NotLinearizableError:
    """Return the error that says what can't be, and what was tried."""
    lines = [f"No order of the calls explains that {call}."]
    if before.calls:
        lines.append("The last calls of an order that explains what came before it, each with what it left:")
        lines += [f"    {each} -> {_shown(state)}" for each, state in before.calls[-_SHOWN:]]
    if overlapping:
        lines.append("At the same time as the call there were:")
        lines += [f"    {each}" for each in overlapping[:_SHOWN]]
    return NotLinearizableError("\n".join(lines), call)


def _shown(state: object) -> str:
    return "absent" if state is ABSENT else repr(state[0] if isinstance(state, tuple) and len(state) == 1 else state)
