"""Interrupts: exceptions that a signal handler raises, at whatever instruction."""

from __future__ import annotations

import traceback


def let_go(error: BaseException) -> None:
    """
    Drop what the ended frames in an error's traceback hold, as its reader may keep the error.

    An interrupt at the beginning or end of a `with` block may leave a context manager of a generator at its `yield`,
    with its locks and its transaction. Dropped here it is closed by this thread, now.
    """
    traceback.clear_frames(error.__traceback__)
