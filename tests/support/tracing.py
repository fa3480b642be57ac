"""Trace of the client: the functions that an operation enters, with their depth."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
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
