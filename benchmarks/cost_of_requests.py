"""What a request costs the database: statements, round trips, bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

import cloudstore_mapping as cm
from benchmarks.messages import Counts, counted
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.postgres import PostgresStorage
from cloudstore_mapping.web.server import background

#: How often each is done before it is counted, so that connections are open, and how often then.
WARM_UP: Final = 10
TIMES: Final = 10
#: Bytes of a value as JSON.
VALUE_BYTES: Final = 200

Store: TypeAlias = cm.CloudStoreMapping[Any]


def value(number: int) -> str:
    """Return a value that differs from every other one."""
    return f"{number:0{VALUE_BYTES - 2}}"


#: What a program does, each time with another number.
REQUESTS: Final[dict[str, Callable[[Store, int], object]]] = {
    "`store[k]`": lambda store, _: store["there"],
    "`k in store`": lambda store, _: "there" in store,
    "`store.list(text)`, 100 keys of 1,000": lambda store, _: store.list("listed 5"),
    "`store[k] = v`, a key that is there": lambda store, number: store.__setitem__("there", value(number)),
    "`store[k] = v`, a new key": lambda store, number: store.__setitem__(f"new {number:06}", value(number)),
    "`del store[k]`": lambda store, number: store.__delitem__(f"new {number:06}"),
    "`store.merge(k, v)`": lambda store, number: store.merge("object", {"text": value(number)}),
    "`store.transform(k, f)`": lambda store, number: store.transform("there", lambda _: value(number)),
    "`store.update(m)`, 100 new keys": lambda store, number: store.update(
        {f"many {number:06} {each:02}": value(each) for each in range(100)}
    ),
}


def rows(address: str) -> Iterator[tuple[str, Counts]]:
    """Yield what each request costs on the average, of an account without limits in a database that was empty."""
    # How often files are used is written once a second, so it is no single request's cost.
    settings = Settings(count_accesses=False)
    with (
        counted(address) as (counted_address, way),
        PostgresStorage(counted_address) as storage,
        Service(storage, settings) as service,
        background(service) as server,
    ):
        api_key = service.accounts.create("owner")
        with cm.open(server.replace("://", f"://{api_key}@")) as store:
            store.update({f"listed {number:03}": value(number) for number in range(1000)})
            store.update({"there": "", "object": {}})
            for name, request in REQUESTS.items():
                for number in range(WARM_UP):
                    request(store, number)
                before = way.counts
                for number in range(WARM_UP, WARM_UP + TIMES):
                    request(store, number)
                yield name, Counts().plus(way.counts.plus(before, -1), 1 / TIMES)


def table(address: str) -> Iterator[str]:
    """Yield the lines of a table in Markdown, of an empty database at this address."""
    yield "| request | statements | round trips | bytes to the database | bytes back |"
    yield "|---|---|---|---|---|"
    for name, counts in rows(address):
        yield f"| {name} | {' | '.join(f'{count:,.0f}' for count in counts)} |"


if __name__ == "__main__":
    for line in table(sys.argv[1]):
        print(line)
