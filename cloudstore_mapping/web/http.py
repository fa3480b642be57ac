"""Shared parts of all HTTP paths: ASGI types, replies and refusals, deadlines, bounded thread pools."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping, MutableMapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from cloudstore_mapping.errors import CloudStoreError, ProtocolError, UnavailableError
from cloudstore_mapping.service.security import network_of
from cloudstore_mapping.service.threads import BoundedThreadPool, FairQueue
from cloudstore_mapping.wire import EXTENSIONS, EXTENSIONS_HEADER, Reply, encode_reply, encode_reply_parts, failure

T = TypeVar("T")

_log: Final = logging.getLogger("cloudstore_mapping.web")

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]

_ANY_ORIGIN: Final[Header] = (b"access-control-allow-origin", b"*")
#: CORS: scripts of any page may read a reply of any status, and these of its headers.
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
#: Strict-Transport-Security (HSTS): a browser uses only https for this host, for a year after each reply.
HSTS: Final = (b"strict-transport-security", b"max-age=31536000")
HSTS_LINE: Final = b"%b: %b\r\n" % HSTS
HEALTH_PATH: Final = "/health"
#: Size in bytes above which a reply is sent in pieces, and size of a piece: the event loop sends one within 30 us.
LARGE_REPLY: Final = 128 * 2**10
PIECE: Final = 64 * 2**10
#: Scope entry with the memory of a large reply; released once the reply is sent.
REPLY_ROOM: Final = "cloudstore.reply_room"
#: Scope entry with the `Client` of a request.
CLIENT: Final = "cloudstore.client"
END: Final[Message] = {"type": "http.response.body"}
CLOSE: Final[Header] = (b"connection", b"close")


class DisconnectedError(Exception):
    """The client disconnected before its request was complete."""


class RefusedError(Exception):
    """The request was refused before its body was read."""

    def __init__(self, error: CloudStoreError, *headers: Header) -> None:
        super().__init__(error)
        self.error = error
        self.headers = headers


class Deadline:
    """
    Deadline of `seconds` for tasks, with a single timer for all of them.

    A timer for each task would cost 4 µs, a sixth of a request.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends: dict[asyncio.Task[Any], float] = {}  # earliest first: all have the same timeout
        self._late: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self) -> asyncio.Task[Any]:
        """Return the running task; it is cancelled after `seconds` unless `end` is called first."""
        loop = asyncio.get_running_loop()
        task: asyncio.Task[Any] = asyncio.current_task(loop)  # type: ignore[assignment]  # a coroutine runs in a task
        self._ends[task] = loop.time() + self.seconds
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(self.seconds, self._sweep, loop)
        return task

    def end(self, task: asyncio.Task[Any]) -> None:
        """Remove the deadline of the task."""
        self._ends.pop(task, None)

    def passed(self, task: asyncio.Task[Any]) -> bool:
        """Return True if this deadline cancelled the task, and nothing else did."""
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
    Bounded thread pool for the event loop, fair between the owners of work.

    An owner is an account, or the network of a client that isn't authenticated yet. Owners get their turns by the time
    that each has used, and one has at most `of_one` of the `at_once` threads. Up to `waiting` pieces of work wait; for
    one more, the newest piece of the owner with the most is refused. The threads end with the loop.
    """

    def __init__(self, at_once: int, waiting: int, name: str, *, of_one: int | None = None) -> None:
        self._new_pool = partial(BoundedThreadPool, at_once, sys.maxsize - at_once, name)
        self._pool: BoundedThreadPool | None = None
        self._until_end: AsyncGenerator[None, None] | None = None
        self._at_once = at_once
        self._waiting = waiting
        self._of_one = max(1, at_once - 1) if of_one is None else of_one
        self._clear()

    async def begin(self, work: Callable[[], T]) -> Future[T]:
        """Submit work of the service's own, without waiting for it."""
        if self._pool is None:
            self._pool = self._new_pool()
            self._until_end = self._drop_pool()
            await anext(self._until_end)  # a loop closes its generators at its end
        return self._pool.submit(work)

    async def run(self, work: Callable[[], T], owner: Hashable) -> T:
        """Run an owner's work on the pool and return its result; `UnavailableError` if it is refused."""
        loop = asyncio.get_running_loop()
        turn = _Turn(owner, loop.create_future())
        self._queue.put(owner, turn)
        self._start_next()
        if len(self._queue) > self._waiting:
            self._refuse(self._queue.shed())
        try:
            await turn.begins
        except asyncio.CancelledError:
            if not turn.begins.cancelled():
                self._end(owner, 0.0)
            raise
        began = loop.time()
        future: Future[T] | None = None
        try:
            future = await self.begin(work)
            return await outcome(future)
        finally:
            if future is None or future.done() or future.cancel():
                self._end(owner, loop.time() - began)
            else:  # cancelled here, but the work goes on
                future.add_done_callback(lambda _: _call_soon(loop, self._end, owner, loop.time() - began))

    def _clear(self) -> None:
        self._queue: FairQueue[_Turn] = FairQueue()
        self._running: Counter[Hashable] = Counter()
        self._free = self._at_once

    def _refuse(self, turn: _Turn) -> None:
        if not turn.begins.done():
            turn.begins.set_exception(UnavailableError("The service is busy; try again.", retry_after=1.0))

    def _start_next(self) -> None:
        while self._free and (turn := self._queue.take()) is not None:
            if turn.begins.done():  # cancelled while it waited
                continue
            self._free -= 1
            self._running[turn.owner] += 1
            if self._running[turn.owner] >= self._of_one:
                self._queue.hold(turn.owner)
            turn.begins.set_result(None)

    def _end(self, owner: Hashable, seconds: float) -> None:
        self._free += 1
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
        self._queue.charge(owner, seconds)
        self._queue.release(owner)
        self._start_next()

    async def _drop_pool(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._pool = None  # its threads end after their work
            self._clear()


class _Turn(NamedTuple):
    """Work of an owner that waits for a thread; `begins` is done once it may begin."""

    owner: Hashable
    begins: asyncio.Future[None]


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    with suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(function, *arguments)


def network(scope: Scope) -> str:
    """Return the network of a request's client, whose turn it is while no account is known."""
    return network_of(client[0]) if (client := scope.get("client")) else ""


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """
    Return a request's headers by name; the values of a repeated header are joined by commas, as RFC 9110 defines it.

    So a repeated header without a list as its value is invalid; `HTTPProtocol` refuses the most important ones before.
    """
    headers = dict(scope["headers"])
    if len(headers) < len(scope["headers"]):
        values: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            values.setdefault(name, []).append(value)
        headers = {name: b", ".join(each) for name, each in values.items()}
    return headers


def check_method(method: str, allowed: tuple[str, ...]) -> None:
    """Refuse a request (`RefusedError`) unless its method is one of these."""
    if method not in allowed:
        error = ProtocolError(f"{method} means nothing here; use {' or '.join(allowed)}.", error="BadMethod")
        raise RefusedError(error, (b"allow", ", ".join((*allowed, "OPTIONS")).encode()))


async def outcome(future: Future[T]) -> T:
    """Wait for a future and return its result; cancelling the task doesn't cancel the future."""
    # asyncio.wrap_future costs half as much again, and would cancel the service's own future together with the task.
    loop = asyncio.get_running_loop()
    settled = loop.create_future()

    def wake(_: Future[T]) -> None:
        with suppress(RuntimeError):  # the loop was stopped by force, with its connections
            loop.call_soon_threadsafe(_wake, settled)

    future.add_done_callback(wake)
    await settled
    return future.result()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def note_outcome(scope: Scope, reply: Reply) -> None:
    """Set the scope's ``outcome``: an error's name, or None. Its ``problem`` is the text to be logged, if any."""
    scope["outcome"] = reply.error
    if reply.problem is not None or reply.error == UnavailableError.error:
        scope["problem"] = reply.problem or reply.sentence


async def answer(
    scope: Scope, receive: Receive, send: Send, work: Callable[[Scope, Receive], Awaitable[Reply]]
) -> None:
    """
    Send the reply returned by `work`, or an error reply for its exception.

    Set the scope's ``outcome``, for the metrics.
    """
    headers: tuple[Header, ...] = ()
    try:
        reply = await work(scope, receive)
    except DisconnectedError:
        return  # before its request was complete, so no reply memory is held
    except RefusedError as refused:
        reply = failure(refused.error)
        headers = refused.headers
    except CloudStoreError as error:
        reply = failure(error)
    except Exception:  # noqa: BLE001 - logged; the client gets a generic error
        _log.exception("A request to %s failed.", scope["path"])
        reply = FAILED
    note_outcome(scope, reply)
    try:
        await send_reply(send, reply, *headers, client=scope.get(CLIENT))
    finally:
        if REPLY_ROOM in scope:
            scope[REPLY_ROOM].release()


def encode_response(reply: Reply) -> tuple[bytes, bytes]:
    """Return the encoded header lines of a complete reply, and its body."""
    body = encode_reply(reply)
    head = b"%b%d\r\n" % (_HEAD, len(body))
    if reply.retry_after is not None:
        head += b"retry-after: %d\r\n" % math.ceil(reply.retry_after)
    return head, body


def is_large(reply: Reply) -> bool:
    """Return True if a reply is sent in pieces."""
    return len(reply.content) > LARGE_REPLY


class Client:
    """The connection of a client that a large reply or a file is sent to; only for the loop's thread."""

    __slots__ = ("_slots", "_waiters", "chunk_bytes", "is_gone")

    def __init__(self) -> None:
        #: True once the connection is closed.
        self.is_gone = False
        #: Bytes of a file read for this client and not sent yet.
        self.chunk_bytes = 0
        self._slots: asyncio.Semaphore | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    def leave(self) -> None:
        """Note that the connection is closed: nothing waits for its turn any more."""
        self.is_gone = True
        for waiter in self._waiters:
            _wake(waiter)

    async def wait(self, waiter: asyncio.Future[None]) -> None:
        """Wait until `waiter` is done or the connection is closed."""
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    async def take(self, slots: asyncio.Semaphore) -> None:
        """Take a slot of those that may hold a chunk of a file in memory at once."""
        await slots.acquire()
        self._slots = slots

    def give_back(self) -> None:
        """Give the slot back, if there is one: the chunk is sent, or counts as unread from now on."""
        if self._slots is not None:
            self._slots.release()
            self._slots = None


async def send_reply(send: Send, reply: Reply, *more_headers: Header, client: Client | None = None) -> None:
    """Send a complete reply; a large reply goes out in pieces as its client reads, to avoid copying it as a whole."""
    if not is_large(reply):
        body = encode_reply(reply)
        await _send_start(send, reply, len(body), more_headers)
        await send({"type": "http.response.body", "body": body})
        return
    parts = encode_reply_parts(reply)
    await _send_start(send, reply, sum(map(len, parts)), more_headers)
    for part in parts:
        await send_pieces(send, part, client)
    await send(END)


async def send_pieces(send: Send, data: bytes | memoryview, client: Client | None = None) -> None:
    """
    Send data in pieces, each in its turn, so that small requests run in between, even if the client reads fast.

    Stop if the client leaves: otherwise its data would stay in memory, and its turns would delay the others.
    """
    client = client or Client()
    turns = _sending.setdefault(asyncio.get_running_loop(), Turns())
    view = memoryview(data)
    for start in range(0, len(view), PIECE):
        await turns.wait(client)
        if client.is_gone:
            return
        await send({"type": "http.response.body", "body": bytes(view[start : start + PIECE]), "more_body": True})


class Turns:
    """Turns on an event loop: one a pass, so what many clients ask for at once holds nobody else up."""

    def __init__(self) -> None:
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def wait(self, client: Client | None = None) -> None:
        """Wait until it is the caller's turn, or its client leaves."""
        if client is not None and client.is_gone:
            return
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        if not self._waiters:
            loop.call_soon(self._give, loop)
        self._waiters.append(waiter)
        await (waiter if client is None else client.wait(waiter))

    def _give(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():  # its task was not cancelled, and its client has not left
                waiter.set_result(None)
                break
        if self._waiters:
            loop.call_soon(self._give, loop)


#: Turns to send pieces of large replies and files, by event loop.
_sending: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, Turns]] = WeakKeyDictionary()


async def _send_start(send: Send, reply: Reply, length: int, more_headers: tuple[Header, ...]) -> None:
    headers = [*_HEADERS, (b"content-length", b"%d" % length), *more_headers]
    if reply.retry_after is not None:
        headers.append((b"retry-after", b"%d" % math.ceil(reply.retry_after)))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})


def is_pinned(scope: Mapping[str, Any]) -> bool:
    """
    Return True if the reply to a request carries `HSTS`: over https, except for localhost.

    The header applies to all ports of a host, so on localhost it would break other programs using http.
    """
    if scope.get("scheme") != "https":
        return False
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").lower().partition(b":")[0]
    return host != b"localhost" and not host.endswith(b".localhost")
