"""Fork: in a child process, objects drop locks and state that other threads of the parent were using."""

from __future__ import annotations

import importlib
import os
import sys
import weakref
from contextlib import suppress
from typing import Any, Final, Protocol


class Forking(Protocol):
    """Object with locks, or with state of other threads or of the process."""

    def after_fork(self) -> None:
        """Renew locks and state in the child process, before any other code runs there."""


_objects: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
#: Modules and packages imported at their first use, on any thread.
_LAZY: Final = ("requests", "urllib3", "http", "email", "sqlite3")


def renew_after_fork(thing: Forking) -> None:
    """Call the object's `after_fork` in each child process, as long as it exists."""
    _objects.add(thing)


def _before() -> None:
    # An import begun by another thread would never end in the child process, and block the next import there. Importing
    # the same module here waits for its end.
    ours = [name for name in list(sys.modules) if name.startswith("cloudstore_mapping.")]
    for name in (*_LAZY, *ours):
        if name in sys.modules:
            with suppress(Exception):  # raised on the other thread, too
                importlib.import_module(name)


def _after_in_child() -> None:
    for thing in list(_objects):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_after_in_child)
