"""Many threads at one key, and whether what they saw can have happened one after the other."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from typing import Any, Final

from cloudstore_mapping.testing.histories import History
from cloudstore_mapping.testing.linearizability import ABSENT, check_linearizable, register_step
from cloudstore_mapping.testing.strategies import PERFORMED, Operation

#: What any mapping does at once, whoever else does something meanwhile.
SINGLE: Final = ("save", "load", "load", "contains", "delete")


def together(*acts: Callable[[], object]) -> None:
    """Run functions at once, each in a thread, and raise what any of them raises."""
    errors: list[BaseException] = []

    def run(act: Callable[[], object]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - raised where the threads are awaited
            errors.append(error)

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def assert_linearizable(
    mappings: Sequence[MutableMapping[str, Any]],
    *,
    key: str = "shared",
    calls: int = 25,
    operations: Sequence[str] = SINGLE,
    seed: int = 0,
    history: History | None = None,
) -> History:
    """
    Let a thread for each of the mappings work at one key of a store, and check that the results fit together.

    Parameters
    ----------
    mappings
        Handles on one store, or the same mapping several times.
    key
        The key, under which nothing is.
    calls
        How many each thread makes.
    operations
        What they do, by the names of `register_step`; a name that is there twice comes twice as often. ``setdefault``
        and ``pop`` belong there if the mapping does them at once, ``merge`` and ``increment`` need a store of ours.
    seed
        Another one gives other operations.
    history
        Where to record the calls; with `History` one can say which errors are answers.

    Raises
    ------
    NotLinearizableError
        No order of the calls explains all results.
    """
    recorded = History() if history is None else history
    start = threading.Barrier(len(mappings))

    def work(client: int, mapping: MutableMapping[str, Any]) -> None:
        dice = random.Random(f"{seed} {client}")  # noqa: S311 - not for a secret
        start.wait()
        for number in range(calls):
            operation = _drawn(dice, operations, key, client, number)
            with recorded.call(client, operation.operation, operation.argument) as call:
                call.result = operation.perform(mapping)

    together(*(partial(work, *each) for each in enumerate(mappings)))
    check_linearizable(recorded.calls, register_step, ABSENT)
    return recorded


def _drawn(dice: random.Random, operations: Sequence[str], key: str, client: int, number: int) -> Operation:
    """Return an operation whose value no other call writes, so that who reads it knows whose it is."""
    name = dice.choice(operations)
    if name not in PERFORMED:
        raise ValueError(f"{name!r} is no operation on a key; those are {', '.join(PERFORMED)}.")
    mine = {"save": [client, number], "setdefault": {"by": [client, number]}, "merge": {str(client): number}}
    return Operation(name, key, 1 if name == "increment" else mine.get(name))
