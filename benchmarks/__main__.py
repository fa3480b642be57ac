"""`python -m benchmarks`: measures everything, prints it, and writes the report with its pictures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks import client, distance, embedded, growth, listing, machine, plots, report, server, shelves, startup
from benchmarks.harness import Comparison, MissingError, Run

RESULTS: Final = Path(__file__).parent / "results"

_ROWS: Final = (*client.ALL, *embedded.ALL, *shelves.ALL, *server.ALL, *distance.ALL, *listing.ALL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few operations of each kind, to see that all runs")
    parser.add_argument("--into", type=Path, default=RESULTS, help="the folder for the report and its pictures")
    options = parser.parse_args(arguments)
    facts = machine.facts()
    with TemporaryDirectory(prefix="cloudstore-bench-") as folder:
        run = Run(Path(folder))
        if options.quick:
            run = Run(Path(folder), rounds=1, scale=0.002, with_servers=False)
        comparisons = [_shown(comparison) for rows in _ROWS for comparison in rows(run)]
        start = [_shown(comparison) for comparison in startup.of_programs(run)]
        series = []
        for each in growth.measured(run):
            _say(*report.growth_of(each))
            series.append(each)
    options.into.mkdir(parents=True, exist_ok=True)
    for each in series:
        try:
            plots.drawn(each, options.into)
        except MissingError as error:
            run.missing["pictures"] = str(error)
    _say(*report.goals_of(comparisons, series), *(f"Not here: {name}. {why}" for name, why in run.missing.items()))
    _say(str(report.written(options.into, run, facts, comparisons, start, series)))


def _shown(comparison: Comparison) -> Comparison:
    _say(*report.lines_of(comparison))
    return comparison


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    main()
