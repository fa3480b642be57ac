"""SQLite's own interface to the disk, by ctypes: the library that `sqlite3` uses, whichever that is."""

from __future__ import annotations

import _sqlite3
import ctypes as c
from typing import Any, Final

#: What a run says where the library is a part of Python itself, and hidden there.
HIDDEN: Final = "needs an sqlite3 module whose SQLite can be reached by ctypes, as Debian's can"


def library() -> c.CDLL | None:
    """Return the SQLite that Python's module uses, None where it can't be reached."""
    try:
        found = c.CDLL(getattr(_sqlite3, "__file__", None))
        find = found.sqlite3_vfs_find
    except (OSError, AttributeError):
        return None
    find.restype, find.argtypes = c.POINTER(VFS), [c.c_char_p]
    found.sqlite3_vfs_register.argtypes = [c.POINTER(VFS), c.c_int]
    return found


class VFS(c.Structure):
    """`sqlite3_vfs`: opens and removes files."""


class Methods(c.Structure):
    """`sqlite3_io_methods`: what is done with an open file."""


class File(c.Structure):
    """`sqlite3_file`: an open file, behind whose methods there is more of its VFS's own."""

    _fields_ = (("methods", c.POINTER(Methods)),)


def _method(*arguments: Any) -> Any:
    return c.CFUNCTYPE(c.c_int, *arguments)


OPEN: Final = _method(c.POINTER(VFS), c.c_void_p, c.POINTER(File), c.c_int, c.POINTER(c.c_int))
DELETE: Final = _method(c.POINTER(VFS), c.c_void_p, c.c_int)
#: Of the names of system calls, and of one that takes the place of another; `OPEN_FOLDER` is one of these.
SET_CALL: Final = _method(c.POINTER(VFS), c.c_char_p, c.c_void_p)
GET_CALL: Final = c.CFUNCTYPE(c.c_void_p, c.POINTER(VFS), c.c_char_p)
OPEN_FOLDER: Final = _method(c.c_void_p, c.POINTER(c.c_int))

CLOSE: Final = _method(c.POINTER(File))
WRITE: Final = _method(c.POINTER(File), c.c_void_p, c.c_int, c.c_int64)
TRUNCATE: Final = _method(c.POINTER(File), c.c_int64)
SYNC: Final = _method(c.POINTER(File), c.c_int)

VFS._fields_ = [
    ("version", c.c_int),
    ("file_size", c.c_int),
    ("longest_path", c.c_int),
    ("next", c.POINTER(VFS)),
    ("name", c.c_char_p),
    ("data", c.c_void_p),
    ("open", OPEN),
    ("delete", DELETE),
    *((name, c.c_void_p) for name in ("access", "full_path", "dl_open", "dl_error", "dl_symbol", "dl_close")),
    *((name, c.c_void_p) for name in ("randomness", "sleep", "time", "last_error", "time_in_milliseconds")),
    ("set_system_call", SET_CALL),
    ("get_system_call", GET_CALL),
    ("next_system_call", c.c_void_p),
]
Methods._fields_ = [
    ("version", c.c_int),
    ("close", CLOSE),
    ("read", c.c_void_p),
    ("write", WRITE),
    ("truncate", TRUNCATE),
    ("sync", SYNC),
    *((name, c.c_void_p) for name in ("size", "lock", "unlock", "is_reserved", "control", "sector", "traits")),
    *((name, c.c_void_p) for name in ("shm_map", "shm_lock", "shm_barrier", "shm_unmap", "fetch", "unfetch")),
]
