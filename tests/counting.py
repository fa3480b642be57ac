"""A transport that counts what passes through it."""

from __future__ import annotations

from collections import Counter

from cloudstore_mapping.client.transport import Transport
from cloudstore_mapping.wire import Batch, Reply, Request, Upload


class CountingTransport:
    """Passes requests on, and counts them by operation."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.counts: Counter[str] = Counter()

    def send(self, request: Request | Batch | Upload) -> Reply:
        """Count, then send."""
        self.counts["upload" if isinstance(request, Upload) else request.operation.value] += 1
        return self._inner.send(request)

    def take(self) -> dict[str, int]:
        """Return the counts since the last time."""
        counts = dict(self.counts)
        self.counts.clear()
        return counts

    def close(self) -> None:
        """Close the transport behind."""
        self._inner.close()
