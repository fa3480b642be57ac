"""Forks in tests: a child that says what it raised, and a thread that is stopped at a place."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import Any

from cloudstore_mapping.client.mapping import CloudStoreMapping

#: Seconds after which a child is taken to hang; only reached if it does.
FOREVER = 60.0

#: A program whose children use its store, close it, or do neither, and end.
ENDS = """
import os, sys
import cloudstore_mapping as cm

store = cm.open(sys.argv[1])
store["a"] = 1
for act in (lambda: None, lambda: store.update(b=2), store.close):
    child = os.fork()
    if child == 0:
        act()
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
store["c"] = 3
print(dict(store))
"""


def in_child(act: Callable[[], object]) -> str:
    """Run `act` in a forked child; return the `repr` of what it raised, "" if nothing, and "hangs" if it never ends."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        complaint = b""
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the child ends here
            complaint = repr(error).encode()
        os.write(writing, complaint)
        os._exit(0)
    os.close(writing)
    try:
        if not select.select([reading], [], [], FOREVER)[0]:
            os.kill(child, 9)
            return "hangs"
        return os.read(reading, 10_000).decode()
    finally:
        os.close(reading)
        os.waitpid(child, 0)


class Stopped:
    """Another thread, stopped inside `act` by `stop`, which it calls; it goes on at the end of the block."""

    def __init__(self, act: Callable[[Callable[[], None]], object]) -> None:
        self._reached = threading.Event()
        self._go = threading.Event()
        self._thread = threading.Thread(target=act, args=(self._stop,), daemon=True)

    def _stop(self) -> None:
        if threading.current_thread() is self._thread:
            self._reached.set()
            self._go.wait()

    def __enter__(self) -> None:
        self._thread.start()
        assert self._reached.wait(FOREVER)

    def __exit__(self, *_: object) -> None:
        self._go.set()
        self._thread.join()


class Saving:
    """Threads that save and load in a loop as long as the block; `known` is what was acknowledged last, by key."""

    def __init__(self, store: CloudStoreMapping[Any], threads: int = 3, prefix: str = "") -> None:
        self.prefix = prefix
        self.known: dict[str, int] = {}
        self.errors: list[BaseException] = []
        self._store = store
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._save, args=(n,), daemon=True) for n in range(threads)]

    def _save(self, number: int) -> None:
        count = 0
        try:
            while not self._ends.is_set():
                key = f"{self.prefix}{number}.{count % 10}"
                self._store[key] = self.known[key] = count
                assert self._store[key] == count
                count += 1
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test tells
            self.errors.append(error)

    def __enter__(self) -> Saving:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()
