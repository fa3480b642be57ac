"""Drafts beside the files they become: named after them, locked while in use, and removed once their process is dead.

A draft may be a store, which only SQLite opens, so the lock is on a file of its own.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cloudstore_mapping.storefiles import SIDECARS

try:
    import fcntl
except ImportError:  # Windows: there nothing tells whether a process is alive, and drafts of dead ones stay
    fcntl = None  # type: ignore[assignment]

#: The ends of a draft's name, and of its lock's.
PART: Final = ".part"
LOCK: Final = ".lock"
#: Bytes of the target's name that a draft's name has: with the rest of it, and SQLite's, it stays below 255.
LONGEST: Final = 220

_OWN: Final = re.compile(r"[0-9a-f]{16}")


class Draft:
    """
    The name of a new file or folder beside `target`, which `close` removes with what SQLite keeps beside it.

    It is ``.NAME.<16 hexadecimal digits>.part``, and ``….lock`` is locked until `close`. The drafts of the same target
    whose processes ended before they closed them are removed first.
    """

    def __init__(self, target: Path) -> None:
        remove_dead(target)
        self._lock: int | None = None
        while True:
            beginning = f"{_beginning(target)}{secrets.token_hex(8)}"
            self.path = target.with_name(beginning + PART)
            self._locked = target.with_name(beginning + LOCK)
            if self._take():
                return

    def _take(self) -> bool:
        """Return whether this draft may be used; not if another process took its lock for that of a dead one."""
        if os.name != "posix":
            return True
        self._lock = os.open(self._locked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError:  # a file system without locks: then nobody may take the draft for a dead one's
            self._release()
            return True
        else:
            if os.fstat(self._lock).st_nlink:
                return True
        self._release()
        return False

    def close(self) -> None:
        """Remove what is left of the draft, then its lock."""
        _remove(self.path)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._locked.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


@contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """Give the block the name of a draft, which is gone afterwards."""
    draft = Draft(target)
    try:
        yield draft.path
    finally:
        draft.close()


def remove_dead(target: Path) -> None:
    """Remove the drafts of a target whose processes are dead; what can't be removed stays."""
    if os.name != "posix":
        return
    with suppress(OSError):
        for entry in os.scandir(target.parent):
            beginning = entry.name.removesuffix(LOCK)
            if entry.name.startswith(_beginning(target)) and _OWN.fullmatch(beginning[len(_beginning(target)) :]):
                _remove_if_dead(Path(entry.path))


def _remove_if_dead(lock: Path) -> None:
    facts = lock.lstat()
    if lock.suffix != LOCK or not stat.S_ISREG(facts.st_mode) or facts.st_size:
        return  # none of ours: these are empty
    opened = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(opened).st_nlink:
            _remove(lock.with_suffix(PART))
            lock.unlink()
    except BlockingIOError:
        pass
    finally:
        os.close(opened)


def _beginning(target: Path) -> str:
    return f".{os.fsdecode(os.fsencode(target.name)[:LONGEST])}."


def _remove(draft: Path) -> None:
    if draft.is_dir() and not draft.is_symlink():
        shutil.rmtree(draft)
        return
    for end in ("", *SIDECARS):
        Path(f"{draft}{end}").unlink(missing_ok=True)
