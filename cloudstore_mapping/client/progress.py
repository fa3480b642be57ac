"""Progress of work on many keys: call the user's function, or show a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

from cloudstore_mapping.errors import UnsupportedError

#: Function of the keys done and their total; True: a progress bar on stderr; None: no report.
Progress: TypeAlias = Callable[[int, int], object] | Literal[True] | None


@contextmanager
def reporting(progress: Progress, total: int) -> Iterator[Callable[[int], object]]:
    """Give the block a function to report how many of `total` are done; a total of 0 reports nothing."""
    if progress is None or total == 0:
        yield lambda _: None
    elif progress is True:
        with _bar(total) as report:
            yield report
    else:
        progress(0, total)
        yield lambda done: progress(done, total)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], object]]:
    try:
        from rich.console import Console
        from rich.progress import Progress as Bar
    except ImportError as error:
        raise UnsupportedError(
            "progress=True needs rich; pip install 'cloudstore-mapping[cli]', or give a function of (done, total)."
        ) from error
    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)
