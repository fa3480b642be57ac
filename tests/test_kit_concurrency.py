"""Threads at one key: what keeps its promises passes, and what breaks them is found."""

from __future__ import annotations

import threading
from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest

from cloudstore_mapping.errors import LockedError, OutcomeUnknownError
from cloudstore_mapping.merge import merge
from cloudstore_mapping.testing import NotLinearizableError, assert_linearizable

EVERYTHING = ["save", "load", "load", "contains", "delete", "pop", "setdefault", "merge", "increment"]


class Sound(UserDict[str, Any]):
    """Does each operation under a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()

    def __getitem__(self, key: str) -> Any:
        with self.lock:
            return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        with self.lock:
            super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        with self.lock:
            super().__delitem__(key)

    def pop(self, key: str, *default: Any) -> Any:
        """Take out."""
        with self.lock:
            return super().pop(key, *default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Save where nothing is."""
        with self.lock:
            return super().setdefault(key, default)

    def merge(self, key: str, value: Any) -> None:
        """Merge, as a store does."""
        with self.lock:
            self[key] = merge(self.get(key), value)

    def transform(self, key: str, function: Callable[[Any], Any], default: Any) -> Any:
        """Save what a function makes of the value."""
        with self.lock:
            self[key] = function(self.get(key, default))
            return self[key]


class Stale(Sound):
    """Answers every fifth read with the value that was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.before: Any = None

    def __getitem__(self, key: str) -> Any:
        with self.lock:
            self.reads += 1
            value = super().__getitem__(key)
            return self.before if self.reads % 5 == 0 and self.before is not None else value

    def __setitem__(self, key: str, value: Any) -> None:
        with self.lock:
            self.before = self.data.get(key)
            super().__setitem__(key, value)


class Losing(Sound):
    """Loses each tenth sum."""

    def __init__(self) -> None:
        super().__init__()
        self.sums = 0

    def transform(self, key: str, function: Callable[[Any], Any], default: Any) -> Any:
        """Return the sum, and forget it now and then."""
        with self.lock:
            self.sums += 1
            value = function(self.get(key, default))
            if self.sums % 10:
                self[key] = value
            return value


@pytest.mark.parametrize("seed", range(5))
def test_a_sound_mapping(seed: int) -> None:
    """Whatever threads do to a mapping that does one thing at a time fits together."""
    history = assert_linearizable([Sound()] * 6, operations=EVERYTHING, seed=seed)
    assert len(history.calls) == 6 * 25
    assert {call.client for call in history.calls} == set(range(6))


@pytest.mark.parametrize(("kind", "operations"), [(Stale, ["save", "load"]), (Losing, ["increment"])])
def test_what_breaks_its_promises(kind: type[Sound], operations: list[str]) -> None:
    """Stale reads and lost sums are found."""
    with pytest.raises(NotLinearizableError, match="No order of the calls explains"):
        assert_linearizable([kind()] * 4, operations=operations)


def test_errors_of_a_thread() -> None:
    """An error that is neither an answer nor an unknown outcome is raised."""

    class Locked(Sound):
        def __setitem__(self, key: str, value: Any) -> None:
            raise LockedError("Locked.")

    with pytest.raises(LockedError):
        assert_linearizable([Locked()] * 2, operations=["save"])


def test_lost_answers() -> None:
    """An operation whose answer was lost may have been done, or not."""

    class Lossy(Sound):
        count = 0

        def __setitem__(self, key: str, value: Any) -> None:
            with self.lock:
                self.count += 1
                if self.count % 4:
                    super().__setitem__(key, value)
                if self.count % 4 < 2:
                    raise OutcomeUnknownError("No answer came.")

    history = assert_linearizable([Lossy()] * 4, operations=["save", "load"])
    assert any(call.returned is None for call in history.calls)


def test_an_unknown_operation() -> None:
    """An operation that there is none of is said so."""
    with pytest.raises(ValueError, match="'jump' is no operation on a key; those are save"):
        assert_linearizable([Sound()], operations=["jump"])
