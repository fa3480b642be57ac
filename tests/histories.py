"""Made-up histories of one key: what clients of a service would have recorded of a right one or a faulty one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from cloudstore_mapping.testing.linearizability import ABSENT, Call, register_step

#: What a service does: from the states that there were so far, the newest last, to the new one and the result.
Service: TypeAlias = Callable[[Sequence[Any], str, Any], tuple[Any, Any]]


def right(states: Sequence[Any], operation: str, argument: Any) -> tuple[Any, Any]:
    """Do what is asked, on the newest state; return the one after it and the result."""
    state = states[-1]
    after = register_step(state, operation, argument, None, False)
    if operation in ("load", "delete") and state is ABSENT:
        return after, KeyError
    if operation == "load":
        return after, state[0]
    return after, after[0] if operation == "increment" else None


def recorded(
    seed: int, *, clients: int, calls: int, operations: Sequence[str], service: Service = right, lost: float = 0.0
) -> list[Call]:
    """
    Return a history of so many clients with so many calls each, of which most are under way at any time.

    A call takes effect at a moment of its own between its beginning and its end. `lost` is the share of those whose
    outcome is unknown; every other one of these takes no effect.
    """
    dice = random.Random(seed)
    planned = []
    for client in range(clients):
        now = 0.0
        for _ in range(calls):
            called, effect, returned = [now := now + dice.expovariate(1.0) for _ in range(3)]
            operation = dice.choice(operations)
            arguments = {"save": dice.randrange(1000), "increment": 1, "merge": {dice.choice("abcdef"): client}}
            outcome = dice.choice([True, False]) if dice.random() < lost else None
            planned.append((effect, called, returned, client, operation, arguments.get(operation), outcome))
    states: list[Any] = [ABSENT]
    history: list[Call] = []
    for _, called, returned, client, operation, argument, is_done in sorted(planned):
        if is_done is False:
            history.append(Call(client, operation, argument, called, None, None))
            continue
        state, result = service(states, operation, argument)
        states.append(state)
        history.append(Call(client, operation, argument, called, returned if is_done is None else None, result))
    return history
