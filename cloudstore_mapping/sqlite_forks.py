"""Forks of a process that uses SQLite: a fork waits for other threads, and the child closes inherited connections."""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, Protocol

from cloudstore_mapping.errors import UnsupportedError

if TYPE_CHECKING:
    import sqlite3
    from types import FrameType

# SQLite keeps, for the whole process, mutexes and a list of the files that it has open with the locks on each. A fork
# copies both. A mutex that another thread held stays locked in the child. And the child's new connections would take
# the locks in the list for locks of their own process, though the system gave the child none: they would wait for the
# parent's writer for ever, or read and write without a lock.
#
# So a fork waits until no thread is inside SQLite or a transaction, and the others don't begin anything meanwhile. The
# child then closes the parent's connections at once, in which no transaction is open: that empties the list, touches no
# byte of a file, and leaves the parent its locks, which belong to its process.

#: Seconds that a fork waits for other threads. After them it is done all the same, and SQLite isn't used in the child.
PATIENCE: Final = 10.0
#: Seconds between two looks.
PAUSE: Final = 0.001
_OURS: Final = f"{__package__}."

#: The threads that are forking now. A thread marks itself before it looks here, and a fork looks for marks afterwards.
forkers: Final[set[int]] = set()

_BROKEN: Final = (
    "SQLite was in use when this process was forked, and can't be used here; fork while no thread uses a store for "
    "longer, or start the process by 'spawn'."
)
_FORKS: Final = "This thread is forking the process; use the store before the fork, or after it."


class TrackedSession(Protocol):
    """Connection to SQLite that stays open, for which a fork waits while a thread uses it."""

    #: The thread that is in a transaction of it, 0 for none.
    user: int

    def has_begun(self) -> bool:
        """Return whether a transaction is open."""

    def leave_to_parent(self, *, is_quiet: bool) -> None:
        """Let go of the connection in a child; it was in use at the fork unless `is_quiet`."""


class _State:
    """By thread, if its fork found SQLite unused; and if this process comes from a fork that did not."""

    def __init__(self) -> None:
        self.is_quiet: dict[int, bool] = {}
        self.is_broken = False


_state: Final = _State()
#: The threads that open, close or look at files; a session has its own mark.
_inside: Final[dict[int, bool]] = {}
_sessions: Final[dict[int, weakref.ref[Any]]] = {}


def track_session(session: TrackedSession) -> None:
    """Make forks wait for the transactions of a session, as long as it exists."""
    number = id(session)
    _sessions[number] = weakref.ref(session, lambda _: _sessions.pop(number, None))


def _all() -> list[Any]:
    return [session for reference in list(_sessions.values()) if (session := reference()) is not None]


@contextmanager
def inside_sqlite() -> Iterator[None]:
    """
    Let forks wait for the block, which opens, closes or looks at files, and waits for a fork that has begun.

    Raises `UnsupportedError` in a process where SQLite can't be used.
    """
    if _state.is_broken:
        raise UnsupportedError(_BROKEN)
    me = get_ident()
    if me in _inside:
        yield
        return
    try:
        _inside[me] = True
        while forkers and _has_to_wait(me, None):
            _inside.pop(me, None)
            time.sleep(PAUSE)
            _inside[me] = True
        yield
    finally:
        _inside.pop(me, None)


@contextmanager
def connected(path: Any, **options: Any) -> Iterator[sqlite3.Connection]:
    """Give the block a connection to an SQLite file, closed afterwards; `options` are those of `sqlite3.connect`."""
    import sqlite3  # which a program on a network never needs

    with inside_sqlite(), closing(sqlite3.connect(path, **options)) as connection:
        yield connection


def let_fork(session: TrackedSession) -> None:
    """Wait for the forks that have begun, before a transaction of a session whose `user` is this thread."""
    me = get_ident()
    while forkers and me not in _inside and _has_to_wait(me, session):
        session.user = 0
        time.sleep(PAUSE)
        session.user = me


def refuse_forker() -> None:
    """Raise `UnsupportedError` in a thread that is forking: those that work for it wait for the fork's end."""
    if get_ident() in forkers:
        raise UnsupportedError(_FORKS)


def _has_to_wait(me: int, session: TrackedSession | None) -> bool:
    """Return False for the thread that forks, and for one that the fork waits for."""
    return me not in forkers and not any(other.user == me for other in _all() if other is not session)


def _marks() -> set[int]:
    """Return the threads that have a mark."""
    return {*list(_inside), *(session.user for session in _all())} - {0}


def _users() -> set[int]:
    """
    Return the threads that are inside SQLite, or are about to see that they have to wait.

    An interrupt may leave a mark behind. It is taken away here, unless its thread is at work or a transaction is open.
    """
    # A thread that isn't at work here, and marks itself afterwards, finds out that there is a fork.
    frames = sys._current_frames()  # noqa: SLF001 - of the interpreter, which documents it
    users: set[int] = set()
    for thread in list(_inside):
        if _is_at_work(frames.get(thread)):
            users.add(thread)
        else:
            _inside.pop(thread, None)
    for session in _all():
        thread = session.user
        if not thread:
            continue
        if _is_at_work(frames.get(thread)) or session.has_begun():
            users.add(thread)
        else:
            session.user = 0
    return users


def _is_at_work(frame: FrameType | None) -> bool:
    """Return whether a thread at this frame is in a function of ours; the one that forks is in this module."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module.startswith(_OURS) and module != __name__:
            return True
        frame = frame.f_back
    return False


def _before() -> None:
    me = get_ident()
    forkers.add(me)
    gives_up_at = time.monotonic() + PATIENCE
    while not _state.is_broken:
        users = _users()
        if not users:
            _state.is_quiet[me] = True
            return
        if me in users or time.monotonic() >= gives_up_at:
            break  # a signal's handler forks in the middle of a transaction, or another thread's takes long
        time.sleep(PAUSE)
    if _sessions:
        import ctypes  # noqa: F401 - the child needs it, where another thread's import would never end


def _after_in_parent() -> None:
    me = get_ident()
    forkers.discard(me)
    _state.is_quiet.pop(me, None)


def _after_in_child() -> None:
    is_quiet = not _state.is_broken and (_state.is_quiet.get(get_ident(), False) or not _marks())
    forkers.clear()
    _inside.clear()
    _state.is_quiet.clear()
    _state.is_broken = not is_quiet
    for session in _all():
        with suppress(Exception):  # the others have to be let go of as well
            session.leave_to_parent(is_quiet=is_quiet)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
