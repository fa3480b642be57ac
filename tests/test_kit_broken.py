"""What the machine catches: each of twelve mappings with one fault, and no sound one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from cloudstore_mapping.merge import merge
from cloudstore_mapping.testing import mapping_machine
from tests.broken_mappings import (
    BROKEN,
    Cached,
    LosesEmptyObjects,
    Sound,
    StaleAfterDelete,
)
from tests.support.matrix import spread

#: The same tries each time, so what is found once is found always.
TRIES = settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=True,
    report_multiple_bugs=False,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
SHRUNK = settings(TRIES, phases=[Phase.generate, Phase.shrink])


def machine(kind: Callable[[], Sound]) -> type[RuleBasedStateMachine]:
    """Return the machine for one of the mappings here."""
    return mapping_machine(kind, merge=merge, failing=Sound.failing)


def caught(kind: type[Sound], tries: settings) -> tuple[Exception, str]:
    """Return the failure that is found, and the program that it has as a note."""
    with pytest.raises(Exception) as failure:  # noqa: PT011 - whatever a fault leads to
        run_state_machine_as_test(machine(kind), settings=tries)
    (note,) = [note for note in failure.value.__notes__ if note.startswith("As a program:")]
    return failure.value, note.removeprefix("As a program:")


def paste(program: str, factory: type[Sound]) -> None:
    """Execute a program as one who pasted it."""
    names: dict[str, Any] = {"factory": factory, "failing": Sound.failing}
    exec(program, names)


def test_there_are_twelve() -> None:
    """Twelve mappings have one fault each."""
    assert len(set(BROKEN)) == 12


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_each_fault_is_caught(kind: type[Sound]) -> None:
    """Every fault is found within 200 examples, with a program that fails in the same way when it is pasted."""
    failure, program = caught(kind, TRIES)
    with pytest.raises(type(failure)):
        paste(program, kind)


@pytest.mark.parametrize("kind", [LosesEmptyObjects, StaleAfterDelete])
@pytest.mark.slow
def test_short_programs(kind: type[Sound]) -> None:
    """What is found shrinks to a program of a few lines."""
    failure, shrunk = caught(kind, SHRUNK)
    assert len(shrunk.strip().splitlines()) <= 12
    with pytest.raises(type(failure)):
        paste(shrunk, kind)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try each fault at length, and else every third."""
    if "broken" in metafunc.fixturenames:
        kinds = [*BROKEN] if metafunc.config.getoption("--at-length") else [*BROKEN][::3]
        metafunc.parametrize("broken", kinds, ids=lambda kind: kind.__name__)


@pytest.mark.slow
def test_every_program_is_short(broken: type[Sound]) -> None:
    """Each fault shrinks to a dozen lines or two, which fail on the mapping that has it, and not on a sound one."""
    failure, shrunk = caught(broken, SHRUNK)
    assert len(shrunk.strip().splitlines()) <= 24
    with pytest.raises(type(failure)):
        paste(shrunk, broken)
    paste(shrunk, Sound)


@pytest.mark.parametrize("kind", spread([[Sound, Cached]], 2))
def test_a_sound_mapping_passes(kind: type[Sound]) -> None:
    """A mapping without a fault passes."""
    run_state_machine_as_test(machine(kind), settings=settings(TRIES, max_examples=25))
