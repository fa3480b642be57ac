"""The merge: it keeps its laws for any two values, or refuses them by the one error that it has."""

from __future__ import annotations

from typing import Final

from cloudstore_mapping.errors import BadMergeError
from cloudstore_mapping.merge import merge
from cloudstore_mapping.testing.laws import LAWS
from tests.fuzz.values import Values

_OF_A_MERGE: Final = ("idempotent", "no mutation", "no aliasing")
_OF_A_VALUE: Final = ("identity", "absorption")


def check(data: bytes) -> None:
    """Merge the second value in the bytes into the first."""
    values = Values(data)
    stored, value = values.value(), values.value()
    for law in _OF_A_VALUE:
        assert LAWS[law].holds(merge, stored), LAWS[law].sentence
    try:
        merge(stored, value)
    except BadMergeError:
        return
    for law in _OF_A_MERGE:
        assert LAWS[law].holds(merge, stored, value), LAWS[law].sentence
