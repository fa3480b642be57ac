"""The laws that a merge of two values may keep, and examples that show where it doesn't."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, Final, NamedTuple, TypeAlias

import hypothesis.strategies as st
from hypothesis import Phase, find, settings
from hypothesis.errors import NoSuchExample

from cloudstore_mapping.testing.exact import same
from cloudstore_mapping.testing.strategies import json_values, patches

#: A function of what is stored and of what is merged into it, to what is stored then; it may refuse by an exception.
Merge: TypeAlias = Callable[[Any, Any], Any]


class Law(NamedTuple):
    """A claim about a merge, in a sentence, and how many values it is about."""

    sentence: str
    arguments: int
    holds: Callable[..., bool]


def _merged_twice(merge: Merge, stored: Any, value: Any) -> bool:
    once = merge(stored, value)
    return same(merge(once, value), once)


def _leaves_arguments(merge: Merge, stored: Any, value: Any) -> bool:
    before = deepcopy((stored, value))
    try:
        merge(stored, value)
    except Exception:  # noqa: BLE001 - a merge that is refused may change nothing either
        return same((stored, value), before)
    return same((stored, value), before)


def _shares_nothing(merge: Merge, stored: Any, value: Any) -> bool:
    result = merge(stored, value)
    return _containers(result).isdisjoint(_containers(stored) | _containers(value))


def _containers(value: Any) -> set[int]:
    found: set[int] = set()
    waiting = [value]
    while waiting:  # a union per level would copy the set as often as the value is deep
        part = waiting.pop()
        if isinstance(part, dict | list):
            found.add(id(part))
            waiting += part.values() if isinstance(part, dict) else part
    return found


def _is_free_of_order(merge: Merge, stored: Any, value: Any) -> bool:
    return same(merge(stored, value), merge(_turned(stored), _turned(value)))


def _turned(value: Any) -> Any:
    """Return a copy in which the names of each dictionary stand the other way round."""
    if isinstance(value, dict):
        return {name: _turned(value[name]) for name in reversed(value)}
    return [_turned(part) for part in value] if isinstance(value, list) else value


#: The laws by their names; the first six are those of a merge that can be repeated without harm.
LAWS: Final[Mapping[str, Law]] = {
    "idempotent": Law("merging a value once more changes nothing", 2, _merged_twice),
    "identity": Law(
        "what is merged into nothing is there then", 1, lambda merge, value: same(merge(None, value), value)
    ),
    "absorption": Law(
        "merging a value into itself changes nothing",
        1,
        lambda merge, value: same(merge(value, deepcopy(value)), value),
    ),
    "no mutation": Law("neither argument is changed", 2, _leaves_arguments),
    "no aliasing": Law("the result shares no list and no dictionary with an argument", 2, _shares_nothing),
    "key order free": Law("the order of names carries no meaning", 2, _is_free_of_order),
    "associative": Law(
        "merging two values one after the other is merging the one that they make",
        3,
        lambda merge, a, b, c: same(merge(merge(a, b), c), merge(a, merge(b, c))),
    ),
    "commutative": Law(
        "two values merge to the same either way round", 2, lambda merge, a, b: same(merge(a, b), merge(b, a))
    ),
}
_ALWAYS: Final = ("idempotent", "identity", "absorption", "no mutation", "no aliasing", "key order free")


def find_counterexample(
    law: str,
    merge: Merge,
    *,
    values: st.SearchStrategy[Any] | None = None,
    refuses: tuple[type[Exception], ...] = (ValueError,),
    examples: int = 1000,
) -> tuple[Any, ...] | None:
    """
    Return the simplest values that were found for which a law doesn't hold, None if none were.

    Parameters
    ----------
    law
        A name of `LAWS`: ``idempotent``, ``identity``, ``absorption``, ``no mutation``, ``no aliasing``, ``key order
        free``, ``associative``, ``commutative``.
    merge
        A function of what is stored (None: nothing) and of what is merged into it, to what is stored then.
    values
        What it merges; by default JSON values, and such as touch what is in the value before them.
    refuses
        The errors by which it says that two values can't be merged; such values are left out.
    examples
        How many to try.
    """
    if law not in LAWS:
        raise ValueError(f"{law!r} is none of the laws; those are {', '.join(LAWS)}.")

    def is_broken(arguments: tuple[Any, ...]) -> bool:
        try:
            return not LAWS[law].holds(merge, *deepcopy(arguments))
        except refuses:
            return False

    count = LAWS[law].arguments
    strategy = _touching(count) if values is None else st.tuples(*[values] * count)
    try:
        return find(
            strategy,
            is_broken,
            settings=settings(
                deadline=None,  # a slow machine is no counterexample
                max_examples=examples,
                database=None,
                derandomize=True,
                phases=[Phase.generate, Phase.shrink],
            ),
        )
    except NoSuchExample:
        return None


def _touching(count: int) -> st.SearchStrategy[tuple[Any, ...]]:
    """Return values of which each touches what is in the one before it, or is any."""
    tuples: st.SearchStrategy[tuple[Any, ...]] = st.tuples(json_values())
    for _ in range(count - 1):
        tuples = tuples.flatmap(
            lambda before: (patches(before[-1]) | json_values()).map(lambda value: (*before, value))
        )
    return tuples


def assert_merge_laws(
    merge: Merge,
    *,
    associative: bool = False,
    values: st.SearchStrategy[Any] | None = None,
    refuses: tuple[type[Exception], ...] = (ValueError,),
    examples: int = 200,
) -> None:
    """
    Check that a merge is idempotent, knows identity and absorption, leaves its arguments alone, and sees no order.

    The parameters are those of `find_counterexample`; `associative`: that law as well. Raises `AssertionError` with the
    simplest values that were found against a law.
    """
    for law in (*_ALWAYS, "associative") if associative else _ALWAYS:
        found = find_counterexample(law, merge, values=values, refuses=refuses, examples=examples)
        if found is not None:
            shown = ", ".join(map(ascii, found))
            raise AssertionError(f"It does not hold that {LAWS[law].sentence} ({law}): see {shown}.")
