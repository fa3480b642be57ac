"""
Drafts: temporary files beside their targets, locked while in use, and removed once their process is dead.

A draft may be a store, which only SQLite may open, so the lock is on a separate file.
"""

from __future__ import annotations

import errno
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
except ImportError:  # Windows: nothing tells if a process is alive, so drafts of dead processes stay
    fcntl = None  # type: ignore[assignment]

#: Suffixes of a draft and of its lock file.
PART: Final = ".part"
LOCK: Final = ".lock"
#: Bytes of the target's name in a draft's name; with the other parts and SQLite's suffixes it stays below 255.
LONGEST: Final = 220

_OWN: Final = re.compile(r"[0-9a-f]{16}")


class Draft:
    """
    Name for a new file or folder beside `target`; `close` removes it, and the files that SQLite keeps beside it.

    The name is ``.NAME.<16 hexadecimal digits>.part``; ``….lock`` is locked until `close`. Drafts of the same target
    left by dead processes are removed first.
    """

    def __init__(self, target: Path) -> None:
        remove_dead(target)
        self._lock: int | None = None
        while True:
            beginning = f"{_beginning(target)}{secrets.token_hex(8)}"
            self.path = target.with_name(beginning + PART)
            self._locked = target.with_name(beginning + LOCK)
            if self._acquire():
                return

    def _acquire(self) -> bool:
        """Lock the draft; return False if another process took it for the draft of a dead process meanwhile."""
        if os.name != "posix":
            return True
        try:
            self._lock = os.open(self._locked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            folder = self._locked.parent
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder)) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError:  # a file system without locks: without a lock file, no process removes the draft
            self._release()
            return True
        else:
            if os.fstat(self._lock).st_nlink:
                return True
        self._release()
        return False

    def close(self) -> None:
        """Remove the draft, if it still exists, then its lock."""
        _remove(self.path)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._locked.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


@contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """Give the block the path of a draft, and remove it afterwards."""
    draft = Draft(target)
    try:
        yield draft.path
    finally:
        draft.close()


def remove_dead(target: Path) -> None:
    """Remove the drafts of a target left by dead processes; errors are ignored."""
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
        return  # not a draft's lock, which is empty
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
