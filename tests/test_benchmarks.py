"""The benchmarks run, though here too shortly to measure anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import strangers
from benchmarks.harness import Comparison, Goal, Measured, timed
from benchmarks.report import verdict


@pytest.mark.slow
def test_all_of_them_run(tmp_path: Path) -> None:
    """The quick run measures each kind of work once, leaves nothing behind, and reports every goal."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--into", str(tmp_path)]
    ran = subprocess.run(command, cwd=Path(__file__).parent.parent, check=False, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    report = (tmp_path / "report.md").read_text("utf-8")
    goals = report.partition("## Goals")[2].partition("## Sides")[0]
    assert goals.count("met |") + goals.count("met** |") + goals.count("not measured |") >= 14


@pytest.mark.slow
def test_strangers(tmp_path: Path) -> None:
    """A few attackers of each kind take no more memory and disk than the settings allow, and nobody else is refused."""
    settings = {
        "max_value_bytes": "512 KiB",
        "max_body_bytes": "1 MiB",
        "max_request_memory": "4 MiB",
        "max_spool_bytes": "2 MiB",
        "max_address_spool_bytes": "2 MiB",
    }
    quiet = strangers.measure(tmp_path / "quiet", [], 0, 0, 1.0, settings)
    seen = strangers.measure(tmp_path / "loud", list(strangers.ATTACKS), 12, 2**20, 5.0, settings)
    assert seen.connections > 24
    assert seen.seconds
    assert seen.refused == 0
    assert seen.disk <= 2 * 2**20
    assert seen.memory - quiet.memory < 60 * 2**20


@pytest.mark.parametrize(
    ("goal", "shown", "met"),
    [
        (Goal("≤ 0.40 of its time", 0.40, "other"), "0.50 of its time", "**not met**"),
        (Goal("≤ 0.5 of its time", 0.5, "other"), "0.50 of its time", "met"),
        (Goal("≥ 2 times as fast", 1 / 2, "other", "speed"), "2.00 times as fast", "met"),
        (Goal("≥ 3 times as fast", 1 / 3, "other", "speed"), "2.00 times as fast", "**not met**"),
        (Goal("≥ 500 a second", 1 / 500, shown="rate"), "1,000 a second", "met"),
        (Goal("< 1 ms", 0.0009, shown="seconds"), "1 ms", "**not met**"),
        (Goal("≤ 1 of its time", 1, "nobody"), "-", "not measured"),
    ],
)
def test_goals(goal: Goal, shown: str, met: str) -> None:
    """A goal is met where the median of the rounds' ratios, or the median time, is within its limit."""
    ours = Measured("ours", "", [0.001, 0.001, 0.009])
    comparison = Comparison("work", [ours, Measured("other", "", [0.002, 0.002, 0.001])])
    assert verdict(comparison, goal) == (shown, met)


def test_every_operation_has_a_number_of_its_own() -> None:
    """No turn repeats what an earlier one wrote."""
    numbers: list[int] = []
    turn = timed(numbers.append, 3)
    turn()
    turn()
    assert numbers == [*range(6)]
