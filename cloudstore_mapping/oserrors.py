"""Error messages for `OSError`: the file, the reason, the remedy."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Errors caused only by writing, even while another file is read.
OF_WRITING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})

_SURROGATE: Final = re.compile(r"\\udc([89a-f][0-9a-f])")
_NO_ROOM: Final = "Free some space on its disk, or name a file on another one."
_PERMISSIONS: Final = "Look at its permissions and those of its folder."
_LIMIT: Final = "End some programs, or raise the limit (ulimit -n)."
_REMEDIES: Final = {
    errno.ENOENT: "Look at its name.",
    errno.ENOTDIR: "Look at its name: a part of it is a file.",
    errno.EISDIR: "Name a file in it.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "Its links lead in a circle; name the file itself.",
    errno.EEXIST: "Move it away, or choose another name.",
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.EROFS: "Name a file on another file system, or mount this one for writing.",
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: "Raise the limit (ulimit -f), or name a file on another file system.",
    errno.EIO: "Its disk failed; look at it, then try again.",
    errno.EMFILE: _LIMIT,
    errno.ENFILE: _LIMIT,
}


def sentence_of(error: OSError, file: str | None = None) -> str:
    """
    Return the problem and its remedy as text; `file` is used if the error names no file.

    An error without a number was raised with a full message, which is returned unchanged.
    """
    if error.errno is None:
        return str(error)
    name: str | None = file if error.filename is None else os.fsdecode(error.filename)
    if error.errno == errno.ENOENT and not (name and os.path.isabs(name)) and not _has_working_directory():  # noqa: PTH117
        return "The folder that you are in was deleted; change to another one."
    reason = error.strerror or os.strerror(error.errno)
    problem = f"{reason}." if name is None else f"{shown(name)} can't be used: {reason}."
    remedy = _REMEDIES.get(error.errno)
    return problem if remedy is None or name is None else f"{problem} {remedy}"


def shown(name: str) -> str:
    r"""Return a file name in quotes; bytes that are not UTF-8 are shown as ``\xff``."""
    return _SURROGATE.sub(r"\\x\1", repr(name))


def readable(text: str) -> str:
    r"""Return the text with bytes that are not UTF-8 (in Python surrogates, as in file names) shown as ``\xff``."""
    return "".join(f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else char for char in text)


@contextmanager
def naming(file: str | os.PathLike[str]) -> Iterator[None]:
    """Add the file name to a write error without one: errors of an open file have no name."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in OF_WRITING:
            error.filename = os.fspath(file)
        raise


def _has_working_directory() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - raises an error if it was deleted
    except OSError:
        return False
    return True
