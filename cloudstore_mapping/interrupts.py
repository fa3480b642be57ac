"""Interrupts: exceptions that a signal handler raises, at whatever instruction."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

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


def block(function: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """
    Return a context manager of the generator, as `contextlib.contextmanager` does.

    An interrupt in the middle of the block's beginning or end leaves no generator at its `yield`: it is closed.
    """
    manager = contextmanager(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T]:
        return _Block(manager(*args, **kwargs))

    return call


class _Block(AbstractContextManager[T]):
    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._steps = manager.gen

    def __enter__(self) -> T:
        try:
            value: T = self._manager.__enter__()
        except BaseException:
            self._steps.close()
            raise
        return value

    def __exit__(self, *raised: Any) -> bool | None:
        try:
            is_suppressed: bool | None = self._manager.__exit__(*raised)
        except BaseException:
            self._steps.close()
            raise
        return is_suppressed
