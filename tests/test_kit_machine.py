"""The parameters of the machine: what each of them lets it find, and what it lets pass."""

from __future__ import annotations

import unittest
from collections import UserDict
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from cloudstore_mapping.merge import merge
from cloudstore_mapping.testing import mapping_machine
from cloudstore_mapping.testing.program import Program, shown
from tests.broken_mappings import Sound
from tests.test_kit_broken import TRIES

Factory = Callable[[], Any]


def failure_of(machine: type[RuleBasedStateMachine]) -> str:
    """Return the error that is found, with its program."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
        run_state_machine_as_test(machine, settings=TRIES)
    return "\n".join([str(caught.value), *caught.value.__notes__])


def passes(machine: type[RuleBasedStateMachine]) -> None:
    """Check that nothing is found."""
    run_state_machine_as_test(machine, settings=settings(TRIES, max_examples=10))


class Disk:
    """What `Handle` reads and writes."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}


class Handle(Sound):
    """A mapping on a disk that others have open too."""

    def __init__(self, disk: Disk | None = None) -> None:
        super().__init__()
        self.disk = Disk() if disk is None else disk
        self.texts = self.disk.texts
        self.closed = 0

    def close(self) -> None:
        """Count."""
        self.closed += 1


def reopened(handle: Handle) -> Handle:
    """Close a mapping, and open it anew."""
    handle.close()
    return Handle(handle.disk)


def test_a_mapping_that_keeps_objects() -> None:
    """A `dict` passes where that is said, and else fails with a sentence that says how to."""
    passes(mapping_machine(dict, copies=False))
    assert "say copies=False" in failure_of(mapping_machine(dict))


def test_reopening() -> None:
    """What a mapping loses when it is opened again is found."""

    def forgetful(handle: Handle) -> Handle:
        handle.disk.texts.pop(next(iter(handle), ""), None)
        return reopened(handle)

    passes(mapping_machine(Handle, merge=merge, reopen=reopened))
    assert "m = reopen(m)" in failure_of(mapping_machine(Handle, merge=merge, reopen=forgetful))


def test_handles() -> None:
    """What one of two mappings on a store doesn't see of the other is found."""

    def apart(handle: Handle) -> Handle:
        other = Handle(handle.disk)
        other.texts = dict(handle.texts)
        return other

    passes(mapping_machine(Handle, merge=merge, handles=lambda handle: Handle(handle.disk)))
    assert "other = handles(m)" in failure_of(mapping_machine(Handle, merge=merge, handles=apart))


def test_closing() -> None:
    """What can be closed is closed once, whatever came of it."""
    opened: list[Handle] = []

    def new() -> Handle:
        opened.append(Handle())
        return opened[-1]

    passes(mapping_machine(new, merge=merge))
    assert {handle.closed for handle in opened} == {1}


def test_refused_merges() -> None:
    """Where the merge raises, `|=` has to raise as well."""

    def choosy(stored: Any, value: Any) -> Any:
        if type(stored) is not type(value):
            raise ValueError("They are of two types.")
        return merge(stored, value)

    assert "|= took what can't be merged" in failure_of(mapping_machine(Sound, merge=choosy))


def test_another_object_by_a_merge() -> None:
    """An `|=` that gives another object is found."""

    class Copying(UserDict[Any, Any]):
        def __ior__(self, other: Any) -> Any:  # type: ignore[misc]  # on purpose
            return Copying({**self.data, **other})

    assert "m.__ior__({}) is m" in failure_of(mapping_machine(Copying, copies=False))


def test_keys_and_values_of_ones_own() -> None:
    """Only keys and values of the strategies are stored, but where keys of another type are tried."""
    seen: list[tuple[Any, Any]] = []

    class Watched(UserDict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            seen.append((type(key), type(value)))
            super().__setitem__(key, value)

    passes(mapping_machine(Watched, keys=st.binary(), values=st.dates(), other_keys=None, copies=False))
    assert {kind for kind, _ in seen} == {bytes}
    assert len({kind for _, kind in seen}) == 1


def test_for_unittest() -> None:
    """The machine's `TestCase` is one that unittest runs."""
    case = mapping_machine(dict, copies=False).TestCase
    case.settings = settings(TRIES, max_examples=5)
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert (result.testsRun, result.wasSuccessful()) == (1, True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a" * 250, "'a' * 250"),
        ("b" + "a" * 249, "'b' + 'a' * 249"),
        ("e\u0301", "'e\\u0301'"),
        ({"b", "a", ","}, "{',', 'a', 'b'}"),
        (set(), "set()"),
        ({"a": [None, 1.5, "\0"]}, "{'a': [None, 1.5, '\\x00']}"),
    ],
)
def test_values_in_programs(value: object, text: str) -> None:
    """Values are written as short expressions that give them, in ASCII and always the same."""
    assert shown(value) == text
    assert eval(text) == value


def test_a_program_imports_what_it_needs() -> None:
    """A program begins with the imports of what is used in it."""
    program = Program({"factory": dict})
    program.do("$m = factory()")
    program.same("$m['a']")
    program.both("$m.update(MappingProxyType($other))", other={"a": 1})
    assert str(program) == (
        "from types import MappingProxyType\n"
        "from contextlib import suppress\n"
        "m = factory()\n"
        "with suppress(KeyError):\n"
        "    m['a']\n"
        "m.update(MappingProxyType({'a': 1}))"
    )


def test_types_count() -> None:
    """A value that is equal but of another type is found, with a program that shows it."""

    class Loose(UserDict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            super().__setitem__(key, int(value) if isinstance(value, bool) else value)

    text = failure_of(mapping_machine(Loose, values=st.booleans(), copies=False))
    assert "assert same(" in text or "popitem() gave" in text
