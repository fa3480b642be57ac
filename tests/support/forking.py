"""Forks in tests: a child that says what it raised, and a thread that is stopped at a place."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

#: Seconds after which a child is taken to hang; only reached if it does.
FOREVER = 60.0


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
