"""Ways to a service that count, or that take their time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from cloudstore_mapping.client.transport import Sendable, Transport
from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.wire import Reply, Upload


class PassingTransport:
    """Passes all on to the transport `inner`, and closes it at the end."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner

    @property
    def has_id_header(self) -> bool:
        """Whether the inner one has a place for a write's id before the service has named `once`."""
        return getattr(self.inner, "has_id_header", False)

    @property
    def is_in_process(self) -> bool:
        """True if the service runs in this process."""
        return getattr(self.inner, "is_in_process", False)

    def send(self, request: Sendable) -> Reply:
        """Return the service's answer."""
        return self.inner.send(request)

    def fetch(self, link: str, start: int = 0, tag: str | None = None) -> Any:
        """Begin to get a media file, where the inner one can."""
        fetch = getattr(self.inner, "fetch", None)
        if fetch is None:
            raise UnsupportedError(f"{type(self.inner).__name__} has no way to media files; give it a `fetch`.")
        return fetch(link, start, tag)

    def close(self) -> None:
        """Close the transport behind."""
        self.inner.close()


class CountingTransport(PassingTransport):
    """Counts the requests by operation in `counts`: ``save``, ``load``, ``list``, ``batch``, ``upload`` and so on."""

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.counts: Counter[str] = Counter()

    def send(self, request: Sendable) -> Reply:
        """Count, then send."""
        self.counts["upload" if isinstance(request, Upload) else request.operation.value] += 1
        return super().send(request)

    def take(self) -> dict[str, int]:
        """Return the counts since the last time."""
        counts = dict(self.counts)
        self.counts.clear()
        return counts


class SlowTransport(PassingTransport):
    """
    Holds back each answer for `seconds`.

    Parameters
    ----------
    inner
        The way to the service.
    seconds
        How long; may be set anew at any time.
    sleep
        How to wait; `FrozenClock.sleep` takes no time.
    """

    def __init__(self, inner: Transport, seconds: float, *, sleep: Callable[[float], object] = time.sleep) -> None:
        super().__init__(inner)
        self.seconds = seconds
        self._sleep = sleep

    def send(self, request: Sendable) -> Reply:
        """Send, then wait."""
        reply = super().send(request)
        self._sleep(self.seconds)
        return reply
