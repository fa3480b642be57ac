"""Interrupts: exceptions that a signal handler raises, at whatever instruction."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def let_go(error: BaseException) -> None:
    """
    Drop what the ended frames in an error's traceback hold, as its reader may keep the error.

    An interrupt at the beginning or end of a `with` block may leave a context manager of a generator at its `yield`,
    with its locks and its transaction. Dropped here it is closed by this thread, now.
    """
    traceback.clear_frames(error.__traceback__)


def letting_go(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function, which lets go of what its frames hold if it raises."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            let_go(error)
            raise

    return call
