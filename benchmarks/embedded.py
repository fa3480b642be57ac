"""The rows of a store in a file, beside the dictionaries that others keep in one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import cloudstore_mapping as cm
from benchmarks.harness import Comparison, Goal, MissingError, Run, Side, compare, timed
from benchmarks.peers import DICTIONARIES
from benchmarks.work import SYNCED, loader, saver


def in_a_file(run: Run) -> Iterator[Comparison]:
    """Measure durable saves and loads of 200 bytes."""
    with ExitStack() as stack:
        stores = {"`store`": (stack.enter_context(cm.open(run.folder / "embedded.db")), SYNCED)}
        for name, opened in DICTIONARIES.items():
            try:
                stores[name] = stack.enter_context(opened(run))
            except MissingError as error:
                run.missing[name] = str(error)
        yield compare(
            run,
            "A durable save of 200 bytes, in a file",
            [
                Side(name, timed(saver(store), run.times(150)), durability)
                for name, (store, durability) in stores.items()
            ],
            [Goal("≤ 1.3 of its time", 1.3, "diskcache")],
        )
        yield compare(
            run,
            "A load of 200 bytes, from a file",
            [Side(name, timed(loader(store), run.times(3000))) for name, (store, _) in stores.items()],
            [Goal("≤ 4 of its time", 4, "diskcache")],
        )


ALL = (in_a_file,)
