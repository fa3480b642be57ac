"""Series as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import MissingError

if TYPE_CHECKING:
    from benchmarks.growth import Series


def drawn(series: Series, folder: Path, *, xscale: str = "log", marker: str = "o") -> Path:
    """Draw a series into an SVG file, up a logarithmic axis and, unless told otherwise, along one; return it."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingError("matplotlib isn't installed (extra `bench`), so nothing is drawn.") from error
    mpl.use("svg")
    from matplotlib import pyplot as plt

    with mpl.rc_context({"svg.hashsalt": series.name, "svg.fonttype": "none"}):
        figure, axes = plt.subplots(figsize=(7, 4))
        for name, values in series.lines.items():
            axes.plot(series.xs, values, marker=marker, label=name)
        axes.set(xscale=xscale, yscale="log", title=series.title, xlabel=series.x_title)
        axes.grid(visible=True, which="both", alpha=0.25)
        axes.legend()
        figure.tight_layout()
        path = folder / f"{series.name}.svg"
        without_date: dict[str, Any] = {"Date": None}
        figure.savefig(path, metadata=without_date)
        plt.close(figure)
    return path
