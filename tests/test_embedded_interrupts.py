"""Ctrl-C at any place of a save or load of an embedded store: raised, and the store goes on."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.service.storage import sqlite, sqlite_session, writer

#: The files whose every line is interrupted once.
FILES = {module.__file__ for module in (sqlite, sqlite_session, writer)}


def _begins_a_block(frame: FrameType) -> bool:
    """Whether the line is a `with` or `try`: there, and at a `with` block's end, Python traces but takes no signals."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(("with ", "try:"))


@contextmanager
def interrupted(after: int) -> Iterator[list[int]]:
    """Interrupt the block before the line of `FILES` with this number is executed; gives how many were."""
    seen = [0]

    def trace(frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line" and not _begins_a_block(frame):
            seen[0] += 1
            if seen[0] == after:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("where", ["memory:", "store.db"])
@pytest.mark.parametrize("what", ["save", "load"])
def test_wherever_it_comes(tmp_path: Path, where: str, what: str) -> None:
    """The interrupt is raised, or comes too late; what was saved before stands, and the next save and load go well."""
    with cm.open(where if where == "memory:" else tmp_path / where) as store:
        store["key"] = -1
        for line in range(1, 1000):
            with interrupted(line) as seen:
                try:
                    if what == "save":
                        store["key"] = line
                    else:
                        store["key"]
                except KeyboardInterrupt:
                    pass
            if seen[0] < line:
                break
            assert store["key"] in (line - 1, line, -1)
            store["key"] = line
        assert line > 10
