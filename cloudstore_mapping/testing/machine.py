"""The state machine that tries a mapping: made to measure, for any `MutableMapping`."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Final, TypeVar

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine

from cloudstore_mapping.testing.strategies import json_values
from cloudstore_mapping.testing.strategies import keys as hostile_keys
from cloudstore_mapping.testing.traps import Traps

M = TypeVar("M", bound=MutableMapping[Any, Any])

#: Keys that are no text, some of which a mapping may take for one, and what can be no key at all.
OTHER_KEYS: Final[st.SearchStrategy[Any]] = st.sampled_from(
    [1, 0, None, 2.5, b"a", ("a",), ("a", "b"), 10**30, frozenset({"a"})]
) | st.builds(list)


def mapping_machine(
    factory: Callable[[], M],
    *,
    keys: st.SearchStrategy[Any] | None = None,
    values: st.SearchStrategy[Any] | None = None,
    merge: Callable[[Any, Any], Any] | None = None,
    reopen: Callable[[M], M] | None = None,
    handles: Callable[[M], M] | None = None,
    failing: Callable[[M], AbstractContextManager[object]] | None = None,
    other_keys: st.SearchStrategy[Any] | None = OTHER_KEYS,
    copies: bool = True,
) -> type[RuleBasedStateMachine]:
    """
    Return a state machine that tries a mapping; its ``TestCase`` is a test, for pytest and unittest.

    What fails is raised with a short program as a note, in which the names of the parameters stand for what was given.
    A mapping that has `close` is closed at the end of each try.

    Parameters
    ----------
    factory
        Makes a new, empty mapping.
    keys, values
        What it takes; by default hostile text (`strategies.keys`) and JSON (`strategies.json_values`). Values have to
        be equal to themselves, keys that are equal have to be the same.
    merge
        What ``|=`` makes of a stored value and another one, where it raises ``|=`` has to raise as well; None: the new
        one takes its place. A mapping without ``|`` or ``|=`` is tried without.
    reopen
        Closes a mapping, and returns a new one on the same store.
    handles
        Returns a further mapping on the store of the one that it is given, which sees at once what the other does.
    failing
        Returns a context manager within which whatever is read of a mapping fails, with an error other than `KeyError`.
    other_keys
        Keys that it doesn't have to take, but may not take for others either; None: it is tried without.
    copies
        Whether what is stored, and what is read, are copies. A `dict` keeps the objects themselves.
    """

    class Machine(Traps):
        strategies: ClassVar[dict[str, st.SearchStrategy[Any]]] = {
            "keys": hostile_keys() if keys is None else keys,
            "values": json_values() if values is None else values,
            "other keys": st.nothing() if other_keys is None else other_keys,
        }
        functions: ClassVar[dict[str, Any]] = {
            "factory": factory,
            "merge": merge,
            "reopen": reopen,
            "handles": handles,
            "failing": failing,
        }
        has_other_keys: ClassVar[bool] = other_keys is not None
        is_copying: ClassVar[bool] = copies

    return Machine
