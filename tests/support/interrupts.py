"""Something that happens before a line is executed: an interrupt raised there, or a signal handler run there."""

from __future__ import annotations

import contextlib
import dis
import linecache
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FrameType
from typing import Any


def _begins_a_block(frame: FrameType) -> bool:
    """Whether the line is a `with` or `try`: there, and at a `with` block's end, Python traces but takes no signals."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(("with ", "try:"))


def _is_in(frame: FrameType | None, files: Collection[str]) -> bool:
    """Whether the frame belongs to these files, or to `contextlib` for them; what `__del__` raises Python drops."""
    if frame is not None and frame.f_code.co_name == "__del__":
        return False
    while frame is not None and frame.f_code.co_filename == contextlib.__file__:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename in files


@contextmanager
def at_line(number: int, files: Collection[str], act: Callable[[], object]) -> Iterator[list[int]]:
    """Call `act` in the block before the line of the files with this number is executed; gives how many were."""
    seen = [0]

    def trace(frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if not _is_in(frame, files):
            return None
        if event == "line" and not _begins_a_block(frame):
            seen[0] += 1
            if seen[0] == number:
                sys.settrace(None)
                act()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


@cache
def _heeding(code: CodeType) -> frozenset[int]:
    """Return where in the code Python takes signals at the end of an instruction: calls, resumptions and loops."""
    heeding = ("CALL", "RESUME", "JUMP_BACKWARD")
    return frozenset(
        each.offset
        for each in dis.get_instructions(code)
        if each.opname.startswith(heeding) and not each.opname.startswith("CALL_INTRINSIC")
    )


@contextmanager
def at_instruction(number: int, files: Collection[str], act: Callable[[], object]) -> Iterator[list[int]]:
    """Do as `at_line`, but wherever Python takes signals in the files, and nowhere else."""
    seen = [0]
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if event == "call":
            if not _is_in(frame, files):
                return None
            frame.f_trace = trace  # on Python 3.13 the next line has no effect without it
            frame.f_trace_opcodes = True
            last[frame] = -1
        elif event == "opcode":
            before, last[frame] = last[frame], frame.f_lasti
            if before == -1 or before in _heeding(frame.f_code):
                seen[0] += 1
                if seen[0] == number:
                    sys.settrace(None)
                    last.clear()
                    act()
        elif event == "return":
            last.pop(frame, None)
        return trace

    outer = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 gives such events only if asked before `settrace`
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(outer)
        last.clear()


def interrupt() -> None:
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt


def in_time(act: Callable[[], object], seconds: float = 60.0) -> None:
    """Run `act` in another thread, which must end; the seconds are only reached by a deadlock."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - raised by the caller
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it waits forever"
    if raised:
        raise raised[0]
