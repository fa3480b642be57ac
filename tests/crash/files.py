"""What Python itself does to files, put down beside what SQLite does: syncs, links, renames, removals."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import pytest

from tests.crash.disk import Created, Disk, FolderSynced, Linked, Removed, Renamed, Synced, Truncated, Written
from tests.crash.layer import watched

#: Where Linux says what an open file is called.
OPEN_FILES: Final = Path("/proc/self/fd")


class _Files:
    """
    Puts down on a disk what is done to the files in its folder.

    Python tells nobody what it writes: what a file holds is put down when it is synced or gets another name.
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder = folder
        self._disk = disk
        self._held: dict[int, bytes] = {}
        self._made: set[str] = set()

    def _name(self, path: Any, **_: Any) -> str | None:
        place = Path(os.path.normpath(Path.cwd() / os.fsdecode(path)))
        return place.relative_to(self._folder).as_posix() if place.is_relative_to(self._folder) else None

    def _written(self, name: str) -> None:
        """Put down what a file holds, or those in a folder, where that has changed."""
        path = self._folder / name
        if path.is_dir():
            for each in path.iterdir():
                self._written(f"{name}/{each.name}")
            return
        content, inode = path.read_bytes(), path.stat().st_ino
        if self._held.get(inode) == content:
            return
        if inode not in self._held:
            self._made.add(name)
            self._disk.log.append(Created(name))
        self._held[inode] = content
        self._disk.log += [Truncated(name, 0), Written(name, 0, content)]

    def synced(self, do: Callable[..., None], file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        name = self._name((OPEN_FILES / str(number)).readlink())
        do(file)
        if name is not None and (self._folder / name).is_dir():
            self._disk.log.append(FolderSynced("" if name == "." else name))
        elif name is not None:
            if not self._is_sqlites(name):
                self._written(name)
            self._disk.log.append(Synced(name))

    def renamed(self, do: Callable[..., None], source: Any, target: Any, **options: Any) -> None:
        names = self._name(source), self._name(target)
        if names[0] is not None and not self._is_sqlites(names[0]):
            self._written(names[0])
        do(source, target, **options)
        if names[0] is not None and names[1] is not None:
            self._disk.log.append(Renamed(names[0], names[1]))

    def linked(self, do: Callable[..., None], source: Any, target: Any, **options: Any) -> None:
        names = self._name(source), self._name(target)
        do(source, target, **options)
        if names[0] is not None and names[1] is not None:
            self._disk.log.append(Linked(names[0], names[1]))

    def removed(self, do: Callable[..., None], path: Any, **options: Any) -> None:
        name, found = self._name(path), os.stat(path, follow_symlinks=False, **options)  # noqa: PTH116 - of a folder
        is_known = name is not None and (found.st_ino in self._held or self._is_sqlites(name))
        do(path, **options)
        if found.st_nlink == 1:
            self._held.pop(found.st_ino, None)  # another file may get its number
        if name is not None and is_known:
            self._disk.log.append(Removed(name))

    def _is_sqlites(self, name: str) -> bool:
        """Whether SQLite has made a file: then all that it holds is put down already."""
        return name not in self._made and any(
            isinstance(event, Created) and event.file == name for event in self._disk.log
        )


@contextmanager
def all_watched(folder: Path) -> Iterator[Disk]:
    """Return the disk that a folder is on, for SQLite's connections and Python's files while the block runs."""
    if not OPEN_FILES.is_dir():
        pytest.skip("needs /proc/self/fd, as Linux has it")
    with watched(folder) as disk:
        files = _Files(folder, disk)
        kinds: dict[str, Callable[..., None]] = {"fsync": files.synced, "link": files.linked}
        kinds |= {"replace": files.renamed, "rename": files.renamed, "unlink": files.removed, "remove": files.removed}
        with ExitStack() as stack:
            for name, put_down in kinds.items():
                stack.enter_context(patch.object(os, name, partial(put_down, getattr(os, name))))
            yield disk


def files_of(target: Path) -> dict[str, bytes]:
    """
    Return the files whose names begin like the target's, and those in such folders, by their names from its folder.

    A live store must not be among them: to read it here would take this process's locks on it away.
    """
    found = [*target.parent.glob(f"{target.name}*"), *target.parent.glob(f"{target.name}*/*")]
    return {file.relative_to(target.parent).as_posix(): file.read_bytes() for file in found if file.is_file()}
