"""Worker process for large merges: read pairs of JSON values from standard input, write results to standard output."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from cloudstore_mapping.errors import BadMergeError
from cloudstore_mapping.merge import merge_in_place
from cloudstore_mapping.wire import decode_value, encode_value

#: Request header: lengths of the stored value and of the value to merge into it. Both follow.
REQUEST: Final = struct.Struct("<QQ")
#: Reply header: outcome, and the length of the result or error message. The text follows.
REPLY: Final = struct.Struct("<BQ")
MERGED: Final = 0
REFUSED: Final = 1
NO_MEMORY: Final = 2

#: Added to the process's nice value: other work on the machine has priority.
NICENESS: Final = 10
#: Memory limit of a merge in bytes: `MEMORY`, plus `MEMORY_OF_VALUES` times the size of both values. `[[],[],…]` takes
#: 27 times its size.
MEMORY: Final = 512 * 2**20
MEMORY_OF_VALUES: Final = 40

_PR_SET_PDEATHSIG: Final = 1


def main(parent: int) -> None:
    """Answer merge requests until the input or the process with id `parent` ends."""
    _end_with(parent)
    with suppress(OSError, AttributeError):  # Windows has no niceness
        os.nice(NICENESS)
    with suppress(OSError):  # Linux autogroup: nice values count only within a session; set the session's own
        Path("/proc/self/autogroup").write_text(str(NICENESS), "ascii")
    gc.disable()  # JSON has no cycles, and each collection would visit millions of lists
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        stored, value = (requests.read(length) for length in REQUEST.unpack(head))
        outcome, text = merge_values(stored, value)
        del stored, value
        _write(replies, outcome, text)
        del text


def merge_values(stored: bytes, value: bytes) -> tuple[int, bytes]:
    """Return the outcome of a merge (`MERGED`, `REFUSED` or `NO_MEMORY`), and its JSON or error message."""
    _limit_memory(MEMORY + MEMORY_OF_VALUES * (len(stored) + len(value)))
    try:
        return MERGED, bytes(encode_value(merge_in_place(decode_value(stored), decode_value(value))))
    except BadMergeError as error:
        return REFUSED, error.message.encode()
    except MemoryError:
        return NO_MEMORY, b""


def _write(replies: BinaryIO, outcome: int, text: bytes) -> None:
    replies.write(REPLY.pack(outcome, len(text)))
    replies.write(text)
    replies.flush()


def _end_with(parent: int) -> None:
    """Linux: let the kernel kill this process when its parent thread ends; elsewhere the input's end stops it."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before the call
            sys.exit()


def _limit_memory(size: int) -> None:
    with suppress(ImportError, ValueError, OSError):  # Windows has no limits; a lower limit may be set already
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size if most == resource.RLIM_INFINITY else min(size, most), most))
