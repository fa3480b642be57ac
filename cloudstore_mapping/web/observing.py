"""Around the whole application: every request is counted, and logged where that is wanted; the counts are shown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import perf_counter
from typing import Final

from cloudstore_mapping.links import FILES_PATH
from cloudstore_mapping.web.app import HEALTH_PATH
from cloudstore_mapping.web.http import Application, Message, Receive, Scope, Send, answer, check_method
from cloudstore_mapping.web.logs import ACCESS
from cloudstore_mapping.web.metrics import CONTENT_TYPE, GONE, METRICS_PATH, OTHER, Metrics
from cloudstore_mapping.wire import UPLOAD_PATH, Reply

_access: Final = logging.getLogger(ACCESS)

DASHBOARD_PATH: Final = "/admin"
# What a request is counted as that isn't one of the wire's own, by the beginning of its path.
_BY_PATH: Final = {UPLOAD_PATH: "upload", FILES_PATH: "media", DASHBOARD_PATH: "dashboard", HEALTH_PATH: "health"}


class Observed:
    """
    The ASGI application `app` under `base_path`, with ``/metrics`` beside it.

    `store_bytes` tells the size of the store, on a thread of its own.
    """

    def __init__(
        self,
        app: Application,
        metrics: Metrics,
        base_path: str,
        store_bytes: Callable[[], int],
        *,
        logs: bool,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._base = base_path.rstrip("/")
        self._metrics_path = self._base + METRICS_PATH
        self._store_bytes = store_bytes
        self._logs = logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        status = bytes_out = 0

        async def observe(message: Message) -> None:
            nonlocal status, bytes_out
            if "status" in message:
                status = message["status"]
            bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            await (self._show if scope["path"] == self._metrics_path else self._app)(scope, receive, observe)
        finally:
            self.ended(scope, status, perf_counter() - began, bytes_out)

    def ended(self, scope: Scope, status: int, seconds: float, bytes_out: int) -> None:
        """Count a request, and log it where that is wanted; a `status` of 0 is that of one whose client went away."""
        outcome = scope["outcome"] if status and "outcome" in scope else _outcome(status)
        self._metrics.count(scope.get("operation") or self._operation(scope["path"]), outcome, seconds, bytes_out)
        if self._logs:
            _access.info("request", extra={"request": _facts(scope, status, seconds)})

    def _operation(self, path: str) -> str:
        rest = path.removeprefix(self._base)
        return next((name for prefix, name in _BY_PATH.items() if rest.startswith(prefix)), OTHER)

    async def _show(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await answer(scope, receive, send, _refuse)
            return
        text = await asyncio.to_thread(self._metrics.text, self._store_bytes)
        headers = [(b"content-type", CONTENT_TYPE), (b"content-length", b"%d" % len(text))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})


async def _refuse(scope: Scope, _: Receive) -> Reply:
    check_method(scope["method"], ("GET", "HEAD"))
    raise NotImplementedError


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
