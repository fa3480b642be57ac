"""Worker process that merges large JSON values: reads pairs of values from its standard input, writes the results."""

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

#: Lengths of the stored value and of the one to merge into it, which follow.
REQUEST: Final = struct.Struct("<QQ")
#: Outcome, and the length of the result or error message, which follows.
REPLY: Final = struct.Struct("<BQ")
MERGED: Final = 0
REFUSED: Final = 1
NO_MEMORY: Final = 2

#: Added to the process's nice value: all other work of the machine comes first.
NICENESS: Final = 10
#: Memory that a merge may take, in bytes: so much, and a multiple of its values. `[[],[],…]` takes 27 times its size.
MEMORY: Final = 512 * 2**20
MEMORY_OF_VALUES: Final = 40

_PR_SET_PDEATHSIG: Final = 1


def main(parent: int) -> None:
    """Merge until the input ends, or the process `parent` does."""
    _end_with(parent)
    with suppress(OSError, AttributeError):  # Windows has no niceness
        os.nice(NICENESS)
    with suppress(OSError):  # Linux, if it schedules by sessions: the niceness of this process's own session
        Path("/proc/self/autogroup").write_text(str(NICENESS), "ascii")
    gc.disable()  # JSON has no cycles, and a collection looks at millions of lists again and again
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        stored, value = (requests.read(length) for length in REQUEST.unpack(head))
        outcome, text = merge_values(stored, value)
        del stored, value
        _write(replies, outcome, text)
        del text


def merge_values(stored: bytes, value: bytes) -> tuple[int, bytes]:
    """Return the outcome of a merge, and its result or the message of its error."""
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
    """Have the kernel kill this process as soon as the thread that started it ends; elsewhere the input's end does."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before
            sys.exit()


def _limit_memory(size: int) -> None:
    with suppress(ImportError, ValueError, OSError):  # Windows has no limits, and an administrator may have set lower
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size if most == resource.RLIM_INFINITY else min(size, most), most))
