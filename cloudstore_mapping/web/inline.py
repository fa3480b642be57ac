"""Small requests on data files, answered without a task for each: all of one turn of the loop together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from cloudstore_mapping.errors import CloudStoreError
from cloudstore_mapping.web.app import LARGE_BODY, check_type, identified, posts
from cloudstore_mapping.web.http import FAILED, RefusedError, Scope, in_one_piece
from cloudstore_mapping.wire import Batch, Reply, Request, decode_request, failure

if TYPE_CHECKING:
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.web.observing import Observed

R = TypeVar("R")

_log: Final = logging.getLogger("cloudstore_mapping.web")

#: What a client says of its connection that is to be kept, if it says anything.
_KEPT: Final = b"keep-alive"

#: Sends a reply, its status, head and body, in one piece, and tells whether the client was still there.
Write: TypeAlias = Callable[[int, bytes, bytes], bool]


@dataclass
class _Waiting:
    """A request that came in at this time, and what it is answered with."""

    scope: Scope
    headers: Mapping[bytes, bytes]
    body: bytes
    write: Write
    began: float


class Inline:
    """
    Answers requests that are whole, as the application does that `observed` observes; only for the loop's thread.

    A task for each, and a transaction of its own, would take half as long again as the request. What is answered
    together came in before the first of it is looked at, so its reads may all see the same moment.
    """

    def __init__(self, service: Service, base_path: str, observed: Observed, trusted_proxies: str) -> None:
        self._service = service
        self._posts = posts(base_path)
        self._max_body = min(LARGE_BODY, service.settings.max_body_bytes)
        self._max_depth = service.settings.max_depth
        self._observed = observed
        self._proxies = ProxyHeadersMiddleware(_nothing, trusted_proxies) if trusted_proxies else None
        self._waiting: list[_Waiting] = []

    def may_take(self, scope: Scope) -> bool:
        """Whether a request with these headers is one to `take` once its body is there."""
        return scope["path"] in self._posts and scope["method"] == "POST"

    def take(self, scope: Scope, body: bytes, write: Write) -> bool:
        """Answer the request at the end of this turn of the loop, unless it is the application's to refuse."""
        headers = dict(scope["headers"])
        # What becomes of the connection is uvicorn's to see to, in each version in its own way.
        if len(body) > self._max_body or headers.get(b"connection", _KEPT).lower() != _KEPT:
            return False
        try:
            check_type(headers)
        except RefusedError:
            return False
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._answer_all)
        self._waiting.append(_Waiting(scope, headers, body, write, perf_counter()))
        return True

    def _answer_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        with self._service.together() as answer:
            for each in waiting:
                reply = self._reply(each, partial(self._begin, each, answer))
                if isinstance(reply, Reply):
                    self._end(each, reply)
                else:
                    self._end_later(each, reply)

    def _begin(
        self, asked: _Waiting, answer: Callable[[Request | Batch, str], Reply | Future[Reply]]
    ) -> Reply | Future[Reply]:
        scope = asked.scope
        if self._proxies is not None:
            _finish(self._proxies(scope, None, None))  # type: ignore[arg-type]  # `_nothing` asks for neither
        request = decode_request(self._posts[scope["path"]], asked.body, max_depth=self._max_depth)
        request = identified(request, asked.headers)
        scope["operation"] = request.operation.value
        client = scope["client"]
        return answer(request, client[0] if client else "")

    def _reply(self, asked: _Waiting, work: Callable[[], R]) -> R | Reply:
        """Return what the work returns, or the reply that says what it raised."""
        try:
            return work()
        except CloudStoreError as error:
            return failure(error)
        except Exception:  # noqa: BLE001 - it is logged, and the client gets a sentence instead
            _log.exception("A request to %s failed.", asked.scope["path"])
            return FAILED

    def _end_later(self, asked: _Waiting, future: Future[Reply]) -> None:
        loop = asyncio.get_running_loop()

        def end(done: Future[Reply]) -> None:
            with suppress(RuntimeError):  # the loop ended by force, with its clients
                loop.call_soon_threadsafe(lambda: self._end(asked, self._reply(asked, done.result)))

        future.add_done_callback(end)

    def _end(self, asked: _Waiting, reply: Reply) -> None:
        scope = asked.scope
        scope["outcome"] = reply.error
        head, body = in_one_piece(reply)
        is_there = asked.write(reply.status, head, body)
        seconds = perf_counter() - asked.began
        self._observed.ended(scope, reply.status if is_there else 0, seconds, len(body) if is_there else 0)


async def _nothing(*_: Any) -> None:
    """Be the application behind a middleware of which only what it does to the scope is wanted."""


def _finish(coroutine: Any) -> None:
    """Run to its end a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError(f"{coroutine!r} waits for something.")
