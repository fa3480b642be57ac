"""A layer between SQLite and the disk, which writes down what is done to files, and fails where it is told to."""

from __future__ import annotations

import ctypes as c
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.crash import vfs
from tests.crash.disk import Created, Disk, Event, FolderSynced, Removed, Synced, Truncated, Written


class _Layer:
    """A VFS over SQLite's own, which is the default one while there is a disk."""

    def __init__(self, library: c.CDLL) -> None:
        self.disk: Disk | None = None
        self._library = library
        self._below = library.sqlite3_vfs_find(None)
        self._names: dict[int, str] = {}
        self._methods: dict[int, vfs.Methods] = {}
        self._originals: dict[int, vfs.Methods] = {}
        self._vfs = vfs.VFS.from_buffer_copy(self._below.contents)
        self._vfs.name, self._vfs.next = b"cloudstore-tests", None
        self._vfs.open, self._vfs.delete = vfs.OPEN(self._open), vfs.DELETE(self._delete)
        below = self._below.contents
        self._open_folder_below = vfs.OPEN_FOLDER(below.get_system_call(self._below, b"openDirectory"))
        self._open_folder_here = vfs.OPEN_FOLDER(self._open_folder)

    @contextmanager
    def over(self, disk: Disk) -> Iterator[None]:
        """Have it watch a disk while the block runs."""
        below = self._below.contents
        self.disk = disk
        self._library.sqlite3_vfs_register(c.byref(self._vfs), 1)
        below.set_system_call(self._below, b"openDirectory", c.cast(self._open_folder_here, c.c_void_p))
        try:
            yield
        finally:
            below.set_system_call(self._below, b"openDirectory", None)
            self._library.sqlite3_vfs_register(self._below, 1)
            self.disk = None

    def _open(self, this: Any, path: int | None, file: Any, flags: int, out: Any) -> int:
        name = None if path is None or self.disk is None else self.disk.name_of(c.string_at(path).decode())
        is_new = name is not None and not Path(c.string_at(path or 0).decode()).exists()
        code: int = self._below.contents.open(this, path, file, flags, out)
        if code == sqlite3.SQLITE_OK and name is not None and self.disk is not None:
            if is_new:
                self.disk.log.append(Created(name))
            self._names[c.addressof(file.contents)] = name
            file.contents.methods = c.pointer(self._watching(file.contents.methods))
        return code

    def _watching(self, below: Any) -> vfs.Methods:
        """Return the methods that pass on to others, which those of one kind of file share."""
        address = c.addressof(below.contents)
        if address not in self._methods:
            methods = vfs.Methods.from_buffer_copy(below.contents)
            original = self._originals[address] = vfs.Methods.from_buffer_copy(below.contents)

            def close(file: Any) -> int:
                self._names.pop(c.addressof(file.contents), None)
                return int(original.close(file))

            def write(file: Any, data: int, size: int, offset: int) -> int:
                return self._write(original, file, c.string_at(data, size), offset)

            def truncate(file: Any, size: int) -> int:
                return self._happens(file, lambda name: Truncated(name, size), lambda: original.truncate(file, size))

            def sync(file: Any, flags: int) -> int:
                return self._happens(file, Synced, lambda: original.sync(file, flags))

            methods.close, methods.write = vfs.CLOSE(close), vfs.WRITE(write)
            methods.truncate, methods.sync = vfs.TRUNCATE(truncate), vfs.SYNC(sync)
            self._methods[address] = methods
        return self._methods[address]

    def _write(self, original: vfs.Methods, file: Any, data: bytes, offset: int) -> int:
        def do(size: int = len(data)) -> int:
            return int(original.write(file, data, size, offset))

        code = self._happens(file, lambda name: Written(name, offset, data), do)
        if code == sqlite3.SQLITE_FULL and self.disk is not None:
            half = len(data) // 2
            self.disk.log.append(Written(self._names[c.addressof(file.contents)], offset, data[:half]))
            do(half)
        return code

    def _happens(self, file: Any, event: Callable[[str], Event], do: Callable[[], int]) -> int:
        name = self._names.get(c.addressof(file.contents))
        return do() if name is None or self.disk is None else self.disk.happens(event(name), do)

    def _delete(self, this: Any, path: int, syncs: int) -> int:
        name = None if self.disk is None else self.disk.name_of(c.string_at(path).decode())
        if name is None or self.disk is None or not Path(c.string_at(path).decode()).exists():
            return int(self._below.contents.delete(this, path, syncs))
        return self.disk.happens(Removed(name), lambda: int(self._below.contents.delete(this, path, syncs)))

    def _open_folder(self, path: int, out: Any) -> int:
        # It is opened for nothing but to be synced.
        if self.disk is not None:
            self.disk.log.append(FolderSynced())
        return int(self._open_folder_below(path, out))


#: One for all: connections may outlive a disk, and use it.
_layers: Final[list[_Layer]] = []


@contextmanager
def watched(folder: Path) -> Iterator[Disk]:
    """Return the disk that a folder is on, for all connections that are opened while the block runs."""
    if not _layers:
        library = vfs.library()
        if library is None:
            pytest.skip(vfs.HIDDEN)
        _layers.append(_Layer(library))
    disk = Disk(folder)
    with _layers[0].over(disk):
        yield disk
