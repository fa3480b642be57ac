"""HTTP API: ASGI application (routes, body limit, API key check, health check), and fast path of small requests."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from cloudstore_mapping.errors import CloudStoreError, ProtocolError, TooBigError, UnavailableError
from cloudstore_mapping.links import FILES_PATH
from cloudstore_mapping.service.security import network_of
from cloudstore_mapping.web.admin import make_admin
from cloudstore_mapping.web.downloads import make_files
from cloudstore_mapping.web.http import (
    CLIENT,
    CLOSE,
    END,
    FAILED,
    HEALTH_PATH,
    HSTS_LINE,
    PREFLIGHT,
    REPLY_ROOM,
    Application,
    BoundedWorkers,
    Deadline,
    DisconnectedError,
    Message,
    Receive,
    RefusedError,
    Scope,
    Send,
    answer,
    check_method,
    encode_response,
    headers_of,
    is_large,
    is_pinned,
    note_outcome,
    outcome,
    send_reply,
)
from cloudstore_mapping.web.openapi import OPENAPI_PATH, make_openapi
from cloudstore_mapping.web.uploads import SpoolSpace, make_upload
from cloudstore_mapping.wire import (
    BATCH_PATH,
    ID_HEADER,
    ID_PATTERN,
    LOAD_PATH,
    MAX_ID,
    SAVE_PATH,
    UPLOAD_PATH,
    Batch,
    Reply,
    Request,
    decode_request,
    failure,
    success,
)

if TYPE_CHECKING:
    from cloudstore_mapping.service.dispatcher import Answerer
    from cloudstore_mapping.service.quotas import ReplyRoom
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.web.connections import KnownClients
    from cloudstore_mapping.web.metrics import InstrumentedApp

R = TypeVar("R")

_log: Final = logging.getLogger("cloudstore_mapping.web")

#: Value of the Connection header for a persistent connection, assumed if the header is missing.
_KEPT: Final = b"keep-alive"

#: Write a whole reply (status, headers, body). Return False if the client has disconnected.
Write: TypeAlias = Callable[[int, bytes, bytes], bool]


@dataclass
class _Waiting:
    """Queued request of the fast path: its time of arrival (`began`), and the functions and memory for its reply."""

    scope: Scope
    headers: Mapping[bytes, bytes]
    body: bytes
    write: Write
    send: Send
    began: float
    room: ReplyRoom
    api_key: str = ""


class FastPath:
    """
    Fast path: answer small requests as the ASGI application does, without a task each; only for the loop's thread.

    A task and a transaction for each request would add half of the request's own time. All requests of a group arrived
    before the first one is processed, so their reads may share a snapshot. `observed` counts and logs them.
    """

    def __init__(
        self, service: Service, base_path: str, observed: InstrumentedApp, trusted_proxies: str, known: KnownClients
    ) -> None:
        self._service = service
        self._known = known
        self._posts = posts(base_path)
        self._max_body = min(LARGE_BODY, service.settings.max_body_bytes)
        self._max_depth = service.settings.max_depth
        self._observed = observed
        self._proxies = ProxyHeadersMiddleware(_nothing, trusted_proxies) if trusted_proxies else None
        self._waiting: list[_Waiting] = []
        self._sending: set[asyncio.Task[None]] = set()

    def address_of(self, scope: Scope) -> str:
        """Return the address of a request's client, as reported by trusted proxies."""
        if self._proxies is not None:
            scope = dict(scope)
            _finish(self._proxies(scope, None, None))  # type: ignore[arg-type]  # `_nothing` uses neither
        client = scope["client"]
        return client[0] if client else ""

    def may_take(self, scope: Scope) -> bool:
        """Return True if `take` may answer a request with these headers once its body has arrived."""
        return scope["path"] in self._posts and scope["method"] == "POST"

    def take(self, scope: Scope, body: bytes, write: Write, send: Send) -> bool:
        """
        Queue the request for the end of this turn of the loop; return False to leave it to the application.

        The application gets large bodies, special Connection headers, and content types to refuse. A small reply is
        written at once; a large reply is sent in pieces, as the application does.
        """
        headers = headers_of(scope)
        # uvicorn handles all other Connection headers, differently in each version.
        if len(body) > self._max_body or headers.get(b"connection", _KEPT).lower() != _KEPT:
            return False
        try:
            check_type(headers)
        except RefusedError:
            return False
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._answer_all)
        room = self._service.reply_memory.room()
        self._waiting.append(_Waiting(scope, headers, body, write, send, perf_counter(), room))
        return True

    def _answer_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        with self._service.dispatcher.together() as answer:
            for each in waiting:
                reply = self._reply(each, partial(self._begin, each, answer))
                if isinstance(reply, Reply):
                    self._end(each, reply)
                else:
                    self._end_later(each, reply)

    def _begin(self, asked: _Waiting, answer: Answerer) -> Reply | Future[Reply]:
        scope = asked.scope
        if self._proxies is not None:
            _finish(self._proxies(scope, None, None))  # type: ignore[arg-type]  # `_nothing` uses neither
        request = decode_request(self._posts[scope["path"]], asked.body, max_depth=self._max_depth)
        request = identified(request, asked.headers)
        scope["operation"] = request.operation.value
        asked.api_key = request.api_key
        client = scope["client"]
        return answer(request, client[0] if client else "", asked.room)

    def _reply(self, asked: _Waiting, work: Callable[[], R]) -> R | Reply:
        """Return the result of the work, or an error reply for its exception."""
        try:
            return work()
        except CloudStoreError as error:
            return failure(error)
        except Exception:  # noqa: BLE001 - logged; the client gets a generic error
            _log.exception("A request to %s failed.", asked.scope["path"])
            return FAILED

    def _end_later(self, asked: _Waiting, future: Future[Reply]) -> None:
        loop = asyncio.get_running_loop()

        def end(done: Future[Reply]) -> None:
            with suppress(RuntimeError):  # the loop was stopped by force, with its connections
                loop.call_soon_threadsafe(lambda: self._end(asked, self._reply(asked, done.result)))

        future.add_done_callback(end)

    def _end(self, asked: _Waiting, reply: Reply) -> None:
        scope = asked.scope
        note_outcome(scope, reply)
        if reply.error is None:
            client = scope["client"]
            pair = asked.api_key, client[0] if client else ""
            if pair not in self._known.pairs:
                self._known.add(*pair)
        if is_large(reply):
            sending = asyncio.get_running_loop().create_task(self._send_large(asked, reply))
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)
            return
        if asked.room.size:
            asked.room.release()
        head, body = encode_response(reply)
        if is_pinned(scope):
            head += HSTS_LINE
        is_there = asked.write(reply.status, head, body)
        seconds = perf_counter() - asked.began
        self._observed.ended(scope, reply.status if is_there else 0, seconds, len(body) if is_there else 0)

    async def _send_large(self, asked: _Waiting, reply: Reply) -> None:
        size = 0

        async def send(message: Message) -> None:
            nonlocal size
            size += len(message.get("body", b""))
            await asked.send(message)

        try:
            await send_reply(send, reply, client=asked.scope.get(CLIENT))
        finally:
            asked.room.release()
            self._observed.ended(asked.scope, reply.status, perf_counter() - asked.began, size)


async def _nothing(*_: Any) -> None:
    """Do nothing: the application behind a middleware, run only to update the scope."""


def _finish(coroutine: Any) -> None:
    """Run a coroutine to its end; `RuntimeError` if it waits for anything."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError(f"{coroutine!r} waits for something.")


#: Size in bytes above which a thread decodes a body, to keep the event loop free for other requests.
LARGE_BODY: Final = 64 * 2**10
#: Large bodies decoded at a time, and queued.
DECODERS: Final = 2
DECODES_WAITING: Final = 256
#: The same for bodies without an API key among their first members: the key is unknown until they are decoded.
STRANGERS_DECODERS: Final = 1
STRANGERS_DECODES_WAITING: Final = 16

_ID: Final = ID_HEADER.lower().encode()
_id_in: Final = re.compile(ID_PATTERN.encode()).fullmatch
# API key of a request, after short members only. Each text matches in a single way, against slow backtracking.
_key_in: Final = re.compile(
    rb'[ \t\r\n]*\{(?:[ \t\r\n]*"(?!key")[A-Za-z_]{1,32}"[ \t\r\n]*:[ \t\r\n]*'
    rb'(?:null|true|false|-?[0-9.eE+-]{1,32}|"(?:[^"\\]|\\.)*")[ \t\r\n]*,)*'
    rb'[ \t\r\n]*"key"[ \t\r\n]*:[ \t\r\n]*"([\x20\x21\x23-\x5b\x5d-\x7e]*)"',
    re.DOTALL,
).match

_HEALTHY: Final = success("Healthy")
_UNHEALTHY: Final = failure(UnavailableError("The service can store nothing at present; its log says why."))


def make_app(service: Service, *, base_path: str = "/cloudstore", known: KnownClients | None = None) -> Application:
    """
    Return the ASGI application of `service` under `base_path`; the caller closes the service.

    A slow client costs a socket, never a thread. A share of the space for spooled uploads is reserved for `known`
    clients.
    """
    base = base_path.rstrip("/")
    return _App(service, base, _mounts(service, base, SpoolSpace(service.settings, known)))


def _mounts(service: Service, base: str, space: SpoolSpace) -> Mapping[str, Application]:
    """Return the ASGI applications by path prefix, for all paths except the wire format's own."""
    return {
        base + UPLOAD_PATH: make_upload(service, base + UPLOAD_PATH, space),
        base + FILES_PATH: make_files(service, base + FILES_PATH),
        base + OPENAPI_PATH: make_openapi(base, base + OPENAPI_PATH),
        f"{base}/admin": make_admin(service, base, space),
    }


def posts(base_path: str) -> Mapping[str, str]:
    """Return the paths of requests on data files, each with its path in the wire format."""
    return {base_path.rstrip("/") + path: path for path in (SAVE_PATH, LOAD_PATH, BATCH_PATH)}


class _App:
    def __init__(self, service: Service, base: str, mounts: Mapping[str, Application]) -> None:
        self._mounts = mounts
        self._service = service
        self._max_body = service.settings.max_body_bytes
        self._max_depth = service.settings.max_depth
        self._deadline = Deadline(service.settings.body_timeout)
        self._posts = posts(base)
        self._decoders = BoundedWorkers(DECODERS, DECODES_WAITING, "cloudstore-decode")
        self._strangers_decoders = BoundedWorkers(
            STRANGERS_DECODERS, STRANGERS_DECODES_WAITING, "cloudstore-decode-strangers"
        )
        self._health = BoundedWorkers(1, 1, "cloudstore-health")
        self._health_check: Future[bool] | None = None
        self._health_path = base + HEALTH_PATH
        self._no_path = f"There is nothing here; post to {base + SAVE_PATH} or {base + LOAD_PATH}."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _live(scope, receive, send)
            return
        if scope["method"] == "OPTIONS":
            await send(PREFLIGHT)
            await send(END)
            return
        path = scope["path"]
        if path not in self._posts:
            for prefix, application in self._mounts.items():
                if path.startswith(prefix):
                    await application(scope, receive, send)
                    return
        await answer(scope, receive, send, self._answer)

    async def _answer(self, scope: Scope, receive: Receive) -> Reply:
        method = scope["method"]
        path = self._posts.get(scope["path"])
        if path is None:
            if scope["path"] != self._health_path:
                raise RefusedError(ProtocolError(self._no_path, error="NoPath"))
            check_method(method, ("GET", "HEAD"))
            return _HEALTHY if await self._is_healthy() else _UNHEALTHY
        check_method(method, ("POST",))
        headers = headers_of(scope)
        check_type(headers)
        if int(headers.get(b"content-length", 0)) > self._max_body:
            raise self._too_big()
        client = scope["client"]
        address = client[0] if client else ""
        body, decoders, owner = await self._read(receive, address)
        decode = partial(decode_request, path, body, max_depth=self._max_depth)
        request = decode() if decoders is None else await decoders.run(decode, owner)
        request = identified(request, headers)
        scope["operation"] = request.operation.value
        room = scope[REPLY_ROOM] = self._service.reply_memory.room()
        reply = self._service.dispatcher.submit(request, address, room=room)
        return reply if isinstance(reply, Reply) else await outcome(reply)

    async def _is_healthy(self) -> bool:
        """Return the result of a health check; it waits for the writer, so concurrent callers share one check."""
        if self._health_check is None or self._health_check.done():
            self._health_check = await self._health.begin(self._service.healthy)
        return await outcome(self._health_check)

    async def _read(self, receive: Receive, address: str) -> tuple[bytes, BoundedWorkers | None, Hashable]:
        """
        Return the body, its decoder threads (None for a small body) and the owner of that work.

        Refuse a large body with a wrong API key before all of it has arrived. Raise `RefusedError` for a body too
        large or too slow, `DisconnectedError` if the client disconnects.
        """
        pieces: list[bytes] = []  # joined once: many growing buffers fragment memory
        small = bytearray()
        size = 0
        decoders: BoundedWorkers | None = None
        owner: Hashable = None
        task = self._deadline.begin()
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise DisconnectedError
                piece = message.get("body", b"")
                size += len(piece)
                if size > self._max_body:
                    raise self._too_big()
                small += piece
                if decoders is None and size > LARGE_BODY:
                    decoders, owner = await self._check_key(bytearray(b"".join((*pieces, small))), address)
                if not message.get("more_body"):
                    pieces.append(bytes(small))
                    return b"".join(pieces) if len(pieces) > 1 else pieces[0], decoders, owner
                if len(small) >= LARGE_BODY:
                    pieces.append(bytes(small))
                    small = bytearray()
        except asyncio.CancelledError:
            if not self._deadline.passed(task):
                raise
            seconds = f"{self._deadline.seconds:g} seconds (the service's body_timeout)"
            sentence = f"The body took longer than {seconds} to arrive; send it faster."
            raise RefusedError(ProtocolError(sentence, error="BadRequest"), CLOSE) from None
        finally:
            self._deadline.end(task)

    async def _check_key(self, body: bytearray, address: str) -> tuple[BoundedWorkers, Hashable]:
        """Return threads and owner for a body with this beginning; raise `BadKeyError` or similar for a wrong key."""
        found = _key_in(body)
        if found is None:
            return self._strangers_decoders, network_of(address)
        # Of several keys in a body the last one counts, so this check can only refuse.
        checked = self._service.dispatcher.check_key(found[1].decode(), address)
        if checked is not None:
            await outcome(checked)
        return self._decoders, found[1]

    def _too_big(self) -> RefusedError:
        limit = f"A body may take {self._max_body:,} bytes at most (the service's max_body_bytes)"
        sentence = f"{limit}; split the value or the batch."
        return RefusedError(TooBigError(sentence, error="BodyTooBig"), CLOSE)


def check_type(headers: Mapping[bytes, bytes]) -> None:
    """Refuse a request (`RefusedError`) unless its body is uncompressed JSON in UTF-8."""
    _check_type(headers.get(b"content-type", b""), headers.get(b"content-encoding", b"identity"))


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
        raise RefusedError(ProtocolError(sentence, error="BadType"))
    if content_encoding.strip().lower() not in {b"identity", b""}:
        sentence = "The body can't be compressed; send it without a Content-Encoding."
        raise RefusedError(ProtocolError(sentence, error="BadType"))


def identified(request: Request | Batch, headers: Mapping[bytes, bytes]) -> Request | Batch:
    """Return a write with the idempotency key of its headers as its id; an id in the body takes precedence."""
    header = headers.get(_ID)
    if header is None or request.once is not UNSET or request.path == LOAD_PATH:
        return request
    found = _id_in(header)
    if found is None:
        sentence = f"{ID_HEADER} has to be 1 to {MAX_ID} letters, digits, - and _; draw another one for each write."
        raise ProtocolError(sentence, error="BadRequest")
    return msgspec.structs.replace(request, once=found[2].decode())


async def _live(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "lifespan":
        raise NotImplementedError(f"There is no {scope['type']} here, only HTTP.")
    while (await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
