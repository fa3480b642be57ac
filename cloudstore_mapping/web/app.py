"""The service's paths over HTTP: a bare ASGI application."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from cloudstore_mapping.errors import CloudStoreError, ProtocolError, TooBigError, UnavailableError
from cloudstore_mapping.wire import (
    BATCH_PATH,
    EXTENSIONS,
    EXTENSIONS_HEADER,
    LOAD_PATH,
    SAVE_PATH,
    Reply,
    decode_request,
    encode_reply,
    failure,
    success,
)

if TYPE_CHECKING:
    from cloudstore_mapping.service.service import Service

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]

HEALTH_PATH: Final = "/health"

#: Bytes of a body from which on it is decoded in a thread: the loop serves everybody else meanwhile.
LARGE_BODY: Final = 64 * 2**10

_log: Final = logging.getLogger("cloudstore_mapping.web")

_ANY_ORIGIN: Final[Header] = (b"access-control-allow-origin", b"*")
_HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    _ANY_ORIGIN,
    (b"access-control-expose-headers", b"CloudStore-Extensions, Retry-After"),
    (EXTENSIONS_HEADER.lower().encode(), ", ".join(EXTENSIONS).encode()),
)
_PREFLIGHT: Final[Message] = {
    "type": "http.response.start",
    "status": 204,
    "headers": (
        _ANY_ORIGIN,
        (b"access-control-allow-methods", b"GET, HEAD, POST"),
        (b"access-control-allow-headers", b"content-type"),
        (b"access-control-max-age", b"86400"),
    ),
}
_END: Final[Message] = {"type": "http.response.body"}
_CLOSE: Final[Header] = (b"connection", b"close")

_HEALTHY: Final = success("Healthy")
_UNHEALTHY: Final = failure(UnavailableError("The service can't reach what it stores; its owner finds why in its log."))
_FAILED: Final = failure(
    ProtocolError("The service failed; its owner finds the reason in its log.", error="ServerError")
)


def make_app(service: Service, *, base_path: str = "/cloudstore") -> Application:
    """
    Return the ASGI application that answers for `service` under `base_path`.

    A slow client costs it a socket, never a thread. It doesn't close the service.
    """
    return _App(service, base_path.rstrip("/"))


class _DisconnectedError(Exception):
    """The client went away before its request was whole."""


class _RefusedError(Exception):
    """The request was refused before its body was read; `lingers` where the client may be sending it meanwhile."""

    def __init__(self, error: CloudStoreError, *headers: Header, lingers: bool = True) -> None:
        super().__init__(error)
        self.error = error
        self.headers = headers
        self.lingers = lingers


class _App:
    def __init__(self, service: Service, base: str) -> None:
        self._service = service
        self._max_body = service.settings.max_body_bytes
        self._max_depth = service.settings.max_depth
        self._deadline = _Deadline(service.settings.body_timeout)
        self._posts = {base + path: path for path in (SAVE_PATH, LOAD_PATH, BATCH_PATH)}
        self._health_path = base + HEALTH_PATH
        self._no_path = f"There is nothing here; post to {base + SAVE_PATH} or {base + LOAD_PATH}."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _live(scope, receive, send)
            return
        if scope["method"] == "OPTIONS":
            await send(_PREFLIGHT)
            await send(_END)
            return
        try:
            reply = await self._answer(scope, receive)
        except _DisconnectedError:
            return
        except _RefusedError as refused:
            await _send(send, failure(refused.error), *refused.headers, lingers=refused.lingers)
            if refused.lingers:
                await self._linger(receive, send)
            return
        except CloudStoreError as error:
            reply = failure(error)
        except Exception:  # noqa: BLE001 - it is logged, and the client gets a sentence instead
            _log.exception("A request to %s failed.", scope["path"])
            reply = _FAILED
        await _send(send, reply)

    async def _answer(self, scope: Scope, receive: Receive) -> Reply:
        method = scope["method"]
        path = self._posts.get(scope["path"])
        if path is None:
            if scope["path"] != self._health_path:
                raise _RefusedError(ProtocolError(self._no_path, error="NoPath"))
            _check_method(method, ("GET", "HEAD"))
            return _HEALTHY if self._service.healthy() else _UNHEALTHY
        _check_method(method, ("POST",))
        headers = dict(scope["headers"])
        _check_type(headers.get(b"content-type", b""), headers.get(b"content-encoding", b"identity"))
        if int(headers.get(b"content-length", 0)) > self._max_body:
            raise self._too_big()
        body = await self._read(receive)
        if len(body) <= LARGE_BODY:
            request = decode_request(path, body, max_depth=self._max_depth)
        else:
            decode = partial(decode_request, path, body, max_depth=self._max_depth)
            request = await asyncio.get_running_loop().run_in_executor(None, decode)
        client = scope["client"]
        future = self._service.submit(request, address=client[0] if client else "")
        return future.result() if future.done() else await _outcome(future)

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        task = self._deadline.begin()
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _DisconnectedError
                body += message.get("body", b"")
                if len(body) > self._max_body:
                    raise self._too_big()
                if not message.get("more_body"):
                    return bytes(body)
        except asyncio.CancelledError:
            if not self._deadline.passed(task):
                raise
            sentence = f"The body took longer than {self._deadline.seconds:g} seconds to arrive; send it faster."
            raise _RefusedError(ProtocolError(sentence, error="BadRequest"), _CLOSE, lingers=False) from None
        finally:
            self._deadline.end(task)

    def _too_big(self) -> _RefusedError:
        sentence = f"The body of a request can't be larger than {self._max_body:,} bytes; split the value."
        return _RefusedError(TooBigError(sentence, error="BodyTooBig"), _CLOSE)

    async def _linger(self, receive: Receive, send: Send) -> None:
        # A socket closed on a client that still sends is reset, and the client may never see why it was refused.
        with suppress(TimeoutError):
            async with asyncio.timeout(self._deadline.seconds):
                while (await receive()).get("more_body"):
                    pass
        await send(_END)


class _Deadline:
    """
    Ends what takes longer than `seconds`, with one timer for all.

    A timer each costs 4 µs, a sixth of a request.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends: dict[asyncio.Task[Any], float] = {}  # the first to end comes first, for all have equally long
        self._late: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self) -> asyncio.Task[Any]:
        """Cancel the running task, which this returns, unless `end` comes in time."""
        loop = asyncio.get_running_loop()
        task: asyncio.Task[Any] = asyncio.current_task(loop)  # type: ignore[assignment]  # a coroutine runs in a task
        self._ends[task] = loop.time() + self.seconds
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(self.seconds, self._sweep, loop)
        return task

    def end(self, task: asyncio.Task[Any]) -> None:
        """Let the task be."""
        self._ends.pop(task, None)

    def passed(self, task: asyncio.Task[Any]) -> bool:
        """Whether the task was cancelled for this deadline, and for nothing else."""
        if task not in self._late:
            return False
        self._late.discard(task)
        return not task.uncancel()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._ends:
            task, end = next(iter(self._ends.items()))
            if end > loop.time():
                loop.call_at(end, self._sweep, loop)
                return
            del self._ends[task]
            self._late.add(task)
            task.cancel()
        self._loop = None


def _check_method(method: str, allowed: tuple[str, ...]) -> None:
    if method not in allowed:
        error = ProtocolError(f"{method} means nothing here; use {' or '.join(allowed)}.", error="BadMethod")
        raise _RefusedError(error, (b"allow", ", ".join((*allowed, "OPTIONS")).encode()))


@lru_cache(maxsize=64)
def _check_type(content_type: bytes, content_encoding: bytes) -> None:
    media_type, *parameters = content_type.lower().split(b";")
    charsets = {
        value.strip(b' \t"')
        for name, _, value in (parameter.partition(b"=") for parameter in parameters)
        if name.strip() == b"charset"
    }
    if media_type.strip() != b"application/json" or charsets - {b"utf-8", b"utf8"}:
        sentence = "The body has to be JSON in UTF-8; send it as application/json."
        raise _RefusedError(ProtocolError(sentence, error="BadType"))
    if content_encoding.strip().lower() not in {b"identity", b""}:
        sentence = "The body can't be compressed; send it without a Content-Encoding."
        raise _RefusedError(ProtocolError(sentence, error="BadType"))


async def _outcome(future: Future[Reply]) -> Reply:
    # asyncio.wrap_future costs half as much again, and would cancel the service's own future together with the task.
    loop = asyncio.get_running_loop()
    settled = loop.create_future()
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(_wake, settled))
    await settled
    return future.result()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _send(send: Send, reply: Reply, *more_headers: Header, lingers: bool = False) -> None:
    body = encode_reply(reply)
    headers = [*_HEADERS, (b"content-length", b"%d" % len(body)), *more_headers]
    if reply.retry_after is not None:
        headers.append((b"retry-after", b"%d" % math.ceil(reply.retry_after)))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": lingers})


async def _live(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "lifespan":
        raise NotImplementedError(f"There is no {scope['type']} here, only HTTP.")
    while (await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
