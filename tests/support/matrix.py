"""Tables too large to be tried whole each time: by default a part that meets each value often, the rest when slow."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet


def spread(axes: Iterable[Iterable[Any]], part: int) -> list[ParameterSet]:
    """
    Return all combinations of one value of each axis; those that are not among one in `part` are slow.

    Whatever two values of different axes there are, a third axis of at least `part` values has them meet by default.
    """
    return [
        pytest.param(*(value for _, value in chosen), marks=() if is_default else pytest.mark.slow)
        for chosen in itertools.product(*map(enumerate, axes))
        for is_default in [sum(number for number, _ in chosen) % part == 0]
    ]
