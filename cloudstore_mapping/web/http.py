"""What all paths of the web share: the shapes of ASGI, replies and refusals, and deadlines."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeAlias, TypeVar

from cloudstore_mapping.errors import CloudStoreError, ProtocolError, UnavailableError
from cloudstore_mapping.wire import EXTENSIONS, EXTENSIONS_HEADER, Reply, encode_reply, failure

T = TypeVar("T")

_log: Final = logging.getLogger("cloudstore_mapping.web")

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]

_ANY_ORIGIN: Final[Header] = (b"access-control-allow-origin", b"*")
#: What lets a browser's program on any page read a reply, whatever its status, and these headers of it.
CROSS_ORIGIN: Final[tuple[Header, ...]] = (
    _ANY_ORIGIN,
    (
        b"access-control-expose-headers",
        b"CloudStore-Extensions, Content-Disposition, Content-Range, ETag, Retry-After",
    ),
)
_HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    *CROSS_ORIGIN,
    (EXTENSIONS_HEADER.lower().encode(), ", ".join(EXTENSIONS).encode()),
)
_HEAD: Final = b"".join(name + b": " + value + b"\r\n" for name, value in _HEADERS) + b"content-length: "
PREFLIGHT: Final[Message] = {
    "type": "http.response.start",
    "status": 204,
    "headers": (
        _ANY_ORIGIN,
        (b"access-control-allow-methods", b"GET, HEAD, POST"),
        (b"access-control-allow-headers", b"content-type, idempotency-key, if-none-match, range"),
        (b"access-control-max-age", b"86400"),
    ),
}
FAILED: Final = failure(
    ProtocolError("The service failed; its owner finds the reason in its log.", error="ServerError")
)
HEALTH_PATH: Final = "/health"
END: Final[Message] = {"type": "http.response.body"}
CLOSE: Final[Header] = (b"connection", b"close")


class DisconnectedError(Exception):
    """The client went away before its request was whole."""


class RefusedError(Exception):
    """The request was refused before its body was read."""

    def __init__(self, error: CloudStoreError, *headers: Header) -> None:
        super().__init__(error)
        self.error = error
        self.headers = headers


class Deadline:
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


class BoundedWorkers:
    """
    Has work done on threads, so much of it at once, while so much more may wait.

    The threads are those that all else needs too, and what hashes a password may keep one of them for long.
    """

    def __init__(self, at_once: int, waiting: int) -> None:
        self._semaphore = asyncio.Semaphore(at_once)
        self._free = at_once + waiting

    async def run(self, work: Callable[[], T]) -> T:
        """Return what the work returns, once it had its turn; `UnavailableError` where too much of it waits."""
        if not self._free:
            raise UnavailableError("The service is busy; try again.", retry_after=1.0)
        self._free -= 1
        try:
            async with self._semaphore:
                return await asyncio.to_thread(work)
        finally:
            self._free += 1


def check_method(method: str, allowed: tuple[str, ...]) -> None:
    """Refuse a request whose method isn't one of these."""
    if method not in allowed:
        error = ProtocolError(f"{method} means nothing here; use {' or '.join(allowed)}.", error="BadMethod")
        raise RefusedError(error, (b"allow", ", ".join((*allowed, "OPTIONS")).encode()))


async def outcome(future: Future[T]) -> T:
    """Return the future's result once it has one; it goes on where the task is cancelled."""
    # asyncio.wrap_future costs half as much again, and would cancel the service's own future together with the task.
    loop = asyncio.get_running_loop()
    settled = loop.create_future()

    def wake(_: Future[T]) -> None:
        with suppress(RuntimeError):  # the loop ended by force, with its clients
            loop.call_soon_threadsafe(_wake, settled)

    future.add_done_callback(wake)
    await settled
    return future.result()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def answer(
    scope: Scope, receive: Receive, send: Send, work: Callable[[Scope, Receive], Awaitable[Reply]]
) -> None:
    """
    Send the reply that `work` returns, or that says what it raised.

    The scope's ``outcome`` is then the error's name, for whoever counts.
    """
    headers: tuple[Header, ...] = ()
    try:
        reply = await work(scope, receive)
    except DisconnectedError:
        return
    except RefusedError as refused:
        reply = failure(refused.error)
        headers = refused.headers
    except CloudStoreError as error:
        reply = failure(error)
    except Exception:  # noqa: BLE001 - it is logged, and the client gets a sentence instead
        _log.exception("A request to %s failed.", scope["path"])
        reply = FAILED
    scope["outcome"] = reply.error
    await send_reply(send, reply, *headers)


def encode_response(reply: Reply) -> tuple[bytes, bytes]:
    """Return the headers of a whole reply, as they are sent, and its body."""
    body = encode_reply(reply)
    head = b"%b%d\r\n" % (_HEAD, len(body))
    if reply.retry_after is not None:
        head += b"retry-after: %d\r\n" % math.ceil(reply.retry_after)
    return head, body


async def send_reply(send: Send, reply: Reply, *more_headers: Header) -> None:
    """Send a whole reply."""
    body = encode_reply(reply)
    headers = [*_HEADERS, (b"content-length", b"%d" % len(body)), *more_headers]
    if reply.retry_after is not None:
        headers.append((b"retry-after", b"%d" % math.ceil(reply.retry_after)))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
