"""Interrupts at any instruction of an operation of an embedded store: raised as they are, and the store goes on."""

from __future__ import annotations

import concurrent.futures
import queue
import random
import signal
import threading
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.service import accounts, dispatcher, media, panels, threads
from cloudstore_mapping.service.storage import sqlite
from tests.support.interrupts import at_instruction, in_time, interrupt
from tests.support.matrix import spread

#: Where threads of Python's library wait for each other.
LIBRARY: Final = {
    threading.__file__,
    queue.__file__,
    *(str(path) for path in Path(concurrent.futures.__file__).parent.glob("*.py")),
}
#: Where a caller's thread shares something with others.
SHARING: Final = {
    str(module.__file__)
    for module in (
        accounts,
        dispatcher,
        media,
        panels,
        sqlite,
        threads,
    )
}
#: All that a caller's thread runs.
EVERYTHING: Final = {str(path) for path in Path(cm.__file__).parent.rglob("*.py")}
#: More instructions than any operation has.
MANY: Final = 20_000
#: A file of several chunks.
CONTENT: Final = bytes(1_300_000)

Store = cm.CloudStoreMapping[Any]


def edit(store: Store) -> None:
    """Change the value in place."""
    with store.edit("kept") as value:
        value.clear()


ACTS: Final[dict[str, Callable[[Store], object]]] = {
    "load": lambda store: store["kept"],
    "list": list,
    "items": lambda store: dict(store.items()),
    "save": lambda store: store.__setitem__("kept", 2),
    "update": lambda store: store.update({"kept": 2, "new": 3}),
    "delete": lambda store: store.__delitem__("kept"),
    "merge": lambda store: store.merge("kept", {"y": 2}),
    "transform": lambda store: store.transform("kept", lambda _: 2),
    "edit": lambda store: edit(store),
    "upload": lambda store: store.upload(CONTENT, "file", type="image/png"),
    "download": lambda store: store.download(store.upload(b"12345", "small", type="image/png")),
    "files": lambda store: store.media_files(),
}
#: Every how many instructions a short act is interrupted.
STEPS: Final = {"list": 2, "files": 1}
#: What the value may be after a write that was interrupted, and has to be after one that was not.
BEFORE: Final = {"x": 1}
AFTER: Final[dict[str, Any]] = {
    "save": 2,
    "update": 2,
    "transform": 2,
    "edit": {},
    "delete": None,
    "merge": {"x": 1, "y": 2},
}


def check(store: Store) -> None:
    """Do one of each operation, which must be done right."""
    store["kept"] = 5
    store.update({"kept": 6, "other": 7})
    assert (store["kept"], store["other"]) == (6, 7)
    assert {"kept", "other"} <= set(store)
    media = store.upload(b"67890", "other", type="image/png")
    assert store.download(media) == b"67890"


def interrupted_everywhere(store: Store, what: str, files: Collection[str], first: int = 1, step: int = 1) -> None:
    """Do something again and again, interrupted at one instruction after the other, in steps."""
    for number in range(first, MANY, step):
        store.update({"kept": BEFORE, "other": 1})
        raised: KeyboardInterrupt | None = None
        with at_instruction(number, files, interrupt) as seen:
            try:
                ACTS[what](store)
            except KeyboardInterrupt as error:
                raised = error  # kept, with all frames of its traceback
        if seen[0] < number:
            return
        assert raised is not None, "the interrupt was lost"
        found = in_time_of(lambda: store.get("kept"))
        assert found == BEFORE or found == AFTER.get(what, BEFORE)
        in_time(lambda: check(store))
        if what == "edit":  # its block may be kept together with the error
            raised = None
        edit_again(store)
    pytest.fail("no instruction was the last")


def edit_again(store: Store) -> None:
    """Change the value on the thread that was interrupted, which edits it no longer."""
    store["kept"] = {"x": 1}
    edit(store)
    assert store["kept"] == {}


def in_time_of(act: Callable[[], Any]) -> Any:
    """Return what `act` returns in another thread, in time."""
    found: list[Any] = []
    in_time(lambda: found.append(act()))
    return found[0]


@pytest.mark.parametrize(("where", "what"), spread([["memory:", "store.db"], ACTS], 4))
def test_an_interrupt_where_threads_meet(tmp_path: Path, where: str, what: str) -> None:
    """An interrupt comes out as itself, later operations of all threads are done, and the value is old or new."""
    with cm.open(where if where == "memory:" else tmp_path / where) as store:
        interrupted_everywhere(store, what, SHARING | LIBRARY, step=STEPS.get(what, 13))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["memory:", "store.db"])
@pytest.mark.parametrize("what", ACTS)
def test_an_interrupt_anywhere(tmp_path: Path, where: str, what: str, at_length: bool) -> None:
    """The same at each instruction of the package; at every third, unless it runs at length."""
    with cm.open(where if where == "memory:" else tmp_path / where) as store:
        interrupted_everywhere(store, what, EVERYTHING | LIBRARY, step=1 if at_length else 3)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs alarms, which Windows lacks")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # raised in a weak reference's callback
@pytest.mark.parametrize("where", ["memory:", "store.db"])
def test_interrupts_at_random(tmp_path: Path, where: str) -> None:
    """A program that catches Ctrl-C at whatever moment of a save, load or listing goes on, and reads what it wrote."""
    moments = random.Random(1)
    is_armed = False

    def ring(*_: object) -> None:
        if is_armed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with cm.open(where if where == "memory:" else tmp_path / where) as store:
            acts: list[Callable[[], object]] = [
                lambda: len(store),
                lambda: store.update(kept=1, other=1),
                lambda: store.get("kept"),
            ]
            for number in range(3000):
                try:
                    try:
                        is_armed = True
                        signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-6, 0.002))
                        acts[number % len(acts)]()
                    finally:
                        is_armed = False
                except KeyboardInterrupt:
                    pass
                in_time(partial(store.__setitem__, "kept", -number))
                assert store["kept"] == -number
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
