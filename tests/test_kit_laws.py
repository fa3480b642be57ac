"""The laws of merges, and merges that break one each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest

from cloudstore_mapping.errors import BadMergeError
from cloudstore_mapping.merge import merge
from cloudstore_mapping.testing import assert_merge_laws, find_counterexample
from cloudstore_mapping.testing.laws import LAWS


def appending(stored: Any, value: Any) -> Any:
    """Append lists, where they should be merged."""
    if isinstance(stored, list) and isinstance(value, list):
        return [*merge(None, stored), *merge(None, value)]  # type: ignore[misc]  # lists, as they were
    return merge(stored, value)


def wrapping(stored: Any, value: Any) -> Any:
    """Leave something else than the value where nothing was."""
    return {"": value} if stored is None and value != "" and not isinstance(value, dict) else merge(stored, value)


def counting(stored: Any, value: Any) -> Any:
    """Add numbers."""
    if type(stored) is int and type(value) is int:
        return stored + value
    return merge(stored, value)


def mutating(stored: Any, value: Any) -> Any:
    """Change what is stored in place."""
    result = merge(stored, value)
    if isinstance(stored, dict) and isinstance(result, dict):
        stored.update(result)
    return result


def aliasing(stored: Any, value: Any) -> Any:
    """Keep the parts of the value."""
    merged = merge(stored, value)
    if isinstance(merged, dict) and isinstance(value, dict) and isinstance(stored, dict):
        return {**merged, **{name: part for name, part in value.items() if name not in stored}}
    return merged


def ordered(stored: Any, value: Any) -> Any:
    """Let the first name of a value say who wins."""
    if isinstance(value, dict) and next(iter(value), "") == "b":
        return merge(None, value)
    return merge(stored, value)


small: st.SearchStrategy[Any] = st.recursive(
    st.integers(0, 2) | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=3,
)

BROKEN: dict[str, Callable[[Any, Any], Any]] = {
    "idempotent": appending,
    "identity": wrapping,
    "absorption": counting,
    "no mutation": mutating,
    "no aliasing": aliasing,
    "key order free": ordered,
}


@pytest.mark.parametrize("examples", [50, pytest.param(300, marks=pytest.mark.slow)])
def test_our_merge(examples: int, at_length: bool) -> None:
    """The merge of this project keeps all laws of one that can be repeated."""
    assert_merge_laws(merge, refuses=(BadMergeError,), examples=5 * examples if at_length else examples)


@pytest.mark.parametrize("law", BROKEN)
def test_a_broken_law_is_found(law: str) -> None:
    """A merge that breaks a law is found to, with the simplest values that show it."""
    found = find_counterexample(law, BROKEN[law], values=small, examples=500)
    assert found is not None
    assert len(found) == LAWS[law].arguments
    assert not LAWS[law].holds(BROKEN[law], *found)


def test_the_account() -> None:
    """The error says which law it is about, and shows the values."""
    with pytest.raises(AssertionError) as caught:
        assert_merge_laws(appending, values=small)
    sentence, _, shown = str(caught.value).partition(": see ")
    assert sentence == "It does not hold that merging a value once more changes nothing (idempotent)"
    stored, value = eval(shown.rstrip("."))
    assert appending(appending(stored, value), value) != appending(stored, value)


@pytest.mark.slow
@pytest.mark.parametrize("law", BROKEN)
def test_a_broken_law_is_found_in_any_values(law: str) -> None:
    """It is found in the values of the kit as well."""
    assert find_counterexample(law, BROKEN[law], examples=3000) is not None


@pytest.mark.parametrize("law", ["associative", "commutative"])
@pytest.mark.slow
def test_laws_that_do_not_hold(law: str) -> None:
    """That a merge is neither associative nor commutative is shown by example."""
    found = find_counterexample(law, merge, values=small)
    assert found is not None
    a, b, *rest = found
    if law == "commutative":
        assert merge(a, b) != merge(b, a)
    else:
        (c,) = rest
        assert merge(merge(a, b), c) != merge(a, merge(b, c))
        with pytest.raises(AssertionError, match=r"\(associative\)"):
            assert_merge_laws(merge, associative=True, values=small)


@pytest.mark.slow
def test_a_merge_that_is_associative() -> None:
    """Where a law holds no example is found."""

    def latest(stored: int | None, value: int) -> int:
        return value if stored is None else max(stored, value)

    assert_merge_laws(latest, associative=True, values=st.integers(), examples=50)
    assert find_counterexample("commutative", latest, values=st.integers()) is None


def test_what_is_refused_is_left_out() -> None:
    """Values that can't be merged break no law, and other errors are raised."""

    def choosy(stored: Any, value: Any) -> Any:
        if stored is not None and type(stored) is not type(value):
            raise LookupError(value)
        return merge(None, value)

    assert_merge_laws(choosy, values=small, refuses=(LookupError,), examples=50)
    with pytest.raises(LookupError):
        assert_merge_laws(choosy, values=small)


def test_an_unknown_law() -> None:
    """A law that there is none of is said so, with those that there are."""
    with pytest.raises(ValueError, match="'distributive' is none of the laws; those are idempotent"):
        find_counterexample("distributive", merge)
