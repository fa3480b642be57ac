"""Spool of uploads whose API key or password comes after the file: memory, then a temporary file, within limits."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Final, Self

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.guesses import network_of
from cloudstore_mapping.web.http import Turns

if TYPE_CHECKING:
    from cloudstore_mapping.service.settings import Settings

_log: Final = logging.getLogger("cloudstore_mapping.web")

#: Bytes of one file that are held in memory, and of all files together; more lie in temporary files.
IN_MEMORY: Final = 2**18
ALL_IN_MEMORY: Final = 2**24
#: Reads and writes of temporary files at a time, on threads that all else needs too.
AT_ONCE: Final = 2
#: Seconds after which a client that was refused for want of space may try again.
WAIT: Final = 10.0


class SpoolSpace:
    """The bytes that the spools of a process take, bounded in all and per address; only for the loop's thread."""

    def __init__(self, settings: Settings) -> None:
        self._most = settings.max_spool_bytes
        self._most_per_address = settings.max_address_spool_bytes
        # All spools may wait: none takes more from its client meanwhile.
        self.turns = Turns(AT_ONCE, sys.maxsize)
        self._by_subject: Counter[str] = Counter()
        self.taken = 0
        self.in_memory = 0

    def take(self, subject: str, size: int) -> None:
        """Count more bytes of an address; `UnavailableError` past a limit."""
        if self.taken + size > self._most or self._by_subject[subject] + size > self._most_per_address:
            raise UnavailableError(
                "Too many files wait for their API key or password; send these before the file, or try again later.",
                retry_after=WAIT,
            )
        self.taken += size
        self._by_subject[subject] += size

    def give_back(self, subject: str, size: int) -> None:
        """Count them no longer."""
        self.taken -= size
        self._by_subject[subject] -= size
        if not self._by_subject[subject]:
            del self._by_subject[subject]


class Spool:
    """
    The bytes of one file whose API key or password is still to come; a context manager that removes them at its exit.

    The temporary file has no name, so not even a killed process leaves it behind.
    """

    def __init__(self, space: SpoolSpace, address: str) -> None:
        self._space = space
        self._subject = network_of(address)
        self._held = bytearray()
        self._file: IO[bytes] | None = None
        # A cancelled task leaves its thread at work, which must not meet a closed file.
        self._lock = threading.Lock()
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._space.give_back(self._subject, self.size)
        self._space.in_memory -= len(self._held)
        with self._lock:
            if self._file is not None:
                with suppress(OSError):  # of bytes that a full disk didn't take
                    self._file.close()

    async def write(self, data: bytes) -> None:
        """Take the next bytes; `UnavailableError` if there is no space for them."""
        self._space.take(self._subject, len(data))
        self.size += len(data)
        self._held += data
        self._space.in_memory += len(data)
        if len(self._held) < IN_MEMORY and self._space.in_memory <= ALL_IN_MEMORY:
            return
        try:
            await self._space.turns.run(self._put_down)
        except OSError as error:
            _log.warning("An upload can't be kept in a temporary file: %s", error)
            raise UnavailableError(
                f"The service can't keep a file whose API key or password comes after it ({_reason(error)});"
                " send these before the file, or try again later.",
                retry_after=WAIT,
            ) from error
        self._space.in_memory -= len(self._held)
        self._held.clear()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield all bytes, from the first on."""
        if self._file is not None:
            self._file.seek(0)
            while piece := await self._space.turns.run(self._read):
                yield piece
        yield bytes(self._held)

    def _put_down(self) -> None:
        with self._lock:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="cloudstore-upload-")  # noqa: SIM115 - closed at the exit
            self._file.write(self._held)
            self._file.flush()

    def _read(self) -> bytes:
        with self._lock:
            return b"" if self._file is None or self._file.closed else self._file.read(IN_MEMORY)


def _reason(error: OSError) -> str:
    # Not the error's own text, in which Python lists the folders that it tried.
    return type(error).__name__ if error.errno is None else os.strerror(error.errno)
