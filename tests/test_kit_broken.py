"""What the machine catches: twelve mappings with one fault each, and no sound one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from cloudstore_mapping.merge import merge
from cloudstore_mapping.testing import mapping_machine
from tests.broken_mappings import BROKEN, Cached, Sound

#: What an example is found with is the same each time, so it is found each time.
TRIES = settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=True,
    report_multiple_bugs=False,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)


def machine(kind: Callable[[], Sound]) -> type[RuleBasedStateMachine]:
    """Return the machine for one of the mappings here."""
    return mapping_machine(kind, merge=merge, failing=Sound.failing)


def program_of(error: BaseException) -> str:
    """Return the program that a failure has as a note."""
    (note,) = [note for note in error.__notes__ if note.startswith("As a program:")]
    return note.removeprefix("As a program:")


def caught(tried: type[RuleBasedStateMachine]) -> Exception:
    """Return the failure that is found within 200 examples."""
    with pytest.raises(Exception) as failure:  # noqa: PT011 - whatever a fault leads to
        run_state_machine_as_test(tried, settings=TRIES)
    return failure.value


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_each_fault_is_caught(kind: type[Sound]) -> None:
    """Every fault is found within 200 examples; as a short program that fails in the same way, pasted."""
    failure = caught(machine(kind))
    program = program_of(failure)
    assert len(program.strip().splitlines()) <= 12
    names = {"factory": kind, "failing": Sound.failing}
    with pytest.raises(type(failure)):
        exec(program, dict(names))
    exec(program, {**names, "factory": Sound})


@pytest.mark.parametrize("kind", [Sound, Cached])
def test_a_sound_mapping_passes(kind: type[Sound]) -> None:
    """A mapping without a fault passes."""
    run_state_machine_as_test(machine(kind), settings=settings(TRIES, max_examples=100))
