"""Prometheus metrics at /metrics, shared between worker processes, and the access log: one line per request."""

from __future__ import annotations

import hmac
import logging
import platform
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, cast

from cloudstore_mapping._version import __version__
from cloudstore_mapping.errors import REPLY_ERRORS, BadKeyError, UnavailableError
from cloudstore_mapping.links import FILES_PATH
from cloudstore_mapping.web.connections import SparseLog
from cloudstore_mapping.web.http import (
    HEALTH_PATH,
    HSTS,
    Application,
    BoundedWorkers,
    Message,
    Receive,
    RefusedError,
    Scope,
    Send,
    answer,
    check_method,
    headers_of,
    is_pinned,
)
from cloudstore_mapping.web.logs import ACCESS
from cloudstore_mapping.web.options import is_loopback
from cloudstore_mapping.wire import UPLOAD_PATH, Operation, Reply

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

METRICS_PATH: Final = "/metrics"
CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"

#: Operations in the metrics; `OTHER` includes requests refused before their operation was read.
OTHER: Final = "other"
OPERATIONS: Final = (*(operation.value for operation in Operation), "upload", "media", "dashboard", "health", OTHER)
#: Outcomes in the metrics: success, an error's name, the class of the status for an unnamed error, or no reply.
OK: Final = "ok"
GONE: Final = "Gone"
OUTCOMES: Final = (OK, *REPLY_ERRORS, "Http4xx", "Http5xx", GONE)
#: Upper bounds of the histogram's buckets, in seconds.
BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Layout of a process's row: request counts, then histogram buckets and sums by operation, then single numbers.
_OUTCOME: Final = {name: number for number, name in enumerate(OUTCOMES)}
_OPERATION: Final = {name: number for number, name in enumerate(OPERATIONS)}
_BUCKETS: Final = len(OPERATIONS) * len(OUTCOMES)
_SUMS: Final = _BUCKETS + len(OPERATIONS) * (len(BOUNDS) + 1)
BYTES_IN: Final = _SUMS + len(OPERATIONS)
BYTES_OUT: Final = BYTES_IN + 1
CONNECTIONS: Final = BYTES_IN + 2
_STARTED_AT: Final = BYTES_IN + 3
_STARTS: Final = BYTES_IN + 4
ROW: Final = BYTES_IN + 5


def new_rows(processes: int) -> memoryview[Any]:
    """Return the rows of counters for this number of processes, all zero."""
    return memoryview(array("d", bytes(8 * ROW * processes)))


class Metrics:
    """
    Counters of process number `own`, in the `rows` of all processes.

    Each process writes only its own row, on a single thread, so there are no locks. `rows` may be shared memory.
    """

    def __init__(self, rows: memoryview[Any], own: int = 0) -> None:
        self._rows = rows
        self.row = cast("MutableSequence[float]", rows[own * ROW : (own + 1) * ROW])

    def start(self) -> None:
        """Record the start of the process, and reset its number of connections."""
        self.row[_STARTED_AT] = time.time()
        self.row[_STARTS] += 1
        self.row[CONNECTIONS] = 0

    def count(self, operation: str, outcome: str | None, seconds: float, bytes_out: int) -> None:
        """Count an answered request and its duration in seconds; `outcome` is the error's name, None for success."""
        row = self.row
        which = _OPERATION[operation]
        row[which * len(OUTCOMES) + (_OUTCOME[outcome] if outcome else 0)] += 1
        row[_BUCKETS + which * (len(BOUNDS) + 1) + bisect_left(BOUNDS, seconds)] += 1
        row[_SUMS + which] += seconds
        row[BYTES_OUT] += bytes_out

    def text(self, store_bytes: Callable[[], int]) -> bytes:
        """Return the totals of all processes in the Prometheus text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        registry.register(_Collector(self._rows, store_bytes))
        return generate_latest(registry)


class _Collector:
    def __init__(self, rows: memoryview[Any], store_bytes: Callable[[], int]) -> None:
        each = [rows[start : start + ROW] for start in range(0, len(rows), ROW)]
        self._sums = [sum(column) for column in zip(*each, strict=True)]
        self._started_at = min((row[_STARTED_AT] for row in each if row[_STARTED_AT]), default=0.0)
        self._store_bytes = store_bytes

    def describe(self) -> Sequence[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        sums = self._sums
        yield self._requests()
        yield self._durations()
        yield CounterMetricFamily(
            "cloudstore_received_bytes", "Bytes that came in, headers included.", value=sums[BYTES_IN]
        )
        yield CounterMetricFamily("cloudstore_sent_bytes", "Bytes of the bodies of replies.", value=sums[BYTES_OUT])
        yield GaugeMetricFamily("cloudstore_connections", "Open connections.", value=sums[CONNECTIONS])
        yield CounterMetricFamily(
            "cloudstore_worker_starts", "How often a process began to answer.", value=sums[_STARTS]
        )
        with suppress(UnavailableError):  # the other metrics show the cause
            yield GaugeMetricFamily("cloudstore_store_bytes", "Size of the store.", value=self._store_bytes())
        yield GaugeMetricFamily(
            "cloudstore_start_time_seconds", "When the oldest process began, since 1970.", value=self._started_at
        )
        info = GaugeMetricFamily("cloudstore_build_info", "Versions.", labels=["version", "python"])
        info.add_metric([__version__, platform.python_version()], 1)
        yield info

    def _requests(self) -> Metric:
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(
            "cloudstore_requests",
            "Requests by what they asked for and how they ended.",
            labels=["operation", "outcome"],
        )
        for number, operation in enumerate(OPERATIONS):
            start = number * len(OUTCOMES)
            for outcome, count in zip(OUTCOMES, self._sums[start : start + len(OUTCOMES)], strict=True):
                if count or outcome == OK:
                    family.add_metric([operation, outcome], count)
        return family

    def _durations(self) -> Metric:
        from prometheus_client.core import HistogramMetricFamily

        family = HistogramMetricFamily(
            "cloudstore_request_seconds", "How long requests took from their headers on.", labels=["operation"]
        )
        for number, operation in enumerate(OPERATIONS):
            start = _BUCKETS + number * (len(BOUNDS) + 1)
            total = 0.0
            buckets = []
            counts = self._sums[start : start + len(BOUNDS) + 1]
            for bound, count in zip([*map(str, BOUNDS), "+Inf"], counts, strict=True):
                total += count
                buckets.append((bound, total))
            family.add_metric([operation], buckets, self._sums[_SUMS + number])
        return family


_access: Final = logging.getLogger(ACCESS)

#: Maximum queued requests for the metrics.
WAITING: Final = 64

DASHBOARD_PATH: Final = "/admin"
#: Request headers added by proxies.
_FORWARDED: Final = frozenset({b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip"})
# Operation of a request outside the wire format, by path prefix.
_BY_PATH: Final = {UPLOAD_PATH: "upload", FILES_PATH: "media", DASHBOARD_PATH: "dashboard", HEALTH_PATH: "health"}


class InstrumentedApp:
    """
    ASGI middleware: count and log every request to `app`, and serve ``/metrics`` under `base_path`.

    `store_bytes` returns the size of the store in bytes; it runs on a thread of its own. Reading the metrics needs the
    `metrics_token`; without such a token, only clients on this machine may read them.
    """

    def __init__(
        self,
        app: Application,
        metrics: Metrics,
        base_path: str,
        store_bytes: Callable[[], int],
        *,
        logs: bool,
        metrics_token: str | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._base = base_path.rstrip("/")
        self._metrics_path = self._base + METRICS_PATH
        self._store_bytes = store_bytes
        self._logs = logs
        self._token = metrics_token
        self._turns = BoundedWorkers(1, WAITING, "cloudstore-metrics")
        self._unavailable = SparseLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, then count and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        status = bytes_out = 0

        async def observe(message: Message) -> None:
            nonlocal status, bytes_out
            if "status" in message:
                status = message["status"]
                if is_pinned(scope):
                    message = {**message, "headers": [*message["headers"], HSTS]}
            bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            await (self._show if scope["path"] == self._metrics_path else self._app)(scope, receive, observe)
        finally:
            self.ended(scope, status, perf_counter() - began, bytes_out)

    def ended(self, scope: Scope, status: int, seconds: float, bytes_out: int) -> None:
        """
        Count a request, and log it if enabled; a `status` of 0 means its client disconnected.

        Also log why requests are unavailable, once in a while.
        """
        outcome = scope["outcome"] if status and "outcome" in scope else _outcome(status)
        self._metrics.count(scope.get("operation") or self._operation(scope["path"]), outcome, seconds, bytes_out)
        if "problem" in scope and not scope["path"].endswith(HEALTH_PATH):  # a check has its own lines
            self._unavailable.write(f"Requests are answered 503: {scope['problem']}")
        if self._logs:
            _access.info("request", extra={"request": _facts(scope, status, seconds)})

    def _operation(self, path: str) -> str:
        rest = path.removeprefix(self._base)
        return next((name for prefix, name in _BY_PATH.items() if rest.startswith(prefix)), OTHER)

    def _may_see_metrics(self, scope: Scope) -> bool:
        headers = headers_of(scope)
        if self._token is not None:
            kind, _, token = headers.get(b"authorization", b"").partition(b" ")
            return kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token.encode())
        # Requests forwarded by a proxy on this machine come from a local address, but may be anybody's.
        client = scope["client"]
        return client is not None and is_loopback(client[0]) and not _FORWARDED.intersection(headers)

    async def _refuse(self, scope: Scope, _: Receive) -> Reply:
        check_method(scope["method"], ("GET", "HEAD"))
        if self._token is None:
            sentence = "The metrics are only for the machine itself; set metrics_token to read them from another one."
        else:
            sentence = "The metrics need their own token; send it as 'Authorization: Bearer TOKEN'."
        raise RefusedError(BadKeyError(sentence), (b"www-authenticate", b"Bearer"))

    async def _show(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD") or not self._may_see_metrics(scope):
            await answer(scope, receive, send, self._refuse)
            return
        text = await self._turns.run(partial(self._metrics.text, self._store_bytes), None)
        headers = [(b"content-type", CONTENT_TYPE), (b"content-length", b"%d" % len(text))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})


def _outcome(status: int) -> str | None:
    if not status:
        return GONE
    return None if status < 400 else "Http4xx" if status < 500 else "Http5xx"


def _facts(scope: Scope, status: int, seconds: float) -> dict[str, object]:
    client = scope["client"]
    return {
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "milliseconds": round(seconds * 1000, 3),
        "address": client[0] if client else "",
    }
