"""Traces: the client's functions that an operation enters, and the package's files entered on all threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import cloudstore_mapping as cm

PACKAGE = Path(cm.__file__).parent
CLIENT = PACKAGE / "client"
#: A file of the client that the service shares.
SHARED = PACKAGE / "keys.py"


class Step(NamedTuple):
    """Call of a function: its depth among the client's functions, from 1, its file and its qualified name."""

    depth: int
    file: str
    function: str


def trace(act: Callable[[], object]) -> list[Step]:
    """Return the calls of the client's functions by `act` on this thread, without lambdas and comprehensions."""
    steps: list[Step] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and _is_function(frame):
            depth = 0
            outer: FrameType | None = frame
            while outer is not None:
                depth += _is_function(outer)
                outer = outer.f_back
            steps.append(Step(depth, Path(frame.f_code.co_filename).name, frame.f_code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        with suppress(KeyError):
            act()
    finally:
        sys.setprofile(before)
    return steps


def _is_function(frame: FrameType) -> bool:
    code = frame.f_code
    path = Path(code.co_filename)
    return (path.parent == CLIENT or path == SHARED) and not code.co_name.startswith("<")


def shown(steps: list[Step]) -> str:
    """Return the trace as text: each function once, at its first call, indented by its depth."""
    lines = []
    seen = set()
    for depth, file, function in steps:
        if (file, function) not in seen:
            lines.append(f"{'  ' * (depth - 1)}{file}: {function.replace('.<locals>', '')}")
        seen.add((file, function))
    return "\n".join(lines)


#: Threads and functions for background work, which belongs to no operation.
BACKGROUND = frozenset({"cloudstore-sweeper", "cloudstore-usage"})
TICK = "Server.on_tick"


class FilesEntered:
    """Files of the package whose functions any thread enters during `record`."""

    def __init__(self) -> None:
        self._found: set[str] = set()
        self._is_on = False

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Note a call, for `threading.setprofile`."""
        if not self._is_on or event != "call" or threading.current_thread().name in BACKGROUND:
            return
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and not _is_below(TICK, frame):
            self._found.add(path.relative_to(PACKAGE).as_posix())

    def record(self, act: Callable[[], object]) -> set[str]:
        """Return the files entered by `act`, which is called by this thread."""
        self._found.clear()
        before = sys.getprofile()
        self._is_on = True
        sys.setprofile(self)
        try:
            act()
        finally:
            sys.setprofile(before)
            self._is_on = False
        return {*self._found}


def _is_below(function: str, frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_qualname == function:
            return True
        frame = frame.f_back
    return False


@contextmanager
def files_entered() -> Iterator[FilesEntered]:
    """Yield a `FilesEntered` for this thread and the threads started in the block."""
    entered = FilesEntered()
    before = threading.getprofile()
    threading.setprofile(entered)
    try:
        yield entered
    finally:
        threading.setprofile(before)
