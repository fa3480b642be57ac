"""A media file on its way to a user: gone on with where it broke off, and whole in the end."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import IO, TYPE_CHECKING, Final

from cloudstore_mapping.client.progress import Progress, reporting
from cloudstore_mapping.client.sender import MAX_WAIT
from cloudstore_mapping.errors import ProtocolError, TimedOutError, TooOftenError, TransportError

if TYPE_CHECKING:
    from cloudstore_mapping.client.client import Client
    from cloudstore_mapping.client.fetching import Fetched


_DIGEST: Final = re.compile(r'"?([0-9a-f]{64})"?')


class Target:
    """A binary file that a download is written to, from where it stands."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._start: int | None = None
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, piece: bytes) -> None:
        """Write the next bytes."""
        if self._start is None and self._file.seekable():
            self._start = self._file.tell()
        self._file.write(piece)
        self._digest.update(piece)
        self.size += len(piece)

    def restart(self) -> None:
        """Take back all that was written; `ProtocolError` where the file can't."""
        if self.size == 0:
            return
        if self._start is None:
            raise ProtocolError("The file changed while it was downloaded; download it again.")
        self._file.seek(self._start)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        """The SHA-256 of what was written, in hexadecimal digits."""
        return self._digest.hexdigest()


class Download:
    """
    One media file, got from `link` in as many requests as it takes: the client's retries are those without a byte more.

    `told` is called before the first byte is written, with what the service says of the file.
    """

    def __init__(
        self,
        client: Client,
        link: str,
        target: Target,
        progress: Progress = None,
        told: Callable[[Fetched], object] = lambda _: None,
    ) -> None:
        self._client = client
        self._link = link
        self._target = target
        self._progress = progress
        self._told = told
        self._report: Callable[[int], object] | None = None
        self._tag: str | None = None

    def run(self) -> None:
        """Get the whole file; raises what `Client.fetch` raises once it is not tried again."""
        waits = self._client.waits()
        with ExitStack() as stack:
            while True:
                before = self._target.size
                try:
                    self._go_on(stack)
                except (TransportError, TimedOutError, TooOftenError) as error:
                    if self._target.size > before:
                        waits = self._client.waits()  # it goes on, however often it breaks
                    wait = next(waits)
                    asked = getattr(error, "retry_after", None) or 0.0
                    if wait is None or asked > MAX_WAIT:
                        raise
                    self._client.wait(max(wait, asked))
                else:
                    return

    def _go_on(self, stack: ExitStack) -> None:
        with closing(self._client.fetch(self._link, self._target.size, self._tag)) as fetched:
            if fetched.start != self._target.size or (self._target.size and fetched.tag != self._tag):
                self._target.restart()
            self._tag = fetched.tag
            if self._target.size != fetched.start:
                raise TransportError("The file changed while it was downloaded; try again.", sent=True)
            if self._target.size == 0:
                self._told(fetched)
            if self._report is None and fetched.size is not None:
                self._report = stack.enter_context(reporting(self._progress, fetched.size))
            for piece in fetched.pieces:
                self._target.write(piece)
                if self._report is not None:
                    self._report(self._target.size)
            if fetched.size is not None and self._target.size != fetched.size:
                raise TransportError("The download broke off before its end; try again.", sent=True)
            if self._promised(fetched) not in (None, self._target.digest):
                raise ProtocolError("What came is not what was uploaded; upload the file again.")

    def _promised(self, fetched: Fetched) -> str | None:
        """Return the SHA-256 that the file has to have, None where the service isn't known to tell it in its tag."""
        if fetched.tag is None or "version" not in self._client.extensions:
            return None
        found = _DIGEST.fullmatch(fetched.tag)
        return None if found is None else found[1]
