"""The rows of a store with 1,000,000 names."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final

import cloudstore_mapping as cm
from benchmarks.filling import filled, name_of
from benchmarks.harness import Comparison, Goal, Run, Side, compare, timed
from benchmarks.serving import Service, cloudstore
from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.wire import Request, decode_value

#: Names in a page.
PAGE: Final = 1000


def of_many_names(run: Run) -> Iterator[Comparison]:
    """Measure all names as a list, and a page of them from anywhere."""
    names = run.times(1_000_000)
    api_key = filled(run.folder / "names.db", names)
    with cloudstore(run.folder / "names.db", api_key=api_key) as service:
        with cm.open(service.location) as store:
            yield compare(
                run,
                f"A listing of {names:,} names over HTTP",
                [Side("`list(store)`", timed(lambda _: list(store), 1))],
                [Goal("< 1 s", 1.0, shown="seconds")],
            )
        transport = HTTPTransport(service.address)
        try:
            yield compare(
                run,
                f"A page of {PAGE:,} of {names:,} names over HTTP",
                [Side("a page", timed(page_of(service, transport, names), run.times(50)))],
                [Goal("< 10 ms", 0.010, shown="seconds")],
            )
        finally:
            transport.close()


def page_of(service: Service, transport: HTTPTransport, names: int) -> Callable[[int], object]:
    """Return the operation that gets a page from anywhere among so many names."""
    places = random.Random(0)

    def page(_: int) -> object:
        after = name_of(places.randrange(names))
        reply = transport.send(Request(api_key=service.api_key, name="", options="list", after=after, limit=PAGE))
        return decode_value(reply.content)

    return page


ALL = (of_many_names,)
