"""The check of histories: it takes what can have happened one after the other, and nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import event, given, settings

from cloudstore_mapping.errors import BadMergeError
from cloudstore_mapping.testing.linearizability import (
    ABSENT,
    Call,
    Hints,
    NotLinearizableError,
    UndecidedError,
    check_linearizable,
    register_step,
)
from tests.histories import Service, recorded, right


def call(
    called: float, returned: float | None, operation: str, argument: Any = None, result: Any = None, client: int = 0
) -> Call:
    """Return a call, its times first."""
    return Call(client, operation, argument, called, returned, result)


def is_linearizable(calls: Sequence[Call], hints: Hints[Any] | None = None) -> bool:
    """Whether the check takes a history."""
    try:
        check_linearizable(calls, register_step, ABSENT, hints=hints)
    except NotLinearizableError:
        return False
    return True


FALSY: list[Any] = [None, 0, False, "", [], {}, 0.0]

ACCEPTED: dict[str, list[Call]] = {
    "nothing": [],
    "one after the other": [call(0, 1, "save", 1), call(2, 3, "load", result=1)],
    "the save comes first": [call(0, 9, "save", 1), call(1, 2, "load", result=1)],
    "the load comes first": [call(0, 9, "save", 1), call(1, 2, "load", result=KeyError)],
    "both in their turn": [
        call(0, 9, "save", 1),
        call(1, 2, "load", result=KeyError),
        call(3, 4, "load", result=1),
    ],
    "at the same moment": [call(0, 1, "save", 1), call(1, 2, "load", result=KeyError)],
    "in no order of the list": [call(2, 3, "load", result=1), call(0, 1, "save", 1)],
    "a lost save was done": [call(0, None, "save", 1), call(1, 2, "load", result=1)],
    "a lost save was done late": [
        call(0, None, "save", 1),
        call(1, 2, "load", result=KeyError),
        call(5, 6, "load", result=1),
    ],
    "a lost save was never done": [call(0, None, "save", 1), call(1, 2, "load", result=KeyError)],
    "a lost load": [call(0, None, "load", result=7), call(1, 2, "load", result=KeyError)],
    "falsy values": [
        step
        for number, value in enumerate(FALSY)
        for step in (
            call(9 * number, 9 * number + 1, "save", value),
            call(9 * number + 2, 9 * number + 3, "load", None, value),
        )
    ],
    "all operations": [
        call(0, 1, "contains", result=False),
        call(2, 3, "delete", result=KeyError),
        call(4, 5, "increment", 2, 2),
        call(6, 7, "increment", 3, 5),
        call(8, 9, "setdefault", 8, 5),
        call(10, 11, "contains", result=True),
        call(12, 13, "pop", result=5),
        call(14, 15, "pop", result=KeyError),
        call(16, 17, "setdefault", [1], [1]),
        call(18, 19, "increment", 1, TypeError),
        call(20, 21, "merge", {"x": 1}, BadMergeError),
        call(22, 23, "merge", {"0": {}}),
        call(24, 25, "load", result=[{}]),
        call(26, 27, "delete"),
        call(28, 29, "load", result=KeyError),
    ],
}
REFUSED: dict[str, list[Call]] = {
    "a stale read": [call(0, 1, "save", 1), call(2, 3, "save", 2), call(4, 5, "load", result=1)],
    "a read from nowhere": [call(0, 1, "save", 1), call(2, 3, "load", result=2)],
    "a read of the future": [call(0, 1, "load", result=1), call(2, 3, "save", 1)],
    "a deleted key is back": [call(0, 1, "save", 1), call(2, 3, "delete"), call(4, 5, "load", result=1)],
    "a lost update": [call(0, 5, "increment", 1, 1), call(1, 6, "increment", 1, 1)],
    "a double apply": [call(0, 1, "increment", 1, 2)],
    "a lost save is done twice": [
        call(0, None, "save", 1),
        call(1, 2, "load", result=1),
        call(3, 4, "save", 2),
        call(5, 6, "load", result=1),
    ],
    "back and forth": [
        call(0, 9, "save", 1),
        call(0, 9, "save", 2),
        call(1, 2, "load", result=1),
        call(3, 4, "load", result=2),
        call(5, 6, "load", result=1),
    ],
    "another type": [call(0, 1, "save", 1), call(2, 3, "load", result=True)],
    "a delete of nothing": [call(0, 1, "delete")],
    "a delete that found nothing": [call(0, 1, "save", 1), call(2, 3, "delete", result=KeyError)],
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str) -> None:
    """A history that some order explains is taken, whatever is known beforehand of its operations."""
    check_linearizable(ACCEPTED[name], register_step, ABSENT)
    check_linearizable(ACCEPTED[name], register_step, ABSENT, hints=Hints())


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    """A history that no order explains is refused, whatever is known beforehand of its operations."""
    assert not is_linearizable(REFUSED[name])
    assert not is_linearizable(REFUSED[name], Hints())


def explained(calls: Sequence[Call]) -> bool:
    """Whether an order explains a history: all orders are tried, of every selection of the calls that were lost."""
    lost = [each for each in calls if each.returned is None]
    for count in range(len(lost) + 1):
        for done in itertools.combinations(lost, count):
            some = [each for each in calls if each.returned is not None or each in done]
            if any(explains(order) for order in itertools.permutations(some)):
                return True
    return False


def explains(order: Sequence[Call]) -> bool:
    """Whether an order keeps to the times, and gives the results."""
    state: Any = ABSENT
    for place, each in enumerate(order):
        if any(later.returned is not None and later.returned < each.called for later in order[place:]):
            return False
        state = register_step(state, each.operation, each.argument, each.result, each.returned is not None)
        if state is None:
            return False
    return True


small: st.SearchStrategy[Any] = st.sampled_from(
    [0, 1, True, None, {}, {"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": 1}, [{}], [1]]
)
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "save": small,
    "merge": small,
    "setdefault": small,
    "increment": st.integers(0, 2),
}


@st.composite
def a_call(draw: st.DrawFn) -> Call:
    """Return some call, with a result that may be possible."""
    operation = draw(st.sampled_from([*ARGUMENTS, "load", "load", "pop", "delete", "contains"]))
    argument = draw(ARGUMENTS.get(operation, st.none()))
    called = draw(st.integers(0, 8))
    returned = draw(st.none() | st.integers(called, 9))
    results = {
        "contains": st.booleans(),
        "increment": st.integers(0, 4),
        "merge": st.sampled_from([None, None, BadMergeError]),
        "delete": st.sampled_from([None, None, KeyError]),
        "save": st.none(),
    }
    return Call(0, operation, argument, called, returned, draw(results.get(operation, small | st.just(KeyError))))


@given(st.lists(a_call(), max_size=5))
@settings(max_examples=300)
def test_like_brute_force(calls: list[Call]) -> None:
    """The check takes exactly what trying all orders takes, with what is known beforehand and without."""
    expected = explained(calls)
    event(f"explained: {expected}")
    assert is_linearizable(calls) is expected
    assert is_linearizable(calls, Hints()) is expected


def stale(states: Sequence[Any], operation: str, argument: Any) -> tuple[Any, Any]:
    """Answer every seventh read from what was there a while ago."""
    if operation == "load" and len(states) % 7 == 0:
        return states[-1], right(states[: -min(len(states) // 2, 60)], "load", None)[1]
    return right(states, operation, argument)


def losing(states: Sequence[Any], operation: str, argument: Any) -> tuple[Any, Any]:
    """Do the fiftieth write on the state before the last."""
    return right(states[:-1] if len(states) == 50 and operation != "load" else states, operation, argument)


def doubling(states: Sequence[Any], operation: str, argument: Any) -> tuple[Any, Any]:
    """Do the fiftieth write twice, and answer as it was after the first time."""
    state, result = right(states, operation, argument)
    return (right([state], operation, argument)[0] if len(states) == 50 else state), result


MIXED = ["save", "merge", "load", "load", "delete"]
COUNTING = ["increment", "increment", "load"]


@pytest.mark.parametrize("lost", [0.0, 0.02])
@pytest.mark.parametrize(("clients", "calls"), [(16, 20), (32, 10)])
@pytest.mark.parametrize("operations", [COUNTING, ["save", "load"], ["merge", "load", "load"], MIXED])
def test_right_histories(operations: list[str], clients: int, calls: int, lost: float) -> None:
    """A history of hundreds of calls, of which most were under way at once, is taken within a moderate search."""
    history = recorded(1, clients=clients, calls=calls, operations=operations, lost=lost)
    check_linearizable(history, register_step, ABSENT, limit=20_000)


@pytest.mark.parametrize(
    ("fault", "operations"),
    [(stale, ["save", "load"]), (stale, COUNTING), (losing, COUNTING), (doubling, COUNTING)],
)
def test_seeded_faults(fault: Service, operations: list[str]) -> None:
    """A stale read, a lost update and a double apply are found in a history of hundreds of calls."""
    history = recorded(2, clients=16, calls=20, operations=operations, service=fault)
    with pytest.raises(NotLinearizableError) as caught:
        check_linearizable(history, register_step, ABSENT, limit=20_000)
    assert caught.value.call in history


def test_the_account() -> None:
    """The error names the first call that can't be, what an order of those before it left, and what ran beside it."""
    history = [
        call(0, 1, "save", {"a": 1}, client=1),
        call(2, 3, "load", result={"a": 1}, client=2),
        call(4, 9, "increment", 1, TypeError, client=1),
        call(5, 6, "load", result=KeyError, client=2),
        call(7, 8, "load", result=5, client=3),
    ]
    with pytest.raises(NotLinearizableError) as caught:
        check_linearizable(history, register_step, ABSENT)
    assert caught.value.call is history[3]
    assert str(caught.value) == (
        "No order of the calls explains that client 2: load() gave KeyError.\n"
        "The last calls of an order that explains what came before it, each with what it left:\n"
        "    client 1: save({'a': 1}) gave None -> {'a': 1}\n"
        "    client 2: load() gave {'a': 1} -> {'a': 1}\n"
        "At the same time as the call there were:\n"
        "    client 1: increment(1) gave TypeError"
    )


def test_the_limit() -> None:
    """A search that takes too long gives up, and says neither yes nor no."""
    history = [call(0, 9, "save", number) for number in range(30)] + [call(10, 11, "load", result=30)]
    with pytest.raises(UndecidedError, match="fewer clients"):
        check_linearizable(history, register_step, ABSENT, limit=1000, hints=Hints())
    assert not is_linearizable(history)


def test_a_model_of_ones_own() -> None:
    """Any function that tells what a state becomes can be checked against; here of a queue."""

    def step(state: list[int], operation: str, argument: Any, result: Any, is_known: bool) -> list[int] | None:
        if operation == "put":
            return [*state, argument]
        if not is_known or (state and state[0] == result):
            return state[1:]
        return None

    empty: list[int] = []
    check_linearizable([call(0, 5, "put", 1), call(0, 5, "put", 2), call(6, 7, "take", result=2)], step, empty)
    with pytest.raises(NotLinearizableError):
        check_linearizable([call(0, 1, "put", 1), call(2, 3, "put", 2), call(6, 7, "take", result=2)], step, empty)


def test_an_unknown_operation() -> None:
    """An operation that the model doesn't know is said so."""
    with pytest.raises(ValueError, match="'jump' is no operation"):
        check_linearizable([call(0, 1, "jump")], register_step, ABSENT)
