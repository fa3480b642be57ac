"""What was measured, in words and tables: on the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.growth import MEMORY, MEMORY_LIMIT, Series
from benchmarks.harness import Comparison, Goal, Run


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}" if seconds * factor < 1000 else f"{seconds * factor:,.0f} {unit}"
    raise AssertionError


def verdict(comparison: Comparison, goal: Goal) -> tuple[str, str]:
    """Return what came of a goal, and whether it is met."""
    reached = comparison.reached(goal)
    if reached is None:
        return "-", "not measured"
    shown = {
        "time": f"{reached:.3f} of its time" if reached < 0.1 else f"{reached:.2f} of its time",
        "speed": f"{1 / reached:.2f} times as fast",
        "rate": f"{1 / reached:,.0f} a second",
        "seconds": duration(reached),
    }[goal.shown]
    return shown, "met" if reached <= goal.limit else "**not met**"


def lines_of(comparison: Comparison) -> Iterator[str]:
    """Yield a table of the sides."""
    yield f"### {comparison.title}"
    yield ""
    yield "| who | median | quartiles | a second | our time / its | what is safe when it is answered |"
    yield "|---|---|---|---|---|---|"
    for side in comparison.sides:
        first, third = side.quartiles
        yield (
            f"| {side.name} | {duration(side.median)} | {duration(first)} to {duration(third)} | {1 / side.median:,.0f}"
            f" | {comparison.ratio(side.name):.3g} | {side.durability} |"
        )
    yield ""


def goals_of(comparisons: Sequence[Comparison], growth: Sequence[Series]) -> Iterator[str]:
    """Yield the table of goals."""
    yield "| what | against | goal | measured | |"
    yield "|---|---|---|---|---|"
    for comparison in comparisons:
        for goal in comparison.goals:
            shown, met = verdict(comparison, goal)
            yield f"| {comparison.title} | {goal.against or '-'} | {goal.text} | {shown} | {met} |"
    for series in growth:
        if MEMORY in series.lines:
            first, *_, last = series.lines[MEMORY]
            shown, met = f"{last / first:.2f} times", "met" if last / first <= MEMORY_LIMIT else "**not met**"
            what = f"Memory of the server, pages and values of {series.xs[-1]:,} keys"
            yield f"| {what} | {series.xs[0]:,} keys | ≤ {MEMORY_LIMIT} times | {shown} | {met} |"
    yield ""


def growth_of(series: Series) -> Iterator[str]:
    """Yield a series as a table, under its picture."""
    yield f"### {series.title}"
    yield ""
    yield f"![{series.title}]({series.name}.svg)"
    yield ""
    yield f"| {series.x_title} | {' | '.join(f'{x:,}' for x in series.xs)} |"
    yield f"|---|{'---|' * len(series.xs)}"
    for name, values in series.lines.items():
        yield f"| {name} | {' | '.join(f'{value:,.3g}' if value < 1000 else f'{value:,.0f}' for value in values)} |"
    yield ""


def written(
    folder: Path,
    run: Run,
    facts: Mapping[str, str],
    comparisons: Sequence[Comparison],
    start: Sequence[Comparison],
    growth: Sequence[Series],
) -> Path:
    """Write the report into a folder, and return its path."""
    lines = [
        "# What `python -m benchmarks` measured",
        "",
        f"The sides took turns, {run.rounds} rounds after one that doesn't count. Times are medians; ratios are medians"
        " of the rounds' ratios. Servers ran on one core, whoever asked them on another. Every save wrote a value that"
        " differs from the one before it.",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        *(f"- not here: {name}. {why}" for name, why in run.missing.items()),
        "",
        "## Goals",
        "",
        *goals_of(comparisons, growth),
        *reasons(folder),
        "## Sides",
        "",
        *(line for comparison in comparisons for line in lines_of(comparison)),
        "## Start-up",
        "",
        *(line for comparison in start for line in lines_of(comparison)),
        "## Growth",
        "",
        *(line for series in growth for line in growth_of(series)),
    ]
    path = folder / "report.md"
    path.write_text("\n".join(lines).rstrip() + "\n", "utf-8")
    return path


def reasons(folder: Path) -> list[str]:
    """Return why goals are not met: `reasons.md` beside the report, which a person wrote after reading a profile."""
    path = folder / "reasons.md"
    return [path.read_text("utf-8").rstrip(), ""] if path.exists() else []
